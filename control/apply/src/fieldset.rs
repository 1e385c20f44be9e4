//! Sets of field paths: a trie, and its JSON form `fieldsV1`.
//!
//! `f:name` is a field, `k:{"name":"a"}` an item of a list by its keys, `v:"x"` an item of a set, `i:0` an item by its
//! position; `.` says that the path itself is in the set when longer ones are too (structured-merge-diff, fieldpath).

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Map, Value};

/// One step of a path. Keys and values are kept as JSON text with sorted keys, which makes them comparable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Field(String),
    Key(String),
    Value(String),
    Index(u64),
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.to_owned()),
            "k" => {
                let key: Map<String, Value> = serde_json::from_str(rest).ok()?;
                Self::Key(Value::Object(key).to_string())
            }
            "v" => Self::Value(serde_json::from_str::<Value>(rest).ok()?.to_string()),
            "i" => Self::Index(rest.parse().ok()?),
            _ => return None,
        })
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(key) => format!("k:{key}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    /// `.name`, `[name="a"]`, `[="x"]`, `[0]`
    pub(crate) fn display(&self, out: &mut String) {
        let _ = match self {
            Self::Field(name) => write!(out, ".{name}"),
            Self::Key(key) => {
                let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let parts: Vec<String> = key
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(out, "[{}]", parts.join(","))
            }
            Self::Value(value) => write!(out, "[={value}]"),
            Self::Index(index) => write!(out, "[{index}]"),
        };
    }
}

/// A node of the trie: whether the path to it is in the set, and what is in the set below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Adds what is in the set below `step`; nothing if that is empty.
    pub(crate) fn put(&mut self, step: Step, below: FieldSet) {
        if !below.is_empty() {
            self.children.insert(step, below);
        }
    }

    /// A set of `a.b` field paths.
    pub(crate) fn of_fields(paths: &[&str]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let mut node = &mut set;
            for name in path.split('.') {
                node = node
                    .children
                    .entry(Step::Field(name.to_owned()))
                    .or_default();
            }
            node.member = true;
        }
        set
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, theirs) in &other.children {
            match self.children.get_mut(step) {
                Some(ours) => ours.union(theirs),
                None => {
                    self.children.insert(step.clone(), theirs.clone());
                }
            }
        }
    }

    /// Takes away the paths of `other`, each by itself: longer ones stay.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|step, ours| {
            if let Some(theirs) = other.children.get(step) {
                ours.subtract(theirs);
            }
            !ours.is_empty()
        });
    }

    /// Takes away the paths of `other` and everything below them.
    pub(crate) fn subtract_trees(&mut self, other: &Self) {
        if other.member {
            *self = Self::default();
            return;
        }
        self.children.retain(|step, ours| {
            if let Some(theirs) = other.children.get(step) {
                ours.subtract_trees(theirs);
            }
            !ours.is_empty()
        });
    }

    pub(crate) fn intersect(&mut self, other: &Self) {
        self.member &= other.member;
        self.children
            .retain(|step, ours| match other.children.get(step) {
                Some(theirs) => {
                    ours.intersect(theirs);
                    !ours.is_empty()
                }
                None => false,
            });
    }

    /// Every path, as upstream prints it: members of a level before what is below them.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        let below = |step: &Step| {
            let mut path = prefix.to_owned();
            step.display(&mut path);
            path
        };
        paths.extend(
            self.children
                .iter()
                .filter(|(_, child)| child.member)
                .map(|(step, _)| below(step)),
        );
        for (step, child) in &self.children {
            if !child.children.is_empty() {
                child.collect(&below(step), paths);
            }
        }
    }

    /// `fieldsV1`
    pub(crate) fn encode(&self) -> Value {
        let mut object = Map::new();
        for (step, child) in &self.children {
            let mut below = match child.encode() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if child.member && !child.children.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            object.insert(step.encode(), Value::Object(below));
        }
        Value::Object(object)
    }

    /// The inverse of [`Self::encode`]; `None` if it is not a `fieldsV1`.
    pub(crate) fn decode(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let mut set = Self::default();
        for (text, below) in object {
            if text == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::decode(below)?;
            child.member |= child.children.is_empty();
            // Upstream skips what it does not know, so that a newer peer may write it.
            if let Some(step) = Step::parse(text) {
                set.children.insert(step, child);
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_v1_round_trips() {
        let value = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a.b/c": {}}},
            "f:spec": {
                "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}},
                "f:finalizers": {"v:\"x\"": {}},
            },
        });
        let set = FieldSet::decode(&value).expect("fieldsV1");
        assert_eq!(set.encode(), value);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a.b/c",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image",
                ".spec.finalizers[=\"x\"]",
            ]
        );
    }

    #[test]
    fn subtracting_a_path_leaves_longer_ones() {
        let mut set = FieldSet::decode(&json!({"f:a": {".": {}, "f:b": {}}})).expect("fieldsV1");
        set.subtract(&FieldSet::of_fields(&["a"]));
        assert_eq!(set.paths(), [".a.b"]);
        set.subtract_trees(&FieldSet::of_fields(&["a"]));
        assert!(set.is_empty());
    }
}
