//! The agent dies again and again, at every step of its pods' lives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_agent::runtime::Runtime;

use crate::harness::{IMAGE, Node};

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
