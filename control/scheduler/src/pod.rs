//! What the scheduler needs to know of a pod, computed once per version of it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements, Toleration};
use skep_client::ObjectKey;

use crate::{
    quantity,
    terms::{self, Labels, NodeMatch, NodeTerm, PodTerms, Spread},
};

pub const SCHEDULER_NAME: &str = "default-scheduler";

/// Amounts of resources. Missing is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millicores: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    /// By name, without zero entries.
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    pub fn new<'a>(
        list: impl IntoIterator<
            Item = (
                &'a String,
                &'a k8s_openapi::apimachinery::pkg::api::resource::Quantity,
            ),
        >,
    ) -> Self {
        let mut resources = Self::default();
        for (name, amount) in list {
            match name.as_str() {
                "cpu" => resources.cpu_millicores = quantity::milli(amount),
                "memory" => resources.memory_bytes = quantity::value(amount),
                "ephemeral-storage" => resources.ephemeral_bytes = quantity::value(amount),
                "pods" => {}
                _ => {
                    let amount = quantity::value(amount);
                    if amount != 0 {
                        resources.extended.insert(name.clone(), amount);
                    }
                }
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu_millicores = self.cpu_millicores.saturating_add(other.cpu_millicores);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_add(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            let entry = self.extended.entry(name.clone()).or_default();
            *entry = entry.saturating_add(*amount);
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu_millicores = self.cpu_millicores.saturating_sub(other.cpu_millicores);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            if let Some(entry) = self.extended.get_mut(name) {
                *entry = entry.saturating_sub(*amount);
            }
        }
        self.extended.retain(|_, amount| *amount != 0);
    }

    fn max(&mut self, other: &Self) {
        self.cpu_millicores = self.cpu_millicores.max(other.cpu_millicores);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            let entry = self.extended.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }
}

/// A port of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    /// `0.0.0.0` is every address.
    pub ip: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: ObjectKey,
    pub uid: String,
    /// uid of the controller, for spreading.
    pub owner: Option<String>,
    pub priority: i32,
    pub requests: Resources,
    /// As `requests`, with upstream's defaults for containers that ask for nothing: only for scoring.
    pub scored_cpu_millicores: i64,
    pub scored_memory_bytes: i64,
    pub host_ports: Vec<HostPort>,
    pub node_name: Option<String>,
    /// `spec.nodeName` asked for by a pod that is not bound yet cannot exist; this is the node the match must have.
    pub node_match: NodeMatch,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub pod_terms: PodTerms,
    pub spreads: Vec<Spread>,
    pub tolerations: Vec<Toleration>,
    /// Names of PersistentVolumeClaims, and whether the claim is a generic ephemeral volume of this pod.
    pub claims: Vec<(String, bool)>,
    pub images: Vec<String>,
    pub never_preempts: bool,
    pub terminating: bool,
    pub started: Option<Timestamp>,
}

/// What a container counts as in scores when it requests nothing. As upstream's `DefaultMilliCPURequest`, `…MemoryRequest`.
const SCORED_CPU_MILLICORES: i64 = 100;
const SCORED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        static NO_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        let spec = pod.spec.as_ref().unwrap_or(&NO_SPEC);
        let key = ObjectKey::of(&pod.metadata);
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let requests = requests(spec, |resources| {
            Resources::new(
                resources
                    .and_then(|resources| resources.requests.as_ref())
                    .into_iter()
                    .flatten(),
            )
        });
        let scored = self::requests(spec, |resources| {
            let mut amounts = Resources::new(
                resources
                    .and_then(|resources| resources.requests.as_ref())
                    .into_iter()
                    .flatten(),
            );
            if amounts.cpu_millicores == 0 {
                amounts.cpu_millicores = SCORED_CPU_MILLICORES;
            }
            if amounts.memory_bytes == 0 {
                amounts.memory_bytes = SCORED_MEMORY_BYTES;
            }
            amounts
        });
        let owners = pod.metadata.owner_references.iter().flatten();
        let claims = spec.volumes.iter().flatten().filter_map(|volume| {
            if let Some(claim) = &volume.persistent_volume_claim {
                Some((claim.claim_name.clone(), false))
            } else {
                volume
                    .ephemeral
                    .as_ref()
                    .map(|_| (format!("{}-{}", key.name, volume.name), true))
            }
        });
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            owner: owners
                .into_iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone()),
            priority: spec.priority.unwrap_or_default(),
            requests,
            scored_cpu_millicores: scored.cpu_millicores,
            scored_memory_bytes: scored.memory_bytes,
            host_ports: host_ports(spec),
            node_name: spec.node_name.clone().filter(|name| !name.is_empty()),
            node_match: NodeMatch::of_pod(spec),
            preferred_nodes: terms::preferred_nodes(spec.affinity.as_ref()),
            pod_terms: PodTerms::new(spec.affinity.as_ref(), &key.namespace),
            spreads: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|constraint| Spread::new(constraint, labels))
                .collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            claims: claims.collect(),
            images: spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
                .filter_map(|container| container.image.as_deref().map(normalized_image))
                .collect(),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            started: pod
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0),
            key,
            pod,
        }
    }

    pub fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.pod.metadata.labels.as_ref().unwrap_or(&NONE)
    }

    /// A pod that has ended holds no resources.
    pub fn is_finished(pod: &Pod) -> bool {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Waits for us: unbound, not gated, not ending, and this scheduler's.
    pub fn wants_scheduling(pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
            && spec
                .scheduler_name
                .as_deref()
                .is_none_or(|name| name == SCHEDULER_NAME)
            && pod.metadata.deletion_timestamp.is_none()
            && !Self::is_finished(pod)
    }
}

/// The pod's effective request: what its containers and sidecars need at once, or what the greediest step of its start
/// needs if that is more; plus overhead. KEP-753; pod-level resources (KEP-2837) replace the sum.
fn requests(spec: &PodSpec, of: impl Fn(Option<&ResourceRequirements>) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref());
        if is_sidecar(container) {
            running.add(&own);
            sidecars.add(&own);
            starting.max(&sidecars);
        } else {
            let mut step = sidecars.clone();
            step.add(&own);
            starting.max(&step);
        }
    }
    running.max(&starting);
    if let Some(list) = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
    {
        let pod_level = Resources::new(list);
        if list.contains_key("cpu") {
            running.cpu_millicores = pod_level.cpu_millicores;
        }
        if list.contains_key("memory") {
            running.memory_bytes = pod_level.memory_bytes;
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::new(overhead));
    }
    running
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                ip: port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into()),
                port: number,
            })
        })
        .collect()
}

/// The name with a tag, as nodes report it.
pub fn normalized_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(spec: serde_json::Value) -> PodInfo {
        let pod = json!({ "metadata": { "name": "p", "namespace": "default", "uid": "u" }, "spec": spec });
        PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod")))
    }

    #[test]
    fn effective_requests() {
        let cpu = |spec| info(spec).requests.cpu_millicores;
        let request = |cpu: &str| json!({ "requests": { "cpu": cpu } });
        assert_eq!(
            cpu(json!({ "containers": [
                { "name": "a", "resources": request("100m") }, { "name": "b", "resources": request("1") } ] })),
            1100
        );
        assert_eq!(
            cpu(json!({
                "initContainers": [
                    { "name": "i", "resources": request("2") },
                    { "name": "s", "restartPolicy": "Always", "resources": request("500m") },
                    { "name": "j", "resources": request("1800m") } ],
                "containers": [ { "name": "a", "resources": request("100m") } ],
                "overhead": { "cpu": "50m" } })),
            2350
        );
        let scored = info(json!({ "containers": [ { "name": "a" }, { "name": "b" } ] }));
        assert_eq!(
            (scored.requests.cpu_millicores, scored.scored_cpu_millicores),
            (0, 200)
        );
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let port = |ip: &str, port| HostPort {
            protocol: "TCP".into(),
            ip: ip.into(),
            port,
        };
        assert!(port("0.0.0.0", 80).conflicts(&port("10.0.0.1", 80)));
        assert!(port("10.0.0.1", 80).conflicts(&port("10.0.0.1", 80)));
        assert!(!port("10.0.0.2", 80).conflicts(&port("10.0.0.1", 80)));
        assert!(!port("0.0.0.0", 81).conflicts(&port("0.0.0.0", 80)));
    }
}
