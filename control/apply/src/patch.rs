//! JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386).

use serde_json::Value;

/// `Display` is upstream's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422 Invalid.
    #[error("{0}")]
    Unprocessable(String),
}

/// # Errors
/// Upstream's texts, and whether the patch or its fit is wrong.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(error.to_string()))?;
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &operations)
        .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    Ok(patched)
}

/// RFC 7386. A null in the patch removes the field.
pub fn merge_patch(object: &Value, patch: &Value) -> Value {
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    patched
}
