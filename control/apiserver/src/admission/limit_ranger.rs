//! LimitRanger: default, least and most resources of containers, pods and claims in a namespace.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};
use skep_api::{
    pod as pods,
    quantity::{Amount, ResourceList},
};

use super::{Attributes, Operation, Plugin, forbidden, joined, objects};
use crate::{context::Api, status::Result};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

fn concerns(attributes: &Attributes<'_>) -> bool {
    let pod = attributes.is("", "pods") && attributes.operation == Operation::Create;
    let claim = attributes.is("", "persistentvolumeclaims")
        && matches!(attributes.operation, Operation::Create | Operation::Update);
    pod || claim
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !concerns(attributes) || !attributes.is("", "pods") {
            return Ok(());
        }
        for range in objects(api, "", "limitranges", attributes.namespace) {
            fill_defaults(&mut attributes.object, &range);
        }
        Ok(())
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !concerns(attributes) {
            return Ok(());
        }
        for range in objects(api, "", "limitranges", attributes.namespace) {
            let broken = if attributes.is("", "pods") {
                pod_violations(&attributes.object, &range)
            } else {
                claim_violations(&attributes.object, &range)
            };
            if !broken.is_empty() {
                return Err(forbidden(attributes, &joined(&broken)));
            }
        }
        Ok(())
    }
}

fn limits_of<'a>(range: &'a Value, type_: &'a str) -> impl Iterator<Item = &'a Value> {
    let limits = range["spec"]["limits"].as_array().into_iter().flatten();
    limits.filter(move |limit| limit["type"] == type_)
}

fn fill_defaults(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for limit in limits_of(range, "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (name, quantity) in limit[from].as_object().into_iter().flatten() {
                to.insert(name.clone(), quantity.clone());
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (field, kind) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (key, defaults, word) in [
                ("requests", &requests, "request"),
                ("limits", &limits, "limit"),
            ] {
                let set = fill(&mut container["resources"], key, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = note.into();
    }
}

/// Returns the names that were missing, sorted.
fn fill(resources: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    if !resources.is_object() {
        *resources = json!({});
    }
    let mut set = Vec::new();
    for (name, quantity) in defaults {
        if resources[key][name.as_str()].is_null() {
            resources[key][name.as_str()] = quantity.clone();
            set.push(name.clone());
        }
    }
    if resources[key].is_null()
        && let Some(resources) = resources.as_object_mut()
    {
        resources.remove(key);
    }
    set
}

type Amounts = BTreeMap<String, Amount>;

fn amounts(list: &Value) -> Amounts {
    let pairs = list.as_object().into_iter().flatten();
    let parse = |value: &Value| value.as_str().and_then(Amount::parse);
    pairs
        .filter_map(|(k, v)| Some((k.clone(), parse(v)?)))
        .collect()
}

/// What something asks for, and what it may use at most.
struct Usage {
    requests: Amounts,
    limits: Amounts,
}

impl Usage {
    fn of(resources: &Value) -> Self {
        Self {
            requests: amounts(&resources["requests"]),
            limits: amounts(&resources["limits"]),
        }
    }
}

fn pod_violations(pod: &Value, range: &Value) -> Vec<String> {
    let containers = |field: &str| -> Vec<Usage> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers.map(|c| Usage::of(&c["resources"])).collect()
    };
    let (main, init) = (containers("containers"), containers("initContainers"));
    let mut broken = Vec::new();
    for limit in range["spec"]["limits"].as_array().into_iter().flatten() {
        match limit["type"].as_str() {
            Some("Container") => {
                for usage in main.iter().chain(&init) {
                    check(limit, "Container", usage, &mut broken);
                }
            }
            Some("Pod") => check(limit, "Pod", &total(pod), &mut broken),
            _ => {}
        }
    }
    broken
}

/// What the pod needs in all: sidecars run beside the others, pod-level resources count instead of the containers'.
fn total(pod: &Value) -> Usage {
    let mut spec: PodSpec = serde_json::from_value(pod["spec"].clone()).unwrap_or_default();
    spec.overhead = None;
    let amounts = |list: ResourceList| -> Amounts {
        list.iter()
            .map(|(name, quantity)| (name.clone(), Amount::of(quantity)))
            .collect()
    };
    Usage {
        requests: amounts(pods::spec_requests(&spec)),
        limits: amounts(pods::spec_limits(&spec)),
    }
}

fn check(limit: &Value, of: &str, usage: &Usage, broken: &mut Vec<String>) {
    let shown = |list: &Value, name: &str| list[name].as_str().unwrap_or_default().to_owned();
    for (name, least) in amounts(&limit["min"]) {
        let rule = format!(
            "minimum {name} usage per {of} is {}",
            shown(&limit["min"], &name)
        );
        match (usage.requests.get(&name), usage.limits.get(&name)) {
            (None, _) => broken.push(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < least => {
                broken.push(format!("{rule}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < least => {
                broken.push(format!("{rule}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["max"]) {
        let rule = format!(
            "maximum {name} usage per {of} is {}",
            shown(&limit["max"], &name)
        );
        match (usage.requests.get(&name), usage.limits.get(&name)) {
            (_, None) => broken.push(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => {
                broken.push(format!("{rule}, but limit is {limit}"));
            }
            (Some(request), _) if *request > most => {
                broken.push(format!("{rule}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["maxLimitRequestRatio"]) {
        let shown = shown(&limit["maxLimitRequestRatio"], &name);
        let rule = format!("{name} max limit to request ratio per {of} is {shown}");
        let positive = |list: &Amounts| list.get(&name).copied().filter(|a| a.is_positive());
        match (positive(&usage.requests), positive(&usage.limits)) {
            (None, _) => broken.push(format!(
                "{rule}, but no request is specified or request is 0"
            )),
            (_, None) => broken.push(format!("{rule}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                if ratio > most.as_f64() {
                    broken.push(format!("{rule}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn claim_violations(claim: &Value, range: &Value) -> Vec<String> {
    const OF: &str = "PersistentVolumeClaim";
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut broken = Vec::new();
    for limit in limits_of(range, OF) {
        for (word, list, min) in [
            ("minimum", &limit["min"], true),
            ("maximum", &limit["max"], false),
        ] {
            for (name, bound) in amounts(list) {
                let shown = list[name.as_str()].as_str().unwrap_or_default();
                let rule = format!("{word} {name} usage per {OF} is {shown}");
                match requests.get(&name) {
                    None => broken.push(format!("{rule}.  No request is specified")),
                    Some(request) if (min && *request < bound) || (!min && *request > bound) => {
                        broken.push(format!("{rule}, but request is {request}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Value {
        json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "250m"},
             "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "4"}},
            {"type": "Pod", "max": {"cpu": "2"}},
        ]}})
    }

    #[test]
    fn defaults_are_noted_and_then_hold() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c"}]}});
        fill_defaults(&mut pod, &range());
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"]["cpu"],
            "500m"
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        assert_eq!(pod_violations(&pod, &range()), Vec::<String>::new());
    }

    #[test]
    fn sidecars_and_pod_level_resources_count() {
        let one = |cpu: &str| json!({"limits": {"cpu": cpu}, "requests": {"cpu": cpu}});
        let mut pod = json!({"spec": {
            "containers": [{"name": "c", "resources": one("1500m")}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": one("1")}],
        }});
        let broken = ["maximum cpu usage per Pod is 2, but limit is 2500m"];
        assert_eq!(pod_violations(&pod, &range()), broken);
        pod["spec"]["resources"] = one("2");
        assert_eq!(pod_violations(&pod, &range()), Vec::<String>::new());
    }

    #[test]
    fn every_broken_rule_is_named() {
        let resources = json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "3"}});
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        assert_eq!(
            pod_violations(&pod, &range()),
            [
                "minimum cpu usage per Container is 100m, but request is 10m",
                "cpu max limit to request ratio per Container is 4, but provided ratio is 300.000000",
                "maximum cpu usage per Pod is 2, but limit is 3",
            ]
        );
    }
}
