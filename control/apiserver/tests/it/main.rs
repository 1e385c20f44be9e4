//! The API server through its service, over the memory store: verbs, concurrency, limits.
#![forbid(unsafe_code)]

mod admission;
mod cluster;
mod concurrency;
mod hook;
mod policies;
mod reads;
mod webhooks;
mod writes;
