//! What the end-to-end tests and the benches share: a cluster made by `cargo xtask up`, the clients that people use,
//! and a load generator. It knows skep only from outside: by its binaries and its API.
//!
//! Read first: `cluster.rs`, then `../e2e/main.rs`.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod cluster;
pub mod histogram;
pub mod load;
pub mod real_clients;
pub mod stream;
pub mod wait;
