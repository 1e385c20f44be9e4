//! Connections to nodes that cannot be dialled: their agents dial us.
//!
//! An agent upgrades a request for [`PATH`] and from then on speaks HTTP/2 with exchanged roles: we are the client, and
//! each `CONNECT` of ours is one connection to the agent's server or to a pod of its node. What goes through is what
//! would go over a connection of our own, TLS included: a tunnel adds no trust.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::client::conn::http2::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;

use crate::{
    authz::node::node_name,
    context::Ctx,
    status::{Result, Status},
};

pub const PATH: &str = "/skep/tunnel";
/// Named in the `Upgrade` header.
pub const PROTOCOL: &str = "skep-tunnel";
/// An agent that says so in this header wants to be reached in no other way.
pub const ONLY: &str = "skep-tunnel-only";
/// A peer that is silent for as long as both together is gone.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// Of one node; an agent needs one, and a second one while the first is dying.
const MAX_PER_NODE: usize = 4;

#[derive(Clone)]
pub struct Tunnel {
    number: u64,
    /// Do not dial before.
    pub only: bool,
    /// The node could not be dialled since this was opened.
    pub undialled: Arc<AtomicBool>,
    sender: SendRequest<Body>,
}

impl Tunnel {
    /// A connection to `target`, as the node dials it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(mut self, target: SocketAddr) -> std::result::Result<Upgraded, String> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(target.to_string())
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        let text = |error: hyper::Error| format!("through the node's tunnel: {error}");
        self.sender.ready().await.map_err(text)?;
        let answer = self.sender.send_request(request).await.map_err(text)?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the node answers {}", answer.status()));
        }
        hyper::upgrade::on(answer).await.map_err(text)
    }
}

/// The tunnels that are open, by node.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<HashMap<String, Vec<Tunnel>>>,
    next: AtomicU64,
}

impl Tunnels {
    /// The newest one to a node.
    pub fn to(&self, node: &str) -> Option<Tunnel> {
        let open = self.open.lock();
        let of_node = open.get(node)?;
        of_node.iter().rfind(|t| !t.sender.is_closed()).cloned()
    }

    pub fn count(&self) -> usize {
        self.open.lock().values().map(Vec::len).sum()
    }

    fn add(&self, node: &str, only: bool, sender: SendRequest<Body>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock();
        let of_node = open.entry(node.to_owned()).or_default();
        if of_node.len() >= MAX_PER_NODE {
            // Dropping the sender ends its connection.
            of_node.remove(0);
        }
        of_node.push(Tunnel {
            number,
            only,
            undialled: Arc::default(),
            sender,
        });
        number
    }

    fn remove(&self, node: &str, number: u64) {
        let mut open = self.open.lock();
        if let Some(of_node) = open.get_mut(node) {
            of_node.retain(|tunnel| tunnel.number != number);
            if of_node.is_empty() {
                open.remove(node);
            }
        }
    }
}

/// An agent opens a tunnel. Authorization has let it come to this path; which node it is for, its name says.
///
/// # Errors
/// When it is no agent, or does not ask for an upgrade.
pub fn accept(ctx: &Ctx) -> Result<Response> {
    let Some(node) = node_name(&ctx.user).map(str::to_owned) else {
        let why = "only a node's agent may open a tunnel";
        return Err(Status::forbidden("", "", "", why));
    };
    let asked = ctx.headers.get(header::UPGRADE);
    if asked.is_none_or(|protocol| protocol != PROTOCOL) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let client = ctx.upgrade.lock().take();
    let client = client.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    let only = ctx.headers.contains_key(ONLY);
    let (api, draining) = (ctx.api.clone(), ctx.api.readiness.draining());
    tokio::spawn(async move {
        let connect = async {
            let stream = client.await?;
            hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .keep_alive_timeout(PONG)
                .keep_alive_while_idle(true)
                .handshake::<_, Body>(stream)
                .await
        };
        let (sender, connection) = match connect.await {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!(kind = "Node", name = node, %error, "a tunnel did not open");
                return;
            }
        };
        let number = api.relay.tunnels.add(&node, only, sender);
        tracing::info!(kind = "Node", name = node, "a tunnel is open");
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(kind = "Node", name = node, %error, "a tunnel broke");
            },
            () = draining => {}
        }
        api.relay.tunnels.remove(&node, number);
        tracing::info!(kind = "Node", name = node, "a tunnel is closed");
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
