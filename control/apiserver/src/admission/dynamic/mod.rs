//! Admission that users configure: webhooks and CEL policies.
//!
//! Both select writes the same way ([`matching`]), see them the same way ([`Subject`], [`review`]) and may ask for the
//! version of the object that their rules name. Configurations are read from the watch cache and compiled once a change
//! ([`Compiled`]), so that a write that nothing matches costs nearly nothing.

mod authorizer;
mod expressions;
mod matching;
mod mutating_policies;
mod policies;
mod review;
mod validating_policies;
mod webhooks;

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use serde_json::Value;
use skep_store::Revision;

pub use mutating_policies::MutatingAdmissionPolicy;
pub use validating_policies::ValidatingAdmissionPolicy;
pub use webhooks::{MutatingAdmissionWebhook, ValidatingAdmissionWebhook};

use self::{expressions::Input, policies::Invocation};
use super::{Attributes, Operation};
use crate::{
    context::Api,
    registry::Resource,
    status::{Failure, Result, Status},
    storage::from_stored,
    subresources::scale::{scale_of, set_pointer},
};

const GROUP: &str = "admissionregistration.k8s.io";

/// Group, version and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gvk {
    group: String,
    version: String,
    kind: String,
}

impl Gvk {
    /// What a resource or a subresource of it takes and answers.
    fn of(resource: &Resource, subresource: &str) -> Self {
        let def = &resource.def;
        let sub = def.subresources.iter().find(|sub| sub.name == subresource);
        let own = |text: &str, default: &str| {
            let text = if text.is_empty() { default } else { text };
            text.to_owned()
        };
        match sub {
            Some(sub) if !sub.version.is_empty() => Self {
                group: sub.group.to_string(),
                version: sub.version.to_string(),
                kind: sub.kind.to_string(),
            },
            Some(sub) => Self {
                group: own(&sub.group, &def.group),
                version: def.version.to_string(),
                kind: sub.kind.to_string(),
            },
            None => Self {
                group: def.group.to_string(),
                version: def.version.to_string(),
                kind: def.kind.to_string(),
            },
        }
    }

    fn json(&self) -> Value {
        serde_json::json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// A write as rules and expressions name it.
struct Subject {
    resource: Arc<Resource>,
    kind: Gvk,
    subresource: String,
    /// A namespace object is in itself.
    namespace: String,
    name: String,
}

impl Subject {
    fn of(attributes: &Attributes<'_>) -> Self {
        let is_namespace = attributes.resource.is("", "namespaces");
        let name = match attributes.name {
            "" => crate::codec::meta(&attributes.object, "name"),
            name => name,
        };
        Self {
            resource: attributes.resource.clone(),
            kind: Gvk::of(attributes.resource, attributes.subresource),
            subresource: attributes.subresource.to_owned(),
            namespace: if is_namespace {
                name.to_owned()
            } else {
                attributes.namespace.to_owned()
            },
            name: name.to_owned(),
        }
    }

    fn is_namespace(&self) -> bool {
        self.resource.is("", "namespaces")
    }

    /// Configurations of admission are never subject to it, or a bad one could not be mended.
    fn is_exempt(&self) -> bool {
        self.resource.def.group == GROUP
    }
}

/// The version of a resource that a rule matched.
#[derive(Clone)]
struct Matched {
    resource: Arc<Resource>,
    kind: Gvk,
}

/// An object of this write as its subresource shows it, in a version.
///
/// # Errors
/// A conversion webhook cannot say how that looks.
async fn shown(
    api: &Api,
    attributes: &Attributes<'_>,
    object: &Value,
    matched: &Matched,
) -> Result<Value> {
    if object.is_null() {
        return Ok(Value::Null);
    }
    if attributes.subresource == "scale" {
        return Ok(scale_of(object, &attributes.resource.scale_paths()));
    }
    in_version(api, object.clone(), attributes.resource, &matched.resource).await
}

/// What the expressions of one policy see of a write.
struct Objects<'a> {
    object: Value,
    old: Value,
    namespace: &'a Value,
}

impl<'a> Objects<'a> {
    /// # Errors
    /// As [`shown`].
    async fn of(
        api: &Api,
        attributes: &Attributes<'_>,
        matched: &Matched,
        namespace: &'a Value,
    ) -> Result<Self> {
        Ok(Self {
            object: shown(api, attributes, &attributes.object, matched).await?,
            old: shown(api, attributes, attributes.old, matched).await?,
            namespace,
        })
    }

    fn input<'i, T>(
        &'i self,
        api: &'i Api,
        attributes: &'i Attributes<'i>,
        subject: &'i Subject,
        request: &'i Value,
        invocation: &'i Invocation<'_, T>,
    ) -> Input<'i> {
        Input {
            api,
            attributes,
            subject,
            request,
            object: &self.object,
            old: &self.old,
            params: invocation.policy.params(&invocation.params),
            namespace: Some(self.namespace),
        }
    }
}

/// Puts what was [`shown`] and then changed back into the write.
///
/// # Errors
/// As [`shown`].
async fn put_back(
    api: &Api,
    attributes: &mut Attributes<'_>,
    changed: Value,
    matched: &Matched,
) -> Result<()> {
    if attributes.subresource == "scale" {
        let replicas = changed["spec"]["replicas"].as_i64().unwrap_or(0);
        let paths = attributes.resource.scale_paths();
        set_pointer(
            &mut attributes.object,
            &paths.spec_replicas,
            replicas.into(),
        );
        return Ok(());
    }
    attributes.object = in_version(api, changed, &matched.resource, attributes.resource).await?;
    Ok(())
}

async fn in_version(
    api: &Api,
    value: Value,
    from: &Arc<Resource>,
    to: &Arc<Resource>,
) -> Result<Value> {
    if Arc::ptr_eq(from, to) || from.api_version == to.api_version {
        return Ok(value);
    }
    if let Some(form) = &to.stored_form {
        return form.converted(api, value).await;
    }
    let stored = match &from.def.conversion {
        Some(conversion) => (conversion.to_storage)(value),
        None => value,
    };
    let mut value = from_stored(to, stored);
    value["kind"] = to.def.kind.as_ref().into();
    value["apiVersion"] = to.api_version.as_str().into();
    Ok(value)
}

/// Reads a changed object as its kind's type would.
///
/// # Errors
/// What does not fit.
fn conformed(
    attributes: &Attributes<'_>,
    value: Value,
    matched: &Matched,
) -> std::result::Result<Value, String> {
    let kind = &matched.kind;
    let whole = kind.kind == matched.resource.def.kind.as_ref();
    let schema = if whole {
        matched.resource.def.schema.clone()
    } else {
        skep_schema::builtin(&kind.group, &kind.version, &kind.kind)
    };
    let mut value = match schema {
        Some(schema) => {
            let decoded = skep_schema::conform(value, &schema).map_err(|e| e.to_string())?;
            decoded.value
        }
        None => value,
    };
    if whole && attributes.operation != Operation::Connect {
        matched.resource.def.strategy.default(&mut value);
    }
    Ok(value)
}

/// A stored collection, compiled when it has changed.
struct Compiled<T> {
    plurals: &'static [&'static str],
    at: Mutex<Option<(Vec<Revision>, Arc<T>)>>,
}

impl<T> Compiled<T> {
    const fn new(plurals: &'static [&'static str]) -> Self {
        Self {
            plurals,
            at: Mutex::new(None),
        }
    }

    /// `compile` gets the objects of each collection, sorted by name.
    fn load(&self, api: &Api, compile: impl FnOnce(Vec<Vec<Value>>) -> T) -> Arc<T> {
        let prefix = |plural: &&str| format!("/registry/{GROUP}/{plural}/");
        let cache = &api.storage.cache;
        let changed: Vec<Revision> = self
            .plurals
            .iter()
            .map(|plural| cache.changed_at(&prefix(plural)))
            .collect();
        let mut at = self.at.lock();
        if let Some((revisions, compiled)) = &*at
            && *revisions == changed
        {
            return compiled.clone();
        }
        let collection = |plural: &&str| -> Vec<Value> {
            let snapshot = cache.snapshot(&prefix(plural));
            let read = snapshot
                .iter()
                .map(|entry| serde_json::from_slice(&entry.bytes()));
            read.filter_map(|object| {
                object
                    .inspect_err(|error| tracing::error!(%error, plural, "a stored configuration is not readable"))
                    .ok()
            })
            .collect()
        };
        let compiled = Arc::new(compile(self.plurals.iter().map(collection).collect()));
        *at = Some((changed, compiled.clone()));
        compiled
    }
}

/// What a second round of mutation needs to know of the first (KEP-1872): the plugins in the tree run again, and those
/// webhooks and policies that asked for it and before whose eyes the object has changed.
#[derive(Debug, Default)]
pub struct Reinvocation {
    /// Something changed the object that others have seen: a second round is due.
    pub due: bool,
    /// This is the second round.
    pub running: bool,
    webhooks: Invoked,
    policies: Invoked,
}

#[derive(Debug, Default)]
struct Invoked {
    last_output: Option<Value>,
    /// Invoked in this request and willing to be invoked again.
    reinvocable: BTreeSet<String>,
    again: BTreeSet<String>,
}

impl Invoked {
    fn begin(&mut self, running: bool, object: &Value) {
        if running && self.last_output.as_ref().is_some_and(|last| last != object) {
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.again.append(&mut self.reinvocable);
    }
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Status::internal_message(&error.to_string())
}
