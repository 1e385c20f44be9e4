//! Reads `/metrics/resource` of every node, each over one connection that is kept.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::PERIOD;
use crate::{
    context::Api,
    relay::{self, Destination, Tls},
    subresources::streams::agent_address,
};

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(10);
/// A thousand pods say about a megabyte.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// The second reading comes early, so that there are rates soon after a start.
const FIRST_PERIOD: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Counters {
    pub readings: AtomicU64,
    pub failures: AtomicU64,
}

/// Kept connections; an entry is absent while its node is being asked.
type Connections = Mutex<HashMap<String, SendRequest<Body>>>;

/// Collects for as long as the server lives.
pub async fn run(api: Weak<Api>) {
    let connections = Arc::new(Connections::default());
    let mut period = FIRST_PERIOD;
    loop {
        let Some(api) = api.upgrade() else { return };
        // Without a client certificate no agent would answer.
        if api.relay.node_tls.is_some() {
            collect(&api, &connections).await;
        }
        drop(api);
        tokio::time::sleep(period).await;
        period = PERIOD;
    }
}

async fn collect(api: &Arc<Api>, connections: &Arc<Connections>) {
    let registry = api.registry.load_full();
    let Some(nodes) = registry.get("", "v1", "nodes") else {
        return;
    };
    let listed = api.storage.cache.list(&nodes.prefix, None, 0, |_| true);
    let names: Vec<(String, Arc<crate::cache::Entry>)> = listed
        .entries
        .into_iter()
        .map(|entry| (entry.key[nodes.prefix.len()..].to_owned(), entry))
        .collect();
    let known: std::collections::HashSet<String> =
        names.iter().map(|(name, _)| name.clone()).collect();
    connections.lock().retain(|name, _| known.contains(name));
    futures::stream::iter(names)
        .for_each_concurrent(AT_ONCE, |(name, entry)| async move {
            let metrics = &api.node_metrics;
            let bytes = entry.bytes();
            let read = tokio::time::timeout(TIMEOUT, read(api, connections, &name, &bytes));
            match read.await {
                Ok(Ok(text)) => {
                    metrics.counters.readings.fetch_add(1, Ordering::Relaxed);
                    metrics.read(&name, &text, Timestamp::now());
                }
                failed => {
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    metrics.counters.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(
                        kind = "Node",
                        name,
                        reason = why,
                        "no metrics of a node; will retry"
                    );
                }
            }
        })
        .await;
    api.node_metrics
        .retain(|name| known.contains(name), Timestamp::now());
}

async fn read(
    api: &Arc<Api>,
    connections: &Connections,
    name: &str,
    node: &[u8],
) -> anyhow::Result<String> {
    let node: serde_json::Value = serde_json::from_slice(node)?;
    let (address, port) =
        agent_address(&node).ok_or_else(|| anyhow::anyhow!("the node has no address"))?;
    let destination = Destination {
        address,
        port,
        tls: Tls::Node,
        node: Some(name.to_owned()),
        path: "/metrics/resource".to_owned(),
        headers: HeaderMap::new(),
    };
    let kept = connections.lock().remove(name);
    let mut sender = match kept.filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(api, &destination).await?,
    };
    sender.ready().await?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = http::Uri::from_static("/metrics/resource");
    let host = HeaderValue::from_str(&format!("{address}:{port}"))?;
    request.headers_mut().insert(header::HOST, host);
    let answer = sender.send_request(request).await?;
    anyhow::ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
    connections.lock().insert(name.to_owned(), sender);
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

async fn connect(api: &Arc<Api>, destination: &Destination) -> anyhow::Result<SendRequest<Body>> {
    let io = relay::connect(&api.relay, destination)
        .await
        .map_err(|failure| anyhow::anyhow!(failure.message.clone()))?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
