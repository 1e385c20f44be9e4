use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use futures::{FutureExt, StreamExt};
use serde_json::json;
use skep_store::{Guard, Op, TxnOutcome, memory::MemoryStore};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);
const PODS: &str = "/registry/core/pods/";

fn indexer() -> Arc<dyn Indexer> {
    Arc::new(|_: &str, object: &Value| {
        let mut index = Index::of_metadata(object);
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        index.fields.push(("spec.nodeName".into(), node.into()));
        index
    })
}

fn pod(name: &str, app: &str, node: &str) -> Bytes {
    let metadata = json!({"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": app}});
    json!({"metadata": metadata, "spec": {"nodeName": node}})
        .to_string()
        .into()
}

fn key(name: &str) -> Key {
    format!("{PODS}default/{name}").into()
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store.txn(Vec::<Guard>::new(), ops).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

fn put(key: Key, value: Bytes) -> Op {
    Op::Put {
        key,
        value,
        ttl: None,
    }
}

struct Fixture {
    store: Arc<MemoryStore>,
    cache: Arc<Cache>,
}

impl Fixture {
    async fn new(tune: impl FnOnce(&mut Options)) -> Self {
        let store = Arc::new(MemoryStore::new());
        let mut options = Options::new(indexer());
        tune(&mut options);
        let cache = Cache::start(store.clone(), options).await.unwrap();
        Self { store, cache }
    }

    async fn put(&self, name: &str, app: &str, node: &str) -> Revision {
        self.commit(vec![put(key(name), pod(name, app, node))])
            .await
    }

    async fn delete(&self, name: &str) -> Revision {
        self.commit(vec![Op::Delete { key: key(name) }]).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Revision {
        let revision = commit(self.store.as_ref(), ops).await;
        self.cache.wait_until(revision, TIMEOUT).await.unwrap();
        revision
    }

    fn watch(&self, from: WatchFrom) -> Watch {
        self.cache
            .watch(WatchRequest {
                prefix: PODS.into(),
                from,
                field: None,
            })
            .unwrap()
    }
}

fn names(entries: &[Arc<Entry>]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| entry.key.rsplit('/').next().unwrap())
        .collect()
}

/// What waits in the watch now: type, name, revision.
fn waiting(watch: &mut Watch) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(item) = watch.next().now_or_never() {
        seen.push(match item {
            Some(Ok(WatchItem::Initial(entry))) => format!("initial {}", names(&[entry])[0]),
            Some(Ok(WatchItem::InitialEnd(revision))) => format!("end {revision}"),
            Some(Ok(WatchItem::Event(event))) => {
                let object: Value = serde_json::from_slice(&event.entry.bytes()).unwrap();
                assert_eq!(
                    object["metadata"]["resourceVersion"],
                    event.revision.to_string()
                );
                format!(
                    "{} {} {}",
                    event.kind.as_str(),
                    names(std::slice::from_ref(&event.entry))[0],
                    event.revision
                )
            }
            Some(Err(error)) => error.to_string(),
            None => {
                seen.push("end of stream".into());
                break;
            }
        });
    }
    seen
}

#[tokio::test]
async fn reads_show_own_writes() {
    let fixture = Fixture::new(|_| {}).await;
    let first = fixture.put("a", "web", "n1").await;
    let entry = fixture.cache.get(&key("a")).unwrap();
    assert_eq!((entry.revision, entry.create_revision), (first, first));
    assert_eq!(entry.uid.as_ref(), "uid-a");
    assert_eq!(entry.labels.get("app"), Some("web"));
    assert_eq!(entry.fields.get("spec.nodeName"), Some("n1"));
    let object: Value = serde_json::from_slice(&entry.bytes()).unwrap();
    assert_eq!(object["metadata"]["resourceVersion"], first.to_string());
    fixture.delete("a").await;
    assert!(fixture.cache.get(&key("a")).is_none());
    assert_eq!(
        fixture.cache.wait_fresh(TIMEOUT).await.unwrap(),
        fixture.cache.revision()
    );
}

#[tokio::test]
async fn loads_what_was_there() {
    let store = Arc::new(MemoryStore::new());
    for number in 0..follow::LOAD_PAGE * 2 + 7 {
        commit(
            store.as_ref(),
            vec![put(key(&format!("p{number:05}")), pod("p", "web", ""))],
        )
        .await;
    }
    commit(
        store.as_ref(),
        vec![put(
            format!("{PODS}default/broken").as_str().into(),
            "{".into(),
        )],
    )
    .await;
    let cache = Cache::start(store.clone(), Options::new(indexer()))
        .await
        .unwrap();
    assert_eq!(cache.snapshot(PODS).len(), follow::LOAD_PAGE * 2 + 7);
    assert_eq!(cache.revision(), store.revision().await.unwrap());
    assert_eq!(cache.metrics().unreadable_values.load(Relaxed), 1);
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let fixture = Fixture::new(|_| {}).await;
    for name in ["a", "b", "c", "d", "e"] {
        fixture
            .put(name, if name == "d" { "db" } else { "web" }, "")
            .await;
    }
    let web = |entry: &Entry| entry.labels.get("app") == Some("web");
    let page = fixture.cache.list(PODS, None, 2, |_| true);
    assert_eq!(
        (names(&page.entries), page.more, page.remaining),
        (vec!["a", "b"], true, 3)
    );
    fixture.delete("c").await;
    fixture.put("c2", "web", "").await;
    fixture.put("e", "db", "").await;
    let then = fixture
        .cache
        .snapshot_at(PODS, page.revision)
        .await
        .unwrap();
    let rest = then.list(page.next().map(AsRef::as_ref), 2, |_| true);
    assert_eq!(
        (names(&rest.entries), rest.more, rest.remaining),
        (vec!["c", "d"], true, 1)
    );
    let last = then.list(rest.next().map(AsRef::as_ref), 2, |_| true);
    assert_eq!(
        (names(&last.entries), last.more, last.remaining),
        (vec!["e"], false, 0)
    );
    assert!(web(&last.entries[0]), "as it was then");
    let selected = then.list(None, 4, web);
    assert_eq!(
        (names(&selected.entries), selected.more),
        (vec!["a", "b", "c", "e"], false)
    );
    assert_eq!(
        fixture
            .cache
            .list("/registry/core/pods/other/", None, 0, |_| true)
            .entries
            .len(),
        0
    );
    assert_eq!(
        fixture
            .cache
            .list("/registry/", None, 0, |_| true)
            .entries
            .len(),
        5
    );
    let future = fixture
        .cache
        .snapshot_at(PODS, 1 << 40)
        .await
        .err()
        .unwrap();
    assert!(matches!(future, CacheError::Future { .. }), "{future}");
}

#[tokio::test]
async fn an_old_snapshot_comes_from_the_store_once_history_is_gone() {
    let fixture = Fixture::new(|options| options.history_bytes = 1).await;
    fixture.put("a", "web", "").await;
    let then = fixture.put("b", "web", "").await;
    fixture.delete("a").await;
    let snapshot = fixture.cache.snapshot_at(PODS, then).await.unwrap();
    assert_eq!(names(&snapshot.list(None, 0, |_| true).entries), ["a", "b"]);
    fixture
        .store
        .compact(fixture.cache.revision())
        .await
        .unwrap();
    let error = fixture.cache.snapshot_at(PODS, then).await.err().unwrap();
    assert!(
        matches!(error, CacheError::Gone(Gone::TooOld { .. })),
        "{error}"
    );
    let request = WatchRequest {
        prefix: PODS.into(),
        from: WatchFrom::After(1),
        field: None,
    };
    assert!(matches!(
        fixture.cache.watch(request),
        Err(Gone::TooOld { requested: 1, .. })
    ));
}

#[tokio::test]
async fn watches_start_anywhere() {
    let fixture = Fixture::new(|_| {}).await;
    fixture.put("a", "web", "").await;
    let two = fixture.put("b", "web", "").await;
    let mut initial = fixture.watch(WatchFrom::InitialEvents);
    let mut after_one = fixture.watch(WatchFrom::After(1));
    let mut now = fixture.watch(WatchFrom::Now);
    assert_eq!(now.progress(), Some(two));
    assert_eq!(after_one.progress(), None, "it has events to read first");
    fixture.put("a", "db", "").await;
    fixture.delete("b").await;
    assert_eq!(
        waiting(&mut initial),
        [
            "initial a",
            "initial b",
            "end 2",
            "MODIFIED a 3",
            "DELETED b 4"
        ]
    );
    assert_eq!(
        waiting(&mut after_one),
        ["ADDED b 2", "MODIFIED a 3", "DELETED b 4"]
    );
    assert_eq!(waiting(&mut now), ["MODIFIED a 3", "DELETED b 4"]);
    assert_eq!(now.progress(), Some(4));
}

#[tokio::test]
async fn watches_select_by_namespace_name_and_field() {
    let fixture = Fixture::new(|_| {}).await;
    let watch = |prefix: &str, field: Option<&str>| {
        let field = field.map(|node| ("spec.nodeName".into(), node.into()));
        let from = WatchFrom::After(0);
        fixture
            .cache
            .watch(WatchRequest {
                prefix: prefix.into(),
                from,
                field,
            })
            .unwrap()
    };
    let watches = || {
        vec![
            watch("/registry/core/pods/default/", None),
            watch("/registry/core/pods/default/a", None),
            watch("/registry/core/pods/defau", None),
            watch(PODS, Some("n1")),
            watch(PODS, Some("n2")),
            watch("/registry/core/secrets/", None),
        ]
    };
    let mut live = watches();
    fixture.put("a", "web", "n1").await;
    fixture.put("ab", "web", "").await;
    fixture.put("a", "web", "n2").await;
    let mut replayed = watches();
    for watches in [&mut live, &mut replayed] {
        let seen: Vec<_> = watches.iter_mut().map(waiting).collect();
        assert_eq!(seen[0], ["ADDED a 1", "ADDED ab 2", "MODIFIED a 3"]);
        assert_eq!(seen[1], ["ADDED a 1", "MODIFIED a 3"]);
        assert!(seen[2].is_empty());
        assert_eq!(
            seen[3],
            ["ADDED a 1", "MODIFIED a 3"],
            "it hears that the pod left"
        );
        assert_eq!(seen[4], ["MODIFIED a 3"]);
        assert!(seen[5].is_empty());
    }
    drop((live, replayed));
    assert!(fixture.cache.inner.watchers.lock().is_empty());
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_nobody_else() {
    let fixture = Fixture::new(|options| options.watch_queue_events = 3).await;
    let mut slow = fixture.watch(WatchFrom::Now);
    let mut quick = fixture.watch(WatchFrom::Now);
    for number in 0..5 {
        fixture.put(&format!("p{number}"), "web", "").await;
        assert_eq!(waiting(&mut quick).len(), 1);
    }
    let seen = waiting(&mut slow);
    assert_eq!(
        seen[2..],
        ["ADDED p2 3", "the watcher fell behind", "end of stream"]
    );
    assert_eq!(slow.progress(), None);
}

#[tokio::test]
async fn a_frame_is_encoded_once() {
    let fixture = Fixture::new(|_| {}).await;
    let mut watches = [fixture.watch(WatchFrom::Now), fixture.watch(WatchFrom::Now)];
    fixture.put("a", "web", "").await;
    let mut encoded = 0;
    for watch in &mut watches {
        let Some(Ok(WatchItem::Event(event))) = watch.next().await else {
            panic!()
        };
        for encoding in ["json", "table"] {
            let frame = event.frame(encoding, || {
                encoded += 1;
                encoding.into()
            });
            assert_eq!(frame, encoding);
        }
        assert!(event.left().is_none());
    }
    assert_eq!(encoded, 2);
}

#[tokio::test]
async fn an_indexer_may_panic() {
    let fixture = Fixture::new(|options| {
        let inner = indexer();
        options.indexer = Arc::new(move |key: &str, object: &Value| {
            assert!(!key.ends_with("bad"), "as this test wants it");
            inner.index(key, object)
        });
    })
    .await;
    fixture.put("bad", "web", "n1").await;
    fixture.put("good", "web", "n1").await;
    let bad = fixture.cache.get(&key("bad")).unwrap();
    assert_eq!(
        (bad.labels.get("app"), bad.fields.get("spec.nodeName")),
        (Some("web"), None)
    );
    assert!(
        fixture
            .cache
            .get(&key("good"))
            .unwrap()
            .fields
            .get("spec.nodeName")
            .is_some()
    );
}

#[tokio::test]
async fn reindex_learns_new_fields() {
    let known = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fixture = Fixture::new(|options| {
        let (inner, known) = (indexer(), known.clone());
        options.indexer = Arc::new(move |key: &str, object: &Value| match known.load(Relaxed) {
            true => inner.index(key, object),
            false => Index::default(),
        });
    })
    .await;
    fixture.put("a", "web", "n1").await;
    known.store(true, Relaxed);
    fixture.cache.reindex(PODS);
    assert_eq!(
        fixture
            .cache
            .get(&key("a"))
            .unwrap()
            .fields
            .get("spec.nodeName"),
        Some("n1")
    );
}

#[tokio::test]
async fn history_is_bounded_and_quiet_resources_keep_theirs() {
    let fixture = Fixture::new(|options| options.history_bytes = 20_000).await;
    let quiet: Key = "/registry/core/nodes/n1".into();
    let first = fixture
        .commit(vec![put(quiet, pod("n1", "node", ""))])
        .await;
    for number in 0..200 {
        fixture.put("noisy", "web", &number.to_string()).await;
    }
    let request = |prefix: &str| WatchRequest {
        prefix: prefix.into(),
        from: WatchFrom::After(first - 1),
        field: None,
    };
    assert!(fixture.cache.watch(request(PODS)).is_err());
    let mut nodes = fixture
        .cache
        .watch(request("/registry/core/nodes/"))
        .unwrap();
    assert_eq!(waiting(&mut nodes), ["ADDED n1 1"]);
    assert!(fixture.cache.inner.state.read().history_bytes <= 20_000);
}

#[tokio::test]
async fn a_watch_resumes_after_a_restart() {
    let fixture = Fixture::new(|_| {}).await;
    for node in 1..=20 {
        fixture.put("a", "web", &node.to_string()).await;
    }
    let start = |history_revisions| {
        let options = Options {
            history_revisions,
            ..Options::new(indexer())
        };
        Cache::start(fixture.store.clone(), options)
    };
    let request = |after| WatchRequest {
        prefix: PODS.into(),
        from: WatchFrom::After(after),
        field: None,
    };
    let restarted = start(10).await.unwrap();
    let mut watch = restarted.watch(request(18)).unwrap();
    assert_eq!(waiting(&mut watch), ["MODIFIED a 19", "MODIFIED a 20"]);
    assert!(restarted.watch(request(10)).is_ok());
    let too_old = restarted.watch(request(9)).err().unwrap();
    assert_eq!(
        too_old,
        Gone::TooOld {
            requested: 9,
            oldest: 10
        }
    );
    // What is compacted cannot be read into the history.
    fixture.store.compact(15).await.unwrap();
    let restarted = start(10).await.unwrap();
    assert!(restarted.watch(request(15)).is_ok() && restarted.watch(request(14)).is_err());
    fixture.store.compact(20).await.unwrap();
    let restarted = start(10).await.unwrap();
    assert!(restarted.watch(request(20)).is_ok() && restarted.watch(request(19)).is_err());
}

#[tokio::test]
async fn the_store_is_compacted() {
    let fixture = Fixture::new(|options| {
        let age = Duration::from_millis(60);
        options.keep = Some(Keep {
            age,
            revisions: 1000,
        });
    })
    .await;
    let first = fixture.put("a", "web", "").await;
    let second = fixture.put("a", "db", "").await;
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    let read = || async {
        let request = RangeRequest {
            prefix: PODS.into(),
            revision: Some(first),
            ..Default::default()
        };
        fixture.store.range(request).await
    };
    while read().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = read().await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted { oldest, .. } if oldest == second),
        "{error}"
    );
    assert!(fixture.cache.get(&key("a")).is_some());
    let metrics = fixture.cache.metrics();
    assert_eq!(metrics.compacted_revision.load(Relaxed), second);
}

/// A store whose watch can be cut.
struct Cuttable {
    store: MemoryStore,
    cut: tokio::sync::watch::Sender<bool>,
}

#[async_trait::async_trait]
impl Store for Cuttable {
    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        self.store.txn(guards, ops).await
    }
    async fn get(&self, key: &str) -> Result<Option<skep_store::Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn range(&self, request: RangeRequest) -> Result<skep_store::RangeResult, StoreError> {
        self.store.range(request).await
    }
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<skep_store::WatchStream, StoreError> {
        let mut cut = self.cut.subscribe();
        let is_cut = || StoreError::Unavailable {
            doing: "watching",
            source: "cut".into(),
        };
        if *cut.borrow() {
            return Err(is_cut());
        }
        let whole = self.store.watch(prefix, from).await?;
        let end = async move {
            let _ = cut.wait_for(|cut| *cut).await;
        };
        let error = futures::stream::once(async move { Err(is_cut()) });
        Ok(whole.take_until(end).chain(error).boxed())
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }
    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

#[tokio::test]
async fn a_broken_watch_is_resumed_or_everything_is_loaded_again() {
    let cut = tokio::sync::watch::Sender::new(false);
    let store = Arc::new(Cuttable {
        store: MemoryStore::new(),
        cut,
    });
    let cache = Cache::start(store.clone(), Options::new(indexer()))
        .await
        .unwrap();
    let put_a = |node: &str| vec![put(key("a"), pod("a", "web", node))];
    let request = WatchRequest {
        prefix: PODS.into(),
        from: WatchFrom::Now,
        field: None,
    };
    let mut watch = cache.watch(request.clone()).unwrap();
    let one = commit(store.as_ref(), put_a("1")).await;
    cache.wait_until(one, TIMEOUT).await.unwrap();

    store.cut.send_replace(true);
    let two = commit(store.as_ref(), put_a("2")).await;
    let error = cache
        .wait_fresh(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(
        matches!(error, CacheError::Lagging { wanted, .. } if wanted == two),
        "{error}"
    );
    store.cut.send_replace(false);
    cache.wait_fresh(TIMEOUT).await.unwrap();
    assert_eq!(
        waiting(&mut watch),
        ["ADDED a 1", "MODIFIED a 2"],
        "without a gap"
    );
    assert!(cache.metrics().watch_restarts.load(Relaxed) > 0);

    store.cut.send_replace(true);
    commit(store.as_ref(), vec![Op::Delete { key: key("a") }]).await;
    let newest = commit(store.as_ref(), vec![put(key("b"), pod("b", "web", ""))]).await;
    store.compact(newest).await.unwrap();
    store.cut.send_replace(false);
    cache.wait_fresh(TIMEOUT).await.unwrap();
    assert_eq!(
        waiting(&mut watch),
        ["the watcher fell behind", "end of stream"]
    );
    assert_eq!(cache.metrics().relists.load(Relaxed), 1);
    assert!(cache.get(&key("a")).is_none() && cache.get(&key("b")).is_some());
    let mut watch = cache.watch(request).unwrap();
    commit(store.as_ref(), vec![Op::Delete { key: key("b") }]).await;
    cache.wait_fresh(TIMEOUT).await.unwrap();
    assert_eq!(waiting(&mut watch), ["DELETED b 5"]);
}

/// The invariant that every client relies on: a list and the watch after it give the same as a later list.
#[tokio::test]
async fn a_list_and_its_watch_replay_to_the_next_list() {
    let fixture = Fixture::new(|_| {}).await;
    let writer = {
        let store = fixture.store.clone();
        tokio::spawn(async move {
            for step in 0..2000u32 {
                let name = format!("p{}", step.wrapping_mul(2_654_435_761) % 97);
                let op = if step % 5 == 0 {
                    Op::Delete { key: key(&name) }
                } else {
                    put(key(&name), pod(&name, "web", &step.to_string()))
                };
                commit(store.as_ref(), vec![op]).await;
                if step % 50 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    let mut lists = Vec::new();
    while !writer.is_finished() {
        let list = fixture.cache.list(PODS, None, 0, |_| true);
        let watch = fixture
            .cache
            .watch(WatchRequest {
                prefix: PODS.into(),
                from: WatchFrom::After(list.revision),
                field: None,
            })
            .unwrap();
        lists.push((list, watch));
        tokio::task::yield_now().await;
    }
    fixture.cache.wait_fresh(TIMEOUT).await.unwrap();
    let end: BTreeMap<_, _> = fixture
        .cache
        .snapshot(PODS)
        .iter()
        .map(|e| (e.key.clone(), e.bytes()))
        .collect();
    assert!(lists.len() > 3);
    for (list, mut watch) in lists {
        let mut model: BTreeMap<_, _> = list
            .entries
            .iter()
            .map(|e| (e.key.clone(), e.bytes()))
            .collect();
        let mut last = list.revision;
        while let Some(item) = watch.next().now_or_never() {
            let event = match item {
                Some(Ok(WatchItem::Event(event))) => event,
                // Its queue was full: it must start over, and says so.
                Some(Err(Gone::FellBehind)) => break,
                other => panic!("{other:?}"),
            };
            assert!(event.revision > last);
            last = event.revision;
            match event.kind {
                EventKind::Deleted => model.remove(&event.entry.key),
                _ => model.insert(event.entry.key.clone(), event.entry.bytes()),
            };
        }
        if watch.progress().is_some() {
            assert_eq!(model, end);
        }
    }
}
