//! Every branch of `xdp_net` through `BPF_PROG_TEST_RUN`. What it passes, `from_net` gets unchanged:
//! the tests send it on there, as the kernel does.

use skep_datapath::Verdict;
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{ICMP, TCP, UDP};
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};

use crate::frame::{ACK, FIN, Frame, frame, header_checksum, unreachable};
use crate::packets::{
    Bench, CLIENT, OTHER_IFINDEX, POD, POD_IFINDEX, TUNNEL, UPLINK, bench, ip, node_port,
};
use crate::scratch::shell;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const REMOTE: &str = "10.244.2.7";

impl Bench {
    #[track_caller]
    fn xdp(&self, frame: &Frame) -> (Verdict, Frame) {
        self.run("xdp_net", UPLINK, frame)
    }

    /// Passed, and not a byte changed.
    #[track_caller]
    fn xdp_leaves(&self, bytes: &[u8]) {
        assert_eq!(
            self.run_raw("xdp_net", UPLINK, bytes),
            (Verdict::Pass, bytes.to_vec())
        );
    }
}

#[test]
fn plain_packets_before_the_stack() {
    let Some((bench, _scratch)) = bench("xdp") else {
        return;
    };
    what_is_rare_is_left_to_tc(&bench);
    to_a_local_pod_and_back(&bench);
    to_a_remote_pod_and_back(&bench);
    over_ipv6(&bench);
    datagrams(&bench);
    unfinished_checksums_are_left_to_tc(&bench);
    pods_that_take_no_frames_get_theirs_from_tc(&bench);
    refusals(&bench);
    without_a_known_neighbour(&bench);
    policy_holds(&bench);
    into_the_tunnel(&bench);
}

fn into_the_tunnel(bench: &Bench) {
    const TUNNELLED: &str = "10.244.3.7";
    const OWN_END: [u8; 6] = [0x0a, 0x5c, 192, 0, 2, 10];
    const OTHER_END: [u8; 6] = [0x0a, 0x5c, 192, 0, 2, 12];
    shell("link set tun0 address 0a:5c:c0:00:02:0a");
    shell("link set tun0 mtu 1450");
    shell("addr add 10.99.0.1/24 dev tun0");
    shell("route add 10.244.3.0/24 via 10.99.0.2 dev tun0");
    shell("neigh add 10.99.0.2 lladdr 0a:5c:c0:00:02:0c dev tun0");
    bench
        .datapath
        .set_networks(
            &["10.244.0.0/16", "192.0.2.10/32", "192.0.2.12/32"].map(|net| net.parse().unwrap()),
            &["10.96.0.0/16".parse().unwrap()],
            &[("10.244.3.0/24".parse().unwrap(), ip("192.0.2.12"))],
        )
        .unwrap();
    let own = [ip("10.244.1.1")];
    bench.datapath.set_tunnel(TUNNEL, &own, true).unwrap();
    bench.set("t:tcp", &node_port(TCP, 31_020, &[(TUNNELLED, 80, false)]));
    bench.set("t:udp", &node_port(UDP, 31_020, &[(TUNNELLED, 53, false)]));

    // Nobody knows the way to the other node yet: the stack asks for it.
    let request = frame(TCP, "198.51.100.9:7000", "192.0.2.10:31020");
    bench.xdp_leaves(&request.bytes());
    shell("neigh add 192.0.2.12 lladdr 02:00:00:00:00:98 dev up0");
    let before = bench.counted(Reason::Tunnelled);
    for (protocol, port, congestion) in [(TCP, 80, 0), (TCP, 80, 3), (UDP, 53, 2)] {
        // What is remembered of ways is so for a moment.
        let mut request = frame(protocol, "198.51.100.9:7001", "192.0.2.10:31020");
        request.payload = vec![7; 100];
        let mut bytes = request.bytes();
        bytes[15] = congestion;
        bytes[24..26].copy_from_slice(&[0, 0]);
        let checksum = header_checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        let sent = wait_for_return(bench, &bytes);
        assert_eq!(sent.len(), bytes.len() + 50);
        let (outer, inner) = sent.split_at(50);
        assert_eq!(outer[..6], [2, 0, 0, 0, 0, 0x98]);
        assert_eq!(outer[12..16], [0x08, 0x00, 0x45, congestion]);
        let word = |at: usize| usize::from(u16::from_be_bytes([outer[at], outer[at + 1]]));
        assert_eq!(word(16), sent.len() - 14, "length of the IPv4 packet");
        assert_eq!(outer[22..24], [64, UDP]);
        assert_eq!(header_checksum(&outer[14..34]), 0);
        assert_eq!(outer[26..34], [192, 0, 2, 10, 192, 0, 2, 12]);
        assert!(word(34) >= 49_152);
        assert_eq!((word(36), word(38)), (8_472, sent.len() - 34));
        assert_eq!(word(40), 0, "no checksum of UDP");
        assert_eq!(outer[42..50], [0x08, 0, 0, 0, 0, 0x5c, 0xe9, 0]);
        assert_eq!(inner[..12], [OTHER_END, OWN_END].concat());
        assert_eq!(inner[15], congestion);
        let inside = Frame::read(inner);
        assert_eq!(inside.source, request.source, "the client is kept");
        let backend = format!("{TUNNELLED}:{port}");
        assert_eq!(inside.destination, backend.parse().unwrap());
        assert_eq!((inside.hop_limit, inside.payload), (63, request.payload));
    }
    assert_eq!(bench.counted(Reason::Tunnelled), before + 3);
    // The sender of what does not fit is told by tc.
    let mut long = frame(UDP, "198.51.100.9:7001", "192.0.2.10:31020");
    long.payload = vec![7; 1_440];
    bench.xdp_leaves(&long.bytes());
}

/// A way that was not known is asked for again a moment later.
fn wait_for_return(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let began = std::time::Instant::now();
    loop {
        let (verdict, sent) = bench.run_raw("xdp_net", UPLINK, bytes);
        if verdict == Verdict::Return {
            return sent;
        }
        assert!(began.elapsed().as_secs() < 10, "{verdict:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn what_is_rare_is_left_to_tc(bench: &Bench) {
    bench.set("a:tcp", &node_port(TCP, 31_001, &[(POD, 8080, true)]));
    let plain = frame(TCP, CLIENT, "192.0.2.10:31001");
    let bytes = plain.bytes();

    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.extend([0; 46]);
    bench.xdp_leaves(&arp);
    let mut tagged = bytes[..12].to_vec();
    tagged.extend([0x81, 0x00, 0, 7]);
    tagged.extend(&bytes[12..]);
    bench.xdp_leaves(&tagged);
    // A header of six words, the last one no-operations.
    let mut options = bytes[..34].to_vec();
    options[14] = 0x46;
    options.extend([1; 4]);
    options.extend(&bytes[34..]);
    bench.xdp_leaves(&options);
    for cut in [14, 20, 34, 40, 50] {
        bench.xdp_leaves(&bytes[..cut]);
    }
    let mut fragment = plain.clone();
    fragment.fragment = (7, true, 0);
    bench.xdp_leaves(&fragment.bytes());
    fragment.fragment = (7, false, 2);
    bench.xdp_leaves(&fragment.bytes());
    let mut last = plain.clone();
    last.hop_limit = 1;
    bench.xdp_leaves(&last.bytes());
    bench.xdp_leaves(&frame(ICMP, CLIENT, "192.0.2.10:0").bytes());
    bench.xdp_leaves(&unreachable("198.51.100.9", &plain));
    let mut v6 = frame(TCP, "[2001:db8:1::9]:5000", "[2001:db8::10]:31001").bytes();
    v6[20] = 0;
    bench.xdp_leaves(&v6);
    // Not a Service, and one that is not reachable from outside.
    bench.xdp_leaves(&frame(TCP, CLIENT, "192.0.2.10:22").bytes());
    bench.xdp_leaves(&frame(TCP, CLIENT, &format!("{POD}:8080")).bytes());
    let mut inside = node_port(TCP, 80, &[(POD, 8080, true)]);
    inside.frontends[0].ip = ip("10.96.0.77");
    inside.frontends[0].external = false;
    bench.set("b:tcp", &inside);
    bench.xdp_leaves(&frame(TCP, CLIENT, "10.96.0.77:80").bytes());
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), 0);
}

fn to_a_local_pod_and_back(bench: &Bench) {
    let request = frame(TCP, CLIENT, "192.0.2.10:31001");
    for flags in [crate::frame::SYN, ACK, FIN | ACK] {
        let (verdict, bytes) =
            bench.run_raw("xdp_net", UPLINK, &request.clone().flags(flags).bytes());
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(bytes[..6], [2, 0, 0, 0, 0, POD_IFINDEX as u8], "to the pod");
        assert_eq!(bytes[6..12], [0xee; 6]);
        let inside = Frame::read(&bytes);
        assert_eq!(inside.source, request.source);
        assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
        assert_eq!(inside.hop_limit, 63);
        // tc would do the same.
        let (verdict, by_tc) = bench.run("from_net", UPLINK, &request.clone().flags(flags));
        assert_eq!((verdict, by_tc), (Verdict::Redirect, inside.clone()));
        let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(
            (outside.source, outside.destination),
            (request.destination, request.source)
        );
    }
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), 2);
}

fn to_a_remote_pod_and_back(bench: &Bench) {
    bench.set("c:tcp", &node_port(TCP, 31_002, &[(REMOTE, 80, false)]));
    let request = frame(TCP, CLIENT, "192.0.2.10:31002");
    let (verdict, bytes) = bench.run_raw("xdp_net", UPLINK, &request.bytes());
    assert_eq!(verdict, Verdict::Return);
    assert_eq!(bytes[..6], GATEWAY_MAC);
    let onward = Frame::read(&bytes);
    assert_eq!(onward.source.ip(), ip("192.0.2.10"));
    assert_eq!(onward.destination, format!("{REMOTE}:80").parse().unwrap());
    assert_eq!(onward.hop_limit, 63);
    for _ in 0..2 {
        let (verdict, back) = bench.xdp(&onward.answer());
        assert_eq!(verdict, Verdict::Return);
        assert_eq!(
            (back.source, back.destination),
            (request.destination, request.source)
        );
    }
}

fn over_ipv6(bench: &Bench) {
    let backends = [("fd00:1::5", 8080, true)];
    bench.set("d:tcp", &node_port(TCP, 31_003, &backends));
    let request = frame(TCP, "[2001:db8:1::9]:5000", "[2001:db8::10]:31003");
    let (verdict, inside) = bench.xdp(&request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, "[fd00:1::5]:8080".parse().unwrap());
    assert_eq!(inside.hop_limit, 63);
    bench.set(
        "d:tcp",
        &node_port(TCP, 31_003, &[("fd00:1:2::7", 80, false)]),
    );
    let (verdict, onward) = bench.xdp(&request);
    assert_eq!(verdict, Verdict::Return);
    assert_eq!(onward.source.ip(), ip("2001:db8::10"));
    let (verdict, back) = bench.xdp(&onward.answer());
    assert_eq!(verdict, Verdict::Return);
    assert_eq!(
        (back.source, back.destination),
        (request.destination, request.source)
    );
}

fn datagrams(bench: &Bench) {
    bench.set("e:udp", &node_port(UDP, 31_004, &[(POD, 53, true)]));
    for unchecked in [true, false] {
        let mut request = frame(UDP, CLIENT, "192.0.2.10:31004");
        request.unchecked = unchecked;
        let (verdict, inside) = bench.xdp(&request);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(inside.unchecked, unchecked, "0 means none and stays so");
        assert_eq!(inside.destination, format!("{POD}:53").parse().unwrap());
    }
}

/// As Linux sends over a virtual link: the checksum is the pseudo header's sum.
fn unfinished_checksums_are_left_to_tc(bench: &Bench) {
    for (protocol, port) in [(TCP, 31_001), (UDP, 31_004)] {
        let request = frame(protocol, CLIENT, &format!("192.0.2.10:{port}"));
        bench.xdp_leaves(&request.unfinished());
    }
    let request = frame(TCP, "[2001:db8:1::9]:5000", "[2001:db8::10]:31003");
    bench.xdp_leaves(&request.unfinished());
}

fn pods_that_take_no_frames_get_theirs_from_tc(bench: &Bench) {
    bench.set("f:tcp", &node_port(TCP, 31_005, &[("10.244.1.6", 1, true)]));
    let request = frame(TCP, CLIENT, "192.0.2.10:31005");
    bench.xdp_leaves(&request.bytes());
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, "10.244.1.6:1".parse().unwrap());
    let (verdict, _) = bench.run("from_pod", OTHER_IFINDEX, &inside.answer());
    assert_eq!(verdict, Verdict::Redirect);
}

fn refusals(bench: &Bench) {
    // The stack refuses; tc counts it, once.
    bench.set("g:tcp", &node_port(TCP, 31_006, &[]));
    bench.xdp_leaves(&frame(TCP, CLIENT, "192.0.2.10:31006").bytes());
    assert_eq!(bench.counted(Reason::NoBackend), 0);
    let mut wanted = node_port(TCP, 31_007, &[(POD, 80, true)]);
    wanted.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    bench.set("h:tcp", &wanted);
    let stranger = frame(TCP, CLIENT, "192.0.2.10:31007");
    assert_eq!(bench.xdp(&stranger).0, Verdict::Drop);
    assert_eq!(bench.counted(Reason::SourceRange), 1);
    let customer = frame(TCP, "203.0.113.77:4444", "192.0.2.10:31007");
    assert_eq!(bench.xdp(&customer).0, Verdict::Redirect);
}

fn without_a_known_neighbour(bench: &Bench) {
    bench.set(
        "i:tcp",
        &node_port(TCP, 31_008, &[("192.0.2.77", 80, false)]),
    );
    let request = frame(TCP, CLIENT, "192.0.2.10:31008");
    bench.xdp_leaves(&request.bytes());
    // tc finds the flow and asks for the neighbour.
    let (verdict, onward) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(onward.destination, "192.0.2.77:80".parse().unwrap());
    // A backend in the host's own namespace.
    bench.set(
        "j:tcp",
        &node_port(TCP, 31_009, &[("192.0.2.10", 80, true)]),
    );
    bench.xdp_leaves(&frame(TCP, CLIENT, "192.0.2.10:31009").bytes());
}

fn policy_holds(bench: &Bench) {
    bench.set("k:tcp", &node_port(TCP, 31_010, &[(POD, 8080, true)]));
    let request = frame(TCP, CLIENT, "192.0.2.10:31010");
    let isolated = PodPolicy {
        policy: 9,
        ingress_isolated: true,
        egress_isolated: true,
    };
    let set = |rules: &[Rule]| bench.isolate(isolated, rules);
    set(&[]);
    let before = bench.datapath.flow_entries().unwrap().len();
    for program in ["xdp_net", "from_net"] {
        // Nor when it is sent again.
        for _ in 0..2 {
            assert_eq!(bench.run(program, UPLINK, &request).0, Verdict::Drop);
        }
    }
    // The same for what the pod sends out of the cluster.
    let outwards = frame(TCP, &format!("{POD}:45000"), "198.51.100.1:443");
    for _ in 0..2 {
        let (verdict, _) = bench.run("from_pod", POD_IFINDEX, &outwards);
        assert_eq!(verdict, Verdict::Drop);
    }
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), before);
    let allowed = Rule {
        policy: 9,
        direction: Direction::Ingress,
        identity: 0,
        protocol: TCP,
        port: 8080,
        port_bits: 16,
    };
    set(&[allowed]);
    for flags in [crate::frame::SYN, ACK] {
        let (verdict, _) = bench.xdp(&request.clone().flags(flags));
        assert_eq!(verdict, Verdict::Redirect);
    }
    // It ends an open connection too.
    set(&[]);
    let (verdict, _) = bench.xdp(&request.clone().flags(ACK));
    assert_eq!(verdict, Verdict::Drop);
    bench.datapath.set_policy(&PolicyState::default()).unwrap();
}
