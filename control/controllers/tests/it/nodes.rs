//! Nodes that come, go silent and come back; certificates for them.

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        certificates::v1::CertificateSigningRequest,
        core::v1::{Event, Node, Pod},
        discovery::v1::EndpointSlice,
    },
};
use kube::api::{DeleteParams, ListParams, PostParams};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_for},
    rollouts::{deployment, rolled_out},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_node_run_elsewhere() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]).await;
    for name in ["n1", "n2", "n3"] {
        let node = wait_for(
            "a pod range",
            || async { cluster.all::<Node>().get(name).await.expect("exists") },
            |node| {
                node.spec
                    .as_ref()
                    .is_some_and(|spec| spec.pod_cidr.is_some())
            },
        )
        .await;
        assert!(
            node.spec
                .and_then(|spec| spec.pod_cidr)
                .is_some_and(|range| range.starts_with("10.244."))
        );
    }
    let mut web = deployment("web", 3, "v1");
    // Less patience than the five minutes that admission gives.
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 },
        { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 } ]);
    cluster.create::<Deployment>(web).await;
    rolled_out(&cluster, "web", 3).await;

    cluster.kill_node("n2");
    let node = wait_for(
        "taints",
        || async { cluster.all::<Node>().get("n2").await.expect("exists") },
        |node| {
            let taints = node
                .spec
                .as_ref()
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default();
            taints.iter().any(|taint| {
                taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute"
            })
        },
    )
    .await;
    let ready = node
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    assert!(
        ready
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
    );
    let elsewhere = |pod: &&Pod| {
        pod.metadata.deletion_timestamp.is_none()
            && pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.as_deref())
                .is_some_and(|node| node != "n2")
    };
    wait_for(
        "three pods elsewhere",
        || cluster.pods("web"),
        |pods| pods.iter().filter(elsewhere).count() == 3,
    )
    .await;

    cluster.revive_node("n2").await;
    wait_for(
        "no taints",
        || async { cluster.all::<Node>().get("n2").await.expect("exists") },
        |node| {
            node.spec
                .as_ref()
                .is_none_or(|spec| spec.taints.as_ref().is_none_or(Vec::is_empty))
        },
    )
    .await;
    wait_for(
        "the old pod to end",
        || cluster.pods("web"),
        |pods| pods.len() == 3,
    )
    .await;

    // A node that is deleted takes its pods with it.
    cluster.kill_node("n3");
    cluster
        .all::<Node>()
        .delete("n3", &DeleteParams::default())
        .await
        .expect("deletes");
    wait_for(
        "nothing left on n3",
        || cluster.pods("web"),
        |pods| {
            pods.len() == 3
                && pods.iter().all(|pod| {
                    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some("n3")
                })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why() {
    let cluster = Cluster::start(&["n1"]).await;
    let big = json!({ "metadata": { "name": "big" }, "spec": { "containers": [
        { "name": "c", "image": "x", "resources": { "requests": { "cpu": "100" } } } ] } });
    cluster.create::<Pod>(big).await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption \
                    victims found for incoming pod.";
    wait_for(
        "the condition",
        || async { cluster.api::<Pod>().get("big").await.expect("exists") },
        |pod| {
            pod.status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten())
                .any(|condition| {
                    condition.type_ == "PodScheduled"
                        && condition.status == "False"
                        && condition.reason.as_deref() == Some("Unschedulable")
                        && condition.message.as_deref() == Some(expected)
                })
        },
    )
    .await;
    wait_for(
        "the event",
        || async {
            cluster
                .api::<Event>()
                .list(&ListParams::default())
                .await
                .expect("lists")
                .items
        },
        |events| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some("FailedScheduling")
                    && event.message.as_deref() == Some(expected)
            })
        },
    )
    .await;
    let more =
        json!({ "status": { "capacity": { "cpu": "200" }, "allocatable": { "cpu": "200" } } });
    cluster
        .all::<Node>()
        .patch_status("n1", &Default::default(), &kube::api::Patch::Merge(more))
        .await
        .expect("grows");
    wait_for(
        "the pod to be bound",
        || async { cluster.api::<Pod>().get("big").await.expect("exists") },
        |pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("n1"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_follow_pods() {
    let cluster = Cluster::start(&["n1"]).await;
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" },
        "ports": [ { "port": 80, "targetPort": 8080 } ] } });
    cluster
        .create::<k8s_openapi::api::core::v1::Service>(service)
        .await;
    cluster
        .create::<Deployment>(deployment("web", 3, "v1"))
        .await;
    let slices = || async {
        let params = ListParams::default().labels("kubernetes.io/service-name=web");
        cluster
            .api::<EndpointSlice>()
            .list(&params)
            .await
            .expect("lists")
            .items
    };
    let ready = |slices: &Vec<EndpointSlice>| {
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints
            .filter(|endpoint| {
                endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready)
                    == Some(true)
            })
            .count()
    };
    wait_for("three endpoints", slices, |slices| {
        slices.len() == 1 && ready(slices) == 3
    })
    .await;
    let endpoints = wait_for(
        "Endpoints too",
        || async {
            cluster
                .api::<k8s_openapi::api::core::v1::Endpoints>()
                .get_opt("web")
                .await
                .expect("answers")
        },
        |endpoints| {
            let subsets = endpoints
                .as_ref()
                .and_then(|endpoints| endpoints.subsets.clone())
                .unwrap_or_default();
            subsets
                .iter()
                .map(|subset| subset.addresses.as_ref().map_or(0, Vec::len))
                .sum::<usize>()
                == 3
        },
    )
    .await;
    assert!(endpoints.is_some());
    cluster
        .patch::<Deployment>("web", json!({ "spec": { "replicas": 1 } }))
        .await;
    wait_for("one endpoint", slices, |slices| {
        slices.len() == 1 && ready(slices) == 1
    })
    .await;
    cluster
        .api::<k8s_openapi::api::core::v1::Service>()
        .delete("web", &DeleteParams::default())
        .await
        .expect("deletes");
    wait_for("no slices", slices, Vec::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_request_is_signed() {
    let cluster = Cluster::start(&[]).await;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "system:node:n9");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    let key = KeyPair::generate().expect("a key");
    let pem = params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request");
    let request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": { "name": "node-csr-1" },
        "spec": { "signerName": "kubernetes.io/kube-apiserver-client", "request": ByteString(pem.into_bytes()),
            "usages": ["digital signature", "client auth"] },
    }))
    .expect("a request");
    let api = cluster.all::<CertificateSigningRequest>();
    api.create(&PostParams::default(), &request)
        .await
        .expect("creates");
    // Not a kubelet's signer: a person approves.
    let mut live = api.get("node-csr-1").await.expect("exists");
    live.status.get_or_insert_default().conditions = serde_json::from_value(json!([
        { "type": "Approved", "status": "True", "reason": "ByTest" } ]))
    .expect("conditions");
    api.replace_subresource("approval", "node-csr-1", &PostParams::default(), &live)
        .await
        .expect("approves");
    let signed = wait_for(
        "the certificate",
        || async { api.get("node-csr-1").await.expect("exists") },
        |request| {
            request
                .status
                .as_ref()
                .is_some_and(|status| status.certificate.is_some())
        },
    )
    .await;
    let certificate = signed
        .status
        .and_then(|status| status.certificate)
        .expect("signed");
    assert!(certificate.0.starts_with(b"-----BEGIN CERTIFICATE-----"));
}
