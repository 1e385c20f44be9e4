//! Workloads beside Deployments: state that stays, a pod on every node, work that ends, and moving away from a node.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cluster::{items, text};
use skep_tests::wait::wait_for;
use xtask::cluster::images::{BUSYBOX, NGINX, NGINX_NEXT};

use crate::Story;
use crate::manifests::{SOON, await_gone, await_ready, deployment, idle_pod, service};

/// Each member has its own name and its own data, and both stay when its pod goes.
pub(crate) fn stateful(story: &Story<'_>) -> Result<()> {
    story.apply(&[
        stateful_set(2),
        service("db", "db", json!({"clusterIP": "None"})),
    ])?;
    story.ready_pods("db", 2)?;
    story.exec("db-1", &["sh", "-c", "echo kept > /data/file"])?;
    let address = |pod: &str| {
        let name = format!("{pod}.db.{}.svc.cluster.local", story.namespace);
        story.exec("db-0", &["nslookup", &name])
    };
    let before = await_ready(&story.kubectl, "db-1")?;
    let ip = text(&before, "/status/podIP")?;
    let answer = address("db-1")?;
    ensure!(answer.contains(ip), "db-1 is {ip}, the answer is {answer}");

    story.kubectl.run(&["delete", "pod", "db-1"])?;
    let after = await_ready(&story.kubectl, "db-1")?;
    ensure!(
        after["metadata"]["uid"] != before["metadata"]["uid"],
        "it is the same pod"
    );
    let kept = story.exec("db-1", &["cat", "/data/file"])?;
    ensure!(kept.trim() == "kept", "the data is {kept:?}");

    // Smaller: the last goes, its data does not.
    story
        .kubectl
        .run(&["scale", "statefulset", "db", "--replicas=1"])?;
    await_gone(&story.kubectl, &["pod", "db-1"])?;
    let claim = story.kubectl.get(&["pvc", "data-db-1"])?;
    ensure!(claim["status"]["phase"] == "Bound", "{}", claim["status"]);
    story
        .kubectl
        .run(&["scale", "statefulset", "db", "--replicas=2"])?;
    await_ready(&story.kubectl, "db-1")?;
    let kept = story.exec("db-1", &["cat", "/data/file"])?;
    ensure!(
        kept.trim() == "kept",
        "the data after scaling back is {kept:?}"
    );

    // Newer, the last member first.
    let next = format!("main={NGINX_NEXT}");
    story
        .kubectl
        .run(&["set", "image", "statefulset/db", &next])?;
    story
        .kubectl
        .run(&["rollout", "status", "statefulset/db", "--timeout=60s"])?;
    for pod in story.ready_pods("db", 2)? {
        ensure!(
            pod["spec"]["containers"][0]["image"] == NGINX_NEXT,
            "{}",
            pod["spec"]
        );
    }
    Ok(())
}

fn stateful_set(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db"},
        "spec": {
            "replicas": replicas,
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main",
                        "image": NGINX,
                        "readinessProbe": {"httpGet": {"path": "/quiet", "port": 80}, "periodSeconds": 1},
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Mi"}},
                },
            }],
        },
    })
}

/// One on each node, and a new version replaces each of them.
pub(crate) fn on_every_node(story: &Story<'_>) -> Result<()> {
    let nodes = story.cluster.state.nodes.len();
    let mut pod = idle_pod("agent", None);
    story.apply(&[json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": pod["spec"].take()},
        },
    })])?;
    let on = |pods: &[Value]| -> BTreeSet<String> {
        let names = pods
            .iter()
            .filter_map(|pod| pod["spec"]["nodeName"].as_str());
        names.map(str::to_owned).collect()
    };
    let first = story.ready_pods("agent", nodes)?;
    ensure!(on(&first).len() == nodes, "they run on {:?}", on(&first));
    story
        .kubectl
        .run(&["rollout", "restart", "daemonset/agent"])?;
    story
        .kubectl
        .run(&["rollout", "status", "daemonset/agent", "--timeout=60s"])?;
    let second = story.ready_pods("agent", nodes)?;
    ensure!(on(&second).len() == nodes, "they run on {:?}", on(&second));
    let old: Vec<&Value> = first.iter().map(|pod| &pod["metadata"]["uid"]).collect();
    ensure!(
        second
            .iter()
            .all(|pod| !old.contains(&&pod["metadata"]["uid"])),
        "a pod was not replaced"
    );
    Ok(())
}

/// A Job ends when its work is done, gives up when it cannot be, and a CronJob can be run at once.
pub(crate) fn jobs(story: &Story<'_>) -> Result<()> {
    let job = |name: &str, command: &str, more: Value| {
        let mut job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {"template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", command]}],
            }}},
        });
        if let (Some(spec), Value::Object(more)) = (job["spec"].as_object_mut(), more) {
            spec.extend(more);
        }
        job
    };
    let spec = job("nightly", "echo run", json!({}))["spec"].take();
    story.apply(&[
        job(
            "work",
            "echo part $JOB_COMPLETION_INDEX",
            json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}),
        ),
        job("hopeless", "exit 3", json!({"backoffLimit": 0})),
        json!({
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": spec}},
        }),
    ])?;
    story.kubectl.run(&[
        "wait",
        "--for=condition=Complete",
        "job/work",
        "--timeout=60s",
    ])?;
    story.kubectl.run(&[
        "wait",
        "--for=condition=Failed",
        "job/hopeless",
        "--timeout=60s",
    ])?;
    let work = story.kubectl.get(&["job", "work"])?;
    ensure!(
        work["status"]["succeeded"] == 3 && work["status"]["completedIndexes"] == "0-2",
        "{}",
        work["status"]
    );
    let logs = story
        .kubectl
        .run(&["logs", "--selector=job-name=work", "--tail=-1"])?;
    let parts: BTreeSet<&str> = logs.lines().collect();
    ensure!(
        parts == BTreeSet::from(["part 0", "part 1", "part 2"]),
        "the logs are {logs:?}"
    );

    story
        .kubectl
        .run(&["create", "job", "tonight", "--from=cronjob/nightly"])?;
    story.kubectl.run(&[
        "wait",
        "--for=condition=Complete",
        "job/tonight",
        "--timeout=60s",
    ])?;
    Ok(())
}

/// A node is emptied for maintenance without going below what a budget allows.
pub(crate) fn drain(story: &Story<'_>) -> Result<()> {
    story.apply(&[
        deployment("web", 2),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "web"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
        }),
    ])?;
    let pods = story.ready_pods("web", 2)?;
    let victim = pods.first().context("there are two")?;
    let (name, node) = (
        text(victim, "/metadata/name")?,
        text(victim, "/spec/nodeName")?,
    );
    wait_for("the budget to know its pods", SOON, || {
        let budget = story.kubectl.get(&["pdb", "web"])?;
        let status = &budget["status"];
        ensure!(status["currentHealthy"] == 2, "{status}");
        Ok(())
    })?;
    let selector = "--pod-selector=app=web";
    let drain = ["drain", node, "--ignore-daemonsets", selector];
    let outcome = (|| {
        story.kubectl.refuse(
            &[&drain[..], &["--timeout=1s"]].concat(),
            "Cannot evict pod as it would violate the pod's disruption budget",
        )?;
        story
            .kubectl
            .run(&["scale", "deployment", "web", "--replicas=3"])?;
        story
            .kubectl
            .run(&[&drain[..], &["--timeout=60s"]].concat())?;
        await_gone(&story.kubectl, &["pod", name])?;
        let elsewhere = story.ready_pods("web", 3)?;
        ensure!(
            elsewhere.iter().all(|pod| pod["spec"]["nodeName"] != node),
            "a pod is still on {node}"
        );
        Ok(())
    })();
    // The next story gets a whole cluster.
    story.kubectl.run(&["uncordon", node])?;
    outcome?;
    wait_for("the node to be open again", Duration::from_secs(10), || {
        let node = story.kubectl.get(&["node", node])?;
        ensure!(node["spec"]["unschedulable"].is_null(), "{}", node["spec"]);
        Ok(())
    })?;
    ensure!(
        items(&story.kubectl.get(&["pods", "-l", "app=web"])?).len() == 3,
        "the drain took more than it had to"
    );
    Ok(())
}
