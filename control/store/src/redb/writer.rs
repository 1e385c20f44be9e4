//! The one thread that writes.
//!
//! ```text
//! wait for requests, the next due time or sweeping to do
//!   └─► turn: one transaction of the file
//!         every waiting request, in order; each that commits gets the next revision
//!         every key that is due, each as a commit of its own
//!         a slice of sweeping (compaction's actual deleting)
//!       fsync ─► publish to watches ─► answer
//! ```
//! An error in a turn answers its requests with `Unavailable` (what happened to them is unknown) and opens the file
//! again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use redb::{Database, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared, Start,
    feed::Commit,
    layout::{self, COMPACTED, DUE, HEADS, Head, LOG, META, Position, Record, SWEPT},
    open_database, unavailable,
};
use crate::{Entry, Event, Guard, Key, Op, Revision, StoreError, TxnOutcome, last_op_per_key};

/// Bounds of one turn, so that nobody waits long for the others.
const MAX_REQUESTS: usize = 256;
const MAX_EXPIRED: usize = 256;
const SWEEP_RECORDS: usize = 64;
const SWEEP_RECORDS_IDLE: usize = 512;

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
    newest: Revision,
    compacted: Revision,
    swept: Revision,
    next_due_ms: Option<u64>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Request>, start: Start) -> Self {
        let Start {
            newest,
            compacted,
            swept,
            next_due_ms,
        } = start;
        Self {
            shared,
            queue,
            newest,
            compacted,
            swept,
            next_due_ms,
        }
    }

    /// Until every sender is gone.
    pub(super) fn run(mut self) {
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
            self.next_due_ms.map_or(Duration::MAX, |due| {
                Duration::from_millis(due.saturating_sub(now_ms()))
            })
        };
        tokio::select! {
            biased;
            received = self.queue.recv_many(requests, MAX_REQUESTS) => received > 0,
            () = tokio::time::sleep(sleep) => true,
        }
    }

    fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), redb::Error> {
        let database = self.shared.database.read().clone();
        let database: Arc<Database> = database.ok_or(redb::Error::DatabaseClosed)?;
        let transaction = database.begin_write()?;
        let mut answers = Vec::with_capacity(requests.len());
        let mut turn = Turn::begin(&transaction, self.newest)?;
        let mut compacted = self.compacted;
        let idle = requests.is_empty();
        // The requests stay where they are until nothing can fail any more: an error drops them, which their
        // senders notice.
        for request in requests.drain(..) {
            answers.push(match request {
                Request::Txn { guards, ops, reply } => {
                    let outcome = match turn.first_conflict(&guards)? {
                        Some(conflict) => conflict,
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
        turn.expire(now_ms())?;
        let next_due_ms = turn.due.first()?.map(|(due, _)| due.value().0);
        // Sweeping goes up to what reads were refused below before this turn.
        let limit = if idle {
            SWEEP_RECORDS_IDLE
        } else {
            SWEEP_RECORDS
        };
        let swept = turn.sweep(self.swept, self.compacted, limit)?;
        let (newest, commits, changed) = turn.finish();
        if compacted != self.compacted || swept != self.swept {
            let mut meta = transaction.open_table(META)?;
            meta.insert(COMPACTED, compacted)?;
            meta.insert(SWEPT, swept)?;
            drop(meta);
            transaction.commit()?;
        } else if changed {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        (self.newest, self.compacted, self.swept) = (newest, compacted, swept);
        self.next_due_ms = next_due_ms;
        self.shared.oldest.store(compacted, Ordering::Release);
        self.shared.feed.publish(commits);
        for answer in answers {
            // Nobody waits any more: the request was cancelled.
            let _ = match answer {
                Answer::Txn(reply, outcome) => reply.send(Ok(outcome)).is_ok(),
                Answer::Compact(reply, result) => reply.send(result).is_ok(),
            };
        }
        Ok(())
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
        let start = Start::read(&database)?;
        if start.newest < self.newest {
            return Err(format!(
                "the file ends at revision {}, but {} was acknowledged: the disk lost writes",
                start.newest, self.newest
            )
            .into());
        }
        // The failed commit may have reached the disk after all.
        if start.newest > self.newest {
            self.shared.feed.skip_to(start.newest);
        }
        self.shared.oldest.store(start.compacted, Ordering::Release);
        Start {
            newest: self.newest,
            compacted: self.compacted,
            swept: self.swept,
            next_due_ms: self.next_due_ms,
        } = start;
        *self.shared.database.write() = Some(Arc::new(database));
        Ok(())
    }
}

/// The tables, open for writing, and what the turn did so far.
struct Turn<'t> {
    log: Table<'t, &'static [u8; 12], &'static [u8]>,
    heads: Table<'t, &'static str, &'static [u8; 29]>,
    due: Table<'t, (u64, &'static str), ()>,
    newest: Revision,
    commits: Vec<Commit>,
    changed: bool,
}

impl<'t> Turn<'t> {
    fn begin(transaction: &'t WriteTransaction, newest: Revision) -> Result<Self, redb::Error> {
        Ok(Self {
            log: transaction.open_table(LOG)?,
            heads: transaction.open_table(HEADS)?,
            due: transaction.open_table(DUE)?,
            newest,
            commits: Vec::new(),
            changed: false,
        })
    }

    /// Closes the tables.
    fn finish(self) -> (Revision, Vec<Commit>, bool) {
        (self.newest, self.commits, self.changed)
    }

    fn head(&self, key: &str) -> Result<Option<Head>, redb::Error> {
        Ok(self
            .heads
            .get(key)?
            .map(|head| Head::from_bytes(head.value())))
    }

    fn first_conflict(&self, guards: &[Guard]) -> Result<Option<TxnOutcome>, redb::Error> {
        for (guard, wanted) in guards.iter().enumerate() {
            let (key, revision) = match wanted {
                Guard::Missing(key) => (key, None),
                Guard::Unchanged(key, revision) => (key, Some(*revision)),
            };
            let head = self.head(key)?.filter(|head| head.live);
            if head.map(|head| head.at.revision) != revision {
                let current = match head {
                    Some(head) => layout::entry_at(&self.log, head.at)?,
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
                Op::Delete { key } => self.delete(at, key)?,
            });
        }
        if !events.is_empty() {
            self.newest = revision;
            self.changed = true;
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
        let head = self.head(&key)?;
        let previous = match head {
            Some(head) if head.live => layout::entry_at(&self.log, head.at)?,
            _ => None,
        };
        let create_revision = previous.as_ref().map_or(at.revision, |p| p.create_revision);
        self.write(at, &key, Some(&value), create_revision, due_ms, head)?;
        let entry = Entry {
            key,
            value,
            create_revision,
            mod_revision: at.revision,
        };
        Ok(Event::Put { entry, previous })
    }

    fn delete(&mut self, at: Position, key: Key) -> Result<Option<Event>, redb::Error> {
        let Some(head) = self.head(&key)?.filter(|head| head.live) else {
            return Ok(None);
        };
        let Some(previous) = layout::entry_at(&self.log, head.at)? else {
            return Ok(None);
        };
        self.write(at, &key, None, 0, 0, Some(head))?;
        Ok(Some(Event::Delete {
            key,
            revision: at.revision,
            previous,
        }))
    }

    fn write(
        &mut self,
        at: Position,
        key: &str,
        value: Option<&[u8]>,
        create_revision: Revision,
        due_ms: u64,
        replaced: Option<Head>,
    ) -> Result<(), redb::Error> {
        let record = Record {
            key,
            value,
            create_revision,
            replaced: replaced.map_or(Position::NONE, |head| head.at),
        };
        let mut space = self
            .log
            .insert_reserve(&at.to_bytes(), record.encoded_len())?;
        record.encode(space.as_mut());
        drop(space);
        let head = Head {
            at,
            create_revision,
            due_ms,
            live: value.is_some(),
        };
        self.heads.insert(key, &head.to_bytes())?;
        if let Some(before) = replaced.filter(|head| head.due_ms != 0) {
            self.due.remove((before.due_ms, key))?;
        }
        if due_ms != 0 {
            self.due.insert((due_ms, key), ())?;
        }
        Ok(())
    }

    /// Each as a commit of its own: clients resume watches by revision, between any two events.
    fn expire(&mut self, now_ms: u64) -> Result<(), redb::Error> {
        let mut all_due: Vec<(u64, Key)> = Vec::new();
        for due in self.due.range(..(now_ms + 1, ""))?.take(MAX_EXPIRED) {
            let (due, _) = due?;
            let (due_ms, key) = due.value();
            all_due.push((due_ms, key.into()));
        }
        for (due_ms, key) in all_due {
            self.due.remove((due_ms, key.as_ref()))?;
            self.commit(vec![Op::Delete { key }])?;
        }
        Ok(())
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
            if self.head(&key)?.is_some_and(|head| head.at == at) {
                self.heads.remove(key.as_ref())?;
            }
        }
        self.changed = true;
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
