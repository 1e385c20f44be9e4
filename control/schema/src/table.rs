//! Types as rows of a table.

use std::sync::Arc;

/// A type of a table: cheap to clone, keeps its table alive.
#[derive(Clone, Debug)]
pub struct TypeRef {
    name: Arc<str>,
}

impl TypeRef {
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// `io.k8s.api.core.v1.Pod`; empty for a type without a name of its own.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The type of a built-in kind, its list kind, or one of the meta kinds (`DeleteOptions`, `Status`, `WatchEvent`,
/// `ListOptions`, …), which every group has. The core group is `""`.
pub fn builtin(group: &str, version: &str, kind: &str) -> Option<TypeRef> {
    Some(TypeRef::named(&format!("{group}/{version}.{kind}")))
}
