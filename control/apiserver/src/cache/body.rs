//! An object's JSON, with what many objects have in common kept once.
//!
//! Pods of one workload differ in little more than their names: owned fields, tolerations, the projected volume of every
//! service account. [`Sharing`] finds such parts where they are written and read, and an object keeps its own bytes
//! and where the others go.

use std::{collections::HashMap, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};

/// What is worth a place of its own, and what is looked for at all.
const PART_BYTES: std::ops::RangeInclusive<usize> = 96..=16 * 1024;
/// Most parts of one object.
const MAX_PARTS: usize = 32;
/// An object stays in one piece unless at least this share of it (one in …) can be shared.
const WORTH: usize = 4;
/// Hashes remembered of what was seen once.
const SEEN: usize = 1 << 14;
/// Shared parts are looked through for unused ones when they come to twice what was in use, and not below this.
const MIN_SWEEP_BYTES: usize = 1 << 20;

/// A stored object's bytes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Body {
    own: Bytes,
    /// In their order.
    parts: Arc<[Part]>,
    length: usize,
}

#[derive(Clone, Debug)]
struct Part {
    /// Before this byte of the own ones.
    at: u32,
    bytes: Arc<[u8]>,
}

impl From<Bytes> for Body {
    fn from(own: Bytes) -> Self {
        Self {
            length: own.len(),
            own,
            parts: Arc::default(),
        }
    }
}

impl Body {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What this object alone occupies.
    pub(super) fn own_bytes(&self) -> usize {
        self.own.len() + self.parts.len() * size_of::<Part>()
    }

    pub fn starts_with(&self, head: &[u8]) -> bool {
        let first = self.parts.first();
        if first.is_none_or(|part| head.len() <= part.at as usize) {
            return self.own.starts_with(head);
        }
        self.to_bytes().starts_with(head)
    }

    /// All of it in one piece. Copies, if it is not.
    pub fn to_bytes(&self) -> Bytes {
        if self.parts.is_empty() {
            return self.own.clone();
        }
        let mut out = BytesMut::with_capacity(self.length);
        self.write(0, &mut out);
        out.freeze()
    }

    /// Appends all but the first `skip` bytes.
    pub fn write(&self, mut skip: usize, out: &mut BytesMut) {
        let mut append = |piece: &[u8]| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            out.put_slice(&piece[skipped..]);
        };
        let mut from = 0;
        for part in self.parts.iter() {
            let at = part.at as usize;
            append(&self.own[from..at]);
            append(&part.bytes);
            from = at;
        }
        append(&self.own[from..]);
    }
}

/// Finds the parts that objects have in common.
pub struct Sharing {
    /// By a part of their hash.
    seen: Box<[u32]>,
    shared: HashMap<u64, Arc<[u8]>>,
    shared_bytes: usize,
    sweep_at: usize,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            seen: vec![0; SEEN].into(),
            shared: HashMap::new(),
            shared_bytes: 0,
            sweep_at: MIN_SWEEP_BYTES,
        }
    }
}

impl Sharing {
    /// `json` must be one JSON object.
    pub fn body(&mut self, json: Bytes) -> Body {
        let parts = self.parts(&json);
        let common: usize = parts.iter().map(|(_, part)| part.len()).sum();
        if common * WORTH < json.len() {
            // What is kept for long keeps no room that it does not use.
            return Bytes::copy_from_slice(&json).into();
        }
        let mut own = Vec::with_capacity(json.len() - common);
        let mut from = 0;
        let mut kept = Vec::with_capacity(parts.len());
        for (start, bytes) in parts {
            own.extend_from_slice(&json[from..start]);
            from = start + bytes.len();
            // Values are bounded by the store (1.5 MB), so this cannot wrap.
            let at = own.len() as u32;
            kept.push(Part { at, bytes });
        }
        own.extend_from_slice(&json[from..]);
        Body {
            own: own.into(),
            parts: kept.into(),
            length: json.len(),
        }
    }

    /// The largest objects and lists of `json` that others have too, and where they begin.
    fn parts(&mut self, json: &[u8]) -> Vec<(usize, Arc<[u8]>)> {
        let mut found: Vec<(usize, Arc<[u8]>)> = Vec::new();
        // Where each bracket was opened, and how many parts there were before it.
        let mut open: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        while let Some(byte) = json.get(at) {
            match byte {
                b'"' => at = end_of_string(json, at),
                b'{' | b'[' => open.push((at, found.len())),
                b'}' | b']' => {
                    let Some((start, before)) = open.pop() else {
                        break;
                    };
                    let part = &json[start..=at];
                    if PART_BYTES.contains(&part.len())
                        && before < MAX_PARTS
                        && let Some(shared) = self.shared(part)
                    {
                        // It replaces those within it.
                        found.truncate(before);
                        found.push((start, shared));
                    }
                }
                _ => {}
            }
            at += 1;
        }
        found
    }

    /// The kept copy of `part`. What is seen for the second time is kept.
    fn shared(&mut self, part: &[u8]) -> Option<Arc<[u8]>> {
        let hash = hash(part);
        if let Some(shared) = self.shared.get(&hash) {
            return (**shared == *part).then(|| shared.clone());
        }
        // The lower bits are the place, the upper ones what stands there.
        let place = &mut self.seen[hash as usize % SEEN];
        let mark = (hash >> 32) as u32;
        if *place != mark {
            *place = mark;
            return None;
        }
        let shared: Arc<[u8]> = part.into();
        self.shared_bytes += part.len();
        self.shared.insert(hash, shared.clone());
        if self.shared_bytes > self.sweep_at {
            self.sweep();
        }
        Some(shared)
    }

    fn sweep(&mut self) {
        self.shared.retain(|_, part| Arc::strong_count(part) > 1);
        self.shared_bytes = self.shared.values().map(|part| part.len()).sum();
        self.sweep_at = MIN_SWEEP_BYTES.max(self.shared_bytes * 2);
    }
}

/// The closing quote of the string that opens at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    at += 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

/// Fast, and no more: what has the same hash is compared.
fn hash(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |state: u64, word: u64| {
        let product = u128::from(state ^ word) * u128::from(FACTOR);
        (product >> 64) as u64 ^ product as u64
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = mix(FACTOR, bytes.len() as u64);
    for word in words {
        state = mix(state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), FACTOR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(number: usize) -> Bytes {
        let common: Vec<String> = (0..20).map(|n| format!("part-\\{{\"{n}")).collect();
        let pod = json!({
            "kind": "Pod", "metadata": {"name": format!("web-{number}"), "managedFields": [{"fieldsV1": common, "time": number}]},
            "spec": {"tolerations": common, "hostname": format!("web-{number}")},
        });
        pod.to_string().into()
    }

    #[test]
    fn what_many_have_in_common_is_kept_once() {
        let mut sharing = Sharing::default();
        let bodies: Vec<Body> = (0..100).map(|n| sharing.body(pod(n))).collect();
        for (number, body) in bodies.iter().enumerate() {
            assert_eq!(body.to_bytes(), pod(number));
            assert_eq!(body.len(), pod(number).len());
        }
        let last = &bodies[99];
        assert_eq!(last.parts.len(), 2);
        assert!(Arc::ptr_eq(&last.parts[0].bytes, &last.parts[1].bytes));
        assert!(last.own_bytes() * 4 < last.len(), "{last:?}");
        // What nobody has any more goes.
        drop(bodies);
        sharing.sweep();
        assert_eq!((sharing.shared.len(), sharing.shared_bytes), (0, 0));
    }

    proptest! {
        /// Whatever is shared, every object reads as it was written, from any byte on.
        #[test]
        fn nothing_changes(
            texts in proptest::collection::vec("[a-z{}\\[\\]\"\\\\é,:]{90,200}", 1..4),
            picks in proptest::collection::vec((0usize..4, 0usize..4, any::<bool>()), 1..40),
        ) {
            let mut sharing = Sharing::default();
            for (a, b, nested) in picks {
                let part = |at: usize| json!([texts[at % texts.len()]]);
                let object: Value = if nested {
                    json!({"a": {"b": part(a), "c": part(b)}, "d": a})
                } else {
                    json!({"a": part(a), "b": b, "c": [part(b), part(a)]})
                };
                let json = Bytes::from(object.to_string());
                let body = sharing.body(json.clone());
                prop_assert_eq!(&body.to_bytes(), &json);
                let mut out = BytesMut::new();
                prop_assert!(body.starts_with(&json[..json.len() / 2]));
                let skip = a * 40 % json.len();
                body.write(skip, &mut out);
                prop_assert_eq!(&out[..], &json[skip..]);
            }
        }

        /// Values come from a store that others may have written.
        #[test]
        fn no_text_is_too_strange(text in "[\\[\\]{}\"\\\\a]{0,300}") {
            let json = Bytes::from(text);
            let mut sharing = Sharing::default();
            for _ in 0..3 {
                prop_assert_eq!(sharing.body(json.clone()).to_bytes(), json.clone());
            }
        }
    }
}
