//! Entries sorted by key, with snapshots for the price of one pointer.
//!
//! Chunks of entries are shared between a snapshot and the living version until one of them is written; a write then
//! copies one chunk (at most [`CHUNK_ENTRIES`] pointers) and the list of chunks.

use std::sync::Arc;

use super::Entry;

const CHUNK_ENTRIES: usize = 256;

#[derive(Clone, Default)]
pub(super) struct Sorted {
    /// Each chunk is sorted and never empty, and lies wholly before the next.
    chunks: Arc<Vec<Arc<Vec<Arc<Entry>>>>>,
    len: usize,
}

/// Where an entry is, or would be: chunk, then place in it.
type Place = (usize, usize);

impl Sorted {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        let (chunk, place) = self.first_at_or_after(key);
        self.chunks
            .get(chunk)?
            .get(place)
            .filter(|entry| entry.key.as_ref() == key)
    }

    /// Returns the entry that had the key before.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let chunks = Arc::make_mut(&mut self.chunks);
        // The chunk that covers the key: the last that starts at or before it.
        let covering = chunks
            .partition_point(|chunk| first_key(chunk) <= entry.key.as_ref())
            .saturating_sub(1);
        let Some(chunk) = chunks.get_mut(covering) else {
            chunks.push(Arc::new(vec![entry]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|other| other.key.cmp(&entry.key)) {
            Ok(place) => Some(std::mem::replace(&mut chunk[place], entry)),
            Err(place) => {
                chunk.insert(place, entry);
                self.len += 1;
                if chunk.len() > CHUNK_ENTRIES {
                    // Appending in key order fills chunks; elsewhere the halves have room on both sides.
                    let at = if place + 1 == chunk.len() {
                        place
                    } else {
                        chunk.len() / 2
                    };
                    let rest = chunk.split_off(at);
                    chunks.insert(covering + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<Entry>> {
        let (at, place) = self.first_at_or_after(key);
        if self.chunks.get(at)?.get(place)?.key.as_ref() != key {
            return None;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let removed = chunk.remove(place);
        if chunk.is_empty() {
            chunks.remove(at);
        } else if let Some(next) = chunks.get(at + 1)
            && chunks[at].len() + next.len() < CHUNK_ENTRIES / 2
        {
            let next = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend(next.iter().cloned());
        }
        self.len -= 1;
        Some(removed)
    }

    /// In key order, from the first key that is not before `start`.
    pub(super) fn iter_from<'a>(
        &'a self,
        start: &str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        let (chunk, place) = self.first_at_or_after(start);
        let rest = self.chunks.get(chunk..).unwrap_or_default();
        rest.iter().flat_map(|chunk| chunk.iter()).skip(place)
    }

    /// How many keys are before `key`.
    pub(super) fn rank(&self, key: &str) -> usize {
        let (chunk, place) = self.first_at_or_after(key);
        self.chunks[..chunk]
            .iter()
            .map(|chunk| chunk.len())
            .sum::<usize>()
            + place
    }

    fn first_at_or_after(&self, key: &str) -> Place {
        let chunk = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(|e| e.key.as_ref() < key));
        let place = self.chunks.get(chunk).map_or(0, |chunk| {
            chunk.partition_point(|entry| entry.key.as_ref() < key)
        });
        (chunk, place)
    }
}

fn first_key(chunk: &[Arc<Entry>]) -> &str {
    chunk.first().map_or("", |entry| entry.key.as_ref())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str, revision: u64) -> Arc<Entry> {
        Arc::new(Entry {
            key: key.into(),
            body: Default::default(),
            stale: false,
            create_revision: revision,
            revision,
            uid: "".into(),
            labels: Default::default(),
            fields: Default::default(),
        })
    }

    proptest! {
        #[test]
        fn agrees_with_btreemap(ops in proptest::collection::vec((0u16..900, prop::bool::weighted(0.7)), 1..3000)) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeMap::new());
            let mut kept = None;
            for (step, (number, put)) in ops.iter().enumerate() {
                let key = format!("/k/{number:04}");
                let (was, expected) = if *put {
                    let new = entry(&key, step as u64);
                    (sorted.insert(new.clone()), model.insert(key, new))
                } else {
                    (sorted.remove(&key), model.remove(&key))
                };
                prop_assert_eq!(was.map(|e| e.revision), expected.map(|e| e.revision));
                if step == ops.len() / 2 {
                    kept = Some((sorted.clone(), model.clone()));
                }
            }
            for (sorted, model) in kept.into_iter().chain([(sorted, model)]) {
                prop_assert_eq!(sorted.len(), model.len());
                prop_assert!(sorted.chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK_ENTRIES));
                for start in ["", "/k/0000", "/k/0450", "/k/04505", "/k/9"] {
                    let got: Vec<_> = sorted.iter_from(start).map(|e| e.revision).collect();
                    let want: Vec<_> = model.range(start.to_string()..).map(|(_, e)| e.revision).collect();
                    prop_assert_eq!(sorted.rank(start), model.len() - want.len());
                    prop_assert_eq!(got, want);
                }
                for key in model.keys() {
                    prop_assert!(sorted.get(key).is_some());
                }
            }
        }
    }
}
