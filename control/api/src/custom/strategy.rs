//! What a custom resource does with its objects (apiextensions `registry/customresource`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;
use skep_schema::{
    TypeRef,
    structural::{self, Invalid, InvalidKind},
};

use super::{Scale, check_selector, find, rules::Rules};
use crate::{
    field::{Bad, Errors, FieldError, FieldErrorKind, Path},
    kinds::keep_system_metadata,
    strategy::{Strategy, UpdateOf, Warnings},
    validation::{
        meta::{NameRule, validate_common_meta, validate_object_meta, validate_object_meta_update},
        text,
    },
};

pub struct Custom {
    schema: TypeRef,
    rules: Rules,
    namespaced: bool,
    /// `status` is written through `/status` only.
    status: bool,
    scale: Option<Scale>,
}

/// Most of a label selector that a `Scale` shows (apimachinery `validation.LabelValueMaxLength` has no say here).
const MAX_SELECTOR_BYTES: usize = 64 * 1024;

impl Custom {
    pub fn new(
        schema: TypeRef,
        openapi: &Value,
        namespaced: bool,
        status: bool,
        scale: Option<Scale>,
    ) -> Self {
        Self {
            rules: Rules::compile(openapi),
            schema,
            namespaced,
            status,
            scale,
        }
    }

    fn check_scale(&self, object: &Value, spec: bool, errors: &mut Errors) {
        let Some(scale) = &self.scale else {
            return;
        };
        let path = if spec {
            &scale.spec_replicas
        } else {
            &scale.status_replicas
        };
        let at = Path::new(path);
        if let Some(replicas) = find(object, path).and_then(Value::as_i64) {
            if replicas < 0 {
                errors.invalid(&at, replicas, "should be a non-negative integer");
            } else if replicas > i64::from(i32::MAX) {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                errors.invalid(&at, replicas, detail);
            }
        }
        let selector = scale.selector.as_deref().filter(|_| !spec);
        if let Some(path) = selector
            && let Some(text) = find(object, path).and_then(Value::as_str)
        {
            let at = Path::new(path);
            if text.len() > MAX_SELECTOR_BYTES {
                errors.too_long(&at, MAX_SELECTOR_BYTES);
            } else if let Err(detail) = check_selector(text) {
                errors.invalid(&at, text, detail);
            }
        }
    }

    /// The rest of validation once the values are checked: embedded resources, lists, rules.
    fn check_deeper(&self, new: &Value, old: Option<&Value>, errors: &mut Errors) -> Warnings {
        for (path, object) in structural::embedded(new, &self.schema) {
            check_embedded(&path, object, errors);
        }
        let old_lists_fine =
            old.is_none_or(|old| structural::duplicates(old, &self.schema).is_empty());
        if old_lists_fine {
            errors.0.extend(
                structural::duplicates(new, &self.schema)
                    .into_iter()
                    .map(field_error),
            );
        }
        if self.rules.is_empty() {
            return Warnings::new();
        }
        let blocking = errors.0.iter().any(|error| {
            matches!(
                error.kind,
                FieldErrorKind::NotSupported
                    | FieldErrorKind::Required
                    | FieldErrorKind::TooLong
                    | FieldErrorKind::TooMany
                    | FieldErrorKind::TypeInvalid
            )
        });
        if blocking {
            errors.push(FieldError::new(
                FieldErrorKind::Invalid,
                "<nil>",
                None::<&str>,
                "some validation rules were not checked because the object was invalid; correct the existing errors \
                 to complete validation",
            ));
            return Warnings::new();
        }
        self.rules.validate(new, old, errors)
    }
}

fn metadata_of(object: &Value) -> Result<ObjectMeta, Vec<FieldError>> {
    ObjectMeta::deserialize(&object["metadata"]).map_err(|problem| {
        vec![FieldError::new(
            FieldErrorKind::TypeInvalid,
            "metadata",
            Bad::omitted(),
            problem.to_string(),
        )]
    })
}

fn write_metadata(object: &mut Value, meta: &ObjectMeta) {
    // Metadata that was read from JSON is JSON again.
    object["metadata"] = serde_json::to_value(meta).unwrap_or_default();
}

fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

fn field_error(invalid: Invalid) -> FieldError {
    let kind = match invalid.kind {
        InvalidKind::Required => FieldErrorKind::Required,
        InvalidKind::Invalid => FieldErrorKind::Invalid,
        InvalidKind::NotSupported => FieldErrorKind::NotSupported,
        InvalidKind::Duplicate => FieldErrorKind::Duplicate,
        InvalidKind::TooLong => FieldErrorKind::TooLong,
        InvalidKind::TooMany => FieldErrorKind::TooMany,
        InvalidKind::TypeInvalid => FieldErrorKind::TypeInvalid,
        InvalidKind::Forbidden => FieldErrorKind::Forbidden,
    };
    FieldError::new(kind, invalid.field, invalid.bad_value, invalid.detail)
}

/// As [`field_error`], for the checks of definitions.
pub(crate) fn to_field_error(invalid: Invalid) -> FieldError {
    field_error(invalid)
}

/// A resource within a resource has a kind, a version and metadata that are well formed
/// (apiextensions `objectmeta.Validate`).
fn check_embedded(path: &str, object: &serde_json::Map<String, Value>, errors: &mut Errors) {
    let at = Path::new(path);
    for name in ["apiVersion", "kind"] {
        let below = at.child(name);
        let Some(value) = object.get(name) else {
            continue;
        };
        match value.as_str() {
            None => errors.invalid(&below, Bad::json(value), "must be a string"),
            Some("") => errors.invalid(&below, "", "must not be empty"),
            Some(version) if name == "apiVersion" => {
                if version.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {version}");
                    errors.invalid(&below, version, detail);
                }
            }
            Some(kind) => {
                let messages = text::dns1035_label(&kind.to_lowercase());
                if !messages.is_empty() {
                    let detail = format!(
                        "may have mixed case, but should otherwise match: {}",
                        messages.join(",")
                    );
                    errors.invalid(&below, kind, detail);
                }
            }
        }
    }
    let Some(metadata) = object.get("metadata") else {
        return;
    };
    match ObjectMeta::deserialize(metadata) {
        Err(problem) => {
            let shown = Bad::json(metadata);
            errors.invalid(&at.child("metadata"), shown, problem.to_string());
        }
        Ok(mut meta) => {
            // Embedded objects need no name.
            if meta.name.as_deref().unwrap_or_default().is_empty() {
                meta.name = Some("fakename".to_owned());
            }
            let namespaced = meta.namespace.as_deref().is_some_and(|ns| !ns.is_empty());
            let path = at.child("metadata");
            validate_object_meta(&meta, namespaced, NameRule::PathSegment, &path, errors);
        }
    }
}

impl Strategy for Custom {
    fn default(&self, object: &mut Value) -> bool {
        structural::apply_defaults(object, &self.schema);
        true
    }

    fn create(&self, object: &mut Value) -> Result<Warnings, Vec<FieldError>> {
        if self.status {
            remove(object, "status");
        }
        let mut meta = metadata_of(object)?;
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.self_link = None;
        meta.generation = Some(1);
        write_metadata(object, &meta);
        let mut errors = Errors::default();
        let path = Path::new("metadata");
        let namespaced = self.namespaced;
        validate_object_meta(&meta, namespaced, NameRule::Subdomain, &path, &mut errors);
        let values = structural::validate_values(object, None, &self.schema);
        errors.0.extend(values.into_iter().map(field_error));
        self.check_scale(object, true, &mut errors);
        self.check_scale(object, false, &mut errors);
        let warnings = self.check_deeper(object, None, &mut errors);
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(errors.0)
        }
    }

    fn update(
        &self,
        new: &mut Value,
        old: &Value,
        of: UpdateOf<'_>,
    ) -> Result<Warnings, Vec<FieldError>> {
        match of {
            UpdateOf::Main | UpdateOf::Subresource(_) if self.status => match old.get("status") {
                Some(status) => new["status"] = status.clone(),
                None => remove(new, "status"),
            },
            UpdateOf::Status => {
                // Nothing but the status, and who set it.
                let status = new.get("status").cloned();
                let managed = new["metadata"].get("managedFields").cloned();
                let version = new["metadata"].get("resourceVersion").cloned();
                *new = old.clone();
                remove(new, "status");
                if let Some(status) = status {
                    new["status"] = status;
                }
                let metadata = &mut new["metadata"];
                remove(metadata, "managedFields");
                for (field, value) in [("managedFields", managed), ("resourceVersion", version)] {
                    if let Some(value) = value {
                        metadata[field] = value;
                    }
                }
            }
            _ => {}
        }
        let old_meta = metadata_of(old)?;
        let mut meta = metadata_of(new)?;
        keep_system_metadata(&mut meta, &old_meta);
        if of != UpdateOf::Status && differs(new, old) {
            meta.generation = Some(old_meta.generation.unwrap_or(0) + 1);
        }
        write_metadata(new, &meta);
        let mut errors = Errors::default();
        let path = Path::new("metadata");
        validate_common_meta(&meta, &old_meta, self.namespaced, &path, &mut errors);
        validate_object_meta_update(&meta, &old_meta, &path, &mut errors);
        let values = match of {
            UpdateOf::Status => structural::validate_field(new, old, "status", &self.schema),
            _ => structural::validate_values(new, Some(old), &self.schema),
        };
        errors.0.extend(values.into_iter().map(field_error));
        if of != UpdateOf::Status {
            self.check_scale(new, true, &mut errors);
        }
        self.check_scale(new, false, &mut errors);
        let warnings = self.check_deeper(new, Some(old), &mut errors);
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(errors.0)
        }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self, of: UpdateOf<'_>) -> &'static [&'static str] {
        match of {
            UpdateOf::Main if self.status => &["status"],
            UpdateOf::Main | UpdateOf::Subresource(_) => &[],
            UpdateOf::Status => &["metadata", "spec"],
        }
    }
}

/// Anything but metadata.
fn differs(new: &Value, old: &Value) -> bool {
    let body = |object: &Value| {
        let mut fields = object.as_object().cloned().unwrap_or_default();
        fields.remove("metadata");
        fields
    };
    body(new) != body(old)
}
