//! NamespaceLifecycle: no content without a namespace, none in one that is going away, and some namespaces stay.

use async_trait::async_trait;

use super::{Attributes, Operation, Plugin, forbidden, key};
use crate::{
    context::Api,
    status::{Cause, Result, Status},
};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if attributes.resource.is("", "namespaces") {
            if attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name) {
                return Err(forbidden(attributes, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let namespace = attributes.namespace;
        // A question about access may be asked about any namespace.
        if attributes.resource.def.group == "authorization.k8s.io" {
            return Ok(());
        }
        if namespace.is_empty() || attributes.operation == Operation::Delete {
            return Ok(());
        }
        let found = match key(api, "", "namespaces", "", namespace) {
            Some(key) => api.storage.find(&key).await?,
            None => None,
        };
        let Some(found) = found else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if attributes.operation != Operation::Create
            || found.fields.get("status.phase") != Some("Terminating")
        {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        Err(forbidden(attributes, &why).with_causes(vec![Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        }]))
    }
}
