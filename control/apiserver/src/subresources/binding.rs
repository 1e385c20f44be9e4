//! pods/binding and bindings: a pod gets its node.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    codec::{Expected, decode_body, meta},
    context::Ctx,
    handlers::{
        update::{change_object, check_precondition},
        write::{Target, match_namespace},
    },
    negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    status::{Result, Status, created},
};

pub async fn create(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.plain_or_transformed()?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Create)?;
    let schema = skep_schema::builtin("", "v1", "Binding");
    let expected = Expected {
        group: "",
        version: "v1",
        kind: "Binding",
        schema: schema.as_ref(),
        custom: false,
    };
    let mut binding = decode_body(
        &body,
        encoding,
        &expected,
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let namespace = ctx.info.namespace.as_str();
    match_namespace(&mut binding, namespace)?;
    let name = meta(&binding, "name").to_owned();
    let admitted = Target {
        resource,
        namespace,
        name: &name,
        subresource: &ctx.info.subresource,
    };
    let binding = admitted
        .admit(
            ctx,
            Operation::Create,
            &options.object,
            options.dry_run,
            binding,
        )
        .await?;
    if !ctx.info.name.is_empty() && name != ctx.info.name {
        return Err(Status::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    let node = check_target(&binding)?.to_owned();
    if name.is_empty() {
        return Err(Status::bad_request("Name parameter required."));
    }
    let pods = ctx.registry.get("", "v1", "pods");
    let pods = pods.ok_or_else(Status::no_such_resource)?;
    let target = Target {
        resource: pods,
        namespace,
        name: &name,
        subresource: "binding",
    };
    let change = |old: Option<&Value>, _: &mut Vec<String>| {
        let old = old.ok_or_else(|| Status::missing(pods, &name))?;
        for (field, shown) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            check_precondition(target, shown, meta(&binding, field), meta(old, field))?;
        }
        bound(old, &binding, &name, &node, ctx)
    };
    change_object(ctx, target, &options, "", false, &change).await?;
    ctx.value(StatusCode::CREATED, &created(), &out)
}

/// The node's name. Upstream reports these two as plain errors.
fn check_target(binding: &Value) -> Result<&str> {
    let target = &binding["target"];
    match target["kind"].as_str().unwrap_or_default() {
        "" | "Node" => {}
        other => {
            return Err(Status::unknown(format!(
                "target.kind: Unsupported value: {other:?}: supported values: \"Node\", \"<empty>\""
            )));
        }
    }
    match target["name"].as_str().unwrap_or_default() {
        "" => Err(Status::unknown("target.name: Required value")),
        name => Ok(name),
    }
}

fn bound(old: &Value, binding: &Value, name: &str, node: &str, ctx: &Ctx) -> Result<Value> {
    let refuse = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
    if !old["metadata"]["deletionTimestamp"].is_null() {
        return refuse(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    if let Some(present) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return refuse(format!(
            "pod {name} is already assigned to node {present:?}"
        ));
    }
    if old["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|g| !g.is_empty())
    {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key.as_str()] = value.clone();
        }
    }
    set_condition(
        &mut pod["status"],
        json!({
            "type": "PodScheduled", "status": "True",
            "observedGeneration": null, "lastProbeTime": null,
            "lastTransitionTime": ctx.now.to_string(),
        }),
    );
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    Ok(pod)
}

/// Puts a condition in the place of the one of its type; the time of the last transition stays when nothing changed.
pub fn set_condition(status: &mut Value, mut condition: Value) {
    if !status.is_object() {
        *status = json!({});
    }
    if let Some(condition) = condition.as_object_mut() {
        condition.retain(|key, value| !value.is_null() || key == "lastProbeTime");
    }
    let conditions = &mut status["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|c| c["type"] == condition["type"])
    {
        Some(present) => {
            if present["status"] == condition["status"] {
                condition["lastTransitionTime"] = present["lastTransitionTime"].clone();
            }
            *present = condition;
        }
        None => conditions.push(condition),
    }
}
