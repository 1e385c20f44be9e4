//! What a Service costs a connection: connect(2) to a backend itself and through a ClusterIP, side by side, and the
//! socket hook alone as the kernel measures it.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use skep_datapath::layout::TCP;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, ProgramCost};

use crate::Figure;
use crate::scratch::Scratch;

const CONNECTIONS: usize = 4_000;
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 77];
/// Other Services beside the one that is measured.
const SERVICES: [usize; 2] = [1, 30_000];

pub(crate) fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let scratch = Scratch::new()?;
    let datapath = scratch.open()?;
    scratch.enter_cgroup()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let direct = listener.local_addr()?;
    std::thread::spawn(move || {
        // Closed by the client's reset.
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    let service = SocketAddr::from((CLUSTER_IP, 80));
    let mut figures = Vec::new();
    let mut filled = 0;
    for services in SERVICES {
        while filled + 1 < services {
            filled += 1;
            set(
                &datapath,
                &format!("default/other-{filled}:tcp"),
                other(filled),
                direct,
            )?;
        }
        set(&datapath, "default/measured:tcp", service, direct)?;
        let ways = [("direct", direct), ("through a ClusterIP", service)];
        let mut medians = [Vec::new(), Vec::new()];
        let mut hooks = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (slot, (_, target)) in ways.iter().enumerate() {
                let median = connect_all(*target)?;
                let cost = with_stats(&datapath, || connect_all(*target).map(drop))?;
                // The first round warms up.
                if round > 0 {
                    medians[slot].push(median.as_secs_f64() * 1e6);
                    hooks[slot].push(cost);
                }
            }
        }
        let more: Vec<f64> = medians[1]
            .iter()
            .zip(&medians[0])
            .map(|(through, direct)| through - direct)
            .collect();
        for (slot, (name, _)) in ways.iter().enumerate() {
            let of = |what: &str| format!("{what}, {name}, {services} Services");
            let times = std::mem::take(&mut medians[slot]);
            figures.push(Figure::of(of("connect() and close()"), "µs", times)?);
            let hooks = std::mem::take(&mut hooks[slot]);
            figures.push(Figure::of(of("the hook"), "ns", hooks)?);
        }
        figures.push(Figure::of(
            format!("a ClusterIP costs a connection, {services} Services"),
            "µs",
            more,
        )?);
    }
    Ok(figures)
}

fn other(number: usize) -> SocketAddr {
    let ip = u32::from_be_bytes([10, 97, 0, 0]) + number as u32;
    SocketAddr::new(IpAddr::V4(ip.into()), 80)
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

/// The median of many.
fn connect_all(target: SocketAddr) -> Result<Duration> {
    let mut times = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let began = Instant::now();
        let stream =
            TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
        // A reset: no TIME_WAIT uses up the ports.
        set_linger(&stream)?;
        drop(stream);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn set_linger(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?;
    Ok(())
}

/// The mean cost of `connect4` while `run` runs, in nanoseconds.
fn with_stats(datapath: &Datapath, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = std::fs::read_to_string(STATS)?;
    std::fs::write(STATS, "1")?;
    let first = cost(datapath);
    let ran = run();
    let second = cost(datapath);
    std::fs::write(STATS, before.trim())?;
    ran?;
    let (first, second) = (first?, second?);
    let runs = second.runs.saturating_sub(first.runs).max(1);
    Ok(second.time.saturating_sub(first.time).as_nanos() as f64 / runs as f64)
}

fn cost(datapath: &Datapath) -> Result<ProgramCost> {
    datapath
        .program_costs()?
        .into_iter()
        .find(|cost| cost.program == "connect4")
        .context("connect4 is not loaded")
}
