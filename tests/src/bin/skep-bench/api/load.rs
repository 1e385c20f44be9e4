//! Rounds of the same request from many clients, and what they come to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use skep_tests::histogram::Histogram;

use super::server::Server;
use crate::Figure;

pub(super) const CLIENTS: usize = 32;

pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
}

impl Request {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            body: None,
        }
    }

    pub(super) fn create(path: &str, body: Vec<u8>) -> Self {
        Self {
            method: "POST",
            path: path.to_owned(),
            body: Some(body),
        }
    }
}

/// How long a round lasts.
#[derive(Clone, Copy)]
pub(super) enum Until {
    Elapsed(Duration),
    /// Until there is no next request.
    Done,
}

/// What one round of load did.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) latencies_us: Histogram,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) server_cpu: Duration,
}

/// Every client sends one request after the other.
pub(super) async fn load<F>(
    server: &Server,
    secure: bool,
    until: Until,
    request: F,
) -> Result<Outcome>
where
    F: Fn() -> Option<Request> + Send + Sync + 'static,
{
    let request = Arc::new(request);
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        connections.push(server.connect(secure).await?);
    }
    let cpu = server.cpu()?;
    let start = Instant::now();
    let clients: Vec<_> = connections
        .into_iter()
        .map(|mut connection| {
            let request = Arc::clone(&request);
            tokio::spawn(async move {
                let mut outcome = Outcome::default();
                loop {
                    if matches!(until, Until::Elapsed(limit) if start.elapsed() >= limit) {
                        break;
                    }
                    let Some(request) = request() else { break };
                    let began = Instant::now();
                    outcome.bytes += connection
                        .send(request.method, &request.path, request.body.as_deref())
                        .await? as u64;
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
    all.server_cpu = server.cpu()?.saturating_sub(cpu);
    Ok(all)
}

/// The rounds of each kind of request, in the order in which they were first measured.
#[derive(Default)]
pub(super) struct Samples {
    kinds: Vec<(String, Vec<Round>)>,
}

struct Round {
    per_second: f64,
    megabytes_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

impl Samples {
    pub(super) fn add(&mut self, kind: &str, outcome: &Outcome) {
        let count = outcome.latencies_us.count() as f64;
        let round = Round {
            per_second: count / outcome.seconds,
            megabytes_per_second: outcome.bytes as f64 / 1e6 / outcome.seconds,
            p50_ms: outcome.latencies_us.quantile(0.5) as f64 / 1e3,
            p99_ms: outcome.latencies_us.quantile(0.99) as f64 / 1e3,
            cpu_us: outcome.server_cpu.as_secs_f64() * 1e6 / count.max(1.0),
        };
        match self.kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, rounds)) => rounds.push(round),
            None => self.kinds.push((kind.to_owned(), vec![round])),
        }
    }

    pub(super) fn figures(&self) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (kind, rounds) in &self.kinds {
            let all = |value: fn(&Round) -> f64| rounds.iter().map(value).collect();
            let mut add = |what: &str, unit, samples| -> Result<()> {
                figures.push(Figure::of(format!("{kind}, {what}"), unit, samples)?);
                Ok(())
            };
            add(
                &format!("{CLIENTS} clients"),
                "requests/s",
                all(|round| round.per_second),
            )?;
            if kind.starts_with("list") {
                add("bytes", "MB/s", all(|round| round.megabytes_per_second))?;
            }
            add("p50", "ms", all(|round| round.p50_ms))?;
            add("p99", "ms", all(|round| round.p99_ms))?;
            add("server's CPU each", "us", all(|round| round.cpu_us))?;
        }
        Ok(figures)
    }
}
