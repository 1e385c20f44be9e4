//! Custom resources: what a CustomResourceDefinition says, as rows of the table of resources.
//!
//! [`rows`] turns a definition into one [`Row`] a served version; [`strategy`] is what such a row does with an object,
//! `rules` its `x-kubernetes-validations`, `columns` its table, [`names`] which names a definition gets. Pure, as all of
//! this crate: conversion by webhook is the API server's.

mod columns;
pub mod names;
pub(crate) mod path;
pub mod rules;
pub mod strategy;

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;
use skep_schema::{TypeRef, structural};

pub use columns::of_scale as scale_columns;
pub use path::{find, parts, pointer};

use crate::{
    resource::{Name, ResourceDef, Scope, Subresource, UnknownField, Verb},
    selector,
};

/// A served version of a custom resource.
pub struct Row {
    pub def: ResourceDef,
    pub scale: Option<Scale>,
    /// The complete `openAPIV3Schema`.
    pub openapi: Value,
}

/// Where a custom resource keeps what a `Scale` shows, as the definition writes it: `.spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

impl Scale {
    fn read(version: &Value) -> Option<Self> {
        let scale = version.pointer("/subresources/scale")?;
        let text = |name: &str| Some(scale[name].as_str()?.to_owned());
        Some(Self {
            spec_replicas: text("specReplicasPath")?,
            status_replicas: text("statusReplicasPath")?,
            selector: text("labelSelectorPath").filter(|path| !path.is_empty()),
        })
    }
}

/// The text at `name` of a JSON object.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn owned(text: &str) -> Name {
    Cow::Owned(text.to_owned())
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn names_of(value: &Value) -> Vec<Name> {
    list(value).filter_map(Value::as_str).map(owned).collect()
}

/// The verbs of a custom resource, in discovery's order.
const VERBS: [Verb; 8] = [
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Create,
    Verb::Update,
    Verb::Watch,
];

const READ_WRITE: [Verb; 3] = [Verb::Get, Verb::Patch, Verb::Update];

/// The schema of one version of a definition; what preserves everything where there is none.
pub fn schema_of(version: &Value) -> Value {
    match version.pointer("/schema/openAPIV3Schema") {
        Some(schema @ Value::Object(_)) => schema.clone(),
        _ => serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    }
}

/// The type of one version's objects, by which they are pruned and defaulted.
///
/// # Errors
/// What keeps the schema from being read; validation of the definition refuses such schemas.
pub fn type_of(version: &Value) -> Result<TypeRef, structural::StructuralError> {
    structural::structural(&schema_of(version))
}

/// The rows of a definition's served versions, in the order of preference. The names are the accepted ones.
///
/// # Errors
/// As [`type_of`].
pub fn rows(definition: &Value) -> Result<Vec<Row>, structural::StructuralError> {
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let mut versions: Vec<&Value> = list(&spec["versions"])
        .filter(|version| version["served"] == true)
        .collect();
    versions.sort_by(|a, b| names::compare_versions(text(a, "name"), text(b, "name")));
    // One index serves all versions: what any of them selects by.
    let mut selectable: Vec<String> = list(&spec["versions"])
        .flat_map(|version| list(&version["selectableFields"]))
        .map(|field| text(field, "jsonPath").to_owned())
        .collect();
    selectable.sort();
    selectable.dedup();
    let selectable = Arc::new(selectable);
    versions
        .into_iter()
        .map(|version| row(definition, names, version, selectable.clone()))
        .collect()
}

fn row(
    definition: &Value,
    names: &Value,
    version: &Value,
    selectable: Arc<Vec<String>>,
) -> Result<Row, structural::StructuralError> {
    let spec = &definition["spec"];
    let group = text(spec, "group");
    let name = text(version, "name");
    let kind = text(names, "kind");
    let openapi = schema_of(version);
    let schema = structural::structural(&openapi)?;
    let scale = Scale::read(version);
    let status = version.pointer("/subresources/status").is_some();
    let mut subresources = Vec::new();
    if status {
        subresources.push(Subresource {
            name: Cow::Borrowed("status"),
            group: Cow::Borrowed(""),
            version: Cow::Borrowed(""),
            kind: owned(kind),
            verbs: READ_WRITE.to_vec(),
        });
    }
    if scale.is_some() {
        subresources.push(Subresource {
            name: Cow::Borrowed("scale"),
            group: Cow::Borrowed("autoscaling"),
            version: Cow::Borrowed("v1"),
            kind: Cow::Borrowed("Scale"),
            verbs: READ_WRITE.to_vec(),
        });
    }
    let terminating = names::condition(definition, "Terminating") == Some("True");
    // Changes are needed to take finalizers away.
    let verbs = VERBS
        .into_iter()
        .filter(|verb| !terminating || *verb != Verb::Create);
    let scope = if text(spec, "scope") == "Cluster" {
        Scope::Cluster
    } else {
        Scope::Namespaced
    };
    let own_fields = list(&version["selectableFields"])
        .map(|field| owned(text(field, "jsonPath").trim_start_matches('.')));
    let strategy = strategy::Custom::new(
        schema.clone(),
        &openapi,
        scope == Scope::Namespaced,
        status,
        scale.clone(),
    );
    let deprecation =
        (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
            Some(text) => text.to_owned(),
            None => format!("{group}/{name} {kind} is deprecated"),
        });
    Ok(Row {
        def: ResourceDef {
            group: owned(group),
            version: owned(name),
            kind: owned(kind),
            plural: owned(text(names, "plural")),
            singular: owned(text(names, "singular")),
            short_names: names_of(&names["shortNames"]),
            categories: names_of(&names["categories"]),
            scope,
            verbs: verbs.collect(),
            subresources,
            conversion: None,
            selectable_names: own_fields.collect(),
            selectable_fields: Arc::new(move |object| selectable_fields(object, &selectable)),
            unknown_field: UnknownField::NotSupported,
            deprecation: deprecation.map(Cow::Owned),
            field_annotations: &[],
            schema: Some(schema),
            strategy: Arc::new(strategy),
            printer: Arc::new(columns::Columns::new(version)),
        },
        scale,
        openapi,
    })
}

fn selectable_fields(object: &Value, paths: &[String]) -> Vec<(Name, String)> {
    let field = |path: &String| {
        let value = match find(object, path) {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        (owned(path.trim_start_matches('.')), value)
    };
    paths.iter().map(field).collect()
}

/// A label selector in the form of the `Scale` subresource.
///
/// # Errors
/// When it cannot be parsed.
pub fn check_selector(text: &str) -> Result<(), String> {
    selector::LabelSelector::parse(text)
        .map(drop)
        .map_err(|error| error.to_string())
}
