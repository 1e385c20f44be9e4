//! Feeds the cluster from informers and makes decisions true: binds, evicts victims, reports why a pod waits.
//!
//! Decisions are made one after another under one lock; what talks to the API runs beside, bounded by [`WRITES`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            Binding as PodBinding, Namespace, Node, ObjectReference, PersistentVolume,
            PersistentVolumeClaim, Pod,
        },
        policy::v1::PodDisruptionBudget,
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{
    Change, Election, Informer, Informers, ObjectKey, Recorder, queue::chain, writes,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    decide::{self, Decision},
    filter::Wakes,
    pod::PodInfo,
    preempt::Preemption,
    queue::PodQueue,
    volumes::{self, Binding},
};

/// Binds and reports under way at once.
const WRITES: usize = 64;
const FLUSH_EVERY: Duration = Duration::from_secs(30);
/// How long a provisioner may take to bind a pod's claims before the pod is tried elsewhere. As upstream.
const VOLUME_BIND_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub struct Config {
    /// Shared with the controllers when both run in one process.
    pub informers: Informers,
    /// Holder name in the Lease; stable across restarts of the same control plane, unique among running ones.
    pub identity: String,
}

#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error("cannot {doing}")]
    Api {
        doing: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error("volumes were not bound within {VOLUME_BIND_TIMEOUT:?}")]
    VolumesNotBound,
}

/// Schedules whenever this process holds the Lease `kube-scheduler`, until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) {
    let election = Election::new(
        config.informers.client().clone(),
        "kube-scheduler",
        &config.identity,
    );
    election
        .run(&shutdown, |term| lead(config.informers.clone(), term))
        .await;
}

struct Scheduler {
    client: Client,
    events: Recorder,
    state: Mutex<State>,
    /// Something was queued, or may be due.
    wake: Notify,
    /// A claim changed: binds that wait for volumes look again.
    claims_changed: Notify,
    claims: Informer<PersistentVolumeClaim>,
    writes: Arc<Semaphore>,
    term: CancellationToken,
}

#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: PodQueue,
}

async fn lead(informers: Informers, term: CancellationToken) {
    let scheduler = Arc::new(Scheduler {
        client: informers.client().clone(),
        events: Recorder::new(
            informers.client().clone(),
            "default-scheduler",
            term.clone(),
        ),
        state: Mutex::default(),
        wake: Notify::new(),
        claims_changed: Notify::new(),
        claims: informers.of(),
        writes: Arc::new(Semaphore::new(WRITES)),
        term: term.clone(),
    });
    let synced = scheduler.clone().watch(&informers);
    tokio::select! {
        () = term.cancelled() => return,
        () = synced => {}
    }
    tracing::info!("scheduling");
    tokio::select! {
        () = term.cancelled() => {}
        () = scheduler.schedule() => {}
    }
}

impl Scheduler {
    /// Registers the handlers; the future ends when the first lists are in.
    fn watch(self: Arc<Self>, informers: &Informers) -> impl Future<Output = ()> + use<> {
        let nodes = informers.of::<Node>();
        let pods = informers.of::<Pod>();
        let namespaces = informers.of::<Namespace>();
        let volumes = informers.of::<PersistentVolume>();
        let classes = informers.of::<StorageClass>();
        let budgets = informers.of::<PodDisruptionBudget>();
        let claims = self.claims.clone();

        self.on(&nodes, Wakes::NODE, |state, change| match &change.new {
            Some(node) => state.cluster.set_node(node),
            None => {
                state.cluster.remove_node(&name(change));
                false
            }
        });
        self.on(&namespaces, Wakes::POD_PLACED, |state, change| {
            let labels = change
                .new
                .as_ref()
                .and_then(|namespace| namespace.metadata.labels.clone());
            match &change.new {
                Some(_) => state
                    .cluster
                    .namespaces
                    .insert(name(change), labels.unwrap_or_default()),
                None => state.cluster.namespaces.remove(&name(change)),
            };
            change.old.is_some()
        });
        self.on(&volumes, Wakes::VOLUME, |state, change| {
            match &change.new {
                Some(volume) => state
                    .cluster
                    .volumes
                    .volumes
                    .insert(name(change), volume.clone()),
                None => state.cluster.volumes.volumes.remove(&name(change)),
            };
            change.new.is_some()
        });
        self.on(&claims, Wakes::VOLUME, |state, change| {
            let key = ObjectKey::of(&change.object().metadata);
            match &change.new {
                Some(claim) => state.cluster.volumes.claims.insert(key, claim.clone()),
                None => state.cluster.volumes.claims.remove(&key),
            };
            change.new.is_some()
        });
        self.on(&classes, Wakes::VOLUME, |state, change| {
            match &change.new {
                Some(class) => state
                    .cluster
                    .volumes
                    .classes
                    .insert(name(change), class.clone()),
                None => state.cluster.volumes.classes.remove(&name(change)),
            };
            change.new.is_some()
        });
        self.on(&budgets, Wakes::default(), |state, change| {
            let key = ObjectKey::of(&change.object().metadata);
            match &change.new {
                Some(budget) => state.cluster.budgets.insert(key, budget.clone()),
                None => state.cluster.budgets.remove(&key),
            };
            false
        });
        let scheduler = self.clone();
        claims.on_change(move |_| scheduler.claims_changed.notify_waiters());
        // Pods last: the initial list then meets a complete cluster.
        let scheduler = self.clone();
        pods.on_change(move |change| {
            if !scheduler.term.is_cancelled() {
                scheduler.observe_pod(change);
            }
        });
        async move {
            nodes.synced().await;
            namespaces.synced().await;
            volumes.synced().await;
            classes.synced().await;
            budgets.synced().await;
            claims.synced().await;
            pods.synced().await;
        }
    }

    /// `apply` returns whether the event may help pods that wait for `wakes`.
    fn on<K>(
        self: &Arc<Self>,
        informer: &Informer<K>,
        wakes: Wakes,
        apply: impl Fn(&mut State, &Change<K>) -> bool + Send + Sync + 'static,
    ) where
        K: Resource + Clone + Send + Sync + 'static,
    {
        let scheduler = self.clone();
        informer.on_change(move |change| {
            if scheduler.term.is_cancelled() {
                return;
            }
            let mut state = scheduler.state.lock();
            if apply(&mut state, change) {
                state.queue.wake(wakes, Instant::now());
                drop(state);
                scheduler.wake.notify_one();
            }
        });
    }

    fn observe_pod(&self, change: &Change<Pod>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        // A name can be taken over by a new pod between two events.
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.metadata.uid != new.metadata.uid
        {
            forget(&mut state, old, now);
        }
        match &change.new {
            None => forget(&mut state, change.object(), now),
            Some(pod) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let was_placed = state.cluster.is_placed(uid);
                if state.cluster.observe_pod(pod) {
                    state.queue.wake(Wakes::POD_GONE, now);
                }
                let is_placed = state.cluster.is_placed(uid);
                let labels_changed = change
                    .old
                    .as_ref()
                    .is_some_and(|old| old.metadata.labels != pod.metadata.labels);
                if is_placed && (!was_placed || labels_changed) {
                    state.queue.wake(Wakes::POD_PLACED, now);
                }
                if !PodInfo::wants_scheduling(pod) {
                    state.queue.remove(uid);
                } else if !is_placed {
                    let info = Arc::new(PodInfo::new(pod.clone()));
                    nominate(&mut state, pod, &info);
                    let only_status = change.old.as_ref().is_some_and(|old| {
                        old.spec == pod.spec && old.metadata.labels == pod.metadata.labels
                    });
                    if only_status && state.queue.contains(uid) {
                        state.queue.refresh(info);
                    } else {
                        state.queue.add(info, now);
                    }
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    async fn schedule(self: Arc<Self>) {
        let mut flush_at = Instant::now() + FLUSH_EVERY;
        loop {
            let now = Instant::now();
            if now >= flush_at {
                self.state.lock().queue.flush(now);
                flush_at = now + FLUSH_EVERY;
            }
            // A permit first: with all writes busy, deciding more would only pile up assumptions.
            let Ok(permit) = self.writes.clone().acquire_owned().await else {
                return;
            };
            let next = self.decide_next(Instant::now());
            if let Some((pod, decision)) = next {
                let scheduler = self.clone();
                tokio::spawn(async move {
                    scheduler.execute(pod, decision).await;
                    drop(permit);
                });
                // Handlers and binds share our thread in small deployments.
                tokio::task::yield_now().await;
                continue;
            }
            drop(permit);
            let due = self
                .state
                .lock()
                .queue
                .next_due()
                .unwrap_or(flush_at)
                .min(flush_at);
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    fn decide_next(&self, now: Instant) -> Option<(Arc<PodInfo>, Decision)> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let pod = state.queue.pop(now)?;
        let decision = decide::decide(&mut state.cluster, &pod, rand::random());
        match &decision {
            Decision::Bind { node, .. } => state.cluster.assume(pod.clone(), node),
            Decision::Unschedulable {
                wakes, preemption, ..
            } => {
                // Victims leave: that is the event to wait for, whatever the reasons were.
                let wakes = if preemption.is_some() {
                    Wakes::ANY
                } else {
                    *wakes
                };
                if let Some(preemption) = preemption {
                    state.cluster.nominate(pod.clone(), &preemption.node);
                }
                state.queue.park(&pod.uid, wakes, now);
            }
        }
        Some((pod, decision))
    }

    async fn execute(&self, pod: Arc<PodInfo>, decision: Decision) {
        match decision {
            Decision::Bind { node, bindings } => match self.bind(&pod, &node, &bindings).await {
                Ok(()) => {
                    tracing::info!(kind = "Pod", namespace = %pod.key.namespace, name = %pod.key.name, %node, "bound");
                    self.events.normal(
                        pod.pod.as_ref(),
                        "Scheduled",
                        format!("Successfully assigned {} to {node}", pod.key),
                    );
                }
                Err(error) => {
                    let text = chain(&error);
                    let gone = matches!(&error, BindError::Api { source, .. } if writes::is_not_found(source));
                    tracing::warn!(kind = "Pod", namespace = %pod.key.namespace, name = %pod.key.name, %node, error = %text, "bind failed");
                    let mut state = self.state.lock();
                    state.cluster.forget(&pod.uid);
                    let now = Instant::now();
                    state.queue.wake(Wakes::POD_GONE, now);
                    if gone {
                        state.queue.remove(&pod.uid);
                    } else {
                        state.queue.failed(&pod.uid, now);
                    }
                    drop(state);
                    self.wake.notify_one();
                    if !gone {
                        self.events
                            .warning(pod.pod.as_ref(), "FailedScheduling", text);
                    }
                }
            },
            Decision::Unschedulable {
                message,
                preemption,
                ..
            } => {
                let nominated = preemption
                    .as_ref()
                    .map(|preemption| preemption.node.clone());
                self.report(&pod, &message, nominated.as_deref()).await;
                self.events
                    .warning(pod.pod.as_ref(), "FailedScheduling", message);
                if let Some(preemption) = preemption {
                    self.evict(&pod, preemption).await;
                }
            }
        }
    }

    async fn bind(&self, pod: &PodInfo, node: &str, bindings: &[Binding]) -> Result<(), BindError> {
        self.bind_volumes(pod, node, bindings).await?;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let binding = PodBinding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.clone()),
                namespace: Some(pod.key.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..Default::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..Default::default()
            },
        };
        let _: serde_json::Value = api
            .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
            .await
            .map_err(|source| BindError::Api {
                doing: "bind the pod",
                source,
            })?;
        Ok(())
    }

    /// Reserves volumes or names the node to the provisioner, then waits until every claim is bound.
    async fn bind_volumes(
        &self,
        pod: &PodInfo,
        node: &str,
        bindings: &[Binding],
    ) -> Result<(), BindError> {
        if bindings.is_empty() {
            return Ok(());
        }
        for binding in bindings {
            match binding {
                Binding::Volume { claim, volume } => {
                    let api: Api<PersistentVolume> = Api::all(self.client.clone());
                    let uid = self
                        .claims
                        .get(claim)
                        .and_then(|claim| claim.metadata.uid.clone());
                    let patch = json!({ "spec": { "claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                        "namespace": claim.namespace, "name": claim.name, "uid": uid } } });
                    api.patch(volume, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .map_err(|source| BindError::Api {
                            doing: "reserve the volume",
                            source,
                        })?;
                }
                Binding::Provision { claim } => {
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), &claim.namespace);
                    let patch = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": node } } });
                    api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .map_err(|source| BindError::Api {
                            doing: "ask for the volume",
                            source,
                        })?;
                }
            }
        }
        let all_bound = || {
            pod.claims.iter().all(|(name, _)| {
                let key = ObjectKey::new(&pod.key.namespace, name);
                self.claims
                    .get(&key)
                    .is_some_and(|claim| volumes::is_bound(&claim))
            })
        };
        let wait = async {
            loop {
                let changed = self.claims_changed.notified();
                if all_bound() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(VOLUME_BIND_TIMEOUT, wait)
            .await
            .map_err(|_| BindError::VolumesNotBound)
    }

    /// The condition that says why the pod waits; written only when it changes.
    async fn report(&self, pod: &PodInfo, message: &str, nominated: Option<&str>) {
        let status = pod.pod.status.as_ref();
        let condition = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition.type_ == "PodScheduled")
            });
        let known = condition.is_some_and(|condition| {
            condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
                && condition.message.as_deref() == Some(message)
        });
        let nominated_known = nominated.is_none()
            || status.and_then(|status| status.nominated_node_name.as_deref()) == nominated;
        if known && nominated_known {
            return;
        }
        let transition = condition
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or_else(|| Time(Timestamp::now()));
        let mut patch = json!({ "status": { "conditions": [ {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": transition } ] } });
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] = json!(node);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        match api
            .patch_status(
                &pod.key.name,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await
        {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => {}
            Err(error) => {
                tracing::warn!(kind = "Pod", namespace = %pod.key.namespace, name = %pod.key.name, error = %chain(&error), "cannot report why the pod waits");
            }
        }
    }

    async fn evict(&self, pod: &PodInfo, preemption: Preemption) {
        for victim in &preemption.victims {
            if victim.terminating {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.key.namespace);
            let condition = json!({ "status": { "conditions": [ {
                "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": "default-scheduler: preempting to accommodate a higher priority pod",
                "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now()) } ] } });
            let marked = api
                .patch_status(
                    &victim.key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(condition),
                )
                .await
                .map(drop);
            let deleted = writes::delete(
                &api,
                &victim.key.name,
                Some(victim.uid.clone()),
                DeleteParams::default(),
            )
            .await;
            for outcome in [marked, deleted] {
                if let Err(error) = outcome
                    && !writes::is_not_found(&error)
                {
                    tracing::warn!(kind = "Pod", namespace = %victim.key.namespace, name = %victim.key.name, error = %chain(&error), "cannot preempt");
                }
            }
            self.events.normal(
                victim.pod.as_ref(),
                "Preempted",
                format!("Preempted by pod {} on node {}", pod.uid, preemption.node),
            );
        }
    }
}

fn forget(state: &mut State, pod: &Pod, now: Instant) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    state.queue.remove(uid);
    if state.cluster.remove_pod(uid) {
        state.queue.wake(Wakes::POD_GONE, now);
    }
}

/// After a restart the nomination is known only from the pod's status.
fn nominate(state: &mut State, pod: &Pod, info: &Arc<PodInfo>) {
    let node = pod
        .status
        .as_ref()
        .and_then(|status| status.nominated_node_name.as_deref());
    if let Some(node) = node.filter(|node| !node.is_empty()) {
        state.cluster.nominate(info.clone(), node);
    }
}

fn name<K: Resource>(change: &Change<K>) -> String {
    change.object().meta().name.clone().unwrap_or_default()
}
