//! Whether the node takes a pod at all. Pure; a pod that is not taken fails for good.
//!
//! The scheduler has looked at most of this before, but it may have seen an older state, and a pod
//! with a `nodeName` never met it. Upstream: `pkg/kubelet/lifecycle/predicate.go`, `sysctl`,
//! `apparmor`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use skep_api::node::{is_tolerated, matches_required_affinity};

use super::{pod, resources};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

const NODE_AFFINITY: &str = "NodeAffinity";
const TAINT_TOLERATION: &str = "TaintToleration";

impl Rejection {
    /// Whether the node's labels or taints are why.
    pub fn is_for_the_node(&self) -> bool {
        [NODE_AFFINITY, TAINT_TOLERATION].contains(&self.reason.as_str())
    }
}

fn reject(reason: &str, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection {
        reason: reason.into(),
        message: message.into(),
    })
}

/// What the node has taken.
#[derive(Debug, Default)]
pub struct Desk {
    /// The uids of pods that were taken. Held while one is looked at, so that two do not get the
    /// same room.
    pub taken: Mutex<HashSet<String>>,
    pub unsafe_sysctls: Vec<String>,
}

pub struct Input<'a> {
    pub pod: &'a Pod,
    pub node: Option<&'a Node>,
    /// Without what others have added to the node.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// The other pods that hold resources of this node.
    pub others: &'a [Arc<Pod>],
    pub has_apparmor: bool,
    /// Names, or prefixes that end with `*`.
    pub unsafe_sysctls: &'a [String],
}

pub fn admit(input: &Input<'_>) -> Result<(), Rejection> {
    sysctls(input)?;
    security(input)?;
    operating_system(input)?;
    placement(input)?;
    room(input)
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` are the same; the second form is what runtimes take.
pub fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.into(),
    }
}

fn sysctls(input: &Input<'_>) -> Result<(), Rejection> {
    let spec = pod::spec(input.pod);
    let security = spec.security_context.as_ref();
    for sysctl in security
        .and_then(|s| s.sysctls.as_ref())
        .into_iter()
        .flatten()
    {
        let name = dotted(&sysctl.name);
        let forbidden = |why: &str| {
            reject(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} {why}"),
            )
        };
        let network = name.starts_with("net.");
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if network && spec.host_network == Some(true) {
            return forbidden("not allowed with host net enabled");
        }
        if ipc && spec.host_ipc == Some(true) {
            return forbidden("not allowed with host ipc enabled");
        }
        let allowed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        let mut known = skep_api::pod::SAFE_SYSCTLS.iter();
        let safe = known.any(|(known, _)| *known == name.as_str());
        if !safe && !((network || ipc) && input.unsafe_sysctls.iter().any(allowed)) {
            return forbidden("not allowlisted");
        }
    }
    Ok(())
}

fn security(input: &Input<'_>) -> Result<(), Rejection> {
    let spec = pod::spec(input.pod);
    let shared = spec.security_context.as_ref();
    let own = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let profiles = own
        .map(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.app_armor_profile.as_ref())
        })
        .chain([shared.and_then(|s| s.app_armor_profile.as_ref())]);
    let confined = profiles.flatten().any(|p| p.type_ != "Unconfined");
    if confined && !input.has_apparmor {
        return reject(
            "AppArmor",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        );
    }
    Ok(())
}

fn operating_system(input: &Input<'_>) -> Result<(), Rejection> {
    let spec = pod::spec(input.pod);
    let selected = spec
        .node_selector
        .as_ref()
        .and_then(|s| s.get("kubernetes.io/os"));
    if selected.is_some_and(|os| os != "linux") {
        return reject(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return reject(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        );
    }
    Ok(())
}

fn placement(input: &Input<'_>) -> Result<(), Rejection> {
    let spec = pod::spec(input.pod);
    let failed = |predicate: &str, why: &str| {
        reject(predicate, format!("Predicate {predicate} failed: {why}"))
    };
    if let Some(node) = input.node {
        if !matches_required_affinity(spec, node) {
            return failed(
                NODE_AFFINITY,
                "node(s) didn't match Pod's node affinity/selector",
            );
        }
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let driven_out = taints
            .into_iter()
            .flatten()
            .any(|t| t.effect == "NoExecute" && !is_tolerated(t, tolerations));
        if driven_out && !pod::is_static(input.pod) {
            return failed(
                TAINT_TOLERATION,
                "node(s) had taints that the pod didn't tolerate",
            );
        }
    }
    let ours = host_ports(input.pod);
    let clash = |theirs: &HostPort| {
        ours.iter().any(|(ip, protocol, port)| {
            let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
            *port == theirs.2
                && *protocol == theirs.1
                && (*ip == theirs.0 || any(ip) || any(&theirs.0))
        })
    };
    if !ours.is_empty() && input.others.iter().any(|p| host_ports(p).iter().any(clash)) {
        return failed(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        );
    }
    Ok(())
}

/// Address, protocol and port.
type HostPort = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod::spec(pod);
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| pod::is_sidecar(c));
    sidecars
        .chain(&spec.containers)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((p.host_ip.clone().unwrap_or_default(), protocol, port))
        })
        .collect()
}

fn room(input: &Input<'_>) -> Result<(), Rejection> {
    let out_of = |name: &str, requested: i64, used: i64, capacity: i64| {
        reject(
            &format!("OutOf{name}"),
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            ),
        )
    };
    let scale = |name: &str| match name {
        "cpu" => resources::millis as fn(&Quantity) -> i64,
        _ => resources::value,
    };
    let pods = input
        .allocatable
        .get("pods")
        .map_or(i64::MAX, resources::value);
    let used = i64::try_from(input.others.len()).unwrap_or(i64::MAX);
    if used >= pods {
        return out_of("pods", 1, used, pods);
    }
    let held: Vec<_> = input
        .others
        .iter()
        .map(|p| skep_api::pod::requests(p))
        .collect();
    let status = input.node.and_then(|node| node.status.as_ref());
    let none = BTreeMap::new();
    let added = status.and_then(|s| s.allocatable.as_ref()).unwrap_or(&none);
    for (name, quantity) in skep_api::pod::requests(input.pod) {
        let scale = scale(&name);
        let requested = scale(&quantity);
        // What neither the node nor anybody else has put there is no matter of a node.
        let Some(capacity) = input.allocatable.get(&name).or_else(|| added.get(&name)) else {
            continue;
        };
        let capacity = scale(capacity);
        let used: i64 = held.iter().filter_map(|r| r.get(&name)).map(scale).sum();
        if requested > 0 && requested > capacity - used {
            return out_of(&name, requested, used, capacity);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn check(spec: Value) -> String {
        let c = json!([{"name": "c", "ports": [{"hostPort": 80, "containerPort": 80}],
            "resources": {"requests": {"cpu": "3"}}}]);
        let others = [Arc::new(pod(json!({"containers": c})))];
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]},
            "status": {"allocatable": {"example.com/dongle": "1"}}}))
        .unwrap();
        let mut spec = spec;
        if spec["tolerations"].is_null() {
            spec["tolerations"] = json!([{"operator": "Exists"}]);
        }
        let allocatable = [("cpu", "4"), ("pods", "3")]
            .map(|(k, v)| (k.to_string(), Quantity(v.into())))
            .into();
        let outcome = admit(&Input {
            pod: &pod(spec),
            node: Some(&node),
            allocatable: &allocatable,
            others: &others,
            has_apparmor: false,
            unsafe_sysctls: &["net.core.*".into(), "vm.overcommit_memory".into()],
        });
        match outcome {
            Ok(()) => "taken".into(),
            Err(r) => format!("{}: {}", r.reason, r.message),
        }
    }

    #[test]
    fn a_node_says_why_it_does_not_take_a_pod() {
        let sysctl = |name: &str, more: Value| {
            let mut spec = json!({"containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            for (key, value) in more.as_object().unwrap() {
                spec[key] = value.clone();
            }
            check(spec)
        };
        assert_eq!(sysctl("kernel.shm_rmid_forced", json!({})), "taken");
        assert_eq!(sysctl("net/ipv4/tcp_syncookies", json!({})), "taken");
        assert_eq!(sysctl("net.core.somaxconn", json!({})), "taken");
        assert_eq!(
            sysctl("kernel.msgmax", json!({})),
            "SysctlForbidden: forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        );
        // Not namespaced: allowed or not, it would change the whole machine.
        assert_eq!(
            sysctl("vm.overcommit_memory", json!({})),
            "SysctlForbidden: forbidden sysctl: \"vm.overcommit_memory\" not allowlisted"
        );
        assert_eq!(
            sysctl("net.ipv4.tcp_syncookies", json!({"hostNetwork": true})),
            "SysctlForbidden: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
        );
        for (spec, expected) in [
            (json!({"containers": []}), "taken"),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}),
                "OutOfcpu: Node didn't have enough resource: cpu, requested: 1500, used: 3000, capacity: 4000",
            ),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/dongle": "2"}}}]}),
                "OutOfexample.com/dongle: Node didn't have enough resource: example.com/dongle, requested: 2, used: 0, capacity: 1",
            ),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/of-the-cluster": "2"}}}]}),
                "taken",
            ),
            (
                json!({"containers": [], "nodeSelector": {"disk": "hdd"}}),
                "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            ),
            (
                json!({"containers": [], "tolerations": []}),
                "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            ),
            (
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "containerPort": 8080}]}]}),
                "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
            (
                json!({"containers": [], "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
                "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host",
            ),
            (
                json!({"containers": [], "os": {"name": "windows"}}),
                "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS",
            ),
        ] {
            assert_eq!(check(spec.clone()), expected, "{spec}");
        }
    }
}
