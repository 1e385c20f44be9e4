//! The agent dies again and again, at every step of its pods' lives; Docker is slow; the node was away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_agent::runtime::Runtime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::{IMAGE, Node, SOCKET, docker, ensure_image};

/// A death is due when something has happened since the last one, or after this time.
const QUIET: Duration = Duration::from_millis(300);

async fn seen(node: &Node) -> BTreeSet<String> {
    let all = node.docker.list().await.expect("docker lists");
    all.iter()
        .map(|c| format!("{} {:?}", c.id, c.state))
        .collect()
}

/// Kills the agent each time that Docker shows a change.
async fn die(node: &mut Node, times: usize) {
    let mut before = seen(node).await;
    for _ in 0..times {
        let since = Instant::now();
        loop {
            let now = seen(node).await;
            if now != before || since.elapsed() > QUIET {
                before = now;
                break;
            }
        }
        // Whatever is under way ends where it is, as under kill -9.
        node.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_at_any_step_leaves_nothing_behind() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let c = |name: &str, script: &str| json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script]});
    let forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let spec = json!({
        "initContainers": [c("init", "echo once >> /v/inits")],
        "containers": [c("a", forever), c("b", forever)],
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]});
    let mut spec = spec;
    for list in ["initContainers", "containers"] {
        for c in spec[list].as_array_mut().into_iter().flatten() {
            c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }
    }
    let names = ["one", "two", "three"];
    for name in names {
        node.create(name, spec.clone());
    }
    die(&mut node, 12).await;
    let running = |pod: &Value| {
        let all = pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten();
        pod["status"]["phase"] == "Running" && all.filter(|s| s["ready"] == true).count() == 2
    };
    for name in names {
        let pod = node.wait_pod(name, "running", running).await;
        let all = pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten();
        for status in all {
            assert_eq!(status["restartCount"], 0, "{status}");
        }
    }
    // A sandbox, the init container and two more for each.
    assert_eq!(node.containers().await, 4 * names.len());

    for name in names {
        node.delete(name);
    }
    die(&mut node, 8).await;
    for name in names {
        node.wait_gone(name).await;
    }
    assert_eq!(node.containers().await, 0);
    let state = node.dir.path().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&state), "mounts are left");
    let pods = std::fs::read_dir(node.dir.path().join("pods")).unwrap();
    assert_eq!(pods.count(), 0, "folders are left");
    let group = format!(
        "/sys/fs/cgroup/memory/skep/{}/kubepods/besteffort",
        node.name
    );
    let left = std::fs::read_dir(group).into_iter().flatten().flatten();
    let groups: Vec<_> = left.filter(|e| e.path().is_dir()).collect();
    assert!(groups.is_empty(), "cgroups are left: {groups:?}");
}

/// A socket that hands everything on to Docker, each piece of a request this much later.
fn slow_socket(folder: &std::path::Path, delay: Duration) -> std::path::PathBuf {
    let path = folder.join("slow.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let docker = UnixStream::connect(SOCKET).await.expect("docker");
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_docker, mut to_docker) = docker.into_split();
                let asked = async {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                        tokio::time::sleep(delay).await;
                        if to_docker.write_all(&buffer[..length]).await.is_err() {
                            break;
                        }
                    }
                    let _ = to_docker.shutdown().await;
                };
                let answered = async {
                    let _ = tokio::io::copy(&mut from_docker, &mut to_client).await;
                    let _ = to_client.shutdown().await;
                };
                tokio::join!(asked, answered);
            });
        }
    });
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_docker_only_takes_longer() {
    if Node::start().await.is_none() {
        return;
    }
    ensure_image();
    let folder = tempfile::tempdir().expect("a folder");
    let socket = slow_socket(folder.path(), Duration::from_millis(700));
    let node = Node::start_at(&socket).await;
    let c = |name: &str, script: &str| json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script]});
    let forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    node.create(
        "patient",
        json!({"initContainers": [c("init", "true")], "containers": [c("a", forever), c("b", forever)]}),
    );
    let ready = |restarts: u32| {
        move |pod: &Value| {
            let all = pod["status"]["containerStatuses"].as_array();
            let all = all.map(Vec::as_slice).unwrap_or_default();
            let sum: u64 = all.iter().filter_map(|s| s["restartCount"].as_u64()).sum();
            all.len() == 2 && all.iter().all(|s| s["ready"] == true) && sum == u64::from(restarts)
        }
    };
    let pod = node.wait_pod("patient", "ready", ready(0)).await;
    // A sandbox and three containers: nothing was made twice.
    assert_eq!(node.containers().await, 4);
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    docker(&["kill", id.expect("an id").trim_start_matches("docker://")]);
    node.wait_pod("patient", "ready again", ready(1)).await;
    assert_eq!(node.containers().await, 5);
    node.delete("patient");
    node.wait_gone("patient").await;
    assert_eq!(node.containers().await, 0);
}

/// An hour away: the API has given the node's pods up and has new ones for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_comes_back_clean() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let spec = || {
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}], "containers": [
            {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", forever],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]})
    };
    for name in ["given-up", "ending", "same-name", "stays"] {
        node.create(name, spec());
        node.wait_phase(name, "Running").await;
    }
    let before = node.api.get(&node.path("stays")).expect("exists");
    node.stop().await;
    for name in ["given-up", "same-name"] {
        node.api.remove(&node.path(name));
    }
    node.delete("ending");
    let second = node.create("same-name", spec());
    node.create("new", spec());
    node.run();
    node.wait_gone("ending").await;
    for name in ["new", "same-name"] {
        node.wait_phase(name, "Running").await;
    }
    let again = node.api.get(&node.path("same-name")).expect("exists");
    assert_eq!(again["metadata"]["uid"], json!(second));
    let of_three = async || {
        let all = node.docker.list().await.expect("docker lists");
        let pods: BTreeSet<String> = all.iter().map(|c| c.pod.name.clone()).collect();
        (all.len(), pods)
    };
    let begun = Instant::now();
    loop {
        let (containers, pods) = of_three().await;
        if containers == 6 && pods.len() == 3 {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{containers} containers of {pods:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nobody has touched what was to stay.
    let after = node.api.get(&node.path("stays")).expect("exists");
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&after), id(&before));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    for name in ["new", "same-name", "stays"] {
        node.delete(name);
    }
    for name in ["new", "same-name", "stays"] {
        node.wait_gone(name).await;
    }
    assert_eq!(node.containers().await, 0);
    let folders = std::fs::read_dir(node.dir.path().join("pods")).expect("a folder");
    assert_eq!(folders.count(), 0, "folders are left");
}
