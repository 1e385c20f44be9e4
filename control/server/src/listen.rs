//! Where clients connect: TLS listeners, HTTP/1.1 and HTTP/2, client certificates, drain on shutdown.
//!
//! Each connection's [`Peer`] goes into the extensions of its requests. A listener is bound here or handed over by
//! systemd-style socket activation (`LISTEN_FDS`), which lets a launcher bind in another network namespace.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use skep_apiserver::identity::Peer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::{pki::Pki, rotation::Rotating};

/// Connections a client has not finished its TLS handshake on; beyond this, new ones wait in the backlog.
const MAX_HANDSHAKES: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// As upstream: streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// Requests under way at shutdown get this long; watches end at once.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub fn bind(address: SocketAddr) -> Result<StdListener> {
    let bind = || -> std::io::Result<StdListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    bind().with_context(|| {
        format!("listening on {address} (is another server using it? choose another with --listen)")
    })
}

/// The listeners that the parent process handed over.
pub fn inherited() -> Result<Vec<StdListener>> {
    let mut fds = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..fds.len() {
        let listener = fds
            .take_tcp_listener(index)
            .context("taking over a socket of LISTEN_FDS")?;
        if let Some(listener) = listener {
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

pub fn tls_config(pki: &Pki, serving: Arc<Rotating>) -> Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(pki)?))
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// How the API server calls node agents: their serving certificates are signed by the cluster's CA.
pub fn node_tls_config(pki: &Pki, client: Arc<Rotating>) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots(pki)?)
        .with_client_cert_resolver(client);
    // Streams are upgraded connections, which HTTP/2 has not.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(pki: &Pki) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in pki.ca.chain()? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// Accepts until `shutdown`, then lets requests under way finish. `tls` = `None`: plain text, for loopback only.
pub async fn serve(
    listener: StdListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let acceptor = tls.map(TlsAcceptor::from);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = handshakes.clone().acquire_owned().await?;
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: give connections time to close.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        let connection = Connection {
            router: router.clone(),
            watcher: graceful.watcher(),
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.handle(stream, address, acceptor, permit).await {
                debug!(%address, error = %format!("{error:#}"), "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
        .await
        .is_err()
    {
        warn!("requests were still under way after {DRAIN_TIMEOUT:?}; their connections are cut");
    }
    Ok(())
}

struct Connection {
    router: Router,
    watcher: Watcher,
}

impl Connection {
    async fn handle(
        self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<()> {
        stream.set_nodelay(true)?;
        let Some(acceptor) = acceptor else {
            drop(permit);
            return self
                .http(
                    stream,
                    Peer {
                        address,
                        certificates: Vec::new(),
                    },
                )
                .await;
        };
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .context("TLS handshake timed out")?
            .context("TLS handshake")?;
        drop(permit);
        let certificates = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect())
            .unwrap_or_default();
        self.http(
            stream,
            Peer {
                address,
                certificates,
            },
        )
        .await
    }

    async fn http<S>(self, stream: S, peer: Peer) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service =
            self.router
                .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(peer.clone());
                    request.map(axum::body::Body::new)
                });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .adaptive_window(true)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .max_header_list_size(1 << 20);
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
            .into_owned();
        self.watcher
            .watch(connection)
            .await
            .map_err(|error| anyhow::anyhow!(error))
    }
}
