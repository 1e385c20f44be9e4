//! DefaultStorageClass, StorageObjectInUseProtection, PersistentVolumeClaimResize.

use async_trait::async_trait;
use serde_json::{Value, json};
use skep_api::quantity::Amount;

use super::{Attributes, Operation, Plugin, forbidden, nodes::newest, object, objects};
use crate::{context::Api, status::Result};

const GROUP: &str = "storage.k8s.io";
/// What named the class before there was a field for it; it counts first.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Of a claim; empty without one.
pub fn class_name(claim: &Value) -> &str {
    let annotation = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotation
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default()
}

/// A claim that names no class gets the default one.
pub struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
        const BETA_DEFAULT: &str = "storageclass.beta.kubernetes.io/is-default-class";
        if !attributes.is("", "persistentvolumeclaims")
            || attributes.operation != Operation::Create
            || !attributes.object["spec"]["storageClassName"].is_null()
            || !attributes.object["metadata"]["annotations"][CLASS_ANNOTATION].is_null()
        {
            return Ok(());
        }
        let mut classes = objects(api, GROUP, "storageclasses", "");
        classes.retain(|class| {
            let annotations = &class["metadata"]["annotations"];
            annotations[DEFAULT] == "true" || annotations[BETA_DEFAULT] == "true"
        });
        if let Some(name) = newest(classes) {
            attributes.object["spec"]["storageClassName"] = name.into();
        }
        Ok(())
    }
}

/// What is in use is not removed at once: a controller takes the finalizer away.
pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, _: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        let finalizer = if attributes.is("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if attributes.is("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if attributes.is(GROUP, "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        let metadata = &mut attributes.object["metadata"];
        if !metadata["finalizers"].is_array() {
            metadata["finalizers"] = json!([]);
        }
        if let Some(finalizers) = metadata["finalizers"].as_array_mut()
            && !finalizers.iter().any(|f| f == finalizer)
        {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}

/// Claims grow only where their class says that volumes can.
pub struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.is("", "persistentvolumeclaims") || attributes.operation != Operation::Update
        {
            return Ok(());
        }
        let size = |claim: &Value| {
            let text = claim["spec"]["resources"]["requests"]["storage"].as_str();
            text.and_then(Amount::parse).unwrap_or(Amount::ZERO)
        };
        if size(&attributes.object) <= size(attributes.old) {
            return Ok(());
        }
        if attributes.old["status"]["phase"] != "Bound" {
            return Err(forbidden(
                attributes,
                "Only bound persistent volume claims can be expanded",
            ));
        }
        // Only a class that did not change can say so.
        let name = class_name(&attributes.object);
        let class = match name == class_name(attributes.old) {
            true => object(api, GROUP, "storageclasses", "", name).await?,
            false => None,
        };
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(forbidden(
            attributes,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
             support resize",
        ))
    }
}
