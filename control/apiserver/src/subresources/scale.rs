//! `scale`: the replica count of a workload, in a kind that autoscalers know.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject;
use serde_json::{Value, json};
use skep_api::{
    field::{Bad, FieldError, FieldErrorKind},
    printer::{self, Column, Printer},
    resource::Verb,
    selector::LabelSelector,
};

use crate::{
    codec::{self, Expected, decode_body, meta},
    context::Ctx,
    crd::conversion,
    handlers::{
        patch::{self, PatchType, conformed, patch_document},
        update::change_object,
        write::{Target, match_name, match_namespace},
    },
    negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    respond::Object,
    status::{Result, Status},
};

const GROUP: &str = "autoscaling";

/// Where a kind keeps what a `Scale` shows, as JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    /// A string, a label selector or a map of labels; empty for none.
    pub selector: String,
    /// As the definition of a custom resource writes `spec_replicas`: there it must be present, and its strategy checks it.
    pub spec_path: Option<String>,
    /// The same of `status_replicas`.
    pub status_path: String,
}

impl ScalePaths {
    pub fn custom(scale: &skep_api::custom::Scale) -> Self {
        let pointer = |path: &str| skep_api::custom::pointer(path);
        Self {
            spec_replicas: pointer(&scale.spec_replicas),
            status_replicas: pointer(&scale.status_replicas),
            // A pointer that finds nothing for none.
            selector: scale
                .selector
                .as_deref()
                .map_or_else(|| "/\u{0}".to_owned(), pointer),
            spec_path: Some(scale.spec_replicas.clone()),
            status_path: scale.status_replicas.clone(),
        }
    }

    fn printer(&self) -> Box<dyn Printer> {
        match &self.spec_path {
            Some(path) => Box::new(skep_api::custom::scale_columns(path, &self.status_path)),
            None => Box::new(ScalePrinter::default()),
        }
    }

    /// # Errors
    /// 500 as upstream's for a custom object without replicas.
    fn check(&self, object: &Value) -> Result<()> {
        match &self.spec_path {
            Some(path) if object.pointer(&self.spec_replicas).is_none() => {
                Err(Status::internal_message(&format!(
                    "the spec replicas field {path:?} does not exist"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Default for ScalePaths {
    fn default() -> Self {
        Self {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: "/spec/selector".into(),
            spec_path: None,
            status_path: String::new(),
        }
    }
}

pub async fn handle(ctx: &Ctx, resource: &Arc<Resource>, verb: Verb) -> Result<Response> {
    let out = ctx.plain_or_transformed()?;
    let name = ctx.info.name.as_str();
    let namespace = if resource.namespaced() {
        ctx.info.namespace.as_str()
    } else {
        ""
    };
    let paths = resource.scale_paths();
    if verb == Verb::Get {
        let entry = ctx.api.storage.get(&resource.key(namespace, name)).await?;
        let entry = entry.ok_or_else(|| Status::missing(resource, name))?;
        let object = conversion::read(&ctx.api, resource, &entry.bytes(), entry.revision).await?;
        paths.check(&object)?;
        let scale = scale_of(&object, &paths);
        return ctx.value_as(StatusCode::OK, &scale, &out, paths.printer().as_ref());
    }
    let target = Target {
        resource,
        namespace,
        name,
        subresource: "scale",
    };
    let schema = skep_schema::builtin(GROUP, "v1", "Scale");
    let expected = Expected {
        group: GROUP,
        version: "v1",
        kind: "Scale",
        schema: schema.as_ref(),
        custom: false,
    };
    let updated = if verb == Verb::Update {
        let encoding = negotiate::input(&ctx.headers)?;
        let body = ctx.read_body().await?;
        let options = WriteOptions::parse(&ctx.query, WriteKind::Update)?;
        let mut scale = decode_body(
            &body,
            encoding,
            &expected,
            options.field_validation,
            &mut ctx.warnings.lock(),
        )?;
        match_namespace(&mut scale, namespace)?;
        match_name(&scale, name)?;
        let change = |old: Option<&Value>, _: &mut Vec<String>| {
            let old = old.ok_or_else(|| Status::missing(resource, name))?;
            scaled(ctx, target, &options, old, &scale, &paths)
        };
        let uid = meta(&scale, "uid");
        change_object(ctx, target, &options, uid, false, &change).await?
    } else {
        let patch_type = PatchType::of(ctx, resource.custom)?;
        let body = ctx.read_body().await?;
        let apply = patch_type == PatchType::Apply;
        let options = WriteOptions::parse(&ctx.query, WriteKind::Patch { apply })?;
        let patch = patch::parse(&body, patch_type, options.field_validation)?;
        let change = |old: Option<&Value>, warnings: &mut Vec<String>| {
            let old = old.ok_or_else(|| Status::missing(resource, name))?;
            let scale = patch_document(&scale_of(old, &paths), &patch, patch_type, &expected)?;
            let scale = match expected.schema {
                Some(schema) => {
                    let problems = patch.problems();
                    conformed(scale, schema, problems, options.field_validation, warnings)?
                }
                None => scale,
            };
            match_name(&scale, name)?;
            scaled(ctx, target, &options, old, &scale, &paths)
        };
        change_object(ctx, target, &options, "", false, &change).await?
    };
    let object = match updated.object {
        Object::Value(value) => value,
        Object::Bytes(bytes) => read_object_in_row_version(&bytes)?,
    };
    let scale = scale_of(&object, &paths);
    ctx.value_as(StatusCode::OK, &scale, &out, paths.printer().as_ref())
}

fn read_object_in_row_version(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal("decoding an object just written", &error))
}

/// Columns of `as=Table`.
struct ScalePrinter(Vec<Column>);

impl Default for ScalePrinter {
    fn default() -> Self {
        let desired = "replicas is the desired number of instances for the scaled object.";
        let actual = "replicas is the actual number of observed instances of the scaled object.";
        Self(vec![
            Column::name().format(""),
            Column::new("Desired", desired).typed("integer"),
            Column::new("Available", actual).typed("integer"),
            Column::age(),
        ])
    }
}

impl Printer for ScalePrinter {
    fn columns(&self) -> &[Column] {
        &self.0
    }

    fn cells(&self, scale: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let number = |pointer: &str| {
            let found = scale.pointer(pointer).and_then(Value::as_i64);
            Value::from(found.unwrap_or(0))
        };
        vec![
            printer::name(scale),
            number("/spec/replicas"),
            number("/status/replicas"),
            printer::age(scale, now),
        ]
    }
}

/// The object with the replicas of `scale`.
fn scaled(
    ctx: &Ctx,
    target: Target<'_>,
    options: &WriteOptions,
    old: &Value,
    scale: &Value,
    paths: &ScalePaths,
) -> Result<Value> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 && paths.spec_path.is_none() {
        let error = FieldError::new(
            FieldErrorKind::Invalid,
            "spec.replicas",
            Bad::json(&replicas),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid(GROUP, "Scale", target.name, &[error]));
    }
    let (wanted, found) = (meta(scale, "uid"), meta(old, "uid"));
    if !wanted.is_empty() && wanted != found {
        let def = &target.resource.def;
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        );
        let resource = format!("{}/scale", def.plural);
        return Err(Status::conflict(&def.group, &resource, target.name, &why));
    }
    let mut new = old.clone();
    set_pointer(&mut new, &paths.spec_replicas, replicas.into());
    let version = match codec::meta(scale, "resourceVersion") {
        // A scale may overwrite even where the object itself may not.
        "" => codec::meta(old, "resourceVersion"),
        version => version,
    };
    new["metadata"]["resourceVersion"] = version.into();
    target.track(ctx, options, Some(old), &mut new);
    Ok(new)
}

pub fn set_pointer(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for part in pointer.trim_start_matches('/').split('/') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

/// An object as its `Scale`.
pub fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {},
        "spec": {}, "status": {"replicas": 0},
    });
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = metadata.get(field) {
            scale["metadata"][field] = value.clone();
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    match number(&paths.spec_replicas) {
        0 => {}
        replicas => scale["spec"]["replicas"] = replicas.into(),
    }
    scale["status"]["replicas"] = number(&paths.status_replicas).into();
    let selector = object
        .pointer(&paths.selector)
        .map(selector_text)
        .unwrap_or_default();
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

fn selector_text(selector: &Value) -> String {
    match selector {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.values().all(Value::is_string) => {
            let pairs = map
                .iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
            pairs.collect::<Vec<_>>().join(",")
        }
        other => {
            let selector: Option<SelectorObject> =
                serde_json::from_value(other.clone()).unwrap_or_default();
            LabelSelector::from_object(selector.as_ref())
                .map(|s| s.to_string())
                .unwrap_or_default()
        }
    }
}
