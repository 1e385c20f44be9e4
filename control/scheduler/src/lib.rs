//! Decides which node runs a pod: snapshot → filter → score → preempt → bind.
//!
//! The core is pure and synchronous: [`cluster::Cluster`] holds what is known, [`decide::decide`] says where a pod goes
//! or, per node, why not. Neither does I/O nor reads a clock. [`runner`] feeds the cluster from informers, and makes
//! decisions true through the API. Nothing here knows the store or a node agent.
//!
//! Read `decide` first, then `filter` for the rules (one function a rule, with upstream's reasons) and `queue` for when a
//! pod that did not fit is looked at again.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod decide;
pub mod filter;
pub mod node;
pub mod pod;
pub mod preempt;
pub mod quantity;
pub mod queue;
pub mod runner;
pub mod score;
pub mod terms;
pub mod volumes;

pub use runner::{Config, run};
