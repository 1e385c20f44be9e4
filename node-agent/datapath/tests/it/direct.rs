//! Direct server return through `BPF_PROG_TEST_RUN`: the node where a connection comes in tells the
//! backend's node, which answers the client.

use std::net::{IpAddr, SocketAddr};

use skep_datapath::Verdict;
use skep_datapath::layout::flow::{RETURN_HEADER, RETURN_OPTION};
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::services::Forwarding;

use crate::frame::{ACK, FIN, Frame, SYN, frame, header_checksum};
use crate::packets::{Bench, CLIENT, POD, POD_IFINDEX, UPLINK, bench, node_port};

const REMOTE: &str = "10.244.2.7";
/// Another node of the cluster.
const OTHER_NODE: &str = "192.0.2.11";

/// The frame with the option that names the address and port to answer with.
fn telling(frame: &Frame, frontend: &str) -> Vec<u8> {
    let frontend: SocketAddr = frontend.parse().unwrap();
    let mut bytes = frame.bytes();
    let address = match frontend.ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            let mut header = vec![std::mem::replace(&mut bytes[20], 60)];
            header.extend(RETURN_HEADER);
            header.extend(frontend.port().to_be_bytes());
            header.extend(address.octets());
            bytes.splice(54..54, header);
            let len = (bytes.len() - 54) as u16;
            bytes[18..20].copy_from_slice(&len.to_be_bytes());
            return bytes;
        }
    };
    let mut option = RETURN_OPTION.to_vec();
    option.extend(frontend.port().to_be_bytes());
    option.extend(address.octets());
    bytes.splice(34..34, option);
    bytes[14] = 0x47;
    let len = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    bytes[24..26].copy_from_slice(&[0, 0]);
    let checksum = header_checksum(&bytes[14..42]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn direct(bench: &Bench, protocol: u8, port: u16, backend: &str, local: bool) {
    let mut wanted = node_port(protocol, port, &[(backend, 80, local)]);
    wanted.forwarding = Forwarding::DirectReturn;
    bench.set("a", &wanted);
}

#[test]
fn the_backends_node_answers() {
    let Some((bench, _scratch)) = bench("direct") else {
        return;
    };
    the_first_node_tells_and_forgets(&bench);
    the_backends_node_answers_as_the_service(&bench);
    datagrams_tell_each_time(&bench);
    nobody_believes_what_no_service_says(&bench);
    ipv6_tells_in_a_header_of_its_own(&bench);
}

fn the_first_node_tells_and_forgets(bench: &Bench) {
    direct(bench, TCP, 32_001, REMOTE, false);
    let request = frame(TCP, CLIENT, "192.0.2.10:32001");
    let mut expected = request.clone();
    expected.destination = format!("{REMOTE}:80").parse().unwrap();
    // XDP leaves the first packet to tc, before and after the flow is known.
    for _ in 0..2 {
        let (verdict, bytes) = bench.run_raw("xdp_net", UPLINK, &request.bytes());
        assert_eq!((verdict, bytes), (Verdict::Pass, request.bytes()));
        let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &request.bytes());
        assert_eq!(verdict, Verdict::Redirect);
        expected.hop_limit = 63;
        assert_eq!(bytes[14..], telling(&expected, "192.0.2.10:32001")[14..]);
    }
    assert_eq!(bench.counted(Reason::DirectReturn), 1);
    for flags in [ACK, FIN | ACK] {
        let packet = request.clone().flags(flags);
        let (verdict, onward) = bench.run("xdp_net", UPLINK, &packet);
        assert_eq!(verdict, Verdict::Return);
        assert_eq!(onward, expected.clone().flags(flags));
        let (verdict, by_tc) = bench.run("from_net", UPLINK, &packet);
        assert_eq!((verdict, by_tc), (Verdict::Redirect, onward));
    }
    assert_eq!(
        bench.datapath.flow_entries().unwrap().len(),
        1,
        "no answer comes by here"
    );
    // A local backend is nothing special.
    direct(bench, TCP, 32_002, POD, true);
    let request = frame(TCP, CLIENT, "192.0.2.10:32002");
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, format!("{POD}:80").parse().unwrap());
}

fn the_backends_node_answers_as_the_service(bench: &Bench) {
    direct(bench, TCP, 32_003, POD, true);
    let frontend = format!("{OTHER_NODE}:32003");
    let arriving = frame(TCP, "198.51.100.9:6000", &format!("{POD}:80"));
    let (verdict, inside) = bench.run_raw("from_net", UPLINK, &telling(&arriving, &frontend));
    assert_eq!(verdict, Verdict::Redirect);
    let mut expected = arriving.clone();
    expected.hop_limit = 63;
    assert_eq!(
        Frame::read(&inside),
        expected,
        "the pod sees what the client sent"
    );
    let answer = |flags: u8| {
        let (verdict, outside) =
            bench.run("from_pod", POD_IFINDEX, &arriving.answer().flags(flags));
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(outside.source, frontend.parse().unwrap());
        assert_eq!(outside.destination, arriving.source);
    };
    answer(SYN | ACK);
    for program in ["xdp_net", "from_net"] {
        let (verdict, inside) = bench.run(program, UPLINK, &arriving.clone().flags(ACK));
        assert_eq!(verdict, Verdict::Redirect, "{program}");
        assert_eq!(inside.destination, arriving.destination);
    }
    // Closed; the client takes its port again, by another node.
    bench.run("from_net", UPLINK, &arriving.clone().flags(FIN | ACK));
    answer(FIN | ACK);
    let again = telling(&arriving, "192.0.2.10:32003");
    assert_eq!(
        bench.run_raw("from_net", UPLINK, &again).0,
        Verdict::Redirect
    );
    let (_, outside) = bench.run("from_pod", POD_IFINDEX, &arriving.answer());
    assert_eq!(outside.source, "192.0.2.10:32003".parse().unwrap());
    // Both entries of the pair know of each other: neither is taken for half of one.
    let sweep = bench.datapath.sweep_flows().unwrap();
    assert_eq!(sweep.removed, 0);
}

fn datagrams_tell_each_time(bench: &Bench) {
    direct(bench, UDP, 32_004, REMOTE, false);
    let request = frame(UDP, CLIENT, "192.0.2.10:32004");
    let mut expected = request.clone();
    expected.destination = format!("{REMOTE}:80").parse().unwrap();
    expected.hop_limit = 63;
    for _ in 0..2 {
        let (_, bytes) = bench.run_raw("from_net", UPLINK, &request.bytes());
        assert_eq!(bytes[14..], telling(&expected, "192.0.2.10:32004")[14..]);
    }
    direct(bench, UDP, 32_005, POD, true);
    let arriving = frame(UDP, "198.51.100.9:6000", &format!("{POD}:80"));
    for frontend in ["192.0.2.11:32005", "192.0.2.11:32005", "192.0.2.10:32005"] {
        let (verdict, inside) = bench.run_raw("from_net", UPLINK, &telling(&arriving, frontend));
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(Frame::read(&inside).payload, arriving.payload);
        let (_, outside) = bench.run("from_pod", POD_IFINDEX, &arriving.answer());
        assert_eq!(outside.source, frontend.parse().unwrap());
    }
}

fn nobody_believes_what_no_service_says(bench: &Bench) {
    direct(bench, TCP, 32_006, POD, true);
    let arriving = frame(TCP, "198.51.100.9:7000", &format!("{POD}:80"));
    let before = bench.datapath.flow_entries().unwrap().len();
    for lie in [
        "192.0.2.11:32007",
        "203.0.113.7:32006",
        "198.51.100.1:443",
        "0.0.0.0:32006",
    ] {
        let bytes = telling(&arriving, lie);
        let (verdict, inside) = bench.run_raw("from_net", UPLINK, &bytes);
        assert_eq!(verdict, Verdict::Redirect, "a packet for a pod like others");
        assert_eq!(inside.len(), bytes.len(), "{lie}");
    }
    // A Service that is not answered directly.
    let wanted = node_port(TCP, 32_008, &[(POD, 80, true)]);
    bench.set("b", &wanted);
    bench.run_raw("from_net", UPLINK, &telling(&arriving, "192.0.2.11:32008"));
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), before);
}

fn ipv6_tells_in_a_header_of_its_own(bench: &Bench) {
    const CLIENT: &str = "[2001:db8:1::9]:5000";
    const OWN_POD: &str = "fd00:1::5";
    for protocol in [TCP, UDP] {
        direct(bench, protocol, 32_009, "fd00:1:2::7", false);
        let request = frame(protocol, CLIENT, "[2001:db8::10]:32009");
        let mut expected = request.clone();
        expected.destination = "[fd00:1:2::7]:80".parse().unwrap();
        expected.hop_limit = 63;
        for _ in 0..2 {
            let (verdict, bytes) = bench.run_raw("xdp_net", UPLINK, &request.bytes());
            assert_eq!((verdict, bytes), (Verdict::Pass, request.bytes()));
            let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &request.bytes());
            assert_eq!(verdict, Verdict::Redirect);
            let told = telling(&expected, "[2001:db8::10]:32009");
            assert_eq!(bytes[14..], told[14..]);
        }
        if protocol == TCP {
            let (verdict, onward) = bench.run("xdp_net", UPLINK, &request.clone().flags(ACK));
            assert_eq!(verdict, Verdict::Return);
            assert_eq!(onward, expected.clone().flags(ACK));
        }

        // Of a datagram in pieces the first says it.
        if protocol == UDP {
            for (fragment, tells) in [((7, true, 0), true), ((7, false, 2), false)] {
                let mut expected = expected.clone();
                let mut piece = request.clone();
                (expected.fragment, piece.fragment) = (fragment, fragment);
                let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &piece.bytes());
                assert_eq!(verdict, Verdict::Redirect);
                let onward = if tells {
                    telling(&expected, "[2001:db8::10]:32009")
                } else {
                    expected.bytes()
                };
                assert_eq!(bytes[14..], onward[14..], "{fragment:?}");
            }
        }

        direct(bench, protocol, 32_010, OWN_POD, true);
        let arriving = frame(protocol, CLIENT, &format!("[{OWN_POD}]:80"));
        let mut expected = arriving.clone();
        expected.hop_limit = 63;
        for frontend in ["[2001:db8::11]:32010", "[2001:db8::10]:32010"] {
            let told = telling(&arriving, frontend);
            let (verdict, inside) = bench.run_raw("from_net", UPLINK, &told);
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(Frame::read(&inside), expected, "as the client sent it");
            let (_, outside) = bench.run("from_pod", POD_IFINDEX, &arriving.answer());
            assert_eq!(outside.source, frontend.parse().unwrap());
            assert_eq!(outside.destination, arriving.source);
        }
        if protocol == UDP {
            let mut piece = arriving.clone();
            piece.fragment = (8, true, 0);
            expected.fragment = piece.fragment;
            let told = telling(&piece, "[2001:db8::11]:32010");
            let (_, inside) = bench.run_raw("from_net", UPLINK, &told);
            assert_eq!(Frame::read(&inside), expected);
        }
        let before = bench.datapath.flow_entries().unwrap().len();
        for lie in [
            "[2001:db8::11]:32011",
            "[2001:db8:1::9]:32010",
            "[::]:32010",
        ] {
            let told = telling(&arriving, lie);
            let (verdict, inside) = bench.run_raw("from_net", UPLINK, &told);
            assert_eq!(verdict, Verdict::Redirect, "a packet for a pod like others");
            assert_eq!(inside.len(), told.len(), "{lie}");
        }
        assert_eq!(bench.datapath.flow_entries().unwrap().len(), before);
    }
}
