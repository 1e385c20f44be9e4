//! Own writes that the cache has not shown yet. A controller that creates or deletes several objects waits until its
//! informer has shown them all before it counts again; otherwise a lagging cache makes it create too many.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::ObjectKey;

/// After this long the cache is believed again: a missed event must not stop a controller for ever. As upstream.
const EXPIRY: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Expectations {
    of: Mutex<HashMap<ObjectKey, Expected>>,
}

struct Expected {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expected {
    fn fulfilled(&self) -> bool {
        self.creations <= 0 && self.deletions.is_empty()
    }
}

impl Expectations {
    /// Called before the writes: `creations` objects will appear and those with these uids will go.
    pub fn expect(
        &self,
        key: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
    ) {
        let expected = Expected {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            since: Instant::now(),
        };
        self.of.lock().insert(key.clone(), expected);
    }

    /// A creation was seen by the informer, or failed.
    pub fn created(&self, key: &ObjectKey) {
        if let Some(expected) = self.of.lock().get_mut(key) {
            expected.creations -= 1;
        }
    }

    /// A deletion (or its start) was seen by the informer, or failed.
    pub fn deleted(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.of.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        self.of
            .lock()
            .get(key)
            .is_none_or(|expected| expected.fulfilled() || expected.since.elapsed() > EXPIRY)
    }

    /// The owner is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.of.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn satisfied_when_all_writes_were_seen() {
        let expectations = Expectations::default();
        let key = ObjectKey::new("default", "web");
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 2, ["u1".to_owned()]);
        expectations.created(&key);
        expectations.deleted(&key, "u1");
        assert!(!expectations.satisfied(&key));
        expectations.created(&key);
        assert!(expectations.satisfied(&key));
        // Objects that somebody else made do not count against the next round.
        expectations.created(&key);
        expectations.expect(&key, 1, []);
        assert!(!expectations.satisfied(&key));
        expectations.forget(&key);
        assert!(expectations.satisfied(&key));
    }
}
