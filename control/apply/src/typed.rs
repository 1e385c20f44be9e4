//! Values seen through their schema: which paths a value has, how two values differ, how one is laid over the other,
//! and what is left without a set of paths (structured-merge-diff, typed).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skep_schema::table::{ListType, Node, Shape, Zero};

use crate::fieldset::{FieldSet, Step};

/// The type of a place in a value.
#[derive(Clone, Copy)]
pub(crate) enum Ty<'a> {
    /// No schema: maps are merged by key, lists are atomic.
    Deduced,
    /// A type, and whether the field that holds it overrides its atomicity.
    Known(Node<'a>, Option<bool>),
}

/// How a place is merged, given what stands there.
enum View<'a> {
    Leaf,
    Map(Ty<'a>),
    List(Ty<'a>, &'a ListType),
}

impl<'a> Ty<'a> {
    pub(crate) fn of(node: Node<'a>) -> Self {
        Self::Known(node, None)
    }

    /// The type of a member of a map, and whether it is a declared field (rather than a key).
    fn member(self, name: &str) -> (Ty<'a>, bool) {
        let Self::Known(node, _) = self else {
            return (Self::Deduced, false);
        };
        match node.shape() {
            Shape::Object(object) => match object.field(name) {
                Some(field) => (Self::Known(node.at(field.ty), field.atomic), true),
                None => (Self::Deduced, false),
            },
            Shape::Map { values, .. } => (Self::Known(node.at(*values), None), false),
            _ => (Self::Deduced, false),
        }
    }

    fn view(self, value: &Value) -> View<'a> {
        let Self::Known(node, atomic) = self else {
            return if value.is_object() {
                View::Map(self)
            } else {
                View::Leaf
            };
        };
        match (node.shape(), value) {
            (Shape::Object(object), Value::Object(_) | Value::Null)
                if !atomic.unwrap_or(object.atomic) =>
            {
                View::Map(self)
            }
            (Shape::Map { atomic: own, .. }, Value::Object(_) | Value::Null)
                if !atomic.unwrap_or(*own) =>
            {
                View::Map(self)
            }
            (Shape::List { items, list_type }, Value::Array(_) | Value::Null)
                if *list_type != ListType::Atomic && atomic != Some(true) =>
            {
                View::List(Self::Known(node.at(*items), None), list_type)
            }
            (
                Shape::Any
                | Shape::Deduced
                | Shape::Raw
                | Shape::FieldsV1
                | Shape::OrArray(_)
                | Shape::OrBool(_)
                | Shape::OrStringArray(_),
                Value::Object(_),
            ) => View::Map(Self::Deduced),
            _ => View::Leaf,
        }
    }
}

/// What identifies an item of a list; `None` if it lacks every key.
fn item_step(items: Ty<'_>, list_type: &ListType, item: &Value) -> Option<Step> {
    let ListType::Map(keys) = list_type else {
        return Some(Step::Value(item.to_string()));
    };
    let mut found = Map::new();
    for key in keys {
        let default = || {
            let Ty::Known(node, _) = items else {
                return None;
            };
            let (field, ty) = node.field(key)?;
            // Upstream's document gives plain required fields their zero value as default.
            let zero = match ty.shape() {
                Shape::String => Value::from(""),
                Shape::Int32 | Shape::Int64 => Value::from(0),
                _ => Value::Null,
            };
            let zero = (field.zero == Zero::Keep && !zero.is_null()).then_some(zero);
            field.default.clone().or(zero)
        };
        if let Some(value) = item.get(key).cloned().or_else(default) {
            found.insert(key.clone(), value);
        }
    }
    (!found.is_empty()).then(|| Step::Key(Value::Object(found).to_string()))
}

/// Items by what identifies them, in order. Items without keys are told apart by their position.
fn index<'v>(items: Ty<'_>, list_type: &ListType, list: &'v [Value]) -> Vec<(Step, &'v Value)> {
    list.iter()
        .enumerate()
        .map(|(at, item)| {
            let step = item_step(items, list_type, item);
            (step.unwrap_or(Step::Index(at as u64)), item)
        })
        .collect()
}

fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// All paths of a value.
pub(crate) fn to_set(value: &Value, ty: Ty<'_>) -> FieldSet {
    let mut set = FieldSet::default();
    match ty.view(value) {
        View::Leaf => set.member = true,
        View::Map(ty) => {
            for (name, value) in entries(Some(value)).into_iter().flatten() {
                let (member, declared) = ty.member(name);
                let mut below = to_set(value, member);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                below.member |= hollow || !declared;
                set.put(Step::Field(name.clone()), below);
            }
        }
        View::List(items, list_type) => {
            let mut seen: BTreeMap<Step, usize> = BTreeMap::new();
            let indexed = index(items, list_type, list(Some(value)));
            for (step, _) in &indexed {
                *seen.entry(step.clone()).or_default() += 1;
            }
            for (step, item) in indexed {
                // Of duplicates only the step itself is owned.
                let mut below = FieldSet::default();
                if seen.get(&step) == Some(&1) {
                    below = to_set(item, items);
                }
                below.member = true;
                set.put(step, below);
            }
        }
    }
    set
}

/// How `new` differs from `old`.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Comparison {
    pub(crate) fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, step: Step, below: Comparison) {
        // Nearly always there is one of the three.
        for (set, below) in [
            (&mut self.modified, below.modified),
            (&mut self.removed, below.removed),
        ] {
            if !below.is_empty() {
                set.put(step.clone(), below);
            }
        }
        self.added.put(step, below.added);
    }

    /// Leaves out fields that an endpoint resets.
    pub(crate) fn without_trees(&mut self, trees: &FieldSet) {
        self.added.subtract_trees(trees);
        self.modified.subtract_trees(trees);
        self.removed.subtract_trees(trees);
    }
}

pub(crate) fn compare(old: &Value, new: &Value, ty: Ty<'_>) -> Comparison {
    compare_at(Some(old), Some(new), ty)
}

fn compare_at(old: Option<&Value>, new: Option<&Value>, ty: Ty<'_>) -> Comparison {
    let mut found = Comparison::default();
    // Most of an object stays the same from one write to the next.
    if old == new {
        return found;
    }
    let hollow = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let views = (old.map(|old| ty.view(old)), new.map(|new| ty.view(new)));
    // A null takes the form of the other side, which is why that side's view counts.
    let view = match (views, old, new) {
        ((_, Some(_)), _, Some(Value::Null)) => old.map_or(View::Leaf, |old| ty.view(old)),
        ((Some(View::Leaf), Some(_)), Some(old), _) if !old.is_null() => View::Leaf,
        ((_, Some(view)), ..) | ((Some(view), None), ..) => view,
        ((None, None), ..) => View::Leaf,
    };
    let leaf = matches!(view, View::Leaf) || (hollow(old) && hollow(new));
    if leaf {
        found.added.member = old.is_none();
        found.removed.member = new.is_none();
        found.modified.member = matches!((old, new), (Some(old), Some(new)) if old != new);
        return found;
    }
    match view {
        View::Leaf => {}
        View::Map(ty) => {
            let (old, new) = (entries(old), entries(new));
            for (name, value) in old.into_iter().flatten() {
                let after = new.and_then(|new| new.get(name));
                let below = compare_at(Some(value), after, ty.member(name).0);
                found.put(Step::Field(name.clone()), below);
            }
            for (name, value) in new.into_iter().flatten() {
                if old.is_none_or(|old| !old.contains_key(name)) {
                    let below = compare_at(None, Some(value), ty.member(name).0);
                    found.put(Step::Field(name.clone()), below);
                }
            }
        }
        View::List(items, list_type) => compare_lists(
            &index(items, list_type, list(old)),
            &index(items, list_type, list(new)),
            items,
            &mut found,
        ),
    }
    found.added.member = old.is_none();
    found.removed.member = new.is_none();
    found
}

fn compare_lists(
    old: &[(Step, &Value)],
    new: &[(Step, &Value)],
    items: Ty<'_>,
    found: &mut Comparison,
) {
    let mut by_step: BTreeMap<&Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (step, item) in old {
        by_step.entry(step).or_default().0.push(item);
    }
    for (step, item) in new {
        by_step.entry(step).or_default().1.push(item);
    }
    for (step, (old, new)) in by_step {
        let below = if old.len() <= 1 && new.len() <= 1 {
            compare_at(old.first().copied(), new.first().copied(), items)
        } else {
            // Duplicates are compared as a whole.
            let mut below = Comparison::default();
            below.added.member = old.is_empty();
            below.removed.member = new.is_empty();
            below.modified.member = !old.is_empty() && !new.is_empty() && old != new;
            below
        };
        found.put(step.clone(), below);
    }
}

/// `over` laid over `base`: what `over` has wins, what it lacks stays.
pub(crate) fn merge(base: &Value, over: &Value, ty: Ty<'_>) -> Value {
    merge_at(Some(base), Some(over), ty).unwrap_or(Value::Null)
}

fn merge_at(base: Option<&Value>, over: Option<&Value>, ty: Ty<'_>) -> Option<Value> {
    let (Some(below), Some(above)) = (base, over) else {
        return over.or(base).cloned();
    };
    let hollow = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if hollow(below) && hollow(above) {
        return Some(above.clone());
    }
    let view = if above.is_null() {
        ty.view(below)
    } else {
        ty.view(above)
    };
    match view {
        View::Leaf => Some(above.clone()),
        View::Map(ty) => {
            let mut merged = Map::new();
            for (name, value) in entries(base).into_iter().flatten() {
                let over = entries(over).and_then(|over| over.get(name));
                if let Some(value) = merge_at(Some(value), over, ty.member(name).0) {
                    merged.insert(name.clone(), value);
                }
            }
            for (name, value) in entries(over).into_iter().flatten() {
                if !merged.contains_key(name) {
                    merged.insert(name.clone(), value.clone());
                }
            }
            Some(Value::Object(merged))
        }
        View::List(items, list_type) => Some(Value::Array(merge_lists(
            &index(items, list_type, list(base)),
            &index(items, list_type, list(over)),
            items,
        ))),
    }
}

/// Items of both, in `over`'s order, with those only in `base` between their old neighbours.
fn merge_lists(base: &[(Step, &Value)], over: &[(Step, &Value)], items: Ty<'_>) -> Vec<Value> {
    let in_base: BTreeMap<&Step, &Value> = base.iter().rev().map(|(s, v)| (s, *v)).collect();
    let in_over: BTreeMap<&Step, &Value> = over.iter().rev().map(|(s, v)| (s, *v)).collect();
    let mut shared = over
        .iter()
        .map(|(step, _)| step)
        .filter(|step| in_base.contains_key(step));
    let mut next_shared = shared.next();
    let mut done: BTreeMap<&Step, ()> = BTreeMap::new();
    let mut merged = Vec::with_capacity(base.len().max(over.len()));
    let both = |step: &Step| {
        merge_at(
            in_base.get(step).copied(),
            in_over.get(step).copied(),
            items,
        )
    };
    let (mut at_base, mut at_over) = (0, 0);
    while at_base < base.len() || at_over < over.len() {
        if at_base < base.len() && at_over < over.len() {
            let step = &base[at_base].0;
            if *step == over[at_over].0 {
                done.insert(step, ());
                merged.extend(both(step));
                at_base += 1;
                at_over += 1;
                next_shared = shared.next();
                continue;
            }
            // Shared, but not the one that is due.
            if in_over.contains_key(step) && next_shared.is_some_and(|next| next != step) {
                at_base += 1;
                continue;
            }
        }
        if at_base < base.len() {
            let (step, item) = &base[at_base];
            if !in_over.contains_key(step) {
                merged.push((*item).clone());
                at_base += 1;
                continue;
            }
            if done.contains_key(step) {
                at_base += 1;
            }
        }
        if at_over < over.len() {
            let step = &over[at_over].0;
            done.insert(step, ());
            merged.extend(both(step));
            at_over += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    merged
}

/// The value without the members of `set`. A map or list that loses everything becomes null.
pub(crate) fn remove(value: &Value, set: &FieldSet, ty: Ty<'_>) -> Value {
    match ty.view(value) {
        View::Map(ty) => {
            let mut kept = Map::new();
            for (name, value) in entries(Some(value)).into_iter().flatten() {
                let step = Step::Field(name.clone());
                match set.children.get(&step) {
                    Some(below) if below.member => {}
                    Some(below) => {
                        kept.insert(name.clone(), remove(value, below, ty.member(name).0));
                    }
                    None => {
                        kept.insert(name.clone(), value.clone());
                    }
                }
            }
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Object(kept)
            }
        }
        View::List(items, list_type) => {
            let mut kept = Vec::new();
            for (step, item) in index(items, list_type, list(Some(value))) {
                match set.children.get(&step) {
                    Some(below) if below.member => {}
                    Some(below) => kept.push(remove(item, below, items)),
                    None => kept.push(item.clone()),
                }
            }
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Array(kept)
            }
        }
        View::Leaf => value.clone(),
    }
}

/// The set with every declared field on the way to a member made a member itself.
pub(crate) fn with_named_fields(set: &FieldSet, ty: Ty<'_>) -> FieldSet {
    let mut out = FieldSet {
        member: set.member,
        children: BTreeMap::new(),
    };
    for (step, child) in &set.children {
        let (below, declared) = match (step, ty) {
            (Step::Field(name), _) => ty.member(name),
            (_, Ty::Known(node, _)) => match node.shape() {
                Shape::List { items, .. } => (Ty::Known(node.at(*items), None), false),
                _ => (Ty::Deduced, false),
            },
            _ => (Ty::Deduced, false),
        };
        let mut child = with_named_fields(child, below);
        child.member |= declared;
        out.children.insert(step.clone(), child);
    }
    out
}

/// What of an applied configuration does not fit the schema: `.spec.foo: field not declared in schema`.
pub(crate) fn complaints(value: &Value, ty: Ty<'_>) -> Vec<String> {
    let mut found = Vec::new();
    complain(value, ty, &mut String::new(), &mut found);
    found
}

fn complain(value: &Value, ty: Ty<'_>, path: &mut String, found: &mut Vec<String>) {
    let Ty::Known(node, _) = ty else { return };
    let length = path.len();
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => {
            for (name, value) in map {
                Step::Field(name.clone()).display(path);
                let (member, declared) = ty.member(name);
                if declared {
                    complain(value, member, path, found);
                } else if !object.preserve_unknown {
                    found.push(format!("{path}: field not declared in schema"));
                }
                path.truncate(length);
            }
        }
        (Shape::Map { values, .. }, Value::Object(map)) => {
            for (name, value) in map {
                Step::Field(name.clone()).display(path);
                complain(value, Ty::Known(node.at(*values), None), path, found);
                path.truncate(length);
            }
        }
        (Shape::List { items, list_type }, Value::Array(list)) => {
            let items = Ty::Known(node.at(*items), None);
            let mut seen = BTreeMap::new();
            for (at, item) in list.iter().enumerate() {
                if let Some(why) = no_item(list_type, item) {
                    found.push(format!("{path}: element {at}: {why}"));
                    continue;
                }
                let step = match list_type {
                    ListType::Atomic => Some(Step::Index(at as u64)),
                    _ => item_step(items, list_type, item),
                };
                let Some(step) = step else {
                    let ListType::Map(keys) = list_type else {
                        continue;
                    };
                    let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                    found.push(format!(
                        "{path}: element {at}: associative list with keys has an element that omits all key fields \
                         [{}] (and doesn't have default values for any key fields)",
                        keys.join(" ")
                    ));
                    continue;
                };
                step.display(path);
                if *list_type != ListType::Atomic && seen.insert(step, ()).is_some() {
                    let key = path.split_off(length);
                    found.push(format!("{path}: duplicate entries for key {key}"));
                    continue;
                }
                complain(item, items, path, found);
                path.truncate(length);
            }
        }
        (_, Value::Null) => {}
        (Shape::Object(_) | Shape::Map { .. }, other) => {
            found.push(format!("{path}: expected map, got {}", described(other)));
        }
        (Shape::List { .. }, other) => {
            found.push(format!("{path}: expected list, got {}", described(other)));
        }
        (Shape::String | Shape::Time | Shape::MicroTime | Shape::Bytes, other)
            if !other.is_string() =>
        {
            found.push(format!("{path}: expected string, got {}", described(other)));
        }
        (Shape::Bool, other) if !other.is_boolean() => {
            found.push(format!(
                "{path}: expected boolean, got {}",
                described(other)
            ));
        }
        (Shape::Int32 | Shape::Int64 | Shape::Double, other) if !other.is_number() => {
            found.push(format!(
                "{path}: expected numeric (int or float), got {}",
                described(other)
            ));
        }
        _ => {}
    }
}

/// Why a value cannot be an item of an associative list.
fn no_item(list_type: &ListType, item: &Value) -> Option<&'static str> {
    match (list_type, item) {
        (ListType::Map(_), Value::Null) => {
            Some("associative list with keys may not have a null element")
        }
        (ListType::Map(_), Value::Object(_)) | (ListType::Atomic, _) => None,
        (ListType::Map(_), _) => Some("associative list with keys may not have non-map elements"),
        (ListType::Set, Value::Object(_)) => {
            Some("associative list without keys has an element that's a map type")
        }
        (ListType::Set, Value::Array(_)) => {
            Some("not supported: associative list with lists as elements")
        }
        (ListType::Set, Value::Null) => {
            Some("associative list without keys has an element that's an explicit null")
        }
        (ListType::Set, _) => None,
    }
}

/// Go's name of what stands there.
fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "map",
    }
}
