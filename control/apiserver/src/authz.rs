//! May they? The question every request asks; the Node and RBAC authorizers answer it.

use crate::identity::User;

/// What is being asked for (`authorization.k8s.io SubjectAccessReviewSpec`).
#[derive(Clone, Debug)]
pub enum Attributes<'a> {
    Resource {
        user: &'a User,
        verb: &'a str,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        /// Empty without one.
        subresource: &'a str,
        /// Empty for cluster scope and for all namespaces.
        namespace: &'a str,
        /// Empty for lists and creates.
        name: &'a str,
    },
    Path {
        user: &'a User,
        verb: &'a str,
        path: &'a str,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// No authorizer allowed it. `reason` goes into the 403's message.
    NoOpinion {
        reason: String,
    },
}

pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}
