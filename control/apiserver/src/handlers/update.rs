//! update, and the loop that every change of a stored object goes through.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use skep_api::field::{FieldError, FieldErrorKind};

use super::{
    create::create_object,
    write::{
        Target, as_stored, dedup_owner_references, defaulted, ignore_managed_times, match_name,
        match_namespace, remove_meta, resource_version, ttl,
    },
};
use crate::{
    admission::Operation,
    codec::{self, Expected, decode_body, meta},
    context::Ctx,
    crd::conversion,
    hooks, negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    respond::Object,
    status::{Result, Status},
    storage::{Current, Written},
};

/// How often a write starts over because others were faster. Each round means that somebody made progress.
const ATTEMPTS: usize = 50;

/// What the object should become, given what is stored. Pure, as it runs once an attempt.
pub type Change<'a> = &'a (dyn Fn(Option<&Value>, &mut Vec<String>) -> Result<Value> + Send + Sync);

pub struct Updated {
    pub object: Object,
    pub created: bool,
}

pub async fn update(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Update)?;
    let mut object = decode_body(
        &body,
        encoding,
        &Expected::of(resource),
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let target = Target {
        resource,
        namespace: if resource.namespaced() {
            &ctx.info.namespace
        } else {
            ""
        },
        name: &ctx.info.name,
        subresource: &ctx.info.subresource,
    };
    match_namespace(&mut object, target.namespace)?;
    match_name(&object, target.name)?;
    let object = defaulted(resource, object)?;
    let uid = meta(&object, "uid").to_owned();
    let change = |old: Option<&Value>, _: &mut Vec<String>| {
        let mut new = object.clone();
        target.track(ctx, &options, old, &mut new);
        Ok(new)
    };
    let create = target.subresource.is_empty() && resource.def.strategy.allow_create_on_update();
    let updated = change_object(ctx, target, &options, &uid, create, &change).await?;
    let code = if updated.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    ctx.object(resource, code, updated.object, &out)
}

/// Reads, changes and writes an object until nobody came between (upstream `GuaranteedUpdate`).
///
/// `uid`: precondition, empty for none. `create`: what to do with a missing object.
pub async fn change_object(
    ctx: &Ctx,
    target: Target<'_>,
    options: &WriteOptions,
    uid: &str,
    create: bool,
    change: Change<'_>,
) -> Result<Updated> {
    let Target {
        resource,
        namespace,
        name,
        ..
    } = target;
    let storage = &ctx.api.storage;
    let key = resource.key(namespace, name);
    let mut current = storage
        .get(&key)
        .await?
        .map(|entry| Current::from(entry.as_ref()));
    for _ in 0..ATTEMPTS {
        let Some(found) = current else {
            check_precondition(target, "UID", uid, "")?;
            if !create {
                return Err(Status::missing(resource, name));
            }
            let mut warnings = Vec::new();
            let mut object = change(None, &mut warnings)?;
            ctx.warnings.lock().append(&mut warnings);
            match_name(&object, name)?;
            remove_meta(&mut object, "resourceVersion");
            let created = create_object(ctx, resource, namespace, object, options, false).await;
            match created {
                Err(status) if status.code == 409 && status.reason == "AlreadyExists" => {
                    current = storage.get(&key).await?.map(|e| Current::from(e.as_ref()));
                    continue;
                }
                created => {
                    return Ok(Updated {
                        object: created?,
                        created: true,
                    });
                }
            }
        };
        match attempt(ctx, target, options, uid, &found, change).await? {
            Attempt::Done(object) => {
                return Ok(Updated {
                    object,
                    created: false,
                });
            }
            Attempt::Changed(now) => current = now,
        }
    }
    Err(Status::modified(resource, name))
}

/// Of an update upstream asks for the UID before it looks whether there is an object. `wanted`: empty for no matter what.
pub fn check_precondition(
    target: Target<'_>,
    field: &str,
    wanted: &str,
    found: &str,
) -> Result<()> {
    if wanted.is_empty() || wanted == found {
        return Ok(());
    }
    let Target {
        resource,
        namespace,
        name,
        ..
    } = target;
    let key = resource.upstream_key(namespace, name);
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}"
    );
    let def = &resource.def;
    Err(Status::conflict(&def.group, &def.plural, name, &why))
}

enum Attempt {
    Done(Object),
    /// Somebody else wrote meanwhile.
    Changed(Option<Current>),
}

async fn attempt(
    ctx: &Ctx,
    target: Target<'_>,
    options: &WriteOptions,
    uid: &str,
    found: &Current,
    change: Change<'_>,
) -> Result<Attempt> {
    let Target {
        resource,
        namespace,
        name,
        ..
    } = target;
    let api = &ctx.api;
    let old = found.read(api, resource).await?;
    check_precondition(target, "UID", uid, meta(&old, "uid"))?;
    let mut warnings = Vec::new();
    let object = change(Some(&old), &mut warnings)?;
    match_name(&object, name)?;
    let chain = api.admission.load_full();
    let mut attributes = target.attributes(ctx, Operation::Update, options, object, &old);
    // A binding and an eviction were admitted as what they are.
    let asked = !matches!(target.subresource, "binding" | "eviction");
    let admitted = match asked {
        true => chain.mutate(api, &mut attributes).await,
        false => Ok(()),
    };
    if admitted.is_err() {
        attributes.tell(ctx);
    }
    admitted?;
    warnings.append(&mut attributes.warnings);
    ctx.audit_annotations
        .lock()
        .append(&mut attributes.annotations);
    let mut object = attributes.object;
    dedup_owner_references(&mut object, &mut warnings);
    check_version(target, &mut object, found.revision)?;
    let extra = hooks::before_update(ctx, target, &mut object, &old).await?;
    let created_at = &old["metadata"]["creationTimestamp"];
    if !created_at.is_null() {
        object["metadata"]["creationTimestamp"] = created_at.clone();
    }
    let strategy = &resource.def.strategy;
    // A binding writes what no other endpoint may, and has checked it.
    let checked = match target.subresource {
        "binding" => Ok(Vec::new()),
        _ => strategy.update(&mut object, &old, target.of()),
    };
    match checked {
        Ok(mut more) => warnings.append(&mut more),
        Err(errors) => {
            let (group, kind) = (&resource.stored_group, &resource.def.kind);
            return Err(Status::invalid(group, kind, name, &errors));
        }
    }
    hooks::stamp_conditions(ctx, target, &mut object, Some(&old));
    hooks::check_references(ctx, target, &object, Some(&old)).await?;
    let mut object = as_stored(resource, object)?;
    ignore_managed_times(&mut object, &old);
    let mut attributes = target.attributes(ctx, Operation::Update, options, object, &old);
    let admitted = match asked {
        true => chain.validate(api, &mut attributes).await,
        false => Ok(()),
    };
    if admitted.is_err() {
        attributes.tell(ctx);
    }
    admitted?;
    warnings.append(&mut attributes.warnings);
    ctx.audit_annotations
        .lock()
        .append(&mut attributes.annotations);
    let object = attributes.object;

    let key = resource.key(namespace, name);
    let stored = conversion::store(api, resource, &object).await?;
    let written = if finished_deleting(resource, &object, &old) {
        if options.dry_run {
            Written::At(found.revision)
        } else {
            let extra = hooks::on_delete(resource, &old);
            api.storage.delete(&key, found.revision, extra).await?
        }
    } else if options.dry_run || unchanged(&stored, found) {
        Written::At(found.revision)
    } else {
        api.storage
            .update(&key, stored.clone(), found.revision, ttl(resource), extra)
            .await?
    };
    match written {
        Written::Conflict(now) => Ok(Attempt::Changed(now)),
        Written::ExtraConflict => Ok(Attempt::Changed(Some(found.clone()))),
        Written::At(revision) => {
            ctx.warnings.lock().append(&mut warnings);
            let answer = conversion::answer(api, resource, object, &stored, revision).await?;
            Ok(Attempt::Done(answer))
        }
    }
}

fn unchanged(stored: &Bytes, found: &Current) -> bool {
    !found.stale && codec::with_revision(stored, found.revision) == found.bytes
}

/// The object must be based on what is stored, unless the kind lets writes without a version overwrite.
fn check_version(target: Target<'_>, object: &mut Value, revision: u64) -> Result<()> {
    let Target { resource, name, .. } = target;
    match resource_version(object)? {
        0 if resource.def.strategy.allow_unconditional_update() => {
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            Ok(())
        }
        0 => {
            let error = FieldError::new(
                FieldErrorKind::Invalid,
                "metadata.resourceVersion",
                skep_api::field::Bad::json(&0),
                "must be specified for an update",
            );
            // The plural stands where a kind should: upstream does it too.
            Err(Status::invalid(
                &resource.def.group,
                &resource.def.plural,
                name,
                &[error],
            ))
        }
        given if given == revision => Ok(()),
        _ => Err(Status::modified(resource, name)),
    }
}

/// The last finalizer went, and nothing else holds the object.
fn finished_deleting(resource: &Resource, new: &Value, old: &Value) -> bool {
    let finalizers = |value: &Value| value.as_array().is_some_and(|f| !f.is_empty());
    if finalizers(&new["metadata"]["finalizers"]) || old["metadata"]["deletionTimestamp"].is_null()
    {
        return false;
    }
    if resource.is("", "namespaces") && finalizers(&new["spec"]["finalizers"]) {
        return false;
    }
    matches!(
        old["metadata"]["deletionGracePeriodSeconds"].as_i64(),
        None | Some(0)
    )
}
