//! A registry on loopback, which Docker trusts without TLS, that fails as registries do: in the middle of a layer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Daemon, IMAGE, Node, docker_at};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Of a layer, before the connection is cut.
const SENT: usize = 100_000;

/// User and password that a registry wants.
const LOGIN: &str = "fred:secret";

/// The test's image as a registry has it, and whether its layers come whole.
struct Registry {
    /// Host and port, as credentials name it.
    server: String,
    reference: String,
    cuts: Arc<AtomicBool>,
    layers_asked: Arc<AtomicUsize>,
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Registry {
    /// `private`: for nobody without the [`LOGIN`].
    async fn start(name: &str, socket: &Path, private: bool) -> Self {
        // What Docker saves is what a registry serves, but for the manifest.
        let folder = tempfile::tempdir().expect("a folder");
        let tar = folder.path().join("image.tar");
        docker_at(socket, &["save", "-o", &tar.to_string_lossy(), IMAGE]);
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut archive = tar::Archive::new(std::fs::File::open(&tar).expect("saved"));
        for entry in archive.entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("in memory");
            files.insert(path, bytes);
        }
        let index: Value = serde_json::from_slice(&files["manifest.json"]).expect("a manifest");
        let file = |path: &Value| files[path.as_str().expect("a path")].clone();
        let mut config: Value = serde_json::from_slice(&file(&index[0]["Config"])).expect("json");
        // An image of its own: nothing of it is there before.
        config["config"]["Labels"] = json!({"of": name});
        let mut layers = Vec::new();
        let mut blobs = BTreeMap::new();
        let mut list = Vec::new();
        for layer in index[0]["Layers"].as_array().expect("layers") {
            layers.push(file(layer));
        }
        // One more layer, which nobody has yet.
        layers.push(own_layer(name));
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        config["rootfs"]["diff_ids"] = json!(ids);
        config["history"] = Value::Null;
        for layer in layers {
            let id = digest(&layer);
            list.push(
                json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": layer.len(), "digest": id}),
            );
            blobs.insert(id, layer);
        }
        let config = serde_json::to_vec(&config).expect("json");
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(), "digest": digest(&config)},
            "layers": list});
        let manifest = serde_json::to_vec(&manifest).expect("json");
        blobs.insert(digest(&config), config);
        blobs.insert(digest(&manifest), manifest.clone());
        blobs.insert("latest".into(), manifest);

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let registry = Self {
            server: format!("127.0.0.1:{port}"),
            reference: format!("127.0.0.1:{port}/{name}"),
            cuts: Arc::new(AtomicBool::new(true)),
            layers_asked: Arc::default(),
        };
        let (cuts, asked) = (registry.cuts.clone(), registry.layers_asked.clone());
        let blobs = Arc::new(blobs);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (cuts, asked, blobs) = (cuts.clone(), asked.clone(), blobs.clone());
                // A client that goes away is none of the test's business.
                tokio::spawn(async move {
                    let _ = answer(stream, &blobs, private, &cuts, &asked).await;
                });
            }
        });
        registry
    }
}

/// Too long to arrive in one piece.
fn own_layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let text = format!("{name}\n").repeat(2 * SENT / name.len());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "own", text.as_bytes())
        .expect("in memory");
    tar.into_inner().expect("in memory")
}

/// One request a connection.
async fn answer(
    mut stream: TcpStream,
    blobs: &BTreeMap<String, Vec<u8>>,
    private: bool,
    cuts: &AtomicBool,
    asked: &AtomicUsize,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&request);
    let mut words = text.split_whitespace();
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let login = format!("Basic {}", STANDARD.encode(LOGIN));
    let is_known = text.lines().any(|line| {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        name.eq_ignore_ascii_case("authorization") && value.trim() == login
    });
    if private && !is_known {
        let head = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"test\"\r\n\
            content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
        stream.write_all(head.as_bytes()).await?;
        return stream.shutdown().await;
    }
    let (status, body): (&str, &[u8]) = match (path, blobs.get(name)) {
        ("/v2/", _) => ("200 OK", b"{}"),
        (_, Some(blob)) => ("200 OK", blob),
        _ => ("404 Not Found", b"{}"),
    };
    let kind = match path.contains("/manifests/") {
        true => MANIFEST,
        false => "application/octet-stream",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ndocker-content-digest: {}\r\n\
         docker-distribution-api-version: registry/2.0\r\nconnection: close\r\n\r\n",
        body.len(),
        digest(body)
    );
    stream.write_all(head.as_bytes()).await?;
    if method == "HEAD" {
        return Ok(());
    }
    let is_layer = path.contains("/blobs/") && body.len() > SENT;
    if is_layer {
        asked.fetch_add(1, Ordering::SeqCst);
        if cuts.load(Ordering::SeqCst) {
            stream.write_all(&body[..SENT]).await?;
            return stream.shutdown().await;
        }
    }
    stream.write_all(body).await?;
    stream.shutdown().await
}

/// Not whole, it is no image: the pod says so, waits longer each time, and runs once it can. "ImageVolume should succeed
/// with pod and pull policy of Always".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_fails_half_way_is_tried_again() {
    // The machine's daemon would try five times, for a minute, before it says so.
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let node = Node::start_at(&daemon.socket()).await;
    let registry = Registry::start("half-way", &daemon.socket(), false).await;
    let reference = registry.reference.as_str();
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    node.create(
        "pulled",
        json!({"containers": [{"name": "c", "image": reference, "imagePullPolicy": "Always",
            "command": ["sh", "-c", script]}]}),
    );
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    node.wait_pod("pulled", "failed to pull", |pod| {
        waiting(pod)["reason"] == "ErrImagePull"
    })
    .await;
    let pod = node
        .wait_pod("pulled", "waiting", |pod| {
            waiting(pod)["reason"] == "ImagePullBackOff"
        })
        .await;
    let message = waiting(&pod)["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let says = format!("Back-off pulling image \"{reference}\": ErrImagePull: ");
    assert!(message.starts_with(&says), "{message}");
    assert_eq!(pod["status"]["phase"], "Pending");
    assert!(registry.layers_asked.load(Ordering::SeqCst) > 0);

    registry.cuts.store(false, Ordering::SeqCst);
    node.wait_phase("pulled", "Running").await;
    node.wait_event("pulled", "Pulled", "Successfully pulled image")
        .await;
    let volume = json!({"name": "v", "image": {"reference": reference, "pullPolicy": "Always"}});
    node.create(
        "mounted",
        json!({"restartPolicy": "Never", "volumes": [volume],
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "test -s /image/own && ls /image/bin/busybox"],
                "volumeMounts": [{"name": "v", "mountPath": "/image"}]}]}),
    );
    node.wait_phase("mounted", "Succeeded").await;
    for pod in ["pulled", "mounted"] {
        node.delete(pod);
    }
    for pod in ["pulled", "mounted"] {
        node.wait_gone(pod).await;
    }
    assert_eq!(node.containers().await, 0);
}

/// A private image is for those who have a secret that opens its registry, also once it is on the node: pods of others
/// do not get it. Upstream: "Ensure Credential Pulled Images".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_image_is_for_those_who_may_pull_it() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut node = Node::start_at(&daemon.socket()).await;
    let registry = Registry::start("private", &daemon.socket(), true).await;
    registry.cuts.store(false, Ordering::SeqCst);
    for (name, login) in [
        ("right", LOGIN),
        ("right-too", LOGIN),
        ("wrong", "fred:guessed"),
    ] {
        let auths = json!({"auths": {&registry.server: {"auth": STANDARD.encode(login)}}});
        node.api.put(
            &format!("/api/v1/secrets/default/{name}"),
            json!({"metadata": {"name": name, "namespace": "default"}, "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": STANDARD.encode(auths.to_string())}}),
        );
    }
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let pod = |policy: &str, secret: Option<&str>| {
        let secrets: Vec<Value> = secret.iter().map(|name| json!({"name": name})).collect();
        json!({"imagePullSecrets": secrets, "containers": [{"name": "c", "image": &registry.reference,
            "imagePullPolicy": policy, "command": ["sh", "-c", script]}]})
    };
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let refused = async |node: &Node, name: &str, reason: &str, text: &str| {
        let pod = node
            .wait_pod(name, reason, |pod| waiting(pod)["reason"] == reason)
            .await;
        let message = waiting(&pod)["message"].to_string();
        assert!(message.contains(text), "{name}: {message}");
    };
    node.create("nobody", pod("IfNotPresent", None));
    refused(&node, "nobody", "ErrImagePull", "no basic auth credentials").await;
    node.create("guessing", pod("IfNotPresent", Some("wrong")));
    refused(&node, "guessing", "ErrImagePull", "unauthorized").await;
    node.wait_event("guessing", "Failed", "Failed to pull image")
        .await;
    node.create("owner", pod("IfNotPresent", Some("right")));
    node.wait_phase("owner", "Running").await;
    // It is on the node now, and the agent does not forget for whom.
    node.restart().await;
    node.create("late", pod("IfNotPresent", None));
    refused(&node, "late", "ErrImagePull", "no basic auth credentials").await;
    node.create("never", pod("Never", None));
    let text = "is not present with pull policy of Never";
    refused(&node, "never", "ErrImageNeverPull", text).await;
    for (name, policy, secret) in [
        ("again", "Never", "right"),
        ("same-login", "Never", "right-too"),
        ("always", "Always", "right"),
    ] {
        node.create(name, pod(policy, Some(secret)));
        node.wait_phase(name, "Running").await;
    }
    let all = [
        "nobody",
        "guessing",
        "owner",
        "late",
        "never",
        "again",
        "same-login",
        "always",
    ];
    for name in all {
        node.delete(name);
    }
    for name in all {
        node.wait_gone(name).await;
    }
    assert_eq!(node.containers().await, 0);
}
