//! pods/eviction: a delete that asks the pod's disruption budget first.

use std::{collections::BTreeMap, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject;
use serde_json::{Value, json};
use skep_api::selector::LabelSelector;

use super::binding::set_condition;
use crate::{
    admission::Operation,
    codec::{Expected, decode_body, meta},
    context::Ctx,
    handlers::{
        delete::{check_preconditions, delete_admitted},
        update::change_object,
        write::{Target, match_namespace},
    },
    negotiate::{self, Encoding},
    options::{DeleteOptions, WriteKind, WriteOptions},
    registry::Resource,
    status::{Cause, Failure, Result, Status, created},
    storage::read_object,
};

/// More pods whose disruption the controller has not seen yet than this stop further ones.
const MAX_DISRUPTED_PODS: usize = 2000;

pub async fn create(ctx: &Ctx, pods: &Arc<Resource>) -> Result<Response> {
    let out = ctx.plain_or_transformed()?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Create)?;
    let schema = skep_schema::builtin("policy", "v1", "Eviction");
    let expected = Expected {
        group: "policy",
        version: "v1",
        kind: "Eviction",
        schema: schema.as_ref(),
        custom: false,
    };
    let mut eviction = decode_body(
        &as_v1(body, encoding),
        encoding,
        &expected,
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let (namespace, name) = (ctx.info.namespace.as_str(), ctx.info.name.as_str());
    match_namespace(&mut eviction, namespace)?;
    if meta(&eviction, "name") != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let admitted = Target {
        resource: pods,
        namespace,
        name,
        subresource: "eviction",
    };
    let eviction = admitted
        .admit(
            ctx,
            Operation::Create,
            &options.object,
            options.dry_run,
            eviction,
        )
        .await?;
    let mut delete = match &eviction["deleteOptions"] {
        Value::Null => DeleteOptions::default(),
        options => DeleteOptions::from_object(options.clone())?,
    };
    delete.dry_run |= options.dry_run;

    let entry = ctx.api.storage.get(&pods.key(namespace, name)).await?;
    let entry = entry.ok_or_else(|| Status::missing(pods, name))?;
    let pod = read_object(pods, &entry.bytes())?;
    if !ignores_budget(&pod)
        && let Some(budget) = budget_of(ctx, namespace, &entry).await?
    {
        spend(ctx, &budget, namespace, &pod, delete.dry_run).await?;
    }
    if !delete.dry_run {
        mark(ctx, admitted, &mut delete).await?;
    }
    // The eviction was admitted, so the delete is.
    delete_admitted(ctx, pods, namespace, name, &delete).await?;
    ctx.value(StatusCode::CREATED, &created(), &out)
}

/// Says in the pod's status why it goes.
async fn mark(ctx: &Ctx, target: Target<'_>, delete: &mut DeleteOptions) -> Result<()> {
    let Target { resource, name, .. } = target;
    let wanted = &*delete;
    let change = |old: Option<&Value>, _: &mut Vec<String>| {
        let old = old.ok_or_else(|| Status::missing(resource, name))?;
        check_preconditions(resource, old, name, wanted)?;
        let mut new = old.clone();
        set_condition(
            &mut new["status"],
            json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
                "lastProbeTime": null, "lastTransitionTime": ctx.now.to_string(),
            }),
        );
        Ok(new)
    };
    let options = WriteOptions::default();
    let marked = change_object(ctx, target, &options, "", false, &change).await?;
    // The version that the client named is not the last any more.
    if let Some(version) = &mut delete.resource_version {
        meta(&marked.object.into_value()?, "resourceVersion").clone_into(version);
    }
    Ok(())
}

/// Older clients send the same object as `policy/v1beta1`.
fn as_v1(body: Bytes, encoding: Encoding) -> Bytes {
    if encoding != Encoding::Json {
        return body;
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(mut value) if value["apiVersion"] == "policy/v1beta1" => {
            value["apiVersion"] = "policy/v1".into();
            value.to_string().into()
        }
        _ => body,
    }
}

/// A pod that does not serve disrupts nothing when it goes.
fn ignores_budget(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending") | None
    ) || !pod["metadata"]["deletionTimestamp"].is_null()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The budget whose selector matches the pod.
async fn budget_of(ctx: &Ctx, namespace: &str, pod: &crate::cache::Entry) -> Result<Option<Value>> {
    let Some(budgets) = ctx.registry.get("policy", "v1", "poddisruptionbudgets") else {
        return Ok(None);
    };
    let snapshot = ctx
        .api
        .storage
        .cache
        .snapshot(&budgets.scope_prefix(namespace));
    let labels: BTreeMap<String, String> = pod
        .labels
        .iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    // Not even a budget for every pod is asked then.
    if labels.is_empty() {
        return Ok(None);
    }
    let mut found = None;
    for entry in snapshot.iter() {
        let budget = read_object(budgets, &entry.bytes())?;
        let selector: Option<SelectorObject> =
            serde_json::from_value(budget["spec"]["selector"].clone()).unwrap_or_default();
        let matches =
            LabelSelector::from_object(selector.as_ref()).is_ok_and(|s| s.matches(&labels));
        if matches && found.replace(budget).is_some() {
            return Err(Status::unknown(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    }
    Ok(found)
}

/// Takes one disruption from the budget.
///
/// # Errors
/// 429 while there is none.
async fn spend(
    ctx: &Ctx,
    budget: &Value,
    namespace: &str,
    pod: &Value,
    dry_run: bool,
) -> Result<()> {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if !is_ready(pod) {
        let healthy = number("currentHealthy") >= number("desiredHealthy");
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if always || (healthy && number("desiredHealthy") > 0) {
            return Ok(());
        }
    }
    if dry_run {
        return check(budget).map(drop);
    }
    let budgets = ctx.registry.get("policy", "v1", "poddisruptionbudgets");
    let budgets = budgets.ok_or_else(Status::no_such_resource)?;
    let name = meta(budget, "name");
    let pod_name = meta(pod, "name");
    let target = Target {
        resource: budgets,
        namespace,
        name,
        subresource: "status",
    };
    let options = WriteOptions {
        field_manager: "kube-apiserver".to_owned(),
        ..WriteOptions::default()
    };
    let change = |old: Option<&Value>, _: &mut Vec<String>| {
        let old = old.ok_or_else(|| Status::missing(budgets, name))?;
        let left = check(old)? - 1;
        let mut new = old.clone();
        let status = &mut new["status"];
        status["disruptionsAllowed"] = left.into();
        status["disruptedPods"][pod_name] = ctx.now.to_string().into();
        if left == 0 {
            let generation = status["observedGeneration"].clone();
            set_condition(
                status,
                json!({
                    "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
                    "observedGeneration": generation, "lastTransitionTime": ctx.now.to_string(),
                }),
            );
        }
        target.track(ctx, &options, Some(old), &mut new);
        Ok(new)
    };
    change_object(ctx, target, &options, "", false, &change).await?;
    Ok(())
}

/// How many disruptions are left, at least one.
fn check(budget: &Value) -> Result<i64> {
    let name = meta(budget, "name");
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    if number("observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refusal(why, 10));
    }
    let left = number("disruptionsAllowed");
    if left < 0 {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            "pdb disruptions allowed is negative",
        ));
    }
    if budget["status"]["disruptedPods"]
        .as_object()
        .is_some_and(|p| p.len() > MAX_DISRUPTED_PODS)
    {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if left == 0 {
        return Err(refusal(why_spent(name, &budget["status"]), 0));
    }
    Ok(left)
}

fn why_spent(name: &str, status: &Value) -> String {
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let (healthy, wanted) = (number("currentHealthy"), number("desiredHealthy"));
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let refused = conditions
        .filter(|one| one["type"] == "DisruptionAllowed" && one["status"] == "False")
        .map(|one| (text(one, "reason"), text(one, "message")))
        .find(|(_, message)| !message.is_empty());
    let so = format!("The disruption budget {name} does not allow evicting pods currently");
    match refused {
        // Then the numbers say nothing.
        Some(("SyncFailed", message)) => format!("{so} because it failed sync: {message}"),
        _ if healthy <= wanted => format!(
            "The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently"
        ),
        Some((reason, message)) => format!("{so} ({reason}): {message}"),
        None => so,
    }
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition[field].as_str().unwrap_or_default()
}

fn refusal(why: String, retry_after_seconds: u32) -> Failure {
    let status = Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_after_seconds,
    );
    status.with_causes(vec![Cause {
        reason: "DisruptionBudget".into(),
        message: why,
        field: String::new(),
    }])
}
