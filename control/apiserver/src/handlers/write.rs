//! What create, update and patch share: admission, metadata that only the server sets, managed fields, lifetimes.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use skep_api::strategy::UpdateOf;
use skep_apply::managed::{self, Writer};

use crate::{
    admission::{Attributes, Operation, Reinvocation},
    codec::meta,
    context::Ctx,
    options::WriteOptions,
    registry::Resource,
    respond::Object,
    status::{Result, Status},
};

/// How long Events live, as upstream's default.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// Where a write goes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub resource: &'a Arc<Resource>,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
}

impl<'a> Target<'a> {
    pub fn of(self) -> UpdateOf<'a> {
        match self.subresource {
            // A scale writes the object through its own rules.
            "" | "scale" => UpdateOf::Main,
            "status" => UpdateOf::Status,
            other => UpdateOf::Subresource(other),
        }
    }

    pub fn writer(self, ctx: &Ctx, options: &WriteOptions) -> Writer {
        Writer {
            manager: ctx.field_manager(&options.field_manager),
            api_version: self.resource.api_version.clone(),
            subresource: self.subresource.to_owned(),
            time: ctx.now,
        }
    }

    /// Records in `new` who owns the fields that change.
    pub fn track(self, ctx: &Ctx, options: &WriteOptions, live: Option<&Value>, new: &mut Value) {
        if let Some(schema) = &self.resource.def.schema {
            let untracked = |object: &Value| {
                object["metadata"]["managedFields"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
            };
            let reset = &new["metadata"]["managedFields"];
            if reset
                .as_array()
                .is_some_and(|m| m.len() == 1 && m[0] == json!({}))
            {
                remove_meta(new, "managedFields");
                return;
            }
            if live.is_some_and(untracked) && untracked(new) {
                // Nobody ever asked for this object's fields to be tracked.
                return;
            }
            let reset = self.reset_fields();
            let writer = self.writer(ctx, options);
            let convert = |version: &str, object: &Value| self.in_version(ctx, version, object);
            managed::update_versioned(live, new, schema, &writer, reset, Some(&convert));
        }
    }

    /// An object of this resource in another version that is stored the same.
    fn in_version(
        self,
        ctx: &Ctx,
        api_version: &str,
        object: &Value,
    ) -> Option<(Value, skep_schema::TypeRef)> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let row = ctx
            .registry
            .get(group, version, &self.resource.def.plural)?;
        let stored = |row: &Resource| (row.stored_group.clone(), row.stored_version.clone());
        if stored(row) != stored(self.resource) {
            return None;
        }
        let object = match &self.resource.def.conversion {
            Some(conversion) => (conversion.to_storage)(object.clone()),
            None => object.clone(),
        };
        let object = crate::storage::from_stored(row, object);
        Some((object, row.def.schema.clone()?))
    }

    /// What this endpoint may not own.
    pub fn reset_fields(self) -> &'static [&'static str] {
        match self.subresource {
            "finalize" => &["status"],
            _ => self.resource.def.strategy.reset_fields(self.of()),
        }
    }

    /// Admits what is not stored: a binding, an eviction, a review, a connection.
    ///
    /// # Errors
    /// When admission refuses it.
    pub async fn admit(
        self,
        ctx: &Ctx,
        operation: Operation,
        options: &Value,
        dry_run: bool,
        object: Value,
    ) -> Result<Value> {
        let chain = ctx.api.admission.load_full();
        let mut attributes = Attributes {
            operation,
            resource: self.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            user: &ctx.user,
            dry_run,
            options,
            object,
            old: &Value::Null,
            warnings: Vec::new(),
            annotations: Vec::new(),
            reinvocation: Reinvocation::default(),
        };
        let mut admitted = chain.mutate(&ctx.api, &mut attributes).await;
        if admitted.is_ok() {
            admitted = chain.validate(&ctx.api, &mut attributes).await;
        }
        attributes.tell(ctx);
        admitted?;
        Ok(attributes.object)
    }

    pub fn attributes(
        self,
        ctx: &'a Ctx,
        operation: Operation,
        options: &'a WriteOptions,
        object: Value,
        old: &'a Value,
    ) -> Attributes<'a> {
        Attributes {
            operation,
            resource: self.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            user: &ctx.user,
            dry_run: options.dry_run,
            options: &options.object,
            object,
            old,
            warnings: Vec::new(),
            annotations: Vec::new(),
            reinvocation: Reinvocation::default(),
        }
    }
}

pub fn ttl(resource: &Resource) -> Option<Duration> {
    (resource.stored_group.is_empty() && resource.def.plural == "events").then_some(EVENT_TTL)
}

/// The request's namespace goes into the object; another one is refused.
pub fn match_namespace(object: &mut Value, target_namespace: &str) -> Result<()> {
    let namespace = meta(object, "namespace");
    if namespace == target_namespace {
        return Ok(());
    }
    if target_namespace.is_empty() {
        remove_meta(object, "namespace");
        return Ok(());
    }
    if namespace.is_empty() {
        object["metadata"]["namespace"] = target_namespace.into();
        return Ok(());
    }
    Err(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

/// The object must be the one that the URL names.
pub fn match_name(object: &Value, name: &str) -> Result<()> {
    let given = meta(object, "name");
    if given == name {
        return Ok(());
    }
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    Err(Status::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({name})"
    )))
}

pub fn remove_meta(object: &mut Value, field: &str) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove(field);
    }
}

/// `metadata.resourceVersion` as a number; 0 when absent.
pub fn resource_version(object: &Value) -> Result<u64> {
    match meta(object, "resourceVersion") {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            Status::unknown(format!(
                "strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))
        }),
    }
}

/// Drops what a client may not set on a new object.
pub fn drop_server_metadata(object: &mut Value) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        remove_meta(object, field);
    }
}

/// A decoded object with its defaults, in the form that [`normalized`] gives.
pub fn defaulted(resource: &Resource, mut object: Value) -> Result<Value> {
    match resource.def.strategy.default(&mut object) {
        true => normalized(resource, object),
        false => Ok(object),
    }
}

/// The form that upstream's typed round trip gives: what plugins and strategies left empty goes, what every object of
/// the kind has comes.
pub fn normalized(resource: &Resource, object: Value) -> Result<Value> {
    let Some(schema) = &resource.def.schema else {
        return Ok(object);
    };
    let decoded = skep_schema::conform(object, schema)
        .map_err(|error| Status::internal("normalizing an object", &error))?;
    Ok(decoded.value)
}

/// The form in which upstream's store keeps an object and gives it back, after the last change.
pub fn as_stored(resource: &Resource, object: Value) -> Result<Value> {
    let mut object = normalized(resource, object)?;
    // These two groups are stored as JSON.
    let as_json = ["apiextensions.k8s.io", "apiregistration.k8s.io"];
    if let Some(schema) = &resource.def.schema
        && !resource.custom
        && !as_json.contains(&resource.def.group.as_ref())
    {
        skep_schema::forget_empty(&mut object, schema);
    }
    Ok(object)
}

/// What only the server sets on a new object.
pub fn fill_system_metadata(object: &mut Value, now: Timestamp) {
    object["metadata"]["uid"] = new_uid().into();
    object["metadata"]["creationTimestamp"] = now.to_string().into();
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

/// `base` and five characters that make no words (apimachinery `names.SimpleNameGenerator`).
pub fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX_BASE: usize = 63 - 5;
    let end = (0..=base.len().min(MAX_BASE))
        .rev()
        .find(|at| base.is_char_boundary(*at));
    let mut name = base[..end.unwrap_or(0)].to_owned();
    for _ in 0..5 {
        let at = rand::random_range(0..ALPHABET.len());
        name.push(char::from(ALPHABET[at]));
    }
    name
}

/// Owner references that name the same owner twice are dropped with a warning, as upstream does.
pub fn dedup_owner_references(object: &mut Value, warnings: &mut Vec<String>) {
    let Some(references) = object["metadata"]["ownerReferences"].as_array_mut() else {
        return;
    };
    let mut seen: Vec<Value> = Vec::new();
    let before = references.len();
    references.retain(|reference| {
        let known = seen.contains(reference);
        if !known {
            seen.push(reference.clone());
        }
        !known
    });
    if references.len() < before {
        warnings.push(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, \
             and may reject such requests as early as 1.24; please fix your requests"
                .to_owned(),
        );
    }
}

/// Whether nothing differs but times in managed fields; those then stay as they were.
pub fn ignore_managed_times(new: &mut Value, old: &Value) {
    let same = |field: &str| new.get(field) == old.get(field);
    let keys = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .map(|map| map.keys().cloned().collect())
            .unwrap_or_default()
    };
    if keys(new) != keys(old) || !keys(new).iter().all(|k| k == "metadata" || same(k)) {
        return;
    }
    let (new_meta, old_meta) = (&new["metadata"], &old["metadata"]);
    let ignored = |key: &str| matches!(key, "managedFields" | "resourceVersion");
    let all = keys(new_meta).into_iter().chain(keys(old_meta));
    if !all
        .into_iter()
        .all(|k| ignored(&k) || new_meta.get(&k) == old_meta.get(&k))
    {
        return;
    }
    let without_times = |managed: &Value| -> Vec<Value> {
        let entries = managed.as_array().cloned().unwrap_or_default();
        let strip = |mut entry: Value| {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
            entry
        };
        entries.into_iter().map(strip).collect()
    };
    if without_times(&new_meta["managedFields"]) == without_times(&old_meta["managedFields"]) {
        match old_meta.get("managedFields") {
            Some(managed) => new["metadata"]["managedFields"] = managed.clone(),
            None => remove_meta(new, "managedFields"),
        }
    }
}

/// The answer's object: `stored` with its resource version, in the row's version.
pub fn answer(resource: &Resource, value: Value, stored: &[u8], revision: u64) -> Object {
    if resource.def.conversion.is_none() {
        return Object::Bytes(crate::codec::with_revision(stored, revision));
    }
    let mut value = value;
    value["metadata"]["resourceVersion"] = revision.to_string().into();
    Object::Value(value)
}

/// Marks an object that finalizers still hold as being deleted.
pub fn mark_deleting(object: &mut Value, now: Timestamp) {
    let metadata = &mut object["metadata"];
    if metadata["deletionTimestamp"].is_null() {
        if let Some(generation) = metadata["generation"].as_i64().filter(|g| *g > 0) {
            metadata["generation"] = (generation + 1).into();
        }
        metadata["deletionTimestamp"] = now.to_string().into();
    } else if let Some(at) = metadata["deletionTimestamp"].as_str()
        && at.parse::<Timestamp>().is_ok_and(|at| at > now)
    {
        metadata["deletionTimestamp"] = now.to_string().into();
    }
    metadata["deletionGracePeriodSeconds"] = json!(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_and_differ() {
        let long = "a".repeat(80);
        assert_eq!(generate_name(&long).len(), 63);
        assert_ne!(generate_name("x-"), generate_name("x-"));
        assert!(generate_name("é".repeat(40).as_str()).len() <= 63);
        assert_eq!(new_uid().len(), 36);
    }

    #[test]
    fn only_a_change_of_time_is_no_change() {
        let object = |time: &str, data: &str| json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time}]}, "data": data});
        let old = object("1", "x");
        let mut new = object("2", "x");
        ignore_managed_times(&mut new, &old);
        assert_eq!(new, old);
        let mut new = object("2", "y");
        ignore_managed_times(&mut new, &old);
        assert_eq!(new, object("2", "y"));
    }
}
