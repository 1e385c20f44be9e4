//! Validation shared among kinds: small functions over a value, a [`crate::field::Path`] and [`crate::field::Errors`].

pub mod claims;
pub mod containers;
pub mod env;
pub mod internal;
pub mod labels;
pub mod meta;
pub mod net;
pub mod numbers;
pub mod path_overlaps;
pub mod pod_spec;
pub mod probes;
pub mod resources;
pub mod scheduling;
pub mod security;
pub mod template;
pub mod text;
pub mod volume_sources;
pub mod volumes;
pub mod warnings;
pub mod webhooks;
