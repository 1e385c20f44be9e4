//! Counts for every PodDisruptionBudget how many of its pods may be evicted now.
//!
//! Watches: PodDisruptionBudget, Pod, the pods' controllers. Writes: PodDisruptionBudget status. The API server's eviction
//! subresource spends `disruptionsAllowed`; this fills it up again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use kube::core::{Selector, SelectorExt};
use skep_client::{Action, Change, Informer, ObjectKey, writes};

use crate::{
    context::{Context, Doing, Error},
    deployment::resolve,
    owners, pods,
};

const WORKERS: usize = 2;
/// An eviction that was allowed and did not delete the pod within this time is forgotten. As upstream.
const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        budgets: context.informers.of(),
        pods: context.informers.of(),
        sets: context.informers.of(),
        deployments: context.informers.of(),
        stateful: context.informers.of(),
        controllers: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.budgets);
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| watcher.concerned(change));
    // The wanted number of pods changes with their controllers; their pods follow, and wake us, but not at once.
    let watcher = controller.clone();
    work.feed(&controller.sets, move |change| {
        let size = |set: &Arc<ReplicaSet>| set.spec.as_ref().and_then(|spec| spec.replicas);
        if change.old.as_ref().map(size) == change.new.as_ref().map(size) {
            return Vec::new();
        }
        let namespace = change
            .object()
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        watcher
            .budgets
            .in_namespace(namespace)
            .iter()
            .map(|budget| ObjectKey::of(&budget.metadata))
            .collect()
    });
    work.reads(&controller.deployments);
    work.reads(&controller.stateful);
    work.reads(&controller.controllers);
    work.run(
        "disruption",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    context: Arc<Context>,
}

impl Controller {
    fn concerned(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        pods::selected_by(&self.budgets, change, selector)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(budget) = self.budgets.get(&key) else {
            return Ok(Action::done());
        };
        let none = Default::default();
        let covered: Vec<Arc<Pod>> = match selector(&budget) {
            None => Vec::new(),
            Some(selector) => {
                let matches = |pod: &Arc<Pod>| {
                    selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none))
                };
                let all = self.pods.in_namespace(&key.namespace).into_iter();
                all.filter(|pod| matches(pod) && !pods::is_finished(pod))
                    .collect()
            }
        };
        let now = self.context.now();
        let (status, recheck) = status(&budget, &covered, self.scale(&covered), now);
        let api = self.context.api::<PodDisruptionBudget>(&key.namespace);
        let old = budget.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &budget.metadata, &old, &status).await {
            Ok(_) => Ok(Action::done().sooner(recheck)),
            Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
            Err(error) => Err(error).doing("update the budget's status"),
        }
    }

    /// How many pods their controllers want in all. `None`: some pod has no controller that can be scaled.
    fn scale(&self, covered: &[Arc<Pod>]) -> Option<i32> {
        let mut seen = BTreeSet::new();
        let mut total = 0i32;
        for pod in covered {
            let meta = &pod.metadata;
            let (uid, replicas) = if let Some(set) =
                owners::controller_key::<ReplicaSet>(meta).and_then(|key| self.sets.get(&key))
            {
                match owners::controller_key::<Deployment>(&set.metadata)
                    .and_then(|key| self.deployments.get(&key))
                {
                    Some(deployment) => {
                        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                        (deployment.metadata.uid.clone(), replicas)
                    }
                    None => (
                        set.metadata.uid.clone(),
                        set.spec.as_ref().and_then(|spec| spec.replicas),
                    ),
                }
            } else if let Some(set) =
                owners::controller_key::<StatefulSet>(meta).and_then(|key| self.stateful.get(&key))
            {
                (
                    set.metadata.uid.clone(),
                    set.spec.as_ref().and_then(|spec| spec.replicas),
                )
            } else {
                let key = owners::controller_key::<ReplicationController>(meta)?;
                let owner = self.controllers.get(&key)?;
                (
                    owner.metadata.uid.clone(),
                    owner.spec.as_ref().and_then(|spec| spec.replicas),
                )
            };
            if seen.insert(uid) {
                total = total.saturating_add(replicas.unwrap_or(1));
            }
        }
        Some(total)
    }
}

fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    // policy/v1: an empty selector covers every pod of the namespace, an absent one none.
    budget.spec.as_ref()?.selector.clone()?.try_into().ok()
}

/// The status, and when it changes by mere waiting.
fn status(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    scale: Option<i32>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(covered.len()).unwrap_or(i32::MAX);
    let mut failure = None;
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => match scale {
            Some(scale) => (scale, (scale - resolve(max, scale, true)).max(0)),
            None => {
                failure = Some(
                    "found no controllers for pods; maxUnavailable needs scalable controllers",
                );
                (count, count)
            }
        },
        (None, Some(IntOrString::Int(min))) => (count, *min),
        (None, Some(min)) => match scale {
            Some(scale) => (scale, resolve(min, scale, true)),
            None => {
                failure =
                    Some("found no controllers for pods; a percentage needs scalable controllers");
                (count, count)
            }
        },
        (None, None) => (count, 0),
    };
    let old = budget.status.clone().unwrap_or_default();
    let mut recheck = None;
    let mut disrupted = BTreeMap::new();
    for (name, since) in old.disrupted_pods.unwrap_or_default() {
        let still = covered
            .iter()
            .any(|pod| pod.metadata.name.as_deref() == Some(&name) && !pods::is_terminating(pod));
        let end = since
            .0
            .saturating_add(EVICTION_TIMEOUT)
            .unwrap_or(Timestamp::MAX);
        if still && end > now {
            let wait = pods::until(now, end);
            recheck = Some(recheck.map_or(wait, |other: Duration| other.min(wait)));
            disrupted.insert(name, since);
        }
    }
    let healthy = covered.iter().filter(|pod| {
        pods::is_ready(pod)
            && !pods::is_terminating(pod)
            && !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default())
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let allowed = if failure.is_some() || expected <= 0 {
        0
    } else {
        (healthy - desired).max(0)
    };
    let (value, reason, message) = match failure {
        Some(message) => ("False", "SyncFailed", message),
        None if allowed > 0 => ("True", "SufficientPods", ""),
        None => ("False", "InsufficientPods", ""),
    };
    let mut conditions = old.conditions.unwrap_or_default();
    let previous = conditions
        .iter()
        .position(|condition| condition.type_ == "DisruptionAllowed");
    let previous = previous.map(|index| conditions.remove(index));
    let transition = match previous {
        Some(previous) if previous.status == value => previous.last_transition_time,
        _ => Time(now),
    };
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: transition,
        observed_generation: budget.metadata.generation,
    });
    let status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        conditions: Some(conditions),
    };
    (status, recheck)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({ "metadata": { "name": name },
            "status": { "phase": "Running", "conditions": [ { "type": "Ready", "status": ready } ] } });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn what_may_be_disrupted() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let pods = [pod("a", true), pod("b", true), pod("c", false)];
        let check = |spec: Value, old: Value, scale: Option<i32>, expected: (i32, i32, i32)| {
            let budget: PodDisruptionBudget = serde_json::from_value(
                json!({ "metadata": { "name": "b" }, "spec": spec, "status": old }),
            )
            .expect("one");
            let (status, _) = status(&budget, &pods, scale, now);
            let numbers = (
                status.disruptions_allowed,
                status.current_healthy,
                status.desired_healthy,
            );
            assert_eq!(
                numbers,
                (Some(expected.0), Some(expected.1), Some(expected.2)),
                "{spec}"
            );
        };
        check(json!({ "minAvailable": 1 }), json!({}), None, (1, 2, 1));
        check(json!({ "minAvailable": 3 }), json!({}), None, (0, 2, 3));
        check(
            json!({ "maxUnavailable": 1 }),
            json!({}),
            Some(3),
            (0, 2, 2),
        );
        check(
            json!({ "maxUnavailable": 2 }),
            json!({}),
            Some(3),
            (1, 2, 1),
        );
        check(json!({ "maxUnavailable": 1 }), json!({}), None, (0, 2, 3));
        check(
            json!({ "minAvailable": "50%" }),
            json!({}),
            Some(3),
            (0, 2, 2),
        );
        let evicted = |at: &str| json!({ "disruptedPods": { "a": at } });
        check(
            json!({ "minAvailable": 1 }),
            evicted("2026-01-01T00:00:30Z"),
            None,
            (0, 1, 1),
        );
        check(
            json!({ "minAvailable": 1 }),
            evicted("2025-12-31T23:00:00Z"),
            None,
            (1, 2, 1),
        );
    }
}
