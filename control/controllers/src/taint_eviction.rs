//! Deletes pods from nodes whose NoExecute taints they do not tolerate (any more).
//!
//! Watches: Node, Pod. Writes: Pod. A toleration with seconds counts from when the taint was added, where the taint says
//! so, else from when it was first seen together with the pod: people's taints have no time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::api::{DeleteParams, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Recorder, informer::BY_NODE, writes};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const WORKERS: usize = 8;

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        nodes: context.informers.of(),
        pods: context.informers.of(),
        events: context.events.from("taint-eviction-controller"),
        waiting: Mutex::default(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed(&controller.pods, |change| {
        let moved = |pod: &Arc<Pod>| {
            (
                pods::node_name(pod).map(str::to_owned),
                pod.spec.as_ref().map(|spec| spec.tolerations.clone()),
            )
        };
        match (&change.old, &change.new) {
            (Some(old), Some(new)) if moved(old) == moved(new) => Vec::new(),
            (_, Some(new)) if pods::node_name(new).is_some() => vec![ObjectKey::of(&new.metadata)],
            (Some(old), None) => vec![ObjectKey::of(&old.metadata)],
            _ => Vec::new(),
        }
    });
    let watcher = controller.clone();
    work.feed(&controller.nodes, move |change| {
        let taints = |node: &Arc<Node>| no_execute(node);
        if change.is_delete() || change.old.as_ref().map(taints) == change.new.as_ref().map(taints)
        {
            return Vec::new();
        }
        let name = change.object().metadata.name.clone().unwrap_or_default();
        watcher
            .pods
            .by_index(BY_NODE, &name)
            .iter()
            .map(|pod| ObjectKey::of(&pod.metadata))
            .collect()
    });
    work.run(
        "taint-eviction",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    events: Recorder,
    /// Pods that are to go, their uids, and since when: as many as have a toleration with seconds on a tainted node.
    waiting: Mutex<HashMap<ObjectKey, (Option<String>, Timestamp)>>,
    context: Arc<Context>,
}

impl Controller {
    /// Since when the pod is known to wait for its eviction.
    fn since(&self, key: &ObjectKey, pod: &Pod, now: Timestamp) -> Timestamp {
        let mut waiting = self.waiting.lock();
        let uid = &pod.metadata.uid;
        let (_, since) = waiting
            .entry(key.clone())
            .and_modify(|known| {
                // Another pod of the name.
                if known.0 != *uid {
                    *known = (uid.clone(), now);
                }
            })
            .or_insert_with(|| (uid.clone(), now));
        *since
    }

    fn forget(&self, key: &ObjectKey) {
        self.waiting.lock().remove(key);
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.get(&key) else {
            self.forget(&key);
            return Ok(Action::done());
        };
        let node = pods::node_name(&pod).and_then(|name| self.nodes.get(&ObjectKey::cluster(name)));
        let Some(node) = node.filter(|_| !pods::is_terminating(&pod)) else {
            self.forget(&key);
            return Ok(Action::done());
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.clone())
            .unwrap_or_default();
        let now = self.context.now();
        let since = self.since(&key, &pod, now);
        match plan(&no_execute(&node), &tolerations, since, now) {
            Plan::Stay => {
                self.forget(&key);
                Ok(Action::done())
            }
            Plan::EvictAfter(delay) => Ok(Action::requeue(delay + Duration::from_millis(10))),
            Plan::Evict => {
                self.events.normal(
                    pod.as_ref(),
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {key}"),
                );
                let api = self.context.api::<Pod>(&key.namespace);
                let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [ {
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now) } ] } });
                match api
                    .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                    .await
                {
                    Ok(_) => {}
                    Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
                    Err(error) => {
                        return Err(error).doing("mark the pod as a target of disruption");
                    }
                }
                writes::delete(
                    &api,
                    &key.name,
                    pod.metadata.uid.clone(),
                    DeleteParams::default(),
                )
                .await
                .doing("evict the pod")?;
                tracing::info!(kind = "Pod", namespace = %key.namespace, name = %key.name, reason = "DeletionByTaintManager", "evicted");
                Ok(Action::done())
            }
        }
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    taints
        .into_iter()
        .filter(|taint| taint.effect == "NoExecute")
        .collect()
}

#[derive(Debug, PartialEq)]
enum Plan {
    Stay,
    EvictAfter(Duration),
    Evict,
}

/// `since`: when the taints were first seen.
fn plan(taints: &[Taint], tolerations: &[Toleration], since: Timestamp, now: Timestamp) -> Plan {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if matching.is_empty() {
            return Plan::Evict;
        }
        let added = taint.time_added.as_ref().map_or(since, |time| time.0);
        // The shortest of the tolerations counts; none with seconds means for ever.
        if let Some(seconds) = matching
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min()
        {
            let until = added
                .saturating_add(SignedDuration::from_secs(seconds.max(0)))
                .unwrap_or(Timestamp::MAX);
            earliest = Some(earliest.map_or(until, |other| other.min(until)));
        }
    }
    match earliest {
        None => Plan::Stay,
        Some(at) if at <= now => Plan::Evict,
        Some(at) => Plan::EvictAfter(pods::until(now, at)),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_pod_must_go() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let taint = |key: &str, added: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            value: None,
            time_added: Some(Time(at(added))),
        };
        let tolerate = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            ..Default::default()
        };
        let added = "2026-01-01T00:00:00Z";
        let now = at("2026-01-01T00:00:10Z");
        let check = |tolerations: &[Toleration], expected: Plan| {
            assert_eq!(
                plan(&[taint("unreachable", added)], tolerations, now, now),
                expected
            );
        };
        check(&[], Plan::Evict);
        check(&[tolerate("other", None)], Plan::Evict);
        check(&[tolerate("unreachable", None)], Plan::Stay);
        check(
            &[tolerate("unreachable", Some(300))],
            Plan::EvictAfter(Duration::from_secs(290)),
        );
        check(
            &[
                tolerate("unreachable", Some(300)),
                tolerate("unreachable", Some(5)),
            ],
            Plan::Evict,
        );
        check(&[tolerate("unreachable", Some(0))], Plan::Evict);
        assert_eq!(plan(&[], &[], now, now), Plan::Stay);
        // A person's taint: its time is when it was seen.
        let by_hand = Taint {
            time_added: None,
            ..taint("unreachable", added)
        };
        let patient = [tolerate("unreachable", Some(10))];
        let after = |since: &str| plan(std::slice::from_ref(&by_hand), &patient, at(since), now);
        assert_eq!(
            after("2026-01-01T00:00:03Z"),
            Plan::EvictAfter(Duration::from_secs(3))
        );
        assert_eq!(after(added), Plan::Evict);
    }
}
