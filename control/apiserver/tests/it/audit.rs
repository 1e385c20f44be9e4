//! The audit log, as its file shows it.

use std::{path::Path, sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};
use skep_apiserver::audit::{
    Audit,
    policy::Policy,
    sink::{Options, Sink},
};

use crate::cluster::{Cluster, MAPS};

const DEADLINE: Duration = Duration::from_secs(10);

async fn cluster(folder: &Path, rules: &str) -> Cluster {
    let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}");
    let options = Options {
        path: folder.join("audit.log"),
        max_size_bytes: 0,
        max_age_days: 0,
        max_backups: 0,
    };
    let audit = Audit {
        policy: Policy::parse(&policy).expect("a policy"),
        sink: Sink::open(options).expect("a file"),
    };
    Cluster::with_audit(Some(Arc::new(audit))).await
}

/// The events of a request, once it has so many.
async fn events(folder: &Path, id: &str, count: usize) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let text = std::fs::read_to_string(folder.join("audit.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        lines
            .filter(|event: &Value| event["auditID"] == id)
            .collect()
    };
    let seen = async {
        while read().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _in_time = tokio::time::timeout(DEADLINE, seen).await;
    read()
}

fn request(method: &str, path: &str, id: &str, body: &Value) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("audit-id", id)
        .header("content-type", "application/json")
        .header("user-agent", "tester/1")
        .header("accept-encoding", "gzip")
        .body(match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        })
        .expect("a request")
}

#[tokio::test]
async fn a_request_is_recorded_stage_by_stage() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = "- {level: RequestResponse, omitManagedFields: true}\n";
    let cluster = cluster(folder.path(), rules).await;
    let object = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
    let answer = cluster.call(request("POST", MAPS, "one", &object)).await;
    assert_eq!(answer.headers["audit-id"], "one");
    let uid = answer.expect(201)["metadata"]["uid"].clone();
    let events = events(folder.path(), "one", 2).await;
    let [received, complete] = events.as_slice() else {
        panic!("{events:#?}")
    };
    assert_eq!(received["stage"], "RequestReceived");
    assert_eq!(received["requestObject"], Value::Null);
    assert_eq!(complete["kind"], "Event");
    assert_eq!(complete["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(complete["level"], "RequestResponse");
    assert_eq!(complete["stage"], "ResponseComplete");
    assert_eq!(complete["requestURI"], MAPS);
    assert_eq!(complete["verb"], "create");
    assert_eq!(complete["user"]["username"], "tester");
    assert_eq!(complete["userAgent"], "tester/1");
    assert_eq!(
        complete["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"})
    );
    assert_eq!(
        complete["responseStatus"],
        json!({"metadata": {}, "code": 201})
    );
    assert_eq!(complete["requestObject"]["data"], json!({"k": "v"}));
    assert_eq!(complete["responseObject"]["metadata"]["uid"], uid);
    let metadata = complete["responseObject"]["metadata"].as_object();
    assert!(!metadata.expect("metadata").contains_key("managedFields"));
    assert_eq!(
        complete["annotations"]["authorization.k8s.io/decision"],
        "allow"
    );
    let time = complete["stageTimestamp"].as_str().expect("a time");
    assert_eq!(time.len(), "2026-01-02T03:04:05.123456Z".len(), "{time}");
}

#[tokio::test]
async fn refusals_impersonation_and_deletes_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules =
        "- {level: None, verbs: [create]}\n- {level: Metadata, omitStages: [RequestReceived]}\n";
    let cluster = cluster(folder.path(), rules).await;
    let object = json!({"metadata": {"name": "a"}});
    cluster
        .call(request("POST", MAPS, "none", &object))
        .await
        .expect(201);

    let path = format!("{MAPS}/missing");
    cluster
        .call(request("GET", &path, "missing", &Value::Null))
        .await;
    let missing = events(folder.path(), "missing", 1).await;
    assert_eq!(missing.len(), 1, "{missing:#?}");
    let status = &missing[0]["responseStatus"];
    assert_eq!(
        (&status["code"], &status["reason"]),
        (&json!(404), &json!("NotFound"))
    );
    assert_eq!(status["message"], "configmaps \"missing\" not found");
    assert_eq!(missing[0]["responseObject"], Value::Null);

    let mut other = request("GET", &path, "other", &Value::Null);
    other
        .headers_mut()
        .insert("impersonate-user", "jane".parse().expect("a header"));
    cluster.call(other).await;
    let other = &events(folder.path(), "other", 1).await[0];
    assert_eq!(other["user"]["username"], "tester");
    assert_eq!(other["impersonatedUser"]["username"], "jane");
    assert_eq!(other["responseStatus"]["code"], 403);
    assert_eq!(
        other["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );

    let path = format!("{MAPS}/a");
    cluster
        .call(request("DELETE", &path, "gone", &Value::Null))
        .await
        .expect(200);
    let gone = &events(folder.path(), "gone", 1).await[0];
    assert_eq!(gone["responseStatus"]["status"], "Success");
    assert_eq!(events(folder.path(), "none", 0).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_watch_starts_and_completes() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(folder.path(), "- {level: Metadata, verbs: [watch]}\n").await;
    let path = format!("{MAPS}?watch=1");
    let response = cluster
        .send(request("GET", &path, "watch", &Value::Null))
        .await;
    let stages =
        |events: Vec<Value>| -> Vec<Value> { events.iter().map(|e| e["stage"].clone()).collect() };
    let open = stages(events(folder.path(), "watch", 2).await);
    assert_eq!(open, ["RequestReceived", "ResponseStarted"]);
    drop(response);
    let closed = stages(events(folder.path(), "watch", 3).await);
    assert_eq!(closed.last(), Some(&json!("ResponseComplete")));
}
