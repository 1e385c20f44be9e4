//! JSON and CEL values.

use std::{collections::HashMap, sync::Arc};

use base64::Engine;
use kube_cel::cel::{
    Value,
    objects::{Key, Map, OptionalValue},
};
use serde_json::Value as Json;

use crate::{object::Object, unordered::Unordered};

/// Fields keep their names: admission expressions see objects without a schema.
pub fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(from_json).collect())),
        Json::Object(fields) => {
            let entry = |(key, value): (&String, &Json)| {
                (Key::String(Arc::new(key.clone())), from_json(value))
            };
            let map: HashMap<Key, Value> = fields.iter().map(entry).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// # Errors
/// Names the type of a value that JSON cannot hold.
pub fn to_json(value: &Value) -> Result<Json, String> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(bool) => Json::Bool(*bool),
        Value::Int(int) => Json::from(*int),
        Value::UInt(uint) => Json::from(*uint),
        // Numbers of an object's integer fields may have become doubles on the way.
        Value::Float(float) => serde_json::Number::from_f64(*float)
            .map(Json::Number)
            .ok_or("double")?,
        Value::String(text) => Json::String(text.to_string()),
        Value::Bytes(bytes) => {
            Json::String(base64::engine::general_purpose::STANDARD.encode(bytes.as_slice()))
        }
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Result<_, _>>()?),
        Value::Map(map) => {
            let mut fields = serde_json::Map::new();
            for (key, value) in map.map.iter() {
                fields.insert(key_text(key), to_json(value)?);
            }
            Json::Object(fields)
        }
        Value::Opaque(opaque) => {
            if let Some(list) = opaque.downcast_ref::<Unordered>() {
                Json::Array(list.items.iter().map(to_json).collect::<Result<_, _>>()?)
            } else if let Some(object) = opaque.downcast_ref::<Object>() {
                let mut fields = serde_json::Map::new();
                for (name, value) in &object.fields {
                    fields.insert(name.clone(), to_json(value)?);
                }
                Json::Object(fields)
            } else if let Some(optional) = opaque.downcast_ref::<OptionalValue>() {
                match optional.value() {
                    Some(value) => to_json(value)?,
                    None => Json::Null,
                }
            } else {
                return Err(opaque.runtime_type_name().to_owned());
            }
        }
        Value::Duration(_) | Value::Timestamp(_) => {
            Json::String(crate::functions::text_of_time(value).unwrap_or_default())
        }
        Value::Function(..) => return Err("function".to_owned()),
    })
}

fn key_text(key: &Key) -> String {
    match key {
        Key::Int(int) => int.to_string(),
        Key::Uint(uint) => uint.to_string(),
        Key::Bool(bool) => bool.to_string(),
        Key::String(text) => text.to_string(),
    }
}
