//! What a resource does with its objects on the way in.
//!
//! The API server calls, for a write: `default` → mutating admission → `create` or `update` → validating admission →
//! managed fields → store. Objects are JSON values in the row's own version; built-in kinds convert to their typed form
//! inside (see `kinds`).

use serde_json::Value;

use crate::field::FieldError;

/// Which endpoint an update came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateOf<'a> {
    /// The object itself: `status` is kept from the stored object.
    Main,
    /// `/status`: everything but `status` (and some metadata) is kept from the stored object.
    Status,
    /// Another subresource that writes the object (`ephemeralcontainers`, `resize`, `approval`, `finalize`, …).
    Subresource(&'a str),
}

/// Text for `Warning: 299` headers.
pub type Warnings = Vec<String>;

pub trait Strategy: Send + Sync {
    /// Fills in defaults, in place, and tells whether there may be anything new. Also run on objects read in a version
    /// other than the stored one.
    fn default(&self, object: &mut Value) -> bool;

    /// Sets what only the server may set, drops what a client may not (`status`), then validates, metadata included.
    ///
    /// # Errors
    /// Every problem found, in upstream's order, for a 422 Invalid.
    fn create(&self, object: &mut Value) -> Result<Warnings, Vec<FieldError>>;

    /// The same for an update; bumps `metadata.generation` where the spec changed. `old` is the stored object.
    fn update(
        &self,
        new: &mut Value,
        old: &Value,
        of: UpdateOf<'_>,
    ) -> Result<Warnings, Vec<FieldError>>;

    /// PUT of a missing object creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without a resourceVersion overwrites; otherwise it is invalid.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// The fields that `endpoint` may not own in managed fields (upstream `GetResetFields`), as `a.b` paths:
    /// `["status"]` for the main endpoint, `["spec", "metadata"]` for `/status`.
    fn reset_fields(&self, of: UpdateOf<'_>) -> &'static [&'static str] {
        match of {
            UpdateOf::Main => &["status"],
            UpdateOf::Status => &["spec", "metadata"],
            UpdateOf::Subresource(_) => &[],
        }
    }

    /// Grace period for a delete, in seconds, given what the client asked for. 0 = remove at once. Pods answer
    /// `spec.terminationGracePeriodSeconds`.
    fn grace_period(&self, _object: &Value, _requested_seconds: Option<i64>) -> i64 {
        0
    }
}
