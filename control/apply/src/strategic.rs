//! Strategic merge patch.

use serde_json::Value;
use skep_schema::TypeRef;

use crate::{PatchError, merge_patch};

/// # Errors
/// Upstream's texts for directives that do not fit.
pub fn strategic_merge(object: &Value, patch: &Value, _ty: &TypeRef) -> Result<Value, PatchError> {
    Ok(merge_patch(object, patch))
}
