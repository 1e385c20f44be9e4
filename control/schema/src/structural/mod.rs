//! `openAPIV3Schema` of a CustomResourceDefinition → type; defaults, value validation, and checks of the schema itself.
//!
//! The table gets what merging and pruning need; [`Rules`] on its root keeps the schema as a tree for the rest.

mod check;
mod format;
mod structure;
mod validate;

use std::{collections::BTreeMap, sync::Arc, sync::OnceLock};

use regex::Regex;
use serde_json::{Map, Value};

pub use check::check;
pub use validate::{duplicates, embedded, validate, validate_field, validate_values};

use crate::{
    TypeRef,
    table::{
        Field, ListType, META_OBJECT, Object, Shape, Table, Type, TypeIndex, builtin_table,
        definition,
    },
};

/// Deepest nesting of a schema that is read.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct StructuralError {
    /// Path below `openAPIV3Schema`.
    pub field: String,
    pub detail: String,
}

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
    /// `spec.list[0].name`; `<nil>` where upstream names no field.
    pub field: String,
    pub bad_value: Value,
    pub detail: String,
}

impl Invalid {
    pub(crate) fn new(
        kind: InvalidKind,
        field: impl Into<String>,
        bad_value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            field: field.into(),
            bad_value: bad_value.into(),
            detail: detail.into(),
        }
    }
}

/// What a type of a custom resource keeps beyond its shape. On the root: the whole schema.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    root: Option<Arc<Schema>>,
}

/// A schema, parsed once.
#[derive(Debug, Default)]
struct Schema {
    ty: String,
    format: String,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    embedded_resource: bool,
    list_type: String,
    list_map_keys: Vec<String>,
    map_type: String,
    default: Option<Value>,
    properties: BTreeMap<String, Schema>,
    items: Option<Box<Schema>>,
    additional: Additional,
    required: Vec<String>,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    pattern: Option<Pattern>,
    one_of_values: Vec<Value>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

#[derive(Debug, Default)]
enum Additional {
    #[default]
    None,
    /// `additionalProperties: true` or `{}`
    Any,
    Schema(Box<Schema>),
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    value: f64,
    exclusive: bool,
}

/// A regular expression, compiled when first asked.
#[derive(Debug)]
struct Pattern {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// A pattern that does not compile matches nothing; the check of the definition refuses it.
    fn matches(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| compile(&self.text));
        compiled.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    regex::RegexBuilder::new(pattern)
        .size_limit(1 << 20)
        .build()
        .ok()
}

impl Schema {
    fn parse(value: &Value, path: &str, depth: usize) -> Result<Self, StructuralError> {
        let fail = |field: &str, detail: &str| StructuralError {
            field: join(path, field),
            detail: detail.to_owned(),
        };
        if depth > MAX_DEPTH {
            return Err(fail("", "is nested too deep"));
        }
        let Value::Object(map) = value else {
            return Err(fail("", "must be an object"));
        };
        if map.contains_key("$ref") {
            return Err(fail("$ref", "is not supported"));
        }
        let text = |name: &str| {
            map.get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let flag = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or_default();
        let count = |name: &str| map.get(name).and_then(Value::as_u64);
        let below = |name: &str, value: &Value| Self::parse(value, &join(path, name), depth + 1);
        let strings = |name: &str| -> Vec<String> {
            let list = map
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let bound = |name: &str, exclusive: &str| {
            let value = map.get(name).and_then(Value::as_f64)?;
            Some(Bound {
                value,
                exclusive: flag(exclusive),
            })
        };
        let all = |name: &str| -> Result<Vec<Self>, StructuralError> {
            let list = map
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            list.enumerate()
                .map(|(at, schema)| below(&format!("{name}[{at}]"), schema))
                .collect()
        };
        let one = |name: &str| -> Result<Option<Box<Self>>, StructuralError> {
            match map.get(name) {
                None | Some(Value::Null) => Ok(None),
                Some(schema) => Ok(Some(Box::new(below(name, schema)?))),
            }
        };
        let mut properties = BTreeMap::new();
        for (name, schema) in map
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            properties.insert(name.clone(), below(&format!("properties[{name}]"), schema)?);
        }
        let additional = match map.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => Additional::None,
            Some(Value::Bool(true)) => Additional::Any,
            Some(Value::Object(schema)) if schema.is_empty() => Additional::Any,
            Some(schema) => Additional::Schema(Box::new(below("additionalProperties", schema)?)),
        };
        let pattern = map
            .get("pattern")
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty());
        Ok(Self {
            ty: text("type"),
            format: text("format"),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            list_type: text("x-kubernetes-list-type"),
            list_map_keys: strings("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            default: map.get("default").cloned(),
            properties,
            items: one("items")?,
            additional,
            required: strings("required"),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: map.get("multipleOf").and_then(Value::as_f64),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            pattern: pattern.map(|text| Pattern {
                text: text.to_owned(),
                compiled: OnceLock::new(),
            }),
            one_of_values: map
                .get("enum")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            all_of: all("allOf")?,
            any_of: all("anyOf")?,
            one_of: all("oneOf")?,
            not: one("not")?,
        })
    }
}

fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

/// The type of a custom resource from its `openAPIV3Schema`. `apiVersion`, `kind` and `metadata` are added.
///
/// # Errors
/// When it is not a schema at all, or nested too deep. Whether it is a *good* schema is what [`check`] says.
pub fn structural(schema: &Value) -> Result<TypeRef, StructuralError> {
    let root = Arc::new(Schema::parse(schema, "", 0)?);
    let mut builder = Builder {
        table: Table::default(),
        plain: BTreeMap::new(),
        metadata: None,
    };
    // The root first, so that it has index 0.
    builder.table.types.push(Type::default());
    let shape = builder.shape(&root, true);
    builder.table.types[0].shape = shape;
    builder.table.types[0].rules = Some(Box::new(Rules { root: Some(root) }));
    TypeRef::new(Arc::new(builder.table), 0).ok_or_else(|| StructuralError {
        field: String::new(),
        detail: "is empty".to_owned(),
    })
}

struct Builder {
    table: Table,
    /// Scalar types, each once.
    plain: BTreeMap<&'static str, TypeIndex>,
    metadata: Option<TypeIndex>,
}

impl Builder {
    fn push(&mut self, shape: Shape) -> TypeIndex {
        let index = self.table.types.len() as TypeIndex;
        self.table.types.push(Type {
            shape,
            ..Type::default()
        });
        index
    }

    fn scalar(&mut self, name: &'static str, shape: Shape) -> TypeIndex {
        if let Some(index) = self.plain.get(name) {
            return *index;
        }
        let index = self.push(shape);
        self.plain.insert(name, index);
        index
    }

    fn ty(&mut self, schema: &Schema) -> TypeIndex {
        if schema.int_or_string {
            return self.scalar("int-or-string", Shape::IntOrString);
        }
        match schema.ty.as_str() {
            "string" => self.scalar("string", Shape::String),
            "integer" => self.scalar("integer", Shape::Int64),
            "number" => self.scalar("number", Shape::Double),
            "boolean" => self.scalar("boolean", Shape::Bool),
            "array" | "object" => {
                let shape = self.shape(schema, false);
                self.push(shape)
            }
            _ => self.scalar("deduced", Shape::Deduced),
        }
    }

    fn shape(&mut self, schema: &Schema, root: bool) -> Shape {
        if schema.ty == "array" {
            let items = match &schema.items {
                Some(items) => self.ty(items),
                None => self.scalar("deduced", Shape::Deduced),
            };
            let list_type = match schema.list_type.as_str() {
                "set" => ListType::Set,
                "map" => ListType::Map(schema.list_map_keys.clone()),
                _ => ListType::Atomic,
            };
            return Shape::List { items, list_type };
        }
        let atomic = schema.map_type == "atomic";
        let resource = root || schema.embedded_resource;
        if schema.properties.is_empty() && !resource {
            match &schema.additional {
                Additional::Schema(values) => {
                    return Shape::Map {
                        values: self.ty(values),
                        atomic,
                    };
                }
                Additional::Any => {
                    let values = self.scalar("deduced", Shape::Deduced);
                    return Shape::Map { values, atomic };
                }
                Additional::None if schema.preserve_unknown && !atomic => return Shape::Deduced,
                Additional::None => {}
            }
        }
        let mut fields: BTreeMap<String, Field> = BTreeMap::new();
        for (name, property) in &schema.properties {
            let field = Field {
                name: name.clone(),
                ty: self.ty(property),
                required: schema.required.contains(name),
                default: property.default.clone(),
                ..Field::default()
            };
            fields.insert(name.clone(), field);
        }
        if resource {
            let string = self.scalar("string", Shape::String);
            let metadata = self.metadata();
            for (name, ty) in [
                ("apiVersion", string),
                ("kind", string),
                ("metadata", metadata),
            ] {
                let field = Field {
                    name: name.to_owned(),
                    ty,
                    ..Field::default()
                };
                fields.insert(name.to_owned(), field);
            }
        }
        Shape::Object(Object {
            fields: fields.into_values().collect(),
            atomic,
            preserve_unknown: schema.preserve_unknown,
            embedded_resource: schema.embedded_resource,
            ..Object::default()
        })
    }

    /// ObjectMeta and what it consists of, copied from the built-in table.
    fn metadata(&mut self) -> TypeIndex {
        if let Some(index) = self.metadata {
            return index;
        }
        let index = match definition(META_OBJECT) {
            Some(ty) => {
                let mut copied = BTreeMap::new();
                self.import(ty.node().index(), &mut copied)
            }
            None => self.scalar("deduced", Shape::Deduced),
        };
        self.metadata = Some(index);
        index
    }

    fn import(
        &mut self,
        from: TypeIndex,
        copied: &mut BTreeMap<TypeIndex, TypeIndex>,
    ) -> TypeIndex {
        if let Some(index) = copied.get(&from) {
            return *index;
        }
        let source = &builtin_table().types[from as usize];
        let index = self.table.types.len() as TypeIndex;
        copied.insert(from, index);
        self.table.types.push(Type {
            name: source.name.clone(),
            ..Type::default()
        });
        let mut shape = source.shape.clone();
        match &mut shape {
            Shape::Object(object) => {
                for field in &mut object.fields {
                    field.ty = self.import(field.ty, copied);
                }
            }
            Shape::Map { values, .. } => *values = self.import(*values, copied),
            Shape::List { items, .. } => *items = self.import(*items, copied),
            _ => {}
        }
        self.table.types[index as usize].shape = shape;
        index
    }
}

fn root_of(ty: &TypeRef) -> Option<&Schema> {
    ty.node().ty().rules.as_ref()?.root.as_deref()
}

/// Drops nulls where the schema does not allow them and fills in its defaults, in place. Does nothing for built-in
/// types (their strategies default).
pub fn apply_defaults(value: &mut Value, ty: &TypeRef) {
    if let Some(schema) = root_of(ty) {
        default_at(value, schema);
    }
}

fn default_at(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => default_object(map, schema),
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for item in list {
                    if item.is_null()
                        && !items.nullable
                        && let Some(default) = &items.default
                    {
                        *item = default.clone();
                    }
                    default_at(item, items);
                }
            }
        }
        _ => {}
    }
}

fn default_object(map: &mut Map<String, Value>, schema: &Schema) {
    let additional = match &schema.additional {
        Additional::Schema(schema) => Some(schema.as_ref()),
        Additional::None | Additional::Any => None,
    };
    map.retain(|name, value| {
        let below = schema.properties.get(name).or(additional);
        !value.is_null() || below.is_none_or(|below| below.nullable)
    });
    for (name, property) in &schema.properties {
        if let Some(default) = &property.default
            && !map.contains_key(name)
        {
            map.insert(name.clone(), default.clone());
        }
    }
    for (name, value) in map.iter_mut() {
        if let Some(below) = schema.properties.get(name).or(additional) {
            default_at(value, below);
        }
    }
}

#[cfg(test)]
mod tests;
