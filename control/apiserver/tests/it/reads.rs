use std::time::Duration;

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, map};

#[tokio::test]
async fn a_list_pages_through_one_snapshot() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.post(MAPS, map(name)).await.expect(201);
    }
    let page = cluster.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    assert!(
        page["items"][0]["kind"].is_null(),
        "items of built-in lists carry no kind"
    );
    cluster.post(MAPS, map("bb")).await.expect(201);
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let rest = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    let names: Vec<&Value> = rest["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| &i["metadata"]["name"])
        .collect();
    assert_eq!(names, ["c"]);
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        page["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn tables_and_metadata_on_request() {
    let cluster = Cluster::start().await;
    cluster
        .post(
            MAPS,
            json!({"metadata": {"name": "a", "labels": {"l": "m"}}, "data": {"k": "v"}}),
        )
        .await
        .expect(201);
    let accept = async |accept: &str, path: &str| {
        let request = Request::get(path).header(header::ACCEPT, accept);
        cluster
            .call(request.body(Body::empty()).expect("a request"))
            .await
    };
    let table = accept("application/json;as=Table;g=meta.k8s.io;v=v1", MAPS)
        .await
        .expect(200);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["rows"][0]["object"]["data"].is_null());
    let partial = accept(
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        MAPS,
    )
    .await
    .expect(200);
    assert_eq!(partial["items"][0]["metadata"]["labels"]["l"], "m");
    assert!(partial["items"][0]["data"].is_null());
    assert_eq!(accept("text/html", MAPS).await.code, 406);
}

/// Reads frames of a watch until `count` have come.
async fn frames(response: http::Response<Body>, count: usize) -> Vec<Value> {
    let mut body = response.into_body();
    let mut text = Vec::new();
    let read = async {
        loop {
            let frames: Vec<Value> = serde_json::Deserializer::from_slice(&text)
                .into_iter::<Value>()
                .map_while(Result::ok)
                .collect();
            if frames.len() >= count {
                return frames;
            }
            let frame = body
                .frame()
                .await
                .expect("another frame")
                .expect("readable");
            text.extend_from_slice(frame.data_ref().expect("data"));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("frames in time")
}

#[tokio::test]
async fn a_watch_list_ends_its_beginning_with_a_bookmark_and_goes_on() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let watch = cluster
        .send(Request::get(path).body(Body::empty()).expect("a request"))
        .await;
    cluster.post(MAPS, map("b")).await.expect(201);
    cluster
        .delete(&format!("{MAPS}/a"), Value::Null)
        .await
        .expect(200);
    let frames = frames(watch, 4).await;
    let types: Vec<&Value> = frames.iter().map(|f| &f["type"]).collect();
    assert_eq!(types, ["ADDED", "BOOKMARK", "ADDED", "DELETED"]);
    assert_eq!(
        frames[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn a_selector_turns_changes_into_comings_and_goings() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}?watch=1&labelSelector=l");
    let watch = cluster
        .send(Request::get(path).body(Body::empty()).expect("a request"))
        .await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let one = format!("{MAPS}/a");
    cluster
        .merge(&one, json!({"metadata": {"labels": {"l": "1"}}}))
        .await
        .expect(200);
    cluster
        .merge(&one, json!({"metadata": {"labels": {"l": "2"}}}))
        .await
        .expect(200);
    cluster
        .merge(&one, json!({"metadata": {"labels": null}}))
        .await
        .expect(200);
    let frames = frames(watch, 3).await;
    let types: Vec<&Value> = frames.iter().map(|f| &f["type"]).collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn a_watch_honours_its_timeout_and_the_drain() {
    let cluster = Cluster::start().await;
    let started = std::time::Instant::now();
    let answer = cluster
        .get(&format!("{MAPS}?watch=1&timeoutSeconds=1"))
        .await;
    assert_eq!(answer.code, 200);
    assert!(started.elapsed() >= Duration::from_millis(900));
    // A time that is over already.
    let over = cluster
        .get(&format!(
            "{MAPS}?watch=1&timeoutSeconds=-1&resourceVersion=0"
        ))
        .await;
    assert_eq!(over.code, 200);
    let watch = cluster
        .send(
            Request::get(format!("{MAPS}?watch=1"))
                .body(Body::empty())
                .expect("a request"),
        )
        .await;
    cluster.server.drain();
    let ended = tokio::time::timeout(Duration::from_secs(5), watch.into_body().collect()).await;
    assert!(ended.is_ok(), "the drain ends watches");
    assert_eq!(cluster.get("/readyz").await.code, 500);
    assert_eq!(cluster.get("/livez").await.code, 200);
}

#[tokio::test]
async fn revisions_that_nobody_knows_are_refused() {
    let cluster = Cluster::start().await;
    assert_eq!(
        cluster.get(&format!("{MAPS}?resourceVersion=x")).await.code,
        500
    );
    let future = cluster
        .get(&format!("{MAPS}?resourceVersion=999999999"))
        .await
        .expect(504);
    assert_eq!(future["reason"], "Timeout");
}

#[tokio::test]
async fn discovery_answers_both_forms() {
    let cluster = Cluster::start().await;
    let legacy = cluster.get("/apis").await.expect(200);
    assert_eq!(legacy["kind"], "APIGroupList");
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let request = Request::get("/apis").header(header::ACCEPT, accept);
    let answer = cluster
        .call(request.body(Body::empty()).expect("a request"))
        .await;
    let etag = answer.headers[header::ETAG].clone();
    assert_eq!(answer.expect(200)["kind"], "APIGroupDiscoveryList");
    let request = Request::get("/apis")
        .header(header::ACCEPT, accept)
        .header(header::IF_NONE_MATCH, etag);
    assert_eq!(
        cluster
            .call(request.body(Body::empty()).expect("a request"))
            .await
            .code,
        304
    );
}

#[tokio::test]
async fn events_are_selected_by_the_names_of_their_version() {
    let cluster = Cluster::start().await;
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    let core = "/api/v1/namespaces/default/events";
    cluster.post(core, event).await.expect(201);
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    let found = async |path: &str, selector: &str| {
        let answer = cluster
            .get(&format!("{path}?fieldSelector={selector}"))
            .await;
        let list = answer.json();
        (answer.code, list["items"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(found(core, "involvedObject.name=p").await, (200, 1));
    assert_eq!(found(new, "regarding.name=p").await, (200, 1));
    assert_eq!(found(new, "regarding.name=q").await, (200, 0));
    assert_eq!(found(new, "involvedObject.name=p").await.0, 400);
    assert_eq!(found(core, "regarding.name=p").await.0, 400);
}

/// Paths and queries that a browser would not send.
#[tokio::test]
async fn strange_paths_are_read_as_go_reads_them() {
    let cluster = Cluster::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let check = async |path: &str, code: u16, text: &str| {
        let answer = cluster.get(path).await;
        let body = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert_eq!(answer.code, code, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    };
    check("/api/v1/namespaces/%zz/configmaps", 400, "400 Bad Request").await;
    check("//api/v1/namespaces", 404, "404 page not found").await;
    check("/api/v1//namespaces", 404, "could not find").await;
    check(&format!("{maps}/a%2fb"), 404, "could not find").await;
    let refusal = |name: &str, why: &str| format!("Name parameter invalid: \\\"{name}\\\": {why}");
    check(
        &format!("{maps}/.."),
        400,
        &refusal("..", "may not be '..'"),
    )
    .await;
    check(&format!("{maps}/%2e"), 400, &refusal(".", "may not be '.'")).await;
    check(
        &format!("{maps}/a%25b"),
        400,
        &refusal("a%b", "may not contain '%'"),
    )
    .await;
    check(&format!("{maps}/../secrets"), 404, "could not find").await;
    check(&format!("{maps}/a%00"), 404, "not found").await;
    check(&format!("{maps}/"), 200, "ConfigMapList").await;
    // Pieces of a query that cannot be read are not there.
    check(&format!("{maps}?limit=%zz"), 200, "ConfigMapList").await;
    check(&format!("{maps}?limit=x;y"), 200, "ConfigMapList").await;
    check(&format!("{maps}?limit=1&limit=x"), 200, "ConfigMapList").await;
    check(&format!("{maps}?limit=x"), 400, "strconv.ParseInt").await;
    let put = cluster.put("/version", json!({})).await;
    assert_eq!(put.code, 405);
}
