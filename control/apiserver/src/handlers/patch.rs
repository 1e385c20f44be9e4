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
use skep_schema::{Problem, TypeRef, go_kind};

use super::{
    update::change_object,
    write::{Target, defaulted, match_namespace},
};
use crate::{
    codec::{self, Expected},
    context::Ctx,
    negotiate,
    options::{FieldValidation, WriteKind, WriteOptions},
    registry::Resource,
    status::{Cause, Failure, Result, Status},
    yaml,
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
    let patch = parse(&body, patch_type, options.field_validation)?;
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

/// A patch's body, read.
pub struct Patch {
    document: Value,
    /// What a strict reader says about it.
    problems: Vec<String>,
}

impl Patch {
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// # Errors
/// 400 in upstream's words for what is no patch of this type.
pub fn parse(body: &[u8], patch_type: PatchType, validation: FieldValidation) -> Result<Patch> {
    if patch_type == PatchType::Apply {
        return parse_configuration(body);
    }
    let malformed = |why: &str| malformed(patch_type, validation, why);
    let read = skep_schema::decode_untyped(body).map_err(|error| malformed(&error.to_string()))?;
    let (document, mut problems) = (read.value, read.problems);
    match (patch_type, &document) {
        (PatchType::Json, Value::Array(operations)) => {
            let unknown =
                check_operations(operations, validation).map_err(|why| malformed(&why))?;
            problems.extend(unknown);
            if operations.len() > MAX_JSON_PATCH_OPERATIONS {
                return Err(Status::too_large(format!(
                    "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
                    operations.len()
                )));
            }
        }
        (PatchType::Merge, Value::Null) => return Err(Status::bad_request(BAD_MERGE_PATCH)),
        // Upstream merges strategic patches and applies operations, of which there are none.
        (PatchType::Json | PatchType::Strategic, Value::Null) => {}
        (PatchType::Merge | PatchType::Strategic, Value::Object(_)) => {}
        (patch_type, other) => {
            let go_type = match (patch_type, validation) {
                (PatchType::Json, FieldValidation::Ignore) => "jsonpatch.Patch",
                (PatchType::Json, _) => "[]handlers.jsonPatchOp",
                _ => "map[string]interface {}",
            };
            let kind = go_kind(other);
            return Err(malformed(&format!(
                "json: cannot unmarshal {kind} into Go value of type {go_type}"
            )));
        }
    }
    let whose = match patch_type {
        PatchType::Json => "json patch ",
        _ => "",
    };
    let problems = problems.iter().map(|problem| format!("{whose}{problem}"));
    Ok(Patch {
        document,
        problems: problems.collect(),
    })
}

fn parse_configuration(body: &[u8]) -> Result<Patch> {
    let document = yaml::parse(body).map_err(|error| {
        let why = format!("error decoding YAML: error converting YAML to JSON: {error}");
        Status::bad_request(why)
    })?;
    let document = match document {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::Object(_) => document,
        other => {
            return Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into \
                 Go value of type map[string]interface {{}}",
                go_kind(&other)
            )));
        }
    };
    let problems = yaml::duplicate(body)
        .map(|why| format!("error converting YAML to JSON: {why}"))
        .into_iter();
    Ok(Patch {
        document,
        problems: problems.collect(),
    })
}

const BAD_MERGE_PATCH: &str = "Invalid JSON Patch";

/// Upstream reads a patch twice: strictly, unless it shall ignore what is odd, and then with the library that applies it.
fn malformed(patch_type: PatchType, validation: FieldValidation, why: &str) -> Failure {
    Status::bad_request(match (patch_type, validation) {
        (PatchType::Merge, FieldValidation::Ignore) => BAD_MERGE_PATCH.to_owned(),
        (PatchType::Json | PatchType::Merge, FieldValidation::Warn | FieldValidation::Strict) => {
            format!("error decoding patch: {why}")
        }
        _ => why.to_owned(),
    })
}

/// Fields that no operation has; or what is wrong, where an operation is of another form.
fn check_operations(
    operations: &[Value],
    validation: FieldValidation,
) -> std::result::Result<Vec<Problem>, String> {
    let mut unknown = Vec::new();
    for (i, operation) in operations.iter().enumerate() {
        let Value::Object(operation) = operation else {
            if operation.is_null() {
                continue;
            }
            let go_type = match validation {
                FieldValidation::Ignore => "jsonpatch.Operation",
                FieldValidation::Warn | FieldValidation::Strict => "handlers.jsonPatchOp",
            };
            let kind = go_kind(operation);
            return Err(format!(
                "json: cannot unmarshal {kind} into Go value of type {go_type}"
            ));
        };
        if validation == FieldValidation::Ignore {
            continue;
        }
        for (name, value) in operation {
            match name.as_str() {
                "value" => {}
                "op" | "path" | "from" if value.is_string() || value.is_null() => {}
                "op" | "path" | "from" => {
                    let kind = go_kind(value);
                    return Err(format!(
                        "json: cannot unmarshal {kind} into Go struct field jsonPatchOp.{name} of type string"
                    ));
                }
                _ => unknown.push(Problem::UnknownField(format!("[{i}].{name}"))),
            }
        }
    }
    Ok(unknown)
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
    patch: &Patch,
    options: &WriteOptions,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let resource = target.resource;
    let mut new = if patch_type == PatchType::Apply {
        if old.is_none() {
            ctx.authorize_resource("create", target.name)?;
        }
        let configuration = &patch.document;
        check_identity(configuration, target)?;
        let uid = codec::meta(configuration, "uid");
        let new = apply(ctx, target, options, old, configuration)?;
        for why in &patch.problems {
            match options.field_validation {
                FieldValidation::Ignore => {}
                // A header is one line.
                FieldValidation::Warn => warnings.push(why.replace('\n', " ")),
                FieldValidation::Strict => {
                    let why = format!("error strict decoding YAML: {why}");
                    return Err(Status::bad_request(why));
                }
            }
        }
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
        patch_document(old, patch, patch_type, &Expected::of(resource))?
    };
    if let Some(schema) = &resource.def.schema {
        let problems = match patch_type {
            PatchType::Apply => &[][..],
            _ => patch.problems(),
        };
        new = conformed(new, schema, problems, options.field_validation, warnings)?;
    }
    if !new["metadata"].is_object() {
        new["metadata"] = Value::Object(serde_json::Map::new());
    }
    new["kind"] = resource.def.kind.as_ref().into();
    new["apiVersion"] = resource.api_version.as_str().into();
    match_namespace(&mut new, target.namespace)?;
    let mut new = defaulted(resource, new)?;
    if patch_type != PatchType::Apply {
        target.track(ctx, options, old, &mut new);
    }
    Ok(new)
}

/// The document with the patch, not yet conformed.
///
/// # Errors
/// In upstream's words where the patch does not fit the document, or makes another kind of it.
pub fn patch_document(
    old: &Value,
    patch: &Patch,
    patch_type: PatchType,
    expected: &Expected<'_>,
) -> Result<Value> {
    let patch = &patch.document;
    let new = match (patch_type, expected.schema) {
        (PatchType::Json, _) => skep_apply::json_patch(old, patch).map_err(json_patch_failure)?,
        // A typed object is made of it, whatever it says that it is.
        (PatchType::Strategic, Some(schema)) => {
            return skep_apply::strategic_merge(old, patch, schema).map_err(json_patch_failure);
        }
        _ => skep_apply::merge_patch(old, patch),
    };
    if !expected.custom {
        let why = match skep_schema::type_meta(&new) {
            Ok((api_version, kind)) => codec::other_kind(kind, api_version, expected),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            return Err(invalid_document(&new, &why));
        }
    }
    Ok(new)
}

/// `problems` are those of the patch; its result may have more.
///
/// # Errors
/// 422 about the patch where its result is not of the type.
pub fn conformed(
    new: Value,
    schema: &TypeRef,
    problems: &[String],
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let shown = new.clone();
    let decoded = skep_schema::conform(new, schema)
        .map_err(|error| invalid_document(&shown, &error.to_string()))?;
    let mut problems = problems.to_vec();
    problems.extend(decoded.problems.iter().map(ToString::to_string));
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warnings.append(&mut problems),
        FieldValidation::Strict if problems.is_empty() => {}
        FieldValidation::Strict => {
            let why = format!("strict decoding error: {}", problems.join(", "));
            return Err(invalid_document(&shown, &why));
        }
    }
    Ok(decoded.value)
}

/// An applied configuration says what it is.
fn check_identity(applied: &Value, target: Target<'_>) -> Result<()> {
    let resource = target.resource;
    let kind = applied["kind"].as_str().unwrap_or_default();
    let api_version = applied["apiVersion"].as_str().unwrap_or_default();
    if kind != resource.def.kind || api_version != resource.api_version {
        let named = match api_version.split('/').collect::<Vec<_>>()[..] {
            [version] => format!("/{version}, Kind={kind}"),
            [group, version] => format!("{group}/{version}, Kind={kind}"),
            _ => "/, Kind=".to_owned(),
        };
        return Err(Status::bad_request(format!("invalid object type: {named}")));
    }
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
