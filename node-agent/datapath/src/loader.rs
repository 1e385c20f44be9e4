//! Loading, pinning, attaching; the datapath of one node as one value.
//!
//! ```text
//! BPF_DIR/maps-v1/NAME   maps, by layout version
//! BPF_DIR/links/NAME     links
//! ```

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::MapData;
use aya::programs::{
    CgroupSockAddr, Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use parking_lot::Mutex;
use skep_ebpf_common::Address;
use skep_ebpf_common::flow::MAX_FLOWS;
use skep_ebpf_common::node::*;
use skep_ebpf_common::policy::{MAX_IDENTITIES, MAX_RULES};
use skep_ebpf_common::reason::MAX_REASONS;
use skep_ebpf_common::service::*;

use crate::clsact::Side;
use crate::counters::{Counters, ReasonCount, ServiceCount};
use crate::error::Error;
use crate::flows::{FlowEntry, FlowTable, Sweep, now};
use crate::links::{Links, TcHook, remove_filters};
use crate::memory::{BackendArray, SlotArray};
use crate::pods::{NodeTables, PodLink};
use crate::policy::{PolicyState, PolicyTables};
use crate::services::ServiceTables;
use crate::sys::{AttachType, Target, netns_cookie, send_frames};
use crate::table::{Plain, Table, possible_cpus};
use crate::xdp::{self, XdpMode, XdpState};

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/skep-programs"));

/// Sizes of the tables that users of large clusters may want to change. A table that exists keeps
/// its size until `cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the flow table; every translated connection has two. About 150 bytes each.
    pub flows: u32,
    pub frontends: u32,
    /// A power of two.
    pub slots: u32,
    pub backends: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: MAX_FLOWS,
            frontends: MAX_FRONTENDS,
            slots: MAX_SLOTS,
            backends: MAX_BACKENDS,
        }
    }
}

#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Where maps and links are pinned; on a bpffs (see [`ensure_bpffs`]).
    pub bpf_dir: PathBuf,
    /// The cgroup2 folder whose processes get the socket hooks.
    pub cgroup: PathBuf,
    /// Towards the other nodes and the world; `None` in tests without one.
    pub uplink_ifindex: Option<u32>,
    /// What ARP requests for announced addresses are answered with.
    pub uplink_mac: [u8; 6],
    /// Every address of the node; the first of each family is the source of translated flows.
    pub node_ips: Vec<IpAddr>,
    /// Hide pods behind the node's address when they leave the cluster.
    pub masquerade: bool,
    pub tc: TcHook,
    pub xdp: XdpMode,
    pub limits: Limits,
}

/// What a packet program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the stack, or on its way out.
    Pass,
    Drop,
    /// Past the stack, into a pod or to a neighbour.
    Redirect,
    /// Out of the interface that it came by (XDP).
    Return,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketResult {
    pub verdict: Verdict,
    /// As the program left it.
    pub frame: Vec<u8>,
    /// Mean of the runs.
    pub duration: Duration,
}

/// The loaded programs and their tables. Dropping it leaves everything pinned and working.
pub struct Datapath {
    ebpf: Mutex<Ebpf>,
    links: Links,
    /// On the uplink.
    xdp: XdpState,
    services: Mutex<ServiceTables>,
    node: NodeTables,
    policy: PolicyTables,
    flows: FlowTable,
    last_sweep: Mutex<Sweep>,
    counters: Counters,
}

const SOCKET_HOOKS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("sendmsg4", AttachType::Sendmsg4),
    ("recvmsg4", AttachType::Recvmsg4),
    ("getpeername4", AttachType::Getpeername4),
    ("connect6", AttachType::Connect6),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername6", AttachType::Getpeername6),
];

pub(crate) const XDP_PROGRAM: &str = "xdp_net";

const PACKET_PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "from_net", "to_net"];

const MAPS: [&str; 19] = [
    "FRONTENDS",
    "SLOTS",
    "BACKENDS",
    "AFFINITIES",
    "SOURCE_RANGES",
    "SOCKETS",
    "FLOWS",
    "FRAGMENTS",
    "CONFIG",
    "PODS",
    "NODE_ADDRESSES",
    "ANNOUNCED",
    "NETWORKS",
    "NETNS",
    "RULES",
    "IDENTITIES",
    "REASONS",
    "SERVICE_COUNTERS",
    "EVENTS",
];

impl Datapath {
    /// Loads the programs over the pinned maps of a predecessor, if there are any, and attaches
    /// them in the place of its programs. Call it inside the node's network namespace.
    pub fn open(config: &DatapathConfig) -> Result<Self, Error> {
        let maps = config
            .bpf_dir
            .join(format!("maps-v{}", skep_ebpf_common::LAYOUT_VERSION));
        std::fs::create_dir_all(&maps).map_err(|error| Error::file("create", &maps, error))?;
        let links = Links::new(config.bpf_dir.join("links"), config.tc)?;

        let has_set_retval = u32::from(kernel_at_least(5, 18));
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        loader
            .override_global("HAS_SET_RETVAL", &has_set_retval, true)
            .map_max_entries("FLOWS", config.limits.flows)
            .map_max_entries("FRONTENDS", config.limits.frontends)
            .map_max_entries("SLOTS", config.limits.slots)
            .map_max_entries("BACKENDS", config.limits.backends);
        let mut ebpf = loader
            .load(PROGRAMS)
            .map_err(|error| Error::Load(Box::new(error)))?;
        for (name, _) in SOCKET_HOOKS {
            load::<CgroupSockAddr>(&mut ebpf, name, CgroupSockAddr::load)?;
        }
        for name in PACKET_PROGRAMS {
            load::<SchedClassifier>(&mut ebpf, name, SchedClassifier::load)?;
        }
        // Kernels before 5.18 refuse it; tc does without.
        let xdp_refused = load::<Xdp>(&mut ebpf, XDP_PROGRAM, Xdp::load).err();

        let slots = table_fd(&ebpf, "SLOTS")?;
        let backends = table_fd(&ebpf, "BACKENDS")?;
        let services = ServiceTables::adopt(
            table(&ebpf, "FRONTENDS", config.limits.frontends)?,
            SlotArray::new(slots, max_entries(&ebpf, "SLOTS")?)
                .map_err(|error| Error::kernel("map into memory", "SLOTS", error))?,
            BackendArray::new(backends, max_entries(&ebpf, "BACKENDS")?)
                .map_err(|error| Error::kernel("map into memory", "BACKENDS", error))?,
            table(&ebpf, "SOURCE_RANGES", MAX_SOURCE_RANGES)?,
        )?;
        let node = NodeTables {
            config: table(&ebpf, "CONFIG", 1)?,
            pods: table(&ebpf, "PODS", MAX_PODS)?,
            addresses: table(&ebpf, "NODE_ADDRESSES", MAX_NODE_ADDRESSES)?,
            announced: table(&ebpf, "ANNOUNCED", MAX_ANNOUNCED)?,
            networks: table(&ebpf, "NETWORKS", MAX_NETWORKS)?,
            netns: table(&ebpf, "NETNS", MAX_NETNS)?,
            writer: Mutex::new(()),
        };
        let policy = PolicyTables {
            rules: table(&ebpf, "RULES", MAX_RULES)?,
            identities: table(&ebpf, "IDENTITIES", MAX_IDENTITIES)?,
        };
        let flows = FlowTable(table(&ebpf, "FLOWS", max_entries(&ebpf, "FLOWS")?)?);
        let counters = Counters {
            reasons: table(&ebpf, "REASONS", MAX_REASONS)?,
            services: table(&ebpf, "SERVICE_COUNTERS", MAX_SERVICES)?,
            cpus: possible_cpus()
                .map_err(|error| Error::file("read", "/sys/devices/system/cpu/possible", error))?,
        };
        let mut datapath = Self {
            ebpf: Mutex::new(ebpf),
            links,
            xdp: XdpState::off("there is no uplink"),
            services: Mutex::new(services),
            node,
            policy,
            flows,
            last_sweep: Mutex::new(Sweep::default()),
            counters,
        };

        datapath.configure(config)?;
        datapath.attach_sockets(&config.cgroup)?;
        if let Some(ifindex) = config.uplink_ifindex {
            datapath.attach_uplink(ifindex)?;
            // After tc, which takes what XDP leaves.
            let attached = match xdp_refused {
                Some(error) => Err(error),
                None => xdp::attach(&datapath.ebpf.lock(), &datapath.links, ifindex, config.xdp),
            };
            datapath.xdp = attached.unwrap_or_else(|error| XdpState::off(error.to_string()));
        }
        Ok(datapath)
    }

    fn configure(&self, config: &DatapathConfig) -> Result<(), Error> {
        let first = |v4: bool| {
            config
                .node_ips
                .iter()
                .find(|ip| ip.is_ipv4() == v4)
                .map_or(Address::ANY, |ip| Address::from(*ip))
        };
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")
            .map_err(|error| Error::kernel("open", "a socket of the node", error))?;
        // Linux 5.14; without it 127.0.0.1:NodePort is not a Service.
        let cookie = netns_cookie(&socket).unwrap_or(0);
        self.node.set_addresses(&config.node_ips)?;
        self.node.update_config(|kernel| {
            kernel.node_v4 = first(true);
            kernel.node_v6 = first(false);
            kernel.uplink_ifindex = config.uplink_ifindex.unwrap_or(0);
            kernel.uplink_mac = config.uplink_mac;
            kernel.host_netns_cookie = cookie;
            kernel.flags &= !config_flags::MASQUERADE;
            if config.masquerade {
                kernel.flags |= config_flags::MASQUERADE;
            }
        })
    }

    fn attach_sockets(&self, cgroup: &Path) -> Result<(), Error> {
        let folder = File::open(cgroup).map_err(|error| Error::file("open", cgroup, error))?;
        let ebpf = self.ebpf.lock();
        for (name, attach_type) in SOCKET_HOOKS {
            let fd = program_fd(&ebpf, name)?;
            self.links
                .attach(name, fd, &Target::Cgroup(folder.as_fd()), attach_type)?;
        }
        Ok(())
    }

    /// Whether XDP handles what it can of the uplink's traffic.
    pub fn xdp(&self) -> &XdpState {
        &self.xdp
    }

    fn attach_uplink(&self, ifindex: u32) -> Result<(), Error> {
        // Links of a former uplink.
        let own = format!("uplink-{ifindex}-");
        for name in self.links.names()? {
            if name.starts_with("uplink-") && !name.starts_with(&own) {
                self.links.detach(&name)?;
            }
        }
        self.attach_pair("uplink", ifindex, "from_net", "to_net")
    }

    fn attach_pair(
        &self,
        kind: &str,
        ifindex: u32,
        ingress: &str,
        egress: &str,
    ) -> Result<(), Error> {
        let ebpf = self.ebpf.lock();
        for (side, program) in [(Side::Ingress, ingress), (Side::Egress, egress)] {
            let fd = program_fd(&ebpf, program)?;
            self.links.attach_tc(kind, ifindex, side, fd)?;
        }
        Ok(())
    }

    /// Attaches the pod programs to the host end of its veth pair and makes the pod known.
    /// Repeating it is harmless.
    pub fn attach_pod(&self, ips: &[IpAddr], link: &PodLink) -> Result<(), Error> {
        self.attach_pair("pod", link.ifindex, "from_pod", "to_pod")?;
        ips.iter().try_for_each(|ip| self.node.add_pod(*ip, link))
    }

    /// Gives a pod that a predecessor attached this agent's programs.
    pub fn update_pod_programs(&self, ifindex: u32) -> Result<(), Error> {
        self.attach_pair("pod", ifindex, "from_pod", "to_pod")
    }

    /// Forgets the pod. Its interface may be gone already.
    pub fn detach_pod(&self, ips: &[IpAddr], ifindex: u32) -> Result<(), Error> {
        for ip in ips {
            self.node.remove_pod(*ip)?;
        }
        for side in ["in", "out"] {
            self.links.detach(&format!("pod-{ifindex}-{side}"))?;
        }
        Ok(())
    }

    /// Addresses of the pods that the programs know.
    pub fn pod_ips(&self) -> Result<Vec<IpAddr>, Error> {
        self.node.pod_ips()
    }

    /// Forgets links of interfaces that are not in `live`.
    pub fn retain_pod_links(&self, live: &[u32]) -> Result<(), Error> {
        for name in self.links.names()? {
            let ifindex = name
                .strip_prefix("pod-")
                .and_then(|rest| rest.split('-').next())
                .and_then(|index| index.parse::<u32>().ok());
            if ifindex.is_some_and(|ifindex| !live.contains(&ifindex)) {
                self.links.detach(&name)?;
            }
        }
        Ok(())
    }

    /// Networks of the cluster (never masqueraded) and of Services, and those of the cluster's that
    /// are reached through the tunnel, with the node at its other end.
    pub fn set_networks(
        &self,
        cluster: &[IpNet],
        services: &[IpNet],
        tunnelled: &[(IpNet, IpAddr)],
    ) -> Result<(), Error> {
        self.node.set_networks(cluster, services, tunnelled)
    }

    /// Attaches the network programs to the tunnel's device. `ips` are the node's own addresses in
    /// the tunnel; `keeps_client` says that every node's device has a MAC of
    /// [`skep_ebpf_common::node::tunnel_mac`].
    pub fn set_tunnel(
        &self,
        ifindex: u32,
        ips: &[IpAddr],
        keeps_client: bool,
    ) -> Result<(), Error> {
        let own = format!("tunnel-{ifindex}-");
        for name in self.links.names()? {
            if name.starts_with("tunnel-") && !name.starts_with(&own) {
                self.links.detach(&name)?;
            }
        }
        self.node.add_addresses(ips)?;
        let first = |v4: bool| {
            ips.iter()
                .find(|ip| ip.is_ipv4() == v4)
                .map_or(Address::ANY, |ip| Address::from(*ip))
        };
        self.node.update_config(|kernel| {
            kernel.tunnel_ifindex = ifindex;
            kernel.tunnel_v4 = first(true);
            kernel.tunnel_v6 = first(false);
            kernel.flags &= !config_flags::TUNNEL_KEEPS_CLIENT;
            if keeps_client {
                kernel.flags |= config_flags::TUNNEL_KEEPS_CLIENT;
            }
        })?;
        self.attach_pair("tunnel", ifindex, "from_net", "to_net")
    }

    /// Makes these the Service addresses that this node answers for on its link, and tells the
    /// link about those that it did not answer for before.
    pub fn set_announced(&self, ips: &[Ipv4Addr]) -> Result<(), Error> {
        let added = self.node.set_announced(ips)?;
        self.announce(&added)
    }

    /// Says on the link that these addresses are here: a gratuitous ARP request each (RFC 5227
    /// §3), which replaces what the neighbours remember of another node.
    pub fn announce(&self, ips: &[Ipv4Addr]) -> Result<(), Error> {
        let config = self.node.config.get(&0)?.unwrap_or_default();
        if ips.is_empty() || config.uplink_ifindex == 0 {
            return Ok(());
        }
        let frames: Vec<[u8; 42]> = ips
            .iter()
            .map(|ip| gratuitous_arp(config.uplink_mac, *ip))
            .collect();
        send_frames(config.uplink_ifindex, &frames)
            .map_err(|error| Error::kernel("announce addresses on", "the uplink", error))
    }

    /// Runs a packet program over a frame as if it came by `ifindex`, with all its effects on the
    /// tables but without sending anything (`BPF_PROG_TEST_RUN`): for tests and for finding out
    /// what would happen to a packet.
    pub fn try_packet(
        &self,
        program: &str,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
    ) -> Result<PacketResult, Error> {
        /// `struct __sk_buff` up to `hwtstamp`; zero but for the interface.
        const CONTEXT_LEN: usize = 192;
        const IFINDEX: usize = 40;
        const TC_VERDICTS: &[(u32, Verdict)] = &[
            (0, Verdict::Pass),
            (2, Verdict::Drop),
            (7, Verdict::Redirect),
        ];
        const XDP_VERDICTS: &[(u32, Verdict)] = &[
            (1, Verdict::Drop),
            (2, Verdict::Pass),
            (3, Verdict::Return),
            (4, Verdict::Redirect),
        ];
        let refused = |detail: String| Error::Program {
            program: program.to_string(),
            detail,
        };
        let ebpf = self.ebpf.lock();
        let found = ebpf
            .program(program)
            .ok_or_else(|| refused("not built".into()))?;
        let mut output = vec![0u8; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            repeat: repeat.max(1),
            ..TestRunOptions::new()
        };
        let (result, verdicts) = match found {
            Program::SchedClassifier(classifier) => {
                let mut context = [0u8; CONTEXT_LEN];
                context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
                let options = TestRunOptions {
                    ctx_in: Some(&context),
                    ..options
                };
                (classifier.test_run(options), TC_VERDICTS)
            }
            Program::Xdp(program) => {
                // `struct xdp_md`: where the frame ends and the interface.
                let mut context = [0u8; 24];
                context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
                context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
                let options = TestRunOptions {
                    ctx_in: Some(&context),
                    ..options
                };
                (program.test_run(options), XDP_VERDICTS)
            }
            _ => return Err(refused("not a packet program".into())),
        };
        let result = result.map_err(|error| refused(last_words(&error)))?;
        output.truncate(result.data_size_out as usize);
        let verdict = verdicts
            .iter()
            .find(|(value, _)| *value == result.return_value)
            .map(|(_, verdict)| *verdict)
            .ok_or_else(|| refused(format!("verdict {}", result.return_value)))?;
        Ok(PacketResult {
            verdict,
            frame: output,
            duration: result.duration,
        })
    }

    /// Makes policy what `wanted` says; existing connections are judged by it too. Returns whether
    /// anything changed.
    pub fn set_policy(&self, wanted: &PolicyState) -> Result<bool, Error> {
        self.policy.apply(&self.node, wanted)
    }

    pub fn services(&self) -> &Mutex<ServiceTables> {
        &self.services
    }

    /// Removes flows that have been quiet for too long. Every few seconds.
    pub fn sweep_flows(&self) -> Result<Sweep, Error> {
        let sweep = self.flows.sweep(now()?)?;
        *self.last_sweep.lock() = sweep;
        Ok(sweep)
    }

    pub fn last_sweep(&self) -> Sweep {
        *self.last_sweep.lock()
    }

    /// UDP flows to these backends choose anew with their next datagram.
    pub fn forget_backends(&self, backends: &[(IpAddr, u16)]) -> Result<usize, Error> {
        self.flows.forget_backends(backends)
    }

    pub fn flow_entries(&self) -> Result<Vec<FlowEntry>, Error> {
        self.flows.list()
    }

    pub fn reason_counts(&self) -> Result<Vec<ReasonCount>, Error> {
        self.counters.reasons()
    }

    pub fn service_counts(&self) -> Result<Vec<ServiceCount>, Error> {
        let ids = self.services.lock().ids();
        ids.into_iter()
            .map(|(name, id)| {
                let counters = self.counters.service(id)?;
                Ok(ServiceCount {
                    name,
                    connections: counters.connections,
                    refused: counters.refused,
                })
            })
            .collect()
    }
}

/// Removes every pin below `bpf_dir`, and with the pins the programs and maps. Missing is success.
pub fn cleanup(bpf_dir: &Path) -> Result<(), Error> {
    remove_filters(&bpf_dir.join("links"))?;
    // Links first: no program may run over maps that are half gone.
    for folder in [bpf_dir.join("links"), bpf_dir.to_path_buf()] {
        match std::fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("remove", folder, error)),
        }
    }
    Ok(())
}

/// Makes sure that `folder` can be created on a bpffs: mounts one on `/sys/fs/bpf` if the system
/// has not done so.
pub fn ensure_bpffs(folder: &Path) -> Result<(), Error> {
    let existing = folder
        .ancestors()
        .find(|ancestor| ancestor.is_dir())
        .unwrap_or(Path::new("/"));
    let on_bpffs = |path: &Path| {
        statfs(path)
            .map(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
            .map_err(|errno| Error::file("look at", path, errno.into()))
    };
    if on_bpffs(existing)? {
        return Ok(());
    }
    let root = Path::new("/sys/fs/bpf");
    if !folder.starts_with(root) {
        return Err(Error::file(
            "pin below",
            folder,
            io::Error::other("not on a bpffs; mount one there or use a folder of /sys/fs/bpf"),
        ));
    }
    if !on_bpffs(root)? {
        nix::mount::mount(
            Some("bpffs"),
            root,
            Some("bpf"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|errno| Error::file("mount a bpffs on", root, errno.into()))?;
    }
    Ok(())
}

/// An Ethernet frame: who has `ip`, asked by `ip` itself.
fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // ARP; Ethernet, IPv4, their address lengths, a request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&ip.octets());
    frame[38..42].copy_from_slice(&ip.octets());
    frame
}

fn load<'a, P: 'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<(), Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let refused = |error: ProgramError| Error::Program {
        program: name.to_string(),
        detail: last_words(&error),
    };
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Program {
        program: name.into(),
        detail: "not built".into(),
    })?;
    load(program.try_into().map_err(refused)?).map_err(refused)
}

/// The verifier explains itself at the end.
fn last_words(error: &ProgramError) -> String {
    const LINES: usize = 25;
    let text = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            format!("{io_error}\n{verifier_log}")
        }
        other => other.to_string(),
    };
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

pub(crate) fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let missing = |detail: String| Error::Program {
        program: name.to_string(),
        detail,
    };
    let program = ebpf
        .program(name)
        .ok_or_else(|| missing("not built".into()))?;
    let fd = match program {
        Program::CgroupSockAddr(program) => program.fd(),
        Program::SchedClassifier(program) => program.fd(),
        Program::Xdp(program) => program.fd(),
        _ => return Err(missing("of an unexpected type".into())),
    };
    fd.map(|fd| fd.as_fd())
        .map_err(|error| missing(error.to_string()))
}

fn map_data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, Error> {
    use aya::maps::Map;
    match ebpf.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data),
        ) => Ok(data),
        _ => Err(Error::MissingMap(name.to_string())),
    }
}

fn table_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    map_data(ebpf, name).map(|data| data.fd().as_fd())
}

/// The size that the map has, which a predecessor may have chosen.
fn max_entries(ebpf: &Ebpf, name: &str) -> Result<u32, Error> {
    let info = map_data(ebpf, name)?
        .info()
        .map_err(|error| Error::kernel("look at", name, io::Error::other(error)))?;
    Ok(info.max_entries())
}

fn table<K: Plain, V: Plain>(
    ebpf: &Ebpf,
    name: &'static str,
    limit: u32,
) -> Result<Table<K, V>, Error> {
    let fd = table_fd(ebpf, name)?
        .try_clone_to_owned()
        .map_err(|error| Error::kernel("duplicate", name, error))?;
    Ok(Table::new(name, limit, fd))
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}
