//! Controllers and scheduler against the real API server in process, over the memory store. A kubelet of a few lines
//! plays every node: it heartbeats, says that its pods run, and lets them go when they are deleted.
#![forbid(unsafe_code)]

mod autoscaling;
mod cluster;
mod nodes;
mod objects;
mod rollouts;
mod workloads;
