//! Requests that are for a node, a pod or a Service and only pass through here: logs, exec, attach, port-forward, proxy.
//!
//! A connection per request. What upgrades (WebSocket, SPDY/3.1) is then an opaque byte stream in both directions: the
//! client speaks with the node agent, and we do not listen.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    context::Ctx,
    status::{Failure, Result, Status},
    tunnel::Tunnels,
    websocket,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a node that has a tunnel.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams open through here at once; more are refused with 429.
const MAX_STREAMS: usize = 4096;

/// How to reach nodes and pods.
pub struct Relay {
    /// Presents the API server's client certificate to node agents.
    pub node_tls: Option<Arc<rustls::ClientConfig>>,
    /// For `https:` targets of pod and Service proxies, whose certificates nobody can know.
    pub proxy_tls: Option<Arc<rustls::ClientConfig>>,
    /// From agents that cannot be dialled.
    pub tunnels: Tunnels,
    streams: Arc<tokio::sync::Semaphore>,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            node_tls: None,
            proxy_tls: None,
            tunnels: Tunnels::default(),
            streams: Arc::new(tokio::sync::Semaphore::new(MAX_STREAMS)),
        }
    }
}

impl Relay {
    pub fn to_nodes(node_tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            node_tls: Some(node_tls),
            ..Self::default()
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Destination {
    pub address: IpAddr,
    pub port: u16,
    pub tls: Tls,
    /// The node that it is, or is on.
    pub node: Option<String>,
    /// Path and query.
    pub path: String,
    /// Sent besides, in place of what the client says under the same names.
    pub headers: HeaderMap,
}

#[derive(Clone, Debug)]
pub enum Tls {
    None,
    Node,
    Proxy,
    /// The server of an APIService.
    Service(Arc<ServiceTls>),
}

/// How to trust a server behind a Service, and under which name.
#[derive(Debug)]
pub struct ServiceTls {
    pub config: Arc<rustls::ClientConfig>,
    /// `name.namespace.svc`
    pub name: String,
}

/// Longest body that [`fetch`] takes.
const FETCH_BYTES: usize = 32 << 20;

/// A whole answer.
pub struct Fetched {
    pub status: StatusCode,
    pub body: bytes::Bytes,
}

/// Asks for something on our own behalf. The caller bounds the time.
///
/// # Errors
/// Why there is no answer.
pub async fn fetch(
    api: &crate::context::Api,
    destination: &Destination,
) -> std::result::Result<Fetched, String> {
    use http_body_util::BodyExt;
    let io = connect(&api.relay, destination)
        .await
        .map_err(|status| status.message.clone())?;
    let text = |error: hyper::Error| error.to_string();
    let handshake = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(text)?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = destination
        .path
        .parse()
        .map_err(|_| "the path is not valid".to_owned())?;
    *request.headers_mut() = destination.headers.clone();
    if let Ok(host) = HeaderValue::from_str(&host(destination)) {
        request.headers_mut().insert(header::HOST, host);
    }
    // Ends with this future, also when its time is up.
    let answer = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), FETCH_BYTES);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(Fetched {
            status,
            body: body.to_bytes(),
        })
    };
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // The answer may have come with the end.
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// As a client of the destination names it.
fn host(destination: &Destination) -> String {
    match &destination.tls {
        Tls::Service(tls) => tls.name.clone(),
        _ => SocketAddr::new(destination.address, destination.port).to_string(),
    }
}

/// Headers that concern one connection only (RFC 9110 §7.6.1), and credentials that are for us.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::AUTHORIZATION,
    header::HOST,
];

fn unreachable(destination: &Destination, why: &str) -> Failure {
    let Destination { address, port, .. } = destination;
    let target = SocketAddr::new(*address, *port);
    Status::service_unavailable(format!(
        "error trying to reach service: dial tcp {target}: {why}"
    ))
}

/// Sends the request on and streams the answer back, or joins the connections that it upgrades.
pub async fn forward(ctx: &Ctx, destination: &Destination) -> Result<Response> {
    let upgrade = ctx.headers.get(header::UPGRADE).cloned();
    send(ctx, destination, upgrade.as_ref()).await
}

/// Without an upgrade, which the client has asked of us only.
pub async fn fetch_plain(ctx: &Ctx, destination: &Destination) -> Result<Response> {
    send(ctx, destination, None).await
}

async fn send(
    ctx: &Ctx,
    destination: &Destination,
    upgrade: Option<&HeaderValue>,
) -> Result<Response> {
    let relay = &ctx.api.relay;
    let permit = relay.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Status::too_many_requests(
            "too many streams are relayed at once, please try again later",
            1,
        )
    })?;
    let request = outgoing(ctx, destination, upgrade)?;
    let io = connect(relay, destination).await?;
    let handshake = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await;
    let (mut sender, connection) =
        handshake.map_err(|error| unreachable(destination, &error.to_string()))?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a relayed connection ended");
        }
    });
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            connection.abort();
            return Err(unreachable(destination, &error.to_string()));
        }
        Err(_) => {
            connection.abort();
            return Err(unreachable(destination, "no answer in time"));
        }
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(ctx, answer, permit);
    }
    let (parts, body) = answer.into_parts();
    let body = Held {
        body,
        _permit: permit,
        _sender: sender,
    };
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    copy_headers(&parts.headers, response.headers_mut());
    Ok(response)
}

/// Keeps a connection and its permit for as long as its body is read.
struct Held {
    body: hyper::body::Incoming,
    _permit: tokio::sync::OwnedSemaphorePermit,
    _sender: hyper::client::conn::http1::SendRequest<Body>,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<http_body::Frame<Self::Data>, Self::Error>>>
    {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if !NOT_FORWARDED.contains(name) {
            to.append(name, value.clone());
        }
    }
}

fn outgoing(
    ctx: &Ctx,
    destination: &Destination,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<Body>> {
    let uri: Uri = destination
        .path
        .parse()
        .map_err(|_| Status::bad_request("the path to relay to is not valid"))?;
    let mut request = Request::new(ctx.take_body());
    *request.method_mut() = ctx.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    copy_headers(&ctx.headers, headers);
    let credentials = |name: &HeaderName| {
        crate::aggregation::is_identity(name) || name.as_str().starts_with("impersonate-")
    };
    for name in ctx.headers.keys().filter(|name| credentials(name)) {
        headers.remove(name);
    }
    websocket::drop_token(headers);
    for (name, value) in &destination.headers {
        headers.append(name, value.clone());
    }
    if let Ok(host) = HeaderValue::from_str(&host(destination)) {
        headers.insert(header::HOST, host);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    Ok(request)
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Also for our own requests to node agents.
pub(crate) async fn connect(relay: &Relay, destination: &Destination) -> Result<Box<dyn Io>> {
    let target = SocketAddr::new(destination.address, destination.port);
    let by_address = ServerName::IpAddress(destination.address.into());
    let (config, name) = match &destination.tls {
        Tls::None => (None, Ok(by_address)),
        Tls::Node => (Some(relay.node_tls.clone()), Ok(by_address)),
        Tls::Proxy => (Some(relay.proxy_tls.clone()), Ok(by_address)),
        Tls::Service(tls) => (
            Some(Some(tls.config.clone())),
            ServerName::try_from(tls.name.clone()),
        ),
    };
    let dial = async {
        let stream = reach(relay, destination.node.as_deref(), target).await?;
        let Some(config) = config else {
            return Ok(stream);
        };
        let config = config.ok_or("this server has no client certificate for it")?;
        let name = name.map_err(|error| error.to_string())?;
        let tls = TlsConnector::from(config).connect(name, stream).await;
        Ok(Box::new(tls.map_err(|error| error.to_string())?) as Box<dyn Io>)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(result) => result.map_err(|why: String| unreachable(destination, &why)),
        Err(_) => Err(unreachable(destination, "i/o timeout")),
    }
}

/// Dials, or takes the node's tunnel where that does not work.
async fn reach(
    relay: &Relay,
    node: Option<&str>,
    target: SocketAddr,
) -> std::result::Result<Box<dyn Io>, String> {
    let dial = async {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(Box::new(stream) as Box<dyn Io>)
    };
    let Some(tunnel) = node.and_then(|node| relay.tunnels.to(node)) else {
        return dial.await.map_err(|error| error.to_string());
    };
    if !tunnel.only && !tunnel.undialled.load(Ordering::Relaxed) {
        match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
            Ok(Ok(stream)) => return Ok(stream),
            // A port that refuses says nothing of the next one.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            _ => tunnel.undialled.store(true, Ordering::Relaxed),
        }
    }
    let stream = tunnel.open(target).await?;
    Ok(Box::new(TokioIo::new(stream)))
}

/// Joins the two upgraded connections.
fn switch(
    ctx: &Ctx,
    answer: http::Response<hyper::body::Incoming>,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Result<Response> {
    let client: OnUpgrade = ctx
        .upgrade
        .lock()
        .take()
        .ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in answer.headers() {
        response.headers_mut().append(name, value.clone());
    }
    let draining = ctx.api.readiness.draining();
    tokio::spawn(async move {
        let _permit = permit;
        let both = async {
            let (client, node) = tokio::try_join!(client, hyper::upgrade::on(answer))?;
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            // Either side may simply hang up.
            let copied = tokio::io::copy_bidirectional(&mut client, &mut node).await;
            if let Err(error) = copied {
                tracing::debug!(%error, "a relayed stream ended");
            }
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            ended = both => if let Err(error) = ended {
                tracing::debug!(%error, "a relayed upgrade failed");
            },
            () = draining => {}
        }
    });
    Ok(response)
}
