//! Packets per second on one core, through XDP and tc, beside the least that a forwarding program
//! can do and beside hand-written nftables and iptables rules shaped like kube-proxy's; and what the
//! socket hook costs a connection. All variants take turns in every round, and what only differs by how much
//! the datapath has to do takes turns of milliseconds; a veth is not a network card, so the ratios count.
//!
//! ```text
//! generator ─► gen0 ═ up0 [XDP, tc, or nftables] ─► pod0 ═ eth0 of the sink: counted, dropped
//! ```
#![allow(unsafe_code, reason = "bpf(2)")]
#![allow(clippy::print_stdout, reason = "it prints a table")]

mod kernel;
mod sockets;
mod table;

use std::error::Error;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kernel::{Attached, Hook, Sink};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use skep_datapath::layout::TCP;
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{
    Datapath, DatapathConfig, Limits, Offload, PodLink, TcHook, XdpMode, cleanup, set_offload,
};
use table::Table;
use table::Target::{AtLeast, AtMost};

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
/// It takes 30 us for each.
const OPENED_IPTABLES: u32 = 20_000;
const IPTABLES: &str = "iptables-legacy-restore";
const IPTABLES_SERVICES: u32 = 5_000;
/// Frames sent at a stretch. Of many the quartile counts that others on the machine disturbed least.
const SLICE: u32 = 250_000;
/// Of so many new connections a listener hears of one.
const EVENT_SAMPLE: u32 = 100;
/// To policy.
const CLIENTS_IDENTITY: u32 = 256;
/// Clients that take turns on established flows.
const CLIENTS: u32 = 1_024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    BareXdp,
    Xdp,
    BareTc,
    Tc,
    Nftables,
    /// With [`IPTABLES_SERVICES`], ours in the middle.
    Iptables,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::BareXdp => "XDP redirect alone",
            Self::Xdp => "skep, XDP",
            Self::BareTc => "tc redirect alone",
            Self::Tc => "skep, tc",
            Self::Nftables => "nftables as kube-proxy's",
            Self::Iptables => "iptables as kube-proxy's, 5000 Services",
        }
    }
}

/// How a way is set up.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Setup {
    services: u32,
    /// Of the Service that is measured.
    backends: u32,
    /// Policy applies to the pod, and somebody listens to its new connections.
    watched: bool,
    /// As the agent balances clients outside, if it is not told otherwise; else at random.
    maglev: bool,
}

impl Setup {
    const PLAIN: Self = Self {
        services: 1,
        backends: 1,
        watched: false,
        maglev: false,
    };

    fn name(self, way: Way) -> String {
        let name = way.name();
        match self {
            Self { watched: true, .. } => format!("{name}, policy and events"),
            Self {
                services: 1,
                backends: 1,
                ..
            } => name.into(),
            Self {
                maglev: true,
                backends,
                ..
            } => format!("{name}, Maglev of {backends} backends"),
            Self {
                services, backends, ..
            } => format!("{name}, {services} Services of {backends} backends"),
        }
    }
}

/// Compared with the plain one.
const LARGER: [Setup; 4] = [
    Setup {
        watched: true,
        ..Setup::PLAIN
    },
    Setup {
        services: 30_000,
        ..Setup::PLAIN
    },
    Setup {
        backends: 100_000,
        ..Setup::PLAIN
    },
    Setup {
        backends: 6_000,
        maglev: true,
        ..Setup::PLAIN
    },
];
/// Of which the sockets' hook is measured.
const SOCKETS: [u32; 2] = [1, 30_000];

fn established(way: Way) -> String {
    format!("{}: established", way.name())
}

fn opened(way: Way) -> String {
    format!("{}: new flows", way.name())
}

fn program(way: Way) -> String {
    format!("{}: a program run", way.name())
}

/// The same of a packet that begins a flow.
fn beginning(way: Way) -> String {
    format!("{}, of a new flow", program(way))
}

/// What the program itself takes.
fn beyond_empty(way: Way) -> String {
    format!("{}, beyond an empty one", program(way))
}

/// What two setups take turns at.
struct Stretch {
    name: &'static str,
    flags: u8,
    flows: u32,
    /// Frames of one turn.
    frames: u32,
    turns: usize,
}

const STRETCHES: [Stretch; 2] = [
    Stretch {
        name: "established",
        flags: ACK,
        flows: CLIENTS,
        frames: 100_000,
        turns: 12,
    },
    Stretch {
        name: "new flows",
        flags: SYN,
        flows: 1 << 30,
        frames: 20_000,
        turns: 8,
    },
];

impl Stretch {
    fn of(&self, way: Way, setup: Setup) -> String {
        format!("{}: {} : without", setup.name(way), self.name)
    }
}

/// `packets [ROUNDS] [WORD]`: all of it, or the way of this name, or those with this word in theirs
/// (`sockets`: none).
fn main() -> Result<()> {
    // Not disturbed by others on the machine, as far as that goes.
    kernel::take_precedence()?;
    // On a machine with one CPU it is the other one.
    let _ = run_on(1);
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = words
        .iter()
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(10);
    let only = words
        .iter()
        .find(|word| !word.starts_with('-') && word.parse::<usize>().is_err());
    let exists = |program: &str| {
        let probe = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        probe.is_ok()
    };
    let mut ways = vec![Way::BareXdp, Way::Xdp, Way::BareTc, Way::Tc];
    if exists("nft") {
        ways.push(Way::Nftables);
    }
    if exists(IPTABLES) {
        ways.push(Way::Iptables);
    }
    let mut compared: Vec<(Way, Setup)> = LARGER
        .into_iter()
        .flat_map(|setup| [Way::Xdp, Way::Tc].map(|way| (way, setup)))
        .collect();
    if let Some(word) = only {
        let names = ways.iter().map(|way| way.name());
        let exact = names.into_iter().any(|name| name == *word)
            || compared
                .iter()
                .any(|(way, setup)| setup.name(*way) == *word);
        let is_meant = |name: &str| match exact {
            true => name == *word,
            false => name.contains(word.as_str()),
        };
        ways.retain(|way| is_meant(way.name()));
        compared.retain(|(way, setup)| is_meant(&setup.name(*way)));
    }
    let mut table = Table::default();
    for round in 0..=rounds {
        // The first round warms up.
        let mut counted = (round > 0).then_some(&mut table);
        for services in SOCKETS {
            sockets::measure(services, counted.as_deref_mut())?;
        }
        for way in &ways {
            measure(*way, counted.as_deref_mut())?;
        }
        for (way, setup) in &compared {
            compare(*way, *setup, counted.as_deref_mut())?;
        }
    }
    if !ways.is_empty() {
        packet_targets(&mut table);
    }
    for (way, setup) in compared {
        for stretch in &STRETCHES {
            let ratio = stretch.of(way, setup);
            table.target(&ratio, &ratio, "x", AtLeast(0.97));
        }
    }
    socket_targets(&mut table);
    table.print();
    Ok(())
}

fn run_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?)
}

fn measure(way: Way, table: Option<&mut Table>) -> Result<()> {
    let place = Place::new()?;
    let run = Run::begin(&place, way, Setup::PLAIN)?;
    let rate = run.established()?;
    let ns = run.program_ns(ACK, CLIENTS, SLICE)?;
    let new = run.opened()?;
    let begun = match run.skep {
        // As many as there is room for beside those.
        Some(_) => run.program_ns(SYN, 1 << 30, SLICE / 4)?,
        None => None,
    };
    let Some(table) = table else { return Ok(()) };
    if let Some(rate) = rate {
        table.add(&established(way), "M/s", rate);
    }
    if let Some((ns, empty)) = ns {
        table.add(&program(way), "ns", ns);
        table.add(&beyond_empty(way), "ns", ns - empty);
    }
    if let Some(new) = new {
        table.add(&opened(way), "M/s", new);
    }
    if let Some((ns, empty)) = begun {
        table.add(&beginning(way), "ns", ns - empty);
    }
    Ok(())
}

/// How fast `setup` is beside the plain one. Which of the two is begun first counts for some hundredths, so each
/// is, in turn.
fn compare(way: Way, setup: Setup, mut table: Option<&mut Table>) -> Result<()> {
    let [before, after] = [true, false].map(|plain_first| ratios(way, setup, plain_first));
    for ((stretch, before), after) in STRETCHES.iter().zip(before?).zip(after?) {
        if let Some(table) = &mut table {
            table.add(&stretch.of(way, setup), "x", (before * after).sqrt());
        }
    }
    Ok(())
}

/// For each of [`STRETCHES`] the median of the turns, each of which is beside its neighbour.
fn ratios(way: Way, setup: Setup, plain_first: bool) -> Result<[f64; 2]> {
    let setups = match plain_first {
        true => [Setup::PLAIN, setup],
        false => [setup, Setup::PLAIN],
    };
    let places = [Place::new()?, Place::new()?];
    places[0].enter()?;
    let first = Run::begin(&places[0], way, setups[0])?;
    places[1].enter()?;
    let runs = [first, Run::begin(&places[1], way, setups[1])?];
    let (plain, other) = if plain_first { (0, 1) } else { (1, 0) };
    let mut medians = [0.0; 2];
    for (median, stretch) in medians.iter_mut().zip(&STRETCHES) {
        let generator = kernel::generator(&frame(stretch.flags), GENERATOR, stretch.flows)?;
        let mut ratios = Vec::new();
        // The first turn of both warms up.
        for turn in 0..=stretch.turns {
            let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut ns = [0.0; 2];
            for at in order {
                ns[at] = runs[at].turn(&generator, stretch)?;
            }
            if turn > 0 {
                ratios.push(ns[plain] / ns[other]);
            }
        }
        *median = table::median(&mut ratios);
    }
    Ok(medians)
}

fn packet_targets(table: &mut Table) {
    let xdp = established(Way::Xdp);
    let tc = established(Way::Tc);
    let new = opened(Way::Xdp);
    table.target("established, XDP", &xdp, "M/s", AtLeast(5.0));
    let bare = established(Way::BareXdp);
    table.ratio(
        "established, XDP : bare redirect",
        &xdp,
        &bare,
        AtLeast(0.6),
    );
    let nftables = established(Way::Nftables);
    table.ratio("established, tc : nftables", &tc, &nftables, AtLeast(2.0));
    let nftables = opened(Way::Nftables);
    table.ratio("new flows, XDP : nftables", &new, &nftables, AtLeast(2.5));
    let iptables = opened(Way::Iptables);
    table.ratio("new flows, XDP : iptables", &new, &iptables, AtLeast(25.0));
    for (way, most) in [(Way::Xdp, 80.0), (Way::Tc, 95.0)] {
        let name = format!("a program run, {}, beyond an empty one", way.name());
        table.target(&name, &beyond_empty(way), "ns", AtMost(most));
    }
}

fn socket_targets(table: &mut Table) {
    for services in SOCKETS {
        let (hook, more) = (sockets::hook(services), sockets::more(services));
        table.target(&hook, &hook, "ns", AtMost(300.0));
        table.target(&more, &more, "us", AtMost(1.0));
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
    node: OwnedFd,
    /// A namespace goes with the last that holds it.
    _pod: OwnedFd,
}

impl Place {
    fn new() -> Result<Self> {
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
        Ok(Self {
            sink,
            node,
            _pod: pod,
        })
    }

    /// From now on this thread is on its node, where it sends from.
    fn enter(&self) -> Result<()> {
        Ok(setns(self.node.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

/// One way to the pod, set up.
struct Run<'a> {
    place: &'a Place,
    way: Way,
    bare: Option<Attached>,
    skep: Option<(Datapath, PathBuf, PathBuf)>,
    listener: Option<Listener>,
}

/// Takes the events, on whatever CPU.
struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn of(datapath: &Datapath) -> Result<Self> {
        let mut events = datapath.events()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            // As any process, and not where the packets are.
            let _ = kernel::give_way();
            let _ = run_on(0);
            while !stopped.load(Ordering::Relaxed) {
                while events.next_event().is_some() {}
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.listener = None;
        if let Some((datapath, bpf, cgroup)) = self.skep.take() {
            drop(datapath);
            let _ = cleanup(&bpf);
            let _ = std::fs::remove_dir(&cgroup);
        }
    }
}

impl<'a> Run<'a> {
    fn begin(place: &'a Place, way: Way, setup: Setup) -> Result<Self> {
        let mut run = Self {
            place,
            way,
            bare: None,
            skep: None,
            listener: None,
        };
        match way {
            Way::BareXdp => run.bare = Some(kernel::bare_redirect(Hook::Xdp, UPLINK, POD_LINK)?),
            Way::BareTc => run.bare = Some(kernel::bare_redirect(Hook::Tc, UPLINK, POD_LINK)?),
            Way::Xdp | Way::Tc => run.start_skep(setup)?,
            Way::Nftables => nftables()?,
            Way::Iptables => iptables()?,
        }
        Ok(run)
    }

    fn start_skep(&mut self, setup: Setup) -> Result<()> {
        let Setup {
            services,
            backends,
            maglev,
            ..
        } = setup;
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let id = format!("skep-bench-{}-{number}", std::process::id());
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
                flows: 1 << 19,
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
                let count = if ours { backends } else { 1 };
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
                    maglev,
                    ..ServicePort::default()
                };
                tables.set(&format!("bench/{number}"), &wanted)?;
            }
        }
        if setup.watched {
            datapath.set_policy(&policy()?)?;
            self.listener = Some(Listener::of(&datapath)?);
            datapath.set_events(Some(EVENT_SAMPLE))?;
        }
        self.skep = Some((datapath, bpf, cgroup));
        Ok(())
    }

    /// Sends `count` frames, so many at a stretch; millions a second that arrived. Where others on the
    /// machine keep too many from arriving, it begins again.
    fn rate(&self, flags: u8, flows: u32, count: u32, stretch: u32) -> Result<f64> {
        const ATTEMPTS: u32 = 10;
        let generator = kernel::generator(&frame(flags), GENERATOR, flows)?;
        if flags & SYN == 0 {
            // Every flow is there before the clock starts. Not by its SYN: without an answer to it,
            // conntrack would take nothing that follows.
            kernel::send(&generator, flows * 16)?;
        }
        let mut arrived = 0;
        for _ in 0..ATTEMPTS {
            let before = self.place.sink.count()?;
            let mut slices = Vec::new();
            for _ in 0..count / stretch {
                slices.push(kernel::send(&generator, stretch)?);
            }
            arrived = self.place.sink.count()? - before;
            if arrived * 10 < u64::from(count) * 9 {
                continue;
            }
            slices.sort();
            let undisturbed = slices[slices.len() / 4];
            let share = arrived as f64 / f64::from(count);
            return Ok(1e3 * share / f64::from(undisturbed));
        }
        let way = self.way.name();
        Err(format!("{way}: {arrived} of {count} arrived").into())
    }

    /// Nanoseconds a frame.
    fn turn(&self, generator: &OwnedFd, stretch: &Stretch) -> Result<f64> {
        self.place.enter()?;
        let before = self.place.sink.count()?;
        let ns = kernel::send(generator, stretch.frames)?;
        let arrived = self.place.sink.count()? - before;
        if arrived == 0 {
            return Err(format!("{}: nothing arrived", stretch.name).into());
        }
        Ok(f64::from(ns) * f64::from(stretch.frames) / arrived as f64)
    }

    fn established(&self) -> Result<Option<f64>> {
        if self.way == Way::Iptables {
            return Ok(None);
        }
        self.rate(ACK, CLIENTS, ESTABLISHED, SLICE).map(Some)
    }

    fn opened(&self) -> Result<Option<f64>> {
        let count = match self.way {
            Way::BareXdp | Way::BareTc => return Ok(None),
            Way::Iptables => OPENED_IPTABLES,
            _ => OPENED,
        };
        self.rate(SYN, 1 << 30, count, count).map(Some)
    }

    /// Nanoseconds of one run, the kernel's two looks at its clock included, as in [`Run::rate`] where others
    /// disturbed least; and of the run of an empty program, which is those.
    fn program_ns(&self, flags: u8, flows: u32, count: u32) -> Result<Option<(f64, f64)>> {
        const PARTS: u32 = 8;
        let cost = || -> Result<Option<(u64, u64)>> {
            let program = match self.way {
                Way::Xdp => "xdp_net",
                Way::Tc => "from_net",
                Way::BareXdp | Way::BareTc | Way::Nftables | Way::Iptables => {
                    return Ok(match &self.bare {
                        Some(bare) => Some(bare.cost()?),
                        None => None,
                    });
                }
            };
            let (datapath, ..) = self.skep.as_ref().ok_or("not started")?;
            let costs = datapath.program_costs()?;
            let found = costs.iter().find(|cost| cost.program == program);
            Ok(found.map(|cost| (cost.time.as_nanos() as u64, cost.runs)))
        };
        let _stats = kernel::enable_stats()?;
        let Some(mut before) = cost()? else {
            return Ok(None);
        };
        let mut slices = Vec::new();
        for _ in 0..PARTS {
            self.rate(flags, flows, count / PARTS, count / PARTS)?;
            let after = cost()?.ok_or("the program went away")?;
            slices.push((after.0 - before.0) as f64 / (after.1 - before.1) as f64);
            before = after;
        }
        slices.sort_by(f64::total_cmp);
        let each = slices[slices.len() / 4];
        let hook = match self.way {
            Way::Xdp | Way::BareXdp => Hook::Xdp,
            _ => Hook::Tc,
        };
        let empty = kernel::empty_cost(hook, SLICE)?;
        Ok(Some((each, empty)))
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
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]);
    feed(nft, &rules)?;
    set_conntrack()
}

/// As kube-proxy writes them: a chain of all Services, a chain for each, a chain for its endpoint.
fn iptables() -> Result<()> {
    let mut rules = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    for number in 0..IPTABLES_SERVICES {
        rules += &format!(":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]\n");
    }
    rules += "-A PREROUTING -j KUBE-SERVICES\n";
    for number in 0..IPTABLES_SERVICES {
        let [_, _, high, low] = number.to_be_bytes();
        let (address, port) = if number == IPTABLES_SERVICES / 2 {
            (NODE, NODE_PORT)
        } else {
            ([10, 96, high, low], 80)
        };
        let address = std::net::Ipv4Addr::from(address);
        rules += &format!(
            "-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport {port} -j KUBE-SVC-{number}\n\
             -A KUBE-SVC-{number} -j KUBE-SEP-{number}\n\
             -A KUBE-SEP-{number} -p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080\n"
        );
    }
    rules += "COMMIT\n";
    feed(Command::new(IPTABLES), &rules)?;
    set_conntrack()
}

fn feed(mut command: Command, input: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().ok_or("no input")?, input.as_bytes())?;
    if !child.wait()?.success() {
        return Err(format!("{command:?} refuses the rules").into());
    }
    Ok(())
}

fn set_conntrack() -> Result<()> {
    // The generator's checksums of TCP are nobody's.
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_checksum", "0")?;
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "1")?;
    // Of the first namespace alone.
    let _ = std::fs::write("/proc/sys/net/netfilter/nf_conntrack_max", "1048576");
    Ok(())
}

/// What lets the clients in and nobody else.
fn policy() -> Result<PolicyState> {
    let isolated = PodPolicy {
        policy: 1,
        ingress_isolated: true,
        egress_isolated: true,
    };
    let allowed = Rule {
        policy: 1,
        direction: Direction::Ingress,
        identity: CLIENTS_IDENTITY,
        protocol: TCP,
        port: 8_080,
        port_bits: 16,
    };
    Ok(PolicyState {
        identities: [("198.18.0.0/16".parse()?, CLIENTS_IDENTITY)].into(),
        rules: [allowed].into(),
        pods: PODS.map(|pod| (IpAddr::from(pod), isolated)).into(),
    })
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
