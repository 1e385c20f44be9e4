//! Decisions over clusters made of plain objects: no API server, no clock.
#![forbid(unsafe_code)]

mod decisions;
mod laws;

use std::sync::Arc;

use serde_json::{Value, json};
use skep_scheduler::{
    cluster::Cluster,
    decide::{self, Decision},
    pod::PodInfo,
};

pub(crate) fn node(name: &str, cpu: &str, extra: Value) -> Value {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": cpu, "memory": "4Gi", "pods": "110" } },
    });
    merge(&mut node, extra);
    node
}

pub(crate) fn pod(name: &str, cpu: &str, extra: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "labels": { "app": "web" } },
        "spec": { "containers": [ { "name": "c", "image": "nginx", "resources": { "requests": { "cpu": cpu } } } ] },
    });
    merge(&mut pod, extra);
    Arc::new(PodInfo::new(Arc::new(
        serde_json::from_value(pod).expect("a pod"),
    )))
}

pub(crate) fn merge(base: &mut Value, extra: Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, extra) => *base = extra,
    }
}

pub(crate) fn cluster(nodes: impl IntoIterator<Item = Value>) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.namespaces.insert(
        "default".into(),
        [("team".to_owned(), "a".to_owned())].into(),
    );
    for node in nodes {
        cluster.set_node(&serde_json::from_value(node).expect("a node"));
    }
    cluster
}

/// Decides and assumes; the node's name, or the message.
pub(crate) fn place(cluster: &mut Cluster, pod: &Arc<PodInfo>) -> Result<String, String> {
    match decide::decide(cluster, pod, 7) {
        Decision::Bind { node, .. } => {
            cluster.assume(pod.clone(), &node);
            Ok(node)
        }
        Decision::Unschedulable { message, .. } => Err(message),
    }
}
