//! Who controls an object, and how a controller takes over orphans that its selector matches or lets go of the others.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Resource,
    api::{Patch, PatchParams},
    core::{ObjectMeta, Selector, SelectorExt},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use skep_client::{Change, Informer, ObjectKey, writes};

use crate::context::{Context, Doing, Error};

pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// The key of the controller, if it is of this kind and group.
pub fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let owner = controller(meta)?;
    let group = owner
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    (owner.kind == K::kind(&()) && group == K::group(&())).then(|| {
        ObjectKey::new(
            meta.namespace.clone().unwrap_or_default(),
            owner.name.clone(),
        )
    })
}

/// The controllers of this kind that a change of what they own concerns.
pub fn controllers_of<O, K>(change: &Change<K>) -> Vec<ObjectKey>
where
    O: Resource<DynamicType = ()>,
    K: Resource,
{
    let mut keys: Vec<_> = change
        .each()
        .filter_map(|owned| controller_key::<O>(owned.meta()))
        .collect();
    keys.dedup();
    keys
}

pub fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What belongs to an owner, and what should begin or cease to.
#[derive(Debug)]
pub struct Claims<K> {
    pub owned: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// Sorts out the objects around an owner. `selector` = `None` selects nothing.
pub fn plan_claims<K: Resource>(
    owner: &ObjectMeta,
    selector: Option<&Selector>,
    objects: Vec<Arc<K>>,
) -> Claims<K> {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let deleting = owner.deletion_timestamp.is_some();
    let mut claims = Claims {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    for object in objects {
        let meta = object.meta();
        let empty = Default::default();
        let matches = selector
            .is_some_and(|selector| selector.matches(meta.labels.as_ref().unwrap_or(&empty)));
        match controller(meta) {
            Some(reference) if reference.uid == uid => {
                if matches {
                    claims.owned.push(object);
                } else if !deleting {
                    claims.release.push(object);
                }
            }
            Some(_) => {}
            None => {
                if matches && !deleting && meta.deletion_timestamp.is_none() {
                    claims.adopt.push(object);
                }
            }
        }
    }
    claims
}

impl Context {
    /// The objects that `owner` controls, after adopting and releasing.
    ///
    /// # Errors
    /// Of the API server.
    pub async fn claim<O, K>(
        &self,
        owner: &O,
        selector: Option<&Selector>,
        informer: &Informer<K>,
    ) -> Result<Vec<Arc<K>>, Error>
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let uid = owner.meta().uid.as_deref().unwrap_or_default();
        let mut objects = informer.owned_by(uid);
        objects.extend(
            informer
                .in_namespace(namespace)
                .into_iter()
                .filter(|object| controller(object.meta()).is_none()),
        );
        let Claims {
            mut owned,
            adopt,
            release,
        } = plan_claims(owner.meta(), selector, objects);
        let api = self.api::<K>(namespace);
        if !adopt.is_empty() {
            // The cached owner may be gone or replaced: only a live one may adopt.
            let name = owner.meta().name.as_deref().unwrap_or_default();
            let live = self
                .api::<O>(namespace)
                .get_metadata_opt(name)
                .await
                .doing("read the owner")?;
            let may_adopt = live.is_some_and(|live| {
                live.metadata.uid.as_deref() == Some(uid)
                    && live.metadata.deletion_timestamp.is_none()
            });
            for object in adopt.into_iter().filter(|_| may_adopt) {
                let meta = object.meta();
                let mut owners = meta.owner_references.clone().unwrap_or_default();
                owners.push(reference(owner));
                let patch = json!({ "metadata": {
                    "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners } });
                let name = meta.name.as_deref().unwrap_or_default();
                let adopted = api
                    .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                    .await;
                match adopted {
                    Ok(adopted) => owned.push(Arc::new(adopted)),
                    Err(error) if writes::is_not_found(&error) => {}
                    Err(error) => return Err(error).doing("adopt an orphan"),
                }
            }
        }
        for object in release {
            let meta = object.meta();
            let mut owners = meta.owner_references.clone().unwrap_or_default();
            owners.retain(|owner| owner.uid != uid);
            let patch = json!({ "metadata": {
                "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners } });
            let name = meta.name.as_deref().unwrap_or_default();
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => {}
                Err(error) if writes::is_not_found(&error) => {}
                Err(error) => {
                    return Err(error).doing("release an object that the selector does not match");
                }
            }
        }
        Ok(owned)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
    use serde_json::json;

    use super::*;

    #[test]
    fn claims() {
        let selector: LabelSelector =
            serde_json::from_value(json!({ "matchLabels": { "app": "web" } })).expect("one");
        let selector = Selector::try_from(selector).expect("readable");
        let pod = |name: &str, app: &str, owner: Option<&str>| -> Arc<Pod> {
            let owners: Vec<_> = owner
                .iter()
                .map(|uid| json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": uid, "controller": true }))
                .collect();
            Arc::new(
                serde_json::from_value(json!({ "metadata": {
                    "name": name, "labels": { "app": app }, "ownerReferences": owners } }))
                .expect("a pod"),
            )
        };
        let objects = vec![
            pod("mine", "web", Some("me")),
            pod("stray", "db", Some("me")),
            pod("orphan", "web", None),
            pod("unrelated", "db", None),
            pod("theirs", "web", Some("you")),
        ];
        let names = |pods: &[Arc<Pod>]| -> Vec<String> {
            pods.iter()
                .filter_map(|pod| pod.metadata.name.clone())
                .collect()
        };
        let mut owner = ObjectMeta {
            uid: Some("me".into()),
            ..Default::default()
        };
        let claims = plan_claims(&owner, Some(&selector), objects.clone());
        assert_eq!(
            (
                names(&claims.owned),
                names(&claims.adopt),
                names(&claims.release)
            ),
            (
                vec!["mine".into()],
                vec!["orphan".into()],
                vec!["stray".into()]
            )
        );
        owner.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            "2026-01-01T00:00:00Z".parse().expect("a time"),
        ));
        let claims = plan_claims(&owner, Some(&selector), objects);
        assert!(claims.adopt.is_empty() && claims.release.is_empty());
    }
}
