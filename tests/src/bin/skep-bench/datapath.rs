//! Requests per second to nginx: direct, through the ClusterIP, through the NodePort; over kept and over new connections.
//! Bytes per second of one connection with iperf3. What is lost while one agent takes over from another. And the
//! programming of Services into the kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::{TestCluster, text};
use skep_tests::load::{self, Connections};
use skep_tests::wait::wait_for;
use xtask::cluster::Store;
use xtask::cluster::images::NGINX;
use xtask::workspace;

use crate::{Figure, Target, memory, programming, takeover};

/// Each is many changes.
const PROGRAMMING_ROUNDS: usize = 3;
/// Of four turns of a tenth of a second on each, in a round.
const QUARTETS: &str = "6";
const CLIENTS: &str = "16";
/// Left to itself the scheduler puts both sides on one CPU at times, which is faster or slower than two.
const CLIENT_CPU: usize = 0;
const STREAM_SECONDS: &str = "1";
/// Debian's, and what they need beyond the image's.
const IPERF_PACKAGES: [&str; 3] = ["iperf3", "libiperf0", "libsctp1"];
const IPERF_PORT: u16 = 5_201;
/// Of the bytes a second of the direct way.
const BYTES_TO_DIRECT: f64 = 0.99;
const READY: Duration = Duration::from_secs(60);

/// Two ways to a server from one place: through skep, and direct.
struct Comparison {
    names: [&'static str; 2],
    targets: [String; 2],
    from_pod: bool,
    /// Of the requests a second of the direct way.
    least: [(Connections, f64); 2],
}

pub(crate) fn measure(store: Store, rounds: usize, other: Option<&Path>) -> Result<Vec<Figure>> {
    let cluster = TestCluster::up("bench-datapath", 1, store, &[])?;
    let kubectl = cluster.skep("default");
    let mut figures = of_requests(&cluster, &kubectl, rounds)?;
    figures.extend(of_bytes(&cluster, &kubectl, rounds)?);
    figures.extend(memory::of_cluster(&cluster.state, "after the load")?);
    figures.extend(takeover::measure(&cluster, &kubectl, rounds, other)?);
    drop(cluster);
    figures.extend(programming::measure(rounds.min(PROGRAMMING_ROUNDS))?);
    Ok(figures)
}

fn of_requests(cluster: &TestCluster, kubectl: &Client, rounds: usize) -> Result<Vec<Figure>> {
    deploy(cluster, kubectl)?;
    let pod_address = ready_address(kubectl, "server")?;
    ready_address(kubectl, "client")?;
    ready_address(kubectl, "server-on-node")?;
    for server in ["server", "server-on-node"] {
        pin(kubectl, server)?;
    }
    let service = kubectl.get(&["service", "server"])?;
    let cluster_ip = text(&service, "/spec/clusterIP")?;
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no nodePort")?;
    let node = cluster.node("node1")?;
    let comparisons = [
        Comparison {
            names: ["pod to ClusterIP", "pod to pod, direct"],
            targets: [format!("{cluster_ip}:80"), format!("{pod_address}:80")],
            from_pod: true,
            least: [(Connections::KeepAlive, 0.97), (Connections::New, 0.97)],
        },
        Comparison {
            names: ["outside to NodePort", "outside to the node, direct"],
            targets: [
                format!("{}:{node_port}", node.address),
                format!("{}:80", node.address),
            ],
            from_pod: false,
            least: [(Connections::KeepAlive, 0.95), (Connections::New, 0.9)],
        },
    ];
    let mut each: Vec<(&Comparison, (Connections, f64))> = Vec::new();
    for comparison in &comparisons {
        each.extend(comparison.least.map(|kind| (comparison, kind)));
    }
    let mut all: Vec<Vec<load::Comparison>> = each.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (reports, &(comparison, (kind, _))) in all.iter_mut().zip(&each) {
            let report = compare(cluster, kubectl, comparison, kind)?;
            for (report, name) in report.reports.iter().zip(comparison.names) {
                report.ensure_no_failures(name)?;
            }
            reports.push(report);
        }
    }
    let mut figures = Vec::new();
    let mut ratios = Vec::new();
    for (reports, (comparison, (kind, least))) in all.iter().zip(each) {
        let kind = kind.name();
        let rates = [0, 1].map(|side| -> Vec<f64> {
            let of = |report: &load::Comparison| report.rates[side].clone();
            reports.iter().flat_map(of).collect()
        });
        let p99 = [0, 1].map(|side| -> Vec<f64> {
            let of = |report: &load::Comparison| report.reports[side].p99_us as f64;
            reports.iter().map(of).collect()
        });
        for side in [1, 0] {
            let name = format!("{}, {kind} connections", comparison.names[side]);
            figures.push(Figure::of(&name, "requests/s", rates[side].clone())?);
            figures.push(Figure::of(format!("{name}, p99"), "µs", p99[side].clone())?);
        }
        let name = format!("{} : {}, {kind}", comparison.names[0], comparison.names[1]);
        let wanted = Target::AtLeast(least);
        ratios.push(Figure::ratio(&name, &rates[0], &rates[1], wanted)?);
        if comparison.from_pod {
            let wanted = Target::AtMost(1.0 / least);
            ratios.push(Figure::ratio(
                format!("{name}, p99"),
                &p99[0],
                &p99[1],
                wanted,
            )?);
        }
    }
    figures.extend(ratios);
    Ok(figures)
}

/// The last one.
fn server_cpu() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get() - 1)
}

/// Keeps a server's processes on the servers' CPU.
fn pin(kubectl: &Client, pod: &str) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(server_cpu()?)?;
    let id = container_of(kubectl, pod)?;
    let listed = xtask::command::line(&format!("docker top {id} -eo pid")).output()?;
    for pid in listed
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
    {
        sched_setaffinity(Pid::from_raw(pid), &only).context("cannot keep a server on one CPU")?;
    }
    Ok(())
}

/// The pod's only container.
pub(crate) fn container_of(kubectl: &Client, pod: &str) -> Result<String> {
    let object = kubectl.get(&["pod", pod])?;
    let id = text(&object, "/status/containerStatuses/0/containerID")?;
    Ok(id.trim_start_matches("docker://").to_owned())
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
        let cpus = format!("{CLIENT_CPU},{}", server_cpu()?);
        let options = [
            "--json",
            "--affinity",
            &cpus,
            "--time",
            STREAM_SECONDS,
            "--client",
            target,
        ];
        let report: Value = serde_json::from_str(&kubectl.run(&[&client[..], &options].concat())?)?;
        let rate = report.pointer("/end/sum_received/bits_per_second");
        let rate = rate.and_then(Value::as_f64);
        rate.map(|rate| rate / 1e9)
            .with_context(|| format!("iperf3 printed {report}"))
    };
    // The server may not listen yet. And this warms up.
    wait_for("iperf3", READY, || stream(through))?;
    let targets = [direct.as_str(), through];
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let mut sums = [0.0; 2];
        for turn in [0, 1, 1, 0] {
            let side = (turn + round) % 2;
            sums[side] += stream(targets[side])?;
        }
        for (samples, sum) in samples.iter_mut().zip(sums) {
            samples.push(sum / 2.0);
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

pub(crate) fn apply(cluster: &TestCluster, kubectl: &Client, list: &Value) -> Result<()> {
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

pub(crate) fn ready_address(kubectl: &Client, pod: &str) -> Result<String> {
    wait_for(&format!("the pod {pod}"), READY, || {
        let pod = kubectl.get(&["pod", pod])?;
        anyhow::ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        text(&pod, "/status/podIP").map(str::to_owned)
    })
}

fn compare(
    cluster: &TestCluster,
    kubectl: &Client,
    comparison: &Comparison,
    kind: Connections,
) -> Result<load::Comparison> {
    let [through, direct] = &comparison.targets;
    let cpu = CLIENT_CPU.to_string();
    let arguments = [
        through.as_str(),
        "--against",
        direct,
        "--connections",
        kind.name(),
        "--clients",
        CLIENTS,
        "--quartets",
        QUARTETS,
        "--cpu",
        &cpu,
    ];
    let printed = if comparison.from_pod {
        let exec = ["exec", "client", "--", "/binaries/skep-load"];
        kubectl.run(&[&exec, &arguments[..]].concat())?
    } else {
        let program = cluster
            .state
            .outside()
            .program(workspace::binary("skep-load"))?;
        program.args(arguments).output()?
    };
    serde_json::from_str(&printed).with_context(|| format!("skep-load printed {printed:?}"))
}
