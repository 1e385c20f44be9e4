//! The API server through its service, over the memory store: verbs, concurrency, limits.
#![forbid(unsafe_code)]

mod admission;
mod aggregation;
mod audit;
mod cluster;
mod concurrency;
mod conversion;
mod definitions;
mod dual_stack;
mod encryption;
mod hook;
mod members;
mod node_metrics;
mod openapi;
mod operator;
mod policies;
mod reads;
mod stalled;
mod subresources;
mod webhooks;
mod writes;
