//! Pod network and Services on nodes that are network namespaces of this machine. Needs root; says
//! so and passes otherwise. Nothing leaves the machine: the nodes' bridge has no way out.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod cluster;
mod north_south;
mod role;
mod traffic;
