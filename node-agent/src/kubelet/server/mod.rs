//! The agent's server on :10250: logs, exec, attach, port-forward, metrics.
//!
//! Callers come with a client certificate of the cluster's CA (the API server does) or with a
//! bearer token that the API knows; what they may do the API says too. Paths are upstream's.

mod auth;
mod logs;
mod metrics;
mod portforward;
mod spdy;
mod stream;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Context, plan, pod};
use crate::runtime::Observed;

/// Connections at the same time; the rest wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct App {
    ctx: Arc<Context>,
    auth: Arc<auth::Auth>,
}

/// Why a request was not served. Sent as a Status, which the API server may pass on as it is and
/// every client understands.
pub(crate) struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, message) = self;
        let reason = match code {
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            _ => "InternalError",
        };
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        let headers = [(http::header::CONTENT_TYPE, "application/json")];
        (code, headers, status.to_string()).into_response()
    }
}

fn bad_request(message: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, message.into())
}

/// Listens until `stop`. `roots` are the CAs of client certificates.
pub async fn run(
    ctx: Arc<Context>,
    roots: Vec<CertificateDer<'static>>,
    stop: CancellationToken,
) -> Result<()> {
    let certificates = tls::Certificates::load(&ctx)?;
    tokio::spawn(tls::keep_signed(
        ctx.clone(),
        certificates.clone(),
        stop.clone(),
    ));
    let acceptor = TlsAcceptor::from(tls::config(certificates, roots)?);
    let app = App {
        auth: Arc::new(auth::Auth::new(ctx.client.clone(), &ctx.config.node_name)),
        ctx,
    };
    let address = SocketAddr::new(app.ctx.config.node_ip, app.ctx.config.port);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        // The node's address may not be ours to bind (behind a translation).
        Err(_) => TcpListener::bind(("0.0.0.0", app.ctx.config.port))
            .await
            .with_context(|| format!("cannot listen on port {}", app.ctx.config.port))?,
    };
    info!(address = %listener.local_addr()?, "serving");
    let router = router(app);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await?;
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, most likely: others must close first.
                    warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Small frames of a terminal must not wait for each other.
            let _ = stream.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => return debug!(%peer, error = %e, "TLS handshake failed"),
                Err(_) => return debug!(%peer, "TLS handshake too slow"),
            };
            let identity = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(auth::identity);
            let router = router.layer(axum::Extension(auth::Peer(identity)));
            let service = TowerToHyperService::new(router);
            let served = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
            if let Err(e) = served {
                debug!(%peer, error = %e, "a connection ended");
            }
        });
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/{check}", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods/", get(pods))
        .route("/metrics", get(metrics::prometheus))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/probes", get(|| async { "" }))
        .route("/stats/summary", get(metrics::summary))
        .route("/skep/{view}", get(network_view))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container),
        )
        .route(
            "/exec/{namespace}/{pod}/{container}",
            get(stream::exec).post(stream::exec),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            get(stream::attach).post(stream::attach),
        )
        .route(
            "/portForward/{namespace}/{pod}",
            get(portforward::serve).post(portforward::serve),
        )
        .layer(middleware::from_fn_with_state(app.clone(), authorize))
        .with_state(app)
}

async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    let asked = auth::Question::of(&request);
    match app.auth.check(asked).await {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// A value as an answer; axum's own comes with a feature that nothing else needs.
fn json<T: serde::Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(http::header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(e) => Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn pods(State(app): State<App>) -> Response {
    let mut items: Vec<Pod> = app
        .ctx
        .pods
        .read()
        .values()
        .map(|pod| (**pod).clone())
        .collect();
    items.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    json(&List {
        items,
        metadata: Default::default(),
    })
}

/// The node's network as its kernel has it (`skep services --node`, `skep flows`, `skep trace`).
async fn network_view(
    State(app): State<App>,
    Path(view): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if view == "events" {
        return network_events(&app, &query);
    }
    match app.ctx.network.view(&view, &query) {
        Some(value) => json(&value),
        None => Refused(StatusCode::NOT_FOUND, format!("no view {view:?}")).into_response(),
    }
}

/// A line of JSON for each event, until the caller goes away.
fn network_events(app: &App, query: &HashMap<String, String>) -> Response {
    let sample = match query.get("sample").map(|text| text.parse::<u32>()) {
        None => None,
        Some(Ok(sample)) if sample > 0 => Some(sample),
        Some(_) => return bad_request("sample: a number from 1 on").into_response(),
    };
    match app.ctx.network.follow(sample) {
        Some(Ok(lines)) => {
            let lines = lines.map(Ok::<_, std::convert::Infallible>);
            let headers = [(http::header::CONTENT_TYPE, "application/json")];
            (headers, Body::from_stream(lines)).into_response()
        }
        Some(Err(e)) => Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        None => Refused(StatusCode::NOT_FOUND, "this node has no events".into()).into_response(),
    }
}

impl App {
    fn pod(&self, namespace: &str, name: &str) -> std::result::Result<Arc<Pod>, Refused> {
        self.ctx
            .pods
            .read()
            .values()
            .find(|pod| {
                pod.metadata.namespace.as_deref() == Some(namespace)
                    && pod.metadata.name.as_deref() == Some(name)
            })
            .cloned()
            .ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))
    }

    /// The attempts of one container of a pod, newest first.
    async fn attempts(
        &self,
        pod: &Pod,
        name: &str,
    ) -> std::result::Result<(Container, Vec<Observed>), Refused> {
        let who = pod::identity(pod);
        let container = pod::containers(pod)
            .into_iter()
            .find(|(_, c)| c.name == name);
        let Some((_, container)) = container else {
            let message = format!("container {name} is not valid for pod {}", who.name);
            return Err(bad_request(message));
        };
        let observed = self
            .ctx
            .runtime
            .observe(&who.uid)
            .await
            .map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
        let found = plan::attempts(&observed, name)
            .into_iter()
            .cloned()
            .collect();
        Ok((container, found))
    }
}
