//! admissionregistration.k8s.io/v1

mod expressions;
pub mod policies;
pub mod policy_bindings;
mod rules;
pub mod type_checking;
pub mod webhooks;
