//! The API server through its service, over the memory store: verbs, concurrency, limits.
#![forbid(unsafe_code)]

mod admission;
mod cluster;
mod concurrency;
mod conversion;
mod definitions;
mod hook;
mod node_metrics;
mod operator;
mod policies;
mod reads;
mod webhooks;
mod writes;
