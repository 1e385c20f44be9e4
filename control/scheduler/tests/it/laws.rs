//! What holds for every sequence of events: no node is overcommitted, no host port is given out twice, and the
//! incremental account equals the sum over the pods.

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use serde_json::json;
use skep_scheduler::{
    cluster::Cluster,
    decide::{self, Decision},
    pod::{PodInfo, Resources},
};

use crate::{cluster, node, pod};

#[derive(Clone, Debug)]
enum Step {
    Schedule {
        cpu: i64,
        port: Option<u16>,
        priority: i32,
        init: i64,
    },
    BindFailed(usize),
    Deleted(usize),
    Observed(usize),
    NodeGone(usize),
    NodeBack(usize, i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0i64..1500, prop::option::of(8000u16..8003), 0i32..3, 0i64..2000)
            .prop_map(|(cpu, port, priority, init)| Step::Schedule { cpu, port, priority, init }),
        1 => any::<usize>().prop_map(Step::BindFailed),
        2 => any::<usize>().prop_map(Step::Deleted),
        2 => any::<usize>().prop_map(Step::Observed),
        1 => (0usize..3).prop_map(Step::NodeGone),
        1 => (0usize..3, 1000i64..4000).prop_map(|(index, cpu)| Step::NodeBack(index, cpu)),
    ];
    prop::collection::vec(step, 1..60)
}

fn check(cluster: &Cluster, shrunk: &HashMap<String, bool>) -> Result<(), TestCaseError> {
    for node in cluster.nodes() {
        let mut sum = Resources::default();
        for pod in &node.pods {
            sum.add(&pod.requests);
        }
        prop_assert_eq!(&sum, &node.used, "account of {}", &node.name);
        if node.exists && !shrunk.get(&node.name).copied().unwrap_or_default() {
            prop_assert!(
                node.used.cpu_millicores <= node.allocatable.cpu_millicores,
                "{} is overcommitted",
                &node.name
            );
        }
        for (index, port) in node.host_ports.iter().enumerate() {
            let clash = node.host_ports[index + 1..]
                .iter()
                .any(|other| other.conflicts(port));
            prop_assert!(!clash, "{} gave {} out twice", &node.name, port.port);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn never_overcommits(steps in steps(), tie in any::<u64>()) {
        let names = ["a", "b", "c"];
        let mut cluster = cluster(names.map(|name| node(name, "3", json!({}))));
        let mut bound: Vec<(Arc<PodInfo>, String)> = Vec::new();
        // A node that came back smaller may hold more than it offers; the scheduler did not do that.
        let mut shrunk: HashMap<String, bool> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Schedule { cpu, port, priority, init } => {
                    let mut extra = json!({ "spec": { "priority": priority, "initContainers": [
                        { "name": "i", "resources": { "requests": { "cpu": format!("{init}m") } } } ] } });
                    if let Some(port) = port {
                        extra["spec"]["containers"] = json!([ { "name": "c",
                            "ports": [ { "containerPort": 80, "hostPort": port } ],
                            "resources": { "requests": { "cpu": format!("{cpu}m") } } } ]);
                    }
                    let pod = pod(&format!("p{number}"), &format!("{cpu}m"), extra);
                    if let Decision::Bind { node, .. } = decide::decide(&mut cluster, &pod, tie) {
                        let before = cluster.node(&node).expect("chosen").clone();
                        prop_assert!(before.exists);
                        prop_assert!(pod.requests.cpu_millicores == 0 || before.used.cpu_millicores + pod.requests.cpu_millicores
                            <= before.allocatable.cpu_millicores);
                        cluster.assume(pod.clone(), &node);
                        bound.push((pod, node));
                    }
                }
                Step::BindFailed(index) if !bound.is_empty() => {
                    let (pod, _) = bound.swap_remove(index % bound.len());
                    cluster.forget(&pod.uid);
                    cluster.remove_pod(&pod.uid);
                }
                Step::Deleted(index) if !bound.is_empty() => {
                    let (pod, _) = bound.swap_remove(index % bound.len());
                    cluster.remove_pod(&pod.uid);
                }
                Step::Observed(index) if !bound.is_empty() => {
                    let (pod, node) = &bound[index % bound.len()];
                    let mut object = (*pod.pod).clone();
                    object.spec.get_or_insert_default().node_name = Some(node.clone());
                    cluster.observe_pod(&Arc::new(object));
                }
                Step::NodeGone(index) => cluster.remove_node(names[index]),
                Step::NodeBack(index, cpu) => {
                    cluster.set_node(&serde_json::from_value(
                        node(names[index], &format!("{cpu}m"), json!({}))).expect("a node"));
                    let node = cluster.node(names[index]).expect("it is back");
                    shrunk.insert(names[index].into(), node.used.cpu_millicores > cpu);
                }
                _ => {}
            }
            check(&cluster, &shrunk)?;
        }
    }
}
