//! A HorizontalPodAutoscaler from metrics to pods.

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_for},
    rollouts::deployment,
};

fn condition(autoscaler: &HorizontalPodAutoscaler, type_: &str) -> Option<(String, String)> {
    let conditions = autoscaler.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == type_)?;
    Some((found.status.clone(), found.reason.clone()?))
}

/// Every pod has used `millicores` for the last quarter of a minute.
fn report(cluster: &Cluster, pods: &[Pod], millicores: i64) {
    let now = Timestamp::now();
    for second in [now.as_second() - 15, now.as_second()] {
        let (ms, used) = (second * 1000, second * millicores);
        let mut text = format!("node_cpu_usage_seconds_total 1 {ms}\n");
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let container = &pod.spec.as_ref().expect("a spec").containers[0].name;
            let labels = format!("{{container={container:?},namespace=\"default\",pod={name:?}}}");
            let seconds = used as f64 / 1000.0;
            text.push_str(&format!(
                "container_cpu_usage_seconds_total{labels} {seconds} {ms}\n\
                 container_memory_working_set_bytes{labels} 1048576 {ms}\n\
                 container_start_time_seconds{labels} 1 {ms}\n"
            ));
        }
        cluster.metrics().read("n1", &text, now);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_follows_its_load() {
    let cluster = Cluster::start(&["n1"]).await;
    let mut web = deployment("web", 1, "v1");
    web["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"memory": "1Mi", "cpu": "100m"}});
    cluster.create::<Deployment>(web).await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let cpu = |percent| {
        json!([{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}])
    };
    cluster
        .create::<HorizontalPodAutoscaler>(json!({
            "metadata": {"name": "web"},
            "spec": {
                "scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5, "metrics": cpu(50),
                // So that a pod's first minutes count: how use is judged has tests of its own.
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        }))
        .await;
    let autoscalers = cluster.api::<HorizontalPodAutoscaler>();
    let look = || async { autoscalers.get("web").await.expect("exists") };
    // The minimum needs no metrics; then they are missed.
    wait_for(
        "the minimum",
        || cluster.pods("web"),
        |pods| pods.len() == 2,
    )
    .await;
    wait_for("the missing metrics", look, |found| {
        condition(found, "ScalingActive")
            == Some(("False".to_owned(), "FailedGetResourceMetric".to_owned()))
            && condition(found, "AbleToScale").is_some_and(|(status, _)| status == "True")
    })
    .await;
    // Memory is judged from the first moment on; CPU of pods that just started is not.
    let memory = json!({"spec": {"metrics": [{"type": "Resource", "resource": {
        "name": "memory", "target": {"type": "Utilization", "averageUtilization": 40}}}]}});
    let patch = kube::api::Patch::Merge(memory);
    autoscalers
        .patch("web", &Default::default(), &patch)
        .await
        .expect("patches");
    let scaled = wait_for(
        "more pods",
        || async {
            report(&cluster, &cluster.pods("web").await, 100);
            look().await
        },
        |found| {
            found.status.as_ref().map(|s| s.desired_replicas) == Some(5)
                && condition(found, "ScalingActive").is_some_and(|(status, _)| status == "True")
        },
    )
    .await;
    let status = scaled.status.expect("a status");
    assert!(status.last_scale_time.is_some());
    wait_for("five pods", || cluster.pods("web"), |pods| pods.len() == 5).await;
    let limited = wait_for(
        "the limit",
        || async {
            report(&cluster, &cluster.pods("web").await, 100);
            look().await
        },
        |found| {
            condition(found, "ScalingLimited")
                == Some(("True".to_owned(), "TooManyReplicas".to_owned()))
        },
    )
    .await;
    let metrics = limited.status.and_then(|s| s.current_metrics);
    let current = metrics.and_then(|metrics| metrics[0].resource.clone());
    assert_eq!(
        current.and_then(|resource| resource.current.average_utilization),
        Some(100)
    );
    // Two autoscalers of the same pods would fight.
    cluster
        .create::<HorizontalPodAutoscaler>(json!({
            "metadata": {"name": "rival"},
            "spec": {"scaleTargetRef": target, "maxReplicas": 5, "metrics": cpu(50)},
        }))
        .await;
    wait_for("the quarrel", look, |found| {
        condition(found, "ScalingActive")
            == Some(("False".to_owned(), "AmbiguousSelector".to_owned()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_not_there_is_said() {
    let cluster = Cluster::start(&["n1"]).await;
    let autoscaler = |name: &str, kind: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": "none"},
                "maxReplicas": 3,
            },
        })
    };
    for (name, kind, message) in [
        (
            "gone",
            "Deployment",
            "the HPA controller was unable to get the target's current scale: deployments.apps \"none\" not found",
        ),
        (
            "odd",
            "Teapot",
            "the HPA controller was unable to get the target's current scale: unable to determine resource for scale target reference: no matches for kind \"Teapot\" in group \"apps\"",
        ),
    ] {
        cluster
            .create::<HorizontalPodAutoscaler>(autoscaler(name, kind))
            .await;
        let api = cluster.api::<HorizontalPodAutoscaler>();
        wait_for(
            "the reason",
            || async { api.get(name).await.expect("exists") },
            |found| {
                let conditions = found
                    .status
                    .iter()
                    .flat_map(|s| s.conditions.iter().flatten());
                conditions.clone().any(|c| {
                    c.reason.as_deref() == Some("FailedGetScale")
                        && c.message.as_deref() == Some(message)
                })
            },
        )
        .await;
    }
}
