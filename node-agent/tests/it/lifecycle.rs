//! What changes while pods live: what they show, what they may use, who restarts and who ends when.

use serde_json::{Value, json};

use crate::harness::{IMAGE, Node, docker, docker_at};

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn container(name: &str, script: &str, more: Value) -> Value {
    let mut c = json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        c[key] = value.clone();
    }
    c
}

fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let lists = [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ];
    let mut all = lists
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    all.find(|s| s["name"] == container).unwrap_or(&Value::Null)
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

fn id(pod: &Value, container: &str) -> String {
    let id = status(pod, container)["containerID"]
        .as_str()
        .unwrap_or_default();
    id.trim_start_matches("docker://").to_string()
}

fn config(node: &Node, value: &str) {
    node.api.put(
        "/api/v1/configmaps/default/m",
        json!({"metadata": {"name": "m", "namespace": "default"}, "data": {"k": value}}),
    );
}

/// ConfigMap, Secret and Projected: "updates should be reflected in volume", "optional updates",
/// Downward API volume: "should update labels and annotations on modification".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_show_what_changes() {
    let Some(node) = Node::start().await else {
        return;
    };
    config(&node, "old");
    let volumes = json!([
        {"name": "map", "configMap": {"name": "m"}},
        {"name": "secret", "secret": {"secretName": "later", "optional": true}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "m"}},
            {"secret": {"name": "later", "optional": true}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}}]}}]}},
        {"name": "down", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}}]}}]);
    let mounts = json!([{"name": "map", "mountPath": "/map"}, {"name": "secret", "mountPath": "/secret"},
        {"name": "all", "mountPath": "/all"}, {"name": "down", "mountPath": "/down"}]);
    node.create(
        "shows",
        json!({"volumes": volumes, "containers": [container("c", FOREVER, json!({"volumeMounts": mounts}))]}),
    );
    let pod = node.wait_phase("shows", "Running").await;
    let id = id(&pod, "c");
    let show = || {
        docker(&[
            "exec",
            &id,
            "sh",
            "-c",
            "cat /map/* /secret/* /all/* /down/* 2>/dev/null || true",
        ])
    };
    assert_eq!(show(), "oldoldapp=\"shows\"app=\"shows\"");
    config(&node, "new");
    node.api.put(
        "/api/v1/secrets/default/later",
        json!({"metadata": {"name": "later", "namespace": "default"}, "data": {"s": "c2VjcmV0"}}),
    );
    node.change("shows", |pod| {
        pod["metadata"]["labels"]["app"] = json!("changed");
        pod["metadata"]["annotations"] = json!({"noted": "yes"});
    });
    let told = "app=\"changed\"noted=\"yes\"";
    let shows = async |what: &str, expected: String| {
        node.wait(what, || match show() {
            found if found == expected => Ok(()),
            other => Err(other),
        })
        .await;
    };
    shows(
        "what has changed",
        format!("newsecretnew{told}secret{told}"),
    )
    .await;
    // What may be missing goes, and a key that is no more.
    node.api.remove("/api/v1/secrets/default/later");
    node.api.put(
        "/api/v1/configmaps/default/m",
        json!({"metadata": {"name": "m", "namespace": "default"}, "data": {"other": "else"}}),
    );
    shows("what is gone", format!("else{told}else{told}")).await;

    // What a pod waits for appears.
    node.create(
        "waits",
        json!({"volumes": [{"name": "v", "secret": {"secretName": "missing"}}],
            "containers": [container("c", FOREVER, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))]}),
    );
    node.wait_event("waits", "FailedMount", "secret \"missing\" not found")
        .await;
    node.api.put(
        "/api/v1/secrets/default/missing",
        json!({"metadata": {"name": "missing", "namespace": "default"}, "data": {}}),
    );
    node.wait_phase("waits", "Running").await;
}

/// "Pod InPlace Resize Container": increase and decrease, with and without a restart, and what the node cannot give.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_change_in_place() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    let restart = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    node.create(
        "sized",
        json!({"containers": [
            container("a", FOREVER, json!({"resources": resources("100m", "32Mi")})),
            container("b", FOREVER, json!({"resources": resources("100m", "32Mi"), "resizePolicy": restart})),
        ]}),
    );
    let pod = node.wait_phase("sized", "Running").await;
    let (a, b) = (id(&pod, "a"), id(&pod, "b"));
    let resize = |first: Value, second: Value| {
        node.change("sized", |pod| {
            pod["spec"]["containers"][0]["resources"] = first;
            pod["spec"]["containers"][1]["resources"] = second;
        });
    };
    resize(resources("200m", "64Mi"), resources("50m", "48Mi"));
    let pod = node
        .wait_pod("sized", "resized", |pod| {
            status(pod, "a")["resources"] == resources("200m", "64Mi")
                && status(pod, "b")["restartCount"] == 1
                && status(pod, "b")["state"]["running"].is_object()
                && condition(pod, "PodResizeInProgress").is_null()
        })
        .await;
    assert_eq!(id(&pod, "a"), a, "in place");
    for (reason, text) in [
        (
            "ResizeStarted",
            "Pod resize started: {\"containers\":[{\"name\":\"a\",\"resources\":{\"limits\":{\"cpu\":\"200m\"",
        ),
        ("ResizeCompleted", "Pod resize completed: {"),
    ] {
        node.wait_event("sized", reason, text).await;
    }
    assert_ne!(id(&pod, "b"), b, "its policy asks for a restart");
    assert_eq!(
        status(&pod, "a")["allocatedResources"],
        resources("200m", "64Mi")["requests"]
    );
    assert_eq!(status(&pod, "b")["resources"], resources("50m", "48Mi"));
    let limits = docker(&[
        "inspect",
        "-f",
        "{{.HostConfig.CpuQuota}} {{.HostConfig.CpuShares}} {{.HostConfig.Memory}}",
        &a,
    ]);
    assert_eq!(limits, "20000 204 67108864");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let group = format!(
        "/sys/fs/cgroup/memory/skep/{}/kubepods/pod{uid}/memory.limit_in_bytes",
        node.name
    );
    if let Ok(limit) = std::fs::read_to_string(group) {
        assert_eq!(
            limit.trim(),
            (112 << 20).to_string(),
            "of the pod as a whole"
        );
    }

    node.change("sized", |pod| {
        pod["spec"]["containers"][0]["resources"] = resources("1000", "64Mi");
    });
    let infeasible = |pod: &Value| {
        let pending = condition(pod, "PodResizePending");
        pending["reason"] == "Infeasible"
            && pending["message"].as_str().is_some_and(|m| {
                m.starts_with("Node didn't have enough capacity: cpu, requested: 1000050")
            })
    };
    node.wait_pod("sized", "infeasible", infeasible).await;
    node.wait_event("sized", "ResizeInfeasible", "Pod resize Infeasible: {")
        .await;
    // What was given is remembered over a restart of the agent.
    node.restart().await;
    let pod = node.wait_pod("sized", "infeasible still", infeasible).await;
    assert_eq!(status(&pod, "a")["resources"], resources("200m", "64Mi"));
    node.change("sized", |pod| {
        pod["spec"]["containers"][0]["resources"] = resources("200m", "64Mi");
    });
    node.wait_pod("sized", "settled", |pod| {
        condition(pod, "PodResizePending").is_null()
    })
    .await;
}

/// "Container Runtime blackbox test on terminated container", "InitContainer", "Pods should allow
/// activeDeadlineSeconds to be updated", "should have monotonically increasing restart count".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_end_as_they_should() {
    let Some(node) = Node::start().await else {
        return;
    };
    let logs = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let custom =
        json!({"terminationMessagePath": "/tmp/custom", "securityContext": {"runAsUser": 1000}});
    node.create(
        "messages",
        json!({"restartPolicy": "Never", "containers": [
            container("file", "echo -n DONE > /tmp/custom", custom),
            container("log", "echo -n DONE; exit 1", logs.clone()),
            container("quiet", "echo DONE", logs.clone()),
            container("both", "echo log; echo -n OK > /dev/termination-log; exit 1", logs.clone()),
            container("kept", "echo -n OK > /dev/termination-log", logs),
        ]}),
    );
    // All of them together may say 12 KiB.
    let much =
        "i=0; while [ $i -lt 300 ]; do echo 0123456789; i=$((i+1)); done > /dev/termination-log";
    let many: Vec<Value> = (0..20)
        .map(|i| container(&format!("c{i}"), much, json!({})))
        .collect();
    node.create(
        "talkative",
        json!({"restartPolicy": "Never", "containers": many}),
    );
    node.create(
        "init-fails",
        json!({"restartPolicy": "Never", "initContainers": [container("one", "exit 1", json!({})),
            container("two", "exit 0", json!({}))], "containers": [container("c", FOREVER, json!({}))]}),
    );
    node.create(
        "init-again",
        json!({"initContainers": [container("one", "exit 1", json!({}))], "containers": [container("c", FOREVER, json!({}))]}),
    );
    node.create(
        "deadline",
        json!({"containers": [container("c", FOREVER, json!({}))]}),
    );
    let memory = json!({"resources": {"limits": {"memory": "16Mi"}}});
    node.create(
        "oom",
        json!({"restartPolicy": "Never", "containers": [
            container("c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", memory.clone())]}),
    );
    // They end before Docker listens for it, each with some likelihood.
    let hungry = ["h0", "h1", "h2", "h3"];
    let once = "exec dd if=/dev/zero of=/dev/null bs=100M count=1";
    let containers: Vec<Value> = hungry
        .map(|name| container(name, once, memory.clone()))
        .into();
    node.create(
        "oom-at-once",
        json!({"restartPolicy": "Never", "containers": containers}),
    );
    let rules = json!({"restartPolicy": "Never", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    node.create(
        "rules",
        json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}], "containers": [
            container("c", "test -e /v/x && exit 3; touch /v/x; exit 42", rules)]}),
    );
    let liveness = json!({"livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}});
    node.create(
        "ill",
        json!({"restartPolicy": "OnFailure", "containers": [container("c", FOREVER, liveness)]}),
    );
    let failing = json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo broken; exit 7"]}}}});
    node.create(
        "post-start",
        json!({"containers": [container("c", FOREVER, failing)]}),
    );

    let pod = node.wait_phase("messages", "Failed").await;
    let message = |name: &str| status(&pod, name)["state"]["terminated"]["message"].clone();
    assert_eq!(message("file"), "DONE");
    assert_eq!(message("log"), "DONE");
    assert_eq!(message("quiet"), Value::Null);
    assert_eq!(message("both"), "OK");
    assert_eq!(message("kept"), "OK");
    let pod = node.wait_phase("talkative", "Succeeded").await;
    for i in 0..20 {
        let ended = &status(&pod, &format!("c{i}"))["state"]["terminated"];
        let message = ended["message"].as_str().unwrap_or_default();
        assert_eq!(message.len(), (12 << 10) / 20, "{ended}");
    }

    let pod = node.wait_phase("init-fails", "Failed").await;
    assert_eq!(status(&pod, "one")["state"]["terminated"]["exitCode"], 1);
    assert_eq!(
        status(&pod, "two")["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(
        condition(&pod, "Initialized")["reason"],
        "ContainersNotInitialized"
    );
    assert_eq!(
        condition(&pod, "Initialized")["message"],
        "containers with incomplete status: [one two]"
    );
    let pod = node
        .wait_pod("init-again", "restarted", |pod| {
            status(pod, "one")["restartCount"] == 1
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");

    node.wait_phase("deadline", "Running").await;
    node.change("deadline", |pod| {
        pod["spec"]["activeDeadlineSeconds"] = json!(1)
    });
    let pod = node.wait_phase("deadline", "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    assert_eq!(
        pod["status"]["message"],
        "Pod was active on the node longer than the specified deadline"
    );

    let pod = node.wait_phase("oom", "Failed").await;
    let ended = &status(&pod, "c")["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
    let pod = node.wait_phase("oom-at-once", "Failed").await;
    for name in hungry {
        let ended = &status(&pod, name)["state"]["terminated"];
        assert_eq!(ended["reason"], "OOMKilled", "{ended}");
    }

    let pod = node.wait_phase("rules", "Failed").await;
    assert_eq!(status(&pod, "c")["restartCount"], 1);
    assert_eq!(status(&pod, "c")["state"]["terminated"]["exitCode"], 3);

    // It exits with 0 when it is told to end, and comes back all the same.
    let most = std::cell::Cell::new(0);
    node.wait_pod("ill", "restarted twice", |pod| {
        let count = status(pod, "c")["restartCount"].as_u64().unwrap_or(0);
        assert!(count >= most.replace(count), "it went down to {count}");
        pod["status"]["phase"] == "Running" && count >= 2
    })
    .await;

    node.wait_event("post-start", "FailedPostStartHook", "PostStartHook failed")
        .await;
}

/// "Container Runtime blackbox test when starting a container that exits should run with the expected status",
/// "Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_policies_decide() {
    let Some(node) = Node::start().await else {
        return;
    };
    // The first run fails, the second ends well, the third goes on.
    let script = format!(
        "echo x >> /v/runs; case $(grep -c x /v/runs) in 1) exit 1;; 2) exit 0;; esac; {FOREVER}"
    );
    for policy in ["Always", "OnFailure", "Never"] {
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        node.create(
            &policy.to_lowercase(),
            json!({"restartPolicy": policy, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [container("c", &script, mounts)]}),
        );
    }
    node.create(
        "hopeless",
        json!({"containers": [container("c", "exit 1", json!({}))]}),
    );
    let is = |phase: &'static str, restarts: i64, ready: bool| {
        move |pod: &Value| {
            let c = status(pod, "c");
            pod["status"]["phase"] == phase && c["restartCount"] == restarts && c["ready"] == ready
        }
    };
    let never = node
        .wait_pod("never", "failed", is("Failed", 0, false))
        .await;
    assert_eq!(status(&never, "c")["state"]["terminated"]["exitCode"], 1);
    assert_eq!(status(&never, "c")["started"], false);
    let done = node
        .wait_pod("onfailure", "succeeded", is("Succeeded", 1, false))
        .await;
    let ended = &status(&done, "c")["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("Completed"), &json!(0))
    );
    node.wait_pod("always", "running", is("Running", 2, true))
        .await;
    node.wait_pod("hopeless", "waiting", |pod| {
        status(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status(pod, "c")["lastState"]["terminated"]["reason"] == "Error"
    })
    .await;
    for name in ["always", "onfailure", "never", "hopeless"] {
        node.delete(name);
    }
    for name in ["always", "onfailure", "never", "hopeless"] {
        node.wait_gone(name).await;
    }
    assert_eq!(node.containers().await, 0);
}

/// "Variable Expansion should verify that a failing subpath expansion can be modified during the lifecycle of a
/// container", "should succeed in writing subpaths in container".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expansion_of_a_sub_path_can_be_mended() {
    let Some(node) = Node::start().await else {
        return;
    };
    let more = json!({
        "env": [{"name": "POD_NAME", "value": "foo"},
            {"name": "ANNOTATION", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['mysubpath']"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/subpath_mount", "subPathExpr": "$(ANNOTATION)/$(POD_NAME)"},
            {"name": "v", "mountPath": "/volume_mount"}]});
    node.create(
        "mended",
        json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [container("c", FOREVER, more)]}),
    );
    node.wait_pod("mended", "refused", |pod| {
        status(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })
    .await;
    let annotate = |value: &str| {
        node.change("mended", |pod| {
            pod["metadata"]["annotations"] = json!({"mysubpath": value});
        });
    };
    annotate("mypath");
    let pod = node.wait_phase("mended", "Running").await;
    let id = id(&pod, "c");
    docker(&["exec", &id, "touch", "/volume_mount/mypath/foo/test.log"]);
    docker(&["exec", &id, "test", "-f", "/subpath_mount/test.log"]);
    // What runs keeps what it has.
    annotate("mynewpath");
    docker(&["exec", &id, "test", "-f", "/subpath_mount/test.log"]);
    node.delete("mended");
    node.wait_gone("mended").await;
    assert_eq!(node.containers().await, 0);
}

/// "EmptyDir wrapper volumes should not conflict", "should not cause race condition when used for configmaps".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_volumes_do_not_conflict() {
    let Some(node) = Node::start().await else {
        return;
    };
    const MAPS: usize = 50;
    for i in 0..MAPS {
        node.api.put(
            &format!("/api/v1/configmaps/default/m{i}"),
            json!({"metadata": {"name": format!("m{i}"), "namespace": "default"}, "data": {"data-1": format!("value-{i}")}}),
        );
    }
    let volumes: Vec<Value> = (0..MAPS)
        .map(|i| {
            json!({"name": format!("v{i}"), "configMap": {"name": format!("m{i}"),
            "items": [{"key": "data-1", "path": "data-1"}]}})
        })
        .collect();
    let mounts: Vec<Value> = (0..MAPS)
        .map(|i| json!({"name": format!("v{i}"), "mountPath": format!("/etc/config-{i}")}))
        .collect();
    let script = format!(
        "i=0; while [ $i -lt {MAPS} ]; do [ $(cat /etc/config-$i/data-1) = value-$i ] || exit 1; i=$((i+1)); done"
    );
    let pods = ["one", "two", "three"];
    for name in pods {
        node.create(
            name,
            json!({"restartPolicy": "Never", "volumes": volumes,
                "containers": [container("c", &script, json!({"volumeMounts": mounts}))]}),
        );
    }
    for name in pods {
        node.wait_phase(name, "Succeeded").await;
        node.delete(name);
    }
    for name in pods {
        node.wait_gone(name).await;
    }
}

/// Ephemeral containers, and the order in which sidecars start and end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_beside_others() {
    let Some(node) = Node::start().await else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let says = |word: &str| {
        format!("trap 'echo {word} >> /v/order; exit 0' TERM; while :; do sleep 0.1; done")
    };
    let sidecar = |name: &str| {
        let hook = format!("echo hook-{name} >> /v/order");
        container(
            name,
            &says(name),
            json!({"restartPolicy": "Always", "volumeMounts": mounts,
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", hook]}}},
                "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}),
        )
    };
    let slow = "trap 'sleep 1; echo main >> /v/order; exit 0' TERM; while :; do sleep 0.1; done";
    node.create(
        "team",
        json!({"terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "hostPath": {"path": out.path()}}],
            "initContainers": [sidecar("s1"), sidecar("s2")],
            "containers": [container("main", slow, json!({"volumeMounts": mounts}))]}),
    );
    node.wait_pod("team", "ready", |pod| {
        condition(pod, "Ready")["status"] == "True"
    })
    .await;
    node.change("team", |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": IMAGE,
            "imagePullPolicy": "Never", "targetContainerName": "main", "command": ["sh", "-c", format!("ps; {FOREVER}")]}]);
    });
    let pod = node
        .wait_pod("team", "debugged", |pod| {
            status(pod, "debug")["state"]["running"].is_object()
        })
        .await;
    node.wait("the target's processes", || {
        let log = docker_at(&node.socket, &["logs", &id(&pod, "debug")]);
        if log.contains("echo main") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    node.delete("team");
    node.wait_gone("team").await;
    let order = std::fs::read_to_string(out.path().join("order")).unwrap();
    let lines: Vec<&str> = order.lines().collect();
    let (hooks, rest): (Vec<&str>, Vec<&str>) = lines.iter().partition(|l| l.starts_with("hook"));
    assert_eq!(rest, ["main", "s2", "s1"]);
    let position = |word: &str| lines.iter().position(|l| *l == word);
    assert_eq!(hooks.len(), 2, "{lines:?}");
    for hook in ["hook-s1", "hook-s2"] {
        assert!(position(hook) < position("main"), "at once: {lines:?}");
    }
}

/// A file of the node is a pod; the API shows it and has no say in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_pods_are_mirrored() {
    let Some(node) = Node::start().await else {
        return;
    };
    let folder = node.dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    let write = |script: &str| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container("c", script, json!({}))]}});
        std::fs::write(folder.join("web.json"), pod.to_string()).unwrap();
    };
    node.put_node(json!({}));
    write(FOREVER);
    let name = format!("web-{}", node.name);
    let pod = node
        .wait_pod(&name, "mirrored", |pod| {
            condition(pod, "Ready")["status"] == "True"
        })
        .await;
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(
        pod["metadata"]["annotations"]["kubernetes.io/config.source"],
        "file"
    );
    let first = id(&pod, "c");

    // Its mirror is deleted: it comes back, and nothing is restarted.
    let uid = pod["metadata"]["uid"].clone();
    node.delete(&name);
    let pod = node
        .wait_pod(&name, "mirrored again", |pod| {
            pod["metadata"]["uid"] != uid && condition(pod, "Ready")["status"] == "True"
        })
        .await;
    assert_eq!(id(&pod, "c"), first);

    // The file changes: another pod.
    write(&format!("echo changed; {FOREVER}"));
    let pod = node
        .wait_pod(&name, "replaced", |pod| {
            id(pod, "c") != first && condition(pod, "Ready")["status"] == "True"
        })
        .await;
    assert_eq!(node.log(&pod, "c"), "changed");

    std::fs::remove_file(folder.join("web.json")).unwrap();
    node.wait_gone(&name).await;
    node.wait("the end of its containers", || {
        let label = format!("label=io.skep.scope={}", node.name);
        match docker(&["ps", "-aq", "--filter", &label]).as_str() {
            "" => Ok(()),
            left => Err(left.to_string()),
        }
    })
    .await;
}
