//! From outside to Services: XDP in the uplink's driver, and backends that answer directly.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use skep_agent::network::Way;
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::services::Forwarding;

use crate::cluster::TestCluster;
use crate::role::{Place, Process, run, start};
use crate::traffic::{counted, node_port, one};

#[test]
fn xdp_carries_what_comes_from_outside() {
    let Some(mut cluster) = TestCluster::start_with_xdp(2) else {
        return;
    };
    let a = cluster.nodes[0].add_pod("a");
    let b = cluster.nodes[1].add_pod("b");
    let _web_a = start(&a.place, "tcp 0.0.0.0:80 web-a");
    let _web_b = start(&b.place, "tcp 0.0.0.0:80 web-b");
    let _dns_a = start(&a.place, "udp 0.0.0.0:53 dns-a");
    let outside = cluster.outside();
    cluster.receive_returned_frames();
    cluster.set_service("web", TCP, &[node_port(30_080)], &[(a.ip, 80)]);
    cluster.set_service("far", TCP, &[node_port(30_081)], &[(b.ip, 80)]);
    cluster.set_service("dns", UDP, &[node_port(30_053)], &[(a.ip, 53)]);
    let ask = |port: u16| one(&run(&outside, &format!("ask-tcp 10.89.0.1:{port} 1"))).to_string();
    let by_xdp = |cluster: &TestCluster, reason| counted(&cluster.nodes[0], reason);

    // Unfinished checksums of a virtual link: tc does it all.
    assert_eq!(ask(30_080), "answer web-a 10.89.0.200");
    assert_eq!(ask(30_081), "answer web-b 10.89.0.1");
    assert_eq!(by_xdp(&cluster, Reason::XdpToPod), 0);

    run(&outside, "finish-checksums eth0");
    assert_eq!(ask(30_080), "answer web-a 10.89.0.200");
    let dns = run(&outside, "ask-udp 10.89.0.1:30053 3");
    assert_eq!(dns, ["answer dns-a 10.89.0.200"; 3]);
    assert!(by_xdp(&cluster, Reason::XdpToPod) > 4);
    assert_eq!(ask(30_081), "answer web-b 10.89.0.1");
    assert!(by_xdp(&cluster, Reason::XdpToNeighbour) > 3);

    // The program is replaced under an open connection.
    let mut near = start(&outside, "hold-tcp 10.89.0.1:30080");
    let mut far = start(&outside, "hold-tcp 10.89.0.1:30081");
    cluster.nodes[0].kill_agent();
    let before = Instant::now();
    assert_eq!(
        (near.say("dead"), far.say("dead")),
        ("alive".into(), "alive".into())
    );
    assert!(before.elapsed() < Duration::from_secs(3));
    cluster.nodes[0].start_agent();
    cluster.reconnect();
    let before = by_xdp(&cluster, Reason::XdpToPod);
    assert_eq!(
        (near.say("again"), far.say("again")),
        ("alive".into(), "alive".into())
    );
    assert!(by_xdp(&cluster, Reason::XdpToPod) > before, "still by XDP");
    assert_eq!(ask(30_080), "answer web-a 10.89.0.200");

    // Directly answered: XDP carries all but the first packet.
    cluster.set_forwarded_service(
        "far",
        TCP,
        &[node_port(30_081)],
        &[(b.ip, 80)],
        Forwarding::DirectReturn,
    );
    let before = by_xdp(&cluster, Reason::XdpToNeighbour);
    assert_eq!(ask(30_081), "answer web-b 10.89.0.200");
    assert!(by_xdp(&cluster, Reason::XdpToNeighbour) > before);
}

#[test]
fn clsact_does_what_tcx_does() {
    let Some(mut cluster) = TestCluster::start_with_clsact(2) else {
        return;
    };
    let filters = |place: &Place| {
        let output = Command::new("nsenter")
            .args([
                &format!("--net={}", place.netns),
                "tc",
                "filter",
                "show",
                "dev",
                "eth0",
            ])
            .args(["ingress"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.matches("direct-action").count()
    };
    let a = cluster.nodes[0].add_pod("a");
    let b = cluster.nodes[1].add_pod("b");
    let _web_a = start(&a.place, "tcp 0.0.0.0:80 web-a");
    let _web_b = start(&b.place, "tcp 0.0.0.0:80 web-b");
    let outside = cluster.outside();
    cluster.set_service("near", TCP, &[node_port(30_080)], &[(a.ip, 80)]);
    cluster.set_service("far", TCP, &[node_port(30_081)], &[(b.ip, 80)]);
    let works = |place: &Place| {
        let ask =
            |place, address: &str| one(&run(place, &format!("ask-tcp {address} 1"))).to_string();
        assert_eq!(
            ask(&a.place, &format!("{}:80", b.ip)),
            format!("answer web-b {}", a.ip)
        );
        assert_eq!(ask(place, "10.89.0.1:30080"), "answer web-a 10.89.0.200");
        assert_eq!(ask(place, "10.89.0.1:30081"), "answer web-b 10.89.0.1");
    };
    works(&outside);
    let node = cluster.nodes[0].place();
    assert_eq!(filters(&node), 1);
    let mut held = start(&outside, "hold-tcp 10.89.0.1:30081");
    cluster.nodes[0].kill_agent();
    assert_eq!(held.say("dead"), "alive");
    cluster.nodes[0].start_agent();
    cluster.reconnect();
    assert_eq!(held.say("again"), "alive");
    works(&outside);
    assert_eq!(filters(&node), 1, "in the place of the predecessor's");
    cluster.nodes[0].clean_up();
    assert_eq!(filters(&node), 0);
}

#[test]
fn direct_answers_do_not_pass_the_first_node() {
    for way in [Way::Native, Way::Vxlan] {
        let Some(cluster) = TestCluster::start_with(2, way) else {
            return;
        };
        let backend = cluster.nodes[1].add_pod("b");
        let _web = start(&backend.place, "tcp 0.0.0.0:80 web");
        let _dns = start(&backend.place, "udp 0.0.0.0:53 dns");
        let outside = cluster.outside();
        let first = cluster.nodes[0].ip;
        let serve = |forwarding| {
            let (web, dns) = ([node_port(30_080)], [node_port(30_053)]);
            let set = TestCluster::set_forwarded_service;
            set(&cluster, "web", TCP, &web, &[(backend.ip, 80)], forwarding);
            set(&cluster, "dns", UDP, &dns, &[(backend.ip, 53)], forwarding);
        };
        let ask = || {
            let mut answers = run(&outside, &format!("ask-tcp {first}:30080 20"));
            answers.extend(run(&outside, &format!("ask-udp {first}:30053 5")));
            answers
        };

        serve(Forwarding::DirectReturn);
        let mut capture = start(&cluster.nodes[0].place(), "capture");
        let mut held = start(&outside, &format!("hold-tcp {first}:30080"));
        let answers = ask();
        assert_eq!(answers.len(), 25, "{way:?}: {answers:?}");
        let direct = answers
            .iter()
            .all(|answer| answer.ends_with(" 10.89.0.200"));
        assert!(direct, "{way:?}: {answers:?}");
        assert_eq!(held.say("still"), "alive");
        let seen = seen(&mut capture, &format!(">{first}:30053"));
        assert!(
            seen.iter()
                .any(|word| word.ends_with(&format!(">{first}:30080")))
        );
        let passed: Vec<&String> = seen
            .iter()
            .filter(|word| is_answer(word, first, backend.ip))
            .collect();
        assert!(passed.is_empty(), "{way:?}: {passed:?}");
        assert!(counted(&cluster.nodes[0], Reason::DirectReturn) >= 21);

        // The same capture does see answers that come back.
        serve(Forwarding::SourceNat);
        let answers = ask();
        let hidden = answers
            .iter()
            .all(|answer| !answer.ends_with(" 10.89.0.200"));
        assert!(hidden && answers.len() == 25, "{way:?}: {answers:?}");
        let seen = self::seen(&mut capture, &format!("{first}:30053>"));
        assert!(seen.iter().any(|word| is_answer(word, first, backend.ip)));
    }
}

/// From the Service or from the backend.
fn is_answer(word: &str, first: IpAddr, backend: IpAddr) -> bool {
    word.starts_with(&format!("{first}:30080>"))
        || word.starts_with(&format!("{first}:30053>"))
        || word.starts_with(&format!("{backend}:"))
}

/// What was captured, once something with `awaited` in it was.
fn seen(capture: &mut Process, awaited: &str) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let line = capture.say("what?");
        if line.contains(awaited) {
            return line.split(' ').map(str::to_string).collect();
        }
        assert!(Instant::now() < deadline, "no {awaited} in {line}");
    }
}
