//! What dies comes back, and those who use it notice as little as possible.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cluster::{TestCluster, items, kill, text};
use skep_tests::load::{Connections, Load, Report, RunningLoad, wait_until_answers};
use skep_tests::wait::wait_for;
use xtask::command;

use crate::Story;
use crate::manifests::{SOON, deployment, idle_pod, is_ready, service};

/// After a process was killed, its successor has this long to show that it works.
const RECOVERED: Duration = Duration::from_secs(60);

pub(crate) fn container(story: &Story<'_>) -> Result<()> {
    let mut web = deployment("web", 2);
    web["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = Value::Null;
    story.apply(&[web, service("web", "web", json!({}))])?;
    let pods = story.ready_pods("web", 2)?;
    story.backends("web", 2)?;
    let victim = pods.first().context("there are two")?;
    let name = text(victim, "/metadata/name")?;
    let id = text(victim, "/status/containerStatuses/0/containerID")?;
    let id = id
        .strip_prefix("docker://")
        .context("the container is Docker's")?;
    let start = Instant::now();
    command::line(&format!("docker kill {id}")).output()?;
    wait_for("the container to be replaced", SOON, || {
        let pod = story.kubectl.get(&["pod", name])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && is_ready(&pod), "{status}");
        Ok(())
    })?;
    println!(
        "        replaced and ready after {:.1} s",
        start.elapsed().as_secs_f32()
    );
    story.backends("web", 2)?;

    // Once the death is known, no request goes there.
    let node = story.cluster.node("node1")?;
    let target = format!("{}:80", story.cluster_ip("web")?);
    wait_until_answers(&node.place(), &target)?;
    Load::new(node.place(), &target, Connections::New)
        .run(Duration::from_secs(2))?
        .ensure_no_failures("requests after the replacement")
}

/// What a firewall between the API server and a node's agent does not let through goes through the agent's tunnel.
pub(crate) fn undialled(story: &Story<'_>) -> Result<()> {
    let node = story.cluster.node("node1")?;
    let firewall = |change: &str| -> Result<()> {
        let rule = ["-p", "tcp", "--dport", "10250", "-j", "DROP"];
        let iptables = node.place().program("iptables")?;
        iptables.args([change, "INPUT"]).args(rule).run()
    };
    let mut pod = idle_pod("far", Some("node1"));
    pod["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "echo from far away; httpd -f -p 8080 -h /etc"]);
    story.apply(&[pod])?;
    wait_for("the pod", SOON, || {
        let pod = story.kubectl.get(&["pod", "far"])?;
        ensure!(is_ready(&pod), "{}", pod["status"]);
        Ok(())
    })?;
    firewall("-A")?;
    let reached = || -> Result<()> {
        let start = Instant::now();
        let logs = story.kubectl.run(&["logs", "far"])?;
        ensure!(logs.contains("from far away"), "{logs}");
        println!(
            "        logs after {:.1} s without a way in",
            start.elapsed().as_secs_f32()
        );
        let start = Instant::now();
        let said = story.kubectl.run(&["exec", "far", "--", "echo", "here"])?;
        ensure!(said.contains("here"), "{said}");
        println!(
            "        exec after {:.1} s, when that is known",
            start.elapsed().as_secs_f32()
        );
        let path = "/api/v1/nodes/node1/proxy/stats/summary";
        let summary = story.kubectl.run(&["get", "--raw", path])?;
        ensure!(summary.contains("\"rootfs\""), "{summary}");
        Ok(())
    };
    let outcome = reached();
    firewall("-D")?;
    outcome
}

/// A Service with a pod on every node, under load from a node and from outside, over kept and over new connections.
struct Traffic {
    loads: Vec<(&'static str, RunningLoad)>,
}

impl Traffic {
    fn start(story: &Story<'_>) -> Result<Self> {
        let nodes = u32::try_from(story.cluster.state.nodes.len())?;
        story.apply(&[
            deployment("web", nodes),
            service("web", "web", json!({"type": "NodePort"})),
        ])?;
        story.ready_pods("web", nodes as usize)?;
        story.backends("web", nodes as usize)?;
        let node = story.cluster.node("node1")?;
        let inside = format!("{}:80", story.cluster_ip("web")?);
        let from_outside = format!(
            "{}:{}",
            story.cluster.node("node2")?.address,
            story.node_port("web")?
        );
        let outside = story.cluster.state.outside();
        wait_until_answers(&node.place(), &inside)?;
        wait_until_answers(&outside, &from_outside)?;
        let loads = [
            (
                "ClusterIP, kept connections",
                Load::new(node.place(), &inside, Connections::KeepAlive),
            ),
            (
                "ClusterIP, new connections",
                Load::new(node.place(), &inside, Connections::New),
            ),
            (
                "NodePort, kept connections",
                Load::new(outside.clone(), &from_outside, Connections::KeepAlive),
            ),
            (
                "NodePort, new connections",
                Load::new(outside, &from_outside, Connections::New),
            ),
        ];
        let loads = loads
            .iter()
            .map(|(what, load)| Ok((*what, load.start()?)))
            .collect::<Result<_>>()?;
        Ok(Self { loads })
    }

    fn stop(self) -> Result<Vec<(&'static str, Report)>> {
        self.loads
            .into_iter()
            .map(|(what, load)| Ok((what, load.stop()?)))
            .collect()
    }

    /// No request failed. How many kept connections were lost, and their requests sent again over new ones.
    fn stop_without_failures(self, during: &str) -> Result<u64> {
        let mut lost = 0;
        for (what, report) in self.stop()? {
            report.ensure_no_failures(&format!("{during} ({what})"))?;
            lost += report.reconnected;
        }
        Ok(lost)
    }
}

/// The cluster still does what it is told: a Deployment comes, grows and goes. Not the one under load, whose pods are to
/// stay.
fn still_works(story: &Story<'_>) -> Result<()> {
    let name = "probe";
    let probe = story.file("probe.json", &deployment(name, 1).to_string())?;
    wait_for("the API server to take a write", RECOVERED, || {
        story.kubectl.run(&["apply", "-f", &probe])
    })?;
    story.ready_pods(name, 1)?;
    story
        .kubectl
        .run(&["scale", "deployment", name, "--replicas=3"])?;
    story.ready_pods(name, 3)?;
    story.kubectl.run(&["delete", "deployment", name])?;
    story.ready_pods(name, 0).map(drop)
}

pub(crate) fn agents(story: &Story<'_>) -> Result<()> {
    let traffic = Traffic::start(story)?;
    let containers = running_containers(story)?;
    for node in &story.cluster.state.nodes {
        TestCluster::kill_and_await_successor(&story.cluster.state.agent(node))
            .with_context(|| format!("the agent of {}", node.name))?;
    }
    // The successors have taken over what runs: they carry out a change, and restarted nothing.
    still_works(story)?;
    still_run(&containers)?;
    let lost = traffic.stop_without_failures("kill -9 of the agents")?;
    ensure!(lost == 0, "{lost} kept connections were lost");
    nodes_are_ready(story)
}

fn still_run(containers: &[String]) -> Result<()> {
    for id in containers {
        let inspect = format!("docker inspect --format {{{{.State.Running}}}} {id}");
        let running = command::line(&inspect).output()?;
        ensure!(running.trim() == "true", "the container {id} was stopped");
    }
    Ok(())
}

fn running_containers(story: &Story<'_>) -> Result<Vec<String>> {
    let pods = story.kubectl.get(&["pods"])?;
    items(&pods)
        .iter()
        .map(|pod| {
            let id = text(pod, "/status/containerStatuses/0/containerID")?;
            Ok(id.trim_start_matches("docker://").to_owned())
        })
        .collect()
}

pub(crate) fn control_plane(story: &Story<'_>) -> Result<()> {
    let traffic = Traffic::start(story)?;
    for process in story.cluster.state.control_plane() {
        let name = process.name();
        TestCluster::kill_and_await_successor(&process).with_context(|| name.to_owned())?;
        still_works(story).with_context(|| format!("after {name} was killed"))?;
    }
    let lost = traffic.stop_without_failures("kill -9 of the control plane")?;
    ensure!(lost == 0, "{lost} kept connections were lost");
    if story.cluster.state.store == xtask::cluster::Store::Etcd {
        TestCluster::kill_and_await_successor(&story.cluster.state.etcd()).context("etcd")?;
        still_works(story).context("after etcd was killed")?;
    }
    nodes_are_ready(story)
}

pub(crate) fn docker(story: &Story<'_>) -> Result<()> {
    let daemon = xtask::setup::docker::supervised();
    if daemon.supervisor().is_none() {
        println!("skipped: the Docker daemon of this machine is not ours to kill");
        return Ok(());
    }
    let traffic = Traffic::start(story)?;
    let containers = running_containers(story)?;
    kill(daemon.process().context("dockerd does not run")?)?;
    wait_for("Docker to answer again", RECOVERED, || {
        ensure!(xtask::setup::docker::is_running(), "no answer");
        Ok(())
    })?;
    // Live restore: the containers never noticed.
    still_run(&containers)?;
    still_works(story)?;
    let lost = traffic.stop_without_failures("kill -9 of dockerd")?;
    ensure!(lost == 0, "{lost} kept connections were lost");
    nodes_are_ready(story)
}

pub(crate) fn node(story: &Story<'_>) -> Result<()> {
    let nodes = story.cluster.state.nodes.len();
    // Pods leave a dead node after this many seconds instead of Kubernetes' 300.
    let mut web = deployment("web", u32::try_from(nodes)?);
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2},
    ]);
    story.apply(&[web, service("web", "web", json!({}))])?;
    story.ready_pods("web", nodes)?;
    let victim = story
        .cluster
        .state
        .nodes
        .last()
        .context("there are three")?;
    let start = Instant::now();
    story.cluster.power_off(victim)?;
    // Whatever comes of it, the next story gets a whole cluster.
    let healed = survive(story, &victim.name, nodes, start);
    let back = story
        .cluster
        .power_on(victim)
        .and_then(|()| nodes_are_ready(story));
    healed.and(back)
}

fn survive(story: &Story<'_>, dead: &str, replicas: usize, start: Instant) -> Result<()> {
    wait_for(
        "the dead node's pods to run elsewhere",
        Duration::from_secs(120),
        || {
            let pods = story.kubectl.get(&["pods", "-l", "app=web"])?;
            let alive = items(&pods)
                .iter()
                .filter(|pod| is_ready(pod) && pod["spec"]["nodeName"] != dead)
                .count();
            ensure!(
                alive == replicas,
                "{alive} of {replicas} run on living nodes"
            );
            Ok(())
        },
    )?;
    println!(
        "        all replicas ready again after {:.1} s",
        start.elapsed().as_secs_f32()
    );
    story.backends("web", replicas)?;
    let node = story.cluster.node("node1")?;
    let target = format!("{}:80", story.cluster_ip("web")?);
    wait_until_answers(&node.place(), &target)?;
    Load::new(node.place(), &target, Connections::New)
        .run(Duration::from_secs(2))?
        .ensure_no_failures("requests with one node dead")
}

fn nodes_are_ready(story: &Story<'_>) -> Result<()> {
    wait_for("every node to be ready", RECOVERED, || {
        let nodes = story.kubectl.get(&["nodes"])?;
        let ready = items(&nodes).iter().filter(|node| is_ready(node)).count();
        ensure!(ready == story.cluster.state.nodes.len(), "{ready} are");
        Ok(())
    })
}
