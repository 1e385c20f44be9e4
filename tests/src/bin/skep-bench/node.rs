//! How long a pod of one container takes to run and to go, how many can be had at once, and what the agent costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::TestCluster;
use xtask::cluster::Store;
use xtask::cluster::images::BUSYBOX;

use crate::{Figure, Target, memory};

/// Each round makes and removes one pod.
const PODS_PER_ROUND: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn measure(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let cluster = TestCluster::up("bench-node", 1, store, &[])?;
    let mut figures = memory::of_cluster(&cluster.state, "idle")?;
    let client = cluster.skep("default");
    let mut lives = Vec::new();
    for number in 0..rounds * PODS_PER_ROUND {
        lives.push(life(&cluster, &client, &format!("pod-{number}"))?);
    }
    for (what, most, of) in [
        ("create to Running", 450.0, 0),
        ("create to Ready", 600.0, 1),
        ("delete to gone", 300.0, 2),
    ] {
        let samples = lives.iter().map(|life| life[of].as_secs_f64() * 1e3);
        let name = format!("pod {what}, as seen by a client");
        let figure = Figure::of(name, "ms", samples.collect())?;
        figures.push(figure.wanted(Target::AtMost(most)));
    }
    figures.push(Figure::of(
        "one `get` by that client, part of both",
        "ms",
        vec![one_get(&client)?],
    )?);
    figures.extend(crowd(&cluster, &client)?);
    Ok(figures)
}

/// Many pods on one node: what they cost when they are idle, how fast they come, and what their probes cost.
fn crowd(cluster: &TestCluster, client: &Client) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let node = cluster.state.nodes.first().context("a node")?;
    let agent = cluster.state.agent(node).process();
    let agent = agent.context("the agent runs")?.pid();
    let idle = |number: usize| pod(&format!("idle-{number}"), SLEEP, json!({}));
    create(cluster, client, (0..IDLE).map(idle).collect())?;
    await_ready(client, IDLE)?;
    settle();
    let share = memory::cpu_share(agent, WATCHED)?;
    let figure = Figure::of(
        format!("agent with {IDLE} idle pods, of a core"),
        "%",
        vec![share],
    )?;
    figures.push(figure.wanted(Target::AtMost(1.0)));
    let figure = Figure::of(
        format!("memory of the agent with {IDLE} idle pods"),
        "MiB",
        vec![memory::resident_mib(agent)?],
    )?;
    // 40 MB.
    figures.push(figure.wanted(Target::AtMost(40e6 / f64::from(1 << 20))));
    figures.push(Figure::of(
        "of it tables of the kernel",
        "MiB",
        vec![memory::tables_mib(agent)?],
    )?);
    figures.push(Figure::of(
        "of it no file's",
        "MiB",
        vec![memory::anonymous_mib(agent)?],
    )?);
    remove_all(client)?;

    let probed = |number: usize| {
        let probe = json!({"readinessProbe": {"periodSeconds": 1, "httpGet": {"port": 8080, "path": "/etc/hostname"}}});
        pod(&format!("probed-{number}"), SERVE, probe)
    };
    let begun = Instant::now();
    create(cluster, client, (0..MANY).map(probed).collect())?;
    await_ready(client, MANY)?;
    let rate = MANY as f64 / begun.elapsed().as_secs_f64();
    figures.push(Figure::of(
        format!("{MANY} pods at once until all are ready"),
        "pods/s",
        vec![rate],
    )?);
    settle();
    let share = memory::cpu_share(agent, WATCHED)?;
    let figure = Figure::of(
        format!("agent that probes {MANY} pods every second, of a core"),
        "%",
        vec![share],
    )?;
    figures.push(figure.wanted(Target::AtMost(5.0)));
    remove_all(client)?;
    figures.push(Figure::of(
        "Docker alone, two containers in place of a pod",
        "pods/s",
        vec![docker_rate()?],
    )?);
    Ok(figures)
}

const IDLE: usize = 50;
const MANY: usize = 100;
/// How long the agent's use of the processor is watched.
const WATCHED: Duration = Duration::from_secs(30);
const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
const SERVE: &str = "trap 'exit 0' TERM; httpd -f -p 8080 -h / & wait";
const CROWD_LIMIT: Duration = Duration::from_secs(600);

fn pod(name: &str, script: &str, more: Value) -> Value {
    let mut container = json!({"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]},
    })
}

fn create(cluster: &TestCluster, client: &Client, pods: Vec<Value>) -> Result<()> {
    let file = cluster.state.directory().join("pods.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    std::fs::write(&file, list.to_string())?;
    client.run(&["create", "-f", &file.to_string_lossy()])?;
    Ok(())
}

fn await_ready(client: &Client, count: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let pods: Value = client.get(&["pods"])?;
        let items = pods["items"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let ready = items.iter().filter(|pod| is_ready(pod)).count();
        if ready == count {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < CROWD_LIMIT,
            "{ready} of {count} pods are ready"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|c| c["type"] == "Ready");
    ready.any(|c| c["status"] == "True")
}

fn remove_all(client: &Client) -> Result<()> {
    client.run(&["delete", "pods", "--all", "--wait=false"])?;
    let begun = Instant::now();
    loop {
        let pods: Value = client.get(&["pods"])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        if left == 0 {
            return Ok(());
        }
        ensure!(begun.elapsed() < CROWD_LIMIT, "{left} pods do not go");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What the start of the pods has left to do is none of what they cost later.
fn settle() {
    std::thread::sleep(Duration::from_secs(15));
}

/// Containers that Docker starts in a second when eight are asked for at once, halved.
fn docker_rate() -> Result<f64> {
    const STARTERS: usize = 8;
    const EACH: usize = 5;
    let label = format!("skep-bench={}", std::process::id());
    let begun = Instant::now();
    let outcome: Result<()> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for _ in 0..EACH {
                        let run = ["run", "-d", "--network", "none", "--label", &label];
                        let mut docker = std::process::Command::new("docker");
                        docker.args(run).args([BUSYBOX, "sleep", "3600"]);
                        let output = docker.output()?;
                        ensure!(output.status.success(), "docker runs no container");
                    }
                    Ok(())
                })
            })
            .collect();
        for starter in starters {
            starter
                .join()
                .map_err(|_| anyhow::anyhow!("a starter panicked"))??;
        }
        Ok(())
    });
    let took = begun.elapsed().as_secs_f64();
    let listed = std::process::Command::new("docker")
        .args(["ps", "-aq", "--filter", &format!("label={label}")])
        .output()?;
    let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
    std::process::Command::new("docker")
        .args(["rm", "-f"])
        .args(ids.split_whitespace())
        .output()?;
    outcome?;
    Ok((STARTERS * EACH) as f64 / 2.0 / took)
}

/// How long it takes until a pod runs, until it is ready, and until it is gone.
fn life(cluster: &TestCluster, client: &Client, name: &str) -> Result<[Duration; 3]> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{
            "name": "main", "image": BUSYBOX,
            // Ends on SIGTERM, which a shell without a handler does not as process 1.
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"],
        }]},
    });
    let file = cluster.state.directory().join("pod.json");
    std::fs::write(&file, pod.to_string())?;
    let file = file.to_string_lossy();
    let created = Instant::now();
    client.run(&["create", "-f", &file])?;
    poll(|| {
        let pod: Value = client.get(&["pod", name])?;
        Ok(pod["status"]["phase"] == "Running")
    })?;
    let running = created.elapsed();
    poll(|| Ok(is_ready(&client.get(&["pod", name])?)))?;
    let ready = created.elapsed();
    let deleted = Instant::now();
    client.run(&["delete", "pod", name, "--wait=false"])?;
    poll(|| Ok(!client.attempt(&["get", "pod", name])?.succeeded))?;
    Ok([running, ready, deleted.elapsed()])
}

/// Without a pause: it would be part of the figure.
fn poll(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < LIMIT, "waited {} s", LIMIT.as_secs());
    }
    Ok(())
}

fn one_get(client: &Client) -> Result<f64> {
    let start = Instant::now();
    client.run(&["get", "namespace", "default", "-o", "name"])?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
