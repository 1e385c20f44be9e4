//! The node's own part of the pod network: the uplink, forwarding, routes to the other nodes, and
//! what counts as inside the cluster.
//!
//! ```text
//! Nodes of the API ─► plan_routes (pure) ─► routes of the kernel, networks of the datapath
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use skep_client::Informers;
use skep_datapath::layout::reason::Reason;
use skep_datapath::{Datapath, DatapathConfig, Limits, TcHook, XdpMode, XdpState, ensure_bpffs};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::NetworkError;
use super::netlink::{Netlink, NextHop, Route};
use super::pods::{Pods, write_sysctl};
use super::tunnel::{self, Peer};

/// Behind every other route: what nothing else claims must not leave the machine.
const UNREACHABLE_METRIC: u32 = 4_278_198_272;
/// After a failure to write routes.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);
/// A full table of the kernel's is looked at this often.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(10);
/// How often it is looked whether the uplink is still there.
const UPLINK_LOOK: std::time::Duration = std::time::Duration::from_secs(2);
/// While the flow table is above its high-water mark.
const HASTY_SWEEP: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct NodeNetworkConfig {
    pub node_name: String,
    /// `None`: the interface that holds the node's address.
    pub uplink: Option<String>,
    pub node_ips: Vec<IpAddr>,
    pub state_dir: PathBuf,
    pub bpf_dir: PathBuf,
    /// The cgroup2 folder of this node's processes and pods.
    pub cgroup: PathBuf,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub way: Way,
    pub tc: TcHook,
    pub xdp: XdpMode,
}

/// How pods of other nodes are reached. The same on every node of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// The nodes are neighbours, or the network between them knows pod addresses.
    #[default]
    Native,
    /// Through a VXLAN between the nodes.
    Vxlan,
}

/// The datapath and the pod network of this node, ready for pods.
pub struct NodeNetwork {
    pub datapath: Arc<Datapath>,
    pub pods: Arc<Pods>,
    netlink: Netlink,
    config: NodeNetworkConfig,
    /// Index of the tunnel's device.
    tunnel: Option<u32>,
}

impl NodeNetwork {
    /// Loads and attaches everything; adopts what a predecessor left. Call inside the node's
    /// network namespace.
    pub async fn open(config: NodeNetworkConfig) -> Result<Self, NetworkError> {
        check_ranges(&config)?;
        let netlink = Netlink::open().map_err(other)?;
        let uplink = find_uplink(&netlink, &config).await?;
        let mut node_ips = config.node_ips.clone();
        for ip in netlink.addresses().await.map_err(other)? {
            if !node_ips.contains(&ip) {
                node_ips.push(ip);
            }
        }
        write_sysctl("net/ipv4/ip_forward", "1").map_err(other)?;
        if config.cluster_cidrs.iter().any(|net| net.addr().is_ipv6()) {
            forward_ipv6(&uplink.name).map_err(other)?;
        }
        ensure_bpffs(&config.bpf_dir).map_err(other)?;
        let datapath_config = DatapathConfig {
            bpf_dir: config.bpf_dir.clone(),
            cgroup: config.cgroup.clone(),
            uplink_ifindex: Some(uplink.index),
            uplink_mac: uplink.mac,
            node_ips,
            masquerade: true,
            tc: config.tc,
            xdp: config.xdp,
            limits: Limits::default(),
        };
        let datapath = tokio::task::spawn_blocking(move || {
            let opened = Datapath::open(&datapath_config);
            // This thread made it, and it may rest for long.
            skep_datapath::release_free();
            opened
        })
        .await
        .map_err(other)?
        .map_err(other)?;
        match datapath.xdp() {
            XdpState::Native => info!(uplink = uplink.name, "XDP in the uplink's driver"),
            XdpState::Generic => info!(uplink = uplink.name, "XDP in the stack, not in the driver"),
            XdpState::Off { why } if config.xdp == XdpMode::Off => {
                info!(uplink = uplink.name, why, "no XDP");
            }
            XdpState::Off { why } => warn!(
                uplink = uplink.name,
                why,
                "no XDP: tc translates what comes from outside, fewer packets a second on a core"
            ),
        }
        let datapath = Arc::new(datapath);
        let state_file = config.state_dir.join("pod-network.json");
        let mut mtu = uplink.mtu;
        let mut tunnel = None;
        match (config.way, config.node_ips.first()) {
            (Way::Vxlan, Some(ip)) => {
                mtu = mtu.saturating_sub(tunnel::overhead(*ip));
                let device = tunnel::ensure_device(&netlink, *ip, mtu)
                    .await
                    .map_err(other)?;
                tunnel = Some(device.index);
            }
            (Way::Vxlan, None) => {
                return Err(NetworkError::Other(
                    "a tunnel needs the node's address; see --node-ip".into(),
                ));
            }
            (Way::Native, _) => tunnel::remove_device(&netlink).await.map_err(other)?,
        }
        let pods = Pods::new(datapath.clone(), netlink.clone(), state_file, mtu).await?;
        let network = Self {
            datapath,
            pods: Arc::new(pods),
            netlink,
            config,
            tunnel,
        };
        network.begin().await?;
        info!(uplink = uplink.name, mtu, "pod network ready");
        Ok(network)
    }

    /// Makes what must be there before any pod. Removes nothing: after a restart, the routes to the other nodes and the
    /// networks that are never masqueraded carry traffic already, and the Nodes they come from are not known yet.
    async fn begin(&self) -> Result<(), NetworkError> {
        let plan = self.plan(&[]);
        if self.netlink.own_routes().await.map_err(other)?.is_empty() {
            return self.apply(&plan).await;
        }
        for route in &plan.routes {
            self.netlink.set_route(route).await.map_err(other)?;
        }
        Ok(())
    }

    fn plan(&self, nodes: &[Arc<Node>]) -> RoutePlan {
        plan_routes(
            &self.config.node_name,
            &self.config.cluster_cidrs,
            &self.config.service_cidrs,
            self.tunnel,
            nodes.iter().map(AsRef::as_ref),
        )
    }

    /// Follows the Nodes of the API and sweeps the flow table until `stop`.
    pub async fn run(self: Arc<Self>, informers: Informers, stop: CancellationToken) {
        let nodes = informers.of::<Node>();
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        nodes.on_change(move |_| wake.notify_one());
        let sweeper = tokio::spawn(sweep(self.datapath.clone(), stop.clone()));
        let mut applied: Option<RoutePlan> = None;
        let mut look = tokio::time::interval(UPLINK_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut lost = false;
        loop {
            // A part of the nodes would look like the others had gone.
            tokio::select! {
                () = nodes.synced() => {}
                () = stop.cancelled() => break,
            }
            let plan = self.plan(&nodes.all());
            if let Some(ranges) = &plan.own_ranges {
                self.pods.set_ranges(ranges.clone()).await;
            }
            for clash in &plan.clashes {
                if applied
                    .as_ref()
                    .is_none_or(|applied| !applied.clashes.contains(clash))
                {
                    error!("{clash}: give one of them another range, or pods will not be reached");
                }
            }
            let mut failed = false;
            if applied.as_ref() != Some(&plan) {
                match self.apply(&plan).await {
                    Ok(()) => applied = Some(plan),
                    Err(error) => {
                        warn!(%error, "routes to the other nodes are not up to date");
                        failed = true;
                    }
                }
            }
            let retry = tokio::time::sleep(RETRY);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = changed.notified() => break,
                    () = &mut retry, if failed => break,
                    _ = look.tick() => {
                        if self.look_at_uplink(&mut lost).await {
                            // Routes went with the device.
                            applied = None;
                            break;
                        }
                    }
                    () = stop.cancelled() => break,
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        if sweeper.await.is_err() {
            error!("the flow table's sweeper failed");
        }
    }

    /// Follows the uplink: gone, back, another device with the node's address. Whether it was
    /// changed.
    pub async fn look_at_uplink(&self, lost: &mut bool) -> bool {
        let uplink = match find_uplink(&self.netlink, &self.config).await {
            Ok(uplink) => uplink,
            Err(error) => {
                if !*lost {
                    error!(
                        %error,
                        "the uplink is gone: until it is back, nothing outside reaches this node's NodePorts and load \
                         balancer addresses, and its pods reach neither other nodes nor the outside"
                    );
                }
                *lost = true;
                return false;
            }
        };
        *lost = false;
        if uplink.index == self.datapath.uplink() {
            return false;
        }
        match self.datapath.set_uplink(uplink.index, uplink.mac) {
            Ok(()) => {
                info!(uplink = uplink.name, "the uplink is another device now");
                true
            }
            Err(error) => {
                error!(uplink = uplink.name, %error, "the new uplink carries no Service traffic yet");
                false
            }
        }
    }

    /// Makes routes and networks those of these Nodes, this one among them.
    pub async fn set_nodes(&self, nodes: &[Arc<Node>]) -> Result<(), NetworkError> {
        let plan = self.plan(nodes);
        if let Some(ranges) = &plan.own_ranges {
            self.pods.set_ranges(ranges.clone()).await;
        }
        self.apply(&plan).await
    }

    /// The node's own addresses in the tunnel, and the programs on its device.
    async fn enter_tunnel(&self, device: u32, ranges: &[IpNet]) -> Result<(), NetworkError> {
        let ips: Vec<IpAddr> = ranges.iter().filter_map(tunnel::own_address).collect();
        for ip in &ips {
            self.netlink
                .add_address(device, IpNet::from(*ip))
                .await
                .map_err(other)?;
        }
        let keeps_client = self
            .config
            .node_ips
            .first()
            .is_some_and(|ip| tunnel::keeps_client(*ip));
        self.datapath
            .set_tunnel(device, &ips, keeps_client)
            .map_err(other)
    }

    async fn apply(&self, plan: &RoutePlan) -> Result<(), NetworkError> {
        if let (Some(device), Some(ranges)) = (self.tunnel, &plan.own_ranges) {
            self.enter_tunnel(device, ranges).await?;
        }
        self.datapath
            .set_networks(&plan.cluster, &plan.services, &plan.tunnelled)
            .map_err(other)?;
        if let Some(device) = self.tunnel {
            tunnel::set_peers(&self.netlink, device, &plan.peers)
                .await
                .map_err(other)?;
        }
        let wanted: BTreeSet<IpNet> = plan.routes.iter().map(|route| route.destination).collect();
        for route in &plan.routes {
            self.netlink.set_route(route).await.map_err(other)?;
        }
        for (destination, message) in self.netlink.own_routes().await.map_err(other)? {
            // Full prefixes are pods'; they go with their interface.
            if destination.prefix_len() < destination.max_prefix_len()
                && !wanted.contains(&destination)
            {
                self.netlink.remove_route(message).await.map_err(other)?;
            }
        }
        Ok(())
    }
}

/// A router takes no advertisements of others, unless it is told to: the node's own default route may come from one.
fn forward_ipv6(uplink: &str) -> std::io::Result<()> {
    let setting = format!("net/ipv6/conf/{uplink}/accept_ra");
    let accepts = std::fs::read_to_string(format!("/proc/sys/{setting}"));
    if accepts.is_ok_and(|value| value.trim() == "1") {
        write_sysctl(&setting, "2")?;
    }
    write_sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Removes what this node's network put into the kernel: links, programs, maps, interfaces, routes.
pub async fn cleanup(config: &NodeNetworkConfig) -> Result<(), NetworkError> {
    let netlink = Netlink::open().map_err(other)?;
    let state_file = config.state_dir.join("pod-network.json");
    let ipam = super::ipam::Ipam::open(&state_file).map_err(other)?;
    for (_, lease) in ipam.leases() {
        if let Some(interface) = netlink.interface(&lease.interface).await.map_err(other)? {
            netlink.remove(interface.index).await.map_err(other)?;
        }
    }
    for (_, message) in netlink.own_routes().await.map_err(other)? {
        netlink.remove_route(message).await.map_err(other)?;
    }
    tunnel::remove_device(&netlink).await.map_err(other)?;
    skep_datapath::cleanup(&config.bpf_dir).map_err(other)?;
    match std::fs::remove_file(&state_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(other(error)),
        _ => Ok(()),
    }
}

/// Ranges that overlap would lead packets astray, silently.
fn check_ranges(config: &NodeNetworkConfig) -> Result<(), NetworkError> {
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    for pods in &config.cluster_cidrs {
        for services in &config.service_cidrs {
            if overlap(pods, services) {
                return Err(NetworkError::Other(format!(
                    "the range of pods, {pods}, and that of Services, {services}, overlap: see --cluster-cidr and \
                     --service-cidr"
                )));
            }
        }
    }
    for ip in &config.node_ips {
        let ranges = config.cluster_cidrs.iter().chain(&config.service_cidrs);
        for range in ranges {
            if range.contains(ip) {
                return Err(NetworkError::Other(format!(
                    "the node's address {ip} is one of {range}, which belongs to pods or Services: see --cluster-cidr \
                     and --service-cidr"
                )));
            }
        }
    }
    Ok(())
}

async fn find_uplink(
    netlink: &Netlink,
    config: &NodeNetworkConfig,
) -> Result<super::netlink::Interface, NetworkError> {
    let interfaces = netlink.interfaces().await.map_err(other)?;
    let found = if let Some(name) = &config.uplink {
        interfaces
            .into_iter()
            .find(|interface| interface.name == *name)
    } else {
        let mut index = None;
        for ip in &config.node_ips {
            if index.is_none() {
                index = netlink.interface_with(*ip).await.map_err(other)?;
            }
        }
        interfaces
            .into_iter()
            .find(|interface| Some(interface.index) == index)
    };
    found.ok_or_else(|| {
        NetworkError::Other(match &config.uplink {
            Some(name) => format!("the uplink {name} does not exist; see --uplink"),
            None => format!(
                "no interface holds {:?}; see --node-ip and --uplink",
                config.node_ips
            ),
        })
    })
}

async fn sweep(datapath: Arc<Datapath>, stop: CancellationToken) {
    let mut clashes = 0;
    loop {
        clashes = look_for_clashes(&datapath, clashes);
        let pause = if datapath.last_sweep().is_high() {
            HASTY_SWEEP
        } else {
            SWEEP
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let datapath = datapath.clone();
        match tokio::task::spawn_blocking(move || datapath.sweep_flows()).await {
            Ok(Ok(sweep)) if sweep.percent >= 90 => {
                warn!(
                    entries = sweep.entries,
                    limit = sweep.limit,
                    percent = sweep.percent,
                    "the flow table is nearly full"
                );
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "the flow table cannot be swept"),
            Err(error) => warn!(%error, "the flow table's sweep failed"),
        }
    }
}

/// Says once, for each look, that another machine answers for what this node answers for. Returns
/// how often that has happened.
fn look_for_clashes(datapath: &Datapath, before: u64) -> u64 {
    let counts = match datapath.reason_counts() {
        Ok(counts) => counts,
        Err(error) => {
            warn!(%error, "counters cannot be read");
            return before;
        }
    };
    let now = counts
        .iter()
        .find(|count| count.reason == Reason::AddressClash)
        .map_or(0, |count| count.count);
    if now > before {
        warn!(
            times = now - before,
            "another machine on the link claims an address of a load balancer that this node answers for: some \
             connections to it go there"
        );
    }
    now
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RoutePlan {
    /// Sorted by destination; one route a destination.
    routes: Vec<Route>,
    cluster: Vec<IpNet>,
    services: Vec<IpNet>,
    /// Of `cluster`, what is behind the tunnel, and which node there has it.
    tunnelled: Vec<(IpNet, IpAddr)>,
    peers: Vec<Peer>,
    /// This node's `spec.podCIDRs`, once it has some.
    own_ranges: Option<Vec<IpNet>>,
    /// Ranges that two nodes have, as a sentence begins.
    clashes: Vec<String>,
}

/// Natively routed, the other nodes are neighbours, or the network between them knows pod addresses.
/// Through a tunnel they are outside the cluster's network: nobody there knows a pod's address.
fn plan_routes<'a>(
    own_name: &str,
    cluster_cidrs: &[IpNet],
    service_cidrs: &[IpNet],
    tunnel: Option<u32>,
    nodes: impl Iterator<Item = &'a Node>,
) -> RoutePlan {
    let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
    for net in cluster_cidrs.iter().chain(service_cidrs) {
        let route = Route {
            destination: *net,
            next: NextHop::Unreachable,
            metric: UNREACHABLE_METRIC,
        };
        routes.insert(*net, route);
    }
    let mut cluster: BTreeSet<IpNet> = cluster_cidrs.iter().copied().collect();
    let mut own_ranges = None;
    let mut owners: BTreeMap<IpNet, &str> = BTreeMap::new();
    let mut clashes = Vec::new();
    let mut tunnelled = Vec::new();
    let mut peers = Vec::new();
    for node in nodes {
        let ips = internal_ips(node);
        let own = node.metadata.name.as_deref() == Some(own_name);
        if tunnel.is_none() || own {
            cluster.extend(ips.iter().map(|ip| IpNet::from(*ip)));
        }
        let ranges = pod_cidrs(node);
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for range in &ranges {
            if let Some(other) = owners.insert(*range, name) {
                clashes.push(format!("nodes {other} and {name} both have {range}"));
            }
        }
        cluster.extend(ranges.iter().copied());
        if own {
            if !ranges.is_empty() {
                own_ranges = Some(ranges);
            }
            continue;
        }
        if let (Some(_), Some(first)) = (tunnel, ips.first()) {
            tunnelled.extend(ranges.iter().map(|range| (*range, *first)));
            peers.push(Peer {
                node: *first,
                next_hops: ips.clone(),
            });
        }
        for range in ranges {
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == range.addr().is_ipv4();
            if let Some(via) = ips.iter().find(same_family) {
                let next = match tunnel {
                    Some(interface) => NextHop::Tunnel {
                        via: *via,
                        interface,
                    },
                    None => NextHop::Gateway {
                        via: *via,
                        interface: None,
                    },
                };
                routes.insert(
                    range,
                    Route {
                        destination: range,
                        next,
                        metric: 0,
                    },
                );
            }
        }
    }
    RoutePlan {
        routes: routes.into_values().collect(),
        cluster: cluster.into_iter().collect(),
        services: service_cidrs.to_vec(),
        tunnelled,
        peers,
        own_ranges,
        clashes,
    }
}

fn internal_ips(node: &Node) -> Vec<IpAddr> {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    addresses
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let cidrs = match &spec.pod_cidrs {
        Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
        _ => spec.pod_cidr.clone().into_iter().collect(),
    };
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> NetworkError {
    let error = error.into();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    NetworkError::Other(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn node(name: &str, ip: &str, cidr: Option<&str>) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": cidr.map(|cidr| serde_json::json!({"podCIDR": cidr, "podCIDRs": [cidr]})),
            "status": {"addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": ip},
            ]},
        }))
        .unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn routes_lead_to_the_other_nodes_only() {
        let nodes = [
            node("node1", "10.89.0.1", Some("10.244.0.0/24")),
            node("node2", "10.89.0.2", Some("10.244.1.0/24")),
            node("node3", "10.89.0.3", None),
        ];
        let plan = plan_routes(
            "node1",
            &[net("10.244.0.0/16")],
            &[net("10.96.0.0/16")],
            None,
            nodes.iter(),
        );
        let via = NextHop::Gateway {
            via: "10.89.0.2".parse().unwrap(),
            interface: None,
        };
        assert_eq!(
            plan.routes,
            [
                Route {
                    destination: net("10.96.0.0/16"),
                    next: NextHop::Unreachable,
                    metric: UNREACHABLE_METRIC
                },
                Route {
                    destination: net("10.244.0.0/16"),
                    next: NextHop::Unreachable,
                    metric: UNREACHABLE_METRIC
                },
                Route {
                    destination: net("10.244.1.0/24"),
                    next: via,
                    metric: 0
                },
            ]
        );
        assert_eq!(plan.own_ranges, Some(vec![net("10.244.0.0/24")]));
        assert!(
            plan.cluster.contains(&net("10.89.0.3/32")),
            "a node is inside: {plan:?}"
        );
    }

    #[test]
    fn ranges_that_two_nodes_have_are_named() {
        let nodes = [
            node("node1", "10.89.0.1", Some("10.244.0.0/24")),
            node("node2", "10.89.0.2", Some("10.244.0.0/24")),
        ];
        let plan = plan_routes("node1", &[], &[], None, nodes.iter());
        assert_eq!(
            plan.clashes,
            ["nodes node1 and node2 both have 10.244.0.0/24"]
        );
    }

    #[test]
    fn ranges_must_not_overlap() {
        let check = |ip: &str, pods: &str, services: &str| {
            check_ranges(&NodeNetworkConfig {
                node_name: "node1".into(),
                uplink: None,
                node_ips: vec![ip.parse().unwrap()],
                state_dir: PathBuf::new(),
                bpf_dir: PathBuf::new(),
                cgroup: PathBuf::new(),
                cluster_cidrs: vec![net(pods)],
                service_cidrs: vec![net(services)],
                way: Way::Native,
                tc: TcHook::Auto,
                xdp: XdpMode::Off,
            })
            .map_err(|error| error.to_string())
        };
        assert_eq!(check("192.0.2.1", "10.244.0.0/16", "10.96.0.0/16"), Ok(()));
        let error = check("10.244.3.1", "10.244.0.0/16", "10.96.0.0/16").unwrap_err();
        assert!(
            error.contains("10.244.3.1 is one of 10.244.0.0/16"),
            "{error}"
        );
        let error = check("192.0.2.1", "10.0.0.0/8", "10.96.0.0/16").unwrap_err();
        assert!(error.contains("overlap"), "{error}");
    }

    #[test]
    fn nodes_behind_a_tunnel_are_outside() {
        let nodes = [
            node("node1", "10.89.1.1", Some("10.244.0.0/24")),
            node("node2", "10.89.2.1", Some("10.244.1.0/24")),
        ];
        let plan = plan_routes(
            "node1",
            &[net("10.244.0.0/16")],
            &[net("10.96.0.0/16")],
            Some(7),
            nodes.iter(),
        );
        let far: IpAddr = "10.89.2.1".parse().unwrap();
        let next = NextHop::Tunnel {
            via: far,
            interface: 7,
        };
        assert!(
            plan.routes
                .iter()
                .any(|route| route.destination == net("10.244.1.0/24") && route.next == next)
        );
        assert_eq!(plan.tunnelled, [(net("10.244.1.0/24"), far)]);
        assert_eq!(plan.peers.len(), 1);
        assert!(plan.cluster.contains(&net("10.89.1.1/32")));
        assert!(!plan.cluster.contains(&net("10.89.2.1/32")), "masqueraded");
    }
}
