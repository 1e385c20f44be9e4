//! Strategic merge patch: a merge patch that merges lists by key, with directives (`$patch`, `$retainKeys`,
//! `$setElementOrder/LIST`, `$deleteFromPrimitiveList/LIST`). Follows apimachinery's `strategicpatch`.

use serde_json::{Map, Value};
use skep_schema::{
    TypeRef,
    table::{Field, Node, Shape},
};

use crate::PatchError;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder";
const LIST: &str = "[]interface {}";
const MAP: &str = "map[string]interface {}";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// The patched object, not yet conformed. A patch that is no map changes nothing.
///
/// # Errors
/// Upstream's texts, by the status they are answered with.
pub fn strategic_merge(object: &Value, patch: &Value, ty: &TypeRef) -> Result<Value, PatchError> {
    let none = Map::new();
    let patch = patch.as_object().unwrap_or(&none);
    let original = object.as_object().cloned().unwrap_or_default();
    let merged = Value::Object(merge_map(original, patch, Some(ty.node()))?);
    match restore_error(&merged, ty.node()) {
        Some(text) => Err(PatchError::Invalid(text)),
        None => Ok(merged),
    }
}

/// Go's `%v`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => go_map(map),
        other => other.to_string(),
    }
}

fn go_map(map: &Map<String, Value>) -> String {
    let items: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}:{}", go_text(value)))
        .collect();
    format!("map[{}]", items.join(" "))
}

fn no_merge_key(map: &Map<String, Value>, key: &str) -> PatchError {
    PatchError::Internal(format!(
        "map: {} does not contain declared merge key: {key}",
        go_map(map)
    ))
}

/// A value of another type than a directive's list or its items.
fn bad_argument(expected: &str, found: &Value) -> PatchError {
    PatchError::Internal(format!(
        "expected a {expected}, but received a {}",
        go_type(found)
    ))
}

/// Go's name of the type that a JSON value has in an interface.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => LIST,
        Value::Object(_) => MAP,
    }
}

fn bad_directive(directive: &Value, map: &Map<String, Value>) -> PatchError {
    PatchError::Internal(format!(
        "unknown patch type: {} in map: {}",
        go_text(directive),
        go_map(map)
    ))
}

/// The declaration of a member, if the type has one, and the type of its value.
fn lookup<'a>(node: Option<Node<'a>>, name: &str) -> (Option<&'a Field>, Option<Node<'a>>) {
    let Some(node) = node else {
        return (None, None);
    };
    match node.shape() {
        Shape::Object(object) => match object.field(name) {
            Some(field) => (Some(field), Some(node.at(field.ty))),
            None => (None, None),
        },
        Shape::Map { values, .. } => (None, Some(node.at(*values))),
        _ => (None, None),
    }
}

fn items_of(node: Option<Node<'_>>) -> Option<Node<'_>> {
    let node = node?;
    match node.shape() {
        Shape::List { items, .. } => Some(node.at(*items)),
        _ => None,
    }
}

fn merge_map(
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    node: Option<Node<'_>>,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                let mut replaced = patch.clone();
                replaced.remove(DIRECTIVE);
                Ok(replaced)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(bad_directive(directive, patch)),
        };
    }
    let mut patch = patch.clone();
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, node)?;

    for (name, value) in patch {
        let (name, deletes) = match name.strip_prefix(DELETE_FROM) {
            Some(list) => (list.to_owned(), true),
            None => (name, false),
        };
        if value.is_null() {
            original.remove(&name);
            continue;
        }
        let (field, ty) = lookup(node, &name);
        let Some(current) = original.remove(&name) else {
            if !deletes {
                original.insert(name, without_directives(value));
            }
            continue;
        };
        let merged = match (current, value) {
            (Value::Object(_), Value::Object(value))
                if field.is_some_and(|field| field.patch_replace) =>
            {
                Value::Object(value)
            }
            (Value::Object(current), Value::Object(value)) => {
                Value::Object(merge_map(current, &value, ty)?)
            }
            (Value::Array(current), Value::Array(value)) => {
                Value::Array(merge_list(current, value, field, items_of(ty), deletes)?)
            }
            (_, value) => value,
        };
        original.insert(name, merged);
    }
    Ok(original)
}

/// A part of a patch that meets nothing to be merged with.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(name, value)| {
                    let directive = name == DIRECTIVE
                        || name == RETAIN_KEYS
                        || name.starts_with(SET_ORDER)
                        || name.starts_with(DELETE_FROM);
                    !directive && !value.is_null()
                })
                .map(|(name, value)| (name, without_directives(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(
            list.into_iter()
                .filter(|item| item.get(DIRECTIVE).is_none())
                .map(without_directives)
                .collect(),
        ),
        other => other,
    }
}

fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".to_owned());
    let keys = keys.as_array().ok_or_else(bad)?;
    let keeps = |name: &str| keys.iter().any(|key| key == name);
    for (name, value) in patch.iter() {
        let directive = name.starts_with(SET_ORDER) || name.starts_with(DELETE_FROM);
        if !value.is_null() && !directive && !keeps(name) {
            return Err(bad());
        }
    }
    original.retain(|name, _| keeps(name));
    Ok(())
}

/// `$setElementOrder/LIST`: merges the list together with the order, and takes both from the patch.
fn set_element_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    node: Option<Node<'_>>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|name| name.starts_with(SET_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            other => return Err(bad_argument(LIST, &other.unwrap_or_default())),
        };
        let name = directive.strip_prefix(SET_ORDER).unwrap_or_default();
        let Some(name) = name.strip_prefix('/') else {
            let why = "invalid patch format of setElementOrder list";
            return Err(PatchError::Malformed(why.to_owned()));
        };
        let (field, ty) = lookup(node, name);
        let merge_key = field.map_or("", |field| field.patch_merge_key.as_str());
        let list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(bad_argument(LIST, &other)),
        };
        let change = list(patch.remove(name).filter(|value| !value.is_null()))?;
        let current = list(original.get(name).cloned().filter(|value| !value.is_null()))?;
        if let Some(change) = &change {
            check_order(change, &order, merge_key)?;
        }
        let server_order = current.clone().unwrap_or_default();
        let merged = match (current, change) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(change)) => match without_directives(Value::Array(change)) {
                Value::Array(change) => change,
                _ => Vec::new(),
            },
            (Some(current), Some(change)) => {
                merge_list(current, change, field, items_of(ty), false)?
            }
        };
        let ordered = arrange(merged, &order, &server_order, merge_key)?;
        original.insert(name.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

/// The items of a patch must stand in the order that the patch asks for.
fn check_order(change: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    if !merge_key.is_empty()
        && let Some(item) = change.iter().find(|item| !item.is_object())
    {
        return Err(bad_argument(MAP, item));
    }
    let mut wanted = order.iter();
    for item in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        loop {
            let Some(entry) = wanted.next() else {
                return Err(PatchError::Internal(format!(
                    "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                    go_text(&Value::Array(change.to_vec())),
                    go_text(&Value::Array(order.to_vec()))
                )));
            };
            for side in [item, entry] {
                match side {
                    Value::Object(map) if !merge_key.is_empty() && !map.contains_key(merge_key) => {
                        return Err(no_merge_key(map, merge_key));
                    }
                    Value::Object(_) => {}
                    other if !merge_key.is_empty() => return Err(bad_argument(MAP, other)),
                    _ => {}
                }
            }
            if same(entry, item, merge_key) {
                break;
            }
        }
    }
    Ok(())
}

fn same(left: &Value, right: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        return left == right;
    }
    match (left.get(merge_key), right.get(merge_key)) {
        (Some(left), Some(right)) => left == right,
        _ => false,
    }
}

fn position(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    list.iter().position(|entry| same(entry, item, merge_key))
}

/// Puts the items that `order` names into its order, and the others between them as they were on the server.
fn arrange(
    merged: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, PatchError> {
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        if !merge_key.is_empty()
            && item.get(merge_key).is_none()
            && let Some(map) = item.as_object()
        {
            return Err(no_merge_key(map, merge_key));
        }
        match position(order, &item, merge_key) {
            Some(at) => named.push((at, item)),
            None => {
                others.push((
                    position(server_order, &item, merge_key).unwrap_or(usize::MAX),
                    item,
                ));
            }
        }
    }
    named.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| *at);
    let mut named = named.into_iter().map(|(_, item)| item).peekable();
    let mut others = others.into_iter().map(|(_, item)| item).peekable();
    let mut arranged = Vec::new();
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(arranged),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(item)) => {
                let other = position(server_order, other, merge_key);
                let item = position(server_order, item, merge_key);
                matches!((other, item), (Some(other), Some(item)) if other < item)
            }
        };
        arranged.extend(if other_first {
            others.next()
        } else {
            named.next()
        });
    }
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&Field>,
    items: Option<Node<'_>>,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    if !field.is_some_and(|field| field.patch_merge) {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let merge_key = field.map_or("", |field| field.patch_merge_key.as_str());
    let maps = original
        .iter()
        .chain(&patch)
        .filter(|item| item.is_object())
        .count();
    if maps == 0 {
        if original.iter().chain(&patch).any(Value::is_array) {
            return Err(PatchError::Unprocessable(
                "lists of lists are not supported".to_owned(),
            ));
        }
        if deletes {
            return Ok(original
                .into_iter()
                .filter(|item| !patch.contains(item))
                .collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return arrange(merged, &patch, &original, "");
    }
    if maps != original.len() + patch.len() {
        return Err(mixed(&original, &patch));
    }
    if merge_key.is_empty() {
        return Err(PatchError::Internal(
            "cannot merge lists without merge key for type struct".to_owned(),
        ));
    }

    let mut original = original;
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(map) = item else { continue };
        match map.get(DIRECTIVE) {
            None => plain.push(map),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let Some(key) = map.get(merge_key) else {
                        return Err(no_merge_key(&map, merge_key));
                    };
                    original.retain(|item| item.get(merge_key) != Some(key));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Internal(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => return Err(bad_directive(directive, &map)),
            },
        }
    }
    if replace {
        return Ok(plain.into_iter().map(Value::Object).collect());
    }
    let server_order = original.clone();
    let order: Vec<Value> = plain.iter().cloned().map(Value::Object).collect();
    for change in plain {
        let Some(key) = change.get(merge_key) else {
            return Err(no_merge_key(&change, merge_key));
        };
        match original
            .iter_mut()
            .find(|item| item.get(merge_key) == Some(key))
        {
            Some(slot) => {
                let current = match slot.take() {
                    Value::Object(current) => current,
                    _ => Map::new(),
                };
                *slot = Value::Object(merge_map(current, &change, items)?);
            }
            None => original.push(without_directives(Value::Object(change))),
        }
    }
    arrange(original, &order, &server_order, merge_key)
}

fn mixed(original: &[Value], patch: &[Value]) -> PatchError {
    let lists = [original, patch].map(|list| go_text(&Value::Array(list.to_vec())));
    let lists = lists.join(" ");
    PatchError::Internal(format!("list element types are not identical: [{lists}]"))
}

/// What upstream's converter from maps to structs says where a value's kind does not fit its type.
pub(crate) fn restore_error(value: &Value, node: Node<'_>) -> Option<String> {
    let go_kind = match value {
        Value::Null => return None,
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => map.iter().find_map(|(name, value)| {
            let why = restore_error(value, node.at(object.field(name)?.ty))?;
            let owner = node.ty().name.rsplit('.').next().unwrap_or_default();
            match skep_schema::go_name(owner, name) {
                Some(named) if why == NOT_TEXT => Some(why.replace("string", named)),
                _ => Some(why),
            }
        }),
        (Shape::Map { values, .. }, Value::Object(map)) => map
            .values()
            .find_map(|value| restore_error(value, node.at(*values))),
        (Shape::List { items, .. }, Value::Array(list)) => list
            .iter()
            .find_map(|item| restore_error(item, node.at(*items))),
        (Shape::Object(_), _) => Some(format!("cannot restore struct from: {go_kind}")),
        (Shape::Map { .. }, _) => Some(format!("cannot restore map from {go_kind}")),
        (Shape::Bytes, Value::String(_)) => None,
        (Shape::List { .. } | Shape::Bytes, _) => {
            Some(format!("cannot restore slice from {go_kind}"))
        }
        (Shape::String, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(_))
            if !fractional(node, value) =>
        {
            None
        }
        // Go converts numbers to each other and to text, but the converter does not want that; the rest it cannot.
        (Shape::String, Value::Number(number)) if !number.is_f64() => Some(NOT_TEXT.to_owned()),
        (Shape::Int32 | Shape::Int64, Value::Number(_)) => {
            Some(format!("cannot convert float64 to {}", simple(node)?))
        }
        (Shape::IntOrString, value) => {
            let fits =
                value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
            (!fits).then(|| unmarshalled(value, "int32"))
        }
        (Shape::Time | Shape::MicroTime | Shape::Duration, value) => {
            (!value.is_string()).then(|| unmarshalled(value, "string"))
        }
        _ => Some(format!("unrecognized type: {}", simple(node)?)),
    }
}

const NOT_TEXT: &str = "cannot convert int64 to string";

/// Go's name of a type without parts.
fn simple(node: Node<'_>) -> Option<&'static str> {
    match node.shape() {
        Shape::String => Some("string"),
        Shape::Bool => Some("bool"),
        Shape::Int32 => Some("int32"),
        Shape::Int64 => Some("int64"),
        Shape::Double => Some("float64"),
        _ => None,
    }
}

fn fractional(node: Node<'_>, value: &Value) -> bool {
    let whole = matches!(node.shape(), Shape::Int32 | Shape::Int64);
    whole && value.as_f64().is_some_and(|number| number.fract() != 0.0)
}

/// The words of a type's own UnmarshalJSON, which does not know where it stands.
fn unmarshalled(value: &Value, wanted: &str) -> String {
    let found = match value {
        Value::Number(number) if wanted == "int32" => format!("number {number}"),
        other => skep_schema::go_kind(other).to_owned(),
    };
    format!("json: cannot unmarshal {found} into Go value of type {wanted}")
}

#[cfg(test)]
mod tests;
