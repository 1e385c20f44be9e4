//! Every branch of the packet programs through `BPF_PROG_TEST_RUN`: a description, a frame in, a
//! verdict and a frame out. Runs in a network namespace of its own, with an uplink that leads nowhere.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{ICMP, TCP, UDP};
use skep_datapath::policy::{PodPolicy, PolicyState, Rule};
use skep_datapath::services::{Endpoint, Forwarding, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, PodLink, Verdict};

use crate::frame::{
    ACK, FIN, Frame, RST, frame, has_good_icmpv6_checksum, header_checksum, neighbour_solicitation,
    read_unreachable, unreachable,
};
use crate::scratch::{Scratch, scratch, shell};

pub(crate) const CLIENT: &str = "198.51.100.9:4444";
pub(crate) const POD: &str = "10.244.1.5";
pub(crate) const POD_IFINDEX: u32 = 103;
pub(crate) const UPLINK: u32 = 102;
pub(crate) const OTHER_IFINDEX: u32 = 104;
pub(crate) const TUNNEL: u32 = 105;

pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
}

impl Bench {
    /// The pod's policy, and all rules that there are.
    #[track_caller]
    pub(crate) fn isolate(&self, isolated: PodPolicy, rules: &[Rule]) {
        let state = PolicyState {
            rules: rules.iter().copied().collect(),
            pods: [(ip(POD), isolated)].into(),
            ..PolicyState::default()
        };
        self.datapath.set_policy(&state).unwrap();
    }

    #[track_caller]
    pub(crate) fn run(&self, program: &str, ifindex: u32, frame: &Frame) -> (Verdict, Frame) {
        let (verdict, bytes) = self.run_raw(program, ifindex, &frame.bytes());
        (verdict, Frame::read(&bytes))
    }

    #[track_caller]
    pub(crate) fn run_raw(&self, program: &str, ifindex: u32, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let result = self
            .datapath
            .try_packet(program, ifindex, bytes, 1)
            .unwrap();
        (result.verdict, result.frame)
    }

    pub(crate) fn counted(&self, reason: Reason) -> u64 {
        let counts = self.datapath.reason_counts().unwrap();
        counts
            .iter()
            .find(|count| count.reason == reason)
            .map_or(0, |count| count.count)
    }

    pub(crate) fn set(&self, name: &str, wanted: &ServicePort) {
        self.datapath.services().lock().set(name, wanted).unwrap();
    }
}

/// A port that hides a client behind the node: no server's and no NodePort.
fn may_be_taken(port: u16) -> bool {
    port >= 1_024 && !(30_000..32_768).contains(&port)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn node_port(protocol: u8, port: u16, backends: &[(&str, u16, bool)]) -> ServicePort {
    let v6 = backends.iter().any(|(address, _, _)| address.contains(':'));
    let endpoints: Vec<Endpoint> = backends
        .iter()
        .map(|(address, port, local)| Endpoint {
            ip: ip(address),
            port: *port,
            local: *local,
        })
        .collect();
    ServicePort {
        protocol,
        frontends: vec![FrontendAddress {
            ip: ip(if v6 { "::" } else { "0.0.0.0" }),
            port,
            external: true,
            restricted: true,
        }],
        internal: endpoints.clone(),
        external: endpoints,
        ..ServicePort::default()
    }
}

/// A node in a network namespace of this thread's own, with an uplink that leads nowhere and two
/// pods. `None`, after saying why, where the test cannot run.
pub(crate) fn bench(name: &str) -> Option<(Bench, Scratch)> {
    bench_with(name, 4_096)
}

/// With so many flows of each family.
pub(crate) fn bench_with(name: &str, flows: u32) -> Option<(Bench, Scratch)> {
    let mut scratch = scratch(name)?;
    scratch.config.limits.flows = flows;
    // Programs look routes up.
    for (index, name) in [
        (UPLINK, "up0"),
        (POD_IFINDEX, "pod0"),
        (OTHER_IFINDEX, "pod1"),
        (TUNNEL, "tun0"),
    ] {
        shell(&format!(
            "link add {name} index {index} type veth peer name {name}x"
        ));
        shell(&format!("link set {name} up"));
        shell(&format!("link set {name}x up"));
    }
    shell("addr add 192.0.2.10/24 dev up0");
    shell("-6 addr add 2001:db8::10/64 dev up0 nodad");
    shell("route add default via 192.0.2.1");
    shell("-6 route add default via 2001:db8::1");
    shell("neigh add 192.0.2.1 lladdr 02:00:00:00:00:99 dev up0");
    shell("-6 neigh add 2001:db8::1 lladdr 02:00:00:00:00:99 dev up0");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    scratch.config.uplink_ifindex = Some(UPLINK);
    scratch.config.node_ips = vec![ip("192.0.2.10"), ip("2001:db8::10")];
    let bench = Bench {
        datapath: scratch.open(),
    };
    let nets =
        |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
    bench
        .datapath
        .set_networks(
            &nets(&[
                "10.244.0.0/16",
                "192.0.2.10/32",
                "192.0.2.11/32",
                "fd00:1::/48",
                "2001:db8::11/128",
            ]),
            &nets(&["10.96.0.0/16"]),
            &[],
        )
        .unwrap();
    let link = |ifindex: u32| PodLink {
        ifindex,
        mac: [2, 0, 0, 0, 0, ifindex as u8],
        host_mac: [0xee; 6],
        netns_cookie: u64::from(ifindex),
        takes_frames: ifindex == POD_IFINDEX,
    };
    bench
        .datapath
        .attach_pod(&[ip(POD), ip("fd00:1::5")], &link(POD_IFINDEX))
        .unwrap();
    bench
        .datapath
        .attach_pod(&[ip("10.244.1.6")], &link(OTHER_IFINDEX))
        .unwrap();
    Some((bench, scratch))
}

#[test]
fn packets_through_every_program() {
    let Some((bench, _scratch)) = bench("packets") else {
        return;
    };
    what_is_not_ours_passes(&bench);
    node_port_to_a_local_pod_and_back(&bench);
    node_port_to_a_remote_pod_and_back(&bench);
    node_port_over_ipv6(&bench);
    udp_and_its_missing_checksum(&bench);
    a_reused_port_is_a_new_connection(&bench);
    no_backend_and_forbidden_clients(&bench);
    pods_cannot_lie_about_their_address(&bench);
    pods_leave_behind_the_node(&bench);
    pods_reach_services_packet_by_packet(&bench);
    errors_find_their_way_back(&bench);
    fragments_follow_their_first(&bench);
    fragments_of_ipv6_follow_their_first(&bench);
    extension_headers_of_ipv6_are_passed_over(&bench);
    hop_limits_end_journeys(&bench);
    two_clients_never_share_a_port(&bench);
    clients_keep_their_port_while_it_is_free(&bench);
    the_nodes_own_sockets_are_respected(&bench);
    senders_are_told_what_is_too_big(&bench);
    announced_addresses_are_answered_for(&bench);
    announced_ipv6_addresses_are_answered_for(&bench);
    quiet_flows_are_swept_live_ones_stay(&bench);
    a_tunnel_keeps_the_client(&bench);
}

fn a_tunnel_keeps_the_client(bench: &Bench) {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    bench
        .datapath
        .set_networks(
            &[net("10.244.0.0/16"), net("192.0.2.10/32")],
            &[net("10.96.0.0/16")],
            &[(net("10.244.3.0/24"), ip("192.0.2.12"))],
        )
        .unwrap();
    let set_tunnel = |keeps_client: bool| {
        let own = [ip("10.244.1.1")];
        bench
            .datapath
            .set_tunnel(TUNNEL, &own, keeps_client)
            .unwrap();
    };
    let there_and_back = |request: &Frame| {
        let (verdict, onward) = bench.run("from_net", UPLINK, request);
        assert_eq!(verdict, Verdict::Redirect);
        let (verdict, back) = bench.run("from_net", TUNNEL, &onward.answer());
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(
            (back.source, back.destination),
            (request.destination, request.source)
        );
        onward.source
    };
    bench.set(
        "p:tcp",
        &node_port(TCP, 30_015, &[("10.244.3.7", 80, false)]),
    );
    let request = frame(TCP, CLIENT, "192.0.2.10:30015");
    set_tunnel(false);
    assert_eq!(there_and_back(&request).ip(), ip("10.244.1.1"));
    set_tunnel(true);
    let request = frame(TCP, "198.51.100.9:5555", "192.0.2.10:30015");
    assert_eq!(there_and_back(&request), request.source);

    // On the backend's node: the answer goes back to the node that the request came from.
    let from_node = |node: u8, request: &Frame| {
        let mut bytes = request.bytes();
        bytes[6..12].copy_from_slice(&[0x0a, 0x5c, 192, 0, 2, node]);
        let (verdict, inside) = bench.run_raw("from_net", TUNNEL, &bytes);
        assert_eq!(verdict, Verdict::Redirect);
        Frame::read(&inside)
    };
    let tunnelled = || bench.counted(Reason::Tunnelled);
    let request = frame(TCP, "198.51.100.9:6666", &format!("{POD}:8080"));
    for node in [12, 13] {
        let inside = from_node(node, &request);
        assert_eq!(
            (inside.source, inside.destination),
            (request.source, request.destination)
        );
        let before = tunnelled();
        let (verdict, answer) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(answer.source, request.destination);
        assert_eq!(tunnelled(), before + 1);
    }
    // The same client port directly to this node's NodePort: two connections of the pod's.
    bench.set("q:tcp", &node_port(TCP, 30_016, &[(POD, 8080, true)]));
    let direct = frame(TCP, "198.51.100.9:6666", "192.0.2.10:30016");
    let (_, inside) = bench.run("from_net", UPLINK, &direct);
    assert_ne!(inside.source, request.source);
    let (_, answer) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
    assert_eq!(
        (answer.source, answer.destination),
        (direct.destination, direct.source)
    );
    // A pod of the cluster is no client from outside.
    let pod = frame(TCP, "10.244.3.7:6666", &format!("{POD}:8080"));
    let inside = from_node(12, &pod);
    let before = tunnelled();
    bench.run("from_pod", POD_IFINDEX, &inside.answer());
    assert_eq!(tunnelled(), before, "routed as any pod's");
}

fn clients_keep_their_port_while_it_is_free(bench: &Bench) {
    bench.set(
        "n:tcp",
        &node_port(TCP, 30_014, &[("10.244.2.10", 80, false)]),
    );
    let from = |client: &str| frame(TCP, &format!("{client}:45000"), "192.0.2.10:30014");
    let port_of = |request: &Frame| bench.run("from_net", UPLINK, request).1.source.port();
    let end = |request: &Frame| {
        let (_, onward) = bench.run("from_net", UPLINK, &request.clone().flags(FIN | ACK));
        bench.run("from_net", UPLINK, &onward.answer().flags(FIN | ACK));
    };
    let (first, second, third) = (
        from("198.51.100.1"),
        from("198.51.100.2"),
        from("198.51.100.3"),
    );
    assert_eq!(port_of(&first), 45_000);
    let other = port_of(&second);
    assert!(may_be_taken(other), "{other}");
    end(&first);
    assert_ne!(
        port_of(&third),
        45_000,
        "the backend may hold it in TIME_WAIT"
    );
    assert_eq!(port_of(&first), 45_000, "its own again, at once");
    bench.run("from_net", UPLINK, &first.clone().flags(RST));
    assert_eq!(
        port_of(&from("198.51.100.4")),
        45_000,
        "after a reset nobody remembers it"
    );
    // Ports of servers are not taken.
    let privileged = frame(TCP, "198.51.100.1:80", "192.0.2.10:30014");
    assert!(may_be_taken(port_of(&privileged)));
}

fn the_nodes_own_sockets_are_respected(bench: &Bench) {
    let socket = std::net::UdpSocket::bind("192.0.2.10:46000").unwrap();
    let request = frame(UDP, "10.244.1.5:46000", "198.51.100.1:53");
    let (_, onward) = bench.run("from_pod", POD_IFINDEX, &request);
    assert_ne!(onward.source.port(), 46_000);
    drop(socket);
    let request = frame(UDP, "10.244.1.5:46000", "198.51.100.2:53");
    let (_, onward) = bench.run("from_pod", POD_IFINDEX, &request);
    assert_eq!(onward.source, "192.0.2.10:46000".parse().unwrap());

    // Now the node itself uses that port towards the same server.
    let own = frame(UDP, "192.0.2.10:46000", "198.51.100.2:53");
    let (verdict, moved) = bench.run("to_net", UPLINK, &own);
    assert_eq!(verdict, Verdict::Pass);
    assert_ne!(moved.source.port(), 46_000);
    let (verdict, back) = bench.run("from_net", UPLINK, &moved.answer());
    assert_eq!((verdict, back.destination), (Verdict::Pass, own.source));
    let (_, back) = bench.run("from_net", UPLINK, &onward.answer());
    assert_eq!(back.destination, request.source, "and the pod's go on");
}

fn announced_addresses_are_answered_for(bench: &Bench) {
    let question = |operation: u8| {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 9]);
        bytes.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
        bytes.extend([2, 0, 0, 0, 0, 9, 192, 0, 2, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 50]);
        bytes
    };
    let asked = |bytes: &[u8]| bench.run_raw("from_net", UPLINK, bytes);
    assert_eq!(asked(&question(1)), (Verdict::Pass, question(1)));
    let ours = std::net::Ipv4Addr::new(192, 0, 2, 50);
    bench.datapath.set_announced(&[ours.into()]).unwrap();
    let (verdict, answer) = asked(&question(1));
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(answer[..6], [2, 0, 0, 0, 0, 9], "to who asked");
    assert_eq!(answer[20..22], [0, 2], "a reply");
    assert_eq!(answer[22..28], [2, 0, 0, 0, 0, 0xaa], "our MAC");
    assert_eq!(answer[28..32], ours.octets());
    assert_eq!(answer[32..42], [2, 0, 0, 0, 0, 9, 192, 0, 2, 1]);
    assert_eq!(
        asked(&question(2)).0,
        Verdict::Pass,
        "a reply is no question"
    );

    let mut wanted = node_port(TCP, 443, &[(POD, 8443, true)]);
    wanted.frontends[0].ip = ours.into();
    bench.set("o:tcp", &wanted);
    let request = frame(TCP, "198.51.100.7:5000", "192.0.2.50:443");
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, format!("{POD}:8443").parse().unwrap());
    let before = bench.counted(Reason::NoSuchFrontend);
    let other = frame(TCP, "198.51.100.7:5000", "192.0.2.50:444");
    assert_eq!(bench.run("from_net", UPLINK, &other).0, Verdict::Drop);
    assert_eq!(bench.counted(Reason::NoSuchFrontend), before + 1);

    bench.datapath.set_announced(&[]).unwrap();
    assert_eq!(asked(&question(1)).0, Verdict::Pass);
}

fn announced_ipv6_addresses_are_answered_for(bench: &Bench) {
    let ours = ip("2001:db8::50");
    let asker = ip("2001:db8::9");
    let question = |source: IpAddr, hop_limit: u8, option: bool| {
        neighbour_solicitation([2, 0, 0, 0, 0, 9], source, ours, hop_limit, option)
    };
    let asked = |bytes: &[u8]| bench.run_raw("from_net", UPLINK, bytes);
    let plain = question(asker, 255, true);
    assert_eq!(asked(&plain), (Verdict::Pass, plain.clone()));
    bench.datapath.set_announced(&[ours]).unwrap();
    // With the asker's MAC in it (to a group), and without (a probe of what is known).
    for option in [true, false] {
        let (verdict, answer) = asked(&question(asker, 255, option));
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(Frame::read_icmpv6(&answer), (ours, asker));
        assert_eq!(answer[..6], [2, 0, 0, 0, 0, 9], "to who asked");
        assert_eq!(answer[54..56], [136, 0], "an advertisement");
        assert_eq!(answer[58], 0x60, "solicited, and overrides");
        assert_eq!(
            answer[62..78],
            question(asker, 255, option)[62..78],
            "the target"
        );
        assert_eq!(answer[78..], [2, 1, 2, 0, 0, 0, 0, 0xaa], "our MAC");
    }
    // Somebody is about to take the address: everybody hears whose it is (RFC 4862 §5.4.4).
    let (verdict, answer) = asked(&question(ip("::"), 255, false));
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(Frame::read_icmpv6(&answer), (ours, ip("ff02::1")));
    assert_eq!(answer[58], 0x20);
    // What a router has passed on is no question of the link.
    assert_eq!(asked(&question(asker, 64, true)).0, Verdict::Pass);
    assert!(bench.counted(Reason::NdpAnswered) >= 3);
    bench.datapath.set_announced(&[]).unwrap();
    assert_eq!(asked(&plain).0, Verdict::Pass);
}

fn what_is_not_ours_passes(bench: &Bench) {
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.extend([0; 46]);
    assert_eq!(
        bench.run_raw("from_net", UPLINK, &arp),
        (Verdict::Pass, arp.clone())
    );
    let ssh = frame(TCP, CLIENT, "192.0.2.10:22");
    assert_eq!(
        bench.run("from_net", UPLINK, &ssh),
        (Verdict::Pass, ssh.clone())
    );
    assert_eq!(
        bench.run("to_net", UPLINK, &ssh.answer()),
        (Verdict::Pass, ssh.answer())
    );
    // Cut off inside the transport header.
    let cut = &ssh.bytes()[..14 + 20 + 4];
    assert_eq!(bench.run_raw("from_net", UPLINK, cut).0, Verdict::Pass);
    assert_eq!(bench.run_raw("from_pod", POD_IFINDEX, cut).0, Verdict::Drop);
}

fn node_port_to_a_local_pod_and_back(bench: &Bench) {
    bench.set("a:tcp", &node_port(TCP, 30_001, &[(POD, 8080, true)]));
    let request = frame(TCP, CLIENT, "192.0.2.10:30001");
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.source, request.source, "the client's address stays");
    assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
    assert_eq!(inside.hop_limit, 63);
    let given = bench.datapath.services().lock().connections();
    let of_it = given.iter().find(|each| each.name == "a:tcp").unwrap();
    assert_eq!(
        (of_it.ip, of_it.port, of_it.connections),
        (ip(POD), 8080, 1)
    );
    let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(outside.source, request.destination, "the Service answers");
    assert_eq!(outside.destination, request.source);
}

fn node_port_to_a_remote_pod_and_back(bench: &Bench) {
    bench.set(
        "b:tcp",
        &node_port(TCP, 30_002, &[("10.244.2.7", 80, false)]),
    );
    let request = frame(TCP, CLIENT, "192.0.2.10:30002");
    let (verdict, onward) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(
        onward.source.ip(),
        ip("192.0.2.10"),
        "the answer must come back here"
    );
    assert_eq!(onward.destination, "10.244.2.7:80".parse().unwrap());
    let (verdict, back) = bench.run("from_net", UPLINK, &onward.answer());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(
        (back.source, back.destination),
        (request.destination, request.source)
    );
}

fn node_port_over_ipv6(bench: &Bench) {
    bench.set(
        "c:tcp",
        &node_port(TCP, 30_003, &[("fd00:1::5", 8080, true)]),
    );
    let request = frame(TCP, "[2001:db8:1::9]:5000", "[2001:db8::10]:30003");
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, "[fd00:1::5]:8080".parse().unwrap());
    let (_, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
    assert_eq!(
        (outside.source, outside.destination),
        (request.destination, request.source)
    );
}

fn udp_and_its_missing_checksum(bench: &Bench) {
    bench.set(
        "d:udp",
        &node_port(UDP, 30_004, &[("10.244.2.7", 53, false)]),
    );
    let mut request = frame(UDP, CLIENT, "192.0.2.10:30004");
    request.unchecked = true;
    let (_, onward) = bench.run("from_net", UPLINK, &request);
    assert!(onward.unchecked, "0 means none (RFC 768) and stays so");
    assert_eq!(onward.destination, "10.244.2.7:53".parse().unwrap());
    let mut answer = onward.answer();
    answer.unchecked = false;
    let (_, back) = bench.run("from_net", UPLINK, &answer);
    assert_eq!(
        (back.source, back.destination),
        (request.destination, request.source)
    );
}

fn a_reused_port_is_a_new_connection(bench: &Bench) {
    bench.set("e:tcp", &node_port(TCP, 30_005, &[(POD, 1, true)]));
    let request = frame(TCP, CLIENT, "192.0.2.10:30005");
    let (_, first) = bench.run("from_net", UPLINK, &request);
    assert_eq!(first.destination.port(), 1);
    bench.set("e:tcp", &node_port(TCP, 30_005, &[(POD, 2, true)]));
    let established = request.clone().flags(ACK);
    let (_, same) = bench.run("from_net", UPLINK, &established);
    assert_eq!(
        same.destination.port(),
        1,
        "an open connection stays with its backend"
    );
    let (_, moved) = bench.run("from_net", UPLINK, &request);
    assert_eq!(
        moved.destination.port(),
        2,
        "a SYN does not go to a backend that is gone"
    );
    // Closed by both; then the client takes the same port again, at once.
    bench.run("from_net", UPLINK, &request.clone().flags(FIN | ACK));
    bench.run("from_pod", POD_IFINDEX, &moved.answer().flags(FIN | ACK));
    bench.set(
        "e:tcp",
        &node_port(TCP, 30_005, &[(POD, 2, true), (POD, 3, true)]),
    );
    let (verdict, _) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
}

fn no_backend_and_forbidden_clients(bench: &Bench) {
    bench.set("f:tcp", &node_port(TCP, 30_006, &[]));
    let request = frame(TCP, CLIENT, "192.0.2.10:30006");
    let before = bench.counted(Reason::NoBackend);
    let (verdict, refusal) = bench.run_raw("from_net", UPLINK, &request.bytes());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(refusal[..6], request.bytes()[6..12], "to who asked");
    assert_eq!(refusal[34..36], [3, 3], "port unreachable");
    assert_eq!(
        read_unreachable(&refusal),
        (
            request.destination.ip(),
            request.source.ip(),
            request.source,
            request.destination
        )
    );
    assert_eq!(bench.counted(Reason::NoBackend), before + 1);
    let mut wanted = node_port(TCP, 30_006, &[("fd00:1::5", 80, true)]);
    wanted.internal.clear();
    wanted.external.clear();
    bench.set("f6:tcp", &wanted);
    let request = frame(TCP, "[2001:db8::9]:4444", "[2001:db8::10]:30006");
    let (verdict, refusal) = bench.run_raw("from_net", UPLINK, &request.bytes());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(refusal.len(), 14 + 40 + 8 + 48);
    assert_eq!(refusal[54..56], [1, 4], "port unreachable");
    assert_eq!(refusal[62..], request.bytes()[14..62], "what was sent");
    assert_eq!(
        Frame::read_icmpv6(&refusal),
        (request.destination.ip(), request.source.ip())
    );
    let request = frame(TCP, CLIENT, "192.0.2.10:30006");

    let mut wanted = node_port(TCP, 30_006, &[("10.244.2.7", 80, false)]);
    wanted.external.clear();
    wanted.external_local = true;
    bench.set("f:tcp", &wanted);
    assert_eq!(bench.run("from_net", UPLINK, &request).0, Verdict::Drop);
    assert_eq!(bench.counted(Reason::NoLocalBackend), 1);

    let mut wanted = node_port(TCP, 30_007, &[(POD, 80, true)]);
    wanted.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    bench.set("g:tcp", &wanted);
    let stranger = frame(TCP, CLIENT, "192.0.2.10:30007");
    assert_eq!(bench.run("from_net", UPLINK, &stranger).0, Verdict::Drop);
    let customer = frame(TCP, "203.0.113.77:4444", "192.0.2.10:30007");
    assert_eq!(
        bench.run("from_net", UPLINK, &customer).0,
        Verdict::Redirect
    );
    assert_eq!(bench.counted(Reason::SourceRange), 1);
}

fn pods_cannot_lie_about_their_address(bench: &Bench) {
    let before = bench.counted(Reason::Spoofed);
    for source in ["10.244.1.6:1", "192.0.2.10:1", "203.0.113.1:1"] {
        let lie = frame(UDP, source, "198.51.100.1:9");
        assert_eq!(
            bench.run("from_pod", POD_IFINDEX, &lie).0,
            Verdict::Drop,
            "{source}"
        );
    }
    assert_eq!(bench.counted(Reason::Spoofed), before + 3);
}

fn pods_leave_behind_the_node(bench: &Bench) {
    for protocol in [TCP, UDP, ICMP] {
        let port = if protocol == ICMP { 0 } else { 443 };
        let request = frame(
            protocol,
            "10.244.1.5:40000",
            &format!("198.51.100.1:{port}"),
        );
        let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &request);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(outside.source.ip(), ip("192.0.2.10"));
        assert_eq!(outside.destination, request.destination);
        if protocol != ICMP {
            let (verdict, inside) = bench.run("from_net", UPLINK, &outside.answer());
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(inside.destination, request.source);
        }
    }
    // Not inside the cluster: another node, another pod.
    for destination in ["192.0.2.11:10250", "10.244.2.7:80"] {
        let request = frame(TCP, "10.244.1.5:40000", destination);
        let (_, onward) = bench.run("from_pod", POD_IFINDEX, &request);
        assert_eq!(
            (onward.source, onward.destination),
            (request.source, request.destination)
        );
    }
}

fn pods_reach_services_packet_by_packet(bench: &Bench) {
    let mut wanted = node_port(TCP, 80, &[("10.244.1.6", 8080, true)]);
    wanted.frontends[0].ip = ip("10.96.0.5");
    wanted.frontends[0].external = false;
    bench.set("h:tcp", &wanted);
    let request = frame(TCP, "10.244.1.5:41000", "10.96.0.5:80");
    let (verdict, inside) = bench.run("from_pod", POD_IFINDEX, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, "10.244.1.6:8080".parse().unwrap());
    let (verdict, back) = bench.run("from_pod", OTHER_IFINDEX, &inside.answer());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(
        (back.source, back.destination),
        (request.destination, request.source)
    );
    // Nobody serves: told so at once.
    let nobody = ServicePort {
        internal: Vec::new(),
        external: Vec::new(),
        ..wanted
    };
    bench.set("h:tcp", &nobody);
    let (verdict, refusal) = bench.run_raw(
        "from_pod",
        POD_IFINDEX,
        &frame(TCP, "10.244.1.5:41001", "10.96.0.5:80").bytes(),
    );
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(read_unreachable(&refusal).1, ip(POD));
    // No such Service: dropped and counted. Not from outside either.
    let wrong = frame(TCP, "10.244.1.5:41000", "10.96.0.5:81");
    assert_eq!(bench.run("from_pod", POD_IFINDEX, &wrong).0, Verdict::Drop);
    assert_eq!(bench.counted(Reason::NoSuchFrontend), 1);
    let outside = frame(TCP, CLIENT, "10.96.0.5:80");
    assert_eq!(
        bench.run("from_net", UPLINK, &outside),
        (Verdict::Pass, outside.clone())
    );
}

fn errors_find_their_way_back(bench: &Bench) {
    // A masqueraded pod's datagram meets a closed port.
    let request = frame(UDP, "10.244.1.5:42000", "198.51.100.1:9");
    let (_, outside) = bench.run("from_pod", POD_IFINDEX, &request);
    let error = unreachable("198.51.100.1", &outside);
    let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &error);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(
        read_unreachable(&bytes),
        (
            ip("198.51.100.1"),
            ip(POD),
            request.source,
            request.destination
        )
    );
    // A local backend refuses a client of a NodePort.
    bench.set("i:udp", &node_port(UDP, 30_009, &[(POD, 9, true)]));
    let request = frame(UDP, CLIENT, "192.0.2.10:30009");
    let (_, inside) = bench.run("from_net", UPLINK, &request);
    let error = unreachable(POD, &inside);
    let (_, bytes) = bench.run_raw("from_pod", POD_IFINDEX, &error);
    assert_eq!(
        read_unreachable(&bytes),
        (
            ip("192.0.2.10"),
            request.source.ip(),
            request.source,
            request.destination
        )
    );
    // About nothing we know.
    let strange = unreachable(
        "198.51.100.1",
        &frame(UDP, "192.0.2.10:1", "198.51.100.1:2"),
    );
    assert_eq!(
        bench.run_raw("from_net", UPLINK, &strange),
        (Verdict::Pass, strange.clone())
    );
}

fn fragments_follow_their_first(bench: &Bench) {
    bench.set("j:udp", &node_port(UDP, 30_010, &[(POD, 53, true)]));
    let mut first = frame(UDP, CLIENT, "192.0.2.10:30010");
    first.fragment = (77, true, 0);
    let mut later = first.clone();
    later.fragment = (77, false, 2);
    let (verdict, inside) = bench.run("from_net", UPLINK, &first);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, format!("{POD}:53").parse().unwrap());
    let (verdict, inside) = bench.run("from_net", UPLINK, &later);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination.ip(), ip(POD));
    assert_eq!(inside.payload, later.payload);
    let mut orphan = later.clone();
    orphan.fragment.0 = 78;
    assert_eq!(bench.run("from_net", UPLINK, &orphan).0, Verdict::Pass);
}

fn fragments_of_ipv6_follow_their_first(bench: &Bench) {
    bench.set(
        "j6:udp",
        &node_port(UDP, 30_023, &[("fd00:1::5", 53, true)]),
    );
    let mut first = frame(UDP, "[2001:db8:1::9]:5000", "[2001:db8::10]:30023");
    first.fragment = (77, true, 0);
    let mut later = first.clone();
    later.fragment = (77, false, 2);
    let (verdict, passed) = bench.run_raw("xdp_net", UPLINK, &first.bytes());
    assert_eq!((verdict, passed), (Verdict::Pass, first.bytes()));
    for fragment in [&first, &later] {
        let (verdict, inside) = bench.run("from_net", UPLINK, fragment);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(inside.source.ip(), first.source.ip());
        assert_eq!(inside.destination.ip(), ip("fd00:1::5"));
        assert_eq!(inside.fragment, fragment.fragment);
        assert_eq!(inside.payload, fragment.payload);
        // And what the pod sends back.
        let mut answer = inside.answer();
        answer.fragment.0 = 99;
        let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &answer);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(outside.source.ip(), first.destination.ip());
    }
    let mut orphan = later.clone();
    orphan.fragment.0 = 78;
    assert_eq!(bench.run("from_net", UPLINK, &orphan).0, Verdict::Pass);
}

fn extension_headers_of_ipv6_are_passed_over(bench: &Bench) {
    /// Types (RFC 8200 §4), and bytes after the type of the next: a length, and padding.
    const HOP_BY_HOP: (u8, &[u8]) = (0, &[0, 1, 4, 0, 0, 0, 0]);
    const OPTIONS: (u8, &[u8]) = (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    const ROUTING: (u8, &[u8]) = (43, &[0, 4, 0, 0, 0, 0, 0]);
    const UNFINISHED: (u8, &[u8]) = (43, &[0, 4, 1, 0, 0, 0, 0]);
    bench.set(
        "e6:tcp",
        &node_port(TCP, 30_024, &[("fd00:1::5", 80, true)]),
    );
    let with = |extensions: &[(u8, &[u8])], port: u16| {
        let client = format!("[2001:db8:1::9]:{port}");
        let mut request = frame(TCP, &client, "[2001:db8::10]:30024");
        let owned = extensions.iter().map(|(kind, rest)| (*kind, rest.to_vec()));
        request.extensions = owned.collect();
        request
    };
    let chains: [&[(u8, &[u8])]; 4] = [
        &[HOP_BY_HOP],
        &[OPTIONS],
        &[HOP_BY_HOP, OPTIONS, ROUTING, OPTIONS],
        &[ROUTING, OPTIONS],
    ];
    for (port, chain) in (6_000..).zip(chains) {
        for fragment in [(0, false, 0), (78, true, 0)] {
            let mut request = with(chain, port);
            request.fragment = fragment;
            let (verdict, passed) = bench.run_raw("xdp_net", UPLINK, &request.bytes());
            assert_eq!((verdict, passed), (Verdict::Pass, request.bytes()));
            let (verdict, inside) = bench.run("from_net", UPLINK, &request);
            assert_eq!(verdict, Verdict::Redirect, "{chain:?}");
            let mut expected = request.clone();
            expected.destination = "[fd00:1::5]:80".parse().unwrap();
            expected.hop_limit = 63;
            assert_eq!(inside, expected);
            let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(
                (outside.source, outside.destination),
                (request.destination, request.source)
            );
        }
    }
    // What is on its way to another address, and more than there is reason for.
    let chains: [&[(u8, &[u8])]; 2] = [&[UNFINISHED], &[OPTIONS; 5]];
    for chain in chains {
        let request = with(chain, 6_100);
        let (verdict, passed) = bench.run_raw("from_net", UPLINK, &request.bytes());
        assert_eq!((verdict, passed), (Verdict::Pass, request.bytes()));
    }
}

fn senders_are_told_what_is_too_big(bench: &Bench) {
    shell("link set up0 mtu 9000");
    shell("link set tun0 mtu 1000");
    shell("addr add 10.99.0.1/24 dev tun0");
    shell("route add 10.244.7.0/24 via 10.99.0.2");
    shell("neigh add 10.99.0.2 lladdr 02:00:00:00:00:98 dev tun0");
    bench.set(
        "t:udp",
        &node_port(UDP, 30_020, &[("10.244.7.7", 53, false)]),
    );
    bench.set(
        "u:udp",
        &node_port(UDP, 30_021, &[("fd00:1:7::7", 53, false)]),
    );
    let before = bench.counted(Reason::TooBig);
    let long = |source: &str, destination: &str| Frame {
        payload: vec![7; 1_200],
        ..frame(UDP, source, destination)
    };
    let told = |program: &str, ifindex: u32, request: &Frame| {
        let (verdict, bytes) = bench.run_raw(program, ifindex, &whole(request));
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(bytes[..6], request.bytes()[6..12], "back to who sent it");
        assert_eq!(bytes[34..36], [3, 4], "fragmentation needed");
        assert_eq!(bytes[38..42], [0, 0, 0x03, 0xe8], "1000 bytes fit");
        assert_eq!(bytes.len(), 14 + 28 + 128);
        let (from, to, source, destination) = read_unreachable(&bytes);
        assert_eq!((from, to), (ip("192.0.2.10"), request.source.ip()));
        assert_eq!((source, destination), (request.source, request.destination));
    };
    let request = long(CLIENT, "192.0.2.10:30020");
    told("from_net", UPLINK, &request);
    let from_pod = long("10.244.1.5:46000", "10.244.7.7:53");
    told("from_pod", POD_IFINDEX, &from_pod);
    assert_eq!(bench.counted(Reason::TooBig), before + 2);
    // What may be fragmented is the stack's.
    let (verdict, _) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Pass);
    // A direct answer's option takes room.
    let mut wanted = node_port(UDP, 30_022, &[("10.244.7.7", 53, false)]);
    wanted.forwarding = Forwarding::DirectReturn;
    bench.set("v:udp", &wanted);
    let mut request = long(CLIENT, "192.0.2.10:30022");
    request.payload.truncate(1_000 - 28);
    let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &whole(&request));
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(bytes[38..42], [0, 0, 0x03, 0xe0], "992 bytes fit");
    let (_, to, _, destination) = read_unreachable(&bytes);
    assert_eq!(
        (to, destination),
        (request.source.ip(), request.destination)
    );
    // IPv6 is never fragmented on the way.
    shell("link set tun0 mtu 1280");
    shell("-6 addr add fd99::1/64 dev tun0 nodad");
    shell("-6 route add fd00:1:7::/64 via fd99::2");
    shell("-6 neigh add fd99::2 lladdr 02:00:00:00:00:98 dev tun0");
    let mut request = long("[2001:db8:1::9]:5000", "[2001:db8::10]:30021");
    request.payload = vec![7; 1_300];
    let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &request.bytes());
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(bytes[20], 58);
    assert_eq!(bytes[54..56], [2, 0], "packet too big");
    assert_eq!(bytes[58..62], 1_280u32.to_be_bytes());
    assert_eq!(bytes[38..54], request.bytes()[22..38], "to its sender");
    assert_eq!(bytes[62..62 + 128], request.bytes()[14..14 + 128]);
    assert!(has_good_icmpv6_checksum(&bytes));
}

/// Not to be fragmented.
fn whole(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes[20] = 0x40;
    bytes[24..26].copy_from_slice(&[0, 0]);
    let checksum = header_checksum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn hop_limits_end_journeys(bench: &Bench) {
    let mut last = frame(TCP, CLIENT, "10.244.1.5:80");
    last.hop_limit = 1;
    assert_eq!(bench.run("from_net", UPLINK, &last).0, Verdict::Drop);
    assert_eq!(bench.counted(Reason::HopLimit), 1);
}

fn two_clients_never_share_a_port(bench: &Bench) {
    bench.set(
        "k:tcp",
        &node_port(TCP, 30_011, &[("10.244.2.9", 80, false)]),
    );
    let mut ports = std::collections::HashSet::new();
    for client in 0..200 {
        let request = frame(
            TCP,
            &format!("198.51.100.{client}:12345"),
            "192.0.2.10:30011",
        );
        let (_, onward) = bench.run("from_net", UPLINK, &request);
        assert!(ports.insert(onward.source.port()), "client {client}");
        let (_, back) = bench.run("from_net", UPLINK, &onward.answer());
        assert_eq!(back.destination, request.source);
    }
    // Two Services with the same backend, the same client port: told apart by a port of ours.
    bench.set("l:tcp", &node_port(TCP, 30_012, &[(POD, 99, true)]));
    bench.set("m:tcp", &node_port(TCP, 30_013, &[(POD, 99, true)]));
    let requests = [30_012, 30_013].map(|port| frame(TCP, CLIENT, &format!("192.0.2.10:{port}")));
    let inside: Vec<Frame> = requests
        .iter()
        .map(|request| bench.run("from_net", UPLINK, request).1)
        .collect();
    assert_ne!(inside[0].source, inside[1].source);
    for (request, inside) in requests.iter().zip(&inside) {
        let (_, back) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
        assert_eq!(
            (back.source, back.destination),
            (request.destination, request.source)
        );
    }
}

fn quiet_flows_are_swept_live_ones_stay(bench: &Bench) {
    let entries = bench.datapath.flow_entries().unwrap().len();
    assert!(entries > 400, "{entries}");
    let sweep = bench.datapath.sweep_flows().unwrap();
    assert_eq!(
        (sweep.entries, sweep.removed),
        (entries, 0),
        "nothing is old yet"
    );
    // Every flow of a UDP backend is forgotten when it goes.
    let removed = bench
        .datapath
        .forget_backends(&[(ip("10.244.2.7"), 53)])
        .unwrap();
    assert_eq!(removed, 1);
    let answer = frame(UDP, "10.244.2.7:53", "192.0.2.10:4444");
    assert_eq!(bench.run("from_net", UPLINK, &answer).0, Verdict::Pass);
}
