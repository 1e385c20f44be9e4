//! What may still change or refuse a write after it was authorized: an ordered chain of plugins.
//!
//! Mutating plugins run first, all in order; validating ones see the final object. A plugin gets the object in the
//! request's version.

mod certificates;
mod dynamic;
mod limit_ranger;
pub mod metrics;
mod namespaces;
mod node_restriction;
mod nodes;
mod pod_security;
mod pods;
mod quota;
mod service_account;
mod storage;

use std::sync::Arc;

use async_trait::async_trait;
pub use dynamic::Reinvocation;
use serde_json::Value;

use crate::{
    context::Api,
    identity::User,
    registry::Resource,
    status::{Failure, Result, Status},
};

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
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
    pub reinvocation: Reinvocation,
}

impl Attributes<'_> {
    /// Hands what plugins had to say on to the answer and the audit log.
    pub fn tell(&mut self, ctx: &crate::context::Ctx) {
        ctx.warnings.lock().append(&mut self.warnings);
        ctx.audit_annotations.lock().append(&mut self.annotations);
    }

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
        if !attributes.reinvocation.due {
            return Ok(());
        }
        // Once more: the plugins and those webhooks and policies that want it see what others made of the object.
        attributes.reinvocation.running = true;
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
    Chain(vec![
        Arc::new(namespaces::NamespaceLifecycle),
        Arc::new(limit_ranger::LimitRanger),
        Arc::new(service_account::ServiceAccount),
        Arc::new(node_restriction::NodeRestriction),
        Arc::new(nodes::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity),
        Arc::new(pods::Priority),
        Arc::new(pods::DefaultTolerationSeconds::default()),
        Arc::new(storage::DefaultStorageClass),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(storage::PersistentVolumeClaimResize),
        Arc::new(pods::RuntimeClass),
        Arc::new(certificates::CertificateApproval),
        Arc::new(certificates::CertificateSigning),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(nodes::DefaultIngressClass),
        Arc::new(nodes::PodTopologyLabels),
        Arc::new(dynamic::MutatingAdmissionPolicy::default()),
        Arc::new(dynamic::MutatingAdmissionWebhook::default()),
        Arc::new(dynamic::ValidatingAdmissionPolicy::default()),
        Arc::new(dynamic::ValidatingAdmissionWebhook::default()),
        Arc::new(quota::ResourceQuota),
    ])
}

/// 403 about the object of this write.
pub fn forbidden(attributes: &Attributes<'_>, why: &str) -> Failure {
    let metadata = match attributes.operation {
        Operation::Delete => &attributes.old["metadata"],
        _ => &attributes.object["metadata"],
    };
    let named = |field: &str| metadata[field].as_str().filter(|n| !n.is_empty());
    let name = Some(attributes.name).filter(|n| !n.is_empty());
    let name = name
        .or_else(|| named("name"))
        .or_else(|| named("generateName"));
    let def = &attributes.resource.def;
    Status::forbidden(&def.group, &def.plural, name.unwrap_or("Unknown"), why)
}

/// Several reasons in one text, as apimachinery's aggregate shows them.
pub fn joined(reasons: &[String]) -> String {
    match reasons {
        [one] => one.clone(),
        _ => format!("[{}]", reasons.join(", ")),
    }
}

/// Every object of a resource in a namespace (empty: of a cluster-scoped resource), decoded.
pub fn objects(api: &Api, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
    let registry = api.registry.load();
    let Some(resource) = registry.any_version(group, plural) else {
        return Vec::new();
    };
    let snapshot = api
        .storage
        .cache
        .snapshot(&resource.scope_prefix(namespace));
    let decode = |entry: &Arc<crate::cache::Entry>| serde_json::from_slice(&entry.bytes()).ok();
    snapshot.iter().filter_map(decode).collect()
}

/// Where an object is stored, if there is such a resource.
fn key(api: &Api, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<str>> {
    let registry = api.registry.load();
    let resource = registry.any_version(group, plural)?;
    Some(resource.key(namespace, name))
}

/// One stored object; looked up in the store when the cache does not have it.
pub async fn object(
    api: &Api,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>> {
    match key(api, group, plural, namespace, name) {
        Some(key) => api.storage.find_value(&key).await,
        None => Ok(None),
    }
}
