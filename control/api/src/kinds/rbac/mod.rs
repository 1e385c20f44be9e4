//! rbac.authorization.k8s.io/v1

pub mod binding;
pub mod role;
