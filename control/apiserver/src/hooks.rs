//! What a few built-in kinds need around a write beside their strategy: allocations in the same transaction, the
//! requester's identity, documents derived from the object.

use std::sync::Arc;

use serde_json::{Value, json};
use skep_store::{Guard, Op};

use crate::{
    authz::{claims, escalation, parameters},
    context::Ctx,
    handlers::write::Target,
    registry::Resource,
    services,
    status::{Result, Status},
};

/// Guards and operations that commit together with the object, or not at all.
#[derive(Debug, Default)]
pub struct Extra {
    pub guards: Vec<Guard>,
    pub ops: Vec<Op>,
}

impl Extra {
    pub fn is_empty(&self) -> bool {
        self.guards.is_empty() && self.ops.is_empty()
    }
}

/// Whether others may take what a new object was given before it is written.
pub fn allocates(resource: &Resource) -> bool {
    resource.is("", "services")
}

pub async fn before_create(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    object: &mut Value,
) -> Result<Extra> {
    if resource.is("", "services") {
        return services::allocate(ctx, object, None).await;
    }
    escalation::check(ctx, resource, object, None).await?;
    if resource.is("certificates.k8s.io", "certificatesigningrequests") {
        set_requester(ctx, object);
    }
    Ok(Extra::default())
}

pub async fn before_update(
    ctx: &Ctx,
    target: Target<'_>,
    object: &mut Value,
    old: &Value,
) -> Result<Extra> {
    if target.resource.is("", "services") && target.subresource.is_empty() {
        return services::allocate(ctx, object, Some(old)).await;
    }
    escalation::check(ctx, target.resource, object, Some(old)).await?;
    Ok(Extra::default())
}

/// What a valid object refers to that its author may have no right to.
///
/// # Errors
/// 422 that names the field.
pub async fn check_references(
    ctx: &Ctx,
    target: Target<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<()> {
    match target.resource.def.group.as_ref() {
        "admissionregistration.k8s.io" => {
            parameters::check(ctx, target.resource, object, old).await
        }
        "resource.k8s.io" => claims::check(ctx, target, object, old).await,
        _ => Ok(()),
    }
}

/// Some objects of the server's own are there to stay.
///
/// # Errors
/// 403 for those.
pub fn may_delete(resource: &Resource, name: &str) -> Result<()> {
    const SYSTEM_CLASSES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];
    let (group, plural) = ("scheduling.k8s.io", "priorityclasses");
    if resource.is(group, plural) && SYSTEM_CLASSES.contains(&name) {
        let why = "this is a system priority class and cannot be deleted";
        return Err(Status::forbidden(group, plural, name, why));
    }
    Ok(())
}

/// What goes away with the object.
pub fn on_delete(resource: &Resource, object: &Value) -> Extra {
    if resource.is("", "services") {
        return services::release(object);
    }
    Extra::default()
}

/// A CSR is in the name of who made it, whatever it says.
fn set_requester(ctx: &Ctx, object: &mut Value) {
    let user = &ctx.user;
    let spec = &mut object["spec"];
    spec["username"] = user.name.as_str().into();
    spec["groups"] = user.groups.clone().into();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("uid");
        spec.remove("extra");
    }
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
}

/// Fills in the times of conditions that a strategy, which has no clock, or a client left open.
pub fn stamp_conditions(ctx: &Ctx, target: Target<'_>, object: &mut Value, old: Option<&Value>) {
    let resource = target.resource;
    let csr = resource.is("certificates.k8s.io", "certificatesigningrequests");
    let pod = resource.is("", "pods") && old.is_none();
    let now = ctx.now.to_string();
    if resource.is("", "persistentvolumes")
        && target.subresource == "status"
        && let Some(old) = old
    {
        stamp_phase(&mut object["status"], &old["status"], now);
        return;
    }
    if !csr && !pod {
        return;
    }
    let before = old.and_then(|old| old["status"]["conditions"].as_array());
    for condition in object["status"]["conditions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if csr && condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.as_str().into();
        }
        if condition["lastTransitionTime"].is_null() {
            let same =
                |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
            let kept = before.into_iter().flatten().find(same);
            let kept = kept
                .map(|c| c["lastTransitionTime"].clone())
                .filter(|t| !t.is_null());
            condition["lastTransitionTime"] = kept.unwrap_or_else(|| now.as_str().into());
        }
    }
}

/// When a volume's phase changed, unless the client says when.
fn stamp_phase(status: &mut Value, old: &Value, now: String) {
    const TIME: &str = "lastPhaseTransitionTime";
    let said = !status[TIME].is_null() && status[TIME] != old[TIME];
    if status["phase"] != old["phase"] && !said {
        status[TIME] = now.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(new: Value, expected: &str) {
        let old = json!({"phase": "Pending", "lastPhaseTransitionTime": "then"});
        let mut status = new;
        stamp_phase(&mut status, &old, "now".into());
        assert_eq!(status["lastPhaseTransitionTime"], expected, "{status}");
    }

    #[test]
    fn a_phase_has_the_time_of_its_beginning() {
        check(json!({"phase": "Bound"}), "now");
        check(
            json!({"phase": "Bound", "lastPhaseTransitionTime": "then"}),
            "now",
        );
        check(
            json!({"phase": "Bound", "lastPhaseTransitionTime": "soon"}),
            "soon",
        );
        check(
            json!({"phase": "Pending", "lastPhaseTransitionTime": "then"}),
            "then",
        );
    }
}
