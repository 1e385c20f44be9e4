//! Loads the cache from the store and keeps it current.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use skep_store::{Event as StoreEvent, RangeRequest, Revision, StoreError, WatchBatch};

use super::{
    Entry, Event, History, Index, Inner, Pairs, Resource, Sorted, State, decode, resource_prefix,
    splice,
};
use crate::encryption::Revealed;

/// How many entries one read of the store loads.
pub(super) const LOAD_PAGE: usize = 1000;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often events are checked for their age.
const AGE_CHECK: Duration = Duration::from_secs(5);

/// Follows the store for ever. Every retry waits, from [`BACKOFF_MIN`] doubling to [`BACKOFF_MAX`], with jitter.
pub(super) async fn run(inner: Arc<Inner>) {
    let _guard = EndsTheProcess;
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = inner.revision();
        let error = inner.follow().await;
        if inner.revision() > started {
            backoff = BACKOFF_MIN;
        }
        if let StoreError::Compacted { .. } = error {
            tracing::warn!(
                revision = started,
                "the watch cache fell behind compaction, loading again"
            );
            match inner.load().await {
                Ok(()) => {
                    inner.metrics.relists.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, source = source(&error), "loading the watch cache failed")
                }
            }
        } else {
            inner.metrics.watch_restarts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, source = source(&error), "the watch on the store broke, starting it again");
        }
        tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// A cache that no longer follows would serve old data for ever: a new process heals that.
struct EndsTheProcess;

impl Drop for EndsTheProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("following the store panicked, ending the process");
            std::process::abort();
        }
    }
}

fn source(error: &StoreError) -> String {
    std::error::Error::source(error)
        .map(|source| source.to_string())
        .unwrap_or_default()
}

impl Inner {
    /// Reads everything and replaces what was there; watches that ran have missed events and are ended.
    ///
    /// As of some time ago if the store still knows that, so that following fills the history and clients that
    /// reconnect after a restart resume where they were.
    pub(super) async fn load(&self) -> Result<(), StoreError> {
        self.unreadable.lock().clear();
        let newest = self.store.revision().await?;
        let earlier = newest.saturating_sub(self.options.history_revisions);
        // Revision 0 is before everything, and etcd does not know it.
        let earlier = earlier.max(1).max(self.revision());
        if earlier >= newest {
            return self.load_at(None).await;
        }
        match self.load_at(Some(earlier)).await {
            Err(StoreError::Compacted { oldest, .. }) if oldest < newest => {
                match self.load_at(Some(oldest)).await {
                    Err(StoreError::Compacted { .. }) => self.load_at(None).await,
                    result => result,
                }
            }
            Err(StoreError::Compacted { .. }) => self.load_at(None).await,
            result => result,
        }
    }

    async fn load_at(&self, mut revision: Option<Revision>) -> Result<(), StoreError> {
        let mut start_after = None;
        let mut resources = State::empty(0).resources;
        loop {
            let request = RangeRequest {
                prefix: self.options.prefix.clone(),
                start_after,
                limit: LOAD_PAGE,
                revision,
            };
            let page = self.store.range(request).await?;
            let at = *revision.get_or_insert(page.revision);
            start_after = page.entries.last().map(|entry| entry.key.clone());
            for stored in page.entries {
                let Some(prefix) = resource_prefix(&stored.key).map(Box::from) else {
                    continue;
                };
                let Some(entry) = self.read_entry(stored) else {
                    continue;
                };
                resources
                    .entry(prefix)
                    .or_insert_with(|| Resource::starting_at(at))
                    .entries
                    .insert(Arc::new(entry));
            }
            if !page.more {
                break;
            }
        }
        let revision = revision.unwrap_or_default();
        let mut watchers = self.watchers.lock();
        *self.state.write() = State {
            resources,
            ..State::empty(revision)
        };
        watchers.end_all();
        drop(watchers);
        self.revision.send_replace(revision);
        Ok(())
    }

    /// Applies what the store's watch brings; returns why it ended.
    async fn follow(&self) -> StoreError {
        let mut stream = match self
            .store
            .watch(&self.options.prefix, self.revision() + 1)
            .await
        {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let mut age_check = tokio::time::interval(AGE_CHECK);
        loop {
            tokio::select! {
                batch = stream.next() => match batch {
                    Some(Ok(batch)) => self.apply(batch),
                    Some(Err(error)) => return error,
                    None => {
                        return StoreError::Unavailable { doing: "watching", source: "the stream ended".into() };
                    }
                },
                _ = age_check.tick() => self.forget_old(Instant::now()),
            }
        }
    }

    fn apply(&self, batch: WatchBatch) {
        enum Change {
            Put(Arc<Entry>),
            Delete(skep_store::Key, u64),
        }
        let now = Instant::now();
        // Decoding stays outside of the locks.
        let changes: Vec<Change> = batch
            .events
            .into_iter()
            .map(|event| match event {
                StoreEvent::Put { entry, .. } => {
                    let (key, revision) = (entry.key.clone(), entry.mod_revision);
                    // What cannot be read is not served; an older version of it must not be served either.
                    self.read_entry(entry)
                        .map_or(Change::Delete(key, revision), |entry| {
                            Change::Put(Arc::new(entry))
                        })
                }
                StoreEvent::Delete { key, revision, .. } => {
                    self.forget_unreadable(&key);
                    Change::Delete(key, revision)
                }
            })
            .collect();
        let mut events = Vec::with_capacity(changes.len());
        let mut watchers = self.watchers.lock();
        {
            let mut guard = self.state.write();
            let state = &mut *guard;
            for change in changes {
                let key = match &change {
                    Change::Put(entry) => &entry.key,
                    Change::Delete(key, _) => key,
                };
                let Some(prefix) = resource_prefix(key) else {
                    continue;
                };
                if !state.resources.contains_key(prefix) {
                    let new = Resource::starting_at(state.loaded_at);
                    state.resources.insert(prefix.into(), new);
                }
                let Some(resource) = state.resources.get_mut(prefix) else {
                    continue;
                };
                let event = match change {
                    Change::Put(entry) => {
                        let previous = resource.entries.insert(entry.clone());
                        Event::put(entry, previous)
                    }
                    Change::Delete(key, revision) => match resource.entries.remove(&key) {
                        Some(previous) => Event::delete(previous, revision),
                        None => continue,
                    },
                };
                let event = Arc::new(event);
                state.history_bytes += event.size_bytes();
                resource.history.push(event.clone(), now);
                events.push(event);
            }
            state.revision = state.revision.max(batch.revision);
            while state.history_bytes > self.options.history_bytes && state.forget_oldest() {
                self.metrics
                    .history_overflows
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
        let ended: usize = events.iter().map(|event| watchers.send(event)).sum();
        drop(watchers);
        self.metrics
            .events
            .fetch_add(events.len() as u64, Ordering::Relaxed);
        self.metrics
            .watchers_fell_behind
            .fetch_add(ended as u64, Ordering::Relaxed);
        // Last: whoever sees the revision finds the events in the queues.
        self.revision.send_if_modified(|revision| {
            let grew = batch.revision > *revision;
            *revision = batch.revision.max(*revision);
            grew
        });
    }

    fn forget_old(&self, now: Instant) {
        let mut guard = self.state.write();
        let state = &mut *guard;
        for resource in state.resources.values_mut() {
            let freed = resource
                .history
                .forget_older_than(self.options.history_age, now);
            state.history_bytes -= freed;
        }
    }

    /// `None` (logged and counted) for a value that is not a readable JSON object.
    pub(super) fn read_entry(&self, stored: skep_store::Entry) -> Option<Entry> {
        let skep_store::Entry {
            key,
            value,
            create_revision,
            mod_revision,
        } = stored;
        let readable = match &self.options.reveal {
            Some(reveal) => reveal(&key, value),
            None => Ok(Revealed {
                json: value,
                stale: false,
            }),
        };
        let read = readable.and_then(|Revealed { json, stale }| {
            let bytes = splice::with_resource_version(&json, mod_revision)
                .ok_or("it is not a JSON object with metadata")?;
            let index = self.index(&key, &json).map_err(|error| error.to_string())?;
            Ok((bytes, stale, index))
        });
        match read {
            Ok((
                bytes,
                stale,
                Index {
                    uid,
                    labels,
                    fields,
                },
            )) => {
                self.forget_unreadable(&key);
                Some(Entry {
                    key,
                    body: self.sharing.lock().body(bytes),
                    stale,
                    create_revision,
                    revision: mod_revision,
                    uid: uid.into(),
                    labels: Pairs::from_iter(labels),
                    fields: Pairs::from_iter(fields),
                })
            }
            Err(reason) => {
                self.metrics
                    .unreadable_values
                    .fetch_add(1, Ordering::Relaxed);
                tracing::error!(%key, revision = mod_revision, reason, "a stored value cannot be read");
                self.unreadable.lock().insert(key, reason);
                None
            }
        }
    }

    fn forget_unreadable(&self, key: &str) {
        if self.metrics.unreadable_values.load(Ordering::Relaxed) > 0 {
            self.unreadable.lock().remove(key);
        }
    }

    /// An indexer that panics loses the object's fields, not the cache.
    fn index(&self, key: &str, json: &[u8]) -> Result<Index, serde_json::Error> {
        let indexer = &self.options.indexer;
        let object = decode::for_index(json, indexer.reads_content(key))?;
        let index = || indexer.index(key, &object);
        Ok(
            std::panic::catch_unwind(AssertUnwindSafe(index)).unwrap_or_else(|_| {
                tracing::error!(
                    key,
                    "the indexer panicked; field selectors will not find this object"
                );
                Index::of_metadata(&object)
            }),
        )
    }

    pub(super) fn reindex(&self, prefix: &str) {
        let _watchers = self.watchers.lock();
        let mut state = self.state.write();
        let snapshot = state.snapshot(prefix);
        for entry in snapshot.iter() {
            let Ok(Index {
                uid,
                labels,
                fields,
            }) = self.index(&entry.key, &entry.bytes())
            else {
                continue;
            };
            let indexed = Entry {
                key: entry.key.clone(),
                body: entry.body.clone(),
                stale: entry.stale,
                create_revision: entry.create_revision,
                revision: entry.revision,
                uid: uid.into(),
                labels: Pairs::from_iter(labels),
                fields: Pairs::from_iter(fields),
            };
            if let Some(prefix) = resource_prefix(&entry.key)
                && let Some(resource) = state.resources.get_mut(prefix)
            {
                resource.entries.insert(Arc::new(indexed));
            }
        }
    }
}

impl Resource {
    fn starting_at(revision: u64) -> Self {
        Self {
            entries: Sorted::default(),
            history: History::after(revision),
        }
    }
}

impl State {
    /// Of the resource that uses the most. `false`: nothing left to forget.
    fn forget_oldest(&mut self) -> bool {
        let largest = self
            .resources
            .values_mut()
            .max_by_key(|r| r.history.size_bytes());
        let freed = largest.map_or(0, |resource| resource.history.forget_oldest());
        self.history_bytes -= freed;
        freed > 0
    }
}
