//! Socket hooks with real sockets: this process joins a scratch cgroup and connects.
//! One test, because the cgroup is the process's.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::service::MAX_PEERS;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, ReasonCount};

use crate::scratch::scratch;

const VIP: [u8; 4] = [10, 96, 0, 77];

#[test]
fn sockets_reach_services() {
    let Some(scratch) = scratch("sockets") else {
        return;
    };
    let datapath = scratch.open();
    scratch.enter();

    tcp_reaches_a_backend_and_sees_the_service(&datapath);
    a_mapped_address_is_the_same_service(&datapath);
    every_backend_gets_its_share(&datapath);
    no_backend_is_refused(&datapath);
    affinity_keeps_one_backend(&datapath);
    node_port_on_loopback_and_node_address(&datapath);
    udp_replies_come_from_the_service(&datapath);
    udp_leaves_a_backend_that_is_gone(&datapath);
    one_datagram_socket_asks_two_services(&datapath);
    two_sockets_of_one_place_see_the_service(&datapath);
    a_removed_service_is_not_translated(&datapath);

    // A successor finds the same Services and serves on.
    let backend = Echo::tcp(b'r');
    let wanted = service(TCP, 8100, &[backend.address]);
    datapath
        .services()
        .lock()
        .set("default/again:tcp", &wanted)
        .unwrap();
    drop(datapath);
    assert_eq!(
        ask(vip(8100)),
        b'r',
        "the pinned programs serve while the agent is down"
    );
    let successor = scratch.open();
    assert_eq!(ask(vip(8100)), b'r', "the successor adopts what it finds");
    successor
        .services()
        .lock()
        .set("default/again:tcp", &wanted)
        .unwrap();
    assert_eq!(ask(vip(8100)), b'r');
    assert!(successor.services().lock().remove_unclaimed().unwrap() > 0);
    assert_eq!(ask(vip(8100)), b'r', "what was claimed stays");
    let view = successor.services().lock().view().unwrap();
    assert_eq!(view.len(), 1);
    assert!(!view[0].connections.is_empty());
    drop(successor);

    // The predecessor was of those that counted connections in a map of their own.
    scratch.split_backends();
    let successor = scratch.open();
    assert_eq!(
        successor.services().lock().view().unwrap()[0].connections,
        view[0].connections
    );
    assert_eq!(ask(vip(8100)), b'r');
}

fn tcp_reaches_a_backend_and_sees_the_service(datapath: &Datapath) {
    let backend = Echo::tcp(b'a');
    set(
        datapath,
        "default/web:http",
        &service(TCP, 80, &[backend.address]),
    );
    let mut stream = TcpStream::connect(vip(80)).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), vip(80));
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte[0], b'a');
    assert!(counted(datapath, Reason::SocketTranslated) >= 1);
}

fn a_mapped_address_is_the_same_service(_datapath: &Datapath) {
    let mapped: SocketAddr = format!("[::ffff:10.96.0.77]:{}", 80).parse().unwrap();
    let socket = socket(AddressFamily::Inet6);
    connect_v6(&socket, mapped);
    let mut stream: TcpStream = socket.into();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte[0], b'a');
}

fn every_backend_gets_its_share(datapath: &Datapath) {
    let backends: Vec<Echo> = (b'a'..=b'c').map(Echo::tcp).collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(|echo| echo.address).collect();
    set(datapath, "default/web:http", &service(TCP, 80, &addresses));
    let mut seen = [0u32; 256];
    for _ in 0..300 {
        seen[usize::from(ask(vip(80)))] += 1;
    }
    for name in b'a'..=b'c' {
        let share = seen[usize::from(name)];
        assert!(
            (50..=150).contains(&share),
            "backend {name} got {share} of 300"
        );
    }
    let given = |of: &SocketAddr| {
        let given = datapath.services().lock().connections();
        given
            .into_iter()
            .find(|each| each.name == "default/web:http" && each.port == of.port())
            .map_or(0, |each| each.connections)
    };
    for backend in &backends {
        assert_eq!(
            given(&backend.address),
            u64::from(seen[usize::from(backend.name)]),
            "what it served is what it was given"
        );
    }
    // One backend fewer: nobody reaches it from the next connection on.
    set(
        datapath,
        "default/web:http",
        &service(TCP, 80, &addresses[..2]),
    );
    for _ in 0..100 {
        assert_ne!(ask(vip(80)), b'c');
    }
}

fn no_backend_is_refused(datapath: &Datapath) {
    set(datapath, "default/web:http", &service(TCP, 80, &[]));
    let before = counted(datapath, Reason::NoBackend);
    let error = TcpStream::connect(vip(80)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(counted(datapath, Reason::NoBackend), before + 1);
    let counts = datapath.service_counts().unwrap();
    assert!(
        counts
            .iter()
            .any(|count| count.name == "default/web:http" && count.refused == 1)
    );
}

fn affinity_keeps_one_backend(datapath: &Datapath) {
    let backends: Vec<Echo> = (b'a'..=b'c').map(Echo::tcp).collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(|echo| echo.address).collect();
    let mut wanted = service(TCP, 81, &addresses);
    wanted.affinity = Some(Duration::from_secs(600));
    set(datapath, "default/sticky:http", &wanted);
    let first = ask(vip(81));
    for _ in 0..30 {
        assert_eq!(ask(vip(81)), first);
    }
    let rest: Vec<SocketAddr> = backends
        .iter()
        .filter(|echo| echo.name != first)
        .map(|echo| echo.address)
        .collect();
    wanted = ServicePort {
        affinity: wanted.affinity,
        ..service(TCP, 81, &rest)
    };
    set(datapath, "default/sticky:http", &wanted);
    let second = ask(vip(81));
    assert_ne!(second, first, "its backend is gone");
    for _ in 0..30 {
        assert_eq!(ask(vip(81)), second);
    }
}

fn node_port_on_loopback_and_node_address(datapath: &Datapath) {
    let backend = Echo::tcp(b'n');
    let mut wanted = service(TCP, 82, &[backend.address]);
    wanted.frontends.push(FrontendAddress {
        ip: IpAddr::from([0, 0, 0, 0]),
        port: 30_082,
        external: true,
        restricted: false,
    });
    set(datapath, "default/port:http", &wanted);
    assert_eq!(ask("127.0.0.1:30082".parse().unwrap()), b'n');
    assert_eq!(
        ask("192.0.2.10:30082".parse().unwrap()),
        b'n',
        "the node's address"
    );
}

fn udp_replies_come_from_the_service(datapath: &Datapath) {
    let backend = Echo::udp(b'u');
    set(
        datapath,
        "default/dns:udp",
        &service(UDP, 53, &[backend.address]),
    );
    // Unconnected: the reply's source is the Service.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.send_to(b"?", vip(53)).unwrap();
    let mut buffer = [0; 8];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"u"[..], vip(53)));
    // Connected.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.connect(vip(53)).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), vip(53));
    socket.send(b"?").unwrap();
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"u");
}

fn udp_leaves_a_backend_that_is_gone(datapath: &Datapath) {
    let (first, second) = (Echo::udp(b'1'), Echo::udp(b'2'));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let answer = || {
        socket.send_to(b"?", vip(54)).unwrap();
        let mut buffer = [0; 8];
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, vip(54));
        buffer[0]
    };
    set(
        datapath,
        "default/move:udp",
        &service(UDP, 54, &[first.address]),
    );
    assert_eq!(answer(), b'1');
    set(
        datapath,
        "default/move:udp",
        &service(UDP, 54, &[first.address, second.address]),
    );
    for _ in 0..20 {
        assert_eq!(answer(), b'1', "a socket stays with its backend");
    }
    set(
        datapath,
        "default/move:udp",
        &service(UDP, 54, &[second.address]),
    );
    assert_eq!(answer(), b'2', "until that is gone");
}

fn one_datagram_socket_asks_two_services(datapath: &Datapath) {
    let (first, second) = (Echo::udp(b'1'), Echo::udp(b'2'));
    for (port, echo) in [(55, &first), (56, &second)] {
        let name = format!("default/two-{port}:udp");
        set(datapath, &name, &service(UDP, port, &[echo.address]));
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    for _ in 0..3 {
        for (port, name) in [(55, b'1'), (56, b'2')] {
            socket.send_to(b"?", vip(port)).unwrap();
            let mut buffer = [0; 8];
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((buffer[0], from), (name, vip(port)));
        }
    }
}

fn two_sockets_of_one_place_see_the_service(datapath: &Datapath) {
    let backend = Echo::tcp(b'p');
    let wanted = service(TCP, 83, &[backend.address]);
    set(datapath, "default/place:http", &wanted);
    let taken = || counted(datapath, Reason::PlaceTaken);
    let connected = |socket: OwnedFd| {
        let IpAddr::V4(ip) = vip(83).ip() else {
            panic!("an IPv4 address");
        };
        let to = nix::sys::socket::SockaddrIn::from(SocketAddrV4::new(ip, 83));
        nix::sys::socket::connect(socket.as_raw_fd(), &to).unwrap();
        let stream = TcpStream::from(socket);
        assert_eq!(stream.peer_addr().unwrap(), vip(83));
        stream
    };
    let first = connected(socket(AddressFamily::Inet));
    let place = place_of(&first);
    let of_that_place = || {
        (0..16 * MAX_PEERS)
            .map(|_| socket(AddressFamily::Inet))
            .find(|socket| place_of(socket) == place)
            .expect("cookies are counted up")
    };
    let before = taken();
    let second = connected(of_that_place());
    assert_eq!(taken(), before + 1, "it has storage of its own");
    assert_eq!(first.peer_addr().unwrap(), vip(83));
    drop(first);
    let third = connected(of_that_place());
    assert_eq!(taken(), before + 1, "the place was given back");
    assert_eq!(second.peer_addr().unwrap(), vip(83));
    assert_eq!(third.peer_addr().unwrap(), vip(83));
    // To the backend itself: nothing is shown that was not asked for.
    let direct = TcpStream::connect(backend.address).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), backend.address);
}

/// Where the hooks remember a socket.
#[allow(unsafe_code, reason = "nix does not have this option")]
fn place_of(socket: &impl AsFd) -> u32 {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is as long as its place.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    cookie as u32 & (MAX_PEERS - 1)
}

fn a_removed_service_is_not_translated(datapath: &Datapath) {
    datapath
        .services()
        .lock()
        .remove("default/dns:udp")
        .unwrap();
    let views = datapath.services().lock().view().unwrap();
    assert!(views.iter().all(|view| view.port != 53), "{views:?}");
}

// ---------------------------------------------------------------------------------------------

fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(VIP), port)
}

fn service(protocol: u8, port: u16, backends: &[SocketAddr]) -> ServicePort {
    let endpoints: Vec<Endpoint> = backends
        .iter()
        .map(|address| Endpoint {
            ip: address.ip(),
            port: address.port(),
            local: true,
        })
        .collect();
    ServicePort {
        protocol,
        frontends: vec![FrontendAddress {
            ip: IpAddr::from(VIP),
            port,
            external: false,
            restricted: false,
        }],
        internal: endpoints.clone(),
        external: endpoints,
        ..ServicePort::default()
    }
}

fn set(datapath: &Datapath, name: &str, wanted: &ServicePort) {
    datapath.services().lock().set(name, wanted).unwrap();
}

fn counted(datapath: &Datapath, reason: Reason) -> u64 {
    let counts = datapath.reason_counts().unwrap();
    counts
        .iter()
        .find(|count: &&ReasonCount| count.reason == reason)
        .map_or(0, |count| count.count)
}

fn ask(address: SocketAddr) -> u8 {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

fn socket(family: AddressFamily) -> OwnedFd {
    nix::sys::socket::socket(family, SockType::Stream, SockFlag::empty(), None).unwrap()
}

fn connect_v6(socket: &OwnedFd, to: SocketAddr) {
    let to = match to {
        SocketAddr::V6(to) => nix::sys::socket::SockaddrIn6::from(to),
        SocketAddr::V4(_) => panic!("an IPv4 address"),
    };
    nix::sys::socket::connect(socket.as_raw_fd(), &to).unwrap();
}

/// A server that says its name. Ends with the process.
struct Echo {
    name: u8,
    address: SocketAddr,
}

impl Echo {
    fn tcp(name: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(&[name]));
            }
        });
        Self { name, address }
    }

    fn udp(name: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&[name], from);
            }
        });
        Self { name, address }
    }
}
