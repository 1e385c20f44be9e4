//! A webhook in this process: a TLS server with a certificate of its own, whose answers a test writes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, body::Bytes, response::Response};
use base64::Engine;
use futures::future::BoxFuture;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::server::{WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Handler = Arc<dyn Fn(Value) -> BoxFuture<'static, Response> + Send + Sync>;

pub struct Hook {
    pub port: u16,
    /// PEM in base64, as `caBundle` wants it.
    pub ca_bundle: String,
    pub calls: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Hook {
    /// `answer` makes the `response` from the `request`; its uid is filled in.
    pub async fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::raw(move |review| {
            let answer = answer.clone();
            Box::pin(async move {
                let mut response = answer(&review["request"]);
                response["uid"] = review["request"]["uid"].clone();
                let review = json!({
                    "kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response,
                });
                Response::new(review.to_string().into())
            })
        })
        .await
    }

    /// `handler` answers the whole review, in whatever way.
    pub async fn raw(
        handler: impl Fn(Value) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self {
        Self::of_clients(WebPkiClientVerifier::no_client_auth(), handler).await
    }

    /// As [`Hook::raw`], for clients whose certificates `clients` accepts.
    pub async fn of_clients(
        clients: Arc<dyn ClientCertVerifier>,
        handler: impl Fn(Value) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self {
        let names = vec!["127.0.0.1".to_owned(), "hook.default.svc".to_owned()];
        let certified = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            certified.signing_key.serialize_der(),
        ));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("a configuration");
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (calls, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let handler: Handler = Arc::new(handler);
        let counted = calls.clone();
        let router = Router::new().fallback(move |body: Bytes| {
            counted.fetch_add(1, Ordering::SeqCst);
            let review = serde_json::from_slice(&body).unwrap_or_default();
            handler(review)
        });
        let accepted = connections.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = TowerToHyperService::new(router);
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ended = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let pem = certified.cert.pem();
        Self {
            port,
            ca_bundle: base64::engine::general_purpose::STANDARD.encode(pem),
            calls,
            connections,
            server,
        }
    }

    pub fn called(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn client_config(&self) -> Value {
        json!({
            "url": format!("https://127.0.0.1:{}/hook", self.port), "caBundle": self.ca_bundle,
        })
    }

    /// A webhook about ConfigMaps that are created or updated; a test changes what it needs.
    pub fn webhook(&self, name: &str) -> Value {
        json!({
            "name": name, "clientConfig": self.client_config(), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            "rules": [rule("", "v1", "configmaps", &["CREATE", "UPDATE"])],
        })
    }
}

pub fn rule(group: &str, version: &str, resource: &str, operations: &[&str]) -> Value {
    json!({
        "apiGroups": [group], "apiVersions": [version], "resources": [resource],
        "operations": operations,
    })
}

/// A JSON patch as a webhook's `response`.
pub fn patched(operations: &Value) -> Value {
    json!({
        "allowed": true, "patchType": "JSONPatch",
        "patch": base64::engine::general_purpose::STANDARD.encode(operations.to_string()),
    })
}
