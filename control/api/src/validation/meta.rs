//! `metadata`: names, labels, annotations, owners, finalizers, and what an update may change of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, ManagedFieldsEntry, ObjectMeta, OwnerReference,
};

use super::{
    labels::{validate_annotations, validate_label_name, validate_labels},
    text,
};
use crate::{
    field::{Bad, Errors, Path},
    kinds::ZERO_TIME,
};

/// What a name of a kind may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// `a.b-c`: most kinds.
    Subdomain,
    /// `b-c`: Namespaces, …
    Label,
    /// Starts with a letter: what is not a Service any more but was named as one.
    Dns1035Label,
    /// Anything that fits a URL path segment: RBAC.
    PathSegment,
    /// Checked by the kind itself.
    Any,
}

impl NameRule {
    /// `prefix`: the name is a `generateName`, which ends anyhow.
    pub fn check(self, name: &str, prefix: bool) -> text::Messages {
        let masked;
        let name_as_whole = if prefix && name.len() > 1 && name.ends_with('-') {
            masked = format!("{}a", &name[..name.len() - 1]);
            &masked
        } else {
            name
        };
        match self {
            Self::Subdomain => text::dns1123_subdomain(name_as_whole),
            Self::Label => text::dns1123_label(name_as_whole),
            Self::Dns1035Label => text::dns1035_label(name_as_whole),
            Self::PathSegment if prefix => text::path_segment_prefix(name),
            Self::PathSegment => text::path_segment(name),
            Self::Any => text::Messages::new(),
        }
    }
}

pub fn validate_object_meta(
    meta: &ObjectMeta,
    namespaced: bool,
    rule: NameRule,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if let Some(prefix) = meta
        .generate_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        errors.invalid_each(
            &path.child("generateName"),
            prefix,
            rule.check(prefix, true),
        );
    }
    match meta.name.as_deref().unwrap_or_default() {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => errors.invalid_each(&path.child("name"), name, rule.check(name, false)),
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if !namespaced {
        if !namespace.is_empty() {
            errors.forbidden(&path.child("namespace"), "not allowed on this type");
        }
    } else if namespace.is_empty() {
        errors.required(&path.child("namespace"), "");
    } else {
        errors.invalid_each(
            &path.child("namespace"),
            namespace,
            text::dns1123_label(namespace),
        );
    }
    if let Some(generation) = meta.generation.filter(|generation| *generation < 0) {
        errors.invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        );
    }
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(
        meta.annotations.as_ref(),
        &path.child("annotations"),
        errors,
    );
    validate_owner_references(meta, &path.child("ownerReferences"), errors);
    validate_finalizers(meta, &path.child("finalizers"), errors);
    validate_managed_fields(meta, &path.child("managedFields"), errors);
}

/// What built-in kinds add: an unqualified finalizer must be one of the well-known ones.
pub fn validate_standard_finalizers(meta: &ObjectMeta, path: &Path<'_>, errors: &mut Errors) {
    let path = path.child("finalizers");
    for (i, finalizer) in meta.finalizers.iter().flatten().enumerate() {
        let standard = ["kubernetes", "orphan", "foregroundDeletion"];
        if !finalizer.contains('/') && !standard.contains(&finalizer.as_str()) {
            errors.invalid(
                &path.index(i),
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

/// What an update's metadata must be whatever the kind (apiserver `rest.validateCommonFields`).
pub fn validate_common_meta(
    new: &ObjectMeta,
    old: &ObjectMeta,
    namespaced: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    validate_object_meta(new, namespaced, NameRule::PathSegment, path, errors);
    validate_object_meta_update(new, old, path, errors);
}

pub fn validate_object_meta_update(
    new: &ObjectMeta,
    old: &ObjectMeta,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if old.deletion_timestamp.is_some() {
        let old_finalizers = old.finalizers.as_deref().unwrap_or_default();
        let mut extra: Vec<&String> = new
            .finalizers
            .iter()
            .flatten()
            .filter(|finalizer| !old_finalizers.contains(finalizer))
            .collect();
        if !extra.is_empty() {
            extra.sort();
            extra.dedup();
            let extra: Vec<String> = extra
                .into_iter()
                .map(|name| crate::field::quoted(name))
                .collect();
            errors.forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    extra.join(", ")
                ),
            );
        }
    }
    if new
        .resource_version
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        errors.invalid(
            &path.child("resourceVersion"),
            "",
            "must be specified for an update",
        );
    }
    if new.generation.unwrap_or(0) < old.generation.unwrap_or(0) {
        errors.invalid(
            &path.child("generation"),
            new.generation.unwrap_or(0),
            "must not be decremented",
        );
    }
    errors.immutable(&path.child("name"), &new.name, &old.name);
    errors.immutable(&path.child("namespace"), &new.namespace, &old.namespace);
    errors.immutable(&path.child("uid"), &new.uid, &old.uid);
    errors.immutable(
        &path.child("creationTimestamp"),
        &new.creation_timestamp,
        &old.creation_timestamp,
    );
    errors.immutable(
        &path.child("deletionTimestamp"),
        &new.deletion_timestamp,
        &old.deletion_timestamp,
    );
    errors.immutable(
        &path.child("deletionGracePeriodSeconds"),
        &new.deletion_grace_period_seconds,
        &old.deletion_grace_period_seconds,
    );
    validate_labels(new.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(new.annotations.as_ref(), &path.child("annotations"), errors);
    validate_owner_references(new, &path.child("ownerReferences"), errors);
    validate_managed_fields(new, &path.child("managedFields"), errors);
}

fn validate_owner_references(meta: &ObjectMeta, path: &Path<'_>, errors: &mut Errors) {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        validate_owner_reference(owner, path, errors);
        if owner.controller != Some(true) {
            continue;
        }
        match controller {
            None => controller = Some(owner),
            Some(first) => errors.invalid(
                path,
                Bad::shown(owner_references_json(owners)),
                format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    first.kind, first.name, owner.kind, owner.name
                ),
            ),
        }
    }
}

fn validate_owner_reference(owner: &OwnerReference, path: &Path<'_>, errors: &mut Errors) {
    let version = match owner.api_version.split('/').collect::<Vec<_>>()[..] {
        [version] | [_, version] => version,
        _ => "",
    };
    if version.is_empty() {
        errors.invalid(
            &path.child("apiVersion"),
            &owner.api_version,
            "version must not be empty",
        );
    }
    for (field, value) in [
        ("kind", &owner.kind),
        ("name", &owner.name),
        ("uid", &owner.uid),
    ] {
        if value.is_empty() {
            errors.invalid(&path.child(field), value, "must not be empty");
        }
    }
    if owner.api_version == "v1" && owner.kind == "Event" {
        errors.invalid(
            path,
            Bad::shown(owner_reference_json(owner)),
            "/v1, Kind=Event is disallowed from being an owner",
        );
    }
}

/// The fields in upstream's order, which differs from the alphabetical one.
fn owner_reference_json(owner: &OwnerReference) -> String {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let mut json = format!(
        r#"{{"apiVersion":{},"kind":{},"name":{},"uid":{}"#,
        text(&owner.api_version),
        text(&owner.kind),
        text(&owner.name),
        text(&owner.uid)
    );
    if let Some(controller) = owner.controller {
        json.push_str(&format!(r#","controller":{controller}"#));
    }
    if let Some(block) = owner.block_owner_deletion {
        json.push_str(&format!(r#","blockOwnerDeletion":{block}"#));
    }
    json + "}"
}

fn owner_references_json(owners: &[OwnerReference]) -> String {
    let owners: Vec<String> = owners.iter().map(owner_reference_json).collect();
    format!("[{}]", owners.join(","))
}

fn validate_finalizers(meta: &ObjectMeta, path: &Path<'_>, errors: &mut Errors) {
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    for finalizer in finalizers {
        errors.invalid_each(path, finalizer, text::qualified_name(finalizer));
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(
            path,
            Bad::json(&finalizers),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

fn validate_managed_fields(meta: &ObjectMeta, path: &Path<'_>, errors: &mut Errors) {
    for (i, entry) in meta.managed_fields.iter().flatten().enumerate() {
        validate_managed_fields_entry(entry, &path.index(i), errors);
    }
}

fn validate_managed_fields_entry(entry: &ManagedFieldsEntry, path: &Path<'_>, errors: &mut Errors) {
    let operation = entry.operation.as_deref().unwrap_or_default();
    if !matches!(operation, "Apply" | "Update") {
        errors.invalid(
            &path.child("operation"),
            operation,
            "must be `Apply` or `Update`",
        );
    }
    let fields_type = entry.fields_type.as_deref().unwrap_or_default();
    if !matches!(fields_type, "" | "FieldsV1") {
        errors.invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`");
    }
    validate_field_manager(
        entry.manager.as_deref().unwrap_or_default(),
        &path.child("manager"),
        errors,
    );
    if entry.subresource.as_deref().unwrap_or_default().len() > 256 {
        errors.too_long(&path.child("subresource"), 256);
    }
}

/// `fieldManager` of a request, or `manager` of an entry.
pub fn validate_field_manager(manager: &str, path: &Path<'_>, errors: &mut Errors) {
    if manager.len() > 128 {
        errors.too_long(path, 128);
    }
    for (position, c) in manager.char_indices() {
        if c.is_control() {
            let code = c as u32;
            errors.invalid(
                path,
                manager,
                format!("invalid character U+{code:04X} (at position {position})"),
            );
        }
    }
}

/// A list of `metav1.Condition`.
pub fn validate_conditions(conditions: &[Condition], path: &Path<'_>, errors: &mut Errors) {
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        if conditions[..i]
            .iter()
            .any(|earlier| earlier.type_ == condition.type_)
        {
            errors.duplicate(&path.child("type"), &condition.type_);
        }
        validate_condition(condition, &path, errors);
    }
}

pub fn validate_condition(condition: &Condition, path: &Path<'_>, errors: &mut Errors) {
    validate_label_name(&condition.type_, &path.child("type"), errors);
    let statuses = ["False", "True", "Unknown"];
    if !statuses.contains(&condition.status.as_str()) {
        errors.not_supported(&path.child("status"), &condition.status, &statuses);
    }
    if let Some(generation) = condition
        .observed_generation
        .filter(|generation| *generation < 0)
    {
        errors.invalid(
            &path.child("observedGeneration"),
            generation,
            "must be greater than or equal to zero",
        );
    }
    if condition.last_transition_time.0.to_string() == ZERO_TIME {
        errors.required(&path.child("lastTransitionTime"), "must be set");
    }
    let reason = condition.reason.as_str();
    if reason.is_empty() {
        errors.required(&path.child("reason"), "must be set");
    } else {
        let mut bytes = reason.bytes();
        let starts = bytes.next().is_some_and(|c| c.is_ascii_alphabetic());
        let ends = reason
            .bytes()
            .last()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_');
        let between = bytes.all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b',' | b':'));
        errors.invalid_each(
            &path.child("reason"),
            reason,
            text::pattern(
                starts && ends && between,
                "a condition reason must start with alphabetic character, optionally followed by a string of \
                 alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
                "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
            ),
        );
        if reason.len() > 1024 {
            errors.too_long(&path.child("reason"), 1024);
        }
    }
    if condition.message.len() > 32 * 1024 {
        errors.too_long(&path.child("message"), 32 * 1024);
    }
}
