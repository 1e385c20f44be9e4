use proptest::prelude::*;
use serde_json::json;
use skep_schema::{builtin, conform};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn writer(manager: &str, api_version: &str) -> Writer {
    Writer {
        manager: manager.to_owned(),
        api_version: api_version.to_owned(),
        subresource: String::new(),
        time: at(1_000),
    }
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn config_maps() -> TypeRef {
    builtin("", "v1", "ConfigMap").expect("a built-in kind")
}

fn apply_data(
    live: Option<&Value>,
    who: &str,
    data: Value,
    force: bool,
) -> Result<Value, ApplyError> {
    apply(
        live,
        &config_map(data),
        &config_maps(),
        &writer(who, "v1"),
        &["status"],
        force,
    )
}

fn owners(object: &Value) -> Vec<(String, String, Value)> {
    let list = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (
                text("manager"),
                text("operation"),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn owner(manager: &str, operation: &str, fields: Value) -> (String, String, Value) {
    (manager.to_owned(), operation.to_owned(), fields)
}

#[test]
fn fields_are_shared_taken_and_given_up() {
    let one = apply_data(None, "alice", json!({"a": "1", "b": "2"}), false).expect("creates");
    assert_eq!(
        one["metadata"]["managedFields"][0]["time"],
        "1970-01-01T00:16:40Z"
    );
    let both = json!({"f:data": {"f:a": {}, "f:b": {}}});
    assert_eq!(owners(&one), [owner("alice", "Apply", both.clone())]);

    // Sharing changes nothing but the owners, and carries no time.
    let shared = apply_data(Some(&one), "bob", json!({"a": "1", "b": "2"}), false).expect("shares");
    assert_eq!(shared["data"], one["data"]);
    assert_eq!(
        owners(&shared),
        [
            owner("bob", "Apply", both.clone()),
            owner("alice", "Apply", both)
        ]
    );
    assert!(shared["metadata"]["managedFields"][0].get("time").is_none());

    let error = apply_data(Some(&shared), "bob", json!({"a": "9"}), false).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"alice\": .data.a"
    );

    let forced = apply_data(Some(&shared), "bob", json!({"a": "9"}), true).expect("forces");
    assert_eq!(forced["data"], json!({"a": "9", "b": "2"}));
    assert_eq!(
        owners(&forced),
        [
            owner("alice", "Apply", json!({"f:data": {"f:b": {}}})),
            owner("bob", "Apply", json!({"f:data": {"f:a": {}}})),
        ]
    );
    let gone = apply_data(Some(&forced), "alice", json!({}), false).expect("gives up");
    assert_eq!(gone["data"], json!({"a": "9"}));
}

#[test]
fn updates_take_what_they_change() {
    let applied = apply_data(None, "bob", json!({"a": "1"}), false).expect("creates");
    let mut patched = applied.clone();
    patched["data"]["z"] = json!("1");
    update(
        Some(&applied),
        &mut patched,
        &config_maps(),
        &writer("carol", "v1"),
        &[],
    );
    assert_eq!(
        owners(&patched),
        [
            owner("bob", "Apply", json!({"f:data": {"f:a": {}}})),
            owner("carol", "Update", json!({"f:data": {"f:z": {}}})),
        ]
    );
    let error = apply_data(Some(&patched), "bob", json!({"a": "1", "z": "2"}), false);
    let error = error.expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"carol\" using v1: .data.z"
    );
    let two = apply_data(Some(&patched), "dave", json!({"a": "8", "z": "2"}), false);
    assert_eq!(
        two.expect_err("conflicts").to_string(),
        "Apply failed with 2 conflicts: conflicts with \"bob\":\n- .data.a\nconflicts with \"carol\" using v1:\n- .data.z"
    );

    // A PUT that removes a takes it from bob.
    let mut put = patched.clone();
    put["data"] = json!({"z": "5"});
    update(
        Some(&patched),
        &mut put,
        &config_maps(),
        &writer("erin", "v1"),
        &[],
    );
    assert_eq!(
        owners(&put),
        [owner("erin", "Update", json!({"f:data": {"f:z": {}}}))]
    );
}

#[test]
fn an_update_that_changes_nothing_keeps_times() {
    let applied = apply_data(None, "bob", json!({"a": "1"}), false).expect("creates");
    let mut same = applied.clone();
    let mut late = writer("bob", "v1");
    late.time = at(5_000);
    update(Some(&applied), &mut same, &config_maps(), &late, &[]);
    assert_eq!(same, applied);
}

#[test]
fn creating_owns_everything_but_identity() {
    let ty = builtin("apps", "v1", "Deployment").expect("a built-in kind");
    let new = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"l": "1"}, "uid": "x", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}},
        },
        "status": {"replicas": 1},
    });
    let mut new = conform(new, &ty).expect("conforms").value;
    update(
        None,
        &mut new,
        &ty,
        &writer("kubectl-create", "apps/v1"),
        &["status"],
    );
    assert_eq!(
        owners(&new),
        [owner(
            "kubectl-create",
            "Update",
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:selector": {},
                    "f:template": {
                        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                        "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                            ".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}},
                    },
                },
            })
        )]
    );
}

#[test]
fn the_list_can_be_reset_but_not_lost() {
    let applied = apply_data(None, "bob", json!({"a": "1"}), false).expect("creates");
    let mut put = config_map(json!({"a": "1"}));
    update(
        Some(&applied),
        &mut put,
        &config_maps(),
        &writer("old", "v1"),
        &[],
    );
    assert_eq!(owners(&put), owners(&applied));

    let mut reset = applied.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(
        Some(&applied),
        &mut reset,
        &config_maps(),
        &writer("admin", "v1"),
        &[],
    );
    assert!(reset["metadata"].get("managedFields").is_none());

    let error = apply_data(Some(&reset), "frank", json!({"a": "2"}), false);
    assert_eq!(
        error.expect_err("conflicts").to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    let mut with_list = config_map(json!({}));
    with_list["metadata"]["managedFields"] = json!([]);
    let error = apply(
        None,
        &with_list,
        &config_maps(),
        &writer("x", "v1"),
        &[],
        false,
    );
    assert_eq!(
        error,
        Err(ApplyError::BadRequest(
            "metadata.managedFields must be nil".to_owned()
        ))
    );
}

#[test]
fn old_updates_are_folded_together() {
    let ty = config_maps();
    let mut live = config_map(json!({}));
    for round in 0..15 {
        let mut new = live.clone();
        new["data"][format!("k{round:02}")] = json!("v");
        let mut who = writer(&format!("m{round:02}"), "v1");
        who.time = at(1_000 + round);
        update(Some(&live), &mut new, &ty, &who, &[]);
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), MAX_UPDATE_MANAGERS);
    assert_eq!(owners[0].0, "ancient-changes");
    assert_eq!(owners[0].2["f:data"].as_object().map(Map::len), Some(6));
}

#[test]
fn client_side_apply_gives_way_to_kubectl() {
    let ty = config_maps();
    let mut live = config_map(json!({"a": "1", "b": "1"}));
    live["metadata"]["annotations"] = json!({
        LAST_APPLIED: "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"c\"},\"data\":{\"a\":\"1\"}}\n"
    });
    update(
        None,
        &mut live,
        &ty,
        &writer("kubectl-client-side-apply", "v1"),
        &[],
    );
    // a was applied by kubectl and is unchanged; b was not.
    let applied = apply_data(Some(&live), "kubectl", json!({"a": "2"}), false).expect("takes over");
    assert_eq!(applied["data"]["a"], "2");
    assert_eq!(
        annotation(&applied),
        Some(
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"2\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"c\"}}\n"
        )
    );
    let error = apply_data(Some(&live), "kubectl", json!({"b": "2"}), false);
    assert!(matches!(error, Err(ApplyError::Conflicts(conflicts)) if conflicts.len() == 1));
    let error = apply_data(Some(&live), "other", json!({"a": "2"}), false);
    assert!(matches!(error, Err(ApplyError::Conflicts(_))));
}

fn deployment(containers: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": containers}}},
    })
}

#[test]
fn list_items_belong_to_who_applied_them() {
    let ty = builtin("apps", "v1", "Deployment").expect("a built-in kind");
    let apply = |live: Option<&Value>, who: &str, containers: Value| {
        super::apply(
            live,
            &deployment(containers),
            &ty,
            &writer(who, "apps/v1"),
            &["status"],
            false,
        )
    };
    let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].clone();
    let one = apply(
        None,
        "alice",
        json!([{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}]),
    )
    .expect("creates");
    let two = apply(Some(&one), "bob", json!([{"name": "side", "image": "s:1"}])).expect("adds");
    assert_eq!(containers(&two).as_array().map(Vec::len), Some(2));
    // The default of protocol identifies the port.
    assert!(
        owners(&two)[0]
            .2
            .to_string()
            .contains(r#"k:{\"containerPort\":80,\"protocol\":\"TCP\"}"#),
        "{:?}",
        owners(&two)
    );
    let three =
        apply(Some(&two), "alice", json!([{"name": "a", "image": "a:2"}])).expect("changes");
    assert_eq!(
        containers(&three),
        json!([{"name": "a", "image": "a:2", "resources": {}}, {"name": "side", "image": "s:1", "resources": {}}])
    );
    let error = apply(
        Some(&three),
        "bob",
        json!([{"name": "a", "image": "b"}, {"name": "side", "image": "s:1"}]),
    );
    assert_eq!(
        error.expect_err("conflicts").to_string(),
        "Apply failed with 1 conflict: conflict with \"alice\": .spec.template.spec.containers[name=\"a\"].image"
    );
    let gone = apply(Some(&three), "bob", json!([])).expect("gives up");
    assert_eq!(
        containers(&gone),
        json!([{"name": "a", "image": "a:2", "resources": {}}])
    );

    let error = apply(None, "x", json!([{"name": "a"}, {"name": "a"}])).expect_err("duplicates");
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
    );
    let mut unknown = deployment(json!([]));
    unknown["spec"]["bogus"] = json!(1);
    let error = super::apply(None, &unknown, &ty, &writer("x", "apps/v1"), &[], false);
    assert_eq!(
        error.expect_err("unknown field").to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.bogus: field not declared in schema"
    );
}

/// Configurations of pods: some containers with some images and ports, some labels, some finalizers.
fn configuration() -> impl Strategy<Value = Value> {
    let container = (
        "[ab]",
        prop::option::of("[x-z]"),
        prop::collection::btree_set(1..4, 0..3),
    );
    (
        prop::collection::vec(container, 0..3),
        prop::collection::btree_map("[k-m]", "[x-z]", 0..3),
        prop::collection::btree_set("[f-h]", 0..3),
    )
        .prop_map(|(containers, labels, finalizers)| {
            let mut seen = std::collections::BTreeSet::new();
            let containers: Vec<Value> = containers
                .into_iter()
                .filter(|(name, ..)| seen.insert(name.clone()))
                .map(|(name, image, ports)| {
                    let ports: Vec<Value> = ports
                        .iter()
                        .map(|port| json!({"containerPort": port, "protocol": "TCP"}))
                        .collect();
                    let mut container = json!({"name": name});
                    if let Some(image) = image {
                        container["image"] = json!(image);
                    }
                    if !ports.is_empty() {
                        container["ports"] = json!(ports);
                    }
                    container
                })
                .collect();
            let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
            if !containers.is_empty() {
                object["spec"]["containers"] = json!(containers);
            }
            if !labels.is_empty() {
                object["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                object["metadata"]["finalizers"] = json!(finalizers);
            }
            object
        })
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(before in prop::collection::vec((0..3usize, configuration()), 0..4), last in configuration()) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let mut live = None;
        for (who, applied) in &before {
            let who = writer(["a", "b", "c"][*who], "v1");
            live = Some(apply(live.as_ref(), applied, &ty, &who, &["status"], true).expect("forced"));
        }
        let once = apply(live.as_ref(), &last, &ty, &writer("a", "v1"), &["status"], true).expect("forced");
        // Forced, then applied again without force: no conflict, no change.
        let mut late = writer("a", "v1");
        late.time = at(9_999);
        let twice = apply(Some(&once), &last, &ty, &late, &["status"], false).expect("no conflict left");
        prop_assert_eq!(&once, &twice);
        // What was applied is there.
        let set = typed::to_set(&last, Ty::of(ty.node()));
        let mut missing = set.clone();
        missing.subtract(&typed::to_set(&once, Ty::of(ty.node())));
        missing.subtract(&UNOWNED);
        prop_assert!(missing.paths().is_empty(), "{:?}", missing.paths());
    }

    #[test]
    fn updates_own_every_difference(old in configuration(), new in configuration()) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let conformed = |value: &Value| conform(value.clone(), &ty).expect("conforms").value;
        let (old, mut put) = (conformed(&old), conformed(&new));
        let compared = typed::compare(&old, &put, Ty::of(ty.node()));
        update(Some(&old), &mut put, &ty, &writer("u", "v1"), &[]);
        let owned = put["metadata"]["managedFields"][0]["fieldsV1"].clone();
        let mut changed = compared.added;
        changed.union(&compared.modified);
        prop_assert_eq!(changed.encode(), if owned.is_null() { json!({}) } else { owned });
    }

    #[test]
    fn a_comparison_with_itself_is_empty(object in configuration()) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        prop_assert!(typed::compare(&object, &object, Ty::of(ty.node())).is_same());
        prop_assert_eq!(typed::merge(&object, &object, Ty::of(ty.node())), object);
    }

    #[test]
    fn managed_fields_of_any_form_are_survived(
        fields in hostile_fields(),
        entry in prop::collection::btree_map("manager|operation|apiVersion|fieldsType|subresource|time", "Apply|Update|v1|apps/v9|FieldsV1|a|[\\PC]{0,3}", 0..6),
        applied in configuration(),
    ) {
        let ty = builtin("", "v1", "Pod").expect("a built-in kind");
        let mut live = apply(None, &applied, &ty, &writer("a", "v1"), &[], true).expect("forced");
        let mut entry = json!(entry);
        entry["fieldsV1"] = fields;
        live["metadata"]["managedFields"] = json!([entry, 1, null]);
        let _ = apply(Some(&live), &applied, &ty, &writer("b", "v1"), &["status"], false);
        let mut new = live.clone();
        update(Some(&live), &mut new, &ty, &writer("c", "v1"), &["status"]);
    }
}

/// Field sets as a client may invent them.
fn hostile_fields() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!({})), Just(json!(1)), Just(Value::Null)];
    let name = "f:(spec|metadata|containers|name|labels)|k:\\{\"name\":\"[ab]\"\\}|k:\\{|v:\"[fg]\"|v:|i:[0-9]{1,22}|i:-1|\\.|[\\PC]{0,4}";
    leaf.prop_recursive(5, 30, 4, move |inner| {
        prop::collection::btree_map(name, inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    })
}
