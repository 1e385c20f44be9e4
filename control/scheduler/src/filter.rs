//! The rules a node must satisfy, one function a rule, in upstream's order. A [`Reason`] reads as upstream's.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use crate::{
    cluster::Cluster,
    node::NodeInfo,
    pod::PodInfo,
    terms::{self, Labels, PodTerm},
    volumes::{self, VolumeNeeds},
};

/// Why a node cannot run a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    Unschedulable,
    Taint {
        key: String,
        value: String,
    },
    NodeAffinity,
    HostPorts,
    Insufficient(String),
    TooManyPods,
    VolumeAffinity,
    NoVolume,
    Spread,
    SpreadMissingLabel,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    /// About the pod itself, so the same on every node.
    Pod(String),
}

impl Reason {
    /// Whether removing pods from the node could help.
    pub fn is_resolvable(&self) -> bool {
        match self {
            Self::HostPorts
            | Self::Insufficient(_)
            | Self::TooManyPods
            | Self::Spread
            | Self::PodAntiAffinity
            | Self::ExistingAntiAffinity => true,
            Self::Unschedulable
            | Self::Taint { .. }
            | Self::NodeAffinity
            | Self::VolumeAffinity
            | Self::NoVolume
            | Self::SpreadMissingLabel
            | Self::PodAffinity
            | Self::Pod(_) => false,
        }
    }

    /// Which events could make it go away.
    pub fn wakes(&self) -> Wakes {
        match self {
            Self::Unschedulable
            | Self::Taint { .. }
            | Self::NodeAffinity
            | Self::SpreadMissingLabel => Wakes::NODE,
            Self::HostPorts | Self::Insufficient(_) | Self::TooManyPods => {
                Wakes::NODE.with(Wakes::POD_GONE)
            }
            Self::VolumeAffinity | Self::NoVolume => Wakes::NODE.with(Wakes::VOLUME),
            Self::Spread
            | Self::PodAffinity
            | Self::PodAntiAffinity
            | Self::ExistingAntiAffinity => {
                Wakes::NODE.with(Wakes::POD_GONE).with(Wakes::POD_PLACED)
            }
            Self::Pod(_) => Wakes::VOLUME,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Taint { key, value } => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
            Self::NodeAffinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::HostPorts => {
                f.write_str("node(s) didn't have free ports for the requested pod ports")
            }
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::VolumeAffinity => {
                f.write_str("node(s) didn't match PersistentVolume's node affinity")
            }
            Self::NoVolume => {
                f.write_str("node(s) didn't find available persistent volumes to bind")
            }
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadMissingLabel => f.write_str(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            ),
            Self::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::ExistingAntiAffinity => {
                f.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Self::Pod(message) => f.write_str(message),
        }
    }
}

/// A set of kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes(u8);

impl Wakes {
    pub const NODE: Self = Self(1);
    pub const POD_GONE: Self = Self(2);
    pub const POD_PLACED: Self = Self(4);
    pub const VOLUME: Self = Self(8);
    pub const ANY: Self = Self(15);

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What the rules need to know of the whole cluster, computed once per pod.
pub struct Prepared {
    volumes: VolumeNeeds,
    /// (topology key, value) in which an existing pod's anti-affinity forbids this pod.
    forbidden: HashSet<(String, String)>,
    affinity: AffinityCounts,
    /// Per own anti-affinity term: values in which a pod matches it.
    anti: Vec<HashSet<String>>,
    spreads: Vec<SpreadCounts>,
}

#[derive(Default)]
struct AffinityCounts {
    /// Per term: values in which a pod matches all terms.
    present: Vec<HashSet<String>>,
    /// The first pod of a group that wants to be together may go anywhere.
    is_first: bool,
}

struct SpreadCounts {
    by_value: HashMap<String, i64>,
    least: i64,
    self_match: i64,
}

/// # Errors
/// What keeps the pod from every node.
pub fn prepare(
    cluster: &Cluster,
    pod: &PodInfo,
    without: &HashSet<&str>,
) -> Result<Prepared, Reason> {
    let volumes = volumes::needs(&cluster.volumes, pod).map_err(Reason::Pod)?;
    Ok(Prepared {
        volumes,
        forbidden: forbidden(cluster, pod, without),
        affinity: affinity_counts(cluster, pod, without),
        anti: pod
            .pod_terms
            .required_anti
            .iter()
            .map(|term| values_with(cluster, term, without))
            .collect(),
        spreads: pod
            .spreads
            .iter()
            .filter(|spread| spread.hard)
            .map(|spread| spread_counts(cluster, pod, spread, without))
            .collect(),
    })
}

/// Every rule. Empty = the pod fits.
pub fn check(
    cluster: &Cluster,
    prepared: &Prepared,
    node: &NodeInfo,
    pod: &PodInfo,
) -> Vec<Reason> {
    let simple = unschedulable(node, pod)
        .or_else(|| taints(node, pod))
        .or_else(|| node_affinity(node, pod));
    if let Some(reason) = simple {
        return vec![reason];
    }
    if let Some(reason) = host_ports(cluster, node, pod) {
        return vec![reason];
    }
    let insufficient = resources(cluster, node, pod);
    if !insufficient.is_empty() {
        return insufficient;
    }
    volumes(cluster, prepared, node, pod)
        .or_else(|| spread(prepared, node, pod))
        .or_else(|| pod_affinity(prepared, node, pod))
        .into_iter()
        .collect()
}

fn unschedulable(node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    if !node.unschedulable {
        return None;
    }
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        value: None,
        time_added: None,
    };
    let tolerated = pod
        .tolerations
        .iter()
        .any(|toleration| terms::tolerates(toleration, &taint));
    (!tolerated).then_some(Reason::Unschedulable)
}

fn taints(node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    terms::untolerated(node, &pod.tolerations).map(|taint| Reason::Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
    })
}

fn node_affinity(node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    (!pod.node_match.matches(&node.name, &node.labels)).then_some(Reason::NodeAffinity)
}

fn host_ports(cluster: &Cluster, node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    if pod.host_ports.is_empty() {
        return None;
    }
    let taken = |port| node.host_ports.iter().any(|held| held.conflicts(port));
    let promised = |port| {
        cluster
            .nominated_before(&node.name, pod)
            .any(|other| other.host_ports.iter().any(|held| held.conflicts(port)))
    };
    pod.host_ports
        .iter()
        .any(|port| taken(port) || promised(port))
        .then_some(Reason::HostPorts)
}

fn resources(cluster: &Cluster, node: &NodeInfo, pod: &PodInfo) -> Vec<Reason> {
    let mut pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    let promised;
    let mut used = &node.used;
    if cluster.has_nominated() {
        let mut sum = node.used.clone();
        for other in cluster.nominated_before(&node.name, pod) {
            sum.add(&other.requests);
            pods += 1;
        }
        promised = sum;
        used = &promised;
    }
    let mut reasons = Vec::new();
    if pods + 1 > node.allowed_pods {
        reasons.push(Reason::TooManyPods);
    }
    let wanted = &pod.requests;
    let mut compare = |name: &str, wanted: i64, used: i64, allocatable: i64| {
        if wanted > 0 && wanted > allocatable.saturating_sub(used) {
            reasons.push(Reason::Insufficient(name.to_owned()));
        }
    };
    compare(
        "cpu",
        wanted.cpu_millicores,
        used.cpu_millicores,
        node.allocatable.cpu_millicores,
    );
    compare(
        "memory",
        wanted.memory_bytes,
        used.memory_bytes,
        node.allocatable.memory_bytes,
    );
    compare(
        "ephemeral-storage",
        wanted.ephemeral_bytes,
        used.ephemeral_bytes,
        node.allocatable.ephemeral_bytes,
    );
    for (name, amount) in &wanted.extended {
        let get = |list: &BTreeMap<String, i64>| list.get(name).copied().unwrap_or_default();
        compare(
            name,
            *amount,
            get(&used.extended),
            get(&node.allocatable.extended),
        );
    }
    reasons
}

fn volumes(
    cluster: &Cluster,
    prepared: &Prepared,
    node: &NodeInfo,
    pod: &PodInfo,
) -> Option<Reason> {
    match volumes::check(
        &cluster.volumes,
        &prepared.volumes,
        &node.name,
        &node.labels,
        &pod.key.namespace,
    ) {
        volumes::Fit::Yes => None,
        volumes::Fit::WrongNode => Some(Reason::VolumeAffinity),
        volumes::Fit::NothingToBind => Some(Reason::NoVolume),
    }
}

fn forbidden(
    cluster: &Cluster,
    pod: &PodInfo,
    without: &HashSet<&str>,
) -> HashSet<(String, String)> {
    let mut forbidden = HashSet::new();
    for node in cluster
        .nodes()
        .iter()
        .filter(|node| node.anti_affinity_count > 0)
    {
        for other in &node.pods {
            if without.contains(other.uid.as_str()) {
                continue;
            }
            for term in &other.pod_terms.required_anti {
                let Some(value) = node.topology(&term.topology_key) else {
                    continue;
                };
                if term.matches(&pod.key.namespace, pod.labels(), &cluster.namespaces) {
                    forbidden.insert((term.topology_key.clone(), value.clone()));
                }
            }
        }
    }
    forbidden
}

fn affinity_counts(cluster: &Cluster, pod: &PodInfo, without: &HashSet<&str>) -> AffinityCounts {
    let terms = &pod.pod_terms.required;
    if terms.is_empty() {
        return AffinityCounts::default();
    }
    let matches_all = |namespace: &str, labels: &Labels| {
        terms
            .iter()
            .all(|term| term.matches(namespace, labels, &cluster.namespaces))
    };
    let mut present = vec![HashSet::new(); terms.len()];
    for node in cluster.nodes() {
        let found = node.pods.iter().any(|other| {
            !without.contains(other.uid.as_str())
                && matches_all(&other.key.namespace, other.labels())
        });
        if found {
            for (values, term) in present.iter_mut().zip(terms) {
                if let Some(value) = node.topology(&term.topology_key) {
                    values.insert(value.clone());
                }
            }
        }
    }
    AffinityCounts {
        is_first: present.iter().all(HashSet::is_empty)
            && matches_all(&pod.key.namespace, pod.labels()),
        present,
    }
}

fn values_with(cluster: &Cluster, term: &PodTerm, without: &HashSet<&str>) -> HashSet<String> {
    let mut values = HashSet::new();
    for node in cluster.nodes() {
        let Some(value) = node.topology(&term.topology_key) else {
            continue;
        };
        if values.contains(value) {
            continue;
        }
        let found = node.pods.iter().any(|other| {
            !without.contains(other.uid.as_str())
                && term.matches(&other.key.namespace, other.labels(), &cluster.namespaces)
        });
        if found {
            values.insert(value.clone());
        }
    }
    values
}

fn spread_counts(
    cluster: &Cluster,
    pod: &PodInfo,
    spread: &terms::Spread,
    without: &HashSet<&str>,
) -> SpreadCounts {
    let mut by_value: HashMap<String, i64> = HashMap::new();
    let hard = || pod.spreads.iter().filter(|spread| spread.hard);
    for node in cluster.nodes() {
        if !node.exists || !hard().all(|spread| node.topology(&spread.topology_key).is_some()) {
            continue;
        }
        if !counts_for_spread(node, pod, spread) {
            continue;
        }
        let Some(value) = node.topology(&spread.topology_key) else {
            continue;
        };
        let matching = matching_pods(node, pod, spread, without);
        *by_value.entry(value.clone()).or_default() += matching;
    }
    let domains = i64::try_from(by_value.len()).unwrap_or(i64::MAX);
    let least = if domains < spread.min_domains {
        0
    } else {
        by_value.values().copied().min().unwrap_or_default()
    };
    SpreadCounts {
        by_value,
        least,
        self_match: i64::from(spread.selector.matches(pod.labels())),
    }
}

/// Whether the constraint takes the node into account (nodeAffinityPolicy, nodeTaintsPolicy).
pub fn counts_for_spread(node: &NodeInfo, pod: &PodInfo, spread: &terms::Spread) -> bool {
    (!spread.honor_affinity || pod.node_match.matches(&node.name, &node.labels))
        && (!spread.honor_taints || terms::untolerated(node, &pod.tolerations).is_none())
}

pub fn matching_pods(
    node: &NodeInfo,
    pod: &PodInfo,
    spread: &terms::Spread,
    without: &HashSet<&str>,
) -> i64 {
    let matching = node.pods.iter().filter(|other| {
        other.key.namespace == pod.key.namespace
            && !other.terminating
            && !without.contains(other.uid.as_str())
            && spread.selector.matches(other.labels())
    });
    i64::try_from(matching.count()).unwrap_or(i64::MAX)
}

fn spread(prepared: &Prepared, node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    let hard = pod.spreads.iter().filter(|spread| spread.hard);
    for (spread, counts) in hard.zip(&prepared.spreads) {
        let Some(value) = node.topology(&spread.topology_key) else {
            return Some(Reason::SpreadMissingLabel);
        };
        let count = counts.by_value.get(value).copied().unwrap_or_default();
        if count + counts.self_match - counts.least > spread.max_skew {
            return Some(Reason::Spread);
        }
    }
    None
}

fn pod_affinity(prepared: &Prepared, node: &NodeInfo, pod: &PodInfo) -> Option<Reason> {
    let terms = &pod.pod_terms;
    if !terms.required.is_empty() {
        let has_all_keys = terms
            .required
            .iter()
            .all(|term| node.topology(&term.topology_key).is_some());
        let near_all =
            terms
                .required
                .iter()
                .zip(&prepared.affinity.present)
                .all(|(term, values)| {
                    node.topology(&term.topology_key)
                        .is_some_and(|value| values.contains(value))
                });
        if !(near_all || (has_all_keys && prepared.affinity.is_first)) {
            return Some(Reason::PodAffinity);
        }
    }
    let near_any = terms
        .required_anti
        .iter()
        .zip(&prepared.anti)
        .any(|(term, values)| {
            node.topology(&term.topology_key)
                .is_some_and(|value| values.contains(value))
        });
    if near_any {
        return Some(Reason::PodAntiAffinity);
    }
    if prepared.forbidden.is_empty() {
        return None;
    }
    let is_forbidden = node
        .labels
        .iter()
        .any(|(key, value)| prepared.forbidden.contains(&(key.clone(), value.clone())));
    is_forbidden.then_some(Reason::ExistingAntiAffinity)
}

/// A copy of the node without some pods.
pub fn without_pods(node: &NodeInfo, gone: &[Arc<PodInfo>]) -> NodeInfo {
    let mut copy = node.clone();
    for pod in gone {
        copy.remove(&pod.uid);
    }
    copy
}
