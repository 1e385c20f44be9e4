//! How many pods per second the core places: `cargo run --release -p skep-scheduler --example throughput [nodes] [pods]`.

use std::{sync::Arc, time::Instant};

use serde_json::json;
use skep_scheduler::{
    cluster::Cluster,
    decide::{self, Decision},
    pod::PodInfo,
};

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<usize>().ok());
    let nodes = arguments.next().unwrap_or(1000);
    let pods = arguments.next().unwrap_or(10_000);
    for (name, extra) in [
        ("plain", json!({})),
        (
            "anti-affinity (preferred)",
            json!({ "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [ {
                "weight": 100, "podAffinityTerm": { "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": { "matchLabels": { "app": "app-1" } } } } ] } } }),
        ),
        (
            "zone spread (required)",
            json!({ "topologySpreadConstraints": [ { "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "app-1" } } } ] }),
        ),
    ] {
        let mut cluster = Cluster::default();
        for number in 0..nodes {
            let node = json!({
                "metadata": { "name": format!("node{number}"), "labels": {
                    "kubernetes.io/hostname": format!("node{number}"),
                    "topology.kubernetes.io/zone": format!("zone{}", number % 3) } },
                "status": { "allocatable": { "cpu": "16", "memory": "64Gi", "pods": "110" } } });
            cluster.set_node(&serde_json::from_value(node).expect("a node"));
        }
        let infos: Vec<Arc<PodInfo>> = (0..pods)
            .map(|number| {
                let app = number % 20;
                let mut pod = json!({
                    "metadata": { "name": format!("p{number}"), "namespace": "default", "uid": format!("u{number}"),
                        "labels": { "app": format!("app-{app}") }, "ownerReferences": [ { "apiVersion": "apps/v1",
                            "kind": "ReplicaSet", "name": "r", "uid": format!("r{app}"), "controller": true } ] },
                    "spec": { "containers": [ { "name": "c", "image": "nginx",
                        "resources": { "requests": { "cpu": "100m", "memory": "100Mi" } } } ] } });
                for (key, value) in extra.as_object().into_iter().flatten() {
                    pod["spec"][key] = value.clone();
                }
                Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod"))))
            })
            .collect();
        let start = Instant::now();
        let mut placed = 0;
        for (tie, pod) in infos.iter().enumerate() {
            if let Decision::Bind { node, .. } = decide::decide(&mut cluster, pod, tie as u64) {
                cluster.assume(pod.clone(), &node);
                placed += 1;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name}: {placed}/{pods} pods on {nodes} nodes in {seconds:.2} s = {:.0} pods/s",
            f64::from(placed) / seconds
        );
    }
}
