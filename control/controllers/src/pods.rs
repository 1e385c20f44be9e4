//! Facts about pods that several controllers share, and how a pod is made from a template.

use std::{fmt::Debug, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Resource,
    core::{ObjectMeta, Selector, SelectorExt},
};
use serde::de::DeserializeOwned;
use skep_client::{Change, Expectations, Informer, ObjectKey};

use crate::owners;

/// Fulfils what the controller of a pod expects, and names the controllers of this kind that a change concerns: two if
/// the pod changes hands.
pub fn observe<K: Resource<DynamicType = ()>>(
    expectations: &Expectations,
    change: &Change<Pod>,
) -> Vec<ObjectKey> {
    let pod = change.object();
    if let Some(key) = owners::controller_key::<K>(&pod.metadata) {
        match (&change.old, &change.new) {
            // After a restart a pod may be seen for the first time while it goes.
            (_, Some(pod)) if is_terminating(pod) => expectations.deleted(&key, uid(pod)),
            (None, Some(_)) => expectations.created(&key),
            (_, None) => expectations.deleted(&key, uid(pod)),
            _ => {}
        }
    }
    owners::controllers_of::<K, Pod>(change)
}

/// The objects of the pod's namespace whose selector selects it, before or after the change.
pub fn selected_by<K>(
    informer: &Informer<K>,
    change: &Change<Pod>,
    selector: impl Fn(&K) -> Option<Selector>,
) -> Vec<ObjectKey>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let none = Default::default();
    let selects = |selector: Selector| {
        change
            .each()
            .any(|pod| selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none)))
    };
    let namespace = change.object().metadata.namespace.as_deref();
    informer
        .in_namespace(namespace.unwrap_or_default())
        .iter()
        .filter(|object| selector(object).is_some_and(selects))
        .map(|object| ObjectKey::of(object.meta()))
        .collect()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts towards a number of replicas.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// When a ready pod has been (or will have been) ready for `min_ready_seconds`. `None`: it is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    let since = condition
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MIN, |time| time.0);
    since
        .checked_add(SignedDuration::from_secs(i64::from(min_ready_seconds)))
        .ok()
}

pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if min_ready_seconds == 0 {
        return is_ready(pod);
    }
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// How long until the next of these pods becomes available by mere waiting.
pub fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    pods.into_iter()
        .filter_map(|pod| available_at(pod, min_ready_seconds))
        .filter(|at| *at > now)
        .map(|at| until(now, at))
        .min()
}

/// From `now` to `at`; zero if that has passed.
pub fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten();
    containers
        .map(|container| container.restart_count)
        .fold(0, i32::saturating_add)
}

/// A pod as the template says, owned by `owner`. The caller names it.
pub fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The prefix of generated pod names, as upstream: cut where the API server would.
pub fn generate_name(owner: &str) -> String {
    format!("{owner}-")
}

/// Which pods of a set to delete first: the least useful. Upstream's `ActivePodsWithRanks`.
///
/// `crowding` is how many pods of related owners run on the pod's node.
pub fn deletion_rank(pod: &Pod, crowding: usize) -> impl Ord + use<> {
    let phase_rank = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let ready = is_ready(pod);
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse::<i32>().ok())
        .unwrap_or_default();
    let ready_since = condition(pod, "Ready")
        .filter(|_| ready)
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map_or(Timestamp::MAX, |time| time.0);
    let created = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MAX, |time| time.0);
    (
        node_name(pod).is_some(),
        phase_rank,
        ready,
        cost,
        std::cmp::Reverse(crowding),
        std::cmp::Reverse(ready_since),
        std::cmp::Reverse(restarts(pod)),
        std::cmp::Reverse(created),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn the_least_useful_goes_first() {
        let ready = |since: &str| {
            json!({ "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": since } ] } })
        };
        let unassigned = pod(json!({ "status": { "phase": "Pending" } }));
        let pending = pod(
            json!({ "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Pending" } }),
        );
        let unready = pod(
            json!({ "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Running" } }),
        );
        let young = pod(ready("2026-01-02T00:00:00Z"));
        let old = pod(ready("2026-01-01T00:00:00Z"));
        let mut cheap = old.clone();
        cheap.metadata.annotations = Some(
            [(
                "controller.kubernetes.io/pod-deletion-cost".to_owned(),
                "-5".to_owned(),
            )]
            .into(),
        );
        let mut all = [
            (&old, 1),
            (&old, 2),
            (&young, 1),
            (&unready, 1),
            (&cheap, 1),
            (&unassigned, 1),
            (&pending, 1),
        ];
        all.sort_by_key(|(pod, crowding)| deletion_rank(pod, *crowding));
        let expected = [
            (&unassigned, 1),
            (&pending, 1),
            (&unready, 1),
            (&cheap, 1),
            (&old, 2),
            (&young, 1),
            (&old, 1),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let pod = pod(json!({ "status": { "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" } ] } }));
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert!(is_available(&pod, 0, at("2026-01-01T00:00:00Z")));
        assert!(!is_available(&pod, 10, at("2026-01-01T00:00:09Z")));
        assert!(is_available(&pod, 10, at("2026-01-01T00:00:10Z")));
        assert_eq!(
            next_available([&pod], 10, at("2026-01-01T00:00:04Z")),
            Some(Duration::from_secs(6))
        );
    }
}
