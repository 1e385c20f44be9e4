//! The API server alone: creates, gets and lists per second over TLS, 32 clients, objects of 1 KB.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use skep_tests::histogram::Histogram;
use skep_tests::wait::wait_for;
use tokio::net::TcpStream;
use xtask::cluster::Store;
use xtask::workspace;

use crate::{Figure, memory};

const CLIENTS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
/// Objects in the namespace that is listed.
const LISTED: usize = 1000;
const PAYLOAD_BYTES: usize = 800;
const TOKEN: &str = "bench-token";
const READY: Duration = Duration::from_secs(30);

/// A `skep-control --roles api` of our own.
struct Server {
    child: Child,
    etcd: Option<Child>,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    _data: tempfile::TempDir,
}

pub(crate) fn measure(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let server = Server::start(store)?;
    let mut figures = vec![Figure::of(
        "memory of skep-control --roles api, idle",
        "MiB",
        vec![server.memory()?],
    )?];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    figures.extend(runtime.block_on(measure_requests(&server, rounds))?);
    figures.push(Figure::of(
        "memory of skep-control --roles api, after the load",
        "MiB",
        vec![server.memory()?],
    )?);
    Ok(figures)
}

async fn measure_requests(server: &Server, rounds: usize) -> Result<Vec<Figure>> {
    let mut first = server.connect().await?;
    for namespace in ["bench", "listed"] {
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        first
            .send(Method::POST, "/api/v1/namespaces", Some(&object))
            .await?;
    }
    for number in 0..LISTED {
        first
            .send(
                Method::POST,
                "/api/v1/namespaces/listed/configmaps",
                Some(&config_map(&format!("c{number}"))),
            )
            .await?;
    }

    let names = Arc::new(AtomicUsize::new(0));
    let mut samples = Samples::default();
    for _ in 0..rounds {
        let next = Arc::clone(&names);
        let creates = server
            .load(move || {
                let name = format!("o{}", next.fetch_add(1, Ordering::Relaxed));
                (
                    Method::POST,
                    "/api/v1/namespaces/bench/configmaps".to_owned(),
                    Some(config_map(&name)),
                )
            })
            .await?;
        samples.add("create", &creates);
        let created = names.load(Ordering::Relaxed);
        let next = Arc::new(AtomicUsize::new(0));
        let gets = server
            .load(move || {
                // A prime step visits them out of order.
                let name = next.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919) % created.max(1);
                (
                    Method::GET,
                    format!("/api/v1/namespaces/bench/configmaps/o{name}"),
                    None,
                )
            })
            .await?;
        samples.add("get", &gets);
        let lists = server
            .load(|| {
                (
                    Method::GET,
                    "/api/v1/namespaces/listed/configmaps".to_owned(),
                    None,
                )
            })
            .await?;
        samples.add(&format!("list of {LISTED}"), &lists);
    }
    samples.figures()
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"payload": "x".repeat(PAYLOAD_BYTES)}})
}

/// The rounds of each kind of request, in the order in which they were first measured.
#[derive(Default)]
struct Samples {
    kinds: Vec<(String, Vec<Round>)>,
}

struct Round {
    per_second: f64,
    megabytes_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Samples {
    fn add(&mut self, kind: &str, outcome: &Outcome) {
        let round = Round {
            per_second: outcome.latencies_us.count() as f64 / outcome.seconds,
            megabytes_per_second: outcome.bytes as f64 / 1e6 / outcome.seconds,
            p50_ms: outcome.latencies_us.quantile(0.5) as f64 / 1e3,
            p99_ms: outcome.latencies_us.quantile(0.99) as f64 / 1e3,
        };
        match self.kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, rounds)) => rounds.push(round),
            None => self.kinds.push((kind.to_owned(), vec![round])),
        }
    }

    fn figures(&self) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (kind, rounds) in &self.kinds {
            let all = |value: fn(&Round) -> f64| rounds.iter().map(value).collect();
            figures.push(Figure::of(
                format!("{kind}, {CLIENTS} clients"),
                "requests/s",
                all(|round| round.per_second),
            )?);
            if kind.starts_with("list") {
                figures.push(Figure::of(
                    format!("{kind}, bytes"),
                    "MB/s",
                    all(|round| round.megabytes_per_second),
                )?);
            }
            figures.push(Figure::of(
                format!("{kind}, p50"),
                "ms",
                all(|round| round.p50_ms),
            )?);
            figures.push(Figure::of(
                format!("{kind}, p99"),
                "ms",
                all(|round| round.p99_ms),
            )?);
        }
        Ok(figures)
    }
}

/// What one round of load did.
#[derive(Default)]
struct Outcome {
    latencies_us: Histogram,
    bytes: u64,
    seconds: f64,
}

impl Server {
    fn start(store: Store) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let etcd_port = free_port()?;
        let etcd = if store == Store::Etcd {
            Some(start_etcd(data.path(), etcd_port)?)
        } else {
            None
        };
        let tokens = data.path().join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},admin,1,\"system:masters\"\n"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = std::fs::File::create(data.path().join("log"))?;
        let child = Command::new(workspace::binary("skep-control"))
            .arg("--data-dir")
            .arg(data.path().join("control"))
            .arg("--token-auth-file")
            .arg(&tokens)
            .args([
                "--roles",
                "api",
                "--advertise-address",
                "127.0.0.1",
                "--store",
                store.name(),
            ])
            .args(["--listen", &address.to_string()])
            .args(["--etcd-endpoints", &format!("http://127.0.0.1:{etcd_port}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start skep-control")?;
        let admin = data.path().join("control/admin.kubeconfig");
        let certificate = wait_for("skep-control to write its kubeconfig", READY, || {
            let kubeconfig: Value = serde_json::from_slice(&std::fs::read(&admin)?)?;
            let encoded = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]
                .as_str()
                .context("no certificate authority in the kubeconfig")?;
            Ok(base64::engine::general_purpose::STANDARD.decode(encoded)?)
        })?;
        wait_for("skep-control to listen", READY, || {
            Ok(std::net::TcpStream::connect(address).map(drop)?)
        })?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&certificate)?)?;
        let mut tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            child,
            etcd,
            address,
            tls: Arc::new(tls),
            _data: data,
        })
    }

    fn memory(&self) -> Result<f64> {
        memory::resident_mib(i32::try_from(self.child.id())?)
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// One round: every client sends one request after the other.
    async fn load<F>(&self, request: F) -> Result<Outcome>
    where
        F: Fn() -> (Method, String, Option<Value>) + Send + Sync + 'static,
    {
        let request = Arc::new(request);
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(self.connect().await?);
        }
        let start = Instant::now();
        let clients: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                let request = Arc::clone(&request);
                tokio::spawn(async move {
                    let mut outcome = Outcome::default();
                    while start.elapsed() < ROUND {
                        let (method, path, body) = request();
                        let began = Instant::now();
                        outcome.bytes +=
                            connection.send(method, &path, body.as_ref()).await? as u64;
                        outcome
                            .latencies_us
                            .record(u64::try_from(began.elapsed().as_micros())?);
                    }
                    anyhow::Ok(outcome)
                })
            })
            .collect();
        let mut all = Outcome::default();
        for client in clients {
            let outcome = client.await??;
            all.bytes += outcome.bytes;
            all.latencies_us.add(&outcome.latencies_us);
        }
        all.seconds = start.elapsed().as_secs_f64();
        Ok(all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [Some(&mut self.child), self.etcd.as_mut()]
            .into_iter()
            .flatten()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Sends a request and reads the whole answer; its length.
    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<usize> {
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", "127.0.0.1")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(
            matches!(status, StatusCode::OK | StatusCode::CREATED),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(answer.len())
    }
}

fn start_etcd(data: &Path, port: u16) -> Result<Child> {
    let program = xtask::command::find("etcd").context("etcd is not installed")?;
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let log = std::fs::File::create(data.join("etcd.log"))?;
    Command::new(program)
        .arg("--data-dir")
        .arg(data.join("etcd"))
        .args([
            "--name",
            "bench",
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("bench={peer}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start etcd")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
