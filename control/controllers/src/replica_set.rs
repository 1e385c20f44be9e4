//! Keeps `spec.replicas` pods alive for each ReplicaSet and ReplicationController.
//!
//! Watches: the owner, Pod. Writes: Pod, the owner's status.
//! Counts pods by owner uid (names get reused). The cache may lag our writes: `expectations`.

use std::{fmt::Debug, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Resource,
    core::{Expression, Selector, SelectorExt},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use skep_client::{Action, Change, Expectations, Informer, ObjectKey, Recorder, writes};

use crate::{
    context::{Context, Doing, Error, api_message},
    owners,
    pod_writes::PodWrites,
    pods,
};

const WORKERS: usize = 5;
/// Writes of one reconcile; the rest waits for the next.
const BURST: usize = 500;

/// What a ReplicaSet and a ReplicationController have in common.
trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Serialize
    + DeserializeOwned
    + Debug
    + Send
    + Sync
    + 'static
{
    fn desired(&self) -> i32;
    fn selector(&self) -> Option<Selector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn min_ready_seconds(&self) -> i32;
    /// The status as JSON; the fields of both kinds have the same names.
    fn status(&self) -> Value;
    const REPORTS_TERMINATING: bool;
}

impl Replicated for ReplicaSet {
    const REPORTS_TERMINATING: bool = true;

    fn desired(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    fn selector(&self) -> Option<Selector> {
        self.spec.as_ref()?.selector.clone().try_into().ok()
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or_default()
    }

    fn status(&self) -> Value {
        serde_json::to_value(&self.status).unwrap_or_default()
    }
}

impl Replicated for ReplicationController {
    const REPORTS_TERMINATING: bool = false;

    fn desired(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    fn selector(&self) -> Option<Selector> {
        let labels = self
            .spec
            .as_ref()?
            .selector
            .as_ref()
            .filter(|labels| !labels.is_empty())?;
        Some(
            labels
                .iter()
                .map(|(key, value)| Expression::Equal(key.clone(), value.clone()))
                .collect(),
        )
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or_default()
    }

    fn status(&self) -> Value {
        serde_json::to_value(&self.status).unwrap_or_default()
    }
}

pub async fn run_replica_sets(context: Arc<Context>) {
    run::<ReplicaSet>(context, "replicaset-controller").await;
}

pub async fn run_replication_controllers(context: Arc<Context>) {
    run::<ReplicationController>(context, "replication-controller").await;
}

async fn run<K: Replicated>(context: Arc<Context>, name: &'static str) {
    let controller = Arc::new(Controller::<K> {
        owners: context.informers.of(),
        pods: context.informers.of(),
        expectations: Expectations::default(),
        events: context.events.from(name),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.owners);
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| watcher.observe_pod(change));
    work.run(name, WORKERS, controller, |controller, key| async move {
        controller.reconcile(key).await
    })
    .await;
}

struct Controller<K> {
    owners: Informer<K>,
    pods: Informer<Pod>,
    expectations: Expectations,
    events: Recorder,
    context: Arc<Context>,
}

impl<K: Replicated> Controller<K> {
    /// Notes what the cache has shown, and says whom it concerns.
    fn observe_pod(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let mut keys = pods::observe::<K>(&self.expectations, change);
        let is_orphan = owners::controller(&change.object().metadata).is_none();
        if let Some(pod) = change.new.as_ref().filter(|_| is_orphan) {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let matching = self
                .owners
                .in_namespace(namespace)
                .into_iter()
                .filter(|owner| {
                    owner.selector().is_some_and(|selector| {
                        !selector.selects_all() && selector.matches(&labels)
                    })
                });
            keys.extend(matching.map(|owner| ObjectKey::of(owner.meta())));
        }
        keys
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(owner) = self.owners.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::done());
        };
        let now = self.context.now();
        let selector = owner.selector().filter(|selector| !selector.selects_all());
        let settled = self.expectations.satisfied(&key);
        let owned = self
            .context
            .claim(owner.as_ref(), selector.as_ref(), &self.pods)
            .await?;
        let plan = if settled && owner.meta().deletion_timestamp.is_none() {
            plan(owner.desired(), &owned, |pod| self.crowding(&owner, pod))
        } else {
            Plan::Settled
        };
        let outcome = self.execute(&key, &owner, &plan).await;
        let min_ready = owner.min_ready_seconds();
        let status = status(owner.as_ref(), &owned, &plan, outcome.as_ref().err(), now);
        let api = self.context.api::<K>(&key.namespace);
        match writes::merge_status(&api, owner.meta(), &owner.status(), &status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("update the status"),
        }
        outcome?;
        let active = owned
            .iter()
            .filter(|pod| pods::is_active(pod))
            .map(AsRef::as_ref);
        Ok(Action::done().sooner(pods::next_available(active, min_ready, now)))
    }

    /// How many pods of this owner's family (the ReplicaSets of one Deployment) run on the pod's node.
    fn crowding(&self, owner: &K, pod: &Pod) -> usize {
        let Some(node) = pods::node_name(pod) else {
            return 0;
        };
        let family: Vec<String> = match owners::controller(owner.meta()) {
            Some(parent) => self
                .owners
                .owned_by(&parent.uid)
                .iter()
                .filter_map(|owner| owner.meta().uid.clone())
                .collect(),
            None => owner.meta().uid.iter().cloned().collect(),
        };
        let of_family = |other: &Arc<Pod>| {
            pods::is_active(other)
                && owners::controller(&other.metadata)
                    .is_some_and(|parent| family.contains(&parent.uid))
        };
        self.pods
            .by_index(skep_client::informer::BY_NODE, node)
            .iter()
            .filter(|other| of_family(other))
            .count()
    }

    async fn execute(&self, key: &ObjectKey, owner: &K, plan: &Plan) -> Result<(), Error> {
        let (creations, deletions) = match plan {
            Plan::Settled => (0, &[][..]),
            Plan::Create(count) => (*count, &[][..]),
            Plan::Delete(victims) => (0, &victims[..]),
        };
        let Some(template) = owner.template() else {
            return Ok(());
        };
        let mut pod = pods::from_template(template, &key.namespace, owners::reference(owner));
        pod.metadata.generate_name = Some(pods::generate_name(&key.name));
        let writes = PodWrites {
            context: &self.context,
            events: &self.events,
            expectations: &self.expectations,
            key,
            owner,
        };
        writes
            .carry_out(creations, |_| pod.clone(), deletions)
            .await
    }
}

#[derive(Debug, PartialEq)]
enum Plan {
    Settled,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

fn plan(desired: i32, owned: &[Arc<Pod>], crowding: impl Fn(&Pod) -> usize) -> Plan {
    let desired = usize::try_from(desired).unwrap_or_default();
    let mut active: Vec<Arc<Pod>> = owned
        .iter()
        .filter(|pod| pods::is_active(pod))
        .cloned()
        .collect();
    if active.len() < desired {
        return Plan::Create((desired - active.len()).min(BURST));
    }
    if active.len() > desired {
        let surplus = (active.len() - desired).min(BURST);
        active.sort_by_cached_key(|pod| pods::deletion_rank(pod, crowding(pod)));
        active.truncate(surplus);
        return Plan::Delete(active);
    }
    Plan::Settled
}

fn status<K: Replicated>(
    owner: &K,
    owned: &[Arc<Pod>],
    plan: &Plan,
    failure: Option<&Error>,
    now: Timestamp,
) -> Value {
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
    let template_labels = owner
        .template()
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let fully_labeled = active.iter().filter(|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .iter()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    });
    let min_ready = owner.min_ready_seconds();
    let mut status = Map::new();
    // Zero is left out, as upstream's `omitempty` does.
    let mut count = |name: &str, number: usize| {
        if number > 0 {
            status.insert(name.to_owned(), json!(number));
        }
    };
    count("fullyLabeledReplicas", fully_labeled.count());
    count(
        "readyReplicas",
        active.iter().filter(|pod| pods::is_ready(pod)).count(),
    );
    count(
        "availableReplicas",
        active
            .iter()
            .filter(|pod| pods::is_available(pod, min_ready, now))
            .count(),
    );
    status.insert("replicas".into(), json!(active.len()));
    if K::REPORTS_TERMINATING {
        let terminating = owned
            .iter()
            .filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod));
        status.insert("terminatingReplicas".into(), json!(terminating.count()));
    }
    status.insert(
        "observedGeneration".into(),
        json!(owner.meta().generation.unwrap_or_default()),
    );
    let old = owner.status();
    let mut conditions: Vec<Value> = old["conditions"].as_array().cloned().unwrap_or_default();
    let known = conditions
        .iter()
        .any(|condition| condition["type"] == "ReplicaFailure");
    match failure {
        Some(error) if !known => {
            let reason = if matches!(plan, Plan::Delete(_)) {
                "FailedDelete"
            } else {
                "FailedCreate"
            };
            conditions.push(
                json!({ "type": "ReplicaFailure", "status": "True", "reason": reason,
                "message": error.api().map_or_else(|| error.to_string(), api_message),
                "lastTransitionTime": Time(now) }),
            );
        }
        Some(_) => {}
        None => conditions.retain(|condition| condition["type"] != "ReplicaFailure"),
    }
    if !conditions.is_empty() {
        status.insert("conditions".into(), Value::Array(conditions));
    }
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": name, "uid": name, "labels": { "app": "web" } },
                "spec": { "nodeName": "n", "containers": [] },
                "status": { "phase": phase, "conditions": [ { "type": "Ready", "status": ready,
                    "lastTransitionTime": "2026-01-01T00:00:00Z" } ] },
            }))
            .expect("a pod"),
        )
    }

    fn leaving(name: &str) -> Arc<Pod> {
        let mut pod = (*pod(name, "Running", true)).clone();
        pod.metadata.deletion_timestamp =
            Some(Time("2026-01-01T00:00:00Z".parse().expect("a time")));
        Arc::new(pod)
    }

    #[test]
    fn plans() {
        let names = |plan: Plan| match plan {
            Plan::Settled => "settled".to_owned(),
            Plan::Create(count) => format!("create {count}"),
            Plan::Delete(pods) => {
                let names: Vec<_> = pods
                    .iter()
                    .filter_map(|pod| pod.metadata.name.clone())
                    .collect();
                format!("delete {}", names.join(" "))
            }
        };
        let check = |desired: i32, pods: &[Arc<Pod>], expected: &str| {
            assert_eq!(names(plan(desired, pods, |_| 0)), expected);
        };
        let running = pod("a", "Running", true);
        check(3, &[], "create 3");
        check(1, std::slice::from_ref(&running), "settled");
        check(1, &[pod("f", "Failed", false)], "create 1");
        check(1, &[leaving("l")], "create 1");
        check(
            1,
            &[running.clone(), pod("b", "Pending", false)],
            "delete b",
        );
        check(0, &[running, leaving("l")], "delete a");
        check(10_000, &[], "create 500");
        check(-1, &[], "settled");
    }

    #[test]
    fn reports() {
        let owner: ReplicaSet = serde_json::from_value(json!({
            "metadata": { "name": "web", "generation": 3 },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "minReadySeconds": 10,
                "template": { "metadata": { "labels": { "app": "web", "v": "1" } } } },
            "status": { "replicas": 0, "conditions": [ { "type": "ReplicaFailure", "status": "True" } ] },
        }))
        .expect("a set");
        let pods = [
            pod("a", "Running", true),
            pod("b", "Running", false),
            leaving("l"),
        ];
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(
            status(
                &owner,
                &pods,
                &Plan::Settled,
                None,
                at("2026-01-01T00:00:05Z")
            ),
            json!({ "replicas": 2, "readyReplicas": 1, "terminatingReplicas": 1, "observedGeneration": 3 })
        );
        let later = status(
            &owner,
            &pods,
            &Plan::Settled,
            None,
            at("2026-01-01T00:00:10Z"),
        );
        assert_eq!(later["availableReplicas"], 1);
        let failure = Error::Invalid("quota".into());
        let failed = status(
            &owner,
            &pods,
            &Plan::Create(1),
            Some(&failure),
            at("2026-01-01T00:00:10Z"),
        );
        assert_eq!(failed["conditions"].as_array().map(Vec::len), Some(1));
    }
}
