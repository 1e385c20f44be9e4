//! May they? The question every request asks.
//!
//! Two authorizers answer: [`node`] for agents (only what the pods bound to a node need) and [`rbac`] for everybody.
//! [`bootstrap`] makes the roles that exist from the first start.

use crate::identity::{MASTERS, User};

pub mod bootstrap;
pub mod cached;
pub mod claims;
pub mod escalation;
pub mod node;
pub mod parameters;
pub mod rbac;

/// What is being asked for (`authorization.k8s.io SubjectAccessReviewSpec`).
#[derive(Clone, Copy, Debug)]
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

impl<'a> Attributes<'a> {
    pub fn user(&self) -> &'a User {
        match self {
            Self::Resource { user, .. } | Self::Path { user, .. } => user,
        }
    }
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

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// The RBAC rules that apply to a user in a namespace (`SelfSubjectRulesReview`, escalation checks).
    fn rules(&self, user: &User, namespace: &str) -> Vec<rbac::Rule>;
}

/// Asks each authorizer in turn; the first that allows decides. `system:masters` may do everything.
pub struct Union {
    pub authorizers: Vec<Box<dyn Authorizer>>,
}

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes
            .user()
            .groups
            .iter()
            .any(|group| group == MASTERS)
        {
            return Decision::Allow {
                reason: String::new(),
            };
        }
        let mut reasons = Vec::new();
        for authorizer in &self.authorizers {
            match authorizer.authorize(attributes) {
                Decision::NoOpinion { reason } if reason.is_empty() => {}
                Decision::NoOpinion { reason } => reasons.push(reason),
                allow => return allow,
            }
        }
        Decision::NoOpinion {
            reason: reasons.join(", "),
        }
    }

    fn rules(&self, user: &User, namespace: &str) -> Vec<rbac::Rule> {
        self.authorizers
            .iter()
            .flat_map(|a| a.rules(user, namespace))
            .collect()
    }
}
