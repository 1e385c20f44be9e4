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
        &[r#"<nil>: Invalid value: "object": no such key: a evaluating rule: self.a == 1"#],
    );
}

#[test]
fn definitions_are_told_what_is_wrong_with_a_rule() {
    let problems = |property: Value| -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"a": property}});
        check::rules(&schema, &|_| true)
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
    let problems = check::rules(&schema(json!({})), &|_| true);
    assert!(
        problems[0].detail.starts_with(
            "estimated rule cost exceeds budget by factor of more than 100x (try simplifying"
        ),
        "{problems:?}"
    );
    let mut bounded = schema(json!({"maxItems": 10}));
    bounded["properties"]["l"]["items"]["maxLength"] = 10.into();
    assert_eq!(check::rules(&bounded, &|_| true), Vec::new());
}

/// Rules over one list of a schema.
fn over_list(mut list: Value, text: &str) -> Value {
    list["type"] = "array".into();
    json!({"type": "object", "properties": {"l": list}, "x-kubernetes-validations": rule(text)})
}

#[track_caller]
fn holds(schema: &Value, new: Value, old: Option<Value>) {
    assert_eq!(check::rules(schema, &|_| true), Vec::new());
    check(schema, new, old, &[]);
}

#[test]
fn sets_and_maps_compare_without_order() {
    let set = json!({"x-kubernetes-list-type": "set", "maxItems": 9, "items": {"type": "string", "maxLength": 9}});
    let old = || Some(json!({"l": ["b", "a"]}));
    let new = || json!({"l": ["a", "b"]});
    let same = "self.l == oldSelf.l";
    holds(&over_list(set.clone(), same), new(), old());
    // An atomic list is another one in another order.
    let atomic = json!({"maxItems": 9, "items": {"type": "string", "maxLength": 9}});
    let failed = ["<nil>: Invalid value: failed rule: self.l == oldSelf.l"];
    check(&over_list(atomic, same), new(), old(), &failed);
    let different = Some(json!({"l": ["a", "c"]}));
    check(&over_list(set.clone(), same), new(), different, &failed);
    for text in [
        "self.l == ['b', 'a'] && ['b', 'a'] != self.l && self.l[0] == 'a'",
        "self.l + ['a', 'c'] == ['c', 'b', 'a'] && size(self.l + self.l) == 2",
        "'a' in self.l && self.l.all(x, x != 'c') && self.l.map(x, x) == ['a', 'b']",
        "self.l.sortBy(x, x)[1] == 'b' && self.l.exists(i, x, i == 1 && x == 'b')",
        "type(self.l) == list && self.l.join('-') == 'a-b' && sets.contains(self.l, ['a'])",
    ] {
        holds(&over_list(set.clone(), text), new(), None);
    }
    let map = json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k-1"], "maxItems": 9,
        "items": {"type": "object", "properties": {
            "k-1": {"type": "string", "maxLength": 9}, "v": {"type": "integer"}}}});
    let item = |k: &str, v: i64| json!({"k-1": k, "v": v});
    let new = || json!({"l": [item("a", 1), item("b", 2)]});
    let old = |v| Some(json!({"l": [item("b", v), item("a", 1)]}));
    holds(&over_list(map.clone(), same), new(), old(2));
    check(&over_list(map.clone(), same), new(), old(3), &failed);
    holds(
        &over_list(
            map,
            "(oldSelf.l + self.l) == self.l && (oldSelf.l + self.l)[0].v == 2",
        ),
        new(),
        old(3),
    );
}

#[test]
fn rules_know_every_macro() {
    let ints = json!({"maxItems": 9, "items": {"type": "integer"}});
    for text in [
        "cel.bind(n, size(self.l), n > 2 && n < 4)",
        "self.l.sortBy(x, -x) == [3, 2, 1]",
        "self.l.all(i, x, x > 0 && i < 3)",
        "self.l.existsOne(i, x, x == 3 && i == 0)",
        "self.l.transformList(i, x, i > 0, x * 2) == [2, 4]",
        "self.l.transformMap(i, x, x)[0] == 3",
        "[self.l, [4]].flatten().distinct().size() == 4",
        "optional.of(self.l).optMap(l, l[0]).orValue(0) == 3",
    ] {
        holds(
            &over_list(ints.clone(), text),
            json!({"l": [3, 1, 2]}),
            None,
        );
    }
    let said = |text: &str| {
        let found = check::rules(&over_list(ints.clone(), text), &|_| true);
        found.first().map(|p| p.detail.clone()).unwrap_or_default()
    };
    assert!(
        said("cel.bind(n, self.l, n.startsWith('x'))").contains(
            "found no matching overload for 'startsWith' applied to 'list(int).(string)'"
        )
    );
    assert!(said("self.l.all(i, x, x == 'a')").contains("applied to '(int, string)'"));
    assert!(said("self.l[0].matches('(')").contains("applied to 'int.(string)'"));
    assert!(said("'a'.matches('(')").contains("invalid matches argument"));
}

#[test]
fn what_did_not_hold_before_is_only_warned_of() {
    let items = json!({"type": "array", "items": {"type": "integer", "x-kubernetes-validations": rule("self > 3")}});
    let schema = json!({"type": "object", "properties": {"a": items, "b": {"type": "integer"}}});
    let told = |new: Value, old: Value| {
        let mut errors = Errors::default();
        let warnings = Rules::compile(&schema).validate(&new, Some(&old), &mut errors);
        (errors.0.len(), warnings)
    };
    let warning = "a[0]: Invalid value: 1: failed rule: self > 3".to_owned();
    // Items of a list without keys are as old as the list.
    let old = json!({"a": [1], "b": 1});
    assert_eq!(
        told(json!({"a": [1], "b": 2}), old.clone()),
        (0, vec![warning])
    );
    assert_eq!(told(json!({"a": [1, 4], "b": 1}), old), (1, vec![]));
}
