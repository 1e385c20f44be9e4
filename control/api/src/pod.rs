//! What a pod needs and how it is doing: shared by printers, scheduler, controllers and the agent.

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    quantity::{Amount, ResourceList, add_to, raise_to},
    zero::{List, Text},
};

/// Sysctls that any pod may set (namespaced, and no danger to other pods), and the minor version of the pod security
/// standards that first let them.
pub const SAFE_SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

/// An init container that keeps running beside the others (KEP-753).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.text() == "Always"
}

/// Resources that may be asked for once for the whole pod (KEP-2837).
pub fn is_pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the pod asks for: containers together, or its largest step of initialisation, and the overhead. Pod-level
/// requests take the place of what the containers say.
pub fn requests(pod: &Pod) -> ResourceList {
    pod.spec.as_ref().map(spec_requests).unwrap_or_default()
}

/// What the pod may use at most, computed alike.
pub fn limits(pod: &Pod) -> ResourceList {
    pod.spec.as_ref().map(spec_limits).unwrap_or_default()
}

pub fn spec_requests(spec: &PodSpec) -> ResourceList {
    let mut total = aggregate_container_requests(spec);
    override_with(
        &mut total,
        spec.resources
            .as_ref()
            .and_then(|all| all.requests.as_ref()),
    );
    if let Some(overhead) = &spec.overhead {
        add_to(&mut total, overhead);
    }
    total
}

pub fn spec_limits(spec: &PodSpec) -> ResourceList {
    let mut total = aggregate_container_limits(spec);
    override_with(
        &mut total,
        spec.resources.as_ref().and_then(|all| all.limits.as_ref()),
    );
    // Overhead adds to a limit, it does not make one.
    for (name, overhead) in spec.overhead.iter().flatten() {
        if let Some(limit) = total.get_mut(name) {
            *limit = (Amount::of(limit) + Amount::of(overhead)).to_wire();
        }
    }
    total
}

fn override_with(total: &mut ResourceList, pod_level: Option<&ResourceList>) {
    for (name, quantity) in pod_level.into_iter().flatten() {
        if is_pod_level_resource(name) {
            total.insert(name.clone(), quantity.clone());
        }
    }
}

pub fn aggregate_container_requests(spec: &PodSpec) -> ResourceList {
    aggregate(spec, |container| {
        container.resources.as_ref()?.requests.as_ref()
    })
}

pub fn aggregate_container_limits(spec: &PodSpec) -> ResourceList {
    aggregate(spec, |container| {
        container.resources.as_ref()?.limits.as_ref()
    })
}

/// Sidecars run on; an ordinary init container runs beside the sidecars started before it.
fn aggregate(
    spec: &PodSpec,
    of: impl for<'a> Fn(&'a Container) -> Option<&'a ResourceList>,
) -> ResourceList {
    let mut total = ResourceList::new();
    for list in spec.containers.iter().filter_map(&of) {
        add_to(&mut total, list);
    }
    let mut sidecars = ResourceList::new();
    let mut initial = ResourceList::new();
    for container in spec.init_containers.items() {
        let mut step = of(container).cloned().unwrap_or_default();
        if is_sidecar(container) {
            add_to(&mut total, &step);
            add_to(&mut sidecars, &step);
            step.clone_from(&sidecars);
        } else {
            add_to(&mut step, &sidecars);
        }
        raise_to(&mut initial, &step);
    }
    raise_to(&mut total, &initial);
    total
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else {
        return "BestEffort";
    };
    let compute = |list: Option<&ResourceList>| -> ResourceList {
        list.into_iter()
            .flatten()
            .filter(|(name, quantity)| {
                matches!(name.as_str(), "cpu" | "memory") && Amount::of(quantity).is_positive()
            })
            .map(|(name, quantity)| (name.clone(), quantity.clone()))
            .collect()
    };
    let pod_level = spec
        .resources
        .as_ref()
        .filter(|all| all.requests.is_some() || all.limits.is_some())
        .map(|all| (compute(all.requests.as_ref()), compute(all.limits.as_ref())));
    let mut requests = ResourceList::new();
    let mut limits = ResourceList::new();
    let mut guaranteed = true;
    match pod_level {
        Some((pod_requests, pod_limits)) => {
            guaranteed = pod_limits.len() == 2;
            requests = pod_requests;
            limits = pod_limits;
        }
        None => {
            for container in spec.containers.iter().chain(spec.init_containers.items()) {
                let resources = container.resources.as_ref();
                let mine = compute(resources.and_then(|all| all.limits.as_ref()));
                guaranteed &= mine.len() == 2;
                add_to(&mut limits, &mine);
                add_to(
                    &mut requests,
                    &compute(resources.and_then(|all| all.requests.as_ref())),
                );
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let matched = requests.len() == limits.len()
        && requests.iter().all(|(name, request)| {
            limits
                .get(name)
                .is_some_and(|limit| Amount::of(limit) == Amount::of(request))
        });
    if guaranteed && matched {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// `status.phase`, `""` before there is one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("", |status| status.phase.text())
}

/// Succeeded or Failed: nothing runs any more, and nothing will.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_terminating(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// Neither done nor on its way out: what counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(&pod.metadata)
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .items()
        .iter()
        .find(|condition| condition.type_ == type_)
}

pub fn is_condition_true(pod: &Pod, type_: &str) -> bool {
    condition(pod, type_).is_some_and(|condition| condition.status == "True")
}

pub fn is_ready(pod: &Pod) -> bool {
    is_condition_true(pod, "Ready")
}

/// Ready for at least so long.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: jiff::Timestamp) -> bool {
    let Some(ready) = condition(pod, "Ready").filter(|condition| condition.status == "True") else {
        return false;
    };
    if min_ready_seconds == 0 {
        return true;
    }
    ready
        .last_transition_time
        .as_ref()
        .is_some_and(|since| now.duration_since(since.0).as_secs() >= i64::from(min_ready_seconds))
}

/// Pods that some other thing runs, shown to the API by the agent.
pub fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

pub fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flat_map(|statuses| statuses.items())
    .find(|status| status.name == name)
}

/// The pod's priority; 0 before admission has set one.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    #[track_caller]
    fn check(spec: serde_json::Value, cpu: &str, qos: &str) {
        let pod = pod(spec);
        assert_eq!(
            requests(&pod).get("cpu").map_or("", |quantity| &quantity.0),
            cpu
        );
        assert_eq!(qos_class(&pod), qos);
    }

    #[test]
    fn requests_and_qos() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar =
            json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
        check(json!({"containers": [{}]}), "", "BestEffort");
        check(
            json!({"containers": [asks("1"), asks("500m")]}),
            "1500m",
            "Burstable",
        );
        check(
            json!({"containers": [asks("1")], "initContainers": [asks("3")]}),
            "3",
            "Burstable",
        );
        check(
            json!({"containers": [asks("1")], "initContainers": [sidecar, asks("3")]}),
            "3100m",
            "Burstable",
        );
        check(
            json!({"containers": [asks("1")], "initContainers": [asks("1"), sidecar], "overhead": {"cpu": "10m"}}),
            "1110m",
            "Burstable",
        );
        let both = json!({"cpu": "1", "memory": "1Gi"});
        check(
            json!({"containers": [{"resources": {"requests": both, "limits": both}}]}),
            "1",
            "Guaranteed",
        );
        check(
            json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "2"}}}),
            "2",
            "Burstable",
        );
    }
}
