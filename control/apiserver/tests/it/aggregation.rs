//! An APIService answered by a real TLS server: proxying, identity, discovery, availability, and its death.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use skep_apiserver::aggregation::FrontProxy;
use skep_store::{Guard, Op};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::cluster::Cluster;

const DEADLINE: Duration = Duration::from_secs(20);
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key).expect("an issuer"),
            pem,
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        roots.add(certificate).expect("a CA");
        roots
    }

    fn leaf(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM");
        (vec![certificate.der().clone()], key)
    }
}

/// Answers with what it was asked, to those who show the front proxy's certificate.
async fn backend(authority: &Authority, front_proxy: &Authority) -> (SocketAddr, JoinHandle<()>) {
    let verifier = WebPkiClientVerifier::builder(Arc::new(front_proxy.roots()))
        .build()
        .expect("a verifier");
    let (chain, key) = authority.leaf("widgets.default.svc");
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let serve = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                let _ended = serve.await;
            });
        }
    });
    (address, task)
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    let header = |name: &str| -> Vec<String> {
        let values = request.headers().get_all(name).iter();
        values
            .filter_map(|v| v.to_str().ok())
            .map(str::to_owned)
            .collect()
    };
    let value = match request.uri().path() {
        "/apis/example.com/v1" => json!({
            "kind": "APIResourceList", "groupVersion": "example.com/v1",
            "resources": [
                {"name": "widgets", "singularName": "widget", "namespaced": true, "kind": "Widget", "verbs": ["get", "list", "watch"]},
                {"name": "widgets/status", "singularName": "", "namespaced": true, "kind": "Widget", "verbs": ["get"]},
            ],
        }),
        "/openapi/v3" => json!({"paths": {
            "apis/example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/example.com/v1?hash=1"},
            "apis/other.com/v1": {"serverRelativeURL": "/openapi/v3/apis/other.com/v1?hash=2"},
        }}),
        "/openapi/v2" => json!({
            "paths": {"/apis/example.com/v1/widgets": {"get": {}}, "/other": {}},
            "definitions": {"com.example.v1.Widget": {"type": "object"}},
        }),
        path if path.starts_with("/apis/example.com/v1/")
            && request.uri().query() == Some("watch=1") =>
        {
            // One event, and then nothing until the client goes.
            let first = futures::stream::iter([Ok::<_, Infallible>("{\"type\":\"ADDED\"}\n")]);
            let body = futures::StreamExt::chain(first, futures::stream::pending());
            return Ok(Response::new(Body::from_stream(body)));
        }
        path if path.starts_with("/apis/example.com/v1/")
            || path.starts_with("/openapi/v3/apis/example.com/v1") =>
        {
            json!({
                "path": path, "query": request.uri().query(), "method": request.method().as_str(),
                "user": header("x-remote-user"), "groups": header("x-remote-group"),
                "authorization": header("authorization"), "host": header("host"),
                "body": String::from_utf8_lossy(&request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default()),
            })
        }
        _ => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    let mut response = Response::new(Body::from(value.to_string()));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    Ok(response)
}

/// Straight into the store: a slice with a loopback address would be refused.
async fn store(cluster: &Cluster, key: &str, object: Value) {
    let put = Op::Put {
        key: key.into(),
        value: skep_apiserver::codec::encode_stored(&object),
        ttl: None,
    };
    let storage = &cluster.server.api.storage;
    let guard = Guard::Missing(key.into());
    let written = storage.write(guard, put, Default::default()).await;
    written
        .map(drop)
        .unwrap_or_else(|e| panic!("{}", e.message));
}

async fn service(cluster: &Cluster, address: SocketAddr) {
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "widgets", "namespace": "default", "uid": "s"},
        "spec": {"ports": [{"name": "https", "port": 443}]},
    });
    store(cluster, "/registry/core/services/default/widgets", service).await;
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "widgets-a", "namespace": "default", "uid": "e",
            "labels": {"kubernetes.io/service-name": "widgets"},
        },
        "addressType": "IPv4", "ports": [{"name": "https", "port": address.port()}],
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
    });
    let key = "/registry/discovery.k8s.io/endpointslices/default/widgets-a";
    store(cluster, key, slice).await;
}

async fn condition(cluster: &Cluster, wanted: &str) -> Value {
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.com";
    let mut last = Value::Null;
    let seen = async {
        loop {
            last = cluster.get(path).await.json()["status"]["conditions"][0].clone();
            if last["reason"] == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, seen).await;
    assert!(in_time.is_ok(), "want {wanted}, have {last}");
    last
}

fn api_service(trust: Value) -> Value {
    let mut object = json!({
        "metadata": {"name": "v1.example.com"},
        "spec": {
            "group": "example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"namespace": "default", "name": "widgets"},
        },
    });
    for (key, value) in trust.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

fn front_proxy(authority: &Authority) -> FrontProxy {
    let (chain, key) = authority.leaf("front-proxy-client");
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).expect("a certificate");
    Arc::new(SingleCertAndKey::from(key))
}

fn bundle(authority: &Authority) -> Value {
    use base64::{Engine, engine::general_purpose::STANDARD};
    json!({"caBundle": STANDARD.encode(&authority.pem)})
}

#[tokio::test]
async fn another_server_answers_until_it_dies() {
    let (authority, front) = (Authority::new(), Authority::new());
    let cluster = Cluster::with_front_proxy(front_proxy(&front)).await;
    cluster
        .post(API_SERVICES, api_service(bundle(&authority)))
        .await
        .expect(201);
    condition(&cluster, "ServiceNotFound").await;
    let dead = cluster.get(WIDGETS).await;
    assert_eq!(
        (dead.code, dead.bytes.as_ref()),
        (503, &b"service unavailable\n"[..])
    );

    let (address, server) = backend(&authority, &front).await;
    service(&cluster, address).await;
    let passed = condition(&cluster, "Passed").await;
    assert_eq!(passed["message"], "all checks passed");

    let mut request = Request::post(format!("{WIDGETS}?a=b"))
        .header("x-remote-user", "mallory")
        .header("x-remote-group", "system:masters-of-all")
        .header("authorization", "Bearer secret")
        .body(Body::from("{\"a\":1}"))
        .expect("a request");
    request.extensions_mut().clear();
    let seen = cluster.call(request).await.expect(200);
    assert_eq!(
        (&seen["method"], &seen["query"]),
        (&json!("POST"), &json!("a=b"))
    );
    assert_eq!(seen["path"], WIDGETS);
    assert_eq!(seen["user"], json!(["tester"]));
    assert_eq!(
        seen["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(seen["authorization"], json!([]));
    assert_eq!(seen["host"], json!(["widgets.default.svc"]));
    assert_eq!(seen["body"], "{\"a\":1}");

    // A watch passes through as it comes.
    let watch = Request::get(format!("{WIDGETS}?watch=1"))
        .body(Body::empty())
        .expect("a request");
    let mut watch = cluster.send(watch).await.into_body();
    let frame = tokio::time::timeout(DEADLINE, watch.frame())
        .await
        .expect("in time");
    let frame = frame
        .expect("a frame")
        .expect("no error")
        .into_data()
        .expect("data");
    assert_eq!(frame.as_ref(), b"{\"type\":\"ADDED\"}\n");

    discovery(&cluster).await;

    drop(watch);
    server.abort();
    let _ended = server.await;
    // It is found dead by whoever asks first, and from then on nobody waits for it.
    let refused = cluster.get(WIDGETS).await;
    assert_eq!(refused.code, 503);
    condition(&cluster, "FailedDiscoveryCheck").await;
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/widgets-a";
    cluster.delete(slice, Value::Null).await.expect(200);
    condition(&cluster, "EndpointsNotFound").await;
    // A busy machine may hold one answer up; if the server waited for the dead one, it would hold up every one.
    let mut fastest = DEADLINE;
    for _ in 0..10 {
        let begun = std::time::Instant::now();
        assert_eq!(cluster.get(WIDGETS).await.code, 503);
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    cluster.get("/api/v1/namespaces/default").await.expect(200);
}

async fn discovery(cluster: &Cluster) {
    let groups = cluster.get("/apis").await.expect(200);
    let group = groups["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .find(|g| g["name"] == "example.com");
    assert_eq!(
        group.expect("the group")["preferredVersion"]["groupVersion"],
        "example.com/v1"
    );
    let group = cluster.get("/apis/example.com").await.expect(200);
    assert_eq!(group["versions"][0]["version"], "v1");
    let list = cluster.get("/apis/example.com/v1").await.expect(200);
    assert_eq!(list["resources"][0]["name"], "widgets");

    let request = Request::get("/apis")
        .header(
            "accept",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        )
        .body(Body::empty())
        .expect("a request");
    let aggregated = cluster.call(request).await.expect(200);
    let items = aggregated["items"].as_array().expect("items");
    let group = items
        .iter()
        .find(|g| g["metadata"]["name"] == "example.com")
        .expect("the group");
    let version = &group["versions"][0];
    assert_eq!(version["freshness"], "Current");
    assert_eq!(version["resources"][0]["resource"], "widgets");
    assert_eq!(version["resources"][0]["responseKind"]["kind"], "Widget");
    assert_eq!(
        version["resources"][0]["subresources"][0]["subresource"],
        "status"
    );

    let index = cluster.get("/openapi/v3").await.expect(200);
    let paths = index["paths"].as_object().expect("paths");
    assert!(paths.contains_key("apis/example.com/v1") && !paths.contains_key("apis/other.com/v1"));
    let document = cluster
        .get("/openapi/v3/apis/example.com/v1?hash=1")
        .await
        .expect(200);
    assert_eq!(document["path"], "/openapi/v3/apis/example.com/v1");
    let v2 = cluster.get("/openapi/v2").await.expect(200);
    assert!(v2["paths"].get("/apis/example.com/v1/widgets").is_some());
    assert!(v2["paths"].get("/other").is_none());
    assert!(v2["definitions"].get("com.example.v1.Widget").is_some());
}

/// Whether the group is in everything that says what there is.
async fn is_published(cluster: &Cluster) -> bool {
    let groups = cluster.get("/apis").await.expect(200);
    let index = cluster.get("/openapi/v3").await.expect(200);
    let v2 = cluster.get("/openapi/v2").await.expect(200);
    let mut groups = groups["groups"].as_array().into_iter().flatten();
    groups.any(|group| group["name"] == "example.com")
        && index["paths"]["apis/example.com/v1"].is_object()
        && v2["paths"]["/apis/example.com/v1/widgets"].is_object()
}

#[tokio::test]
async fn an_available_server_is_published_soon() {
    let (authority, front) = (Authority::new(), Authority::new());
    let cluster = Cluster::with_front_proxy(front_proxy(&front)).await;
    let (address, server) = backend(&authority, &front).await;
    service(&cluster, address).await;
    // What there is without it is known by then.
    assert!(!is_published(&cluster).await);
    let path = format!("{API_SERVICES}/v1.example.com");
    let until = async |published: bool| {
        let changed = async {
            while is_published(&cluster).await != published {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, changed).await;
        assert!(in_time.is_ok(), "published: not {published}");
    };
    // A busy machine may hold some of them up, and each look at the documents is long in a build for tests: a second is
    // meant, and less than any of the intervals at which servers are asked again is tested.
    let mut fastest = DEADLINE;
    for _ in 0..5 {
        let begun = std::time::Instant::now();
        let made = api_service(bundle(&authority));
        cluster.post(API_SERVICES, made).await.expect(201);
        until(true).await;
        fastest = fastest.min(begun.elapsed());
        cluster.delete(&path, Value::Null).await.expect(200);
        until(false).await;
    }
    assert!(fastest < Duration::from_secs(4), "{fastest:?}");
    server.abort();
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_unless_told_otherwise() {
    let (authority, front, other) = (Authority::new(), Authority::new(), Authority::new());
    let cluster = Cluster::with_front_proxy(front_proxy(&front)).await;
    let (address, _server) = backend(&authority, &front).await;
    service(&cluster, address).await;
    cluster
        .post(API_SERVICES, api_service(bundle(&other)))
        .await
        .expect(201);
    let failed = condition(&cluster, "FailedDiscoveryCheck").await;
    let message = failed["message"].as_str().expect("a message");
    assert!(message.contains("certificate"), "{message}");
    let path = format!("{API_SERVICES}/v1.example.com");
    let insecure = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    cluster.merge(&path, insecure).await.expect(200);
    condition(&cluster, "Passed").await;
    assert_eq!(cluster.get(WIDGETS).await.expect(200)["path"], WIDGETS);
}
