use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    TypeRef, builtin, conform, decode_json,
    table::{Node, Shape, builtin_table},
};

fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, payload) in fields {
        bytes.push((tag << 3) | 2);
        bytes.push(u8::try_from(payload.len()).expect("short"));
        bytes.extend_from_slice(payload);
    }
    bytes
}

#[test]
fn a_namespace_as_kubectl_sends_it() {
    let type_meta = message(&[(1, b"v1"), (2, b"Namespace")]);
    let raw = message(&[
        (1, &message(&[(1, b"demo"), (2, b""), (3, b"")])),
        (2, b""),
        (3, b""),
    ]);
    let mut body = MAGIC.to_vec();
    body.extend(message(&[(1, &type_meta), (2, &raw), (3, b""), (4, b"")]));
    let value = decode(&body).expect("decodes");
    let ty = builtin("", "v1", "Namespace").expect("a built-in kind");
    assert_eq!(
        conform(value, &ty).expect("conforms").value,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}, "spec": {}, "status": {}})
    );
}

#[test]
fn inlined_messages_and_special_types_round_trip() {
    let ty = builtin("", "v1", "Pod").expect("a built-in kind");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "creationTimestamp": "2026-11-23T10:00:00Z", "labels": {"a": "b"}},
        "spec": {
            "containers": [{
                "name": "c", "image": "i",
                "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
            }],
            "ephemeralContainers": [{"name": "e", "targetContainerName": "c", "resources": {}}],
            "volumes": [{"name": "v", "configMap": {"name": "x", "items": [{"key": "a", "path": "b"}]}}],
            "securityContext": {"runAsUser": -1, "supplementalGroups": [1, 2]},
        },
        "status": {"startTime": "1969-12-31T23:59:59Z"},
    });
    let conformed = conform(pod, &ty).expect("conforms").value;
    let bytes = encode(&conformed, &ty).expect("encodes");
    let back = conform(decode(&bytes).expect("decodes"), &ty)
        .expect("conforms")
        .value;
    assert_eq!(back, conformed);

    let ty = builtin("apps", "v1", "ControllerRevision").expect("a built-in kind");
    let revision = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {},
        "revision": 3, "data": {"spec": {"x": [1, null]}}});
    let bytes = encode(&revision, &ty).expect("encodes");
    assert_eq!(decode(&bytes), Ok(revision));
}

#[test]
fn truncated_or_alien_bodies_are_errors() {
    let ty = builtin("", "v1", "ConfigMap").expect("a built-in kind");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}});
    let bytes = encode(&map, &ty).expect("encodes");
    // The two empty fields at the end are nothing that could be missed.
    for length in 0..bytes.len() - 4 {
        assert!(
            decode(&bytes[..length]).is_err() || decode(&bytes[..length]) != Ok(map.clone()),
            "{length}"
        );
    }
    assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
    let alien = json!({"apiVersion": "x/v1", "kind": "Alien"});
    let bytes = encode(&alien, &ty).expect("encodes");
    assert!(matches!(
        decode(&bytes),
        Err(ProtobufError::UnknownKind { .. })
    ));
}

#[test]
fn a_watch_frame_has_its_length_and_the_object() {
    let ty = builtin("", "v1", "ConfigMap").expect("a built-in kind");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let frame = encode_watch_frame("ADDED", &map, &ty).expect("encodes");
    let length = u32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
    assert_eq!(length as usize, frame.len() - 4);
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    let object = encode(&map, &ty).expect("encodes");
    assert!(frame.ends_with(&object));
}

/// A value of a type, from a stream of random numbers. Lists and maps are never empty: protobuf cannot tell.
fn generate(node: Node<'_>, seed: &mut impl FnMut() -> u32, depth: usize) -> Value {
    match node.shape() {
        Shape::Object(object) => {
            let mut map = Map::new();
            for field in &object.fields {
                let embedded = object
                    .embedded
                    .iter()
                    .any(|(_, inner)| has(node.at(*inner), &field.name));
                let wanted = depth < 7 && (field.required || seed().is_multiple_of(3));
                if (field.tag != 0 || embedded) && wanted {
                    map.insert(
                        field.name.clone(),
                        generate(node.at(field.ty), seed, depth + 1),
                    );
                }
            }
            Value::Object(map)
        }
        Shape::Map { values, .. } => json!({"k": generate(node.at(*values), seed, depth + 1)}),
        Shape::List { items, .. } => json!([generate(node.at(*items), seed, depth + 1)]),
        Shape::String => json!(format!("s{}é", seed())),
        Shape::Duration => json!("1s"),
        Shape::Bytes => json!("YQ=="),
        Shape::Int32 => json!(seed() as i32),
        Shape::Int64 => json!(i64::from(seed()) - (1 << 40)),
        Shape::Double => json!(f64::from(seed()) + 0.5),
        Shape::Bool => json!(seed().is_multiple_of(2)),
        Shape::Quantity => json!(format!("{}m", seed() % 999 + 1)),
        Shape::Time => json!("2001-02-03T04:05:06Z"),
        Shape::MicroTime => json!("2001-02-03T04:05:06.000007Z"),
        Shape::IntOrString if seed().is_multiple_of(2) => json!(7),
        Shape::IntOrString => json!("50%"),
        Shape::Any | Shape::Deduced | Shape::Raw | Shape::FieldsV1 => json!({"a": [1, "x", null]}),
        Shape::OrArray(inner) | Shape::OrBool(inner) | Shape::OrStringArray(inner) => {
            generate(node.at(*inner), seed, depth + 1)
        }
    }
}

fn has(node: Node<'_>, name: &str) -> bool {
    node.object().is_some_and(|object| {
        object.field(name).is_some()
            || object
                .embedded
                .iter()
                .any(|(_, inner)| has(node.at(*inner), name))
    })
}

/// Every kind with an API version of its own.
fn kinds() -> Vec<(String, TypeRef)> {
    let mut kinds = Vec::new();
    for ty in &builtin_table().types {
        if let [kind] = ty.kinds.as_slice()
            && let Some(found) = builtin(&kind.0, &kind.1, &kind.2)
            && found
                .node()
                .object()
                .is_some_and(|object| object.fields.iter().any(|field| field.tag != 0))
        {
            let api_version = match kind.0.as_str() {
                "" => kind.1.clone(),
                group => format!("{group}/{}", kind.1),
            };
            kinds.push((api_version, found));
        }
    }
    assert!(kinds.len() > 200, "{} kinds", kinds.len());
    kinds
}

/// Drops what protobuf cannot tell from nothing.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(name, value)| (name, without_empty(value)))
                .filter(|(_, value)| !value.is_null())
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_empty).collect()),
        other => other,
    }
}

/// Numbers that are the same each time.
fn seeds() -> impl FnMut() -> u32 {
    let mut state = 1u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

/// Empties some places.
fn hollow(value: &mut Value, seed: &mut dyn FnMut() -> u32) {
    let empty = match value {
        Value::Object(_) => json!({}),
        Value::Array(_) => json!([]),
        Value::String(text) if text.starts_with('s') => json!(""),
        Value::Number(_) => json!(0),
        Value::Bool(_) => json!(false),
        _ => json!(null),
    };
    match seed() % 16 {
        0 => *value = json!(null),
        1 => *value = empty,
        _ => {}
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| hollow(value, seed)),
        Value::Array(list) => list.iter_mut().for_each(|item| hollow(item, seed)),
        _ => {}
    }
}

#[test]
fn every_kind_conforms_as_its_text_decodes() {
    let mut seed = seeds();
    for (_, ty) in kinds() {
        for _ in 0..20 {
            let mut value = generate(ty.node(), &mut seed, 0);
            hollow(&mut value, &mut seed);
            let text = serde_json::to_vec(&value).expect("encodes");
            assert_eq!(conform(value, &ty), decode_json(&text, &ty), "{ty:?}");
        }
    }
}

#[test]
fn every_kind_round_trips() {
    let mut seed = seeds();
    for (api_version, ty) in kinds() {
        let kind = ty.node().ty().kinds[0].2.clone();
        for _ in 0..5 {
            let mut value = generate(ty.node(), &mut seed, 0);
            value["apiVersion"] = json!(api_version);
            value["kind"] = json!(kind);
            let conformed = conform(value, &ty).expect("generated values conform").value;
            let bytes = encode(&conformed, &ty).expect("has protobuf");
            let back = decode(&bytes).unwrap_or_else(|error| panic!("{kind}: {error}"));
            let back = conform(back, &ty).expect("conforms").value;
            assert_eq!(
                without_empty(back),
                without_empty(conformed),
                "{api_version} {kind}"
            );
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..200usize, raw in prop::collection::vec(any::<u8>(), 0..300)) {
        let (api_version, ty) = kinds().swap_remove(kind);
        let kind = ty.node().ty().kinds[0].2.clone();
        let type_meta = message(&[(1, api_version.as_bytes()), (2, kind.as_bytes())]);
        let mut body = MAGIC.to_vec();
        body.extend(message(&[(1, &type_meta)]));
        body.push(0x12);
        let length = raw.len() as u64;
        body.push((length as u8 & 0x7f) | 0x80);
        body.push((length >> 7) as u8);
        body.extend(&raw);
        let _ = decode(&body);
        let _ = decode(&raw);
    }
}

/// A real pod's bytes with some of them changed, some cut out and some twice.
fn mutated(mut bytes: Vec<u8>, edits: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    for (what, at, byte) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match what % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.truncate(at),
            2 => drop(bytes.remove(at)),
            _ => {
                let again = bytes[at..].to_vec();
                bytes.extend(again);
            }
        }
    }
    bytes
}

proptest! {
    #[test]
    fn a_damaged_pod_is_read_or_refused(edits in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"a": "b"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]}]},
        });
        let pod = conform(pod, &ty).expect("conforms").value;
        let body = mutated(encode(&pod, &ty).expect("has protobuf"), &edits);
        // Nothing that is read is larger than what was sent allows: each byte makes at most a few fields.
        if let Ok(value) = decode(&body) {
            prop_assert!(value.to_string().len() < 64 * body.len() + 4096);
        }
    }
}

#[test]
fn a_length_that_is_not_there_allocates_nothing() {
    let mut body = MAGIC.to_vec();
    // Field 2 of 2^62 bytes.
    body.extend([0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
    assert!(decode(&body).is_err());
}
