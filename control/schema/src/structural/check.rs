//! Whether a schema is structural and says what it means (apiextensions' validation of a CustomResourceDefinition).

use serde_json::{Map, Value};

use super::{
    Additional, Invalid, InvalidKind, Schema, join, structure::structure,
    validate::validate_default,
};

/// Everything wrong with an `openAPIV3Schema`, with fields below it (`properties[x].type`).
pub struct Checked {
    pub invalid: Vec<Invalid>,
    /// Every place has one type, and defaults fit: rules can be compiled.
    pub structural: bool,
}

/// CEL rules are not looked at.
pub fn check(schema: &Value) -> Checked {
    let mut found = Vec::new();
    let mut structural = false;
    match schema {
        Value::Object(map) => {
            let parsed = Schema::parse(schema, "", 0);
            if flag(map, "nullable") {
                let detail = "nullable cannot be true at the root";
                found.push(Invalid::new(InvalidKind::Forbidden, "nullable", "", detail));
            }
            if parsed.is_ok() {
                let mut own = structure(map);
                if own.is_empty() {
                    all_defaults(map, "", true, &mut own);
                }
                structural = own.is_empty();
                found.append(&mut own);
            }
            markers(map, "", &Place::root(), &mut found);
            if let (Err(error), true) = (parsed, found.is_empty()) {
                let kind = InvalidKind::Forbidden;
                found.push(Invalid::new(kind, error.field, "", error.detail));
            }
        }
        _ => found.push(Invalid::new(InvalidKind::Required, "", "", "")),
    }
    Checked {
        invalid: found,
        structural,
    }
}

pub(super) fn object<'a>(
    map: &'a Map<String, Value>,
    name: &str,
) -> Option<&'a Map<String, Value>> {
    map.get(name).and_then(Value::as_object)
}

pub(super) fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).and_then(Value::as_bool).unwrap_or_default()
}

/// Where a schema stands, as far as it matters for what may be said there.
#[derive(Clone, Copy)]
struct Place {
    root: bool,
    /// `apiVersion`, `kind` or `metadata` of a resource.
    metadata: bool,
    /// Why no default may be set.
    no_default: Option<&'static str>,
}

impl Place {
    fn root() -> Self {
        Self {
            root: true,
            metadata: false,
            no_default: None,
        }
    }

    fn below(self) -> Self {
        Self {
            root: false,
            ..self
        }
    }

    fn property(self, embedded: bool, name: &str) -> Self {
        let mut place = self.below();
        let in_root = match name {
            "metadata" => "in top-level metadata",
            "kind" => "in top-level kind",
            "apiVersion" => "in top-level apiVersion",
            _ => return place,
        };
        if self.root || embedded {
            place.metadata = true;
        }
        if self.root {
            place.no_default = Some(in_root);
        }
        place
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// What OpenAPI version 3 has and definitions may not use.
fn unsupported(map: &Map<String, Value>, path: &str, place: &Place, found: &mut Vec<Invalid>) {
    let mut forbid = |name: &str, detail: &str| {
        let at = join(path, name);
        found.push(Invalid::new(InvalidKind::Forbidden, at, "", detail));
    };
    let ty = text(map, "type");
    let set = |name: &str| {
        map.get(name).is_some_and(|value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        })
    };
    if set("default")
        && let Some(reason) = place.no_default
    {
        forbid("default", &format!("must not be set {reason}"));
    }
    for (name, detail) in [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        if set(name) {
            forbid(name, detail);
        }
    }
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        forbid("type", detail);
    }
    if map.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array");
    }
    if place.metadata && flag(map, "x-kubernetes-embedded-resource") {
        let detail = "must not be used inside of resource meta";
        forbid("x-kubernetes-embedded-resource", detail);
    }
    if !ty.is_empty() && !TYPES.contains(&ty) {
        let types: Vec<String> = TYPES.iter().map(|ty| format!("{ty:?}")).collect();
        let detail = format!("supported values: {}", types.join(", "));
        let at = join(path, "type");
        found.insert(0, Invalid::new(InvalidKind::NotSupported, at, ty, detail));
    }
}

/// What stands in a schema beside its structure: lists, maps, what is not supported
/// (`ValidateCustomResourceDefinitionOpenAPISchema`).
fn markers(map: &Map<String, Value>, path: &str, place: &Place, found: &mut Vec<Invalid>) {
    let mut own = Vec::new();
    unsupported(map, path, place, &mut own);
    found.append(&mut own);
    let properties = object(map, "properties");
    let additional = map
        .get("additionalProperties")
        .filter(|value| !value.is_null());
    if flag(map, "uniqueItems") {
        found.push(Invalid::new(
            InvalidKind::Forbidden,
            join(path, "uniqueItems"),
            "",
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if properties.is_some_and(|properties| !properties.is_empty())
        && additional.is_some_and(|additional| *additional != Value::Bool(true))
    {
        found.push(Invalid::new(
            InvalidKind::Forbidden,
            join(path, "additionalProperties"),
            "",
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if let Some(Value::Object(values)) = additional {
        let mut place = place.below();
        if place.metadata {
            place.no_default = Some("inside additionalProperties applying to object metadata");
        }
        markers(values, &join(path, "additionalProperties"), &place, found);
    }
    let embedded = flag(map, "x-kubernetes-embedded-resource");
    for (name, property) in properties.into_iter().flatten() {
        if let Value::Object(property) = property {
            let at = join(path, &format!("properties[{name}]"));
            markers(property, &at, &place.property(embedded, name), found);
        }
    }
    if let Some(not) = object(map, "not") {
        markers(not, &join(path, "not"), &place.below(), found);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        let list = map.get(name).and_then(Value::as_array);
        for (index, below) in list.into_iter().flatten().enumerate() {
            if let Value::Object(below) = below {
                let at = join(path, &format!("{name}[{index}]"));
                markers(below, &at, &place.below(), found);
            }
        }
    }
    if let Some(items) = object(map, "items") {
        markers(items, &join(path, "items"), &place.below(), found);
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        found.push(Invalid::new(
            InvalidKind::Invalid,
            join(path, "x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }

    let ty = text(map, "type");
    let list_type = map.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys: Vec<&str> = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if let Some(map_type) = map.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if ty != "object" {
            let kind = if ty.is_empty() {
                InvalidKind::Required
            } else {
                InvalidKind::Invalid
            };
            let detail = "must be object if x-kubernetes-map-type is specified";
            found.push(Invalid::new(kind, join(path, "type"), ty, detail));
        }
        if !["atomic", "granular"].contains(&map_type) {
            let detail = "supported values: \"atomic\", \"granular\"";
            let at = join(path, "x-kubernetes-map-type");
            found.push(Invalid::new(
                InvalidKind::NotSupported,
                at,
                map_type,
                detail,
            ));
        }
    }
    if let Some(list_type) = list_type {
        let at = join(path, "x-kubernetes-list-type");
        if ty != "array" {
            if ty.is_empty() {
                let detail = "must be array if x-kubernetes-list-type is specified";
                found.push(Invalid::new(
                    InvalidKind::Required,
                    join(path, "type"),
                    "",
                    detail,
                ));
            } else {
                let detail = "must be array if x-kubernetes-list-type is specified";
                found.push(Invalid::new(
                    InvalidKind::Invalid,
                    join(path, "type"),
                    ty,
                    detail,
                ));
            }
        }
        if !["atomic", "set", "map"].contains(&list_type) {
            let detail = "supported values: \"atomic\", \"set\", \"map\"";
            found.push(Invalid::new(
                InvalidKind::NotSupported,
                at.as_str(),
                list_type,
                detail,
            ));
        }
        if list_type == "map" && keys.is_empty() {
            found.push(Invalid::new(
                InvalidKind::Required,
                join(path, "x-kubernetes-list-map-keys"),
                "",
                "must not be empty if x-kubernetes-list-type is map",
            ));
        } else if list_type != "map" && !keys.is_empty() {
            found.push(Invalid::new(
                InvalidKind::Invalid,
                at,
                list_type,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            ));
        }
        if list_type == "map" {
            list_map_keys(map, &keys, path, found);
        }
    } else if !keys.is_empty() {
        found.push(Invalid::new(
            InvalidKind::Required,
            join(path, "x-kubernetes-list-type"),
            "",
            "must be map if x-kubernetes-list-map-keys is non-empty",
        ));
    }
    set_items(map, list_type, &keys, path, found);
}

/// Items of sets and keyed lists have an identity, which null has not, and which must not be merged.
fn set_items(
    map: &Map<String, Value>,
    list_type: Option<&str>,
    keys: &[&str],
    path: &str,
    found: &mut Vec<Invalid>,
) {
    let (Some(list_type @ ("set" | "map")), Some(items)) = (list_type, object(map, "items")) else {
        return;
    };
    let below = join(path, "items");
    if list_type == "set" && text(map, "type") == "array" {
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let marker = match text(items, "type") {
            "array" => "x-kubernetes-list-type",
            "object" => "x-kubernetes-map-type",
            _ => "",
        };
        let given = items.get(marker).and_then(Value::as_str);
        let atomic = match marker {
            "x-kubernetes-list-type" => given.is_none_or(|given| given == "atomic"),
            "x-kubernetes-map-type" => given == Some("atomic"),
            _ => true,
        };
        if !atomic {
            let bad = items.get("x-kubernetes-list-type").cloned();
            let at = join(&below, marker);
            found.push(Invalid::new(
                InvalidKind::Invalid,
                at,
                bad.unwrap_or_default(),
                detail,
            ));
        }
    }
    if flag(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        let at = join(&below, "nullable");
        found.push(Invalid::new(InvalidKind::Forbidden, at, "", detail));
    }
    if list_type == "map" {
        key_presence(items, keys, &below, found);
    }
}

/// Every item of a keyed list has all its keys.
fn key_presence(items: &Map<String, Value>, keys: &[&str], path: &str, found: &mut Vec<Invalid>) {
    let required: Vec<&str> = items
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for key in keys {
        let property = object(items, "properties").and_then(|properties| object(properties, key));
        let Some(property) = property else {
            continue;
        };
        let below = join(path, &format!("properties[{key}]"));
        if property.get("default").is_none_or(Value::is_null) && !required.contains(key) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                          property";
            let at = join(&below, "default");
            found.push(Invalid::new(InvalidKind::Required, at, "", detail));
        }
        if flag(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            let at = join(&below, "nullable");
            found.push(Invalid::new(InvalidKind::Forbidden, at, "", detail));
        }
    }
}

fn list_map_keys(map: &Map<String, Value>, keys: &[&str], path: &str, found: &mut Vec<Invalid>) {
    let Some(items) = object(map, "items") else {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        let at = join(path, "items");
        found.push(Invalid::new(InvalidKind::Required, at, "", detail));
        return;
    };
    if text(items, "type") != "object" {
        found.push(Invalid::new(
            InvalidKind::Invalid,
            join(path, "items.type"),
            text(items, "type"),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let at = join(path, "x-kubernetes-list-map-keys");
    for (index, key) in keys.iter().enumerate() {
        let property = object(items, "properties").and_then(|properties| object(properties, key));
        let below = join(path, &format!("items.properties[{key}]"));
        match property {
            None => {
                let detail = "entries must all be names of item properties";
                found.push(Invalid::new(
                    InvalidKind::Invalid,
                    at.as_str(),
                    keys.to_vec(),
                    detail,
                ));
            }
            Some(property) => {
                if matches!(text(property, "type"), "array" | "object") {
                    found.push(Invalid::new(
                        InvalidKind::Invalid,
                        join(&below, "type"),
                        text(items, "type"),
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
            }
        }
        if keys[..index].contains(key) {
            let detail = "must not contain duplicate entries";
            found.push(Invalid::new(
                InvalidKind::Invalid,
                at.as_str(),
                keys.to_vec(),
                detail,
            ));
        }
    }
}

/// Every default of a schema must be one of its values. Maps are not followed: defaults may not stand there.
fn all_defaults(map: &Map<String, Value>, path: &str, resource: bool, found: &mut Vec<Invalid>) {
    defaults(map, path, found);
    if let Some(items) = object(map, "items") {
        all_defaults(items, &join(path, "items"), false, found);
    }
    for (name, property) in object(map, "properties").into_iter().flatten() {
        let of_resource = resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if let (Value::Object(property), false) = (property, of_resource) {
            let embedded = flag(property, "x-kubernetes-embedded-resource");
            let at = join(path, &format!("properties[{name}]"));
            all_defaults(property, &at, embedded, found);
        }
    }
}

/// A default must fit its own schema.
fn defaults(map: &Map<String, Value>, path: &str, found: &mut Vec<Invalid>) {
    let Some(default) = map.get("default").filter(|default| !default.is_null()) else {
        return;
    };
    let Ok(schema) = Schema::parse(&Value::Object(map.clone()), "", 0) else {
        return;
    };
    let at = join(path, "default");
    if has_unknown(default, &schema) {
        let detail = "must not have unknown fields";
        found.push(Invalid::new(
            InvalidKind::Invalid,
            at.as_str(),
            default.clone(),
            detail,
        ));
    }
    for invalid in validate_default(default, &schema) {
        let field = match invalid.field.as_str() {
            "" | "<nil>" => at.clone(),
            below if below.starts_with('[') => format!("{at}{below}"),
            below => join(&at, below),
        };
        found.push(Invalid { field, ..invalid });
    }
}

/// Whether pruning would take something away.
fn has_unknown(value: &Value, schema: &Schema) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| {
            let meta = schema.embedded_resource
                && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            match (schema.properties.get(name), &schema.additional) {
                _ if meta => false,
                (Some(schema), _) => has_unknown(value, schema),
                (None, Additional::Schema(schema)) => has_unknown(value, schema),
                (None, Additional::Any) => false,
                (None, Additional::None) => !schema.preserve_unknown,
            }
        }),
        Value::Array(list) => schema
            .items
            .as_ref()
            .is_some_and(|items| list.iter().any(|item| has_unknown(item, items))),
        _ => false,
    }
}
