//! The types of CEL expressions over a schema, with how large their values may get (apiserver `cel/common`).

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::super::text;
use super::value::escape;

/// Largest request, less the quotes around a string in it.
const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024 - 2;

#[derive(Clone, Debug)]
pub enum Ty {
    /// Checked at run time only.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    /// Most bytes.
    String(u64),
    Bytes(u64),
    Timestamp,
    Duration,
    /// Items, and most of them.
    List(Arc<Ty>, u64),
    /// Values by string keys, and most of them.
    Map(Arc<Ty>, u64),
    Object(Arc<BTreeMap<String, Ty>>),
    Optional(Arc<Ty>),
    /// Of a library: `kubernetes.URL`, …
    Named(&'static str),
}

impl Ty {
    /// As messages show it.
    pub fn shown(&self) -> String {
        match self {
            Self::Dyn => "dyn".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Uint => "uint".to_owned(),
            Self::Double => "double".to_owned(),
            Self::String(_) => "string".to_owned(),
            Self::Bytes(_) => "bytes".to_owned(),
            Self::Timestamp => "timestamp".to_owned(),
            Self::Duration => "duration".to_owned(),
            Self::List(items, _) => format!("list({})", items.shown()),
            Self::Map(values, _) => format!("map(string, {})", values.shown()),
            Self::Object(_) => "object".to_owned(),
            Self::Optional(of) => format!("optional_type({})", of.shown()),
            Self::Named(name) => (*name).to_owned(),
        }
    }

    /// How many elements or bytes a value may have; 1 for what has none.
    pub fn size(&self) -> u64 {
        match self {
            Self::String(max) | Self::Bytes(max) | Self::List(_, max) | Self::Map(_, max) => *max,
            Self::Dyn => MAX_REQUEST_BYTES,
            _ => 1,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Dyn | Self::Optional(_) => 0,
            Self::Null => 1,
            Self::Bool => 2,
            Self::Int => 3,
            Self::Uint => 4,
            Self::Double => 5,
            Self::String(_) => 6,
            Self::Bytes(_) => 7,
            Self::Timestamp => 8,
            Self::Duration => 9,
            Self::List(..) => 10,
            Self::Map(..) => 11,
            Self::Object(_) => 12,
            Self::Named(_) => 13,
        }
    }

    /// Whether values of both may be compared for equality.
    pub fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn | Self::Optional(_), _) | (_, Self::Dyn | Self::Optional(_)) => true,
            (Self::List(a, _), Self::List(b, _)) | (Self::Map(a, _), Self::Map(b, _)) => {
                a.matches(b)
            }
            (Self::Named(a), Self::Named(b)) => a == b,
            // A message may be null.
            (Self::Object(_) | Self::Named(_) | Self::Timestamp | Self::Duration, Self::Null)
            | (Self::Null, Self::Object(_) | Self::Named(_) | Self::Timestamp | Self::Duration) => {
                true
            }
            (a, b) => a.kind() == b.kind(),
        }
    }

    /// What either of two branches gives.
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::String(a), Self::String(b)) => Self::String(a.max(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Self::Bytes(a.max(b)),
            (Self::List(a, m), Self::List(b, n)) => {
                Self::List(Arc::new((*a).clone().join((*b).clone())), m.max(n))
            }
            (Self::Map(a, m), Self::Map(b, n)) => {
                Self::Map(Arc::new((*a).clone().join((*b).clone())), m.max(n))
            }
            (a, b) if a.matches(&b) => a,
            _ => Self::Dyn,
        }
    }

    /// The type of a schema's values, and the fewest bytes that one takes.
    pub fn of(schema: &Value, resource: bool, depth: usize) -> (Self, u64) {
        if depth > super::MAX_DEPTH || schema["x-kubernetes-int-or-string"] == true {
            return (Self::Dyn, 1);
        }
        let count = |name: &str| schema[name].as_u64();
        let below = |schema: &Value| Self::of(schema, false, depth + 1);
        match text(schema, "type") {
            "boolean" => (Self::Bool, 4),
            "integer" => (Self::Int, 1),
            "number" => (Self::Double, 1),
            "string" => match text(schema, "format") {
                "date" => (Self::Timestamp, 12),
                "date-time" => (Self::Timestamp, 22),
                "duration" => (Self::Duration, 3),
                "byte" => (
                    Self::Bytes(count("maxLength").unwrap_or(MAX_REQUEST_BYTES - 2)),
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
                    (Self::String(max), 2 + count("minLength").unwrap_or(0))
                }
            },
            "array" => {
                let (items, size) = below(&schema["items"]);
                let max = count("maxItems").unwrap_or(MAX_REQUEST_BYTES / (size + 1));
                (Self::List(Arc::new(items), max), 2)
            }
            "object" => {
                let additional = &schema["additionalProperties"];
                if additional.is_object() || *additional == true {
                    let (values, size) = if additional.as_object().is_some_and(|o| !o.is_empty()) {
                        below(additional)
                    } else {
                        (Self::Dyn, 1)
                    };
                    let max = count("maxProperties").unwrap_or(MAX_REQUEST_BYTES / (size + 6));
                    return (Self::Map(Arc::new(values), max), 2);
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
                    let text = Self::String(MAX_REQUEST_BYTES - 2);
                    let metadata = ["name", "generateName"]
                        .map(|name| (name.to_owned(), Self::String(253 * 4)));
                    fields.insert("apiVersion".to_owned(), text.clone());
                    fields.insert("kind".to_owned(), text);
                    fields.insert(
                        "metadata".to_owned(),
                        Self::Object(Arc::new(metadata.into_iter().collect())),
                    );
                }
                (Self::Object(Arc::new(fields)), size)
            }
            _ => (Self::Dyn, 1),
        }
    }
}
