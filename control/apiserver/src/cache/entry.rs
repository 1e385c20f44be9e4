//! One cached object.

use std::sync::OnceLock;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use skep_store::{Key, Revision};
use std::sync::Arc;

use super::{body::Body, splice};

/// A stored object as clients see it, with what selectors need. Never changes.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    /// The complete JSON object, `metadata.resourceVersion` included.
    pub body: Body,
    /// It is stored otherwise than it would be now (another encryption key): even an equal object is written.
    pub stale: bool,
    pub create_revision: Revision,
    /// The revision of the last write: `metadata.resourceVersion`.
    pub revision: Revision,
    pub uid: Box<str>,
    pub labels: Pairs,
    /// The selectable fields that the indexer found.
    pub fields: Pairs,
}

impl Entry {
    /// An object that no store has: it was made for one answer.
    pub fn unstored(key: Key, bytes: Bytes, index: Index) -> Self {
        Self {
            key,
            body: bytes.into(),
            stale: false,
            create_revision: 0,
            revision: 0,
            uid: index.uid.into(),
            labels: index.labels.into_iter().collect(),
            fields: index.fields.into_iter().collect(),
        }
    }

    /// The object in one piece.
    pub fn bytes(&self) -> Bytes {
        self.body.to_bytes()
    }

    /// Roughly what it occupies, for the bounds.
    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>()
            + self.key.len()
            + self.body.own_bytes()
            + self.uid.len()
            + self.labels.bytes.len()
            + self.fields.bytes.len()
    }

    /// The same object in another form, with what selectors find in that.
    pub fn in_form(&self, bytes: Bytes, labels: Pairs, fields: Pairs) -> Self {
        Self {
            key: self.key.clone(),
            body: bytes.into(),
            stale: self.stale,
            create_revision: self.create_revision,
            revision: self.revision,
            uid: self.uid.clone(),
            labels,
            fields,
        }
    }

    /// The same object with another `metadata.resourceVersion`: what a delete shows.
    pub fn at_revision(&self, revision: Revision) -> Self {
        Self {
            key: self.key.clone(),
            body: splice::with_resource_version(&self.bytes(), revision)
                .map_or_else(|| self.body.clone(), Body::from),
            stale: self.stale,
            create_revision: self.create_revision,
            revision,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }
}

/// What an indexer reads from an object. `metadata.name` and `metadata.namespace` need not be in `fields`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub uid: String,
    pub labels: Vec<(String, String)>,
    pub fields: Vec<(String, String)>,
}

impl Index {
    /// Uid and labels, which every object has in the same place.
    pub fn of_metadata(object: &Value) -> Self {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Self {
            uid: text(&metadata["uid"]),
            labels: labels
                .map(|(key, value)| (key.clone(), text(value)))
                .collect(),
            fields: Vec::new(),
        }
    }
}

/// A few pairs of strings in one allocation; most objects have under ten.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Key, value, key, value, …: each its length in four bytes, and itself.
    bytes: Box<[u8]>,
}

impl Pairs {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter()
            .find(|(candidate, _)| *candidate == key)
            .map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.bytes;
        std::iter::from_fn(move || Some((next_text(&mut rest)?, next_text(&mut rest)?)))
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn next_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, after) = rest.split_first_chunk()?;
    let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in pairs {
            for part in [key.as_ref(), value.as_ref()] {
                // Values are bounded by the store (1.5 MB), so this cannot wrap.
                bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
                bytes.extend_from_slice(part.as_bytes());
            }
        }
        Self {
            bytes: bytes.into(),
        }
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    /// As a watch frame's `type` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change, shared by everybody who watches it.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    pub revision: Revision,
    /// For a delete: the last state, with the delete's revision as its `metadata.resourceVersion`.
    pub entry: Arc<Entry>,
    /// The state before; `None` for `Added`.
    pub previous: Option<Arc<Entry>>,
    left: OnceLock<Arc<Entry>>,
    frames: Mutex<Vec<(Box<str>, Bytes)>>,
}

impl Event {
    pub(super) fn put(entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> Self {
        let kind = if previous.is_none() {
            EventKind::Added
        } else {
            EventKind::Modified
        };
        Self::new(kind, entry.revision, entry, previous)
    }

    pub(super) fn delete(previous: Arc<Entry>, revision: Revision) -> Self {
        let entry = Arc::new(previous.at_revision(revision));
        Self::new(EventKind::Deleted, revision, entry, Some(previous))
    }

    fn new(
        kind: EventKind,
        revision: Revision,
        entry: Arc<Entry>,
        previous: Option<Arc<Entry>>,
    ) -> Self {
        Self {
            kind,
            revision,
            entry,
            previous,
            left: OnceLock::new(),
            frames: Mutex::default(),
        }
    }

    /// What a watcher sees whose selector matched `previous` and no longer matches `entry`: it gets a `DELETED` with
    /// the previous state under this event's revision.
    pub fn left(&self) -> Option<&Arc<Entry>> {
        let previous = self.previous.as_ref()?;
        Some(
            self.left
                .get_or_init(|| Arc::new(previous.at_revision(self.revision))),
        )
    }

    /// The encoded frame, made once for all watchers that ask for the same `encoding`.
    ///
    /// `encoding` names everything that the frame depends on besides the event: the frame's type, the media type, the
    /// group and version. Keep the number of different ones small: they live as long as the event.
    pub fn frame(&self, encoding: &str, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut frames = self.frames.lock();
        if let Some((_, frame)) = frames.iter().find(|(name, _)| name.as_ref() == encoding) {
            return frame.clone();
        }
        // Under the lock: the others wait for this one encoding instead of making their own.
        let frame = encode();
        if frames.len() < Self::MAX_FRAMES {
            frames.push((encoding.into(), frame.clone()));
        }
        frame
    }

    const MAX_FRAMES: usize = 16;

    /// Roughly what it occupies, one frame included. `previous` is the `entry` of the event before it.
    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.entry.size_bytes() + self.entry.body.len()
    }
}
