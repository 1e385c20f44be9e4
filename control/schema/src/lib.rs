//! What the fields of a kind are, as data: names, types, list and map merge rules, protobuf tags, docs.
//!
//! Built-in kinds come from a table that `cargo xtask codegen` derives from published type definitions; the kinds of a
//! CustomResourceDefinition come from its structural schema. Both become a [`TypeRef`], so pruning, server-side apply,
//! strategic merge, protobuf and the OpenAPI documents have one thing to walk. No I/O.
#![forbid(unsafe_code)]

use std::sync::Arc;

/// A type of a table: cheap to clone, keeps its table alive.
#[derive(Clone, Debug)]
pub struct TypeRef {
    _table: Arc<()>,
}
