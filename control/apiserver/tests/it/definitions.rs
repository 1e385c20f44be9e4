//! CustomResourceDefinitions: names, rows, objects, versions, deletion.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use skep_store::memory::MemoryStore;

use crate::cluster::Cluster;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A definition of `plural.example.com` with one version.
pub fn definition(plural: &str, kind: &str, schema: Value) -> Value {
    json!({
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

/// Asks until the answer is as wanted; shows the last one when it never is.
pub async fn until(cluster: &Cluster, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    const DEADLINE: Duration = Duration::from_secs(10);
    let mut last = (0, Value::Null);
    let asked = tokio::time::timeout(DEADLINE, async {
        loop {
            let answer = cluster.get(path).await;
            let body = serde_json::from_slice(&answer.bytes).unwrap_or_default();
            last = (answer.code, body);
            if wanted(last.0, &last.1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(asked.await.is_ok(), "{path} last answered {last:?}");
    last.1
}

pub async fn established(cluster: &Cluster, name: &str) -> Value {
    let path = format!("{DEFINITIONS}/{name}");
    until(cluster, &path, |_, body| {
        let conditions = body["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Established" && c["status"] == "True")
    })
    .await
}

#[tokio::test]
async fn a_definition_is_served_and_goes_with_its_objects() {
    let cluster = Cluster::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "default": 3, "minimum": 1},
    }}}});
    let created = cluster
        .post(DEFINITIONS, definition("widgets", "Widget", schema))
        .await
        .expect(201);
    assert_eq!(created["status"]["storedVersions"], json!(["v1"]));
    let definition = established(&cluster, "widgets.example.com").await;
    assert_eq!(
        definition["status"]["acceptedNames"]["listKind"],
        "WidgetList"
    );

    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    until(&cluster, widgets, |code, _| code == 200).await;
    let widget = json!({"metadata": {"name": "a"}, "spec": {"odd": 1}});
    let created = cluster.post(widgets, widget).await;
    let warning = created.headers["warning"]
        .to_str()
        .expect("text")
        .to_owned();
    assert_eq!(warning, "299 - \"unknown field \\\"spec.odd\\\"\"");
    let created = created.expect(201);
    assert_eq!(created["spec"], json!({"size": 3}));
    assert_eq!(created["metadata"]["generation"], 1);
    let held = json!({"metadata": {"name": "b", "finalizers": ["example.com/hold"]}});
    cluster.post(widgets, held).await.expect(201);

    let path = format!("{DEFINITIONS}/widgets.example.com");
    let deleted = cluster.delete(&path, Value::Null).await.expect(200);
    assert_eq!(
        deleted["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    until(&cluster, &format!("{widgets}/a"), |code, _| code == 404).await;
    until(&cluster, &format!("{widgets}/b"), |_, body| {
        !body["metadata"]["deletionTimestamp"].is_null()
    })
    .await;
    let refused = cluster
        .post(widgets, json!({"metadata": {"name": "c"}}))
        .await;
    assert_eq!(refused.code, 405);
    let released = json!({"metadata": {"finalizers": null}});
    cluster
        .merge(&format!("{widgets}/b"), released)
        .await
        .expect(200);
    until(&cluster, &path, |code, _| code == 404).await;
    until(&cluster, widgets, |code, _| code == 404).await;
}

#[tokio::test]
async fn a_new_server_over_the_same_store_serves_what_was_served() {
    let store = Arc::new(MemoryStore::new());
    let before = Cluster::over(store.clone()).await;
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut given = definition("widgets", "Widget", schema.clone());
    given["spec"]["scope"] = "Cluster".into();
    before.post(DEFINITIONS, given).await.expect(201);
    established(&before, "widgets.example.com").await;
    let widgets = "/apis/example.com/v1/widgets";
    until(&before, widgets, |code, _| code == 200).await;
    let widget =
        json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}, "spec": {"x": 1}});
    before.post(widgets, widget).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    // Nothing is said or awaited: the server is gone as if it had been killed.
    drop(before);

    let after = Cluster::over(store.clone()).await;
    let list = after.get(widgets).await.expect(200);
    assert_eq!(list["items"][0]["spec"]["x"], 1);
    // A deletion that was begun by one server is ended by the next.
    after.delete(&path, Value::Null).await.expect(200);
    drop(after);

    let last = Cluster::over(store).await;
    until(&last, &format!("{widgets}/a"), |_, body| {
        !body["metadata"]["deletionTimestamp"].is_null()
    })
    .await;
    let released = json!({"metadata": {"finalizers": null}});
    last.merge(&format!("{widgets}/a"), released)
        .await
        .expect(200);
    until(&last, &path, |code, _| code == 404).await;
}

#[tokio::test]
async fn names_are_given_once() {
    let cluster = Cluster::start().await;
    let schema = json!({"type": "object"});
    let first = definition("widgets", "Widget", schema.clone());
    cluster.post(DEFINITIONS, first).await.expect(201);
    established(&cluster, "widgets.example.com").await;
    let second = definition("gadgets", "Widget", schema);
    cluster.post(DEFINITIONS, second).await.expect(201);
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let refused = until(&cluster, &path, |_, body| {
        body["status"]["conditions"][0]["reason"] == "ListKindConflict"
    })
    .await;
    assert_eq!(refused["status"]["conditions"][1]["status"], "False");
    let gadgets = "/apis/example.com/v1/namespaces/default/gadgets";
    assert_eq!(cluster.get(gadgets).await.code, 404);

    let first = format!("{DEFINITIONS}/widgets.example.com");
    cluster.delete(&first, Value::Null).await.expect(200);
    established(&cluster, "gadgets.example.com").await;
    until(&cluster, gadgets, |code, _| code == 200).await;
}

#[tokio::test]
async fn a_changed_schema_shows_in_objects_stored_before() {
    let cluster = Cluster::start().await;
    let schema = |properties: Value| json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}});
    let old = schema(json!({"a": {"type": "string"}, "b": {"type": "string"}}));
    let given = definition("widgets", "Widget", old);
    cluster.post(DEFINITIONS, given).await.expect(201);
    established(&cluster, "widgets.example.com").await;
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    until(&cluster, widgets, |code, _| code == 200).await;
    let widget = json!({"metadata": {"name": "x"}, "spec": {"a": "1", "b": "2"}});
    cluster.post(widgets, widget).await.expect(201);

    let new = schema(json!({"a": {"type": "string"}, "c": {"type": "integer", "default": 3}}));
    let patch = json!({"spec": {"versions": [{
        "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": new},
        "selectableFields": [{"jsonPath": ".spec.a"}],
    }]}});
    let path = format!("{DEFINITIONS}/widgets.example.com");
    cluster.merge(&path, patch).await.expect(200);
    let shown = until(&cluster, &format!("{widgets}/x"), |_, body| {
        !body["spec"]["c"].is_null()
    })
    .await;
    assert_eq!(shown["spec"], json!({"a": "1", "c": 3}));
    let list = cluster.get(widgets).await.expect(200);
    assert_eq!(list["items"][0]["spec"], json!({"a": "1", "c": 3}));
    // The index was made anew for objects that were there already.
    let selected = cluster
        .get(&format!("{widgets}?fieldSelector=spec.a%3D1"))
        .await
        .expect(200);
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn documents_describe_a_custom_kind() {
    let cluster = Cluster::start().await;
    let schema = json!({"type": "object", "description": "A thing that turns.", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
    }});
    let mut given = definition("widgets", "Widget", schema);
    given["spec"]["names"]["shortNames"] = json!(["wd"]);
    given["spec"]["names"]["categories"] = json!(["all"]);
    cluster.post(DEFINITIONS, given).await.expect(201);
    let resources = until(&cluster, "/apis/example.com/v1", |code, _| code == 200).await;
    assert_eq!(resources["resources"][0]["shortNames"], json!(["wd"]));
    assert_eq!(resources["resources"][0]["categories"], json!(["all"]));
    let document = cluster
        .get("/openapi/v3/apis/example.com/v1")
        .await
        .expect(200);
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["description"], "A thing that turns.");
    assert_eq!(
        widget["properties"]["spec"]["properties"]["size"]["type"],
        "integer"
    );
    let document = cluster.get("/openapi/v2").await.expect(200);
    assert_eq!(
        document["definitions"]["com.example.v1.Widget"]["type"],
        "object"
    );
    let refused = cluster
        .merge(
            &format!("{DEFINITIONS}/widgets.example.com"),
            json!({"spec": {"scope": "Cluster"}}),
        )
        .await
        .expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.scope");
}

#[tokio::test]
async fn a_group_version_has_an_api_service_as_long_as_it_is_served() {
    let cluster = Cluster::start().await;
    let widgets = definition("widgets", "Widget", json!({"type": "object"}));
    cluster.post(DEFINITIONS, widgets).await.expect(201);
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.com";
    let present = until(&cluster, service, |code, _| code == 200).await;
    assert_eq!(
        present["spec"],
        json!({
            "group": "example.com", "version": "v1",
            "groupPriorityMinimum": 1000, "versionPriority": 100,
        })
    );
    assert_eq!(present["status"]["conditions"][0]["reason"], "Local");
    // Deleted by hand, it comes back.
    cluster.delete(service, Value::Null).await.expect(200);
    let uid = present["metadata"]["uid"].clone();
    until(&cluster, service, |code, body| {
        code == 200 && body["metadata"]["uid"] != uid
    })
    .await;
    let one = format!("{DEFINITIONS}/widgets.example.com");
    cluster.delete(&one, Value::Null).await.expect(200);
    until(&cluster, service, |code, _| code == 404).await;
}

#[tokio::test]
async fn nothing_is_created_of_a_kind_that_goes_away() {
    let cluster = Cluster::start().await;
    let widgets = definition("widgets", "Widget", json!({"type": "object"}));
    cluster.post(DEFINITIONS, widgets).await.expect(201);
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    until(&cluster, path, |code, _| code == 200).await;
    // It holds the definition, and so the kind, back.
    let held = json!({"metadata": {"name": "a", "finalizers": ["example.com/wait"]}});
    cluster.post(path, held).await.expect(201);
    let one = format!("{DEFINITIONS}/widgets.example.com");
    cluster.delete(&one, Value::Null).await.expect(200);
    until(&cluster, &format!("{path}/a"), |_, body| {
        !body["metadata"]["deletionTimestamp"].is_null()
    })
    .await;
    let refused = cluster.post(path, json!({"metadata": {"name": "b"}})).await;
    let status = refused.expect(405);
    assert_eq!(
        status["message"],
        "create not allowed while custom resource definition is terminating"
    );
    let free = json!({"metadata": {"finalizers": null}});
    cluster.merge(&format!("{path}/a"), free).await.expect(200);
    until(&cluster, &one, |code, _| code == 404).await;
}

#[tokio::test]
async fn an_object_of_another_kind_is_refused() {
    let cluster = Cluster::start().await;
    cluster
        .post(
            DEFINITIONS,
            definition("toys", "Toy", json!({"type": "object"})),
        )
        .await
        .expect(201);
    established(&cluster, "toys.example.com").await;
    let path = "/apis/example.com/v1/namespaces/default/toys";
    until(&cluster, path, |code, _| code == 200).await;
    let body = json!({"apiVersion": "example.com/v1", "kind": "Tool", "metadata": {"name": "a"}});
    let status = cluster.post(path, body).await.expect(422);
    assert_eq!(
        status["message"],
        "Tool.example.com \"a\" is invalid: kind: Invalid value: \"Tool\": must be Toy"
    );
    let body = json!({"apiVersion": "example.com/v2", "kind": "Toy", "metadata": {"name": "a"}});
    let status = cluster.post(path, body).await.expect(400);
    assert_eq!(
        status["message"],
        "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)"
    );
}
