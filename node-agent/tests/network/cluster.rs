//! Two nodes and an outside on one bridge, each a network namespace; nothing else.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::StreamExt;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use skep_agent::dns::{Dns, DnsConfig, Reverse, Zone};
use skep_agent::endpoints::Slice;
use skep_agent::network::node::cleanup;
use skep_agent::network::{
    NodeNetwork, NodeNetworkConfig, PodIdentity, PodNetwork, PodNetworkSpec, Way,
};
use skep_agent::proxy::{ProxyConfig, program_static};
use skep_agent::services::Service;
use skep_client::Informer;
use skep_datapath::services::{Endpoint, Forwarding, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, DatapathConfig, Limits, TcHook, XdpMode, XdpState};

use tokio_util::sync::CancellationToken;

use crate::role::{Place, Process, sandbox};

pub(crate) struct TestCluster {
    id: String,
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    bpf: PathBuf,
    pub(crate) nodes: Vec<TestNode>,
}

pub(crate) struct TestNode {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) ip6: IpAddr,
    pub(crate) range: IpNet,
    range6: IpNet,
    netns: String,
    cgroup: PathBuf,
    config: NodeNetworkConfig,
    agent: Option<Agent>,
}

/// The agent's network half on threads inside the node's namespace.
struct Agent {
    runtime: tokio::runtime::Runtime,
    network: Arc<NodeNetwork>,
}

pub(crate) struct TestPod {
    pub(crate) ip: IpAddr,
    pub(crate) ip6: IpAddr,
    pub(crate) uid: String,
    pub(crate) place: Place,
    pub(crate) sandbox: Process,
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split_whitespace().nth(1).unwrap())
}

impl TestCluster {
    /// `None`, after saying why, where the test cannot run.
    pub(crate) fn start(count: u8) -> Option<Self> {
        Self::start_with(count, Way::Native)
    }

    /// With XDP in the driver of each node's uplink.
    pub(crate) fn start_with_xdp(count: u8) -> Option<Self> {
        Self::start_as(count, Way::Native, TcHook::Auto, XdpMode::Native)
    }

    /// As a kernel before 6.6 has it.
    pub(crate) fn start_with_clsact(count: u8) -> Option<Self> {
        Self::start_as(count, Way::Native, TcHook::Clsact, XdpMode::Off)
    }

    pub(crate) fn start_with(count: u8, way: Way) -> Option<Self> {
        Self::start_as(count, way, TcHook::Auto, XdpMode::Off)
    }

    /// With a tunnel the nodes share no link: a router is between them, and it knows no pod.
    fn start_as(count: u8, way: Way, tc: TcHook, xdp: XdpMode) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root for namespaces and eBPF programs");
            return None;
        }
        // Short: it is part of interface names.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("dpt{}x{number}", std::process::id() % 100_000);
        let mut cluster = Self {
            folder: tempfile::tempdir().unwrap(),
            cgroup: cgroup2().join(format!("skep-{id}")),
            bpf: Path::new("/sys/fs/bpf").join(format!("skep-{id}")),
            nodes: Vec::new(),
            id,
        };
        std::fs::create_dir(&cluster.cgroup).unwrap();
        let switch = cluster.netns("net");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        let alone = way == Way::Vxlan;
        if alone {
            ip(&format!(
                "netns exec {switch} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
            ));
        }
        cluster.plug("out", 200, false);
        cluster.plug("out2", 201, false);
        if alone {
            ip(&format!("-n {switch} addr add 10.89.0.254/24 dev br0"));
            ip(&format!(
                "-n {switch} addr add fd00:89::254/64 dev br0 nodad"
            ));
            for client in ["out", "out2"] {
                let netns = cluster.netns(client);
                ip(&format!("-n {netns} route add default via 10.89.0.254"));
                ip(&format!("-n {netns} route add default via fd00:89::254"));
            }
        }
        for number in 1..=count {
            cluster.add_node(number, way, tc, xdp);
        }
        for node in &mut cluster.nodes {
            node.start_agent();
        }
        cluster.connect_nodes();
        Some(cluster)
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// A namespace with an `eth0` on the bridge.
    fn plug(&self, name: &str, number: u8, alone: bool) {
        let (netns, switch) = (self.netns(name), self.netns("net"));
        let port = format!("p{number}");
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        add_veth(&netns, &switch, number);
        if alone {
            ip(&format!(
                "-n {switch} addr add 10.89.{number}.254/24 dev {port}"
            ));
            ip(&format!("-n {switch} link set {port} up"));
            let subnet = format!("fd00:89:{number}:");
            ip(&format!(
                "-n {switch} addr add {subnet}:254/64 dev {port} nodad"
            ));
            ip(&format!("-n {netns} addr add 10.89.{number}.1/24 dev eth0"));
            ip(&format!("-n {netns} addr add {subnet}:1/64 dev eth0 nodad"));
            ip(&format!("-n {netns} link set eth0 up"));
            ip(&format!(
                "-n {netns} route add default via 10.89.{number}.254"
            ));
            ip(&format!("-n {netns} route add default via {subnet}:254"));
            return;
        }
        join_bridge(&netns, &switch, number);
    }

    fn add_node(&mut self, number: u8, way: Way, tc: TcHook, xdp: XdpMode) {
        let name = format!("node{number}");
        let alone = way == Way::Vxlan;
        self.plug(&name, number, alone);
        let cgroup = self.cgroup.join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        let address = if alone {
            IpAddr::from([10, 89, number, 1])
        } else {
            IpAddr::from([10, 89, 0, number])
        };
        let ip6: IpAddr = if alone {
            format!("fd00:89:{number}::1")
        } else {
            format!("fd00:89::{number}")
        }
        .parse()
        .unwrap();
        let config = NodeNetworkConfig {
            node_name: name.clone(),
            uplink: None,
            node_ips: vec![address, ip6],
            state_dir: self.folder.path().join(&name),
            bpf_dir: self.bpf.join(&name),
            cgroup: cgroup.clone(),
            cluster_cidrs: nets(["10.244.0.0/16", "fd00:244::/32"]),
            service_cidrs: nets(["10.96.0.0/16", "fd00:96::/112"]),
            way,
            tc,
            xdp,
        };
        self.nodes.push(TestNode {
            netns: format!("/run/netns/{}", self.netns(&name)),
            name,
            ip: address,
            ip6,
            range: format!("10.244.{number}.0/24").parse().unwrap(),
            range6: format!("fd00:244:{number}::/64").parse().unwrap(),
            cgroup,
            config,
            agent: None,
        });
    }

    /// What the agents do when they see each other's Node.
    fn connect_nodes(&self) {
        let objects: Vec<_> = self.nodes.iter().map(TestNode::object).collect();
        for node in &self.nodes {
            let agent = node.agent.as_ref().unwrap();
            let (nodes, network) = (objects.clone(), agent.network.clone());
            // On a worker, which is in the node's namespace; `block_on` would poll here.
            let set = async { tokio::spawn(async move { network.set_nodes(&nodes).await }).await };
            agent.runtime.block_on(set).unwrap().unwrap();
        }
    }

    /// After an agent's restart.
    pub(crate) fn reconnect(&self) {
        self.connect_nodes();
    }

    pub(crate) fn outside(&self) -> Place {
        self.place_outside("out")
    }

    /// Another client with another address.
    pub(crate) fn second_outside(&self) -> Place {
        self.place_outside("out2")
    }

    /// A veth pair loses what XDP sends back at one end unless the other end has a program too
    /// (drivers/net/veth.c, `veth_xdp_flush`): gives the switch's ports ours, which pass everything.
    pub(crate) fn receive_returned_frames(&self) {
        let cgroup = self.cgroup.join("switch");
        std::fs::create_dir(&cgroup).unwrap();
        for node in 1..=self.nodes.len() {
            let netns = File::open(format!("/run/netns/{}", self.netns("net"))).unwrap();
            let (cgroup, bpf_dir) = (cgroup.clone(), self.bpf.join(format!("port{node}")));
            let attach = move || {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                let port = if_nametoindex(format!("p{node}").as_str()).unwrap();
                let config = DatapathConfig {
                    bpf_dir,
                    cgroup,
                    uplink_ifindex: Some(port),
                    uplink_mac: [0; 6],
                    node_ips: Vec::new(),
                    masquerade: false,
                    tc: TcHook::Auto,
                    xdp: XdpMode::Native,
                    limits: Limits::default(),
                };
                // The pins keep what it attaches.
                let datapath = Datapath::open(&config).unwrap();
                assert_eq!(datapath.xdp(), XdpState::Native);
            };
            std::thread::spawn(attach).join().unwrap();
        }
    }

    /// Takes a node's link away.
    pub(crate) fn unplug(&self, number: u8) {
        ip(&format!("-n {} link del p{number}", self.netns("net")));
    }

    /// Gives it another one, with the same addresses.
    pub(crate) fn plug_again(&self, number: u8) {
        let (netns, switch) = (self.netns(&format!("node{number}")), self.netns("net"));
        add_veth(&netns, &switch, number);
        join_bridge(&netns, &switch, number);
    }

    /// Makes the outside ask for every address anew.
    pub(crate) fn forget_neighbours(&self) {
        let netns = self.netns("out");
        ip(&format!("-n {netns} neigh flush dev eth0"));
    }

    fn place_outside(&self, name: &str) -> Place {
        Place {
            netns: format!("/run/netns/{}", self.netns(name)),
            cgroup: None,
        }
    }

    /// Programs the Service port on every node, as the proxy would.
    pub(crate) fn set_service(
        &self,
        name: &str,
        protocol: u8,
        frontends: &[FrontendAddress],
        backends: &[(IpAddr, u16)],
    ) {
        self.set_forwarded_service(name, protocol, frontends, backends, Forwarding::Auto);
    }

    pub(crate) fn set_forwarded_service(
        &self,
        name: &str,
        protocol: u8,
        frontends: &[FrontendAddress],
        backends: &[(IpAddr, u16)],
        forwarding: Forwarding,
    ) {
        for node in &self.nodes {
            let endpoints: Vec<Endpoint> = backends
                .iter()
                .map(|(ip, port)| Endpoint {
                    ip: *ip,
                    port: *port,
                    local: node.has(*ip),
                })
                .collect();
            let wanted = ServicePort {
                protocol,
                frontends: frontends.to_vec(),
                internal: endpoints.clone(),
                external: endpoints,
                forwarding,
                ..ServicePort::default()
            };
            node.datapath()
                .services()
                .lock()
                .set(name, &wanted)
                .unwrap();
        }
    }
}

fn add_veth(netns: &str, switch: &str, number: u8) {
    ip(&format!(
        "-n {switch} link add p{number} type veth peer name eth0 netns {netns}"
    ));
}

fn join_bridge(netns: &str, switch: &str, number: u8) {
    ip(&format!("-n {switch} link set p{number} master br0 up"));
    ip(&format!("-n {netns} addr add 10.89.0.{number}/24 dev eth0"));
    ip(&format!(
        "-n {netns} addr add fd00:89::{number}/64 dev eth0 nodad"
    ));
    ip(&format!("-n {netns} link set eth0 up"));
}

fn nets(texts: [&str; 2]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

impl TestNode {
    /// Whether the address is the node's or one of its pods'.
    fn has(&self, ip: IpAddr) -> bool {
        [self.ip, self.ip6].contains(&ip) || self.range.contains(&ip) || self.range6.contains(&ip)
    }

    fn object(&self) -> Arc<k8s_openapi::api::core::v1::Node> {
        let ranges = [self.range.to_string(), self.range6.to_string()];
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": self.name},
                "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": self.ip},
                    {"type": "InternalIP", "address": self.ip6},
                ]},
            }))
            .unwrap(),
        )
    }

    pub(crate) fn start_agent(&mut self) {
        let netns = File::open(&self.netns).unwrap();
        let config = self.config.clone();
        let agent = std::thread::spawn(move || {
            // The runtime's threads inherit the namespace of the thread that starts them.
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            // On a worker, whose namespace stays; `block_on` would poll here.
            let network = runtime
                .block_on(async { tokio::spawn(NodeNetwork::open(config)).await.unwrap() })
                .unwrap();
            Agent {
                network: Arc::new(network),
                runtime,
            }
        });
        self.agent = Some(agent.join().unwrap());
    }

    /// As `kill -9` does: nothing is undone.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.runtime.shutdown_background();
        }
    }

    pub(crate) fn datapath(&self) -> &skep_datapath::Datapath {
        &self.agent.as_ref().unwrap().network.datapath
    }

    /// On a thread of the agent's, which is in the node's namespace.
    pub(crate) fn run_in_netns<T: Send + 'static>(
        &self,
        run: impl FnOnce(&skep_datapath::Datapath) -> T + Send + 'static,
    ) -> T {
        let agent = self.agent.as_ref().unwrap();
        let network = agent.network.clone();
        agent.runtime.block_on(async {
            tokio::spawn(async move { run(&network.datapath) })
                .await
                .unwrap()
        })
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            netns: self.netns.clone(),
            cgroup: Some(self.cgroup.display().to_string()),
        }
    }

    pub(crate) fn attach(&self, uid: &str, pid: u32) -> Vec<IpAddr> {
        self.attach_with(uid, pid, PodNetworkSpec::default())
    }

    pub(crate) fn attach_with(&self, uid: &str, pid: u32, spec: PodNetworkSpec) -> Vec<IpAddr> {
        let agent = self.agent.as_ref().unwrap();
        let pods = agent.network.pods.clone();
        let identity = PodIdentity {
            namespace: "default".into(),
            name: format!("pod-{uid}"),
            uid: uid.into(),
        };
        let attached = agent.runtime.block_on(async {
            tokio::spawn(async move { pods.attach(&identity, pid, &spec).await })
                .await
                .unwrap()
        });
        attached.unwrap().ips
    }

    /// The agent's DNS server at the cluster DNS address, answering from these objects.
    pub(crate) fn serve_dns(&self, services: Vec<Service>, slices: Vec<Slice>) {
        let agent = self.agent.as_ref().unwrap();
        let cluster_dns = IpAddr::from([10, 96, 0, 10]);
        let config = DnsConfig {
            domain: "cluster.local".into(),
            node_ip: self.ip,
            port: 10_053,
            resolv_conf: "/nonexistent".into(),
            cluster_dns,
        };
        let reverse = Arc::new(Reverse::default());
        services
            .iter()
            .for_each(|service| reverse.set_service(service));
        let zone = Zone {
            services: Informer::fixed(services),
            slices: Informer::fixed(slices),
            reverse,
            domain: "cluster.local.".parse().unwrap(),
        };
        let bound = async { tokio::spawn(Dns::bind(config)).await.unwrap() };
        let dns = agent.runtime.block_on(bound).unwrap();
        let proxy = ProxyConfig {
            dns: Some((cluster_dns, dns.address())),
            ..ProxyConfig::default()
        };
        program_static(self.datapath(), &proxy).unwrap();
        agent
            .runtime
            .spawn(dns.serve(zone, CancellationToken::new()));
    }

    /// A view of the agent's: `trace` and others.
    pub(crate) fn view(&self, name: &str, query: &[(&str, &str)]) -> serde_json::Value {
        let query = query
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        self.agent
            .as_ref()
            .unwrap()
            .network
            .pods
            .view(name, &query)
            .unwrap()
    }

    /// Events from now on, collected until `stop` is cancelled.
    pub(crate) fn follow(&self, stop: &CancellationToken) -> std::sync::mpsc::Receiver<Value> {
        let agent = self.agent.as_ref().unwrap();
        let pods = agent.network.pods.clone();
        let lines = agent
            .runtime
            .block_on(async { tokio::spawn(async move { pods.follow(None).unwrap() }).await });
        let mut lines = lines.unwrap().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let stop = stop.clone();
        agent.runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    line = lines.next() => match line {
                        Some(line) => {
                            let _ = sender.send(serde_json::from_str(&line).unwrap());
                        }
                        None => return,
                    },
                }
            }
        });
        receiver
    }

    /// One look at the uplink, as the agent's loop does: whether it was changed.
    pub(crate) fn look_at_uplink(&self, lost: &mut bool) -> bool {
        let agent = self.agent.as_ref().unwrap();
        let network = agent.network.clone();
        let mut state = *lost;
        let look = async {
            tokio::spawn(async move {
                let changed = network.look_at_uplink(&mut state).await;
                (changed, state)
            })
            .await
        };
        let (changed, state) = agent.runtime.block_on(look).unwrap();
        *lost = state;
        changed
    }

    /// `skep-agent cleanup`, as far as the network goes.
    pub(crate) fn clean_up(&mut self) {
        let agent = self.agent.take().unwrap();
        drop(agent.network);
        let config = self.config.clone();
        let cleaned = async { tokio::spawn(async move { cleanup(&config).await }).await };
        agent.runtime.block_on(cleaned).unwrap().unwrap();
        agent.runtime.shutdown_background();
    }

    /// What `ip ARGUMENTS` says in the node's namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.netns))
            .arg("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn bpf_dir(&self) -> &Path {
        &self.config.bpf_dir
    }

    pub(crate) fn detach(&self, uid: &str) {
        let agent = self.agent.as_ref().unwrap();
        agent
            .runtime
            .block_on(agent.network.pods.detach(uid))
            .unwrap();
    }

    pub(crate) fn add_pod(&self, uid: &str) -> TestPod {
        self.add_pod_with(uid, PodNetworkSpec::default())
    }

    pub(crate) fn add_pod_with(&self, uid: &str, spec: PodNetworkSpec) -> TestPod {
        let sandbox = sandbox(&self.cgroup);
        let ips = self.attach_with(uid, sandbox.pid(), spec);
        let place = Place {
            netns: format!("/proc/{}/ns/net", sandbox.pid()),
            cgroup: Some(self.cgroup.display().to_string()),
        };
        TestPod {
            ip: ips[0],
            ip6: ips[1],
            uid: uid.into(),
            place,
            sandbox,
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill_agent();
            let _ = skep_datapath::cleanup(&node.config.bpf_dir);
            // What runs in the folder ends with its `Process`; stragglers are moved out.
            let _ = std::fs::remove_dir(&node.cgroup);
        }
        for port in 1..=self.nodes.len() {
            let _ = skep_datapath::cleanup(&self.bpf.join(format!("port{port}")));
        }
        let _ = std::fs::remove_dir_all(&self.bpf);
        let _ = std::fs::remove_dir(self.cgroup.join("switch"));
        let names: Vec<String> = ["net", "out", "out2"]
            .map(str::to_string)
            .into_iter()
            .chain(self.nodes.iter().map(|node| node.name.clone()))
            .collect();
        for name in names {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.netns(&name)])
                .output();
        }
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}
