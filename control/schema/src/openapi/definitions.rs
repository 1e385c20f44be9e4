//! Types → schemas. Collects what is referred to, so that a document holds exactly what it needs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    Form, Row, custom_name,
    enums::Enums,
    marks::{Marks, unwrapped},
};
use crate::table::{
    self, Descriptions, Field, ListType, Node, Object, Shape, TypeRef, Zero, definition,
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// What documents say beside the table of types. It is large, and read anew for whoever makes documents.
pub struct Texts {
    descriptions: Descriptions,
    enums: Enums,
    marks: Marks,
}

impl Texts {
    pub fn read() -> Self {
        Self {
            descriptions: table::descriptions(),
            enums: Enums::read(),
            marks: Marks::read(),
        }
    }
}

pub(super) struct Definitions<'t> {
    form: Form,
    texts: &'t Texts,
    wanted: BTreeSet<String>,
    done: BTreeMap<String, Value>,
}

impl<'t> Definitions<'t> {
    pub(super) fn new(form: Form, texts: &'t Texts) -> Self {
        Self {
            form,
            texts,
            wanted: BTreeSet::new(),
            done: BTreeMap::new(),
        }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// A reference to a definition, which is thereby wanted.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.wanted.insert(name.to_owned());
        }
        json!({"$ref": self.form.reference(name)})
    }

    pub(super) fn meta(&mut self, kind: &str) -> Value {
        self.reference(&format!("{META}{kind}"))
    }

    /// A reference to a built-in kind; to nothing in particular if it is not one.
    pub(super) fn kind(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match table::builtin(group, version, kind) {
            Some(ty) => self.reference(ty.name()),
            None => json!({"type": "object"}),
        }
    }

    /// References to a row's kind and its list kind.
    pub(super) fn row(&mut self, row: &Row) -> (Value, Value) {
        let Some(schema) = &row.schema else {
            let list = format!("{}List", row.kind);
            return (
                self.kind(&row.group, &row.version, &row.kind),
                self.kind(&row.group, &row.version, &list),
            );
        };
        let name = custom_name(row);
        let list_name = format!("{name}List");
        if !self.done.contains_key(&name) {
            let item = self.custom(row, schema);
            self.done.insert(name.clone(), item);
            let list = self.custom_list(row, &name);
            self.done.insert(list_name.clone(), list);
        }
        (self.reference(&name), self.reference(&list_name))
    }

    fn type_meta(&self) -> Map<String, Value> {
        let texts = &self.texts.descriptions;
        let texts = texts.get("io.k8s.api.core.v1.ConfigMap");
        let mut properties = Map::new();
        for name in ["apiVersion", "kind"] {
            let text = texts
                .and_then(|(_, fields)| fields.get(name))
                .cloned()
                .unwrap_or_default();
            properties.insert(
                name.to_owned(),
                json!({"type": "string", "description": text}),
            );
        }
        properties
    }

    fn custom(&mut self, row: &Row, schema: &Value) -> Value {
        let mut schema = match self.form {
            Form::V3 => schema.clone(),
            Form::V2 => as_v2(schema),
        };
        if !schema.is_object() {
            schema = json!({"type": "object"});
        }
        let metadata = self.meta("ObjectMeta");
        let metadata = self.described(
            metadata,
            "Standard object's metadata. More info: \
             https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        );
        let mut properties = match schema.get_mut("properties").map(Value::take) {
            Some(Value::Object(properties)) => properties,
            _ => Map::new(),
        };
        properties.extend(self.type_meta());
        properties.insert("metadata".to_owned(), metadata);
        schema["properties"] = Value::Object(properties);
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": row.group, "kind": row.kind, "version": row.version}]);
        schema
    }

    fn custom_list(&mut self, row: &Row, item: &str) -> Value {
        let list = format!("{}List", row.kind);
        let mut properties = self.type_meta();
        let metadata = self.meta("ListMeta");
        let metadata = self.described(metadata, "Standard list metadata.");
        properties.insert("metadata".to_owned(), metadata);
        let item = self.reference(item);
        properties.insert(
            "items".to_owned(),
            json!({"type": "array", "items": item, "description": format!("List of {}.", row.plural)}),
        );
        json!({
            "description": format!("{list} is a list of {}", row.kind),
            "type": "object",
            "required": ["items"],
            "properties": properties,
            "x-kubernetes-group-version-kind": [{"group": row.group, "kind": list, "version": row.version}],
        })
    }

    /// Nothing may stand beside a `$ref` in version 3, so there it is wrapped.
    fn described(&self, mut schema: Value, description: &str) -> Value {
        if description.is_empty() {
            return schema;
        }
        if self.form == Form::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        schema["description"] = Value::from(description);
        schema
    }

    /// Everything wanted, and what that refers to in turn.
    pub(super) fn finish(mut self) -> Value {
        while let Some(name) = self.wanted.pop_first() {
            if self.done.contains_key(&name) {
                continue;
            }
            if let Some(ty) = definition(&name) {
                let schema = self.definition(&ty);
                self.done.insert(name, schema);
            }
        }
        Value::Object(self.done.into_iter().collect())
    }

    fn definition(&mut self, ty: &TypeRef) -> Value {
        let texts: &'t Texts = self.texts;
        let known = texts.descriptions.get(ty.name());
        let description = known.map_or("", |(description, _)| description.as_str());
        let node = ty.node();
        let mut schema = match node.shape() {
            Shape::Object(object) => {
                let mut properties = Map::new();
                for field in &object.fields {
                    let text = known.and_then(|(_, fields)| fields.get(&field.name));
                    let text = text.map_or("", String::as_str);
                    properties.insert(field.name.clone(), self.field(node, field, text));
                }
                object_schema(object, properties)
            }
            _ => self.schema(node),
        };
        if ty.name().ends_with(".RawExtension") || ty.name().ends_with(".FieldsV1") {
            schema = json!({"type": "object"});
        }
        if ty.name().ends_with(".Patch") {
            schema = json!({"type": "object"});
        }
        let shown = match texts.marks.text(ty.name()) {
            Some(text) => text.to_owned(),
            None => unwrapped(description),
        };
        if !shown.is_empty() {
            schema["description"] = Value::from(shown);
        }
        texts.marks.describe(ty.name(), &mut schema);
        let kinds = &node.ty().kinds;
        if !kinds.is_empty() && kinds[0].0 != "meta.k8s.io" {
            schema["x-kubernetes-group-version-kind"] = kinds
                .iter()
                .map(|kind| json!({"group": kind.0, "kind": kind.2, "version": kind.1}))
                .collect();
        }
        schema
    }

    fn field(&mut self, owner: Node<'_>, field: &Field, text: &str) -> Value {
        let node = owner.at(field.ty);
        let mut schema = if node.ty().name.is_empty() {
            self.schema(node)
        } else {
            self.reference(&node.ty().name)
        };
        let lacking = self
            .texts
            .marks
            .text(&format!("{}.{}", owner.ty().name, field.name));
        schema = self.described(schema, lacking.unwrap_or(&unwrapped(text)));
        if let Some(values) = self.texts.enums.of(&owner.ty().name, &field.name) {
            values.describe(&mut schema);
        }
        if self.form == Form::V3 {
            let zero = match (field.zero, node.shape()) {
                (Zero::Keep, Shape::String) => json!(""),
                (Zero::Keep, Shape::Int32 | Shape::Int64 | Shape::Double) => json!(0),
                (Zero::Keep, Shape::Bool) => json!(false),
                _ => Value::Null,
            };
            if let Some(default) = &field.default {
                schema["default"] = default.clone();
            } else if !zero.is_null() {
                schema["default"] = zero;
            }
        }
        if field.patch_merge || field.patch_retain_keys || field.patch_replace {
            let mut strategies = Vec::new();
            if field.patch_merge {
                strategies.push("merge");
            }
            if field.patch_retain_keys {
                strategies.push("retainKeys");
            }
            if field.patch_replace {
                strategies.push("replace");
            }
            schema["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
        }
        if !field.patch_merge_key.is_empty() {
            schema["x-kubernetes-patch-merge-key"] = json!(field.patch_merge_key);
        }
        if let Shape::List { list_type, .. } = node.shape() {
            match list_type {
                ListType::Atomic => {}
                ListType::Set => schema["x-kubernetes-list-type"] = json!("set"),
                ListType::Map(keys) => {
                    schema["x-kubernetes-list-type"] = json!("map");
                    schema["x-kubernetes-list-map-keys"] = json!(keys);
                }
            }
        }
        let own_atomic = matches!(node.shape(), Shape::Map { atomic: true, .. });
        match field.atomic.or(own_atomic.then_some(true)) {
            Some(true) => schema["x-kubernetes-map-type"] = json!("atomic"),
            Some(false) => schema["x-kubernetes-map-type"] = json!("granular"),
            None => {}
        }
        self.texts
            .marks
            .describe_field(&owner.ty().name, &field.name, &mut schema);
        schema
    }

    fn schema(&mut self, node: Node<'_>) -> Value {
        let v3 = self.form == Form::V3;
        match node.shape() {
            Shape::String | Shape::Duration => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
            Shape::Quantity if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Shape::Quantity => json!({"type": "string"}),
            Shape::IntOrString if v3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            Shape::IntOrString => json!({"type": "string", "format": "int-or-string"}),
            Shape::List { items, .. } => {
                let items = self.inner(node.at(*items));
                json!({"type": "array", "items": items})
            }
            Shape::Map { values, .. } => {
                let values = self.inner(node.at(*values));
                json!({"type": "object", "additionalProperties": values})
            }
            Shape::Object(object) => {
                let mut properties = Map::new();
                for field in &object.fields {
                    properties.insert(field.name.clone(), self.field(node, field, ""));
                }
                object_schema(object, properties)
            }
            Shape::Raw | Shape::FieldsV1 => json!({"type": "object"}),
            Shape::Any
            | Shape::Deduced
            | Shape::OrArray(_)
            | Shape::OrBool(_)
            | Shape::OrStringArray(_) => json!({}),
        }
    }

    /// Items of a list or values of a map.
    fn inner(&mut self, node: Node<'_>) -> Value {
        if !node.ty().name.is_empty() {
            return self.reference(&node.ty().name);
        }
        let mut schema = self.schema(node);
        if self.form == Form::V3 {
            match node.shape() {
                Shape::String => schema["default"] = json!(""),
                Shape::Int32 | Shape::Int64 | Shape::Double => schema["default"] = json!(0),
                Shape::Bool => schema["default"] = json!(false),
                _ => {}
            }
        }
        schema
    }
}

fn object_schema(object: &Object, properties: Map<String, Value>) -> Value {
    let mut schema = json!({"type": "object"});
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    let required: Vec<&str> = object
        .fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name.as_str())
        .collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if object.atomic {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    schema
}

/// A custom resource's schema with what version 2 cannot say taken out.
fn as_v2(schema: &Value) -> Value {
    let Value::Object(schema) = schema else {
        return schema.clone();
    };
    let free = schema.get("nullable") == Some(&Value::Bool(true))
        || schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let mut out = Map::new();
    for (name, value) in schema {
        let value = match name.as_str() {
            "oneOf" | "anyOf" | "allOf" | "not" | "nullable" | "default" => continue,
            "type" | "properties" | "items" | "additionalProperties" if free => continue,
            "items" | "additionalProperties" => as_v2(value),
            "properties" => match value {
                Value::Object(properties) => Value::Object(
                    properties
                        .iter()
                        .map(|(name, value)| (name.clone(), as_v2(value)))
                        .collect(),
                ),
                other => other.clone(),
            },
            _ => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    Value::Object(out)
}
