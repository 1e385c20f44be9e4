//! Rolls each Deployment's ReplicaSets towards its template.
//!
//! Watches: Deployment, ReplicaSet, Pod. Writes: ReplicaSet, Deployment status and its revision annotation.
//! [`plan`] decides on copies of the ReplicaSets and records what to write; this file writes it. A lagging cache costs a
//! conflict, never a second rollout step: every write names the version it was planned on.

mod hash;
mod plan;

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{Selector, SelectorExt},
};
use serde_json::json;
use skep_client::{Action, Change, Informer, ObjectKey, Recorder, writes};

use self::plan::{Input, Write};
pub(crate) use self::{
    hash::template_hash,
    plan::{canonical_json, resolve},
};
use crate::{
    context::{Context, Doing, Error, api_message},
    owners, pods,
};

const WORKERS: usize = 5;

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        pods: context.informers.of(),
        events: context.events.from("deployment-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.deployments);
    let watcher = controller.clone();
    work.feed(&controller.replica_sets, move |change| {
        watcher.concerned(change)
    });
    let watcher = controller.clone();
    // Recreate waits for the last old pod to be gone; everything else shows in the ReplicaSets' status.
    work.feed(&controller.pods, move |change| {
        if !change.is_delete() {
            return Vec::new();
        }
        let meta = &change.object().metadata;
        let set = owners::controller_key::<ReplicaSet>(meta)
            .and_then(|key| watcher.replica_sets.get(&key));
        set.and_then(|set| owners::controller_key::<Deployment>(&set.metadata))
            .into_iter()
            .collect()
    });
    work.run(
        "deployment",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    fn concerned(&self, change: &Change<ReplicaSet>) -> Vec<ObjectKey> {
        let mut keys: Vec<_> = change
            .each()
            .filter_map(|set| owners::controller_key::<Deployment>(&set.metadata))
            .collect();
        keys.dedup();
        let meta = &change.object().metadata;
        if !change.is_delete() && owners::controller(meta).is_none() {
            let labels = meta.labels.clone().unwrap_or_default();
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let matching =
                self.deployments
                    .in_namespace(namespace)
                    .into_iter()
                    .filter(|deployment| {
                        selector(deployment).is_some_and(|selector| selector.matches(&labels))
                    });
            keys.extend(matching.map(|deployment| ObjectKey::of(&deployment.metadata)));
        }
        keys
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(deployment) = self.deployments.get(&key) else {
            return Ok(Action::done());
        };
        let Some(selector) = selector(&deployment) else {
            self.events.warning(
                deployment.as_ref(),
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(Action::done());
        };
        let sets = self
            .context
            .claim(deployment.as_ref(), Some(&selector), &self.replica_sets)
            .await?;
        let plan = plan::plan(&Input {
            deployment: &deployment,
            replica_sets: sets.iter().map(|set| (**set).clone()).collect(),
            has_pods: &|set| {
                self.pods
                    .owned_by(set)
                    .iter()
                    .any(|pod| !pods::is_finished(pod))
            },
            now: self.context.now(),
        });
        let mut collision_count = None;
        for write in &plan.writes {
            self.write(&deployment, write, &mut collision_count).await?;
        }
        let mut status = plan.status;
        if let Some(count) = collision_count {
            status.collision_count = Some(count);
        }
        if let Some(revision) = &plan.revision {
            let patch = json!({ "metadata": { "uid": deployment.metadata.uid,
                "annotations": { plan::REVISION: revision } } });
            let api = self.context.api::<Deployment>(&key.namespace);
            let outcome = api
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match outcome {
                // The status goes with the version that this made.
                Ok(written) => {
                    return self
                        .report(&written, &status, plan.requeue_after, collision_count)
                        .await;
                }
                Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
                Err(error) => return Err(error).doing("write the revision"),
            }
        }
        self.report(&deployment, &status, plan.requeue_after, collision_count)
            .await
    }

    async fn report(
        &self,
        deployment: &Deployment,
        status: &k8s_openapi::api::apps::v1::DeploymentStatus,
        requeue_after: Option<std::time::Duration>,
        collision_count: Option<i32>,
    ) -> Result<Action, Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.context.api::<Deployment>(namespace);
        let old = deployment.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &deployment.metadata, &old, status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("update the status"),
        }
        match collision_count {
            Some(_) => Err(Error::Invalid(
                "the name of the new ReplicaSet is taken; trying another".into(),
            )),
            None => Ok(Action::done().sooner(requeue_after)),
        }
    }

    async fn write(
        &self,
        deployment: &Arc<Deployment>,
        write: &Write,
        collision_count: &mut Option<i32>,
    ) -> Result<(), Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.context.api::<ReplicaSet>(namespace);
        match write {
            Write::Create(set) => {
                let name = set.metadata.name.clone().unwrap_or_default();
                match api.create(&PostParams::default(), set).await {
                    Ok(_) => {}
                    Err(error) if writes::is_already_exists(&error) => {
                        let existing = api
                            .get_opt(&name)
                            .await
                            .doing("read the ReplicaSet of that name")?;
                        let ours = existing.as_ref().is_some_and(|existing| {
                            let owner = owners::controller(&existing.metadata);
                            owner.is_some_and(|owner| {
                                Some(&owner.uid) == deployment.metadata.uid.as_ref()
                            }) && plan::same_template(existing, deployment)
                        });
                        if !ours {
                            let count = deployment
                                .status
                                .as_ref()
                                .and_then(|status| status.collision_count);
                            *collision_count = Some(count.unwrap_or_default().saturating_add(1));
                        }
                        return Ok(());
                    }
                    Err(error) if writes::is_namespace_terminating(&error) => return Ok(()),
                    Err(error) => {
                        let message = format!(
                            "Failed to create new replica set \"{name}\": {}",
                            api_message(&error)
                        );
                        self.events.warning(
                            deployment.as_ref(),
                            "ReplicaSetCreateError",
                            message.clone(),
                        );
                        self.report_failed_create(deployment, &message).await;
                        return Err(error).doing("create a ReplicaSet");
                    }
                }
                let replicas = set
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.replicas)
                    .unwrap_or_default();
                if replicas > 0 {
                    self.scaled(deployment, &name, 0, replicas);
                }
                Ok(())
            }
            Write::Update { before, after } => {
                let name = after.metadata.name.clone().unwrap_or_default();
                let difference = plan::update_patch(before, after);
                let Some(patch) = difference else {
                    return Ok(());
                };
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .doing("update a ReplicaSet")?;
                let replicas = |set: &ReplicaSet| {
                    set.spec
                        .as_ref()
                        .and_then(|spec| spec.replicas)
                        .unwrap_or(1)
                };
                if replicas(before) != replicas(after) {
                    self.scaled(deployment, &name, replicas(before), replicas(after));
                }
                Ok(())
            }
            Write::Delete(set) => {
                let name = set.metadata.name.clone().unwrap_or_default();
                writes::delete(
                    &api,
                    &name,
                    set.metadata.uid.clone(),
                    DeleteParams::background(),
                )
                .await
                .doing("delete an old ReplicaSet")
            }
        }
    }

    async fn report_failed_create(&self, deployment: &Deployment, message: &str) {
        let mut status = deployment.status.clone().unwrap_or_default();
        if deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.progress_deadline_seconds)
            .is_none()
        {
            return;
        }
        plan::set_condition(
            &mut status,
            plan::condition(
                "Progressing",
                "False",
                "ReplicaSetCreateError",
                message.to_owned(),
                self.context.now(),
            ),
        );
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let old = deployment.status.clone().unwrap_or_default();
        let api = self.context.api::<Deployment>(namespace);
        if let Err(error) = writes::merge_status(&api, &deployment.metadata, &old, &status).await {
            tracing::debug!(%error, "cannot report the failure; the next round will");
        }
    }

    fn scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        self.events.normal(
            deployment,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {set} from {from} to {to}"),
        );
    }
}

/// `None` if it is unreadable or selects everything.
fn selector(deployment: &Deployment) -> Option<Selector> {
    let selector = Selector::try_from(deployment.spec.as_ref()?.selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}
