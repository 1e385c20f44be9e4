use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};
use skep_apiserver::identity::User;

use crate::cluster::{Cluster, MAPS, map};

#[tokio::test]
async fn an_object_lives_and_dies() {
    let cluster = Cluster::start().await;
    let created = cluster.post(MAPS, map("a")).await.expect(201);
    assert_eq!(created["kind"], "ConfigMap");
    assert_eq!(
        cluster.post(MAPS, map("a")).await.expect(409)["reason"],
        "AlreadyExists"
    );
    let one = format!("{MAPS}/a");
    let got = cluster.get(&one).await.expect(200);
    assert_eq!(got, created);
    let stale = created["metadata"]["resourceVersion"].clone();
    let changed = cluster
        .put(&one, json!({"metadata": {"name": "a"}, "data": {"k": "v"}}))
        .await
        .expect(200);
    assert_ne!(changed["metadata"]["resourceVersion"], stale);
    assert_eq!(changed["metadata"]["uid"], created["metadata"]["uid"]);
    let late = json!({"metadata": {"name": "a", "resourceVersion": stale}});
    assert_eq!(
        cluster.put(&one, late).await.expect(409)["reason"],
        "Conflict"
    );
    assert_eq!(
        cluster.delete(&one, Value::Null).await.expect(200)["status"],
        "Success"
    );
    assert_eq!(cluster.get(&one).await.expect(404)["reason"], "NotFound");
}

#[tokio::test]
async fn writing_the_same_again_writes_nothing() {
    let cluster = Cluster::start().await;
    let created = cluster.post(MAPS, map("a")).await.expect(201);
    let again = cluster
        .put(&format!("{MAPS}/a"), map("a"))
        .await
        .expect(200);
    assert_eq!(
        again["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    let cluster = Cluster::start().await;
    cluster
        .post(&format!("{MAPS}?dryRun=All"), map("a"))
        .await
        .expect(201);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 404);
    cluster.post(MAPS, map("a")).await.expect(201);
    cluster
        .delete(&format!("{MAPS}/a?dryRun=All"), Value::Null)
        .await
        .expect(200);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.code, 200);
    assert_eq!(
        cluster
            .post(&format!("{MAPS}?dryRun=Some"), map("b"))
            .await
            .code,
        422
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_goes() {
    let cluster = Cluster::start().await;
    cluster
        .post(
            MAPS,
            json!({"metadata": {"name": "a", "finalizers": ["x.io/y"]}}),
        )
        .await
        .expect(201);
    let one = format!("{MAPS}/a");
    let deleting = cluster.delete(&one, Value::Null).await.expect(200);
    assert!(deleting["metadata"]["deletionTimestamp"].is_string());
    let again = cluster.post(MAPS, map("a")).await.expect(409);
    assert!(
        again["message"]
            .as_str()
            .expect("text")
            .starts_with("object is being deleted")
    );
    cluster
        .merge(&one, json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    assert_eq!(cluster.get(&one).await.code, 404);
}

#[tokio::test]
async fn a_scheduled_pod_gets_its_grace_and_an_unscheduled_one_none() {
    let cluster = Cluster::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for name in ["a", "b"] {
        cluster.post(pods, pod(name)).await.expect(201);
    }
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}});
    cluster
        .post(&format!("{pods}/a/binding"), binding.clone())
        .await
        .expect(201);
    assert_eq!(
        cluster
            .post(&format!("{pods}/a/binding"), binding)
            .await
            .code,
        409
    );
    cluster
        .delete(&format!("{pods}/b"), Value::Null)
        .await
        .expect(200);
    assert_eq!(cluster.get(&format!("{pods}/b")).await.code, 404);
    let leaving = cluster
        .delete(&format!("{pods}/a"), Value::Null)
        .await
        .expect(200);
    assert_eq!(leaving["metadata"]["deletionGracePeriodSeconds"], 30);
    cluster.get(&format!("{pods}/a")).await.expect(200);
    cluster
        .delete(&format!("{pods}/a"), json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
    assert_eq!(cluster.get(&format!("{pods}/a")).await.code, 404);
}

#[tokio::test]
async fn collections_go_by_selector() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        cluster
            .post(
                MAPS,
                json!({"metadata": {"name": name, "labels": {"l": label}}}),
            )
            .await
            .expect(201);
    }
    let gone = cluster
        .delete(&format!("{MAPS}?labelSelector=l%3Dx"), Value::Null)
        .await
        .expect(200);
    assert_eq!(gone["items"].as_array().map(Vec::len), Some(2));
    let left = cluster.get(MAPS).await.expect(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn bad_bodies_get_their_4xx() {
    let cluster = Cluster::start().await;
    let raw = async |content_type: &str, body: Vec<u8>| {
        let request = Request::post(MAPS).header(header::CONTENT_TYPE, content_type);
        cluster
            .call(request.body(Body::from(body)).expect("a request"))
            .await
            .code
    };
    assert_eq!(raw("application/json", b"{".to_vec()).await, 400);
    assert_eq!(raw("application/json", b"[]".to_vec()).await, 400);
    assert_eq!(raw("application/json", b"\xff\xfe".to_vec()).await, 400);
    assert_eq!(raw("text/plain", b"{}".to_vec()).await, 415);
    assert_eq!(
        raw(
            "application/vnd.kubernetes.protobuf",
            b"k8s\0\xff\xff".to_vec()
        )
        .await,
        400
    );
    assert_eq!(raw("application/json", vec![b' '; 4 << 20]).await, 413);
    let deep = format!(
        "{{\"metadata\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(raw("application/json", deep.into_bytes()).await, 400);
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let cluster = Cluster::start().await;
    let mut request = Request::get(MAPS).body(Body::empty()).expect("a request");
    request.extensions_mut().insert(User::anonymous());
    let response = tower::ServiceExt::oneshot(cluster.server.service(), request)
        .await
        .expect("infallible");
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn every_row_answers_list_and_refuses_nonsense() {
    let cluster = Cluster::start().await;
    let registry = cluster.server.api.registry.load_full();
    for resource in registry.resources() {
        let def = &resource.def;
        let path = if def.group.is_empty() {
            format!("/api/{}/{}", def.version, def.plural)
        } else {
            format!("/apis/{}/{}/{}", def.group, def.version, def.plural)
        };
        if resource.has_verb(skep_api::resource::Verb::List) {
            let list = cluster.get(&path).await.expect(200);
            assert_eq!(list["kind"], format!("{}List", def.kind), "{path}");
        }
        let nonsense = cluster.post(&path, json!({"metadata": 5})).await;
        assert!(
            (400..500).contains(&nonsense.code),
            "{path}: {}",
            nonsense.code
        );
    }
}

#[tokio::test]
async fn the_systems_priority_classes_stay() {
    let cluster = Cluster::start().await;
    let class = "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical";
    let status = cluster.delete(class, Value::Null).await.expect(403);
    assert_eq!(
        status["message"],
        "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority class and \
         cannot be deleted"
    );
    cluster.get(class).await.expect(200);
}

#[tokio::test]
async fn a_condition_without_its_time_is_told_so() {
    let cluster = Cluster::start().await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {}}});
    cluster.post(budgets, budget).await.expect(201);
    let conditions =
        json!({"status": {"conditions": [{"type": "A", "status": "True", "reason": "R"}]}});
    let status = cluster
        .merge(&format!("{budgets}/b/status"), conditions)
        .await
        .expect(422);
    assert_eq!(
        status["message"],
        "PodDisruptionBudget.policy \"b\" is invalid: status.conditions[0].lastTransitionTime: Required value: must be set"
    );
    // Where nobody asks for it, it is stored as none.
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let range = json!({"metadata": {"name": "r"}, "spec": {"cidrs": ["10.9.0.0/24"]}});
    cluster.post(ranges, range).await.expect(201);
    let conditions =
        json!({"status": {"conditions": [{"type": "A", "status": "True", "reason": "R"}]}});
    let stored = cluster
        .merge(&format!("{ranges}/r/status"), conditions)
        .await
        .expect(200);
    assert_eq!(
        stored["status"]["conditions"][0]["lastTransitionTime"],
        Value::Null
    );
}

#[tokio::test]
async fn an_applied_configuration_is_of_the_kind_that_it_is_sent_to() {
    let cluster = Cluster::start().await;
    let apply = async |body: Value| {
        let path = format!("{MAPS}/a?fieldManager=m");
        let answer = cluster.request("PATCH", &path, "application/apply-patch+yaml", &body);
        let answer = answer.await;
        (answer.code, answer.json()["message"].clone())
    };
    let (code, why) = apply(json!({"apiVersion": "v1", "kind": "Secret"})).await;
    assert_eq!(
        (code, why),
        (400, json!("invalid object type: /v1, Kind=Secret"))
    );
    let (code, why) = apply(json!({"data": {}})).await;
    assert_eq!((code, why), (400, json!("invalid object type: /, Kind=")));
    let known = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"uid": "u"}});
    let (code, why) = apply(known).await;
    assert_eq!(code, 409, "{why}");
    assert!(
        why.to_string()
            .contains("uid mismatch: the provided object specified uid u"),
        "{why}"
    );
}

#[tokio::test]
async fn a_key_given_twice_in_yaml_counts_as_field_validation_says() {
    let cluster = Cluster::start().await;
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  a: b\n  a: c\n";
    let apply = async |validation: &str| {
        let request = Request::patch(format!(
            "{MAPS}/a?fieldManager=m&fieldValidation={validation}"
        ))
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml");
        cluster
            .call(request.body(Body::from(body)).expect("a request"))
            .await
    };
    let status = apply("Strict").await.expect(400);
    assert_eq!(
        status["message"],
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" already \
         set in map"
    );
    let applied = apply("Ignore").await.expect(201);
    assert_eq!(applied["data"]["a"], "c");
}

#[tokio::test]
async fn patches_are_refused_in_upstream_s_words() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let send = async |kind: &str, query: &str, body: &str| {
        let request = Request::patch(format!("{MAPS}/a?dryRun=All&{query}"))
            .header(header::CONTENT_TYPE, format!("application/{kind}"));
        let request = request.body(Body::from(body.to_owned()));
        cluster.call(request.expect("a request")).await
    };
    const JSON: &str = "json-patch+json";
    const MERGE: &str = "merge-patch+json";
    const STRATEGIC: &str = "strategic-merge-patch+json";
    const APPLY: &str = "apply-patch+yaml";
    for (kind, query, body) in [
        (JSON, "", "null"),
        (
            JSON,
            "",
            r#"[{"op":"replace","path":"/immutable","value":false}]"#,
        ),
        (STRATEGIC, "", "null"),
        (STRATEGIC, "", r#"{"kind":"Secret"}"#),
        (MERGE, "", r#"{"data":{"a":"\ud800"}}"#),
    ] {
        let answer = send(kind, query, body).await;
        assert_eq!(answer.code, 200, "{kind} {body} {}", answer.json());
    }
    for (kind, query, body, code, why) in [
        (MERGE, "", "null", 400, "Invalid JSON Patch"),
        (
            MERGE,
            "fieldValidation=Ignore",
            "{",
            400,
            "Invalid JSON Patch",
        ),
        (
            MERGE,
            "",
            "{",
            400,
            "error decoding patch: unexpected end of JSON input",
        ),
        (STRATEGIC, "", "{", 400, "unexpected end of JSON input"),
        (
            STRATEGIC,
            "",
            "[]",
            400,
            "json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            JSON,
            "",
            r#"["x"]"#,
            400,
            "error decoding patch: json: cannot unmarshal string into Go value of type handlers.jsonPatchOp",
        ),
        (
            JSON,
            "",
            r#"[{"op":"add","path":5}]"#,
            400,
            "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.path of type string",
        ),
        (
            JSON,
            "fieldValidation=Ignore",
            "{}",
            400,
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch",
        ),
        (
            APPLY,
            "fieldManager=m",
            "a: [\n",
            400,
            "error decoding YAML: error converting YAML to JSON: yaml: line 1: did not find expected node content",
        ),
        (
            APPLY,
            "fieldManager=m",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"creationTimestamp":"x"}}"#,
            500,
            "failed to convert new object (/; /v1, Kind=ConfigMap) to proper version: unable to convert unstructured \
             object to /v1, Kind=ConfigMap: parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" \
             as \"2006\"",
        ),
    ] {
        let answer = send(kind, query, body).await;
        assert_eq!(answer.json()["message"], why, "{kind} {body}");
        assert_eq!(answer.code, code, "{kind} {body}");
    }
    const STRICT: &str = "fieldValidation=Strict";
    for (kind, body, end) in [
        (
            MERGE,
            r#"{"kind":"Secret"}"#,
            "converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        (
            JSON,
            r#"[{"op":"add","path":"/b","value":"c","foo":1}]"#,
            r#"strict decoding error: json patch unknown field "[0].foo", unknown field "b""#,
        ),
        (
            MERGE,
            r#"{"b":1,"data":{"c":"d","c":"e"}}"#,
            r#"strict decoding error: duplicate field "data.c", unknown field "b""#,
        ),
    ] {
        let status = send(kind, STRICT, body).await.expect(422);
        let why = status["message"].as_str().expect("a message");
        assert!(why.ends_with(end), "{why}");
    }
}

#[tokio::test]
async fn an_update_of_what_is_gone_asks_for_its_uid_first() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    cluster.put(&path, map("a")).await.expect(404);
    let known = json!({"metadata": {"name": "a", "uid": "u"}});
    let status = cluster.put(&path, known).await.expect(409);
    let why = status["message"].as_str().expect("a message");
    assert!(
        why.ends_with("Precondition failed: UID in precondition: u, UID in object meta: "),
        "{why}"
    );
}
