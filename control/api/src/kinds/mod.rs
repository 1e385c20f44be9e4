//! The built-in kinds. A kind says what is its own through [`Kind`]; [`Typed`] does what all of them share.

use std::{borrow::Cow, marker::PhantomData, sync::Arc};

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use skep_schema::TypeRef;

use self::gates::Gate;
use crate::{
    field::{Bad, Errors, FieldError, FieldErrorKind, Path},
    printer::{NameAndAge, Printer},
    strategy::{Strategy, UpdateOf, Warnings},
    validation::meta::{
        NameRule, validate_common_meta, validate_object_meta, validate_object_meta_update,
        validate_standard_finalizers,
    },
};

/// What `metadata.generation` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Not kept.
    Never,
    /// 1 on create, one more when `spec` changes.
    Spec,
    /// One more when anything beside metadata and status changes.
    Object,
    /// The same, labels included (EndpointSlices).
    ObjectOrLabels,
    /// 1, for good.
    CreateOnly,
    /// One more when `spec` or the annotations change (Deployments).
    SpecOrAnnotations,
    /// The kind does it in its `prepare_*`.
    Own,
}

/// What upstream's `ValidateUpdate` of a kind looks at before what only an update can get wrong. Clients see it: a problem
/// that is found twice is reported twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Metadata as of a new object.
    Metadata,
    /// Everything else as of a new object.
    Object,
    /// Metadata as it may change.
    MetadataChange,
}

/// The rules that are the same code for every kind.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub namespaced: bool,
    pub name: NameRule,
    pub generation: Generation,
    /// `status` is written through `/status` only.
    pub status: bool,
    /// A client may create the object with a status (nodes).
    pub status_on_create: bool,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub update: &'static [Check],
    /// What managed fields of the main endpoint, and of `/status`, may not own.
    pub reset: &'static [&'static str],
    pub reset_status: &'static [&'static str],
    /// The same of its other subresources.
    pub reset_subresource: &'static [&'static str],
}

impl Rules {
    const fn new(namespaced: bool) -> Self {
        Self {
            namespaced,
            name: NameRule::Subdomain,
            generation: Generation::Never,
            status: false,
            status_on_create: false,
            create_on_update: false,
            unconditional_update: true,
            update: &[Check::MetadataChange],
            reset: &[],
            reset_status: &["spec"],
            reset_subresource: &[],
        }
    }

    pub const fn namespaced() -> Self {
        Self::new(true)
    }

    pub const fn cluster() -> Self {
        Self::new(false)
    }

    pub const fn name(mut self, rule: NameRule) -> Self {
        self.name = rule;
        self
    }

    pub const fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    pub const fn status(mut self) -> Self {
        self.status = true;
        self.reset = &["status"];
        self
    }

    pub const fn keep_status_on_create(mut self) -> Self {
        self.status_on_create = true;
        self
    }

    pub const fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    /// A PUT needs a resourceVersion.
    pub const fn conditional_update(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    /// What is checked of an update before `validate_update`, in this order.
    pub const fn update_checks(mut self, checks: &'static [Check]) -> Self {
        self.update = checks;
        self
    }

    pub const fn reset(mut self, fields: &'static [&'static str]) -> Self {
        self.reset = fields;
        self
    }

    pub const fn reset_subresource(mut self, fields: &'static [&'static str]) -> Self {
        self.reset_subresource = fields;
        self
    }

    pub const fn reset_status(mut self, fields: &'static [&'static str]) -> Self {
        self.reset_status = fields;
        self
    }
}

/// A field that field selectors may name.
#[derive(Clone, Copy)]
pub struct Selectable {
    pub name: &'static str,
    pub get: fn(&Value) -> String,
}

/// The text at a JSON pointer, or none: what most of them are.
fn text_at(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned()
}

/// What a built-in kind does with its objects, in its own type. The object's status, generation and metadata are dealt
/// with by [`Typed`] before these are called.
pub trait Kind:
    Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static
{
    const RULES: Rules;

    /// Fills in what the client left out (upstream `SetDefaults_*`).
    fn set_defaults(&mut self) {}

    /// Whether `set_defaults` does anything, so that others skip the round trip.
    const HAS_DEFAULTS: bool = true;

    /// See [`crate::resource::ResourceDef::field_annotations`].
    const FIELD_ANNOTATIONS: &'static [&'static str] = &[];

    fn prepare_create(&mut self) {}
    fn prepare_update(&mut self, _old: &Self) {}
    fn prepare_status_update(&mut self, _old: &Self) {}
    fn prepare_subresource_update(&mut self, _old: &Self, _subresource: &str) {}

    /// Everything but metadata, on create.
    fn validate(&self, _errors: &mut Errors) {}
    fn validate_update(&self, _old: &Self, errors: &mut Errors) {
        self.validate(errors);
    }
    fn validate_status_update(&self, _old: &Self, _errors: &mut Errors) {}
    fn validate_subresource_update(&self, _old: &Self, _subresource: &str, _errors: &mut Errors) {}

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        Warnings::new()
    }

    /// Brings what is valid into the form that it is kept in; whether that changed anything.
    fn canonicalize(&mut self) -> bool {
        false
    }

    fn status_warnings(&self) -> Warnings {
        Warnings::new()
    }

    fn printer() -> Arc<dyn Printer> {
        Arc::new(NameAndAge::new())
    }

    /// `None`: only `metadata.name` and `metadata.namespace`.
    fn selectable() -> Option<&'static [Selectable]> {
        None
    }

    fn grace_period(_object: &Value, _requested_seconds: Option<i64>) -> i64 {
        0
    }
}

/// Go's zero time. Upstream's types hold it where ours must have a time and there is none.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The times that must be there in our types and may be missing on the wire.
fn times(object: &mut Value) -> Vec<&mut Value> {
    let mut found = Vec::new();
    let Some(fields) = object.as_object_mut() else {
        return found;
    };
    for (name, value) in fields {
        match name.as_str() {
            "status" => {
                for (name, value) in value.as_object_mut().into_iter().flatten() {
                    match name.as_str() {
                        "conditions" => condition_times(value, &mut found),
                        // Of a resource claim.
                        "devices" => {
                            for device in value.as_array_mut().into_iter().flatten() {
                                if let Some(conditions) = device.get_mut("conditions") {
                                    condition_times(conditions, &mut found);
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            "series" => found.extend(value.get_mut("lastObservedTime")),
            _ => {}
        }
    }
    found
}

fn condition_times<'a>(conditions: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    let conditions = conditions.as_array_mut().into_iter().flatten();
    found.extend(conditions.filter_map(|one| one.get_mut("lastTransitionTime")));
}

fn fill_times(object: &mut Value) -> bool {
    let mut missing = times(object);
    missing.retain(|time| time.is_null());
    for time in &mut missing {
        **time = ZERO_TIME.into();
    }
    !missing.is_empty()
}

fn is_zero_time(time: &Value) -> bool {
    time.as_str()
        .is_some_and(|text| text.starts_with("0001-01-01T00:00:00"))
}

/// `selector: {}`, which selects everything; nothing at all selects nothing. Our structs have no place for the
/// difference but a map that is there.
fn is_empty_selector(object: &Value) -> bool {
    let selector = object.pointer("/spec/selector").and_then(Value::as_object);
    selector.is_some_and(Map::is_empty)
}

/// The [`Strategy`] of a built-in kind.
pub struct Typed<T> {
    /// What an object of the kind looks like: our structs leave out fields that upstream's always show.
    schema: Option<TypeRef>,
    gates: &'static [Gate],
    kind: PhantomData<fn() -> T>,
}

impl<T: Kind> Default for Typed<T> {
    fn default() -> Self {
        Self {
            schema: skep_schema::builtin(T::GROUP, T::VERSION, T::KIND),
            gates: gates::of(T::KIND),
            kind: PhantomData,
        }
    }
}

impl<T: Kind> Typed<T> {
    fn read(object: &Value) -> Result<T, Vec<FieldError>> {
        let mut object = Cow::Borrowed(object);
        if T::GROUP == "apps" && is_empty_selector(&object) {
            let selector = object.to_mut().pointer_mut("/spec/selector");
            selector
                .into_iter()
                .for_each(|selector| *selector = json!({"matchLabels": {}}));
        }
        let object = &*object;
        let read = T::deserialize(object).or_else(|problem| {
            let mut filled = object.clone();
            if fill_times(&mut filled) {
                T::deserialize(&filled)
            } else {
                Err(problem)
            }
        });
        read.map_err(|problem| {
            let detail = problem.to_string();
            vec![FieldError::new(
                FieldErrorKind::TypeInvalid,
                "<nil>",
                Bad::omitted(),
                detail,
            )]
        })
    }

    fn write(&self, typed: &T, object: &mut Value) -> Result<(), Vec<FieldError>> {
        let mut shown = serde_json::to_value(typed).map_err(|problem| {
            vec![FieldError::new(
                FieldErrorKind::Internal,
                "<nil>",
                "",
                problem.to_string(),
            )]
        })?;
        for time in times(&mut shown) {
            if is_zero_time(time) {
                *time = Value::Null;
            }
        }
        let before = std::mem::replace(object, shown);
        if T::GROUP == "apps" && before.pointer("/spec/selector").is_none_or(Value::is_null) {
            let spec = object.get_mut("spec").and_then(Value::as_object_mut);
            spec.into_iter()
                .for_each(|spec| _ = spec.remove("selector"));
        }
        if let Some(schema) = &self.schema {
            skep_schema::complete(object, &before, schema);
        }
        Ok(())
    }
}

impl<T: Kind> Strategy for Typed<T> {
    fn default(&self, object: &mut Value) -> bool {
        if !T::HAS_DEFAULTS {
            return false;
        }
        let owned = OwnedFields::take(object);
        let mut changed = false;
        // What cannot be read is refused by `create` and `update`, which can say why.
        if let Ok(given) = Self::read(object) {
            let mut typed = given.clone();
            typed.set_defaults();
            changed = typed != given;
            if changed {
                let _refused_later = self.write(&typed, object);
            }
        }
        owned.put_back(object);
        changed
    }

    fn create(&self, object: &mut Value) -> Result<Warnings, Vec<FieldError>> {
        if T::RULES.status && !T::RULES.status_on_create {
            remove(object, "status");
        }
        gates::drop_disabled(self.gates, object, None);
        let owned = OwnedFields::take(object);
        let given = Self::read(object)?;
        let mut typed = given.clone();
        let meta = typed.metadata_mut();
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.self_link = None;
        meta.generation = match T::RULES.generation {
            Generation::Never => meta.generation,
            Generation::Own => None,
            _ => Some(1),
        };
        typed.prepare_create();
        let mut errors = Errors::default();
        let path = Path::new("metadata");
        let meta = typed.metadata();
        let check_meta = |rule, errors: &mut Errors| {
            validate_object_meta(meta, T::RULES.namespaced, rule, &path, errors);
        };
        // A kind that leaves metadata to the common rules is validated before them.
        if !T::RULES.update.is_empty() {
            check_meta(T::RULES.name, &mut errors);
            validate_standard_finalizers(meta, &path, &mut errors);
        }
        typed.validate(&mut errors);
        if errors.is_empty() {
            check_meta(NameRule::PathSegment, &mut errors);
        }
        if !errors.is_empty() {
            return Err(errors.0);
        }
        let warnings = typed.warnings(None);
        typed.canonicalize();
        // Writing costs as much as all the rest.
        if typed != given {
            self.write(&typed, object)?;
        }
        owned.put_back(object);
        Ok(warnings)
    }

    fn update(
        &self,
        new: &mut Value,
        old: &Value,
        of: UpdateOf<'_>,
    ) -> Result<Warnings, Vec<FieldError>> {
        match of {
            UpdateOf::Main if T::RULES.status => copy(old, new, "status"),
            UpdateOf::Status => keep_all_but_status(old, new),
            _ => {}
        }
        gates::drop_disabled(self.gates, new, Some(old));
        let owned = OwnedFields::take(new);
        let old_typed = Self::read(old)?;
        let given = Self::read(new)?;
        let mut typed = given.clone();
        keep_system_metadata(typed.metadata_mut(), old_typed.metadata());
        match of {
            UpdateOf::Main => typed.prepare_update(&old_typed),
            UpdateOf::Status => typed.prepare_status_update(&old_typed),
            UpdateOf::Subresource(name) => typed.prepare_subresource_update(&old_typed, name),
        }
        if typed != given {
            self.write(&typed, new)?;
        }
        if of != UpdateOf::Status && changed(T::RULES.generation, new, old) {
            let generation = old_typed.metadata().generation.unwrap_or(0) + 1;
            typed.metadata_mut().generation = Some(generation);
            new["metadata"]["generation"] = generation.into();
        }
        let mut errors = Errors::default();
        let path = Path::new("metadata");
        let (meta, old_meta) = (typed.metadata(), old_typed.metadata());
        let rules = &T::RULES;
        // Upstream checks metadata for every kind alike, and then again as the kind would have it.
        validate_common_meta(meta, old_meta, rules.namespaced, &path, &mut errors);
        let checks = match of {
            UpdateOf::Main => rules.update,
            // A kind that leaves changes of metadata to the common rules does so here too.
            _ if matches!(rules.update, [] | [Check::Metadata]) => &[],
            _ => &[Check::MetadataChange],
        };
        for check in checks {
            match check {
                Check::Metadata => {
                    validate_object_meta(meta, rules.namespaced, rules.name, &path, &mut errors);
                    validate_standard_finalizers(meta, &path, &mut errors);
                }
                Check::Object => typed.validate(&mut errors),
                Check::MetadataChange => {
                    validate_object_meta_update(meta, old_meta, &path, &mut errors);
                    validate_standard_finalizers(meta, &path, &mut errors);
                }
            }
        }
        match of {
            UpdateOf::Main => typed.validate_update(&old_typed, &mut errors),
            UpdateOf::Status => typed.validate_status_update(&old_typed, &mut errors),
            UpdateOf::Subresource(name) => {
                typed.validate_subresource_update(&old_typed, name, &mut errors);
            }
        }
        if !errors.is_empty() {
            return Err(errors.0);
        }
        let warnings = match of {
            UpdateOf::Main => typed.warnings(Some(&old_typed)),
            UpdateOf::Status => typed.status_warnings(),
            UpdateOf::Subresource(_) => Warnings::new(),
        };
        if typed.canonicalize() {
            self.write(&typed, new)?;
        }
        owned.put_back(new);
        Ok(warnings)
    }

    fn allow_create_on_update(&self) -> bool {
        T::RULES.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        T::RULES.unconditional_update
    }

    fn reset_fields(&self, of: UpdateOf<'_>) -> &'static [&'static str] {
        match of {
            UpdateOf::Main => T::RULES.reset,
            UpdateOf::Status => T::RULES.reset_status,
            UpdateOf::Subresource(_) => T::RULES.reset_subresource,
        }
    }

    fn grace_period(&self, object: &Value, requested_seconds: Option<i64>) -> i64 {
        T::grace_period(object, requested_seconds)
    }
}

/// The `fieldsV1` of each managed fields entry: often half of the object, and nothing here looks at them.
struct OwnedFields(Vec<Option<Value>>);

impl OwnedFields {
    fn entries(object: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
        let entries = object.pointer_mut("/metadata/managedFields");
        let entries = entries.and_then(Value::as_array_mut).into_iter().flatten();
        entries.filter_map(Value::as_object_mut)
    }

    fn take(object: &mut Value) -> Self {
        Self(
            Self::entries(object)
                .map(|entry| entry.remove("fieldsV1"))
                .collect(),
        )
    }

    fn put_back(self, object: &mut Value) {
        for (entry, fields) in Self::entries(object).zip(self.0) {
            if let Some(fields) = fields {
                entry.insert("fieldsV1".to_owned(), fields);
            }
        }
    }
}

fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    let Some(fields) = to.as_object_mut() else {
        return;
    };
    match from.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// An update of `/status` changes the status and metadata; the rest stays as it is stored.
pub(crate) fn keep_all_but_status(old: &Value, new: &mut Value) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) else {
        return;
    };
    let taken = |field: &str| matches!(field, "apiVersion" | "kind" | "metadata" | "status");
    let mut kept = Map::new();
    for (field, value) in std::mem::take(new) {
        if taken(&field) {
            kept.insert(field, value);
        }
    }
    for (field, value) in old {
        if !taken(field) {
            kept.insert(field.clone(), value.clone());
        }
    }
    *new = kept;
}

/// What an update may leave out of metadata, and what it cannot change (apiserver `rest.BeforeUpdate`).
pub(crate) fn keep_system_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.generation = old.generation;
    new.self_link = None;
    if new.uid.as_deref().unwrap_or_default().is_empty() {
        new.uid = old.uid.clone();
    }
    if new.creation_timestamp.is_none() {
        new.creation_timestamp = old.creation_timestamp.clone();
    }
    if old.deletion_timestamp.is_some() {
        new.deletion_timestamp = old.deletion_timestamp.clone();
    }
    if old.deletion_grace_period_seconds.is_some() && new.deletion_grace_period_seconds.is_none() {
        new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    }
}

/// What of metadata an update of `/status` may not change either, where a kind says so (`ResetObjectMetaForStatus`).
pub(crate) fn keep_status_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.deletion_timestamp = old.deletion_timestamp.clone();
    new.generation = old.generation;
    new.labels.clone_from(&old.labels);
    new.annotations.clone_from(&old.annotations);
    new.finalizers.clone_from(&old.finalizers);
    new.owner_references.clone_from(&old.owner_references);
}

fn changed(generation: Generation, new: &Value, old: &Value) -> bool {
    let differs = |field: &str| new.get(field) != old.get(field);
    match generation {
        Generation::Never | Generation::Own | Generation::CreateOnly => false,
        Generation::ObjectOrLabels => {
            changed(Generation::Object, new, old)
                || new.pointer("/metadata/labels") != old.pointer("/metadata/labels")
        }
        Generation::Spec => differs("spec"),
        Generation::SpecOrAnnotations => {
            differs("spec")
                || new.pointer("/metadata/annotations") != old.pointer("/metadata/annotations")
        }
        Generation::Object => {
            let body = |object: &Value| {
                let mut fields = object.as_object().cloned().unwrap_or_default();
                for field in ["metadata", "status", "kind", "apiVersion"] {
                    fields.remove(field);
                }
                fields
            };
            body(new) != body(old)
        }
    }
}

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod flowcontrol;
mod gates;
pub mod networking;
pub mod node;
mod plain;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod storage;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::LimitRange,
        policy::v1::PodDisruptionBudget,
    };

    use super::*;

    fn strategy<T: Kind>() -> Typed<T> {
        <Typed<T> as Default>::default()
    }

    fn stored<T: Kind>(spec: Value) -> Value {
        let mut object = json!({
            "apiVersion": T::API_VERSION,
            "kind": T::KIND,
            "metadata": {
                "name": "a",
                "namespace": "b",
                "uid": "u",
                "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": spec,
        });
        strategy::<T>().default(&mut object);
        object
    }

    fn workload(selector: &Value) -> Value {
        json!({
            "selector": selector,
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        })
    }

    /// How often each field is reported.
    fn check_update<T: Kind>(spec: Value, label: usize, replicas: usize) {
        let old = stored::<T>(spec);
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"a b": "c"});
        if replicas > 0 {
            new["spec"]["replicas"] = json!(-1);
        }
        let refused = strategy::<T>().update(&mut new, &old, UpdateOf::Main);
        let fields: Vec<String> = refused
            .expect_err("refused")
            .into_iter()
            .map(|error| error.field)
            .collect();
        let count = |field: &str| fields.iter().filter(|one| *one == field).count();
        assert_eq!(count("metadata.labels"), label, "{}: {fields:?}", T::KIND);
        assert_eq!(count("spec.replicas"), replicas, "{}: {fields:?}", T::KIND);
    }

    #[test]
    fn an_update_repeats_what_upstream_repeats() {
        let spec = workload(&json!({"matchLabels": {"a": "b"}}));
        check_update::<ReplicaSet>(spec.clone(), 4, 2);
        check_update::<Deployment>(spec, 3, 1);
        check_update::<LimitRange>(json!({"limits": []}), 3, 0);
        check_update::<PodDisruptionBudget>(json!({"minAvailable": 1}), 2, 0);
    }

    fn check_selector<T: Kind>(selector: &Value, expected: &[&str]) {
        let mut object = stored::<T>(workload(selector));
        let refused = strategy::<T>().create(&mut object);
        let texts: Vec<String> = refused
            .expect_err("refused")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, expected, "{}: {selector}", T::KIND);
    }

    #[test]
    fn an_empty_selector_is_not_a_missing_one() {
        let mismatch = r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#;
        let (missing, required) = (json!(null), "spec.selector: Required value");
        check_selector::<Deployment>(&missing, &[required, mismatch]);
        check_selector::<StatefulSet>(&missing, &[required, mismatch]);
        check_selector::<DaemonSet>(&missing, &[mismatch]);
        for empty in [json!({}), json!({"matchLabels": {}})] {
            let refused = |kind: &str| {
                format!("spec.selector: Invalid value: {{}}: empty selector is invalid for {kind}")
            };
            check_selector::<Deployment>(&empty, &[&refused("deployment")]);
            check_selector::<StatefulSet>(&empty, &[&refused("statefulset")]);
            check_selector::<DaemonSet>(&empty, &[&refused("daemonset")]);
        }
    }

    #[test]
    fn a_selector_that_cannot_be_read_selects_nothing_wrong() {
        let selector = json!({"matchLabels": {"a b": "c"}});
        let mut object = stored::<Deployment>(workload(&selector));
        let refused = strategy::<Deployment>().create(&mut object);
        let fields: Vec<String> = refused
            .expect_err("refused")
            .into_iter()
            .map(|error| error.field)
            .collect();
        assert_eq!(fields, ["spec.selector.matchLabels", "spec.selector"]);
    }
}
