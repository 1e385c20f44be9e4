use serde_json::json;

use super::*;
use crate::decode_json;

fn widgets() -> TypeRef {
    structural(&json!({
        "type": "object",
        "properties": {"spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10, "exclusiveMaximum": true},
                "color": {"type": "string", "default": "red", "enum": ["red", "blue"]},
                "opt": {"type": "string", "nullable": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "port": {"x-kubernetes-int-or-string": true},
                "emb": {"type": "object", "x-kubernetes-embedded-resource": true,
                        "x-kubernetes-preserve-unknown-fields": true},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                        "items": {"type": "object", "required": ["k"], "properties": {
                            "k": {"type": "string"}, "v": {"type": "integer", "default": 7}}}},
                "any": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object",
                        "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
                "when": {"type": "string", "format": "date-time"},
                "small": {"type": "integer", "format": "int32"},
                "name": {"type": "string", "maxLength": 3, "pattern": "^[a-z]+$"},
            },
        }},
    }))
    .expect("a schema")
}

#[test]
fn unknown_fields_are_pruned_and_values_kept() {
    let decoded = decode_json(
        br#"{"apiVersion":"e/v1","kind":"W","metadata":{"name":"w","bogus":1},
             "spec":{"size":"many","unknown":{"a":1,"a":2},"free":{"x":[{"y":null}]},
                     "emb":{"apiVersion":"v1","kind":"Pod","metadata":{"nam":"x"},"more":1}},
             "top":1}"#,
        &widgets(),
    )
    .expect("decodes");
    assert_eq!(
        decoded.value,
        json!({
            "apiVersion": "e/v1", "kind": "W", "metadata": {"name": "w"},
            "spec": {
                "size": "many",
                "free": {"x": [{"y": null}]},
                "emb": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "more": 1},
            },
        })
    );
    let texts: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            r#"duplicate field "spec.unknown.a""#,
            r#"unknown field "metadata.bogus""#,
            r#"unknown field "spec.emb.metadata.nam""#,
            r#"unknown field "spec.unknown""#,
            r#"unknown field "top""#,
        ]
    );
}

#[test]
fn defaults_fill_gaps_and_forbidden_nulls() {
    let mut value = json!({"spec": {"opt": null, "color": null, "when": null, "map": [{"k": "a"}, {"k": "b", "v": 1}]}});
    apply_defaults(&mut value, &widgets());
    assert_eq!(
        value,
        json!({"spec": {"opt": null, "color": "red", "map": [{"k": "a", "v": 7}, {"k": "b", "v": 1}]}})
    );
}

fn check_spec(spec: Value, expected: &[(InvalidKind, &str, Value, &str)]) {
    let found = validate(&json!({"spec": spec}), &widgets());
    let expected: Vec<Invalid> = expected
        .iter()
        .map(|(kind, field, bad, detail)| Invalid::new(*kind, *field, bad.clone(), *detail))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn violations_are_worded_as_upstream_s() {
    use InvalidKind::*;
    check_spec(
        json!({"size": 0}),
        &[(
            Invalid,
            "spec.size",
            json!(0),
            "spec.size in body should be greater than or equal to 1",
        )],
    );
    check_spec(
        json!({"size": 10}),
        &[(
            Invalid,
            "spec.size",
            json!(10),
            "spec.size in body should be less than 10",
        )],
    );
    check_spec(
        json!({"size": "x"}),
        &[(
            TypeInvalid,
            "spec.size",
            json!("string"),
            "spec.size in body must be of type integer: \"string\"",
        )],
    );
    check_spec(
        json!({"size": 1.5}),
        &[
            (
                TypeInvalid,
                "spec.size",
                json!("number"),
                "spec.size in body must be of type integer: \"number\"",
            ),
            (
                Invalid,
                "<nil>",
                json!(""),
                "Checked value must be of type integer (default format) in spec.size",
            ),
        ],
    );
    check_spec(json!({}), &[(Required, "spec.size", json!(""), "")]);
    check_spec(
        json!({"size": 1, "color": "green"}),
        &[(
            NotSupported,
            "spec.color",
            json!("green"),
            "supported values: \"red\", \"blue\"",
        )],
    );
    check_spec(
        json!({"size": 1, "set": ["a", "a"]}),
        &[(Duplicate, "spec.set[1]", json!("a"), "")],
    );
    check_spec(
        json!({"size": 1, "map": [{"k": "a"}, {"k": "a", "v": 1}]}),
        &[(Duplicate, "spec.map[1]", json!({"k": "a"}), "")],
    );
    check_spec(
        json!({"size": 1, "set": [null]}),
        &[(
            TypeInvalid,
            "spec.set[0]",
            json!("null"),
            "spec.set[0] in body must be of type string: \"null\"",
        )],
    );
    check_spec(
        json!({"size": 1, "any": {}}),
        &[
            (
                Invalid,
                "<nil>",
                json!(""),
                "\"spec.any\" must validate at least one schema (anyOf)",
            ),
            (Required, "spec.any.a", json!(""), ""),
        ],
    );
    check_spec(
        json!({"size": 1, "when": "yesterday"}),
        &[(
            TypeInvalid,
            "spec.when",
            json!("yesterday"),
            "spec.when in body must be of type date-time: \"yesterday\"",
        )],
    );
    check_spec(
        json!({"size": 1, "small": 3_000_000_000u64}),
        &[(
            Invalid,
            "<nil>",
            json!(""),
            "Checked value must be of type integer with format int32 in spec.small",
        )],
    );
    check_spec(
        json!({"size": 1, "name": "ABCD"}),
        &[(
            TooLong,
            "spec.name",
            json!("ABCD"),
            "may not be more than 3 bytes",
        )],
    );
    check_spec(
        json!({"size": 1, "name": "A"}),
        &[(
            Invalid,
            "spec.name",
            json!("A"),
            "spec.name in body should match '^[a-z]+$'",
        )],
    );
    check_spec(
        json!({"size": 1, "emb": {"kind": "Pod"}}),
        &[(Required, "spec.emb.apiVersion", json!(""), "")],
    );
    check_spec(json!({"size": 1, "port": "http", "opt": null}), &[]);
}

#[test]
fn values_that_are_no_strings_are_quoted_and_sizes_come_first() {
    let schema = structural(&json!({"type": "object", "properties": {
        "n": {"type": "integer", "enum": [1, 2]},
        "o": {"type": "object", "minProperties": 2, "properties": {"a": {"type": "string"}}},
        "p": {"type": "object", "required": ["b"], "properties": {"a": {"type": "string"}}},
    }}))
    .expect("a schema");
    let value = json!({"n": 3, "o": {"a": 1}, "p": {"a": 1}});
    let found: Vec<String> = validate_values(&value, None, &schema)
        .into_iter()
        .map(|one| format!("{}: {}", one.field, one.detail))
        .collect();
    assert_eq!(
        found,
        [
            r#"n: supported values: "1", "2""#,
            "o: o in body should have at least 2 properties",
            r#"p.a: p.a in body must be of type string: "integer""#,
            "p.b: ",
        ]
    );
    let sets = structural(
        &json!({"type": "object", "properties": {"m": {"type": "object", "additionalProperties": {
            "type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"},
        }}}}),
    )
    .expect("a schema");
    let fields: Vec<String> = duplicates(&json!({"m": {"k": [1, 2, 1, 1, 2]}}), &sets)
        .into_iter()
        .map(|one| one.field)
        .collect();
    assert_eq!(fields, ["m[k][2]", "m[k][4]"]);
    let status = json!({"status": {"n": 3, "o": {"a": 1}}});
    let schema = structural(&json!({"type": "object", "properties": {"status": {"type": "object", "properties": {
        "n": {"type": "integer", "maximum": 2}, "o": {"not": {"type": "object"}, "x-kubernetes-preserve-unknown-fields": true},
    }}}}))
    .expect("a schema");
    let found: Vec<String> = validate_field(&status, &json!({}), "status", &schema)
        .into_iter()
        .map(|one| format!("{}: {}", one.field, one.detail))
        .collect();
    assert_eq!(
        found,
        [
            "status.n: n in body should be less than or equal to 2",
            "status: \"o\" must not validate the schema (not)",
        ]
    );
}

#[test]
fn schemas_are_checked() {
    let fields = |schema: Value| -> Vec<(String, String)> {
        check(&schema)
            .invalid
            .into_iter()
            .map(|invalid| (invalid.field, invalid.detail))
            .collect()
    };
    let field = |field: &str, detail: &str| (field.to_owned(), detail.to_owned());
    assert_eq!(
        fields(json!({"properties": {"x": {}}})),
        [
            field(
                "properties[x].type",
                "must not be empty for specified object fields"
            ),
            field("type", "must not be empty at the root"),
        ]
    );
    assert_eq!(
        fields(json!({"type": "string"})),
        [field("type", "must be object at the root")]
    );
    let with = |property: Value| fields(json!({"type": "object", "properties": {"x": property}}));
    assert_eq!(
        with(json!({"type": "integer", "default": "a"})),
        [field(
            "properties[x].default",
            " in body must be of type integer: \"string\""
        )]
    );
    assert_eq!(
        with(
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"})
        ),
        [field(
            "properties[x].x-kubernetes-list-type",
            "supported values: \"atomic\", \"set\", \"map\""
        )]
    );
    assert_eq!(
        with(
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"})
        ),
        [field(
            "properties[x].x-kubernetes-list-map-keys",
            "must not be empty if x-kubernetes-list-type is map"
        )]
    );
    assert_eq!(
        with(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}})
        ),
        [field(
            "properties[x].additionalProperties",
            "additionalProperties and properties are mutual exclusive"
        )]
    );
    assert!(
        with(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})).is_empty()
    );
    // Its form and its keys are told both.
    assert_eq!(
        with(
            json!({"x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-map-type": "bag", "x-kubernetes-list-type": "set",
                "x-kubernetes-list-map-keys": ["k"]})
        ),
        [
            field(
                "properties[x].type",
                "must be object if x-kubernetes-map-type is specified"
            ),
            field(
                "properties[x].x-kubernetes-map-type",
                "supported values: \"atomic\", \"granular\""
            ),
            field(
                "properties[x].type",
                "must be array if x-kubernetes-list-type is specified"
            ),
            field(
                "properties[x].x-kubernetes-list-type",
                "must be map if x-kubernetes-list-map-keys is non-empty"
            ),
        ]
    );
    // JSON in which nothing stops the nesting.
    let mut deep = json!({"type": "object"});
    for _ in 0..110 {
        deep = json!({"type": "object", "additionalProperties": deep});
    }
    assert!(!check(&deep).invalid.is_empty());
    assert!(structural(&deep).is_err());
}

#[test]
fn what_only_validates_may_not_say_what_a_place_is() {
    let found = |schema: Value| -> Vec<String> {
        check(&schema)
            .invalid
            .into_iter()
            .map(|invalid| format!("{}: {}", invalid.field, invalid.detail))
            .collect()
    };
    let schema = json!({"type": "object", "properties": {"a": {"type": "object"}}, "anyOf": [
        {"type": "object", "description": "x", "properties": {"a": {"properties": {"b": {"minLength": 1}}}}},
    ]});
    assert_eq!(
        found(schema),
        [
            "anyOf[0].description: must be empty to be structural",
            "anyOf[0].type: must be empty to be structural",
            "properties[a].properties[b]: because it is defined in {root}.anyOf[0].properties[a].properties[b]",
        ]
    );
    // Upstream looks for fields that are missing from the root only.
    assert_eq!(
        found(
            json!({"type": "object", "properties": {"a": {"type": "object", "anyOf": [
                {"properties": {"b": {"minLength": 1}}},
            ]}}})
        ),
        Vec::<String>::new()
    );
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    assert_eq!(
        found(json!({"type": "object", "properties": {"a": {
            "x-kubernetes-int-or-string": true, "anyOf": either,
        }}})),
        Vec::<String>::new()
    );
    assert_eq!(
        found(json!({"type": "object", "properties": {"metadata": {
            "type": "object", "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string"}}},
        }}})),
        [
            "properties[metadata]: must not specify anything other than name and generateName, but metadata is implicitly \
             specified"
        ]
    );
    assert_eq!(
        found(
            json!({"type": "object", "nullable": true, "additionalProperties": {"type": "string"}})
        ),
        [
            "nullable: nullable cannot be true at the root",
            "additionalProperties: must not be used at the root",
        ]
    );
    assert_eq!(
        found(
            json!({"type": "object", "properties": {"a": {"type": "string", "$ref": "#/b", "pattern": "("}}})
        ),
        ["properties[a].$ref: $ref is not supported"]
    );
    assert_eq!(
        found(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "a("}}})),
        [
            "properties[a].pattern: must be a valid regular expression, but isn't: error parsing regexp: missing closing \
             ): `a(`"
        ]
    );
    assert_eq!(
        found(json!({"type": "object", "properties": {"a": {
            "type": "object", "default": {"b": 1}, "properties": {"c": {"type": "integer"}},
        }}})),
        ["properties[a].default: must not have unknown fields"]
    );
    assert_eq!(
        found(json!({"type": "object", "properties": {"a": {
            "type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"},
        }}})),
        [
            "properties[a].items.x-kubernetes-map-type: must be atomic as item of a list with x-kubernetes-list-type=set"
        ]
    );
}
