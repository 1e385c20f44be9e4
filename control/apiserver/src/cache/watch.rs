//! Who watches what, and the queue between the cache and one watcher.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use futures::Stream;
use skep_store::Revision;
use tokio::sync::mpsc;

use super::{Entry, Event, Inner, Snapshot};

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFrom {
    /// Every event with a later revision than this.
    After(Revision),
    /// Only what happens from now on.
    Now,
    /// First what is there, as [`WatchItem::Initial`], then what happens.
    InitialEvents,
}

#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// A resource's or namespace's prefix, ending in `/`; or one whole key.
    pub prefix: String,
    pub from: WatchFrom,
    /// Only events where this indexed field has this value before or after (`spec.nodeName`). A thousand watchers
    /// that each select another value then cost no more than one. The selector itself is still the caller's to apply.
    pub field: Option<(String, String)>,
}

#[derive(Clone, Debug)]
pub enum WatchItem {
    Initial(Arc<Entry>),
    /// All initial entries were sent; they are as of this revision.
    InitialEnd(Revision),
    Event(Arc<Event>),
}

/// Why a watch could not start or had to end; the client lists again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    #[error("too old resource version: {requested} ({oldest})")]
    TooOld {
        requested: Revision,
        oldest: Revision,
    },
    /// It read too slowly, or the cache itself had to start over.
    #[error("the watcher fell behind")]
    FellBehind,
}

/// A running watch. As a stream it ends with [`Gone::FellBehind`], or when the cache goes away.
pub struct Watch {
    inner: Arc<Inner>,
    scope: Scope,
    id: u64,
    initial: Option<Initial>,
    /// What had happened between `from` and the start of the watch.
    replay: VecDeque<Arc<Event>>,
    queue: mpsc::Receiver<Arc<Event>>,
    ended: bool,
    started_at: Revision,
}

struct Initial {
    snapshot: Snapshot,
    /// Start of the next page.
    next: Option<Arc<Entry>>,
    page: std::vec::IntoIter<Arc<Entry>>,
    read_all: bool,
}

const INITIAL_PAGE: usize = 500;

impl Watch {
    /// A revision such that everything up to it has been taken out of this watch: what a bookmark may say. `None`
    /// while events wait, whose own revisions serve as well.
    pub fn progress(&self) -> Option<Revision> {
        // The revision first: whatever it covers is in the queue already.
        let revision = self.inner.revision();
        (self.initial.is_none() && self.replay.is_empty() && self.queue.is_empty() && !self.ended)
            .then_some(revision)
    }

    /// The initial entries that come next, as far as they are known: at most `count`.
    pub fn upcoming(&self, count: usize) -> &[Arc<Entry>] {
        let page = self.initial.as_ref().map(|initial| initial.page.as_slice());
        let page = page.unwrap_or_default();
        &page[..page.len().min(count)]
    }

    /// The cache's revision when the watch was registered.
    pub fn started_at(&self) -> Revision {
        self.started_at
    }
}

impl Stream for Watch {
    type Item = Result<WatchItem, Gone>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(initial) = &mut self.initial {
            if let Some(entry) = initial.next() {
                return Poll::Ready(Some(Ok(WatchItem::Initial(entry))));
            }
            let revision = initial.snapshot.revision;
            self.initial = None;
            return Poll::Ready(Some(Ok(WatchItem::InitialEnd(revision))));
        }
        if let Some(event) = self.replay.pop_front() {
            return Poll::Ready(Some(Ok(WatchItem::Event(event))));
        }
        match self.queue.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(Some(Ok(WatchItem::Event(event)))),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(Some(Err(Gone::FellBehind)))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.inner.watchers.lock().remove(&self.scope, self.id);
        self.inner.metrics.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Initial {
    fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            next: None,
            page: Vec::new().into_iter(),
            read_all: false,
        }
    }

    fn next(&mut self) -> Option<Arc<Entry>> {
        if self.page.len() == 0 && !self.read_all {
            let after = self.next.as_ref().map(|entry| entry.key.as_ref());
            let page: Vec<_> = self
                .snapshot
                .after(after)
                .take(INITIAL_PAGE)
                .cloned()
                .collect();
            self.read_all = page.len() < INITIAL_PAGE;
            self.next = page.last().cloned();
            self.page = page.into_iter();
        }
        self.page.next()
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Scope {
    prefix: Box<str>,
    field: Option<(Box<str>, Box<str>)>,
}

/// All running watches, found by what they select.
#[derive(Default)]
pub(super) struct Watchers {
    next_id: u64,
    by_prefix: HashMap<Box<str>, Bucket>,
}

#[derive(Default)]
struct Bucket {
    all: Vec<Watcher>,
    by_field: HashMap<(Box<str>, Box<str>), Vec<Watcher>>,
}

struct Watcher {
    id: u64,
    /// Dropped to end the watch.
    queue: mpsc::Sender<Arc<Event>>,
}

impl Watchers {
    /// `initial` and `replay` must be as of the cache's state at this moment: the caller holds the lock on `self`.
    pub(super) fn register(
        &mut self,
        inner: &Arc<Inner>,
        request: WatchRequest,
        initial: Option<Snapshot>,
        replay: VecDeque<Arc<Event>>,
        started_at: Revision,
    ) -> Watch {
        let scope = Scope {
            prefix: request.prefix.into(),
            field: request
                .field
                .map(|(name, value)| (name.into(), value.into())),
        };
        let (sender, queue) = mpsc::channel(inner.options.watch_queue_events.max(1));
        self.next_id += 1;
        let watcher = Watcher {
            id: self.next_id,
            queue: sender,
        };
        let bucket = self.by_prefix.entry(scope.prefix.clone()).or_default();
        match &scope.field {
            None => bucket.all.push(watcher),
            Some(field) => bucket
                .by_field
                .entry(field.clone())
                .or_default()
                .push(watcher),
        }
        inner.metrics.watchers.fetch_add(1, Ordering::Relaxed);
        Watch {
            inner: inner.clone(),
            scope,
            id: self.next_id,
            initial: initial.map(Initial::new),
            replay,
            queue,
            ended: false,
            started_at,
        }
    }

    fn remove(&mut self, scope: &Scope, id: u64) {
        let Some(bucket) = self.by_prefix.get_mut(&scope.prefix) else {
            return;
        };
        match &scope.field {
            None => bucket.all.retain(|watcher| watcher.id != id),
            Some(field) => {
                if let Some(watchers) = bucket.by_field.get_mut(field) {
                    watchers.retain(|watcher| watcher.id != id);
                    if watchers.is_empty() {
                        bucket.by_field.remove(field);
                    }
                }
            }
        }
        if bucket.all.is_empty() && bucket.by_field.is_empty() {
            self.by_prefix.remove(&scope.prefix);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// Ends every watch, because events were missed.
    pub(super) fn end_all(&mut self) {
        self.by_prefix.clear();
    }

    /// Queues the event for all who select it. Returns how many had no room left and were ended.
    pub(super) fn send(&mut self, event: &Arc<Event>) -> usize {
        let key = event.entry.key.as_ref();
        // Every way in which the key can be selected: `/registry/`, …, its resource, its namespace, itself.
        let slashes = key
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'/')
            .map(|(at, _)| at + 1);
        let mut ended = 0;
        for end in slashes.chain([key.len()]) {
            let Some(bucket) = self.by_prefix.get_mut(&key[..end]) else {
                continue;
            };
            ended += send_to(&mut bucket.all, event);
            if bucket.by_field.is_empty() {
                continue;
            }
            let before = event
                .previous
                .iter()
                .flat_map(|previous| previous.fields.iter());
            let before = before.filter(|(name, value)| event.entry.fields.get(name) != Some(value));
            for (name, value) in event.entry.fields.iter().chain(before) {
                if let Some(watchers) = bucket.by_field.get_mut(&(name.into(), value.into())) {
                    ended += send_to(watchers, event);
                }
            }
        }
        ended
    }
}

fn send_to(watchers: &mut Vec<Watcher>, event: &Arc<Event>) -> usize {
    let mut ended = 0;
    watchers.retain(|watcher| match watcher.queue.try_send(event.clone()) {
        Ok(()) => true,
        Err(mpsc::error::TrySendError::Full(_)) => {
            ended += 1;
            false
        }
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    });
    ended
}
