//! The newest commits in memory, for watches that keep up; the others read the log on disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Shared, unavailable};
use crate::{Event, Revision, StoreError, WatchBatch};

/// How much of the newest commits stays in memory.
const TAIL_BYTES: usize = 2 << 20;

/// How many commits a watch hands out at once.
const BATCH_COMMITS: usize = 512;

pub(super) struct Commit {
    pub(super) revision: Revision,
    pub(super) events: Vec<Event>,
}

impl Commit {
    fn size_bytes(&self) -> usize {
        let values = self.events.iter().map(|event| match event {
            Event::Put { entry, previous } => {
                entry.value.len() + previous.as_ref().map_or(0, |previous| previous.value.len())
            }
            Event::Delete { previous, .. } => previous.value.len(),
        });
        size_of::<Self>() + self.events.len() * size_of::<Event>() + values.sum::<usize>()
    }
}

pub(super) struct Feed {
    newest: watch::Sender<Revision>,
    tail: Mutex<Tail>,
}

struct Tail {
    /// Without gaps, up to the newest.
    commits: VecDeque<Arc<Commit>>,
    size_bytes: usize,
}

impl Feed {
    pub(super) fn new(newest: Revision) -> Self {
        let tail = Tail {
            commits: VecDeque::new(),
            size_bytes: 0,
        };
        Self {
            newest: watch::Sender::new(newest),
            tail: Mutex::new(tail),
        }
    }

    pub(super) fn newest(&self) -> Revision {
        *self.newest.borrow()
    }

    /// `commits` follow on the newest.
    pub(super) fn publish(&self, commits: Vec<Commit>) {
        let Some(revision) = commits.last().map(|commit| commit.revision) else {
            return;
        };
        let mut tail = self.tail.lock();
        for commit in commits {
            tail.size_bytes += commit.size_bytes();
            tail.commits.push_back(Arc::new(commit));
        }
        while tail.size_bytes > TAIL_BYTES
            && let Some(oldest) = tail.commits.pop_front()
        {
            tail.size_bytes -= oldest.size_bytes();
        }
        drop(tail);
        self.newest.send_replace(revision);
    }

    /// Commits up to `newest` are on disk that were never published.
    pub(super) fn skip_to(&self, newest: Revision) {
        *self.tail.lock() = Tail {
            commits: VecDeque::new(),
            size_bytes: 0,
        };
        self.newest.send_replace(newest);
    }

    /// `None`: `from` is older than what is in memory.
    fn commits_from(&self, from: Revision) -> Option<Vec<Arc<Commit>>> {
        let tail = self.tail.lock();
        let first = tail.commits.front()?.revision;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        Some(
            tail.commits
                .iter()
                .skip(skip)
                .take(BATCH_COMMITS)
                .cloned()
                .collect(),
        )
    }
}

pub(super) struct Cursor {
    shared: Weak<Shared>,
    newest: watch::Receiver<Revision>,
    prefix: Arc<str>,
    next: Revision,
}

impl Cursor {
    /// `next` 0: what comes after now.
    pub(super) fn new(shared: &Arc<Shared>, prefix: &str, next: Revision) -> Self {
        let newest = shared.feed.newest.subscribe();
        let next = if next == 0 {
            *newest.borrow() + 1
        } else {
            next
        };
        Self {
            shared: Arc::downgrade(shared),
            newest,
            prefix: prefix.into(),
            next,
        }
    }

    pub(super) fn stream(self) -> impl Stream<Item = Result<WatchBatch, StoreError>> {
        stream::unfold(Some(self), |cursor| async {
            let mut cursor = cursor?;
            match cursor.batch().await {
                Ok(batch) => {
                    cursor.next = batch.revision + 1;
                    Some((Ok(batch), Some(cursor)))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn batch(&mut self) -> Result<WatchBatch, StoreError> {
        let next = self.next;
        let closed = || unavailable("watching", "the store was closed");
        self.newest
            .wait_for(|newest| *newest >= next)
            .await
            .map_err(|_| closed())?;
        let shared = self.shared.upgrade().ok_or_else(closed)?;
        if let Some(commits) = shared.feed.commits_from(next) {
            let events = commits
                .iter()
                .flat_map(|commit| &commit.events)
                .filter(|event| event.key().starts_with(self.prefix.as_ref()))
                .cloned()
                .collect();
            let revision = commits.last().map_or(next, |commit| commit.revision);
            return Ok(WatchBatch { revision, events });
        }
        let prefix = self.prefix.clone();
        super::blocking("watching", move || {
            shared.read_log(&prefix, next, BATCH_COMMITS)
        })
        .await
    }
}
