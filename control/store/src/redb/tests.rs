use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::conformance;

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
