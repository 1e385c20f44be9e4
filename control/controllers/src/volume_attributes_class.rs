//! Keeps a VolumeAttributesClass as long as a claim or a volume names it.
//!
//! Watches: VolumeAttributesClass, PersistentVolumeClaim, PersistentVolume. Writes: the finalizer of the class.
//! Upstream: `pkg/controller/volume/vacprotection`.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::VolumeAttributesClass,
};
use skep_client::{Action, Informer, ObjectKey};

use crate::{
    context::{Context, Error},
    persistent_volume::set_finalizer,
};

const PROTECTION: &str = "kubernetes.io/vac-protection";

struct Controller {
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    context: Arc<Context>,
}

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        classes: context.informers.of(),
        claims: context.informers.of(),
        volumes: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.classes);
    work.feed(&controller.claims, |change| {
        let named = change.each().flat_map(|claim| named_by_claim(claim));
        named.map(ObjectKey::cluster).collect()
    });
    work.feed(&controller.volumes, |change| {
        let named = change.each().filter_map(|volume| named_by_volume(volume));
        named.map(ObjectKey::cluster).collect()
    });
    work.run(
        "volumeattributesclass-protection",
        1,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

/// What it asks for, what it has, and what it is being changed to.
fn named_by_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|s| s.target_volume_attributes_class_name.clone());
    [
        claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_attributes_class_name.clone()),
        status.and_then(|s| s.current_volume_attributes_class_name.clone()),
        target,
    ]
    .into_iter()
    .flatten()
    .filter(|name| !name.is_empty())
    .collect()
}

fn named_by_volume(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    let name = spec.volume_attributes_class_name.clone();
    name.filter(|name| !name.is_empty())
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(class) = self.classes.get(&key) else {
            return Ok(Action::done());
        };
        let mut finalizers = class.metadata.finalizers.iter().flatten();
        let is_protected = finalizers.any(|own| own == PROTECTION);
        let is_ending = class.metadata.deletion_timestamp.is_some();
        if is_protected == is_ending && !(is_ending && self.is_used(&key.name)) {
            let api = self.context.cluster_api::<VolumeAttributesClass>();
            set_finalizer(&api, class.as_ref(), PROTECTION, !is_ending).await?;
        }
        Ok(Action::done())
    }

    fn is_used(&self, name: &str) -> bool {
        let claims = self.claims.all();
        let mut claims = claims.iter().flat_map(|claim| named_by_claim(claim));
        let volumes = self.volumes.all();
        let mut volumes = volumes.iter().filter_map(|volume| named_by_volume(volume));
        claims.any(|named| named == name) || volumes.any(|named| named == name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_names_what_it_wants_has_and_is_changed_to() {
        let claim = json!({"spec": {"volumeAttributesClassName": "wanted"}, "status": {
            "currentVolumeAttributesClassName": "had",
            "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "next"}}});
        let claim = serde_json::from_value(claim).expect("a claim");
        assert_eq!(named_by_claim(&claim), ["wanted", "had", "next"]);
        let empty = json!({"spec": {"volumeAttributesClassName": ""}});
        let empty = serde_json::from_value(empty).expect("a claim");
        assert!(named_by_claim(&empty).is_empty());
        let volume = json!({"spec": {"volumeAttributesClassName": "fast"}});
        let volume = serde_json::from_value(volume).expect("a volume");
        assert_eq!(named_by_volume(&volume).as_deref(), Some("fast"));
    }
}
