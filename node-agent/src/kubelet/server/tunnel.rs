//! A connection to each API server, kept open, by which it reaches this node where it cannot dial it.
//!
//! We upgrade a request and from then on are the server of an HTTP/2 connection. Each `CONNECT` names where to: our own
//! address (then it is served as if it had been accepted there) or one of our pods.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::Server;
use crate::kubelet::pod;

/// The same names are in the API server's `tunnel`.
const PATH: &str = "/skep/tunnel";
const PROTOCOL: &str = "skep-tunnel";
const ONLY: &str = "skep-tunnel-only";
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Between two looks at which API servers there are.
const LOOK: Duration = Duration::from_secs(10);
const DIAL: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Settings {
    /// As this node reaches the API.
    pub api: kube::Config,
    /// We cannot be dialled.
    pub only: bool,
}

/// Keeps a tunnel to each API server until `stop`.
pub(super) async fn run(server: Server, settings: Settings, stop: CancellationToken) {
    let mut tunnels: BTreeMap<String, AbortHandle> = BTreeMap::new();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let wanted = api_servers(&server, &settings.api);
        tunnels.retain(|url, task| {
            let keep = wanted.contains(url);
            if !keep {
                task.abort();
            }
            keep
        });
        for url in wanted {
            if tunnels.contains_key(&url) {
                continue;
            }
            let Ok(cluster_url) = url.parse::<http::Uri>() else {
                continue;
            };
            let mut api = settings.api.clone();
            let name = api
                .cluster_url
                .host()
                .map(|host| host.trim_matches(['[', ']']));
            api.tls_server_name = api.tls_server_name.or(name.map(str::to_owned));
            api.cluster_url = cluster_url;
            let kept = keep(server.clone(), api, settings.only);
            tunnels.insert(url, tokio::spawn(kept).abort_handle());
        }
    }
    for task in tunnels.values() {
        task.abort();
    }
}

/// Every API server's own address, as the Service `kubernetes` has them, besides the one that we were given.
fn api_servers(server: &Server, api: &kube::Config) -> BTreeSet<String> {
    let url = |address: SocketAddr| format!("https://{address}/");
    let given = api.cluster_url.authority();
    let mut found: BTreeSet<String> = given
        .map(|at| format!("https://{at}/"))
        .into_iter()
        .collect();
    let slices = server.ctx.endpoint_slices.iter();
    let slices = slices.flat_map(|slices| slices.in_namespace("default"));
    for slice in slices {
        if slice.service() != Some("kubernetes") {
            continue;
        }
        let Some(port) = slice.ports.iter().find_map(|p| p.number) else {
            continue;
        };
        let ips = slice.endpoints().map(|endpoint| endpoint.ip);
        found.extend(ips.map(|ip| url(SocketAddr::new(ip, port))));
    }
    found
}

async fn keep(server: Server, api: kube::Config, only: bool) {
    let url = api.cluster_url.to_string();
    let mut wait = RETRY;
    loop {
        let began = tokio::time::Instant::now();
        match open(&server, api.clone(), only).await {
            Ok(()) => info!(api = url, "the tunnel to an API server is closed"),
            Err(e) => debug!(
                api = url,
                error = format!("{e:#}"),
                "no tunnel to an API server"
            ),
        }
        if began.elapsed() > RETRY_MAX {
            wait = RETRY;
        }
        tokio::time::sleep(wait.mul_f64(0.75 + 0.5 * rand::random::<f64>())).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Returns when the tunnel has ended.
async fn open(server: &Server, api: kube::Config, only: bool) -> anyhow::Result<()> {
    let url = api.cluster_url.to_string();
    let client = kube::Client::try_from(api)?;
    let mut request = Request::get(PATH)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL);
    if only {
        request = request.header(ONLY, "true");
    }
    let answer = client
        .send(request.body(kube::client::Body::empty())?)
        .await?;
    anyhow::ensure!(
        answer.status() == StatusCode::SWITCHING_PROTOCOLS,
        "the API server answers {}",
        answer.status()
    );
    let stream = hyper::upgrade::on(answer).await?;
    info!(api = url, "the tunnel to an API server is open");
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(connect(server, request).await) }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .serve_connection(stream, service)
        .await?;
    Ok(())
}

type Empty = http_body_util::Empty<bytes::Bytes>;

fn answer(code: StatusCode) -> Response<Empty> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = code;
    response
}

async fn connect(server: Server, request: Request<Incoming>) -> Response<Empty> {
    let target = request.uri().authority().map(ToString::to_string);
    let target = target.and_then(|text| text.parse::<SocketAddr>().ok());
    let (true, Some(target)) = (request.method() == Method::CONNECT, target) else {
        return answer(StatusCode::BAD_REQUEST);
    };
    if target == server.own {
        let Ok(permit) = server.connections.clone().try_acquire_owned() else {
            return answer(StatusCode::TOO_MANY_REQUESTS);
        };
        tokio::spawn(async move {
            let _permit = permit;
            match hyper::upgrade::on(request).await {
                Ok(stream) => server.serve(TokioIo::new(stream), &"tunnel").await,
                Err(e) => debug!(error = %e, "a connection through a tunnel ended early"),
            }
        });
        return answer(StatusCode::OK);
    }
    let ip = target.ip().to_string();
    let ours = server.ctx.pods.read().values().any(|pod| {
        let own = pod
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.as_ref());
        own == Some(&ip) && !pod::is_over(pod)
    });
    if !ours {
        return answer(StatusCode::FORBIDDEN);
    }
    let dialled = tokio::time::timeout(DIAL, TcpStream::connect(target)).await;
    let Ok(Ok(mut pod)) = dialled else {
        return answer(StatusCode::BAD_GATEWAY);
    };
    tokio::spawn(async move {
        let copied = async {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await?);
            // Either side may simply hang up.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut pod).await;
            Ok::<_, hyper::Error>(())
        };
        if let Err(e) = copied.await {
            debug!(error = %e, "a connection to a pod through a tunnel ended early");
        }
    });
    answer(StatusCode::OK)
}
