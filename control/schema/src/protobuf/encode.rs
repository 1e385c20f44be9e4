//! JSON value → protobuf.

use base64::Engine;
use serde_json::{Map, Value};

use super::{
    MAGIC, ProtobufError,
    wire::{put_bytes, put_double, put_number},
};
use crate::{
    TypeRef,
    decode::{BASE64, to_unix},
    table::{Node, Object, Shape},
};

/// `k8s\0` and the object, as `Accept: application/vnd.kubernetes.protobuf` gets it. Works for lists and `Status` too.
/// Fields that are newer than the tags known here are left out.
///
/// # Errors
/// For kinds without protobuf tags (custom resources).
pub fn encode(value: &Value, ty: &TypeRef) -> Result<Vec<u8>, ProtobufError> {
    let object = ty.node().object().filter(|object| {
        object.fields.iter().any(|field| field.tag != 0) || !object.embedded.is_empty()
    });
    let Some(object) = object else {
        return Err(ProtobufError::NoProtobuf(ty.name().to_owned()));
    };
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut type_meta = Vec::new();
    put_bytes(&mut type_meta, 1, text("apiVersion").as_bytes());
    put_bytes(&mut type_meta, 2, text("kind").as_bytes());
    let mut raw = Vec::new();
    if let Value::Object(map) = value {
        put_object(&mut raw, map, ty.node(), object);
    }
    let mut out = MAGIC.to_vec();
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, &raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    Ok(out)
}

/// One frame of a watch stream (`application/vnd.kubernetes.protobuf;stream=watch`): four bytes of length, then a
/// `WatchEvent` whose object is encoded as by [`encode`].
///
/// # Errors
/// As [`encode`].
pub fn encode_watch_frame(
    event_type: &str,
    object: &Value,
    ty: &TypeRef,
) -> Result<Vec<u8>, ProtobufError> {
    let object = encode(object, ty)?;
    let mut raw_extension = Vec::new();
    put_bytes(&mut raw_extension, 1, &object);
    let mut event = Vec::new();
    put_bytes(&mut event, 1, event_type.as_bytes());
    put_bytes(&mut event, 2, &raw_extension);
    let length = u32::try_from(event.len())
        .map_err(|_| ProtobufError::Malformed("a watch frame cannot exceed 4 GiB"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&event);
    Ok(frame)
}

fn put_object(out: &mut Vec<u8>, map: &Map<String, Value>, node: Node<'_>, object: &Object) {
    // By tag, as Go writes them.
    let mut tagged: Vec<(u32, Option<usize>)> = object
        .fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.tag != 0 && map.contains_key(&field.name))
        .map(|(index, field)| (field.tag, Some(index)))
        .collect();
    tagged.extend(object.embedded.iter().map(|(tag, _)| (*tag, None)));
    tagged.sort_unstable();
    for (tag, index) in tagged {
        let Some(index) = index else {
            let embedded = object.embedded.iter().find(|(outer, _)| *outer == tag);
            let inner = embedded.map(|(_, inner)| node.at(*inner));
            if let Some((inner, object)) = inner.and_then(|inner| Some((inner, inner.object()?))) {
                let mut bytes = Vec::new();
                put_object(&mut bytes, map, inner, object);
                put_bytes(out, tag, &bytes);
            }
            continue;
        };
        let field = &object.fields[index];
        let (value, ty) = (&map[&field.name], node.at(field.ty));
        match (ty.shape(), value) {
            (_, Value::Null) => {}
            (Shape::List { items, .. }, Value::Array(list)) => {
                for item in list {
                    put_value(out, tag, item, ty.at(*items));
                }
            }
            (Shape::Map { values, .. }, Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    put_value(&mut entry, 2, value, ty.at(*values));
                    put_bytes(out, tag, &entry);
                }
            }
            _ => put_value(out, tag, value, ty),
        }
    }
}

/// One field; nothing for a value that does not fit its type (the object was conformed before it was stored).
fn put_value(out: &mut Vec<u8>, tag: u32, value: &Value, node: Node<'_>) {
    match (node.shape(), value) {
        (Shape::String, Value::String(text)) => put_bytes(out, tag, text.as_bytes()),
        (Shape::Bytes, Value::String(text)) => {
            put_bytes(out, tag, &BASE64.decode(text).unwrap_or_default());
        }
        (Shape::Int32 | Shape::Int64, Value::Number(number)) => {
            put_number(out, tag, number.as_i64().unwrap_or_default());
        }
        (Shape::Bool, Value::Bool(value)) => put_number(out, tag, i64::from(*value)),
        (Shape::Double, Value::Number(number)) => {
            put_double(out, tag, number.as_f64().unwrap_or_default());
        }
        _ => {
            let mut bytes = Vec::new();
            put_message(&mut bytes, value, node);
            put_bytes(out, tag, &bytes);
        }
    }
}

fn put_message(out: &mut Vec<u8>, value: &Value, node: Node<'_>) {
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => put_object(out, map, node, object),
        (Shape::Quantity | Shape::Duration, Value::String(text)) => {
            put_bytes(out, 1, text.as_bytes());
        }
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            if let Some((seconds, nanos)) = to_unix(text) {
                put_number(out, 1, seconds);
                put_number(out, 2, nanos);
            }
        }
        (Shape::IntOrString, Value::Number(number)) => {
            put_number(out, 1, 0);
            put_number(out, 2, number.as_i64().unwrap_or_default());
            put_bytes(out, 3, b"");
        }
        (Shape::IntOrString, Value::String(text)) => {
            put_number(out, 1, 1);
            put_number(out, 2, 0);
            put_bytes(out, 3, text.as_bytes());
        }
        (Shape::Any | Shape::Deduced | Shape::Raw | Shape::FieldsV1, value) if !value.is_null() => {
            put_bytes(out, 1, value.to_string().as_bytes());
        }
        (Shape::OrArray(inner), Value::Array(list)) => {
            for item in list {
                put_value(out, 2, item, node.at(*inner));
            }
        }
        (Shape::OrArray(inner), value) => put_value(out, 1, value, node.at(*inner)),
        (Shape::OrBool(_), Value::Bool(allows)) => put_number(out, 1, i64::from(*allows)),
        (Shape::OrBool(inner), value) => {
            put_number(out, 1, 1);
            put_value(out, 2, value, node.at(*inner));
        }
        (Shape::OrStringArray(_), Value::Array(list)) => {
            for item in list.iter().filter_map(Value::as_str) {
                put_bytes(out, 2, item.as_bytes());
            }
        }
        (Shape::OrStringArray(inner), value) => put_value(out, 1, value, node.at(*inner)),
        (Shape::List { items, .. }, Value::Array(list)) => {
            for item in list {
                put_value(out, 1, item, node.at(*items));
            }
        }
        _ => {}
    }
}
