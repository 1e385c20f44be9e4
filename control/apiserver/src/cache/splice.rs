//! Sets `metadata.resourceVersion` in the bytes of a JSON object, without decoding it.
//!
//! For JSON that decodes; anything else gives `None` or other rubbish, never a panic.

use bytes::Bytes;

/// The object with `metadata.resourceVersion` set to `revision`, whether it had one before or not.
pub(super) fn with_resource_version(json: &[u8], revision: u64) -> Option<Bytes> {
    let metadata = Scanner { json, at: 0 }.find_member(b"metadata")?;
    let mut members = Scanner { json, at: metadata };
    let version = format!("\"{revision}\"");
    let existing = members.find_member(b"resourceVersion").map(|start| {
        let mut value = Scanner { json, at: start };
        value.skip_value().map(|()| (start, value.at))
    });
    let (cut, resume, member) = match existing {
        Some(range) => {
            let (start, end) = range?;
            (start, end, version)
        }
        None => {
            let mut open = Scanner { json, at: metadata };
            open.expect(b'{')?;
            let after = open.at;
            let comma = if open.peek()? == b'}' { "" } else { "," };
            (
                after,
                after,
                format!("\"resourceVersion\":{version}{comma}"),
            )
        }
    };
    let mut out = Vec::with_capacity(cut + member.len() + json.len() - resume);
    out.extend_from_slice(&json[..cut]);
    out.extend_from_slice(member.as_bytes());
    out.extend_from_slice(&json[resume..]);
    Some(out.into())
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    /// The place where the value of `name` starts in the object that starts here.
    fn find_member(&mut self, name: &[u8]) -> Option<usize> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return None;
        }
        loop {
            self.peek()?;
            let start = self.at;
            self.skip_string()?;
            let found = &self.json[start + 1..self.at - 1] == name;
            self.expect(b':')?;
            self.peek()?;
            if found {
                return Some(self.at);
            }
            self.skip_value()?;
            if self.peek()? != b',' {
                return None;
            }
            self.at += 1;
        }
    }

    /// The next byte that is not white space; stands on it.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.json.get(self.at)?, b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.json.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn skip_string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            match self.json.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(())
    }

    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => self.skip_string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' => {
                    self.at += 1;
                    continue;
                }
                _ => {
                    while !matches!(
                        self.json.get(self.at),
                        None | Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
                    ) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Option<&str>) {
        let got = with_resource_version(json.as_bytes(), 7);
        assert_eq!(
            got.as_deref().map(|b| std::str::from_utf8(b).unwrap()),
            expected
        );
    }

    #[test]
    fn inserts_or_replaces() {
        check(
            r#"{"metadata":{"name":"a"}}"#,
            Some(r#"{"metadata":{"resourceVersion":"7","name":"a"}}"#),
        );
        check(
            r#"{"metadata":{}}"#,
            Some(r#"{"metadata":{"resourceVersion":"7"}}"#),
        );
        check(
            r#"{"spec":{"metadata":{"a":[1,"}]\""]}},"kind":"K", "metadata" : {"name":"a","resourceVersion":"123456"},"x":1}"#,
            Some(
                r#"{"spec":{"metadata":{"a":[1,"}]\""]}},"kind":"K", "metadata" : {"name":"a","resourceVersion":"7"},"x":1}"#,
            ),
        );
        check(r#"{"kind":"K"}"#, None);
        check(r#"{"metadata":[]}"#, None);
        check("", None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(json!("resourceVersion")),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                object_of(inner),
            ]
        })
    }

    fn object_of(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
        let names = prop_oneof![
            ".{0,4}",
            Just("metadata".to_string()),
            Just("resourceVersion".to_string())
        ];
        let members = proptest::collection::btree_map(names, values, 0..5);
        members.prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn agrees_with_decoding(
            mut object in object_of(any_json()), metadata in object_of(any_json()), revision: u64,
        ) {
            object["metadata"] = metadata;
            let got = with_resource_version(object.to_string().as_bytes(), revision).unwrap();
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            prop_assert_eq!(serde_json::from_slice::<Value>(&got).unwrap(), object);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'"'), Just(b'\\'), Just(b':'), Just(b'}'), any::<u8>()], 0..60)) {
            with_resource_version(&bytes, 1);
        }
    }
}
