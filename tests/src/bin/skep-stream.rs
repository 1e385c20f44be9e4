//! `skep-stream`: what has to go on whatever happens to an agent: datagrams as fast as one core sends them, and many
//! connections that are always in use. On SIGTERM each side that sends prints a report as JSON.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use skep_tests::stream::{Flood, Held};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

#[derive(Parser)]
enum Options {
    /// Take datagrams, and send back what connections say
    Serve { port: u16 },
    /// Send datagrams over many flows
    Flood { target: SocketAddr },
    /// Open connections and use them all the time; prints `open` once they are
    Hold {
        target: SocketAddr,
        #[arg(long, default_value_t = 1_000)]
        connections: usize,
    },
}

const FLOWS: usize = 64;
/// Sent by a flow before it is the next one's turn.
const BURST: usize = 64;
/// Turns of all flows after which one of them ends and another begins.
const TURNS_OF_A_FLOW: usize = 4;
const DATAGRAM: [u8; 64] = [7; 64];
/// Between two words of a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Longer without an answer, and a connection is lost.
const PATIENCE: Duration = Duration::from_secs(20);
const FAILURES_KEPT: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Options::parse() {
        Options::Serve { port } => serve(port).await,
        Options::Flood { target } => {
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = stop.clone();
            let sender = std::thread::spawn(move || flood(target, &stopped));
            terminated().await?;
            stop.store(true, Ordering::Relaxed);
            let report = sender.join().ok().context("the sender panicked")??;
            print(&report)
        }
        Options::Hold {
            target,
            connections,
        } => hold(target, connections).await,
    }
}

async fn terminated() -> Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

fn print(report: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

async fn serve(port: u16) -> Result<()> {
    let sink = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        let mut datagram = [0; 2_048];
        loop {
            // What came, and what did not fit, the kernel counts.
            let _ = sink.recv(&mut datagram);
        }
    });
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (mut connection, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = connection.split();
            // Until the client ends it.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

fn flow(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

fn flood(target: SocketAddr, stop: &AtomicBool) -> Result<Flood> {
    let mut flows = (0..FLOWS)
        .map(|_| flow(target))
        .collect::<Result<Vec<UdpSocket>>>()?;
    let mut report = Flood::default();
    let began = Instant::now();
    let mut oldest = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..TURNS_OF_A_FLOW {
            for socket in &flows {
                for _ in 0..BURST {
                    match socket.send(&DATAGRAM) {
                        Ok(_) => report.sent += 1,
                        Err(_) => report.failed += 1,
                    }
                }
            }
        }
        flows[oldest] = flow(target)?;
        oldest = (oldest + 1) % FLOWS;
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

async fn hold(target: SocketAddr, connections: usize) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let exchanges = Arc::new(AtomicU64::new(0));
    let mut held = Vec::with_capacity(connections);
    for number in 0..connections {
        let connection = TcpStream::connect(target).await.context("connect")?;
        connection.set_nodelay(true)?;
        let (stop, exchanges) = (stop.clone(), exchanges.clone());
        held.push(tokio::spawn(async move {
            keep_using(connection, number as u64, &stop, &exchanges).await
        }));
    }
    println!("open");
    terminated().await?;
    stop.store(true, Ordering::Relaxed);
    let mut report = Held {
        connections,
        ..Held::default()
    };
    for each in held {
        if let Err(error) = each.await? {
            report.lost += 1;
            report.failures.push(format!("{error:#}"));
        }
    }
    report.failures.truncate(FAILURES_KEPT);
    report.exchanges = exchanges.load(Ordering::Relaxed);
    print(&report)
}

async fn keep_using(
    mut connection: TcpStream,
    word: u64,
    stop: &AtomicBool,
    exchanges: &AtomicU64,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let said = word.to_be_bytes();
        connection.write_all(&said).await.context("send")?;
        let mut heard = [0; 8];
        let answer = timeout(PATIENCE, connection.read_exact(&mut heard));
        answer.await.context("no answer")?.context("receive")?;
        anyhow::ensure!(heard == said, "another connection's answer");
        exchanges.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
