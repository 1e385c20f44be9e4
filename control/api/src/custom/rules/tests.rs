use serde_json::{Value, json};

use super::*;

/// Fields, and what stands after them, of what does not hold.
fn found(schema: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut errors = Errors::default();
    Rules::compile(schema).validate(new, old, &mut errors);
    errors.0.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check(schema: &Value, new: Value, old: Option<Value>, expected: &[&str]) {
    assert_eq!(found(schema, &new, old.as_ref()), expected, "{new}");
}

fn rule(text: &str) -> Value {
    json!([{"rule": text}])
}

fn of(ty: &str, rules: Value) -> Value {
    json!({"type": "object", "properties": {"a": {"type": ty, "x-kubernetes-validations": rules}}})
}

#[test]
fn a_rule_that_does_not_hold_is_named() {
    let schema = of("integer", rule("self > 3"));
    check(&schema, json!({"a": 4}), None, &[]);
    check(
        &schema,
        json!({"a": 3}),
        None,
        &["a: Invalid value: 3: failed rule: self > 3"],
    );
    check(&schema, json!({}), None, &[]);
}

#[test]
fn messages_reasons_and_paths_are_the_rules_own() {
    let mut schema = of(
        "object",
        json!([{
            "rule": "has(self.b)", "message": " b is needed ", "reason": "FieldValueRequired", "fieldPath": ".b",
        }]),
    );
    schema["properties"]["a"]["properties"] = json!({"b": {"type": "string"}});
    check(
        &schema,
        json!({"a": {}}),
        None,
        &["a.b: Required value: b is needed"],
    );

    let said = json!([{
        "rule": "self == 'x'", "message": "plain", "messageExpression": "'got ' + self",
    }]);
    let schema = of("string", said);
    check(
        &schema,
        json!({"a": "y"}),
        None,
        &["a: Invalid value: \"y\": got y"],
    );

    // An expression that fails leaves the plain message.
    let said = json!([{
        "rule": "self == 'x'", "message": "plain", "messageExpression": "self.substring(5, 9)",
    }]);
    check(
        &of("string", said),
        json!({"a": "y"}),
        None,
        &["a: Invalid value: \"y\": plain"],
    );
}

#[test]
fn transition_rules_compare_with_the_old_value() {
    let schema = of("integer", rule("self >= oldSelf"));
    check(&schema, json!({"a": 1}), None, &[]);
    check(&schema, json!({"a": 1}), Some(json!({})), &[]);
    check(&schema, json!({"a": 2}), Some(json!({"a": 1})), &[]);
    check(
        &schema,
        json!({"a": 1}),
        Some(json!({"a": 2})),
        &["a: Invalid value: 1: failed rule: self >= oldSelf"],
    );
}

#[test]
fn an_optional_old_value_is_looked_at_on_create_too() {
    let schema = of(
        "integer",
        json!([{
            "rule": "oldSelf.hasValue() ? self >= oldSelf.value() : self == 0", "optionalOldSelf": true, "message": "grows from 0",
        }]),
    );
    check(&schema, json!({"a": 0}), None, &[]);
    check(
        &schema,
        json!({"a": 1}),
        None,
        &["a: Invalid value: 1: grows from 0"],
    );
    check(&schema, json!({"a": 3}), Some(json!({"a": 2})), &[]);
    check(
        &schema,
        json!({"a": 1}),
        Some(json!({"a": 2})),
        &["a: Invalid value: 1: grows from 0"],
    );
}

#[test]
fn items_of_keyed_lists_have_an_old_value() {
    let schema = json!({"type": "object", "properties": {"l": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v", "message": "stays"}]},
    }}});
    let list = |items: Value| json!({"l": items});
    let old = list(json!([{"k": "a", "v": 1}, {"k": "b", "v": 2}]));
    check(
        &schema,
        list(json!([{"k": "b", "v": 2}, {"k": "c", "v": 9}])),
        Some(old.clone()),
        &[],
    );
    check(
        &schema,
        list(json!([{"k": "b", "v": 3}])),
        Some(old),
        &["l[0]: Invalid value: stays"],
    );
}

#[test]
fn what_was_wrong_before_may_stay() {
    let schema = of("integer", rule("self > 3"));
    check(&schema, json!({"a": 1, "b": 2}), Some(json!({"a": 1})), &[]);
    let found = found(&schema, &json!({"a": 2}), Some(&json!({"a": 1})));
    assert_eq!(found.len(), 1);
}

#[test]
fn values_have_the_types_of_the_schema() {
    let schema = |property: Value, text: &str| json!({"type": "object", "properties": {"a-b": property}, "x-kubernetes-validations": rule(text)});
    let holds = |property: Value, text: &str, value: Value| {
        let found = found(&schema(property, text), &json!({"a-b": value}), None);
        assert_eq!(found, Vec::<String>::new(), "{text}");
    };
    holds(
        json!({"type": "number"}),
        "self.a__dash__b == 2.0",
        json!(2),
    );
    holds(
        json!({"type": "string", "format": "date-time"}),
        "self.a__dash__b > timestamp('2024-01-01T00:00:00Z')",
        json!("2024-06-01T00:00:00Z"),
    );
    holds(
        json!({"type": "string", "format": "duration"}),
        "self.a__dash__b == duration('90s')",
        json!("1m30s"),
    );
    holds(
        json!({"type": "string", "format": "byte"}),
        "size(self.a__dash__b) == 3",
        json!("AAAA"),
    );
    holds(
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        "self.a__dash__b['x-y'] == 1 && self.a__dash__b.all(k, self.a__dash__b[k] > 0)",
        json!({"x-y": 1}),
    );
    holds(
        json!({"x-kubernetes-int-or-string": true}),
        "type(self.a__dash__b) == string ? self.a__dash__b == '5%' : self.a__dash__b == 5",
        json!(5),
    );
}

#[test]
fn a_rule_that_fails_says_so() {
    let schema = json!({"type": "object", "x-kubernetes-validations": rule("self.a == 1"),
        "properties": {"a": {"type": "integer"}}});
    check(
        &schema,
        json!({}),
        None,
        &["<nil>: Invalid value: no such key: a evaluating rule: self.a == 1"],
    );
}

#[test]
fn definitions_are_told_what_is_wrong_with_a_rule() {
    let problems = |property: Value| -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"a": property}});
        check::rules(&schema)
            .into_iter()
            .map(|p| format!("{}: {}", p.field, p.detail))
            .collect()
    };
    let integer = |text: &str| json!({"type": "integer", "x-kubernetes-validations": rule(text)});
    let at = ".properties[a].x-kubernetes-validations[0]";
    assert_eq!(problems(integer("self > 3")), Vec::<String>::new());
    assert_eq!(
        problems(integer("self + 1")),
        [format!("{at}.rule: cel expression must evaluate to a bool")]
    );
    assert_eq!(
        problems(integer("self > 'x'")),
        [format!(
            "{at}.rule: compilation failed: ERROR: <input>:1:6: found no matching overload for '_>_' applied to \
             '(int, string)'\n | self > 'x'\n | .....^"
        )]
    );
    assert_eq!(
        problems(integer("other > 1")),
        [format!(
            "{at}.rule: compilation failed: ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n \
             | other > 1\n | ^"
        )]
    );
    let object = json!({"type": "object", "properties": {"b": {"type": "string"}},
        "x-kubernetes-validations": rule("self.c == 'x'")});
    assert_eq!(
        problems(object),
        [format!(
            "{at}.rule: compilation failed: ERROR: <input>:1:5: undefined field 'c'\n | self.c == 'x'\n | ....^"
        )]
    );
    let syntax = problems(integer("self >"));
    assert!(
        syntax[0].starts_with(&format!("{at}.rule: compilation failed: ERROR: <input>:1:")),
        "{syntax:?}"
    );
    let list = json!({"type": "array", "maxItems": 3, "items": {"type": "integer",
        "x-kubernetes-validations": rule("self == oldSelf")}});
    assert_eq!(
        problems(list),
        [
            ".properties[a].items.x-kubernetes-validations[0].rule: oldSelf cannot be used on the uncorrelatable portion \
             of the schema within {root}.properties[a]"
        ]
    );
    let needless = json!({"type": "integer",
        "x-kubernetes-validations": [{"rule": "self > 1", "optionalOldSelf": true}]});
    assert_eq!(
        problems(needless),
        [format!(
            "{at}.optionalOldSelf: may not be set if oldSelf is not used in rule"
        )]
    );
}

#[test]
fn rules_over_unbounded_lists_are_too_expensive() {
    let schema = |bounds: Value| {
        let mut list = json!({"type": "array", "items": {"type": "string"},
            "x-kubernetes-validations": rule("self.all(a, self.all(b, a == b))")});
        for (name, value) in bounds.as_object().into_iter().flatten() {
            list[name] = value.clone();
        }
        json!({"type": "object", "properties": {"l": list}})
    };
    let problems = check::rules(&schema(json!({})));
    assert!(
        problems[0].detail.starts_with(
            "estimated rule cost exceeds budget by factor of more than 100x (try simplifying"
        ),
        "{problems:?}"
    );
    let mut bounded = schema(json!({"maxItems": 10}));
    bounded["properties"]["l"]["items"]["maxLength"] = 10.into();
    assert_eq!(check::rules(&bounded), Vec::new());
}
