//! Notices nodes that stopped reporting, and says so in their conditions and taints.
//!
//! ```text
//!  heartbeat (Lease or status) ──► silent longer than the grace ──► Ready = Unknown, pods not ready
//!  conditions ──► taints: not-ready / unreachable (NoSchedule, NoExecute), pressure, unschedulable
//! ```
//! Watches: Node, Lease (kube-node-lease), Pod. Writes: Node status and taints, Pod status.
//! Silence is measured on our own monotonic clock from when we saw the last heartbeat, so neither clock skew nor our own
//! restart evicts anything. [`crate::taint_eviction`] acts on the taints.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, Pod, Taint},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Recorder, informer::BY_NODE, writes};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const WORKERS: usize = 8;
const LEASE_NAMESPACE: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, the status that taints, and the taint.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
];
const WATCHED_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        nodes: context.informers.of(),
        leases: context.informers.of(),
        pods: context.informers.of(),
        heard: Mutex::default(),
        events: context.events.from("node-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    let watcher = controller.clone();
    work.feed(&controller.nodes, move |change| {
        let key = ObjectKey::of(&change.object().metadata);
        match &change.new {
            Some(node) => watcher.observe_node(&key.name, node),
            None => {
                watcher.heard.lock().remove(&key.name);
            }
        }
        vec![key]
    });
    let watcher = controller.clone();
    work.feed(&controller.leases, move |change| {
        let lease = change.object();
        if lease.metadata.namespace.as_deref() != Some(LEASE_NAMESPACE) || change.is_delete() {
            return Vec::new();
        }
        let name = lease.metadata.name.clone().unwrap_or_default();
        // Only a node that was given up needs a look; renewals of the others are the normal case.
        match watcher.observe_lease(&name, lease) {
            true => vec![ObjectKey::cluster(name)],
            false => Vec::new(),
        }
    });
    work.reads(&controller.pods);
    work.run(
        "node-lifecycle",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    heard: Mutex<HashMap<String, Heard>>,
    events: Recorder,
    context: Arc<Context>,
}

/// The last heartbeat of a node, and when we saw it.
struct Heard {
    status: Option<Time>,
    lease: Option<MicroTime>,
    at: Instant,
    lost: bool,
}

impl Heard {
    fn new() -> Self {
        Self {
            status: None,
            lease: None,
            at: Instant::now(),
            lost: false,
        }
    }
}

impl Controller {
    fn observe_node(&self, name: &str, node: &Node) {
        let heartbeat =
            condition(node, "Ready").and_then(|condition| condition.last_heartbeat_time.clone());
        let mut heard = self.heard.lock();
        let entry = heard.entry(name.to_owned()).or_insert_with(Heard::new);
        if heartbeat.is_some() && entry.status != heartbeat {
            entry.status = heartbeat;
            entry.at = Instant::now();
            entry.lost = false;
        }
    }

    /// Returns whether the node had been given up.
    fn observe_lease(&self, name: &str, lease: &Lease) -> bool {
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let mut heard = self.heard.lock();
        let Some(entry) = heard.get_mut(name) else {
            return false;
        };
        if renewed.is_none() || entry.lease == renewed {
            return false;
        }
        entry.lease = renewed;
        entry.at = Instant::now();
        std::mem::take(&mut entry.lost)
    }

    /// How long the node has been silent.
    fn silence(&self, name: &str) -> Duration {
        self.heard
            .lock()
            .entry(name.to_owned())
            .or_insert_with(Heard::new)
            .at
            .elapsed()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(node) = self.nodes.get(&key) else {
            return Ok(Action::done());
        };
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let grace = self.context.config.node_monitor_grace;
        let silence = self.silence(&key.name);
        let now = self.context.now();
        let mut node = (*node).clone();
        let mut next = grace.saturating_sub(silence) + Duration::from_millis(50);
        if silence >= grace {
            if let Some(entry) = self.heard.lock().get_mut(&key.name) {
                entry.lost = true;
            }
            node = self.give_up(node, now).await?;
            // Heartbeats wake us.
            next = Duration::from_secs(60);
        }
        let ready = condition(&node, "Ready")
            .map(|condition| condition.status.clone())
            .unwrap_or_default();
        if ready != "True" {
            self.mark_pods_not_ready(&key.name, now).await?;
        }
        self.write_taints(&node, now).await?;
        Ok(Action::requeue(next))
    }

    /// Sets the conditions of a silent node to Unknown.
    async fn give_up(&self, node: Node, now: Timestamp) -> Result<Node, Error> {
        let changes = plan_unknown(&node, now);
        if changes.is_empty() {
            return Ok(node);
        }
        let name = node.metadata.name.clone().unwrap_or_default();
        let patch = json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": changes } });
        let api = self.context.cluster_api::<Node>();
        let written = api
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .doing("mark the node unreachable")?;
        tracing::warn!(kind = "Node", %name, reason = "NodeStatusUnknown", "stopped reporting");
        self.events.normal(
            &node,
            "NodeNotReady",
            format!("Node {name} status is now: NodeNotReady"),
        );
        Ok(written)
    }

    /// Nobody on that node can say it: Services must stop sending traffic there.
    async fn mark_pods_not_ready(&self, node: &str, now: Timestamp) -> Result<(), Error> {
        for pod in self.pods.by_index(BY_NODE, node) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let (namespace, name) = (
                pod.metadata.namespace.clone().unwrap_or_default(),
                pod.metadata.name.clone().unwrap_or_default(),
            );
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [
                { "type": "Ready", "status": "False", "lastTransitionTime": Time(now) } ] } });
            let api = self.context.api::<Pod>(&namespace);
            match api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => self
                    .events
                    .warning(pod.as_ref(), "NodeNotReady", "Node is not ready"),
                Err(error) if writes::is_not_found(&error) || writes::is_conflict(&error) => {}
                Err(error) => return Err(error).doing("mark a pod of a lost node not ready"),
            }
        }
        Ok(())
    }

    async fn write_taints(&self, node: &Node, now: Timestamp) -> Result<(), Error> {
        let everybody_is_lost = self.everybody_is_lost();
        let Some(taints) = plan_taints(node, everybody_is_lost, now) else {
            return Ok(());
        };
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({ "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints } });
        let api = self.context.cluster_api::<Node>();
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if writes::is_not_found(&error) => Ok(()),
            Err(error) => Err(error).doing("write the node's taints"),
        }
    }

    /// With several nodes all silent it is more likely us who are cut off: then nothing is evicted.
    fn everybody_is_lost(&self) -> bool {
        let nodes = self.nodes.all();
        nodes.len() > 1
            && nodes.iter().all(|node| {
                condition(node, "Ready").is_some_and(|condition| condition.status == "Unknown")
            })
    }
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == type_)
}

/// The conditions that must change because nobody keeps them.
fn plan_unknown(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    WATCHED_CONDITIONS
        .iter()
        .filter_map(|type_| match condition(node, type_) {
            None => Some(NodeCondition {
                type_: (*type_).into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(current) if current.status != "Unknown" => Some(NodeCondition {
                status: "Unknown".into(),
                reason: Some("NodeStatusUnknown".into()),
                message: Some("Kubelet stopped posting node status.".into()),
                last_transition_time: Some(Time(now)),
                ..current.clone()
            }),
            Some(_) => None,
        })
        .collect()
}

/// The whole list of taints as it should be, or `None` if it is.
fn plan_taints(node: &Node, everybody_is_lost: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let status_of = |type_: &str| condition(node, type_).map(|condition| condition.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (type_, status, taint) in CONDITION_TAINTS {
        if status_of(type_) == Some(status) {
            wanted.push((taint, "NoSchedule"));
            if type_ == "Ready" && !everybody_is_lost {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    if node
        .spec
        .as_ref()
        .and_then(|spec| spec.unschedulable)
        .unwrap_or_default()
    {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |taint: &Taint| {
        let by_condition = CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key)
            || taint.key == UNSCHEDULABLE;
        // A node without a Ready condition yet keeps what it registered with.
        let judged =
            status_of("Ready").is_some() || (taint.key != NOT_READY && taint.key != UNREACHABLE);
        by_condition && judged && (taint.effect == "NoSchedule" || taint.effect == "NoExecute")
    };
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| {
            !is_ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()))
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != current).then_some(taints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, extra: serde_json::Value) -> Node {
        let mut node = json!({ "metadata": { "name": "n" }, "spec": extra,
            "status": { "conditions": [ { "type": "MemoryPressure", "status": "False" } ] } });
        if !ready.is_empty() {
            node["status"]["conditions"]
                .as_array_mut()
                .expect("a list")
                .push(json!({ "type": "Ready", "status": ready }));
        }
        serde_json::from_value(node).expect("a node")
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn shown(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|taints| {
            taints
                .iter()
                .map(|taint| {
                    format!(
                        "{}:{}",
                        taint.key.replace("node.kubernetes.io/", ""),
                        taint.effect
                    )
                })
                .collect()
        })
    }

    #[test]
    fn taints_follow_conditions() {
        let check = |node: Node, everybody: bool, expected: Option<&[&str]>| {
            let expected = expected.map(|list| {
                list.iter()
                    .map(|text| (*text).to_owned())
                    .collect::<Vec<_>>()
            });
            assert_eq!(shown(plan_taints(&node, everybody, now())), expected);
        };
        check(node("True", json!({})), false, None);
        check(
            node("False", json!({})),
            false,
            Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]),
        );
        check(
            node("Unknown", json!({})),
            false,
            Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
        );
        check(
            node("Unknown", json!({})),
            true,
            Some(&["unreachable:NoSchedule"]),
        );
        check(
            node("True", json!({ "unschedulable": true })),
            false,
            Some(&["unschedulable:NoSchedule"]),
        );
        let registered = json!({ "taints": [ { "key": NOT_READY, "effect": "NoSchedule" } ] });
        check(node("", registered.clone()), false, None);
        check(node("True", registered), false, Some(&[]));
        let own = json!({ "taints": [ { "key": "gpu", "effect": "NoExecute" }, { "key": UNREACHABLE, "effect": "NoExecute" } ] });
        check(node("True", own), false, Some(&["gpu:NoExecute"]));
    }

    #[test]
    fn a_silent_node_is_unknown() {
        let changes = plan_unknown(&node("True", json!({})), now());
        let types: Vec<_> = changes
            .iter()
            .map(|condition| (condition.type_.as_str(), condition.reason.as_deref()))
            .collect();
        assert_eq!(
            types,
            [
                ("Ready", Some("NodeStatusUnknown")),
                ("MemoryPressure", Some("NodeStatusUnknown")),
                ("DiskPressure", Some("NodeStatusNeverUpdated")),
                ("PIDPressure", Some("NodeStatusNeverUpdated")),
            ]
        );
    }
}
