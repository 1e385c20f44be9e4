//! Requests that are for a node, a pod or a Service and only pass through here.

/// How to reach nodes; see the handlers of `pods/log`, `pods/exec`, `*/proxy`.
#[derive(Default)]
pub struct Relay {}
