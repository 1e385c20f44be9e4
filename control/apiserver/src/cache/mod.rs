//! The watch cache: every stored object in memory, as the bytes that clients get.
//!
//! One store watch over the whole prefix keeps it current. Reads never decode and never touch the store, except for
//! revisions that the cache no longer knows. An object is decoded once per write, to index it.
//!
//! ```text
//! store.watch ──► follow (one task) ──► state: per resource the sorted entries and the history
//!                                  └──► watchers: one bounded queue each
//! ```
//!
//! # Guarantees
//! - A snapshot is all of one revision. A watch after a snapshot's revision misses nothing and repeats nothing.
//! - The revision only grows, and by the time it shows R, every watcher's queue has what happened up to R.
//! - After `wait_until(R)` reads show the write that committed as R.
//!
//! Read `entry` for what is kept, `watch` for fan-out, `follow` for how it stays current, `compaction` for what the store
//! forgets.

mod body;
mod compaction;
mod decode;
mod entry;
mod follow;
mod history;
mod sorted;
mod splice;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use skep_store::{Key, RangeRequest, Revision, Store, StoreError};

pub use self::{
    body::Body,
    compaction::Keep,
    entry::{Entry, Event, EventKind, Index, Pairs},
    watch::{Gone, Watch, WatchFrom, WatchItem, WatchRequest},
};
use crate::encryption::Revealed;

use self::{body::Sharing, history::History, sorted::Sorted, watch::Watchers};

/// Finds an object's uid, labels and selectable fields, given its key and itself. Called once per write.
pub trait Indexer: Send + Sync {
    /// `object` has no `metadata.managedFields`, and nothing but metadata where [`Indexer::reads_content`] says so.
    fn index(&self, key: &str, object: &Value) -> Index;

    /// Whether [`Indexer::index`] looks at more of this object than its metadata.
    fn reads_content(&self, _key: &str) -> bool {
        true
    }
}

impl<F: Fn(&str, &Value) -> Index + Send + Sync> Indexer for F {
    fn index(&self, key: &str, object: &Value) -> Index {
        self(key, object)
    }
}

/// Turns a stored value into the JSON to cache (decryption), given its key. `Err` says why it cannot be read.
pub type Reveal = Arc<dyn Fn(&str, Bytes) -> Result<Revealed, String> + Send + Sync>;

/// How long the start may take to catch up with the store after the load.
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Options {
    /// What of the store is cached; ends in `/`.
    pub prefix: String,
    pub indexer: Arc<dyn Indexer>,
    pub reveal: Option<Reveal>,
    /// Bounds of the events kept for watches that start in the past and for continued lists.
    pub history_bytes: usize,
    pub history_age: Duration,
    /// How much of what happened before the start is read into the history.
    pub history_revisions: u64,
    /// How many events may wait for one watcher before it is ended. Watchers share the events, so that many slow ones
    /// hold no more of them in memory than one.
    pub watch_queue_events: usize,
    /// What the store is compacted to; `None`: somebody else does it.
    pub keep: Option<Keep>,
}

impl Options {
    pub fn new(indexer: Arc<dyn Indexer>) -> Self {
        Self {
            prefix: "/registry/".into(),
            indexer,
            reveal: None,
            history_bytes: 16 << 20,
            history_age: Duration::from_secs(300),
            history_revisions: 5_000,
            watch_queue_events: 8192,
            keep: Some(Keep::default()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future {
        requested: Revision,
        newest: Revision,
    },
    /// The cache did not reach the revision in time: it lags, or the store is away.
    #[error("the watch cache is at revision {reached} and did not reach {wanted} in time")]
    Lagging { wanted: Revision, reached: Revision },
    #[error("a read of the store failed")]
    Store(#[source] StoreError),
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { requested, oldest } => {
                Self::Gone(Gone::TooOld { requested, oldest })
            }
            StoreError::Future { requested, newest } => Self::Future { requested, newest },
            other => Self::Store(other),
        }
    }
}

/// Gauges and counters, read with `Ordering::Relaxed`.
#[derive(Debug, Default)]
pub struct Metrics {
    pub watchers: AtomicU64,
    /// Watchers ended because their queue was full.
    pub watchers_fell_behind: AtomicU64,
    pub events: AtomicU64,
    /// Events forgotten because of `history_bytes` before they reached `history_age`.
    pub history_overflows: AtomicU64,
    /// Values that could not be revealed or are not JSON objects; they are not served.
    pub unreadable_values: AtomicU64,
    /// Times that the store's watch broke and was started again.
    pub watch_restarts: AtomicU64,
    /// Times that everything had to be loaded anew.
    pub relists: AtomicU64,
    /// Compactions of the store that were asked for and succeeded.
    pub compactions: AtomicU64,
    /// What the last one compacted; 0 before the first.
    pub compacted_revision: AtomicU64,
}

pub struct Cache {
    inner: Arc<Inner>,
    /// What runs until this is dropped.
    tasks: Vec<tokio::task::AbortHandle>,
}

struct Inner {
    store: Arc<dyn Store>,
    options: Options,
    /// Lock order: `watchers`, then `state`.
    watchers: Mutex<Watchers>,
    state: RwLock<State>,
    revision: tokio::sync::watch::Sender<Revision>,
    metrics: Metrics,
    /// Why values cannot be read, by key; they must not look as if they were missing.
    unreadable: Mutex<BTreeMap<Key, String>>,
    sharing: Mutex<Sharing>,
}

struct State {
    revision: Revision,
    /// What resources without a shard start their history from.
    loaded_at: Revision,
    /// By prefix (`/registry/core/pods/`).
    resources: BTreeMap<Box<str>, Resource>,
    history_bytes: usize,
}

struct Resource {
    entries: Sorted,
    history: History,
}

impl Cache {
    /// Loads everything and follows the store from there, until dropped.
    pub async fn start(store: Arc<dyn Store>, options: Options) -> Result<Arc<Self>, StoreError> {
        let inner = Inner {
            store,
            options,
            watchers: Mutex::default(),
            state: RwLock::new(State::empty(0)),
            revision: tokio::sync::watch::Sender::new(0),
            metrics: Metrics::default(),
            unreadable: Mutex::default(),
            sharing: Mutex::default(),
        };
        let inner = Arc::new(inner);
        inner.load().await?;
        let mut tasks = vec![tokio::spawn(follow::run(inner.clone())).abort_handle()];
        if let Some(keep) = inner.options.keep {
            tasks.push(tokio::spawn(compaction::run(inner.clone(), keep)).abort_handle());
        }
        let cache = Arc::new(Self { inner, tasks });
        match cache.wait_fresh(START_TIMEOUT).await {
            Ok(_) => Ok(cache),
            Err(CacheError::Store(error)) => Err(error),
            Err(error) => Err(StoreError::Unavailable {
                doing: "reading what happened lately",
                source: error.into(),
            }),
        }
    }

    /// Everything up to here is visible.
    pub fn revision(&self) -> Revision {
        self.inner.revision()
    }

    /// Waits until reads show the commit with this revision (one's own write, or a client's `resourceVersion`).
    pub async fn wait_until(&self, wanted: Revision, timeout: Duration) -> Result<(), CacheError> {
        // Almost always: nothing to wait for, and no timer to set.
        if self.revision() >= wanted {
            return Ok(());
        }
        let mut revision = self.inner.revision.subscribe();
        let reached = revision.wait_for(|reached| *reached >= wanted);
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(CacheError::Lagging {
                wanted,
                reached: self.revision(),
            }),
        }
    }

    /// Waits until reads show everything that was committed before this call: a linearizable read.
    pub async fn wait_fresh(&self, timeout: Duration) -> Result<Revision, CacheError> {
        let newest = self.inner.store.revision().await?;
        self.wait_until(newest, timeout).await?;
        Ok(newest)
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.inner
            .state
            .read()
            .resource_of(key)?
            .entries
            .get(key)
            .cloned()
    }

    /// A value at or under `prefix` that is stored and cannot be read, and why.
    pub fn unreadable(&self, prefix: &str) -> Option<(Key, String)> {
        // Counted since the start, so that the lock is taken only where it may matter.
        if self.inner.metrics.unreadable_values.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let unreadable = self.inner.unreadable.lock();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let (key, why) = unreadable.range::<str, _>(from).next()?;
        let found = match prefix.ends_with('/') {
            true => key.starts_with(prefix),
            false => key.as_ref() == prefix,
        };
        found.then(|| (key.clone(), why.clone()))
    }

    /// The revision of the last change under a resource's prefix, so that what is derived from it can be kept until then.
    pub fn changed_at(&self, prefix: &str) -> Revision {
        let state = self.inner.state.read();
        let resource = state.resources.get(prefix);
        resource.map_or(state.loaded_at, |resource| resource.history.newest())
    }

    /// All entries under `prefix` (a resource's or a namespace's, ending in `/`) as of now. Costs next to nothing.
    pub fn snapshot(&self, prefix: &str) -> Snapshot {
        self.inner.state.read().snapshot(prefix)
    }

    /// The same as of an earlier revision: from the history if that reaches back so far, else from the store.
    pub async fn snapshot_at(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<Snapshot, CacheError> {
        {
            let state = self.inner.state.read();
            if revision > state.revision {
                let newest = state.revision;
                return Err(CacheError::Future {
                    requested: revision,
                    newest,
                });
            }
            if let Some(snapshot) = state.snapshot_at(prefix, revision) {
                return Ok(snapshot);
            }
        }
        self.inner.snapshot_from_store(prefix, revision).await
    }

    /// One page of [`Cache::snapshot`].
    pub fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
        filter: impl Fn(&Entry) -> bool,
    ) -> List {
        self.snapshot(prefix).list(start_after, limit, filter)
    }

    pub fn watch(&self, request: WatchRequest) -> Result<Watch, Gone> {
        self.inner.watch(request)
    }

    /// Indexes the entries under `prefix` again: call it after the indexer learned about that resource. No events.
    pub fn reindex(&self, prefix: &str) {
        self.inner.reindex(prefix);
    }

    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// What the store under the cache counts.
    pub fn store_metrics(&self) -> Option<&skep_store::Metrics> {
        self.inner.store.metrics()
    }

    /// The objects under each resource's prefix, for metrics.
    pub fn counts(&self) -> Vec<(Box<str>, usize)> {
        let state = self.inner.state.read();
        state
            .resources
            .iter()
            .map(|(prefix, r)| (prefix.clone(), r.entries.len()))
            .collect()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.inner.watchers.lock().end_all();
    }
}

/// Entries under one prefix, all as of one revision. Cheap to clone and to keep.
#[derive(Clone)]
pub struct Snapshot {
    pub revision: Revision,
    prefix: Box<str>,
    /// Sorted, apart; more than one only for a prefix above single resources.
    parts: Vec<Sorted>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct List {
    /// Sorted by key.
    pub entries: Vec<Arc<Entry>>,
    pub revision: Revision,
    /// Whether more entries match after these.
    pub more: bool,
    /// How many entries follow, whether they match the filter or not: `remainingItemCount` where there is no selector.
    pub remaining: usize,
}

impl List {
    /// Where the next page starts (`start_after`); `None` on the last page.
    pub fn next(&self) -> Option<&Key> {
        self.entries
            .last()
            .filter(|_| self.more)
            .map(|entry| &entry.key)
    }
}

impl Snapshot {
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.after(None)
    }

    pub fn len(&self) -> usize {
        self.count_after(None)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// At most `limit` entries that match, from the first key after `start_after`. `limit` 0: all.
    pub fn list(
        &self,
        start_after: Option<&str>,
        limit: usize,
        filter: impl Fn(&Entry) -> bool,
    ) -> List {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut matching = self.after(start_after).filter(|entry| filter(entry));
        let entries: Vec<_> = matching.by_ref().take(limit).cloned().collect();
        let more = entries.len() == limit && matching.next().is_some();
        let last = entries.last().map(|entry| entry.key.as_ref());
        let remaining = if more { self.count_after(last) } else { 0 };
        List {
            revision: self.revision,
            more,
            remaining,
            entries,
        }
    }

    fn after(&self, start_after: Option<&str>) -> impl Iterator<Item = &Arc<Entry>> {
        let start = start_after.unwrap_or("").max(&self.prefix).to_owned();
        self.parts
            .iter()
            .flat_map(move |part| part.iter_from(&start))
            .skip_while(move |entry| Some(entry.key.as_ref()) == start_after)
            .take_while(|entry| entry.key.starts_with(self.prefix.as_ref()))
    }

    fn count_after(&self, start_after: Option<&str>) -> usize {
        let start = start_after.unwrap_or("").max(&self.prefix);
        // Sorts right after every key with the prefix.
        let end = format!("{}\u{10ffff}", self.prefix);
        self.parts
            .iter()
            .map(|part| {
                let own = start_after.is_some_and(|key| part.get(key).is_some());
                part.rank(&end).saturating_sub(part.rank(start)) - usize::from(own)
            })
            .sum()
    }
}

impl State {
    fn empty(revision: Revision) -> Self {
        Self {
            revision,
            loaded_at: revision,
            resources: BTreeMap::new(),
            history_bytes: 0,
        }
    }

    fn resource_of(&self, key: &str) -> Option<&Resource> {
        self.resources.get(resource_prefix(key)?)
    }

    fn snapshot(&self, prefix: &str) -> Snapshot {
        let parts = match resource_prefix(prefix) {
            Some(resource) => self
                .resources
                .get(resource)
                .into_iter()
                .map(|r| r.entries.clone())
                .collect(),
            None => self
                .under(prefix)
                .map(|(_, resource)| resource.entries.clone())
                .collect(),
        };
        Snapshot {
            revision: self.revision,
            prefix: prefix.into(),
            parts,
        }
    }

    /// `None`: the history does not reach back so far.
    fn snapshot_at(&self, prefix: &str, revision: Revision) -> Option<Snapshot> {
        if revision < self.loaded_at {
            return None;
        }
        let rewind = |r: &Resource| r.history.rewind(r.entries.clone(), revision);
        let parts = match resource_prefix(prefix) {
            Some(resource) => self
                .resources
                .get(resource)
                .into_iter()
                .map(rewind)
                .collect::<Option<_>>()?,
            None => self
                .under(prefix)
                .map(|(_, r)| rewind(r))
                .collect::<Option<_>>()?,
        };
        Some(Snapshot {
            revision,
            prefix: prefix.into(),
            parts,
        })
    }

    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Resource)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let all = self
            .resources
            .range::<str, _>(from)
            .map(|(p, r)| (p.as_ref(), r));
        all.take_while(move |(resource, _)| resource.starts_with(prefix))
    }
}

/// `/registry/core/pods/` of anything at or under it.
pub(crate) fn resource_prefix(key: &str) -> Option<&str> {
    let mut slashes = key
        .bytes()
        .enumerate()
        .filter(|(_, byte)| *byte == b'/')
        .map(|(at, _)| at);
    slashes.nth(3).map(|at| &key[..=at])
}

impl Inner {
    fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    fn watch(self: &Arc<Self>, request: WatchRequest) -> Result<Watch, Gone> {
        let mut watchers = self.watchers.lock();
        let state = self.state.read();
        let mut replay = VecDeque::new();
        let mut initial = None;
        match request.from {
            WatchFrom::Now => {}
            WatchFrom::InitialEvents => initial = Some(state.snapshot(&request.prefix)),
            WatchFrom::After(revision) => {
                let events = state.events_after(&request.prefix, revision)?;
                replay = events
                    .filter(|event| selects(&request, event))
                    .cloned()
                    .collect();
            }
        }
        let revision = state.revision;
        drop(state);
        Ok(watchers.register(self, request, initial, replay, revision))
    }

    async fn snapshot_from_store(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<Snapshot, CacheError> {
        let mut entries = Sorted::default();
        let mut start_after = None;
        loop {
            let request = RangeRequest {
                prefix: prefix.to_owned(),
                start_after,
                limit: follow::LOAD_PAGE,
                revision: Some(revision),
            };
            let page = self.store.range(request).await?;
            start_after = page.entries.last().map(|entry| entry.key.clone());
            for entry in page.entries {
                if let Some(entry) = self.read_entry(entry) {
                    entries.insert(Arc::new(entry));
                }
            }
            if !page.more {
                return Ok(Snapshot {
                    revision,
                    prefix: prefix.into(),
                    parts: vec![entries],
                });
            }
        }
    }
}

impl State {
    fn events_after<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &'a Arc<Event>>, Gone> {
        let gone = |oldest| Gone::TooOld {
            requested: revision,
            oldest,
        };
        if revision < self.loaded_at {
            return Err(gone(self.loaded_at));
        }
        let resource = resource_prefix(prefix).and_then(|resource| self.resources.get(resource));
        let events = match resource {
            Some(r) => Some(
                r.history
                    .since(revision)
                    .ok_or_else(|| gone(r.history.floor()))?,
            ),
            None => None,
        };
        Ok(events.into_iter().flatten())
    }
}

fn selects(request: &WatchRequest, event: &Event) -> bool {
    let key = event.entry.key.as_ref();
    let in_prefix = if request.prefix.ends_with('/') {
        key.starts_with(&request.prefix)
    } else {
        key == request.prefix
    };
    in_prefix
        && request.field.as_ref().is_none_or(|(name, value)| {
            let is = |entry: &Entry| entry.fields.get(name) == Some(value.as_str());
            is(&event.entry) || event.previous.as_deref().is_some_and(is)
        })
}
