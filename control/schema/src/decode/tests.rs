use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::builtin;

fn pod() -> TypeRef {
    builtin("", "v1", "Pod").expect("Pod is in the table")
}

fn check(kind: (&str, &str, &str), input: &str, value: Value, problems: &[&str]) {
    let ty = builtin(kind.0, kind.1, kind.2).expect("a built-in kind");
    let decoded = decode_json(input.as_bytes(), &ty).expect("decodes");
    assert_eq!(decoded.value, value, "{input}");
    let texts: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts, problems, "{input}");
}

fn check_error(kind: (&str, &str, &str), input: &str, text: &str) {
    let ty = builtin(kind.0, kind.1, kind.2).expect("a built-in kind");
    let error = decode_json(input.as_bytes(), &ty).expect_err(input);
    assert_eq!(error.to_string(), text, "{input}");
}

const CONFIG_MAP: (&str, &str, &str) = ("", "v1", "ConfigMap");
const POD: (&str, &str, &str) = ("", "v1", "Pod");

#[test]
fn unknown_and_duplicate_fields_are_named_with_their_path() {
    check(
        CONFIG_MAP,
        r#"{"data":{"a":"1","a":"2"},"Data":{},"metadata":{"name":"x","foo":[{"a":1,"a":2}]}}"#,
        json!({"data": {"a": "2"}, "metadata": {"name": "x"}}),
        &[
            r#"duplicate field "data.a""#,
            r#"unknown field "Data""#,
            r#"unknown field "metadata.foo""#,
        ],
    );
    let decoded = decode_json(
        br#"{"spec":{"containers":[{"name":"a"},{"name":"b","nam":1,"ports":[{"x":1}]}]}}"#,
        &pod(),
    )
    .expect("decodes");
    assert_eq!(
        strict_error(&decoded.problems),
        "strict decoding error: unknown field \"spec.containers[1].nam\", \
         unknown field \"spec.containers[1].ports[0].x\""
    );
}

#[test]
fn empty_values_go_or_stay_as_in_upstreams_structs() {
    check(
        POD,
        r#"{"spec":{"hostNetwork":false,"nodeName":"","enableServiceLinks":false,"tolerations":[],
            "containers":[{"name":"a","stdin":false,"securityContext":{}}]},"metadata":{"labels":{}}}"#,
        json!({
            "metadata": {},
            "spec": {
                "containers": [{"name": "a", "resources": {}, "securityContext": {}}],
                "enableServiceLinks": false,
            },
            "status": {},
        }),
        &[],
    );
    check(
        ("", "v1", "Service"),
        r#"{"spec":{"ports":null},"metadata":null}"#,
        json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}}),
        &[],
    );
    check(
        CONFIG_MAP,
        r#"{"data":{"a":null}}"#,
        json!({"data": {"a": ""}, "metadata": {}}),
        &[],
    );
}

#[test]
fn completing_tells_no_list_from_an_empty_one() {
    let ty = builtin("rbac.authorization.k8s.io", "v1", "ClusterRole").expect("a built-in kind");
    for (before, rules) in [
        (json!({"rules": null}), Value::Null),
        (json!({"rules": []}), json!([])),
    ] {
        let mut typed = json!({"metadata": {}, "rules": []});
        complete(&mut typed, &before, &ty);
        assert_eq!(typed, json!({"metadata": {}, "rules": rules}));
    }
}

#[test]
fn type_errors_are_go_s() {
    check_error(
        CONFIG_MAP,
        r#"{"data":{"a":1}}"#,
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
    );
    check_error(
        CONFIG_MAP,
        r#"{"metadata":{"name":5}}"#,
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
    );
    check_error(
        CONFIG_MAP,
        r#"{"metadata":"x"}"#,
        "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta",
    );
    check_error(
        CONFIG_MAP,
        r#"{"data":[]}"#,
        "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
    );
    check_error(
        ("", "v1", "Secret"),
        r#"{"data":"x"}"#,
        "json: cannot unmarshal string into Go struct field Secret.data of type map[string][]uint8",
    );
    check_error(
        POD,
        r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
        "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
    );
    check_error(
        ("", "v1", "Service"),
        r#"{"spec":{"type":5,"ports":[{"targetPort":true}]}}"#,
        "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
    );
    check_error(
        CONFIG_MAP,
        r#"{"metadata":{"creationTimestamp":5},"data":{"a":1}}"#,
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
    );
    check_error(
        POD,
        r#"{"spec":{"restartPolicy":5}}"#,
        "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
    );
    check_error(
        ("", "v1", "Service"),
        r#"{"spec":{"ipFamilies":"IPv4"}}"#,
        "json: cannot unmarshal string into Go struct field ServiceSpec.spec.ipFamilies of type []v1.IPFamily",
    );
    check_error(
        POD,
        r#"{"spec":{"activeDeadlineSeconds":1.5}}"#,
        "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64",
    );
    check_error(
        POD,
        r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check_error(
        CONFIG_MAP,
        r#"{"metadata":{"creationTimestamp":"nope"}}"#,
        r#"parsing time "nope" as "2006-01-02T15:04:05Z07:00": cannot parse "nope" as "2006""#,
    );
    check_error(
        ("coordination.k8s.io", "v1", "Lease"),
        r#"{"spec":{"renewTime":"yesterday"}}"#,
        r#"parsing time "yesterday" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "yesterday" as "2006""#,
    );
    check_error(
        ("", "v1", "Secret"),
        r#"{"data":{"a":"!"}}"#,
        "illegal base64 data at input byte 0",
    );
    // The syntax of the whole text goes before any type.
    check_error(
        CONFIG_MAP,
        r#"{"data":1,}"#,
        "invalid character '}' looking for beginning of object key string",
    );
}

#[test]
fn syntax_errors_are_go_s() {
    for (input, text) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("[1 2]", "invalid character '2' after array element"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        (
            "{\"a\":1 \"b\"}",
            "invalid character '\"' after object key:value pair",
        ),
        (
            "{a:1}",
            "invalid character 'a' looking for beginning of object key string",
        ),
        ("tru", "unexpected end of JSON input"),
        (
            "trux",
            "invalid character 'x' in literal true (expecting 'e')",
        ),
        ("01", "invalid character '1' after top-level value"),
        (
            "1.x",
            "invalid character 'x' after decimal point in numeric literal",
        ),
        ("\"\n\"", "invalid character '\\n' in string literal"),
        ("\"\\q\"", "invalid character 'q' in string escape code"),
        (":", "invalid character ':' looking for beginning of value"),
    ] {
        let error = decode_untyped(input.as_bytes()).expect_err(input);
        assert_eq!(error.to_string(), text, "{input}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(
        decode_untyped(deep.as_bytes())
            .expect_err("too deep")
            .to_string(),
        "exceeded max depth"
    );
}

#[test]
fn quantities_become_canonical() {
    for (input, canonical) in [
        ("1", "1"),
        ("0.5", "500m"),
        ("1500m", "1500m"),
        ("1000m", "1"),
        ("1.5Gi", "1536Mi"),
        ("1024Mi", "1Gi"),
        ("1000Mi", "1000Mi"),
        ("512", "512"),
        ("0.5Ki", "512"),
        ("1e3", "1e3"),
        ("1E", "1E"),
        ("12e6", "12e6"),
        ("1000k", "1M"),
        ("0.1n", "1n"),
        ("1.0000000001", "1000000001n"),
        ("-0.5", "-500m"),
        ("+1", "1"),
        (".5", "500m"),
        ("5.", "5"),
        ("0Gi", "0"),
        ("00010", "10"),
        ("100Ei", "9223372036854775807"),
        (
            "99999999999999999999999999999999999999999999999999999999999999999999999",
            "9223372036854775807",
        ),
    ] {
        assert_eq!(
            canonical_quantity(input).as_deref(),
            Ok(canonical),
            "{input}"
        );
    }
    for (input, error) in [
        ("", QuantityError::Format),
        ("abc", QuantityError::Format),
        ("1..2", QuantityError::Format),
        ("m", QuantityError::Number),
        ("1Mx", QuantityError::Format),
        ("1MM", QuantityError::Suffix),
        ("1 Gi", QuantityError::Format),
    ] {
        assert_eq!(canonical_quantity(input), Err(error), "{input}");
    }
}

#[test]
fn times_are_utc_and_whole() {
    for (input, output) in [
        ("2020-02-29T12:30:15Z", "2020-02-29T12:30:15Z"),
        ("2020-02-29T12:30:15.999+02:00", "2020-02-29T10:30:15Z"),
        ("1969-12-31T23:59:59-00:30", "1970-01-01T00:29:59Z"),
    ] {
        assert_eq!(parse_time(input).as_deref(), Ok(output));
    }
    assert_eq!(
        parse_time("2021-02-29T00:00:00Z").expect_err("no leap year"),
        "parsing time \"2021-02-29T00:00:00Z\": day out of range"
    );
    assert_eq!(
        parse_micro_time("2020-01-01T00:00:00.123456+01:00").as_deref(),
        Ok("2019-12-31T23:00:00.123456Z")
    );
}

#[test]
fn type_meta_reads_only_the_kind() {
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "x": []});
    assert_eq!(type_meta(&pod), Ok(("v1", "Pod")));
    assert_eq!(type_meta(&Value::Null), Ok(("", "")));
    let error = |document: Value| type_meta(&document).expect_err("refused").to_string();
    assert_eq!(
        error(json!([])),
        "couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }"
    );
    assert_eq!(
        error(json!({"kind": 5})),
        "couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z\\\\\"\u{e9}0-9:.]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(
                prop_oneof![
                    Just("spec".to_owned()),
                    Just("metadata".to_owned()),
                    Just("containers".to_owned()),
                    Just("name".to_owned()),
                    Just("resources".to_owned()),
                    Just("limits".to_owned()),
                    "[a-z]{1,3}"
                ],
                inner,
                0..6
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_json(&bytes, &pod());
        let _ = decode_untyped(&bytes);
    }

    #[test]
    fn arbitrary_json_never_panics(value in any_json()) {
        let _ = conform(value, &pod());
    }

    #[test]
    fn a_value_conforms_as_its_text_decodes(value in any_json()) {
        let text = serde_json::to_vec(&value).expect("encodes");
        prop_assert_eq!(conform(value, &pod()), decode_json(&text, &pod()));
    }

    #[test]
    fn untyped_json_keeps_its_value(value in any_json()) {
        let text = serde_json::to_vec(&value).expect("encodes");
        let decoded = decode_untyped(&text).expect("decodes").value;
        let text_again = serde_json::to_vec(&decoded).expect("encodes");
        let text_again = decode_untyped(&text_again).expect("decodes").value;
        prop_assert_eq!(decoded, text_again);
    }

    #[test]
    fn what_was_decoded_decodes_to_itself(value in any_json()) {
        if let Ok(once) = conform(value, &pod()) {
            let twice = conform(once.value.clone(), &pod()).expect("a decoded object decodes");
            prop_assert_eq!(once.value, twice.value);
            prop_assert!(twice.problems.is_empty());
        }
    }

    #[test]
    fn completing_what_was_decoded_changes_nothing(value in any_json()) {
        if let Ok(decoded) = conform(value, &pod()) {
            let mut completed = decoded.value.clone();
            complete(&mut completed, &decoded.value, &pod());
            prop_assert_eq!(decoded.value, completed);
        }
    }

    #[test]
    fn quantities_are_stable(text in "[+-]?[0-9]{0,22}(\\.[0-9]{0,12})?([kMGTPE]|[KMGTPE]i|[num]|e-?[0-9]{1,2})?") {
        if let Ok(once) = canonical_quantity(&text) {
            prop_assert_eq!(canonical_quantity(&once), Ok(once.clone()));
        }
    }

    #[test]
    fn the_scanner_and_the_reader_agree(text in "[\\[\\]{}\",:0-9eE.+a\\\\u tfnrulse-]{0,24}") {
        let complaint = syntax::complaint(text.as_bytes());
        prop_assert_eq!(complaint.is_some(), matches!(decode_untyped(text.as_bytes()), Err(DecodeError::Syntax(_))), "{:?}", complaint);
    }
}

#[test]
fn nesting_is_bounded() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
        assert!(decode_untyped(deep.as_bytes()).is_err());
        assert!(decode_json(deep.as_bytes(), &pod()).is_err());
        assert!(decode_untyped(open.repeat(200_000).as_bytes()).is_err());
    }
}
