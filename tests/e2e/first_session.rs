//! What people type in their first hour with a cluster, and what they must see.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_tests::client::Client;
use skep_tests::wait::wait_for;
use xtask::cluster::images::{BUSYBOX, NGINX, NGINX_NEXT};

use crate::Story;
use crate::manifests::{SOON, await_gone, await_ready};

pub(crate) fn with_kubectl(story: &Story<'_>) -> Result<()> {
    session(story, &story.kubectl)
}

pub(crate) fn with_skep(story: &Story<'_>) -> Result<()> {
    session(story, &story.cluster.skep(story.namespace))
}

fn session(story: &Story<'_>, client: &Client) -> Result<()> {
    let image = format!("--image={NGINX}");

    // A pod.
    client.expect(
        &["run", "nginx-pod", &image, "--port=80"],
        "pod/nginx-pod created",
    )?;
    let pod = await_ready(client, "nginx-pod")?;
    let node = pod["spec"]["nodeName"]
        .as_str()
        .context("the pod has no node")?;
    let address = pod["status"]["podIP"]
        .as_str()
        .context("the pod has no address")?;
    let wide = client.expect(&["get", "pods", "-o", "wide"], "nginx-pod")?;
    for shown in [
        "NAME", "READY", "STATUS", "NODE", "1/1", "Running", node, address,
    ] {
        ensure!(wide.contains(shown), "no {shown} in\n{wide}");
    }
    let described = client.expect(&["describe", "pod", "nginx-pod"], "nginx-pod")?;
    for shown in [
        "Node:",
        "Status:",
        "Containers:",
        NGINX,
        "Events:",
        "Scheduled",
        "Started",
    ] {
        ensure!(described.contains(shown), "no {shown} in\n{described}");
    }
    client.expect(
        &[
            "exec",
            "nginx-pod",
            "--",
            "wget",
            "-qO-",
            "http://127.0.0.1/",
        ],
        "nginx version 1",
    )?;
    wait_for("the request in the log", SOON, || {
        client.expect(&["logs", "nginx-pod"], "GET / HTTP/1.1")
    })?;
    // Tools beside what has none, and on its node.
    let tools = format!("--image={BUSYBOX}");
    let beside = [
        "debug",
        "nginx-pod",
        &tools,
        "--target=nginx-pod",
        "-i",
        "--",
        "ps",
    ];
    client.expect(&beside, "nginx: master process")?;
    let on_node = format!("node/{node}");
    let files = [
        "debug",
        &on_node,
        &tools,
        "-i",
        "--",
        "ls",
        "/host/etc/os-release",
    ];
    client.expect(&files, "/host/etc/os-release")?;
    let ended = "--field-selector=status.phase=Succeeded";
    client.expect(&["delete", "pods", ended], "node-debugger")?;

    // A Deployment from a file, then patched and applied.
    let file = story.file("web.json", &web(1).to_string())?;
    client.expect(&["create", "-f", &file], "deployment.apps/web created")?;
    client.refuse(&["create", "-f", &file], "already exists")?;
    let more = story.file("more.json", &web(2).to_string())?;
    let diff = client.attempt(&["diff", "-f", &more])?;
    ensure!(
        !diff.succeeded && diff.stdout.contains("+  replicas: 2"),
        "no difference shown: {diff:?}"
    );
    client.expect(
        &[
            "patch",
            "-f",
            &file,
            "-p",
            r#"{"metadata":{"labels":{"tier":"front"}}}"#,
        ],
        "patched",
    )?;
    let labelled = client.get(&["deployment", "web"])?;
    ensure!(
        labelled["metadata"]["labels"]["tier"] == "front",
        "the patch is not there: {}",
        labelled["metadata"]
    );
    let file = story.file("web.json", &web(2).to_string())?;
    client.expect(&["apply", "-f", &file], "deployment.apps/web configured")?;
    client.expect(&["apply", "-f", &file], "deployment.apps/web unchanged")?;
    client.expect(
        &["rollout", "status", "deployment/web", "--timeout=60s"],
        "successfully rolled out",
    )?;

    // A Service for it.
    client.expect(
        &["expose", "deployment", "web", "--port=80"],
        "service/web exposed",
    )?;
    story.backends("web", 2)?;
    let cluster_ip = story.cluster_ip("web")?;
    client.expect(&["get", "service", "web"], &cluster_ip)?;
    ensure!(
        story
            .fetch("nginx-pod", &format!("http://{cluster_ip}/"))?
            .contains("nginx version 1")
    );

    // More of it, newer, and back.
    client.expect(
        &["scale", "deployment", "web", "--replicas=3"],
        "deployment.apps/web scaled",
    )?;
    story.ready_pods("web", 3)?;
    let next = format!("nginx={NGINX_NEXT}");
    client.expect(&["set", "image", "deployment/web", &next], "image updated")?;
    client.expect(
        &["rollout", "status", "deployment/web", "--timeout=60s"],
        "successfully rolled out",
    )?;
    wait_for("the new version", SOON, || {
        let page = story.fetch("nginx-pod", &format!("http://{cluster_ip}/"))?;
        ensure!(page.contains("nginx version 2"), "{page}");
        Ok(())
    })?;
    client.expect(&["rollout", "history", "deployment/web"], "REVISION")?;
    client.expect(&["rollout", "undo", "deployment/web"], "rolled back")?;
    client.expect(
        &["rollout", "status", "deployment/web", "--timeout=60s"],
        "successfully rolled out",
    )?;
    let back = client.get(&["deployment", "web"])?;
    ensure!(
        back["spec"]["template"]["spec"]["containers"][0]["image"] == NGINX,
        "not rolled back: {}",
        back["spec"]
    );

    // Looking around.
    let resources = client.run(&["api-resources"])?;
    for kind in [
        "pods",
        "deployments",
        "endpointslices",
        "networkpolicies",
        "customresourcedefinitions",
    ] {
        ensure!(resources.contains(kind), "no {kind} in\n{resources}");
    }
    client.expect(&["explain", "pod.spec.containers"], "image")?;
    client.expect(&["get", "nodes"], "Ready")?;
    client.expect(&["version"], "Server")?;
    client.expect(&["label", "pod", "nginx-pod", "seen=yes"], "labeled")?;
    client.expect(
        &["get", "pods", "-l", "seen=yes", "-o", "name"],
        "pod/nginx-pod",
    )?;

    through_proxy(client)?;

    // Cleaning up.
    client.expect(&["delete", "pod", "nginx-pod"], "deleted")?;
    client.expect(&["delete", "service", "web"], "deleted")?;
    client.expect(&["delete", "-f", &file], "deleted")?;
    for gone in [
        &["pod", "nginx-pod"][..],
        &["deployment", "web"],
        &["service", "web"],
    ] {
        await_gone(client, gone)?;
    }
    wait_for("the Deployment's pods to go with it", SOON, || {
        let left = client.run(&["get", "pods,replicasets", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;

    // A namespace goes with everything in it.
    let other = format!("{}-other", story.namespace);
    client.expect(&["create", "namespace", &other], "created")?;
    let there = Client::new(client.path(), &story.cluster.state.kubeconfig(), &other);
    there.run(&["create", "configmap", "settings", "--from-literal=a=b"])?;
    there.run(&[
        "run",
        "left-behind",
        &format!("--image={BUSYBOX}"),
        "--command",
        "--",
        "sleep",
        "3600",
    ])?;
    client.expect(&["delete", "namespace", &other], "deleted")?;
    await_gone(client, &["namespace", &other])
}

/// The API for programs without credentials, but not for a page of another site.
fn through_proxy(client: &Client) -> Result<()> {
    let mut proxy = client.start(&["proxy", "--port=0"])?;
    let line = proxy.line()?;
    let address = line
        .strip_prefix("Starting to serve on ")
        .with_context(|| format!("the proxy said {line:?}"))?;
    let ask = |host: &str| -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SOON))?;
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask("localhost")?;
    ensure!(answer.contains("gitVersion"), "no version: {answer}");
    let answer = ask("site.example")?;
    ensure!(answer.starts_with("HTTP/1.1 403"), "not refused: {answer}");
    Ok(())
}

fn web(replicas: u32) -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "nginx",
                    "image": NGINX,
                    "ports": [{"containerPort": 80}],
                    "readinessProbe": {"httpGet": {"path": "/quiet", "port": 80}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

/// What a pod reads of its surroundings.
pub(crate) fn configuration(story: &Story<'_>) -> Result<()> {
    story.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "yellow", "app.ini": "depth=3\n"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "s3cret"}}),
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "reader", "labels": {"app": "reader"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "initContainers": [{
                    "name": "prepare",
                    "image": BUSYBOX,
                    "command": ["sh", "-c", "echo prepared > /work/note"],
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                }],
                "containers": [{
                    "name": "main",
                    "image": BUSYBOX,
                    "command": ["sh", "-c", "echo started; exec sleep 3600"],
                    "env": [
                        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
                        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "GREETING", "value": "hello from $(POD)"},
                    ],
                    "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                    "volumeMounts": [
                        {"name": "work", "mountPath": "/work"},
                        {"name": "settings", "mountPath": "/settings"},
                        {"name": "keys", "mountPath": "/keys"},
                    ],
                }],
                "volumes": [
                    {"name": "work", "emptyDir": {}},
                    {"name": "settings", "configMap": {"name": "settings"}},
                    {"name": "keys", "secret": {"secretName": "keys"}},
                ],
            },
        }),
    ])?;
    await_ready(&story.kubectl, "reader")?;
    let seen = story.exec(
        "reader",
        &[
            "sh",
            "-c",
            "echo $COLOUR $PASSWORD $GREETING; cat /work/note /settings/app.ini /keys/password",
        ],
    )?;
    for expected in [
        "yellow s3cret hello from reader",
        "prepared",
        "depth=3",
        "s3cret",
    ] {
        ensure!(seen.contains(expected), "no {expected:?} in {seen:?}");
    }
    story.kubectl.expect(&["logs", "reader"], "started")?;
    let source = story.file("copied.txt", "carried over\n")?;
    story
        .kubectl
        .run(&["cp", &source, "reader:/work/copied.txt"])?;
    ensure!(story.exec("reader", &["cat", "/work/copied.txt"])? == "carried over\n");
    Ok(())
}
