//! `skep-load`: sends HTTP requests to one address and counts what fails, or compares two addresses. Prints one JSON
//! report, at the end of its time or on SIGTERM. HTTP/1.1 with Content-Length only: what nginx answers for a small page.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use skep_tests::histogram::Histogram;
use skep_tests::load::{Comparison, Connections, Report};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Parser, Clone)]
struct Options {
    /// ADDRESS:PORT
    target: SocketAddr,
    #[arg(long, default_value = "/quiet")]
    path: String,
    #[arg(long, value_enum, default_value = "keep-alive")]
    connections: Connections,
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Between two requests of a client
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Until SIGTERM if not given
    #[arg(long)]
    seconds: Option<f64>,
    /// Longer without an answer is a failure
    #[arg(long, default_value_t = 3.0)]
    timeout_seconds: f64,
    /// Compare the target with this one, by turns
    #[arg(long, value_name = "ADDRESS:PORT")]
    against: Option<SocketAddr>,
    /// Times four turns, of such a comparison
    #[arg(long, default_value_t = 5)]
    quartets: usize,
    #[arg(long, default_value_t = 100)]
    turn_ms: u64,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
}

const FAILURES_KEPT: usize = 5;
const LARGEST_ANSWER_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Counts {
    failed: u64,
    reconnected: u64,
    max_us: u64,
    failures: Vec<String>,
    latencies_us: Histogram,
    seconds: f64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.failed += more.failed;
        self.reconnected += more.reconnected;
        self.max_us = self.max_us.max(more.max_us);
        self.failures.extend(more.failures);
        self.failures.truncate(FAILURES_KEPT);
        self.latencies_us.add(&more.latencies_us);
        self.seconds += more.seconds;
    }

    fn requests_per_second(&self) -> f64 {
        self.latencies_us.count() as f64 / self.seconds
    }

    fn report(self) -> Report {
        Report {
            requests: self.latencies_us.count() + self.failed,
            failed: self.failed,
            reconnected: self.reconnected,
            seconds: self.seconds,
            requests_per_second: self.requests_per_second(),
            p50_us: self.latencies_us.quantile(0.5),
            p99_us: self.latencies_us.quantile(0.99),
            max_us: self.max_us,
            failures: self.failures,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(cpu) = options.cpu {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &only).context("cannot stay on one CPU")?;
    }
    match options.against {
        Some(other) => println!(
            "{}",
            serde_json::to_string(&compare(&options, other).await?)?
        ),
        None => println!("{}", serde_json::to_string(&load(options).await?)?),
    }
    Ok(())
}

async fn load(options: Options) -> Result<Report> {
    let ending = Arc::new(AtomicBool::new(false));
    let (limit, target) = (options.seconds, options.target);
    let kept = none(options.clients);
    let clients = tokio::spawn(stretch(options, target, kept, Arc::clone(&ending)));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    match limit {
        Some(seconds) => {
            let _ = timeout(Duration::from_secs_f64(seconds), terminate.recv()).await;
        }
        None => {
            terminate.recv().await;
        }
    }
    ending.store(true, Ordering::Relaxed);
    Ok(clients.await??.0.report())
}

/// Turns on two targets. The first four warm up.
async fn compare(options: &Options, other: SocketAddr) -> Result<Comparison> {
    let targets = [options.target, other];
    let mut kept = [none(options.clients), none(options.clients)];
    let mut all: [Counts; 2] = Default::default();
    let mut comparison = Comparison::default();
    for quartet in 0..=options.quartets {
        let mut sums: [Counts; 2] = Default::default();
        for turn in [0, 1, 1, 0] {
            let side = (turn + quartet) % 2;
            let ending = Arc::new(AtomicBool::new(false));
            let connections = std::mem::take(&mut kept[side]);
            let clients = stretch(options.clone(), targets[side], connections, ending.clone());
            let clients = tokio::spawn(clients);
            tokio::time::sleep(Duration::from_millis(options.turn_ms)).await;
            ending.store(true, Ordering::Relaxed);
            let (counts, connections) = clients.await??;
            kept[side] = connections;
            sums[side].add(counts);
        }
        if quartet > 0 {
            for (side, sum) in sums.into_iter().enumerate() {
                comparison.rates[side].push(sum.requests_per_second());
                all[side].add(sum);
            }
        }
    }
    comparison.reports = all.map(Counts::report);
    Ok(comparison)
}

fn none(clients: usize) -> Vec<Option<Connection>> {
    std::iter::repeat_with(|| None).take(clients).collect()
}

/// All clients, each with its kept connection, until they are to end.
async fn stretch(
    options: Options,
    target: SocketAddr,
    kept: Vec<Option<Connection>>,
    ending: Arc<AtomicBool>,
) -> Result<(Counts, Vec<Option<Connection>>)> {
    let start = Instant::now();
    let clients: Vec<_> = kept
        .into_iter()
        .map(|kept| {
            let (options, ending) = (options.clone(), Arc::clone(&ending));
            tokio::spawn(client(options, target, kept, ending, start))
        })
        .collect();
    let mut all = Counts::default();
    let mut connections = Vec::with_capacity(clients.len());
    for client in clients {
        let (counts, kept) = client.await?;
        all.add(counts);
        connections.push(kept);
    }
    all.seconds = start.elapsed().as_secs_f64();
    Ok((all, connections))
}

/// One client: one request after the other.
async fn client(
    options: Options,
    target: SocketAddr,
    mut kept: Option<Connection>,
    ending: Arc<AtomicBool>,
    start: Instant,
) -> (Counts, Option<Connection>) {
    let keep = options.connections == Connections::KeepAlive;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {target}\r\nConnection: {}\r\n\r\n",
        options.path,
        if keep { "keep-alive" } else { "close" }
    );
    let limit = Duration::from_secs_f64(options.timeout_seconds);
    let mut counts = Counts::default();
    while !ending.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answered = timeout(
            limit,
            exchange(target, &request, &mut kept, &mut counts.reconnected),
        )
        .await;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.max_us = counts.max_us.max(took_us);
        match answered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {limit:?}"))) {
            Ok(()) => counts.latencies_us.record(took_us),
            Err(error) => {
                kept = None;
                counts.failed += 1;
                if counts.failures.len() < FAILURES_KEPT {
                    counts.failures.push(format!(
                        "at {:.3} s: {error:#}",
                        start.elapsed().as_secs_f64()
                    ));
                }
                // A refused connection returns at once: do not spin.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if !keep {
            kept = None;
        }
        if options.pause_us > 0 {
            tokio::time::sleep(Duration::from_micros(options.pause_us)).await;
        }
    }
    (counts, kept)
}

/// One request and its answer, over the kept connection if there is one.
async fn exchange(
    target: SocketAddr,
    request: &str,
    kept: &mut Option<Connection>,
    reconnected: &mut u64,
) -> Result<()> {
    if let Some(mut connection) = kept.take() {
        match connection.exchange(request).await {
            Ok(()) => {
                *kept = Some(connection);
                return Ok(());
            }
            Err(error) if connection.answer_began() => return Err(error),
            Err(_) => *reconnected += 1,
        }
    }
    let stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let mut connection = Connection {
        stream,
        buffer: Vec::with_capacity(4096),
    };
    connection.exchange(request).await?;
    *kept = Some(connection);
    Ok(())
}

struct Connection {
    stream: TcpStream,
    /// What has come of the present answer.
    buffer: Vec<u8>,
}

impl Connection {
    fn answer_began(&self) -> bool {
        !self.buffer.is_empty()
    }

    async fn exchange(&mut self, request: &str) -> Result<()> {
        self.buffer.clear();
        self.stream
            .write_all(request.as_bytes())
            .await
            .context("send")?;
        loop {
            if let Some(length) = answer_length(&self.buffer)? {
                ensure!(self.buffer.len() <= length, "more came than the answer");
                if self.buffer.len() == length {
                    return Ok(());
                }
            }
            ensure!(
                self.buffer.len() < LARGEST_ANSWER_BYTES,
                "the answer is too long"
            );
            if self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .context("receive")?
                == 0
            {
                bail!("closed after {} bytes of the answer", self.buffer.len());
            }
        }
    }
}

/// The length of the answer that begins in `buffer`, once its head is complete.
fn answer_length(buffer: &[u8]) -> Result<Option<usize>> {
    let Some(head_length) = buffer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
    else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&buffer[..head_length]).context("the head is not text")?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    ensure!(
        status.split(' ').nth(1) == Some("200"),
        "answered {status:?}"
    );
    let body_length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("no Content-Length")?
        .1
        .trim()
        .parse()
        .context("Content-Length")?;
    Ok(Some(head_length + body_length))
}

#[cfg(test)]
mod tests {
    use super::answer_length;

    #[test]
    fn answers() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
        assert_eq!(answer_length(whole).unwrap(), Some(whole.len()));
        assert_eq!(answer_length(&whole[..20]).unwrap(), None);
        assert!(answer_length(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answer_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(answer_length(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").is_err());
    }
}
