//! An API server in this process, and requests to it.

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skep_apiserver::{
    Config, Server,
    aggregation::FrontProxy,
    audit::Audit,
    authz::{Attributes, Authorizer, Decision, rbac::Rule},
    bootstrap::Advertise,
    build, builtin_registry,
    encryption::Encryption,
    identity::User,
    services::Allocators,
    start_cache,
};
use skep_store::{Store, memory::MemoryStore};
use tower::ServiceExt;

struct MastersOnly;

impl Authorizer for MastersOnly {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let masters = attributes
            .user()
            .groups
            .iter()
            .any(|g| g == "system:masters");
        let reason = String::new();
        // The tests of what admission forbids agents let them pass here, without what lifts such bans.
        let lifts = matches!(
            attributes,
            Attributes::Resource {
                verb: "escalate" | "bind" | "request-serviceaccounts-token-audience",
                ..
            }
        );
        let agent = attributes.user().groups.iter().any(|g| g == "system:nodes") && !lifts;
        if masters || agent {
            Decision::Allow { reason }
        } else {
            Decision::NoOpinion { reason }
        }
    }

    fn rules(&self, _: &User, _: &str) -> Vec<Rule> {
        Vec::new()
    }
}

#[derive(Clone)]
pub struct Cluster {
    pub server: Server,
}

/// What a test has its server made of, besides the store.
#[derive(Default)]
struct Parts {
    encryption: Arc<Encryption>,
    audit: Option<Arc<Audit>>,
    front_proxy: Option<FrontProxy>,
    advertise: Option<Advertise>,
    services: Allocators,
}

#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(None, None).await
    }

    pub async fn with_audit(audit: Option<Arc<Audit>>) -> Self {
        Self::with(audit, None).await
    }

    pub async fn with_front_proxy(front_proxy: FrontProxy) -> Self {
        Self::with(None, Some(front_proxy)).await
    }

    /// Without the account that pods need.
    pub async fn encrypted(store: Arc<dyn Store>, encryption: Arc<Encryption>) -> Self {
        let parts = Parts {
            encryption,
            ..Parts::default()
        };
        Self::build(store, parts).await
    }

    async fn with(audit: Option<Arc<Audit>>, front_proxy: Option<FrontProxy>) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let parts = Parts {
            audit,
            front_proxy,
            ..Parts::default()
        };
        let cluster = Self::build(store, parts).await;
        let account = json!({"metadata": {"name": "default"}});
        cluster
            .post("/api/v1/namespaces/default/serviceaccounts", account)
            .await
            .expect(201);
        cluster
    }

    /// A server over what a store holds already.
    pub async fn over(store: Arc<dyn Store>) -> Self {
        Self::build(store, Parts::default()).await
    }

    /// A server with these ranges of addresses for Services.
    pub async fn with_services(services: Allocators) -> Self {
        let parts = Parts {
            services,
            ..Parts::default()
        };
        Self::build(Arc::new(MemoryStore::new()), parts).await
    }

    /// One of several servers over one store.
    pub async fn member(store: Arc<dyn Store>, address: SocketAddr) -> Self {
        let advertise = Some(Advertise {
            address,
            shared: true,
        });
        let parts = Parts {
            advertise,
            ..Parts::default()
        };
        Self::build(store, parts).await
    }

    async fn build(store: Arc<dyn Store>, parts: Parts) -> Self {
        let Parts {
            encryption,
            audit,
            front_proxy,
            advertise,
            services,
        } = parts;
        // Another test of this process may have installed it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let registry = builtin_registry(true);
        let cache = start_cache(store.clone(), &registry, encryption.clone())
            .await
            .expect("a cache");
        let config = Config {
            cache,
            store,
            registry,
            authorizer: Arc::new(MastersOnly),
            authenticator: None,
            services,
            relay: Default::default(),
            advertise,
            admission: None,
            audit,
            encryption,
            front_proxy,
            authentication: None,
        };
        let server = build(config).await.expect("a server");
        Self { server }
    }

    pub async fn send(&self, mut request: Request<Body>) -> http::Response<Body> {
        request.extensions_mut().insert(User::component("tester"));
        self.server
            .service()
            .oneshot(request)
            .await
            .expect("infallible")
    }

    pub async fn call(&self, request: Request<Body>) -> Answer {
        let response = self.send(request).await;
        let (parts, body) = response.into_parts();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes: body.collect().await.expect("a body").to_bytes(),
        }
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Answer {
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::USER_AGENT, "tester/1");
        self.call(request.body(body).expect("a request")).await
    }

    /// A request of a node's agent.
    pub async fn as_agent(&self, node: &str, method: &str, path: &str, body: &Value) -> Answer {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type);
        let mut request = request.body(body).expect("a request");
        request.extensions_mut().insert(User {
            name: format!("system:node:{node}"),
            groups: vec!["system:nodes".into(), "system:authenticated".into()],
            ..User::default()
        });
        let response = self.server.service().oneshot(request).await;
        let (parts, body) = response.expect("infallible").into_parts();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes: body.collect().await.expect("a body").to_bytes(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "application/json", &Value::Null)
            .await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request("POST", path, "application/json", &body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.request("PUT", path, "application/json", &body).await
    }

    pub async fn merge(&self, path: &str, body: Value) -> Answer {
        self.request("PATCH", path, "application/merge-patch+json", &body)
            .await
    }

    pub async fn delete(&self, path: &str, body: Value) -> Answer {
        self.request("DELETE", path, "application/json", &body)
            .await
    }
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}
