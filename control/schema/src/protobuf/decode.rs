//! Protobuf → JSON value.

use base64::Engine;
use serde_json::{Map, Value};

use super::{FIXED32, FIXED64, LENGTH, MAGIC, ProtobufError, TRUNCATED, VARINT};
use crate::{
    builtin,
    decode::{BASE64, MAX_DEPTH, decode_untyped, format_time},
    table::{Node, Object, Shape},
};

type Decoded<T> = Result<T, ProtobufError>;

/// An object of a built-in kind, `apiVersion` and `kind` included. Not normalised: [`crate::conform`] it.
///
/// # Errors
/// On anything that is not a complete message of a known kind.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    decode_at(body, 0)
}

fn decode_at(body: &[u8], depth: usize) -> Decoded<Value> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Payload::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Payload::Bytes(text)) => api_version = string(text),
                        (2, Payload::Bytes(text)) => kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some(ty) = builtin(group, version, &kind) else {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    let mut map = match message(raw, ty.node(), depth)? {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.insert("apiVersion".to_owned(), Value::String(api_version));
    map.insert("kind".to_owned(), Value::String(kind));
    Ok(Value::Object(map))
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

enum Payload<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message: (tag, payload).
struct Fields<'a>(&'a [u8]);

fn varint(bytes: &mut &[u8]) -> Decoded<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(TRUNCATED)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Malformed("proto: integer overflow"))
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Decoded<(u32, Payload<'a>)> {
        let key = varint(&mut self.0)?;
        let tag = u32::try_from(key >> 3)
            .ok()
            .filter(|tag| *tag > 0)
            .ok_or(ProtobufError::Malformed("proto: illegal tag"))?;
        let payload = match key & 7 {
            VARINT => Payload::Number(varint(&mut self.0)?),
            FIXED64 => {
                let bytes = self.take(8)?.try_into().map_err(|_| TRUNCATED)?;
                Payload::Number(u64::from_le_bytes(bytes))
            }
            LENGTH => {
                let length = varint(&mut self.0)?;
                Payload::Bytes(self.take(usize::try_from(length).map_err(|_| TRUNCATED)?)?)
            }
            FIXED32 => {
                let bytes = self.take(4)?.try_into().map_err(|_| TRUNCATED)?;
                Payload::Number(u64::from(u32::from_le_bytes(bytes)))
            }
            _ => return Err(ProtobufError::Malformed("proto: illegal wireType")),
        };
        Ok((tag, payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Decoded<(u32, Payload<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// A message of a type, special or not. `Null` for an empty time.
fn message(bytes: &[u8], node: Node<'_>, depth: usize) -> Decoded<Value> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("exceeded max depth"));
    }
    match node.shape() {
        Shape::Object(object) => {
            let mut map = Map::new();
            object_fields(bytes, node, object, &mut map, depth)?;
            Ok(Value::Object(map))
        }
        Shape::Quantity => Ok(Value::String(text_field(bytes, 1)?.unwrap_or_default()))
            .map(|value| if value == "" { Value::from("0") } else { value }),
        Shape::Time | Shape::MicroTime => time(bytes, matches!(node.shape(), Shape::MicroTime)),
        Shape::Duration => {
            let nanos = number_field(bytes, 1)?.unwrap_or_default();
            Ok(Value::String(go_duration(nanos.cast_signed())))
        }
        Shape::IntOrString => match number_field(bytes, 1)?.unwrap_or_default() {
            0 => Ok(Value::from(int32(
                number_field(bytes, 2)?.unwrap_or_default(),
            ))),
            _ => Ok(Value::from(text_field(bytes, 3)?.unwrap_or_default())),
        },
        Shape::Any | Shape::Deduced | Shape::Raw | Shape::FieldsV1 => embedded_json(bytes, depth),
        Shape::OrArray(inner) => {
            let mut list = Vec::new();
            for field in Fields(bytes) {
                match field? {
                    (1, Payload::Bytes(bytes)) => {
                        return message(bytes, node.at(*inner), depth + 1);
                    }
                    (2, Payload::Bytes(bytes)) => {
                        list.push(message(bytes, node.at(*inner), depth + 1)?);
                    }
                    _ => {}
                }
            }
            Ok(Value::Array(list))
        }
        Shape::OrBool(inner) => {
            let mut allows = false;
            for field in Fields(bytes) {
                match field? {
                    (1, Payload::Number(value)) => allows = value != 0,
                    (2, Payload::Bytes(bytes)) => {
                        return message(bytes, node.at(*inner), depth + 1);
                    }
                    _ => {}
                }
            }
            Ok(Value::Bool(allows))
        }
        Shape::OrStringArray(inner) => {
            let mut list = Vec::new();
            for field in Fields(bytes) {
                match field? {
                    (1, Payload::Bytes(bytes)) => {
                        return message(bytes, node.at(*inner), depth + 1);
                    }
                    (2, Payload::Bytes(bytes)) => list.push(Value::String(string(bytes))),
                    _ => {}
                }
            }
            Ok(Value::Array(list))
        }
        // Named list types (`ExtraValue`) are messages with one repeated field.
        Shape::List { items, .. } => {
            let mut list = Vec::new();
            for field in Fields(bytes) {
                if let (1, payload) = field? {
                    push(&mut list, payload, node.at(*items), depth + 1)?;
                }
            }
            Ok(Value::Array(list))
        }
        _ => Err(ProtobufError::Malformed("proto: wrong wireType")),
    }
}

fn text_field(bytes: &[u8], wanted: u32) -> Decoded<Option<String>> {
    let mut found = None;
    for field in Fields(bytes) {
        if let (tag, Payload::Bytes(text)) = field?
            && tag == wanted
        {
            found = Some(string(text));
        }
    }
    Ok(found)
}

fn number_field(bytes: &[u8], wanted: u32) -> Decoded<Option<u64>> {
    let mut found = None;
    for field in Fields(bytes) {
        if let (tag, Payload::Number(number)) = field?
            && tag == wanted
        {
            found = Some(number);
        }
    }
    Ok(found)
}

fn int32(number: u64) -> i32 {
    // An int32 is sent as a sign-extended varint; what does not fit is cut, as everywhere in protobuf.
    number as u32 as i32
}

fn time(bytes: &[u8], micro: bool) -> Decoded<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let seconds = number_field(bytes, 1)?.unwrap_or_default().cast_signed();
    let nanos = int32(number_field(bytes, 2)?.unwrap_or_default());
    // Years 1 to 9999: Go cannot marshal others.
    if !(-62_135_596_800..=253_402_300_799).contains(&seconds) {
        return Err(ProtobufError::Malformed("time out of range"));
    }
    let micros = micro.then_some(i64::from(nanos.clamp(0, 999_999_999)) / 1000);
    Ok(Value::String(format_time(seconds, micros)))
}

/// `time.Duration.String`.
fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let whole = value / unit;
        let rest = value % unit;
        if rest == 0 {
            return format!("{sign}{whole}{name}");
        }
        let digits = unit.ilog10() as usize;
        let rest = format!("{rest:0digits$}");
        format!("{sign}{whole}.{}{name}", rest.trim_end_matches('0'))
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => fraction(nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(nanos, 1_000_000, "ms"),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000, "s");
            let seconds = seconds.trim_start_matches('-');
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// JSON in bytes (or, in a RawExtension, an object in protobuf).
fn embedded_json(bytes: &[u8], depth: usize) -> Decoded<Value> {
    let mut raw = &[][..];
    for field in Fields(bytes) {
        if let (1, Payload::Bytes(bytes)) = field? {
            raw = bytes;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if raw.starts_with(MAGIC) {
        return decode_at(raw, depth + 1);
    }
    match decode_untyped(raw) {
        Ok(decoded) => Ok(decoded.value),
        Err(_) => Err(ProtobufError::Malformed("embedded JSON does not parse")),
    }
}

fn object_fields(
    bytes: &[u8],
    node: Node<'_>,
    object: &Object,
    map: &mut Map<String, Value>,
    depth: usize,
) -> Decoded<()> {
    for field in Fields(bytes) {
        let (tag, payload) = field?;
        if let Some((_, inner)) = object.embedded.iter().find(|(outer, _)| *outer == tag) {
            let Payload::Bytes(bytes) = payload else {
                continue;
            };
            let inner = node.at(*inner);
            if let Some(object) = inner.object()
                && depth < MAX_DEPTH
            {
                object_fields(bytes, inner, object, map, depth + 1)?;
            }
            continue;
        }
        let Some(field) = object.fields.iter().find(|field| field.tag == tag) else {
            continue;
        };
        let ty = node.at(field.ty);
        match ty.shape() {
            Shape::List { items, .. } => {
                let slot = map
                    .entry(field.name.as_str())
                    .or_insert_with(|| Value::Array(vec![]));
                if let Value::Array(list) = slot {
                    push(list, payload, ty.at(*items), depth + 1)?;
                }
            }
            Shape::Map { values, .. } => {
                let Payload::Bytes(entry) = payload else {
                    continue;
                };
                let (key, value) = map_entry(entry, ty.at(*values), depth + 1)?;
                let slot = map
                    .entry(field.name.as_str())
                    .or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(entries) = slot {
                    entries.insert(key, value);
                }
            }
            Shape::Object(inner) => {
                let Payload::Bytes(bytes) = payload else {
                    continue;
                };
                if depth >= MAX_DEPTH {
                    return Err(ProtobufError::Malformed("exceeded max depth"));
                }
                // A message that comes in parts is merged.
                let slot = map
                    .entry(field.name.as_str())
                    .or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(below) = slot {
                    object_fields(bytes, ty, inner, below, depth + 1)?;
                }
            }
            _ => {
                let value = single(payload, ty, depth + 1)?;
                if value.is_null() {
                    map.remove(&field.name);
                } else {
                    map.insert(field.name.clone(), value);
                }
            }
        }
    }
    Ok(())
}

fn single(payload: Payload<'_>, node: Node<'_>, depth: usize) -> Decoded<Value> {
    Ok(match (node.shape(), payload) {
        (Shape::String, Payload::Bytes(text)) => Value::String(string(text)),
        (Shape::Bytes, Payload::Bytes(bytes)) => Value::String(BASE64.encode(bytes)),
        (Shape::Int32, Payload::Number(number)) => Value::from(int32(number)),
        (Shape::Int64, Payload::Number(number)) => Value::from(number.cast_signed()),
        (Shape::Bool, Payload::Number(number)) => Value::Bool(number != 0),
        (Shape::Double, Payload::Number(bits)) => {
            let float = f64::from_bits(bits);
            if float.fract() == 0.0 && float.abs() < 9.0e15 {
                Value::from(float as i64)
            } else {
                Value::from(float)
            }
        }
        (_, Payload::Bytes(bytes)) => message(bytes, node, depth)?,
        (_, Payload::Number(_)) => return Err(ProtobufError::Malformed("proto: wrong wireType")),
    })
}

fn push(list: &mut Vec<Value>, payload: Payload<'_>, items: Node<'_>, depth: usize) -> Decoded<()> {
    match (items.shape(), payload) {
        // Packed numbers.
        (Shape::Int32 | Shape::Int64 | Shape::Bool, Payload::Bytes(mut packed)) => {
            while !packed.is_empty() {
                let number = varint(&mut packed)?;
                list.push(single(Payload::Number(number), items, depth)?);
            }
        }
        (_, payload) => list.push(single(payload, items, depth)?),
    }
    Ok(())
}

fn map_entry(bytes: &[u8], values: Node<'_>, depth: usize) -> Decoded<(String, Value)> {
    let mut key = String::new();
    let mut value = Value::Null;
    for field in Fields(bytes) {
        match field? {
            (1, Payload::Bytes(text)) => key = string(text),
            (2, payload) => value = single(payload, values, depth)?,
            _ => {}
        }
    }
    if value.is_null() && matches!(values.shape(), Shape::String | Shape::Bytes) {
        value = Value::String(String::new());
    }
    Ok((key, value))
}
