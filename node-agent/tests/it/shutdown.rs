//! The node shuts down in order.

use std::time::Duration;

use serde_json::{Value, json};
use skep_agent::kubelet::shutdown::{self, Periods};

use crate::harness::{IMAGE, Node};

fn spec(priority: i32, script: &str) -> Value {
    json!({"priority": priority, "terminationGracePeriodSeconds": 30, "containers": [{"name": "c",
        "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script]}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_end_by_priority_and_no_more_come() {
    let Some(node) = Node::start().await else {
        return;
    };
    let obeys = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let ignores = "trap '' TERM; while :; do sleep 0.1; done";
    node.create("web", spec(0, obeys));
    let mut stubborn = spec(0, ignores);
    // Killed well within its group's time, even where Docker is slow.
    stubborn["terminationGracePeriodSeconds"] = json!(1);
    node.create("stubborn", stubborn);
    node.create("system", spec(2_000_000_000, obeys));
    for name in ["web", "stubborn", "system"] {
        node.wait_phase(name, "Running").await;
    }
    let ctx = node.ctx.clone().expect("runs");
    let seconds = Duration::from_secs;
    let periods = Periods::new(seconds(14), seconds(4)).expect("periods");
    let begun = std::time::Instant::now();
    shutdown::run(&ctx, &periods).await;
    assert!(begun.elapsed() < seconds(20), "{:?}", begun.elapsed());
    let mut ended = Vec::new();
    for name in ["web", "stubborn", "system"] {
        let pod = node.wait_phase(name, "Failed").await;
        assert_eq!(pod["status"]["reason"], "Terminated", "{name}");
        assert_eq!(
            pod["status"]["message"],
            "Pod was terminated in response to imminent node shutdown."
        );
        let conditions = pod["status"]["conditions"].as_array().expect("conditions");
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
        let reason = target.map(|c| c["reason"].clone());
        assert_eq!(reason, Some(json!("TerminationByKubelet")), "{name}");
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ended.push(state["finishedAt"].as_str().expect("ended").to_owned());
    }
    // The system's pods outlive the others.
    assert!(ended[0] <= ended[2] && ended[1] <= ended[2], "{ended:?}");

    node.create("late", spec(0, obeys));
    let pod = node.wait_phase("late", "Failed").await;
    assert_eq!(pod["status"]["reason"], "NodeShutdown");
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Pod was rejected as the node is shutting down."
    );
}
