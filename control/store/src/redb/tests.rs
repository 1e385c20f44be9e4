use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::conformance;

/// What goes wrong with the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Fault(Arc<AtomicU64>);

const BEFORE_COMMIT: u64 = 1;
const AFTER_COMMIT: u64 = 2;

impl Fault {
    fn set(&self, fault: u64) {
        self.0.store(fault, Ordering::SeqCst);
    }

    /// Once.
    fn strike(&self, at: u64) -> Result<(), redb::Error> {
        match self
            .0
            .compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst)
        {
            Ok(_) => Err(redb::Error::Io(io::Error::other("the disk is on fire"))),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn before_commit(&self) -> Result<(), redb::Error> {
        self.strike(BEFORE_COMMIT)
    }

    pub(super) fn after_commit(&self) -> Result<(), redb::Error> {
        self.strike(AFTER_COMMIT)
    }
}

#[tokio::test]
async fn an_error_of_the_disk_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default();
    let fault = options.fault.clone();
    let store = RedbStore::open_with(folder.path().join("store.redb"), options).unwrap();
    let from = commit(&store, vec![put("a", "1")]).await;
    let mut watch = store.watch("/", from).await.unwrap();
    let reopens = || store.metrics().unwrap().reopens.load(Ordering::Relaxed);
    for (fault_at, value) in [(BEFORE_COMMIT, "before"), (AFTER_COMMIT, "after")] {
        let before = reopens();
        fault.set(fault_at);
        let error = store.txn(vec![], vec![put("a", value)]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while reopens() == before {
            assert!(
                std::time::Instant::now() < deadline,
                "it is not opened again"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // The first failed commit is not there, the second is, and both were honestly unknown.
    assert_eq!(store.get("/k/a").await.unwrap().unwrap().value, "after");
    let last = commit(&store, vec![put("a", "2")]).await;
    let mut values = Vec::new();
    let mut seen = 0;
    while seen < last {
        let batch = watch.next().await.unwrap().unwrap();
        seen = batch.revision;
        for event in batch.events {
            let crate::Event::Put { entry, .. } = event else {
                panic!("{event:?}")
            };
            values.push(entry.value);
        }
    }
    assert_eq!(
        values,
        ["1", "after", "2"],
        "a running watch misses nothing"
    );
    assert_eq!(reopens(), 2);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn put(name: &str, value: impl Into<bytes::Bytes>) -> Op {
    Op::Put {
        key: format!("/k/{name}").into(),
        value: value.into(),
        ttl: None,
    }
}

async fn commit(store: &RedbStore, ops: Vec<Op>) -> Revision {
    match store.txn(vec![], ops).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

async fn all(store: &RedbStore) -> Vec<Entry> {
    let request = RangeRequest {
        prefix: "/".into(),
        ..Default::default()
    };
    store.range(request).await.unwrap().entries
}

#[tokio::test]
async fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("store.redb")).unwrap();
    conformance::check_all(Arc::new(store)).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]
    #[test]
    fn agrees_with_the_model(steps in conformance::steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let store = Arc::new(RedbStore::open(&path).unwrap());
        runtime().block_on(conformance::check_against_model(store, &steps, |store| {
            drop(store);
            Arc::new(RedbStore::open(&path).unwrap())
        }));
    }
}

#[tokio::test]
async fn says_why_it_cannot_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let open = |path: &Path| RedbStore::open(path).err().unwrap();
    let store = RedbStore::open(&path).unwrap();
    let error = open(&path);
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("store.redb is in use by another process"),
        "{error}"
    );
    drop(store);
    drop(RedbStore::open(&path).unwrap());

    std::fs::write(
        &path,
        b"not a database, but longer than a header would be".repeat(200),
    )
    .unwrap();
    let error = open(&path);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    assert!(
        error.to_string().contains("store.redb is damaged"),
        "{error}"
    );

    let error = open(&folder.path().join("no/such/store.redb"));
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");

    let newer = folder.path().join("newer.redb");
    let database = Database::create(&newer).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .insert(FORMAT, 99)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(&newer);
    assert!(
        matches!(error, OpenError::Format { found: 99, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = RedbStore::open(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let due = Op::Put {
        key: "/k/due".into(),
        value: "x".into(),
        ttl: Some(Duration::from_millis(300)),
    };
    let from = commit(&store, vec![put("a", "1"), due]).await;
    commit(&store, vec![put("a", "2")]).await;
    let newest = commit(&store, vec![put("b", "1")]).await;
    let before = all(&store).await;
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), newest);
    assert_eq!(all(&store).await, before);
    let mut watch = store.watch("/", from).await.unwrap();
    let mut seen = Vec::new();
    // The last is the expiry, due while the store was closed or now.
    while seen.len() < 5 {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .unwrap();
        seen.extend(
            batch
                .unwrap()
                .unwrap()
                .events
                .iter()
                .map(|e| (e.key().to_string(), e.revision())),
        );
    }
    let key = |name: &str, revision| (format!("/k/{name}"), revision);
    assert_eq!(
        seen,
        [
            key("a", from),
            key("due", from),
            key("a", from + 1),
            key("b", newest),
            key("due", newest + 1)
        ]
    );
}

/// Writes the same keys over and over, compacting behind: neither the file nor the log may grow for ever.
#[tokio::test]
async fn the_file_stays_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let mut sizes = Vec::new();
    for round in 0..40 {
        let writes = (0..200).map(|number| {
            let value = vec![round as u8; 1000];
            let ops = if number % 10 == 0 {
                vec![put(&format!("{round}-{number}"), value)]
            } else {
                vec![
                    put(&format!("{number}"), value),
                    Op::Delete {
                        key: format!("/k/{}-{number}", round - 1).into(),
                    },
                ]
            };
            commit(&store, ops)
        });
        futures::future::join_all(writes).await;
        let stale = (0..200).step_by(10).map(|number| Op::Delete {
            key: format!("/k/{}-{number}", round - 1).into(),
        });
        let newest = commit(&store, stale.collect()).await;
        store.compact(newest).await.unwrap();
        while store.shared.swept_to().unwrap() < newest {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        sizes.push(std::fs::metadata(&path).unwrap().len());
    }
    let log = store.shared.begin_read().unwrap().open_table(LOG).unwrap();
    let records = redb::ReadableTableMetadata::len(&log).unwrap();
    // 200 live keys, and what the last commit replaced.
    assert!(records < 300, "{records} records");
    assert!(sizes[39] <= sizes[9] * 2, "{sizes:?}");
    assert_eq!(all(&store).await.len(), 200);
}

#[tokio::test]
async fn an_empty_file_shrinks_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let key = |number: usize| Key::from(format!("/k/{number}"));
    for number in 0..100 {
        commit(&store, vec![put(&number.to_string(), vec![b'x'; 100_000])]).await;
    }
    // Every tenth stays, so that the room is scattered all over the file.
    let deletes = (0..100).filter(|number| number % 10 != 5);
    let deletes = deletes.map(|number| Op::Delete { key: key(number) });
    commit(&store, deletes.collect()).await;
    let newest = commit(&store, vec![put("end", "1")]).await;
    store.compact(newest).await.unwrap();
    while store.shared.swept_to().unwrap() < newest {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let before = all(&store).await;
    assert_eq!(before.len(), 11);
    drop(store);
    let size = || std::fs::metadata(&path).unwrap().len();
    let full = size();
    let options = || Options {
        shrink_above_bytes: 1 << 20,
        ..Options::default()
    };
    let store = RedbStore::open_with(&path, options()).unwrap();
    assert!(size() < full / 2, "{} of {full}", size());
    assert_eq!(all(&store).await, before);
    assert_eq!(store.revision().await.unwrap(), newest);
    commit(&store, vec![put("after", "1")]).await;
    drop(store);
    let store = RedbStore::open_with(&path, options()).unwrap();
    assert_eq!(all(&store).await.len(), 12);
}
