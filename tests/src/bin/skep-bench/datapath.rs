//! Requests per second to nginx: direct, through the ClusterIP, through the NodePort; over kept and over new connections.
//! Bytes per second of one connection with iperf3. And the programming of Services into the kernel.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::{TestCluster, text};
use skep_tests::load::{Connections, Report};
use skep_tests::wait::wait_for;
use xtask::cluster::Store;
use xtask::cluster::images::NGINX;
use xtask::workspace;

use crate::{Figure, Target, memory, programming};

/// Each is many changes.
const PROGRAMMING_ROUNDS: usize = 3;
const ROUND_SECONDS: &str = "2";
const CLIENTS: &str = "16";
/// Of the requests a second of the direct way.
const KEPT_TO_DIRECT: f64 = 0.97;
const NEW_TO_DIRECT: f64 = 0.97;
const KEPT_FROM_OUTSIDE: f64 = 0.95;
const NEW_FROM_OUTSIDE: f64 = 0.9;
const BYTES_TO_DIRECT: f64 = 0.99;
const STREAM_SECONDS: &str = "2";
/// Debian's, and what they need beyond the image's.
const IPERF_PACKAGES: [&str; 3] = ["iperf3", "libiperf0", "libsctp1"];
const IPERF_PORT: u16 = 5_201;
const READY: Duration = Duration::from_secs(60);

/// A way to the server, and the place to take it from.
struct Way {
    name: &'static str,
    target: String,
    from_pod: bool,
}

pub(crate) fn measure(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let mut figures = of_requests(store, rounds)?;
    figures.extend(programming::measure(rounds.min(PROGRAMMING_ROUNDS))?);
    Ok(figures)
}

fn of_requests(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let cluster = TestCluster::up("bench-datapath", 1, store, &[])?;
    let kubectl = cluster.skep("default");
    deploy(&cluster, &kubectl)?;
    let pod_address = ready_address(&kubectl, "server")?;
    ready_address(&kubectl, "client")?;
    ready_address(&kubectl, "server-on-node")?;
    let service = kubectl.get(&["service", "server"])?;
    let cluster_ip = text(&service, "/spec/clusterIP")?;
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no nodePort")?;
    let node = cluster.node("node1")?;

    let ways = [
        Way {
            name: "pod to pod, direct",
            target: format!("{pod_address}:80"),
            from_pod: true,
        },
        Way {
            name: "pod to ClusterIP",
            target: format!("{cluster_ip}:80"),
            from_pod: true,
        },
        Way {
            name: "outside to NodePort",
            target: format!("{}:{node_port}", node.address),
            from_pod: false,
        },
        Way {
            name: "outside to the node, direct",
            target: format!("{}:80", node.address),
            from_pod: false,
        },
    ];
    let kinds = [Connections::KeepAlive, Connections::New];
    let mut samples: Vec<Vec<Report>> = ways
        .iter()
        .flat_map(|_| kinds)
        .map(|_| Vec::new())
        .collect();
    for round in 0..=rounds {
        let each = ways.iter().flat_map(|way| kinds.map(|kind| (way, kind)));
        for (slot, (way, kind)) in samples.iter_mut().zip(each) {
            let report = load(&cluster, &kubectl, way, kind).with_context(|| way.name)?;
            report.ensure_no_failures(way.name)?;
            // The first round warms up.
            if round > 0 {
                slot.push(report);
            }
        }
    }
    let mut figures = Vec::new();
    let each = ways.iter().flat_map(|way| kinds.map(|kind| (way, kind)));
    for (reports, (way, kind)) in samples.iter().zip(each) {
        let name = format!("{}, {} connections", way.name, kind.name());
        figures.push(Figure::of(
            &name,
            "requests/s",
            reports
                .iter()
                .map(|each| each.requests_per_second)
                .collect(),
        )?);
        figures.push(Figure::of(
            format!("{name}, p99"),
            "µs",
            reports.iter().map(|each| each.p99_us as f64).collect(),
        )?);
    }
    // By the index of the way.
    let comparisons = [
        (1, 0, KEPT_TO_DIRECT, NEW_TO_DIRECT),
        (2, 3, KEPT_FROM_OUTSIDE, NEW_FROM_OUTSIDE),
    ];
    for (way, to, kept, new) in comparisons {
        for (kind, connections) in kinds.iter().enumerate() {
            let of = |way: usize, value: fn(&Report) -> f64| -> Vec<f64> {
                samples[way * kinds.len() + kind]
                    .iter()
                    .map(value)
                    .collect()
            };
            let least = if *connections == Connections::New {
                new
            } else {
                kept
            };
            let name = format!(
                "{} : {}, {}",
                ways[way].name,
                ways[to].name,
                connections.name()
            );
            let rate: fn(&Report) -> f64 = |report| report.requests_per_second;
            figures.push(Figure::ratio(
                &name,
                &of(way, rate),
                &of(to, rate),
                Target::AtLeast(least),
            )?);
            if way == 1 {
                let p99: fn(&Report) -> f64 = |report| report.p99_us as f64;
                figures.push(Figure::ratio(
                    format!("{name}, p99"),
                    &of(way, p99),
                    &of(to, p99),
                    Target::AtMost(1.0 / least),
                )?);
            }
        }
    }
    figures.extend(of_bytes(&cluster, &kubectl, rounds)?);
    figures.extend(memory::of_cluster(&cluster.state, "after the load")?);
    Ok(figures)
}

/// One stream from pod to pod, direct and through a ClusterIP.
fn of_bytes(cluster: &TestCluster, kubectl: &Client, rounds: usize) -> Result<Vec<Figure>> {
    let programs = workspace::root().join("target/iperf3");
    if !programs.join("usr/bin/iperf3").exists() {
        xtask::setup::unpack(&IPERF_PACKAGES, &programs)?;
    }
    let iperf = |name: &str, arguments: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": NGINX, "command": arguments,
                    "env": [{"name": "LD_LIBRARY_PATH", "value": "/iperf/usr/lib/x86_64-linux-gnu"}],
                    "volumeMounts": [{"name": "iperf", "mountPath": "/iperf", "readOnly": true}],
                }],
                "volumes": [{"name": "iperf", "hostPath": {"path": programs, "type": "Directory"}}],
            },
        })
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        iperf("stream-server", json!(["/iperf/usr/bin/iperf3", "--server"])),
        iperf("stream-client", json!(["sleep", "86400"])),
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "stream-server"},
            "spec": {"selector": {"app": "stream-server"}, "ports": [{"port": IPERF_PORT}]},
        },
    ]});
    apply(cluster, kubectl, &list)?;
    let direct = ready_address(kubectl, "stream-server")?;
    ready_address(kubectl, "stream-client")?;
    let service = kubectl.get(&["service", "stream-server"])?;
    let through = text(&service, "/spec/clusterIP")?;
    let stream = |target: &str| -> Result<f64> {
        let client = ["exec", "stream-client", "--", "/iperf/usr/bin/iperf3"];
        let options = ["--json", "--time", STREAM_SECONDS, "--client", target];
        let report: Value = serde_json::from_str(&kubectl.run(&[&client[..], &options].concat())?)?;
        let rate = report.pointer("/end/sum_received/bits_per_second");
        let rate = rate.and_then(Value::as_f64);
        rate.map(|rate| rate / 1e9)
            .with_context(|| format!("iperf3 printed {report}"))
    };
    // The server may not listen yet. And this warms up.
    wait_for("iperf3", READY, || stream(through))?;
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (samples, target) in samples.iter_mut().zip([direct.as_str(), through]) {
            samples.push(stream(target)?);
        }
    }
    let [direct, through] = samples;
    Ok(vec![
        Figure::of("one stream, pod to pod, direct", "Gbit/s", direct.clone())?,
        Figure::of("one stream, pod to ClusterIP", "Gbit/s", through.clone())?,
        Figure::ratio(
            "one stream, ClusterIP : direct",
            &through,
            &direct,
            Target::AtLeast(BYTES_TO_DIRECT),
        )?,
    ])
}

fn deploy(cluster: &TestCluster, kubectl: &Client) -> Result<()> {
    let binaries = workspace::binaries();
    let pod = |name: &str, container: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
                "volumes": [{"name": "binaries", "hostPath": {"path": binaries, "type": "Directory"}}],
            },
        })
    };
    let mut on_node = pod("server-on-node", json!({"name": "nginx", "image": NGINX}));
    on_node["spec"]["hostNetwork"] = json!(true);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("server", json!({"name": "nginx", "image": NGINX})),
        on_node,
        pod("client", json!({
            "name": "main", "image": NGINX, "command": ["sleep", "86400"],
            "volumeMounts": [{"name": "binaries", "mountPath": "/binaries", "readOnly": true}],
        })),
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
            "spec": {"type": "NodePort", "selector": {"app": "server"}, "ports": [{"port": 80}]},
        },
    ]});
    apply(cluster, kubectl, &list)
}

fn apply(cluster: &TestCluster, kubectl: &Client, list: &Value) -> Result<()> {
    let file = cluster.state.directory().join("bench.json");
    std::fs::write(&file, list.to_string())?;
    kubectl
        .run(&[
            "apply",
            "-f",
            file.to_str().context("the path is not text")?,
        ])
        .map(drop)
}

fn ready_address(kubectl: &Client, pod: &str) -> Result<String> {
    wait_for(&format!("the pod {pod}"), READY, || {
        let pod = kubectl.get(&["pod", pod])?;
        anyhow::ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        text(&pod, "/status/podIP").map(str::to_owned)
    })
}

fn load(cluster: &TestCluster, kubectl: &Client, way: &Way, kind: Connections) -> Result<Report> {
    let arguments = [
        &way.target,
        "--connections",
        kind.name(),
        "--clients",
        CLIENTS,
        "--seconds",
        ROUND_SECONDS,
    ];
    let printed = if way.from_pod {
        kubectl.run(
            &[
                &["exec", "client", "--", "/binaries/skep-load"],
                &arguments[..],
            ]
            .concat(),
        )?
    } else {
        cluster
            .state
            .outside()
            .program(workspace::binary("skep-load"))?
            .args(arguments)
            .output()?
    };
    serde_json::from_str(&printed).with_context(|| format!("skep-load printed {printed:?}"))
}
