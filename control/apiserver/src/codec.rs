//! Objects between bytes and values: the stored form, request bodies, resource versions.
//!
//! Stored objects begin with `{"kind":…,"apiVersion":…,"metadata":{`, always in this order, so that a list can drop
//! kind and version, and a resource version can be put in, by offset and without parsing.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use skep_schema::{DecodeError, Decoded, Problem, TypeRef, protobuf};

use crate::{
    negotiate::Encoding,
    options::FieldValidation,
    registry::Resource,
    status::{Result, Status},
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
        Encoding::Json => decode_json(body, expected)?,
        Encoding::Yaml => {
            let value: Value = yaml(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): couldn't get version/kind; \
                     yaml parse error: {error} ({})",
                    expected.kind,
                    summary(body)
                ))
            })?;
            if validation == FieldValidation::Strict
                && let Some(why) = yaml_duplicate(body)
            {
                let (kind, version) = (expected.kind, expected.version);
                return Err(Status::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {why}"
                )));
            }
            let json = serde_json::to_vec(&value)
                .map_err(|error| Status::internal("re-encoding a YAML body", &error))?;
            decode_json(&json, expected)?
        }
        Encoding::Protobuf => {
            let value = protobuf::decode(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): {error} ({})",
                    expected.kind,
                    summary(body)
                ))
            })?;
            check_kind(&value, expected)?;
            conform(value, expected)?
        }
    };
    let (kind, version) = (expected.kind, expected.version);
    if !decoded.problems.is_empty() {
        report(&decoded.problems, validation, warnings, |text| {
            Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {text}"
            ))
        })?;
    }
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
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(problems.iter().map(ToString::to_string));
            Ok(())
        }
        FieldValidation::Strict => Err(failure(skep_schema::decode::strict_error(problems))),
    }
}

pub fn yaml(body: &[u8]) -> std::result::Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// A key that stands twice in one mapping, in go-yaml's words.
pub fn yaml_duplicate(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let error = serde_saphyr::from_str::<Value>(text).err()?;
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey {
            key: Some(key),
            location,
        } => Some(format!(
            "yaml: unmarshal errors:\n  line {}: key {key:?} already set in map",
            location.line()
        )),
        _ => None,
    }
}

fn decode_json(body: &[u8], expected: &Expected<'_>) -> Result<Decoded> {
    let unrecognized = |why: &str| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; \
             json parse error: {why} ({})",
            expected.kind,
            summary(body)
        ))
    };
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    match serde_json::from_slice::<Peek>(body) {
        Ok(peek) if first == Some(&b'{') => {
            let value = serde_json::json!({"apiVersion": peek.api_version, "kind": peek.kind});
            check_kind(&value, expected)?;
        }
        _ => {
            if let Some(why) = go_syntax_error(body) {
                return Err(unrecognized(&why));
            }
            let what = match first {
                Some(b'[') => Some("array"),
                Some(b'"') => Some("string"),
                Some(b't' | b'f') => Some("bool"),
                Some(b'-' | b'0'..=b'9') => Some("number"),
                _ => None,
            };
            if let Some(what) = what {
                return Err(unrecognized(&format!(
                    "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string \
                     \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
                )));
            }
        }
    }
    match expected.schema {
        Some(schema) => {
            skep_schema::decode_json(body, schema).map_err(|e| unreadable(&e, expected))
        }
        None => match serde_json::from_slice(body) {
            Ok(value) => Ok(Decoded {
                value,
                problems: Vec::new(),
            }),
            Err(error) => Err(unrecognized(&error.to_string())),
        },
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
fn check_kind(value: &Value, expected: &Expected<'_>) -> Result<()> {
    let kind = value["kind"].as_str().unwrap_or_default();
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    if (kind.is_empty() || kind == expected.kind)
        && (api_version.is_empty() || api_version == expected.api_version())
    {
        return Ok(());
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (group, version) = if api_version.is_empty() {
        (expected.group, expected.version)
    } else {
        (group, version)
    };
    let kind = if kind.is_empty() { expected.kind } else { kind };
    if expected.custom {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version()
        )));
    }
    if skep_schema::builtin(group, version, kind).is_none() {
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for version \
             {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            expected.kind,
            crate::registry::api_version(group, version),
        )));
    }
    if kind == expected.kind && group == expected.group {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            crate::registry::api_version(group, version),
            expected.api_version()
        )));
    }
    let package = |group: &str| match group.split('.').next() {
        None | Some("") => "core".to_owned(),
        Some(first) => first.to_owned(),
    };
    Err(Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {}: converting ({version}.{kind}) to ({}.{}): \
         unknown conversion",
        expected.kind,
        package(expected.group),
        expected.kind,
    )))
}

/// What Go's scanner says about bytes that are not JSON.
pub fn go_syntax_error(body: &[u8]) -> Option<String> {
    let schema = skep_schema::builtin("", "v1", "ConfigMap")?;
    match skep_schema::decode_json(body, &schema) {
        Err(DecodeError::Syntax(text)) => Some(text),
        _ => None,
    }
}

/// Keys that stand twice in one object of a document of any shape; nothing for what is not JSON.
pub fn duplicate_fields(body: &[u8]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let walk = DuplicateKeys {
        path: String::new(),
        found: &mut found,
    };
    match walk.deserialize(&mut deserializer) {
        Ok(()) => found,
        Err(_) => Vec::new(),
    }
}

/// Walks a document without keeping it.
struct DuplicateKeys<'a> {
    path: String,
    found: &'a mut Vec<Problem>,
}

impl<'de> DeserializeSeed<'de> for DuplicateKeys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DuplicateKeys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            if !seen.insert(key) {
                self.found.push(Problem::DuplicateField(path.clone()));
            }
            map.next_value_seed(DuplicateKeys {
                path,
                found: self.found,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        let mut index = 0;
        while let Some(()) = seq.next_element_seed(DuplicateKeys {
            path: format!("{}[{index}]", self.path),
            found: self.found,
        })? {
            index += 1;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
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
    fn duplicate_keys_are_found_at_any_depth() {
        let found = |text: &str| -> Vec<String> {
            duplicate_fields(text.as_bytes())
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(found(r#"{"a":1,"b":{"a":1}}"#), Vec::<String>::new());
        assert_eq!(
            found(r#"{"a":[{"b":1,"b":null}],"c":"","c":true}"#),
            ["duplicate field \"a[0].b\"", "duplicate field \"c\""]
        );
        assert_eq!(found("{"), Vec::<String>::new());
    }

    #[test]
    fn summaries_quote_the_start() {
        assert_eq!(summary(b""), "<empty>");
        assert_eq!(summary(b"[]"), "5b5d");
        assert_eq!(summary(&[b'{'; 40]), format!("{} ...", "{".repeat(30)));
    }
}
