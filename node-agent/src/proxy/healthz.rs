//! Whether this node's proxy is at work: kube-proxy's `/healthz` and `/livez` on port 10256, which
//! load balancers outside ask (kubernetes/kubernetes, `pkg/proxy/healthcheck/proxy_health.go`).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use skep_client::{Informer, ObjectKey};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::metrics::ProxyMetrics;

const PORT: u16 = 10_256;
/// Something that waits longer than this to reach the kernel is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The cluster's autoscaler is about to remove the node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Clone)]
pub(super) struct Health {
    pub(super) metrics: Arc<ProxyMetrics>,
    pub(super) nodes: Informer<Node>,
    pub(super) node_name: String,
}

/// Answers until `stop`.
pub(super) async fn serve(health: Health, stop: CancellationToken) {
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        // A kernel without IPv6.
        Err(_) => TcpListener::bind(("0.0.0.0", PORT)).await,
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            warn!(port = PORT, %error, "nobody outside can ask for the proxy's health");
            return;
        }
    };
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(health);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        warn!(%error, "the proxy's health is not told any more");
    }
}

async fn healthz(State(health): State<Health>) -> Response {
    let eligible = health.is_eligible();
    let healthy = eligible && health.metrics.is_current(PATIENCE);
    answer(
        &health.metrics,
        &health.metrics.healthz,
        healthy,
        Some(eligible),
    )
}

async fn livez(State(health): State<Health>) -> Response {
    let healthy = health.metrics.is_current(PATIENCE);
    answer(&health.metrics, &health.metrics.livez, healthy, None)
}

impl Health {
    /// Whether the node is to get connections from outside.
    fn is_eligible(&self) -> bool {
        let Some(node) = self.nodes.get(&ObjectKey::new("", &self.node_name)) else {
            // Not known yet: as kube-proxy does.
            return true;
        };
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let leaving = taints
            .into_iter()
            .flatten()
            .any(|taint| taint.key == LEAVING_TAINT);
        !leaving && node.metadata.deletion_timestamp.is_none()
    }
}

fn answer(
    metrics: &ProxyMetrics,
    counts: &[AtomicU64; 2],
    healthy: bool,
    eligible: Option<bool>,
) -> Response {
    let now = Timestamp::now();
    let synced = i64::try_from(metrics.synced_at()).unwrap_or_default();
    // While nothing waits, the state is as of now.
    let updated = if healthy {
        now
    } else {
        Timestamp::from_millisecond(synced).unwrap_or_default()
    };
    let mut body = json!({"lastUpdated": updated.to_string(), "currentTime": now.to_string()});
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    let (code, slot) = if healthy {
        (StatusCode::OK, 0)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, 1)
    };
    counts[slot].fetch_add(1, Ordering::Relaxed);
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (code, headers, body.to_string()).into_response()
}
