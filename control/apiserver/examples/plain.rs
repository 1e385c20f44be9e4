//! A server over plain HTTP and an in-memory store, with one static token: for trying things out.
use std::sync::Arc;

use axum::extract::Request;
use http::header;
use skep_apiserver::{
    Config,
    authz::{Attributes, Authorizer, Decision, rbac::Rule},
    build, builtin_registry,
    identity::User,
    start_cache,
};
use skep_store::{Store, memory::MemoryStore};

struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes
            .user()
            .groups
            .iter()
            .any(|g| g == "system:masters")
        {
            return Decision::Allow {
                reason: String::new(),
            };
        }
        Decision::NoOpinion {
            reason: String::new(),
        }
    }

    fn rules(&self, _: &User, _: &str) -> Vec<Rule> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let registry = builtin_registry();
    let cache = start_cache(store.clone(), &registry).await?;
    let server = build(Config {
        cache,
        store,
        registry,
        authorizer: Arc::new(Masters),
        authenticator: None,
        services: Default::default(),
        relay: Default::default(),
        advertise: Some("127.0.0.1:8089".parse()?),
        admission: None,
    })
    .await?;
    let router = server.router().layer(axum::middleware::map_request(
        |mut request: Request| async {
            let token = request.headers().get(header::AUTHORIZATION);
            let user = match token.and_then(|t| t.to_str().ok()) {
                Some("Bearer admin") => User {
                    name: "admin".into(),
                    groups: vec!["system:masters".into(), "system:authenticated".into()],
                    ..User::default()
                },
                _ => User::anonymous(),
            };
            request.extensions_mut().insert(user);
            request
        },
    ));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8089").await?;
    axum::serve(listener, router).await?;
    Ok(())
}
