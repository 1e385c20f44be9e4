//! The watch cache alone: memory for many pods, lists, and one event to a thousand watchers.
//!
//! `cargo bench -p skep-apiserver --bench cache -- [pods]`
#![allow(clippy::unwrap_used, reason = "a bench ends where it fails")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde_json::json;
use skep_apiserver::cache::{Cache, Index, Options, WatchFrom, WatchItem, WatchRequest};
use skep_store::{Key, Op, Store, redb::RedbStore};

const WATCHERS: usize = 1000;
const EVENTS: usize = 200;
const PODS: &str = "/registry/core/pods/";

#[tokio::main]
async fn main() {
    let pods = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(50_000);
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(folder.path().join("store.redb")).unwrap());
    println!("pod: {} bytes", pod(0, 0).len());
    let started = Instant::now();
    let numbers = futures::stream::iter(0..pods);
    numbers
        .for_each_concurrent(256, |number| put(store.as_ref(), number, 0))
        .await;
    println!("{pods} creates in {:.1?}", started.elapsed());
    report_memory("store, before the cache");

    let started = Instant::now();
    let indexer = Arc::new(|_: &str, object: &serde_json::Value| {
        let mut index = Index::of_metadata(object);
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        index.fields.push(("spec.nodeName".into(), node.into()));
        index.fields.push(("status.phase".into(), "Running".into()));
        index
    });
    let cache = Cache::start(store.clone(), Options::new(indexer))
        .await
        .unwrap();
    println!("loaded in {:.1?}", started.elapsed());
    report_memory("with the cache");

    let started = Instant::now();
    let numbers = futures::stream::iter(0..pods);
    numbers
        .for_each_concurrent(256, |number| put(store.as_ref(), number, 1))
        .await;
    cache.wait_fresh(Duration::from_secs(60)).await.unwrap();
    println!("{pods} updates in {:.1?}", started.elapsed());
    report_memory("after updating every pod");

    lists(&cache);
    for field in [false, true] {
        fan_out(store.as_ref(), &cache, field).await;
    }
    report_memory("at the end");
}

fn lists(cache: &Cache) {
    let started = Instant::now();
    let (mut bytes, mut rounds) = (0, 0);
    while started.elapsed() < Duration::from_secs(1) {
        let list = cache.list(PODS, None, 0, |_| true);
        let mut joined = BytesMut::new();
        for entry in &list.entries {
            entry.body.write(0, &mut joined);
        }
        bytes += joined.len();
        rounds += 1;
    }
    let rate = bytes as f64 / started.elapsed().as_secs_f64() / 1e9;
    println!("{rounds} whole lists, {rate:.2} GB/s");
    let (mut count, started) = (0, Instant::now());
    while started.elapsed() < Duration::from_secs(1) {
        let selected = |entry: &skep_apiserver::cache::Entry| {
            entry.fields.get("spec.nodeName") == Some("node-7")
        };
        cache.list(PODS, None, 0, selected);
        count += 1;
    }
    println!("{count} selective lists/s");
}

/// With `field`, every watcher selects a node of its own, as kubelets do, and one of them hears of each event.
async fn fan_out(store: &RedbStore, cache: &Arc<Cache>, field: bool) {
    let (heard, mut latencies) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for watcher in 0..WATCHERS {
        let field = field.then(|| ("spec.nodeName".into(), format!("node-{watcher}")));
        let request = WatchRequest {
            prefix: PODS.into(),
            from: WatchFrom::Now,
            field,
        };
        let mut watch = cache.watch(request).unwrap();
        let heard = heard.clone();
        tasks.push(tokio::spawn(async move {
            while let Some(Ok(WatchItem::Event(event))) = watch.next().await {
                let frame = event.frame("json", || event.entry.bytes());
                let _ = heard.send((event.revision, frame.len(), Instant::now()));
            }
        }));
    }
    let each = if field { 1 } else { WATCHERS };
    let mut all = Vec::new();
    for number in 0..EVENTS {
        let asked = Instant::now();
        put(store, number, 2 + u32::from(field)).await;
        let committed = Instant::now();
        for _ in 0..each {
            let (_, _, at) = latencies.recv().await.unwrap();
            all.push(at.saturating_duration_since(asked.max(committed)));
        }
    }
    for task in tasks {
        task.abort();
    }
    all.sort();
    let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize];
    println!(
        "event to {each} of {WATCHERS} watchers after its commit: p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

async fn put(store: &RedbStore, number: usize, generation: u32) {
    let key: Key = format!("{PODS}namespace-{}/pod-{number:08}", number % 20).into();
    let put = Op::Put {
        key,
        value: pod(number, generation),
        ttl: None,
    };
    store.txn(vec![], vec![put]).await.unwrap();
}

/// About a kilobyte.
fn pod(number: usize, generation: u32) -> Bytes {
    let value = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number:08}"),
            "namespace": format!("namespace-{}", number % 20),
            "uid": format!("6b1c9c0e-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "labels": {"app": format!("app-{}", number % 100), "pod-template-hash": "6d4cf56db6", "generation": generation.to_string()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app-6d4cf56db6", "uid": "0c7c3b1a-0000-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "nodeName": format!("node-{}", number % 1000),
            "containers": [{"name": "web", "image": "registry.example/web:1.2.3", "ports": [{"containerPort": 8080, "protocol": "TCP"}], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "serviceAccountName": "default", "schedulerName": "default-scheduler",
        },
        "status": {"phase": "Running", "podIP": "10.244.1.7", "hostIP": "192.168.0.7", "startTime": "2026-11-23T10:00:01Z", "qosClass": "Burstable"},
    });
    value.to_string().into()
}

fn report_memory(when: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .and_then(|kb| kb.parse::<u64>().ok())
            .unwrap_or(0)
            / 1024
    };
    println!(
        "memory {when}: {} MiB (anonymous {} MiB)",
        line("VmRSS:"),
        line("RssAnon:")
    );
}
