//! Empties namespaces that are being deleted, then lets them go.
//!
//! Watches: Namespace. Writes: deletes everything in it, the Namespace's status and its `kubernetes` finalizer.
//! What there is to delete comes from discovery, so custom resources go too. The conditions say what is still in the way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    discovery::{Discovery, Scope},
};
use skep_client::{Action, Informer, ObjectKey, writes};

use crate::context::{Context, Doing, Error, api_message};

const WORKERS: usize = 4;
const FINALIZER: &str = "kubernetes";
/// Between looks at what is left: first quickly (most content has no grace period), then as often as pods take to end.
const RECHECK_FIRST: Duration = Duration::from_millis(300);
const RECHECK_LATER: Duration = Duration::from_secs(3);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        namespaces: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed(&controller.namespaces, |change| {
        let ends = |namespace: &&Arc<Namespace>| namespace.metadata.deletion_timestamp.is_some();
        let ending = change.new.as_ref().filter(ends);
        ending
            .map(|namespace| ObjectKey::of(&namespace.metadata))
            .into_iter()
            .collect()
    });
    work.run(
        "namespace",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    namespaces: Informer<Namespace>,
    context: Arc<Context>,
}

/// What one round found.
#[derive(Debug, Default)]
struct Findings {
    discovery_error: Option<String>,
    deletion_errors: Vec<String>,
    /// Objects left, by `resource.group`.
    remaining: BTreeMap<String, usize>,
    /// Objects left that wait for this finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Findings {
    fn is_empty(&self) -> bool {
        self.discovery_error.is_none()
            && self.deletion_errors.is_empty()
            && self.remaining.is_empty()
    }
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(cached) = self.namespaces.get(&key) else {
            return Ok(Action::done());
        };
        if cached.metadata.deletion_timestamp.is_none() {
            return Ok(Action::done());
        }
        let api = self.context.cluster_api::<Namespace>();
        let Some(namespace) = api.get_opt(&key.name).await.doing("read the namespace")? else {
            return Ok(Action::done());
        };
        if namespace.metadata.uid != cached.metadata.uid {
            return Ok(Action::done());
        }
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.clone())
            .unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Action::done());
        }
        let findings = self.empty(&key.name).await;
        let now = self.context.now();
        let old = namespace.status.clone().unwrap_or_default();
        let status = status(&old, &findings, now);
        match writes::merge_status(&api, &namespace.metadata, &old, &status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("report what is left"),
        }
        if !findings.is_empty() {
            let age = namespace
                .metadata
                .deletion_timestamp
                .as_ref()
                .map(|time| now.duration_since(time.0).as_secs());
            let young = age.is_none_or(|seconds| seconds < 5);
            return Ok(Action::requeue(if young {
                RECHECK_FIRST
            } else {
                RECHECK_LATER
            }));
        }
        self.finalize(&api, &key.name).await?;
        tracing::info!(kind = "Namespace", name = %key.name, "emptied");
        Ok(Action::done())
    }

    async fn finalize(&self, api: &Api<Namespace>, name: &str) -> Result<(), Error> {
        let Some(mut namespace) = api.get_opt(name).await.doing("read the namespace")? else {
            return Ok(());
        };
        if let Some(finalizers) = namespace
            .spec
            .as_mut()
            .and_then(|spec| spec.finalizers.as_mut())
        {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let outcome = api
            .replace_subresource("finalize", name, &PostParams::default(), &namespace)
            .await;
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if writes::is_not_found(&error) => Ok(()),
            Err(error) => Err(error).doing("remove the finalizer"),
        }
    }

    /// Asks for everything in the namespace to be deleted and counts what is still there.
    async fn empty(&self, namespace: &str) -> Findings {
        let mut findings = Findings::default();
        let resources = match discover(&self.context).await {
            Ok(resources) => resources,
            Err(error) => {
                findings.discovery_error = Some(api_message(&error));
                return findings;
            }
        };
        for (resource, can_delete_collection) in resources {
            if let Err(error) = self
                .empty_one(namespace, &resource, can_delete_collection, &mut findings)
                .await
            {
                // A kind that was removed meanwhile has no objects.
                if !writes::is_not_found(&error) {
                    findings.deletion_errors.push(api_message(&error));
                }
            }
        }
        findings
    }

    async fn empty_one(
        &self,
        namespace: &str,
        resource: &ApiResource,
        can_delete_collection: bool,
        findings: &mut Findings,
    ) -> Result<(), kube::Error> {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.context.client.clone(), namespace, resource);
        let left = api.list(&ListParams::default()).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let params = DeleteParams::background();
        let dynamic: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, resource);
        if can_delete_collection {
            dynamic
                .delete_collection(&params, &ListParams::default())
                .await?;
        } else {
            for object in &left {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                writes::delete(&dynamic, name, object.metadata.uid.clone(), params.clone()).await?;
            }
        }
        let left = api.list(&ListParams::default()).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let name = if resource.group.is_empty() {
            // Upstream prints "pods." for the core group.
            format!("{}.", resource.plural)
        } else {
            format!("{}.{}", resource.plural, resource.group)
        };
        findings.remaining.insert(name, left.len());
        for finalizer in left
            .iter()
            .flat_map(|object| object.metadata.finalizers.iter().flatten())
        {
            *findings.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }
}

/// Namespaced resources that can be listed and deleted, and whether in one request.
async fn discover(context: &Context) -> Result<Vec<(ApiResource, bool)>, kube::Error> {
    let discovery = Discovery::new(context.client.clone())
        .run_aggregated()
        .await?;
    let mut resources = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let can = |verb: &str| capabilities.supports_operation(verb);
            if capabilities.scope == Scope::Namespaced
                && can("list")
                && (can("delete") || can("deletecollection"))
            {
                resources.push((resource, can("deletecollection")));
            }
        }
    }
    // Events last: what is deleted before may cause some.
    resources.sort_by_key(|(resource, _)| (resource.kind == "Event", resource.plural.clone()));
    Ok(resources)
}

/// The conditions as upstream words them.
fn status(old: &NamespaceStatus, findings: &Findings, now: Timestamp) -> NamespaceStatus {
    let deletion_message = if findings.deletion_errors.is_empty() {
        None
    } else {
        Some(format!(
            "Failed to delete all resource types, {} remaining: {}",
            findings.deletion_errors.len(),
            findings.deletion_errors.join(", ")
        ))
    };
    let remaining = (!findings.remaining.is_empty()).then(|| {
        let parts: Vec<_> = findings
            .remaining
            .iter()
            .map(|(name, count)| format!("{name} has {count} resource instances"))
            .collect();
        format!("Some resources are remaining: {}", parts.join(", "))
    });
    let finalizers = (!findings.finalizers.is_empty()).then(|| {
        let parts: Vec<_> = findings
            .finalizers
            .iter()
            .map(|(name, count)| format!("{name} in {count} resource instances"))
            .collect();
        format!(
            "Some content in the namespace has finalizers remaining: {}",
            parts.join(", ")
        )
    });
    let discovery = findings
        .discovery_error
        .as_ref()
        .map(|error| format!("Discovery failed for some groups, 1 failing: {error}"));
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            discovery,
            "DiscoveryFailed",
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            deletion_message,
            "ContentDeletionFailed",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    let mut status = old.clone();
    status.phase = Some("Terminating".into());
    let mut conditions = status.conditions.take().unwrap_or_default();
    for (type_, problem, bad_reason, (good_reason, good_message)) in table {
        let (value, reason, message) = match problem {
            Some(message) => ("True", bad_reason, message),
            None => ("False", good_reason, good_message.to_owned()),
        };
        let current = conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_);
        match current {
            Some(current) => {
                if current.status != value {
                    current.status = value.into();
                    current.last_transition_time = Some(Time(now));
                }
                current.reason = Some(reason.into());
                current.message = Some(message);
            }
            None => conditions.push(NamespaceCondition {
                type_: type_.into(),
                status: value.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    status.conditions = Some(conditions);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_is_left() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let findings = Findings {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Default::default()
        };
        let busy = status(&NamespaceStatus::default(), &findings, now);
        let message = |status: &NamespaceStatus, type_: &str| {
            let condition = status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == type_)
                .cloned();
            condition.map(|condition| (condition.status, condition.message.unwrap_or_default()))
        };
        assert_eq!(
            message(&busy, "NamespaceContentRemaining"),
            Some((
                "True".into(),
                "Some resources are remaining: pods. has 2 resource instances".into()
            ))
        );
        assert_eq!(
            message(&busy, "NamespaceFinalizersRemaining"),
            Some((
                "True".into(),
                "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances".into()
            ))
        );
        let done = status(&busy, &Findings::default(), now);
        assert_eq!(
            message(&done, "NamespaceContentRemaining"),
            Some(("False".into(), "All content successfully removed".into()))
        );
        assert!(Findings::default().is_empty() && !findings.is_empty());
    }
}
