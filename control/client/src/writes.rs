//! Typed writes: status patches, deletes that tolerate absence.

use std::fmt::Debug;

use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::ObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}

pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// The namespace of the object is being deleted, so nothing can be created in it.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
    if status.code == 403
        && status.details.as_ref().is_some_and(|details| {
            details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        }))
}

/// Merge-patches the status subresource: other fields of the status stay.
///
/// # Errors
/// Of the API server.
pub async fn patch_status<K>(
    api: &Api<K>,
    name: &str,
    status: impl Serialize,
) -> Result<K, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let patch = serde_json::json!({ "status": status });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
}

/// Deletes the object if it is still the one with this uid. Absence and a new object of that name are success.
///
/// # Errors
/// Of the API server, other than NotFound and the precondition's Conflict.
pub async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<String>,
    params: DeleteParams,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let params = match uid {
        Some(uid) => params.preconditions(Preconditions {
            uid: Some(uid),
            resource_version: None,
        }),
        None => params,
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the difference between two forms of a status, if there is one, on condition that the object is still the
/// version in `meta`. Fields that neither form mentions stay, and nothing outside the status is touched, so the cached
/// object need not be complete. Returns whether anything was written.
///
/// # Errors
/// Of the API server; a conflict if the object changed.
pub async fn merge_status<K>(
    api: &Api<K>,
    meta: &ObjectMeta,
    old: &impl Serialize,
    new: &impl Serialize,
) -> Result<bool, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let old = serde_json::to_value(old).map_err(kube::Error::SerdeError)?;
    let new = serde_json::to_value(new).map_err(kube::Error::SerdeError)?;
    let Some(difference) = merge_difference(&old, &new) else {
        return Ok(false);
    };
    let patch = serde_json::json!({
        "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
        "status": difference,
    });
    let name = meta.name.as_deref().unwrap_or_default();
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(true)
}

/// The JSON merge patch (RFC 7386) that turns `old` into `new`; `None` if they are equal. An absent object and an empty
/// one are the same here: the API writes neither.
pub fn merge_difference(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = serde_json::Map::new();
            for (key, value) in new {
                match old.get(key) {
                    None | Some(Value::Null) if !value.is_null() => {
                        patch.insert(key.clone(), value.clone());
                    }
                    None => {}
                    Some(before) => {
                        if let Some(difference) = merge_difference(before, value) {
                            patch.insert(key.clone(), difference);
                        }
                    }
                }
            }
            for (key, before) in old {
                if !new.contains_key(key) && !before.is_null() {
                    patch.insert(key.clone(), Value::Null);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (Value::Null, Value::Object(new)) if new.values().all(Value::is_null) => None,
        (old, new) => (old != new).then(|| new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn difference() {
        let check = |old: Value, new: Value, expected: Option<Value>| {
            assert_eq!(merge_difference(&old, &new), expected, "{old} -> {new}");
        };
        check(json!({ "a": 1 }), json!({ "a": 1 }), None);
        check(
            json!({ "a": 1, "b": 2 }),
            json!({ "a": 1, "c": 3 }),
            Some(json!({ "b": null, "c": 3 })),
        );
        check(
            json!({ "a": { "b": 1, "c": 2 } }),
            json!({ "a": { "b": 1, "c": 3 } }),
            Some(json!({ "a": { "c": 3 } })),
        );
        check(
            json!({ "a": [1] }),
            json!({ "a": [1, 2] }),
            Some(json!({ "a": [1, 2] })),
        );
        check(json!(null), json!({}), None);
        check(json!(null), json!({ "a": 1 }), Some(json!({ "a": 1 })));
        check(json!({}), json!({ "a": null }), None);
        check(json!({ "a": null }), json!({}), None);
    }
}
