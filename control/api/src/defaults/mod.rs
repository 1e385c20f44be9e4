//! Defaults shared among kinds: pod specs, volume sources, claims.

pub mod pod_spec;
pub mod volumes;
