//! Transactions per second by number of writers, and how fast ranges read, on every engine.
//!
//! `cargo bench -p skep-store --bench engines -- [seconds per figure]`. etcd takes part if `SKEP_BENCH_ETCD` names its endpoint.
#![allow(clippy::unwrap_used, reason = "a bench ends where it fails")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use skep_store::{
    Guard, Key, Op, RangeRequest, Store, TxnOutcome, etcd::EtcdStore, memory::MemoryStore,
    redb::RedbStore,
};

const VALUE_BYTES: usize = 1024;
const WRITERS: [usize; 4] = [1, 16, 32, 128];

#[tokio::main]
async fn main() {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(3.0);
    let run_for = Duration::from_secs_f64(seconds);
    println!(
        "{:8} {:>8} {:>10} {:>10} {:>10}",
        "engine", "writers", "creates/s", "p50", "p99"
    );
    measure("memory", Arc::new(MemoryStore::new()), run_for).await;
    let folder = tempfile::tempdir().unwrap();
    // Run it twice on one folder, killing the first, to see how long a large file takes to open.
    let kept = std::env::var_os("SKEP_BENCH_FOLDER").map(std::path::PathBuf::from);
    let path = kept.unwrap_or(folder.path().to_owned()).join("store.redb");
    let started = Instant::now();
    let store = RedbStore::open(&path).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    println!(
        "opening redb's file of {} MiB: {:.1?}",
        size >> 20,
        started.elapsed()
    );
    measure("redb", Arc::new(store), run_for).await;
    let size = std::fs::metadata(&path).unwrap().len();
    println!("redb's file: {} MiB", size >> 20);
    if let Ok(endpoint) = std::env::var("SKEP_BENCH_ETCD") {
        let endpoints = vec![endpoint];
        let options = skep_store::etcd::Options {
            endpoints,
            ..Default::default()
        };
        measure(
            "etcd",
            Arc::new(EtcdStore::connect(options).await.unwrap()),
            run_for,
        )
        .await;
    }
}

async fn measure(engine: &str, store: Arc<dyn Store>, run_for: Duration) {
    let mut last = String::new();
    for writers in WRITERS {
        last = format!("/bench/{}/{writers}/", std::process::id());
        creates(engine, store.clone(), writers, &last, run_for).await;
    }
    ranges(engine, store.as_ref(), &last).await;
}

async fn creates(
    engine: &str,
    store: Arc<dyn Store>,
    writers: usize,
    prefix: &str,
    run_for: Duration,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let cpu_before = cpu_time();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (store, stop, next) = (store.clone(), stop.clone(), next.clone());
            let prefix = prefix.to_owned();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    // Spread over the key space, as names with a random suffix are.
                    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let key: Key = format!("{prefix}{spread:016x}").into();
                    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
                    let asked = Instant::now();
                    let put = Op::Put {
                        key: key.clone(),
                        value,
                        ttl: None,
                    };
                    let outcome = store
                        .txn(vec![Guard::Missing(key)], vec![put])
                        .await
                        .unwrap();
                    assert!(matches!(outcome, TxnOutcome::Committed { .. }));
                    latencies.push(asked.elapsed());
                }
                latencies
            })
        })
        .collect();
    tokio::time::sleep(run_for).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
    latencies.sort();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    let (p50, p99) = (at(0.5), at(0.99));
    let count = latencies.len() as u32;
    let (all, writer) = cpu_time();
    let (all, writer) = (
        (all - cpu_before.0) / count,
        (writer - cpu_before.1) / count,
    );
    println!(
        "{engine:8} {writers:>8} {rate:>10.0} {p50:>10.1?} {p99:>10.1?} {all:>12.1?} {writer:>12.1?}"
    );
}

async fn ranges(engine: &str, store: &dyn Store, prefix: &str) {
    let started = Instant::now();
    let (mut bytes, mut count, mut start_after) = (0, 0, None);
    loop {
        let request = RangeRequest {
            prefix: prefix.into(),
            start_after,
            limit: 1000,
            revision: None,
        };
        let page = store.range(request).await.unwrap();
        start_after = page.entries.last().map(|entry| entry.key.clone());
        count += page.entries.len();
        bytes += page
            .entries
            .iter()
            .map(|entry| entry.value.len())
            .sum::<usize>();
        if !page.more {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e9;
    println!("{engine:8} range of {count} entries in {seconds:.2} s, {rate:.2} GB/s");
}

/// Of the whole process, and of the thread that writes redb's file.
fn cpu_time() -> (Duration, Duration) {
    let (mut all, mut writer) = (Duration::ZERO, Duration::ZERO);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let (name, fields) = stat.rsplit_once(')').unwrap();
        // Clock ticks, of which there are 100 in a second on every Linux: user and system.
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        let time = Duration::from_millis(ticks * 10);
        all += time;
        if name.ends_with("(store-writer") {
            writer += time;
        }
    }
    (all, writer)
}
