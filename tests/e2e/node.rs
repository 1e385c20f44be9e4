//! What a node owes to its pods, as the conformance suite of Kubernetes asks for it, where that needs more than the node:
//! the API server's relay, Services, taints, the scheduler.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use skep_tests::api::Api;
use skep_tests::cluster::{items, text};
use skep_tests::wait::wait_for;
use xtask::cluster::images::{BUSYBOX, NGINX};
use xtask::cluster::{Node, down};
use xtask::command;

use crate::Story;
use crate::manifests::{SOON, await_gone, await_ready, deployment, idle_pod, service};

fn api(story: &Story<'_>) -> Result<Api> {
    Api::new(&story.cluster.state.kubeconfig())
}

fn pods(story: &Story<'_>) -> String {
    format!("/api/v1/namespaces/{}/pods", story.namespace)
}

/// A pod that runs a shell command.
fn shell(name: &str, command: &str, more: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", command]}],
        },
    });
    if let (Some(spec), Value::Object(more)) = (pod["spec"].as_object_mut(), more) {
        spec.extend(more);
    }
    pod
}

/// "Pods should support remote command execution over websockets", "… retrieving logs from the container over
/// websockets"; and a watch.
pub(crate) fn websockets(story: &Story<'_>) -> Result<()> {
    let api = api(story)?;
    let command = "echo container is alive; exec sleep 3600";
    story.apply(&[shell("streams", command, json!({}))])?;
    await_ready(&story.kubectl, "streams")?;
    let pods = pods(story);

    let run = "stdout=1&stderr=1&container=main&command=echo&command=remote+execution+test";
    let exec = format!("{pods}/streams/exec?{run}");
    // The oldest protocol says nothing of success, and has no other channel than that of the output.
    for protocol in [Some("channel.k8s.io"), None] {
        let mut said = Vec::new();
        for message in api.messages(&exec, protocol, usize::MAX)? {
            let data = message.into_data();
            let (channel, rest) = data.split_first().context("an empty message")?;
            ensure!(*channel == 1, "channel {channel} says {rest:?}");
            said.extend_from_slice(rest);
        }
        ensure!(said == b"remote execution test\n", "{said:?}");
    }
    let failing = format!("{pods}/streams/exec?stdout=1&stderr=1&command=false");
    let messages = api.messages(&failing, Some("base64.channel.k8s.io"), usize::MAX)?;
    // Base64 of `command terminated with`.
    let failed = messages.last().context("nothing was said")?.to_text()?;
    ensure!(
        failed.starts_with("3Y29tbWFuZCB0ZXJtaW5hdGVkIHdpdGg"),
        "{failed}"
    );
    let messages = api.messages(&failing, Some("v4.channel.k8s.io"), usize::MAX)?;
    let last = messages.last().context("nothing was said")?.clone();
    let status: Value = serde_json::from_slice(last.into_data().get(1..).context("empty")?)?;
    ensure!(status["reason"] == "NonZeroExitCode", "{status}");
    ensure!(
        api.messages(&exec, Some("unheard.of"), 1).is_err(),
        "a protocol that nobody knows was taken"
    );

    let log = format!("{pods}/streams/log?container=main");
    wait_for("the log", SOON, || {
        let messages = api.messages(&log, Some("binary.k8s.io"), usize::MAX)?;
        let said: Vec<u8> = messages
            .into_iter()
            .flat_map(|m| m.into_data().to_vec())
            .collect();
        ensure!(said == b"container is alive\n", "{said:?}");
        Ok(())
    })?;
    let messages = api.messages(&log, Some("base64.binary.k8s.io"), usize::MAX)?;
    let said: Vec<&str> = messages.iter().filter_map(|m| m.to_text().ok()).collect();
    ensure!(said.concat() == "Y29udGFpbmVyIGlzIGFsaXZlCg==", "{said:?}");

    let watch = format!("{pods}?watch=true&fieldSelector=metadata.name=streams");
    let events = api.events(&watch, |_| true)?;
    let event = events.first().context("no event")?;
    ensure!(
        event["type"] == "ADDED" && event["object"]["metadata"]["name"] == "streams",
        "{event}"
    );
    Ok(())
}

/// "Pods should contain environment variables for services", "Probing container should (*not*) be restarted with a GRPC
/// liveness probe", "Pods Set QOS Class", "RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its
/// Overhead", "ServiceAccounts should mount an API token into pods", "Pods should delete a collection of pods".
pub(crate) fn facts(story: &Story<'_>) -> Result<()> {
    let class = format!("{}-class", story.namespace);
    let healthy = |serving: bool| {
        if serving {
            "AAAAAAIIAQ=="
        } else {
            "AAAAAAIIAg=="
        }
    };
    let grpc = |name: &str, serving: bool| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "fact"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": NGINX,
                    "livenessProbe": {"grpc": {"port": 50051}, "initialDelaySeconds": 1, "periodSeconds": 1,
                        "failureThreshold": 1},
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/etc/nginx/nginx.conf", "subPath": "nginx.conf"},
                        {"name": "v", "mountPath": "/srv"}],
                }],
                "volumes": [{"name": "v", "configMap": {"name": "grpc", "items": [
                    {"key": "nginx.conf", "path": "nginx.conf"},
                    {"key": format!("{serving}"), "path": "grpc.health.v1.Health/Check"}]}}],
            },
        })
    };
    story.apply(&[
        service(
            "fooservice",
            "fooservice",
            json!({"ports": [{"port": 8765, "targetPort": 8080}]}),
        ),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "grpc"},
            "data": {"nginx.conf": GRPC_SERVER},
            "binaryData": {"true": healthy(true), "false": healthy(false)}}),
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class},
            "handler": "runc", "overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}}}),
    ])?;
    let outcome = told(story, &class, &grpc);
    story.kubectl.run(&["delete", "runtimeclass", &class])?;
    outcome?;
    let deleted = format!("{}?labelSelector=app=fact", pods(story));
    api(story)?.call(Method::DELETE, &deleted, &Value::Null)?;
    wait_for("the pods to be gone", SOON, || {
        let left = story.kubectl.get(&["pods", "-l", "app=fact"])?;
        ensure!(items(&left).is_empty(), "{} are left", items(&left).len());
        Ok(())
    })
}

/// gRPC in as little of it as a probe looks at. A POST of a file is refused, and answered with the file all the same.
const GRPC_SERVER: &str = "
daemon off;
error_log stderr notice;
pid /run/nginx.pid;
events {}
http {
    default_type application/grpc;
    access_log off;
    server {
        listen 50051 http2;
        root /srv;
        location / {
            error_page 405 =200 $uri;
            add_header grpc-status 0 always;
        }
    }
}
";

fn told(story: &Story<'_>, class: &str, grpc: &dyn Fn(&str, bool) -> Value) -> Result<()> {
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mut asks = shell(
        "asks",
        &format!(
            "env | grep ^FOOSERVICE; cat {account}/namespace; echo; wget -q -O - --no-check-certificate \
             https://kubernetes.default.svc/version >/dev/null 2>&1; wc -c < {account}/token; head -1 {account}/ca.crt"
        ),
        json!({"restartPolicy": "Never", "runtimeClassName": class}),
    );
    asks["metadata"]["labels"]["app"] = json!("fact");
    let amounts = json!({"cpu": "10m", "memory": "16Mi"});
    let sized = |name: &str, resources: Value| {
        let mut pod = idle_pod(name, None);
        pod["metadata"]["labels"]["app"] = json!("fact");
        pod["spec"]["containers"][0]["resources"] = resources;
        pod
    };
    story.apply(&[
        asks,
        grpc("healthy", true),
        grpc("ill", false),
        sized(
            "guaranteed",
            json!({"requests": amounts, "limits": amounts}),
        ),
        sized("burstable", json!({"requests": amounts})),
        sized("best-effort", json!({})),
    ])?;
    let asked = wait_for("the pod that asks to end", SOON, || {
        let pod = story.kubectl.get(&["pod", "asks"])?;
        ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
        Ok(pod)
    })?;
    let overhead = json!({"cpu": "10m", "memory": "1Mi"});
    ensure!(asked["spec"]["overhead"] == overhead, "{}", asked["spec"]);
    let said = story.kubectl.run(&["logs", "asks"])?;
    let ip = story.cluster_ip("fooservice")?;
    for expected in [
        format!("FOOSERVICE_SERVICE_HOST={ip}"),
        "FOOSERVICE_SERVICE_PORT=8765".into(),
        format!("FOOSERVICE_PORT=tcp://{ip}:8765"),
        format!("FOOSERVICE_PORT_8765_TCP=tcp://{ip}:8765"),
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp".into(),
        "FOOSERVICE_PORT_8765_TCP_PORT=8765".into(),
        format!("FOOSERVICE_PORT_8765_TCP_ADDR={ip}"),
        story.namespace.to_owned(),
        "-----BEGIN CERTIFICATE-----".into(),
    ] {
        ensure!(
            said.lines().any(|line| line == expected),
            "no {expected:?} in {said:?}"
        );
    }
    for (name, class) in [
        ("guaranteed", "Guaranteed"),
        ("burstable", "Burstable"),
        ("best-effort", "BestEffort"),
    ] {
        let pod = await_ready(&story.kubectl, name)?;
        ensure!(pod["status"]["qosClass"] == class, "{}", pod["status"]);
    }
    wait_for("the ill server to be restarted", SOON, || {
        let pod = story.kubectl.get(&["pod", "ill"])?;
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        ensure!(restarts >= Some(1), "{}", pod["status"]);
        Ok(())
    })?;
    let pod = await_ready(&story.kubectl, "healthy")?;
    let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
    ensure!(restarts == 0, "the healthy server was restarted: {pod}");
    Ok(())
}

/// "NoExecuteTaintManager Single Pod removing taint cancels eviction", "Multiple Pods evicts pods with
/// minTolerationSeconds".
pub(crate) fn taints(story: &Story<'_>) -> Result<()> {
    let key = "kubernetes.io/e2e-evict-taint-key";
    let tolerant = |name: &str, seconds: u32| {
        let mut pod = idle_pod(name, Some("node2"));
        pod["spec"]["tolerations"] = json!([{"key": key, "operator": "Equal", "value": "evictTaintVal",
            "effect": "NoExecute", "tolerationSeconds": seconds}]);
        pod
    };
    story.apply(&[tolerant("patient", 10), tolerant("hasty", 1)])?;
    for pod in ["patient", "hasty"] {
        await_ready(&story.kubectl, pod)?;
    }
    let taint = format!("{key}=evictTaintVal:NoExecute");
    story.kubectl.run(&["taint", "node", "node2", &taint])?;
    let tainted = Instant::now();
    let outcome = await_gone(&story.kubectl, &["pod", "hasty"]);
    story
        .kubectl
        .run(&["taint", "node", "node2", &format!("{taint}-")])?;
    outcome?;
    // Its time is up, and the taint is gone.
    wait_for("the end of its patience", SOON, || {
        let left = Duration::from_secs(12).saturating_sub(tainted.elapsed());
        ensure!(left.is_zero(), "{left:?} are left");
        Ok(())
    })?;
    let pod = story.kubectl.get(&["pod", "patient"])?;
    ensure!(
        pod["metadata"]["deletionTimestamp"].is_null(),
        "{}",
        pod["metadata"]
    );
    Ok(())
}

/// "Pod InPlace Resize Container": six containers, equivalents, the replace endpoint; and "Pods Extended (pod generation)".
pub(crate) fn resize(story: &Story<'_>) -> Result<()> {
    let api = api(story)?;
    let pods = pods(story);
    let container = |name: &str, resources: Value| json!({"name": name, "image": BUSYBOX, "command": ["sleep", "3600"], "resources": resources});
    let requests = |list: Value| json!({"requests": list});
    let before = [
        ("c1", requests(json!({"cpu": "20m"}))),
        ("c2", requests(json!({"memory": "35Mi"}))),
        ("c3", requests(json!({"cpu": "20m", "memory": "35Mi"}))),
        ("c4", requests(json!({"cpu": "20m"}))),
        ("c5", requests(json!({"memory": "35Mi"}))),
        (
            "c6",
            json!({"requests": {"cpu": "2m"}, "limits": {"cpu": "10m"}}),
        ),
    ];
    let after = [
        (
            "c1",
            json!({"requests": {"cpu": "25m"}, "limits": {"cpu": "35m"}}),
        ),
        (
            "c2",
            json!({"requests": {"memory": "30Mi"}, "limits": {"memory": "50Mi"}}),
        ),
        ("c3", requests(json!({"cpu": "20m", "memory": "30Mi"}))),
        ("c4", requests(json!({"cpu": "15m", "memory": "35Mi"}))),
        ("c5", requests(json!({"cpu": "20m", "memory": "40Mi"}))),
        // Both are the least that the kernel knows.
        (
            "c6",
            json!({"requests": {"cpu": "1m"}, "limits": {"cpu": "5m"}}),
        ),
    ];
    let containers: Vec<Value> = before
        .iter()
        .map(|(name, resources)| container(name, resources.clone()))
        .chain([container("c7", json!({}))])
        .collect();
    let mut pod = shell("sized", "", json!({}));
    pod["spec"]["containers"] = json!(containers);
    // A new namespace gets its service account a moment later.
    let made = wait_for("the pod to be taken", SOON, || {
        api.call(Method::POST, &pods, &pod)
    })?;
    ensure!(made["metadata"]["generation"] == 1, "{}", made["metadata"]);
    let pod = await_ready(&story.kubectl, "sized")?;
    ensure!(
        pod["status"]["observedGeneration"] == 1,
        "{}",
        pod["status"]
    );
    let resources = |pod: &Value| -> Vec<Value> {
        let statuses = pod["status"]["containerStatuses"].as_array();
        let statuses = statuses.into_iter().flatten();
        statuses.map(|status| status["resources"].clone()).collect()
    };
    let expected = |list: &[(&str, Value)]| -> Vec<Value> {
        let each = list.iter().map(|(_, resources)| resources.clone());
        each.chain([json!({})]).collect()
    };
    ensure!(
        resources(&pod) == expected(&before),
        "{:?}",
        resources(&pod)
    );

    let patch: Vec<Value> = after
        .iter()
        .map(|(name, resources)| json!({"name": name, "resources": resources}))
        .collect();
    let settled = |wanted: &[Value], generation: i64| {
        wait_for("the pod to have what it asks for", SOON, || {
            let pod = story.kubectl.get(&["pod", "sized"])?;
            let status = &pod["status"];
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let mut kinds = conditions.filter_map(|c| c["type"].as_str());
            ensure!(
                resources(&pod) == wanted
                    && status["observedGeneration"] == generation
                    && !kinds.any(|kind| kind.starts_with("PodResize")),
                "{status}"
            );
            for status in status["containerStatuses"].as_array().into_iter().flatten() {
                ensure!(status["restartCount"] == 0, "{status}");
            }
            Ok(pod)
        })
    };
    let path = format!("{pods}/sized/resize");
    api.call(
        Method::PATCH,
        &path,
        &json!({"spec": {"containers": patch}}),
    )?;
    let pod = settled(&expected(&after), 2)?;
    // What the kernel says inside.
    let limit = story.kubectl.run(&[
        "exec",
        "sized",
        "-c",
        "c2",
        "--",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
    ])?;
    ensure!(limit.trim() == (50 << 20).to_string(), "{limit}");
    // The whole object, by the replace endpoint.
    let mut replaced = pod;
    replaced["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("30m");
    api.call(Method::PUT, &path, &replaced)?;
    let mut wanted = expected(&after);
    wanted[0]["requests"]["cpu"] = json!("30m");
    settled(&wanted, 3)?;

    guaranteed(story, &api)?;

    // Many changes, one after the other.
    const CHANGES: i64 = 100;
    let path = format!("{pods}/sized");
    for number in 0..CHANGES {
        let deadline = 1_000_000 - number;
        let patch = json!({"spec": {"activeDeadlineSeconds": deadline}});
        let pod = api.call(Method::PATCH, &path, &patch)?;
        ensure!(
            pod["metadata"]["generation"] == 4 + number,
            "{}",
            pod["metadata"]
        );
    }
    settled(&wanted, 3 + CHANGES)?;
    let deleted = api.call(Method::DELETE, &path, &json!({"gracePeriodSeconds": 1}))?;
    ensure!(
        deleted["metadata"]["generation"] == 4 + CHANGES,
        "{}",
        deleted["metadata"]
    );
    await_gone(&story.kubectl, &["pod", "sized"])
}

/// Three containers whose requests are their limits: some grow and some shrink, and the pod as a whole with them.
fn guaranteed(story: &Story<'_>, api: &Api) -> Result<()> {
    let amounts = |cpu: u32, mib: u32| {
        let amounts = json!({"cpu": format!("{cpu}m"), "memory": format!("{mib}Mi")});
        json!({"requests": amounts, "limits": amounts})
    };
    let sized = |steps: [(u32, u32); 3]| -> Vec<Value> {
        let names = ["c1", "c2", "c3"].into_iter().zip(steps);
        names
            .map(|(name, (cpu, mib))| json!({"name": name, "resources": amounts(cpu, mib)}))
            .collect()
    };
    let mut pod = idle_pod("guaranteed", None);
    let begun = sized([(20, 24), (20, 24), (20, 24)]);
    pod["spec"]["containers"] = json!(begun);
    for container in pod["spec"]["containers"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        container["image"] = json!(BUSYBOX);
        container["command"] = json!(["sleep", "3600"]);
    }
    story.apply(&[pod])?;
    let pod = await_ready(&story.kubectl, "guaranteed")?;
    ensure!(
        pod["status"]["qosClass"] == "Guaranteed",
        "{}",
        pod["status"]
    );
    let path = format!("{}/guaranteed/resize", pods(story));
    for steps in [
        // More on the whole, less on the whole, and some of each.
        [(30, 30), (30, 30), (15, 20)],
        [(35, 32), (20, 24), (10, 18)],
        [(40, 32), (15, 28), (20, 24)],
    ] {
        let wanted = sized(steps);
        api.call(
            Method::PATCH,
            &path,
            &json!({"spec": {"containers": wanted}}),
        )?;
        wait_for("the containers to have it", SOON, || {
            let pod = story.kubectl.get(&["pod", "guaranteed"])?;
            let statuses = pod["status"]["containerStatuses"].as_array();
            for (status, wanted) in statuses.into_iter().flatten().zip(&wanted) {
                ensure!(
                    status["resources"] == wanted["resources"] && status["restartCount"] == 0,
                    "{status}"
                );
            }
            Ok(())
        })?;
        // What the kernel says of each: memory in bytes, processor in microseconds of 100 ms.
        for (name, (cpu, mib)) in ["c1", "c2", "c3"].into_iter().zip(steps) {
            let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null \
                || { cat memory.max; cut -d' ' -f1 cpu.max; }";
            let said =
                story
                    .kubectl
                    .run(&["exec", "guaranteed", "-c", name, "--", "sh", "-c", script])?;
            let expected = format!("{}\n{}", u64::from(mib) << 20, cpu * 100);
            ensure!(
                said.trim() == expected,
                "{name}: {said:?}, not {expected:?}"
            );
        }
    }
    story
        .kubectl
        .run(&["delete", "pod", "guaranteed", "--wait=false"])
        .map(drop)
}

/// What a node has of its pods, apart from Docker's own: containers, links, folders, cgroups.
fn holdings(node: &Node) -> Result<[usize; 4]> {
    let list = |folder: &std::path::Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let namespace = node.namespace.as_deref().context("nodes are isolated")?;
    let links = command::line(&format!("ip -n {namespace} -oneline link")).output()?;
    let below = node.cgroup.strip_prefix("/").unwrap_or(&node.cgroup);
    let root = std::path::Path::new("/sys/fs/cgroup");
    let hierarchies = [root.join("memory"), root.join("unified"), root.to_owned()];
    let groups = hierarchies
        .iter()
        .map(|hierarchy| hierarchy.join(below).join("kubepods"))
        .find(|folder| folder.is_dir())
        .map(|kubepods| {
            let classes = [
                kubepods.clone(),
                kubepods.join("burstable"),
                kubepods.join("besteffort"),
            ];
            let names = classes.iter().flat_map(|class| list(class));
            names.filter(|name| name.starts_with("pod")).count()
        });
    Ok([
        down::containers_below(&node.cgroup)?.len(),
        links.lines().count(),
        list(&node.state_directory.join("pods")).len(),
        groups.unwrap_or_default(),
    ])
}

/// As many pods as a node takes, and one more.
pub(crate) fn crowd(story: &Story<'_>) -> Result<()> {
    const MOST: usize = 110;
    let node = story.cluster.node("node1")?;
    let on_node = || -> Result<usize> {
        let selector =
            "--field-selector=spec.nodeName=node1,status.phase!=Succeeded,status.phase!=Failed";
        let list = story.kubectl.get(&["pods", "--all-namespaces", selector])?;
        Ok(items(&list).len())
    };
    wait_for("the pods of other stories to go", SOON, || {
        let others = on_node()?;
        ensure!(others == 0, "{others} are left");
        Ok(())
    })?;
    let before = wait_for("what they had to go", SOON, || {
        let before = holdings(node)?;
        ensure!(before[0] == 0 && before[2] == 0, "{before:?}");
        Ok(before)
    })?;
    let mut crowd = deployment("crowd", u32::try_from(MOST)?);
    let idle = idle_pod("crowd", Some("node1"));
    crowd["spec"]["template"]["spec"] = idle["spec"].clone();
    let begun = Instant::now();
    story.apply(&[crowd])?;
    wait_for("all of them to be ready", Duration::from_secs(240), || {
        let crowd = story.kubectl.get(&["deployment", "crowd"])?;
        ensure!(
            crowd["status"]["readyReplicas"] == MOST,
            "{}",
            crowd["status"]
        );
        Ok(())
    })?;
    println!(
        "        {MOST} pods ready after {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    // A sandbox and a container each, one link, one folder, one group.
    let now = holdings(node)?;
    let more = [2 * MOST, MOST, MOST, MOST];
    let sum: Vec<usize> = before.iter().zip(more).map(|(a, b)| a + b).collect();
    ensure!(now.as_slice() == sum, "{now:?} after {before:?}");
    let addresses: BTreeSet<String> = items(&story.kubectl.get(&["pods", "-l", "app=crowd"])?)
        .iter()
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    ensure!(addresses.len() == MOST, "{} addresses", addresses.len());

    story.apply(&[idle_pod("surplus", Some("node1"))])?;
    wait_for("one too many to be refused", SOON, || {
        let pod = story.kubectl.get(&["pod", "surplus"])?;
        ensure!(pod["status"]["reason"] == "OutOfpods", "{}", pod["status"]);
        Ok(())
    })?;
    story
        .kubectl
        .run(&["delete", "deployment/crowd", "pod/surplus"])?;
    let begun = Instant::now();
    wait_for("nothing to be left", Duration::from_secs(240), || {
        let left = holdings(node)?;
        ensure!(left == before, "{left:?} instead of {before:?}");
        Ok(())
    })?;
    println!(
        "        and gone after {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    Ok(())
}

/// A node that never comes back takes the data on it along. A person says so, and the pods begin anew elsewhere.
pub(crate) fn gone_for_good(story: &Story<'_>) -> Result<()> {
    let labels = json!({"app": "db"});
    story.apply(&[
        service("db", "db", json!({"clusterIP": "None"})),
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {
                "replicas": 1, "serviceName": "db", "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "3600"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}],
            },
        }),
    ])?;
    let first = await_ready(&story.kubectl, "db-0")?;
    story.exec("db-0", &["touch", "/data/old"])?;
    let name = text(&first, "/spec/nodeName")?;
    let claim = story.kubectl.get(&["pvc", "data-db-0"])?;
    let volume = text(&claim, "/spec/volumeName")?;
    let victim = story.cluster.node(name)?;
    story.cluster.power_off(victim)?;
    let outcome = begin_anew(story, &first, volume);
    // The next story gets a whole cluster: the machine comes back under its old name.
    let back = story.cluster.power_on(victim).and_then(|()| {
        wait_for("the node to be ready", Duration::from_secs(60), || {
            let node = story.kubectl.get(&["node", name])?;
            ensure!(crate::manifests::is_ready(&node), "{}", node["status"]);
            Ok(())
        })
    });
    outcome.and(back)
}

fn begin_anew(story: &Story<'_>, first: &Value, volume: &str) -> Result<()> {
    let name = text(first, "/spec/nodeName")?;
    let deleted = story.kubectl.run(&["delete", "node", name, "--wait=false"]);
    deleted?;
    let begun = Instant::now();
    let next = wait_for("another pod in its place", Duration::from_secs(120), || {
        let pod = story.kubectl.get(&["pod", "db-0"])?;
        ensure!(
            pod["metadata"]["uid"] != first["metadata"]["uid"],
            "it is still the same: {}",
            pod["status"]
        );
        Ok(pod)
    })?;
    println!(
        "        the pod of a node that is no more is replaced after {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    // Its data was there and nowhere else.
    ensure!(next["spec"]["nodeName"].is_null(), "{}", next["spec"]);
    wait_for("the scheduler to say why it waits", SOON, || {
        story
            .kubectl
            .expect(
                &["describe", "pod", "db-0"],
                "volume node affinity conflict",
            )
            .or_else(|_| {
                story.kubectl.expect(
                    &["describe", "pod", "db-0"],
                    "didn't match PersistentVolume's node affinity",
                )
            })
    })?;
    story
        .kubectl
        .run(&["delete", "pvc/data-db-0", "pod/db-0", "--wait=false"])?;
    let pod = wait_for("it to run elsewhere", Duration::from_secs(60), || {
        let pod = story.kubectl.get(&["pod", "db-0"])?;
        ensure!(crate::manifests::is_ready(&pod), "{}", pod["status"]);
        Ok(pod)
    })?;
    ensure!(pod["spec"]["nodeName"] != name, "it runs on the dead node");
    let files = story.exec("db-0", &["ls", "/data"])?;
    ensure!(files.trim().is_empty(), "there is {files:?}");
    await_gone(&story.kubectl, &["pv", volume])
}
