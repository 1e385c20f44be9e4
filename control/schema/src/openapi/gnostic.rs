//! Documents as gnostic's protobuf messages (google/gnostic-models, openapiv2 and openapiv3), which is how client-go
//! reads version 2. What the messages have no place for is left out, as gnostic does.

use serde_json::Value;

use super::Form;
use crate::protobuf::wire::{put_bytes, put_double, put_number};

/// A whole document.
pub(super) fn encode(document: &Value, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    let message = match form {
        Form::V2 => &v2::DOCUMENT,
        Form::V3 => &v3::DOCUMENT,
    };
    write(&mut out, document, message);
    out
}

/// How a value becomes the content of a message.
enum Message {
    /// Members by name, and the tag of what begins with `x-`.
    Members(&'static [(&'static str, u32, As)], u32),
    /// Every member as an entry (name = 1, value = 2) under this tag.
    Entries(u32, &'static As),
    /// Every item, or the value itself if it is no list, under this tag.
    Items(u32, &'static As),
    /// A reference (2), or what it may refer to (1).
    OrReference(&'static Message, &'static Message),
    /// By the text of a member; the last one is for what no other names.
    By(&'static str, &'static [(&'static str, u32, As)]),
    /// A flag (2), or a schema (1).
    OrFlag(&'static Message),
    /// A number (1), a flag (2) or a text (3).
    Scalar,
}

/// How a value becomes a field.
enum As {
    Text,
    Flag,
    Integer,
    Double,
    /// Anything, as YAML: JSON is some.
    Any,
    One(&'static Message),
    /// A repeated field.
    Each(&'static As),
}

fn write(out: &mut Vec<u8>, value: &Value, message: &Message) {
    match message {
        Message::Members(members, extensions) => {
            let Value::Object(map) = value else { return };
            for (name, tag, form) in *members {
                if let Some(value) = map.get(*name) {
                    put(out, *tag, value, form);
                }
            }
            for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
                put_entry(out, *extensions, name, value, &As::Any);
            }
        }
        Message::Entries(tag, form) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                put_entry(out, *tag, name, value, form);
            }
        }
        Message::Items(tag, form) => match value {
            Value::Array(items) => items.iter().for_each(|item| put(out, *tag, item, form)),
            single => put(out, *tag, single, form),
        },
        Message::OrReference(reference, _) if value.get("$ref").is_some() => {
            put(out, 2, value, &As::One(reference));
        }
        Message::OrReference(_, other) => put(out, 1, value, &As::One(other)),
        Message::By(member, forms) => {
            let text = value[member].as_str().unwrap_or_default();
            let named = forms.iter().find(|(name, ..)| *name == text);
            if let Some((_, tag, form)) = named.or(forms.last()) {
                put(out, *tag, value, form);
            }
        }
        Message::OrFlag(_) if value.is_boolean() => put(out, 2, value, &As::Flag),
        Message::OrFlag(schema) => put(out, 1, value, &As::One(schema)),
        Message::Scalar => match value {
            Value::Number(_) => put(out, 1, value, &As::Double),
            Value::Bool(_) => put(out, 2, value, &As::Flag),
            Value::String(_) => put(out, 3, value, &As::Text),
            _ => {}
        },
    }
}

fn put_entry(out: &mut Vec<u8>, tag: u32, name: &str, value: &Value, form: &As) {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, name.as_bytes());
    put(&mut entry, 2, value, form);
    put_bytes(out, tag, &entry);
}

fn put(out: &mut Vec<u8>, tag: u32, value: &Value, form: &As) {
    match form {
        As::Text => {
            if let Some(text) = value.as_str() {
                put_bytes(out, tag, text.as_bytes());
            }
        }
        As::Flag => put_number(out, tag, i64::from(value == true)),
        As::Integer => put_number(out, tag, value.as_i64().unwrap_or_default()),
        As::Double => put_double(out, tag, value.as_f64().unwrap_or_default()),
        As::Any => {
            let mut any = Vec::new();
            put_bytes(&mut any, 2, format!("{value}\n").as_bytes());
            put_bytes(out, tag, &any);
        }
        As::One(message) => {
            let mut inner = Vec::new();
            write(&mut inner, value, message);
            put_bytes(out, tag, &inner);
        }
        As::Each(form) => {
            for item in value.as_array().into_iter().flatten() {
                put(out, tag, item, form);
            }
        }
    }
}

static STRING_ARRAY: Message = Message::Items(1, &As::Text);
static SECURITY_REQUIREMENT: Message = Message::Entries(1, &As::One(&STRING_ARRAY));

mod v2 {
    use super::{As, Message, SECURITY_REQUIREMENT, STRING_ARRAY};

    pub(super) static DOCUMENT: Message = Message::Members(
        &[
            ("swagger", 1, As::Text),
            ("info", 2, As::One(&INFO)),
            ("paths", 8, As::One(&PATHS)),
            ("definitions", 9, As::One(&SCHEMAS)),
            ("parameters", 10, As::One(&PARAMETERS)),
            ("security", 12, As::Each(&As::One(&SECURITY_REQUIREMENT))),
            ("securityDefinitions", 13, As::One(&SECURITY_DEFINITIONS)),
        ],
        16,
    );
    static INFO: Message = Message::Members(
        &[
            ("title", 1, As::Text),
            ("version", 2, As::Text),
            ("description", 3, As::Text),
        ],
        7,
    );
    static PATHS: Message = Message::Entries(2, &As::One(&PATH_ITEM));
    static PATH_ITEM: Message = Message::Members(
        &[
            ("get", 2, As::One(&OPERATION)),
            ("put", 3, As::One(&OPERATION)),
            ("post", 4, As::One(&OPERATION)),
            ("delete", 5, As::One(&OPERATION)),
            ("options", 6, As::One(&OPERATION)),
            ("head", 7, As::One(&OPERATION)),
            ("patch", 8, As::One(&OPERATION)),
            ("parameters", 9, As::Each(&As::One(&PARAMETERS_ITEM))),
        ],
        10,
    );
    static OPERATION: Message = Message::Members(
        &[
            ("tags", 1, As::Each(&As::Text)),
            ("summary", 2, As::Text),
            ("description", 3, As::Text),
            ("operationId", 5, As::Text),
            ("produces", 6, As::Each(&As::Text)),
            ("consumes", 7, As::Each(&As::Text)),
            ("parameters", 8, As::Each(&As::One(&PARAMETERS_ITEM))),
            ("responses", 9, As::One(&RESPONSES)),
            ("schemes", 10, As::Each(&As::Text)),
            ("deprecated", 11, As::Flag),
            ("security", 12, As::Each(&As::One(&SECURITY_REQUIREMENT))),
        ],
        13,
    );
    static PARAMETERS: Message = Message::Entries(1, &As::One(&PARAMETER));
    static PARAMETERS_ITEM: Message = Message::OrReference(&REFERENCE, &PARAMETER);
    static REFERENCE: Message =
        Message::Members(&[("$ref", 1, As::Text), ("description", 2, As::Text)], 0);
    static PARAMETER: Message = Message::By(
        "in",
        &[("body", 1, As::One(&BODY)), ("", 2, As::One(&NO_BODY))],
    );
    static BODY: Message = Message::Members(
        &[
            ("description", 1, As::Text),
            ("name", 2, As::Text),
            ("in", 3, As::Text),
            ("required", 4, As::Flag),
            ("schema", 5, As::One(&SCHEMA)),
        ],
        6,
    );
    static NO_BODY: Message = Message::By(
        "in",
        &[
            ("header", 1, As::One(&ELSEWHERE)),
            ("path", 4, As::One(&ELSEWHERE)),
            ("query", 3, As::One(&QUERY)),
        ],
    );
    static QUERY: Message = Message::Members(
        &[
            ("required", 1, As::Flag),
            ("in", 2, As::Text),
            ("description", 3, As::Text),
            ("name", 4, As::Text),
            ("allowEmptyValue", 5, As::Flag),
            ("type", 6, As::Text),
            ("format", 7, As::Text),
            ("default", 10, As::Any),
            ("pattern", 17, As::Text),
            ("uniqueItems", 20, As::Flag),
            ("enum", 21, As::Each(&As::Any)),
        ],
        23,
    );
    /// Of a path or a header: the two messages have the same tags.
    static ELSEWHERE: Message = Message::Members(
        &[
            ("required", 1, As::Flag),
            ("in", 2, As::Text),
            ("description", 3, As::Text),
            ("name", 4, As::Text),
            ("type", 5, As::Text),
            ("format", 6, As::Text),
            ("default", 9, As::Any),
            ("pattern", 16, As::Text),
            ("uniqueItems", 19, As::Flag),
            ("enum", 20, As::Each(&As::Any)),
        ],
        22,
    );
    static RESPONSES: Message = Message::Entries(1, &As::One(&RESPONSE_VALUE));
    static RESPONSE_VALUE: Message = Message::OrReference(&REFERENCE, &RESPONSE);
    static RESPONSE: Message = Message::Members(
        &[
            ("description", 1, As::Text),
            ("schema", 2, As::One(&SCHEMA_ITEM)),
        ],
        5,
    );
    static SCHEMA_ITEM: Message = Message::Items(1, &As::One(&SCHEMA));
    static SCHEMAS: Message = Message::Entries(1, &As::One(&SCHEMA));
    static SCHEMA: Message = Message::Members(
        &[
            ("$ref", 1, As::Text),
            ("format", 2, As::Text),
            ("title", 3, As::Text),
            ("description", 4, As::Text),
            ("default", 5, As::Any),
            ("multipleOf", 6, As::Double),
            ("maximum", 7, As::Double),
            ("exclusiveMaximum", 8, As::Flag),
            ("minimum", 9, As::Double),
            ("exclusiveMinimum", 10, As::Flag),
            ("maxLength", 11, As::Integer),
            ("minLength", 12, As::Integer),
            ("pattern", 13, As::Text),
            ("maxItems", 14, As::Integer),
            ("minItems", 15, As::Integer),
            ("uniqueItems", 16, As::Flag),
            ("maxProperties", 17, As::Integer),
            ("minProperties", 18, As::Integer),
            ("required", 19, As::Each(&As::Text)),
            ("enum", 20, As::Each(&As::Any)),
            ("additionalProperties", 21, As::One(&ADDITIONAL)),
            ("type", 22, As::One(&STRING_ARRAY)),
            ("items", 23, As::One(&SCHEMA_ITEM)),
            ("allOf", 24, As::Each(&As::One(&SCHEMA))),
            ("properties", 25, As::One(&SCHEMAS)),
            ("discriminator", 26, As::Text),
            ("readOnly", 27, As::Flag),
            ("example", 30, As::Any),
        ],
        31,
    );
    static ADDITIONAL: Message = Message::OrFlag(&SCHEMA);
    static SECURITY_DEFINITIONS: Message = Message::Entries(1, &As::One(&SECURITY_DEFINITION));
    static SECURITY_DEFINITION: Message = Message::By(
        "type",
        &[
            ("basic", 1, As::One(&BASIC)),
            ("apiKey", 2, As::One(&API_KEY)),
        ],
    );
    static BASIC: Message =
        Message::Members(&[("type", 1, As::Text), ("description", 2, As::Text)], 3);
    static API_KEY: Message = Message::Members(
        &[
            ("type", 1, As::Text),
            ("name", 2, As::Text),
            ("in", 3, As::Text),
            ("description", 4, As::Text),
        ],
        5,
    );
}

mod v3 {
    use super::{As, Message, SECURITY_REQUIREMENT};

    pub(super) static DOCUMENT: Message = Message::Members(
        &[
            ("openapi", 1, As::Text),
            ("info", 2, As::One(&INFO)),
            ("paths", 4, As::One(&PATHS)),
            ("components", 5, As::One(&COMPONENTS)),
            ("security", 6, As::Each(&As::One(&SECURITY_REQUIREMENT))),
        ],
        9,
    );
    static INFO: Message = Message::Members(
        &[
            ("title", 1, As::Text),
            ("description", 2, As::Text),
            ("version", 6, As::Text),
        ],
        7,
    );
    static COMPONENTS: Message = Message::Members(
        &[
            ("schemas", 1, As::One(&SCHEMAS)),
            ("securitySchemes", 7, As::One(&SECURITY_SCHEMES)),
        ],
        10,
    );
    static PATHS: Message = Message::Entries(1, &As::One(&PATH_ITEM));
    static PATH_ITEM: Message = Message::Members(
        &[
            ("summary", 2, As::Text),
            ("description", 3, As::Text),
            ("get", 4, As::One(&OPERATION)),
            ("put", 5, As::One(&OPERATION)),
            ("post", 6, As::One(&OPERATION)),
            ("delete", 7, As::One(&OPERATION)),
            ("options", 8, As::One(&OPERATION)),
            ("head", 9, As::One(&OPERATION)),
            ("patch", 10, As::One(&OPERATION)),
            (
                "parameters",
                13,
                As::Each(&As::One(&PARAMETER_OR_REFERENCE)),
            ),
        ],
        14,
    );
    static OPERATION: Message = Message::Members(
        &[
            ("tags", 1, As::Each(&As::Text)),
            ("summary", 2, As::Text),
            ("description", 3, As::Text),
            ("operationId", 5, As::Text),
            ("parameters", 6, As::Each(&As::One(&PARAMETER_OR_REFERENCE))),
            ("requestBody", 7, As::One(&REQUEST_BODY_OR_REFERENCE)),
            ("responses", 8, As::One(&RESPONSES)),
            ("deprecated", 10, As::Flag),
            ("security", 11, As::Each(&As::One(&SECURITY_REQUIREMENT))),
        ],
        13,
    );
    static REFERENCE: Message = Message::Members(
        &[
            ("$ref", 1, As::Text),
            ("summary", 2, As::Text),
            ("description", 3, As::Text),
        ],
        0,
    );
    static PARAMETER_OR_REFERENCE: Message = Message::OrReference(&REFERENCE, &PARAMETER);
    static PARAMETER: Message = Message::Members(
        &[
            ("name", 1, As::Text),
            ("in", 2, As::Text),
            ("description", 3, As::Text),
            ("required", 4, As::Flag),
            ("deprecated", 5, As::Flag),
            ("allowEmptyValue", 6, As::Flag),
            ("schema", 10, As::One(&SCHEMA_OR_REFERENCE)),
            ("content", 13, As::One(&MEDIA_TYPES)),
        ],
        14,
    );
    static REQUEST_BODY_OR_REFERENCE: Message = Message::OrReference(&REFERENCE, &REQUEST_BODY);
    static REQUEST_BODY: Message = Message::Members(
        &[
            ("description", 1, As::Text),
            ("content", 2, As::One(&MEDIA_TYPES)),
            ("required", 3, As::Flag),
        ],
        4,
    );
    static MEDIA_TYPES: Message = Message::Entries(1, &As::One(&MEDIA_TYPE));
    static MEDIA_TYPE: Message =
        Message::Members(&[("schema", 1, As::One(&SCHEMA_OR_REFERENCE))], 5);
    static RESPONSES: Message = Message::Entries(2, &As::One(&RESPONSE_OR_REFERENCE));
    static RESPONSE_OR_REFERENCE: Message = Message::OrReference(&REFERENCE, &RESPONSE);
    static RESPONSE: Message = Message::Members(
        &[
            ("description", 1, As::Text),
            ("content", 3, As::One(&MEDIA_TYPES)),
        ],
        5,
    );
    static SCHEMAS: Message = Message::Entries(1, &As::One(&SCHEMA_OR_REFERENCE));
    static SCHEMA_OR_REFERENCE: Message = Message::OrReference(&REFERENCE, &SCHEMA);
    static SCHEMA: Message = Message::Members(
        &[
            ("nullable", 1, As::Flag),
            ("readOnly", 3, As::Flag),
            ("writeOnly", 4, As::Flag),
            ("example", 7, As::Any),
            ("deprecated", 8, As::Flag),
            ("title", 9, As::Text),
            ("multipleOf", 10, As::Double),
            ("maximum", 11, As::Double),
            ("exclusiveMaximum", 12, As::Flag),
            ("minimum", 13, As::Double),
            ("exclusiveMinimum", 14, As::Flag),
            ("maxLength", 15, As::Integer),
            ("minLength", 16, As::Integer),
            ("pattern", 17, As::Text),
            ("maxItems", 18, As::Integer),
            ("minItems", 19, As::Integer),
            ("uniqueItems", 20, As::Flag),
            ("maxProperties", 21, As::Integer),
            ("minProperties", 22, As::Integer),
            ("required", 23, As::Each(&As::Text)),
            ("enum", 24, As::Each(&As::Any)),
            ("type", 25, As::Text),
            ("allOf", 26, As::Each(&As::One(&SCHEMA_OR_REFERENCE))),
            ("oneOf", 27, As::Each(&As::One(&SCHEMA_OR_REFERENCE))),
            ("anyOf", 28, As::Each(&As::One(&SCHEMA_OR_REFERENCE))),
            ("not", 29, As::One(&SCHEMA)),
            ("items", 30, As::One(&ITEMS)),
            ("properties", 31, As::One(&SCHEMAS)),
            ("additionalProperties", 32, As::One(&ADDITIONAL)),
            ("default", 33, As::One(&Message::Scalar)),
            ("description", 34, As::Text),
            ("format", 35, As::Text),
        ],
        36,
    );
    static ITEMS: Message = Message::Items(1, &As::One(&SCHEMA_OR_REFERENCE));
    static ADDITIONAL: Message = Message::OrFlag(&SCHEMA_OR_REFERENCE);
    static SECURITY_SCHEMES: Message = Message::Entries(1, &As::One(&SECURITY_SCHEME_OR_REFERENCE));
    static SECURITY_SCHEME_OR_REFERENCE: Message =
        Message::OrReference(&REFERENCE, &SECURITY_SCHEME);
    static SECURITY_SCHEME: Message = Message::Members(
        &[
            ("type", 1, As::Text),
            ("description", 2, As::Text),
            ("name", 3, As::Text),
            ("in", 4, As::Text),
            ("scheme", 5, As::Text),
            ("bearerFormat", 6, As::Text),
        ],
        9,
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn varint(bytes: &mut &[u8]) -> usize {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().expect("a byte");
            *bytes = rest;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    /// A message's tags and bytes, if all its fields have a length.
    fn fields(mut bytes: &[u8]) -> Vec<(usize, &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            assert_eq!(key & 7, 2, "{bytes:?}");
            let length = varint(&mut bytes);
            let (own, after) = bytes.split_at(length);
            found.push((key >> 3, own));
            bytes = after;
        }
        found
    }

    #[test]
    fn messages_have_gnostic_s_tags() {
        let document = json!({
            "swagger": "2.0",
            "definitions": {"a.B": {
                "type": "object",
                "properties": {"c": {"$ref": "#/definitions/D"}},
                "x-kind": [1],
            }},
        });
        let encoded = encode(&document, Form::V2);
        let document = fields(&encoded);
        assert_eq!(document[0], (1, b"2.0".as_slice()));
        let (9, definitions) = document[1] else {
            panic!("{document:?}")
        };
        let definition = fields(fields(definitions)[0].1);
        assert_eq!(definition[0], (1, b"a.B".as_slice()));
        let schema = fields(definition[1].1);
        let [ty, properties, extension] = schema[..] else {
            panic!("{schema:?}")
        };
        assert_eq!((ty.0, fields(ty.1)), (22, vec![(1, b"object".as_slice())]));
        let property = fields(fields(properties.1)[0].1);
        assert_eq!((properties.0, property[0]), (25, (1, b"c".as_slice())));
        assert_eq!(fields(property[1].1), [(1, b"#/definitions/D".as_slice())]);
        let extension = (extension.0, fields(extension.1));
        assert_eq!(extension.0, 31);
        assert_eq!(extension.1[0], (1, b"x-kind".as_slice()));
        assert_eq!(fields(extension.1[1].1), [(2, b"[1]\n".as_slice())]);
    }
}
