//! The one thread that writes.
//!
//! ```text
//! wait for requests (a few more if there were more the last time), the next due time or sweeping to do
//!   └─► turn: one transaction of the file
//!         every waiting request, in order; each that commits gets the next revision
//!         every key that is due, each as a commit of its own
//!         a slice of sweeping (compaction's actual deleting)
//!       fsync ─► heads in memory ─► publish to watches ─► answer
//! ```
//! An error in a turn answers its requests with `Unavailable` (what happened to them is unknown) and opens the file
//! again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::RwLock;
use redb::{Database, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared, Start,
    feed::Commit,
    layout::{self, COMPACTED, Head, Heads, LOG, META, Position, Record, SWEPT},
    open_database, unavailable,
};
use crate::{Entry, Event, Guard, Key, Op, Revision, StoreError, TxnOutcome, last_op_per_key};

/// Bounds of one turn, so that nobody waits long for the others.
const MAX_REQUESTS: usize = 256;
const MAX_EXPIRED: usize = 256;
/// And twice the requests, so that sweeping keeps up with any load.
const SWEEP_RECORDS: usize = 64;
const SWEEP_RECORDS_IDLE: usize = 512;

/// How long a turn waits for as many requests as the last one had. An fsync is cheaper for many: with a crowd of clients,
/// whoever comes first would else have one alone while the others still work on their requests.
const GATHER: Duration = Duration::from_millis(1);

const REOPEN_MIN: Duration = Duration::from_millis(100);
const REOPEN_MAX: Duration = Duration::from_secs(5);

pub(super) enum Request {
    Txn {
        guards: Vec<Guard>,
        ops: Vec<Op>,
        reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
    },
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// A store whose writer died would answer reads and refuse writes for ever: a new process heals that.
struct EndsTheProcess;

impl Drop for EndsTheProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the store's writer panicked, ending the process");
            std::process::abort();
        }
    }
}

/// An answer that must not leave before the fsync.
enum Answer {
    Txn(oneshot::Sender<Result<TxnOutcome, StoreError>>, TxnOutcome),
    Compact(
        oneshot::Sender<Result<(), StoreError>>,
        Result<(), StoreError>,
    ),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
    compacted: Revision,
    swept: Revision,
    /// (due time, key) of every head that has one.
    due: BTreeSet<(u64, Key)>,
    /// Requests of the last turn.
    crowd: usize,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Request>, start: Start) -> Self {
        let Start { compacted, swept } = start;
        let due = due_of(&shared.heads.read());
        Self {
            shared,
            queue,
            compacted,
            swept,
            due,
            crowd: 0,
        }
    }

    /// Until every sender is gone.
    pub(super) fn run(mut self) {
        let _guard = EndsTheProcess;
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the store's writer cannot start");
                return;
            }
        };
        let mut requests = Vec::with_capacity(MAX_REQUESTS);
        while runtime.block_on(self.wait(&mut requests)) {
            if let Err(error) = self.turn(&mut requests) {
                tracing::error!(%error, path = %self.shared.path.display(), "a commit failed, opening the store again");
                requests.clear();
                if !self.reopen(&runtime) {
                    break;
                }
            }
        }
        *self.shared.database.write() = None;
    }

    /// `false`: no more requests will come.
    async fn wait(&mut self, requests: &mut Vec<Request>) -> bool {
        let sleep = if self.swept < self.compacted {
            Duration::ZERO
        } else {
            self.due.first().map_or(Duration::MAX, |(due_ms, _)| {
                Duration::from_millis(due_ms.saturating_sub(now_ms()))
            })
        };
        let open = tokio::select! {
            biased;
            received = self.queue.recv_many(requests, MAX_REQUESTS) => received > 0,
            () = tokio::time::sleep(sleep) => true,
        };
        if !requests.is_empty() && requests.len() < self.crowd {
            let gather = async {
                while requests.len() < self.crowd {
                    let room = MAX_REQUESTS - requests.len();
                    if self.queue.recv_many(requests, room).await == 0 {
                        return;
                    }
                }
            };
            // What has come by then is what the turn does.
            let _late = tokio::time::timeout(GATHER, gather).await;
        }
        self.crowd = requests.len();
        open
    }

    fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), redb::Error> {
        let database = self.shared.database.read().clone();
        let database: Arc<Database> = database.ok_or(redb::Error::DatabaseClosed)?;
        let transaction = database.begin_write()?;
        let mut answers = Vec::with_capacity(requests.len());
        let mut turn = Turn::begin(&transaction, &self.shared.heads)?;
        let mut compacted = self.compacted;
        let mut conflicts = 0;
        let asked = requests.len();
        // An error drops the requests and the answers, which their senders notice.
        for request in requests.drain(..) {
            answers.push(match request {
                Request::Txn { guards, ops, reply } => {
                    let outcome = match turn.first_conflict(&guards)? {
                        Some(conflict) => {
                            conflicts += 1;
                            conflict
                        }
                        None => TxnOutcome::Committed {
                            revision: turn.commit(ops)?,
                        },
                    };
                    Answer::Txn(reply, outcome)
                }
                Request::Compact { revision, reply } => {
                    let newest = turn.newest;
                    let result = if revision > newest {
                        Err(StoreError::Future {
                            requested: revision,
                            newest,
                        })
                    } else {
                        compacted = compacted.max(revision);
                        Ok(())
                    };
                    Answer::Compact(reply, result)
                }
            });
        }
        let now_ms = now_ms();
        let due = self.due.iter().take_while(|(due_ms, _)| *due_ms <= now_ms);
        let mut expired = 0;
        for (_, key) in due.take(MAX_EXPIRED) {
            expired += u64::from(turn.expire(key, now_ms)?);
        }
        // Sweeping goes up to what reads were refused below before this turn.
        let limit = match asked {
            0 => SWEEP_RECORDS_IDLE,
            asked => SWEEP_RECORDS + 2 * asked,
        };
        let swept = turn.sweep(self.swept, self.compacted, limit)?;
        let (changes, commits) = turn.finish();
        let meta_changed = compacted != self.compacted || swept != self.swept;
        if meta_changed {
            let mut meta = transaction.open_table(META)?;
            meta.insert(COMPACTED, compacted)?;
            meta.insert(SWEPT, swept)?;
        }
        if meta_changed || !commits.is_empty() {
            #[cfg(test)]
            self.shared.options.fault.before_commit()?;
            let started = Instant::now();
            transaction.commit()?;
            #[cfg(test)]
            self.shared.options.fault.after_commit()?;
            self.count_commit(started.elapsed());
        } else {
            transaction.abort()?;
        }
        (self.compacted, self.swept) = (compacted, swept);
        self.apply(changes, commits.last().map(|commit| commit.revision));
        self.shared.oldest.store(compacted, Ordering::Release);
        self.shared.feed.publish(commits);
        self.shared
            .metrics
            .expired_keys
            .fetch_add(expired, Ordering::Relaxed);
        self.shared
            .metrics
            .txns
            .fetch_add(answers.len() as u64, Ordering::Relaxed);
        self.shared
            .metrics
            .conflicts
            .fetch_add(conflicts, Ordering::Relaxed);
        for answer in answers {
            // Nobody waits any more: the request was cancelled.
            let _ = match answer {
                Answer::Txn(reply, outcome) => reply.send(Ok(outcome)).is_ok(),
                Answer::Compact(reply, result) => reply.send(result).is_ok(),
            };
        }
        Ok(())
    }

    /// Makes what was committed visible to reads.
    fn apply(&mut self, changes: HashMap<Key, Option<Head>>, newest: Option<Revision>) {
        let mut heads = self.shared.heads.write();
        for (key, head) in changes {
            let before = match head {
                Some(head) => heads.by_key.insert(key.clone(), head),
                None => heads.by_key.remove(&key),
            };
            if let Some(before) = before.filter(|head| head.due_ms != 0) {
                self.due.remove(&(before.due_ms, key.clone()));
            }
            if let Some(head) = head.filter(|head| head.due_ms != 0) {
                self.due.insert((head.due_ms, key));
            }
        }
        if let Some(newest) = newest {
            heads.newest = newest;
        }
    }

    fn count_commit(&self, took: Duration) {
        let metrics = &self.shared.metrics;
        metrics.fsyncs.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        metrics.fsync_ns.fetch_add(ns, Ordering::Relaxed);
        // Told by the file system without reading anything; if it cannot tell, the last size stays.
        if let Ok(file) = std::fs::metadata(&self.shared.path) {
            metrics.file_bytes.store(file.len(), Ordering::Relaxed);
        }
    }

    /// Until it works. Meanwhile requests are refused. `false`: no more requests will come.
    fn reopen(&mut self, runtime: &tokio::runtime::Runtime) -> bool {
        *self.shared.database.write() = None;
        let mut wait = REOPEN_MIN;
        loop {
            match self.try_reopen() {
                Ok(()) => return true,
                Err(error) => {
                    tracing::error!(error = %error, "the store cannot be opened again yet")
                }
            }
            let refuse = async {
                while let Some(request) = self.queue.recv().await {
                    let error = || unavailable("committing", "the store's file has an I/O error");
                    let _ = match request {
                        Request::Txn { reply, .. } => reply.send(Err(error())).is_ok(),
                        Request::Compact { reply, .. } => reply.send(Err(error())).is_ok(),
                    };
                }
            };
            if runtime
                .block_on(async { tokio::time::timeout(wait, refuse).await })
                .is_ok()
            {
                return false;
            }
            wait = (wait * 2).min(REOPEN_MAX);
        }
    }

    fn try_reopen(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let database = open_database(&self.shared.path, &self.shared.options)?;
        let (start, heads) = Start::read(&database)?;
        let (found, acknowledged) = (heads.newest, self.shared.heads.read().newest);
        if found < acknowledged {
            return Err(format!(
                "the file ends at revision {found}, but {acknowledged} was acknowledged: the disk lost writes"
            )
            .into());
        }
        Start {
            compacted: self.compacted,
            swept: self.swept,
        } = start;
        self.due = due_of(&heads);
        *self.shared.heads.write() = heads;
        self.shared.oldest.store(self.compacted, Ordering::Release);
        *self.shared.database.write() = Some(Arc::new(database));
        self.shared.metrics.reopens.fetch_add(1, Ordering::Relaxed);
        // The failed commit may have reached the disk after all.
        if found > acknowledged {
            self.shared.feed.skip_to(found);
        }
        Ok(())
    }
}

fn due_of(heads: &Heads) -> BTreeSet<(u64, Key)> {
    let due = heads.by_key.iter().filter(|(_, head)| head.due_ms != 0);
    due.map(|(key, head)| (head.due_ms, key.clone())).collect()
}

/// The log, open for writing, and what the turn did so far.
struct Turn<'t> {
    log: Table<'t, &'static [u8; 12], &'static [u8]>,
    /// Without this turn's changes.
    heads: &'t RwLock<Heads>,
    /// `None`: nothing is left of the key.
    changes: HashMap<Key, Option<Head>>,
    newest: Revision,
    commits: Vec<Commit>,
}

impl<'t> Turn<'t> {
    fn begin(
        transaction: &'t WriteTransaction,
        heads: &'t RwLock<Heads>,
    ) -> Result<Self, redb::Error> {
        Ok(Self {
            log: transaction.open_table(LOG)?,
            heads,
            changes: HashMap::new(),
            newest: heads.read().newest,
            commits: Vec::new(),
        })
    }

    /// Closes the log.
    fn finish(self) -> (HashMap<Key, Option<Head>>, Vec<Commit>) {
        (self.changes, self.commits)
    }

    /// With the one copy of the key that everybody shares.
    fn head(&self, key: &str) -> Option<(Key, Head)> {
        if let Some((key, head)) = self.changes.get_key_value(key) {
            return head.map(|head| (key.clone(), head));
        }
        let heads = self.heads.read();
        heads
            .by_key
            .get_key_value(key)
            .map(|(key, head)| (key.clone(), *head))
    }

    fn first_conflict(&self, guards: &[Guard]) -> Result<Option<TxnOutcome>, redb::Error> {
        for (guard, wanted) in guards.iter().enumerate() {
            let (key, revision) = match wanted {
                Guard::Missing(key) => (key, None),
                Guard::Unchanged(key, revision) => (key, Some(*revision)),
            };
            let head = self.head(key).filter(|(_, head)| head.live);
            if head.as_ref().map(|(_, head)| head.at.revision) != revision {
                let current = match head {
                    Some((key, head)) => layout::entry_at(&self.log, &key, head.at)?,
                    None => None,
                };
                return Ok(Some(TxnOutcome::Conflict { guard, current }));
            }
        }
        Ok(None)
    }

    /// Returns the commit's revision; the newest one if the operations change nothing.
    fn commit(&mut self, ops: Vec<Op>) -> Result<Revision, redb::Error> {
        let revision = self.newest + 1;
        let mut events = Vec::with_capacity(ops.len());
        for op in last_op_per_key(ops) {
            let at = Position {
                revision,
                index: events.len() as u32,
            };
            events.extend(match op {
                Op::Put { key, value, ttl } => {
                    let due_ms = ttl.map_or(0, |ttl| due_after(ttl, now_ms()));
                    Some(self.put(at, key, value, due_ms)?)
                }
                Op::Delete { key } => self.delete(at, &key)?,
            });
        }
        if !events.is_empty() {
            self.newest = revision;
            self.commits.push(Commit { revision, events });
        }
        Ok(self.newest)
    }

    fn put(
        &mut self,
        at: Position,
        key: Key,
        value: Bytes,
        due_ms: u64,
    ) -> Result<Event, redb::Error> {
        let (key, head) = match self.head(&key) {
            Some((key, head)) => (key, Some(head)),
            None => (key, None),
        };
        let previous = match head {
            Some(head) if head.live => layout::entry_at(&self.log, &key, head.at)?,
            _ => None,
        };
        let create_revision = previous.as_ref().map_or(at.revision, |p| p.create_revision);
        let record = Record {
            key: &key,
            value: Some(&value),
            create_revision,
            due_ms,
            replaced: head.map_or(Position::NONE, |head| head.at),
        };
        self.write(at, &key, &record)?;
        let entry = Entry {
            key,
            value,
            create_revision,
            mod_revision: at.revision,
        };
        Ok(Event::Put { entry, previous })
    }

    fn delete(&mut self, at: Position, key: &str) -> Result<Option<Event>, redb::Error> {
        let Some((key, head)) = self.head(key).filter(|(_, head)| head.live) else {
            return Ok(None);
        };
        let Some(previous) = layout::entry_at(&self.log, &key, head.at)? else {
            return Ok(None);
        };
        let record = Record {
            key: &key,
            value: None,
            create_revision: 0,
            due_ms: 0,
            replaced: head.at,
        };
        self.write(at, &key, &record)?;
        Ok(Some(Event::Delete {
            key,
            revision: at.revision,
            previous,
        }))
    }

    fn write(&mut self, at: Position, key: &Key, record: &Record<'_>) -> Result<(), redb::Error> {
        let mut space = self
            .log
            .insert_reserve(&at.to_bytes(), record.encoded_len())?;
        record.encode(space.as_mut());
        drop(space);
        self.changes.insert(key.clone(), Some(record.head(at)));
        Ok(())
    }

    /// As a commit of its own: clients resume watches by revision, between any two events. `false`: the key was
    /// written again in this turn.
    fn expire(&mut self, key: &Key, now_ms: u64) -> Result<bool, redb::Error> {
        let is_due = |head: &Head| head.due_ms != 0 && head.due_ms <= now_ms;
        if !self.head(key).is_some_and(|(_, head)| is_due(&head)) {
            return Ok(false);
        }
        self.commit(vec![Op::Delete { key: key.clone() }])?;
        Ok(true)
    }

    /// Deletes what records in `from..to` replaced, and the deletes among them. Returns how far it came.
    ///
    /// What the record at `to` itself replaced stays: a watch from there shows it as the previous value.
    fn sweep(
        &mut self,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<Revision, redb::Error> {
        if from >= to {
            return Ok(from);
        }
        let mut useless = Vec::new();
        let mut deleted: Vec<(Key, Position)> = Vec::new();
        let mut swept = to;
        let range = Position::start_of(from).to_bytes()..Position::start_of(to).to_bytes();
        for (seen, record) in self
            .log
            .range::<&[u8; 12]>(&range.start..&range.end)?
            .enumerate()
        {
            let (position, record) = record?;
            let at = Position::from_bytes(position.value());
            // Whole commits only.
            if seen >= limit && at.index == 0 {
                swept = at.revision;
                break;
            }
            let record = Record::decode(record.value())?;
            if record.replaced != Position::NONE {
                useless.push(record.replaced);
            }
            if record.value.is_none() {
                useless.push(at);
                deleted.push((record.key.into(), at));
            }
        }
        for at in useless {
            self.log.remove(&at.to_bytes())?;
        }
        for (key, at) in deleted {
            if self.head(&key).is_some_and(|(_, head)| head.at == at) {
                self.changes.insert(key, None);
            }
        }
        Ok(swept)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Rounded up: never before.
fn due_after(ttl: Duration, now_ms: u64) -> u64 {
    let ttl_ms = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    now_ms.saturating_add(1).saturating_add(ttl_ms)
}
