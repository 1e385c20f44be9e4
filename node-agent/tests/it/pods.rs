//! The life of pods on real containers.

use serde_json::{Value, json};

use crate::harness::{IMAGE, Node, docker};

fn sh(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script]})
}

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_survives_the_agent_and_goes() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create("web", json!({"containers": [sh("c", FOREVER)]}));
    let pod = node.wait_phase("web", "Running").await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["restartCount"], 0);
    let id = status["containerID"]
        .as_str()
        .unwrap()
        .trim_start_matches("docker://")
        .to_string();
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    let user = json!({"linux": {"uid": 0, "gid": 0, "supplementalGroups": [0]}});
    assert_eq!(status["user"], user);
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    node.wait_event("web", "Started", "Container started").await;

    let before = docker(&["inspect", "-f", "{{.State.StartedAt}}", &id]);
    node.restart().await;
    node.wait_pod("web", "adopted", |pod| pod["status"]["phase"] == "Running")
        .await;
    // The relist and the first plan have happened once the pod's second container could start.
    node.create("other", json!({"containers": [sh("c", FOREVER)]}));
    node.wait_phase("other", "Running").await;
    assert_eq!(
        docker(&["inspect", "-f", "{{.State.StartedAt}}", &id]),
        before
    );
    assert_eq!(node.containers().await, 4, "two sandboxes, two containers");

    node.delete("web");
    node.delete("other");
    node.wait_gone("web").await;
    node.wait_gone("other").await;
    assert_eq!(node.containers().await, 0);
    let left = std::fs::read_dir(node.dir.path().join("pods"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "folders of pods are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_container_is_replaced_and_a_finished_pod_is_not() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.create("again", json!({"containers": [sh("c", FOREVER)]}));
    node.create(
        "once",
        json!({"restartPolicy": "Never", "containers": [
            sh("good", "exit 0"), sh("bad", "echo why > /dev/termination-log; exit 3")]}),
    );
    let pod = node.wait_phase("again", "Running").await;
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap()
        .to_string();
    docker(&["kill", id.trim_start_matches("docker://")]);
    let pod = node
        .wait_pod("again", "restarted", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["restartCount"] == 1 && status["ready"] == true
        })
        .await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{last}");
    assert_eq!(last["reason"], "Error");

    let pod = node.wait_phase("once", "Failed").await;
    let of = |name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().unwrap();
        all.iter().find(|s| s["name"] == name).unwrap()["state"]["terminated"].clone()
    };
    assert_eq!(of("good")["reason"], "Completed");
    assert_eq!(of("bad")["exitCode"], 3);
    assert_eq!(of("bad")["message"], "why\n");
    let ready = pod["status"]["conditions"].as_array().unwrap().iter();
    let ready = ready.clone().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "PodFailed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_and_sidecars_run_in_order() {
    let Some(node) = Node::start().await else {
        return;
    };
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let with = |mut c: Value| {
        c["volumeMounts"] = mount.clone();
        c
    };
    let mut sidecar = with(sh("side", &format!("echo side >> /v/order; {FOREVER}")));
    sidecar["restartPolicy"] = json!("Always");
    node.create(
        "ordered",
        json!({"volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [with(sh("one", "echo one >> /v/order")), sidecar,
                with(sh("two", "until grep -q side /v/order; do sleep 0.05; done; echo two >> /v/order"))],
            "containers": [with(sh("main", &format!("echo main >> /v/order; {FOREVER}")))]}),
    );
    let pod = node.wait_phase("ordered", "Running").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let file = node
        .dir
        .path()
        .join("pods")
        .join(uid)
        .join("volumes/v/order");
    let order = node
        .wait("order", || match std::fs::read_to_string(&file) {
            Ok(text) if text.ends_with("main\n") => Ok(text),
            other => Err(format!("{other:?}")),
        })
        .await;
    assert_eq!(order, "one\nside\ntwo\nmain\n");
    let init = &pod["status"]["initContainerStatuses"];
    assert_eq!(init[0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(init[0]["ready"], true);
    assert_eq!(init[1]["started"], true);
    // What can be resized says what it has, be it nothing.
    assert_eq!(init[1]["resources"], json!({}));
    assert_eq!(
        pod["status"]["containerStatuses"][0]["resources"],
        json!({})
    );
    node.delete("ordered");
    node.wait_gone("ordered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_pods_say_what_is_wrong() {
    let Some(node) = Node::start().await else {
        return;
    };
    let with = |field: &str, value: Value| {
        let mut c = sh("c", FOREVER);
        c[field] = value;
        json!({"containers": [c]})
    };
    let mut never = sh("c", FOREVER);
    never["image"] = json!("skep-kubelet-test/missing:1");
    never["imagePullPolicy"] = json!("Never");
    node.create("never", json!({"containers": [never]}));
    // Nobody listens on this port.
    let mut pull = sh("c", FOREVER);
    pull["image"] = json!("127.0.0.1:1/nothing:1");
    pull["imagePullPolicy"] = json!("Always");
    node.create(
        "pull",
        json!({"containers": [pull], "imagePullSecrets": [{"name": "nowhere"}]}),
    );
    node.create("name", with("image", json!("UPPER CASE")));
    node.create("command", with("command", json!(["/no/such/thing"])));
    node.create(
        "config",
        with(
            "env",
            json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "k"}}}]),
        ),
    );
    node.create(
        "mount",
        json!({"containers": [sh("c", FOREVER)],
        "volumes": [{"name": "v", "secret": {"secretName": "nope"}}]}),
    );
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    for (pod, reason, text) in [
        (
            "never",
            "ErrImageNeverPull",
            "Container image \"skep-kubelet-test/missing:1\" is not present with pull policy of Never",
        ),
        (
            "pull",
            "ImagePullBackOff",
            "Back-off pulling image \"127.0.0.1:1/nothing:1\": ErrImagePull: ",
        ),
        (
            "name",
            "InvalidImageName",
            "Failed to apply default image tag \"UPPER CASE\": couldn't parse image name \"UPPER CASE\": invalid \
             reference format: repository name (library/UPPER CASE) must be lowercase",
        ),
        (
            "config",
            "CreateContainerConfigError",
            "configmap \"nope\" not found",
        ),
    ] {
        let seen = node
            .wait_pod(pod, reason, |p| waiting(p)["reason"] == reason)
            .await;
        let message = waiting(&seen)["message"].as_str().unwrap().to_string();
        assert!(message.contains(text), "{pod}: {message}");
    }
    for (reason, text) in [
        (
            "FailedToRetrieveImagePullSecret",
            "Unable to retrieve some image pull secrets (nowhere)",
        ),
        ("Pulling", "Pulling image \"127.0.0.1:1/nothing:1\""),
        ("Failed", "Failed to pull image \"127.0.0.1:1/nothing:1\": "),
        ("Failed", "Error: ErrImagePull"),
        (
            "BackOff",
            "Back-off pulling image \"127.0.0.1:1/nothing:1\"",
        ),
        ("Failed", "Error: ImagePullBackOff"),
    ] {
        node.wait_event("pull", reason, text).await;
    }
    node.wait_event(
        "mount",
        "FailedMount",
        "MountVolume.SetUp failed for volume \"v\" : secret \"nope\" not found",
    )
    .await;
    let pod = node
        .wait_pod("command", "start error", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["lastState"]["terminated"]["reason"] == "StartError"
                && waiting(pod)["reason"] == "CrashLoopBackOff"
        })
        .await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 128);
    assert!(
        status["lastState"]["terminated"]["message"]
            .as_str()
            .unwrap()
            .contains("no such file")
    );
    // The configuration appears, and the pod runs.
    node.api.put(
        "/api/v1/configmaps/default/nope",
        json!({"metadata": {"name": "nope", "namespace": "default"}, "data": {"k": "v"}}),
    );
    node.wait_phase("config", "Running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_what_its_pod_says() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.api.put(
        "/api/v1/configmaps/default/m",
        json!({"metadata": {"name": "m", "namespace": "default"}, "data": {"k": "from map"}}),
    );
    let script = "echo \"$A|$B|$NAME|$K|$CPU\"; id -u; id -g; hostname; cat /etc/hosts /etc/resolv.conf /cfg/k; \
        stat -c %a /cfg/..data/k; cat /var/run/token; test -w / || echo readonly; touch /mem/x && grep ' /mem ' /proc/mounts";
    let mut c = sh("c", script);
    c["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "x$(A)y"},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}]);
    c["resources"] = json!({"limits": {"cpu": "250m", "memory": "64Mi"}});
    c["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 5678, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}});
    c["volumeMounts"] = json!([{"name": "cfg", "mountPath": "/cfg"}, {"name": "tok", "mountPath": "/var/run"},
        {"name": "mem", "mountPath": "/mem"}]);
    node.create("facts", json!({"restartPolicy": "Never", "hostname": "me", "serviceAccountName": "default", "containers": [c],
        "volumes": [{"name": "cfg", "configMap": {"name": "m", "defaultMode": 292}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "tok", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}));
    let pod = node.wait_phase("facts", "Succeeded").await;
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let id = pod["status"]["containerStatuses"][0]["state"]["terminated"]["containerID"]
        .as_str()
        .unwrap();
    let id = id.trim_start_matches("docker://");
    let log = docker(&["logs", id]);
    for expected in [
        "1|x1y|facts|from map|250\n",
        "1234\n5678\nme\n",
        "# Kubernetes-managed hosts file.",
        "\tme\n",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "nameserver 10.96.0.10",
        "options ndots:5",
        "from map444\n",
        "a.b.c",
        "readonly",
        "tmpfs /mem tmpfs",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in:\n{log}");
    }
    assert_eq!(
        docker(&[
            "inspect",
            "-f",
            "{{.HostConfig.CpuQuota}} {{.HostConfig.Memory}}",
            id
        ]),
        "25000 67108864"
    );
    node.delete("facts");
    node.wait_gone("facts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_hooks_decide() {
    let Some(node) = Node::start().await else {
        return;
    };
    let mut c = sh("c", FOREVER);
    c["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    c["livenessProbe"] = json!({"exec": {"command": ["test", "!", "-e", "/tmp/dead"]}, "periodSeconds": 1, "failureThreshold": 1});
    c["lifecycle"] = json!({"postStart": {"exec": {"command": ["touch", "/tmp/started"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo bye > /v/bye"]}}});
    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let out = tempfile::tempdir().unwrap();
    node.create(
        "probed",
        json!({"containers": [c],
        "volumes": [{"name": "v", "hostPath": {"path": out.path(), "type": "Directory"}}]}),
    );
    let pod = node.wait_phase("probed", "Running").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
    node.wait_event("probed", "Unhealthy", "Readiness probe failed")
        .await;
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap();
    let id = id.trim_start_matches("docker://").to_string();
    docker(&["exec", &id, "test", "-e", "/tmp/started"]);
    docker(&["exec", &id, "touch", "/tmp/ready"]);
    node.wait_pod("probed", "ready", |p| {
        p["status"]["containerStatuses"][0]["ready"] == true
    })
    .await;
    // Why it was not ready is said no more.
    node.wait_pod("probed", "told to be ready", |p| {
        let conditions = p["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|c| c["type"] == "Ready");
        ready.any(|c| c["status"] == "True" && c["reason"].is_null() && c["message"].is_null())
    })
    .await;
    let pod = node.api.get(&node.path("probed")).unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    docker(&["exec", &id, "touch", "/tmp/dead"]);
    node.wait_event(
        "probed",
        "Killing",
        "Container c failed liveness probe, will be restarted",
    )
    .await;
    node.wait_pod("probed", "restarted", |p| {
        p["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    assert_eq!(
        std::fs::read_to_string(out.path().join("bye")).unwrap(),
        "bye\n"
    );
    node.delete("probed");
    node.wait_gone("probed").await;
}

/// What a probe has begun ends with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_too_slow_leaves_no_process() {
    let Some(node) = Node::start().await else {
        return;
    };
    let mut c = sh("c", FOREVER);
    c["readinessProbe"] = json!({"exec": {"command": ["sh", "-c", "sleep 4321 & sleep 4321"]},
        "timeoutSeconds": 1, "periodSeconds": 3600});
    node.create("slow", json!({"containers": [c]}));
    let pod = node.wait_phase("slow", "Running").await;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id.unwrap().trim_start_matches("docker://").to_string();
    let text = "Readiness probe failed: command timed out: \"sh -c sleep 4321 & sleep 4321\" timed out after 1s";
    node.wait_event("slow", "Unhealthy", text).await;
    node.wait("end of what the probe began", || {
        let processes = docker(&["top", &id, "-o", "pid,args"]);
        match processes.contains("sleep 4321") {
            true => Err(processes),
            false => Ok(()),
        }
    })
    .await;
    let metrics = node.ctx.as_ref().unwrap().probes.text();
    let line = "probe_type=\"Readiness\",result=\"failed\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let mut c = sh("c", FOREVER);
    c["readinessProbe"] = json!({"exec": {"command": ["/no/such/command"]}, "periodSeconds": 1});
    node.create("impossible", json!({"containers": [c]}));
    let text = "Readiness probe errored and resulted in unknown state: ";
    node.wait_event("impossible", "Unhealthy", text).await;
    for name in ["slow", "impossible"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
}

/// A moment that Docker tells of a container.
fn moment(id: &str, field: &str) -> jiff::Timestamp {
    let text = docker(&["inspect", "-f", &format!("{{{{{field}}}}}"), id]);
    let bare = text.trim_matches('"');
    bare.parse().expect("a time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_starts_first_is_created_while_its_sandbox_starts() {
    let Some(node) = Node::start().await else {
        return;
    };
    let mut told = sh("c", "echo $IP; exec sleep 1000");
    told["env"] = json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    // How many of the containers were there before their sandboxes ran.
    let early = async |kind: &str, spec: Value| {
        let mut early = 0;
        for number in 0..4 {
            let name = format!("{kind}-{number}");
            let uid = node.create(&name, spec.clone());
            node.wait_phase(&name, "Running").await;
            let find = |role: &str| {
                let of = format!("label=io.kubernetes.pod.uid={uid}");
                let role = format!("label=io.kubernetes.docker.type={role}");
                let list = [
                    "ps",
                    "-aq",
                    "--no-trunc",
                    "--filter",
                    &of,
                    "--filter",
                    &role,
                ];
                docker(&list)
            };
            let began = moment(&find("podsandbox"), "json .State.StartedAt");
            let containers = find("container");
            for id in containers.lines() {
                early += usize::from(moment(id, "json .Created") < began);
            }
            node.delete(&name);
        }
        early
    };
    // A slow machine may miss one.
    let both = json!({"containers": [sh("a", FOREVER), sh("b", FOREVER)]});
    assert!(early("plain", both).await >= 4);
    let ordered = json!({"initContainers": [sh("i", "true")], "containers": [sh("a", FOREVER)]});
    let of_ordered = early("ordered", ordered).await;
    assert!((2..=4).contains(&of_ordered), "{of_ordered} of 4 and 4");
    assert_eq!(early("told", json!({"containers": [told]})).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_does_not_start_takes_its_containers_along() {
    let Some(node) = Node::start().await else {
        return;
    };
    // The kernel takes numbers.
    let sysctl = json!([{"name": "kernel.shm_rmid_forced", "value": "maybe"}]);
    let spec = json!({"securityContext": {"sysctls": sysctl}, "containers": [sh("c", FOREVER)]});
    node.create("fails", spec);
    node.wait_event("fails", "Created", "Container created")
        .await;
    node.wait_event("fails", "FailedCreatePodSandBox", "shm_rmid_forced")
        .await;
    let before = std::time::Instant::now();
    while node.containers().await > 0 {
        assert!(before.elapsed().as_secs() < 30, "containers are left");
    }
    let pod = node.api.get(&node.path("fails")).expect("exists");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0, "{status}");
    let reason = &status["state"]["waiting"]["reason"];
    assert_eq!(reason, "ContainerCreating", "{status}");
    node.delete("fails");
    node.wait_gone("fails").await;
    assert_eq!(node.containers().await, 0);
}
