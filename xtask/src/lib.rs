//! What `cargo xtask` does: prepares a machine, builds, runs a cluster on it, checks and tests.
//!
//! It drives programs (cargo, apt-get, docker, ip, the three binaries of skep) and knows the layout of a cluster on
//! one machine. It must not depend on any crate of the product, so that it compiles in seconds on a machine that
//! cannot build the product yet. The tests use this library too: `cluster::State` says where everything of a running
//! cluster is.
//!
//! Read first: `cluster/up.rs`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod build;
pub mod check;
pub mod cluster;
pub mod codegen;
pub mod command;
pub mod progress;
pub mod setup;
pub mod test;
pub mod workspace;
