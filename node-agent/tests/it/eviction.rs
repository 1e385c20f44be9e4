//! What pods use, and pods that have to go.

use serde_json::{Value, json};
use skep_agent::kubelet::usage;

use crate::harness::{IMAGE, Node};

fn sh(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script]})
}

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_is_read_from_the_kernel_and_a_short_node_evicts() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create("web", json!({"containers": [sh("c", FOREVER)]}));
    node.wait_phase("web", "Running").await;
    let ctx = node.ctx.clone().expect("runs");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let used = loop {
        let used = usage::containers(&ctx).await;
        let counted = used.iter().any(|u| u.stats.cpu_usage_ns > 1_000_000);
        if counted {
            break used;
        }
        assert!(std::time::Instant::now() < end, "saw last: {used:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(used.len(), 1, "{used:?}");
    assert_eq!((&*used[0].pod.name, &*used[0].name), ("web", "c"));
    let stats = &used[0].stats;
    assert!(
        stats.memory_working_set_bytes > 0 && stats.pids > 0,
        "{stats:?}"
    );
    assert!(stats.memory_working_set_bytes < 1 << 30, "{stats:?}");

    // No machine has all of its memory left.
    node.run_short("memory.available<100%").await;
    let pod = node.wait_phase("web", "Failed").await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    let message = pod["status"]["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: "),
        "{message}"
    );
    assert!(message.contains("Container c was using "), "{message}");
    let target = condition(&pod, "DisruptionTarget").expect("a condition");
    assert_eq!(target["status"], "True");
    assert_eq!(target["reason"], "TerminationByKubelet");
    node.wait_event("web", "Evicted", message).await;
    node.delete("web");
    node.wait_gone("web").await;
    assert_eq!(node.containers().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_over_its_limit_ends_its_pod() {
    let Some(node) = Node::start().await else {
        return;
    };
    let pod = |name: &str, kib: u32| {
        let script = format!(
            "i=0; while [ $i -lt {kib} ]; do echo {:01023}; i=$((i+1)); done > /data/file; {FOREVER}",
            0
        );
        let mut container = sh("c", &script);
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        (
            name.to_owned(),
            json!({
                "containers": [container],
                "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}],
            }),
        )
    };
    for (name, spec) in [pod("small", 100), pod("big", 3000)] {
        node.create(&name, spec);
    }
    let big = node.wait_phase("big", "Failed").await;
    assert_eq!(big["status"]["reason"], "Evicted");
    assert_eq!(
        big["status"]["message"],
        "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "
    );
    let small = node.wait_phase("small", "Running").await;
    assert_eq!(small["status"]["reason"], Value::Null);
    for name in ["small", "big"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
}

/// What a container writes into its own file system counts, and ends the pod beyond its limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_over_its_limit_of_disk_ends_its_pod() {
    let Some(node) = Node::start().await else {
        return;
    };
    let pod = |kib: u32| {
        let script = format!(
            "i=0; while [ $i -lt {kib} ]; do echo {:01023}; i=$((i+1)); done > /file; {FOREVER}",
            0
        );
        let mut container = sh("c", &script);
        container["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
        json!({"containers": [container]})
    };
    node.create("small", pod(500));
    node.create("big", pod(4000));
    let big = node.wait_phase("big", "Failed").await;
    assert_eq!(big["status"]["reason"], "Evicted");
    assert_eq!(
        big["status"]["message"],
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "
    );
    let small = node.wait_phase("small", "Running").await;
    assert_eq!(small["status"]["reason"], Value::Null);
    let ctx = node.ctx.clone().expect("runs");
    let small = serde_json::from_value(small).expect("a pod");
    let used = skep_agent::kubelet::disk::of(&ctx, &small).await;
    let own = used.containers["c"].rootfs.bytes;
    assert!((500 << 10..1 << 20).contains(&own), "{used:?}");
    assert!(used.total.bytes >= own, "{used:?}");
    for name in ["small", "big"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
}
