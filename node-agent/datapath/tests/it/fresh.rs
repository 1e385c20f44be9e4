//! Packets that begin a flow to a pod of this node, which take the shortest way through `xdp_net` and `from_net`.

use std::collections::{BTreeMap, BTreeSet};

use skep_datapath::Verdict;
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};

use crate::frame::{ACK, Frame, SYN, frame};
use crate::packets::{Bench, POD, POD_IFINDEX, UPLINK, bench, bench_with, ip, node_port};
use crate::scratch::Scratch;

const PROGRAMS: [&str; 2] = ["xdp_net", "from_net"];

/// Long enough for the shortest way, whatever the protocol.
fn opening(protocol: u8, from: &str, port: u16) -> Frame {
    Frame {
        payload: vec![7; 18],
        ..frame(protocol, from, &format!("192.0.2.10:{port}"))
    }
}

#[test]
fn packets_that_begin_flows() {
    let Some((bench, scratch)) = bench("fresh") else {
        return;
    };
    both_entries_are_made(&bench);
    unfinished_checksums_are_tcs(&bench);
    many_backends_take_turns(&bench);
    what_is_told_is_what_happened(&bench);
    policy_judges_before_anything_is_made(&bench);
    peers_are_told_apart(&bench);
    clients_of_the_cluster_are_answered(&bench);
    one_client_has_many_flows(&bench, &scratch);
    what_a_pod_began_is_not_taken_over(&bench);
}

fn both_entries_are_made(bench: &Bench) {
    let mut port = 31_200;
    for program in PROGRAMS {
        for (protocol, maglev) in [(TCP, false), (UDP, false), (TCP, true)] {
            port += 1;
            let mut wanted = node_port(protocol, port, &[(POD, 8080, true)]);
            wanted.maglev = maglev;
            let name = format!("fresh:{port}");
            bench.set(&name, &wanted);
            let before = bench.datapath.flow_entries().unwrap().len();
            let created = bench.counted(Reason::FlowCreated);
            let request = opening(protocol, &format!("198.51.100.20:{}", port - 20_000), port);
            // Sent again, it is of the same flow.
            for _ in 0..2 {
                let (verdict, inside) = bench.run(program, UPLINK, &request);
                assert_eq!(verdict, Verdict::Redirect);
                assert_eq!(inside.source, request.source);
                assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
                assert_eq!(inside.hop_limit, request.hop_limit - 1);
                assert_eq!(inside.payload, request.payload);
                let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
                assert_eq!(verdict, Verdict::Redirect);
                assert_eq!(outside.source, request.destination);
                assert_eq!(outside.destination, request.source);
            }
            let entries = bench.datapath.flow_entries().unwrap();
            assert_eq!(entries.len(), before + 2);
            assert_eq!(bench.counted(Reason::FlowCreated), created + 1);
            let counts = bench.datapath.service_counts().unwrap();
            let count = counts.iter().find(|count| count.name == name).unwrap();
            assert_eq!(count.connections, 1);
            let given = bench.datapath.services().lock().connections();
            let given = given.iter().find(|given| given.name == name).unwrap();
            assert_eq!((given.port, given.connections), (8080, 1));
        }
    }
}

/// As Linux sends over a virtual link; XDP does not know which they are.
fn unfinished_checksums_are_tcs(bench: &Bench) {
    for (protocol, port) in [(TCP, 31_211), (UDP, 31_212)] {
        let wanted = node_port(protocol, port, &[(POD, 8080, true)]);
        bench.set(&format!("fresh:{port}"), &wanted);
        let request = opening(protocol, "198.51.100.20:4200", port);
        // A complete one that looks so by accident.
        let odd = (0..=u16::MAX)
            .map(|word| Frame {
                payload: [&word.to_be_bytes()[..], &[7; 16]].concat(),
                ..request.clone()
            })
            .find(|packet| packet.bytes() == packet.unfinished())
            .unwrap();
        let bytes = odd.bytes();
        assert_eq!(
            bench.run_raw("xdp_net", UPLINK, &bytes),
            (Verdict::Pass, bytes.clone())
        );
        let (verdict, inside) = bench.run("from_net", UPLINK, &odd);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
        assert_eq!(inside.payload, odd.payload);
    }
}

/// What each backend of the Service that is measured was given, by its port.
fn given(bench: &Bench) -> BTreeMap<u16, u64> {
    let services = bench.datapath.services().lock();
    let of_service = services.connections().into_iter();
    let ours = of_service.filter(|given| given.name == "fresh:31221");
    ours.map(|given| (given.port, given.connections)).collect()
}

/// A choice is known before it is due.
fn many_backends_take_turns(bench: &Bench) {
    let backends = |ports: std::ops::Range<u16>| -> Vec<(&str, u16, bool)> {
        ports.map(|port| (POD, port, true)).collect()
    };
    let mut client = 5_000;
    let mut chosen = |program: &str, times: u32| -> BTreeSet<u16> {
        let mut chosen = BTreeSet::new();
        for _ in 0..times {
            client += 1;
            let request = opening(TCP, &format!("198.51.100.21:{client}"), 31_221);
            let (verdict, inside) = bench.run(program, UPLINK, &request);
            assert_eq!(verdict, Verdict::Redirect);
            chosen.insert(inside.destination.port());
        }
        chosen
    };
    for program in PROGRAMS {
        bench.set(
            "fresh:31221",
            &node_port(TCP, 31_221, &backends(9_000..9_008)),
        );
        assert_eq!(chosen(program, 200), (9_000..9_008).collect());
        // Each gets its share, whatever the length of a walk.
        bench.set(
            "fresh:31221",
            &node_port(TCP, 31_221, &backends(9_000..9_003)),
        );
        let before = given(bench);
        assert_eq!(chosen(program, 480), (9_000..9_003).collect());
        for (port, connections) in given(bench) {
            let before = before.get(&port).copied().unwrap_or(0);
            assert!(
                (144..=176).contains(&(connections - before)),
                "{port}: {before}, {connections}"
            );
        }
        // Nothing that was drawn before leads to who has gone.
        bench.set(
            "fresh:31221",
            &node_port(TCP, 31_221, &backends(9_006..9_009)),
        );
        assert_eq!(chosen(program, 100), (9_006..9_009).collect());
        bench.set(
            "fresh:31221",
            &node_port(TCP, 31_221, &backends(9_100..9_101)),
        );
        assert_eq!(chosen(program, 3), [9_100].into());
    }
}

fn what_is_told_is_what_happened(bench: &Bench) {
    let mut events = bench.datapath.events().unwrap();
    bench.set("fresh:31231", &node_port(TCP, 31_231, &[(POD, 8080, true)]));
    bench.datapath.set_events(Some(1)).unwrap();
    for (program, client) in PROGRAMS
        .into_iter()
        .zip(["198.51.100.22:4300", "198.51.100.22:4301"])
    {
        let request = opening(TCP, client, 31_231);
        for flags in [SYN, ACK] {
            bench.run(program, UPLINK, &request.clone().flags(flags));
        }
        let event = events.next_event().unwrap();
        let at = |address: std::net::SocketAddr| (address.ip(), address.port());
        assert_eq!((event.reason, event.hook), (Reason::FlowCreated, program));
        assert_eq!((event.protocol, event.source), (TCP, at(request.source)));
        assert_eq!(event.destination, at(request.destination));
        assert_eq!(event.new, Some([at(request.source), (ip(POD), 8080)]));
        let ids = bench.datapath.services().lock().ids();
        assert!(ids.contains(&("fresh:31231".into(), event.service)));
        assert_eq!(events.next_event(), None, "what follows is not told");
    }
    bench.datapath.set_events(None).unwrap();
    bench.run(
        "xdp_net",
        UPLINK,
        &opening(TCP, "198.51.100.22:4302", 31_231),
    );
    assert_eq!(events.next_event(), None);
}

fn policy_judges_before_anything_is_made(bench: &Bench) {
    bench.set("fresh:31241", &node_port(TCP, 31_241, &[(POD, 8080, true)]));
    let isolated = PodPolicy {
        policy: 21,
        ingress_isolated: true,
        egress_isolated: false,
    };
    let set = |rules: &[Rule]| bench.isolate(isolated, rules);
    set(&[]);
    let entries = bench.datapath.flow_entries().unwrap().len();
    let created = bench.counted(Reason::FlowCreated);
    let denied = bench.counted(Reason::PolicyIngress);
    for program in PROGRAMS {
        let request = opening(TCP, "198.51.100.23:4400", 31_241);
        assert_eq!(bench.run(program, UPLINK, &request).0, Verdict::Drop);
    }
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), entries);
    assert_eq!(bench.counted(Reason::FlowCreated), created);
    assert_eq!(bench.counted(Reason::PolicyIngress), denied + 2);
    set(&[Rule {
        policy: 21,
        direction: Direction::Ingress,
        identity: 0,
        protocol: TCP,
        port: 8080,
        port_bits: 16,
    }]);
    for (program, client) in PROGRAMS
        .into_iter()
        .zip(["198.51.100.23:4401", "198.51.100.23:4402"])
    {
        let request = opening(TCP, client, 31_241);
        for flags in [SYN, ACK] {
            let (verdict, _) = bench.run(program, UPLINK, &request.clone().flags(flags));
            assert_eq!(verdict, Verdict::Redirect);
        }
    }
    assert_eq!(bench.datapath.flow_entries().unwrap().len(), entries + 4);
    bench.datapath.set_policy(&PolicyState::default()).unwrap();
}

/// One that is let in speaks for those around it, but not for networks inside its own, and not for long.
fn peers_are_told_apart(bench: &Bench) {
    bench.set("fresh:31245", &node_port(TCP, 31_245, &[(POD, 8080, true)]));
    let rule = Rule {
        policy: 22,
        direction: Direction::Ingress,
        identity: 300,
        protocol: TCP,
        port: 8080,
        port_bits: 16,
    };
    let isolated = PodPolicy {
        policy: 22,
        ingress_isolated: true,
        egress_isolated: false,
    };
    let set = |nets: &[(&str, u32)]| {
        let identities = nets
            .iter()
            .map(|(net, identity)| (net.parse().unwrap(), *identity));
        let state = PolicyState {
            identities: identities.collect(),
            rules: [rule].into(),
            pods: [(ip(POD), isolated)].into(),
        };
        bench.datapath.set_policy(&state).unwrap();
    };
    let mut port = 4_410;
    let mut are_let_in = |clients: [&str; 4], expected: [bool; 4]| {
        for program in PROGRAMS {
            // Whoever comes after whom.
            for first in 0..4 {
                for turn in 0..4 {
                    let at = (first + turn) % 4;
                    port += 1;
                    let client = format!("{}:{port}", clients[at]);
                    let (verdict, _) = bench.run(program, UPLINK, &opening(TCP, &client, 31_245));
                    let is_in = verdict == Verdict::Redirect;
                    assert_eq!(is_in, expected[at], "{client} through {program}");
                }
            }
        }
    };
    let clients = [
        "198.51.100.23",
        "198.51.100.99",
        "198.51.100.70",
        "203.0.113.7",
    ];
    let net = ("198.51.100.0/24", 300);
    set(&[net]);
    are_let_in(clients, [true, true, true, false]);
    set(&[net, ("198.51.100.64/26", 301)]);
    are_let_in(clients, [true, false, false, false]);
    set(&[net, ("198.51.100.64/26", 301), ("198.51.100.70/32", 300)]);
    are_let_in(clients, [true, false, true, false]);
    // No network of IPv6 has clients of IPv4.
    set(&[("::/0", 300)]);
    are_let_in(clients, [false; 4]);
    set(&[("::/0", 300), ("0.0.0.0/0", 300)]);
    are_let_in(clients, [true; 4]);
    set(&[("0.0.0.0/0", 300), ("198.51.100.99/32", 301)]);
    are_let_in(clients, [true, false, true, true]);
    bench.datapath.set_policy(&PolicyState::default()).unwrap();
}

/// What a pod sends into the cluster is looked up only if the pod is watched, as it is from such a flow on.
fn clients_of_the_cluster_are_answered(bench: &Bench) {
    bench.set("fresh:31251", &node_port(TCP, 31_251, &[(POD, 8080, true)]));
    let nets = |texts: &[&str]| -> Vec<ipnet::IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    // The second is no network of the cluster's before.
    for (client, networks) in [
        ("10.244.2.9:4500", nets(&["10.244.0.0/16"])),
        (
            "203.0.113.9:4500",
            nets(&["10.244.0.0/16", "203.0.113.0/24"]),
        ),
    ] {
        let services = nets(&["10.96.0.0/16"]);
        bench
            .datapath
            .set_networks(&networks, &services, &[])
            .unwrap();
        let request = opening(TCP, client, 31_251);
        let (verdict, inside) = bench.run("xdp_net", UPLINK, &request);
        assert_eq!(verdict, Verdict::Redirect);
        let (_, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
        assert_eq!(outside.source, request.destination);
    }
}

/// All answers go to one address and port, and so to one bucket: what it has no room for is elsewhere.
fn one_client_has_many_flows(bench: &Bench, scratch: &Scratch) {
    let sweep = || bench.datapath.sweep_flows().unwrap();
    for (program, client, port) in [
        ("xdp_net", "198.51.100.25:4600", 31_270),
        ("from_net", "198.51.100.25:4601", 31_290),
    ] {
        let ports = || port..port + 12;
        for port in ports() {
            let wanted = node_port(UDP, port, &[(POD, port - 22_000, true)]);
            bench.set(&format!("fresh:{port}"), &wanted);
        }
        sweep();
        let before = (scratch.straying(), bench.datapath.flow_entries().unwrap());
        for _ in 0..2 {
            for port in ports() {
                let request = opening(UDP, client, port);
                let (verdict, inside) = bench.run(program, UPLINK, &request);
                assert_eq!(verdict, Verdict::Redirect);
                assert_eq!(inside.source, request.source);
                assert_eq!(inside.destination.port(), port - 22_000);
                let (_, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
                assert_eq!(outside.source, request.destination);
                assert_eq!(outside.destination, request.source);
            }
            assert!(scratch.straying() > before.0);
            // Only those are forgotten that have gone.
            sweep();
            assert!(scratch.straying() > before.0);
        }
        let entries = bench.datapath.flow_entries().unwrap();
        assert_eq!(entries.len(), before.1.len() + 24);
        let backends: Vec<_> = ports().map(|port| (ip(POD), port - 22_000)).collect();
        assert_eq!(bench.datapath.forget_backends(&backends).unwrap(), 12);
        sweep();
        sweep();
        assert_eq!(bench.datapath.flow_entries().unwrap(), before.1);
        assert_eq!(scratch.straying(), before.0);
    }
}

/// A pod that talks to a client from the port that it serves has a flow whose key is that of its answers.
fn what_a_pod_began_is_not_taken_over(bench: &Bench) {
    bench.set("fresh:31310", &node_port(UDP, 31_310, &[(POD, 8080, true)]));
    for (program, client) in PROGRAMS
        .into_iter()
        .zip(["198.51.100.26:4700", "198.51.100.26:4701"])
    {
        let own = Frame {
            payload: vec![7; 18],
            ..frame(UDP, &format!("{POD}:8080"), client)
        };
        let (verdict, masqueraded) = bench.run("from_pod", POD_IFINDEX, &own);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(masqueraded.source.ip(), ip("192.0.2.10"));
        let request = opening(UDP, client, 31_310);
        for _ in 0..2 {
            let (verdict, inside) = bench.run(program, UPLINK, &request);
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(inside.source.ip(), request.source.ip());
            assert_ne!(inside.source.port(), request.source.port(), "taken");
            let (_, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
            assert_eq!(outside.source, request.destination);
            assert_eq!(outside.destination, request.source);
            // And the pod's own flow goes on.
            let (_, again) = bench.run("from_pod", POD_IFINDEX, &own);
            assert_eq!(again.source, masqueraded.source);
            let (_, answer) = bench.run(program, UPLINK, &masqueraded.answer());
            assert_eq!(
                (answer.source, answer.destination),
                (own.destination, own.source)
            );
        }
    }
}

/// Two CPUs begin flows of the same clients to the same pod, so that most want what is taken or being taken: each is
/// answered as what it is.
#[test]
fn flows_that_begin_at_the_same_moment() {
    let Some((bench, _scratch)) = bench("moment") else {
        return;
    };
    let protocol_of = |port: u16| [TCP, UDP][usize::from(port % 2)];
    for port in 31_320..31_344 {
        let protocol = protocol_of(port);
        bench.set(
            &format!("fresh:{port}"),
            &node_port(protocol, port, &[(POD, 8080, true)]),
        );
    }
    let begin_many = |program: &str, mut seed: u64| {
        for _ in 0..2_000 {
            // Knuth's MMIX generator.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let port = 31_320 + (seed >> 33) as u16 % 24;
            let protocol = protocol_of(port);
            let client = format!(
                "198.51.100.{}:{}",
                30 + (seed >> 40) % 4,
                4_800 + (seed >> 48) % 4
            );
            let request = opening(protocol, &client, port);
            let (verdict, inside) = bench.run(program, UPLINK, &request);
            assert_eq!(verdict, Verdict::Redirect, "{client} to {port}");
            assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
            let (verdict, outside) = bench.run("from_pod", POD_IFINDEX, &inside.answer());
            assert_eq!(verdict, Verdict::Redirect, "{client} to {port}");
            assert_eq!(outside.source, request.destination);
            assert_eq!(outside.destination, request.source);
        }
    };
    std::thread::scope(|scope| {
        let threads = [("xdp_net", 1), ("xdp_net", 2), ("from_net", 3)]
            .map(|(program, seed)| scope.spawn(move || begin_many(program, seed)));
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let entries = bench.datapath.flow_entries().unwrap();
    let keys: BTreeSet<_> = entries
        .iter()
        .map(|entry| (entry.protocol, entry.source, entry.destination))
        .collect();
    assert_eq!(keys.len(), entries.len());
    // Every client has one to each Service.
    assert_eq!(
        entries.iter().filter(|entry| !entry.answer).count(),
        16 * 24
    );
}

#[test]
fn a_full_table_refuses_what_is_new_and_keeps_what_is_there() {
    let Some((bench, _scratch)) = bench_with("full", 8) else {
        return;
    };
    bench.set("full:31261", &node_port(TCP, 31_261, &[(POD, 8080, true)]));
    for program in PROGRAMS {
        let mut known = Vec::new();
        for client in 6_000..6_200 {
            let request = opening(TCP, &format!("198.51.100.24:{client}"), 31_261);
            let before = bench.datapath.flow_entries().unwrap().len();
            match bench.run(program, UPLINK, &request).0 {
                Verdict::Redirect => known.push(request),
                verdict => {
                    assert_eq!(verdict, Verdict::Drop);
                    let after = bench.datapath.flow_entries().unwrap().len();
                    assert_eq!(after, before, "nothing is left of it");
                }
            }
        }
        assert!(bench.counted(Reason::FlowTableFull) > 0);
        for request in known {
            let (verdict, inside) = bench.run(program, UPLINK, &request.flags(ACK));
            assert_eq!(verdict, Verdict::Redirect);
            assert_eq!(inside.destination, format!("{POD}:8080").parse().unwrap());
        }
    }
}
