//! Revisioned key-value storage under the API server.
//!
//! Keys are text (`/registry/pods/default/web`), values are bytes; this crate knows no kinds. Every committed
//! transaction gets the next revision, and a watch replays commits in revision order.
//!
//! Three engines implement [`Store`]: [`redb`] (the default, one file, group commit), [`etcd`] (several control-plane
//! machines) and [`memory`] (tests). One conformance suite, `conformance`, runs against all of them.
//!
//! # Guarantees
//! - A transaction that returned [`TxnOutcome::Committed`] is on disk (redb: fsync; etcd: quorum).
//! - `range` at revision R followed by `watch` from R + 1 misses nothing and repeats nothing.
//! - Within one transaction the last operation on a key counts. A transaction that changes nothing (no operation, or
//!   deletes of missing keys) makes no revision and answers the newest one.
//! - After `compact(R)`, ranges at R and later and watches from R and later still work.
#![forbid(unsafe_code)]

#[cfg(test)]
mod conformance;
pub mod etcd;
pub mod memory;
pub mod redb;

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;

/// What one value may have: what etcd takes in one request (1.5 MiB), less room for keys and guards.
pub const MAX_VALUE_BYTES: usize = 1_500_000;

/// Counts commits of the whole store. 0 means "never"; the first commit is 1 or above.
pub type Revision = u64;

pub type Key = Arc<str>;

/// A key with its value as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

/// A condition that must hold for a transaction to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    Missing(Key),
    /// The key exists and was last written at this revision.
    Unchanged(Key, Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `ttl`: the store deletes the key (an ordinary, watched delete) some time after this, never before.
    Put {
        key: Key,
        value: Bytes,
        ttl: Option<Duration>,
    },
    /// Deleting a missing key is not an error and emits no event.
    Delete { key: Key },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    Committed {
        revision: Revision,
    },
    /// The first guard that did not hold, and what its key holds now.
    Conflict {
        guard: usize,
        current: Option<Entry>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    pub prefix: String,
    /// Only keys strictly after this one (continue tokens).
    pub start_after: Option<Key>,
    /// 0 = no limit.
    pub limit: usize,
    /// `None` = now.
    pub revision: Option<Revision>,
}

#[derive(Clone, Debug)]
pub struct RangeResult {
    /// Sorted by key.
    pub entries: Vec<Entry>,
    /// The revision that the entries are a consistent snapshot of.
    pub revision: Revision,
    /// Whether more keys match after the last entry returned.
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put {
        entry: Entry,
        previous: Option<Entry>,
    },
    Delete {
        key: Key,
        revision: Revision,
        previous: Entry,
    },
}

impl Event {
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { entry, .. } => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// All events of one or more whole commits, in order. `revision` is the last one seen, also when `events` is empty
/// (progress: nothing that the watch selects happened up to there).
#[derive(Clone, Debug)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

pub type WatchStream = BoxStream<'static, Result<WatchBatch, StoreError>>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("revision {requested} is compacted; the oldest kept is {oldest}")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future {
        requested: Revision,
        newest: Revision,
    },
    #[error("the store is unavailable while {doing}")]
    Unavailable {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the value of {key} has {size} bytes; the limit is {limit}")]
    TooLarge { key: Key, size: usize, limit: usize },
}

/// Gauges and counters, read with `Ordering::Relaxed`.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Transactions that were committed or met a conflict.
    pub txns: AtomicU64,
    pub conflicts: AtomicU64,
    /// Commits of the file, each with one fsync; `txns` divided by this says how well they group.
    pub fsyncs: AtomicU64,
    /// Time spent in them.
    pub fsync_ns: AtomicU64,
    /// Times that requests waited for room in the writer's queue.
    pub queue_full: AtomicU64,
    /// Times that the file was opened again after an I/O error.
    pub reopens: AtomicU64,
    pub expired_keys: AtomicU64,
    /// The file's size when it was last committed.
    pub file_bytes: AtomicU64,
}

/// What the API server asks of a store.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies all `ops` in one commit if every guard holds.
    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError>;

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError>;

    /// Streams every commit with a revision >= `from` under `prefix`. `from` = 0 means "from now on"; a `from` that is
    /// not reached yet waits for it.
    /// A stream that falls behind compaction ends with [`StoreError::Compacted`].
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError>;

    /// The newest committed revision (a linearizable read).
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Forgets history before `revision`; the live values stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// What the engine counts, if it does the work itself.
    fn metrics(&self) -> Option<&Metrics> {
        None
    }
}

impl Op {
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

fn check_sizes(ops: &[Op]) -> Result<(), StoreError> {
    for op in ops {
        if let Op::Put { key, value, .. } = op
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(StoreError::TooLarge {
                key: key.clone(),
                size: value.len(),
                limit: MAX_VALUE_BYTES,
            });
        }
    }
    Ok(())
}

/// Keeps the last operation on each key, in the order in which those stood.
fn last_op_per_key(mut ops: Vec<Op>) -> Vec<Op> {
    if ops.len() > 1 {
        let mut seen = HashSet::new();
        let mut last: Vec<bool> = ops
            .iter()
            .rev()
            .map(|op| seen.insert(op.key().clone()))
            .collect();
        ops.retain(|_| last.pop().unwrap_or(true));
    }
    ops
}
