//! JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386).

use serde_json::{Map, Value};

/// What is wrong with a patch, by the status that upstream answers with. `Display` is upstream's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 BadRequest with this message.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422, `the server rejected our request due to an error in our request`. The
    /// text says why, for the log.
    #[error("{0}")]
    Unprocessable(String),
    /// The patched object cannot be one of its kind: 422 Invalid of field `patch`, with this detail.
    #[error("{0}")]
    Invalid(String),
    /// Upstream answers 500 with this message.
    #[error("{0}")]
    Internal(String),
}

/// Most operations of one JSON patch (upstream answers 413; the caller checks before).
pub(crate) const MAX_OPERATIONS: usize = 10_000;
/// What copies may add to a document, as upstream limits it.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

fn unprocessable<T>(text: String) -> Result<T, PatchError> {
    Err(PatchError::Unprocessable(text))
}

/// The object after all operations, in order, as evanphx/json-patch applies them: a `replace` of a field that is not there
/// adds it, a value that is missing is null, and what stands before the first slash of a path does not matter.
///
/// # Errors
/// `Malformed` if the patch is no list of operations, `Unprocessable` if one of them does not fit.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let kind = match patch {
        Value::Object(_) => "object",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Array(_) | Value::Null => "",
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        _ => {
            return Err(PatchError::Malformed(format!(
                "json: cannot unmarshal {kind} into Go value of type jsonpatch.Patch"
            )));
        }
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in operations {
        let text = |name: &str| operation.get(name).and_then(Value::as_str);
        let Some(path) = text("path") else {
            return unprocessable("missing path".to_owned());
        };
        let from = || text("from").ok_or_else(|| unfit("missing from"));
        let value = || operation.get("value").unwrap_or(&Value::Null);
        match text("op").unwrap_or("unknown") {
            "add" => add(&mut patched, path, value().clone())?,
            "remove" => {
                remove(&mut patched, path)?;
            }
            "replace" => replace(&mut patched, path, value())?,
            "move" => {
                let moved = remove(&mut patched, from()?)?;
                add(&mut patched, path, moved)?;
            }
            "copy" => {
                let copy = get(&patched, from()?)?.cloned().unwrap_or(Value::Null);
                copied += copy.to_string().len();
                if copied > MAX_COPIED_BYTES {
                    return unprocessable("copies add too much to the document".to_owned());
                }
                add(&mut patched, path, copy)?;
            }
            "test" => {
                let found = match path {
                    "" => &patched,
                    _ => get(&patched, path)?.unwrap_or(&Value::Null),
                };
                if found != value() {
                    return unprocessable(format!("testing value {path} failed: test failed"));
                }
            }
            other => return unprocessable(format!("Unexpected kind: {other}")),
        }
    }
    Ok(patched)
}

fn unfit(text: &str) -> PatchError {
    PatchError::Unprocessable(text.to_owned())
}

fn missing_path(path: &str) -> PatchError {
    PatchError::Unprocessable(format!("doc is missing path: {path:?}"))
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// The tokens that lead to the parent, and the last one. The whole document has no parent.
fn split(path: &str) -> Result<(Vec<String>, String), PatchError> {
    let mut tokens: Vec<String> = path.split('/').skip(1).map(unescape).collect();
    let last = tokens.pop().ok_or_else(|| missing_path(path))?;
    Ok((tokens, last))
}

/// A place in a list of `length`; negative ones count from the end. `None` is beyond both ends.
fn position(token: &str, length: usize) -> Result<Option<usize>, PatchError> {
    let index: i64 = token
        .parse()
        .map_err(|_| unfit("value was not a proper array index"))?;
    let from_end = || length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?);
    Ok(match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => from_end(),
    })
}

fn child<'a>(at: &'a Value, token: &str) -> Option<&'a Value> {
    match at {
        Value::Object(map) => map.get(token),
        Value::Array(list) => list.get(position(token, list.len()).ok()??),
        _ => None,
    }
}

fn child_mut<'a>(at: &'a mut Value, token: &str) -> Option<&'a mut Value> {
    match at {
        Value::Object(map) => map.get_mut(token),
        Value::Array(list) => {
            let index = position(token, list.len()).ok()??;
            list.get_mut(index)
        }
        _ => None,
    }
}

/// What is at `path`; `None` for a field that a map lacks.
fn get<'a>(document: &'a Value, path: &str) -> Result<Option<&'a Value>, PatchError> {
    let (parents, last) = split(path)?;
    let missing = || missing_path(path);
    let mut at = document;
    for token in &parents {
        at = child(at, token).ok_or_else(missing)?;
    }
    match at {
        Value::Object(map) => Ok(map.get(&last)),
        Value::Array(_) => child(at, &last).map(Some).ok_or_else(missing),
        _ => Err(missing()),
    }
}

fn parent_mut<'a>(
    document: &'a mut Value,
    path: &str,
) -> Result<(&'a mut Value, String), PatchError> {
    let (parents, last) = split(path)?;
    let mut at = document;
    for token in &parents {
        at = child_mut(at, token).ok_or_else(|| missing_path(path))?;
    }
    Ok((at, last))
}

fn replace(document: &mut Value, path: &str, value: &Value) -> Result<(), PatchError> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err(unfit("replace operation value must be object or array"));
        }
        *document = value.clone();
        return Ok(());
    }
    let (parent, last) = parent_mut(document, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(last, value.clone());
        }
        list => *child_mut(list, &last).ok_or_else(|| missing_path(path))? = value.clone(),
    }
    Ok(())
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let (parent, last) = parent_mut(document, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(last, value);
            Ok(())
        }
        Value::Array(list) if last == "-" => {
            list.push(value);
            Ok(())
        }
        Value::Array(list) => {
            // -1 appends, unlike elsewhere.
            let length = list.len();
            match position(&last, length + usize::from(last.starts_with('-')))? {
                Some(index) if index <= length => {
                    list.insert(index, value);
                    Ok(())
                }
                _ => unprocessable(format!("unable to access invalid index: {last}")),
            }
        }
        _ => Err(missing_path(path)),
    }
}

fn remove(document: &mut Value, path: &str) -> Result<Value, PatchError> {
    let (parent, last) = parent_mut(document, path)?;
    let removed = match parent {
        Value::Object(map) => map.remove(&last),
        Value::Array(list) => position(&last, list.len())?
            .filter(|index| *index < list.len())
            .map(|index| list.remove(index)),
        _ => None,
    };
    removed.ok_or_else(|| missing_path(path))
}

/// RFC 7386. A null in the patch removes the field.
pub fn merge_patch(object: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged = match object {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    for (name, change) in patch {
        if change.is_null() {
            merged.remove(name);
        } else {
            let below = merged.get(name).unwrap_or(&Value::Null);
            let value = merge_patch(below, change);
            merged.insert(name.clone(), value);
        }
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_apply_in_order() {
        let object = json!({"a": {"b": [1, 2]}, "x/y": 1, "m~n": 2});
        let patch = json!([
            {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "add", "path": "/a/b/0", "value": 0},
            {"op": "remove", "path": "/x~1y"},
            {"op": "replace", "path": "/m~0n", "value": 3},
            {"op": "copy", "from": "/a/b/0", "path": "/c"},
            {"op": "move", "from": "/m~0n", "path": "/d"},
            {"op": "test", "path": "/d", "value": 3},
            {"op": "test", "path": "/none", "value": null},
            {"op": "remove", "path": "/a/b/-1"},
            {"op": "replace", "path": "/new", "value": 4},
            {"op": "add", "path": "/nothing"},
            {"op": "copy", "from": "/none", "path": "/copy"},
        ]);
        let patched = json_patch(&object, &patch).expect("applies");
        let expected =
            json!({"a": {"b": [0, 1, 2]}, "c": 0, "d": 3, "new": 4, "nothing": null, "copy": null});
        assert_eq!(patched, expected);
        let whole = json!([{"op": "test", "path": "", "value": {"a": 1}}, {"op": "replace", "path": "", "value": {}}]);
        assert_eq!(json_patch(&json!({"a": 1}), &whole), Ok(json!({})));
    }

    #[test]
    fn what_does_not_fit_is_unprocessable() {
        for patch in [
            json!([{"op": "remove", "path": "/none"}]),
            json!([{"op": "replace", "path": "/none/x", "value": 1}]),
            json!([{"op": "replace", "path": "/l/0", "value": 1}]),
            json!([{"op": "replace", "path": "", "value": 1}]),
            json!([{"op": "add", "path": "", "value": {}}]),
            json!([{"op": "remove", "path": ""}]),
            json!([{"op": "add", "path": "l", "value": 1}]),
            json!([{"op": "add", "path": "/none/x", "value": 1}]),
            json!([{"op": "add", "path": "/l/7", "value": 1}]),
            json!([{"op": "test", "path": "/l", "value": 1}]),
            json!([{"op": "frob", "path": "/l"}]),
            json!([{"path": "/x"}]),
            json!([1]),
        ] {
            let result = json_patch(&json!({"l": []}), &patch);
            assert!(
                matches!(result, Err(PatchError::Unprocessable(_))),
                "{patch} {result:?}"
            );
        }
        assert_eq!(
            json_patch(&json!({}), &json!({"op": "add"}))
                .expect_err("not a list")
                .to_string(),
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        );
    }

    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..5).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The merge patch that makes `new` of `old`, for values without nulls in maps.
    fn diff(old: &Value, new: &Value) -> Value {
        let (Value::Object(old), Value::Object(new)) = (old, new) else {
            return new.clone();
        };
        let mut patch = Map::new();
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            patch.insert(name.clone(), Value::Null);
        }
        for (name, value) in new {
            match old.get(name) {
                Some(before) if before == value => {}
                Some(before) => {
                    patch.insert(name.clone(), diff(before, value));
                }
                None => {
                    patch.insert(name.clone(), value.clone());
                }
            }
        }
        Value::Object(patch)
    }

    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(
                map.into_iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, value)| (name, without_nulls(value)))
                    .collect(),
            ),
            other => other,
        }
    }

    proptest! {
        #[test]
        fn merging_a_diff_gives_the_target(old in any_json(), new in any_json()) {
            let (old, new) = (without_nulls(old), without_nulls(new));
            prop_assert_eq!(merge_patch(&old, &diff(&old, &new)), new);
        }

        #[test]
        fn json_patch_never_panics(object in any_json(), paths in prop::collection::vec("(/[a-c0-3~-]{0,2}){0,3}", 1..6), op in 0..6usize, value in any_json()) {
            let op = ["add", "remove", "replace", "move", "copy", "test"][op];
            let operations: Vec<Value> = paths.iter().map(|path| json!({"op": op, "path": path, "from": paths[0], "value": value})).collect();
            let _ = json_patch(&object, &Value::Array(operations));
        }
    }
}
