//! Packets per second on one core, through XDP and tc, beside the least that a forwarding program
//! can do and beside hand-written nftables rules shaped like kube-proxy's. All variants take turns
//! in every round; a veth is not a network card, so the ratios count.
//!
//! ```text
//! generator ─► gen0 ═ up0 [XDP, tc, or nftables] ─► pod0 ═ eth0 of the sink: counted, dropped
//! ```
#![allow(unsafe_code, reason = "bpf(2)")]
#![allow(clippy::print_stdout, reason = "it prints a table")]

mod kernel;

use std::error::Error;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use kernel::{Hook, Sink};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use skep_datapath::layout::TCP;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{
    Datapath, DatapathConfig, Limits, Offload, PodLink, TcHook, XdpMode, cleanup, set_offload,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NODE: [u8; 4] = [192, 0, 2, 10];
/// Addresses of the one pod.
const PODS: [[u8; 4]; 2] = [[10, 244, 1, 5], [10, 244, 1, 6]];
/// Backends an address.
const PORTS: u32 = 50_000;
const NODE_PORT: u16 = 30_080;
const UPLINK: u32 = 102;
const POD_LINK: u32 = 103;
const GENERATOR: u32 = 104;
const ESTABLISHED: u32 = 1_000_000;
const OPENED: u32 = SLICE;
/// Frames sent at a stretch. Of many the quartile counts that others on the machine disturbed least.
const SLICE: u32 = 250_000;
/// Clients that take turns on established flows.
const CLIENTS: u32 = 1_024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    BareXdp,
    Xdp,
    BareTc,
    Tc,
    Nftables,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::BareXdp => "XDP redirect alone",
            Self::Xdp => "skep, XDP",
            Self::BareTc => "tc redirect alone",
            Self::Tc => "skep, tc",
            Self::Nftables => "nftables as kube-proxy's",
        }
    }
}

fn main() -> Result<()> {
    // Not disturbed by others on the machine, as far as that goes.
    kernel::take_precedence()?;
    let rounds = std::env::args()
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(10);
    let nft = Command::new("nft")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    let mut ways = vec![Way::BareXdp, Way::Xdp, Way::BareTc, Way::Tc];
    if nft {
        ways.push(Way::Nftables);
    }
    let mut table = Table::default();
    for round in 0..=rounds {
        for way in &ways {
            let place = Place::new()?;
            let run = Run::begin(&place, *way, 1)?;
            let name = way.name();
            let rate = run.established()?;
            let ns = run.program_ns()?;
            let opened = run.opened()?;
            drop(run);
            // The first round warms up.
            if round == 0 {
                continue;
            }
            table.add(&format!("{name}: established"), "M/s", rate);
            if let Some(ns) = ns {
                table.add(&format!("{name}: a program run"), "ns", ns);
            }
            if let Some(opened) = opened {
                table.add(&format!("{name}: new flows"), "M/s", opened);
            }
        }
        for (services, endpoints) in [(30_000, 1), (1, 100_000)] {
            for way in [Way::Xdp, Way::Tc] {
                let place = Place::new()?;
                let run = Run::begin_with(&place, way, services, endpoints)?;
                let rate = run.established()?;
                if round > 0 {
                    let name = format!(
                        "{}, {services} Services of {endpoints} backends: established",
                        way.name()
                    );
                    table.add(&name, "M/s", rate);
                }
            }
        }
    }
    table.print();
    Ok(())
}

#[derive(Default)]
struct Table(Vec<(String, &'static str, Vec<f64>)>);

impl Table {
    fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        match self.0.iter_mut().find(|(known, _, _)| known == name) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.0.push((name.into(), unit, vec![sample])),
        }
    }

    fn print(&mut self) {
        println!("{:<70} {:>8} {:>8} {:>8}", "", "median", "min", "max");
        for (name, unit, samples) in &mut self.0 {
            samples.sort_by(f64::total_cmp);
            let median = samples[samples.len() / 2];
            let (min, max) = (samples[0], samples[samples.len() - 1]);
            println!("{name:<70} {median:>8.2} {min:>8.2} {max:>8.2} {unit}");
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ip {arguments}: {message}").into());
    }
    Ok(())
}

/// Two network namespaces of this thread's own: the node's, where it is, and the pod's.
struct Place {
    sink: Sink,
    /// A namespace goes with the last that holds it.
    _pod: OwnedFd,
}

impl Place {
    fn new() -> Result<Self> {
        let mut cpus = CpuSet::new();
        cpus.set(1)?;
        // On a machine with one CPU it is the other one.
        let _ = sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus);
        unshare(CloneFlags::CLONE_NEWNET)?;
        let pod: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net")?.into();
        unshare(CloneFlags::CLONE_NEWNET)?;
        let node: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net")?.into();
        ip("link set lo up")?;
        ip(&format!(
            "link add gen0 index {GENERATOR} type veth peer name up0 index {UPLINK}"
        ))?;
        ip(&format!(
            "link add pod0 index {POD_LINK} type veth peer name eth0"
        ))?;
        ip("link set gen0 up")?;
        ip("link set up0 address 02:00:00:00:00:aa up")?;
        ip("addr add 192.0.2.10/24 dev up0")?;
        ip("route add default via 192.0.2.1")?;
        ip("neigh add 192.0.2.1 lladdr 02:00:00:00:00:99 dev up0")?;
        for name in ["up0", "eth0"] {
            set_offload(name, Offload::Gro, true)?;
        }
        let pod_path = format!("/proc/{}/fd/{}", std::process::id(), {
            use std::os::fd::AsRawFd;
            pod.as_raw_fd()
        });
        ip(&format!("link set eth0 netns {pod_path}"))?;
        ip("link set pod0 up")?;
        ip("addr add 10.244.1.1/24 dev pod0")?;
        ip("neigh add 10.244.1.5 lladdr 02:00:00:00:00:67 dev pod0")?;
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/up0/rp_filter", "0"),
        ] {
            std::fs::write(format!("/proc/sys/{name}"), value)?;
        }
        setns(pod.as_fd(), CloneFlags::CLONE_NEWNET)?;
        ip("link set eth0 address 02:00:00:00:00:67 up")?;
        set_offload("eth0", Offload::Gro, true)?;
        let sink = Sink::at(nix::net::if_::if_nametoindex("eth0")?)?;
        setns(node.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(Self { sink, _pod: pod })
    }
}

/// One way to the pod, set up.
struct Run<'a> {
    place: &'a Place,
    way: Way,
    _bare: Option<OwnedFd>,
    skep: Option<(Datapath, PathBuf, PathBuf)>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let Some((datapath, bpf, cgroup)) = self.skep.take() {
            drop(datapath);
            let _ = cleanup(&bpf);
            let _ = std::fs::remove_dir(&cgroup);
        }
    }
}

impl<'a> Run<'a> {
    fn begin(place: &'a Place, way: Way, services: u32) -> Result<Self> {
        Self::begin_with(place, way, services, 1)
    }

    fn begin_with(place: &'a Place, way: Way, services: u32, endpoints: u32) -> Result<Self> {
        let mut run = Self {
            place,
            way,
            _bare: None,
            skep: None,
        };
        match way {
            Way::BareXdp => run._bare = Some(kernel::bare_redirect(Hook::Xdp, UPLINK, POD_LINK)?),
            Way::BareTc => run._bare = Some(kernel::bare_redirect(Hook::Tc, UPLINK, POD_LINK)?),
            Way::Xdp | Way::Tc => run.start_skep(services, endpoints)?,
            Way::Nftables => nftables()?,
        }
        Ok(run)
    }

    fn start_skep(&mut self, services: u32, endpoints: u32) -> Result<()> {
        let id = format!("skep-bench-{}", std::process::id());
        let bpf = PathBuf::from("/sys/fs/bpf").join(&id);
        let cgroup = cgroup2()?.join(&id);
        std::fs::create_dir_all(&bpf)?;
        std::fs::create_dir_all(&cgroup)?;
        let datapath = Datapath::open(&DatapathConfig {
            bpf_dir: bpf.clone(),
            cgroup: cgroup.clone(),
            uplink_ifindex: Some(UPLINK),
            uplink_mac: [2, 0, 0, 0, 0, 0xaa],
            node_ips: vec![IpAddr::from(NODE)],
            masquerade: true,
            tc: TcHook::Auto,
            xdp: if self.way == Way::Xdp {
                XdpMode::Native
            } else {
                XdpMode::Off
            },
            limits: Limits {
                flows: 1 << 20,
                ..Limits::default()
            },
        })?;
        if self.way == Way::Xdp && !datapath.xdp().is_on() {
            return Err(format!("{:?}", datapath.xdp()).into());
        }
        datapath.set_networks(&["10.244.0.0/16".parse()?], &["10.96.0.0/16".parse()?], &[])?;
        let link = PodLink {
            ifindex: POD_LINK,
            mac: [2, 0, 0, 0, 0, 0x67],
            host_mac: [2, 0, 0, 0, 0, 0x68],
            netns_cookie: 1,
            takes_frames: true,
        };
        datapath.attach_pod(&PODS.map(IpAddr::from), &link)?;
        {
            let mut tables = datapath.services().lock();
            for number in 0..services {
                let ours = number == 0;
                let count = if ours { endpoints } else { 1 };
                let backends: Vec<Endpoint> = (0..count)
                    .map(|index| Endpoint {
                        ip: IpAddr::from(PODS[(index / PORTS) as usize]),
                        port: 8_080 + (index % PORTS) as u16,
                        local: true,
                    })
                    .collect();
                let address = if ours {
                    [0, 0, 0, 0]
                } else {
                    let [_, _, high, low] = number.to_be_bytes();
                    [203, 0, high, low]
                };
                let wanted = ServicePort {
                    protocol: TCP,
                    frontends: vec![FrontendAddress {
                        ip: IpAddr::from(address),
                        port: NODE_PORT,
                        external: true,
                        restricted: false,
                    }],
                    internal: backends.clone(),
                    external: backends,
                    ..ServicePort::default()
                };
                tables.set(&format!("bench/{number}"), &wanted)?;
            }
        }
        self.skep = Some((datapath, bpf, cgroup));
        Ok(())
    }

    /// Sends; millions a second that arrived.
    fn rate(&self, flags: u8, flows: u32, count: u32) -> Result<f64> {
        let generator = kernel::generator(&frame(flags), GENERATOR, flows)?;
        if flags & SYN == 0 {
            // Every flow is there before the clock starts. Not by its SYN: without an answer to it,
            // conntrack would take nothing that follows.
            kernel::send(&generator, flows * 16)?;
        }
        let before = self.place.sink.count()?;
        let mut slices = Vec::new();
        for _ in 0..count / SLICE {
            let start = Instant::now();
            kernel::send(&generator, SLICE)?;
            slices.push(start.elapsed());
        }
        let arrived = self.place.sink.count()? - before;
        if arrived * 10 < u64::from(count) * 9 {
            let way = self.way.name();
            return Err(format!("{way}: {arrived} of {count} arrived").into());
        }
        slices.sort();
        let undisturbed = slices[slices.len() / 4];
        let share = arrived as f64 / f64::from(count);
        Ok(f64::from(SLICE) * share / undisturbed.as_secs_f64() / 1e6)
    }

    fn established(&self) -> Result<f64> {
        self.rate(ACK, CLIENTS, ESTABLISHED)
    }

    fn opened(&self) -> Result<Option<f64>> {
        if matches!(self.way, Way::BareXdp | Way::BareTc) {
            return Ok(None);
        }
        self.rate(SYN, 1 << 30, OPENED).map(Some)
    }

    /// Nanoseconds of one run, the kernel's two looks at its clock included: what the bare program
    /// takes is mostly those.
    fn program_ns(&self) -> Result<Option<f64>> {
        let program = match self.way {
            Way::BareXdp | Way::BareTc => kernel::BARE,
            Way::Xdp => "xdp_net",
            Way::Tc => "from_net",
            Way::Nftables => return Ok(None),
        };
        let _stats = kernel::enable_stats()?;
        let (ns, runs) = kernel::run_time(program)?;
        self.rate(ACK, CLIENTS, ESTABLISHED / 4)?;
        let (ns_after, runs_after) = kernel::run_time(program)?;
        Ok(Some((ns_after - ns) as f64 / (runs_after - runs) as f64))
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// 60 bytes, as a network card counts 64: a TCP segment from 198.18.0.0/16 to the NodePort.
fn frame(flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0x99, 8, 0];
    // The low half of the source and the identification add up to 0xffff.
    frame.extend([
        0x45, 0, 0, 46, 0xff, 0xff, 0, 0, 64, TCP, 0, 0, 198, 18, 0, 0,
    ]);
    frame.extend(NODE);
    let mut sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) * 256 + u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!sum as u16).to_be_bytes());
    frame.extend([0x40, 0]);
    frame.extend(NODE_PORT.to_be_bytes());
    frame.extend([
        0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0,
    ]);
    frame.resize(60, 0);
    frame
}

/// kube-proxy's shape: a verdict map from protocol and port to a Service's chain, from there to
/// the endpoint's, which translates.
fn nftables() -> Result<()> {
    let rules = format!(
        "table ip bench {{
           map ports {{ type inet_proto . inet_service : verdict; }}
           chain endpoint {{ meta l4proto tcp dnat to 10.244.1.5:8080; }}
           chain service {{ numgen random mod 1 vmap {{ 0 : goto endpoint }}; }}
           chain prerouting {{ type nat hook prerouting priority dstnat;
             ip daddr {}.{}.{}.{} meta l4proto . th dport vmap @ports; }}
           chain postrouting {{ type nat hook postrouting priority srcnat;
             meta mark & 0x4000 != 0 masquerade; }}
           chain forward {{ type filter hook forward priority filter; ct state established,related accept; }}
         }}
         add element ip bench ports {{ tcp . {NODE_PORT} : goto service }}",
        NODE[0], NODE[1], NODE[2], NODE[3],
    );
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().ok_or("no input")?, rules.as_bytes())?;
    if !child.wait()?.success() {
        return Err("nft refuses the rules".into());
    }
    // The generator's checksums of TCP are nobody's.
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_checksum", "0")?;
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "1")?;
    // Of the first namespace alone.
    let _ = std::fs::write("/proc/sys/net/netfilter/nf_conntrack_max", "1048576");
    Ok(())
}

fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let line = mounts
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
        .ok_or("no cgroup2 mount")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .ok_or("an empty mount")?
        .into())
}
