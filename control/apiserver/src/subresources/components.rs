//! `componentstatuses`: nothing of it is stored; each answer looks at the parts of the control plane.
//!
//! Upstream asks their health ports. Here the leader's Lease says whether a part does its work, wherever it runs.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    cache::{Entry, Index},
    codec,
    context::Ctx,
    handlers::selection::Selection,
    options::ListOptions,
    registry::Resource,
    respond::{self, ListHead, Object, Rendering},
    status::{Result, Status},
};

const STORE: &str = "etcd-0";
/// Names as upstream has them, and the Leases.
const LEADERS: [(&str, &str); 2] = [
    ("controller-manager", "kube-controller-manager"),
    ("scheduler", "kube-scheduler"),
];
const LEASES: &str = "/registry/coordination.k8s.io/leases/kube-system/";

pub fn is_component_status(resource: &Resource) -> bool {
    resource.is("", "componentstatuses")
}

pub async fn get(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let name = ctx.info.name.as_str();
    let found = components(ctx).await.into_iter().find(|one| one.0 == name);
    let (name, health) =
        found.ok_or_else(|| Status::unknown(format!("Component not found: {name}")))?;
    let object = Object::Value(status(resource, name, health));
    ctx.object(resource, StatusCode::OK, object, &out)
}

pub async fn list(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let rendering = Rendering::of_list(ctx, resource, out)?;
    let options = ListOptions::parse(&ctx.query, false)?;
    let selection = Selection::new(ctx, resource, &options)?;
    let all = components(ctx).await.into_iter();
    let entries = all.map(|(name, health)| entry(resource, name, health));
    let entries = entries
        .filter(|entry| entry.key.starts_with(&selection.prefix) && selection.matches(entry));
    let head = ListHead {
        resource_version: String::new(),
        continue_token: String::new(),
        remaining: None,
    };
    respond::list(ctx, &rendering, &head, entries.collect())
}

/// Why not, where a part is not well.
type Health = std::result::Result<(), String>;

async fn components(ctx: &Ctx) -> Vec<(&'static str, Health)> {
    let storage = &ctx.api.storage;
    let store = storage.fresh().await.map(drop);
    let store = store.map_err(|failure| failure.message.clone());
    let leaders = LEADERS.map(|(name, lease)| {
        let lease = storage.cache.get(&format!("{LEASES}{lease}"));
        let lease = lease.and_then(|entry| serde_json::from_slice(&entry.bytes()).ok());
        (name, leader_health(lease.as_ref(), ctx.now))
    });
    let mut all = vec![(STORE, store)];
    all.extend(leaders);
    all.sort_by_key(|(name, _)| *name);
    all
}

fn leader_health(lease: Option<&Value>, now: Timestamp) -> Health {
    let spec = lease.map(|lease| &lease["spec"]);
    let holder = spec.and_then(|spec| spec["holderIdentity"].as_str());
    let renewed = spec
        .and_then(|spec| spec["renewTime"].as_str())
        .and_then(|at| at.parse::<Timestamp>().ok());
    let (Some(spec), Some(renewed)) = (spec, renewed) else {
        return Err("no leader has ever been elected".to_owned());
    };
    if holder.is_none_or(str::is_empty) {
        return Err("there is no leader".to_owned());
    }
    let seconds = spec["leaseDurationSeconds"].as_i64().unwrap_or(0);
    if now.duration_since(renewed) > SignedDuration::from_secs(seconds) {
        return Err(format!("the leader has not been heard of since {renewed}"));
    }
    Ok(())
}

fn status(resource: &Resource, name: &str, health: Health) -> Value {
    let (status, message) = match health {
        Ok(()) => ("True", "ok".to_owned()),
        Err(why) => ("False", why),
    };
    json!({
        "kind": resource.def.kind, "apiVersion": resource.api_version, "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": status, "message": message}],
    })
}

fn entry(resource: &Resource, name: &str, health: Health) -> Arc<Entry> {
    let object = status(resource, name, health);
    let bytes: Bytes = codec::encode_object(&object);
    Arc::new(Entry::unstored(
        resource.key("", name),
        bytes,
        Index::of_metadata(&object),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_well_while_it_renews() {
        let lease = |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed}});
        let now = "2026-01-01T00:00:20Z".parse().expect("a time");
        let well = |lease: Option<Value>| leader_health(lease.as_ref(), now).is_ok();
        assert!(well(Some(lease("a", "2026-01-01T00:00:10.5Z"))));
        assert!(!well(Some(lease("a", "2026-01-01T00:00:01Z"))));
        assert!(!well(Some(lease("", "2026-01-01T00:00:19Z"))));
        assert!(!well(None));
    }
}
