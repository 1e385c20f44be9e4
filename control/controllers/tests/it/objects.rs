//! Namespaces, and what every namespace gets.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, ServiceAccount},
};
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_for},
    rollouts::deployment,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start(&["n1"]).await;
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "team" } })).expect("a namespace");
    let namespaces = cluster.all::<Namespace>();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .expect("creates");
    wait_for(
        "the default account",
        || async {
            cluster
                .api_in::<ServiceAccount>("team")
                .get_opt("default")
                .await
                .expect("answers")
        },
        Option::is_some,
    )
    .await;
    let map = wait_for(
        "the root CA",
        || async {
            cluster
                .api_in::<ConfigMap>("team")
                .get_opt("kube-root-ca.crt")
                .await
                .expect("answers")
        },
        Option::is_some,
    )
    .await;
    assert!(
        map.and_then(|map| map.data)
            .is_some_and(|data| data["ca.crt"].contains("BEGIN CERTIFICATE"))
    );

    let mut web = deployment("web", 3, "v1");
    web["metadata"]["namespace"] = json!("team");
    cluster.create::<Deployment>(web).await;
    let held = json!({ "metadata": { "name": "held", "namespace": "team", "finalizers": ["example.com/hold"] } });
    cluster.create::<ConfigMap>(held).await;
    wait_for(
        "pods",
        || async {
            cluster
                .api_in::<k8s_openapi::api::core::v1::Pod>("team")
                .list(&Default::default())
                .await
                .expect("lists")
                .items
        },
        |pods| pods.len() == 3,
    )
    .await;

    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .expect("deletes");
    wait_for(
        "the condition that names what is left",
        || async { namespaces.get("team").await.expect("exists") },
        |namespace| {
            namespace.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| {
                condition.type_ == "NamespaceFinalizersRemaining"
                    && condition.status == "True"
                    && condition.message.as_deref()
                        == Some("Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
            })
        },
    )
    .await;
    let release = json!({ "metadata": { "finalizers": null } });
    cluster
        .api_in::<ConfigMap>("team")
        .patch(
            "held",
            &Default::default(),
            &kube::api::Patch::Merge(release),
        )
        .await
        .expect("releases");
    wait_for(
        "no namespace",
        || async { namespaces.get_opt("team").await.expect("answers") },
        Option::is_none,
    )
    .await;
}
