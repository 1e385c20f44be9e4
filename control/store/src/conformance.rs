//! What every engine must do, whatever it is made of. Each case works under a prefix of its own, so that one store (and
//! one etcd) serves them all.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;

use crate::{
    Entry, Event, Guard, Key, MAX_VALUE_BYTES, Op, RangeRequest, RangeResult, Revision, Store,
    StoreError, TxnOutcome, WatchStream,
};

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn check_all(store: Arc<dyn Store>) {
    let store = store.as_ref();
    guards_decide(store).await;
    a_deleted_key_starts_over(store).await;
    a_transaction_has_one_revision(store).await;
    ranges_page_and_remember(store).await;
    watches_replay_and_follow(store).await;
    a_watch_waits_for_its_revision(store).await;
    values_have_a_limit(store).await;
    increments_are_not_lost(store).await;
    a_list_and_its_watch_replay_to_the_next_list(store).await;
    keys_expire(store).await;
    // Last: it forgets the history of all others.
    compaction_forgets(store).await;
}

struct Under<'a> {
    store: &'a dyn Store,
    prefix: &'static str,
}

impl Under<'_> {
    fn key(&self, name: &str) -> Key {
        format!("{}{name}", self.prefix).into()
    }

    fn put(&self, name: &str, value: &'static str) -> Op {
        Op::Put {
            key: self.key(name),
            value: Bytes::from_static(value.as_bytes()),
            ttl: None,
        }
    }

    fn delete(&self, name: &str) -> Op {
        Op::Delete {
            key: self.key(name),
        }
    }

    async fn commit(&self, ops: Vec<Op>) -> Revision {
        committed(self.store.txn(vec![], ops).await.unwrap())
    }

    async fn get(&self, name: &str) -> Option<Entry> {
        self.store.get(&self.key(name)).await.unwrap()
    }

    async fn range(&self, revision: Option<Revision>) -> RangeResult {
        let request = RangeRequest {
            prefix: self.prefix.into(),
            revision,
            ..Default::default()
        };
        self.store.range(request).await.unwrap()
    }

    async fn names(&self, revision: Option<Revision>) -> Vec<String> {
        let entries = self.range(revision).await.entries;
        entries
            .iter()
            .map(|entry| entry.key[self.prefix.len()..].to_owned())
            .collect()
    }

    async fn watch(&self, from: Revision) -> Watched {
        Watched {
            stream: self.store.watch(self.prefix, from).await.unwrap(),
            seen: 0,
        }
    }
}

fn committed(outcome: TxnOutcome) -> Revision {
    match outcome {
        TxnOutcome::Committed { revision } => revision,
        conflict @ TxnOutcome::Conflict { .. } => panic!("{conflict:?}"),
    }
}

struct Watched {
    stream: WatchStream,
    seen: Revision,
}

impl Watched {
    /// Everything up to `revision`, checking that batches are in order.
    async fn until(&mut self, revision: Revision) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        while self.seen < revision {
            let batch = tokio::time::timeout(DEADLINE, self.stream.next()).await;
            let batch = batch.unwrap_or_else(|_| panic!("saw {events:?}, not {revision} in time"));
            let batch = batch.expect("the watch ended").expect("the watch failed");
            for event in &batch.events {
                assert!(event.revision() > self.seen && event.revision() <= batch.revision);
            }
            assert!(batch.events.is_sorted_by_key(Event::revision));
            assert!(batch.revision >= self.seen);
            self.seen = batch.revision;
            events.extend(batch.events);
        }
        events
    }
}

async fn guards_decide(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/guards/",
    };
    let missing = |name| Guard::Missing(under.key(name));
    let first = store
        .txn(vec![missing("a")], vec![under.put("a", "1")])
        .await
        .unwrap();
    let first = committed(first);
    assert!(first > 0);
    let entry = under.get("a").await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (first, first));
    assert_eq!(entry.value, "1");

    let again = store
        .txn(vec![missing("b"), missing("a")], vec![under.put("b", "1")])
        .await;
    let conflict = TxnOutcome::Conflict {
        guard: 1,
        current: Some(entry.clone()),
    };
    assert_eq!(again.unwrap(), conflict);
    assert_eq!(under.get("b").await, None, "nothing of it is applied");

    let unchanged = |revision| Guard::Unchanged(under.key("a"), revision);
    let second = store
        .txn(vec![unchanged(first)], vec![under.put("a", "2")])
        .await
        .unwrap();
    let second = committed(second);
    assert!(second > first);
    let entry = under.get("a").await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
    let stale = store
        .txn(vec![unchanged(first)], vec![under.delete("a")])
        .await
        .unwrap();
    assert_eq!(
        stale,
        TxnOutcome::Conflict {
            guard: 0,
            current: Some(entry)
        }
    );
    let gone = vec![Guard::Unchanged(under.key("gone"), 1)];
    let gone = store.txn(gone, vec![under.put("gone", "1")]).await.unwrap();
    assert_eq!(
        gone,
        TxnOutcome::Conflict {
            guard: 0,
            current: None
        }
    );
    let both = vec![unchanged(second), missing("b")];
    committed(store.txn(both, vec![under.put("b", "1")]).await.unwrap());
}

async fn a_deleted_key_starts_over(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/deleted/",
    };
    let first = under.commit(vec![under.put("a", "1")]).await;
    let deleted = under.commit(vec![under.delete("a")]).await;
    assert!(deleted > first);
    assert_eq!(under.get("a").await, None);
    assert_eq!(
        under.commit(vec![under.delete("a")]).await,
        deleted,
        "nothing changed"
    );
    assert_eq!(under.commit(vec![]).await, deleted);
    assert_eq!(store.revision().await.unwrap(), deleted);
    let missing = vec![Guard::Missing(under.key("a"))];
    let second = committed(store.txn(missing, vec![under.put("a", "2")]).await.unwrap());
    assert_eq!(under.get("a").await.unwrap().create_revision, second);
    assert!(under.names(Some(deleted)).await.is_empty());
    assert_eq!(under.range(Some(first)).await.entries[0].value, "1");
}

async fn a_transaction_has_one_revision(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/one/",
    };
    let before = under.commit(vec![under.put("x", "1")]).await;
    let mut watch = under.watch(before + 1).await;
    let ops = vec![
        under.put("b", "1"),
        under.put("a", "old"),
        under.delete("x"),
        under.put("a", "new"),
        under.put("c", "1"),
        under.delete("c"),
    ];
    let revision = under.commit(ops).await;
    let entries = under.range(None).await.entries;
    assert_eq!(entries.len(), 2);
    assert!(entries.iter().all(|entry| entry.mod_revision == revision));
    assert_eq!(entries[0].value, "new");
    let events = watch.until(revision).await;
    let mut keys: Vec<_> = events.iter().map(|event| event.key().to_string()).collect();
    keys.sort();
    assert_eq!(keys, ["/one/a", "/one/b", "/one/x"]);
    assert!(events.iter().all(|event| event.revision() == revision));
}

async fn ranges_page_and_remember(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/ranges/pods/",
    };
    for name in ["b", "d", "a", "c/1", "c/2"] {
        under.commit(vec![under.put(name, "1")]).await;
    }
    // Neighbours that a careless prefix would catch.
    let others = [
        "/ranges/pods",
        "/ranges/pods-extra/a",
        "/ranges/pods0",
        "/ranges/po",
    ];
    let others = others.map(|key| Op::Put {
        key: key.into(),
        value: Bytes::new(),
        ttl: None,
    });
    let then = under.commit(others.into()).await;
    assert_eq!(under.names(None).await, ["a", "b", "c/1", "c/2", "d"]);
    let ask = |start_after: Option<&str>, limit, revision| {
        let start_after = start_after.map(|name| under.key(name));
        store.range(RangeRequest {
            prefix: under.prefix.into(),
            start_after,
            limit,
            revision,
        })
    };
    let page = ask(None, 2, None).await.unwrap();
    assert_eq!(
        (page.entries.len(), page.more, page.revision),
        (2, true, then)
    );
    under
        .commit(vec![under.delete("c/1"), under.put("c/15", "1")])
        .await;
    let newest = under.commit(vec![under.put("d", "2")]).await;
    let rest = ask(Some("b"), 3, Some(then)).await.unwrap();
    let values: Vec<_> = rest
        .entries
        .iter()
        .map(|e| (&e.key[13..], e.value.as_ref()))
        .collect();
    assert_eq!(values, [("c/1", b"1".as_ref()), ("c/2", b"1"), ("d", b"1")]);
    assert_eq!((rest.more, rest.revision), (false, then));
    assert_eq!(under.names(None).await, ["a", "b", "c/15", "c/2", "d"]);
    assert_eq!(ask(Some("d"), 0, None).await.unwrap().entries, []);
    // It need not exist, nor lie within the prefix.
    assert_eq!(
        ask(Some("c/0"), 1, None).await.unwrap().entries[0]
            .key
            .as_ref(),
        "/ranges/pods/c/15"
    );
    let outside = RangeRequest {
        prefix: under.prefix.into(),
        start_after: Some("/a".into()),
        ..Default::default()
    };
    assert_eq!(store.range(outside).await.unwrap().entries.len(), 5);
    let future = ask(None, 0, Some(newest + 1000)).await.unwrap_err();
    assert!(matches!(future, StoreError::Future { .. }), "{future:?}");
}

async fn watches_replay_and_follow(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/watches/",
    };
    let from = under.commit(vec![under.put("a", "1")]).await;
    under.commit(vec![under.put("a", "2")]).await;
    let other = Under {
        store,
        prefix: "/watches-not/",
    };
    other.commit(vec![other.put("a", "1")]).await;
    let deleted = under.commit(vec![under.delete("a")]).await;
    let mut replayed = under.watch(from).await;
    let mut live = under.watch(0).await;
    let last = under.commit(vec![under.put("b", "1")]).await;
    let events = replayed.until(last).await;
    let (
        Event::Put {
            entry: first,
            previous: None,
        },
        Event::Put {
            entry: second,
            previous,
        },
    ) = (&events[0], &events[1])
    else {
        panic!("{events:?}");
    };
    assert_eq!(
        (first.value.as_ref(), second.value.as_ref()),
        (b"1".as_ref(), b"2".as_ref())
    );
    assert_eq!(previous.as_ref(), Some(first));
    let expected = Event::Delete {
        key: under.key("a"),
        revision: deleted,
        previous: second.clone(),
    };
    assert_eq!(events[2], expected);
    assert_eq!(events.len(), 4);
    assert_eq!(live.until(last).await, events[3..]);
    // What lies outside of the prefix brings the watch on without events, sooner or later.
    let elsewhere = other.commit(vec![other.put("a", "2")]).await;
    let after = under.commit(vec![under.put("b", "2")]).await;
    assert!(after > elsewhere);
    assert_eq!(live.until(after).await.len(), 1);
}

async fn a_watch_waits_for_its_revision(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/waits/",
    };
    let now = under.commit(vec![under.put("a", "1")]).await;
    let mut watch = under.watch(now + 3).await;
    for value in ["2", "3", "4"] {
        under.commit(vec![under.put("a", value)]).await;
    }
    let events = watch.until(now + 3).await;
    assert_eq!(
        events.iter().map(Event::revision).collect::<Vec<_>>(),
        [now + 3]
    );
}

async fn values_have_a_limit(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/limit/",
    };
    let put = |size| Op::Put {
        key: under.key("a"),
        value: vec![b'x'; size].into(),
        ttl: None,
    };
    under.commit(vec![put(MAX_VALUE_BYTES)]).await;
    assert_eq!(under.get("a").await.unwrap().value.len(), MAX_VALUE_BYTES);
    let error = store
        .txn(vec![], vec![put(MAX_VALUE_BYTES + 1)])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
    under.commit(vec![under.delete("a")]).await;
}

async fn increments_are_not_lost(store: &dyn Store) {
    const WRITERS: u32 = 8;
    const EACH: u32 = 20;
    let under = Under {
        store,
        prefix: "/counter/",
    };
    let key = under.key("n");
    let increment = || async {
        loop {
            let (guard, number) = match store.get(&key).await.unwrap() {
                None => (Guard::Missing(key.clone()), 0),
                Some(entry) => {
                    let number: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    (Guard::Unchanged(key.clone(), entry.mod_revision), number)
                }
            };
            let value = (number + 1).to_string().into();
            let put = Op::Put {
                key: key.clone(),
                value,
                ttl: None,
            };
            let outcome = store.txn(vec![guard], vec![put]).await.unwrap();
            if matches!(outcome, TxnOutcome::Committed { .. }) {
                return;
            }
        }
    };
    let writer = || async {
        for _ in 0..EACH {
            increment().await;
        }
    };
    futures::future::join_all((0..WRITERS).map(|_| writer())).await;
    assert_eq!(
        under.get("n").await.unwrap().value,
        (WRITERS * EACH).to_string()
    );
}

async fn a_list_and_its_watch_replay_to_the_next_list(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/replay/",
    };
    let writer = |writer: u32| {
        let under = &under;
        async move {
            for step in 0..60u32 {
                let name = (writer * 31 + step * 17) % 13;
                let ops = match step % 4 {
                    0 => vec![under.delete(&name.to_string())],
                    1 => vec![
                        under.put(&name.to_string(), "one"),
                        under.put("both", "two"),
                    ],
                    _ => vec![under.put(&name.to_string(), "other")],
                };
                under.commit(ops).await;
            }
        }
    };
    let reader = async {
        let mut lists = Vec::new();
        for _ in 0..20 {
            let list = under.range(None).await;
            let watch = under.watch(list.revision + 1).await;
            lists.push((list, watch));
        }
        lists
    };
    let writers = futures::future::join_all((0..4).map(writer));
    let (lists, _) = futures::join!(reader, writers);
    under.commit(vec![under.put("end", "")]).await;
    let end = under.range(None).await;
    let model = |list: &RangeResult| -> BTreeMap<Key, Entry> {
        list.entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.clone()))
            .collect()
    };
    for (list, mut watch) in lists {
        let mut replayed = model(&list);
        watch.seen = list.revision;
        for event in watch.until(end.revision).await {
            match event {
                Event::Put { entry, previous } => {
                    assert_eq!(replayed.insert(entry.key.clone(), entry), previous);
                }
                Event::Delete { key, previous, .. } => {
                    assert_eq!(replayed.remove(&key), Some(previous));
                }
            }
        }
        assert_eq!(replayed, model(&end));
    }
}

async fn keys_expire(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/ttl/",
    };
    let put = |name: &str, ttl: Option<u64>| Op::Put {
        key: under.key(name),
        value: Bytes::from_static(b"1"),
        ttl: ttl.map(Duration::from_secs),
    };
    let started = Instant::now();
    let from = under
        .commit(vec![
            put("short", Some(1)),
            put("kept", Some(1)),
            put("renewed", Some(1)),
        ])
        .await;
    under
        .commit(vec![put("kept", None), put("long", Some(3600))])
        .await;
    let renewed = under.commit(vec![put("renewed", Some(2))]).await;
    let mut watch = under.watch(from).await;
    let mut expired = BTreeMap::new();
    while expired.len() < 2 {
        let seen = watch.seen;
        for event in watch.until(seen + 1).await {
            if let Event::Delete { key, previous, .. } = event {
                assert_eq!(previous.value, "1");
                expired.insert(key.to_string(), (started.elapsed(), previous.mod_revision));
            }
        }
        assert!(started.elapsed() < DEADLINE, "{expired:?}");
    }
    assert!(expired["/ttl/short"].0 >= Duration::from_secs(1));
    assert!(expired["/ttl/renewed"].0 >= Duration::from_secs(2));
    assert_eq!(expired["/ttl/renewed"].1, renewed);
    assert_eq!(under.names(None).await, ["kept", "long"]);
}

async fn compaction_forgets(store: &dyn Store) {
    let under = Under {
        store,
        prefix: "/compaction/",
    };
    let first = under
        .commit(vec![
            under.put("a", "1"),
            under.put("b", "1"),
            under.put("c", "1"),
        ])
        .await;
    under.commit(vec![under.put("a", "2")]).await;
    under.commit(vec![under.delete("b")]).await;
    let mut behind = under.watch(first).await.stream;
    let kept = under.commit(vec![under.delete("c")]).await;
    under.commit(vec![under.put("a", "3")]).await;
    let newest = under.commit(vec![under.put("b", "2")]).await;
    let before = under.range(Some(kept)).await.entries;
    let future = store.compact(newest + 1000).await.unwrap_err();
    assert!(matches!(future, StoreError::Future { .. }), "{future:?}");
    store.compact(kept).await.unwrap();
    store.compact(first).await.unwrap();

    let old = RangeRequest {
        prefix: under.prefix.into(),
        revision: Some(first),
        ..Default::default()
    };
    let check_gone = |error: StoreError| match error {
        StoreError::Compacted { requested, oldest } => assert!(requested < oldest),
        other => panic!("{other:?}"),
    };
    check_gone(store.range(old).await.unwrap_err());
    match store.watch(under.prefix, first).await {
        Err(error) => check_gone(error),
        Ok(mut stream) => check_gone(stream.next().await.unwrap().unwrap_err()),
    }
    // One that was started before may have been served in time.
    match behind.next().await.unwrap() {
        Ok(batch) => assert!(batch.revision >= first),
        Err(error) => check_gone(error),
    }
    assert_eq!(under.range(Some(kept)).await.entries, before);
    assert_eq!(under.names(Some(kept)).await, ["a"]);
    let events = under.watch(kept).await.until(newest).await;
    assert_eq!(
        events.iter().map(Event::revision).collect::<Vec<_>>(),
        [kept, kept + 1, newest]
    );
    assert!(matches!(&events[0], Event::Delete { previous, .. } if previous.value == "1"));
    assert!(matches!(&events[1], Event::Put { previous: Some(p), .. } if p.value == "2"));
    assert!(matches!(&events[2], Event::Put { previous: None, .. }));
    assert_eq!(under.names(None).await, ["a", "b"]);
}

/// One step of a random run.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Txn {
        guards: Vec<(u8, GuardKind)>,
        ops: Vec<(u8, Option<u16>)>,
    },
    /// That many revisions before the newest.
    Compact(u8),
    /// Only engines that can: stop and start.
    Reopen,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum GuardKind {
    Missing,
    Unchanged,
    Stale,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guard = prop_oneof![
        Just(GuardKind::Missing),
        Just(GuardKind::Unchanged),
        Just(GuardKind::Stale)
    ];
    let txn = (
        proptest::collection::vec((0u8..12, guard), 0..2),
        proptest::collection::vec(
            (0u8..12, proptest::option::weighted(0.7, any::<u16>())),
            0..4,
        ),
    );
    let step = prop_oneof![
        30 => txn.prop_map(|(guards, ops)| Step::Txn { guards, ops }),
        1 => any::<u8>().prop_map(|back| Step::Compact(back % 40)),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..120)
}

type Image = BTreeMap<Key, Entry>;

/// Runs the steps on the store and on a map, and compares everything that can be asked. `reopen` gives the store back
/// after a restart.
pub(crate) async fn check_against_model(
    mut store: Arc<dyn Store>,
    steps: &[Step],
    reopen: impl Fn(Arc<dyn Store>) -> Arc<dyn Store>,
) {
    let start = store.revision().await.unwrap();
    let prefix = format!("/model/{start}/");
    let key = |name: u8| -> Key { format!("{prefix}{name}").into() };
    // After each revision, in order; the first is the empty start.
    let mut images: Vec<(Revision, Image)> = vec![(start, Image::new())];
    let mut oldest = start;
    for step in steps {
        let (newest, image) = images.last().cloned().unwrap();
        match step {
            Step::Reopen => store = reopen(store),
            Step::Compact(back) => {
                let revision = newest.saturating_sub(u64::from(*back)).max(start);
                if revision > 0 {
                    store.compact(revision).await.unwrap();
                    oldest = oldest.max(revision);
                }
            }
            Step::Txn { guards, ops } => {
                let guards: Vec<Guard> = guards
                    .iter()
                    .map(|(name, kind)| {
                        let now = image.get(&key(*name)).map_or(1, |entry| entry.mod_revision);
                        match kind {
                            GuardKind::Missing => Guard::Missing(key(*name)),
                            GuardKind::Unchanged => Guard::Unchanged(key(*name), now),
                            GuardKind::Stale => Guard::Unchanged(key(*name), now + 1),
                        }
                    })
                    .collect();
                let as_op = |(name, value): &(u8, Option<u16>)| match value {
                    Some(value) => {
                        let value = value.to_string().into();
                        Op::Put {
                            key: key(*name),
                            value,
                            ttl: None,
                        }
                    }
                    None => Op::Delete { key: key(*name) },
                };
                let outcome = store
                    .txn(guards.clone(), ops.iter().map(as_op).collect())
                    .await
                    .unwrap();
                let conflict = guards.iter().position(|guard| match guard {
                    Guard::Missing(key) => image.contains_key(key),
                    Guard::Unchanged(key, revision) => {
                        image.get(key).map(|entry| entry.mod_revision) != Some(*revision)
                    }
                });
                if let Some(guard) = conflict {
                    let (Guard::Missing(key) | Guard::Unchanged(key, _)) = &guards[guard];
                    let current = image.get(key).cloned();
                    assert_eq!(outcome, TxnOutcome::Conflict { guard, current });
                    continue;
                }
                let revision = committed(outcome);
                let last: BTreeMap<u8, Option<u16>> = ops.iter().copied().collect();
                let mut next = image.clone();
                for (name, value) in last {
                    let key = key(name);
                    let Some(value) = value else {
                        next.remove(&key);
                        continue;
                    };
                    let create_revision = image
                        .get(&key)
                        .map_or(revision, |entry| entry.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.to_string().into(),
                        create_revision,
                        mod_revision: revision,
                    };
                    next.insert(key, entry);
                }
                if next == image {
                    assert_eq!(revision, newest, "nothing changed");
                } else {
                    assert_eq!(revision, newest + 1);
                    images.push((revision, next));
                }
            }
        }
    }
    let newest = images.last().unwrap().0;
    let images: Vec<_> = images
        .into_iter()
        .filter(|(revision, _)| *revision >= oldest)
        .collect();
    for (revision, image) in &images {
        let request = RangeRequest {
            prefix: prefix.clone(),
            revision: Some(*revision),
            ..Default::default()
        };
        let range = store.range(request).await.unwrap();
        assert_eq!(
            range.entries,
            image.values().cloned().collect::<Vec<_>>(),
            "at {revision}"
        );
    }
    let Some((first, image)) = images.first() else {
        return;
    };
    let mut watch = Watched {
        stream: store.watch(&prefix, first + 1).await.unwrap(),
        seen: *first,
    };
    let mut replayed = image.clone();
    let mut events = watch.until(newest).await.into_iter().peekable();
    for (revision, image) in &images[1..] {
        while let Some(event) = events.next_if(|event| event.revision() == *revision) {
            match event {
                Event::Put { entry, previous } => {
                    assert_eq!(replayed.insert(entry.key.clone(), entry), previous);
                }
                Event::Delete { key, previous, .. } => {
                    assert_eq!(replayed.remove(&key), Some(previous));
                }
            }
        }
        assert_eq!(&replayed, image, "replayed to {revision}");
    }
    for (key, entry) in image_of(&store, &prefix).await {
        assert_eq!(store.get(&key).await.unwrap(), Some(entry));
    }
}

async fn image_of(store: &Arc<dyn Store>, prefix: &str) -> Image {
    let mut image = Image::new();
    let mut start_after = None;
    loop {
        let request = RangeRequest {
            prefix: prefix.into(),
            start_after,
            limit: 5,
            revision: None,
        };
        let page = store.range(request).await.unwrap();
        start_after = page.entries.last().map(|entry| entry.key.clone());
        image.extend(
            page.entries
                .into_iter()
                .map(|entry| (entry.key.clone(), entry)),
        );
        if !page.more {
            return image;
        }
    }
}
