use proptest::prelude::*;
use serde_json::{Value, json};
use skep_schema::builtin;

use super::*;

fn pod_spec(spec: Value) -> Value {
    json!({"spec": spec})
}

fn check(spec: Value, patch: Value, expected: Value) {
    let ty = builtin("", "v1", "Pod").expect("a built-in kind");
    let merged = strategic_merge(&pod_spec(spec), &pod_spec(patch), &ty).expect("merges");
    assert_eq!(merged, pod_spec(expected));
}

fn check_error(spec: Value, patch: Value, expected: PatchError) {
    let ty = builtin("", "v1", "Pod").expect("a built-in kind");
    assert_eq!(
        strategic_merge(&pod_spec(spec), &pod_spec(patch), &ty),
        Err(expected)
    );
}

#[test]
fn lists_merge_by_key_and_new_items_go_first() {
    check(
        json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}),
        json!({"containers": [{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]}),
        json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "c", "env": [{"name": "X", "value": null}]}]}),
        json!({"containers": [{"name": "c", "env": [{"name": "X"}]}, {"name": "a"}]}),
    );
    check(
        json!({"containers": [{"name": "a", "args": ["1", "2"]}]}),
        json!({"containers": [{"name": "a", "args": ["9"]}]}),
        json!({"containers": [{"name": "a", "args": ["9"]}]}),
    );
}

#[test]
fn directives_delete_and_replace() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "z"}]}),
    );
    check(
        json!({"nodeSelector": {"a": "1", "b": "2"}}),
        json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
        json!({"nodeSelector": {"c": "3"}}),
    );
    check(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"$retainKeys": ["fsGroup"], "fsGroup": 3}}),
        json!({"securityContext": {"fsGroup": 3}}),
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "x"}}]}),
        json!({"volumes": [{"name": "v", "configMap": {"name": "x"}}]}),
    );
}

#[test]
fn orders_are_set() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "x"}]}),
        // "s" stood before "b" on the server and nobody asked for it elsewhere.
        json!({"containers": [{"name": "s"}, {"name": "b", "image": "x"}, {"name": "a"}]}),
    );
}

#[test]
fn lists_of_primitives_merge_as_sets() {
    let ty = builtin("", "v1", "Pod").expect("a built-in kind");
    let object = json!({"metadata": {"finalizers": ["a", "b"]}});
    let merged = strategic_merge(
        &object,
        &json!({"metadata": {"finalizers": ["c", "a"]}}),
        &ty,
    );
    assert_eq!(
        merged,
        Ok(json!({"metadata": {"finalizers": ["c", "a", "b"]}}))
    );
    let merged = strategic_merge(
        &object,
        &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a", "none"]}}),
        &ty,
    );
    assert_eq!(merged, Ok(json!({"metadata": {"finalizers": ["b"]}})));
}

#[test]
fn errors_are_upstream_s() {
    check_error(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"image": "q"}]}),
        PatchError::Internal(
            "map: map[image:q] does not contain declared merge key: name".to_owned(),
        ),
    );
    check_error(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "a", "$patch": "frob"}]}),
        PatchError::Internal("unknown patch type: frob in map: map[$patch:frob name:a]".to_owned()),
    );
    check_error(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": ["x"]}),
        PatchError::Internal(
            "list element types are not identical: [[map[name:a]] [x]]".to_owned(),
        ),
    );
    let order =
        |order: Value| json!({"$setElementOrder/containers": order, "containers": [{"name": "a"}]});
    check_error(
        json!({"containers": [{"name": "a"}]}),
        order(json!("x")),
        PatchError::Internal("expected a []interface {}, but received a string".to_owned()),
    );
    check_error(
        json!({"containers": [{"name": "a"}]}),
        order(json!([{"name": "b"}])),
        PatchError::Internal(
            "The order in patch list:\n[map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n".to_owned(),
        ),
    );
    check_error(
        json!({"containers": []}),
        json!({"hostNetwork": "x"}),
        PatchError::Invalid("unrecognized type: bool".to_owned()),
    );
    check_error(
        json!({"containers": []}),
        json!({"nodeName": 5}),
        PatchError::Invalid("cannot convert int64 to string".to_owned()),
    );
    check_error(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": {"name": "a"}}),
        PatchError::Invalid("cannot restore slice from map".to_owned()),
    );
}

/// Lists, maps and directives where the kind has them and where it has not.
fn any_patch() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("containers"),
        Just("name"),
        Just("env"),
        Just("tolerations"),
        Just("finalizers"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("$setElementOrder/containers"),
        Just("$setElementOrder/env"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(1)),
        "[ab]".prop_map(Value::from),
        Just(json!("delete")),
        Just(json!("replace")),
        Just(json!("merge")),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_patch_gives_an_object_or_an_error(object in any_patch(), patch in any_patch(), metadata in any_patch()) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let object = json!({"metadata": metadata, "spec": object});
        let whole = json!({"metadata": patch, "spec": patch});
        let _ = strategic_merge(&object, &whole, &ty);
        let _ = strategic_merge(&object, &patch, &ty);
    }

    #[test]
    fn an_empty_patch_changes_nothing(names in prop::collection::btree_set("[a-e]", 0..5)) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let object = pod_spec(json!({"containers": containers}));
        for patch in [json!({}), pod_spec(json!({})), object.clone()] {
            prop_assert_eq!(&strategic_merge(&object, &patch, &ty).expect("merges"), &object);
        }
    }
}
