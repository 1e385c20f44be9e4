//! Pods that wait for a node.
//!
//! ```text
//!   add ──► active ──pop──► in flight ──bound──► (removed)
//!             ▲                 │ does not fit
//!   back-off ─┘◄──wake── parked ◄┘      wake: an event that could make it fit, or five minutes
//! ```
//! Active pods come out by priority, then by age. Bounded by the number of pods. No clock: `now` is a parameter.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use skep_client::Backoff;

use crate::{filter::Wakes, pod::PodInfo};

const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
/// A parked pod is tried again after this long whatever happens: events are an optimisation, not the truth.
const PARKED_MAX: Duration = Duration::from_secs(300);

type ActiveKey = (Reverse<i32>, Instant, u64, String);

#[derive(Default)]
pub struct PodQueue {
    pods: HashMap<String, Entry>,
    active: BTreeSet<ActiveKey>,
    /// By the time the back-off ends.
    waiting: BTreeSet<(Instant, String)>,
    sequence: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    added: Instant,
    sequence: u64,
    attempts: u32,
    retry_at: Instant,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Waiting(Instant),
    Parked { wakes: Wakes, since: Instant },
    InFlight,
}

impl PodQueue {
    /// A new pod, or a new version of one; one that was parked gets another try.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        if let Some(entry) = self.pods.get_mut(&uid) {
            let same_priority = entry.pod.priority == pod.priority;
            match entry.place {
                Place::Active if !same_priority => {
                    self.take_out(&uid);
                    if let Some(entry) = self.pods.get_mut(&uid) {
                        entry.pod = pod;
                    }
                    self.activate(&uid);
                }
                Place::Parked { .. } => {
                    entry.pod = pod;
                    self.retry(&uid, now);
                }
                Place::Active | Place::Waiting(_) | Place::InFlight => entry.pod = pod,
            }
            return;
        }
        self.sequence += 1;
        let entry = Entry {
            pod,
            added: now,
            sequence: self.sequence,
            attempts: 0,
            retry_at: now,
            place: Place::InFlight,
        };
        self.pods.insert(uid.clone(), entry);
        self.activate(&uid);
    }

    /// Takes a new version of a known pod without waking it (its status changed).
    pub fn refresh(&mut self, pod: Arc<PodInfo>) {
        if let Some(entry) = self.pods.get_mut(&pod.uid)
            && entry.pod.priority == pod.priority
        {
            entry.pod = pod;
        }
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub fn remove(&mut self, uid: &str) {
        self.take_out(uid);
        self.pods.remove(uid);
    }

    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.promote(now);
        let (_, _, _, uid) = self.active.pop_first()?;
        let entry = self.pods.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.retry_at = now + RETRY.ceiling(entry.attempts - 1);
        Some(entry.pod.clone())
    }

    /// The pod did not fit; events in `wakes` may change that.
    pub fn park(&mut self, uid: &str, wakes: Wakes, now: Instant) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.place = Place::Parked { wakes, since: now };
        }
    }

    /// The pod fits but could not be bound: try again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        self.retry(uid, now);
    }

    /// Something of this kind happened.
    pub fn wake(&mut self, event: Wakes, now: Instant) {
        let parked: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, entry)| matches!(entry.place, Place::Parked { wakes, .. } if wakes.intersects(event)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in parked {
            self.retry(&uid, now);
        }
    }

    /// Wakes pods that were parked too long.
    pub fn flush(&mut self, now: Instant) {
        let stale: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, entry)| matches!(entry.place, Place::Parked { since, .. } if now.duration_since(since) >= PARKED_MAX))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in stale {
            self.retry(&uid, now);
        }
    }

    /// When the next back-off ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn retry(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        if entry.retry_at > now {
            entry.place = Place::Waiting(entry.retry_at);
            self.waiting.insert((entry.retry_at, uid.to_owned()));
        } else {
            self.activate(uid);
        }
    }

    fn activate(&mut self, uid: &str) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        entry.place = Place::Active;
        self.active.insert((
            Reverse(entry.pod.priority),
            entry.added,
            entry.sequence,
            uid.to_owned(),
        ));
    }

    fn take_out(&mut self, uid: &str) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        match entry.place {
            Place::Active => {
                self.active.remove(&(
                    Reverse(entry.pod.priority),
                    entry.added,
                    entry.sequence,
                    uid.to_owned(),
                ));
            }
            Place::Waiting(at) => {
                self.waiting.remove(&(at, uid.to_owned()));
            }
            Place::Parked { .. } | Place::InFlight => {}
        }
    }

    fn promote(&mut self, now: Instant) {
        while self.waiting.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, uid)) = self.waiting.pop_first() {
                self.activate(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let pod = json!({ "metadata": { "name": uid, "namespace": "default", "uid": uid },
            "spec": { "containers": [], "priority": priority } });
        Arc::new(PodInfo::new(Arc::new(
            serde_json::from_value(pod).expect("a pod"),
        )))
    }

    #[test]
    fn priority_then_age() {
        let now = Instant::now();
        let mut queue = PodQueue::default();
        queue.add(pod("a", 0), now);
        queue.add(pod("b", 10), now);
        queue.add(pod("c", 0), now);
        queue.add(pod("a", 0), now);
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(now))
            .map(|pod| pod.uid.clone())
            .collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn parked_pods_wake_for_what_concerns_them_after_their_back_off() {
        let now = Instant::now();
        let mut queue = PodQueue::default();
        queue.add(pod("a", 0), now);
        assert!(queue.pop(now).is_some());
        queue.park("a", Wakes::NODE, now);
        queue.wake(Wakes::VOLUME, now);
        assert!(queue.next_due().is_none());
        queue.wake(Wakes::NODE, now);
        assert!(queue.pop(now).is_none(), "backs off first");
        let due = queue.next_due().expect("waits");
        assert_eq!(due - now, Duration::from_secs(1));
        assert!(queue.pop(due).is_some());
        queue.park("a", Wakes::NODE, due);
        queue.wake(Wakes::NODE, due);
        assert_eq!(
            queue.next_due().expect("waits") - due,
            Duration::from_secs(2)
        );
        queue.remove("a");
        assert!(queue.is_empty() && queue.next_due().is_none());
    }

    #[test]
    fn nothing_is_parked_for_ever() {
        let now = Instant::now();
        let mut queue = PodQueue::default();
        queue.add(pod("a", 0), now);
        assert!(queue.pop(now).is_some());
        queue.park("a", Wakes::default(), now);
        queue.flush(now + Duration::from_secs(299));
        assert!(queue.pop(now + Duration::from_secs(299)).is_none());
        queue.flush(now + PARKED_MAX);
        assert!(queue.pop(now + PARKED_MAX).is_some());
    }
}
