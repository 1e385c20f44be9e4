//! Docker goes away and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Daemon, IMAGE, Node, docker_at};

/// Answers probes with 200 and counts them.
async fn probed_server() -> (u16, Arc<AtomicU32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_stay_ready_while_docker_is_away() {
    let Some(mut daemon) = Daemon::start() else {
        return;
    };
    let node = Node::start_at(&daemon.socket()).await;
    let (port, asked) = probed_server().await;
    let pod = |probe: Value| {
        json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            "readinessProbe": probe, "livenessProbe": probe}]})
    };
    let often = |mut probe: Value| {
        probe["periodSeconds"] = json!(1);
        probe["failureThreshold"] = json!(1);
        probe
    };
    node.create("exec", pod(often(json!({"exec": {"command": ["true"]}}))));
    let http = json!({"httpGet": {"host": "127.0.0.1", "port": port}});
    node.create("http", pod(often(http)));
    let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    for name in ["exec", "http"] {
        node.wait_pod(name, "ready", ready).await;
    }
    let statuses = || {
        let status = |name: &str| node.api.get(&node.path(name)).unwrap()["status"].clone();
        [status("exec"), status("http")]
    };
    let before = statuses();

    daemon.kill();
    // Time passes as the probes count it, which go on over the network.
    let since = asked.load(Ordering::SeqCst);
    node.wait("probes without Docker", || {
        match asked.load(Ordering::SeqCst) - since {
            6.. => Ok(()),
            few => Err(format!("{few} probes")),
        }
    })
    .await;
    assert_eq!(
        statuses(),
        before,
        "an outage of Docker says nothing of its containers"
    );

    daemon.restart();
    // It has taken over once it carries something out.
    node.create("after", pod(Value::Null));
    node.wait_pod("after", "ready", ready).await;
    assert_eq!(statuses(), before, "nothing was restarted or unready");
    for name in ["exec", "http", "after"] {
        node.delete(name);
    }
    for name in ["exec", "http", "after"] {
        node.wait_gone(name).await;
    }
    assert_eq!(docker_at(&daemon.socket(), &["ps", "-aq"]), "");
}
