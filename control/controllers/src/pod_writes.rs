//! The writes to pods that ReplicaSets, DaemonSets and Jobs have in common.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource,
    api::{DeleteParams, PostParams},
};
use skep_client::{Expectations, ObjectKey, Recorder, writes};

use crate::{
    context::{Context, Doing, Error, api_message},
    pods,
};

/// What is written for one owner. Every outcome is an event of the owner; what fails is no longer expected.
pub struct PodWrites<'a, K> {
    pub context: &'a Context,
    pub events: &'a Recorder,
    pub expectations: &'a Expectations,
    pub key: &'a ObjectKey,
    pub owner: &'a K,
}

impl<K: Resource<DynamicType = ()>> PodWrites<'_, K> {
    /// Deletes pods and creates others: the n-th is `pod(n)`.
    ///
    /// # Errors
    /// Of the API server, the last one. A namespace that is being deleted takes no new pods, and that is none.
    pub async fn carry_out(
        &self,
        creations: usize,
        pod: impl Fn(usize) -> Pod,
        deletions: &[Arc<Pod>],
    ) -> Result<(), Error> {
        if creations == 0 && deletions.is_empty() {
            return Ok(());
        }
        let uids = deletions.iter().map(|pod| pods::uid(pod).to_owned());
        self.expectations.expect(self.key, creations, uids);
        let deleted = self.delete(deletions).await;
        let created = self.create(creations, pod).await;
        created.and(deleted)
    }

    async fn delete(&self, victims: &[Arc<Pod>]) -> Result<(), Error> {
        let api = self.context.api::<Pod>(&self.key.namespace);
        let outcomes = join_all(victims.iter().map(|pod| {
            let api = &api;
            async move {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let uid = pod.metadata.uid.clone();
                let outcome = writes::delete(api, &name, uid, DeleteParams::default()).await;
                (pod, name, outcome)
            }
        }))
        .await;
        let mut failure = None;
        for (pod, name, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    self.events.normal(self.owner, "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.expectations.deleted(self.key, pods::uid(pod));
                    let message = format!("Error deleting: {}", api_message(&error));
                    self.events.warning(self.owner, "FailedDelete", message);
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), |error| Err(error).doing("delete a pod"))
    }

    /// Creates in growing batches, so that a template that cannot be created costs few requests.
    async fn create(&self, count: usize, pod: impl Fn(usize) -> Pod) -> Result<(), Error> {
        let api = self.context.api::<Pod>(&self.key.namespace);
        let params = PostParams::default();
        let mut done = 0;
        let mut batch = 1;
        while done < count {
            let upto = count.min(done + batch);
            batch *= 2;
            let outcomes = join_all((done..upto).map(|index| {
                let (api, params, pod) = (&api, &params, pod(index));
                async move { api.create(params, &pod).await }
            }))
            .await;
            done = upto;
            let mut failure = None;
            for outcome in outcomes {
                match outcome {
                    Ok(created) => {
                        let name = created.metadata.name.unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.events.normal(self.owner, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        self.expectations.created(self.key);
                        if !writes::is_namespace_terminating(&error) {
                            let message = format!("Error creating: {}", api_message(&error));
                            self.events.warning(self.owner, "FailedCreate", message);
                        }
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                for _ in done..count {
                    self.expectations.created(self.key);
                }
                return if writes::is_namespace_terminating(&error) {
                    Ok(())
                } else {
                    Err(error).doing("create a pod")
                };
            }
        }
        Ok(())
    }
}
