//! Whether a value has the form that decoding gives already, so that it need not be written and read again.

use base64::Engine;
use serde_json::Value;

use super::{BASE64, MAX_DEPTH, canonical_quantity, parse_micro_time, parse_time};
use crate::table::{Node, Shape};

/// Whether decoding would take over every part of the value as it is, but for what [`super::complete`] adds and drops.
/// `false` where that is not easy to tell.
pub(super) fn fits(value: &Value, node: Node<'_>) -> bool {
    typed(value, node, 0)
}

fn typed(value: &Value, node: Node<'_>, depth: usize) -> bool {
    if value.is_null() {
        return true;
    }
    let inside = depth + 1;
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => {
            inside <= MAX_DEPTH
                && map.iter().all(|(name, value)| {
                    let field = object.field(name);
                    field.is_some_and(|field| typed(value, node.at(field.ty), inside))
                })
        }
        (Shape::Map { values, .. }, Value::Object(map)) => {
            let values = node.at(*values);
            inside <= MAX_DEPTH && map.values().all(|value| typed(value, values, inside))
        }
        (Shape::List { items, .. }, Value::Array(list)) => {
            let items = node.at(*items);
            inside <= MAX_DEPTH && list.iter().all(|item| typed(item, items, inside))
        }
        (Shape::String | Shape::Duration | Shape::IntOrString, Value::String(_))
        | (Shape::Bool, Value::Bool(_)) => true,
        (Shape::Int32 | Shape::IntOrString, Value::Number(number)) => {
            number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (Shape::Int64, Value::Number(number)) => number.as_i64().is_some(),
        (Shape::Quantity, Value::String(text)) => is(text, canonical_quantity(text)),
        (Shape::Time, Value::String(text)) => is(text, parse_time(text)),
        (Shape::MicroTime, Value::String(text)) => is(text, parse_micro_time(text)),
        (Shape::Bytes, Value::String(text)) => {
            is(text, BASE64.decode(text).map(|bytes| BASE64.encode(bytes)))
        }
        (Shape::Double | Shape::Any | Shape::Deduced | Shape::Raw | Shape::FieldsV1, value) => {
            let is_free = !matches!(node.shape(), Shape::Double);
            (is_free || value.is_number()) && free(value, depth)
        }
        (
            Shape::OrArray(inner) | Shape::OrBool(inner) | Shape::OrStringArray(inner),
            Value::Object(_),
        ) => typed(value, node.at(*inner), depth),
        (Shape::OrBool(_), Value::Bool(_)) => true,
        _ => false,
    }
}

fn is<E>(text: &str, canonical: Result<String, E>) -> bool {
    canonical.is_ok_and(|canonical| canonical == text)
}

/// JSON of no type, whose numbers alone have a form of their own: Go writes a float without a fraction as an integer.
fn free(value: &Value, depth: usize) -> bool {
    let inside = depth + 1;
    match value {
        Value::Object(map) => inside <= MAX_DEPTH && map.values().all(|value| free(value, inside)),
        Value::Array(list) => inside <= MAX_DEPTH && list.iter().all(|item| free(item, inside)),
        Value::Number(number) => {
            number.as_i64().is_some() || number.as_f64().is_some_and(|n| n.fract() != 0.0)
        }
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}
