//! DaemonSets, StatefulSets, Jobs, CronJobs and their volumes.

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};

fn template(app: &str, image: &str, extra: Value) -> Value {
    let mut template = json!({ "metadata": { "labels": { "app": app } },
        "spec": { "containers": [ { "name": "c", "image": image } ] } });
    for (key, value) in extra.as_object().into_iter().flatten() {
        template["spec"][key] = value.clone();
    }
    template
}

fn image(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.containers[0].image.clone())
        .unwrap_or_default()
}

fn node(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn names(pods: &[Pod]) -> Vec<String> {
    let mut names: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.metadata.name.clone())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_on_every_node() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    let set = json!({ "metadata": { "name": "log" }, "spec": { "selector": { "matchLabels": { "app": "log" } },
        "template": template("log", "v1", json!({})) } });
    cluster.create::<DaemonSet>(set).await;
    let on = |pods: &Vec<Pod>| {
        let mut nodes: Vec<_> = pods.iter().filter(|pod| is_ready(pod)).map(node).collect();
        nodes.sort();
        nodes
    };
    wait_for(
        "a pod on both",
        || cluster.pods("log"),
        |pods| on(pods) == ["n1", "n2"],
    )
    .await;
    cluster.add_node("n3").await;
    wait_for(
        "a pod on the new node",
        || cluster.pods("log"),
        |pods| on(pods) == ["n1", "n2", "n3"],
    )
    .await;
    cluster
        .patch::<DaemonSet>(
            "log",
            json!({ "spec": { "template": template("log", "v2", json!({})) } }),
        )
        .await;
    wait_for(
        "the new version everywhere",
        || cluster.pods("log"),
        |pods| {
            on(pods) == ["n1", "n2", "n3"]
                && pods.len() == 3
                && pods.iter().all(|pod| image(pod) == "v2")
        },
    )
    .await;
    let status = wait_for(
        "the status",
        || async {
            cluster
                .api::<DaemonSet>()
                .get("log")
                .await
                .expect("exists")
                .status
                .unwrap_or_default()
        },
        |status| status.number_available == Some(3) && status.updated_number_scheduled == Some(3),
    )
    .await;
    assert_eq!(
        (status.desired_number_scheduled, status.number_ready),
        (3, 3)
    );
    let revisions = cluster
        .api::<ControllerRevision>()
        .list(&ListParams::default())
        .await
        .expect("lists")
        .items;
    assert_eq!(revisions.len(), 2);
    cluster
        .api::<DaemonSet>()
        .delete("log", &DeleteParams::background())
        .await
        .expect("deletes");
    wait_for("no pods", || cluster.pods("log"), Vec::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_names_volumes_and_order() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    let class: StorageClass = serde_json::from_value(json!({ "metadata": { "name": "local" },
        "provisioner": "skep.io/local-path", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete" }))
    .expect("a class");
    cluster
        .all::<StorageClass>()
        .create(&PostParams::default(), &class)
        .await
        .expect("creates");
    let set = json!({ "metadata": { "name": "db" }, "spec": { "serviceName": "db", "replicas": 3,
        "selector": { "matchLabels": { "app": "db" } },
        "template": template("db", "v1", json!({})),
        "volumeClaimTemplates": [ { "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local", "resources": { "requests": { "storage": "1Gi" } } } } ] } });
    cluster.create::<StatefulSet>(set).await;
    let members = wait_for(
        "three members",
        || cluster.pods("db"),
        |pods| names(pods) == ["db-0", "db-1", "db-2"] && pods.iter().all(is_ready),
    )
    .await;
    let created = |name: &str| {
        let pod = members
            .iter()
            .find(|pod| pod.metadata.name.as_deref() == Some(name))
            .expect("is there");
        pod.metadata.creation_timestamp.clone()
    };
    assert!(created("db-0") <= created("db-1") && created("db-1") <= created("db-2"));
    let claims = cluster
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .expect("lists")
        .items;
    let bound = claims.iter().filter(|claim| {
        claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Bound")
    });
    assert_eq!(bound.count(), 3, "{claims:#?}");

    // A deleted member comes back on the node that holds its volume.
    let before = members
        .iter()
        .find(|pod| pod.metadata.name.as_deref() == Some("db-1"))
        .expect("is there")
        .clone();
    cluster
        .api::<Pod>()
        .delete("db-1", &DeleteParams::default())
        .await
        .expect("deletes");
    let again = wait_for(
        "the member again",
        || async { cluster.api::<Pod>().get_opt("db-1").await.expect("answers") },
        |pod| {
            pod.as_ref()
                .is_some_and(|pod| pod.metadata.uid != before.metadata.uid && is_ready(pod))
        },
    )
    .await;
    assert_eq!(again.as_ref().map(node), Some(node(&before)));

    cluster
        .patch::<StatefulSet>(
            "db",
            json!({ "spec": { "template": template("db", "v2", json!({})) } }),
        )
        .await;
    wait_for(
        "the update",
        || cluster.pods("db"),
        |pods| pods.len() == 3 && pods.iter().all(|pod| image(pod) == "v2" && is_ready(pod)),
    )
    .await;
    cluster
        .patch::<StatefulSet>("db", json!({ "spec": { "replicas": 1 } }))
        .await;
    wait_for(
        "one member",
        || cluster.pods("db"),
        |pods| names(pods) == ["db-0"],
    )
    .await;
    // Volumes outlive the members; released ones of this class go.
    cluster
        .api::<PersistentVolumeClaim>()
        .delete("data-db-2", &DeleteParams::default())
        .await
        .expect("deletes");
    wait_for(
        "the volume to go with its claim",
        || async {
            cluster
                .all::<PersistentVolume>()
                .list(&ListParams::default())
                .await
                .expect("lists")
                .items
        },
        |volumes| volumes.len() == 2,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_and_are_cleaned_up() {
    let cluster = Cluster::start(&["n1"]).await;
    let job = |name: &str, exit: &str, extra: Value| {
        let mut job = json!({ "metadata": { "name": name }, "spec": { "template": {
            "metadata": { "annotations": { "test/exit": exit } },
            "spec": { "restartPolicy": "Never", "containers": [ { "name": "c", "image": "x" } ] } } } });
        for (key, value) in extra.as_object().into_iter().flatten() {
            job["spec"][key] = value.clone();
        }
        job
    };
    let has = |job: &Option<Job>, type_: &str| {
        let conditions = job
            .iter()
            .flat_map(|job| job.status.iter())
            .flat_map(|status| status.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    let look = |name: &'static str| {
        let api = cluster.api::<Job>();
        move || {
            let api = api.clone();
            async move { api.get_opt(name).await.expect("answers") }
        }
    };
    cluster
        .create::<Job>(job(
            "ok",
            "0",
            json!({ "completions": 5, "parallelism": 2 }),
        ))
        .await;
    let done = wait_for("completion", look("ok"), |job| has(job, "Complete")).await;
    let status = done.and_then(|job| job.status).expect("has one");
    assert_eq!(
        (
            status.succeeded,
            status.failed,
            status.completion_time.is_some()
        ),
        (Some(5), None, true)
    );

    let indexed = json!({ "completions": 3, "parallelism": 3, "completionMode": "Indexed" });
    cluster.create::<Job>(job("indexed", "0", indexed)).await;
    let done = wait_for("completion", look("indexed"), |job| has(job, "Complete")).await;
    assert_eq!(
        done.and_then(|job| job.status)
            .and_then(|status| status.completed_indexes)
            .as_deref(),
        Some("0-2")
    );

    cluster
        .create::<Job>(job("bad", "1", json!({ "backoffLimit": 0 })))
        .await;
    let failed = wait_for("failure", look("bad"), |job| has(job, "Failed")).await;
    assert_eq!(
        failed
            .and_then(|job| job.status)
            .and_then(|status| status.failed),
        Some(1)
    );

    cluster
        .create::<Job>(job("brief", "0", json!({ "ttlSecondsAfterFinished": 0 })))
        .await;
    wait_for("the finished Job to go", look("brief"), Option::is_none).await;
    let left = || async {
        let params = ListParams::default().labels("job-name=brief");
        cluster
            .api::<Pod>()
            .list(&params)
            .await
            .expect("lists")
            .items
    };
    wait_for("its pods to go", left, Vec::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_that_is_due_starts_a_job() {
    let cluster = Cluster::start(&["n1"]).await;
    // As if it had last run long ago, so that the test need not wait for the next minute.
    let cron = json!({ "metadata": { "name": "tick" }, "spec": { "schedule": "* * * * *", "concurrencyPolicy": "Forbid",
        "jobTemplate": { "spec": { "template": { "spec": { "restartPolicy": "Never",
            "containers": [ { "name": "c", "image": "x" } ] } } } } } });
    cluster.create::<CronJob>(cron).await;
    let past = json!({ "status": { "lastScheduleTime": "2026-01-01T00:00:00Z" } });
    cluster
        .api::<CronJob>()
        .patch_status("tick", &Default::default(), &kube::api::Patch::Merge(past))
        .await
        .expect("patches");
    let jobs = || async {
        cluster
            .api::<Job>()
            .list(&ListParams::default())
            .await
            .expect("lists")
            .items
    };
    let started = wait_for("a Job", jobs, |jobs| !jobs.is_empty()).await;
    assert!(
        started[0]
            .metadata
            .name
            .as_deref()
            .is_some_and(|name| name.starts_with("tick-"))
    );
    wait_for(
        "the status",
        || async {
            cluster
                .api::<CronJob>()
                .get("tick")
                .await
                .expect("exists")
                .status
                .unwrap_or_default()
        },
        |status| {
            status
                .active
                .as_ref()
                .is_some_and(|active| active.len() == 1)
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_counts_its_pods() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster
        .create::<k8s_openapi::api::apps::v1::Deployment>(crate::rollouts::deployment(
            "web", 3, "v1",
        ))
        .await;
    let budget = json!({ "metadata": { "name": "web" }, "spec": { "maxUnavailable": 1,
        "selector": { "matchLabels": { "app": "web" } } } });
    cluster.create::<PodDisruptionBudget>(budget).await;
    let status = wait_for(
        "the budget",
        || async {
            cluster
                .api::<PodDisruptionBudget>()
                .get("web")
                .await
                .expect("exists")
                .status
                .unwrap_or_default()
        },
        |status| status.current_healthy == Some(3),
    )
    .await;
    assert_eq!(
        (
            status.disruptions_allowed,
            status.desired_healthy,
            status.expected_pods
        ),
        (Some(1), Some(2), Some(3))
    );
}
