//! JSON bytes → value of a type, in one pass, with the strictness of upstream's decoder.
//!
//! Upstream unmarshals into Go structs and marshals those again, which drops, adds and rewrites things; [`reader`] does
//! the same by the table. Texts follow Go's `encoding/json` as sigs.k8s.io/json has it.

mod form;
mod go_names;
mod quantity;
mod reader;
mod syntax;
mod time;

use std::fmt;

use serde_json::Value;

use crate::TypeRef;

pub use go_names::go_name;
pub use quantity::{QuantityError, canonical_quantity};
pub use reader::go_kind;
pub(crate) use reader::{BASE64, zero};
pub(crate) use time::{format_time, to_unix};
pub use time::{parse_micro_time, parse_time};

/// A value in the form that upstream's typed round trip gives, and what was wrong with the input short of an error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// In upstream's order. `Strict` makes an error of them, `Warn` a warning each, `Ignore` nothing.
    pub problems: Vec<Problem>,
}

/// `Display` is upstream's text, without the `strict decoding error: ` that goes before the first of an error.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Path of a key that stands twice in one object; the last one won.
    DuplicateField(String),
    /// Path of a field that the type does not have.
    UnknownField(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField(path) => write!(f, "unknown field \"{path}\""),
            Self::DuplicateField(path) => write!(f, "duplicate field \"{path}\""),
        }
    }
}

/// `strict decoding error: unknown field "a", duplicate field "b"`, as upstream joins them; empty without problems.
pub fn strict_error(problems: &[Problem]) -> String {
    if problems.is_empty() {
        return String::new();
    }
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    format!("strict decoding error: {}", texts.join(", "))
}

/// `Display` is upstream's text: what goes after `… cannot be handled as a Pod: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON. The text is that of Go's scanner.
    #[error("{0}")]
    Syntax(String),
    /// JSON, but not of the type.
    #[error("{0}")]
    Type(String),
}

/// Deepest nesting that is read: what serde_json reads back by default, less the levels that a list adds around items.
pub const MAX_DEPTH: usize = 120;

/// Parses one JSON document of type `ty`.
///
/// Unknown fields are dropped and reported, duplicate ones reported. Nulls are dropped, quantities, times and bytes
/// normalised; what upstream's structs always show is there (`status: {}`), what they drop when empty is not.
/// For a structural schema, values stay as they are (it is validation that complains about them) and only unknown
/// fields go; `metadata` is typed as everywhere.
///
/// # Errors
/// Upstream's text for what a client gets as 400 BadRequest.
pub fn decode_json(bytes: &[u8], ty: &TypeRef) -> Result<Decoded, DecodeError> {
    reader::read(bytes, ty.node())
}

/// The same for a value that a patch made. Cheap for one that is well typed already.
///
/// # Errors
/// As [`decode_json`].
pub fn conform(mut value: Value, ty: &TypeRef) -> Result<Decoded, DecodeError> {
    if ty.node().ty().rules.is_none() && form::fits(&value, ty.node()) {
        reader::complete(&mut value, None, ty.node());
        let problems = Vec::new();
        return Ok(Decoded { value, problems });
    }
    let bytes = serde_json::to_vec(&value)
        .map_err(|error| DecodeError::Syntax(format!("cannot encode the object: {error}")))?;
    decode_json(&bytes, ty)
}

/// Brings a value that is well typed already into the form that decoding gives, in place: adds what upstream's structs
/// always show (`status: {}`), drops nulls and what they drop when empty. `before` is the value from which our own
/// structs were read, whose nulls tell an empty list from none. Much cheaper than [`conform`], which also checks. Does
/// nothing for custom resources.
pub fn complete(value: &mut Value, before: &Value, ty: &TypeRef) {
    if ty.node().ty().rules.is_none() {
        reader::complete(value, Some(before), ty.node());
    }
}

/// What upstream's store does to an object: protobuf does not tell an empty list or map from none, so what is always
/// shown becomes null. For values in the form that decoding gives.
pub fn forget_empty(value: &mut Value, ty: &TypeRef) {
    if ty.node().ty().rules.is_none() {
        reader::forget_empty(value, ty.node());
    }
}

/// Parses a document that has no type (an unstructured object), as Go reads it into `interface{}`.
///
/// # Errors
/// When it is not JSON, in the words of Go's scanner.
pub fn decode_untyped(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    reader::read_untyped(bytes)
}

/// `apiVersion` and `kind` of a document of any shape; empty where it has none.
///
/// # Errors
/// `couldn't get version/kind; json parse error: …`, as upstream's `SimpleMetaFactory` says.
pub fn type_meta(document: &Value) -> Result<(&str, &str), DecodeError> {
    const TYPE: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                        \"json:\\\"kind,omitempty\\\"\" }";
    let fail = |found: &Value, wanted: &str| {
        let found = reader::go_kind(found);
        DecodeError::Type(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into {wanted}"
        ))
    };
    match document {
        Value::Object(_) | Value::Null => {}
        other => return Err(fail(other, &format!("Go value of type {TYPE}"))),
    }
    let text = |name: &str| match document.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(fail(
            other,
            &format!("Go struct field .{name} of type string"),
        )),
    };
    Ok((text("apiVersion")?, text("kind")?))
}

#[cfg(test)]
mod tests;
