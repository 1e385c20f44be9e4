//! The history of a DaemonSet or StatefulSet: its templates as ControllerRevisions.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, runtime::RawExtension},
};
use kube::{
    Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{ObjectMeta, Selector},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skep_client::{Informer, writes};

use crate::{
    context::{Context, Doing, Error},
    deployment, owners,
};

pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

pub(crate) struct History {
    /// Of the current template.
    pub(crate) update: ControllerRevision,
    /// Oldest first, `update` included.
    pub(crate) all: Vec<ControllerRevision>,
}

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn hash(revision: &ControllerRevision) -> &str {
    let label = revision
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(HASH_LABEL));
    label.map(String::as_str).unwrap_or_default()
}

/// What `kubectl rollout undo` patches the object with.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template as of a revision.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision
        .data
        .as_ref()?
        .0
        .get("spec")?
        .get("template")?
        .clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

impl Context {
    /// Finds or writes the revision of the current template, with the highest number.
    ///
    /// # Errors
    /// Of the API server.
    pub(crate) async fn history<O>(
        &self,
        owner: &O,
        selector: &LabelSelector,
        template: &PodTemplateSpec,
        collision_count: Option<i32>,
        informer: &Informer<ControllerRevision>,
    ) -> Result<History, Error>
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let matching = Selector::try_from(selector.clone())
            .ok()
            .filter(|selector| !selector.selects_all());
        let owned = self.claim(owner, matching.as_ref(), informer).await?;
        let mut all: Vec<ControllerRevision> =
            owned.into_iter().map(Arc::unwrap_or_clone).collect();
        all.sort_by(|a, b| (a.revision, name(a)).cmp(&(b.revision, name(b))));
        let newest = all.last().map_or(0, |revision| revision.revision);
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let api = self.api::<ControllerRevision>(namespace);
        let wanted = deployment::canonical_json(data(template));
        let same = |revision: &ControllerRevision| {
            revision
                .data
                .as_ref()
                .is_some_and(|data| deployment::canonical_json(data.0.clone()) == wanted)
        };
        if let Some(index) = all.iter().rposition(same) {
            if all[index].revision < newest {
                // A rollback: the old template is the newest again.
                let mut revision = all.remove(index);
                revision.revision = newest + 1;
                let patch = json!({ "revision": revision.revision });
                api.patch(
                    name(&revision),
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
                .doing("renumber a revision")?;
                all.push(revision);
                return Ok(History {
                    update: all[all.len() - 1].clone(),
                    all,
                });
            }
            return Ok(History {
                update: all[index].clone(),
                all,
            });
        }
        let hash = deployment::template_hash(template, collision_count);
        let owner_name = owner.meta().name.clone().unwrap_or_default();
        let mut labels = template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone())
            .unwrap_or_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{owner_name}-{hash}")),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![owners::reference(owner)]),
                ..Default::default()
            },
            data: Some(RawExtension(data(template))),
            revision: newest + 1,
        };
        let created = match api.create(&PostParams::default(), &revision).await {
            Ok(created) => created,
            // Our own write that the cache has not shown, or a collision: the live one tells.
            Err(error) if writes::is_already_exists(&error) => {
                let live = api.get(name(&revision)).await.doing("read a revision")?;
                if !same(&live) {
                    return Err(Error::Invalid(format!(
                        "the revision name {} is taken",
                        name(&revision)
                    )));
                }
                live
            }
            Err(error) => return Err(error).doing("write a revision"),
        };
        all.push(created.clone());
        Ok(History {
            update: created,
            all,
        })
    }

    /// Deletes the oldest revisions that nothing uses, beyond `limit`.
    ///
    /// # Errors
    /// Of the API server.
    pub(crate) async fn trim_history(
        &self,
        history: &History,
        limit: i32,
        in_use: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), Error> {
        let unused: Vec<&ControllerRevision> = history
            .all
            .iter()
            .filter(|revision| name(revision) != name(&history.update) && !in_use(revision))
            .collect();
        let limit = usize::try_from(limit).unwrap_or_default();
        for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
            let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
            let api = self.api::<ControllerRevision>(namespace);
            writes::delete(
                &api,
                name(revision),
                revision.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete an old revision")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_its_template_back() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [ { "name": "c", "image": "v1" } ] } }))
        .expect("a template");
        let revision = ControllerRevision {
            data: Some(RawExtension(data(&template))),
            ..Default::default()
        };
        assert_eq!(self::template(&revision), Some(template));
    }
}
