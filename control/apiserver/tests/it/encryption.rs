//! Encryption at rest, from the store's side and from a client's.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use skep_apiserver::encryption::Encryption;
use skep_store::{Store, memory::MemoryStore};

use crate::cluster::Cluster;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY: &str = "/registry/core/secrets/default/a";
const OLD: &str =
    "{secretbox: {keys: [{name: old, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}";
const BOTH: &str = "{aesgcm: {keys: [{name: new, secret: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=}]}}, \
    {secretbox: {keys: [{name: old, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}, {identity: {}}";
const WRONG: &str =
    "{secretbox: {keys: [{name: old, secret: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=}]}}";

async fn cluster(store: &Arc<dyn Store>, providers: &str) -> Cluster {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources: [{{resources: [secrets], providers: [{providers}]}}]"
    );
    let encryption = Encryption::parse(&text).expect("a configuration");
    Cluster::encrypted(store.clone(), Arc::new(encryption)).await
}

async fn starts_with(store: &Arc<dyn Store>, prefix: &str) {
    let entry = store.get(KEY).await.expect("a store").expect("an entry");
    let shown = String::from_utf8_lossy(&entry.value[..30.min(entry.value.len())]).into_owned();
    assert!(shown.starts_with(prefix), "{shown}");
}

#[tokio::test]
async fn keys_are_rotated_by_writing_again() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let secret = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}});
    let plain = cluster(&store, "{identity: {}}").await;
    plain.post(SECRETS, secret).await.expect(201);
    starts_with(&store, "{").await;
    drop(plain);

    let path = format!("{SECRETS}/a");
    for (providers, prefix) in [
        (
            format!("{OLD}, {{identity: {{}}}}"),
            "k8s:enc:secretbox:v1:old:",
        ),
        (BOTH.to_owned(), "k8s:enc:aesgcm:v1:new:"),
    ] {
        let cluster = cluster(&store, &providers).await;
        let read = cluster.get(&path).await.expect(200);
        assert_eq!(read["data"]["k"], "dg==");
        // What `kubectl get -o json | kubectl replace -f -` sends: nothing changes but the form at rest.
        cluster.put(&path, read).await.expect(200);
        starts_with(&store, prefix).await;
        // Now it is as it should be, and an equal object is not written.
        let read = cluster.get(&path).await.expect(200);
        let again = cluster.put(&path, read.clone()).await.expect(200);
        assert_eq!(
            again["metadata"]["resourceVersion"],
            read["metadata"]["resourceVersion"]
        );
    }
}

#[tokio::test]
async fn a_wrong_key_is_an_error_and_not_a_missing_object() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let right = cluster(&store, OLD).await;
    let secret = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}});
    right.post(SECRETS, secret.clone()).await.expect(201);
    drop(right);

    let wrong = cluster(&store, WRONG).await;
    for path in [
        format!("{SECRETS}/a"),
        SECRETS.to_owned(),
        "/api/v1/secrets".to_owned(),
    ] {
        let status = wrong.get(&path).await.expect(500);
        let message = status["message"].as_str().expect("a message");
        assert!(
            message.contains(&format!("unable to transform key {KEY:?}")),
            "{message}"
        );
    }
    wrong.post(SECRETS, secret).await.expect(500);
    wrong
        .delete(&format!("{SECRETS}/a"), Value::Null)
        .await
        .expect(500);
    wrong
        .get("/api/v1/namespaces/default/configmaps")
        .await
        .expect(200);
    let other = json!({"metadata": {"name": "b"}});
    wrong.post(SECRETS, other).await.expect(201);
    wrong.get(&format!("{SECRETS}/b")).await.expect(200);
}

/// A KMS plugin on a Unix socket, in a thread of its own, as it would be a process of its own. Its cipher is a XOR.
struct Plugin {
    calls: Arc<Calls>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Calls {
    encrypt: AtomicUsize,
    decrypt: AtomicUsize,
}

/// All messages of `v2.KeyManagementService` in one: the numbers of their fields do not collide in type.
#[derive(Clone, PartialEq, Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

/// `uid` and `key_id` are of no interest to this plugin.
#[derive(Clone, PartialEq, Message)]
struct Given {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

impl Plugin {
    fn start(socket: &Path, key_id: &'static str) -> Self {
        let calls = Arc::new(Calls::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (socket, own): (PathBuf, _) = (socket.to_owned(), calls.clone());
        let _absent = std::fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("not blocking");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, key_id, own) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            calls,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn calls(&self) -> (usize, usize) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        (count(&self.calls.encrypt), count(&self.calls.decrypt))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    key_id: &'static str,
    calls: Arc<Calls>,
) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let calls = calls.clone();
        let service = hyper::service::service_fn(move |request| {
            let calls = calls.clone();
            async move { Ok::<_, Infallible>(answered(request, key_id, &calls).await) }
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            let _closed = connection.await;
        });
    }
}

type Answer =
    StreamBody<futures::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

async fn answered(request: Request<Incoming>, key_id: &str, calls: &Calls) -> Response<Answer> {
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let given = Given::decode(&body[5..]).expect("a message").bytes;
    let xor = |bytes: Vec<u8>| bytes.into_iter().map(|b| b ^ 0x5a).collect();
    let message = match path.as_str() {
        "/v2.KeyManagementService/Status" => Status {
            version: "v2".into(),
            healthz: "ok".into(),
            key_id: key_id.into(),
        }
        .encode_to_vec(),
        "/v2.KeyManagementService/Encrypt" => {
            calls.encrypt.fetch_add(1, Ordering::Relaxed);
            Sealed {
                bytes: xor(given),
                text: key_id.into(),
                annotations: BTreeMap::new(),
            }
            .encode_to_vec()
        }
        "/v2.KeyManagementService/Decrypt" => {
            calls.decrypt.fetch_add(1, Ordering::Relaxed);
            Given { bytes: xor(given) }.encode_to_vec()
        }
        other => panic!("{other}"),
    };
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let framed = [[0].as_slice(), &length, &message].concat();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(framed.into())),
        Ok(Frame::trailers(trailers)),
    ];
    Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(futures::stream::iter(frames)))
        .expect("an answer")
}

#[tokio::test]
async fn a_plugin_keeps_the_key_and_is_asked_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("kms.sock");
    let provider = format!(
        "{{kms: {{apiVersion: v2, name: vault, endpoint: 'unix://{}', timeout: 10s}}}}",
        socket.display()
    );
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let path = format!("{SECRETS}/a");
    let plugin = Plugin::start(&socket, "k1");
    let first = cluster(&store, &provider).await;
    for name in ["a", "b", "c"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        first.post(SECRETS, secret).await.expect(201);
    }
    starts_with(&store, "k8s:enc:kms:v2:vault:").await;
    let stored = store.get(KEY).await.expect("a store").expect("an entry");
    assert!(!stored.value.windows(6).any(|w| w == b"Secret"));
    assert_eq!(first.get(&path).await.expect(200)["data"]["k"], "dg==");
    assert_eq!(plugin.calls(), (1, 0));

    // Another server has another seed; it asks once for the first one's.
    let second = cluster(&store, &provider).await;
    let all = second.get(SECRETS).await.expect(200);
    assert_eq!(all["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(plugin.calls(), (2, 1));

    // With another key at the plugin, values are written again under it.
    drop(plugin);
    let plugin = Plugin::start(&socket, "k2");
    let third = cluster(&store, &provider).await;
    let read = third.get(&path).await.expect(200);
    let old = store.get(KEY).await.expect("a store").expect("an entry");
    third.put(&path, read).await.expect(200);
    let new = store.get(KEY).await.expect("a store").expect("an entry");
    assert_ne!(old.value, new.value);

    // Who knows the seeds goes on without the plugin; who does not says so.
    drop(plugin);
    third.get(&path).await.expect(200);
    let brief = provider.replace("10s", "200ms");
    let fourth = cluster(&store, &brief).await;
    let status = fourth.get(&path).await.expect(500);
    let message = status["message"].as_str().expect("a message");
    assert!(message.contains("unable to transform key"), "{message}");
    let secret = json!({"metadata": {"name": "d"}});
    fourth.post(SECRETS, secret).await.expect(500);
    fourth
        .get("/api/v1/namespaces/default/configmaps")
        .await
        .expect(200);
}
