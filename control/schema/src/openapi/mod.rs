//! OpenAPI documents from the table and a plain description of what is served.
//!
//! [`definitions`] turns types into schemas, [`paths`] turns rows into operations, [`gnostic`] documents into protobuf. A
//! document of version 3 covers one group-version and holds the schemas that its paths reach; version 2 is one document for
//! everything.

mod definitions;
mod enums;
mod gnostic;
mod marks;
mod parameters;
mod paths;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use definitions::Definitions;
pub use definitions::Texts;

/// The minor release that documents name.
const VERSION: &str = "v1.36.2";

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
    /// A delete answers with the object, not with a `Status`.
    pub shows_deleted: bool,
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

/// Which of the two forms is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    V2,
    V3,
}

impl Form {
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// The definition id of a custom kind: `com.example.v1.Widget`.
fn custom_name(row: &Row) -> String {
    let reversed: Vec<&str> = row.group.split('.').rev().collect();
    format!("{}.{}.{}", reversed.join("."), row.version, row.kind)
}

/// The OpenAPI v3 document of one group-version (`/openapi/v3/apis/apps/v1`). Rows of other group-versions are ignored.
pub fn v3(texts: &Texts, group: &str, version: &str, rows: &[Row]) -> Value {
    let own: Vec<&Row> = rows
        .iter()
        .filter(|row| row.group == group && row.version == version)
        .collect();
    let mut definitions = Definitions::new(Form::V3, texts);
    let mut paths = Map::new();
    paths::group_version(group, version, &mut definitions, &mut paths);
    for row in own {
        paths::resource(row, &mut definitions, &mut paths);
    }
    v3_document(paths, definitions)
}

/// The paths under `/openapi/v3` of what belongs to no group-version, given the groups: `version`, `apis/apps`, ….
pub fn roots<'a>(groups: impl Iterator<Item = &'a str>) -> Vec<String> {
    let groups = groups.filter(|group| !group.is_empty());
    let mut roots: Vec<String> = groups.map(|group| format!("apis/{group}")).collect();
    roots.extend(paths::ROOTS.map(str::to_owned));
    roots
}

/// The OpenAPI v3 document of one of [`roots`].
pub fn v3_root(texts: &Texts, path: &str) -> Value {
    let mut definitions = Definitions::new(Form::V3, texts);
    let mut paths = Map::new();
    paths::root(path, &mut definitions, &mut paths);
    v3_document(paths, definitions)
}

fn v3_document(paths: Map<String, Value>, definitions: Definitions<'_>) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions.finish(),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey",
                "description": "Bearer Token authentication",
                "name": "authorization",
                "in": "header",
            }},
        },
    })
}

/// The sections of the aggregated OpenAPI v2 document that rows add to.
pub const V2_SECTIONS: [&str; 3] = ["paths", "definitions", "parameters"];

/// What some rows add to the OpenAPI v2 document, by section. The parts of all rows together are the document: what two
/// parts have in common is the same in both.
pub fn v2_part(texts: &Texts, rows: &[Row]) -> Value {
    let mut definitions = Definitions::new(Form::V2, texts);
    let mut paths = Map::new();
    let versions: BTreeSet<(&str, &str)> = rows
        .iter()
        .map(|row| (row.group.as_str(), row.version.as_str()))
        .collect();
    let built_in = rows.iter().filter(|row| row.schema.is_none());
    let groups: BTreeSet<&str> = built_in.map(|row| row.group.as_str()).collect();
    for path in roots(groups.into_iter()) {
        paths::root(&path, &mut definitions, &mut paths);
    }
    for (group, version) in versions {
        paths::group_version(group, version, &mut definitions, &mut paths);
    }
    for row in rows {
        paths::resource(row, &mut definitions, &mut paths);
    }
    let parameters = parameters::share(&mut paths);
    json!({"paths": paths, "definitions": definitions.finish(), "parameters": parameters})
}

/// The OpenAPI v2 document without its [`V2_SECTIONS`].
pub fn v2_head() -> Map<String, Value> {
    let head = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey",
            "description": "Bearer Token authentication",
            "name": "authorization",
            "in": "header",
        }},
        "security": [{"BearerToken": []}],
    });
    match head {
        Value::Object(head) => head,
        _ => Map::new(),
    }
}

/// A document as gnostic's `openapi.v2.Document`.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    gnostic::encode(document, Form::V2)
}

/// A document as gnostic's `openapi.v3.Document`.
pub fn v3_protobuf(document: &Value) -> Vec<u8> {
    gnostic::encode(document, Form::V3)
}

#[cfg(test)]
mod tests;
