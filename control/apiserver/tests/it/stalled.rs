//! Clients that ask and do not read what they asked for.

use std::time::{Duration, Instant};

use axum::body::Body;
use futures::future::join_all;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skep_store::{Guard, Op};

use crate::cluster::{Cluster, MAPS, map};

const DEADLINE: Duration = Duration::from_secs(60);

async fn open(cluster: &Cluster, path: &str) -> Body {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    let response = cluster.send(request).await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// The rest of a watch, one event a line.
async fn rest(body: Body) -> Vec<Value> {
    let all = tokio::time::timeout(DEADLINE, body.collect()).await;
    let all = all.expect("an end").expect("no error").to_bytes();
    let lines = all.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("an event"))
        .collect()
}

/// Changes that come by a thousand in one commit: more than wait for anybody.
async fn storm(cluster: &Cluster, rounds: usize) {
    let storage = &cluster.server.api.storage;
    for round in 0..rounds {
        let put = |number: usize| {
            let name = format!("storm-{number}");
            let object = json!({
                "kind": "ConfigMap", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": "default", "uid": name},
                "data": {"round": round.to_string()},
            });
            Op::Put {
                key: format!("/registry/core/configmaps/default/{name}").into(),
                value: skep_apiserver::codec::encode_stored(&object),
                ttl: None,
            }
        };
        let ops: Vec<Op> = (0..1000).map(put).collect();
        let guards: Vec<Guard> = Vec::new();
        let committed = storage.store.txn(guards, ops).await;
        committed.expect("a commit");
    }
    storage
        .fresh()
        .await
        .unwrap_or_else(|e| panic!("{}", e.message));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_delays_nobody_and_is_told_to_start_over() {
    let cluster = Cluster::start().await;
    storm(&cluster, 1).await;
    let watch = format!("{MAPS}?watch=1&resourceVersion=0");
    let selecting = format!("{watch}&fieldSelector=metadata.name%3Dmarker");
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(open(&cluster, &watch).await);
        unread.push(open(&cluster, MAPS).await);
    }
    let list = unread.pop().expect("a list");
    let stalled = unread.pop().expect("a watch");
    // One reads a little, and then no more.
    let mut begun = open(&cluster, &watch).await;
    begun.frame().await.expect("a frame").expect("no error");
    let reading = open(&cluster, &selecting).await;

    // Writers and readers have the server to themselves.
    let started = Instant::now();
    let writes = (0..50).map(|n| cluster.post(MAPS, map(&format!("w{n}"))));
    for written in join_all(writes).await {
        written.expect(201);
    }
    storm(&cluster, 9).await;
    cluster.post(MAPS, map("marker")).await.expect(201);
    let one = cluster.get(&format!("{MAPS}/storm-1")).await.expect(200);
    assert_eq!(one["data"]["round"], "8");
    assert!(started.elapsed() < DEADLINE / 2, "{:?}", started.elapsed());

    // The list is what it was when it was asked for.
    let list = list.collect().await.expect("a list").to_bytes();
    let list: Value = serde_json::from_slice(&list).expect("a list");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1000));
    // The watches end, and say why.
    for watch in [stalled, begun] {
        let events = rest(watch).await;
        let last = events.last().expect("an event");
        assert_eq!(last["type"], "ERROR", "{last}");
        assert_eq!(
            (&last["object"]["code"], &last["object"]["reason"]),
            (&json!(410), &json!("Expired"))
        );
    }
    // Who selects little has missed nothing.
    let mut reading = reading;
    let frame = tokio::time::timeout(DEADLINE, reading.frame()).await;
    let frame = frame.expect("in time").expect("a frame").expect("no error");
    let frame = frame.into_data().expect("data");
    let event: Value = serde_json::from_slice(&frame).expect("an event");
    assert_eq!(event["object"]["metadata"]["name"], "marker");

    // Nothing is kept for those who have gone.
    drop((unread, reading));
    let watchers = || {
        let metrics = cluster.server.api.storage.cache.metrics();
        metrics.watchers.load(std::sync::atomic::Ordering::Relaxed)
    };
    let fresh = open(&cluster, &watch).await;
    let with_one = watchers();
    drop(fresh);
    assert_eq!(watchers() + 1, with_one);
}
