//! "Probing container", "Container Lifecycle Hook" and "KubeletManagedEtcHosts" of the conformance suite, and restarts
//! that one container begins.
//!
//! The network of these nodes is hollow: what is asked over it is a server of the test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{IMAGE, Node};

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A web server whose answer can be changed, and what it was asked for.
#[derive(Clone)]
struct Server {
    port: u16,
    status: Arc<AtomicU16>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = listener.await.expect("a port");
        let server = Self {
            port: listener.local_addr().expect("its address").port(),
            status: Arc::new(AtomicU16::new(200)),
            asked: Arc::default(),
        };
        let own = server.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let length = stream.read(&mut buffer).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                own.asked.lock().push(path.to_owned());
                let status = own.status.load(Ordering::SeqCst);
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        server
    }

    fn get(&self, path: &str) -> Value {
        json!({"httpGet": {"host": "127.0.0.1", "port": self.port, "path": path}})
    }

    fn was_asked(&self, path: &str) -> Result<(), String> {
        let asked = self.asked.lock();
        match asked.iter().any(|p| p == path) {
            true => Ok(()),
            false => Err(format!("{asked:?}")),
        }
    }
}

fn container(name: &str, script: &str, more: Value) -> Value {
    let mut c = json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        c[key] = value.clone();
    }
    c
}

fn often(mut probe: Value) -> Value {
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(1);
    probe
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_over_the_network_restart_or_keep_back() {
    let Some(node) = Node::start().await else {
        return;
    };
    let server = Server::start().await;
    let tcp = |port: u16| json!({"tcpSocket": {"host": "127.0.0.1", "port": port}});
    // Nobody listens on a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = free.local_addr().expect("its address").port();
    drop(free);
    let pod = |more: Value| json!({"terminationGracePeriodSeconds": 1, "containers": [container("c", FOREVER, more)]});
    node.create(
        "http",
        pod(json!({"livenessProbe": often(server.get("/healthz"))})),
    );
    node.create(
        "tcp",
        pod(json!({"livenessProbe": often(tcp(server.port))})),
    );
    node.create(
        "tcp-closed",
        pod(json!({"livenessProbe": often(tcp(closed))})),
    );
    node.create(
        "never-ready",
        pod(json!({"readinessProbe": often(tcp(closed))})),
    );
    let mut slow = often(tcp(server.port));
    slow["initialDelaySeconds"] = json!(3);
    node.create("ready-later", pod(json!({"readinessProbe": slow})));
    let mut starts = often(tcp(closed));
    starts["failureThreshold"] = json!(2);
    let startup = json!({"startupProbe": starts, "livenessProbe": often(tcp(closed))});
    node.create("startup", pod(startup));

    let restarted = |pod: &Value| status(pod)["restartCount"].as_u64() >= Some(1);
    node.wait_pod("tcp-closed", "restarted", restarted).await;
    node.wait_pod("startup", "restarted", restarted).await;
    node.wait_event(
        "startup",
        "Killing",
        "Container c failed startup probe, will be restarted",
    )
    .await;
    let later = node
        .wait_pod("ready-later", "ready", |pod| status(pod)["ready"] == true)
        .await;
    let time = |value: &Value| -> jiff::Timestamp {
        value.as_str().expect("a time").parse().expect("a time")
    };
    let conditions = later["status"]["conditions"]
        .as_array()
        .expect("conditions");
    let ready = conditions
        .iter()
        .find(|c| c["type"] == "Ready")
        .expect("ready");
    let took = time(&ready["lastTransitionTime"])
        .duration_since(time(&status(&later)["state"]["running"]["startedAt"]));
    assert!(took.as_secs() >= 2, "{took}");

    // So far the others were left alone.
    for name in ["http", "tcp", "never-ready"] {
        let pod = node.wait_phase(name, "Running").await;
        assert_eq!(status(&pod)["restartCount"], 0, "{name}");
    }
    let never = node.api.get(&node.path("never-ready")).expect("exists");
    assert_eq!(status(&never)["ready"], false);
    node.wait("the probe of http", || server.was_asked("/healthz"))
        .await;
    server.status.store(500, Ordering::SeqCst);
    node.wait_event(
        "http",
        "Unhealthy",
        "Liveness probe failed: HTTP probe failed with statuscode: 500",
    )
    .await;
    node.wait_pod("http", "restarted", restarted).await;
    let tcp = node.api.get(&node.path("tcp")).expect("exists");
    assert_eq!(status(&tcp)["restartCount"], 0);
    for name in [
        "http",
        "tcp",
        "tcp-closed",
        "never-ready",
        "ready-later",
        "startup",
    ] {
        node.delete(name);
    }
    for name in [
        "http",
        "tcp",
        "tcp-closed",
        "never-ready",
        "ready-later",
        "startup",
    ] {
        node.wait_gone(name).await;
    }
    assert_eq!(node.containers().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_over_http_are_called() {
    let Some(node) = Node::start().await else {
        return;
    };
    let server = Server::start().await;
    let hooks =
        json!({"lifecycle": {"postStart": server.get("/begun"), "preStop": server.get("/ending")}});
    node.create(
        "hooked",
        json!({"terminationGracePeriodSeconds": 5, "containers": [container("c", FOREVER, hooks)]}),
    );
    node.wait_phase("hooked", "Running").await;
    node.wait("postStart", || server.was_asked("/begun")).await;
    assert!(server.was_asked("/ending").is_err());
    node.delete("hooked");
    node.wait_gone("hooked").await;
    server.was_asked("/ending").expect("preStop was called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_files_are_the_kubelets_or_somebody_elses() {
    let Some(node) = Node::start().await else {
        return;
    };
    let print = "cat /etc/hosts";
    let own =
        json!({"volumeMounts": [{"name": "v", "mountPath": "/etc/hosts", "subPath": "hosts"}]});
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hosts"), "192.0.2.77 its-own\n").expect("written");
    node.create(
        "managed",
        json!({"restartPolicy": "Never",
            "volumes": [{"name": "v", "hostPath": {"path": folder.path()}}],
            "containers": [container("c", print, json!({})), container("own", print, own)]}),
    );
    node.create(
        "host",
        json!({"restartPolicy": "Never", "hostNetwork": true,
            "containers": [container("c", print, json!({}))]}),
    );
    let managed = node.wait_phase("managed", "Succeeded").await;
    assert!(
        node.log(&managed, "c")
            .starts_with("# Kubernetes-managed hosts file.")
    );
    assert_eq!(node.log(&managed, "own"), "192.0.2.77 its-own");
    let host = node.wait_phase("host", "Succeeded").await;
    let machine = std::fs::read_to_string("/etc/hosts").expect("the machine has one");
    let shown = node.log(&host, "c");
    for line in machine.lines().filter(|l| !l.trim().is_empty()) {
        assert!(shown.contains(line.trim()), "no {line:?} in {shown:?}");
    }
    for name in ["managed", "host"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
}

/// KEP-5532, with real containers: files in a volume stay, everything else begins again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_container_restarts_all() {
    let Some(node) = Node::start().await else {
        return;
    };
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let leader = json!({"volumeMounts": mount, "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]});
    let script = format!("[ -e /v/once ] || {{ touch /v/once; sleep 1; exit 42; }}; {FOREVER}");
    let init = json!({"volumeMounts": mount});
    node.create(
        "group",
        json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [container("init", "echo x >> /v/inits", init)],
            "containers": [container("leader", &script, leader),
                container("follower", FOREVER, json!({}))]}),
    );
    let pod = node
        .wait_pod("group", "restarted", |pod| {
            let all = pod["status"]["containerStatuses"].as_array();
            let all = all.map(Vec::as_slice).unwrap_or_default();
            all.len() == 2
                && all
                    .iter()
                    .all(|s| s["restartCount"] == 1 && s["state"]["running"].is_object())
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["restartCount"], 1);
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let inits = node.dir.path().join(format!("pods/{uid}/volumes/v/inits"));
    assert_eq!(std::fs::read_to_string(inits).expect("a file"), "x\nx\n");
    node.delete("group");
    node.wait_gone("group").await;
    assert_eq!(node.containers().await, 0);
}

/// A container that ignores SIGTERM and one that makes as many processes as it can end like others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unruly_containers_end() {
    let Some(node) = Node::start().await else {
        return;
    };
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    node.create(
        "stubborn",
        json!({"terminationGracePeriodSeconds": 2, "containers": [container("c", stubborn, json!({}))]}),
    );
    let bomb = "bomb() { bomb | bomb & }; bomb; while :; do sleep 0.1; done";
    let limits = json!({"resources": {"limits": {"memory": "48Mi", "cpu": "200m"}}});
    node.create(
        "bomb",
        json!({"terminationGracePeriodSeconds": 2, "containers": [container("c", bomb, limits)]}),
    );
    node.wait_phase("stubborn", "Running").await;
    // It may run, or be killed for want of memory again and again: both are its own affair.
    node.wait_pod("bomb", "begun", |pod| {
        status(pod)["containerID"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
    })
    .await;
    let begun = std::time::Instant::now();
    for name in ["stubborn", "bomb"] {
        node.delete(name);
    }
    for name in ["stubborn", "bomb"] {
        node.wait_gone(name).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(45),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(node.containers().await, 0);
}
