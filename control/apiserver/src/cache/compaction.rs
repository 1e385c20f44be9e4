//! Forgets old revisions of the store, so that its file stays bounded.
//!
//! As kube-apiserver does: what was the newest revision one interval ago is compacted, so that clients can continue
//! lists and resume watches for at least that long. Under a flood of writes the number of revisions bounds it first.
//! Several API servers over one etcd may all do this: compacting twice does no harm.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use skep_store::Revision;
use tokio::time::{Instant, MissedTickBehavior};

use super::Inner;

/// How much history the store keeps.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub age: Duration,
    pub revisions: u64,
}

impl Default for Keep {
    /// Five minutes are kube-apiserver's. A quarter of a million changes of 1 KB objects are about 300 MB.
    fn default() -> Self {
        Self {
            age: Duration::from_secs(300),
            revisions: 250_000,
        }
    }
}

/// How often it is looked whether there is something to compact.
const CHECKS_PER_AGE: u32 = 20;

const MIN_CHECK: Duration = Duration::from_millis(1);

/// Runs for ever.
pub(super) async fn run(inner: Arc<Inner>, keep: Keep) {
    let mut plan = Plan::new(keep);
    let mut checks = tokio::time::interval((keep.age / CHECKS_PER_AGE).max(MIN_CHECK));
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = checks.tick().await;
        if let Some(revision) = plan.observe(inner.revision(), now) {
            inner.compact(revision).await;
        }
    }
}

impl Inner {
    async fn compact(&self, revision: Revision) {
        match self.store.compact(revision).await {
            Ok(()) => {
                self.metrics.compactions.fetch_add(1, Ordering::Relaxed);
                self.metrics
                    .compacted_revision
                    .store(revision, Ordering::Relaxed);
                tracing::debug!(revision, "compacted the store");
            }
            // The next check tries again, with a later revision.
            Err(error) => tracing::warn!(revision, %error, "compacting the store failed"),
        }
    }
}

/// Decides what to compact, from the revisions seen over time.
struct Plan {
    keep: Keep,
    /// Oldest first; at most `CHECKS_PER_AGE` and a few.
    seen: VecDeque<(Instant, Revision)>,
    compacted: Revision,
}

impl Plan {
    fn new(keep: Keep) -> Self {
        Self {
            keep,
            seen: VecDeque::new(),
            compacted: 0,
        }
    }

    fn observe(&mut self, newest: Revision, now: Instant) -> Option<Revision> {
        self.seen.push_back((now, newest));
        let mut target = newest.saturating_sub(self.keep.revisions);
        while let Some((at, revision)) = self.seen.front()
            && now.duration_since(*at) >= self.keep.age
        {
            target = target.max(*revision);
            self.seen.pop_front();
        }
        if target <= self.compacted {
            return None;
        }
        self.compacted = target;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_an_age_and_a_number() {
        let keep = Keep {
            age: Duration::from_secs(300),
            revisions: 1000,
        };
        let mut plan = Plan::new(keep);
        let start = Instant::now();
        let mut at = |seconds, newest| plan.observe(newest, start + Duration::from_secs(seconds));
        assert_eq!(at(0, 10), None);
        assert_eq!(at(15, 20), None);
        assert_eq!(at(299, 30), None);
        assert_eq!(at(300, 40), Some(10));
        assert_eq!(at(301, 40), None, "nothing new is old enough");
        assert_eq!(at(315, 40), Some(20));
        assert_eq!(at(320, 1500), Some(500), "a flood");
        assert_eq!(at(320, 1500), None);
        assert_eq!(at(2000, 1500), Some(1500), "nothing happened for long");
        assert_eq!(at(3000, 1500), None);
    }
}
