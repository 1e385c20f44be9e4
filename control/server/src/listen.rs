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
use http::{Method, Version, header};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use skep_apiserver::{
    authn::certificate_user,
    identity::{NoHost, Peer},
};
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

use crate::{
    pki::Pki,
    rotation::Rotating,
    stall::{Guarded, Streams, Told},
};

/// Connections a client has not finished its TLS handshake on; beyond this, new ones wait in the backlog.
const MAX_HANDSHAKES: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// As upstream: streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// A client that takes nothing of what it asked for is let go after this; one that reads slowly is not.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
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
    serve_patiently(listener, tls, router, shutdown, STALL_TIMEOUT).await
}

async fn serve_patiently(
    listener: StdListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
    patience: Duration,
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
            patience,
            watcher: graceful.watcher(),
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let (stream, release) = Guarded::new(stream, patience);
            let handled = connection.handle(stream, address, acceptor, permit).await;
            // What is left of it was upgraded.
            release.release();
            if let Err(error) = handled {
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
    patience: Duration,
    watcher: Watcher,
}

impl Connection {
    async fn handle(
        self,
        stream: Guarded<TcpStream>,
        address: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<()> {
        stream.get_ref().set_nodelay(true)?;
        let Some(acceptor) = acceptor else {
            drop(permit);
            return self
                .http(
                    stream,
                    Peer {
                        address,
                        user: None,
                    },
                )
                .await;
        };
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .context("TLS handshake timed out")?
            .context("TLS handshake")?;
        drop(permit);
        let chain = stream.get_ref().1.peer_certificates();
        let leaf = chain.and_then(<[_]>::first);
        let user = leaf.and_then(certificate_user).map(Arc::new);
        self.http(stream, Peer { address, user }).await
    }

    async fn http<S>(self, stream: S, peer: Peer) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = self
            .router
            .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(peer.clone());
                let names_host = request.headers().contains_key(header::HOST);
                let must =
                    request.version() == Version::HTTP_11 && request.method() != Method::CONNECT;
                if must && !names_host {
                    request.extensions_mut().insert(NoHost);
                }
                request.map(axum::body::Body::new)
            })
            .map_response(|response| response.map(Told));
        let mut builder = auto::Builder::new(Streams {
            patience: self.patience,
        });
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream as Client,
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use axum::{
        Extension,
        body::{Body, BodyDataStream},
        routing::get,
    };
    use futures::{StreamExt, stream};
    use hyper::client::conn::http2::SendRequest;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Counts the bodies under way.
    struct Open(Arc<AtomicUsize>);

    impl Open {
        fn new(count: &Arc<AtomicUsize>) -> Self {
            count.fetch_add(1, Ordering::SeqCst);
            Self(count.clone())
        }
    }

    impl Drop for Open {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn ask(address: SocketAddr, path: &str) -> Client {
        let mut client = Client::connect(address).expect("a connection");
        client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).expect("a request");
        client
    }

    fn until(what: &str, mut wanted: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !wanted() {
            assert!(begun.elapsed() < DEADLINE, "{what}");
            std::thread::yield_now();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_without_a_host_is_marked() {
        let told = async |marked: Option<Extension<NoHost>>| match marked {
            Some(_) => "nameless",
            None => "named",
        };
        let router = Router::new().route("/", get(told));
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, None, router, shutdown.clone()));
        let client = tokio::task::spawn_blocking(move || {
            for (head, expected) in [
                ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "nameless"),
                (
                    "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
                    "named",
                ),
                ("GET / HTTP/1.0\r\n\r\n", "named"),
            ] {
                let mut client = Client::connect(address).expect("a connection");
                client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                client.write_all(head.as_bytes()).expect("a request");
                let mut answer = String::new();
                client.read_to_string(&mut answer).expect("an answer");
                assert!(answer.ends_with(expected), "{head} {answer}");
            }
        });
        client.await.expect("a client");
        shutdown.cancel();
        serving.await.expect("a task").expect("a server");
    }

    /// A body without an end, counted in `open` as long as somebody keeps it.
    fn endless(open: &Arc<AtomicUsize>) -> Body {
        let open = Open::new(open);
        let chunks = stream::repeat_with(move || {
            let _still = &open;
            Ok::<_, std::io::Error>(vec![b'x'; 64 * 1024])
        });
        Body::from_stream(chunks)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_does_not_read_is_let_go_and_delays_nobody() {
        const PATIENCE: Duration = Duration::from_millis(300);
        let open = Arc::new(AtomicUsize::new(0));
        let counted = open.clone();
        let endless = move || std::future::ready(endless(&counted));
        let router = Router::new()
            .route("/endless", get(endless))
            .route("/short", get(async || "short"));
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let serving = serve_patiently(listener, None, router, shutdown.clone(), PATIENCE);
        let serving = tokio::spawn(serving);
        let count = open.clone();
        let clients = tokio::task::spawn_blocking(move || {
            let mut dead: Vec<Client> = (0..20).map(|_| ask(address, "/endless")).collect();
            until("all bodies have begun", || {
                count.load(Ordering::SeqCst) == 20
            });
            let mut short = String::new();
            ask(address, "/short")
                .read_to_string(&mut short)
                .expect("an answer");
            assert!(short.ends_with("short"), "{short}");
            // One that reads, however little, stays.
            let mut slow = dead.pop().expect("a client");
            until("the others are let go", || {
                let read = slow.read(&mut [0; 64 * 1024]).expect("more");
                assert!(read > 0);
                count.load(Ordering::SeqCst) == 1
            });
            drop(slow);
            until("the last one has gone", || {
                count.load(Ordering::SeqCst) == 0
            });
            drop(dead);
        });
        clients.await.expect("clients");
        shutdown.cancel();
        serving.await.expect("a task").expect("a server");
    }

    /// Asks over HTTP/2 and gives the body of the answer, of which nothing is read yet.
    async fn ask_http2(sender: &mut SendRequest<Body>, path: &str) -> BodyDataStream {
        let request = http::Request::get(format!("http://localhost{path}"));
        let request = request.body(Body::empty()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        Body::new(answer.into_body()).into_data_stream()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_that_nobody_reads_is_cut_and_its_connection_stays() {
        const PATIENCE: Duration = Duration::from_millis(300);
        let open = Arc::new(AtomicUsize::new(0));
        let counted = open.clone();
        let endless = move || std::future::ready(endless(&counted));
        // One event, and then none.
        let idle = async || {
            let event = stream::once(async { Ok::<_, std::io::Error>("event") });
            Body::from_stream(event.chain(stream::pending()))
        };
        let router = Router::new()
            .route("/endless", get(endless))
            .route("/idle", get(idle));
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let serving = serve_patiently(listener, None, router, shutdown.clone(), PATIENCE);
        let serving = tokio::spawn(serving);

        let stream = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let mut idle = ask_http2(&mut sender, "/idle").await;
        let event = idle.next().await.expect("an event").expect("no error");
        assert_eq!(event, "event");
        // Twice, so that what is idle has outlasted the patience in any case.
        for _ in 0..2 {
            let unread = ask_http2(&mut sender, "/endless").await;
            let count = open.clone();
            let gone = move || count.load(Ordering::SeqCst) == 0;
            let waited = tokio::task::spawn_blocking(|| until("the body has gone", gone));
            waited.await.expect("the end of the body");
            drop(unread);
        }
        let polled = futures::poll!(idle.next());
        assert!(polled.is_pending(), "{polled:?}");
        let mut read = ask_http2(&mut sender, "/endless").await;
        for _ in 0..100 {
            read.next().await.expect("more").expect("no error");
        }
        // The connection lasts as long as something of it is held.
        drop((idle, read, sender));
        connection.abort();
        shutdown.cancel();
        serving.await.expect("a task").expect("a server");
    }
}
