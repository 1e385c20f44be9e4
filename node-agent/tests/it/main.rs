//! The kubelet against a real Docker daemon and an API in memory.
//!
//! Needs root and a Docker daemon; without one every test says that it was skipped.
#![forbid(unsafe_code)]

mod api;
mod conformance;
mod eviction;
mod faults;
mod harness;
mod lifecycle;
mod logind;
mod logs;
mod mounts;
mod outage;
mod pods;
mod probing;
mod registry;
mod shutdown;
