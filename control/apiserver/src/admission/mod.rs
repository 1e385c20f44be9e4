//! What may still change or refuse a write after it was authorized: an ordered chain of plugins.
//!
//! Mutating plugins run first, all in order; validating ones see the final object. A plugin gets the object in the
//! request's version.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::{context::Api, identity::User, registry::Resource, status::Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As `AdmissionReview` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One write, as plugins see it.
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a Arc<Resource>,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// May be empty while a name is still to be generated.
    pub name: &'a str,
    pub user: &'a User,
    pub dry_run: bool,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
    pub options: &'a Value,
    /// Null for deletes.
    pub object: Value,
    /// What is stored; null for creates.
    pub old: &'a Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Attributes<'_> {
    /// Whether this concerns the object itself of the given resource.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.subresource.is_empty() && self.resource.is(group, plural)
    }
}

#[async_trait]
pub trait Plugin: Send + Sync {
    /// The name that `--disable-admission-plugins` knows.
    fn name(&self) -> &'static str;

    async fn mutate(&self, _api: &Api, _attributes: &mut Attributes<'_>) -> Result<()> {
        Ok(())
    }

    async fn validate(&self, _api: &Api, _attributes: &mut Attributes<'_>) -> Result<()> {
        Ok(())
    }
}

/// Ordered plugins.
#[derive(Clone, Default)]
pub struct Chain(pub Vec<Arc<dyn Plugin>>);

impl Chain {
    pub async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        for plugin in &self.0 {
            plugin.mutate(api, attributes).await?;
        }
        Ok(())
    }

    pub async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        for plugin in &self.0 {
            plugin.validate(api, attributes).await?;
        }
        Ok(())
    }
}

/// The plugins that are on by default, in upstream's order.
pub fn default_chain() -> Chain {
    Chain(Vec::new())
}
