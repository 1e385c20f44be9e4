use serde_json::json;

use super::*;
use crate::{from_json, to_json};

struct Object(serde_json::Value);

impl Environment for Object {
    fn variable(&self, name: &str) -> Option<Result<Value, Error>> {
        self.0.get(name).map(|value| Ok(from_json(value)))
    }

    fn field(&self, variable: &str, field: &str) -> Option<Result<Value, Error>> {
        (variable == "variables").then(|| match field {
            "seven" => Ok(Value::Int(7)),
            _ => Err(Error::failed("broken")),
        })
    }
}

fn evaluated(source: &str) -> Result<Value, String> {
    let object = json!({
        "metadata": {"name": "web", "namespace": "prod", "labels": {"app": "x", "tier": "1"}},
        "spec": {"replicas": 3, "containers": [{"name": "a", "image": "r/a:1"}, {"name": "b", "image": "b"}]},
        "empty": [], "half": 0.5,
    });
    let environment = Object(json!({"object": object, "oldObject": null}));
    let program = Program::compile(source).map_err(|e| e.to_string())?;
    let budget = Budget::new(10_000_000);
    program
        .evaluate(&environment, &budget)
        .map_err(|e| e.to_string())
}

#[track_caller]
fn check(source: &str, wanted: serde_json::Value) {
    let value = evaluated(source).unwrap_or_else(|error| panic!("{source}: {error}"));
    assert_eq!(to_json(&value).unwrap(), wanted, "{source}");
}

#[track_caller]
fn fails(source: &str, why: &str) {
    assert_eq!(
        evaluated(source).map(|v| format!("{v:?}")),
        Err(why.to_owned()),
        "{source}"
    );
}

#[test]
fn objects_and_collections() {
    check(
        "object.metadata.name == 'web' && object.metadata.namespace == 'prod'",
        json!(true),
    );
    check("object.spec.replicas * 2 + 1", json!(7));
    check("has(object.metadata.annotations)", json!(false));
    check(
        "has(object.metadata.labels) && 'app' in object.metadata.labels",
        json!(true),
    );
    check(
        "object.spec.containers.all(c, c.image.startsWith('r/'))",
        json!(false),
    );
    check(
        "object.spec.containers.exists(c, c.image.contains(':'))",
        json!(true),
    );
    check(
        "object.spec.containers.exists_one(c, c.name == 'a')",
        json!(true),
    );
    check("object.spec.containers.map(c, c.name)", json!(["a", "b"]));
    check(
        "object.spec.containers.filter(c, c.name > 'a').map(c, c.image)",
        json!(["b"]),
    );
    check(
        "object.metadata.labels.all(k, size(object.metadata.labels[k]) == 1)",
        json!(true),
    );
    check("object.metadata.labels.map(k, k)", json!(["app", "tier"]));
    check("oldObject == null", json!(true));
    check("[1, 2] + [3]", json!([1, 2, 3]));
    check("1 in [1u, 2u] && 1.0 == 1", json!(true));
    check("size('héllo')", json!(5));
    check("type(object.half) == double && type(1) == int", json!(true));
    check("variables.seven == 7 || variables.broken", json!(true));
}

#[test]
fn optionals_and_macros() {
    check("object.metadata.?annotations.orValue({})", json!({}));
    check(
        "object.metadata.?annotations['x'].orValue('none')",
        json!("none"),
    );
    check("object.?metadata.?labels.?app.orValue('')", json!("x"));
    check("object.spec.?replicas.hasValue()", json!(true));
    check(
        "object.spec.?paused.or(optional.of(true)).value()",
        json!(true),
    );
    check("object.empty[?0].orValue(9)", json!(9));
    check("optional.of(3).optMap(x, x + 1).value()", json!(4));
    check("[?object.spec.?replicas, ?object.spec.?nope]", json!([3]));
    check(
        "{?'a': object.spec.?replicas, ?'b': object.spec.?nope}",
        json!({"a": 3}),
    );
    check("cel.bind(n, object.spec.replicas, n + n)", json!(6));
    check(
        "object.metadata.labels.exists(k, v, v == '1' && k == 'tier')",
        json!(true),
    );
    check("[5, 6].transformList(i, v, v > 5, i)", json!([1]));
    check("{'a': 1}.transformMap(k, v, v + 1)", json!({"a": 2}));
}

#[test]
fn libraries() {
    check("sets.contains(['a', 'b'], ['a'])", json!(true));
    check(
        "quantity('1Gi').isGreaterThan(quantity('500Mi'))",
        json!(true),
    );
    check("'a,b'.split(',')", json!(["a", "b"]));
    check("'v%s-%d'.format(['x', 2])", json!("vx-2"));
    check("'abc'.matches('^a.c$')", json!(true));
    check("ip('10.0.0.1').family()", json!(4));
    check("url('https://a.b/c').getHost()", json!("a.b"));
    check("string(duration('1h')) == '3600s'", json!(true));
    check(
        "timestamp('2024-01-01T00:00:00Z') < timestamp('2025-01-01T00:00:00Z')",
        json!(true),
    );
    check("['b', 'a'].sort() == ['a', 'b'] || true", json!(true));
    check("jsonpatch.escapeKey('a/b')", json!("a~1b"));
    check("int('42') + 1", json!(43));
}

#[test]
fn failures_read_as_in_cel_go() {
    fails("object.spec.nope == 1", "no such key: nope");
    fails("object.metadata.labels['nope']", "no such key: nope");
    fails("object.empty[0]", "index out of bounds: 0");
    fails("1 / 0", "division by zero");
    fails("9223372036854775807 + 1", "integer overflow");
    fails("'a' + 1", "no such overload");
    fails("true + 1", "no such overload: _+_");
    fails("'a' - 'b'", "no such overload: _-_");
    fails("1 < 'a'", "no such overload");
    fails("{} < {}", "no such overload: _<_");
    fails(
        "[1].startsWith('a')",
        "no such overload: startsWith(list, string)",
    );
    fails(
        "'a'.startsWith(1)",
        "no such overload: startsWith(string, int)",
    );
    fails("size(1)", "no such overload: size");
    fails("1 && true", "no such overload");
    fails("1 ? 2 : 3", "no such overload");
    fails("int('x')", "type conversion error from 'string' to 'int'");
    fails("18446744073709551615u + 1u", "unsigned integer overflow");
    fails("9223372036854775807 + 1", "integer overflow");
    fails("!'a'", "no such overload");
    fails("oldObject.metadata.name", "no such key: metadata");
    // The side that decides wins.
    check("object.spec.nope == 1 || true", json!(true));
    check("false && object.spec.nope == 1", json!(false));
    check("object.spec.nope == 1 && false", json!(false));
    fails("object.spec.nope == 1 && true", "no such key: nope");
}

#[test]
fn constructed_objects_know_their_place() {
    let made = |source: &str| match evaluated(source).unwrap() {
        Value::Opaque(opaque) => opaque.downcast_ref::<crate::Object>().unwrap().clone(),
        other => panic!("{other:?}"),
    };
    let object = made(
        "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{replicas: 1}}",
    );
    assert_eq!(object.check_places(), Ok(()));
    let value = Value::Opaque(Arc::new(object));
    assert_eq!(
        to_json(&value).unwrap(),
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}})
    );
    assert!(
        made("Object{spec: Object.metadata{}}")
            .check_places()
            .is_err()
    );
    assert_eq!(
        made("JSONPatch{op: 'add', path: '/x', value: 1}").type_name,
        "JSONPatch"
    );
}

#[test]
fn nothing_costs_more_than_its_budget() {
    let numbers = format!("[{}]", vec!["1"; 100].join(","));
    let nested = format!(
        "{numbers}.all(a, {numbers}.all(b, {numbers}.all(c, {numbers}.all(d, a + b + c + d > 0))))"
    );
    let started = std::time::Instant::now();
    fails(&nested, &Error::CallLimit.to_string());
    assert!(started.elapsed().as_secs() < 20);
    let program = Program::compile("[1, 2, 3].map(x, x)").unwrap();
    let budget = Budget::new(3);
    let environment = Object(json!({}));
    assert_eq!(
        program.evaluate(&environment, &budget),
        Err(Error::CallLimit)
    );
    assert!(budget.spent());
}

#[test]
fn bad_text_is_refused_with_its_place() {
    let error = evaluated("object.").unwrap_err();
    assert!(error.starts_with("ERROR: <input>:1:"), "{error}");
    for source in [
        "",
        "(",
        "object..x",
        "a ? b",
        "'open",
        "[1,",
        "has(1)",
        "x.all(1, true)",
        "\u{0}",
        "{",
    ] {
        assert!(Program::compile(source).is_err(), "{source:?}");
    }
    for (unit, end) in [
        ("1+", "1"),
        ("a.", "b"),
        ("!", "true"),
        ("true?1:", "2"),
        ("[", ""),
        ("x.map(y,", ""),
        ("-", "1"),
    ] {
        // Whether it compiles matters less than that it ends.
        let _result = Program::compile(&(unit.repeat(5000) + end));
        let environment = Object(json!({"a": 1}));
        if let Ok(program) = Program::compile(&(unit.repeat(500) + end)) {
            let _value = program.evaluate(&environment, &Budget::new(10_000));
        }
    }
    let deep = "(".repeat(40) + "1" + &")".repeat(40);
    assert!(Program::compile(&deep).is_ok());
    let deep = "(".repeat(5000) + "1" + &")".repeat(5000);
    assert!(Program::compile(&deep).is_err());
}

mod strange_input {
    use std::collections::BTreeMap;

    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::check::{Type, check};

    const TOKENS: [&str; 46] = [
        "object",
        "x",
        "y",
        "self",
        ".",
        ".?",
        "[",
        "]",
        "[?",
        "(",
        ")",
        "{",
        "}",
        ",",
        ":",
        "?",
        " ",
        "+",
        "-",
        "*",
        "/",
        "%",
        "!",
        "==",
        "<",
        "&&",
        "||",
        " in ",
        "1",
        "2u",
        "0.5",
        "'a'",
        "b'\\xff'",
        "true",
        "null",
        "has(",
        ".map(x,",
        ".all(x,",
        ".exists(x, y,",
        ".sortBy(x,",
        ".matches('",
        "cel.bind(x,",
        "size(",
        ".metadata.labels",
        "timestamp('",
        "\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// No panic, and nothing beyond the budget, whatever somebody writes.
        #[test]
        fn is_refused_or_evaluated(tokens in proptest::collection::vec(select(&TOKENS[..]), 0..25)) {
            let Ok(program) = Program::compile(&tokens.concat()) else {
                return Ok(());
            };
            let object = json!({"metadata": {"labels": {"a": "b"}}, "list": [1, 2, 3]});
            let declarations = BTreeMap::from([
                ("object".to_owned(), Type::Dyn),
                ("self".to_owned(), Type::list(Type::TEXT)),
            ]);
            let _checked = check(&program, &declarations);
            let environment = Object(json!({"object": object, "self": ["a"]}));
            let budget = Budget::new(10_000);
            let _value = program.evaluate(&environment, &budget);
        }

        /// What the checker promises is what comes out.
        #[test]
        fn has_the_type_that_was_found(
            a in select(&["1", "'a'", "true", "[1, 2]", "{'a': 1}", "object.list", "object.metadata.labels"][..]),
            b in select(&["2", "'b'", "false", "[3]", "{'b': 2}"][..]),
            form in select(&[
                "A == B", "A + B", "[A, A]", "true ? A : A", "size(A)", "[A].map(x, x)", "A in [B]", "!A", "[A].first()",
                "cel.bind(x, A, [x])", "optional.of(A).orValue(A)", "string(A)", "A < B", "A && B", "[A][0]",
            ][..]),
        ) {
            let source = form.replace('A', a).replace('B', b);
            let program = Program::compile(&source).unwrap();
            let declarations = BTreeMap::from([("object".to_owned(), Type::Dyn)]);
            let Ok(checked) = check(&program, &declarations) else {
                return Ok(());
            };
            let object = json!({"metadata": {"labels": {"a": "b"}}, "list": [1, 2, 3]});
            let environment = Object(json!({"object": object}));
            let Ok(value) = program.evaluate(&environment, &Budget::new(10_000)) else {
                prop_assert!(source.contains("object"), "{source} cannot be evaluated");
                return Ok(());
            };
            let fits = match (&checked.ty, &value) {
                (Type::Bool, Value::Bool(_)) | (Type::Int, Value::Int(_)) => true,
                (Type::String(_), Value::String(_)) | (Type::List(..), Value::List(_)) => true,
                (Type::Map(..), Value::Map(_)) | (Type::Dyn, _) => true,
                (Type::Optional(_), value) => as_optional(value).is_some(),
                _ => false,
            };
            prop_assert!(fits, "{source}: {} {value:?}", checked.ty);
        }
    }
}
