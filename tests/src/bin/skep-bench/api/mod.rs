//! The API server alone, over TLS, 32 clients, objects of 1 KB, every acknowledged write on disk.
//!
//! `connection` is the client, `load` a round of requests, `watches` the fan-out, `growth` what more objects cost.

pub(crate) mod connection;
mod etcd;
mod growth;
mod load;
pub(crate) mod server;
mod watches;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use xtask::cluster::Store;

use self::connection::Connection;
use self::load::{Request, Samples, Until, load};
use self::server::Server;
use self::watches::Watchers;
use crate::Figure;

const ROUND: Until = Until::Elapsed(Duration::from_secs(2));
/// Objects in the namespace that is listed.
const LISTED: usize = 1000;
const PAYLOAD_BYTES: usize = 800;
/// Lists beside the creates, when those are measured with lists and watches beside them.
const LISTS_BESIDE_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn measure(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    // One thread: a second one would only wake up the first.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut figures = runtime.block_on(measure_requests(store, rounds))?;
    figures.extend(runtime.block_on(growth::measure(store))?);
    Ok(figures)
}

async fn measure_requests(store: Store, rounds: usize) -> Result<Vec<Figure>> {
    let server = Arc::new(Server::start(store)?);
    let memory = |when: &str| {
        let title = format!("memory of skep-control --roles api, {when}");
        Figure::of(title, "MiB", vec![server.memory_mib()?])
    };
    let mut figures = vec![memory("idle")?];
    let mut first = server.connect(true).await?;
    for name in ["bench", "listed"] {
        namespace(&mut first, name).await?;
    }
    for number in 0..LISTED {
        let path = "/api/v1/namespaces/listed/configmaps";
        first
            .send("POST", path, Some(&config_map(&format!("c{number}"))))
            .await?;
    }

    let names = Arc::new(AtomicUsize::new(0));
    let mut samples = Samples::default();
    let mut limits = Vec::new();
    let lists = || Some(Request::get("/api/v1/namespaces/listed/configmaps"));
    for _ in 0..rounds {
        let creates = load(&server, true, ROUND, creates(&names)).await?;
        samples.add("create", &creates);
        if let Some(endpoint) = server.etcd_endpoint() {
            limits.push(etcd::creates(&endpoint, &config_map("limit")).await?);
        }
        let gets = load(&server, true, ROUND, gets(names.load(Ordering::Relaxed))).await?;
        samples.add("get", &gets);
        for (secure, title) in [(true, "TLS"), (false, "plain")] {
            let outcome = load(&server, secure, ROUND, lists).await?;
            samples.add(&format!("list of {LISTED} over {title}"), &outcome);
        }
    }
    figures.extend(samples.figures()?);
    if !limits.is_empty() {
        figures.push(Figure::of("create by etcd alone", "requests/s", limits)?);
    }

    let mut watchers = Watchers::start(&server).await?;
    figures.extend(watchers.measure(&server).await?);
    figures.push(memory("after the load, with 1000 watchers")?);
    let mut beside = Samples::default();
    for _ in 0..rounds {
        beside.add(
            "create alone",
            &load(&server, true, ROUND, creates(&names)).await?,
        );
        let lister = tokio::spawn(list_steadily(Arc::clone(&server)));
        let outcome = load(&server, true, ROUND, creates(&names)).await?;
        lister.abort();
        beside.add("create beside 20 lists/s", &outcome);
    }
    watchers.stop().await;
    figures.extend(beside.figures()?);
    Ok(figures)
}

async fn list_steadily(server: Arc<Server>) -> Result<()> {
    let mut connection = server.connect(true).await?;
    let mut interval = tokio::time::interval(LISTS_BESIDE_INTERVAL);
    loop {
        interval.tick().await;
        let path = "/api/v1/namespaces/listed/configmaps";
        connection.send("GET", path, None).await?;
    }
}

const BENCH: &str = "/api/v1/namespaces/bench/configmaps";

fn creates(names: &Arc<AtomicUsize>) -> impl Fn() -> Option<Request> + Send + Sync + 'static {
    let next = Arc::clone(names);
    move || {
        let name = format!("o{}", next.fetch_add(1, Ordering::Relaxed));
        Some(Request::create(BENCH, config_map(&name)))
    }
}

fn gets(created: usize) -> impl Fn() -> Option<Request> + Send + Sync + 'static {
    let next = AtomicUsize::new(0);
    move || {
        // A prime step visits them out of order.
        let name = next.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919) % created.max(1);
        Some(Request::get(format!("{BENCH}/o{name}")))
    }
}

async fn namespace(connection: &mut Connection, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection
        .send(
            "POST",
            "/api/v1/namespaces",
            Some(object.to_string().as_bytes()),
        )
        .await?;
    Ok(())
}

/// 1 KB as it is stored.
fn config_map(name: &str) -> Vec<u8> {
    let payload = "x".repeat(PAYLOAD_BYTES);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"payload":"{payload}"}}}}"#
    )
    .into_bytes()
}
