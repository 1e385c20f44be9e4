//! Kills a process in the middle of writing, over and over, and looks at what it left behind.
//!
//! The child is this test binary again. It prints every acknowledged write; what it printed must be there.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;

use super::*;
use bytes::Bytes;

use crate::{Event, Key};

const WRITERS: u64 = 16;
/// `SKEP_CRASH_ROUNDS=100` for the long run.
const ROUNDS: u32 = 20;

const FOLDER: &str = "SKEP_CRASH_CHILD_FOLDER";
const COMPACT_TO: &str = "SKEP_CRASH_CHILD_COMPACT_TO";

/// Not a test of its own: what the child runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let compact_to: Revision = std::env::var(COMPACT_TO).unwrap().parse().unwrap();
    let store = Arc::new(RedbStore::open(Path::new(&folder).join("store.redb")).unwrap());
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(
            async move { write_for_ever(&store, writer).await },
        ));
    }
    store.compact(compact_to).await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
}

fn keys(writer: u64) -> [Key; 2] {
    ["left", "right"].map(|side| format!("/crash/{writer}/{side}").into())
}

fn number_of(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value[..20])
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Both keys always hold the same number; a third key comes and goes, and another expires.
async fn write_for_ever(store: &RedbStore, writer: u64) {
    let [left, right] = keys(writer);
    let found = store.get(&left).await.unwrap();
    let mut number = found.as_ref().map_or(0, number_of);
    let mut guard = found.map_or(Guard::Missing(left.clone()), |entry| {
        Guard::Unchanged(left.clone(), entry.mod_revision)
    });
    loop {
        number += 1;
        let value = Bytes::from(format!(
            "{number:20}{}",
            "x".repeat((number % 1500) as usize)
        ));
        let extra: Key = format!("/crash/{writer}/extra").into();
        let ops = vec![
            Op::Put {
                key: left.clone(),
                value: value.clone(),
                ttl: None,
            },
            match number % 2 {
                0 => Op::Delete { key: extra },
                _ => Op::Put {
                    key: extra,
                    value: value.clone(),
                    ttl: Some(Duration::from_millis(5)),
                },
            },
            Op::Put {
                key: right.clone(),
                value,
                ttl: None,
            },
        ];
        let outcome = store.txn(vec![guard], ops).await.unwrap();
        let TxnOutcome::Committed { revision } = outcome else {
            panic!("{outcome:?}")
        };
        writeln!(std::io::stdout().lock(), "ACK {writer} {number} {revision}").unwrap();
        guard = Guard::Unchanged(left.clone(), revision);
    }
}

/// What the child acknowledged by the time it was killed: by writer its last number, and the last revision.
fn run_child(
    folder: &Path,
    compact_to: Revision,
    run_for: Duration,
) -> (BTreeMap<u64, u64>, Revision) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "redb::crash::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, folder)
        .env(COMPACT_TO, compact_to.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut numbers, mut newest) = (BTreeMap::new(), 0);
    let mut kill_at = None;
    let mut killed = false;
    // After the kill the pipe still gives what was acknowledged before.
    for line in lines {
        let line = line.unwrap();
        // The test harness's own words may stand before the first.
        let Some(at) = line.find("ACK ") else {
            continue;
        };
        let fields: Vec<u64> = line[at + 4..]
            .split(' ')
            .filter_map(|f| f.parse().ok())
            .collect();
        let [writer, number, revision] = fields[..] else {
            continue;
        };
        numbers.insert(writer, number);
        newest = newest.max(revision);
        let kill_at = *kill_at.get_or_insert_with(|| Instant::now() + run_for);
        if !killed && Instant::now() >= kill_at {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed, "the child ended by itself: {status}");
    (numbers, newest)
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_there() {
    let rounds =
        std::env::var("SKEP_CRASH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    // What a client knew before the crash, and as of when.
    let (mut image, mut seen): (BTreeMap<Key, Entry>, Revision) = (BTreeMap::new(), 0);
    let mut total = 0;
    for round in 0..rounds {
        let run_for = Duration::from_millis(20 + u64::from(round * 37 % 150));
        let (numbers, acknowledged) = run_child(folder.path(), seen, run_for);
        let store = RedbStore::open(&path).unwrap();
        let newest = store.revision().await.unwrap();
        assert!(
            newest >= acknowledged,
            "round {round}: {newest} < {acknowledged}"
        );
        for (writer, number) in numbers {
            let [left, right] = keys(writer);
            let left = store.get(&left).await.unwrap().unwrap();
            let right = store.get(&right).await.unwrap().unwrap();
            let found = number_of(&left);
            assert!(
                (number..=number + 1).contains(&found),
                "round {round}: {found}, not {number}"
            );
            assert_eq!(left.value, right.value);
            assert_eq!(left.mod_revision, right.mod_revision);
        }
        let mut watch = store.watch("/", seen + 1).await.unwrap();
        let range = store.range(RangeRequest {
            prefix: "/".into(),
            ..Default::default()
        });
        let range = range.await.unwrap();
        total += range.revision - seen;
        while seen < range.revision {
            let batch = watch.next().await.unwrap().unwrap();
            for event in batch
                .events
                .into_iter()
                .filter(|event| event.revision() <= range.revision)
            {
                assert!(
                    [seen, seen + 1].contains(&event.revision()),
                    "a gap after {seen}"
                );
                seen = event.revision();
                match event {
                    Event::Put { entry, previous } => {
                        assert_eq!(image.insert(entry.key.clone(), entry), previous);
                    }
                    Event::Delete { key, previous, .. } => {
                        assert_eq!(image.remove(&key), Some(previous));
                    }
                }
            }
        }
        assert_eq!(range.entries, image.values().cloned().collect::<Vec<_>>());
    }
    println!("{rounds} rounds, {total} commits");
}
