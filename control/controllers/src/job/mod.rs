//! Runs each Job's pods until enough of them succeeded or too many failed, and removes finished Jobs after their time.
//!
//! Watches: Job, Pod. Writes: Pod (and its tracking finalizer), Job status.
//!
//! Every pod carries a finalizer until its end is in the Job's status, so that no end is missed or counted twice:
//! ```text
//!  pod ends ──► uid in status.uncountedTerminatedPods ──► finalizer removed ──► counted in status.succeeded / failed
//! ```
//! Each arrow is one write, and each step is repeated until the cache shows it done.

mod indexes;
mod plan;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::{
    api::{DeleteParams, Patch, PatchParams},
    core::Selector,
};
use serde_json::json;
use skep_client::{Action, Expectations, Informer, ObjectKey, Recorder, writes};

use self::plan::{Input, Plan};
use crate::{
    context::{Context, Doing, Error},
    owners,
    pod_writes::PodWrites,
    pods,
};

const WORKERS: usize = 5;
pub(crate) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        jobs: context.informers.of(),
        pods: context.informers.of(),
        expectations: Expectations::default(),
        events: context.events.from("job-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.jobs);
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| {
        pods::observe::<Job>(&watcher.expectations, change)
    });
    work.run("job", WORKERS, controller, |controller, key| async move {
        controller.reconcile(key).await
    })
    .await;
}

struct Controller {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Expectations,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(job) = self.jobs.get(&key) else {
            self.expectations.forget(&key);
            return self.free_orphans(&key).await;
        };
        let spec = job.spec.clone().unwrap_or_default();
        if spec
            .managed_by
            .as_deref()
            .is_some_and(|manager| manager != "kubernetes.io/job-controller")
        {
            return Ok(Action::done());
        }
        let now = self.context.now();
        let api = self.context.api::<Job>(&key.namespace);
        if plan::is_finished(&job) && job.metadata.deletion_timestamp.is_none() {
            match plan::expires_in(&job, now) {
                Some(left) if left.is_zero() => {
                    let params = DeleteParams::foreground();
                    writes::delete(&api, &key.name, job.metadata.uid.clone(), params)
                        .await
                        .doing("delete a finished Job")?;
                    return Ok(Action::done());
                }
                _ => {}
            }
        }
        let selector = spec
            .selector
            .clone()
            .and_then(|selector| Selector::try_from(selector).ok());
        let owned = match selector.as_ref().filter(|selector| !selector.selects_all()) {
            Some(selector) => {
                self.context
                    .claim(job.as_ref(), Some(selector), &self.pods)
                    .await?
            }
            None => self
                .pods
                .owned_by(job.metadata.uid.as_deref().unwrap_or_default()),
        };
        let input = Input {
            job: &job,
            pods: &owned,
            settled: self.expectations.satisfied(&key),
            now,
        };
        let plan = plan::plan(&input);
        let old = job.status.clone().unwrap_or_default();
        // The status goes first: what it says will be counted may then lose its finalizer.
        match writes::merge_status(&api, &job.metadata, &old, &plan.status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("update the status"),
        }
        self.announce(&job, &old, &plan.status);
        self.remove_finalizers(&key, &plan.release).await?;
        self.execute(&key, &job, &plan).await?;
        let expiry = if plan::is_finished(&job) {
            plan::expires_in(&job, now)
        } else {
            None
        };
        Ok(Action::done()
            .sooner(plan.requeue_after)
            .sooner(expiry.map(|left| left + Duration::from_millis(100))))
    }

    fn announce(&self, job: &Job, old: &JobStatus, new: &JobStatus) {
        let has = |status: &JobStatus, type_: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == type_ && condition.status == "True")
                .cloned()
        };
        for type_ in ["Complete", "Failed", "Suspended"] {
            let (before, after) = (has(old, type_), has(new, type_));
            match (type_, before.is_some(), after) {
                ("Complete", false, Some(_)) => {
                    self.events.normal(job, "Completed", "Job completed")
                }
                ("Failed", false, Some(condition)) => self.events.warning(
                    job,
                    &condition.reason.unwrap_or_default(),
                    condition.message.unwrap_or_default(),
                ),
                ("Suspended", false, Some(_)) => {
                    self.events.normal(job, "Suspended", "Job suspended")
                }
                ("Suspended", true, None) => self.events.normal(job, "Resumed", "Job resumed"),
                _ => {}
            }
        }
    }

    /// The Job is gone: its pods must not wait for a count that never comes.
    async fn free_orphans(&self, key: &ObjectKey) -> Result<Action, Error> {
        let all = self.pods.in_namespace(&key.namespace).into_iter();
        let orphans: Vec<Arc<Pod>> = all
            .filter(|pod| {
                owners::controller_key::<Job>(&pod.metadata).as_ref() == Some(key)
                    && plan::has_finalizer(pod)
            })
            .collect();
        self.remove_finalizers(key, &orphans).await?;
        Ok(Action::done())
    }

    async fn remove_finalizers(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let api = self.context.api::<Pod>(&key.namespace);
        let outcomes = join_all(pods.iter().map(|pod| {
            let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            let patch = json!({ "metadata": { "uid": pod.metadata.uid,
                "resourceVersion": pod.metadata.resource_version, "finalizers": finalizers } });
            let (api, name) = (api.clone(), pod.metadata.name.clone().unwrap_or_default());
            async move {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
            }
        }))
        .await;
        for outcome in outcomes {
            match outcome {
                Ok(_) => {}
                Err(error) if writes::is_not_found(&error) => {}
                Err(error) => return Err(error).doing("release a counted pod"),
            }
        }
        Ok(())
    }

    async fn execute(&self, key: &ObjectKey, job: &Arc<Job>, plan: &Plan) -> Result<(), Error> {
        let pod = |index: usize| job_pod(job, plan.create[index]);
        let writes = PodWrites {
            context: &self.context,
            events: &self.events,
            expectations: &self.expectations,
            key,
            owner: job.as_ref(),
        };
        writes.carry_out(plan.create.len(), pod, &plan.delete).await
    }
}

/// A pod of the Job; with an index if the Job is indexed.
fn job_pod(job: &Job, index: Option<i32>) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let template = job
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = pods::from_template(&template, namespace, owners::reference(job));
    let labels = pod.metadata.labels.get_or_insert_default();
    for key in ["batch.kubernetes.io/job-name", "job-name"] {
        labels.entry(key.into()).or_insert_with(|| name.to_owned());
    }
    for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        labels.entry(key.into()).or_insert_with(|| uid.to_owned());
    }
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    pod.metadata.generate_name = Some(pods::generate_name(name));
    let Some(index) = index else { return pod };
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(INDEX.into(), index.to_string());
    pod.metadata
        .annotations
        .get_or_insert_default()
        .insert(INDEX.into(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|own| own.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
