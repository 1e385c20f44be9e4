//! Specs of PersistentVolumeClaims, those inside templates included.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, TypedLocalObjectReference,
    TypedObjectReference,
};

use super::{
    labels::{SelectorRules, validate_annotations, validate_labels, validate_selector},
    resources::{validate_positive, validate_resource_quantity},
    text,
};
use crate::{
    field::{Errors, Path},
    quantity::Amount,
    zero::{List, Text},
};

pub const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
pub const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

pub fn validate_access_modes(modes: &[String], path: &Path<'_>, errors: &mut Errors) {
    for mode in modes {
        if !ACCESS_MODES.contains(&mode.as_str()) {
            errors.not_supported(path, mode, &ACCESS_MODES);
        }
    }
    let once_pod = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    let other = modes
        .iter()
        .any(|mode| mode != "ReadWriteOncePod" && ACCESS_MODES.contains(&mode.as_str()));
    if once_pod && other {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

pub fn validate_claim_spec(spec: &PersistentVolumeClaimSpec, path: &Path<'_>, errors: &mut Errors) {
    let modes = spec.access_modes.items();
    if modes.is_empty() {
        errors.required(
            &path.child("accessModes"),
            "at least 1 access mode is required",
        );
    }
    validate_selector(
        spec.selector.as_ref(),
        SelectorRules::default(),
        &path.child("selector"),
        errors,
    );
    validate_access_modes(modes, &path.child("accessModes"), errors);
    let resources = path.child("resources");
    let storage_path = resources.key("storage");
    let requests = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    match requests
        .and_then(|requests| requests.get("storage"))
        .map(Amount::of)
    {
        None => errors.required(&storage_path, ""),
        Some(storage) if !storage.is_positive() => {
            validate_positive(storage, &storage_path, errors);
        }
        Some(storage) => validate_resource_quantity("storage", storage, &storage_path, errors),
    }
    validate_class_name(
        spec.storage_class_name.text(),
        &path.child("storageClassName"),
        errors,
    );
    if let Some(mode) = &spec.volume_mode
        && !VOLUME_MODES.contains(&mode.as_str())
    {
        errors.not_supported(&path.child("volumeMode"), mode, &VOLUME_MODES);
    }
    if let Some(source) = &spec.data_source {
        validate_data_source(source, &path.child("dataSource"), errors);
    }
    if let Some(source) = &spec.data_source_ref {
        let path = path.child("dataSourceRef");
        validate_data_source(&local(source), &path, errors);
        let namespace = source.namespace.text();
        if !namespace.is_empty() {
            errors.invalid_each(
                &path.child("namespace"),
                namespace,
                text::dns1123_label(namespace),
            );
        }
    }
    if let (Some(source), Some(reference)) = (&spec.data_source, &spec.data_source_ref) {
        let shown = path.child("dataSource").to_string();
        if !reference.namespace.text().is_empty() {
            errors.invalid(
                path,
                shown,
                "may not be specified when dataSourceRef.namespace is specified",
            );
        } else if *source != local(reference) {
            errors.invalid(path, shown, "must match dataSourceRef");
        }
    }
    validate_class_name(
        spec.volume_attributes_class_name.text(),
        &path.child("volumeAttributesClassName"),
        errors,
    );
}

/// An empty name means no class.
pub fn validate_class_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if !name.is_empty() {
        errors.invalid_each(path, name, text::dns1123_subdomain(name));
    }
}

fn local(reference: &TypedObjectReference) -> TypedLocalObjectReference {
    TypedLocalObjectReference {
        api_group: reference.api_group.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
    }
}

fn validate_data_source(source: &TypedLocalObjectReference, path: &Path<'_>, errors: &mut Errors) {
    if source.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    if source.kind.is_empty() {
        errors.required(&path.child("kind"), "");
    }
    let group = source.api_group.text();
    if group.is_empty() {
        if source.kind != "PersistentVolumeClaim" {
            errors.invalid(
                path,
                &source.kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    } else {
        errors.invalid_each(
            &path.child("apiGroup"),
            group,
            text::dns1123_subdomain(group),
        );
    }
}

/// The template of a generic ephemeral volume: labels, annotations and a spec, nothing else.
pub fn validate_claim_template(
    template: &PersistentVolumeClaimTemplate,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let meta = template.metadata.clone().unwrap_or_default();
    let meta_path = path.child("metadata");
    validate_annotations(
        meta.annotations.as_ref(),
        &meta_path.child("annotations"),
        errors,
    );
    validate_labels(meta.labels.as_ref(), &meta_path.child("labels"), errors);
    let set = [
        ("name", meta.name.is_some()),
        ("generateName", meta.generate_name.is_some()),
        ("namespace", meta.namespace.is_some()),
        ("uID", meta.uid.is_some()),
        ("resourceVersion", meta.resource_version.is_some()),
        ("ownerReferences", meta.owner_references.is_some()),
        ("finalizers", meta.finalizers.is_some()),
    ];
    for (field, _) in set.into_iter().filter(|(_, set)| *set) {
        errors.forbidden(&meta_path.child(field), "cannot be set");
    }
    validate_claim_spec(&template.spec, &path.child("spec"), errors);
}
