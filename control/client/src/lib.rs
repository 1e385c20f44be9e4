//! What every client of the API server inside skep shares: one informer per kind, a work queue that runs a key at a time,
//! expectations, leader election, events and typed writes. Thin over kube-client and kube-runtime.
//!
//! It knows no controller and no store. Read [`informer`] first (how state arrives), then [`queue`] (how work is done).
#![forbid(unsafe_code)]

pub mod backoff;
pub mod connect;
pub mod election;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod key;
pub mod queue;
pub mod writes;

pub use backoff::Backoff;
pub use connect::{from_kubeconfig, in_process};
pub use election::Election;
pub use events::Recorder;
pub use expectations::Expectations;
pub use informer::{Change, Informer, Informers, Kept};
pub use key::ObjectKey;
pub use queue::{Action, Queue};
