//! OpenAPI documents from the table and a plain description of what is served.

use serde_json::{Value, json};

/// One served resource, as plain data.
#[derive(Clone, Debug)]
pub struct Row {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    /// `create`, `delete`, `deletecollection`, `get`, `list`, `patch`, `update`, `watch`
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// The complete `openAPIV3Schema` of a custom resource; `None` for built-in kinds.
    pub schema: Option<Value>,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

/// The OpenAPI v3 document of one group-version (`/openapi/v3/apis/apps/v1`). Rows of other group-versions are ignored.
pub fn v3(group: &str, version: &str, rows: &[Row]) -> Value {
    let _ = (group, version, rows);
    json!({"openapi": "3.0.0"})
}

/// The aggregated OpenAPI v2 document.
pub fn v2(rows: &[Row]) -> Value {
    let _ = rows;
    json!({"swagger": "2.0"})
}
