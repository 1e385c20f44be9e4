//! Calls to webhooks: admission and conversion speak with them through here.
//!
//! A webhook is a URL or a Service, with a CA bundle of its own. Connections are pooled per CA and server, a call is
//! bounded in time, in size and in how many wait for the same server at once, so that a slow or dead webhook costs its
//! own callers only. There is no Service proxy on the API server's machine: a Service is resolved to a ready endpoint.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{net::TcpStream, sync::Semaphore, time::Instant};

pub mod credentials;
mod tls;

use crate::{cache::Cache, registry::Registry};

use credentials::{Caller, Credentials};

/// Largest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Calls to one server at once; more wait, each within its own timeout.
const MAX_CALLS: usize = 256;
/// Servers whose connections are kept; over it the idle ones are forgotten.
const MAX_SERVERS: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a webhook listens (`clientConfig` of webhook configurations and of conversions).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Scheme `https`, host, port and path. The host of a Service is `NAME.NAMESPACE.svc`.
    url: String,
    service: Option<Service>,
    /// PEM; empty: the system's authorities.
    ca_bundle: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
}

impl Destination {
    /// Reads a `clientConfig`.
    ///
    /// # Errors
    /// A sentence about what is wrong with it. Validation refuses such configurations, so this is rare.
    pub fn read(config: &Value) -> Result<Self, String> {
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let ca_bundle = base64::engine::general_purpose::STANDARD
            .decode(bundle)
            .map_err(|error| format!("caBundle is not base64: {error}"))?
            .into();
        let service = &config["service"];
        if service.is_object() {
            let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
            let port = service["port"].as_u64().unwrap_or(443);
            let port = u16::try_from(port).map_err(|_| format!("invalid port {port}"))?;
            let service = Service {
                namespace: text("namespace"),
                name: text("name"),
                port,
            };
            let path = text_of(&config["service"]["path"]);
            let slash = if path.starts_with('/') { "" } else { "/" };
            let (name, namespace) = (&service.name, &service.namespace);
            return Ok(Self {
                url: format!("https://{name}.{namespace}.svc:{port}{slash}{path}"),
                service: Some(service),
                ca_bundle,
            });
        }
        let url = text_of(&config["url"]);
        if url.is_empty() {
            return Err(
                "webhook configuration must have either service or URL, but not both or neither"
                    .to_owned(),
            );
        }
        let parsed = url::Url::parse(url).map_err(|error| format!("parse {url:?}: {error}"))?;
        if parsed.scheme() != "https" {
            return Err(format!(
                "'https' is the only allowed URL scheme; got {:?}",
                parsed.scheme()
            ));
        }
        Ok(Self {
            url: url.to_owned(),
            service: None,
            ca_bundle,
        })
    }

    /// Host and port.
    fn authority(&self) -> String {
        let parsed = url::Url::parse(&self.url).ok();
        let named = parsed.as_ref().and_then(|url| {
            let port = url.port_or_known_default()?;
            Some(format!("{}:{port}", url.host_str()?))
        });
        named.unwrap_or_default()
    }

    /// The URL of a call, as error messages quote it: upstream tells the webhook how long it has.
    fn url_with_timeout(&self, timeout: Duration) -> String {
        let join = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{join}timeout={}s", self.url, timeout.as_secs())
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Why a call brought no answer. The text is what upstream's client says.
#[derive(Debug)]
pub enum CallError {
    /// The destination cannot be called at all: a CA bundle or URL that is none.
    Client(String),
    /// No connection, no answer in time, no 2xx, or an answer that is no JSON.
    Call(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(why) | Self::Call(why) => f.write_str(why),
        }
    }
}

impl Error for CallError {}

/// Pooled clients of webhooks. One an API server.
pub struct Webhooks {
    lookup: Arc<Lookup>,
    servers: Mutex<HashMap<(Caller, Destination), Arc<Server>>>,
    credentials: ArcSwap<Credentials>,
}

struct Server {
    client: Client<HttpsConnector<Dial>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
    calls: Semaphore,
}

impl Webhooks {
    pub fn new(registry: Arc<ArcSwap<Registry>>, cache: Arc<Cache>) -> Self {
        Self {
            lookup: Arc::new(Lookup { registry, cache }),
            servers: Mutex::default(),
            credentials: ArcSwap::default(),
        }
    }

    /// From the next connection on webhooks see these.
    pub fn show(&self, credentials: Credentials) {
        self.credentials.store(Arc::new(credentials));
        self.servers.lock().clear();
    }

    /// Posts a review and reads the answer. `timeout` covers everything: waiting for a turn, connecting, the answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(
        &self,
        caller: Caller,
        destination: &Destination,
        review: Bytes,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let server = self.server(caller, destination)?;
        let url = destination.url_with_timeout(timeout);
        let failed = |why: &str| CallError::Call(format!("Post {url:?}: {why}"));
        let uri: Uri = url
            .parse()
            .map_err(|error| CallError::Client(format!("parse {url:?}: {error}")))?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(review))
            .map_err(|error| CallError::Client(error.to_string()))?;
        if let Some(authorization) = &server.authorization {
            let headers = request.headers_mut();
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let deadline = Instant::now() + timeout;
        let call = async {
            let _turn = server.calls.acquire().await;
            let answer = server.client.request(request).await;
            let answer = answer.map_err(|error| failed(&reason(&error)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| {
                if error.downcast_ref::<LengthLimitError>().is_some() {
                    CallError::Call(format!(
                        "the answer is longer than {MAX_ANSWER_BYTES} bytes"
                    ))
                } else {
                    CallError::Call(format!(
                        "unexpected error when reading response body: {}",
                        reason(&*error)
                    ))
                }
            })?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        let (status, headers, body) = match tokio::time::timeout_at(deadline, call).await {
            Ok(answered) => answered?,
            Err(_) => return Err(failed("context deadline exceeded")),
        };
        if !status.is_success() {
            return Err(CallError::Call(refusal(status, &headers, &body)));
        }
        serde_json::from_slice(&body).map_err(|error| {
            let why = crate::codec::go_syntax_error(&body).unwrap_or_else(|| error.to_string());
            CallError::Call(format!(
                "couldn't get version/kind; json parse error: {why}"
            ))
        })
    }

    fn server(&self, caller: Caller, destination: &Destination) -> Result<Arc<Server>, CallError> {
        let mut servers = self.servers.lock();
        let place = (caller, destination.clone());
        if let Some(server) = servers.get(&place) {
            return Ok(server.clone());
        }
        let credentials = self.credentials.load();
        let identity = credentials.find(caller, &destination.authority());
        let certificate = identity.and_then(|identity| identity.certificate.as_ref());
        let tls = tls::config(&destination.ca_bundle, certificate)
            .map_err(|why| CallError::Client(format!("unable to load root certificates: {why}")))?;
        let dial = Dial {
            lookup: self.lookup.clone(),
            service: destination.service.clone(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(dial);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        let server = Arc::new(Server {
            client,
            authorization: identity.and_then(|identity| identity.authorization.clone()),
            calls: Semaphore::new(MAX_CALLS),
        });
        if servers.len() >= MAX_SERVERS {
            servers.retain(|_, server| Arc::strong_count(server) > 1);
        }
        servers.insert(place, server.clone());
        Ok(server)
    }
}

/// Connects to a host, or to a ready endpoint of a Service.
#[derive(Clone)]
struct Dial {
    lookup: Arc<Lookup>,
    service: Option<Service>,
}

/// A failed connection, in the words of Go's dialer.
#[derive(Debug)]
struct DialError(String);

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for DialError {}

impl Dial {
    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, DialError> {
        let addresses = match &self.service {
            Some(service) => self.lookup.endpoints(service).await?,
            None => resolve(&uri).await?,
        };
        let mut last = DialError("dial tcp: no addresses".to_owned());
        for address in addresses {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
            match stream {
                Ok(Ok(stream)) => {
                    // A review is one write; waiting to fill a packet only delays it.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY");
                    }
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => {
                    last = DialError(format!("dial tcp {address}: connect: {}", errno(&error)));
                }
                Err(_) => last = DialError(format!("dial tcp {address}: i/o timeout")),
            }
        }
        Err(last)
    }
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

async fn resolve(uri: &Uri) -> Result<Vec<SocketAddr>, DialError> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(443);
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => Ok(found.collect()),
        Err(_) => Err(DialError(format!("dial tcp: lookup {host}: no such host"))),
    }
}

/// Services and their endpoints, from the watch cache.
struct Lookup {
    registry: Arc<ArcSwap<Registry>>,
    cache: Arc<Cache>,
}

impl Lookup {
    /// Ready endpoints of a Service's port, in random order.
    async fn endpoints(&self, service: &Service) -> Result<Vec<SocketAddr>, DialError> {
        let Service {
            namespace,
            name,
            port,
        } = service;
        let found = self.object("", "services", namespace, name);
        let found = found.ok_or_else(|| DialError(format!("service {name:?} not found")))?;
        if let Some(host) = found["spec"]["externalName"].as_str() {
            let uri = format!("https://{host}:{port}");
            let uri = uri
                .parse()
                .map_err(|_| DialError(format!("invalid host {host:?}")))?;
            return resolve(&uri).await;
        }
        let mut ports = found["spec"]["ports"].as_array().into_iter().flatten();
        let wanted = ports.find(|p| p["port"].as_u64() == Some(u64::from(*port)));
        let wanted = wanted.ok_or_else(|| {
            DialError(format!("no service port {port} found for service {name:?}"))
        })?;
        let port_name = text_of(&wanted["name"]);
        let mut addresses = self.ready(namespace, name, port_name);
        if addresses.is_empty() {
            return Err(DialError(format!(
                "no endpoints available for service {name:?}"
            )));
        }
        let first = rand::random_range(0..addresses.len());
        addresses.rotate_left(first);
        Ok(addresses)
    }

    fn object(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let registry = self.registry.load();
        let resource = registry.any_version(group, plural)?;
        let entry = self.cache.get(&resource.key(namespace, name))?;
        serde_json::from_slice(&entry.bytes()).ok()
    }

    fn ready(&self, namespace: &str, name: &str, port_name: &str) -> Vec<SocketAddr> {
        let registry = self.registry.load();
        let Some(slices) = registry.any_version("discovery.k8s.io", "endpointslices") else {
            return Vec::new();
        };
        let snapshot = self.cache.snapshot(&slices.scope_prefix(namespace));
        let of_service = snapshot
            .iter()
            .filter(|entry| entry.labels.get("kubernetes.io/service-name") == Some(name));
        let mut addresses = Vec::new();
        for entry in of_service {
            let slice: Value = serde_json::from_slice(&entry.bytes()).unwrap_or_default();
            let mut ports = slice["ports"].as_array().into_iter().flatten();
            let port = ports
                .find(|p| text_of(&p["name"]) == port_name)
                .and_then(|p| p["port"].as_u64())
                .and_then(|p| u16::try_from(p).ok());
            let Some(port) = port else { continue };
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"] == false {
                    continue;
                }
                let address = text_of(&endpoint["addresses"][0]).parse::<IpAddr>();
                addresses.extend(address.map(|address| SocketAddr::new(address, port)));
            }
        }
        addresses
    }
}

/// The innermost error that says something, in Go's words where clients know them.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut at = Some(error);
    let mut last = error.to_string();
    while let Some(error) = at {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return dial.0.clone();
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return tls::reason(error);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if let Some(inner) = error.get_ref() {
                return reason(inner);
            }
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
                _ => errno(error),
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed())
        {
            return "EOF".to_owned();
        }
        last = error.to_string();
        at = error.source();
    }
    last
}

/// `connection refused`: the system's words without Rust's `(os error 111)`.
fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

/// What client-go makes of an answer that is no success (`NewGenericServerResponse`).
fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    if let Ok(answer) = serde_json::from_slice::<Value>(body)
        && answer["kind"] == "Status"
        && let Some(message) = answer["message"].as_str()
    {
        return message.to_owned();
    }
    let text_type = headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|t| t.as_bytes().starts_with(b"text/"));
    /// How much of a body a message quotes.
    const SHOWN: usize = 2048;
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    let text = if text_type { text.trim() } else { "unknown" };
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 | 406 | 415 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later"
            .to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be \
                processing the request"
            .to_owned(),
        500.. => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!(
            "the server responded with the status code {code} but did not return more information"
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn destinations() {
        let check = |config: Value, url: &str| {
            let read =
                Destination::read(&config).map(|d| d.url_with_timeout(Duration::from_secs(3)));
            assert_eq!(read.unwrap_or_else(|why| why), url);
        };
        check(
            json!({"url": "https://a.example/x"}),
            "https://a.example/x?timeout=3s",
        );
        check(
            json!({"service": {"namespace": "n", "name": "s", "path": "p"}}),
            "https://s.n.svc:443/p?timeout=3s",
        );
        check(
            json!({"service": {"namespace": "n", "name": "s", "port": 8443}}),
            "https://s.n.svc:8443/?timeout=3s",
        );
        check(
            json!({"url": "http://a"}),
            "'https' is the only allowed URL scheme; got \"http\"",
        );
        assert!(Destination::read(&json!({"url": "https://a", "caBundle": "!"})).is_err());
        assert!(Destination::read(&json!({})).is_err());
    }

    #[test]
    fn answers_that_are_no_success() {
        let mut headers = HeaderMap::new();
        let said = |code: u16, headers: &HeaderMap, body: &str| {
            refusal(
                StatusCode::from_u16(code).unwrap(),
                headers,
                body.as_bytes(),
            )
        };
        assert_eq!(
            said(500, &headers, "boom\n"),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        assert_eq!(
            said(502, &headers, "{}"),
            "an error on the server (\"unknown\") has prevented the request from succeeding"
        );
        assert_eq!(
            said(503, &headers, r#"{"kind":"Status","message":"later"}"#),
            "later"
        );
    }
}
