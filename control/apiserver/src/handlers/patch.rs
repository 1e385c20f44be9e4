//! patch: JSON patch, merge patch, strategic merge patch, server-side apply.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use skep_api::field::{Bad, FieldError, FieldErrorKind};
use skep_apply::{
    PatchError,
    managed::{self, ApplyError},
};

use super::{
    update::change_object,
    write::{Target, match_namespace, normalized},
};
use crate::{
    codec::{self, go_syntax_error},
    context::Ctx,
    negotiate,
    options::{FieldValidation, WriteKind, WriteOptions},
    registry::Resource,
    status::{Cause, Failure, Result, Status},
};

/// More operations than this in one JSON patch are refused, as upstream does.
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    /// # Errors
    /// 415 for anything that is no patch of this kind of resource.
    pub fn of(ctx: &Ctx, custom: bool) -> Result<Self> {
        match negotiate::media_type(&ctx.headers) {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            "application/strategic-merge-patch+json" => Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )),
            _ => Err(Status::unsupported_media_type_scope()),
        }
    }
}

pub async fn patch(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let patch_type = PatchType::of(ctx, resource.custom)?;
    let out = ctx.output(resource)?;
    let body = ctx.read_body().await?;
    let apply = patch_type == PatchType::Apply;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Patch { apply })?;
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
    let patch = parse(
        &body,
        patch_type,
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let change = |old: Option<&Value>, warnings: &mut Vec<String>| {
        patched(ctx, target, patch_type, &patch, &options, old, warnings)
    };
    let uid = "";
    let create = apply && target.subresource.is_empty();
    let updated = change_object(ctx, target, &options, uid, create, &change).await?;
    let code = if updated.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    ctx.object(resource, code, updated.object, &out)
}

/// Reads a patch's body.
///
/// # Errors
/// 400 in upstream's words for what is no patch of this type.
pub fn parse(
    body: &[u8],
    patch_type: PatchType,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    if patch_type == PatchType::Apply {
        let value = codec::yaml(body)
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
        if let Some(why) = codec::yaml_duplicate(body) {
            let why = format!("error converting YAML to JSON: {why}");
            match validation {
                FieldValidation::Ignore => {}
                // A header is one line.
                FieldValidation::Warn => warnings.push(why.replace('\n', " ")),
                FieldValidation::Strict => {
                    let why = format!("error strict decoding YAML: {why}");
                    return Err(Status::bad_request(why));
                }
            }
        }
        return match value {
            Value::Object(_) => Ok(value),
            Value::Null => Ok(Value::Object(serde_json::Map::new())),
            other => Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into \
                 Go value of type map[string]interface {{}}",
                go_kind(&other)
            ))),
        };
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let why = go_syntax_error(body).unwrap_or_else(|| error.to_string());
        Status::bad_request(format!("error decoding patch: {why}"))
    })?;
    let wrong = |go_type: &str| {
        Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type {go_type}",
            go_kind(&value)
        ))
    };
    match (patch_type, &value) {
        (PatchType::Json, Value::Array(operations)) => {
            if operations.len() > MAX_JSON_PATCH_OPERATIONS {
                return Err(Status::too_large(format!(
                    "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
                    operations.len()
                )));
            }
        }
        (PatchType::Json, _) => return Err(wrong("[]handlers.jsonPatchOp")),
        (_, Value::Object(_)) => {}
        _ => return Err(wrong("map[string]interface {}")),
    }
    let problems = codec::duplicate_fields(body);
    if !problems.is_empty() {
        codec::report(&problems, validation, warnings, invalid_patch)?;
    }
    Ok(value)
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// 422 about the patch, not about the object.
fn invalid_patch(why: String) -> Failure {
    invalid_document(&Value::Null, &why)
}

fn invalid_document(document: &Value, why: &str) -> Failure {
    let error = FieldError::new(
        FieldErrorKind::Invalid,
        "patch",
        Bad::from(document.to_string().as_str()),
        why,
    );
    Status::invalid("", "", "", &[error])
}

fn patched(
    ctx: &Ctx,
    target: Target<'_>,
    patch_type: PatchType,
    patch: &Value,
    options: &WriteOptions,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let resource = target.resource;
    let strategy = &resource.def.strategy;
    let mut new = if patch_type == PatchType::Apply {
        if old.is_none() {
            ctx.authorize_resource("create", target.name)?;
        }
        let mut applied = patch.clone();
        fill_identity(&mut applied, target)?;
        let uid = codec::meta(&applied, "uid");
        let new = apply(ctx, target, options, old, &applied)?;
        if old.is_none() && !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            let def = &resource.def;
            return Err(Status::conflict(&def.group, &def.plural, target.name, &why));
        }
        new
    } else {
        let Some(old) = old else {
            return Err(Status::missing(resource, target.name));
        };
        match patch_type {
            PatchType::Json => skep_apply::json_patch(old, patch).map_err(json_patch_failure)?,
            PatchType::Merge => skep_apply::merge_patch(old, patch),
            PatchType::Strategic | PatchType::Apply => match &resource.def.schema {
                Some(schema) => {
                    skep_apply::strategic_merge(old, patch, schema).map_err(json_patch_failure)?
                }
                None => skep_apply::merge_patch(old, patch),
            },
        }
    };
    if let Some(schema) = &resource.def.schema {
        let shown = new.clone();
        let decoded = skep_schema::conform(new, schema)
            .map_err(|error| invalid_document(&shown, &error.to_string()))?;
        if !decoded.problems.is_empty() {
            codec::report(
                &decoded.problems,
                options.field_validation,
                warnings,
                |text| invalid_document(&shown, &text),
            )?;
        }
        new = decoded.value;
    }
    if !new["metadata"].is_object() {
        new["metadata"] = Value::Object(serde_json::Map::new());
    }
    new["kind"] = resource.def.kind.as_ref().into();
    new["apiVersion"] = resource.api_version.as_str().into();
    match_namespace(&mut new, target.namespace)?;
    strategy.default(&mut new);
    let mut new = normalized(resource, new)?;
    if patch_type != PatchType::Apply {
        target.track(ctx, options, old, &mut new);
    }
    Ok(new)
}

/// An applied configuration says what it is, but may leave out its name and namespace: the URL has them.
fn fill_identity(applied: &mut Value, target: Target<'_>) -> Result<()> {
    let resource = target.resource;
    let kind = applied["kind"].as_str().unwrap_or_default();
    let api_version = applied["apiVersion"].as_str().unwrap_or_default();
    if kind != resource.def.kind || api_version != resource.api_version {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Err(Status::bad_request(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    if !applied["metadata"].is_object() {
        applied["metadata"] = Value::Object(serde_json::Map::new());
    }
    if codec::meta(applied, "name").is_empty() {
        applied["metadata"]["name"] = target.name.into();
    }
    // The namespace is filled in afterwards: upstream's errors of schema show the document as it came.
    Ok(())
}

fn apply(
    ctx: &Ctx,
    target: Target<'_>,
    options: &WriteOptions,
    old: Option<&Value>,
    applied: &Value,
) -> Result<Value> {
    let resource = target.resource;
    let Some(schema) = &resource.def.schema else {
        return Ok(skep_apply::merge_patch(
            old.unwrap_or(&Value::Null),
            applied,
        ));
    };
    let reset = resource.def.strategy.reset_fields(target.of());
    let writer = target.writer(ctx, options);
    let force = options.force.unwrap_or(false);
    managed::apply(old, applied, schema, &writer, reset, force).map_err(apply_failure)
}

pub fn apply_failure(error: ApplyError) -> Failure {
    let text = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let causes = conflicts.iter().map(|conflict| Cause {
                reason: "FieldManagerConflict".into(),
                message: conflict.message(),
                field: conflict.field.clone(),
            });
            Status::plain(409, "Conflict", text).with_causes(causes.collect())
        }
        ApplyError::BadRequest(text) => Status::bad_request(text),
        ApplyError::Schema(text) => Status::unknown(text),
    }
}

pub fn json_patch_failure(error: PatchError) -> Failure {
    match error {
        PatchError::Malformed(text) => Status::bad_request(text),
        PatchError::Unprocessable(_) => Status::unprocessable(),
        PatchError::Invalid(text) => invalid_patch(text),
        PatchError::Internal(text) => Status::unknown(text),
    }
}
