//! From NetworkPolicies, namespaces and pods to what the datapath should have. Pure.
//!
//! Pods that no rule can tell apart (same namespace, labels and named ports, inside the same
//! `ipBlock`s) share an identity; a rule is written once per identity that it matches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skep_datapath::layout::policy::{IDENTITY_ANY, IDENTITY_FIRST};
use skep_datapath::layout::{SCTP, TCP, UDP};
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};

type Labels = BTreeMap<String, String>;

/// The pods of this node, with the addresses that they have before their status says so.
#[derive(Clone, Copy, Debug)]
pub struct LocalPods<'a> {
    pub node_name: &'a str,
    /// By uid.
    pub attached: &'a HashMap<String, Vec<IpAddr>>,
}

/// Numbers that stay the same from one plan to the next, so that a plan changes only what changed.
/// A number is never given to another meaning while the agent runs.
#[derive(Debug, Default)]
pub struct Numbers {
    identities: HashMap<IdentityKey, u32>,
    policies: HashMap<Vec<RuleBody>, u32>,
}

/// What rules can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IdentityKey {
    Pods {
        namespace: String,
        labels: Vec<(String, String)>,
        named_ports: Vec<(String, u8, u16)>,
        blocks: Vec<IpNet>,
    },
    Block(IpNet),
}

/// A rule without its policy set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct RuleBody {
    direction: Direction,
    identity: u32,
    protocol: u8,
    port: u16,
    port_bits: u8,
}

impl Numbers {
    fn identity(&mut self, key: IdentityKey) -> u32 {
        let next = IDENTITY_FIRST + self.identities.len() as u32;
        *self.identities.entry(key).or_insert(next)
    }

    fn policy(&mut self, rules: Vec<RuleBody>) -> u32 {
        let next = 1 + self.policies.len() as u32;
        *self.policies.entry(rules).or_insert(next)
    }
}

struct PodView<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    ips: Vec<IpAddr>,
    local: bool,
    named_ports: Vec<(String, u8, u16)>,
    identity: u32,
}

pub fn plan_policy(
    policies: &[Arc<NetworkPolicy>],
    namespaces: &[Arc<Namespace>],
    pods: &[Arc<Pod>],
    local: &LocalPods<'_>,
    numbers: &mut Numbers,
) -> PolicyState {
    let mut state = PolicyState::default();
    if policies.is_empty() {
        return state;
    }
    let blocks = blocks_of(policies);
    for block in &blocks {
        state
            .identities
            .insert(*block, numbers.identity(IdentityKey::Block(*block)));
    }
    let no_labels = Labels::new();
    let namespace_labels: HashMap<&str, &Labels> = namespaces
        .iter()
        .filter_map(|namespace| {
            let labels = namespace.metadata.labels.as_ref().unwrap_or(&no_labels);
            Some((namespace.metadata.name.as_deref()?, labels))
        })
        .collect();
    let views: Vec<PodView<'_>> = pods
        .iter()
        .filter_map(|pod| view(pod, local, &no_labels, &blocks, numbers))
        .collect();
    for pod in &views {
        for ip in &pod.ips {
            state.identities.insert(IpNet::from(*ip), pod.identity);
        }
    }

    let world = World {
        namespace_labels,
        pods: &views,
        blocks: &blocks,
    };
    for pod in views.iter().filter(|pod| pod.local) {
        let (body, policy) = world.judge(pod, policies, &state.identities);
        if !policy.ingress_isolated && !policy.egress_isolated {
            continue;
        }
        let number = numbers.policy(body.iter().copied().collect());
        state.rules.extend(body.into_iter().map(|body| Rule {
            policy: number,
            direction: body.direction,
            identity: body.identity,
            protocol: body.protocol,
            port: body.port,
            port_bits: body.port_bits,
        }));
        for ip in &pod.ips {
            state.pods.insert(
                *ip,
                PodPolicy {
                    policy: number,
                    ..policy
                },
            );
        }
    }
    state
}

/// `None`: the pod has no network of its own, or none any more.
fn view<'a>(
    pod: &'a Pod,
    local: &LocalPods<'_>,
    no_labels: &'a Labels,
    blocks: &BTreeSet<IpNet>,
    numbers: &mut Numbers,
) -> Option<PodView<'a>> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || ended {
        return None;
    }
    let mut ips: Vec<IpAddr> = status
        .iter()
        .flat_map(|status| status.pod_ips.iter().flatten())
        .filter_map(|ip| ip.ip.parse().ok())
        .collect();
    let here = spec.node_name.as_deref() == Some(local.node_name);
    if here
        && let Some(attached) = pod
            .metadata
            .uid
            .as_ref()
            .and_then(|uid| local.attached.get(uid))
    {
        ips.clone_from(attached);
    }
    if ips.is_empty() {
        let single = status.and_then(|status| status.pod_ip.as_ref());
        ips.extend(single.and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    if ips.is_empty() {
        return None;
    }
    let mut named_ports: Vec<(String, u8, u16)> = spec
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((
                port.name.clone()?,
                protocol(port.protocol.as_deref())?,
                number,
            ))
        })
        .collect();
    named_ports.sort();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.as_ref().unwrap_or(no_labels);
    let identity = numbers.identity(IdentityKey::Pods {
        namespace: namespace.to_string(),
        labels: labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        named_ports: named_ports.clone(),
        blocks: blocks
            .iter()
            .filter(|block| ips.iter().any(|ip| block.contains(ip)))
            .copied()
            .collect(),
    });
    let local = here;
    Some(PodView {
        namespace,
        labels,
        ips,
        local,
        named_ports,
        identity,
    })
}

struct World<'a> {
    namespace_labels: HashMap<&'a str, &'a Labels>,
    pods: &'a [PodView<'a>],
    blocks: &'a BTreeSet<IpNet>,
}

/// Who a peer stands for.
enum Peers<'a> {
    Anybody,
    /// Identities with a pod of each, to look named ports up.
    Known(BTreeMap<u32, Option<&'a PodView<'a>>>),
}

impl<'a> World<'a> {
    fn judge(
        &self,
        pod: &PodView<'_>,
        policies: &[Arc<NetworkPolicy>],
        identities: &BTreeMap<IpNet, u32>,
    ) -> (BTreeSet<RuleBody>, PodPolicy) {
        let mut rules = BTreeSet::new();
        let mut applied = PodPolicy::default();
        for policy in policies {
            let Some(spec) = &policy.spec else { continue };
            let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
            let selects_all = LabelSelector::default();
            let selector = spec.pod_selector.as_ref().unwrap_or(&selects_all);
            if namespace != pod.namespace || !matches(selector, pod.labels) {
                continue;
            }
            let has_type = |name: &str| {
                spec.policy_types
                    .iter()
                    .flatten()
                    .any(|policy_type| policy_type == name)
            };
            // Without policyTypes: Ingress always, Egress if there are egress rules.
            let untyped = spec.policy_types.as_ref().is_none_or(Vec::is_empty);
            if has_type("Ingress") || untyped {
                applied.ingress_isolated = true;
                for rule in spec.ingress.iter().flatten() {
                    let peers = self.peers(rule.from.as_deref(), namespace, identities);
                    allow(
                        &mut rules,
                        Direction::Ingress,
                        &peers,
                        rule.ports.as_deref(),
                        pod,
                        self.pods,
                    );
                }
            }
            if has_type("Egress") || (untyped && spec.egress.is_some()) {
                applied.egress_isolated = true;
                for rule in spec.egress.iter().flatten() {
                    let peers = self.peers(rule.to.as_deref(), namespace, identities);
                    allow(
                        &mut rules,
                        Direction::Egress,
                        &peers,
                        rule.ports.as_deref(),
                        pod,
                        self.pods,
                    );
                }
            }
        }
        (rules, applied)
    }

    fn peers(
        &self,
        peers: Option<&[NetworkPolicyPeer]>,
        namespace: &str,
        identities: &BTreeMap<IpNet, u32>,
    ) -> Peers<'a> {
        let Some(peers) = peers.filter(|peers| !peers.is_empty()) else {
            return Peers::Anybody;
        };
        let mut known = BTreeMap::new();
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                self.in_block(block, identities, &mut known);
                continue;
            }
            for pod in self.pods {
                let namespace_matches = match &peer.namespace_selector {
                    Some(selector) => self
                        .namespace_labels
                        .get(pod.namespace)
                        .is_some_and(|labels| matches(selector, labels)),
                    None => pod.namespace == namespace,
                };
                let pod_matches = peer
                    .pod_selector
                    .as_ref()
                    .is_none_or(|selector| matches(selector, pod.labels));
                if namespace_matches && pod_matches {
                    known.insert(pod.identity, Some(pod));
                }
            }
        }
        Peers::Known(known)
    }

    fn in_block(
        &self,
        block: &IPBlock,
        identities: &BTreeMap<IpNet, u32>,
        known: &mut BTreeMap<u32, Option<&'a PodView<'a>>>,
    ) {
        let Ok(cidr) = block.cidr.parse::<IpNet>() else {
            return;
        };
        let except: Vec<IpNet> = block
            .except
            .iter()
            .flatten()
            .filter_map(|net| net.parse().ok())
            .collect();
        let inside =
            |net: &IpNet| cidr.contains(net) && !except.iter().any(|except| except.contains(net));
        // Prefixes nest: one that is more specific than this block lies inside it or not at all.
        for net in self.blocks.iter().filter(|net| inside(net)) {
            if let Some(identity) = identities.get(net) {
                known.entry(*identity).or_insert(None);
            }
        }
        for pod in self.pods {
            if pod.ips.iter().any(|ip| inside(&IpNet::from(*ip))) {
                known.insert(pod.identity, Some(pod));
            }
        }
    }
}

fn allow(
    rules: &mut BTreeSet<RuleBody>,
    direction: Direction,
    peers: &Peers<'_>,
    ports: Option<&[NetworkPolicyPort]>,
    pod: &PodView<'_>,
    everyone: &[PodView<'_>],
) {
    let anybody = BTreeMap::from([(IDENTITY_ANY, None)]);
    let peers = match peers {
        Peers::Anybody => &anybody,
        Peers::Known(known) => known,
    };
    for (&identity, peer) in peers {
        let body = |protocol, port, port_bits| RuleBody {
            direction,
            identity,
            protocol,
            port,
            port_bits,
        };
        let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
            rules.insert(body(0, 0, 0));
            continue;
        };
        for port in ports {
            let Some(protocol) = protocol(port.protocol.as_deref()) else {
                continue;
            };
            match &port.port {
                None => {
                    rules.insert(body(protocol, 0, 0));
                }
                Some(IntOrString::Int(first)) => {
                    let last = port.end_port.unwrap_or(*first);
                    let prefixes = port_prefixes(*first, last).into_iter();
                    rules.extend(prefixes.map(|(first, bits)| body(protocol, first, bits)));
                }
                Some(IntOrString::String(name)) => {
                    // A name is one of the receiving side's ports; in egress to anybody it is
                    // each pod's own.
                    match (direction, peer) {
                        (Direction::Ingress, _) => {
                            let numbers = named(pod, name, protocol);
                            rules.extend(numbers.map(|number| body(protocol, number, 16)));
                        }
                        (Direction::Egress, Some(peer)) => {
                            let numbers = named(peer, name, protocol);
                            rules.extend(numbers.map(|number| body(protocol, number, 16)));
                        }
                        (Direction::Egress, None) if identity == IDENTITY_ANY => {
                            for other in everyone {
                                for number in named(other, name, protocol) {
                                    rules.insert(RuleBody {
                                        direction,
                                        identity: other.identity,
                                        protocol,
                                        port: number,
                                        port_bits: 16,
                                    });
                                }
                            }
                        }
                        (Direction::Egress, None) => {}
                    }
                }
            }
        }
    }
}

fn named<'a>(pod: &'a PodView<'_>, name: &'a str, protocol: u8) -> impl Iterator<Item = u16> + 'a {
    pod.named_ports
        .iter()
        .filter(move |(known, of, _)| known == name && *of == protocol)
        .map(|(_, _, number)| *number)
}

/// The fewest prefixes that cover the range.
fn port_prefixes(first: i32, last: i32) -> Vec<(u16, u8)> {
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        return Vec::new();
    };
    let mut prefixes = Vec::new();
    let mut next = u32::from(first);
    let end = u32::from(last);
    while next <= end {
        let aligned = if next == 0 {
            16
        } else {
            next.trailing_zeros().min(16)
        };
        let fits = (end - next + 1).ilog2();
        let size = aligned.min(fits);
        prefixes.push((next as u16, 16 - size as u8));
        next += 1 << size;
    }
    prefixes
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// Every prefix that any rule names, exceptions included: they carry identities of their own.
fn blocks_of(policies: &[Arc<NetworkPolicy>]) -> BTreeSet<IpNet> {
    let mut blocks = BTreeSet::new();
    for spec in policies.iter().filter_map(|policy| policy.spec.as_ref()) {
        let from = spec
            .ingress
            .iter()
            .flatten()
            .flat_map(|rule| rule.from.iter().flatten());
        let to = spec
            .egress
            .iter()
            .flatten()
            .flat_map(|rule| rule.to.iter().flatten());
        for block in from.chain(to).filter_map(|peer| peer.ip_block.as_ref()) {
            let nets = block.except.iter().flatten().chain([&block.cidr]);
            blocks.extend(
                nets.filter_map(|net| net.parse::<IpNet>().ok())
                    .map(|net| net.trunc()),
            );
        }
    }
    blocks
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|requirement| {
                let value = labels.get(&requirement.key);
                let listed = || {
                    value.is_some_and(|value| {
                        requirement.values.iter().flatten().any(|v| v == value)
                    })
                };
                match requirement.operator.as_str() {
                    "In" => listed(),
                    "NotIn" => !listed(),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, namespace: &str, ip: &str, labels: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": "node1", "containers": [{
                    "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
                }]},
                "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
            }))
            .unwrap(),
        )
    }

    fn world() -> (Vec<Arc<Namespace>>, Vec<Arc<Pod>>) {
        let namespace = |name: &str, team: &str| {
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "labels": {"team": team}}}),
                )
                .unwrap(),
            )
        };
        (
            vec![namespace("shop", "a"), namespace("ops", "b")],
            vec![
                pod("db", "shop", "10.244.0.2", json!({"app": "db"})),
                pod("web", "shop", "10.244.0.3", json!({"app": "web"})),
                pod("mon", "ops", "10.244.0.4", json!({"app": "mon"})),
            ],
        )
    }

    /// Whether the planned state lets `from` reach `to` at a TCP port, judged as the programs do.
    fn allowed(state: &PolicyState, from: &str, to: &str, port: u16) -> bool {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let identity = |ip: IpAddr| {
            state
                .identities
                .iter()
                .filter(|(net, _)| net.contains(&ip))
                .max_by_key(|(net, _)| net.prefix_len())
                .map_or(1, |(_, identity)| *identity)
        };
        let permits = |policy: u32, direction: Direction, peer: u32| {
            state.rules.iter().any(|rule| {
                let shift = 16 - u32::from(rule.port_bits);
                rule.policy == policy
                    && rule.direction == direction
                    && (rule.identity == IDENTITY_ANY || rule.identity == peer)
                    && (rule.protocol == 0 || rule.protocol == TCP)
                    && u32::from(rule.port) >> shift == u32::from(port) >> shift
            })
        };
        let egress = state.pods.get(&from).is_none_or(|pod| {
            !pod.egress_isolated || permits(pod.policy, Direction::Egress, identity(to))
        });
        let ingress = state.pods.get(&to).is_none_or(|pod| {
            !pod.ingress_isolated || permits(pod.policy, Direction::Ingress, identity(from))
        });
        egress && ingress
    }

    fn local() -> LocalPods<'static> {
        static NONE: std::sync::LazyLock<HashMap<String, Vec<IpAddr>>> =
            std::sync::LazyLock::new(HashMap::new);
        LocalPods {
            node_name: "node1",
            attached: &NONE,
        }
    }

    fn plan(specs: &[Value]) -> PolicyState {
        let (namespaces, pods) = world();
        let policies: Vec<Arc<NetworkPolicy>> = specs
            .iter()
            .enumerate()
            .map(|(number, spec)| {
                Arc::new(
                    serde_json::from_value(json!({
                        "metadata": {"name": format!("p{number}"), "namespace": "shop"},
                        "spec": spec,
                    }))
                    .unwrap(),
                )
            })
            .collect();
        plan_policy(
            &policies,
            &namespaces,
            &pods,
            &local(),
            &mut Numbers::default(),
        )
    }

    const DB: &str = "10.244.0.2";
    const WEB: &str = "10.244.0.3";
    const MON: &str = "10.244.0.4";
    const WORLD: &str = "192.0.2.7";

    #[track_caller]
    fn check(specs: &[Value], cases: &[(&str, &str, u16, bool)]) {
        let state = plan(specs);
        for (from, to, port, expected) in cases {
            assert_eq!(
                allowed(&state, from, to, *port),
                *expected,
                "{from} -> {to}:{port}"
            );
        }
    }

    #[test]
    fn nothing_is_isolated_without_a_policy() {
        assert_eq!(plan(&[]), PolicyState::default());
    }

    #[test]
    fn default_deny_ingress_isolates_the_namespace_only() {
        check(
            &[json!({"podSelector": {}, "policyTypes": ["Ingress"]})],
            &[
                (WEB, DB, 80, false),
                (MON, DB, 80, false),
                (DB, MON, 80, true),
                (DB, WORLD, 80, true),
            ],
        );
    }

    #[test]
    fn selectors_of_pods_and_namespaces() {
        check(
            &[json!({
                "podSelector": {"matchLabels": {"app": "db"}},
                "ingress": [
                    {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                     "ports": [{"port": 5432}]},
                    {"from": [{"namespaceSelector": {"matchExpressions":
                        [{"key": "team", "operator": "In", "values": ["b"]}]}}]},
                ],
            })],
            &[
                (WEB, DB, 5432, true),
                (WEB, DB, 5433, false),
                (MON, DB, 9, true),
                (WORLD, DB, 5432, false),
                (MON, WEB, 80, true),
            ],
        );
    }

    #[test]
    fn blocks_with_exceptions_nested_and_over_pods() {
        check(
            &[
                json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [
                    {"ipBlock": {"cidr": "192.0.0.0/8", "except": ["192.0.2.0/24"]}}]}]}),
                json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [
                    {"ipBlock": {"cidr": "192.0.2.0/25"}}, {"ipBlock": {"cidr": "10.244.0.4/32"}}]}]}),
            ],
            &[
                ("192.1.1.1", DB, 80, true),
                (WORLD, DB, 80, false),
                (MON, DB, 80, false),
                (WORLD, WEB, 80, true),
                ("192.1.1.1", WEB, 80, false),
                (MON, WEB, 80, true),
                (DB, WEB, 80, false),
            ],
        );
    }

    #[test]
    fn egress_with_named_ports_and_ranges() {
        check(
            &[json!({
                "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
                "egress": [
                    {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "web"}]},
                    {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 8000, "endPort": 8100}]},
                ],
            })],
            &[
                (WEB, DB, 8080, true),
                (WEB, DB, 5432, false),
                (WEB, WORLD, 8100, true),
                (WEB, WORLD, 8101, false),
                (WEB, WORLD, 7999, false),
                (DB, WEB, 1, true),
            ],
        );
    }

    #[test]
    fn pods_alike_share_an_identity_and_a_policy_set() {
        let (namespaces, mut pods) = world();
        pods.push(pod("web-2", "shop", "10.244.0.9", json!({"app": "web"})));
        let policy: NetworkPolicy = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }))
        .unwrap();
        let mut numbers = Numbers::default();
        let state = plan_policy(
            &[Arc::new(policy)],
            &namespaces,
            &pods,
            &local(),
            &mut numbers,
        );
        let of = |ip: &str| state.identities[&IpNet::from(ip.parse::<IpAddr>().unwrap())];
        assert_eq!(of(WEB), of("10.244.0.9"));
        assert_ne!(of(WEB), of(DB));
        let sets: HashSet<u32> = state.pods.values().map(|pod| pod.policy).collect();
        assert_eq!(sets.len(), 1);
    }

    proptest! {
        #[test]
        fn prefixes_cover_exactly_the_range(a in 0i32..65536, b in 0i32..65536) {
            let (first, last) = (a.min(b), a.max(b));
            let prefixes = port_prefixes(first, last);
            prop_assert!(prefixes.len() <= 30);
            let mut covered = 0u32;
            for (port, bits) in prefixes {
                prop_assert_eq!(i64::from(port), i64::from(first) + i64::from(covered));
                covered += 1 << (16 - u32::from(bits));
            }
            prop_assert_eq!(covered as i32, last - first + 1);
        }
    }
}
