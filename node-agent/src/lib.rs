//! `skep-agent`: everything that runs on a node.
//!
//! - `kubelet`: the pods of this node, from the API object to containers and back to its status
//! - `runtime`: the container runtime behind one trait: Docker, or hollow
//! - `network`: the pod network behind one trait
//! - `proxy`, `policy`, `dns`: Services, NetworkPolicy and names of the cluster, on this node
//! - `services`, `endpoints`, `slim`: Services and EndpointSlices in little memory, for all of these
//! - `memory`: what the agent does not use, given back
//!
//! The agent is a client of the API like any other; it must not know the API server's crates.
//! Read `kubelet/plan.rs` first: it decides what happens to a pod.
#![forbid(unsafe_code)]

pub mod dns;
pub mod endpoints;
pub mod kubelet;
pub mod memory;
pub mod network;
pub mod oom;
pub mod policy;
pub mod proxy;
pub mod runtime;
pub mod services;
pub mod slim;
