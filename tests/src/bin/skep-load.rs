//! `skep-load`: sends HTTP requests to one address and counts what fails. Prints one JSON report, at the end of its time
//! or on SIGTERM. HTTP/1.1 with Content-Length only: what nginx answers for a small page.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use skep_tests::histogram::Histogram;
use skep_tests::load::{Connections, Report};
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
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let ending = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let clients: Vec<_> = (0..options.clients)
        .map(|_| tokio::spawn(client(options.clone(), Arc::clone(&ending), start)))
        .collect();

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    match options.seconds {
        Some(seconds) => {
            let _ = timeout(Duration::from_secs_f64(seconds), terminate.recv()).await;
        }
        None => {
            terminate.recv().await;
        }
    }
    ending.store(true, Ordering::Relaxed);

    let mut all = Counts::default();
    for client in clients {
        let counts = client.await?;
        all.failed += counts.failed;
        all.reconnected += counts.reconnected;
        all.max_us = all.max_us.max(counts.max_us);
        all.failures.extend(counts.failures);
        all.latencies_us.add(&counts.latencies_us);
    }
    all.failures.truncate(FAILURES_KEPT);
    let seconds = start.elapsed().as_secs_f64();
    let requests = all.latencies_us.count() + all.failed;
    let report = Report {
        requests,
        failed: all.failed,
        reconnected: all.reconnected,
        seconds,
        requests_per_second: all.latencies_us.count() as f64 / seconds,
        p50_us: all.latencies_us.quantile(0.5),
        p99_us: all.latencies_us.quantile(0.99),
        max_us: all.max_us,
        failures: all.failures,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// One client: one request after the other.
async fn client(options: Options, ending: Arc<AtomicBool>, start: Instant) -> Counts {
    let keep = options.connections == Connections::KeepAlive;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: {}\r\n\r\n",
        options.path,
        options.target,
        if keep { "keep-alive" } else { "close" }
    );
    let limit = Duration::from_secs_f64(options.timeout_seconds);
    let mut counts = Counts::default();
    let mut kept: Option<Connection> = None;
    while !ending.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answered = timeout(
            limit,
            exchange(options.target, &request, &mut kept, &mut counts.reconnected),
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
    counts
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
