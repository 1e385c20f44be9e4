//! How long a pod of one container takes to run and to go, and what the processes of an idle cluster hold.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::TestCluster;
use xtask::cluster::Store;
use xtask::cluster::images::BUSYBOX;

use crate::{Figure, memory};

/// Each round makes and removes one pod.
const PODS_PER_ROUND: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn measure(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let cluster = TestCluster::up("bench-node", 1, store, &[])?;
    let mut figures = memory::of_cluster(&cluster.state, "idle")?;
    let client = cluster.skep("default");
    let (mut running, mut gone) = (Vec::new(), Vec::new());
    for number in 0..rounds * PODS_PER_ROUND {
        let name = format!("pod-{number}");
        let (started, ended) = life(&cluster, &client, &name)?;
        running.push(started.as_secs_f64() * 1e3);
        gone.push(ended.as_secs_f64() * 1e3);
    }
    figures.push(Figure::of(
        "pod create to Running, as seen by a client",
        "ms",
        running,
    )?);
    figures.push(Figure::of(
        "pod delete to gone, as seen by a client",
        "ms",
        gone,
    )?);
    figures.push(Figure::of(
        "one `get` by that client, part of both",
        "ms",
        vec![one_get(&client)?],
    )?);
    Ok(figures)
}

fn life(cluster: &TestCluster, client: &Client, name: &str) -> Result<(Duration, Duration)> {
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
    let deleted = Instant::now();
    client.run(&["delete", "pod", name, "--wait=false"])?;
    poll(|| Ok(!client.attempt(&["get", "pod", name])?.succeeded))?;
    Ok((running, deleted.elapsed()))
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
