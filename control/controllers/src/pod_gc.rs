//! Removes pods that nobody else will: of nodes that no longer exist, of nodes taken out of service, never scheduled and
//! already terminating, and finished ones beyond the threshold.
//!
//! Watches: Pod, Node. Writes: Pod.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::api::{DeleteParams, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Informer, ObjectKey, queue::chain, writes};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const PERIOD: Duration = Duration::from_secs(20);
/// A node must be missing for this long before its pods count as orphans; then it is asked for once more.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub async fn run(context: Arc<Context>) {
    let collector = Arc::new(Collector {
        pods: context.informers.of(),
        nodes: context.informers.of(),
        missing: Mutex::default(),
        context: context.clone(),
    });
    tokio::select! {
        () = context.term.cancelled() => return,
        () = async {
            collector.pods.synced().await;
            collector.nodes.synced().await;
        } => {}
    }
    context.every(PERIOD, || collector.collect()).await;
}

struct Collector {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Nodes that pods are bound to and that do not exist, since when.
    missing: Mutex<HashMap<String, Instant>>,
    context: Arc<Context>,
}

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Orphan,
    OutOfService,
    Unscheduled,
    Surplus,
}

impl Collector {
    async fn collect(&self) {
        let pods = self.pods.all();
        let gone = self.nodes_gone(&pods).await;
        let state = |name: &str| match self.nodes.get(&ObjectKey::cluster(name)) {
            None if gone.contains(&name.to_owned()) => NodeState::Gone,
            Some(node) if is_out_of_service(&node) => NodeState::OutOfService,
            _ => NodeState::Fine,
        };
        for (pod, cause) in plan(&pods, state, self.context.config.terminated_pod_threshold) {
            if let Err(error) = self.remove(&pod, cause).await {
                let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
                tracing::warn!(kind = "Pod", ?namespace, ?name, error = %chain(&error), "cannot collect, will retry");
            }
        }
    }

    /// Nodes that have been missing long enough and are not there when asked for.
    async fn nodes_gone(&self, pods: &[Arc<Pod>]) -> Vec<String> {
        let candidates: Vec<String> = {
            let mut missing = self.missing.lock();
            let names = pods.iter().filter_map(|pod| pods::node_name(pod));
            let absent: std::collections::HashSet<&str> = names
                .filter(|name| self.nodes.get(&ObjectKey::cluster(*name)).is_none())
                .collect();
            missing.retain(|name, _| absent.contains(name.as_str()));
            for name in absent {
                missing.entry(name.to_owned()).or_insert_with(Instant::now);
            }
            let long = missing
                .iter()
                .filter(|(_, since)| since.elapsed() >= self.quarantine());
            long.map(|(name, _)| name.clone()).collect()
        };
        let mut gone = Vec::new();
        for name in candidates {
            if matches!(
                self.context
                    .cluster_api::<Node>()
                    .get_metadata_opt(&name)
                    .await,
                Ok(None)
            ) {
                gone.push(name);
            }
        }
        gone
    }

    /// Clusters that give nodes up sooner (tests) also mourn them shorter.
    fn quarantine(&self) -> Duration {
        QUARANTINE.min(self.context.config.node_monitor_grace)
    }

    async fn remove(&self, pod: &Pod, cause: Cause) -> Result<(), Error> {
        let key = ObjectKey::of(&pod.metadata);
        let api = self.context.api::<Pod>(&key.namespace);
        let condition = |message: &str| {
            json!([ { "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
                "lastTransitionTime": Time(self.context.now()) } ])
        };
        let status = match cause {
            Cause::Orphan if !pods::is_finished(pod) => Some(
                json!({ "phase": "Failed", "conditions": condition("PodGC: node no longer exists") }),
            ),
            Cause::OutOfService if !pods::is_finished(pod) => Some(json!({ "phase": "Failed" })),
            Cause::Unscheduled if !pods::is_finished(pod) => Some(json!({ "phase": "Failed" })),
            _ => None,
        };
        if let Some(status) = status {
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
            match api
                .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {}
                Err(error) if writes::is_not_found(&error) || writes::is_conflict(&error) => {
                    return Ok(());
                }
                Err(error) => return Err(error).doing("mark the pod failed"),
            }
        }
        let params = DeleteParams::default().grace_period(0);
        writes::delete(&api, &key.name, pod.metadata.uid.clone(), params)
            .await
            .doing("remove the pod")?;
        tracing::info!(kind = "Pod", namespace = %key.namespace, name = %key.name, reason = ?cause, "collected");
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Fine,
    Gone,
    OutOfService,
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
        && !conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn plan(
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> NodeState,
    threshold: usize,
) -> Vec<(Arc<Pod>, Cause)> {
    let mut removals = Vec::new();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let state = pods::node_name(pod).map(&node);
        match state {
            Some(NodeState::Gone) => removals.push((pod.clone(), Cause::Orphan)),
            Some(NodeState::OutOfService) if pods::is_terminating(pod) => {
                removals.push((pod.clone(), Cause::OutOfService));
            }
            None if pods::is_terminating(pod) => removals.push((pod.clone(), Cause::Unscheduled)),
            _ if pods::is_finished(pod) && !pods::is_terminating(pod) => finished.push(pod),
            _ => {}
        }
    }
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by_key(|pod| {
            pod.metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MIN, |time| time.0)
        });
        let surplus = finished.len() - threshold;
        removals.extend(
            finished
                .into_iter()
                .take(surplus)
                .map(|pod| (pod.clone(), Cause::Surplus)),
        );
    }
    removals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, terminating: bool, created: &str) -> Arc<Pod> {
        let mut pod = json!({ "metadata": { "name": name, "creationTimestamp": created },
            "spec": { "containers": [] }, "status": { "phase": phase } });
        if !node.is_empty() {
            pod["spec"]["nodeName"] = json!(node);
        }
        if terminating {
            pod["metadata"]["deletionTimestamp"] = json!(created);
        }
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn what_is_collected() {
        let day = |day: u32| format!("2026-01-{day:02}T00:00:00Z");
        let pods = [
            pod("fine", "n1", "Running", false, &day(1)),
            pod("orphan", "gone", "Running", false, &day(1)),
            pod("stuck", "broken", "Running", true, &day(1)),
            pod("other", "broken", "Running", false, &day(1)),
            pod("unscheduled", "", "Pending", true, &day(1)),
            pod("waiting", "", "Pending", false, &day(1)),
            pod("done-3", "n1", "Succeeded", false, &day(3)),
            pod("done-1", "n1", "Failed", false, &day(1)),
            pod("done-2", "n1", "Succeeded", false, &day(2)),
        ];
        let node = |name: &str| match name {
            "gone" => NodeState::Gone,
            "broken" => NodeState::OutOfService,
            _ => NodeState::Fine,
        };
        let names = |threshold: usize| -> Vec<(String, Cause)> {
            plan(&pods, node, threshold)
                .into_iter()
                .map(|(pod, cause)| (pod.metadata.name.clone().unwrap_or_default(), cause))
                .collect()
        };
        let always = [
            ("orphan".to_owned(), Cause::Orphan),
            ("stuck".to_owned(), Cause::OutOfService),
            ("unscheduled".to_owned(), Cause::Unscheduled),
        ];
        assert_eq!(names(0), always);
        assert_eq!(names(3), always);
        let mut with_surplus = always.to_vec();
        with_surplus.push(("done-1".to_owned(), Cause::Surplus));
        assert_eq!(names(2), with_surplus);
    }
}
