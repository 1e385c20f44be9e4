//! Answers: an object, a list or a `Status` in the form that the client asked for.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json, value::RawValue};
use skep_api::printer::{NameAndAge, Printer};

use crate::{
    cache::{Body as Stored, Entry},
    codec,
    context::Ctx,
    negotiate::{Encoding, Offer, Output, Transform, output},
    options::Query,
    registry::Resource,
    status::{Failure, Result, Status},
    storage::from_stored,
    stream::{self, Compression},
    yaml,
};

/// An object to answer with, in the row's version.
pub enum Object {
    /// As clients read it in JSON.
    Bytes(Bytes),
    Value(Value),
}

impl Object {
    pub fn into_value(self) -> Result<Value> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Bytes(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Status::internal("decoding a stored object", &error)),
        }
    }
}

/// Which table column set and object a `Table` row shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    fn parse(query: &Query) -> Result<Self> {
        match query.get("includeObject") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: \
                 must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

impl Ctx {
    /// Negotiates the form of an answer that is one object or a list of the resource.
    pub fn output(&self, resource: &Resource) -> Result<Output> {
        let offer = if resource.custom {
            Offer::TransformsWithoutProtobuf
        } else {
            Offer::Transforms
        };
        output(&self.headers, offer, self.query.find("pretty"))
    }

    /// For objects that no row describes, which still can be shown as a table.
    pub fn plain_or_transformed(&self) -> Result<Output> {
        output(&self.headers, Offer::Transforms, self.query.find("pretty"))
    }

    pub fn plain_output(&self) -> Result<Output> {
        output(&self.headers, Offer::Plain, self.query.find("pretty"))
    }

    /// One object of the resource.
    pub fn object(
        &self,
        resource: &Resource,
        code: StatusCode,
        object: Object,
        out: &Output,
    ) -> Result<Response> {
        match out.transform {
            Transform::None => {
                if let (Encoding::Json, false, Object::Bytes(bytes)) =
                    (out.encoding, out.pretty, &object)
                {
                    return Ok(respond(code, out.encoding, bytes.clone().into()));
                }
                let schema = resource.def.schema.as_ref();
                encoded(code, &object.into_value()?, schema, out)
            }
            Transform::Table => {
                let value = object.into_value()?;
                let printer = resource.def.printer.as_ref();
                let table = self.table(
                    printer,
                    resource.def.field_annotations,
                    &[&value],
                    codec::meta(&value, "resourceVersion"),
                    out,
                )?;
                encoded(code, &table, None, out)
            }
            Transform::PartialObjectMetadata => {
                let hidden = resource.def.field_annotations;
                let partial = partial(object.into_value()?, hidden, out);
                let schema = skep_schema::builtin("meta.k8s.io", "v1", "PartialObjectMetadata");
                encoded(code, &partial, schema.as_ref(), out)
            }
            Transform::PartialObjectMetadataList => Err(Status::not_acceptable(format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
                go_type(resource, &resource.def.kind)
            ))),
        }
    }

    /// An object that no row of the table describes (`Scale`, reviews, `Status`): only encodings, and a plain table.
    pub fn value(&self, code: StatusCode, value: &Value, out: &Output) -> Result<Response> {
        self.value_as(code, value, out, &NameAndAge::new())
    }

    /// The same, with the rows of a table as the printer makes them.
    pub fn value_as(
        &self,
        code: StatusCode,
        value: &Value,
        out: &Output,
        printer: &dyn Printer,
    ) -> Result<Response> {
        let api_version = value["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = value["kind"].as_str().unwrap_or_default();
        let schema = skep_schema::builtin(group, version, kind);
        match out.transform {
            Transform::Table if kind != "Status" => {
                let table = self.table(
                    printer,
                    &[],
                    &[value],
                    codec::meta(value, "resourceVersion"),
                    out,
                )?;
                encoded(code, &table, None, out)
            }
            Transform::PartialObjectMetadata if kind != "Status" => {
                encoded(code, &partial(value.clone(), &[], out), None, out)
            }
            _ => encoded(code, value, schema.as_ref(), out),
        }
    }

    fn table(
        &self,
        printer: &dyn Printer,
        hidden: &[&str],
        objects: &[&Value],
        resource_version: &str,
        out: &Output,
    ) -> Result<Value> {
        let include = IncludeObject::parse(&self.query)?;
        let rows = objects
            .iter()
            .map(|object| self.row(printer, hidden, object, include, out));
        Ok(json!({
            "kind": "Table", "apiVersion": out.meta_version(),
            "metadata": {"resourceVersion": resource_version},
            "columnDefinitions": columns(printer),
            "rows": rows.collect::<Vec<_>>(),
        }))
    }

    fn row(
        &self,
        printer: &dyn Printer,
        hidden: &[&str],
        object: &Value,
        include: IncludeObject,
        out: &Output,
    ) -> Value {
        let shown = match include {
            IncludeObject::None => Value::Null,
            IncludeObject::Object => object.clone(),
            IncludeObject::Metadata => partial_of(&object["metadata"], hidden, out),
        };
        row(printer, object, shown, self.now)
    }
}

/// A row of a table; `shown` is what it carries of the object.
fn row(printer: &dyn Printer, object: &Value, shown: Value, now: jiff::Timestamp) -> Value {
    let mut row = json!({"cells": printer.cells(object, now), "object": shown});
    if let Some(conditions) = printer.conditions(object) {
        row["conditions"] = conditions;
    }
    row
}

/// How a list's objects are turned into what is sent, one by one.
pub struct Rendering<'a> {
    pub resource: &'a Arc<Resource>,
    pub out: Output,
    include: IncludeObject,
    now: jiff::Timestamp,
}

impl<'a> Rendering<'a> {
    /// # Errors
    /// When the form cannot show this resource.
    pub fn of_list(ctx: &Ctx, resource: &'a Arc<Resource>, out: Output) -> Result<Self> {
        if out.transform == Transform::PartialObjectMetadata {
            return Err(Status::not_acceptable(format!(
                "you requested PartialObjectMetadata, but the requested object is a list ({})",
                go_type(resource, &resource.list_kind)
            )));
        }
        Self::of_watch(&ctx.query, resource, out)
    }

    /// # Errors
    /// When a table is asked for with an unknown `includeObject`.
    pub fn of_watch(query: &Query, resource: &'a Arc<Resource>, out: Output) -> Result<Self> {
        let include = match out.transform {
            Transform::Table => IncludeObject::parse(query)?,
            _ => IncludeObject::Metadata,
        };
        Ok(Self {
            resource,
            out,
            include,
            now: crate::context::now(),
        })
    }

    /// Stored bytes can go out as they are.
    pub fn verbatim(&self) -> bool {
        self.out.transform == Transform::None
            && self.out.encoding == Encoding::Json
            && self.resource.def.conversion.is_none()
    }

    /// The object in the row's version.
    pub fn value(&self, bytes: &[u8]) -> Value {
        // The cache indexed these bytes when it took them in: they are JSON.
        let stored = serde_json::from_slice(bytes).unwrap_or_default();
        from_stored(self.resource, stored)
    }

    /// A watch event's object. `first`: a table's columns come with the first event only.
    pub fn event_object(&self, bytes: &Bytes, first: bool) -> Bytes {
        match self.out.transform {
            Transform::None if self.verbatim() => bytes.clone(),
            Transform::None => codec::encode_object(&self.value(bytes)),
            Transform::Table => {
                let value = self.value(bytes);
                let printer = self.resource.def.printer.as_ref();
                let columns = if first { columns(printer) } else { Value::Null };
                let shown = match self.include {
                    IncludeObject::None => Value::Null,
                    IncludeObject::Object => value.clone(),
                    IncludeObject::Metadata => {
                        let hidden = self.resource.def.field_annotations;
                        partial_of(&value["metadata"], hidden, &self.out)
                    }
                };
                codec::encode_object(&json!({
                    "kind": "Table", "apiVersion": self.out.meta_version(),
                    "metadata": {"resourceVersion": value["metadata"]["resourceVersion"]},
                    "columnDefinitions": columns,
                    "rows": [row(printer, &value, shown, self.now)],
                }))
            }
            Transform::PartialObjectMetadata | Transform::PartialObjectMetadataList => {
                partial_bytes(bytes, self.resource.def.field_annotations, &self.out)
            }
        }
    }
}

/// A list answer without its items.
pub struct ListHead {
    /// Empty for what is not stored.
    pub resource_version: String,
    /// Empty on the last page.
    pub continue_token: String,
    pub remaining: Option<usize>,
}

impl ListHead {
    fn metadata(&self) -> Value {
        let mut metadata = json!({});
        if !self.resource_version.is_empty() {
            metadata["resourceVersion"] = self.resource_version.as_str().into();
        }
        if !self.continue_token.is_empty() {
            metadata["continue"] = self.continue_token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// A list of stored objects.
pub fn list(
    ctx: &Ctx,
    rendering: &Rendering<'_>,
    head: &ListHead,
    entries: Vec<Arc<Entry>>,
) -> Result<Response> {
    let resource = rendering.resource;
    let out = &rendering.out;
    let mut metadata = head.metadata();
    if resource.custom && out.transform == Transform::None && metadata["continue"].is_null() {
        // As upstream's unstructured lists do.
        metadata["continue"] = "".into();
    }
    if rendering.verbatim() && !out.pretty {
        // Objects of built-in kinds stand in a list without their kind and version.
        let skip = if resource.custom {
            0
        } else {
            resource.head.len()
        };
        let items = entries
            .into_iter()
            .map(move |e| (e.body.clone(), skip))
            .collect();
        return Ok(streamed(
            ctx,
            &resource.list_kind,
            &resource.api_version,
            &metadata,
            items,
        ));
    }
    match out.transform {
        Transform::None => {
            let items = entries.iter().map(|e| rendering.value(&e.bytes()));
            let value = list_value(resource, metadata, items.collect());
            encoded(StatusCode::OK, &value, list_schema(resource).as_ref(), out)
        }
        Transform::Table => {
            let printer = resource.def.printer.as_ref();
            let mut values: Vec<Value> = entries
                .iter()
                .map(|e| rendering.value(&e.bytes()))
                .collect();
            if let Some(order) = printer.order() {
                values.sort_by(order);
            }
            let rows = values.iter().map(|value| {
                ctx.row(
                    printer,
                    resource.def.field_annotations,
                    value,
                    rendering.include,
                    out,
                )
            });
            let table = json!({
                "kind": "Table", "apiVersion": out.meta_version(), "metadata": metadata,
                "columnDefinitions": columns(printer), "rows": rows.collect::<Vec<_>>(),
            });
            encoded(StatusCode::OK, &table, None, out)
        }
        Transform::PartialObjectMetadata | Transform::PartialObjectMetadataList => {
            let items: Vec<Bytes> = entries
                .iter()
                .map(|e| partial_bytes(&e.bytes(), resource.def.field_annotations, out))
                .collect();
            if out.encoding == Encoding::Json && !out.pretty {
                let items = items.into_iter().map(|item| (item.into(), 0)).collect();
                let version = out.meta_version();
                return Ok(streamed(
                    ctx,
                    "PartialObjectMetadataList",
                    version,
                    &metadata,
                    items,
                ));
            }
            let values = items
                .iter()
                .map(|item| serde_json::from_slice(item).unwrap_or_default());
            let value = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": out.meta_version(),
                "metadata": metadata, "items": values.collect::<Vec<Value>>(),
            });
            let schema = skep_schema::builtin("meta.k8s.io", "v1", "PartialObjectMetadataList");
            encoded(StatusCode::OK, &value, schema.as_ref(), out)
        }
    }
}

fn list_schema(resource: &Resource) -> Option<skep_schema::TypeRef> {
    skep_schema::builtin(
        &resource.def.group,
        &resource.def.version,
        &resource.list_kind,
    )
}

/// A list object of decoded items.
pub fn list_value(resource: &Resource, metadata: Value, mut items: Vec<Value>) -> Value {
    if !resource.custom {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    json!({
        "kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": metadata,
        "items": items,
    })
}

fn streamed(
    ctx: &Ctx,
    kind: &str,
    api_version: &str,
    metadata: &Value,
    items: Vec<(Stored, usize)>,
) -> Response {
    let head = format!(
        "{}\"metadata\":{metadata},\"items\":[",
        codec::head(kind, api_version)
    );
    let compression = Compression::wanted(&ctx.headers);
    let (body, encoding) = stream::joined(head.into(), items, compression);
    let mut response = respond(StatusCode::OK, Encoding::Json, body);
    if let Some(encoding) = encoding {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

fn columns(printer: &dyn Printer) -> Value {
    let columns = printer.columns().iter().map(|c| {
        json!({
            "name": c.name, "type": c.type_, "format": c.format,
            "description": c.description, "priority": c.priority,
        })
    });
    Value::Array(columns.collect())
}

fn partial(mut value: Value, hidden: &[&str], out: &Output) -> Value {
    let mut metadata = value["metadata"].take();
    hide_annotations(&mut metadata, hidden);
    json!({"kind": "PartialObjectMetadata", "apiVersion": out.meta_version(), "metadata": metadata})
}

fn partial_of(metadata: &Value, hidden: &[&str], out: &Output) -> Value {
    let mut metadata = metadata.clone();
    hide_annotations(&mut metadata, hidden);
    json!({"kind": "PartialObjectMetadata", "apiVersion": out.meta_version(), "metadata": metadata})
}

fn hide_annotations(metadata: &mut Value, hidden: &[&str]) {
    let annotations = metadata.get_mut("annotations");
    let Some(annotations) = annotations.and_then(Value::as_object_mut) else {
        return;
    };
    for name in hidden {
        annotations.remove(*name);
    }
    if annotations.is_empty()
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.remove("annotations");
    }
}

/// Cuts the metadata out of an object without decoding the rest.
fn partial_bytes(bytes: &[u8], hidden: &[&str], out: &Output) -> Bytes {
    if !hidden.is_empty() {
        let object = serde_json::from_slice(bytes).unwrap_or_default();
        return codec::encode_object(&partial(object, hidden, out));
    }
    #[derive(serde::Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let metadata = serde_json::from_slice::<Parts<'_>>(bytes).map_or("{}", |p| p.metadata.get());
    let head = codec::head("PartialObjectMetadata", out.meta_version());
    let mut text = BytesMut::with_capacity(head.len() + metadata.len() + 14);
    for part in [&head, "\"metadata\":", metadata, "}"] {
        text.extend_from_slice(part.as_bytes());
    }
    text.freeze()
}

/// Upstream's internal type name, which some errors show.
fn go_type(resource: &Resource, kind: &str) -> String {
    if resource.custom {
        let list = if kind.ends_with("List") { "List" } else { "" };
        return format!("*unstructured.Unstructured{list}");
    }
    let package = match resource.def.group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    format!("*{package}.{kind}")
}

fn encoded(
    code: StatusCode,
    value: &Value,
    schema: Option<&skep_schema::TypeRef>,
    out: &Output,
) -> Result<Response> {
    let (encoding, bytes) = match out.encoding {
        Encoding::Json if out.pretty => {
            let text = serde_json::to_vec_pretty(value)
                .map_err(|error| Status::internal("encoding an answer", &error))?;
            (Encoding::Json, Bytes::from(text))
        }
        Encoding::Json => (Encoding::Json, codec::encode_object(value)),
        Encoding::Yaml => (Encoding::Yaml, Bytes::from(yaml::to_string(value))),
        Encoding::Protobuf => {
            let bytes = schema.map(|schema| skep_schema::protobuf::encode(value, schema));
            match bytes {
                Some(Ok(bytes)) => (Encoding::Protobuf, Bytes::from(bytes)),
                // Every client that speaks protobuf reads JSON, and is told by the content type.
                _ => (Encoding::Json, codec::encode_object(value)),
            }
        }
    };
    Ok(respond(code, encoding, bytes.into()))
}

fn respond(code: StatusCode, encoding: Encoding, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static(encoding.content_type());
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// JSON, whatever the client accepts: for endpoints that have one form only.
pub fn json_response(code: StatusCode, value: &Value) -> Response {
    respond(code, Encoding::Json, codec::encode_object(value).into())
}

pub fn text(code: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// The `Status` that a response tells, for the audit log.
#[derive(Clone)]
pub struct Told(pub Value);

/// The answer to a request that failed, in an encoding that the client accepts if possible.
pub fn failure(ctx: &Ctx, status: &Failure) -> Response {
    let out = ctx.plain_output().unwrap_or_default();
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let schema = skep_schema::builtin("", "v1", "Status");
    let response = encoded(code, &status.to_value(), schema.as_ref(), &out);
    let mut response = response.unwrap_or_else(|_| json_response(code, &status.to_value()));
    if ctx.audit.is_some() {
        response.extensions_mut().insert(Told(status.to_value()));
    }
    if let Some(seconds) = status
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0)
        && let Ok(value) = HeaderValue::from_str(&seconds.to_string())
    {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// Upper bound of all `Warning` headers of one answer; further ones are dropped, as upstream does.
const WARNINGS_MAX_BYTES: usize = 4 * 1024;

/// Adds a `Warning: 299` header a text, each text once.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    let mut seen: Vec<&str> = Vec::new();
    let mut size = 0;
    for text in warnings {
        if seen.contains(&text.as_str()) {
            continue;
        }
        seen.push(text);
        size += text.len();
        if size > WARNINGS_MAX_BYTES {
            return;
        }
        let mut quoted = String::with_capacity(text.len() + 8);
        quoted.push_str("299 - \"");
        for c in text.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
