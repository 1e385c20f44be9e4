//! JSON → CEL by the schema: which values rules see, and in which types (KEP-2876, "Type checking").

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_cel::cel::{
    self,
    objects::{Key, Map},
};
use serde_json::{Value, json};
use skep_cel::{
    Budget, CALL_COST_LIMIT, Environment, Error, Program, Unordered, escape, from_json,
};

use super::super::{list, text};

/// What CEL makes of a value of a schema.
#[derive(Clone, Debug, Default)]
pub enum Shape {
    /// As JSON says (`x-kubernetes-int-or-string`, what is preserved without a schema).
    #[default]
    Dynamic,
    Plain,
    /// Numbers are doubles, whole or not.
    Double,
    Timestamp,
    Duration,
    Bytes,
    List(Box<Shape>, Order),
    /// Keys are data.
    Map(Box<Shape>),
    /// Fields are names, escaped to be identifiers. What the schema does not name cannot be seen.
    Object(BTreeMap<String, (Option<String>, Shape)>),
}

/// What the order of a list's items says (`x-kubernetes-list-type`).
#[derive(Clone, Debug)]
pub enum Order {
    Counts,
    Set,
    /// The fields that tell items apart.
    Map(Arc<Vec<String>>),
}

impl Order {
    fn of(schema: &Value) -> Self {
        match text(schema, "x-kubernetes-list-type") {
            "set" => Self::Set,
            "map" => {
                let keys = list(&schema["x-kubernetes-list-map-keys"]).filter_map(Value::as_str);
                // Rules know fields by their escaped names.
                Self::Map(Arc::new(keys.filter_map(escape).collect()))
            }
            _ => Self::Counts,
        }
    }
}

impl Shape {
    pub fn of(schema: &Value, resource: bool, depth: usize) -> Self {
        if depth > super::MAX_DEPTH {
            return Self::Dynamic;
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return Self::Dynamic;
        }
        let below = |schema: &Value| Self::of(schema, false, depth + 1);
        match text(schema, "type") {
            "number" => Self::Double,
            "integer" | "boolean" => Self::Plain,
            "string" => match text(schema, "format") {
                "date" | "date-time" => Self::Timestamp,
                "duration" => Self::Duration,
                "byte" => Self::Bytes,
                _ => Self::Plain,
            },
            "array" => Self::List(Box::new(below(&schema["items"])), Order::of(schema)),
            "object" => {
                let embedded = schema["x-kubernetes-embedded-resource"] == true;
                match &schema["additionalProperties"] {
                    Value::Object(values) if values.is_empty() => {
                        return Self::Map(Box::new(Self::Dynamic));
                    }
                    values @ Value::Object(_) => return Self::Map(Box::new(below(values))),
                    Value::Bool(true) => return Self::Map(Box::new(Self::Dynamic)),
                    _ => {}
                }
                let mut fields = BTreeMap::new();
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    fields.insert(name.clone(), (escape(name), below(property)));
                }
                if resource || embedded {
                    let metadata = json!({"type": "object", "properties": {
                        "name": {"type": "string"}, "generateName": {"type": "string"},
                    }});
                    let plain = |name: &str| (Some(name.to_owned()), Self::Plain);
                    fields.insert("apiVersion".to_owned(), plain("apiVersion"));
                    fields.insert("kind".to_owned(), plain("kind"));
                    let metadata = (Some("metadata".to_owned()), below(&metadata));
                    fields.insert("metadata".to_owned(), metadata);
                }
                Self::Object(fields)
            }
            _ => Self::Dynamic,
        }
    }

    pub fn value(&self, value: &Value) -> cel::Value {
        match (self, value) {
            (_, Value::Null) => cel::Value::Null,
            (Self::Double, Value::Number(number)) => {
                cel::Value::Float(number.as_f64().unwrap_or(f64::NAN))
            }
            (Self::Timestamp, Value::String(text)) => call(&TIMESTAMP, text),
            (Self::Duration, Value::String(text)) => call(&DURATION, text),
            (Self::Bytes, Value::String(text)) => match STANDARD.decode(text) {
                Ok(bytes) => cel::Value::Bytes(Arc::new(bytes)),
                Err(_) => string(text),
            },
            (Self::List(items, order), Value::Array(list)) => {
                let items = Arc::new(list.iter().map(|item| items.value(item)).collect());
                let keys = match order {
                    Order::Counts => return cel::Value::List(items),
                    Order::Set => None,
                    Order::Map(keys) => Some(keys.clone()),
                };
                cel::Value::Opaque(Arc::new(Unordered { items, keys }))
            }
            (Self::Map(values), Value::Object(map)) => {
                object(map.iter().map(|(k, v)| (k.clone(), values.value(v))))
            }
            (Self::Object(fields), Value::Object(map)) => {
                object(map.iter().filter_map(|(name, value)| {
                    let (escaped, shape) = fields.get(name)?;
                    Some((escaped.clone()?, shape.value(value)))
                }))
            }
            (_, value) => from_json(value),
        }
    }
}

fn object(fields: impl Iterator<Item = (String, cel::Value)>) -> cel::Value {
    let map: HashMap<Key, cel::Value> = fields
        .map(|(name, value)| (Key::String(Arc::new(name)), value))
        .collect();
    cel::Value::Map(Map { map: Arc::new(map) })
}

fn string(text: &str) -> cel::Value {
    cel::Value::String(Arc::new(text.to_owned()))
}

static TIMESTAMP: LazyLock<Option<Program>> =
    LazyLock::new(|| Program::compile("timestamp(text)").ok());
static DURATION: LazyLock<Option<Program>> =
    LazyLock::new(|| Program::compile("duration(text)").ok());

struct Text<'a>(&'a str);

impl Environment for Text<'_> {
    fn variable(&self, name: &str) -> Option<Result<cel::Value, Error>> {
        (name == "text").then(|| Ok(string(self.0)))
    }
}

/// CEL's own reading of a text, so that there is one.
fn call(function: &LazyLock<Option<Program>>, text: &str) -> cel::Value {
    let dated;
    let full = if text.len() == 10 {
        // `format: date`
        dated = format!("{text}T00:00:00Z");
        &dated
    } else {
        text
    };
    let budget = Budget::new(CALL_COST_LIMIT);
    function
        .as_ref()
        .and_then(|program| program.evaluate(&Text(full), &budget).ok())
        .unwrap_or_else(|| string(text))
}
