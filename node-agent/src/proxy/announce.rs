//! Addresses of LoadBalancer Services on the nodes' link: which of them this node answers for.
//!
//! Every agent chooses alone and all choose the same: the ready node with the highest hash of its
//! name and the address. A node that stops being ready, or has no endpoint of a Service that wants
//! local ones, hands its addresses to others and leaves the rest where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use skep_client::Informers;
use skep_client::informer::BY_SERVICE;
use skep_datapath::Datapath;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::endpoints::{Slice, Word};
use crate::services::Service;

/// Set on a Node: it takes no part in load balancing from outside.
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// After a failure, and between repetitions of an announcement.
const PAUSE: Duration = Duration::from_secs(1);
/// An announcement is one frame, which may be lost.
const REPETITIONS: u32 = 3;

/// Answers for this node's share of the pool's addresses until `stop`.
pub async fn run(
    informers: Informers,
    datapath: Arc<Datapath>,
    node_name: String,
    stop: CancellationToken,
) {
    let services = informers.of::<Service>();
    let slices = informers.of::<Slice>();
    let nodes = informers.of::<Node>();
    let changed = Arc::new(Notify::new());
    // A cluster has many Services, and few of them an address of the pool.
    let any = Arc::new(AtomicBool::new(false));
    let wake = changed.clone();
    services.on_change(move |change| {
        if change.each().any(|service| service.is_from_pool()) {
            wake.notify_one();
        }
    });
    let (wake, some) = (changed.clone(), any.clone());
    slices.on_change(move |_| {
        if some.load(Ordering::Relaxed) {
            wake.notify_one();
        }
    });
    let wake = changed.clone();
    nodes.on_change(move |_| wake.notify_one());
    tokio::select! {
        () = async { tokio::join!(services.synced(), slices.synced(), nodes.synced()); } => {}
        () = stop.cancelled() => return,
    }
    let mut groups = SolicitedNodes {
        uplink: datapath.uplink(),
        socket: None,
    };
    let mut announced = BTreeSet::new();
    let mut fresh: Vec<IpAddr> = Vec::new();
    let mut left = 0;
    loop {
        let balanced: Vec<Arc<Service>> = services
            .all()
            .into_iter()
            .filter(|service| service.is_from_pool())
            .collect();
        any.store(!balanced.is_empty(), Ordering::Relaxed);
        let eligible: Vec<String> = if balanced.is_empty() {
            Vec::new()
        } else {
            nodes
                .all()
                .iter()
                .filter_map(|node| eligible(node))
                .collect()
        };
        let wanted = plan_announced(&node_name, &balanced, &eligible, |namespace, name| {
            slices.by_index(BY_SERVICE, &format!("{namespace}/{name}"))
        });
        let mut failed = false;
        if wanted != announced {
            let ips: Vec<IpAddr> = wanted.iter().copied().collect();
            match datapath.set_announced(&ips) {
                Ok(()) => {
                    groups.set(&ips);
                    fresh = wanted.difference(&announced).copied().collect();
                    left = REPETITIONS - 1;
                    info!(addresses = ?wanted, "answering for addresses of load balancers");
                    announced = wanted;
                }
                Err(error) => {
                    warn!(%error, "addresses of load balancers are not answered for");
                    failed = true;
                }
            }
        } else if left > 0 {
            left -= 1;
            let still: Vec<IpAddr> = fresh
                .iter()
                .filter(|ip| announced.contains(ip))
                .copied()
                .collect();
            if let Err(error) = datapath.announce(&still) {
                warn!(%error, "an announcement could not be repeated");
            }
        }
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(PAUSE), if failed || left > 0 => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Membership in the solicited-node groups (RFC 4291 §2.7.1) of the announced IPv6 addresses: what asks for them is
/// sent there, and an interface or a switch that filters groups would not let it through otherwise. Nothing is ever
/// read: the programs answer.
struct SolicitedNodes {
    uplink: u32,
    /// A member of the groups as long as it is open.
    socket: Option<UdpSocket>,
}

impl SolicitedNodes {
    fn set(&mut self, ips: &[IpAddr]) {
        let groups: BTreeSet<Ipv6Addr> = ips
            .iter()
            .filter_map(|ip| match ip {
                IpAddr::V6(ip) => Some(solicited_node(*ip)),
                IpAddr::V4(_) => None,
            })
            .collect();
        match join(&groups, self.uplink) {
            // The former one leaves its groups after the new one has joined.
            Ok(socket) => self.socket = socket,
            Err(error) => {
                warn!(%error, "on links that filter multicast, nobody finds this node's IPv6 load balancer addresses");
            }
        }
    }
}

fn join(groups: &BTreeSet<Ipv6Addr>, uplink: u32) -> std::io::Result<Option<UdpSocket>> {
    if groups.is_empty() {
        return Ok(None);
    }
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    for group in groups {
        socket.join_multicast_v6(group, uplink)?;
    }
    Ok(Some(socket))
}

fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = ip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b)
}

/// The addresses that `node_name` answers for.
///
/// # Guarantees
/// A function of its arguments. With the same Services, nodes and endpoints, no two nodes choose
/// the same address, and an address that some node can serve is chosen by one.
pub fn plan_announced(
    node_name: &str,
    services: &[Arc<Service>],
    eligible: &[String],
    slices: impl Fn(&str, &str) -> Vec<Arc<Slice>>,
) -> BTreeSet<IpAddr> {
    // An address that several Services share is where all of them can be served, if anywhere.
    let mut candidates: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for service in services {
        let mut able: BTreeSet<&str> = eligible.iter().map(String::as_str).collect();
        if service.external_local {
            let found = slices(service.namespace(), service.name());
            let with_endpoint = nodes_with_ready_endpoints(&found);
            // None has any: somebody answers, so that clients are not left without an answer.
            let serves = |node: &&str| with_endpoint.contains(&Word::of(node));
            if able.iter().any(serves) {
                able.retain(serves);
            }
        }
        for ip in service.ingress().iter().map(|ingress| ingress.ip) {
            candidates
                .entry(ip)
                .and_modify(|nodes| {
                    let both: BTreeSet<&str> = nodes.intersection(&able).copied().collect();
                    if !both.is_empty() {
                        *nodes = both;
                    }
                })
                .or_insert_with(|| able.clone());
        }
    }
    candidates
        .into_iter()
        .filter(|(ip, nodes)| {
            let best = nodes.iter().max_by_key(|node| (score(node, *ip), **node));
            best == Some(&node_name)
        })
        .map(|(ip, _)| ip)
        .collect()
}

/// The node's name, if it may answer.
fn eligible(node: &Node) -> Option<String> {
    let excluded = node
        .metadata
        .labels
        .iter()
        .flatten()
        .any(|(label, _)| label == EXCLUDE_LABEL);
    let ready = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    (ready && !excluded)
        .then(|| node.metadata.name.clone())
        .flatten()
}

fn nodes_with_ready_endpoints(slices: &[Arc<Slice>]) -> BTreeSet<Word> {
    slices
        .iter()
        .flat_map(|slice| slice.endpoints())
        .filter(|endpoint| endpoint.is_ready())
        .filter_map(|endpoint| endpoint.node())
        .collect()
}

/// FNV-1a, finished by MurmurHash3's mixer: agents of any build must agree.
fn score(node: &str, ip: IpAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    for byte in node.bytes().chain(octets) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn service(ip: &str, policy: &str) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"namespace": "default", "name": "web"},
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy},
                "status": {"loadBalancer": {"ingress": [{"ip": ip}]}},
            }))
            .unwrap(),
        )
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node{number}")).collect()
    }

    fn owners(
        services: &[Arc<Service>],
        nodes: &[String],
        slices: &[Arc<Slice>],
    ) -> BTreeMap<IpAddr, Vec<String>> {
        let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for node in nodes {
            for ip in plan_announced(node, services, nodes, |_, _| slices.to_vec()) {
                owners.entry(ip).or_default().push(node.clone());
            }
        }
        owners
    }

    proptest! {
        #[test]
        fn each_address_has_one_owner_and_moves_only_with_it(
            hosts in prop::collection::btree_set(any::<u8>(), 1..40),
            count in 2usize..12,
            lost in any::<prop::sample::Index>(),
        ) {
            let services: Vec<_> = hosts
                .iter()
                .map(|host| service(&format!("192.0.2.{host}"), "Cluster"))
                .collect();
            let mut nodes = names(count);
            let before = owners(&services, &nodes, &[]);
            prop_assert_eq!(before.len(), hosts.len());
            prop_assert!(before.values().all(|owners| owners.len() == 1));
            let lost = nodes.remove(lost.index(count));
            let after = owners(&services, &nodes, &[]);
            for (ip, owner) in &before {
                if owner[0] != lost {
                    prop_assert_eq!(&after[ip], owner);
                } else {
                    prop_assert_eq!(after[ip].len(), 1);
                }
            }
        }
    }

    #[test]
    fn groups_follow_from_addresses() {
        let group = solicited_node("2001:db8::1234:5678".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff34:5678");
    }

    #[test]
    fn local_services_are_answered_for_where_their_endpoints_are() {
        let slice = |node: &str, ready: bool| -> Vec<Arc<Slice>> {
            let slice = serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": "default"}, "addressType": "IPv4",
                "endpoints": [{
                    "addresses": ["10.244.0.2"], "nodeName": node, "conditions": {"ready": ready},
                }],
            }));
            vec![Arc::new(slice.unwrap())]
        };
        let services = [service("192.0.2.7", "Local")];
        for node in names(5) {
            let found = owners(&services, &names(5), &slice(&node, true));
            assert_eq!(found.into_values().collect::<Vec<_>>(), [[node]]);
        }
        let anywhere = owners(&services, &names(5), &slice("node1", false));
        assert_eq!(anywhere.len(), 1, "somebody answers");
    }

    #[test]
    fn nodes_answer_only_while_ready() {
        let node = |ready: &str, labels: serde_json::Value| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "node1", "labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        assert_eq!(eligible(&node("True", json!({}))), Some("node1".into()));
        assert_eq!(eligible(&node("Unknown", json!({}))), None);
        assert_eq!(eligible(&node("True", json!({EXCLUDE_LABEL: ""}))), None);
    }
}
