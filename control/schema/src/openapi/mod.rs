//! OpenAPI documents from the table and a plain description of what is served.
//!
//! [`definitions`] turns types into schemas, [`paths`] turns rows into operations. A document of version 3 covers one
//! group-version and holds the schemas that its paths reach; version 2 is one document for everything.

mod definitions;
mod enums;
mod paths;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use definitions::Definitions;

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
pub fn v3(group: &str, version: &str, rows: &[Row]) -> Value {
    let own: Vec<&Row> = rows
        .iter()
        .filter(|row| row.group == group && row.version == version)
        .collect();
    let mut definitions = Definitions::new(Form::V3);
    let mut paths = Map::new();
    paths::group_version(group, version, &mut definitions, &mut paths);
    for row in own {
        paths::resource(row, &mut definitions, &mut paths);
    }
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

/// The aggregated OpenAPI v2 document.
pub fn v2(rows: &[Row]) -> Value {
    let mut definitions = Definitions::new(Form::V2);
    let mut paths = Map::new();
    let versions: BTreeSet<(&str, &str)> = rows
        .iter()
        .map(|row| (row.group.as_str(), row.version.as_str()))
        .collect();
    for (group, version) in versions {
        paths::group_version(group, version, &mut definitions, &mut paths);
    }
    for row in rows {
        paths::resource(row, &mut definitions, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions.finish(),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey",
            "description": "Bearer Token authentication",
            "name": "authorization",
            "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

#[cfg(test)]
mod tests;
