//! Liveness, readiness and startup probes of one running container.
//!
//! One task a container. It reports to the pod's worker only when a verdict changes, and decides
//! nothing itself.

mod connection;
pub mod http;
pub mod metrics;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::http::Request;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::connection::Connection;
use self::http::{Get, Headers, MAX_BODY};
use super::hooks::exec;
use super::plan::ProbeResults;
use crate::runtime::{PodRef, Runtime};

/// Docker's word in place of what a command would print.
const NOT_RUN: &str = "OCI runtime exec failed";
/// A runtime that takes longer to say anything is the reason why a command takes so long.
const RUNTIME_ANSWERS: Duration = Duration::from_secs(2);

/// Probes begin in these steps, but for the first one. Their intervals are whole seconds, so none drifts.
const TOGETHER: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

#[derive(Debug, Clone)]
pub enum Report {
    /// The verdict changed.
    Verdict {
        id: String,
        which: Which,
        good: bool,
    },
    /// One try failed, or was good with a reservation; for an event.
    Told {
        id: String,
        reason: &'static str,
        message: String,
    },
}

const UNHEALTHY: &str = "Unhealthy";
const WARNING: &str = "ProbeWarning";

/// What one try says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Good,
    /// Good, but its author may have meant something else.
    Doubtful(String),
    Bad(String),
    /// The container could not be asked (the runtime does not answer): as if the try had not been
    /// made. A runtime that is away says nothing about the containers that go on without it.
    Unknown(String),
}

impl Outcome {
    fn is_good(&self) -> bool {
        matches!(self, Self::Good | Self::Doubtful(_))
    }

    fn kind(&self) -> metrics::Result {
        match self {
            Self::Good | Self::Doubtful(_) => metrics::Result::Successful,
            Self::Bad(_) => metrics::Result::Failed,
            Self::Unknown(_) => metrics::Result::Unknown,
        }
    }
}

impl From<Result<(), String>> for Outcome {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::Good,
            Err(message) => Self::Bad(message),
        }
    }
}

pub struct Target {
    pub runtime: Arc<dyn Runtime>,
    pub id: String,
    pub pod: PodRef,
    pub container: Container,
    pub metrics: Arc<metrics::Metrics>,
    pub ip: Option<IpAddr>,
    /// Since when the container runs.
    pub age: Duration,
    /// What an agent before this one has found.
    pub known: ProbeResults,
    /// Cancelled when the pod is to end: whether it is alive is asked no more, whether it is ready
    /// still is.
    pub ending: CancellationToken,
    pub reports: mpsc::Sender<Report>,
}

/// Runs until it is aborted.
pub async fn run(target: Target) {
    let began = Instant::now()
        .checked_sub(target.age)
        .unwrap_or_else(Instant::now);
    let target = &target;
    let started = target.known.started == Some(true);
    if let Some(probe) = target.container.startup_probe.as_ref().filter(|_| !started) {
        tokio::select! {
            () = target.repeat(Which::Startup, probe, began, true) => {}
            () = target.ending.cancelled() => return,
        }
    }
    let each = |which: Which, probe: &Option<Probe>| {
        let probe = probe.clone();
        async move {
            if let Some(probe) = probe {
                target.repeat(which, &probe, began, false).await;
            }
        }
    };
    let liveness = async {
        tokio::select! {
            () = each(Which::Liveness, &target.container.liveness_probe) => {}
            () = target.ending.cancelled() => {}
        }
    };
    let readiness = each(Which::Readiness, &target.container.readiness_probe);
    tokio::join!(liveness, readiness);
}

fn seconds(value: Option<i32>, default: u64, least: u64) -> Duration {
    let seconds = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    Duration::from_secs(seconds.unwrap_or(default).max(least))
}

/// What a probe asks each time.
enum Question<'a> {
    Exec(Vec<String>),
    /// The URL as its author wrote it, and the request, unless that cannot be made.
    Http(String, Result<Get, String>),
    Other(&'a Probe),
    Wrong(String),
}

/// The first moment not before `at` that is a whole number of steps away from one that all share. What is due anywhere
/// within a step goes on together, and the agent wakes up once for it.
fn together(at: Instant, step: Duration) -> Instant {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let step = step.as_micros();
    let steps = at
        .saturating_duration_since(*BEGAN)
        .as_micros()
        .div_ceil(step);
    *BEGAN + Duration::from_micros(u64::try_from(steps * step).unwrap_or(0))
}

impl Target {
    /// `until_good`: ends with the first good verdict.
    async fn repeat(&self, which: Which, probe: &Probe, began: Instant, until_good: bool) {
        let period = seconds(probe.period_seconds, 10, 1);
        let success = probe.success_threshold.unwrap_or(1).max(1);
        let failure = probe.failure_threshold.unwrap_or(3).max(1);
        let limit = seconds(probe.timeout_seconds, 1, 1);
        let question = self.question(probe);
        let series = self.metrics.series(self.labels(which));
        // The first one without delay: others wait for it.
        let mut next = began + seconds(probe.initial_delay_seconds, 0, 0);
        next = next.max(Instant::now());
        sleep_until(next).await;
        // What holds before the first verdict: alive, but not ready.
        let mut verdict = match which {
            Which::Liveness => Some(true),
            Which::Readiness => self.known.ready,
            Which::Startup => None,
        };
        let (mut last, mut run) = (None, 0);
        loop {
            let begun = Instant::now();
            let outcome = self.once(&question, limit).await;
            series.record(outcome.kind(), begun.elapsed());
            // What was missed meanwhile is not made up for.
            next = together((next + period).max(Instant::now()), TOGETHER);
            if let Outcome::Unknown(e) = &outcome {
                debug!(id = self.id, error = e, "a probe could not be made");
                self.tell_error(which, e).await;
                sleep_until(next).await;
                continue;
            }
            let good = outcome.is_good();
            run = if last == Some(good) { run + 1 } else { 1 };
            last = Some(good);
            let told = match outcome {
                Outcome::Bad(message) => Some((UNHEALTHY, format!("failed: {message}"))),
                Outcome::Doubtful(message) => Some((WARNING, format!("warning: {message}"))),
                Outcome::Good | Outcome::Unknown(_) => None,
            };
            if let Some((reason, text)) = told
                && self.tell(which, reason, &text).await.is_err()
            {
                return;
            }
            let reached = if good { run >= success } else { run >= failure };
            if reached && verdict != Some(good) {
                verdict = Some(good);
                let report = Report::Verdict {
                    id: self.id.clone(),
                    which,
                    good,
                };
                if self.reports.send(report).await.is_err() || (until_good && good) {
                    return;
                }
            }
            sleep_until(next).await;
        }
    }

    /// A command that cannot be run is its author's business; a runtime that is away is not.
    async fn tell_error(&self, which: Which, error: &str) {
        let answers = timeout(RUNTIME_ANSWERS, self.runtime.inspect(&self.id)).await;
        if matches!(answers, Ok(Ok(_))) {
            let text = format!("errored and resulted in unknown state: {error}");
            // Nobody is there to hear it only when the pod's worker has ended.
            let _ = self.tell(which, UNHEALTHY, &text).await;
        }
    }

    async fn tell(
        &self,
        which: Which,
        reason: &'static str,
        text: &str,
    ) -> Result<(), mpsc::error::SendError<Report>> {
        let told = Report::Told {
            id: self.id.clone(),
            reason,
            message: format!("{} probe {text}", which.name()),
        };
        self.reports.send(told).await
    }

    fn labels(&self, which: Which) -> metrics::Labels {
        metrics::Labels {
            probe_type: which.name(),
            container: self.container.name.clone(),
            pod: self.pod.name.clone(),
            namespace: self.pod.namespace.clone(),
            pod_uid: self.pod.uid.clone(),
        }
    }

    fn question<'a>(&self, probe: &'a Probe) -> Question<'a> {
        if let Some(action) = &probe.exec {
            return Question::Exec(action.command.clone().unwrap_or_default());
        }
        let Some(action) = &probe.http_get else {
            return Question::Other(probe);
        };
        let ip = self.ip.map(|ip| ip.to_string()).unwrap_or_default();
        match url(action, &self.container, &ip) {
            Ok((url, headers)) => {
                let get = Get::new(&url, headers);
                Question::Http(url, get)
            }
            Err(message) => Question::Wrong(message),
        }
    }

    async fn once(&self, question: &Question<'_>, limit: Duration) -> Outcome {
        match question {
            Question::Exec(command) => self.exec(command.clone(), limit).await,
            Question::Http(url, get) => http_get(url, get.as_ref(), limit).await,
            Question::Other(probe) => self.over_the_network(probe, limit).await.into(),
            Question::Wrong(message) => Outcome::Bad(message.clone()),
        }
    }

    async fn exec(&self, command: Vec<String>, limit: Duration) -> Outcome {
        let line = command.join(" ");
        match exec(&*self.runtime, &self.id, command, limit).await {
            Ok(Some((0, _))) => Outcome::Good,
            // There is no such command: that says nothing about the container.
            Ok(Some((126 | 127, output))) if output.starts_with(NOT_RUN) => {
                Outcome::Unknown(output.trim().into())
            }
            Ok(Some((_, output))) => Outcome::Bad(output),
            Err(e) => Outcome::Unknown(e),
            // Slow because of the command, or because of a runtime that hangs?
            Ok(None) => match timeout(RUNTIME_ANSWERS, self.runtime.inspect(&self.id)).await {
                Ok(Ok(_)) => Outcome::Bad(format!(
                    "command timed out: {line:?} timed out after {}",
                    super::plan::go_duration(limit)
                )),
                Ok(Err(e)) => Outcome::Unknown(e.to_string()),
                Err(_) => Outcome::Unknown("the container runtime does not answer".into()),
            },
        }
    }

    async fn over_the_network(&self, probe: &Probe, limit: Duration) -> Result<(), String> {
        let ip = self.ip.map(|ip| ip.to_string()).unwrap_or_default();
        if let Some(action) = &probe.tcp_socket {
            let port = port(&action.port, &self.container)?;
            let host = action
                .host
                .as_deref()
                .filter(|h| !h.is_empty())
                .unwrap_or(&ip);
            let stands = async { Connection::open(host, port).await?.stands().await };
            return match timeout(limit, stands).await {
                Err(_) => Err(format!("dial tcp {}: i/o timeout", join(host, port))),
                Ok(Err(e)) => Err(dial_error(host, port, &e)),
                Ok(Ok(())) => Ok(()),
            };
        }
        if let Some(action) = &probe.grpc {
            let port = u16::try_from(action.port).map_err(|_| "invalid port".to_string())?;
            let service = action.service.as_deref().unwrap_or_default();
            return match timeout(limit, grpc(&ip, port, service)).await {
                Err(_) => Err(format!(
                    "timeout: failed to connect service \"{}\" within {}: context deadline exceeded",
                    join(&ip, port),
                    super::plan::go_duration(limit)
                )),
                Ok(outcome) => outcome,
            };
        }
        Ok(())
    }
}

async fn http_get(url: &str, get: Result<&Get, &String>, limit: Duration) -> Outcome {
    let answer = async {
        match get {
            Ok(get) => get.send().await,
            Err(message) => Err(message.clone()),
        }
    };
    match timeout(limit, answer).await {
        Err(_) => Outcome::Bad(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(e)) => Outcome::Bad(format!("Get \"{url}\": {e}")),
        Ok(Ok((status, _))) if (200..300).contains(&status) => Outcome::Good,
        Ok(Ok((status, body))) if (300..400).contains(&status) => {
            Outcome::Doubtful(format!("Probe terminated redirects, Response body: {body}"))
        }
        Ok(Ok((status, _))) => Outcome::Bad(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn dial_error(host: &str, port: u16, e: &std::io::Error) -> String {
    let text = match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_string(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_string(),
        _ => e.to_string(),
    };
    format!("dial tcp {}: {text}", join(host, port))
}

pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_| format!("invalid port number: {number}"))
        }
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .and_then(|p| u16::try_from(p.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| format!("couldn't find port: {name}")),
    }
}

pub fn url(
    action: &HTTPGetAction,
    container: &Container,
    ip: &str,
) -> Result<(String, Headers), String> {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(ip);
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let headers = action.http_headers.iter().flatten();
    let headers = headers.map(|h| (h.name.clone(), h.value.clone())).collect();
    let port = port(&action.port, container)?;
    Ok((
        format!("{scheme}://{}{slash}{path}", join(host, port)),
        headers,
    ))
}

/// `grpc.health.v1.Health/Check` by hand: one string in, one enum out.
async fn grpc(ip: &str, port: u16, service: &str) -> Result<(), String> {
    let stream = TcpStream::connect((ip, port)).await.map_err(|e| {
        format!(
            "error: failed to connect service at \"{}\": {}",
            join(ip, port),
            dial_error(ip, port, &e)
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        // The length as protobuf writes numbers: seven bits a byte, the lowest first.
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let request = Request::post(format!(
        "http://{}/grpc.health.v1.Health/Check",
        join(ip, port)
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .header("user-agent", "kube-probe/1.36")
    .body(Full::new(Bytes::from(body)))
    .map_err(|e| e.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let header_status = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|e| e.to_string())?;
    let code = body
        .trailers()
        .and_then(|t| t.get("grpc-status"))
        .cloned()
        .or(header_status);
    match code.as_ref().and_then(|c| c.to_str().ok()) {
        Some("0") | None => {}
        Some("12") => {
            return Err(
                "error: this server does not implement the grpc health protocol \
                        (grpc.health.v1.Health)"
                    .into(),
            );
        }
        Some(code) => return Err(format!("error: health rpc probe failed: code {code}")),
    }
    let answer = body.to_bytes();
    match answer.get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        Some([0x08, 2, ..]) => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        Some([0x08, 3, ..]) => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".into()),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::service::service_fn;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::runtime::hollow::HollowRuntime;

    type Answer = ::http::Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

    /// `grpc.health.v1.Health` for HTTP/2, a few pages for HTTP/1.
    async fn answer(request: ::http::Request<hyper::body::Incoming>) -> Result<Answer, Infallible> {
        let path = request.uri().path().to_string();
        let asked = request.into_body().collect().await.map(|b| b.to_bytes());
        let asked = asked.unwrap_or_default();
        let service = String::from_utf8_lossy(asked.get(7..).unwrap_or_default()).into_owned();
        let code = match path.as_str() {
            "/broken" => 500,
            "/moved" | "/away" => 302,
            _ => 200,
        };
        let (health, status) = match service.as_str() {
            "down" => (2, "0"),
            "unknown" => (3, "0"),
            "old" => (0, "12"),
            _ => (1, "0"),
        };
        let body = match path.as_str() {
            "/grpc.health.v1.Health/Check" => vec![0, 0, 0, 0, 2, 8, health],
            _ => Vec::new(),
        };
        let trailers = ::http::HeaderMap::from_iter([(
            ::http::HeaderName::from_static("grpc-status"),
            ::http::HeaderValue::from_static(status),
        )]);
        let body = Full::new(Bytes::from(body)).with_trailers(async { Some(Ok(trailers)) });
        let mut response = ::http::Response::builder().status(code);
        match path.as_str() {
            "/moved" => response = response.header("location", "/broken"),
            "/away" => response = response.header("location", "http://192.0.2.1/"),
            _ => {}
        }
        Ok(response.body(body.boxed()).unwrap())
    }

    async fn serve() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await
                });
            }
        });
        port
    }

    async fn check(probe: serde_json::Value) -> Outcome {
        let target = Target {
            runtime: Arc::new(HollowRuntime::new()),
            id: "gone".into(),
            pod: PodRef::default(),
            metrics: Arc::default(),
            container: serde_json::from_value(json!({"name": "c",
                "ports": [{"name": "nobody", "containerPort": 1}]}))
            .unwrap(),
            ip: Some([127, 0, 0, 1].into()),
            age: Duration::ZERO,
            known: ProbeResults::default(),
            ending: CancellationToken::new(),
            reports: mpsc::channel(1).0,
        };
        let probe = serde_json::from_value(probe).unwrap();
        let limit = Duration::from_secs(1);
        target.once(&target.question(&probe), limit).await
    }

    #[tokio::test]
    async fn each_kind_of_probe_tells_good_from_bad() {
        let port = serve().await;
        let bad = |text: &str| Outcome::Bad(text.into());
        let get = |path: &str| json!({"httpGet": {"path": path, "port": port}});
        assert_eq!(check(get("/")).await, Outcome::Good);
        assert_eq!(
            check(get("/broken")).await,
            bad("HTTP probe failed with statuscode: 500")
        );
        assert_eq!(
            check(get("/moved")).await,
            bad("HTTP probe failed with statuscode: 500")
        );
        assert_eq!(
            check(get("/away")).await,
            Outcome::Doubtful("Probe terminated redirects, Response body: ".into()),
            "another host is not asked"
        );
        assert_eq!(
            check(json!({"httpGet": {"path": "/x", "port": "nobody"}})).await,
            bad("Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused")
        );
        assert_eq!(
            check(json!({"tcpSocket": {"port": port}})).await,
            Outcome::Good
        );
        assert_eq!(
            check(json!({"tcpSocket": {"port": "nobody"}})).await,
            bad("dial tcp 127.0.0.1:1: connect: connection refused")
        );
        let grpc = |service: &str| json!({"grpc": {"port": port, "service": service}});
        assert_eq!(check(grpc("")).await, Outcome::Good);
        assert_eq!(check(grpc(&"x".repeat(300))).await, Outcome::Good);
        assert_eq!(
            check(grpc("down")).await,
            bad("service unhealthy (responded with \"NOT_SERVING\")")
        );
        assert_eq!(
            check(grpc("unknown")).await,
            bad("service unhealthy (responded with \"SERVICE_UNKNOWN\")")
        );
        assert!(matches!(check(grpc("old")).await,
            Outcome::Bad(text) if text.contains("does not implement the grpc health protocol")));
        // A container that the runtime does not know cannot be asked.
        let exec = json!({"exec": {"command": ["true"]}});
        assert!(matches!(check(exec).await, Outcome::Unknown(_)));
    }
}
