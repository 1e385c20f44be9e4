//! The HTTP edge of the cluster: verbs, discovery, watch cache, authentication, authorization, admission, relay to nodes.
//!
//! The only crate that talks to the store. It must not know what a kind means: that is `skep-api`'s.
//! Read `identity` for who is asking, then the handlers.
#![forbid(unsafe_code)]

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod codec;
pub mod context;
pub mod crd;
pub mod discovery;
pub mod encryption;
pub mod fairness;
pub mod handlers;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod metrics;
pub mod negotiate;
pub mod node_metrics;
pub mod openapi;
pub mod options;
pub mod registry;
pub mod relay;
pub mod request;
pub mod respond;
pub mod server;
pub mod service;
pub mod services;
pub mod status;
pub mod storage;
pub mod stream;
pub mod subresources;
pub mod tunnel;
pub mod webhook;
mod websocket;
mod yaml;

pub use server::{Config, Server, build, builtin_registry, start_cache};
pub use service::ApiService;
pub use status::{Failure, Result, Status};
pub use storage::Storage;
