//! The default store: one file, no other process.
//!
//! One writer thread puts whatever arrived during the last fsync into the next commit of the file. Readers see the
//! newest commit (MVCC) and never wait for the writer.
//!
//! # Guarantees
//! - What was acknowledged survives `kill -9` and power loss (as far as the disk keeps what fsync promised).
//! - After an I/O error (disk full) the file is opened again, with the acknowledged state, until that works.
//!
//! Read `layout` first, then `writer`.

#[cfg(test)]
mod crash;
mod feed;
mod layout;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::StreamExt;
use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError,
};
use tokio::sync::{mpsc, oneshot};

use self::{
    feed::{Cursor, Feed},
    layout::{COMPACTED, FORMAT, FORMAT_KNOWN, Head, Heads, LOG, META, Position, Record, SWEPT},
    writer::{Request, Writer},
};
use crate::{
    Entry, Guard, Key, Metrics, Op, RangeRequest, RangeResult, Revision, Store, StoreError,
    TxnOutcome, WatchBatch, WatchStream, check_sizes,
};

type LogReader = redb::ReadOnlyTable<&'static [u8; 12], &'static [u8]>;

/// How many keys a range looks up at a time.
const RANGE_SLICE: usize = 4096;

/// How many requests may wait for the writer; more wait for room.
const QUEUE_REQUESTS: usize = 1024;

#[derive(Clone, Debug)]
pub struct Options {
    /// What redb keeps of the file in memory. The kernel's page cache comes on top, and can be taken away.
    pub cache_bytes: usize,
    /// A file larger than this, and more than three quarters empty, is shrunk when it is opened.
    pub shrink_above_bytes: u64,
    #[cfg(test)]
    fault: tests::Fault,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 12 << 20,
            shrink_above_bytes: 256 << 20,
            #[cfg(test)]
            fault: tests::Fault::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process: stop that one, or use another data folder")]
    Locked { path: PathBuf },
    #[error("{path} is damaged: restore it from a backup, or move it away to start empty")]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "{path} has format {found}; this version reads format {known}: use the version that wrote it"
    )]
    Format {
        path: PathBuf,
        found: u64,
        known: u64,
    },
    #[error("{path} cannot be opened: check that its folder exists, is writable and has room")]
    Io {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub struct RedbStore {
    shared: Arc<Shared>,
    /// `Some` until drop.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    options: Options,
    /// `None` while the file is being opened again after an I/O error.
    database: RwLock<Option<Arc<Database>>>,
    /// As of what is committed and about to be published.
    heads: RwLock<Heads>,
    feed: Feed,
    /// Reads below are refused. The file has the same number.
    oldest: AtomicU64,
    metrics: Metrics,
}

impl RedbStore {
    /// Opens the file, or makes it, readable by its owner only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, Options::default())
    }

    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let mut database = open_database(path, &options)?;
        let (start, heads) = Start::read(&database).map_err(|error| storage_error(path, error))?;
        shrink(&mut database, path, &options, heads.log_bytes);
        let feed = Feed::new(heads.newest);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            options,
            database: RwLock::new(Some(Arc::new(database))),
            heads: RwLock::new(heads),
            feed,
            oldest: start.compacted.into(),
            metrics: Metrics::default(),
        });
        let (requests, queue) = mpsc::channel(QUEUE_REQUESTS);
        let writer = Writer::new(shared.clone(), queue, start);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| OpenError::Io {
                path: path.to_owned(),
                source: error.into(),
            })?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    async fn ask<T>(
        &self,
        doing: &'static str,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let closed = || unavailable(doing, "the writer gave no answer");
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        if requests.capacity() == 0 {
            self.shared
                .metrics
                .queue_full
                .fetch_add(1, Ordering::Relaxed);
        }
        requests.send(request(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for RedbStore {
    /// Waits for the commit under way, so that the file is free afterwards.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "the store's writer panicked");
        }
    }
}

#[async_trait::async_trait]
impl Store for RedbStore {
    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        check_sizes(&ops)?;
        self.ask("committing", |reply| Request::Txn { guards, ops, reply })
            .await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        // Two lookups in pages that are mostly in memory: cheaper than a trip to another thread.
        self.shared
            .get(key)
            .map_err(|error| unavailable("reading a key", error))
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        let shared = self.shared.clone();
        blocking("reading a range", move || shared.range(&request)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        if from != 0 {
            self.shared.check_kept(from)?;
        }
        Ok(Cursor::new(&self.shared, prefix, from).stream().boxed())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.feed.newest())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask("compacting", |reply| Request::Compact { revision, reply })
            .await
    }

    fn metrics(&self) -> Option<&Metrics> {
        Some(&self.shared.metrics)
    }
}

/// What the file says about compaction when it is opened.
struct Start {
    compacted: Revision,
    swept: Revision,
}

impl Start {
    fn read(database: &Database) -> Result<(Self, Heads), redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let number = |name| Ok::<_, StorageError>(meta.get(name)?.map_or(0, |n| n.value()));
        let start = Self {
            compacted: number(COMPACTED)?,
            swept: number(SWEPT)?,
        };
        Ok((start, Heads::read(&transaction.open_table(LOG)?)?))
    }
}

impl Shared {
    fn begin_read(&self) -> Result<ReadTransaction, redb::Error> {
        let database = self.database.read().clone();
        Ok(database.ok_or(redb::Error::DatabaseClosed)?.begin_read()?)
    }

    #[cfg(test)]
    fn swept_to(&self) -> Result<Revision, redb::Error> {
        let meta = self.begin_read()?.open_table(META)?;
        Ok(meta.get(SWEPT)?.map_or(0, |swept| swept.value()))
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        let oldest = self.oldest.load(Ordering::Acquire);
        if revision < oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest,
            });
        }
        Ok(())
    }

    /// Its log has at least what the heads point to, as nothing is swept that was a head when it was begun.
    fn begin_read_of(&self, _heads: &Heads) -> Result<LogReader, redb::Error> {
        Ok(self.begin_read()?.open_table(LOG)?)
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, redb::Error> {
        let heads = self.heads.read();
        let Some((key, head)) = heads.by_key.get_key_value(key) else {
            return Ok(None);
        };
        if !head.live {
            return Ok(None);
        }
        let (key, at) = (key.clone(), head.at);
        let log = self.begin_read_of(&heads)?;
        drop(heads);
        Ok(layout::entry_at(&log, &key, at)?)
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResult, StoreError> {
        let failed = |error: redb::Error| unavailable("reading a range", error);
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit
        };
        let mut entries = Vec::new();
        let mut start_after = request.start_after.clone();
        let mut wanted = request.revision;
        // In slices, so that the writer never waits long for the heads. A slice may find less than it looked at:
        // at an old revision some keys were not there.
        loop {
            let slice = limit
                .saturating_add(1)
                .saturating_sub(entries.len())
                .min(RANGE_SLICE);
            let (found, revision, log) = {
                let heads = self.heads.read();
                let revision = *wanted.get_or_insert(heads.newest);
                if revision > heads.newest {
                    return Err(StoreError::Future {
                        requested: revision,
                        newest: heads.newest,
                    });
                }
                let found: Vec<(Key, Head)> = heads
                    .under(&request.prefix, start_after.as_deref())
                    .take(slice)
                    .map(|(key, head)| (key.clone(), *head))
                    .collect();
                (found, revision, self.begin_read_of(&heads).map_err(failed)?)
            };
            for (key, head) in &found {
                let entry = layout::entry_seen_at(&log, key, *head, revision);
                entries.extend(entry.map_err(|error| failed(error.into()))?);
            }
            let more = entries.len() > limit;
            if more || found.len() < slice {
                entries.truncate(limit);
                // After reading: what was swept meanwhile was refused before it was swept.
                self.check_kept(revision)?;
                return Ok(RangeResult {
                    entries,
                    revision,
                    more,
                });
            }
            start_after = found.last().map(|(key, _)| key.clone());
        }
    }

    /// Whole commits from `from` on, which exists.
    fn read_log(
        &self,
        prefix: &str,
        from: Revision,
        max_commits: usize,
    ) -> Result<WatchBatch, StoreError> {
        let read = || -> Result<WatchBatch, redb::Error> {
            let log = self.begin_read()?.open_table(LOG)?;
            let end = from
                .saturating_add(max_commits as u64)
                .min(layout::newest(&log)? + 1);
            let range = Position::start_of(from).to_bytes()..Position::start_of(end).to_bytes();
            let mut events = Vec::new();
            for record in log.range::<&[u8; 12]>(&range.start..&range.end)? {
                let (position, record) = record?;
                let record = Record::decode(record.value())?;
                if record.key.starts_with(prefix) {
                    let at = Position::from_bytes(position.value());
                    events.extend(layout::event_at(&log, at, &record)?);
                }
            }
            Ok(WatchBatch {
                revision: end.saturating_sub(1).max(from),
                events,
            })
        };
        let batch = read().map_err(|error| unavailable("watching", error))?;
        self.check_kept(from)?;
        Ok(batch)
    }
}

fn open_database(path: &Path, options: &Options) -> Result<Database, OpenError> {
    let io_error = |error: io::Error| OpenError::Io {
        path: path.to_owned(),
        source: error.into(),
    };
    // Made here for its mode: the store holds secrets.
    let mut made = OpenOptions::new();
    made.read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    made.open(path).map_err(io_error)?;
    let shown = path.to_owned();
    let database = Database::builder()
        .set_cache_size(options.cache_bytes)
        .set_repair_callback(move |repair| {
            let percent = (repair.progress() * 100.0) as u32;
            tracing::info!(path = %shown.display(), percent, "the store was not closed, checking it");
        })
        .create(path)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                OpenError::Locked { path: path.to_owned() }
            }
            other => storage_error(path, other.into()),
        })?;
    prepare(&database, path)?;
    Ok(database)
}

/// Makes the tables in a new file, checks the format of an old one.
fn prepare(database: &Database, path: &Path) -> Result<(), OpenError> {
    let make = || -> Result<u64, redb::Error> {
        let transaction = database.begin_write()?;
        let mut meta = transaction.open_table(META)?;
        let found = meta.get(FORMAT)?.map(|format| format.value());
        if let Some(found) = found {
            return Ok(found);
        }
        meta.insert(FORMAT, FORMAT_KNOWN)?;
        drop(meta);
        transaction.open_table(LOG)?;
        transaction.commit()?;
        Ok(FORMAT_KNOWN)
    };
    match make().map_err(|error| storage_error(path, error))? {
        FORMAT_KNOWN => Ok(()),
        found => Err(OpenError::Format {
            path: path.to_owned(),
            found,
            known: FORMAT_KNOWN,
        }),
    }
}

/// Free room in the file is used again but never given back while it is open: after a flood of writes most of it may be
/// empty. A failure only means that it stays large.
fn shrink(database: &mut Database, path: &Path, options: &Options, used_bytes: u64) {
    let size = || std::fs::metadata(path).map_or(0, |file| file.len());
    let before = size();
    if before <= options.shrink_above_bytes || before / 4 <= used_bytes {
        return;
    }
    match database.compact() {
        Ok(_) => {
            tracing::info!(path = %path.display(), before, after = size(), "shrank the store's file")
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "shrinking the store's file failed");
        }
    }
}

fn storage_error(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    match &error {
        redb::Error::Io(cause) if cause.kind() != io::ErrorKind::InvalidData => OpenError::Io {
            path,
            source: error.into(),
        },
        redb::Error::PreviousIo => OpenError::Io {
            path,
            source: error.into(),
        },
        _ => OpenError::Damaged {
            path,
            source: error.into(),
        },
    }
}

fn unavailable(
    doing: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Unavailable {
        doing,
        source: source.into(),
    }
}

/// Runs a read that may touch the disk where it blocks nobody.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(error) => Err(unavailable(doing, error)),
    }
}
