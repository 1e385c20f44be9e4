//! delete and deletecollection: preconditions, finalizers, grace.

use std::sync::Arc;

use axum::response::Response;
use futures::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    read::page,
    selection::Selection,
    write::{Target, mark_deleting},
};
use crate::{
    admission::{Attributes, Operation, Reinvocation},
    codec::meta,
    context::Ctx,
    crd::{self, conversion},
    hooks::{self, Extra},
    negotiate::{self, Encoding},
    options::{DeleteOptions, ListOptions, Propagation},
    registry::Resource,
    respond::{self, Object},
    status::{self, Result, Status},
    storage::{Current, Written},
};

const ATTEMPTS: usize = 50;
/// How many objects of a collection are deleted at once.
const COLLECTION_WORKERS: usize = 16;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

pub async fn delete(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let options = read_options(ctx).await?;
    hooks::may_delete(resource, &ctx.info.name)?;
    warn_of_orphans(ctx, resource, &options);
    let namespace = if resource.namespaced() {
        ctx.info.namespace.as_str()
    } else {
        ""
    };
    match delete_object(ctx, resource, namespace, &ctx.info.name, &options).await? {
        Deleted::Gone { uid } => {
            let status = status::deleted(resource, &ctx.info.name, &uid);
            ctx.value(StatusCode::OK, &status, &out)
        }
        Deleted::Object(value) => ctx.object(resource, StatusCode::OK, Object::Value(value), &out),
    }
}

pub async fn delete_collection(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let options = ListOptions::parse(&ctx.query, false)?;
    let selection = Selection::new(ctx, resource, &options)?;
    let delete_options = read_options(ctx).await?;
    warn_of_orphans(ctx, resource, &delete_options);
    let list = page(ctx, resource, &selection, &options).await?;
    let prefix = resource.prefix.len();
    let keys = list
        .entries
        .iter()
        .map(|entry| entry.key.get(prefix..).unwrap_or_default().to_owned());
    let mut keys: Vec<String> = keys.collect();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < COLLECTION_WORKERS
            && let Some(key) = keys.pop()
        {
            running.push(delete_member(ctx, resource, key, &delete_options));
        }
        match running.next().await {
            Some(deleted) => deleted?,
            None => break,
        }
    }
    let mut items = Vec::with_capacity(list.entries.len());
    for entry in list.entries {
        items.push(crate::storage::read_object(resource, &entry.bytes())?);
    }
    let metadata = json!({"resourceVersion": list.revision.to_string()});
    let value = respond::list_value(resource, metadata, items);
    ctx.value(StatusCode::OK, &value, &out)
}

/// `key`: `namespace/name`, or the name alone.
async fn delete_member(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    key: String,
    options: &DeleteOptions,
) -> Result<()> {
    let (namespace, name) = match key.split_once('/') {
        Some((namespace, name)) if resource.namespaced() => (namespace, name),
        _ => ("", key.as_str()),
    };
    match delete_object(ctx, resource, namespace, name, options).await {
        // Somebody else deleted it meanwhile: as good.
        Err(status) if status.code == 404 => Ok(()),
        Err(status) => Err(status),
        Ok(_) => Ok(()),
    }
}

async fn read_options(ctx: &Ctx) -> Result<DeleteOptions> {
    let body = ctx.read_body().await?;
    if body.is_empty() {
        return DeleteOptions::from_query(&ctx.query);
    }
    let value = decode_options(&body, negotiate::input(&ctx.headers)?)?;
    DeleteOptions::from_object(value)
}

/// `DeleteOptions` exist in every group.
fn decode_options(body: &[u8], encoding: Encoding) -> Result<Value> {
    let value: Value = match encoding {
        Encoding::Protobuf => skep_schema::protobuf::decode(body)
            .map_err(|error| Status::bad_request(error.to_string()))?,
        Encoding::Yaml => crate::yaml::parse(body).map_err(Status::bad_request)?,
        Encoding::Json => {
            let read = skep_schema::decode_untyped(body).map_err(|error| {
                Status::bad_request(format!(
                    "couldn't get version/kind; json parse error: {error}"
                ))
            })?;
            read.value
        }
    };
    let (version, kind) =
        skep_schema::type_meta(&value).map_err(|error| Status::bad_request(error.to_string()))?;
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \
             \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
        )));
    }
    let Some(schema) = skep_schema::builtin("", "v1", "DeleteOptions") else {
        return Ok(value);
    };
    let decoded = skep_schema::conform(value, &schema)
        .map_err(|error| Status::bad_request(error.to_string()))?;
    Ok(decoded.value)
}

pub enum Deleted {
    Gone {
        uid: String,
    },
    /// Being deleted, or of a kind that answers with the object.
    Object(Value),
}

pub async fn delete_object(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted> {
    delete_found(ctx, resource, namespace, name, options, true).await
}

/// Without asking admission: it has admitted what leads to this delete.
pub async fn delete_admitted(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted> {
    delete_found(ctx, resource, namespace, name, options, false).await
}

async fn delete_found(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
    ask: bool,
) -> Result<Deleted> {
    let storage = &ctx.api.storage;
    let key = resource.key(namespace, name);
    let target = Target {
        resource,
        namespace,
        name,
        subresource: "",
    };
    let mut current = storage
        .get(&key)
        .await?
        .map(|entry| Current::from(entry.as_ref()));
    for _ in 0..ATTEMPTS {
        let Some(found) = current else {
            return Err(Status::missing(resource, name));
        };
        let old = found.read(&ctx.api, resource).await?;
        check_preconditions(resource, &old, name, options)?;
        if ask {
            admit(ctx, target, options, &old).await?;
        }
        let plan = plan(resource, old, options, ctx.now);
        let (written, answer) = match plan {
            Plan::Pending(object) => return Ok(Deleted::Object(object)),
            Plan::Keep(object) => {
                let stored = conversion::store(&ctx.api, resource, &object).await?;
                let same = crate::codec::with_revision(&stored, found.revision) == found.bytes;
                let written = if options.dry_run || same {
                    Written::At(found.revision)
                } else {
                    storage
                        .update(&key, stored, found.revision, None, Extra::default())
                        .await?
                };
                (written, (false, object))
            }
            Plan::Remove(object) => {
                let written = if options.dry_run {
                    Written::At(found.revision)
                } else {
                    let extra = hooks::on_delete(resource, &object);
                    storage.delete(&key, found.revision, extra).await?
                };
                (written, (true, object))
            }
        };
        match written {
            Written::Conflict(now) => current = now,
            Written::ExtraConflict => current = Some(found),
            Written::At(revision) => {
                let (removed, mut object) = answer;
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                if removed && !answers_with_object(resource) {
                    let uid = meta(&object, "uid").to_owned();
                    return Ok(Deleted::Gone { uid });
                }
                return Ok(Deleted::Object(object));
            }
        }
    }
    Err(Status::modified(resource, name))
}

async fn admit(ctx: &Ctx, target: Target<'_>, options: &DeleteOptions, old: &Value) -> Result<()> {
    let chain = ctx.api.admission.load_full();
    let mut attributes = Attributes {
        operation: Operation::Delete,
        resource: target.resource,
        subresource: "",
        namespace: target.namespace,
        name: target.name,
        user: &ctx.user,
        dry_run: options.dry_run,
        options: &options.object,
        object: Value::Null,
        old,
        warnings: Vec::new(),
        annotations: Vec::new(),
        reinvocation: Reinvocation::default(),
    };
    let mut admitted = chain.mutate(&ctx.api, &mut attributes).await;
    if admitted.is_ok() {
        admitted = chain.validate(&ctx.api, &mut attributes).await;
    }
    attributes.tell(ctx);
    admitted
}

pub fn check_preconditions(
    resource: &Resource,
    object: &Value,
    name: &str,
    options: &DeleteOptions,
) -> Result<()> {
    let conflict = |why: String| -> Result<()> {
        let def = &resource.def;
        Err(Status::conflict(
            &resource.stored_group,
            &def.kind,
            name,
            &why,
        ))
    };
    let uid = meta(object, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). \
             The object might have been deleted and then recreated"
        ));
    }
    let version = meta(object, "resourceVersion");
    if let Some(wanted) = options
        .resource_version
        .as_deref()
        .filter(|w| *w != version)
    {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// What a delete does to the object.
enum Plan {
    /// A delete is under way already and this one does not shorten it.
    Pending(Value),
    /// It stays, marked: finalizers or a grace period hold it.
    Keep(Value),
    Remove(Value),
}

/// ```text
/// alive ──delete, finalizers or grace──► deleting ──finalizers gone, grace over──► removed
///   └────────delete, nothing holds it────────────────────────────────────────────────┘
/// ```
fn plan(resource: &Resource, mut object: Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    if resource.is("", "namespaces") {
        return plan_namespace(resource, object, options, now);
    }
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions")
        && crd::begin_deletion(&mut object, now)
    {
        return Plan::Keep(object);
    }
    let graceful = resource.is("", "pods");
    // Negative means at once, but through the graceful path.
    let requested = options
        .grace_period_seconds
        .map(|s| if s < 0 { 1 } else { s });
    let deleting = !object["metadata"]["deletionTimestamp"].is_null();
    let mut grace = 0;
    if graceful {
        grace = resource.def.strategy.grace_period(&object, requested);
        if deleting {
            let left = object["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0);
            match requested {
                Some(_) if grace < left => shorten(&mut object, left, grace),
                _ => return Plan::Pending(object),
            }
        }
    }
    update_finalizers(resource, &mut object, options);
    let held = object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|f| !f.is_empty());
    if graceful && !deleting {
        let metadata = &mut object["metadata"];
        if let Some(generation) = metadata["generation"].as_i64().filter(|g| *g > 0) {
            metadata["generation"] = (generation + 1).into();
        }
        let at = now + SignedDuration::from_secs(grace);
        metadata["deletionTimestamp"] = at.to_string().into();
        metadata["deletionGracePeriodSeconds"] = grace.into();
    } else if held && !graceful {
        mark_deleting(&mut object, now);
    }
    if held || grace > 0 {
        Plan::Keep(object)
    } else {
        Plan::Remove(object)
    }
}

fn shorten(object: &mut Value, left: i64, grace: i64) {
    let metadata = &mut object["metadata"];
    if let Some(at) = metadata["deletionTimestamp"].as_str()
        && let Ok(at) = at.parse::<Timestamp>()
    {
        let at = at - SignedDuration::from_secs(left) + SignedDuration::from_secs(grace);
        metadata["deletionTimestamp"] = at.to_string().into();
    }
    metadata["deletionGracePeriodSeconds"] = grace.into();
}

/// A namespace turns `Terminating` and stays until the namespace controller has emptied it (`spec.finalizers`).
fn plan_namespace(
    resource: &Resource,
    mut object: Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Plan {
    if object["metadata"]["deletionTimestamp"].is_null() {
        object["metadata"]["deletionTimestamp"] = now.to_string().into();
        object["status"]["phase"] = "Terminating".into();
        update_finalizers(resource, &mut object, options);
        return Plan::Keep(object);
    }
    let held = |value: &Value| value.as_array().is_some_and(|f| !f.is_empty());
    if held(&object["spec"]["finalizers"]) {
        return Plan::Pending(object);
    }
    if held(&object["metadata"]["finalizers"]) {
        mark_deleting(&mut object, now);
        return Plan::Keep(object);
    }
    Plan::Remove(object)
}

/// Adds or removes the garbage collector's finalizers as the propagation policy says.
fn update_finalizers(resource: &Resource, object: &mut Value, options: &DeleteOptions) {
    if resource.def.plural == "events"
        && matches!(resource.def.group.as_ref(), "" | "events.k8s.io")
    {
        return;
    }
    let mut finalizers: Vec<Value> = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    let (orphan, foreground) = match options.propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        // Without a policy what was asked for before stays.
        None if has(ORPHAN) => (true, false),
        None if has(FOREGROUND) => (false, true),
        None => (orphans_by_default(resource), false),
    };
    if has(ORPHAN) == orphan && has(FOREGROUND) == foreground {
        return;
    }
    finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
    if orphan {
        finalizers.push(ORPHAN.into());
    }
    if foreground {
        finalizers.push(FOREGROUND.into());
    }
    if finalizers.is_empty() {
        super::write::remove_meta(object, "finalizers");
    } else {
        object["metadata"]["finalizers"] = finalizers.into();
    }
}

/// Versions that predate the garbage collector keep their dependents unless told otherwise.
fn orphans_by_default(resource: &Resource) -> bool {
    resource.is("", "replicationcontrollers")
        || (resource.is("batch", "jobs") && resource.def.version == "v1")
}

/// Few know that of jobs (upstream `pkg/registry/batch/job/storage`).
fn warn_of_orphans(ctx: &Ctx, resource: &Resource, options: &DeleteOptions) {
    if options.propagation.is_none() && resource.is("batch", "jobs") && orphans_by_default(resource)
    {
        ctx.warn(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove \
             them or set propagationPolicy=Orphan to suppress this warning",
        );
    }
}

/// Kinds whose delete answers with the last state of the object instead of a `Status` (`ReturnDeletedObject`).
pub fn answers_with_object(resource: &Resource) -> bool {
    const KINDS: [(&str, &str); 12] = [
        ("", "persistentvolumeclaims"),
        ("", "persistentvolumes"),
        ("", "pods"),
        ("", "podtemplates"),
        ("", "resourcequotas"),
        ("", "serviceaccounts"),
        ("", "services"),
        ("storage.k8s.io", "csinodes"),
        ("storage.k8s.io", "csidrivers"),
        ("storage.k8s.io", "storageclasses"),
        ("storage.k8s.io", "volumeattachments"),
        ("storage.k8s.io", "volumeattributesclasses"),
    ];
    resource.def.group == "resource.k8s.io"
        || KINDS
            .iter()
            .any(|(group, plural)| resource.is(group, plural))
}
