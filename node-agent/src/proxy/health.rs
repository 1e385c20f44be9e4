//! `spec.healthCheckNodePort`: tells a load balancer outside whether this node has endpoints of a
//! Service with externalTrafficPolicy Local. The answer is kube-proxy's, byte for byte in form.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::json;
use skep_client::ObjectKey;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tracing::warn;

use super::plan::HealthPlan;

/// One listener a Service; gone with it.
#[derive(Default)]
pub(super) struct HealthServers {
    by_service: HashMap<ObjectKey, Server>,
}

struct Server {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    task: AbortHandle,
}

#[derive(Clone, Debug, Default)]
struct Answer {
    namespace: String,
    name: String,
    local_endpoints: usize,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthServers {
    pub(super) fn set(&mut self, service: &ObjectKey, plan: Option<&HealthPlan>) {
        let Some(plan) = plan else {
            self.by_service.remove(service);
            return;
        };
        let answer = Answer {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            local_endpoints: plan.local_endpoints,
        };
        if let Some(server) = self.by_service.get(service)
            && server.port == plan.port
            && !server.task.is_finished()
        {
            *server.answer.lock() = answer;
            return;
        }
        let answer = Arc::new(Mutex::new(answer));
        let task = tokio::spawn(serve(plan.port, answer.clone())).abort_handle();
        self.by_service.insert(
            service.clone(),
            Server {
                port: plan.port,
                answer,
                task,
            },
        );
    }
}

async fn serve(port: u16, answer: Arc<Mutex<Answer>>) {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = match TcpListener::bind(address).await {
        // A kernel without IPv6.
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
        listening => listening,
    };
    let router = Router::new().fallback(get(respond)).with_state(answer);
    let result = match listener {
        Ok(listener) => axum::serve(listener, router).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        warn!(port, %error, "healthCheckNodePort cannot be served; the next change tries again");
    }
}

async fn respond(State(answer): State<Arc<Mutex<Answer>>>) -> Response {
    let answer = answer.lock().clone();
    let status = if answer.local_endpoints == 0 {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let body = json!({
        "service": {"namespace": answer.namespace, "name": answer.name},
        "localEndpoints": answer.local_endpoints,
        "serviceProxyHealthy": true,
    });
    let headers = [
        ("Content-Type", "application/json".to_string()),
        ("X-Content-Type-Options", "nosniff".to_string()),
        (
            "X-Load-Balancing-Endpoint-Weight",
            answer.local_endpoints.to_string(),
        ),
    ];
    (status, headers, body.to_string()).into_response()
}
