//! ResourceQuota: what a namespace may hold in sum. Usage is counted in the quota's status before the object exists;
//! the quota controller corrects it later.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skep_api::{pod as pods, quantity::Amount};
use skep_apply::managed::{self, Writer};

use super::{Attributes, Operation, Plugin, forbidden};
use crate::{
    context::Api,
    hooks::Extra,
    registry::Resource,
    status::{Result, Status},
    storage::{Current, Written, to_stored},
};

/// How often counting starts over because others counted too.
const ATTEMPTS: usize = 30;

type Usage = BTreeMap<String, Amount>;

pub struct ResourceQuota;

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let counted = match attributes.operation {
            Operation::Create => attributes.subresource.is_empty(),
            Operation::Update => matches!(attributes.subresource, "" | "resize"),
            _ => false,
        };
        if !counted || attributes.namespace.is_empty() {
            return Ok(());
        }
        let registry = api.registry.load_full();
        let Some(quotas) = registry.get("", "v1", "resourcequotas") else {
            return Ok(());
        };
        let snapshot = api
            .storage
            .cache
            .snapshot(&quotas.scope_prefix(attributes.namespace));
        if snapshot.is_empty() {
            return Ok(());
        }
        let delta = delta(attributes);
        if delta.is_empty() {
            return Ok(());
        }
        for entry in snapshot.iter() {
            charge(
                api,
                quotas,
                &entry.key,
                Current::from(entry.as_ref()),
                attributes,
                &delta,
            )
            .await?;
        }
        Ok(())
    }
}

/// What the write adds, by quota resource name; only what grows.
fn delta(attributes: &Attributes<'_>) -> Usage {
    let mut usage = usage(attributes.resource, &attributes.object);
    if attributes.operation == Operation::Update {
        for (name, before) in self::usage(attributes.resource, attributes.old) {
            if let Some(now) = usage.get_mut(&name) {
                *now = *now - before;
            }
        }
        usage.retain(|_, amount| amount.is_positive());
    }
    usage
}

async fn charge(
    api: &Api,
    quotas: &Arc<Resource>,
    key: &skep_store::Key,
    mut current: Current,
    attributes: &Attributes<'_>,
    delta: &Usage,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let mut quota = current.value(quotas)?;
        if !in_scope(&quota, attributes) {
            return Ok(());
        }
        let name = crate::codec::meta(&quota, "name").to_owned();
        let hard = amounts(&quota["spec"]["hard"]);
        let matching: Usage = delta
            .iter()
            .filter(|(resource, _)| hard.contains_key(*resource))
            .map(|(resource, amount)| (resource.clone(), *amount))
            .collect();
        if attributes.resource.is("", "pods") && attributes.operation == Operation::Create {
            let missing = unspecified(&attributes.object, &hard);
            if !missing.is_empty() {
                let why = format!("failed quota: {name}: must specify {missing}");
                return Err(forbidden(attributes, &why));
            }
        }
        if matching.is_empty() {
            return Ok(());
        }
        let (enforced, used) = (
            amounts(&quota["status"]["hard"]),
            amounts(&quota["status"]["used"]),
        );
        let unknown: Vec<&str> = matching
            .keys()
            .filter(|r| !enforced.contains_key(*r) || !used.contains_key(*r))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            let why = format!(
                "status unknown for quota: {name}, resources: {}",
                unknown.join(",")
            );
            return Err(forbidden(attributes, &why));
        }
        let mut exceeded: Vec<[String; 3]> = Vec::new();
        for (resource, amount) in &matching {
            let (limit, before) = (enforced[resource], used[resource]);
            let after = if before.is_zero() {
                *amount
            } else {
                before + *amount
            };
            if after > limit {
                let shown =
                    |list: &Value| list[resource.as_str()].as_str().unwrap_or("0").to_owned();
                exceeded.push([
                    format!("{resource}={amount}"),
                    format!("{resource}={}", shown(&quota["status"]["used"])),
                    format!("{resource}={}", shown(&quota["status"]["hard"])),
                ]);
            }
            quota["status"]["used"][resource.as_str()] = after.to_string().into();
        }
        if !exceeded.is_empty() {
            let column = |at: usize| {
                let texts: Vec<&str> = exceeded.iter().map(|row| row[at].as_str()).collect();
                texts.join(",")
            };
            let why = format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                column(0),
                column(1),
                column(2)
            );
            return Err(forbidden(attributes, &why));
        }
        if attributes.dry_run {
            return Ok(());
        }
        if let Some(schema) = &quotas.def.schema {
            let writer = Writer {
                manager: "kube-apiserver".to_owned(),
                api_version: "v1".to_owned(),
                subresource: "status".to_owned(),
                time: crate::context::now(),
            };
            let live = current.value(quotas)?;
            managed::update(Some(&live), &mut quota, schema, &writer, &[]);
        }
        let stored = to_stored(quotas, &quota);
        let written = api
            .storage
            .update(key, stored, current.revision, None, Extra::default())
            .await?;
        match written {
            Written::At(_) => return Ok(()),
            Written::Conflict(Some(now)) => current = now,
            // The quota is gone: nothing limits any more.
            Written::Conflict(None) => return Ok(()),
            Written::ExtraConflict => {}
        }
    }
    Err(Status::server_timeout(attributes.resource, "create"))
}

fn amounts(list: &Value) -> Usage {
    let pairs = list.as_object().into_iter().flatten();
    let parse = |value: &Value| value.as_str().and_then(Amount::parse);
    pairs
        .filter_map(|(k, v)| Some((k.clone(), parse(v)?)))
        .collect()
}

fn one() -> Amount {
    Amount::from_units(1, skep_api::quantity::Format::Decimal)
}

fn units(count: usize) -> Amount {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Amount::from_units(count, skep_api::quantity::Format::Decimal)
}

/// What an object counts for.
fn usage(resource: &Resource, object: &Value) -> Usage {
    let mut usage = Usage::new();
    usage.insert(format!("count/{}", resource.qualified()), one());
    if resource.def.group.is_empty() {
        match resource.def.plural.as_ref() {
            "pods" => pod_usage(object, &mut usage),
            "services" => service_usage(object, &mut usage),
            "persistentvolumeclaims" => claim_usage(object, &mut usage),
            plural @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
                usage.insert(plural.to_owned(), one());
            }
            _ => {}
        }
    }
    usage
}

fn pod_usage(object: &Value, usage: &mut Usage) {
    let Ok(pod) = serde_json::from_value::<Pod>(object.clone()) else {
        return;
    };
    if pods::is_terminal(&pod) {
        return;
    }
    usage.insert("pods".to_owned(), one());
    for (name, quantity) in pods::requests(&pod) {
        let amount = Amount::of(&quantity);
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
        {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, quantity) in pods::limits(&pod) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), Amount::of(&quantity));
        }
    }
}

fn service_usage(service: &Value, usage: &mut Usage) {
    usage.insert("services".to_owned(), one());
    let ports = service["spec"]["ports"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    match service["spec"]["type"].as_str() {
        Some("NodePort") => {
            usage.insert("services.nodeports".to_owned(), units(ports.len()));
        }
        Some("LoadBalancer") => {
            usage.insert("services.loadbalancers".to_owned(), one());
            let allocated = if service["spec"]["allocateLoadBalancerNodePorts"] == false {
                ports
                    .iter()
                    .filter(|p| p["nodePort"].as_u64().unwrap_or(0) != 0)
                    .count()
            } else {
                ports.len()
            };
            if allocated > 0 {
                usage.insert("services.nodeports".to_owned(), units(allocated));
            }
        }
        _ => {}
    }
}

fn claim_usage(claim: &Value, usage: &mut Usage) {
    usage.insert("persistentvolumeclaims".to_owned(), one());
    let storage = claim["spec"]["resources"]["requests"]["storage"].as_str();
    let storage = storage.and_then(Amount::parse);
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
    }
    if let Some(class) = claim["spec"]["storageClassName"]
        .as_str()
        .filter(|c| !c.is_empty())
    {
        let of_class = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{of_class}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{of_class}/requests.storage"), storage);
        }
    }
}

/// `limits.memory for: a,b; requests.cpu for: a`: what a quota counts and containers leave open.
fn unspecified(pod: &Value, hard: &Usage) -> String {
    const CHECKED: [(&str, &str, &str); 6] = [
        ("cpu", "requests", "cpu"),
        ("limits.cpu", "limits", "cpu"),
        ("limits.memory", "limits", "memory"),
        ("memory", "requests", "memory"),
        ("requests.cpu", "requests", "cpu"),
        ("requests.memory", "requests", "memory"),
    ];
    let mut missing = Vec::new();
    for (name, list, key) in CHECKED {
        if !hard.contains_key(name) || !pod["spec"]["resources"][list][key].is_null() {
            continue;
        }
        let containers = ["containers", "initContainers"].into_iter();
        let without: Vec<&str> = containers
            .flat_map(|field| pod["spec"][field].as_array().into_iter().flatten())
            .filter(|c| c["resources"][list][key].is_null())
            .filter_map(|c| c["name"].as_str())
            .collect();
        if !without.is_empty() {
            missing.push(format!("{name} for: {}", without.join(",")));
        }
    }
    missing.join("; ")
}

/// Whether the quota's scopes select the object. Only pods have scopes.
fn in_scope(quota: &Value, attributes: &Attributes<'_>) -> bool {
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let mut terms: Vec<Value> = plain
        .map(|scope| json!({"scopeName": scope, "operator": "Exists"}))
        .collect();
    let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
    terms.extend(selected.into_iter().flatten().cloned());
    if terms.is_empty() {
        return true;
    }
    if !attributes.resource.is("", "pods") {
        return false;
    }
    let object = &attributes.object;
    let pod = serde_json::from_value::<Pod>(object.clone()).unwrap_or_default();
    let best_effort = pods::qos_class(&pod) == "BestEffort";
    let terminating = object["spec"]["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|s| s >= 0);
    terms.iter().all(|term| match term["scopeName"].as_str() {
        Some("Terminating") => terminating,
        Some("NotTerminating") => !terminating,
        Some("BestEffort") => best_effort,
        Some("NotBestEffort") => !best_effort,
        Some("PriorityClass") => priority_matches(object, term),
        Some("CrossNamespacePodAffinity") => crosses_namespaces(object),
        _ => false,
    })
}

fn priority_matches(pod: &Value, term: &Value) -> bool {
    let class = pod["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default();
    let values = term["values"].as_array().into_iter().flatten();
    let listed = values.into_iter().any(|v| v == class);
    match term["operator"].as_str() {
        Some("In") => listed,
        Some("NotIn") => !listed,
        Some("Exists") => !class.is_empty(),
        Some("DoesNotExist") => class.is_empty(),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
            || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let list = |field: &str| {
            affinity[kind][field]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        let required = list("requiredDuringSchedulingIgnoredDuringExecution");
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution");
        required.iter().any(crosses) || preferred.iter().any(|p| crosses(&p["podAffinityTerm"]))
    })
}
