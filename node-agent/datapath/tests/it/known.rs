//! Packets of known flows, which take the shortest way through the programs.

use skep_datapath::Verdict;
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};

use crate::frame::{ACK, Frame, SYN, frame};
use crate::packets::{Bench, CLIENT, OTHER_IFINDEX, POD, POD_IFINDEX, UPLINK, bench, node_port};

#[test]
fn packets_of_known_flows() {
    let Some((bench, _scratch)) = bench("known") else {
        return;
    };
    for (protocol, port) in [(TCP, 31_101), (UDP, 31_102)] {
        to_a_pod_and_back(&bench, protocol, port);
        checksums_that_look_unfinished(&bench, protocol, port + 10);
    }
    datagrams_choose_anew_without_their_backend(&bench);
    large_packets_of_known_flows(&bench);
    policy_still_holds(&bench);
}

/// A connection is known in both directions.
fn opened(bench: &Bench, protocol: u8, port: u16) -> (Frame, Frame) {
    let name = format!("known:{port}");
    bench.set(&name, &node_port(protocol, port, &[(POD, 8080, true)]));
    // As much as fills a frame: of a shorter one the short way takes no notice.
    let request = Frame {
        payload: vec![7; 18],
        ..frame(protocol, CLIENT, &format!("192.0.2.10:{port}"))
    };
    let (_, inside) = bench.run("from_net", UPLINK, &request);
    let answer = inside.answer().flags(SYN | ACK);
    let (_, outside) = bench.run("from_pod", POD_IFINDEX, &answer);
    assert_eq!(outside.source, request.destination);
    (request.flags(ACK), answer.flags(ACK))
}

fn to_a_pod_and_back(bench: &Bench, protocol: u8, port: u16) {
    let (request, answer) = opened(bench, protocol, port);
    for hop_limit in [64, 2] {
        let request = Frame {
            hop_limit,
            ..request.clone()
        };
        let (verdict, bytes) = bench.run_raw("from_net", UPLINK, &request.bytes());
        let inside = Frame::read(&bytes);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(inside.source, request.source);
        assert_eq!(inside.destination, answer.source);
        assert_eq!(inside.hop_limit, hop_limit - 1);
        assert_eq!(inside.payload, request.payload);

        let (verdict, bytes) = bench.run_raw("from_pod", POD_IFINDEX, &answer.bytes());
        let outside = Frame::read(&bytes);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(bytes[..6], [2, 0, 0, 0, 0, 0x99], "to the gateway");
        assert_eq!(outside.source, request.destination);
        assert_eq!(outside.destination, request.source);
        assert_eq!(outside.hop_limit, answer.hop_limit - 1);
        assert_eq!(outside.payload, answer.payload);
    }
    // Another pod sends what would belong to it.
    let before = bench.counted(Reason::Spoofed);
    let (verdict, _) = bench.run("from_pod", OTHER_IFINDEX, &answer);
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(bench.counted(Reason::Spoofed), before + 1);
}

/// A complete checksum that is the sum of its pseudo header by accident.
fn checksums_that_look_unfinished(bench: &Bench, protocol: u8, port: u16) {
    let (request, answer) = opened(bench, protocol, port);
    for (program, ifindex, packet) in [
        ("from_net", UPLINK, &request),
        ("from_pod", POD_IFINDEX, &answer),
    ] {
        let odd = (0..=u16::MAX)
            .map(|word| Frame {
                payload: [&word.to_be_bytes()[..], &[7; 16]].concat(),
                ..packet.clone()
            })
            .find(|packet| packet.bytes() == packet.unfinished())
            .unwrap();
        // Reading it looks at the checksum.
        let (verdict, rewritten) = bench.run(program, ifindex, &odd);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(rewritten.payload, odd.payload);
        assert!(rewritten.source != odd.source || rewritten.destination != odd.destination);
    }
    if protocol == UDP {
        let unchecked = Frame {
            unchecked: true,
            ..request
        };
        let (verdict, inside) = bench.run("from_net", UPLINK, &unchecked);
        assert_eq!((verdict, inside.unchecked), (Verdict::Redirect, true));
    }
}

fn datagrams_choose_anew_without_their_backend(bench: &Bench) {
    let (request, _) = opened(bench, UDP, 31_121);
    let other = [("10.244.1.6", 8081, true)];
    bench.set("known:31121", &node_port(UDP, 31_121, &other));
    let (verdict, inside) = bench.run("from_net", UPLINK, &request);
    assert_eq!(verdict, Verdict::Redirect);
    assert_eq!(inside.destination, "10.244.1.6:8081".parse().unwrap());
}

fn large_packets_of_known_flows(bench: &Bench) {
    let (request, answer) = opened(bench, TCP, 31_122);
    let large = |packet: Frame, len: usize| Frame {
        payload: vec![7; len],
        ..packet
    };
    // Whatever comes in fits into a pod; to the network goes what its link carries.
    let (verdict, _) = bench.run("from_net", UPLINK, &large(request, 2_000));
    assert_eq!(verdict, Verdict::Redirect);
    let (verdict, _) = bench.run("from_pod", POD_IFINDEX, &large(answer.clone(), 1_460));
    assert_eq!(verdict, Verdict::Redirect);
    let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &large(answer, 1_470));
    assert_eq!(verdict, Verdict::Pass, "the stack fragments it");
    assert_eq!(outside.source, "192.0.2.10:31122".parse().unwrap());
}

fn policy_still_holds(bench: &Bench) {
    let outwards = frame(TCP, &format!("{POD}:46000"), "198.51.100.1:443");
    let (verdict, _) = bench.run("from_pod", POD_IFINDEX, &outwards);
    assert_eq!(verdict, Verdict::Redirect);
    let (request, answer) = opened(bench, TCP, 31_131);
    let isolated = PodPolicy {
        policy: 11,
        ingress_isolated: true,
        egress_isolated: true,
    };
    let set = |rules: &[Rule]| bench.isolate(isolated, rules);
    let allowed = Rule {
        policy: 11,
        direction: Direction::Ingress,
        identity: 0,
        protocol: TCP,
        port: 8080,
        port_bits: 16,
    };
    set(&[allowed]);
    // Twice: judged, and remembered.
    for _ in 0..2 {
        assert_eq!(bench.run("from_net", UPLINK, &request).0, Verdict::Redirect);
        let (verdict, _) = bench.run("from_pod", POD_IFINDEX, &answer);
        assert_eq!(verdict, Verdict::Redirect, "answers go out");
        let (verdict, _) = bench.run("from_pod", POD_IFINDEX, &outwards.clone().flags(ACK));
        assert_eq!(verdict, Verdict::Drop, "nothing else does");
    }
    set(&[]);
    assert_eq!(bench.run("from_net", UPLINK, &request).0, Verdict::Drop);
    bench.datapath.set_policy(&PolicyState::default()).unwrap();
}
