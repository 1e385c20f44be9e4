//! ResourceQuota: what a namespace may hold in sum. Usage is counted in the quota's status before the object exists;
//! the quota controller corrects it later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skep_api::{
    pod as pods,
    quantity::{Amount, Format},
    validation::resources::is_native,
};
use skep_apply::managed::{self, Writer};

use super::{Attributes, Operation, Plugin, forbidden, storage::class_name};
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
        if attributes.namespace.is_empty() || !is_counted(attributes) {
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
        let mut counts = Counts::of(attributes);
        for entry in snapshot.iter() {
            let current = Current::from(entry.as_ref());
            charge(api, quotas, &entry.key, current, attributes, &mut counts).await?;
        }
        Ok(())
    }
}

/// The writes that may use more of something (upstream's `Evaluator.Handles`).
fn is_counted(attributes: &Attributes<'_>) -> bool {
    let resource = attributes.resource;
    let changes = resource.is("", "services")
        || resource.is("", "persistentvolumeclaims")
        || resource.is("resource.k8s.io", "resourceclaims");
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, "") => true,
        (Operation::Update, "") => changes,
        (Operation::Update, "resize") => resource.is("", "pods"),
        // A claim grows, or gets other attributes, by what its driver reports.
        (Operation::Update, "status") => resource.is("", "persistentvolumeclaims"),
        _ => false,
    }
}

/// What the object of a write counts for, by quota resource name.
struct Counts {
    whole: Usage,
    /// What an update adds; the same as `whole` for a new object.
    added: Usage,
}

impl Counts {
    fn of(attributes: &Attributes<'_>) -> Self {
        let whole = usage(attributes.resource, &attributes.object);
        let mut added = whole.clone();
        if attributes.operation == Operation::Update {
            for (name, before) in usage(attributes.resource, attributes.old) {
                if let Some(now) = added.get_mut(&name) {
                    *now = *now - before;
                }
            }
        }
        added.retain(|_, amount| amount.is_positive());
        Self { whole, added }
    }
}

async fn charge(
    api: &Api,
    quotas: &Arc<Resource>,
    key: &skep_store::Key,
    mut current: Current,
    attributes: &Attributes<'_>,
    counts: &mut Counts,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let mut quota = current.value(quotas)?;
        // What its controller has not looked at yet is not enforced.
        let (enforced, used) = (
            amounts(&quota["status"]["hard"]),
            amounts(&quota["status"]["used"]),
        );
        let restricted: BTreeSet<&str> = enforced
            .keys()
            .map(String::as_str)
            .filter(|name| restricts(name, attributes.resource))
            .collect();
        if restricted.is_empty() || !in_scope(&quota, attributes.resource, &attributes.object) {
            return Ok(());
        }
        let name = crate::codec::meta(&quota, "name").to_owned();
        if attributes.resource.is("", "pods") {
            let missing = unspecified(&attributes.object, &restricted);
            if !missing.is_empty() {
                let why = format!("failed quota: {name}: must specify {missing}");
                return Err(forbidden(attributes, &why));
            }
        }
        if !restricted
            .iter()
            .all(|resource| used.contains_key(*resource))
        {
            let all: Vec<&str> = restricted.into_iter().collect();
            let why = format!(
                "status unknown for quota: {name}, resources: {}",
                all.join(",")
            );
            return Err(forbidden(attributes, &why));
        }
        // What was not in the quota's scope before counts in full.
        let entered = attributes.operation == Operation::Update
            && !in_scope(&quota, attributes.resource, attributes.old);
        let requested = if entered {
            &counts.whole
        } else {
            &counts.added
        };
        let requested: Vec<(&String, Amount)> = requested
            .iter()
            .filter(|(resource, amount)| enforced.contains_key(*resource) && amount.is_positive())
            .map(|(resource, amount)| (resource, *amount))
            .collect();
        if requested.is_empty() {
            return Ok(());
        }
        let mut exceeded: Vec<[String; 3]> = Vec::new();
        for (resource, amount) in requested {
            let before = used.get(resource).copied().unwrap_or(Amount::ZERO);
            let limit = enforced[resource];
            let after = if before.is_zero() {
                amount
            } else {
                before + amount
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

const OF_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io";
const OF_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";

/// Whether a quota's resource is one that objects of this kind use (upstream's `MatchingResources`).
fn restricts(name: &str, resource: &Resource) -> bool {
    if let Some(counted) = name.strip_prefix("count/") {
        return counted == resource.qualified();
    }
    if resource.is("resource.k8s.io", "resourceclaims") {
        return name.ends_with(OF_DEVICE_CLASS);
    }
    if !resource.def.group.is_empty() {
        return false;
    }
    match resource.def.plural.as_ref() {
        "pods" => {
            const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
            let plain = name.strip_prefix("requests.");
            let extended = plain.is_some_and(|plain| !is_native(plain));
            let base = plain
                .or_else(|| name.strip_prefix("limits."))
                .unwrap_or(name);
            name == "pods"
                || COMPUTE.contains(&base)
                || extended
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
        }
        "services" => matches!(
            name,
            "services" | "services.nodeports" | "services.loadbalancers"
        ),
        "persistentvolumeclaims" => {
            let own = match name.split_once('/') {
                Some((class, own)) if class.ends_with(OF_STORAGE_CLASS) => own,
                _ => name,
            };
            matches!(own, "persistentvolumeclaims" | "requests.storage")
        }
        plural @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            name == plural
        }
        _ => false,
    }
}

fn amounts(list: &Value) -> Usage {
    let pairs = list.as_object().into_iter().flatten();
    let parse = |value: &Value| value.as_str().and_then(Amount::parse);
    pairs
        .filter_map(|(k, v)| Some((k.clone(), parse(v)?)))
        .collect()
}

fn one() -> Amount {
    Amount::from_units(1, Format::Decimal)
}

fn units(count: usize) -> Amount {
    whole(i64::try_from(count).unwrap_or(i64::MAX))
}

fn whole(count: i64) -> Amount {
    Amount::from_units(count, Format::Decimal)
}

/// What an object counts for.
fn usage(resource: &Resource, object: &Value) -> Usage {
    let mut usage = Usage::new();
    usage.insert(format!("count/{}", resource.qualified()), one());
    if resource.is("resource.k8s.io", "resourceclaims") {
        device_usage(object, &mut usage);
    }
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
    let amount = |list: &Value| {
        let amount = list["storage"].as_str().and_then(Amount::parse);
        // Whole bytes: a quota's status has to be valid.
        amount.map(Amount::rounded_up)
    };
    let mut storage = amount(&claim["spec"]["resources"]["requests"]);
    // A claim that shrinks back counts for what its volume has grown to.
    let allocated = amount(&claim["status"]["allocatedResources"]);
    if let (Some(asked), Some(allocated)) = (storage, allocated) {
        storage = Some(Amount::max(asked, allocated));
    }
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
    }
    let class = class_name(claim);
    if !class.is_empty() {
        let of_class = format!("{class}{OF_STORAGE_CLASS}");
        usage.insert(format!("{of_class}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{of_class}/requests.storage"), storage);
        }
    }
}

/// Devices by class; of alternatives the most that each class may have to give.
fn device_usage(claim: &Value, usage: &mut Usage) {
    /// `AllocationResultsMaxSize`: what "all" may come to.
    const ALL: i64 = 32;
    let count = |request: &Value| match request["allocationMode"].as_str() {
        Some("ExactCount") => request["count"].as_i64().unwrap_or(0),
        Some("All") => ALL,
        _ => 0,
    };
    let class = |request: &Value| request["deviceClassName"].as_str().map(str::to_owned);
    let requests = claim["spec"]["devices"]["requests"].as_array();
    for request in requests.into_iter().flatten() {
        let mut most: BTreeMap<String, i64> = BTreeMap::new();
        let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
        for one in alternatives.chain(Some(&request["exactly"])) {
            if let Some(class) = class(one) {
                let known = most.entry(class).or_insert(0);
                *known = count(one).max(*known);
            }
        }
        for (class, count) in most {
            let sum = usage
                .entry(format!("{class}{OF_DEVICE_CLASS}"))
                .or_insert_with(|| whole(0));
            *sum += whole(count);
        }
    }
}

/// `limits.memory for: a,b; requests.cpu for: a`: what a quota counts and containers leave open.
fn unspecified(pod: &Value, restricted: &BTreeSet<&str>) -> String {
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
        if !restricted.contains(name) || !pod["spec"]["resources"][list][key].is_null() {
            continue;
        }
        let containers = ["containers", "initContainers"].into_iter();
        let without: BTreeSet<&str> = containers
            .flat_map(|field| pod["spec"][field].as_array().into_iter().flatten())
            .filter(|c| c["resources"][list][key].is_null())
            .filter_map(|c| c["name"].as_str())
            .collect();
        if !without.is_empty() {
            let without: Vec<&str> = without.into_iter().collect();
            missing.push(format!("{name} for: {}", without.join(",")));
        }
    }
    missing.join("; ")
}

/// Whether the quota's scopes select the object. Only pods and claims have scopes.
fn in_scope(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let mut terms: Vec<Value> = plain
        .map(|scope| json!({"scopeName": scope, "operator": "Exists"}))
        .collect();
    let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
    terms.extend(selected.into_iter().flatten().cloned());
    if terms.is_empty() {
        return true;
    }
    if resource.is("", "persistentvolumeclaims") {
        let classes = attributes_classes(object);
        return terms.iter().all(|term| {
            term["scopeName"] == "VolumeAttributesClass"
                && match classes.is_empty() {
                    true => name_matches("", term),
                    false => classes.iter().any(|class| name_matches(class, term)),
                }
        });
    }
    if !resource.is("", "pods") {
        return false;
    }
    let pod = serde_json::from_value::<Pod>(object.clone()).unwrap_or_default();
    let best_effort = pods::qos_class(&pod) == "BestEffort";
    let terminating = object["spec"]["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|s| s >= 0);
    let priority_class = object["spec"]["priorityClassName"].as_str();
    terms.iter().all(|term| match term["scopeName"].as_str() {
        Some("Terminating") => terminating,
        Some("NotTerminating") => !terminating,
        Some("BestEffort") => best_effort,
        Some("NotBestEffort") => !best_effort,
        Some("PriorityClass") => name_matches(priority_class.unwrap_or_default(), term),
        Some("CrossNamespacePodAffinity") => crosses_namespaces(object),
        _ => false,
    })
}

/// The classes that a claim has, had or is to have.
fn attributes_classes(claim: &Value) -> Vec<&str> {
    let names = [
        &claim["spec"]["volumeAttributesClassName"],
        &claim["status"]["currentVolumeAttributesClassName"],
        &claim["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    let names = names.into_iter().filter_map(Value::as_str);
    names.filter(|name| !name.is_empty()).collect()
}

/// A term of a scope selector; `name` is empty where the object has none.
fn name_matches(name: &str, term: &Value) -> bool {
    let values = term["values"].as_array().into_iter().flatten();
    let listed = values.into_iter().any(|value| value == name);
    match term["operator"].as_str() {
        Some("In") => listed && !name.is_empty(),
        Some("NotIn") => !listed || name.is_empty(),
        Some("Exists") => !name.is_empty(),
        Some("DoesNotExist") => name.is_empty(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn check<T>(group: &str, plural: &str, test: impl FnOnce(&Resource) -> T) -> T {
        let registry = Registry::new(skep_api::builtin());
        let resource = registry.any_version(group, plural).expect("a kind");
        test(resource)
    }

    fn used(resource: &Resource, object: &Value) -> Vec<String> {
        let usage = usage(resource, object);
        usage
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect()
    }

    #[test]
    fn claims_count_by_class_in_whole_bytes() {
        check("", "persistentvolumeclaims", |claims| {
            let claim = json!({
                "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1500m"}}},
                "status": {"allocatedResources": {"storage": "3"}},
            });
            assert_eq!(
                used(claims, &claim),
                [
                    "count/persistentvolumeclaims=1",
                    "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                    "fast.storageclass.storage.k8s.io/requests.storage=3",
                    "persistentvolumeclaims=1",
                    "requests.storage=3",
                ]
            );
            let slow = "slow.storageclass.storage.k8s.io/requests.storage";
            assert!(restricts(slow, claims));
            assert!(!restricts("pods", claims));
        });
    }

    #[test]
    fn devices_count_by_class_at_their_most() {
        check("resource.k8s.io", "resourceclaims", |claims| {
            let exact = |class: &str, count: i64| json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": count});
            let claim = json!({"spec": {"devices": {"requests": [
                {"name": "a", "exactly": exact("gpu", 2)},
                {"name": "b", "firstAvailable": [exact("gpu", 3), exact("nic", 1), exact("gpu", 1)]},
                {"name": "c", "exactly": {"deviceClassName": "nic", "allocationMode": "All"}},
            ]}}});
            assert_eq!(
                used(claims, &claim),
                [
                    "count/resourceclaims.resource.k8s.io=1",
                    "gpu.deviceclass.resource.k8s.io/devices=5",
                    "nic.deviceclass.resource.k8s.io/devices=33",
                ]
            );
        });
    }

    #[test]
    fn a_quota_restricts_what_its_kind_uses() {
        check("", "pods", |pods| {
            for name in [
                "count/pods",
                "pods",
                "limits.cpu",
                "requests.ephemeral-storage",
                "requests.example.com/gpu",
                "requests.hugepages-2Mi",
            ] {
                assert!(restricts(name, pods), "{name}");
            }
            for name in ["services", "requests.storage", "count/services"] {
                assert!(!restricts(name, pods), "{name}");
            }
        });
    }

    #[test]
    fn claims_are_in_scope_by_their_attributes_class() {
        check("", "persistentvolumeclaims", |claims| {
            let quota = |operator: &str, values: Value| {
                json!({"spec": {"scopeSelector": {"matchExpressions": [
                    {"scopeName": "VolumeAttributesClass", "operator": operator, "values": values},
                ]}}})
            };
            let gold = json!({"spec": {"volumeAttributesClassName": "gold"}});
            let plain = json!({"spec": {}});
            let listed = json!(["gold"]);
            for (operator, values, of_gold, of_plain) in [
                ("In", &listed, true, false),
                ("NotIn", &listed, false, true),
                ("Exists", &Value::Null, true, false),
                ("DoesNotExist", &Value::Null, false, true),
            ] {
                let quota = quota(operator, values.clone());
                assert_eq!(in_scope(&quota, claims, &gold), of_gold, "{operator}");
                assert_eq!(in_scope(&quota, claims, &plain), of_plain, "{operator}");
            }
        });
    }
}
