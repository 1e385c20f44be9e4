//! Objects between bytes and values: the stored form, request bodies, resource versions.
//!
//! Stored objects begin with `{"kind":…,"apiVersion":…,"metadata":{`, always in this order, so that a list can drop
//! kind and version, and a resource version can be put in, by offset and without parsing.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};
use skep_api::field::{FieldError, FieldErrorKind};
use skep_schema::{DecodeError, Decoded, Problem, TypeRef, protobuf};

use crate::{
    negotiate::Encoding,
    options::FieldValidation,
    registry::Resource,
    status::{Result, Status},
    yaml,
};

const METADATA: &[u8] = b"\"metadata\":{";

/// How a stored object begins.
pub fn head(kind: &str, api_version: &str) -> String {
    format!("{{\"kind\":{kind:?},\"apiVersion\":{api_version:?},")
}

/// The stored form of an object, without a resource version.
pub fn encode_stored(object: &Value) -> Bytes {
    encode(object, false)
}

/// An object as a client reads it: kind, apiVersion, metadata, then the rest.
pub fn encode_object(object: &Value) -> Bytes {
    encode(object, true)
}

fn encode(object: &Value, with_version: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(1024).writer();
    // Writing JSON to memory cannot fail.
    let write = |out: &mut bytes::buf::Writer<BytesMut>, value: &Value| {
        let written = serde_json::to_writer(out, value);
        debug_assert!(written.is_ok());
    };
    let Value::Object(map) = object else {
        write(&mut out, object);
        return out.into_inner().freeze();
    };
    out.get_mut().put_u8(b'{');
    let mut first = true;
    let mut field = |out: &mut bytes::buf::Writer<BytesMut>, key: &str, value: &Value| {
        if !std::mem::take(&mut first) {
            out.get_mut().put_u8(b',');
        }
        write(out, &Value::from(key));
        out.get_mut().put_u8(b':');
        match value {
            Value::Object(metadata) if key == "metadata" && !with_version => {
                out.get_mut().put_u8(b'{');
                let mut first = true;
                for (key, value) in metadata {
                    if key == "resourceVersion" {
                        continue;
                    }
                    if !std::mem::take(&mut first) {
                        out.get_mut().put_u8(b',');
                    }
                    write(out, &Value::from(key.as_str()));
                    out.get_mut().put_u8(b':');
                    write(out, value);
                }
                out.get_mut().put_u8(b'}');
            }
            _ => write(out, value),
        }
    };
    const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];
    for key in FIRST {
        if let Some(value) = map.get(key) {
            field(&mut out, key, value);
        }
    }
    for (key, value) in map {
        if !FIRST.contains(&key.as_str()) {
            field(&mut out, key, value);
        }
    }
    out.get_mut().put_u8(b'}');
    out.into_inner().freeze()
}

/// Puts `metadata.resourceVersion` into a stored object.
pub fn with_revision(stored: &[u8], revision: u64) -> Bytes {
    let at = stored
        .windows(METADATA.len())
        .position(|window| window == METADATA)
        .map(|at| at + METADATA.len());
    let Some(at) = at else {
        return Bytes::copy_from_slice(stored);
    };
    let mut out = BytesMut::with_capacity(stored.len() + 44);
    out.put_slice(&stored[..at]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    out.put_slice(if stored.get(at) == Some(&b'}') {
        b"\""
    } else {
        b"\","
    });
    out.put_slice(&stored[at..]);
    out.freeze()
}

/// What a body must be of.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub schema: Option<&'a TypeRef>,
    /// Custom kinds are read without a Go type: their errors read otherwise.
    pub custom: bool,
}

impl<'a> Expected<'a> {
    pub fn of(resource: &'a Resource) -> Self {
        Self {
            group: &resource.def.group,
            version: &resource.def.version,
            kind: &resource.def.kind,
            schema: resource.def.schema.as_ref(),
            custom: resource.custom,
        }
    }

    fn api_version(&self) -> String {
        crate::registry::api_version(self.group, self.version)
    }
}

/// Reads a request's object. Its kind and apiVersion may be missing; they are filled in.
///
/// # Errors
/// 400 in upstream's words; unknown and duplicate fields are errors, warnings or nothing as `validation` says.
pub fn decode_body(
    body: &[u8],
    encoding: Encoding,
    expected: &Expected<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let decoded = match encoding {
        Encoding::Json => decode_json(body, body, expected)?,
        Encoding::Yaml => {
            let value = yaml::parse(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): {error} ({})",
                    expected.kind,
                    summary(body)
                ))
            })?;
            if validation == FieldValidation::Strict
                && let Some(why) = yaml::duplicate(body)
            {
                let (kind, version) = (expected.kind, expected.version);
                return Err(Status::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {why}"
                )));
            }
            let json = serde_json::to_vec(&value)
                .map_err(|error| Status::internal("re-encoding a YAML body", &error))?;
            decode_json(&json, body, expected)?
        }
        Encoding::Protobuf => {
            let value = protobuf::decode(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): {error} ({})",
                    expected.kind,
                    summary(body)
                ))
            })?;
            check_kind(&value, expected, &|| meta(&value, "name").to_owned())?;
            conform(value, expected)?
        }
    };
    let (kind, version) = (expected.kind, expected.version);
    report(&decoded.problems, validation, warnings, |text| {
        Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {text}"
        ))
    })?;
    let mut value = decoded.value;
    if !value.is_object() {
        value = Value::Object(Map::new());
    }
    value["kind"] = kind.into();
    value["apiVersion"] = expected.api_version().into();
    if !value["metadata"].is_object() {
        value["metadata"] = Value::Object(Map::new());
    }
    Ok(value)
}

/// Turns unknown and duplicate fields into what `fieldValidation` asks for.
///
/// # Errors
/// `failure` of the joined text, when strict.
pub fn report(
    problems: &[Problem],
    validation: FieldValidation,
    warnings: &mut Vec<String>,
    failure: impl FnOnce(String) -> crate::status::Failure,
) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(problems.iter().map(ToString::to_string));
            Ok(())
        }
        FieldValidation::Strict => Err(failure(skep_schema::decode::strict_error(problems))),
    }
}

/// `original` is what the client sent, for errors to quote.
fn decode_json(body: &[u8], original: &[u8], expected: &Expected<'_>) -> Result<Decoded> {
    let unrecognized = |why: &str| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {why} ({})",
            expected.kind,
            summary(original)
        ))
    };
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    match serde_json::from_slice::<Peek>(body) {
        Ok(peek) if first == Some(&b'{') => {
            let value = serde_json::json!({"apiVersion": peek.api_version, "kind": peek.kind});
            let name = || {
                let read = skep_schema::decode_untyped(body).unwrap_or_default();
                meta(&read.value, "name").to_owned()
            };
            check_kind(&value, expected, &name)?;
        }
        // Rare, so that it may be read twice.
        _ => {
            let read = skep_schema::decode_untyped(body).map_err(|error| {
                unrecognized(&format!(
                    "couldn't get version/kind; json parse error: {error}"
                ))
            })?;
            skep_schema::type_meta(&read.value)
                .map_err(|error| unrecognized(&error.to_string()))?;
            check_kind(&read.value, expected, &|| {
                meta(&read.value, "name").to_owned()
            })?;
        }
    }
    match expected.schema {
        Some(schema) => {
            skep_schema::decode_json(body, schema).map_err(|e| unreadable(&e, expected))
        }
        None => skep_schema::decode_untyped(body).map_err(|error| unrecognized(&error.to_string())),
    }
}

fn conform(value: Value, expected: &Expected<'_>) -> Result<Decoded> {
    match expected.schema {
        Some(schema) => {
            skep_schema::conform(value, schema).map_err(|error| unreadable(&error, expected))
        }
        None => Ok(Decoded {
            value,
            problems: Vec::new(),
        }),
    }
}

fn unreadable(error: &DecodeError, expected: &Expected<'_>) -> crate::status::Failure {
    let Expected { kind, version, .. } = expected;
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
    ))
}

#[derive(serde::Deserialize)]
struct Peek {
    #[serde(rename = "apiVersion", default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
}

/// The object's own kind and version must be the expected ones where it names them.
fn check_kind(value: &Value, expected: &Expected<'_>, name: &dyn Fn() -> String) -> Result<()> {
    let kind = value["kind"].as_str().unwrap_or_default();
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    if (kind.is_empty() || kind == expected.kind)
        && (api_version.is_empty() || api_version == expected.api_version())
    {
        return Ok(());
    }
    let (group, version) = version_of(api_version, expected);
    let kind = if kind.is_empty() { expected.kind } else { kind };
    let mismatch = || {
        Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            crate::registry::api_version(group, version),
            expected.api_version()
        ))
    };
    if expected.custom && (group, version) == (expected.group, expected.version) {
        // Read without a Go type, it is the validation that finds it.
        let error = FieldError::new(
            FieldErrorKind::Invalid,
            "kind",
            kind,
            format!("must be {}", expected.kind),
        );
        return Err(Status::invalid(group, kind, &name(), &[error]));
    }
    if expected.custom {
        return Err(mismatch());
    }
    if let Some(why) = other_kind(kind, api_version, expected) {
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: {why}",
            expected.kind
        )));
    }
    Err(mismatch())
}

/// Group and version that an object names, or the expected ones.
fn version_of<'a>(api_version: &'a str, expected: &Expected<'a>) -> (&'a str, &'a str) {
    match api_version {
        "" => (expected.group, expected.version),
        _ => api_version.split_once('/').unwrap_or(("", api_version)),
    }
}

/// What upstream's scheme says to an object that names another kind than the expected one, or one that is not there.
/// Another version of the kind will do.
pub fn other_kind(kind: &str, api_version: &str, expected: &Expected<'_>) -> Option<String> {
    let kind = if kind.is_empty() { expected.kind } else { kind };
    let (group, version) = version_of(api_version, expected);
    if skep_schema::builtin(group, version, kind).is_none() {
        return Some(format!(
            "no kind {kind:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            crate::registry::api_version(group, version),
        ));
    }
    if kind == expected.kind && group == expected.group {
        return None;
    }
    let package = match expected.group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    Some(format!(
        "converting ({version}.{kind}) to ({package}.{}): unknown conversion",
        expected.kind,
    ))
}

/// What Go's scanner says about bytes that are not JSON.
pub fn go_syntax_error(body: &[u8]) -> Option<String> {
    match skep_schema::decode_untyped(body) {
        Err(DecodeError::Syntax(text)) => Some(text),
        _ => None,
    }
}

/// Start of a body, as upstream quotes it in errors.
fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let cut = &body[..body.len().min(MAX)];
    let shown = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(cut).into_owned(),
        Some(_) => cut.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > MAX {
        format!("{shown} ...")
    } else {
        shown
    }
}

/// `metadata.field` as text; empty when missing.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stored_object_begins_with_its_head_and_takes_a_revision() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "\"metadata\":{"},
            "metadata": {"name": "x", "resourceVersion": "7"},
        });
        let stored = encode_stored(&object);
        assert!(stored.starts_with(head("ConfigMap", "v1").as_bytes()));
        assert_eq!(
            with_revision(&stored, 42),
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"42","name":"x"},"data":{"a":"\"metadata\":{"}}"#
        );
        let read: Value = serde_json::from_slice(&encode_object(&object)).expect("JSON");
        assert_eq!(read, object);
    }

    #[test]
    fn summaries_quote_the_start() {
        assert_eq!(summary(b""), "<empty>");
        assert_eq!(summary(b"[]"), "5b5d");
        assert_eq!(summary(&[b'{'; 40]), format!("{} ...", "{".repeat(30)));
    }
}
