//! Volumes, claims, classes and devices.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::printer::{Column, Printer, age, name};

pub fn persistent_volume_claim() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Status",
                    "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
                    "phase",
                ),
                Column::of(
                    "Volume",
                    "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
                    "volumeName",
                ),
                Column::of(
                    "Capacity",
                    "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
                    "capacity",
                ),
                Column::of(
                    "Access Modes",
                    "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
                    "accessModes",
                ),
                Column::new("StorageClass", "StorageClass of the pvc"),
                Column::new("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
                Column::age(),
                Column::of(
                    "VolumeMode",
                    "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
                    "volumeMode",
                )
                .wide(),
            ]
        },
        persistent_volume_claim_cells,
    )
}

pub fn persistent_volume() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Capacity",
                    "io.k8s.api.core.v1.PersistentVolumeSpec",
                    "capacity",
                ),
                Column::of(
                    "Access Modes",
                    "io.k8s.api.core.v1.PersistentVolumeSpec",
                    "accessModes",
                ),
                Column::of(
                    "Reclaim Policy",
                    "io.k8s.api.core.v1.PersistentVolumeSpec",
                    "persistentVolumeReclaimPolicy",
                ),
                Column::of(
                    "Status",
                    "io.k8s.api.core.v1.PersistentVolumeStatus",
                    "phase",
                ),
                Column::of(
                    "Claim",
                    "io.k8s.api.core.v1.PersistentVolumeSpec",
                    "claimRef",
                ),
                Column::new("StorageClass", "StorageClass of the pv"),
                Column::new("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
                Column::of(
                    "Reason",
                    "io.k8s.api.core.v1.PersistentVolumeStatus",
                    "reason",
                ),
                Column::age(),
                Column::of(
                    "VolumeMode",
                    "io.k8s.api.core.v1.PersistentVolumeSpec",
                    "volumeMode",
                )
                .wide(),
            ]
        },
        persistent_volume_cells,
    )
}

pub fn csi_driver() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "AttachRequired",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "attachRequired",
                )
                .typed("boolean"),
                Column::of(
                    "PodInfoOnMount",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "podInfoOnMount",
                )
                .typed("boolean"),
                Column::of(
                    "StorageCapacity",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "storageCapacity",
                )
                .typed("boolean"),
                Column::of(
                    "TokenRequests",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "tokenRequests",
                ),
                Column::of(
                    "RequiresRepublish",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "requiresRepublish",
                )
                .typed("boolean"),
                Column::of(
                    "Modes",
                    "io.k8s.api.storage.v1.CSIDriverSpec",
                    "volumeLifecycleModes",
                ),
                Column::age(),
            ]
        },
        csi_driver_cells,
    )
}

pub fn csi_node() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Drivers",
                    "Drivers indicates the number of CSI drivers registered on the node",
                )
                .typed("integer"),
                Column::age(),
            ]
        },
        csi_node_cells,
    )
}

pub fn storage_class() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Provisioner",
                    "io.k8s.api.storage.v1.StorageClass",
                    "provisioner",
                ),
                Column::of(
                    "ReclaimPolicy",
                    "io.k8s.api.storage.v1.StorageClass",
                    "reclaimPolicy",
                ),
                Column::of(
                    "VolumeBindingMode",
                    "io.k8s.api.storage.v1.StorageClass",
                    "volumeBindingMode",
                ),
                Column::of(
                    "AllowVolumeExpansion",
                    "io.k8s.api.storage.v1.StorageClass",
                    "allowVolumeExpansion",
                ),
                Column::age(),
            ]
        },
        storage_class_cells,
    )
}

pub fn volume_attachment() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Attacher",
                    "io.k8s.api.storage.v1.VolumeAttachmentSpec",
                    "attacher",
                )
                .format("name"),
                Column::of(
                    "PV",
                    "io.k8s.api.storage.v1.VolumeAttachmentSource",
                    "persistentVolumeName",
                ),
                Column::of(
                    "Node",
                    "io.k8s.api.storage.v1.VolumeAttachmentSpec",
                    "nodeName",
                ),
                Column::of(
                    "Attached",
                    "io.k8s.api.storage.v1.VolumeAttachmentStatus",
                    "attached",
                )
                .typed("boolean"),
                Column::age(),
            ]
        },
        volume_attachment_cells,
    )
}

pub fn volume_attributes_class() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "DriverName",
                    "io.k8s.api.storage.v1.VolumeAttributesClass",
                    "driverName",
                ),
                Column::age(),
            ]
        },
        volume_attributes_class_cells,
    )
}

pub fn device_class() -> Arc<dyn Printer> {
    table(|| vec![Column::name(), Column::age()], device_class_cells)
}

pub fn resource_claim() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "State",
                    "A summary of the current state (allocated, pending, reserved, etc.).",
                ),
                Column::age(),
            ]
        },
        resource_claim_cells,
    )
}

pub fn resource_slice() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Node",
                    "io.k8s.api.resource.v1.ResourceSliceSpec",
                    "nodeName",
                ),
                Column::of(
                    "Driver",
                    "io.k8s.api.resource.v1.ResourceSliceSpec",
                    "driver",
                ),
                Column::of("Pool", "io.k8s.api.resource.v1.ResourcePool", "name"),
                Column::age(),
            ]
        },
        resource_slice_cells,
    )
}

fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

fn access_modes(object: &Value, pointer: &str) -> String {
    let all: Vec<&str> = strings(object, pointer).collect();
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let shown = short
        .iter()
        .filter(|(mode, _)| all.contains(mode))
        .map(|(_, short)| *short);
    joined(shown, ",")
}

/// The field, or the annotation that came before it.
fn class_name(object: &Value) -> &str {
    let annotation = object
        .pointer("/metadata/annotations")
        .and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"))
        .and_then(Value::as_str);
    annotation.unwrap_or_else(|| text(object, "/spec/storageClassName"))
}

fn or_unset(object: &Value, pointer: &str) -> Value {
    shown(object.pointer(pointer))
        .unwrap_or("<unset>".to_owned())
        .into()
}

fn persistent_volume_claim_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let phase = if is_deleting(object) {
        "Terminating"
    } else {
        text(object, "/status/phase")
    };
    let volume = text(object, "/spec/volumeName");
    let (capacity, modes) = if volume.is_empty() {
        (String::new(), String::new())
    } else {
        let capacity = shown(object.pointer("/status/capacity/storage"));
        (
            capacity.unwrap_or("0".to_owned()),
            access_modes(object, "/status/accessModes"),
        )
    };
    vec![
        name(object),
        phase.into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        class_name(object).into(),
        or_unset(object, "/spec/volumeAttributesClassName"),
        age(object, now),
        or_unset(object, "/spec/volumeMode"),
    ]
}

fn persistent_volume_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let phase = if is_deleting(object) {
        "Terminating"
    } else {
        text(object, "/status/phase")
    };
    let claim = object
        .pointer("/spec/claimRef")
        .filter(|one| !one.is_null());
    let claim = claim.map_or(String::new(), |one| {
        format!("{}/{}", text(one, "/namespace"), text(one, "/name"))
    });
    vec![
        name(object),
        shown(object.pointer("/spec/capacity/storage"))
            .unwrap_or("0".to_owned())
            .into(),
        access_modes(object, "/spec/accessModes").into(),
        text(object, "/spec/persistentVolumeReclaimPolicy").into(),
        phase.into(),
        claim.into(),
        class_name(object).into(),
        or_unset(object, "/spec/volumeAttributesClassName"),
        text(object, "/status/reason").into(),
        age(object, now),
        or_unset(object, "/spec/volumeMode"),
    ]
}

fn csi_driver_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let attach = object
        .pointer("/spec/attachRequired")
        .and_then(Value::as_bool)
        .unwrap_or(true);
    let modes = joined(strings(object, "/spec/volumeLifecycleModes"), ",");
    let audiences = joined(
        items(object, "/spec/tokenRequests")
            .iter()
            .map(|one| text(one, "/audience")),
        ",",
    );
    let requests = items(object, "/spec/tokenRequests");
    vec![
        name(object),
        attach.into(),
        flag(object, "/spec/podInfoOnMount").into(),
        flag(object, "/spec/storageCapacity").into(),
        if requests.is_empty() {
            "<unset>".into()
        } else {
            audiences.into()
        },
        flag(object, "/spec/requiresRepublish").into(),
        or(&modes, "<none>").into(),
        age(object, now),
    ]
}

fn csi_node_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        items(object, "/spec/drivers").len().into(),
        age(object, now),
    ]
}

fn storage_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = object.pointer("/metadata/annotations");
    let is = |key: &str| {
        annotations
            .and_then(|all| all.get(key))
            .and_then(Value::as_str)
            == Some("true")
    };
    let default = is("storageclass.kubernetes.io/is-default-class")
        || is("storageclass.beta.kubernetes.io/is-default-class");
    let suffix = if default { " (default)" } else { "" };
    let reclaim = text(object, "/reclaimPolicy");
    let binding = text(object, "/volumeBindingMode");
    vec![
        format!("{}{suffix}", text(object, "/metadata/name")).into(),
        text(object, "/provisioner").into(),
        or(reclaim, "Delete").into(),
        or(binding, "Immediate").into(),
        flag(object, "/allowVolumeExpansion").into(),
        age(object, now),
    ]
}

fn volume_attachment_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/spec/attacher").into(),
        text(object, "/spec/source/persistentVolumeName").into(),
        text(object, "/spec/nodeName").into(),
        flag(object, "/status/attached").into(),
        age(object, now),
    ]
}

fn volume_attributes_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = object.pointer("/metadata/annotations");
    let key = "volumeattributesclass.alpha.kubernetes.io/is-default-class";
    let default = annotations
        .and_then(|all| all.get(key))
        .and_then(Value::as_str)
        == Some("true");
    let suffix = if default { " (default)" } else { "" };
    vec![
        format!("{}{suffix}", text(object, "/metadata/name")).into(),
        text(object, "/driverName").into(),
        age(object, now),
    ]
}

fn device_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

fn resource_claim_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut states = Vec::new();
    if is_deleting(object) {
        states.push("deleted");
    }
    if object
        .pointer("/status/allocation")
        .is_some_and(Value::is_object)
    {
        states.push("allocated");
        if !items(object, "/status/reservedFor").is_empty() {
            states.push("reserved");
        }
    } else if !is_deleting(object) {
        states.push("pending");
    }
    vec![name(object), states.join(",").into(), age(object, now)]
}

fn resource_slice_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/spec/nodeName").into(),
        text(object, "/spec/driver").into(),
        text(object, "/spec/pool/name").into(),
        age(object, now),
    ]
}
