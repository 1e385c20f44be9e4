//! What a Service costs a connection: connect(2) to a backend itself and through a ClusterIP, side by
//! side, and the socket hook as the kernel measures it, beside an empty program at the same hook.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use skep_datapath::layout::TCP;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, DatapathConfig, Limits, TcHook, XdpMode, cleanup};

use crate::{Result, Table, cgroup2, ip, kernel};

const CONNECTIONS: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(10);
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 77];

/// Medians of one round: microseconds of connect(2) and close(2), nanoseconds of the programs.
#[derive(Clone, Copy)]
struct Round {
    direct_us: f64,
    through_us: f64,
    hook_ns: f64,
    empty_ns: f64,
}

/// The names of figures that have targets, with so many Services beside.
pub(crate) fn hook(services: u32) -> String {
    format!("the socket hook of connect(), {services} Services")
}

pub(crate) fn more(services: u32) -> String {
    format!("a ClusterIP costs a connection, {services} Services")
}

/// Measures one round in a network namespace of this thread's own, where nothing leads out.
pub(crate) fn measure(services: u32, table: Option<&mut Table>) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    ip("link set lo up")?;
    let place = Place::new()?;
    let round = round(&place, services)?;
    let Some(table) = table else { return Ok(()) };
    let of = |what: &str| format!("{what}, {services} Services");
    table.add(&of("connect() and close(), direct"), "us", round.direct_us);
    table.add(
        &of("connect() and close(), through a ClusterIP"),
        "us",
        round.through_us,
    );
    table.add(&more(services), "us", round.through_us - round.direct_us);
    table.add(&hook(services), "ns", round.hook_ns);
    table.add(
        &of("an empty program at the same hook"),
        "ns",
        round.empty_ns,
    );
    Ok(())
}

fn round(place: &Place, services: u32) -> Result<Round> {
    let datapath = place.open()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let direct = listener.local_addr()?;
    let (accepted, accepts) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            if accepted.send(()).is_err() {
                return;
            }
        }
    });
    for number in 1..services {
        let address = u32::from_be_bytes([10, 97, 0, 0]) + number;
        let frontend = SocketAddr::new(IpAddr::V4(address.into()), 80);
        set(&datapath, &format!("bench/{number}"), frontend, direct)?;
    }
    let service = SocketAddr::from((CLUSTER_IP, 80));
    set(&datapath, "bench/measured", service, direct)?;
    let empty = kernel::empty_connect(File::open(&place.cgroup)?.as_fd())?;
    place.enter()?;
    // Warm, and then in turns.
    connect_all(service, &accepts, CONNECTIONS / 4)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        for (times, target) in times.iter_mut().zip([direct, service]) {
            times.extend(connect_all(target, &accepts, CONNECTIONS / 4)?);
        }
    }
    let _stats = kernel::enable_stats()?;
    let (hook, floor) = (cost(&datapath)?, empty.cost()?);
    connect_all(service, &accepts, CONNECTIONS)?;
    let (hook_after, floor_after) = (cost(&datapath)?, empty.cost()?);
    let each = |before: (u64, u64), after: (u64, u64)| {
        (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64
    };
    let [direct_us, through_us] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    });
    // Wakes the listener for the last time.
    drop(accepts);
    let _ = TcpStream::connect(direct);
    Ok(Round {
        direct_us,
        through_us,
        hook_ns: each(hook, hook_after),
        empty_ns: each(floor, floor_after),
    })
}

fn set(datapath: &Datapath, name: &str, frontend: SocketAddr, backend: SocketAddr) -> Result<()> {
    let endpoints = vec![Endpoint {
        ip: backend.ip(),
        port: backend.port(),
        local: true,
    }];
    let wanted = ServicePort {
        protocol: TCP,
        frontends: vec![FrontendAddress {
            ip: frontend.ip(),
            port: frontend.port(),
            external: false,
            restricted: false,
        }],
        internal: endpoints.clone(),
        external: endpoints,
        ..ServicePort::default()
    };
    datapath.services().lock().set(name, &wanted)?;
    Ok(())
}

/// One after the other: none waits in the listener's queue.
fn connect_all(target: SocketAddr, accepts: &Receiver<()>, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let stream = TcpStream::connect(target)?;
        // A reset: no TIME_WAIT uses up the ports.
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
        drop(stream);
        times.push(began.elapsed());
        accepts.recv_timeout(PATIENCE)?;
    }
    Ok(times)
}

fn cost(datapath: &Datapath) -> Result<(u64, u64)> {
    let costs = datapath.program_costs()?;
    let hook = costs.iter().find(|cost| cost.program == "connect4");
    let hook = hook.ok_or("connect4 is not loaded")?;
    Ok((hook.time.as_nanos() as u64, hook.runs))
}

/// A cgroup and a folder of pins, gone when this goes.
struct Place {
    bpf: PathBuf,
    cgroup: PathBuf,
    root: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let id = format!("skep-bench-{}", std::process::id());
        let root = cgroup2()?;
        let place = Self {
            bpf: PathBuf::from("/sys/fs/bpf").join(&id),
            cgroup: root.join(&id),
            root,
        };
        std::fs::create_dir_all(&place.bpf)?;
        std::fs::create_dir_all(&place.cgroup)?;
        Ok(place)
    }

    fn open(&self) -> Result<Datapath> {
        Ok(Datapath::open(&DatapathConfig {
            bpf_dir: self.bpf.clone(),
            cgroup: self.cgroup.clone(),
            uplink_ifindex: None,
            uplink_mac: [0; 6],
            node_ips: vec![IpAddr::from([192, 0, 2, 10])],
            masquerade: true,
            tc: TcHook::Auto,
            xdp: XdpMode::Off,
            limits: Limits::default(),
        })?)
    }

    fn enter(&self) -> Result<()> {
        enter(&self.cgroup)
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    let pid = std::process::id().to_string();
    Ok(std::fs::write(cgroup.join("cgroup.procs"), pid)?)
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = enter(&self.root)
            .and_then(|()| Ok(cleanup(&self.bpf)?))
            .and_then(|()| Ok(std::fs::remove_dir(&self.cgroup)?));
        if let Err(error) = left {
            eprintln!("something of the bench remains: {error}");
        }
    }
}
