//! create.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use super::write::{
    Target, as_stored, dedup_owner_references, defaulted, drop_server_metadata,
    fill_system_metadata, generate_name, match_namespace, resource_version, ttl,
};
use crate::{
    admission::Operation,
    codec::{Expected, decode_body, meta},
    context::Ctx,
    crd::conversion,
    hooks, negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    respond::Object,
    status::{Result, Status},
    storage::Written,
};

/// How often a generated name, address or port is tried when others were faster.
const ATTEMPTS: usize = 8;

pub async fn create(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Create)?;
    let object = decode_body(
        &body,
        encoding,
        &Expected::of(resource),
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let object = create_object(ctx, resource, &ctx.info.namespace, object, &options, true).await?;
    ctx.object(resource, StatusCode::CREATED, object, &out)
}

/// Creates one object. `track`: record its managed fields (an apply has done so already).
pub async fn create_object(
    ctx: &Ctx,
    resource: &Arc<Resource>,
    namespace: &str,
    mut object: Value,
    options: &WriteOptions,
    track: bool,
) -> Result<Object> {
    match_namespace(&mut object, namespace)?;
    drop_server_metadata(&mut object);
    let mut object = defaulted(resource, object)?;
    let name = meta(&object, "name").to_owned();
    let target = Target {
        resource,
        namespace,
        name: &name,
        subresource: "",
    };
    if track {
        target.track(ctx, options, None, &mut object);
    }
    let api = &ctx.api;
    let chain = api.admission.load_full();
    let mut attributes = target.attributes(ctx, Operation::Create, options, object, &Value::Null);
    let admitted = chain.mutate(api, &mut attributes).await;
    attributes.tell(ctx);
    admitted?;
    let mut template = attributes.object;
    dedup_owner_references(&mut template, &mut ctx.warnings.lock());
    let generate = meta(&template, "generateName").to_owned();
    let generated = meta(&template, "name").is_empty() && !generate.is_empty();
    let again = generated || hooks::allocates(resource);
    let mut attempts = if again { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let mut object = if attempts > 0 {
            template.clone()
        } else {
            std::mem::take(&mut template)
        };
        let created = attempt(ctx, target, &mut object, &generate, options).await;
        match created {
            Err(status) if generated && status.code == 409 && status.reason == "AlreadyExists" => {
                if attempts > 0 {
                    continue;
                }
                let mut status = status;
                status
                    .message
                    .push_str(", the server was not able to generate a unique name for the object");
                return Err(status.with_retry_after(1));
            }
            Ok(Some(object)) => return Ok(object),
            // What was allocated for the object was taken meanwhile.
            Ok(None) if attempts > 0 => {}
            Ok(None) => return Err(Status::server_timeout(resource, "create")),
            Err(status) => return Err(status),
        }
    }
}

/// `None`: what was allocated for the object was taken meanwhile.
async fn attempt(
    ctx: &Ctx,
    target: Target<'_>,
    object: &mut Value,
    generate: &str,
    options: &WriteOptions,
) -> Result<Option<Object>> {
    let Target {
        resource,
        namespace,
        ..
    } = target;
    let api = &ctx.api;
    fill_system_metadata(object, ctx.now);
    if meta(object, "name").is_empty() && !generate.is_empty() {
        object["metadata"]["name"] = generate_name(generate).into();
    }
    let extra = hooks::before_create(ctx, resource, object).await?;
    match resource.def.strategy.create(object) {
        Ok(warnings) => ctx.warnings.lock().extend(warnings),
        Err(errors) => {
            return Err(Status::invalid(
                &resource.stored_group,
                &resource.def.kind,
                meta(object, "name"),
                &errors,
            ));
        }
    }
    let name = meta(object, "name").to_owned();
    hooks::stamp_conditions(ctx, target, object, None);
    let target = Target {
        name: &name,
        ..target
    };
    hooks::check_references(ctx, target, object, None).await?;
    let chain = api.admission.load_full();
    let mut attributes = target.attributes(
        ctx,
        Operation::Create,
        options,
        std::mem::take(object),
        &Value::Null,
    );
    let admitted = chain.validate(api, &mut attributes).await;
    attributes.tell(ctx);
    admitted?;
    let object = as_stored(resource, attributes.object)?;
    if resource_version(&object)? != 0 {
        return Err(Status::unknown(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let key = resource.key(namespace, &name);
    let stored = conversion::store(api, resource, &object).await?;
    if options.dry_run {
        if let Some(existing) = api.storage.get(&key).await? {
            return Err(taken(resource, &name, &existing.bytes()));
        }
        return Ok(Some(Object::Value(object)));
    }
    match api
        .storage
        .create(&key, stored.clone(), ttl(resource), extra)
        .await?
    {
        Written::At(revision) => conversion::answer(api, resource, object, &stored, revision)
            .await
            .map(Some),
        Written::Conflict(existing) => {
            let bytes = existing.map(|e| e.bytes).unwrap_or_default();
            Err(taken(resource, &name, &bytes))
        }
        Written::ExtraConflict => Ok(None),
    }
}

fn taken(resource: &Resource, name: &str, existing: &[u8]) -> crate::status::Failure {
    let mut status = Status::already_exists(resource, name);
    let existing: Value = serde_json::from_slice(existing).unwrap_or_default();
    if !existing["metadata"]["deletionTimestamp"].is_null() {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
