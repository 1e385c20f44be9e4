//! How long it takes until a thousand watchers have an event, and what they cost a writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use skep_tests::histogram::Histogram;
use tokio::sync::{mpsc, watch};

use super::server::Server;
use super::{config_map, namespace};
use crate::Figure;

const WATCHERS: usize = 1000;
/// Events each watcher sees.
const EVENTS: usize = 20;
/// How many connections may be set up at once.
const CONNECTING: usize = 50;
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Watchers {
    /// Which event to wait for; 0 at first.
    round: watch::Sender<usize>,
    seen: mpsc::UnboundedReceiver<Instant>,
    tasks: tokio::task::JoinSet<Result<()>>,
}

const NAMESPACE: &str = "watched";

fn name(round: usize) -> String {
    // The last letter keeps 1 apart from 10 where the text is looked for.
    format!("event-{round}e")
}

impl Watchers {
    pub(super) async fn start(server: &Arc<Server>) -> Result<Self> {
        let mut connection = server.connect(true).await?;
        namespace(&mut connection, NAMESPACE).await?;
        let (round, rounds) = watch::channel(0);
        let (seen_by, seen) = mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        let turns = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
        let (started, mut begun) = mpsc::channel(WATCHERS);
        for _ in 0..WATCHERS {
            let server = Arc::clone(server);
            let turns = Arc::clone(&turns);
            let (mut rounds, seen_by, started) = (rounds.clone(), seen_by.clone(), started.clone());
            tasks.spawn(async move {
                let turn = turns.acquire_owned().await?;
                let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1");
                let mut watch = server.connect(true).await?.watch(&path).await?;
                drop(turn);
                started.send(()).await?;
                drop(started);
                while rounds.changed().await.is_ok() {
                    let text = name(*rounds.borrow_and_update());
                    watch.event(&text).await?;
                    seen_by.send(Instant::now())?;
                }
                Ok(())
            });
        }
        drop(started);
        for _ in 0..WATCHERS {
            begun.recv().await.context("a watcher could not begin")?;
        }
        Ok(Self { round, seen, tasks })
    }

    /// The time from before an object is created until a watcher has read it, for every event and watcher.
    pub(super) async fn measure(&mut self, server: &Server) -> Result<Vec<Figure>> {
        let mut connection = server.connect(true).await?;
        let mut latencies_us = Histogram::default();
        let cpu = server.cpu()?;
        for round in 1..=EVENTS {
            self.round.send(round)?;
            let began = Instant::now();
            let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            connection
                .send("POST", &path, Some(&config_map(&name(round))))
                .await?;
            for _ in 0..WATCHERS {
                let seen = tokio::time::timeout(EVENT_TIMEOUT, self.seen.recv());
                let seen = seen.await.context("a watcher saw nothing")?;
                let seen = seen.context("the watchers ended")?;
                let took = seen.saturating_duration_since(began);
                latencies_us.record(u64::try_from(took.as_micros())?);
            }
        }
        let cpu = server.cpu()?.saturating_sub(cpu);
        let ms = |share| latencies_us.quantile(share) as f64 / 1e3;
        let title = format!("an event to {WATCHERS} watchers");
        Ok(vec![
            Figure::of(format!("{title}, p50"), "ms", vec![ms(0.5)])?,
            Figure::of(format!("{title}, p99"), "ms", vec![ms(0.99)])?,
            Figure::of(
                format!("{title}, server's CPU each"),
                "us",
                vec![cpu.as_secs_f64() * 1e6 / (EVENTS * WATCHERS) as f64],
            )?,
        ])
    }

    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}
