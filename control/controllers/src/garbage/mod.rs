//! Deletes objects whose owners are gone, and carries out foreground deletion and orphaning.
//!
//! Watches: the metadata of every resource that discovery says can be watched and deleted; new kinds join within half a
//! minute. Writes: deletes, `ownerReferences` and the finalizers `foregroundDeletion` and `orphan`.
//! [`graph`] is the pure part: who owns whom, and what to do with one object. An owner that the graph does not know is
//! asked for before anything is deleted: an informer may lag or not have started.

mod graph;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    discovery::{Discovery, Scope},
};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Informer, Queue, queue, queue::chain, writes};
use tokio_util::sync::CancellationToken;

use self::graph::{Graph, Node, Owner, Plan};
use crate::context::{Context, Doing, Error};

const WORKERS: usize = 20;
const REDISCOVER: Duration = Duration::from_secs(30);
/// How long an owner found absent is believed to be.
const ABSENT_FOR: Duration = Duration::from_secs(30);
const ABSENT_REMEMBERED: usize = 4096;

type Meta = PartialObjectMeta<DynamicObject>;

pub async fn run(context: Arc<Context>) {
    let collector = Arc::new(Collector {
        graph: Mutex::default(),
        kinds: Mutex::default(),
        absent: Mutex::default(),
        queue: Queue::new(),
        context: context.clone(),
    });
    let working = queue::run(
        "garbage",
        collector.queue.clone(),
        WORKERS,
        context.term.clone(),
        {
            let collector = collector.clone();
            move |uid| {
                let collector = collector.clone();
                async move { collector.reconcile(uid).await }
            }
        },
    );
    let discovering = context.every(REDISCOVER, || collector.clone().discover());
    tokio::join!(working, discovering);
}

/// A kind that is being watched.
struct Kind {
    resource: ApiResource,
    namespaced: bool,
    stop: CancellationToken,
}

struct Collector {
    graph: Mutex<Graph>,
    /// By `group/Kind`.
    kinds: Mutex<HashMap<String, Kind>>,
    absent: Mutex<HashMap<String, Instant>>,
    queue: Arc<Queue<String>>,
    context: Arc<Context>,
}

fn kind_key(group: &str, kind: &str) -> String {
    format!("{group}/{kind}")
}

impl Collector {
    /// Starts a watch for every kind that appeared, ends those of kinds that are gone.
    async fn discover(self: Arc<Self>) {
        let discovery = match Discovery::new(self.context.client.clone())
            .run_aggregated()
            .await
        {
            Ok(discovery) => discovery,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "garbage collection cannot discover kinds, will retry");
                return;
            }
        };
        let mut found: HashMap<String, (ApiResource, bool)> = HashMap::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let can = |verb: &str| capabilities.supports_operation(verb);
                // Events own nothing, are owned by nothing, and come by the thousand.
                if can("list") && can("watch") && can("delete") && resource.kind != "Event" {
                    let key = kind_key(&resource.group, &resource.kind);
                    found.insert(key, (resource, capabilities.scope == Scope::Namespaced));
                }
            }
        }
        let mut kinds = self.kinds.lock();
        kinds.retain(|key, kind| {
            let stays = found
                .get(key)
                .is_some_and(|(resource, _)| *resource == kind.resource);
            if !stays {
                kind.stop.cancel();
                self.graph.lock().forget_kind(key);
            }
            stays
        });
        for (key, (resource, namespaced)) in found {
            if kinds.contains_key(&key) {
                continue;
            }
            let stop = self.context.term.child_token();
            let watcher = self.clone();
            let kind = key.clone();
            let _informer: Informer<Meta> =
                self.context
                    .informers
                    .metadata(&resource, stop.clone(), |informer| {
                        informer.on_change(move |change| watcher.observe(&kind, change));
                    });
            kinds.insert(
                key,
                Kind {
                    resource,
                    namespaced,
                    stop,
                },
            );
        }
    }

    fn observe(&self, kind: &str, change: &skep_client::Change<Meta>) {
        let mut graph = self.graph.lock();
        let uid = |meta: &Arc<Meta>| meta.metadata.uid.clone().unwrap_or_default();
        let mut affected = Vec::new();
        let replaced = match (&change.old, &change.new) {
            (Some(old), Some(new)) => uid(old) != uid(new),
            (_, None) => true,
            (None, _) => false,
        };
        if let Some(old) = change.old.as_ref().filter(|_| replaced) {
            affected.extend(graph.remove(&uid(old)));
        }
        if let Some(new) = &change.new {
            affected.extend(graph.put(Node::new(kind, &new.metadata)));
        }
        drop(graph);
        for uid in affected {
            self.queue.add(uid);
        }
    }

    async fn reconcile(&self, uid: String) -> Result<Action, Error> {
        let Some((node, owners)) = self.graph.lock().view(&uid) else {
            return Ok(Action::done());
        };
        // What the graph does not know is asked for.
        let mut states = Vec::with_capacity(owners.len());
        for (owner, known) in owners {
            let state = match known {
                Some(state) => state,
                None => self.look_up(&node, &owner).await?,
            };
            states.push((owner, state));
        }
        let plan = self.graph.lock().plan(&uid, &states);
        let Some(api) = self.api(&node) else {
            return Ok(Action::done());
        };
        match plan {
            Plan::Keep => {}
            Plan::DropOwners(gone) => {
                let Some(live) = self.live(&api, &node).await? else {
                    return Ok(Action::done());
                };
                let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
                owners.retain(|owner| !gone.contains(&owner.uid));
                self.patch(&api, &node, &live, json!({ "ownerReferences": owners }))
                    .await?;
            }
            Plan::Delete(policy) => {
                // Planned on the cache: a last look keeps what was re-owned meanwhile.
                let Some(live) = self.live(&api, &node).await? else {
                    return Ok(Action::done());
                };
                if graph::owners(&live.metadata) != node.owners {
                    return Ok(Action::requeue(Duration::from_millis(200)));
                }
                let params = DeleteParams {
                    propagation_policy: Some(policy),
                    preconditions: Some(Preconditions {
                        uid: Some(uid),
                        resource_version: live.metadata.resource_version.clone(),
                    }),
                    ..DeleteParams::default()
                };
                match api.delete(&node.name, &params).await {
                    Ok(_) => {}
                    Err(error) if writes::is_not_found(&error) => {}
                    Err(error) => {
                        return Err(error).doing("delete a dependent whose owners are gone");
                    }
                }
                tracing::info!(kind = %node.kind, namespace = %node.namespace, name = %node.name, reason = "OwnersGone", "deleted");
            }
            Plan::DeleteDependents(dependents) => {
                // Each is reconciled for itself and finds its owner waiting; the last one to go wakes us.
                for dependent in dependents {
                    self.queue.add(dependent);
                }
            }
            Plan::OrphanDependents(dependents) => {
                for dependent in dependents {
                    self.orphan(&dependent, &node.uid).await?;
                }
                self.remove_finalizer(&api, &node, graph::ORPHAN).await?;
            }
            Plan::FinishForeground => {
                self.remove_finalizer(&api, &node, graph::FOREGROUND)
                    .await?
            }
            Plan::UnblockAndDelete(dependents) => {
                // A cycle of foreground deletions would wait for ever: none of these may block any more.
                for dependent in dependents {
                    self.unblock(&dependent, &node.uid).await?;
                }
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Foreground),
                    preconditions: Some(Preconditions {
                        uid: Some(uid),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                match api.delete(&node.name, &params).await {
                    Ok(_) => {}
                    Err(error) if writes::is_not_found(&error) => {}
                    Err(error) => return Err(error).doing("delete a dependent in the foreground"),
                }
            }
        }
        Ok(Action::done())
    }

    fn api(&self, node: &Node) -> Option<Api<Meta>> {
        let kinds = self.kinds.lock();
        let kind = kinds.get(&node.kind)?;
        Some(self.api_of(&kind.resource, kind.namespaced, &node.namespace))
    }

    fn api_of(&self, resource: &ApiResource, namespaced: bool, namespace: &str) -> Api<Meta> {
        if namespaced {
            Api::namespaced_with(self.context.client.clone(), namespace, resource)
        } else {
            Api::all_with(self.context.client.clone(), resource)
        }
    }

    /// Asks the API server for an owner that the graph does not know.
    async fn look_up(&self, node: &Node, owner: &Owner) -> Result<graph::OwnerState, Error> {
        use graph::OwnerState::{Absent, Present, Unknown};
        if self
            .absent
            .lock()
            .get(&owner.uid)
            .is_some_and(|since| since.elapsed() < ABSENT_FOR)
        {
            return Ok(Absent);
        }
        let api = {
            let kinds = self.kinds.lock();
            let Some(kind) = kinds.get(&kind_key(&owner.group, &owner.kind)) else {
                // Nobody serves that kind (now): keeping is the safe error.
                return Ok(Unknown);
            };
            if kind.namespaced && node.namespace.is_empty() {
                // A cluster-scoped object cannot have a namespaced owner; nothing can be concluded.
                return Ok(Unknown);
            }
            self.api_of(&kind.resource, kind.namespaced, &node.namespace)
        };
        let found = api
            .get_metadata_opt(&owner.name)
            .await
            .doing("look up an owner")?;
        if found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&owner.uid)) {
            return Ok(Present);
        }
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_REMEMBERED {
            absent.retain(|_, since| since.elapsed() < ABSENT_FOR);
            if absent.len() >= ABSENT_REMEMBERED {
                absent.clear();
            }
        }
        absent.insert(owner.uid.clone(), Instant::now());
        Ok(Absent)
    }

    /// The object as it is now, if it is still the same one.
    async fn live(&self, api: &Api<Meta>, node: &Node) -> Result<Option<Meta>, Error> {
        let live = api.get_opt(&node.name).await.doing("read a dependent")?;
        Ok(live.filter(|live| live.metadata.uid.as_deref() == Some(&node.uid)))
    }

    async fn patch(
        &self,
        api: &Api<Meta>,
        node: &Node,
        live: &Meta,
        mut metadata: serde_json::Value,
    ) -> Result<(), Error> {
        metadata["uid"] = json!(node.uid);
        metadata["resourceVersion"] = json!(live.metadata.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match api.patch(&node.name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if writes::is_not_found(&error) => Ok(()),
            Err(error) => Err(error).doing("change the metadata of a dependent or owner"),
        }
    }

    async fn remove_finalizer(
        &self,
        api: &Api<Meta>,
        node: &Node,
        finalizer: &str,
    ) -> Result<(), Error> {
        let Some(live) = self.live(api, node).await? else {
            return Ok(());
        };
        let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|own| own != finalizer);
        if finalizers.len() == before {
            return Ok(());
        }
        self.patch(api, node, &live, json!({ "finalizers": finalizers }))
            .await
    }

    /// Removes one owner from a dependent.
    async fn orphan(&self, uid: &str, owner: &str) -> Result<(), Error> {
        self.edit_owners(uid, |owners| {
            owners.retain(|reference| reference.uid != owner)
        })
        .await
    }

    async fn unblock(&self, uid: &str, owner: &str) -> Result<(), Error> {
        self.edit_owners(uid, |owners| {
            for reference in owners.iter_mut().filter(|reference| reference.uid == owner) {
                reference.block_owner_deletion = Some(false);
            }
        })
        .await
    }

    async fn edit_owners(
        &self,
        uid: &str,
        edit: impl FnOnce(&mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>),
    ) -> Result<(), Error> {
        let Some((node, _)) = self.graph.lock().view(uid) else {
            return Ok(());
        };
        let Some(api) = self.api(&node) else {
            return Ok(());
        };
        let Some(live) = self.live(&api, &node).await? else {
            return Ok(());
        };
        let before = live.metadata.owner_references.clone().unwrap_or_default();
        let mut owners = before.clone();
        edit(&mut owners);
        if owners == before {
            return Ok(());
        }
        self.patch(&api, &node, &live, json!({ "ownerReferences": owners }))
            .await
    }
}
