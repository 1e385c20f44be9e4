//! What claims of devices may say. Devices that others use are shown only in namespaces that are marked for it
//! (KEP-5018); who reports what became of a claim needs a right of its own for each part of it (KEP-4680, KEP-4817).
//! Upstream: pkg/registry/resource/utils.go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skep_api::field::{Bad, FieldError, FieldErrorKind, Path};

use super::{Attributes, Decision};
use crate::{
    admission,
    codec::meta,
    context::{Ctx, refusal},
    handlers::write::Target,
    identity::User,
    status::{Result, Status},
};

const GROUP: &str = "resource.k8s.io";
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// Before a claim, its status or a template of claims is written; other kinds pass. Specs of claims cannot change.
///
/// # Errors
/// 422 that forbids the request's `adminAccess`, or changes of the status.
pub async fn check(
    ctx: &Ctx,
    target: Target<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<()> {
    let path = match (target.resource.def.plural.as_ref(), target.subresource) {
        ("resourceclaims", "") if old.is_none() => requested(&object["spec"], &Path::new("spec")),
        ("resourceclaims", "status") => allocated(object, old),
        ("resourceclaimtemplates", "") if old.is_none() => {
            // Upstream names the same path for both.
            requested(&object["spec"]["spec"], &Path::new("spec"))
        }
        _ => None,
    };
    let mut errors = Vec::new();
    if let Some(path) = path {
        errors.extend(unmarked(ctx, target.namespace, path).await?);
    }
    if let Some(old) = old
        && (target.resource.def.plural.as_ref(), target.subresource) == ("resourceclaims", "status")
    {
        errors.extend(check_binding(ctx, object, old));
        errors.extend(check_devices(ctx, object, old));
    }
    if errors.is_empty() {
        return Ok(());
    }
    let def = &target.resource.def;
    Err(Status::invalid(
        &def.group,
        &def.kind,
        meta(object, "name"),
        &errors,
    ))
}

fn forbid(path: &str, why: String) -> FieldError {
    FieldError::new(FieldErrorKind::Forbidden, path, Bad::omitted(), why)
}

/// What is wrong with admin access in a namespace that is not marked.
async fn unmarked(ctx: &Ctx, namespace: &str, path: String) -> Result<Option<FieldError>> {
    let namespace = admission::object(&ctx.api, "", "namespaces", "", namespace).await?;
    let marked = namespace.is_some_and(|one| one["metadata"]["labels"][LABEL] == "true");
    let why = format!(
        "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
    );
    Ok((!marked).then(|| forbid(&path, why)))
}

/// Allocating and reserving is the scheduler's.
fn check_binding(ctx: &Ctx, claim: &Value, old: &Value) -> Option<FieldError> {
    let same = |field: &str| claim["status"][field] == old["status"][field];
    if same("allocation") && same("reservedFor") {
        return None;
    }
    let verb = ctx.info.verb;
    let refused = refused(ctx, verb, "binding", "", "")?;
    Some(forbid(
        "status",
        format!(
            "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", \
             verb=\"{verb}\" permission: {refused}"
        ),
    ))
}

/// What devices report is their driver's, on the node that the claim is allocated on or anywhere.
fn check_devices(ctx: &Ctx, claim: &Value, old: &Value) -> Vec<FieldError> {
    let mut verbs = vec![format!("arbitrary-node:{}", ctx.info.verb)];
    if runs_on(&ctx.user, claim) {
        verbs.insert(0, format!("associated-node:{}", ctx.info.verb));
    }
    let mut errors = Vec::new();
    for driver in changed_drivers(claim, old) {
        let mut refusals = Vec::new();
        for verb in &verbs {
            match refused(ctx, verb, "driver", &ctx.info.namespace, driver) {
                Some(why) => refusals.push(why),
                None => {
                    refusals.clear();
                    break;
                }
            }
        }
        if let Some(first) = refusals.first() {
            errors.push(forbid(
                "status.devices",
                format!(
                    "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {first}",
                    verbs.join(" ")
                ),
            ));
        }
    }
    errors
}

/// Why the user may not do this to a part of claims.
fn refused(ctx: &Ctx, verb: &str, part: &str, namespace: &str, name: &str) -> Option<String> {
    let question = Attributes::Resource {
        user: &ctx.user,
        verb,
        group: GROUP,
        version: &ctx.info.version,
        resource: "resourceclaims",
        subresource: part,
        namespace,
        name,
    };
    match ctx.api.authorizer.authorize(&question) {
        Decision::Allow { .. } => None,
        Decision::NoOpinion { reason } => Some(refusal(&question, &reason).message.clone()),
    }
}

/// The drivers of devices that were added, removed or changed.
fn changed_drivers<'a>(claim: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let by_id = |claim: &'a Value| -> BTreeMap<[&'a str; 4], &'a Value> {
        let devices = claim["status"]["devices"].as_array().into_iter().flatten();
        let id = |device: &'a Value| {
            ["driver", "pool", "device", "shareID"]
                .map(|field| device[field].as_str().unwrap_or_default())
        };
        devices.map(|device| (id(device), device)).collect()
    };
    let (new, old) = (by_id(claim), by_id(old));
    let ids = new.keys().chain(old.keys());
    ids.filter(|id| new.get(*id) != old.get(*id))
        .map(|[driver, ..]| *driver)
        .collect()
}

/// Whether the user is a service account on the only node that the claim is allocated on.
fn runs_on(user: &User, claim: &Value) -> bool {
    const NODE: &str = "authentication.kubernetes.io/node-name";
    let node = match user.extra.get(NODE).map(Vec::as_slice) {
        Some([node]) if user.name.starts_with("system:serviceaccount:") => node,
        _ => return false,
    };
    let selector = &claim["status"]["allocation"]["nodeSelector"];
    *selector
        == json!({"nodeSelectorTerms": [{
            "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}],
        }]})
}

/// The first request that asks for it.
fn requested(spec: &Value, path: &Path<'_>) -> Option<String> {
    let requests = spec["devices"]["requests"].as_array()?;
    let first = requests
        .iter()
        .position(|request| request["exactly"]["adminAccess"] == true)?;
    let requests = path.child("devices.requests");
    Some(requests.index(first).child("adminAccess").to_string())
}

/// The first result that has it now.
fn allocated(claim: &Value, old: Option<&Value>) -> Option<String> {
    let results = |claim: &Value| claim["status"]["allocation"]["devices"]["results"].clone();
    let has = |result: &Value| result["adminAccess"] == true;
    let before = old.map(results).unwrap_or_default();
    if before.as_array().is_some_and(|all| all.iter().any(has)) {
        return None;
    }
    let first = results(claim).as_array()?.iter().position(has)?;
    let results = Path::new("status.allocation.devices.results");
    Some(results.index(first).child("adminAccess").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_is_named() {
        let spec = json!({"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu"}},
            {"name": "b", "exactly": {"deviceClassName": "gpu", "adminAccess": true}},
        ]}});
        assert_eq!(
            requested(&spec, &Path::new("spec")).as_deref(),
            Some("spec.devices.requests[1].adminAccess")
        );
        assert_eq!(requested(&json!({}), &Path::new("spec")), None);
    }

    #[test]
    fn what_was_allocated_before_stays() {
        let claim = json!({"status": {"allocation": {"devices": {"results": [
            {"device": "d", "adminAccess": true},
        ]}}}});
        let place = "status.allocation.devices.results[0].adminAccess";
        assert_eq!(allocated(&claim, None).as_deref(), Some(place));
        assert_eq!(allocated(&claim, Some(&claim)), None);
    }

    #[test]
    fn drivers_answer_for_their_own_devices() {
        let device = |driver: &str, ready: bool| json!({"driver": driver, "pool": "p", "device": "d", "data": {"ready": ready}});
        let claim = |devices: Vec<Value>| json!({"status": {"devices": devices}});
        let old = claim(vec![
            device("a", true),
            device("b", true),
            device("c", true),
        ]);
        let new = claim(vec![
            device("d", true),
            device("b", false),
            device("a", true),
        ]);
        let changed: Vec<&str> = changed_drivers(&new, &old).into_iter().collect();
        assert_eq!(changed, ["b", "c", "d"]);
    }

    #[test]
    fn a_driver_runs_where_its_token_says() {
        let claim = |node: &str| {
            json!({"status": {"allocation": {"nodeSelector": {"nodeSelectorTerms": [{
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}],
            }]}}}})
        };
        let mut user = User {
            name: "system:serviceaccount:kube-system:driver".into(),
            ..User::default()
        };
        assert!(!runs_on(&user, &claim("n1")));
        let node = "authentication.kubernetes.io/node-name";
        user.extra.insert(node.into(), vec!["n1".into()]);
        assert!(runs_on(&user, &claim("n1")));
        assert!(!runs_on(&user, &claim("n2")));
    }
}
