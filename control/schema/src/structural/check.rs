//! Whether a schema is structural and says what it means (apiextensions' validation of a CustomResourceDefinition).

use serde_json::{Map, Value};

use super::{Invalid, InvalidKind, Schema, compile, join, validate::validate_default};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Everything wrong with an `openAPIV3Schema`, with fields below it (`properties[x].type`). CEL rules are not looked at.
pub fn check(schema: &Value) -> Vec<Invalid> {
    let mut found = Vec::new();
    match schema {
        Value::Object(map) => {
            if let Err(error) = Schema::parse(schema, "", 0) {
                found.push(Invalid::new(
                    InvalidKind::Forbidden,
                    error.field,
                    "",
                    error.detail,
                ));
            } else {
                markers(map, "", &mut found);
                structure(map, Level::Root, "", &mut found);
            }
        }
        _ => found.push(Invalid::new(InvalidKind::Required, "", "", "")),
    }
    found
}

fn object<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Map<String, Value>> {
    map.get(name).and_then(Value::as_object)
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).and_then(Value::as_bool).unwrap_or_default()
}

/// Lists, patterns, defaults: what ValidateCustomResourceDefinitionOpenAPISchema looks at.
fn markers(map: &Map<String, Value>, path: &str, found: &mut Vec<Invalid>) {
    let properties = object(map, "properties");
    let additional = map
        .get("additionalProperties")
        .filter(|value| !value.is_null());
    if properties.is_some_and(|properties| !properties.is_empty())
        && additional.is_some_and(|additional| *additional != Value::Bool(false))
    {
        found.push(Invalid::new(
            InvalidKind::Forbidden,
            join(path, "additionalProperties"),
            "",
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if additional == Some(&Value::Bool(false)) {
        found.push(Invalid::new(
            InvalidKind::Forbidden,
            join(path, "additionalProperties"),
            "",
            "additionalProperties cannot be set to false",
        ));
    }
    if flag(map, "uniqueItems") {
        found.push(Invalid::new(
            InvalidKind::Forbidden,
            join(path, "uniqueItems"),
            "",
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let pattern = text(map, "pattern");
    if !pattern.is_empty() && compile(pattern).is_none() {
        let detail = "must be a valid regular expression".to_owned();
        found.push(Invalid::new(
            InvalidKind::Invalid,
            join(path, "pattern"),
            pattern,
            detail,
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
                at,
                list_type,
                detail,
            ));
        } else if list_type == "map" && keys.is_empty() {
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
    if let Some(map_type) = map.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if ty != "object" {
            let detail = "must be object if x-kubernetes-map-type is specified";
            found.push(Invalid::new(
                InvalidKind::Invalid,
                join(path, "type"),
                ty,
                detail,
            ));
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
    defaults(map, path, found);

    for (name, property) in properties.into_iter().flatten() {
        if let Value::Object(property) = property {
            markers(property, &join(path, &format!("properties[{name}]")), found);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = object(map, name) {
            markers(below, &join(path, name), found);
        }
    }
}

fn list_map_keys(map: &Map<String, Value>, keys: &[&str], path: &str, found: &mut Vec<Invalid>) {
    let Some(items) = object(map, "items") else {
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
    let required: Vec<&str> = items
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (at, key) in keys.iter().enumerate() {
        let field = join(path, &format!("x-kubernetes-list-map-keys[{at}]"));
        let property = object(items, "properties").and_then(|properties| object(properties, key));
        let Some(property) = property else {
            let detail = "entries must all be names of item properties";
            found.push(Invalid::new(InvalidKind::Invalid, field, *key, detail));
            continue;
        };
        let below = join(path, &format!("items.properties[{key}]"));
        if matches!(text(property, "type"), "array" | "object") {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            let at = join(&below, "type");
            found.push(Invalid::new(
                InvalidKind::Invalid,
                at,
                text(property, "type"),
                detail,
            ));
        }
        if property.get("default").is_none_or(Value::is_null) && !required.contains(key) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            found.push(Invalid::new(
                InvalidKind::Required,
                join(&below, "default"),
                "",
                detail,
            ));
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
    for invalid in validate_default(default, &schema) {
        let field = match invalid.field.as_str() {
            "" | "<nil>" => at.clone(),
            below if below.starts_with('[') => format!("{at}{below}"),
            below => join(&at, below),
        };
        found.push(Invalid { field, ..invalid });
    }
}

/// Every place says its type, and the whole is an object.
fn structure(map: &Map<String, Value>, level: Level, path: &str, found: &mut Vec<Invalid>) {
    let ty = text(map, "type");
    if ty == "array" && object(map, "items").is_none() {
        let at = join(path, "items");
        found.push(Invalid::new(
            InvalidKind::Required,
            at,
            "",
            "must be specified",
        ));
    }
    if let Some(items) = object(map, "items") {
        structure(items, Level::Item, &join(path, "items"), found);
    }
    for (name, property) in object(map, "properties").into_iter().flatten() {
        if let Value::Object(property) = property {
            structure(
                property,
                Level::Field,
                &join(path, &format!("properties[{name}]")),
                found,
            );
        }
    }
    if let Some(additional) = object(map, "additionalProperties").filter(|map| !map.is_empty()) {
        structure(
            additional,
            Level::Field,
            &join(path, "additionalProperties"),
            found,
        );
    }
    let at = join(path, "type");
    let embedded = flag(map, "x-kubernetes-embedded-resource");
    let int_or_string = flag(map, "x-kubernetes-int-or-string");
    let preserves = flag(map, "x-kubernetes-preserve-unknown-fields");
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        let kind = if ty.is_empty() {
            InvalidKind::Required
        } else {
            InvalidKind::Invalid
        };
        found.push(Invalid::new(kind, at.as_str(), ty, detail));
    } else if ty.is_empty() && !int_or_string && !preserves {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        found.push(Invalid::new(InvalidKind::Required, at.as_str(), "", detail));
    }
    if !ty.is_empty() && int_or_string {
        let detail = "must be empty if x-kubernetes-int-or-string is true";
        found.push(Invalid::new(InvalidKind::Invalid, at.as_str(), ty, detail));
    }
    if !ty.is_empty() && level == Level::Root && ty != "object" {
        let detail = "must be object at the root";
        found.push(Invalid::new(InvalidKind::Invalid, at.as_str(), ty, detail));
    } else if !ty.is_empty() && !TYPES.contains(&ty) {
        let types: Vec<String> = TYPES.iter().map(|ty| format!("{ty:?}")).collect();
        let detail = format!("supported values: {}", types.join(", "));
        found.push(Invalid::new(InvalidKind::NotSupported, at, ty, detail));
    }
    if embedded && !preserves && object(map, "properties").is_none_or(Map::is_empty) {
        found.push(Invalid::new(
            InvalidKind::Required,
            join(path, "properties"),
            "",
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}
