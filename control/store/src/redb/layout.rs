//! What the file holds, and how to read it. Writing is `writer`'s.
//!
//! | table | key | value |
//! |---|---|---|
//! | `log` | position: revision, index within the commit | [`Record`]: what one operation wrote |
//! | `meta` | name | number |
//!
//! The log is all there is; a commit appends to it. Where the newest record of each key is, is known in memory only
//! ([`Heads`], read from the log when the file is opened), as a tree of random keys on disk would cost each write a
//! page. Every record links to the one that it replaced, so that an older revision is read by going back from the head.
//! Deleted keys keep their head until compaction passes.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use redb::{ReadableTable, StorageError, TableDefinition};

use crate::{Entry, Event, Key, Revision};

pub(super) const LOG: TableDefinition<'_, &[u8; 12], &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// In `meta`: the layout's number.
pub(super) const FORMAT: &str = "format";
pub(super) const FORMAT_KNOWN: u64 = 2;
/// In `meta`: reads below this revision are refused.
pub(super) const COMPACTED: &str = "compacted";
/// In `meta`: what records before this revision replaced is deleted.
pub(super) const SWEPT: &str = "swept";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) revision: Revision,
    pub(super) index: u32,
}

impl Position {
    /// Before every record; also the link of a record that replaced nothing.
    pub(super) const NONE: Self = Self {
        revision: 0,
        index: 0,
    };

    pub(super) fn start_of(revision: Revision) -> Self {
        Self { revision, index: 0 }
    }

    /// Big endian, so that bytes sort as positions do.
    pub(super) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; 12]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            revision: fields.u64(),
            index: fields.u32(),
        }
    }
}

/// The newest record of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) at: Position,
    pub(super) create_revision: Revision,
    /// Milliseconds since 1970; 0: never.
    pub(super) due_ms: u64,
    /// `false`: deleted at `at.revision`.
    pub(super) live: bool,
}

/// The heads of all keys, as of one revision.
#[derive(Default)]
pub(super) struct Heads {
    pub(super) by_key: BTreeMap<Key, Head>,
    pub(super) newest: Revision,
    /// What all records of the log had when it was read, live or not.
    pub(super) log_bytes: u64,
}

impl Heads {
    /// In key order, those after `start_after`.
    pub(super) fn under<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Head)> {
        let start = match start_after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let keys = self.by_key.range::<str, _>((start, Bound::Unbounded));
        keys.take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(super) fn read(
        log: &impl ReadableTable<&'static [u8; 12], &'static [u8]>,
    ) -> Result<Self, StorageError> {
        let mut heads = Self::default();
        for record in log.iter()? {
            let (position, record) = record?;
            let at = Position::from_bytes(position.value());
            heads.log_bytes += record.value().len() as u64;
            let record = Record::decode(record.value())?;
            let head = record.head(at);
            match heads.by_key.get_mut(record.key) {
                Some(older) => *older = head,
                None => {
                    heads.by_key.insert(record.key.into(), head);
                }
            }
            heads.newest = at.revision;
        }
        Ok(heads)
    }
}

/// One operation of one commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) key: &'a str,
    /// `None`: a delete.
    pub(super) value: Option<&'a [u8]>,
    pub(super) create_revision: Revision,
    /// As in [`Head`].
    pub(super) due_ms: u64,
    /// The key's record before this one, which may be a delete or swept away.
    pub(super) replaced: Position,
}

const RECORD_HEADER: usize = 1 + 8 + 8 + 12 + 4;

impl<'a> Record<'a> {
    pub(super) fn encoded_len(&self) -> usize {
        RECORD_HEADER + self.key.len() + self.value.map_or(0, <[u8]>::len)
    }

    /// `out` has `encoded_len` bytes.
    pub(super) fn encode(&self, out: &mut [u8]) {
        let (header, rest) = out.split_at_mut(RECORD_HEADER);
        header[0] = self.value.is_some().into();
        header[1..9].copy_from_slice(&self.create_revision.to_be_bytes());
        header[9..17].copy_from_slice(&self.due_ms.to_be_bytes());
        header[17..29].copy_from_slice(&self.replaced.to_bytes());
        header[29..].copy_from_slice(&(self.key.len() as u32).to_be_bytes());
        let (key, value) = rest.split_at_mut(self.key.len());
        key.copy_from_slice(self.key.as_bytes());
        value.copy_from_slice(self.value.unwrap_or_default());
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StorageError> {
        let corrupted = || StorageError::Corrupted("a record of the log is too short".into());
        let (header, rest) = bytes
            .split_at_checked(RECORD_HEADER)
            .ok_or_else(corrupted)?;
        let mut fields = Fields(header);
        let put = fields.u8() != 0;
        let create_revision = fields.u64();
        let due_ms = fields.u64();
        let replaced = Position {
            revision: fields.u64(),
            index: fields.u32(),
        };
        let (key, value) = rest
            .split_at_checked(fields.u32() as usize)
            .ok_or_else(corrupted)?;
        let key = std::str::from_utf8(key)
            .map_err(|_| StorageError::Corrupted("a key of the log is not text".into()))?;
        Ok(Self {
            key,
            value: put.then_some(value),
            create_revision,
            due_ms,
            replaced,
        })
    }

    pub(super) fn head(&self, at: Position) -> Head {
        Head {
            at,
            create_revision: self.create_revision,
            due_ms: self.due_ms,
            live: self.value.is_some(),
        }
    }

    /// `key` is the record's, so that everybody shares one copy.
    fn entry(&self, key: Key, mod_revision: Revision) -> Option<Entry> {
        Some(Entry {
            key,
            value: Bytes::copy_from_slice(self.value?),
            create_revision: self.create_revision,
            mod_revision,
        })
    }
}

/// Reads big-endian numbers off the front; the caller checked that there is enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.0.split_at(N);
        self.0 = rest;
        let mut bytes = [0; N];
        bytes.copy_from_slice(front);
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

/// The newest revision: that of the last record, which is never swept.
pub(super) fn newest(
    log: &impl ReadableTable<&'static [u8; 12], &'static [u8]>,
) -> Result<Revision, StorageError> {
    Ok(log.last()?.map_or(0, |(position, _)| {
        Position::from_bytes(position.value()).revision
    }))
}

/// `None`: a delete, or swept.
pub(super) fn entry_at(
    log: &impl ReadableTable<&'static [u8; 12], &'static [u8]>,
    key: &Key,
    at: Position,
) -> Result<Option<Entry>, StorageError> {
    let Some(record) = log.get(&at.to_bytes())? else {
        return Ok(None);
    };
    Ok(Record::decode(record.value())?.entry(key.clone(), at.revision))
}

/// What the key of this head held at `revision`.
pub(super) fn entry_seen_at(
    log: &impl ReadableTable<&'static [u8; 12], &'static [u8]>,
    key: &Key,
    head: Head,
    revision: Revision,
) -> Result<Option<Entry>, StorageError> {
    let mut at = head.at;
    while at.revision > revision {
        let Some(record) = log.get(&at.to_bytes())? else {
            return Ok(None);
        };
        at = Record::decode(record.value())?.replaced;
    }
    match at {
        Position::NONE => Ok(None),
        at => entry_at(log, key, at),
    }
}

pub(super) fn event_at(
    log: &impl ReadableTable<&'static [u8; 12], &'static [u8]>,
    at: Position,
    record: &Record<'_>,
) -> Result<Option<Event>, StorageError> {
    let key = Key::from(record.key);
    let previous = match record.replaced {
        Position::NONE => None,
        replaced => entry_at(log, &key, replaced)?,
    };
    Ok(match (record.entry(key.clone(), at.revision), previous) {
        (Some(entry), previous) => Some(Event::Put { entry, previous }),
        (None, Some(previous)) => Some(Event::Delete {
            key,
            revision: at.revision,
            previous,
        }),
        // A delete whose previous value is swept is itself below the compacted revision: nobody may read it.
        (None, None) => None,
    })
}
