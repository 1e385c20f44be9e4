//! What users of a cluster's network expect of it.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_agent::network::{HostPort, PodNetworkSpec, Way};
use skep_datapath::layout::reason::Reason;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::policy::{Direction, PodPolicy, PolicyState, Rule};
use skep_datapath::services::{Forwarding, FrontendAddress};

use crate::cluster::{TestCluster, TestNode};
use crate::role::{Place, run, start};

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 50));

fn cluster_ip(port: u16) -> FrontendAddress {
    FrontendAddress {
        ip: VIP,
        port,
        external: false,
        restricted: false,
    }
}

pub(crate) fn node_port(port: u16) -> FrontendAddress {
    FrontendAddress {
        ip: IpAddr::from([0, 0, 0, 0]),
        port,
        external: true,
        restricted: false,
    }
}

pub(crate) fn counted(node: &TestNode, reason: Reason) -> u64 {
    let counts = node.datapath().reason_counts().unwrap();
    counts
        .iter()
        .find(|count| count.reason == reason)
        .map_or(0, |count| count.count)
}

pub(crate) fn one(lines: &[String]) -> &str {
    assert_eq!(lines.len(), 1, "{lines:?}");
    &lines[0]
}

#[test]
fn pods_and_services_across_two_nodes() {
    let Some(mut cluster) = TestCluster::start(2) else {
        return;
    };
    let a1 = cluster.nodes[0].add_pod("a1");
    let a2 = cluster.nodes[0].add_pod("a2");
    let b1 = cluster.nodes[1].add_pod("b1");
    let node1 = cluster.nodes[0].place();
    let outside = cluster.outside();
    let _web_a = start(&a1.place, "tcp 0.0.0.0:80 web-a");
    let _web_b = start(&b1.place, "tcp 0.0.0.0:80 web-b");
    let _dns_b = start(&b1.place, "udp 0.0.0.0:53 dns-b");

    // Pod to pod, on one node and across; the client's address is the pod's.
    let ask = |place, address: &str| run(place, &format!("ask-tcp {address} 1"));
    let expected = format!("answer web-a {}", a2.ip);
    assert_eq!(one(&ask(&a2.place, &format!("{}:80", a1.ip))), expected);
    let expected = format!("answer web-b {}", a2.ip);
    assert_eq!(one(&ask(&a2.place, &format!("{}:80", b1.ip))), expected);
    // Node to pod, on one node and across; pod to node.
    let expected = format!("answer web-a {}", cluster.nodes[0].ip);
    assert_eq!(one(&ask(&node1, &format!("{}:80", a1.ip))), expected);
    let expected = format!("answer web-b {}", cluster.nodes[0].ip);
    assert_eq!(one(&ask(&node1, &format!("{}:80", b1.ip))), expected);
    let _on_node = start(&node1, "tcp 0.0.0.0:8080 node-1");
    let expected = format!("answer node-1 {}", b1.ip);
    assert_eq!(
        one(&ask(&b1.place, &format!("{}:8080", cluster.nodes[0].ip))),
        expected
    );
    assert!(counted(&cluster.nodes[0], Reason::RedirectedToPod) > 0);
    assert!(counted(&cluster.nodes[0], Reason::RedirectedToNeighbour) > 0);

    // ClusterIP from pods and nodes, both backends used; UDP.
    let backends = [(a1.ip, 80), (b1.ip, 80)];
    cluster.set_service(
        "default/web:http",
        TCP,
        &[cluster_ip(80), node_port(30_080)],
        &backends,
    );
    cluster.set_service(
        "default/dns:udp",
        UDP,
        &[cluster_ip(53), node_port(30_053)],
        &[(b1.ip, 53)],
    );
    for place in [&a2.place, &b1.place, &node1] {
        let answers = run(place, "ask-tcp 10.96.0.50:80 20");
        assert_eq!(answers.len(), 20);
        assert!(
            answers.iter().any(|line| line.starts_with("answer web-a")),
            "{answers:?}"
        );
        assert!(
            answers.iter().any(|line| line.starts_with("answer web-b")),
            "{answers:?}"
        );
    }
    assert_eq!(
        one(&run(&a2.place, "ask-udp 10.96.0.50:53 1")),
        format!("answer dns-b {}", a2.ip)
    );

    // NodePort from outside, on both nodes: a local backend sees the client, a remote one the node.
    for node in &cluster.nodes {
        let answers = run(&outside, &format!("ask-tcp {}:30080 30", node.ip));
        assert_eq!(answers.len(), 30);
        let local = if node.range.contains(&a1.ip) {
            "web-a"
        } else {
            "web-b"
        };
        let remote = if local == "web-a" { "web-b" } else { "web-a" };
        let direct = format!("answer {local} 10.89.0.200");
        let translated = format!("answer {remote} {}", node.ip);
        assert!(answers.contains(&direct), "{answers:?}");
        assert!(answers.contains(&translated), "{answers:?}");
        assert!(
            answers
                .iter()
                .all(|line| *line == direct || *line == translated),
            "{answers:?}"
        );
    }
    let expected = format!("answer dns-b {}", cluster.nodes[0].ip);
    assert_eq!(one(&run(&outside, "ask-udp 10.89.0.1:30053 1")), expected);
    // NodePort from the node itself and from a pod, on the node's address and on loopback.
    assert!(one(&ask(&node1, "127.0.0.1:30080")).starts_with("answer web-"));
    assert!(one(&ask(&a2.place, "10.89.0.1:30080")).starts_with("answer web-"));
    assert!(one(&ask(&a2.place, "10.89.0.2:30080")).starts_with("answer web-"));
    assert_eq!(
        one(&ask(&a2.place, "127.0.0.1:30080")),
        "error ConnectionRefused",
        "the pod's own"
    );
    // Not from outside.
    assert!(one(&ask(&outside, "10.96.0.50:80")).starts_with("error"));

    // Out of the cluster behind the node's address.
    let _world = start(&outside, "tcp 0.0.0.0:9000 world");
    let expected = format!("answer world {}", cluster.nodes[0].ip);
    assert_eq!(one(&ask(&a2.place, "10.89.0.200:9000")), expected);
    assert_eq!(
        one(&ask(&a2.place, "10.89.0.200:9001")),
        "error ConnectionRefused"
    );
    // No way there: an answer, not a timeout.
    assert_eq!(
        one(&ask(&a2.place, "192.0.2.1:80")),
        "error NetworkUnreachable"
    );
    assert!(one(&ask(&a2.place, "10.96.0.99:80")).starts_with("error"));

    // Reaching itself through its Service.
    cluster.set_service("default/self:http", TCP, &[cluster_ip(81)], &[(a1.ip, 80)]);
    assert!(one(&ask(&a1.place, "10.96.0.50:81")).starts_with("answer web-a"));

    // No backend: refused at once, everywhere.
    cluster.set_service(
        "default/none:http",
        TCP,
        &[cluster_ip(82), node_port(30_082)],
        &[],
    );
    assert_eq!(
        one(&ask(&a2.place, "10.96.0.50:82")),
        "error ConnectionRefused"
    );
    assert_eq!(
        one(&ask(&outside, "10.89.0.1:30082")),
        "error ConnectionRefused"
    );

    // An address of the pool, on no interface: where one node answers for it, then the other.
    let pool = IpAddr::from([10, 89, 0, 250]);
    let balanced = FrontendAddress {
        ip: pool,
        port: 80,
        external: true,
        restricted: true,
    };
    cluster.set_service("default/balanced:http", TCP, &[balanced], &backends);
    assert!(
        one(&ask(&outside, "10.89.0.250:80")).starts_with("error"),
        "nobody answers"
    );
    for turn in [0, 1, 0] {
        for (index, node) in cluster.nodes.iter().enumerate() {
            let ips: Vec<IpAddr> = if index == turn {
                vec![pool]
            } else {
                Vec::new()
            };
            node.run_in_netns(move |datapath| datapath.set_announced(&ips))
                .unwrap();
        }
        let before = cluster
            .nodes
            .iter()
            .map(|node| counted(node, Reason::FlowCreated));
        let before: Vec<u64> = before.collect();
        assert!(one(&ask(&outside, "10.89.0.250:80")).starts_with("answer web-"));
        for (index, node) in cluster.nodes.iter().enumerate() {
            let served = counted(node, Reason::FlowCreated) > before[index];
            assert_eq!(
                served,
                index == turn,
                "the announcement moves the neighbours at once"
            );
        }
    }

    // Without an endpoint it refuses at once: the neighbours' patience is not asked for.
    cluster.set_service("default/balanced:http", TCP, &[balanced], &[]);
    let asked = std::time::Instant::now();
    assert_eq!(
        one(&ask(&outside, "10.89.0.250:80")),
        "error ConnectionRefused"
    );
    assert!(asked.elapsed() < std::time::Duration::from_secs(1));

    // A backend that is a node's own process.
    let backends = [(cluster.nodes[0].ip, 8080)];
    cluster.set_service(
        "default/host:http",
        TCP,
        &[cluster_ip(83), node_port(30_083)],
        &backends,
    );
    assert_eq!(
        one(&ask(&outside, "10.89.0.1:30083")),
        "answer node-1 10.89.0.200"
    );
    assert_eq!(
        one(&ask(&outside, "10.89.0.2:30083")),
        "answer node-1 10.89.0.2"
    );
    assert!(one(&ask(&b1.place, "10.96.0.50:83")).starts_with("answer node-1"));

    // Names, from a pod and from the node, over UDP and TCP; an outside name fails at once.
    let service = serde_json::json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.50", "clusterIPs": ["10.96.0.50"]},
    });
    cluster.nodes[0].serve_dns(vec![serde_json::from_value(service).unwrap()], Vec::new());
    for place in [&a2.place, &node1] {
        let ask = |name: &str| run(place, &format!("ask-dns 10.96.0.10:53 {name}"));
        assert_eq!(
            ask("web.default.svc.cluster.local"),
            ["answer 0 10.96.0.50"; 2]
        );
        assert_eq!(
            ask("none.default.svc.cluster.local"),
            ["answer 3 0.0.0.0"; 2]
        );
        assert_eq!(ask("example.org"), ["answer 2 0.0.0.0"; 2]);
    }

    // The agent dies: established connections and new ones go on; its successor takes over.
    let mut held = start(&outside, "hold-tcp 10.89.0.1:30080");
    let mut held_inside = start(&a2.place, "hold-tcp 10.96.0.50:80");
    assert_eq!(held.say("before"), "alive");
    cluster.nodes[0].kill_agent();
    assert_eq!(held.say("while dead"), "alive");
    assert_eq!(held_inside.say("while dead"), "alive");
    assert!(one(&ask(&a2.place, "10.96.0.50:80")).starts_with("answer web-"));
    assert!(one(&ask(&outside, "10.89.0.1:30080")).starts_with("answer web-"));
    cluster.nodes[0].start_agent();
    cluster.reconnect();
    assert_eq!(held.say("after"), "alive");
    assert_eq!(held_inside.say("after"), "alive");
    assert_eq!(
        cluster.nodes[0].attach("a1", a1.sandbox.pid()),
        [a1.ip, a1.ip6],
        "the same addresses again"
    );
    assert!(one(&ask(&a2.place, "10.96.0.50:80")).starts_with("answer web-"));
    drop((held, held_inside));

    // A hostPort, from outside and from the node itself; closed with its pod.
    let host_port = HostPort {
        protocol: "TCP".into(),
        host_ip: None,
        host_port: 8888,
        container_port: 80,
    };
    let spec = PodNetworkSpec {
        host_ports: vec![host_port],
        ..PodNetworkSpec::default()
    };
    let published = cluster.nodes[0].add_pod_with("published", spec);
    let _published = start(&published.place, "tcp 0.0.0.0:80 published");
    assert_eq!(
        one(&ask(&outside, "10.89.0.1:8888")),
        "answer published 10.89.0.200"
    );
    assert!(one(&ask(&node1, "127.0.0.1:8888")).starts_with("answer published"));
    cluster.nodes[0].detach(&published.uid);
    assert_eq!(
        one(&ask(&outside, "10.89.0.1:8888")),
        "error ConnectionRefused"
    );

    // A pod goes: its address is not handed out at once, its interface and links are gone.
    cluster.nodes[0].detach(&a2.uid);
    let a3 = cluster.nodes[0].add_pod("a3");
    assert_ne!(a3.ip, a2.ip);
    let expected = format!("answer web-b {}", a3.ip);
    assert_eq!(one(&ask(&a3.place, &format!("{}:80", b1.ip))), expected);
    assert!(
        !cluster.nodes[0]
            .datapath()
            .pod_ips()
            .unwrap()
            .contains(&a2.ip)
    );
}

/// Policy written straight into the tables: the plan has tests of its own.
#[test]
fn policy_isolates_pods_and_their_open_connections() {
    let Some(cluster) = TestCluster::start(2) else {
        return;
    };
    let server = cluster.nodes[0].add_pod("server");
    let friend = cluster.nodes[0].add_pod("friend");
    let stranger = cluster.nodes[0].add_pod("stranger");
    let remote_friend = cluster.nodes[1].add_pod("remote-friend");
    let remote_stranger = cluster.nodes[1].add_pod("remote-stranger");
    let _web = start(&server.place, "tcp 0.0.0.0:80 web");
    let _other = start(&server.place, "tcp 0.0.0.0:81 other");
    let _friend = start(&friend.place, "tcp 0.0.0.0:80 friend");
    let at = |port: u16| format!("ask-tcp {}:{port} 1", server.ip);
    let reaches = |place: &Place, role: &str| one(&run(place, role)).starts_with("answer");
    assert!(reaches(&stranger.place, &at(80)));
    let mut held = start(&stranger.place, &format!("hold-tcp {}:80", server.ip));
    assert_eq!(held.say("before"), "alive");

    // The server takes port 80 from friends only, and sends nothing of its own.
    const FRIEND: u32 = 300;
    let ips = |pods: &[&crate::cluster::TestPod]| -> Vec<IpNet> {
        pods.iter().map(|pod| IpNet::from(pod.ip)).collect()
    };
    let mut state = PolicyState::default();
    for net in ips(&[&friend, &remote_friend]) {
        state.identities.insert(net, FRIEND);
    }
    for net in ips(&[&server, &stranger, &remote_stranger]) {
        state.identities.insert(net, 301);
    }
    state.rules.insert(Rule {
        policy: 7,
        direction: Direction::Ingress,
        identity: FRIEND,
        protocol: TCP,
        port: 80,
        port_bits: 16,
    });
    state.pods.insert(
        server.ip,
        PodPolicy {
            policy: 7,
            ingress_isolated: true,
            egress_isolated: true,
        },
    );
    assert!(cluster.nodes[0].datapath().set_policy(&state).unwrap());
    assert!(
        !cluster.nodes[0].datapath().set_policy(&state).unwrap(),
        "nothing left to change"
    );

    assert!(
        reaches(&friend.place, &at(80)),
        "the friend, and its answers come back"
    );
    assert!(reaches(&remote_friend.place, &at(80)));
    assert!(!reaches(&friend.place, &at(81)), "another port");
    assert!(!reaches(&stranger.place, &at(80)));
    assert!(!reaches(&remote_stranger.place, &at(80)));
    assert!(
        reaches(&cluster.nodes[0].place(), &at(80)),
        "the node's probes"
    );
    assert_eq!(
        held.say("after"),
        "dead",
        "an open connection is judged anew"
    );
    assert!(
        !reaches(&server.place, &format!("ask-tcp {}:80 1", friend.ip)),
        "egress"
    );
    assert!(counted(&cluster.nodes[0], Reason::PolicyIngress) > 0);
    assert!(counted(&cluster.nodes[0], Reason::PolicyEgress) > 0);

    assert!(
        cluster.nodes[0]
            .datapath()
            .set_policy(&PolicyState::default())
            .unwrap()
    );
    assert!(reaches(&stranger.place, &at(80)));
    assert!(reaches(
        &server.place,
        &format!("ask-tcp {}:80 1", friend.ip)
    ));
}

/// A connection's translated source port stays its own while the backend may hold the connection
/// in TIME_WAIT: a SYN of another client on it would be answered with an ACK of the old connection
/// and be lost for a second.
#[test]
fn no_syn_meets_an_old_connection() {
    let Some(cluster) = TestCluster::start(2) else {
        return;
    };
    let backend = cluster.nodes[1].add_pod("backend");
    let _server = start(&backend.place, "tcp-brief 0.0.0.0:80");
    cluster.set_service(
        "default/brief:tcp",
        TCP,
        &[node_port(30_090)],
        &[(backend.ip, 80)],
    );
    const COUNT: usize = 8_000;
    let ask = format!("many-tcp {}:30090 {COUNT}", cluster.nodes[0].ip);
    let clients = [cluster.outside(), cluster.second_outside()]
        .map(|place| (place, ask.clone()))
        .map(|(place, ask)| std::thread::spawn(move || run(&place, &ask)));
    for client in clients {
        assert_eq!(one(&client.join().unwrap()), format!("answer {COUNT} 0"));
    }
}

/// The router between the nodes drops what has a pod's address: everything must be in the tunnel.
#[test]
fn pods_and_services_through_a_tunnel() {
    let Some(mut cluster) = TestCluster::start_with(2, Way::Vxlan) else {
        return;
    };
    let a = cluster.nodes[0].add_pod("a");
    let b = cluster.nodes[1].add_pod("b");
    let node1 = cluster.nodes[0].place();
    let outside = cluster.outside();
    let _web_b = start(&b.place, "tcp 0.0.0.0:80 web-b");
    let _dns_b = start(&b.place, "udp 0.0.0.0:53 dns-b");
    let _web_a = start(&a.place, "tcp 0.0.0.0:80 web-a");
    let ask = |place, address: &str| run(place, &format!("ask-tcp {address} 1"));

    let expected = format!("answer web-b {}", a.ip);
    assert_eq!(one(&ask(&a.place, &format!("{}:80", b.ip))), expected);
    // From the node: its address in the tunnel, which the answer finds.
    assert_eq!(
        one(&ask(&node1, &format!("{}:80", b.ip))),
        "answer web-b 10.244.1.1"
    );
    // To another node: outside, behind this one's address.
    let _on_node = start(&cluster.nodes[1].place(), "tcp 0.0.0.0:8080 node-2");
    assert_eq!(
        one(&ask(&a.place, "10.89.2.1:8080")),
        "answer node-2 10.89.1.1"
    );

    // A remote backend sees the client itself, and the answer comes back by the node asked.
    let frontends = [cluster_ip(80), node_port(30_080)];
    cluster.set_service("default/web:http", TCP, &frontends, &[(b.ip, 80)]);
    let frontends = [cluster_ip(53), node_port(30_053)];
    cluster.set_service("default/dns:udp", UDP, &frontends, &[(b.ip, 53)]);
    assert_eq!(one(&ask(&a.place, "10.96.0.50:80")), expected);
    for node in ["10.89.1.1", "10.89.2.1"] {
        let answers = run(&outside, &format!("ask-tcp {node}:30080 5"));
        assert_eq!(
            answers,
            vec!["answer web-b 10.89.0.200"; 5],
            "through {node}"
        );
        assert_eq!(
            one(&run(&outside, &format!("ask-udp {node}:30053 1"))),
            "answer dns-b 10.89.0.200"
        );
    }
    assert!(counted(&cluster.nodes[1], Reason::Tunnelled) > 0);

    // The agent's restart keeps a connection through the tunnel.
    let mut held = start(&outside, "hold-tcp 10.89.1.1:30080");
    assert_eq!(held.say("before"), "alive");
    for node in &mut cluster.nodes {
        node.kill_agent();
    }
    assert_eq!(held.say("while dead"), "alive");
    for node in &mut cluster.nodes {
        node.start_agent();
    }
    cluster.reconnect();
    assert_eq!(held.say("after"), "alive");
}

/// Pods, nodes, Services and the outside over IPv6, with and without a tunnel.
fn everything_over_ipv6(way: Way) {
    let Some(mut cluster) = TestCluster::start_with(2, way) else {
        return;
    };
    let tunnelled = way == Way::Vxlan;
    let a = cluster.nodes[0].add_pod("a");
    let a2 = cluster.nodes[0].add_pod("a2");
    let b = cluster.nodes[1].add_pod("b");
    let node1 = cluster.nodes[0].place();
    let (node1_ip, node2_ip) = (cluster.nodes[0].ip6, cluster.nodes[1].ip6);
    let outside = cluster.outside();
    let client = "fd00:89::200";
    let _web_a = start(&a.place, "tcp [::]:80 web-a");
    let _web_b = start(&b.place, "tcp [::]:80 web-b");
    let _dns_b = start(&b.place, "udp [::]:53 dns-b");
    let ask = |place: &Place, address: &str| {
        one(&run(place, &format!("ask-tcp {address} 1"))).to_string()
    };

    // Pod to pod, on one node and across; node to pod; pod to node.
    assert_eq!(
        ask(&a2.place, &format!("[{}]:80", a.ip6)),
        format!("answer web-a {}", a2.ip6)
    );
    assert_eq!(
        ask(&a2.place, &format!("[{}]:80", b.ip6)),
        format!("answer web-b {}", a2.ip6)
    );
    // Its address in the tunnel is the closer one (RFC 6724 §5, rule 8).
    let seen = if tunnelled {
        "fd00:244:1::1".to_string()
    } else {
        node1_ip.to_string()
    };
    assert_eq!(
        ask(&node1, &format!("[{}]:80", a.ip6)),
        format!("answer web-a {seen}")
    );
    assert_eq!(
        ask(&node1, &format!("[{}]:80", b.ip6)),
        format!("answer web-b {seen}")
    );
    let _on_node = start(&cluster.nodes[1].place(), "tcp [::]:8080 node-2");
    let seen = if tunnelled { node1_ip } else { a.ip6 };
    assert_eq!(
        ask(&a.place, &format!("[{node2_ip}]:8080")),
        format!("answer node-2 {seen}")
    );

    // Services, from pods, nodes and outside.
    let vip: IpAddr = "fd00:96::50".parse().unwrap();
    let frontend = |ip: IpAddr, port: u16, external: bool| FrontendAddress {
        ip,
        port,
        external,
        restricted: false,
    };
    let every = IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED);
    cluster.set_service(
        "default/web:http",
        TCP,
        &[frontend(vip, 80, false), frontend(every, 30_080, true)],
        &[(b.ip6, 80)],
    );
    cluster.set_service(
        "default/dns:udp",
        UDP,
        &[frontend(vip, 53, false), frontend(every, 30_053, true)],
        &[(b.ip6, 53)],
    );
    assert_eq!(
        ask(&a.place, "[fd00:96::50]:80"),
        format!("answer web-b {}", a.ip6)
    );
    assert_eq!(
        one(&run(&a.place, "ask-udp [fd00:96::50]:53 1")),
        format!("answer dns-b {}", a.ip6)
    );
    assert!(ask(&node1, "[fd00:96::50]:80").starts_with("answer web-b"));
    assert!(ask(&node1, "[::1]:30080").starts_with("answer web-b"));
    assert!(ask(&a.place, &format!("[{node1_ip}]:30080")).starts_with("answer web-b"));
    for node in [node1_ip, node2_ip] {
        // A remote backend sees the node, unless the tunnel keeps the client.
        let seen = if node == node1_ip && !tunnelled {
            node.to_string()
        } else {
            client.to_string()
        };
        let answers = run(&outside, &format!("ask-tcp [{node}]:30080 5"));
        assert_eq!(
            answers,
            vec![format!("answer web-b {seen}"); 5],
            "through {node}"
        );
        assert_eq!(
            one(&run(&outside, &format!("ask-udp [{node}]:30053 1"))),
            format!("answer dns-b {seen}")
        );
    }

    // The backend's node answers the client itself.
    let forward = |forwarding| {
        for (name, protocol, port, backend) in [
            ("default/web:http", TCP, 30_080, 80),
            ("default/dns:udp", UDP, 30_053, 53),
        ] {
            let inside = frontend(vip, backend, false);
            cluster.set_forwarded_service(
                name,
                protocol,
                &[inside, frontend(every, port, true)],
                &[(b.ip6, backend)],
                forwarding,
            );
        }
    };
    forward(Forwarding::DirectReturn);
    let answers = run(&outside, &format!("ask-tcp [{node1_ip}]:30080 5"));
    assert_eq!(answers, vec![format!("answer web-b {client}"); 5]);
    let answers = run(&outside, &format!("ask-udp [{node1_ip}]:30053 5"));
    assert_eq!(answers, vec![format!("answer dns-b {client}"); 5]);
    assert!(counted(&cluster.nodes[0], Reason::DirectReturn) >= 6);
    forward(Forwarding::Auto);

    // Out of the cluster behind the node's address; what refuses there refuses here.
    let _world = start(&outside, "tcp [::]:9000 world");
    assert_eq!(
        ask(&a.place, &format!("[{client}]:9000")),
        format!("answer world {node1_ip}")
    );
    assert_eq!(
        ask(&a.place, &format!("[{client}]:9001")),
        "error ConnectionRefused"
    );

    // Nobody serves: refused at once, inside and outside.
    cluster.set_service(
        "default/none:http",
        TCP,
        &[frontend(vip, 82, false), frontend(every, 30_082, true)],
        &[],
    );
    assert_eq!(ask(&a.place, "[fd00:96::50]:82"), "error ConnectionRefused");
    assert_eq!(
        ask(&outside, &format!("[{node1_ip}]:30082")),
        "error ConnectionRefused"
    );

    // Policy: the server takes one client.
    let mut state = PolicyState::default();
    state.identities.insert(IpNet::from(a.ip6), 300);
    state.identities.insert(IpNet::from(a2.ip6), 301);
    state.rules.insert(Rule {
        policy: 7,
        direction: Direction::Ingress,
        identity: 300,
        protocol: TCP,
        port: 80,
        port_bits: 16,
    });
    let isolated = PodPolicy {
        policy: 7,
        ingress_isolated: true,
        egress_isolated: false,
    };
    state.pods.insert(b.ip6, isolated);
    cluster.nodes[1].datapath().set_policy(&state).unwrap();
    let to_b = format!("[{}]:80", b.ip6);
    assert!(ask(&a.place, &to_b).starts_with("answer web-b"));
    assert!(ask(&a2.place, &to_b).starts_with("error"));
    cluster.nodes[1]
        .datapath()
        .set_policy(&PolicyState::default())
        .unwrap();

    // An address of the pool, on no interface, where one node answers for it, then the other.
    if !tunnelled {
        let pool: IpAddr = "fd00:89::250".parse().unwrap();
        cluster.set_service(
            "default/balanced:http",
            TCP,
            &[frontend(pool, 80, true)],
            &[(a.ip6, 80), (b.ip6, 80)],
        );
        assert!(
            ask(&outside, "[fd00:89::250]:80").starts_with("error"),
            "nobody answers"
        );
        for turn in [0, 1, 0] {
            let counts = |cluster: &TestCluster| -> Vec<u64> {
                let nodes = cluster.nodes.iter();
                nodes
                    .map(|node| counted(node, Reason::FlowCreated))
                    .collect()
            };
            for (index, node) in cluster.nodes.iter().enumerate() {
                let ips = if index == turn {
                    vec![pool]
                } else {
                    Vec::new()
                };
                node.run_in_netns(move |datapath| datapath.set_announced(&ips))
                    .unwrap();
            }
            let before = counts(&cluster);
            assert!(ask(&outside, "[fd00:89::250]:80").starts_with("answer web-"));
            for (index, count) in counts(&cluster).into_iter().enumerate() {
                assert_eq!(
                    count > before[index],
                    index == turn,
                    "the neighbours follow at once"
                );
            }
        }
        // Who has heard nothing asks.
        cluster.forget_neighbours();
        let before = counted(&cluster.nodes[0], Reason::NdpAnswered);
        assert!(ask(&outside, "[fd00:89::250]:80").starts_with("answer web-"));
        assert!(counted(&cluster.nodes[0], Reason::NdpAnswered) > before);
        cluster.set_service(
            "default/balanced:http",
            TCP,
            &[frontend(pool, 80, true)],
            &[],
        );
        assert_eq!(
            ask(&outside, "[fd00:89::250]:80"),
            "error ConnectionRefused"
        );
    }

    // The agents' restart keeps connections.
    let mut held = start(&outside, &format!("hold-tcp [{node1_ip}]:30080"));
    let mut held_inside = start(&a.place, "hold-tcp [fd00:96::50]:80");
    for node in &mut cluster.nodes {
        node.kill_agent();
    }
    assert_eq!(held.say("while dead"), "alive");
    for node in &mut cluster.nodes {
        node.start_agent();
    }
    cluster.reconnect();
    assert_eq!(held.say("after"), "alive");
    assert_eq!(held_inside.say("after"), "alive");
}

#[test]
fn everything_over_ipv6_between_neighbours() {
    everything_over_ipv6(Way::Native);
}

#[test]
fn everything_over_ipv6_through_a_tunnel() {
    everything_over_ipv6(Way::Vxlan);
}

/// Waits for an event that fits; says what came otherwise.
#[track_caller]
fn await_event(
    events: &std::sync::mpsc::Receiver<serde_json::Value>,
    fits: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let mut others = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match events.recv_timeout(left) {
            Ok(event) if fits(&event) => return event,
            Ok(event) => others.push(event),
            Err(_) => panic!("it did not come, but {others:#?}"),
        }
    }
}

/// `skep flows --follow` and `skep trace`, and that they say the same as what happens.
#[test]
fn what_happens_is_seen_and_foretold() {
    let Some(cluster) = TestCluster::start(2) else {
        return;
    };
    let client = cluster.nodes[0].add_pod("client");
    let near = cluster.nodes[0].add_pod("near");
    let far = cluster.nodes[1].add_pod("far");
    let outside = cluster.outside();
    let _near = start(&near.place, "tcp 0.0.0.0:80 near");
    let _far = start(&far.place, "tcp 0.0.0.0:80 far");
    let ask = |place: &Place, address: &str| {
        one(&run(place, &format!("ask-tcp {address} 1"))).to_string()
    };
    cluster.set_service(
        "default/web:http",
        TCP,
        &[cluster_ip(80), node_port(30_080)],
        &[(far.ip, 80)],
    );
    cluster.set_service("default/none:http", TCP, &[cluster_ip(82)], &[]);
    let mut state = PolicyState::default();
    let isolated = PodPolicy {
        policy: 7,
        ingress_isolated: true,
        egress_isolated: false,
    };
    state.pods.insert(near.ip, isolated);
    cluster.nodes[0].datapath().set_policy(&state).unwrap();

    let before = counted(&cluster.nodes[0], Reason::Forwarded);
    let _ = ask(&client.place, "10.96.0.50:80");
    assert_eq!(
        counted(&cluster.nodes[0], Reason::Forwarded),
        before,
        "nobody listens"
    );
    let stop = tokio_util::sync::CancellationToken::new();
    let events = cluster.nodes[0].follow(&stop);
    let trace = |origin: &str, from: IpAddr, to: &str, port: &str| {
        let from = from.to_string();
        let query = [
            ("origin", origin),
            ("from", &from),
            ("to", to),
            ("port", port),
        ];
        cluster.nodes[0].view("trace", &query)
    };
    let end = |trace: &serde_json::Value| {
        let path = &trace["paths"][0];
        format!(
            "{} {} {} {}",
            path["verdict"].as_str().unwrap(),
            path["reason"].as_str().unwrap_or("-"),
            path["source"].as_str().unwrap(),
            path["destination"].as_str().unwrap()
        )
    };
    let is = |event: &serde_json::Value, verdict: &str, source: IpAddr, destination: &str| {
        event["verdict"] == verdict
            && event["source"]
                .as_str()
                .unwrap()
                .starts_with(&source.to_string())
            && event["destination"] == destination
    };

    // Through a Service to another node.
    assert!(ask(&client.place, "10.96.0.50:80").starts_with("answer far"));
    let event = await_event(&events, |event| {
        is(event, "translated", client.ip, "10.96.0.50:80")
    });
    assert_eq!(event["newDestination"], format!("{}:80", far.ip));
    assert_eq!(event["service"], "default/web:http");
    await_event(&events, |event| {
        is(event, "forwarded", client.ip, &format!("{}:80", far.ip))
    });
    let told = trace("pod", client.ip, "10.96.0.50", "80");
    assert_eq!(end(&told), format!("routed - {} {}:80", client.ip, far.ip));
    assert!(
        told["steps"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("default/web:http"),
        "{told:#}"
    );

    // Policy drops; the same Service without a backend refuses; a port that no Service has.
    assert_eq!(
        ask(&client.place, &format!("{}:80", near.ip)),
        "error TimedOut"
    );
    let event = await_event(&events, |event| {
        is(event, "dropped", client.ip, &format!("{}:80", near.ip))
    });
    assert_eq!(event["reason"], "policy_ingress");
    let told = trace("pod", client.ip, &near.ip.to_string(), "80");
    assert_eq!(
        end(&told),
        format!("dropped policy_ingress {} {}:80", client.ip, near.ip)
    );
    assert_eq!(
        ask(&client.place, "10.96.0.50:82"),
        "error ConnectionRefused"
    );
    let told = trace("pod", client.ip, "10.96.0.50", "82");
    assert_eq!(
        end(&told),
        format!("refused no_backend {} 10.96.0.50:82", client.ip)
    );
    let told = trace("pod", client.ip, "10.96.0.50", "99");
    assert_eq!(
        end(&told),
        format!("dropped no_such_frontend {} 10.96.0.50:99", client.ip)
    );

    // From outside: the source is the node's for a backend elsewhere, as the backend says.
    let node = cluster.nodes[0].ip.to_string();
    assert_eq!(
        ask(&outside, &format!("{node}:30080")),
        format!("answer far {node}")
    );
    let from: IpAddr = "10.89.0.200".parse().unwrap();
    let event = await_event(&events, |event| {
        is(event, "translated", from, &format!("{node}:30080"))
    });
    assert!(
        event["newSource"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{node}:")),
        "{event}"
    );
    let told = trace("outside", from, &node, "30080");
    assert_eq!(end(&told), format!("routed - {node} {}:80", far.ip));
    let told = trace("outside", from, "10.96.0.50", "80");
    assert!(
        told["steps"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("not for clients outside"),
        "{told:#}"
    );
    // From the node itself, by the loopback; out of the cluster, behind the node.
    let told = trace("node", "127.0.0.1".parse().unwrap(), "127.0.0.1", "30080");
    assert_eq!(told["paths"][0]["destination"], format!("{}:80", far.ip));
    let told = trace("pod", client.ip, "10.89.0.200", "9000");
    assert_eq!(end(&told), format!("routed - {node} 10.89.0.200:9000"));
    for (query, error) in [
        (
            &[
                ("origin", "pod"),
                ("from", "10.0.0.1"),
                ("to", "fd00::1"),
                ("port", "80"),
            ],
            "families",
        ),
        (
            &[
                ("origin", "moon"),
                ("from", "10.0.0.1"),
                ("to", "10.0.0.2"),
                ("port", "80"),
            ],
            "moon",
        ),
        (
            &[
                ("origin", "pod"),
                ("from", "10.0.0.1"),
                ("to", "10.0.0.2"),
                ("port", "x"),
            ],
            "port",
        ),
    ] {
        let told = cluster.nodes[0].view("trace", query);
        assert!(told["error"].as_str().unwrap().contains(error), "{told}");
    }

    // When the last listener is gone the programs tell nothing any more.
    stop.cancel();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let before = counted(&cluster.nodes[0], Reason::Forwarded);
        let _ = ask(&client.place, "10.96.0.50:80");
        if counted(&cluster.nodes[0], Reason::Forwarded) == before {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it is still told");
    }
}

#[test]
fn a_lost_uplink_comes_back_and_cleanup_leaves_nothing() {
    let Some(mut cluster) = TestCluster::start(1) else {
        return;
    };
    let web = cluster.nodes[0].add_pod("web");
    let _web = start(&web.place, "tcp 0.0.0.0:80 web");
    let outside = cluster.outside();
    cluster.set_service(
        "default/web:http",
        TCP,
        &[node_port(30_080)],
        &[(web.ip, 80)],
    );
    let reached = || run(&outside, "ask-tcp 10.89.0.1:30080 1") == ["answer web 10.89.0.200"];
    assert!(reached());
    let mut lost = false;
    assert!(!cluster.nodes[0].look_at_uplink(&mut lost));
    assert!(!lost);
    cluster.unplug(1);
    assert!(!cluster.nodes[0].look_at_uplink(&mut lost));
    assert!(lost);
    cluster.plug_again(1);
    cluster.forget_neighbours();
    assert!(cluster.nodes[0].look_at_uplink(&mut lost), "another device");
    assert!(!lost);
    assert!(reached());

    let node = &mut cluster.nodes[0];
    assert!(node.ip("-4 route show").contains("proto 92"));
    node.clean_up();
    assert!(!node.bpf_dir().exists());
    for family in ["-4", "-6"] {
        let routes = node.ip(&format!("{family} route show"));
        assert!(!routes.contains("proto 92"), "{routes}");
    }
    let links = node.ip("-o link show");
    let names: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap())
        .collect();
    assert_eq!(names, ["lo", "eth0"]);
}
