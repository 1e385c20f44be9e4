//! The HTTP edge of the cluster: verbs, discovery, watch cache, authentication, authorization, admission, relay to nodes.
//!
//! The only crate that talks to the store. It must not know what a kind means: that is `skep-api`'s.
//! Read `identity` for who is asking, then the handlers.
#![forbid(unsafe_code)]

pub mod authn;
pub mod authz;
pub mod cache;
pub mod identity;
