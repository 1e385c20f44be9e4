//! An agent takes over from its predecessor while connections are in use: none is reset, and no packet
//! of theirs is lost.
//!
//! ```text
//! client ns: c0 ═ up0 [XDP, tc] :node ns: pod0 [tc] ═ eth0 :pod ns
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfMap, Map, MapData};
use nix::sched::{CloneFlags, setns, unshare};
use skep_datapath::layout::TCP;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, Offload, PodLink, XdpMode, set_offload};

use crate::scratch::{Scratch, scratch, shell};

const UPLINK: u32 = 102;
const POD_LINK: u32 = 103;
const CONNECTIONS: usize = 1_000;
/// A virtual link holds 256 packets that a busy machine does not get to, and loses the next.
const IN_FLIGHT: usize = 100;
const NODE_PORT: u16 = 30_080;
const PATIENCE: Duration = Duration::from_secs(60);

fn namespace() -> OwnedFd {
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

fn path_of(namespace: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

fn enter(namespace: &OwnedFd) {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// This thread's namespace becomes the node's.
struct Place {
    client: OwnedFd,
    pod: OwnedFd,
}

impl Place {
    fn new() -> Self {
        let node = namespace();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let client = namespace();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let pod = namespace();
        enter(&node);
        shell(&format!(
            "link add c0 index 110 type veth peer name up0 index {UPLINK}"
        ));
        shell(&format!(
            "link add eth0 index 111 type veth peer name pod0 index {POD_LINK}"
        ));
        for (name, namespace) in [("c0", &client), ("eth0", &pod)] {
            shell(&format!("link set {name} netns {}", path_of(namespace)));
        }
        shell("link set up0 address 02:00:00:00:00:aa up");
        shell("link set pod0 address 02:00:00:00:00:68 up");
        shell("addr add 192.0.2.10/24 dev up0");
        shell("addr add 10.244.1.1/24 dev pod0");
        shell("neigh add 192.0.2.1 lladdr 02:00:00:00:00:99 dev up0");
        shell("neigh add 10.244.1.5 lladdr 02:00:00:00:00:67 dev pod0");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        set_offload("up0", Offload::Gro, true).unwrap();

        enter(&client);
        shell("link set lo up");
        shell("link set c0 address 02:00:00:00:00:99 up");
        shell("addr add 192.0.2.1/24 dev c0");
        shell("neigh add 192.0.2.10 lladdr 02:00:00:00:00:aa dev c0");
        set_offload("c0", Offload::Gro, true).unwrap();
        // XDP leaves unfinished checksums to tc.
        set_offload("c0", Offload::TransmitChecksum, false).unwrap();

        enter(&pod);
        shell("link set lo up");
        shell("link set eth0 address 02:00:00:00:00:67 up");
        shell("addr add 10.244.1.5/24 dev eth0");
        shell("route add default via 10.244.1.1");
        shell("neigh add 10.244.1.1 lladdr 02:00:00:00:00:68 dev eth0");
        set_offload("eth0", Offload::Gro, true).unwrap();

        enter(&node);
        Self { client, pod }
    }
}

/// As an agent does after its start.
fn open(scratch: &Scratch) -> Datapath {
    let datapath = scratch.open();
    let nets = ["10.244.0.0/16", "192.0.2.10/32"].map(|net| net.parse().unwrap());
    datapath
        .set_networks(&nets, &["10.96.0.0/16".parse().unwrap()], &[])
        .unwrap();
    let link = PodLink {
        ifindex: POD_LINK,
        mac: [2, 0, 0, 0, 0, 0x67],
        host_mac: [2, 0, 0, 0, 0, 0x68],
        netns_cookie: 1,
        takes_frames: true,
    };
    datapath
        .attach_pod(&[IpAddr::from([10, 244, 1, 5])], &link)
        .unwrap();
    let endpoint = Endpoint {
        ip: IpAddr::from([10, 244, 1, 5]),
        port: 8_080,
        local: true,
    };
    let wanted = ServicePort {
        protocol: TCP,
        frontends: vec![FrontendAddress {
            ip: IpAddr::from([0, 0, 0, 0]),
            port: NODE_PORT,
            external: true,
            restricted: false,
        }],
        internal: vec![endpoint],
        external: vec![endpoint],
        ..ServicePort::default()
    };
    {
        let mut services = datapath.services().lock();
        services.set("default/web:http", &wanted).unwrap();
        services.remove_unclaimed().unwrap();
    }
    datapath
}

/// Answers what each connection says, in the order of the connections, until they end.
fn echo(place: &Place) -> JoinHandle<()> {
    let pod = place.pod.try_clone().unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        enter(&pod);
        let listener = TcpListener::bind("10.244.1.5:8080").unwrap();
        ready.send(()).unwrap();
        let mut connections: Vec<TcpStream> = (0..CONNECTIONS)
            .map(|_| listener.accept().unwrap().0)
            .collect();
        loop {
            for connection in &mut connections {
                let mut word = [0; 8];
                if connection.read_exact(&mut word).is_err() {
                    return;
                }
                connection.write_all(&word).unwrap();
            }
        }
    });
    listening.recv_timeout(PATIENCE).unwrap();
    server
}

/// A client of a thousand connections, all of them always in use.
struct Client {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    thread: Option<JoinHandle<u64>>,
}

impl Client {
    fn start(place: &Place) -> Self {
        let client = place.client.try_clone().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU32::new(0));
        let (stopped, round) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            enter(&client);
            let mut connections: Vec<TcpStream> = (0..CONNECTIONS)
                .map(|_| {
                    let connection = TcpStream::connect(("192.0.2.10", NODE_PORT)).unwrap();
                    connection.set_read_timeout(Some(PATIENCE)).unwrap();
                    connection.set_nodelay(true).unwrap();
                    connection
                })
                .collect();
            let before = retransmitted();
            while !stopped.load(Ordering::Relaxed) {
                let said = u64::from(round.load(Ordering::Relaxed)).to_be_bytes();
                for some in connections.chunks_mut(IN_FLIGHT) {
                    for connection in &mut *some {
                        connection.write_all(&said).unwrap();
                    }
                    for connection in some {
                        let mut heard = [0; 8];
                        connection.read_exact(&mut heard).unwrap();
                        assert_eq!(heard, said);
                    }
                }
                round.fetch_add(1, Ordering::Relaxed);
            }
            retransmitted() - before
        });
        Self {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    /// Waits until every connection has been used since.
    fn all_used(&self) {
        let (before, began) = (self.rounds.load(Ordering::Relaxed), Instant::now());
        while self.rounds.load(Ordering::Relaxed) < before + 2 {
            assert!(began.elapsed() < PATIENCE, "the connections do not go on");
            let finished = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!finished, "a connection was lost");
            std::thread::yield_now();
        }
    }

    fn has_lost_nothing(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let lost = self.thread.take().unwrap().join().unwrap();
        let links = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert_eq!(lost, 0, "segments were lost; the node's links:\n{links}");
    }
}

/// `Tcp: RetransSegs` of this thread's namespace.
fn retransmitted() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let fields: HashMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    fields["RetransSegs"].parse().unwrap()
}

fn place(name: &str, xdp: XdpMode) -> Option<(Place, Scratch)> {
    let mut scratch = scratch(name)?;
    scratch.config.uplink_ifindex = Some(UPLINK);
    scratch.config.xdp = xdp;
    let place = Place::new();
    Some((place, scratch))
}

/// A datapath, and connections through it that are in use.
fn in_use(name: &str, xdp: XdpMode) -> Option<(Scratch, Datapath, JoinHandle<()>, Client)> {
    let (place, scratch) = place(name, xdp)?;
    let datapath = open(&scratch);
    assert_eq!(datapath.xdp().is_on(), xdp == XdpMode::Native);
    let server = echo(&place);
    let client = Client::start(&place);
    client.all_used();
    Some((scratch, datapath, server, client))
}

fn upgrades(name: &str, xdp: XdpMode) {
    let Some((scratch, mut datapath, server, client)) = in_use(name, xdp) else {
        return;
    };
    for _ in 0..5 {
        // What it leaves is what it leaves when it is killed: its pins.
        drop(datapath);
        client.all_used();
        datapath = open(&scratch);
        client.all_used();
    }
    client.has_lost_nothing();
    server.join().unwrap();
}

#[test]
fn an_upgrade_under_load_loses_nothing_in_xdp() {
    upgrades("upgrade-xdp", XdpMode::Native);
}

#[test]
fn an_upgrade_under_load_loses_nothing_in_tc() {
    upgrades("upgrade-tc", XdpMode::Off);
}

#[test]
fn connections_of_a_former_layout_go_on() {
    let Some((scratch, datapath, server, client)) = in_use("former", XdpMode::Native) else {
        return;
    };
    drop(datapath);
    // The programs at work hold on to their own maps. These are what an older agent would have left.
    let maps = scratch.config.bpf_dir.join("maps");
    fs::rename(maps.join("FLOWS6-v1"), maps.join("FLOWS-v1")).unwrap();
    let pinned = |name: &str| MapData::from_pin(maps.join(name)).unwrap();
    let buckets = scratch.flow_buckets();
    let former = Map::HashMap(pinned("FLOWS-v1"));
    let mut former = BpfMap::<MapData, [u8; 40], [u8; 60]>::try_from(former).unwrap();
    let mut moved = 0;
    for bucket in buckets.iter() {
        let bucket = bucket.unwrap();
        for slot in bucket[16..].chunks_exact(48) {
            let (key, flow) = slot.split_at(16);
            // The ports and the protocol of what is in use.
            if key[8..] != [0; 8] {
                former.insert(wide_key(key), wide_flow(flow), 0).unwrap();
                moved += 1;
            }
        }
    }
    assert_eq!(moved, 2 * CONNECTIONS);
    drop(buckets);
    fs::remove_file(maps.join("FLOWS4-v2")).unwrap();

    let datapath = open(&scratch);
    assert_eq!(datapath.flow_entries().unwrap().len(), 2 * CONNECTIONS);
    client.all_used();
    client.has_lost_nothing();
    assert!(!maps.join("FLOWS-v1").exists());
    server.join().unwrap();
}

#[test]
fn connections_of_former_buckets_go_on() {
    let Some((scratch, datapath, server, client)) = in_use("buckets", XdpMode::Native) else {
        return;
    };
    drop(datapath);
    let receivers = scratch.spread_flows();
    assert!(receivers > CONNECTIONS / 2);
    // Some may have found a bucket full of others.
    let straying = scratch.straying();
    client.all_used();
    let maps = scratch.config.bpf_dir.join("maps");
    fs::rename(maps.join("FLOWS4-v2"), maps.join("FLOWS4-v1")).unwrap();

    let datapath = open(&scratch);
    assert!(!maps.join("FLOWS4-v1").exists());
    assert_eq!(datapath.flow_entries().unwrap().len(), 2 * CONNECTIONS);
    // Of the clients, and of the NodePort.
    let expected = receivers..=receivers + straying + 1;
    assert!(expected.contains(&scratch.straying()), "{expected:?}");
    client.all_used();
    client.has_lost_nothing();
    server.join().unwrap();
}

fn wide_key(key: &[u8]) -> [u8; 40] {
    let mut wide = [0; 40];
    for (from, to) in [(0, 0), (4, 16)] {
        wide[to + 10..to + 12].fill(0xff);
        wide[to + 12..to + 16].copy_from_slice(&key[from..from + 4]);
    }
    wide[32..].copy_from_slice(&key[8..]);
    wide
}

fn wide_flow(flow: &[u8]) -> [u8; 60] {
    let mut wide = [0; 60];
    for (from, to) in [(0, 0), (4, 16)] {
        wide[to + 10..to + 12].fill(0xff);
        wide[to + 12..to + 16].copy_from_slice(&flow[from..from + 4]);
    }
    // Ports; flags, seen, Service; the rest.
    wide[32..36].copy_from_slice(&flow[8..12]);
    wide[36..38].copy_from_slice(&flow[12..14]);
    wide[40..44].copy_from_slice(&flow[16..20]);
    wide[44..46].copy_from_slice(&flow[14..16]);
    wide[48..60].copy_from_slice(&flow[20..32]);
    wide
}
