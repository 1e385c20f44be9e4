//! admissionregistration.k8s.io/v1

pub mod policies;
pub mod webhooks;
