//! The types of CEL expressions over a schema, with how large their values may get (apiserver `cel/common`).

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use skep_cel::{check::Type, escape};

use super::super::text;

/// Largest request, less the quotes around a string in it.
const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024 - 2;

/// The type of a schema's values, and the fewest bytes that one takes.
pub fn of(schema: &Value, resource: bool, depth: usize) -> (Type, u64) {
    if depth > super::MAX_DEPTH || schema["x-kubernetes-int-or-string"] == true {
        return (Type::Dyn, 1);
    }
    let count = |name: &str| schema[name].as_u64();
    let below = |schema: &Value| of(schema, false, depth + 1);
    match text(schema, "type") {
        "boolean" => (Type::Bool, 4),
        "integer" => (Type::Int, 1),
        "number" => (Type::Double, 1),
        "string" => match text(schema, "format") {
            "date" => (Type::Timestamp, 12),
            "date-time" => (Type::Timestamp, 22),
            "duration" => (Type::Duration, 3),
            "byte" => (
                Type::Bytes(count("maxLength").unwrap_or(MAX_REQUEST_BYTES - 2)),
                2,
            ),
            _ => {
                let enumerated = schema["enum"].as_array().map(|values| {
                    let lengths = values.iter().filter_map(Value::as_str).map(str::len);
                    lengths.max().unwrap_or(0) as u64
                });
                let max = count("maxLength")
                    .map(|runes| runes.saturating_mul(4))
                    .or(enumerated)
                    .unwrap_or(MAX_REQUEST_BYTES - 2);
                (Type::String(max), 2 + count("minLength").unwrap_or(0))
            }
        },
        "array" => {
            let (items, size) = below(&schema["items"]);
            let max = count("maxItems").unwrap_or(MAX_REQUEST_BYTES / (size + 1));
            (Type::List(Arc::new(items), max), 2)
        }
        "object" => {
            let additional = &schema["additionalProperties"];
            if additional.is_object() || *additional == true {
                let (values, size) = if additional.as_object().is_some_and(|o| !o.is_empty()) {
                    below(additional)
                } else {
                    (Type::Dyn, 1)
                };
                let max = count("maxProperties").unwrap_or(MAX_REQUEST_BYTES / (size + 6));
                return (Type::Map(Arc::new(Type::TEXT), Arc::new(values), max), 2);
            }
            let mut fields = BTreeMap::new();
            let mut size = 2;
            let required = schema["required"].as_array();
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let (ty, least) = below(property);
                let needed = required.is_some_and(|all| all.iter().any(|r| r == name));
                if needed && property["default"].is_null() {
                    size += name.len() as u64 + least + 4;
                }
                if let Some(name) = escape(name) {
                    fields.insert(name, ty);
                }
            }
            if resource || schema["x-kubernetes-embedded-resource"] == true {
                let text = Type::String(MAX_REQUEST_BYTES - 2);
                let metadata =
                    ["name", "generateName"].map(|name| (name.to_owned(), Type::String(253 * 4)));
                fields.insert("apiVersion".to_owned(), text.clone());
                fields.insert("kind".to_owned(), text);
                fields.insert(
                    "metadata".to_owned(),
                    Type::Object(Arc::new(metadata.into_iter().collect())),
                );
            }
            (Type::Object(Arc::new(fields)), size)
        }
        _ => (Type::Dyn, 1),
    }
}
