//! `kill -9` of the API server under writes, over and over, on the embedded store.
//!
//! Every round checks that each acknowledged write is there, that none is half there, and that a watch that goes on from
//! where it was sees every revision that was acknowledged, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use xtask::cluster::Store;

use crate::Figure;
use crate::api::connection::Connection;
use crate::api::server::Server;

const WRITERS: usize = 16;
const NAMESPACE: &str = "/api/v1/namespaces/default/configmaps";
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// What the server said it has.
#[derive(Clone, Copy)]
struct Acknowledged {
    writer: usize,
    number: u64,
    revision: u64,
}

pub(crate) fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(crash(rounds))
}

async fn crash(rounds: usize) -> Result<Vec<Figure>> {
    let mut server = Server::start(Store::Redb)?;
    let mut numbers: BTreeMap<usize, u64> = BTreeMap::new();
    let mut seen = resource_version(&list(&server).await?)?;
    let (mut writes, mut recoveries, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (sender, mut acknowledgements) = mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let connection = server.connect(true).await?;
            let from = numbers.get(&writer).copied().unwrap_or(0);
            let sender = sender.clone();
            // Ends with the server.
            tasks.spawn(async move { write_for_ever(connection, writer, from, &sender).await });
        }
        drop(sender);
        // Never at the same point twice.
        tokio::time::sleep(Duration::from_millis(50 + (round as u64 * 37) % 300)).await;
        server.kill()?;
        tasks.shutdown().await;
        let mut acknowledged: Vec<Acknowledged> = Vec::new();
        while let Ok(one) = acknowledgements.try_recv() {
            acknowledged.push(one);
        }

        let began = Instant::now();
        server.run()?;
        let found = list(&server).await?;
        recoveries.push(began.elapsed().as_secs_f64() * 1e3);
        let newest = resource_version(&found)?;
        for one in &acknowledged {
            let number = numbers.entry(one.writer).or_default();
            *number = one.number.max(*number);
        }
        check(round, &found, &mut numbers)?;
        let revisions = watch(&server, seen, newest).await?;
        for one in &acknowledged {
            ensure!(
                revisions.contains(&one.revision) && one.revision <= newest,
                "round {round}: the watch from {seen} did not see revision {} of writer {}",
                one.revision,
                one.writer
            );
        }
        seen = newest;
        writes.push(acknowledged.len() as f64);
        sizes.push(server.store_bytes()? as f64 / f64::from(1 << 20));
    }
    Ok(vec![
        Figure::of("acknowledged writes before a kill", "writes", writes)?,
        Figure::of("from start to the first list", "ms", recoveries)?,
        Figure::of("size of the store's file", "MiB", sizes)?,
    ])
}

/// Both values are always the same.
fn object(writer: usize, number: u64) -> Value {
    let padding = "x".repeat((number % 1500) as usize);
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("w{writer}")},
        "data": {"left": number.to_string(), "padding": padding, "right": number.to_string()},
    })
}

async fn write_for_ever(
    mut connection: Connection,
    writer: usize,
    from: u64,
    acknowledged: &mpsc::UnboundedSender<Acknowledged>,
) -> Result<()> {
    for number in from + 1.. {
        let body = object(writer, number).to_string();
        let path = format!("{NAMESPACE}/w{writer}");
        let (method, path) = match number {
            1 => ("POST", NAMESPACE),
            _ => ("PUT", path.as_str()),
        };
        let answer = connection.exchange(method, path, Some(body.as_bytes()));
        // The server is gone.
        let Ok(answer) = answer.await else { break };
        let revision = resource_version(&serde_json::from_slice(&answer)?)?;
        acknowledged.send(Acknowledged {
            writer,
            number,
            revision,
        })?;
    }
    Ok(())
}

async fn list(server: &Server) -> Result<Value> {
    let mut connection = server.connect(true).await?;
    let answer = connection.exchange("GET", NAMESPACE, None).await?;
    Ok(serde_json::from_slice(&answer)?)
}

fn resource_version(object: &Value) -> Result<u64> {
    let version = object["metadata"]["resourceVersion"].as_str();
    Ok(version.context("no resourceVersion")?.parse()?)
}

/// What was acknowledged is there, at most one write later; none is half there. Notes what is there now.
fn check(round: usize, found: &Value, numbers: &mut BTreeMap<usize, u64>) -> Result<()> {
    let items = found["items"].as_array().context("no list")?;
    let by_name: BTreeMap<&str, &Value> = items
        .iter()
        .filter_map(|item| Some((item["metadata"]["name"].as_str()?, &item["data"])))
        .collect();
    for writer in 0..WRITERS {
        let acknowledged = numbers.get(&writer).copied().unwrap_or(0);
        let data = by_name.get(format!("w{writer}").as_str());
        let there = match data {
            None => 0,
            Some(data) => {
                ensure!(
                    data["left"] == data["right"],
                    "round {round}: half a write of writer {writer}: {data}"
                );
                data["left"].as_str().context("no number")?.parse()?
            }
        };
        ensure!(
            (acknowledged..=acknowledged + 1).contains(&there),
            "round {round}: writer {writer} was told of {acknowledged}, and {there} is there"
        );
        numbers.insert(writer, there);
    }
    Ok(())
}

/// The revisions of the events after `from`, up to `to`.
async fn watch(server: &Server, from: u64, to: u64) -> Result<BTreeSet<u64>> {
    let mut revisions = BTreeSet::new();
    if from == to {
        return Ok(revisions);
    }
    let path = format!("{NAMESPACE}?watch=1&resourceVersion={from}");
    let mut watch = server.connect(true).await?.watch(&path).await?;
    let mut last = from;
    // The newest revision is the last write, which is to one of these objects.
    while last < to {
        let line = tokio::time::timeout(WATCH_TIMEOUT, watch.line()).await;
        let line = line.with_context(|| format!("the watch stands at {last}, before {to}"))??;
        let event: Value = serde_json::from_slice(&line)?;
        ensure!(
            event["type"] != "ERROR",
            "the watch from {from} failed: {event}"
        );
        let revision = resource_version(&event["object"])?;
        ensure!(revision > last, "revision {revision} came after {last}");
        last = revision;
        revisions.insert(revision);
    }
    Ok(revisions)
}
