//! An agent ends and another takes over, while a node forwards as much as it can: every datagram arrives, and of the
//! connections that are open and in use none is reset.
//!
//! ```text
//! outside ── NodePort ─► pod `sink-outside`        per packet, translated on the node's link
//! a pod's namespace ── ClusterIP ─► pod `sink-inside`   a process without socket hooks: per packet on the pod's link
//! ```
//! A datagram has arrived when it is at the pod's socket: what the server has no time to take, the kernel counts.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde_json::json;
use skep_tests::client::Client;
use skep_tests::cluster::{TestCluster, text};
use skep_tests::stream::{Flood, Held};
use skep_tests::wait::wait_for;
use xtask::cluster::Node;
use xtask::cluster::images::NGINX;
use xtask::cluster::process::Process;
use xtask::workspace;

use crate::datapath::{apply, container_of, ready_address};
use crate::{Figure, Target};

const ROUNDS: usize = 2;
const PORT: u16 = 7_000;
/// Of the first sink; the next one's follow.
const NODE_PORT: u16 = 30_700;
const SOON: Duration = Duration::from_secs(60);
/// Before what happens, and after it.
const FLOW: Duration = Duration::from_secs(1);
/// Two equal looks at a counter this far apart: nothing comes any more.
const QUIET: Duration = Duration::from_millis(300);

#[derive(Clone, Copy)]
enum Event {
    Nothing,
    Restart,
    Kill,
    Upgrade,
}

impl Event {
    const ALL: [Self; 4] = [Self::Nothing, Self::Restart, Self::Kill, Self::Upgrade];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::Restart => "the agent is restarted",
            Self::Kill => "the agent is killed",
            Self::Upgrade => "the cluster is upgraded",
        }
    }
}

/// A way for packets, by the place that they start from.
struct Way {
    name: &'static str,
    /// A command line up to the program.
    from: Vec<String>,
    target: String,
    /// The process whose network namespace they arrive in.
    sink: String,
}

/// What came of a run, for one way.
struct Outcome {
    sent_per_second: f64,
    lost: f64,
    reset: f64,
}

/// `other` has the binaries of another build, to upgrade to and from; else those of this one come from another folder.
pub(crate) fn measure(
    cluster: &TestCluster,
    kubectl: &Client,
    rounds: usize,
    other: Option<&Path>,
) -> Result<Vec<Figure>> {
    let ways = deploy(cluster, kubectl)?;
    let node = cluster.node("node1")?;
    let own = workspace::binaries();
    let other = match other {
        Some(folder) => folder.to_owned(),
        None => copy(&own, &cluster.state.directory().join("upgrade"))?,
    };
    let mut versions = [other, own].into_iter().cycle();
    let mut outcomes: Vec<Vec<Vec<Outcome>>> = Vec::new();
    for _ in 0..rounds.min(ROUNDS) {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            let all = run(cluster, node, &ways, event, &mut versions).context(event.name())?;
            if outcomes.len() <= index {
                outcomes.push(ways.iter().map(|_| Vec::new()).collect());
            }
            for (so_far, outcome) in outcomes[index].iter_mut().zip(all) {
                so_far.push(outcome);
            }
        }
    }
    let mut figures = Vec::new();
    for (event, of_ways) in Event::ALL.into_iter().zip(&outcomes) {
        for (way, outcomes) in ways.iter().zip(of_ways) {
            let named = |what: &str| format!("{}, {}: {what}", way.name, event.name());
            let values = |value: fn(&Outcome) -> f64| outcomes.iter().map(value).collect();
            figures.push(Figure::of(
                named("sent"),
                "packets/s",
                values(|of| of.sent_per_second),
            )?);
            let lost = Figure::of(named("lost"), "packets", values(|of| of.lost))?;
            let reset = Figure::of(named("reset"), "connections", values(|of| of.reset))?;
            figures.extend([lost, reset].map(|figure| figure.wanted(Target::AtMost(0.0))));
        }
    }
    Ok(figures)
}

fn run(
    cluster: &TestCluster,
    node: &Node,
    ways: &[Way],
    event: Event,
    versions: &mut impl Iterator<Item = PathBuf>,
) -> Result<Vec<Outcome>> {
    let held = ways
        .iter()
        .map(Stream::hold)
        .collect::<Result<Vec<Stream>>>()?;
    let before = arrivals(ways)?;
    let floods = ways
        .iter()
        .map(|way| Stream::start(way, "flood"))
        .collect::<Result<Vec<Stream>>>()?;
    std::thread::sleep(FLOW);
    happen(cluster, node, event, versions)?;
    std::thread::sleep(FLOW);
    let floods = floods
        .into_iter()
        .map(Stream::end::<Flood>)
        .collect::<Result<Vec<Flood>>>()?;
    let held = held
        .into_iter()
        .map(Stream::end::<Held>)
        .collect::<Result<Vec<Held>>>()?;
    let after = arrivals(ways)?;
    let mut outcomes = Vec::new();
    for (index, (flood, held)) in floods.iter().zip(&held).enumerate() {
        let arrived = after[index] - before[index];
        ensure!(flood.sent > 0 && held.exchanges > 0, "{flood:?}, {held:?}");
        if held.lost > 0 || flood.failed > 0 {
            eprintln!(
                "{}, {}: {flood:?}, {held:?}",
                ways[index].name,
                event.name()
            );
        }
        outcomes.push(Outcome {
            sent_per_second: flood.sent as f64 / flood.seconds,
            lost: (flood.sent + flood.failed) as f64 - arrived as f64,
            reset: held.lost as f64,
        });
    }
    Ok(outcomes)
}

fn happen(
    cluster: &TestCluster,
    node: &Node,
    event: Event,
    versions: &mut impl Iterator<Item = PathBuf>,
) -> Result<()> {
    let agent = cluster.state.agent(node);
    let before = agent.process().context("no agent runs")?;
    match event {
        Event::Nothing => return Ok(()),
        Event::Restart => before.stop()?,
        Event::Kill => before.signal(Signal::SIGKILL)?,
        Event::Upgrade => {
            let binaries = versions.next().context("no version")?;
            cluster.upgrade(&binaries)?;
        }
    }
    wait_for("another agent", SOON, || {
        let now = agent.process().context("none runs")?;
        ensure!(now != before, "it is still the same");
        Ok(())
    })?;
    // It says so once the Services are in its tables.
    wait_for("the proxy's health", SOON, || {
        let health = format!("{}:10256", node.address);
        let look = ["--path", "/healthz", "--connections", "new"];
        let once = ["--clients", "1", "--seconds", "0.01"];
        let load = cluster
            .state
            .outside()
            .program(workspace::binary("skep-load"))?;
        let printed = load.arg(health).args(look).args(once).output()?;
        let report: skep_tests::load::Report = serde_json::from_str(&printed)?;
        report.ensure_no_failures("a probe")
    })
}

/// A sender at work.
struct Stream {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Stream {
    fn start(way: &Way, what: &str) -> Result<Self> {
        let mut child = Command::new(&way.from[0])
            .args(&way.from[1..])
            .arg(workspace::binary("skep-stream"))
            .args([what, &way.target])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start skep-stream")?;
        let output = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    /// Returns once all connections are open.
    fn hold(way: &Way) -> Result<Self> {
        let mut stream = Self::start(way, "hold")?;
        let mut line = String::new();
        stream.output.read_line(&mut line)?;
        ensure!(line.trim() == "open", "connections to {}", way.target);
        Ok(stream)
    }

    fn end<R: DeserializeOwned>(mut self) -> Result<R> {
        let process = Process::running(self.child.id()).context("skep-stream ended early")?;
        process.signal(Signal::SIGTERM)?;
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "skep-stream ended with {status}");
        serde_json::from_str(&text).with_context(|| format!("skep-stream printed {text:?}"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // One that ended is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Datagrams at each way's sink so far, once no more come.
fn arrivals(ways: &[Way]) -> Result<Vec<u64>> {
    let look = || -> Result<Vec<u64>> { ways.iter().map(|way| arrived(&way.sink)).collect() };
    let mut last = look()?;
    wait_for("the sinks to be quiet", SOON, || {
        let seen = look()?;
        let before = std::mem::replace(&mut last, seen);
        std::thread::sleep(QUIET);
        ensure!(before == last, "{before:?}, then {last:?}");
        Ok(last.clone())
    })
}

/// `Udp:` of proc_net_snmp(5): what was read, and what did not fit into the socket's buffer.
fn arrived(sink: &str) -> Result<u64> {
    let text = xtask::command::line(&format!("nsenter --target {sink} --net cat /proc/net/snmp"))
        .output()?;
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no counters")?;
    let mut sum = 0;
    for (name, value) in names.split(' ').zip(values.split(' ')) {
        if ["InDatagrams", "InErrors"].contains(&name) {
            sum += value.parse::<u64>()?;
        }
    }
    Ok(sum)
}

fn deploy(cluster: &TestCluster, kubectl: &Client) -> Result<Vec<Way>> {
    let sinks = ["sink-outside", "sink-inside"];
    let mut items = Vec::new();
    for (node_port, name) in (NODE_PORT..).zip(sinks) {
        items.push(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": NGINX,
                    "command": ["/binaries/skep-stream", "serve", PORT.to_string()],
                    "volumeMounts": [{"name": "binaries", "mountPath": "/binaries", "readOnly": true}],
                }],
                "volumes": [{"name": "binaries", "hostPath": {"path": workspace::binaries(), "type": "Directory"}}],
            },
        }));
        let port = |protocol: &str| {
            let name = protocol.to_lowercase();
            json!({"name": name, "port": PORT, "nodePort": node_port, "protocol": protocol})
        };
        items.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {
                "type": "NodePort", "selector": {"app": name}, "ports": [port("TCP"), port("UDP")],
            },
        }));
    }
    apply(
        cluster,
        kubectl,
        &json!({"apiVersion": "v1", "kind": "List", "items": items}),
    )?;
    let mut processes = Vec::new();
    for name in sinks {
        ready_address(kubectl, name)?;
        processes.push(process_of(kubectl, name)?);
    }
    let client = process_of(kubectl, "client")?;
    let cluster_ip = kubectl.get(&["service", sinks[1]])?;
    let cluster_ip = text(&cluster_ip, "/spec/clusterIP")?;
    let namespace = cluster.state.outside_namespace.as_deref();
    let namespace = namespace.context("nobody is outside")?;
    let words = |line: String| line.split(' ').map(str::to_owned).collect();
    let node = cluster.node("node1")?;
    Ok(vec![
        Way {
            name: "outside to NodePort",
            from: words(format!("nsenter --net=/run/netns/{namespace}")),
            target: format!("{}:{NODE_PORT}", node.address),
            sink: processes[0].clone(),
        },
        Way {
            name: "pod to ClusterIP by packet",
            from: words(format!("nsenter --target {client} --net")),
            target: format!("{cluster_ip}:{PORT}"),
            sink: processes[1].clone(),
        },
    ])
}

/// A process of the pod's.
fn process_of(kubectl: &Client, pod: &str) -> Result<String> {
    let id = container_of(kubectl, pod)?;
    let line = format!("docker inspect --format {{{{.State.Pid}}}} {id}");
    Ok(xtask::command::line(&line).output()?.trim().to_owned())
}

/// Copied, so that a supervisor is told to run another program.
fn copy(from: &Path, to: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(to)?;
    for name in ["skep", "skep-control", "skep-agent"] {
        let file = to.join(name);
        if !file.exists() {
            std::fs::copy(from.join(name), &file)
                .with_context(|| format!("cannot copy {name} to {}", to.display()))?;
        }
    }
    Ok(to.to_owned())
}
