//! A queue of keys to reconcile.
//!
//! # Guarantees
//! - A key is worked on by one worker at a time. A key added while it is worked on runs once more afterwards.
//! - A key is queued at most once, so the queue is bounded by the number of objects.
//! - A failed key comes back after a jittered exponential delay; a success forgets its failures.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::{Debug, Display},
    future::Future,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{Backoff, ObjectKey};

/// As upstream's rate limiter: 5 ms, doubling. Capped at a minute instead of 1,000 s, so that what was repaired by hand
/// is picked up soon.
const RETRY: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(60));

/// What to do with a key after a successful reconcile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// Look again after this long, even if nothing changes.
    pub requeue_after: Option<Duration>,
}

impl Action {
    /// Nothing until something changes.
    pub const fn done() -> Self {
        Self {
            requeue_after: None,
        }
    }

    pub const fn requeue(after: Duration) -> Self {
        Self {
            requeue_after: Some(after),
        }
    }

    /// The earlier of both.
    pub fn sooner(self, other: Option<Duration>) -> Self {
        Self {
            requeue_after: match (self.requeue_after, other) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

pub struct Queue<T = ObjectKey> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Members of `ready`, and keys in `active` that changed meanwhile.
    dirty: HashSet<T>,
    active: HashSet<T>,
    /// Sorted by time. A key is in here at most once: at its earliest due time, which `due` repeats.
    delayed: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                active: HashSet::new(),
                delayed: BTreeSet::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn add(&self, key: T) {
        self.state.lock().push(key);
        self.wake.notify_one();
    }

    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        match state.due.get(&key).copied() {
            Some(earlier) if earlier <= at => return,
            Some(later) => {
                state.delayed.remove(&(later, key.clone()));
            }
            None => {}
        }
        state.due.insert(key.clone(), at);
        state.delayed.insert((at, key));
        drop(state);
        self.wake.notify_one();
    }

    /// Puts a failed key back after its back-off.
    pub fn retry(&self, key: T) {
        let failures = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            *failures - 1
        };
        self.add_after(key, RETRY.delay(failures));
    }

    pub fn failures(&self, key: &T) -> u32 {
        self.state
            .lock()
            .failures
            .get(key)
            .copied()
            .unwrap_or_default()
    }

    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// The next key; the caller must call [`Queue::done`] with it.
    pub async fn next(&self) -> T {
        loop {
            let due = {
                let mut state = self.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.active.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.active.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Keys ready to be worked on.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn push(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.active.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                return;
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.push(key);
            }
        }
    }
}

/// Runs `reconcile` for every key of `queue` with at most `workers` at a time, until `stop`. Reconciles under way when
/// `stop` fires are dropped at their next await.
pub async fn run<T, F, Fut, E>(
    name: &'static str,
    queue: Arc<Queue<T>>,
    workers: usize,
    stop: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Ord + Debug + Display + Send + Sync + 'static,
    F: Fn(T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let reconcile = Arc::new(reconcile);
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        let (queue, stop, reconcile) = (queue.clone(), stop.clone(), reconcile.clone());
        tasks.spawn(async move {
            let work = async {
                loop {
                    let key = queue.next().await;
                    // A panic is our bug: contained to the key, logged, and retried like an error.
                    let outcome = AssertUnwindSafe(reconcile(key.clone())).catch_unwind().await;
                    match outcome {
                        Ok(Ok(action)) => {
                            queue.forget(&key);
                            if let Some(after) = action.requeue_after {
                                queue.add_after(key.clone(), crate::backoff::jitter(after).max(Duration::from_millis(1)));
                            }
                        }
                        Ok(Err(error)) => {
                            let failures = queue.failures(&key);
                            if failures < 3 {
                                tracing::debug!(controller = name, key = %key, error = %chain(&error), "will retry");
                            } else {
                                tracing::warn!(controller = name, key = %key, failures, error = %chain(&error), "will retry");
                            }
                            queue.retry(key.clone());
                        }
                        Err(_) => {
                            tracing::error!(controller = name, key = %key, "reconcile panicked; will retry");
                            queue.retry(key.clone());
                        }
                    }
                    queue.done(&key);
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// An error with its sources, for a log line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_key_added_while_active_runs_once_more() {
        let queue: Arc<Queue<String>> = Queue::new();
        queue.add("a".into());
        queue.add("a".into());
        let key = queue.next().await;
        assert!(queue.is_empty());
        queue.add(key.clone());
        queue.add(key.clone());
        assert!(queue.is_empty(), "still being worked on");
        queue.done(&key);
        assert_eq!(queue.len(), 1);
        let key = queue.next().await;
        queue.done(&key);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn the_earlier_delay_wins() {
        let queue: Arc<Queue<String>> = Queue::new();
        queue.add_after("a".into(), Duration::from_secs(60));
        queue.add_after("a".into(), Duration::from_millis(20));
        queue.add_after("a".into(), Duration::from_secs(30));
        assert_eq!(queue.state.lock().delayed.len(), 1);
        let first = queue
            .state
            .lock()
            .delayed
            .first()
            .map(|(at, _)| *at)
            .expect("one is delayed");
        assert!(first <= Instant::now() + Duration::from_millis(20));
    }

    #[tokio::test]
    async fn failures_and_panics_are_retried() {
        let queue: Arc<Queue<String>> = Queue::new();
        let stop = CancellationToken::new();
        let runs = Arc::new(AtomicUsize::new(0));
        queue.add("a".into());
        let (counter, stopper) = (runs.clone(), stop.clone());
        run("test", queue.clone(), 2, stop, move |_| {
            let (counter, stopper) = (counter.clone(), stopper.clone());
            async move {
                match counter.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(std::io::Error::other("first")),
                    1 => panic!("second (expected in this test)"),
                    _ => {
                        stopper.cancel();
                        Ok(Action::done())
                    }
                }
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }
}
