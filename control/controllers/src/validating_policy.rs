//! Says in the status of each ValidatingAdmissionPolicy which of its expressions do not fit the kinds that it matches.
//!
//! Watches and writes: ValidatingAdmissionPolicy. Reads: discovery and OpenAPI, when a policy has changed.

use std::sync::Arc;

use k8s_openapi::{
    api::admissionregistration::v1::{ParamKind, ValidatingAdmissionPolicy},
    apimachinery::pkg::apis::meta::v1::APIResourceList,
};
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skep_api::kinds::admissionregistration::type_checking::{
    Matched, Type, matched, type_of, warnings,
};
use skep_client::{Action, Informer, ObjectKey, writes};

use crate::context::{Context, Doing, Error};

const MANAGER: &str = "validatingadmissionpolicy-status";

pub async fn run(context: Arc<Context>) {
    let policies: Informer<ValidatingAdmissionPolicy> = context.informers.of();
    let mut work = context.work();
    work.feed_self(&policies);
    let own = Arc::new((policies, context));
    let name = "validatingadmissionpolicy-status";
    work.run(name, 2, own, |own, key| async move {
        reconcile(&own.0, &own.1, key).await
    })
    .await;
}

async fn reconcile(
    policies: &Informer<ValidatingAdmissionPolicy>,
    context: &Context,
    key: ObjectKey,
) -> Result<Action, Error> {
    let Some(policy) = policies.get(&key) else {
        return Ok(Action::done());
    };
    let observed = policy.status.as_ref().and_then(|s| s.observed_generation);
    if observed == policy.metadata.generation {
        return Ok(Action::done());
    }
    let spec = policy.spec.clone().unwrap_or_default();
    let mut kinds = Vec::new();
    for (group, version, resource) in matched(&spec) {
        let kind = kind_of(context, &group, &version, &resource).await?;
        if let Some(kind) = kind
            && let Some(ty) = known_type(context, &group, &version, &kind).await?
        {
            kinds.push(Matched {
                group,
                version,
                kind,
                ty,
            });
        }
    }
    kinds.sort_by(|a, b| (&a.group, &a.version, &a.kind).cmp(&(&b.group, &b.version, &b.kind)));
    let params = match &spec.param_kind {
        Some(kind) => parameters(context, kind).await?,
        None => None,
    };
    let warnings = warnings(&spec, &kinds, params.as_ref());
    let mut checked = json!({});
    if !warnings.is_empty() {
        checked["expressionWarnings"] = json!(warnings);
    }
    let status = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": key.name},
        "status": {"observedGeneration": policy.metadata.generation, "typeChecking": checked},
    });
    let api = context.cluster_api::<ValidatingAdmissionPolicy>();
    let apply = PatchParams::apply(MANAGER).force();
    match api
        .patch_status(&key.name, &apply, &Patch::Apply(status))
        .await
    {
        Ok(_) => Ok(Action::done()),
        Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
        Err(error) => Err(error).doing("write what the check of types found"),
    }
}

async fn parameters(context: &Context, kind: &ParamKind) -> Result<Option<Type>, Error> {
    let api_version = kind.api_version.as_deref().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = kind.kind.as_deref().unwrap_or_default();
    known_type(context, group, version, kind).await
}

/// The kind of a resource; `None`: nobody serves it.
async fn kind_of(
    context: &Context,
    group: &str,
    version: &str,
    resource: &str,
) -> Result<Option<String>, Error> {
    let path = format!("/{}", path_of(group, version));
    let list: Option<APIResourceList> = read(context, &path).await?;
    let mut resources = list.into_iter().flat_map(|list| list.resources);
    Ok(resources.find(|r| r.name == resource).map(|r| r.kind))
}

async fn known_type(
    context: &Context,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Option<Type>, Error> {
    let path = format!("/openapi/v3/{}", path_of(group, version));
    let document: Option<Value> = read(context, &path).await?;
    Ok(document.and_then(|document| type_of(&document, group, version, kind)))
}

fn path_of(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// `None`: it is not there.
async fn read<T: DeserializeOwned>(context: &Context, path: &str) -> Result<Option<T>, Error> {
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| Error::Invalid(format!("cannot ask for {path}: {error}")))?;
    match context.client.request::<T>(request).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if writes::is_not_found(&error) => Ok(None),
        Err(error) => Err(error).doing("read the schema of what a policy matches"),
    }
}
