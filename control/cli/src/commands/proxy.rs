//! `skep proxy`: the API on a local port, with the kubeconfig's credentials.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use clap::Args;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::Client;
use regex::{Regex, RegexSet};
use tokio::net::{TcpListener, UnixListener};

use crate::session::{Session, explain};

/// Serve the API without credentials to programs on this machine.
///
/// Requests must name a host of --accept-hosts, so that a page in a browser cannot reach the cluster.
///
/// Examples:
///   skep proxy                        # http://127.0.0.1:8001/api/v1/...
///   skep proxy --port=0 --api-prefix=/k8s-api
///   skep proxy --unix-socket=/run/me/api.sock
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Proxy {
    /// Port to listen on; 0 takes a free one
    #[arg(short, long, default_value_t = 8001)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Listen on this socket instead
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["port", "address"])]
    unix_socket: Option<PathBuf>,
    /// Where the API appears below this proxy
    #[arg(long, default_value = "/")]
    api_prefix: String,
    /// Hosts that requests may name, as regular expressions
    #[arg(
        long,
        value_delimiter = ',',
        default_values = [r"^localhost$", r"^127\.0\.0\.1$", r"^\[::1\]$"]
    )]
    accept_hosts: Vec<String>,
    /// Paths to serve, as regular expressions
    #[arg(long, value_delimiter = ',', default_values = ["^.*"])]
    accept_paths: Vec<String>,
    /// Paths to refuse, as regular expressions; they win over --accept-paths
    #[arg(
        long,
        value_delimiter = ',',
        default_values = ["^/api/.*/pods/.*/exec", "^/api/.*/pods/.*/attach"]
    )]
    reject_paths: Vec<String>,
    /// Methods to refuse, as regular expressions
    #[arg(long, value_delimiter = ',', default_values = ["^$"])]
    reject_methods: Vec<String>,
    /// Serve every path to every host
    #[arg(long)]
    disable_filter: bool,
}

impl Proxy {
    pub async fn run(self, session: &Session) -> Result<()> {
        if self.disable_filter && self.unix_socket.is_none() {
            eprintln!(
                "Request filter disabled, your proxy is vulnerable to XSRF attacks, please be cautious"
            );
        }
        let filter = (!self.disable_filter)
            .then(|| Filter::new(&self))
            .transpose()?;
        let proxied = Arc::new(Proxied {
            client: session.client.clone(),
            filter,
            prefix: format!("/{}", self.api_prefix.trim_matches('/')),
        });
        let router = axum::Router::new().fallback(serve).with_state(proxied);
        if let Some(path) = &self.unix_socket {
            let listener = UnixListener::bind(path)
                .with_context(|| format!("listening on {}", path.display()))?;
            println!("Starting to serve on {}", path.display());
            return Ok(axum::serve(listener, router).await?);
        }
        let listener = TcpListener::bind((self.address, self.port))
            .await
            .with_context(|| format!("listening on {}:{}", self.address, self.port))?;
        println!("Starting to serve on {}", listener.local_addr()?);
        Ok(axum::serve(listener, router).await?)
    }
}

struct Proxied {
    client: Client,
    /// `None` lets everything through.
    filter: Option<Filter>,
    /// Begins with a slash and ends with none, unless it is the root.
    prefix: String,
}

async fn serve(State(proxied): State<Arc<Proxied>>, request: Request) -> Response {
    let Some(path) = below(&proxied.prefix, request.uri().path()) else {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    let host = host(request.headers(), request.uri());
    if let Some(filter) = &proxied.filter
        && !filter.accepts(request.method(), path, &host)
    {
        return (StatusCode::FORBIDDEN, "Forbidden\n").into_response();
    }
    let uri = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    match forward(&proxied.client, uri, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
    }
}

async fn forward(client: &Client, uri: String, mut request: Request) -> Result<Response> {
    let local = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    parts.uri = uri.parse()?;
    let upgrade = parts.headers.contains_key(header::UPGRADE);
    for name in [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
    ] {
        parts.headers.remove(name);
    }
    if !upgrade {
        parts.headers.remove(header::CONNECTION);
    }
    let body = body.collect().await?.to_bytes();
    // A fresh request: what the connection to us put into the extensions is not for the server.
    let mut outgoing = http::Request::new(kube::client::Body::from(body));
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = parts.headers;
    let mut response = client.send(outgoing).await.map_err(explain)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let remote = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(local), Ok(remote)) = tokio::join!(local, remote) {
                let (mut local, mut remote) = (TokioIo::new(local), TokioIo::new(remote));
                // Either end may hang up whenever it likes.
                let _ = tokio::io::copy_bidirectional(&mut local, &mut remote).await;
            }
        });
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    // This connection has its own framing.
    response.headers_mut().remove(header::CONNECTION);
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    Ok(response.map(Body::new))
}

/// The path below the prefix; `None` outside it.
fn below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    if prefix == "/" {
        return Some(path);
    }
    match path.strip_prefix(prefix)? {
        "" => Some("/"),
        rest if rest.starts_with('/') => Some(rest),
        _ => None,
    }
}

/// The host a request names, without its port.
fn host(headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let named = named
        .or_else(|| uri.authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    match named.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => named.to_owned(),
    }
}

/// Which requests pass: what a page in a browser may send is not what the user wants sent.
struct Filter {
    hosts: RegexSet,
    paths: RegexSet,
    refused_paths: RegexSet,
    refused_methods: RegexSet,
}

impl Filter {
    fn new(proxy: &Proxy) -> Result<Self> {
        Ok(Self {
            hosts: expressions("accept-hosts", &proxy.accept_hosts)?,
            paths: expressions("accept-paths", &proxy.accept_paths)?,
            refused_paths: expressions("reject-paths", &proxy.reject_paths)?,
            refused_methods: expressions("reject-methods", &proxy.reject_methods)?,
        })
    }

    fn accepts(&self, method: &Method, path: &str, host: &str) -> bool {
        self.hosts.is_match(host)
            && self.paths.is_match(path)
            && !self.refused_paths.is_match(path)
            && !self.refused_methods.is_match(method.as_str())
    }
}

fn expressions(flag: &str, texts: &[String]) -> Result<RegexSet> {
    for text in texts {
        Regex::new(text).with_context(|| format!("--{flag} {text}"))?;
    }
    Ok(RegexSet::new(texts)?)
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn proxy(flags: &[&str]) -> Proxy {
        let command = Proxy::augment_args(clap::Command::new("proxy"));
        let matches = command.get_matches_from([&["proxy"], flags].concat());
        Proxy::from_arg_matches(&matches).expect("flags")
    }

    #[test]
    fn foreign_hosts_and_sessions_in_pods_are_refused() {
        let filter = Filter::new(&proxy(&[])).expect("expressions");
        let pods = "/api/v1/namespaces/default/pods";
        assert!(filter.accepts(&Method::GET, pods, "localhost"));
        assert!(filter.accepts(&Method::DELETE, pods, "[::1]"));
        assert!(!filter.accepts(&Method::GET, pods, "evil.example"));
        assert!(!filter.accepts(&Method::GET, pods, "localhost.evil.example"));
        assert!(!filter.accepts(&Method::GET, &format!("{pods}/web/exec"), "localhost"));
        let filter = Filter::new(&proxy(&["--reject-methods=POST,PUT"])).expect("expressions");
        assert!(!filter.accepts(&Method::POST, pods, "localhost"));
        let error = expressions("accept-paths", &["(".to_owned()]).expect_err("not closed");
        assert!(error.to_string().contains("--accept-paths ("));
    }

    #[test]
    fn a_prefix_is_taken_off_whole() {
        assert_eq!(below("/", "/api"), Some("/api"));
        assert_eq!(below("/k8s", "/k8s/api"), Some("/api"));
        assert_eq!(below("/k8s", "/k8s"), Some("/"));
        assert_eq!(below("/k8s", "/k8sapi"), None);
    }

    #[test]
    fn the_port_is_not_part_of_the_host() {
        let named = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("header"));
            super::host(&headers, &Uri::from_static("/"))
        };
        assert_eq!(named("localhost:8001"), "localhost");
        assert_eq!(named("[::1]:8001"), "[::1]");
        assert_eq!(named("[::1]"), "[::1]");
        assert_eq!(named("localhost"), "localhost");
    }
}
