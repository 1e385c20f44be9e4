//! The store without a disk: for tests and throw-away clusters. Everything is lost with the process.
//!
//! The whole state sits behind one lock: per key its versions, and the commits in order. A watch is a cursor into the
//! commits, so that it needs no queue of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    Entry, Event, Guard, Key, Op, RangeRequest, RangeResult, Revision, Store, StoreError,
    TxnOutcome, WatchBatch, WatchStream, check_sizes, last_op_per_key,
};

/// How many commits a watch hands out at once.
const BATCH_COMMITS: usize = 256;

pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The newest revision; watches wait for it to grow.
    newest: watch::Sender<Revision>,
    /// Wakes the expiry task when an earlier due time came in.
    due_changed: Notify,
}

#[derive(Default)]
struct State {
    revision: Revision,
    /// Ranges and watches below this are answered with [`StoreError::Compacted`].
    oldest: Revision,
    /// Per key its versions, oldest first, never empty. Only those that a revision >= `oldest` can still see.
    versions: BTreeMap<Key, Vec<Version>>,
    commits: VecDeque<Arc<Commit>>,
    /// (due, key) of every live value that has a TTL.
    due: BTreeSet<(Instant, Key)>,
    due_of: BTreeMap<Key, Instant>,
}

struct Version {
    revision: Revision,
    /// `None`: deleted at `revision`.
    entry: Option<Entry>,
}

struct Commit {
    revision: Revision,
    events: Vec<Event>,
}

impl MemoryStore {
    /// Must be called within a tokio runtime: expiry runs as a task, until the store is dropped.
    pub fn new() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            newest: watch::Sender::new(0),
            due_changed: Notify::new(),
        });
        tokio::spawn(expire(Arc::downgrade(&shared)));
        Self { shared }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        check_sizes(&ops)?;
        // It never waits: whoever writes in a loop must still let others run.
        tokio::task::coop::consume_budget().await;
        Ok(self.shared.commit(&guards, ops))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.state.lock().live(key).cloned())
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        let state = self.shared.state.lock();
        let revision = request.revision.unwrap_or(state.revision);
        state.check_readable(revision)?;
        let start = match &request.start_after {
            Some(key) if key.as_ref() >= request.prefix.as_str() => Bound::Excluded(key.as_ref()),
            _ => Bound::Included(request.prefix.as_str()),
        };
        let mut matching = state
            .versions
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&request.prefix))
            .filter_map(|(_, versions)| seen_at(versions, revision));
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit
        };
        let entries = matching.by_ref().take(limit).cloned().collect();
        Ok(RangeResult {
            entries,
            revision,
            more: matching.next().is_some(),
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        let next = {
            let state = self.shared.state.lock();
            if from == 0 {
                state.revision + 1
            } else {
                state.check_kept(from)?;
                from
            }
        };
        let cursor = Cursor {
            shared: self.shared.clone(),
            newest: self.shared.newest.subscribe(),
            prefix: prefix.into(),
            next,
        };
        Ok(stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            match cursor.batch().await {
                Ok(batch) => Some((Ok(batch), Some(cursor))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.state.lock().revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        if revision > state.revision {
            return Err(StoreError::Future {
                requested: revision,
                newest: state.revision,
            });
        }
        state.compact(revision);
        Ok(())
    }
}

impl Shared {
    fn commit(&self, guards: &[Guard], ops: Vec<Op>) -> TxnOutcome {
        let mut state = self.state.lock();
        if let Some(conflict) = state.first_conflict(guards) {
            return conflict;
        }
        let due_before = state.next_due();
        let revision = state.apply(ops);
        let due_after = state.next_due();
        // Under the lock, so that revisions are announced in order.
        self.newest
            .send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        drop(state);
        if due_after.is_some() && due_after != due_before {
            self.due_changed.notify_one();
        }
        TxnOutcome::Committed { revision }
    }
}

impl State {
    fn live(&self, key: &str) -> Option<&Entry> {
        self.versions.get(key)?.last()?.entry.as_ref()
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn first_conflict(&self, guards: &[Guard]) -> Option<TxnOutcome> {
        guards.iter().enumerate().find_map(|(guard, wanted)| {
            let (key, revision) = match wanted {
                Guard::Missing(key) => (key, None),
                Guard::Unchanged(key, revision) => (key, Some(*revision)),
            };
            let current = self.live(key);
            (current.map(|entry| entry.mod_revision) != revision).then(|| TxnOutcome::Conflict {
                guard,
                current: current.cloned(),
            })
        })
    }

    /// Commits and returns the revision; the current one if the operations change nothing.
    fn apply(&mut self, ops: Vec<Op>) -> Revision {
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(ops.len());
        for op in last_op_per_key(ops) {
            match op {
                Op::Put { key, value, ttl } => {
                    let previous = self.live(&key).cloned();
                    let create_revision = previous
                        .as_ref()
                        .map_or(revision, |entry| entry.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value,
                        create_revision,
                        mod_revision: revision,
                    };
                    self.push(
                        key,
                        Version {
                            revision,
                            entry: Some(entry.clone()),
                        },
                        ttl,
                    );
                    events.push(Event::Put { entry, previous });
                }
                Op::Delete { key } => {
                    let Some(previous) = self.live(&key).cloned() else {
                        continue;
                    };
                    self.push(
                        key.clone(),
                        Version {
                            revision,
                            entry: None,
                        },
                        None,
                    );
                    events.push(Event::Delete {
                        key,
                        revision,
                        previous,
                    });
                }
            }
        }
        if events.is_empty() {
            return self.revision;
        }
        self.revision = revision;
        self.commits
            .push_back(Arc::new(Commit { revision, events }));
        revision
    }

    fn push(&mut self, key: Key, version: Version, ttl: Option<Duration>) {
        if let Some(due) = self.due_of.remove(&key) {
            self.due.remove(&(due, key.clone()));
        }
        if let Some(ttl) = ttl {
            let due = Instant::now() + ttl;
            self.due_of.insert(key.clone(), due);
            self.due.insert((due, key.clone()));
        }
        self.versions.entry(key).or_default().push(version);
    }

    fn check_readable(&self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::Future {
                requested: revision,
                newest: self.revision,
            });
        }
        self.check_kept(revision)
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest: self.oldest,
            });
        }
        Ok(())
    }

    fn compact(&mut self, revision: Revision) {
        self.oldest = self.oldest.max(revision);
        let kept = self
            .commits
            .partition_point(|commit| commit.revision < revision);
        self.commits.drain(..kept);
        self.versions.retain(|_, versions| {
            // The version that `revision` sees, and all later ones.
            let seen = versions.partition_point(|version| version.revision <= revision);
            versions.drain(..seen.saturating_sub(1));
            versions.len() > 1 || versions.iter().any(|version| version.entry.is_some())
        });
    }

    /// Deletes what is due, each as a commit of its own: clients resume watches by revision, between any two events.
    fn expire(&mut self, now: Instant) -> Option<Revision> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let due: Vec<Key> = due.map(|(_, key)| key.clone()).collect();
        due.into_iter()
            .map(|key| self.apply(vec![Op::Delete { key }]))
            .last()
    }
}

fn seen_at(versions: &[Version], revision: Revision) -> Option<&Entry> {
    let after = versions.partition_point(|version| version.revision <= revision);
    versions.get(after.checked_sub(1)?)?.entry.as_ref()
}

struct Cursor {
    shared: Arc<Shared>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
}

impl Cursor {
    async fn batch(&mut self) -> Result<WatchBatch, StoreError> {
        let next = self.next;
        // An error would mean that the sender is gone, but this cursor holds it.
        let _ = self.newest.wait_for(|newest| *newest >= next).await;
        let commits: Vec<Arc<Commit>> = {
            let state = self.shared.state.lock();
            state.check_kept(next)?;
            let start = state
                .commits
                .partition_point(|commit| commit.revision < next);
            state
                .commits
                .iter()
                .skip(start)
                .take(BATCH_COMMITS)
                .cloned()
                .collect()
        };
        let revision = commits.last().map_or(next, |commit| commit.revision);
        let events = commits
            .iter()
            .flat_map(|commit| &commit.events)
            .filter(|event| event.key().starts_with(&self.prefix))
            .cloned()
            .collect();
        self.next = revision + 1;
        Ok(WatchBatch { revision, events })
    }
}

async fn expire(shared: Weak<Shared>) {
    loop {
        let Some(strong) = shared.upgrade() else {
            return;
        };
        let due = {
            let mut state = strong.state.lock();
            if let Some(revision) = state.expire(Instant::now()) {
                strong.newest.send_replace(revision);
            }
            state.next_due()
        };
        // Looks in at least once a second, to notice that the store is gone.
        let look = Instant::now() + Duration::from_secs(1);
        let wake = due.map_or(look, |due| due.min(look));
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            () = strong.due_changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::check_all(Arc::new(MemoryStore::new())).await;
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(steps in conformance::steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let store = Arc::new(MemoryStore::new());
                conformance::check_against_model(store, &steps, |store| store).await;
            });
        }
    }
}
