//! Lists whose order says nothing: `x-kubernetes-list-type` `set` and `map` (KEP-2876, "Equality of lists").

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube_cel::cel::{
    Value,
    objects::{Key, Opaque, OptionalValue},
};

use crate::json::to_json;

/// A set, or a list of objects that are told apart by keys.
#[derive(Clone, Debug)]
pub struct Unordered {
    pub items: Arc<Vec<Value>>,
    /// The fields that tell items apart; `None` for a set, whose items are their own keys.
    pub keys: Option<Arc<Vec<String>>>,
}

impl Opaque for Unordered {
    fn runtime_type_name(&self) -> &'static str {
        "list"
    }
}

impl PartialEq for Unordered {
    fn eq(&self, other: &Self) -> bool {
        self.same(&other.items)
    }
}

// `Value` has no total equality because of doubles, and `Opaque` asks for it.
impl Eq for Unordered {}

impl Unordered {
    /// What tells an item apart from the others, as text.
    fn key(&self, item: &Value) -> String {
        let text = |value: &Value| to_json(value).map_or_else(|what| what, |json| json.to_string());
        match (&self.keys, item) {
            (Some(keys), Value::Map(map)) => {
                let keys = keys.iter().map(|key| Key::String(Arc::new(key.clone())));
                let values = keys.map(|key| map.map.get(&key).map(text).unwrap_or_default());
                values.collect::<Vec<_>>().join("\0")
            }
            _ => text(item),
        }
    }

    /// Whether both have the same items, in whatever order.
    fn same(&self, other: &[Value]) -> bool {
        if self.items.len() != other.len() {
            return false;
        }
        let by_key: HashMap<String, &Value> = self
            .items
            .iter()
            .map(|item| (self.key(item), item))
            .collect();
        let found = |item: &Value| {
            let known = by_key.get(&self.key(item));
            known.is_some_and(|known| self.keys.is_none() || equal(known, item))
        };
        other.iter().all(found)
    }

    /// `self + other`: what is there stays where it is, replaced by what has the same key; the rest follows in order.
    #[must_use]
    pub fn union(&self, other: &[Value]) -> Self {
        let mut items = self.items.to_vec();
        let mut places: HashMap<String, usize> = HashMap::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            places.insert(self.key(item), at);
        }
        let mut appended = HashSet::new();
        for item in other {
            let key = self.key(item);
            match places.get(&key) {
                Some(at) => items[*at] = item.clone(),
                None if appended.insert(key) => items.push(item.clone()),
                None => {}
            }
        }
        Self {
            items: Arc::new(items),
            keys: self.keys.clone(),
        }
    }
}

pub fn as_unordered(value: &Value) -> Option<&Unordered> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<Unordered>(),
        _ => None,
    }
}

/// The items of a list of either kind.
pub fn items_of(value: &Value) -> Option<&Arc<Vec<Value>>> {
    match value {
        Value::List(items) => Some(items),
        value => as_unordered(value).map(|list| &list.items),
    }
}

/// A list as functions take it: in the order in which it is written.
pub fn ordered(value: Value) -> Value {
    match as_unordered(&value) {
        Some(list) => Value::List(list.items.clone()),
        None => value,
    }
}

/// `left == right`
pub fn equal(left: &Value, right: &Value) -> bool {
    if let (Some(list), Some(other)) = (as_unordered(left), items_of(right)) {
        return list.same(other);
    }
    match (left, right) {
        (left, right) if items_of(left).is_some() || items_of(right).is_some() => {
            match (items_of(left), items_of(right)) {
                (Some(a), Some(b)) => {
                    a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b))
                }
                _ => false,
            }
        }
        (Value::Map(a), Value::Map(b)) => {
            a.map.len() == b.map.len()
                && a.map.iter().all(|(key, value)| {
                    let other = b.map.get(key);
                    other.is_some_and(|other| equal(value, other))
                })
        }
        (Value::Opaque(a), Value::Opaque(b)) => {
            match (
                a.downcast_ref::<OptionalValue>(),
                b.downcast_ref::<OptionalValue>(),
            ) {
                (Some(a), Some(b)) => match (a.value(), b.value()) {
                    (Some(a), Some(b)) => equal(a, b),
                    (None, None) => true,
                    _ => false,
                },
                _ => left == right,
            }
        }
        _ => left == right,
    }
}
