//! Loading, pinning, attaching; the datapath of one node as one value.
//!
//! ```text
//! BPF_DIR/maps/NAME-v1   maps, each by the version of its layout
//! BPF_DIR/links/NAME     links
//! ```

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::MapData;
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use parking_lot::Mutex;
use skep_ebpf_common::flow::{FlowHash, MAX_FLOWS, buckets_for};
use skep_ebpf_common::node::*;
use skep_ebpf_common::policy::{MAX_IDENTITIES, MAX_RULES};
use skep_ebpf_common::reason::MAX_REASONS;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, LAYOUTS};

use crate::clsact::Side;
use crate::counters::{Counters, ReasonCount, ServiceCount};
use crate::error::Error;
use crate::events::EventReader;
use crate::flows::{FlowEntry, FlowTable, Sweep, now};
use crate::links::{Links, TcHook, remove_filters};
use crate::memory::{BackendArray, FlowBuckets, SlotArray};
use crate::pins::{FORMER_FLOWS, Pins};
use crate::pods::{NodeTables, PodLink};
use crate::policy::{PolicyState, PolicyTables};
use crate::programs::{PacketResult, ProgramCost, Programs, SOCKET_HOOKS, SOCKET_RELEASE};
use crate::services::ServiceTables;
use crate::sys::{AttachType, Target, give_back_memory, netns_cookie, send_frames};
use crate::table::{Plain, Table, possible_cpus};
use crate::xdp::{self, XdpMode, XdpState};

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/skep-programs"));

/// Sizes of the tables that users of large clusters may want to change. A table that exists keeps
/// its size until `cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the flow table for each family; every translated connection has two. 128 to 256
    /// bytes each of IPv4 and 160 of IPv6.
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

/// The loaded programs and their tables. Dropping it leaves everything pinned and working.
pub struct Datapath {
    programs: Programs,
    /// Held as long as this agent runs the node's network.
    _lock: Flock<File>,
    /// The pin of the ring of flow events.
    events: PathBuf,
    uplink: AtomicU32,
    links: Links,
    xdp_mode: XdpMode,
    /// Of the present uplink.
    xdp: Mutex<XdpState>,
    services: Mutex<ServiceTables>,
    node: NodeTables,
    policy: PolicyTables,
    flows: FlowTable,
    last_sweep: Mutex<Sweep>,
    counters: Counters,
    affinities: Table<AffinityKey, Affinity>,
}

impl Datapath {
    /// Loads the programs over the pinned maps of a predecessor, if there are any, and attaches
    /// them in the place of its programs. Call it inside the node's network namespace.
    pub fn open(config: &DatapathConfig) -> Result<Self, Error> {
        check_kernel()?;
        let lock = lock(&config.bpf_dir)?;
        let pins = Pins::open(&config.bpf_dir)?;
        let links = Links::new(config.bpf_dir.join("links"), config.tc)?;
        // Answers may be in other buckets there.
        let former_buckets = pins.carry_over("FLOWS4", 1)?;

        let has_set_retval = u32::from(kernel_at_least(5, 18));
        let mut loader = EbpfLoader::new();
        // The kernel's own types, which no program refers to: ten megabytes that would lie among what stays.
        loader.btf(None);
        for (name, version) in LAYOUTS {
            loader.map_pin_path(name, pins.path(name, version));
        }
        loader
            .override_global("HAS_SET_RETVAL", &has_set_retval, true)
            .map_max_entries("FLOWS4", buckets_for(config.limits.flows))
            .map_max_entries("FLOWS6", config.limits.flows)
            .map_max_entries("FRONTENDS", config.limits.frontends)
            .map_max_entries("SLOTS", config.limits.slots)
            .map_max_entries("BACKENDS", config.limits.backends);
        let mut ebpf = loader
            .load(PROGRAMS)
            .map_err(|error| Error::Load(Box::new(error)))?;
        let programs = Programs::load(&mut ebpf)?;
        drop(loader);

        let slots = table_fd(&ebpf, "SLOTS")?;
        let backends = table_fd(&ebpf, "BACKENDS")?;
        let mut backends = BackendArray::new(backends, max_entries(&ebpf, "BACKENDS")?)
            .map_err(|error| Error::kernel("map into memory", "BACKENDS", error))?;
        if let Some(former) = pins.former("BACKENDS", 1)? {
            backends.take_over(&former, pins.former("BACKEND_COUNTS", 1)?)?;
        }
        let services = ServiceTables::adopt(
            table(&ebpf, "FRONTENDS", config.limits.frontends)?,
            SlotArray::new(slots, max_entries(&ebpf, "SLOTS")?)
                .map_err(|error| Error::kernel("map into memory", "SLOTS", error))?,
            backends,
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
        if let Some(former) = pins.former("NETNS", 1)? {
            node.migrate_netns(&former)?;
        }
        let policy = PolicyTables {
            rules: table(&ebpf, "RULES", MAX_RULES)?,
            identities: table(&ebpf, "IDENTITIES", MAX_IDENTITIES)?,
        };
        if let Some(former) = pins.former("IDENTITIES", 1)? {
            policy.migrate_identities(&former)?;
        }
        let flows = flow_table(&ebpf)?;
        let former_flows = pins.former(FORMER_FLOWS, 1)?;
        if let Some(former) = &former_flows {
            flows.take_over(former)?;
        }
        if former_buckets || former_flows.is_some() {
            flows.settle()?;
        }
        let affinities = table(&ebpf, "AFFINITIES", MAX_AFFINITIES)?;
        let counters = Counters {
            reasons: table(&ebpf, "REASONS", MAX_REASONS)?,
            services: table(&ebpf, "SERVICE_COUNTERS", MAX_SERVICES)?,
            cpus: possible_cpus()
                .map_err(|error| Error::file("read", "/sys/devices/system/cpu/possible", error))?,
        };
        drop(ebpf);
        let datapath = Self {
            programs,
            _lock: lock,
            events: pins.current("EVENTS"),
            uplink: AtomicU32::new(0),
            links,
            xdp_mode: config.xdp,
            xdp: Mutex::new(XdpState::off("there is no uplink")),
            services: Mutex::new(services),
            node,
            policy,
            affinities,
            flows,
            last_sweep: Mutex::new(Sweep::default()),
            counters,
        };

        datapath.configure(config)?;
        datapath.attach_sockets(&config.cgroup)?;
        if former_buckets {
            // Pods' first, which find what the uplink's make.
            datapath.replace_device_programs()?;
        }
        if let Some(ifindex) = config.uplink_ifindex {
            datapath.set_uplink(ifindex, config.uplink_mac)?;
        }
        if let Some(former) = &former_flows {
            // All programs must look where the others do; and what has begun meanwhile is moved, too.
            datapath.replace_device_programs()?;
            datapath.flows.take_over(former)?;
        }
        if former_buckets || former_flows.is_some() {
            datapath.flows.settle()?;
        }
        // No program of ours is left that uses them, but those of pods, which hold on to their own
        // until they are replaced.
        pins.remove_former()?;
        // Loading takes the kernel's description of all its types, and leaves nothing of it.
        give_back_memory();
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
            kernel.host_netns_cookie = cookie;
            // Who listened to events was a predecessor's guest.
            kernel.flags &= !(config_flags::MASQUERADE | config_flags::EVENTS);
            if config.masquerade {
                kernel.flags |= config_flags::MASQUERADE;
            }
        })
    }

    fn attach_sockets(&self, cgroup: &Path) -> Result<(), Error> {
        let folder = File::open(cgroup).map_err(|error| Error::file("open", cgroup, error))?;
        let release = (SOCKET_RELEASE, AttachType::SockRelease);
        for (name, attach_type) in [release].into_iter().chain(SOCKET_HOOKS) {
            let fd = self.programs.fd(name)?;
            self.links
                .attach(name, fd, &Target::Cgroup(folder.as_fd()), attach_type)?;
        }
        Ok(())
    }

    /// Whether XDP handles what it can of the uplink's traffic.
    pub fn xdp(&self) -> XdpState {
        self.xdp.lock().clone()
    }

    /// Makes this device the one towards the other nodes and the world, in the place of a former
    /// one.
    pub fn set_uplink(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), Error> {
        self.node.update_config(|kernel| {
            kernel.uplink_ifindex = ifindex;
            kernel.uplink_mac = mac;
        })?;
        self.uplink.store(ifindex, Ordering::Relaxed);
        let own = format!("uplink-{ifindex}-");
        for name in self.links.names()? {
            if name.starts_with("uplink-") && !name.starts_with(&own) {
                self.links.detach(&name)?;
            }
        }
        self.attach_pair("uplink", ifindex, "from_net", "to_net")?;
        // After tc, which takes what XDP leaves.
        *self.xdp.lock() = match &self.programs.xdp_refused {
            Some(why) => XdpState::off(why),
            None => xdp::attach(&self.programs, &self.links, ifindex, self.xdp_mode)
                .unwrap_or_else(|error| XdpState::off(error.to_string())),
        };
        Ok(())
    }

    fn attach_pair(
        &self,
        kind: &str,
        ifindex: u32,
        ingress: &str,
        egress: &str,
    ) -> Result<(), Error> {
        for (side, program) in [(Side::Ingress, ingress), (Side::Egress, egress)] {
            let fd = self.programs.fd(program)?;
            self.links.attach_tc(kind, ifindex, side, fd)?;
        }
        Ok(())
    }

    /// Attaches the pod programs to the host end of its veth pair and makes the pod known.
    /// Repeating it is harmless.
    pub fn attach_pod(&self, ips: &[IpAddr], link: &PodLink) -> Result<(), Error> {
        self.attach_pair("pod", link.ifindex, "from_pod", "to_pod")?;
        self.node.add_pod(ips, link)
    }

    /// Gives every pod and tunnel that a predecessor attached this agent's programs, at once.
    fn replace_device_programs(&self) -> Result<(), Error> {
        for name in self.links.names()? {
            let mut words = name.split('-');
            let (kind, ifindex) = (words.next(), words.next());
            let Some(ifindex) = ifindex.and_then(|index| index.parse().ok()) else {
                continue;
            };
            // One whose device has gone is forgotten later, by who knows what there should be.
            let _ = match kind {
                Some("pod") => self.attach_pair("pod", ifindex, "from_pod", "to_pod"),
                Some("tunnel") => self.attach_pair("tunnel", ifindex, "from_net", "to_net"),
                _ => Ok(()),
            };
        }
        Ok(())
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
    pub fn set_announced(&self, ips: &[IpAddr]) -> Result<(), Error> {
        let added = self.node.set_announced(ips)?;
        self.announce(&added)
    }

    /// Index of the device towards the other nodes; 0 without one.
    pub fn uplink(&self) -> u32 {
        self.uplink.load(Ordering::Relaxed)
    }

    /// Says on the link that these addresses are here: a gratuitous ARP request each (RFC 5227
    /// §3) or an unsolicited neighbour advertisement (RFC 4861 §7.2.6), which replaces what the
    /// neighbours remember of another node.
    pub fn announce(&self, ips: &[IpAddr]) -> Result<(), Error> {
        let config = self.node.config.get(&0)?.unwrap_or_default();
        if ips.is_empty() || config.uplink_ifindex == 0 {
            return Ok(());
        }
        let frames: Vec<Vec<u8>> = ips
            .iter()
            .map(|ip| match ip {
                IpAddr::V4(ip) => gratuitous_arp(config.uplink_mac, *ip).to_vec(),
                IpAddr::V6(ip) => unsolicited_advertisement(config.uplink_mac, *ip).to_vec(),
            })
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
        self.programs.try_packet(program, ifindex, frame, repeat)
    }

    /// The ring that the programs write flow events to. One reader: what it has taken is gone.
    ///
    /// # Errors
    /// When the pin cannot be opened.
    pub fn events(&self) -> Result<EventReader, Error> {
        EventReader::open(&self.events)
    }

    /// Whether somebody reads the events, and of how many new connections one is told of.
    pub fn set_events(&self, sample: Option<u32>) -> Result<(), Error> {
        self.node.update_config(|kernel| {
            kernel.flags &= !config_flags::EVENTS;
            if let Some(sample) = sample {
                kernel.flags |= config_flags::EVENTS;
                kernel.event_sample = sample;
            }
        })
    }

    /// How often each program has run and for how long, as far as the kernel has counted: while
    /// `kernel.bpf_stats_enabled` is 1.
    pub fn program_costs(&self) -> Result<Vec<ProgramCost>, Error> {
        self.programs.costs()
    }

    pub(crate) fn node_tables(&self) -> &NodeTables {
        &self.node
    }

    pub(crate) fn policy_tables(&self) -> &PolicyTables {
        &self.policy
    }

    pub(crate) fn affinities(&self) -> &Table<AffinityKey, Affinity> {
        &self.affinities
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

/// The first kernel that these programs are made for; older ones lack helpers that they call.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

fn check_kernel() -> Result<(), Error> {
    let (major, minor) = OLDEST_KERNEL;
    if kernel_at_least(major, minor) {
        return Ok(());
    }
    let found = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Err(Error::Kernel {
        action: "run eBPF programs on",
        object: format!("Linux {}", found.trim()),
        source: io::Error::other(format!("Linux {major}.{minor} or newer is needed")),
    })
}

/// How long a predecessor may take to end.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// Two agents would take each other's programs and entries away.
fn lock(bpf_dir: &Path) -> Result<Flock<File>, Error> {
    std::fs::create_dir_all(bpf_dir).map_err(|error| Error::file("create", bpf_dir, error))?;
    let deadline = std::time::Instant::now() + PREDECESSOR;
    let mut folder = File::open(bpf_dir).map_err(|error| Error::file("open", bpf_dir, error))?;
    loop {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if std::time::Instant::now() >= deadline => {
                return Err(Error::Occupied(bpf_dir.to_path_buf()));
            }
            Err((again, Errno::EWOULDBLOCK)) => folder = again,
            Err((_, errno)) => return Err(Error::file("lock", bpf_dir, errno.into())),
        }
        std::thread::sleep(Duration::from_millis(20));
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

/// An Ethernet frame: `ip` is at `mac`, said to all nodes of the link.
fn unsolicited_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> [u8; 86] {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut frame = [0; 86];
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac);
    // IPv6; version, 32 bytes of ICMPv6, a hop limit that no router leaves so.
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame[22..38].copy_from_slice(&ip.octets());
    frame[38..54].copy_from_slice(&ALL_NODES.octets());
    // An advertisement that overrides; its target, and where that is.
    frame[54] = 136;
    frame[58] = 0x20;
    frame[62..78].copy_from_slice(&ip.octets());
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..86].copy_from_slice(&mac);
    // RFC 8200 §8.1: both addresses, the length and the protocol, then the message.
    let mut sum = 32u32 + 58;
    for pair in frame[22..].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[56..58].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
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

/// What a predecessor has spread by a seed stays where it is.
fn flow_table(ebpf: &Ebpf) -> Result<FlowTable, Error> {
    let buckets = max_entries(ebpf, "FLOWS4")?;
    let hashes: Table<u32, FlowHash> = table(ebpf, "FLOW_HASH", 1)?;
    let mut hash = hashes.get(&0)?.unwrap_or_default();
    if hash.seed == 0 {
        hash.seed = RandomState::new().hash_one(buckets) | 1;
    }
    hash.mask = buckets.saturating_sub(1);
    hashes.set(&0, &hash)?;
    let v4 = FlowBuckets::new(table_fd(ebpf, "FLOWS4")?, buckets, hash)
        .map_err(|error| Error::kernel("map into memory", "FLOWS4", error))?;
    let limit = max_entries(ebpf, "FLOWS6")?;
    let v6 = table(ebpf, "FLOWS6", limit)?;
    Ok(FlowTable { v4, v6, limit })
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
