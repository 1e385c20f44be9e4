//! `metrics.k8s.io`, from what an agent says to what clients read.

use http::header;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// What an agent counts at `second`: the node has used half a core, the container a quarter of one.
fn text(second: i64) -> String {
    let ms = second * 1000;
    let (node, container) = (second as f64 * 0.5, second as f64 * 0.25);
    let labels = r#"{container="c",namespace="default",pod="web"}"#;
    format!(
        "node_cpu_usage_seconds_total {node} {ms}\n\
         node_memory_working_set_bytes 1.048576e+09 {ms}\n\
         container_cpu_usage_seconds_total{labels} {container} {ms}\n\
         container_memory_working_set_bytes{labels} 2.097152e+07 {ms}\n\
         container_start_time_seconds{labels} 1 {ms}\n"
    )
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}});
    cluster.post("/api/v1/nodes", node).await.expect(201);
    for name in ["web", "new"] {
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        });
        let pods = "/api/v1/namespaces/default/pods";
        cluster.post(pods, pod).await.expect(201);
    }
    let now = Timestamp::now();
    for second in [now.as_second() - 15, now.as_second()] {
        let metrics = &cluster.server.api.node_metrics;
        metrics.read("n1", &text(second), now);
    }
    cluster
}

const API: &str = "/apis/metrics.k8s.io/v1beta1";

#[tokio::test]
async fn nodes_and_pods_have_rates() {
    let cluster = cluster().await;
    let node = cluster.get(&format!("{API}/nodes/n1")).await.expect(200);
    assert_eq!(node["kind"], "NodeMetrics");
    assert_eq!(
        node["usage"],
        json!({"cpu": "500000000n", "memory": "1024000Ki"})
    );
    assert_eq!(node["window"], "15s");
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    // A pod of which nothing is known yet is not listed.
    let list = cluster.get(&format!("{API}/pods")).await.expect(200);
    assert_eq!(list["kind"], "PodMetricsList");
    let names: Vec<&Value> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| &item["metadata"]["name"])
        .collect();
    assert_eq!(names, ["web"]);
    assert_eq!(
        list["items"][0]["containers"],
        json!([{"name": "c", "usage": {"cpu": "250000000n", "memory": "20480Ki"}}])
    );
    let namespaced = format!("{API}/namespaces/default/pods");
    let of = |app: &str| format!("{namespaced}?labelSelector=app%3D{app}");
    let count = async |path: String| {
        let list = cluster.get(&path).await.expect(200);
        list["items"].as_array().map(Vec::len)
    };
    assert_eq!(count(of("web")).await, Some(1));
    assert_eq!(count(of("new")).await, Some(0));
    let missing = cluster.get(&format!("{namespaced}/new")).await.expect(404);
    assert_eq!(
        missing["message"],
        "podmetrics.metrics.k8s.io \"default/new\" not found"
    );
}

#[tokio::test]
async fn clients_find_and_print_it_and_cannot_write() {
    let cluster = cluster().await;
    let groups = cluster.get("/apis").await.expect(200);
    let known = groups["groups"].as_array().expect("groups").iter();
    assert!(known.clone().any(|group| group["name"] == "metrics.k8s.io"));
    let resources = cluster.get(API).await.expect(200);
    let kinds: Vec<_> = resources["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .map(|r| (r["name"].as_str(), r["kind"].as_str()))
        .collect();
    assert_eq!(
        kinds,
        [
            (Some("nodes"), Some("NodeMetrics")),
            (Some("pods"), Some("PodMetrics"))
        ]
    );
    let request = http::Request::get(format!("{API}/nodes"))
        .header(
            header::ACCEPT,
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        )
        .body(axum::body::Body::empty())
        .expect("a request");
    let table = cluster.call(request).await.expect(200);
    assert_eq!(
        table["rows"][0]["cells"],
        json!(["n1", "500000000n", "1024000Ki", "15s"])
    );
    let put = cluster.put(&format!("{API}/nodes/n1"), json!({})).await;
    assert_eq!(put.code, 405);
}
