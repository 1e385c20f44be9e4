//! In-place resize: the resources of a running pod change without a new pod (KEP-1287).
//!
//! ```text
//! spec.resources ── fits the node? ─▶ allocated ── differs from the container? ─▶ update or restart
//!                   └ never: Infeasible, not now: Deferred (condition PodResizePending)
//! ```
//! What was allocated is all that the rest of the kubelet sees of a pod's resources: [`with`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;

use super::{pod, resources};
use crate::runtime::ResourceLimits;

/// By container name.
pub type Allocated = BTreeMap<String, ResourceRequirements>;

#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The pod has what it asks for.
    Settled,
    Allocate(Allocated),
    /// Reason and message of `PodResizePending`.
    Pending(&'static str, String),
}

/// What the spec asks for.
pub fn wanted(pod: &Pod) -> Allocated {
    let spec = pod::spec(pod);
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
        .collect()
}

/// The pod with what was allocated instead of what is asked for.
pub fn with(pod: &Pod, allocated: &Allocated) -> Pod {
    let mut pod = pod.clone();
    let Some(spec) = &mut pod.spec else {
        return pod;
    };
    let init = spec.init_containers.iter_mut().flatten();
    for c in init.chain(&mut spec.containers) {
        if let Some(resources) = allocated.get(&c.name) {
            c.resources = Some(resources.clone());
        }
    }
    pod
}

/// Whether the node can give what is asked for. `used`: the requests of all other pods.
pub fn decide(
    pod: &Pod,
    allocated: &Allocated,
    capacity: &BTreeMap<String, Quantity>,
    used: &BTreeMap<String, Quantity>,
) -> Decision {
    let wanted = wanted(pod);
    if wanted == *allocated {
        return Decision::Settled;
    }
    let asked = skep_api::pod::requests(pod);
    let held = skep_api::pod::requests(&with(pod, allocated));
    for (name, scale) in [
        ("cpu", resources::millis as fn(&Quantity) -> i64),
        ("memory", resources::value),
    ] {
        let of = |list: &BTreeMap<String, Quantity>| list.get(name).map_or(0, scale);
        let (asked, held, used) = (of(&asked), of(&held), of(used));
        let Some(capacity) = capacity.get(name).map(scale) else {
            continue;
        };
        if asked > capacity {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}"
            );
            return Decision::Pending("Infeasible", message);
        }
        if asked > held && asked + used > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, \
                 capacity: {capacity}"
            );
            return Decision::Pending("Deferred", message);
        }
    }
    Decision::Allocate(wanted)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    InPlace,
    Restart,
}

/// What a running container needs in order to have what was allocated to it.
pub fn change(
    container: &Container,
    wanted: &ResourceLimits,
    has: &ResourceLimits,
) -> Option<Change> {
    // A limit that the spec does not have is no reason to touch the container.
    let differs = |wanted: Option<i64>, has: Option<i64>| wanted.is_some() && wanted != has;
    let cpu = differs(wanted.cpu_shares, has.cpu_shares)
        || differs(wanted.cpu_quota_us, has.cpu_quota_us);
    let memory = differs(wanted.memory_bytes, has.memory_bytes);
    let restarts = |name: &str| {
        let policies = container.resize_policy.iter().flatten();
        policies
            .filter(|p| p.resource_name == name)
            .any(|p| p.restart_policy == "RestartContainer")
    };
    match (cpu, memory) {
        (false, false) => None,
        _ if cpu && restarts("cpu") || memory && restarts("memory") => Some(Change::Restart),
        _ => Some(Change::InPlace),
    }
}

/// What a container has in the API's words: what was allocated, unless it has something else still.
pub fn actual(
    container: &Container,
    wanted: &ResourceLimits,
    has: &ResourceLimits,
) -> ResourceRequirements {
    let mut out = container.resources.clone().unwrap_or_default();
    let milli = |amount: i64| Quantity(format!("{amount}m"));
    let mut set = |requests: bool, name: &str, value: Quantity| {
        let list = match requests {
            true => &mut out.requests,
            false => &mut out.limits,
        };
        list.get_or_insert_default().insert(name.into(), value);
    };
    if wanted.cpu_shares != has.cpu_shares
        && let Some(shares) = has.cpu_shares.filter(|s| *s > 2)
    {
        set(true, "cpu", milli((shares * 1000).div_euclid(1024)));
    }
    if wanted.cpu_quota_us != has.cpu_quota_us
        && let Some(quota) = has.cpu_quota_us
    {
        let period = has.cpu_period_us.unwrap_or(100_000).max(1);
        set(false, "cpu", milli(quota * 1000 / period));
    }
    if wanted.memory_bytes != has.memory_bytes
        && let Some(bytes) = has.memory_bytes
    {
        set(false, "memory", Quantity(bytes.to_string()));
    }
    out
}

/// What an event about a resize says: `Pod resize started: {…}`.
pub fn told(what: &str, pod: &Pod, error: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Amount<'a> {
        name: &'a str,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Amount<'a>>,
        containers: Vec<Amount<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    fn amount(c: &Container) -> Amount<'_> {
        Amount {
            name: &c.name,
            resources: c.resources.clone().unwrap_or_default(),
        }
    }
    let spec = pod::spec(pod);
    let init = spec.init_containers.iter().flatten();
    let summary = Summary {
        init_containers: init.map(amount).collect(),
        containers: spec.containers.iter().map(amount).collect(),
        generation: pod.metadata.generation.unwrap_or_default(),
        error,
    };
    let details = serde_json::to_string(&summary).unwrap_or_default();
    format!("Pod resize {what}: {details}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str, memory: &str) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}}),
        )
        .unwrap()
    }

    fn list(cpu: &str, memory: &str) -> BTreeMap<String, Quantity> {
        [("cpu", cpu), ("memory", memory)]
            .map(|(k, v)| (k.to_string(), Quantity(v.into())))
            .into()
    }

    #[test]
    fn a_node_gives_what_it_has() {
        let held = wanted(&pod("1", "1Gi"));
        let node = list("4", "4Gi");
        let check =
            |asked: &Pod, used: &BTreeMap<String, Quantity>| decide(asked, &held, &node, used);
        assert_eq!(
            check(&pod("1", "1Gi"), &list("3", "3Gi")),
            Decision::Settled
        );
        let more = pod("2", "1Gi");
        assert_eq!(
            check(&more, &list("2", "3Gi")),
            Decision::Allocate(wanted(&more))
        );
        assert_eq!(
            check(&more, &list("3", "0")),
            Decision::Pending(
                "Deferred",
                "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000".into()
            )
        );
        assert_eq!(
            check(&pod("1", "8Gi"), &list("0", "0")),
            Decision::Pending(
                "Infeasible",
                "Node didn't have enough capacity: memory, requested: 8589934592, capacity: 4294967296".into()
            )
        );
        // Less is always possible, however full the node.
        let less = pod("500m", "1Gi");
        assert_eq!(
            check(&less, &list("9", "9Gi")),
            Decision::Allocate(wanted(&less))
        );
    }

    #[test]
    fn events_say_what_is_asked_for() {
        let text = r#"Pod resize started: {"containers":[{"name":"c","resources":{"requests":{"cpu":"1","memory":"1Gi"}}}],"generation":0}"#;
        assert_eq!(told("started", &pod("1", "1Gi"), None), text);
        let text = told("Deferred", &pod("1", "1Gi"), Some("why"));
        assert!(text.ends_with(r#""generation":0,"error":"why"}"#), "{text}");
    }

    #[test]
    fn the_policy_of_what_changes_decides_over_a_restart() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}))
        .unwrap();
        let limits = |shares: i64, memory: i64| ResourceLimits {
            cpu_shares: Some(shares),
            memory_bytes: Some(memory),
            ..Default::default()
        };
        let check = |wanted| change(&container, &wanted, &limits(100, 1000));
        assert_eq!(check(limits(100, 1000)), None);
        assert_eq!(check(limits(200, 1000)), Some(Change::InPlace));
        assert_eq!(check(limits(200, 2000)), Some(Change::Restart));
    }
}
