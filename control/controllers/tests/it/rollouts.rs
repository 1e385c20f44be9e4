//! Deployments from the first pod to the rollback.

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } },
                "spec": { "containers": [ { "name": "c", "image": image } ] } } },
    })
}

pub(crate) async fn rolled_out(cluster: &Cluster, name: &str, replicas: i32) -> Deployment {
    wait_for(
        "the rollout",
        || async { cluster.api::<Deployment>().get(name).await.expect("exists") },
        |deployment| {
            let status = deployment.status.clone().unwrap_or_default();
            status.observed_generation == deployment.metadata.generation
                && status.updated_replicas.unwrap_or_default() == replicas
                && status.available_replicas.unwrap_or_default() == replicas
                && status.replicas.unwrap_or_default() == replicas
        },
    )
    .await
}

fn image(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.containers[0].image.clone())
        .unwrap_or_default()
}

fn revision(deployment: &Deployment) -> Option<&str> {
    deployment
        .metadata
        .annotations
        .as_ref()?
        .get("deployment.kubernetes.io/revision")
        .map(String::as_str)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_and_back() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    cluster
        .create::<Deployment>(deployment("web", 4, "v1"))
        .await;
    let first = rolled_out(&cluster, "web", 4).await;
    assert_eq!(revision(&first), Some("1"));
    let pods = cluster.pods("web").await;
    let on = |node: &str| {
        pods.iter()
            .filter(|pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
            })
            .count()
    };
    assert_eq!((on("n1"), on("n2")), (2, 2), "spread");

    let to = |image: &str| json!({ "spec": { "template": { "spec": { "containers": [ { "name": "c", "image": image } ] } } } });
    cluster.patch::<Deployment>("web", to("v2")).await;
    let second = rolled_out(&cluster, "web", 4).await;
    assert_eq!(revision(&second), Some("2"));
    wait_for(
        "only new pods",
        || cluster.pods("web"),
        |pods| pods.len() == 4 && pods.iter().all(|pod| image(pod) == "v2"),
    )
    .await;

    // `kubectl rollout undo` patches the old template back.
    cluster.patch::<Deployment>("web", to("v1")).await;
    let third = rolled_out(&cluster, "web", 4).await;
    assert_eq!(revision(&third), Some("3"));
    let sets = cluster
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .expect("lists")
        .items;
    assert_eq!(sets.len(), 2, "the old set serves again");

    cluster
        .patch::<Deployment>("web", json!({ "spec": { "replicas": 7 } }))
        .await;
    rolled_out(&cluster, "web", 7).await;
    cluster
        .patch::<Deployment>("web", json!({ "spec": { "replicas": 0 } }))
        .await;
    rolled_out(&cluster, "web", 0).await;
    wait_for("no pods", || cluster.pods("web"), Vec::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_image_does_not_take_the_old_pods_down() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster
        .create::<Deployment>(deployment("web", 4, "v1"))
        .await;
    rolled_out(&cluster, "web", 4).await;
    let broken = json!({ "spec": { "template": { "metadata": { "annotations": { "test/never-ready": "" } } },
        "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } } });
    cluster.patch::<Deployment>("web", broken).await;
    let stuck = wait_for(
        "one new pod",
        || async {
            cluster
                .api::<Deployment>()
                .get("web")
                .await
                .expect("exists")
        },
        |deployment| {
            deployment
                .status
                .as_ref()
                .and_then(|status| status.updated_replicas)
                == Some(1)
        },
    )
    .await;
    let status = stuck.status.expect("has one");
    assert_eq!(
        (status.available_replicas, status.replicas),
        (Some(4), Some(5))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_deployment_removes_what_it_made() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster
        .create::<Deployment>(deployment("web", 2, "v1"))
        .await;
    rolled_out(&cluster, "web", 2).await;
    cluster
        .api::<Deployment>()
        .delete("web", &DeleteParams::background())
        .await
        .expect("deletes");
    wait_for("no pods", || cluster.pods("web"), Vec::is_empty).await;
    let sets = cluster.api::<ReplicaSet>();
    wait_for(
        "no sets",
        || async {
            sets.list(&ListParams::default())
                .await
                .expect("lists")
                .items
        },
        Vec::is_empty,
    )
    .await;

    // In the foreground the owner goes last.
    cluster
        .create::<Deployment>(deployment("api", 2, "v1"))
        .await;
    rolled_out(&cluster, "api", 2).await;
    cluster
        .api::<Deployment>()
        .delete("api", &DeleteParams::foreground())
        .await
        .expect("deletes");
    wait_for(
        "no deployment",
        || async {
            cluster
                .api::<Deployment>()
                .get_opt("api")
                .await
                .expect("answers")
        },
        Option::is_none,
    )
    .await;
    assert!(
        sets.list(&ListParams::default())
            .await
            .expect("lists")
            .items
            .is_empty(),
        "sets went first"
    );
    assert!(cluster.pods("api").await.is_empty(), "pods went first");

    // Orphans stay, and a new owner adopts them.
    cluster
        .create::<Deployment>(deployment("db", 2, "v1"))
        .await;
    rolled_out(&cluster, "db", 2).await;
    let before: Vec<_> = cluster
        .pods("db")
        .await
        .into_iter()
        .map(|pod| pod.metadata.uid)
        .collect();
    cluster
        .api::<Deployment>()
        .delete("db", &DeleteParams::orphan())
        .await
        .expect("deletes");
    wait_for(
        "no deployment",
        || async {
            cluster
                .api::<Deployment>()
                .get_opt("db")
                .await
                .expect("answers")
        },
        Option::is_none,
    )
    .await;
    cluster
        .create::<Deployment>(deployment("db", 2, "v1"))
        .await;
    rolled_out(&cluster, "db", 2).await;
    let after: Vec<_> = cluster
        .pods("db")
        .await
        .into_iter()
        .map(|pod| pod.metadata.uid)
        .collect();
    assert_eq!(before, after, "adopted");
}
