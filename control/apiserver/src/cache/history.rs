//! The recent events of one resource, oldest first.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use skep_store::Revision;

use super::{Event, sorted::Sorted};

/// How many events of a resource stay however old they are, as long as the bytes allow it.
const KEPT_EVENTS: usize = 100;

pub(super) struct History {
    /// Sorted by revision; holds every event with a revision above `floor`.
    events: VecDeque<(Instant, Arc<Event>)>,
    floor: Revision,
    /// Of the last event, forgotten or not.
    newest: Revision,
    size_bytes: usize,
}

impl History {
    /// Knows everything that happens after `floor`.
    pub(super) fn after(floor: Revision) -> Self {
        Self {
            events: VecDeque::new(),
            floor,
            newest: floor,
            size_bytes: 0,
        }
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(super) fn push(&mut self, event: Arc<Event>, now: Instant) {
        self.size_bytes += event.size_bytes();
        self.newest = event.revision;
        self.events.push_back((now, event));
    }

    /// Returns the bytes set free.
    pub(super) fn forget_oldest(&mut self) -> usize {
        let Some((_, event)) = self.events.pop_front() else {
            return 0;
        };
        self.floor = event.revision;
        let freed = event.size_bytes();
        self.size_bytes -= freed;
        if self.events.is_empty() {
            self.events.shrink_to_fit();
        }
        freed
    }

    /// All but the newest [`KEPT_EVENTS`], which let watchers of quiet resources resume after any time.
    pub(super) fn forget_older_than(&mut self, age: Duration, now: Instant) -> usize {
        let mut freed = 0;
        while self.events.len() > KEPT_EVENTS
            && let Some((at, _)) = self.events.front()
            && now.duration_since(*at) > age
        {
            freed += self.forget_oldest();
        }
        freed
    }

    /// Everything after `revision`; `None` if some of that is forgotten.
    pub(super) fn since(
        &self,
        revision: Revision,
    ) -> Option<impl DoubleEndedIterator<Item = &Arc<Event>>> {
        if revision < self.floor {
            return None;
        }
        let start = self
            .events
            .partition_point(|(_, event)| event.revision <= revision);
        Some(self.events.range(start..).map(|(_, event)| event))
    }

    /// The entries as they were at `revision`, from how they are now; `None` if that is forgotten.
    pub(super) fn rewind(&self, mut entries: Sorted, revision: Revision) -> Option<Sorted> {
        for event in self.since(revision)?.rev() {
            match &event.previous {
                Some(previous) => entries.insert(previous.clone()),
                None => entries.remove(&event.entry.key),
            };
        }
        Some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Entry;

    #[test]
    fn old_events_go_and_a_few_stay() {
        let start = Instant::now();
        let mut history = History::after(0);
        for revision in 1..=250u64 {
            let entry = Entry {
                key: "/registry/core/pods/default/a".into(),
                body: Default::default(),
                stale: false,
                create_revision: 1,
                revision,
                uid: "".into(),
                labels: Default::default(),
                fields: Default::default(),
            };
            let event = Event::put(Arc::new(entry), None);
            history.push(Arc::new(event), start + Duration::from_secs(revision));
        }
        let age = Duration::from_secs(60);
        history.forget_older_than(age, start + Duration::from_secs(200));
        assert_eq!(history.floor(), 139);
        history.forget_older_than(age, start + Duration::from_secs(10_000));
        assert_eq!(history.floor(), 150);
        assert!(history.since(149).is_none());
        assert_eq!(history.since(150).unwrap().count(), 100);
        while history.forget_oldest() > 0 {}
        assert_eq!((history.floor(), history.size_bytes()), (250, 0));
    }
}
