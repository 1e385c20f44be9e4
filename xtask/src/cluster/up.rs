//! `cargo xtask up`: from whatever state this machine is in to a running cluster. Every step looks first what is there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use super::network::{Machine, Topology};
use super::place::Place;
use super::process::{Supervised, wait_for};
use super::supervisor::Spec;
use super::{DEFAULT_NAME, Node, SPLIT_ROLES, State, Store, kubeconfig, network, quick_start};
use crate::command::{find, program};
use crate::{build, progress, setup, workspace};

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many nodes; more than one live in network namespaces
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub nodes: u8,
    /// Put even a single node into a namespace with no way out of this machine
    #[arg(long)]
    pub isolated: bool,
    /// Where the control plane keeps its objects
    #[arg(long, value_enum, default_value = "redb")]
    pub store: Store,
    /// Where stores and nodes keep their data [default: target/clusters/NAME/data]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Several clusters live side by side under different names
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Run the API server, the scheduler and the controllers as processes of their own
    #[arg(long)]
    pub split: bool,
    /// Seconds without a heartbeat after which a node counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 40)]
    pub node_monitor_grace_period: u32,
    /// Addresses for LoadBalancer Services, of the nodes' own network; may be given several times
    #[arg(long, value_name = "CIDR")]
    pub load_balancer_cidr: Vec<String>,
    /// How pods of other nodes are reached: native, or vxlan
    #[arg(long, value_name = "WAY", default_value = "native", value_parser = ["native", "vxlan"])]
    pub pod_network: String,
    /// Give nodes, pods and Services IPv6 addresses too; for nodes in namespaces
    #[arg(long)]
    pub dual_stack: bool,
    /// Stop once the nodes are ready
    #[arg(long)]
    pub no_quick_start: bool,
    /// Take the binaries in target/release as they are
    #[arg(long)]
    pub no_build: bool,
}

pub const POD_RANGE: &str = "10.244.0.0/16";
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// Of a dual-stack cluster, beside those of IPv4: unique local addresses (RFC 4193).
pub const POD_RANGE_V6: &str = "fd00:10:244::/56";
pub const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";
/// The number of the client outside.
const OUTSIDE: usize = 200;
pub const CLUSTER_DNS: &str = "10.96.0.10";
const API_PORT: u16 = 6443;

const API_READY: Duration = Duration::from_secs(60);
const NODES_READY: Duration = Duration::from_secs(120);
const LOG_LINES: usize = 15;

pub fn run(options: &Options) -> Result<()> {
    super::check_name(&options.name)?;
    setup::run()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster's namespaces, cgroups and eBPF programs need root: run this as root");
    }
    if !options.no_build {
        build::run()?;
    }
    let state = plan(options)?;
    claim(&state)?;
    state.write()?;

    make_network(&state)?;
    start_control_plane(&state, options)?;
    start_nodes(&state, options)?;
    if !state.isolated {
        let file = kubeconfig::merge(&state.kubeconfig())?;
        progress::note(&format!(
            "context {} is the current one of {}",
            kubeconfig::context(&state.name),
            file.display()
        ));
    }
    if options.no_quick_start {
        return Ok(());
    }
    quick_start::run(&state)
}

/// What the cluster shall look like: what it looks like already, where it exists.
fn plan(options: &Options) -> Result<State> {
    let existing = State::read(&options.name)?;
    if let Some(existing) = &existing
        && (existing.isolated != options.isolated
            || existing.store != options.store
            || existing.split != options.split
            || existing.dual_stack != options.dual_stack)
    {
        bail!(
            "the cluster {} exists with other options (isolated: {}, store: {}, split: {}, dual stack: {}): remove it \
             with `cargo xtask down --name {0}` or give the new one another --name",
            existing.name,
            existing.isolated,
            existing.store.name(),
            existing.split,
            existing.dual_stack,
        );
    }
    let name = &options.name;
    let in_namespaces = options.isolated || options.nodes > 1;
    if options.dual_stack && !in_namespaces {
        bail!("--dual-stack is for nodes in namespaces: add --isolated, or more --nodes");
    }
    let subnet = existing
        .as_ref()
        .filter(|state| state.network_namespace.is_some())
        .and_then(|state| state.control_address.rsplit_once('.'))
        .map_or_else(
            || free_subnet(options.isolated),
            |(subnet, _)| Ok(subnet.to_owned()),
        )?;
    let control_address = if in_namespaces {
        format!("{subnet}.1")
    } else {
        network::host_address()?.context(
            "this machine has no IPv4 address towards a network; `--isolated` makes a cluster without one",
        )?
    };
    let data_directory = match &options.data_dir {
        Some(directory) => std::path::absolute(directory)?,
        None => super::directory(name).join("data"),
    };
    let existing_nodes = existing.as_ref().map_or(0, |state| state.nodes.len());
    let nodes = (1..=existing_nodes.max(usize::from(options.nodes)))
        .map(|number| {
            let node = format!("node{number}");
            Node {
                address: if in_namespaces {
                    format!("{subnet}.{}", 10 + number)
                } else {
                    control_address.clone()
                },
                address_v6: options.dual_stack.then(|| network::address_v6(10 + number)),
                namespace: in_namespaces.then(|| super::namespace(name, &node)),
                cgroup: super::cgroup(name).join(&node),
                bpf_directory: super::bpf_directory(name).join(&node),
                state_directory: data_directory.join(&node),
                name: node,
            }
        })
        .collect();
    Ok(State {
        name: name.clone(),
        isolated: options.isolated,
        store: options.store,
        split: options.split,
        dual_stack: options.dual_stack,
        data_directory,
        api_port: match &existing {
            Some(state) => state.api_port,
            None => free_port()?,
        },
        control_address,
        network_namespace: in_namespaces.then(|| super::namespace(name, "net")),
        outside_namespace: in_namespaces.then(|| super::namespace(name, "outside")),
        nodes,
    })
}

/// Isolated clusters do not see each other, so all have the same addresses. The others share the root namespace.
fn free_subnet(isolated: bool) -> Result<String> {
    if isolated {
        return Ok("192.168.88".to_owned());
    }
    let taken = crate::command::line("ip -4 -o addr show").output()?;
    (89..=250)
        .map(|third| format!("192.168.{third}"))
        .find(|subnet| !taken.contains(&format!(" {subnet}.")))
        .context("every network from 192.168.89.0/24 to 192.168.250.0/24 is taken on this machine")
}

/// The usual port if it is free, else any.
fn free_port() -> Result<u16> {
    let usual = TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT));
    let listener = usual.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?.port())
}

/// Says on this machine whose the name is; fails if it is another checkout's.
fn claim(state: &State) -> Result<()> {
    let ours = state.directory();
    let file = super::claim_file(&state.name);
    if let Ok(owner) = std::fs::read_to_string(&file)
        && Path::new(owner.trim()) != ours
        && Path::new(owner.trim()).exists()
    {
        bail!(
            "a cluster called {} was made from another checkout ({}): use another --name, or run `cargo xtask down` there",
            state.name,
            owner.trim()
        );
    }
    std::fs::create_dir_all(&ours)?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, ours.to_string_lossy().as_bytes())?;
    Ok(())
}

fn make_network(state: &State) -> Result<()> {
    let (Some(bridge), Some(outside)) = (&state.network_namespace, &state.outside_namespace) else {
        return network::fence(&[POD_RANGE, SERVICE_RANGE]);
    };
    let subnet = state.control_address.trim_end_matches(".1");
    let outside_address = format!("{subnet}.{OUTSIDE}");
    let outside_v6 = state.outside_v6();
    let host_address = format!("{subnet}.254");
    let uplink = uplink_name(&state.name);
    let mut machines = vec![Machine {
        namespace: outside,
        address: &outside_address,
        address_v6: outside_v6.as_deref(),
    }];
    for node in &state.nodes {
        if let Some(namespace) = &node.namespace {
            machines.push(Machine {
                namespace,
                address: &node.address,
                address_v6: node.address_v6.as_deref(),
            });
        }
    }
    let topology = Topology {
        network: bridge,
        machines,
        gateway: &state.control_address,
        uplink: (!state.isolated).then_some((&uplink, &host_address)),
    };
    if network::exists(bridge) {
        return network::create(&topology);
    }
    progress::step(
        &format!("making {} namespaces on a bridge", topology.machines.len()),
        || network::create(&topology),
    )
}

impl State {
    /// The IPv6 address of the client outside, in a dual-stack cluster.
    pub fn outside_v6(&self) -> Option<String> {
        self.dual_stack.then(|| network::address_v6(OUTSIDE))
    }
}

fn both(state: &State, v4: &str, v6: &str) -> String {
    if state.dual_stack {
        format!("{v4},{v6}")
    } else {
        v4.to_owned()
    }
}

fn pod_ranges(state: &State) -> String {
    both(state, POD_RANGE, POD_RANGE_V6)
}

fn service_ranges(state: &State) -> String {
    both(state, SERVICE_RANGE, SERVICE_RANGE_V6)
}

/// A link's name has at most 15 bytes.
pub(super) fn uplink_name(cluster: &str) -> String {
    let name = format!("skep-{cluster}");
    if name.len() <= 15 {
        return name;
    }
    // FNV-1a: stable, and two clusters with the same 32 bits are unlikely enough.
    let hash = cluster.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("skep-{hash:08x}")
}

fn start_control_plane(state: &State, options: &Options) -> Result<()> {
    let place = Place {
        namespace: state.network_namespace.clone(),
        cgroup: None,
    };
    let data = state.data_directory.join("control");
    std::fs::create_dir_all(&data)?;
    let mut shared = words([
        ("--service-cidr", service_ranges(state)),
        ("--cluster-cidr", pod_ranges(state)),
        (
            "--node-monitor-grace-period",
            options.node_monitor_grace_period.to_string(),
        ),
    ]);
    for pool in &options.load_balancer_cidr {
        shared.extend(words([("--load-balancer-cidr", pool.clone())]));
    }
    let mut arguments = words([
        ("--data-dir", data.display().to_string()),
        ("--listen", format!("{}:{API_PORT}", state.control_address)),
        ("--advertise-address", state.control_address.clone()),
        ("--store", state.store.name().to_owned()),
    ]);
    arguments.extend(shared.clone());
    if state.store == Store::Etcd {
        let endpoint = start_etcd(state, &place)?;
        arguments.extend(words([("--etcd-endpoints", endpoint)]));
    }
    if state.split {
        arguments.extend(words([
            ("--roles", "api".to_owned()),
            ("--metrics-api", "true".to_owned()),
        ]));
    }
    let supervised = state.control();
    let log = state.log("control");
    if supervised.supervisor().is_none() {
        progress::note("starting the control plane");
    }
    let spec = Spec {
        program: workspace::binary("skep-control"),
        arguments,
        place,
        listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, state.api_port))),
        log: log.clone(),
        built: 0,
    };
    start(&supervised, spec.clone())?;
    let context = kubeconfig::context(&state.name);
    progress::step("waiting for the API server", || {
        wait_for("the API server", API_READY, || {
            let admin = data.join("admin.kubeconfig");
            if !admin.exists() {
                return Err(format!("no {} yet\n{}", admin.display(), tail(&log)));
            }
            let local = format!("https://127.0.0.1:{}", state.api_port);
            kubeconfig::rewrite(&admin, &state.kubeconfig(), &local, &context)
                .map_err(|error| format!("{error:#}"))?;
            quick_start::client(state)
                .args(["get", "namespace", "default"])
                .output()
                .map_err(|error| format!("{error:#}\n{}", tail(&log)))
        })
    })?;
    if !state.split {
        return Ok(());
    }
    // They live in the control plane's namespace, where the loopback of the administrator's file is another one.
    let kubeconfig = data.join("components.kubeconfig");
    kubeconfig::rewrite(
        &data.join("admin.kubeconfig"),
        &kubeconfig,
        &format!("https://{}:{API_PORT}", state.control_address),
        &kubeconfig::context(&state.name),
    )?;
    for role in SPLIT_ROLES {
        let mut arguments = words([
            ("--data-dir", data.display().to_string()),
            ("--roles", role.to_owned()),
            ("--kubeconfig", kubeconfig.display().to_string()),
        ]);
        arguments.extend(shared.clone());
        let spec = Spec {
            arguments,
            listen: None,
            log: state.log(role),
            ..spec.clone()
        };
        start(&state.process(role), spec)?;
    }
    Ok(())
}

fn start_etcd(state: &State, place: &Place) -> Result<String> {
    // Isolated clusters have a loopback of their own; on the host network each cluster needs ports of its own.
    let (client, peer) = if state.network_namespace.is_some() {
        (2379, 2380)
    } else {
        (
            state.api_port.wrapping_add(10_000),
            state.api_port.wrapping_add(10_001),
        )
    };
    let endpoint = format!("http://127.0.0.1:{client}");
    let peers = format!("http://127.0.0.1:{peer}");
    let data = state.data_directory.join("etcd");
    start(
        &state.etcd(),
        Spec {
            program: find("etcd").context("etcd is not installed")?,
            arguments: words([
                ("--name", "skep".to_owned()),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", endpoint.clone()),
                ("--advertise-client-urls", endpoint.clone()),
                ("--listen-peer-urls", peers.clone()),
                ("--initial-advertise-peer-urls", peers.clone()),
                ("--initial-cluster", format!("skep={peers}")),
            ]),
            place: place.clone(),
            listen: None,
            log: state.log("etcd"),
            built: 0,
        },
    )?;
    Ok(endpoint)
}

fn start_nodes(state: &State, options: &Options) -> Result<()> {
    let bootstrap = state.directory().join("bootstrap.kubeconfig");
    let written = state.data_directory.join("control/bootstrap.kubeconfig");
    wait_for(
        "the control plane to write a kubeconfig for nodes",
        API_READY,
        || {
            if written.exists() {
                Ok(())
            } else {
                Err(format!(
                    "{} is not there\n{}",
                    written.display(),
                    tail(&state.log(if state.split {
                        "controllers"
                    } else {
                        "control"
                    }))
                ))
            }
        },
    )?;
    kubeconfig::rewrite(
        &written,
        &bootstrap,
        &format!("https://{}:{API_PORT}", state.control_address),
        &kubeconfig::context(&state.name),
    )?;
    for node in &state.nodes {
        std::fs::create_dir_all(&node.state_directory)?;
        start(
            &state.agent(node),
            Spec {
                program: workspace::binary("skep-agent"),
                arguments: words([
                    (
                        "--kubeconfig",
                        node.state_directory
                            .join("kubeconfig")
                            .display()
                            .to_string(),
                    ),
                    ("--bootstrap-kubeconfig", bootstrap.display().to_string()),
                    ("--node-name", node.name.clone()),
                    (
                        "--node-ip",
                        match &node.address_v6 {
                            Some(v6) => format!("{},{v6}", node.address),
                            None => node.address.clone(),
                        },
                    ),
                    ("--cluster-cidr", pod_ranges(state)),
                    ("--service-cidr", service_ranges(state)),
                    ("--state-dir", node.state_directory.display().to_string()),
                    (
                        "--log-dir",
                        node.state_directory.join("log").display().to_string(),
                    ),
                    ("--cgroup-parent", node.cgroup.display().to_string()),
                    ("--bpf-dir", node.bpf_directory.display().to_string()),
                    ("--cluster-dns", CLUSTER_DNS.to_owned()),
                    ("--pod-network", options.pod_network.clone()),
                    // The disk and the images are the machine's own: a full disk is no reason to stop a cluster to try
                    // things on, nor to remove what somebody else has pulled.
                    ("--eviction-hard", "memory.available<100Mi".to_owned()),
                    ("--image-gc-high-threshold", "100".to_owned()),
                ]),
                place: node.place(),
                listen: None,
                log: state.log(&node.name),
                built: 0,
            },
        )?;
    }
    progress::step(
        &format!("waiting for {} node(s) to be ready", state.nodes.len()),
        || {
            wait_for("every node to be ready", NODES_READY, || {
                let list =
                    quick_start::get(state, &["nodes"]).map_err(|error| format!("{error:#}"))?;
                let ready = readiness(&list);
                let late: Vec<&Node> = state
                    .nodes
                    .iter()
                    .filter(|node| ready.get(&node.name) != Some(&true))
                    .collect();
                match late.first() {
                    None => Ok(()),
                    Some(first) => Err(format!(
                        "ready: {ready:?}; the log of {} ends with\n{}",
                        first.name,
                        tail(&state.log(&first.name))
                    )),
                }
            })
        },
    )
}

fn readiness(nodes: &Value) -> BTreeMap<String, bool> {
    let items = nodes["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items
        .iter()
        .filter_map(|node| {
            let name = node["metadata"]["name"].as_str()?.to_owned();
            let conditions = node["status"]["conditions"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|each| each["type"] == "Ready" && each["status"] == "True");
            Some((name, ready))
        })
        .collect()
}

/// Starts a program, or restarts it if its file is a newer one.
fn start(supervised: &Supervised, spec: Spec) -> Result<()> {
    let built = std::fs::metadata(&spec.program)
        .and_then(|file| file.modified())
        .with_context(|| format!("{} is not there", spec.program.display()))?;
    let built = built
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    supervised.start(&Spec { built, ..spec })
}

fn words<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    program("tail")
        .arg("-n")
        .arg(LOG_LINES.to_string())
        .arg(log)
        .output()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit() {
        assert_eq!(uplink_name("default"), "skep-default");
        let long = uplink_name("a-rather-long-name");
        assert!(long.len() <= 15, "{long}");
        assert_ne!(long, uplink_name("a-rather-long-name2"));
    }

    #[test]
    fn only_a_true_ready_condition_is_ready() {
        let node = |name: &str, status: &str| {
            serde_json::json!({
                "metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            })
        };
        let ready =
            readiness(&serde_json::json!({"items": [node("a", "True"), node("b", "Unknown"), {}]}));
        assert_eq!(
            ready,
            BTreeMap::from([("a".to_owned(), true), ("b".to_owned(), false)])
        );
    }
}
