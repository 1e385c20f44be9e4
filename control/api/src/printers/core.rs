//! Nodes, namespaces, events and what is kept for pods.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::printer::{Column, Printer, age, name, time_since};

pub fn component_status() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Status", "Status of the component conditions"),
                Column::new("Message", "Message of the component conditions"),
                Column::new("Error", "Error of the component conditions"),
            ]
        },
        component_status_cells,
    )
}

pub fn config_map() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Data", "io.k8s.api.core.v1.ConfigMap", "data"),
                Column::age(),
            ]
        },
        config_map_cells,
    )
}

pub fn event() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::of("Last Seen", "io.k8s.api.core.v1.Event", "lastTimestamp"),
                Column::of("Type", "io.k8s.api.core.v1.Event", "type"),
                Column::of("Reason", "io.k8s.api.core.v1.Event", "reason"),
                Column::of("Object", "io.k8s.api.core.v1.Event", "involvedObject"),
                Column::of(
                    "Subobject",
                    "io.k8s.api.core.v1.ObjectReference",
                    "fieldPath",
                )
                .wide(),
                Column::of("Source", "io.k8s.api.core.v1.Event", "source").wide(),
                Column::of("Message", "io.k8s.api.core.v1.Event", "message"),
                Column::of("First Seen", "io.k8s.api.core.v1.Event", "firstTimestamp").wide(),
                Column::of("Count", "io.k8s.api.core.v1.Event", "count").wide(),
                Column::name().wide(),
            ]
        },
        event_cells,
    )
}

pub fn namespace() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Status", "The status of the namespace"),
                Column::age(),
            ]
        },
        namespace_cells,
    )
}

pub fn node() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Status", "The status of the node"),
                Column::new("Roles", "The roles of the node"),
                Column::age(),
                Column::of(
                    "Version",
                    "io.k8s.api.core.v1.NodeSystemInfo",
                    "kubeletVersion",
                ),
                Column::of("Internal-IP", "io.k8s.api.core.v1.NodeStatus", "addresses").wide(),
                Column::of("External-IP", "io.k8s.api.core.v1.NodeStatus", "addresses").wide(),
                Column::of("OS-Image", "io.k8s.api.core.v1.NodeSystemInfo", "osImage").wide(),
                Column::of(
                    "Kernel-Version",
                    "io.k8s.api.core.v1.NodeSystemInfo",
                    "kernelVersion",
                )
                .wide(),
                Column::of(
                    "Container-Runtime",
                    "io.k8s.api.core.v1.NodeSystemInfo",
                    "containerRuntimeVersion",
                )
                .wide(),
            ]
        },
        node_cells,
    )
}

pub fn resource_quota() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Request",
                    "Request represents a minimum amount of cpu/memory that a container may consume.",
                ),
                Column::new(
                    "Limit",
                    "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
                ),
                Column::age(),
            ]
        },
        resource_quota_cells,
    )
}

pub fn secret() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Type", "io.k8s.api.core.v1.Secret", "type"),
                Column::of("Data", "io.k8s.api.core.v1.Secret", "data"),
                Column::age(),
            ]
        },
        secret_cells,
    )
}

/// Upstream's columns for kinds that have none of their own.
pub fn name_and_creation() -> Arc<dyn Printer> {
    Arc::new(crate::printer::NameAndAge::new())
}

pub fn name_and_age() -> Arc<dyn Printer> {
    table(|| vec![Column::name(), Column::age()], name_and_age_cells)
}

pub fn lease() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Holder",
                    "io.k8s.api.coordination.v1.LeaseSpec",
                    "holderIdentity",
                ),
                Column::age(),
            ]
        },
        lease_cells,
    )
}

pub fn api_service() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Service",
                    "The reference to the service that hosts this API endpoint.",
                ),
                Column::new("Available", "Whether this service is available."),
                Column::age(),
            ]
        },
        api_service_cells,
    )
}

fn component_status_cells(object: &Value, _now: Timestamp) -> Vec<Value> {
    let healthy = items(object, "/conditions")
        .iter()
        .find(|one| text(one, "/type") == "Healthy");
    let status = match healthy.map(|one| text(one, "/status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    let of = |pointer: &str| Value::from(healthy.map_or("", |one| text(one, pointer)));
    vec![name(object), status.into(), of("/message"), of("/error")]
}

fn config_map_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = entries(object, "/data") + entries(object, "/binaryData");
    vec![name(object), count.into(), age(object, now)]
}

fn secret_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/type").into(),
        entries(object, "/data").into(),
        age(object, now),
    ]
}

fn name_and_age_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

fn namespace_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/status/phase").into(),
        age(object, now),
    ]
}

fn lease_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/spec/holderIdentity").into(),
        age(object, now),
    ]
}

fn api_service_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match object
        .pointer("/spec/service")
        .filter(|service| !service.is_null())
    {
        Some(service) => format!("{}/{}", text(service, "/namespace"), text(service, "/name")),
        None => "Local".to_owned(),
    };
    let available = match condition(object, "Available") {
        Some(one) if text(one, "/status") == "True" => "True".to_owned(),
        Some(one) if text(one, "/reason").is_empty() => text(one, "/status").to_owned(),
        Some(one) => format!("{} ({})", text(one, "/status"), text(one, "/reason")),
        None => "Unknown".to_owned(),
    };
    vec![
        name(object),
        service.into(),
        available.into(),
        age(object, now),
    ]
}

/// The same for both groups' events; fields by the core group's names, or by the other's.
fn event_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, events: &str| or(text(object, core), text(object, events)).to_owned();
    let time = |core: &str, events: &str| {
        let value = object.pointer(core).or_else(|| object.pointer(events));
        value.filter(|value| value.as_str().is_some_and(|text| !text.is_empty()))
    };
    let first = time("/firstTimestamp", "/deprecatedFirstTimestamp")
        .or_else(|| time("/eventTime", "/eventTime"));
    let first = time_since(first, now);
    let mut last = match time("/lastTimestamp", "/deprecatedLastTimestamp") {
        Some(last) => time_since(Some(last), now),
        None => first.clone(),
    };
    let mut count = integer(object, "/count").max(integer(object, "/deprecatedCount"));
    if object.pointer("/series").is_some_and(Value::is_object) {
        last = time_since(object.pointer("/series/lastObservedTime"), now);
        count = integer(object, "/series/count");
    } else if count == 0 {
        count = 1;
    }
    let kind = either("/involvedObject/kind", "/regarding/kind").to_lowercase();
    let target_name = either("/involvedObject/name", "/regarding/name");
    let target = if target_name.is_empty() {
        kind
    } else {
        format!("{kind}/{target_name}")
    };
    let component = either("/source/component", "/deprecatedSource/component");
    let reporter = either("/reportingComponent", "/reportingController");
    let host = either("/source/host", "/deprecatedSource/host");
    let instance = or(&host, text(object, "/reportingInstance"));
    let component = or(&component, &reporter);
    let source = if instance.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {instance}")
    };
    vec![
        last.into(),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        target.into(),
        either("/involvedObject/fieldPath", "/regarding/fieldPath").into(),
        source.into(),
        either("/message", "/note").trim().into(),
        first.into(),
        count.into(),
        name(object),
    ]
}

fn node_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(object, "Ready").map(|one| text(one, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if flag(object, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |type_: &str| {
        let all = items(object, "/status/addresses");
        let address = all.iter().find(|address| text(address, "/type") == type_);
        Value::from(address.map_or("<none>", |address| text(address, "/address")))
    };
    let info = |field: &str| text(object, &format!("/status/nodeInfo/{field}"));
    vec![
        name(object),
        status.into(),
        node_roles(object).into(),
        age(object, now),
        info("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(info("osImage"), "<unknown>").into(),
        or(info("kernelVersion"), "<unknown>").into(),
        or(info("containerRuntimeVersion"), "<unknown>").into(),
    ]
}

/// `node-role.kubernetes.io/ROLE` and `kubernetes.io/role: ROLE`.
fn node_roles(object: &Value) -> String {
    let labels = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            key.strip_prefix("node-role.kubernetes.io/")
                .or_else(|| value.as_str().filter(|_| key == "kubernetes.io/role"))
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

fn resource_quota_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut requests = Vec::new();
    let mut limits = Vec::new();
    let hard = object.pointer("/status/hard").and_then(Value::as_object);
    for (resource, limit) in hard.into_iter().flatten() {
        let used = object
            .pointer("/status/used")
            .and_then(|used| used.get(resource));
        let used = shown(used).unwrap_or("0".to_owned());
        let entry = format!(
            "{resource}: {used}/{}",
            shown(Some(limit)).unwrap_or_default()
        );
        if resource.starts_with("limits.") {
            limits.push(entry)
        } else {
            requests.push(entry)
        }
    }
    vec![
        name(object),
        requests.join(", ").into(),
        limits.join(", ").into(),
        age(object, now),
    ]
}
