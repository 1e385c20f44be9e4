//! What the fields of a kind are, as data: names, types, list and map merge rules, protobuf tags, docs.
//!
//! Built-in kinds come from a table that `cargo xtask codegen` derives from published type definitions; the kinds of a
//! CustomResourceDefinition come from its structural schema. Both become a [`TypeRef`], so pruning, server-side apply,
//! strategic merge, protobuf and the OpenAPI documents have one thing to walk. No I/O.
//!
//! Read [`table`] first (what a type is), then [`decode`] (bytes → value), then the rest in any order.
#![forbid(unsafe_code)]

pub mod decode;
pub mod openapi;
pub mod protobuf;
pub mod structural;
pub mod table;

pub use decode::{
    DecodeError, Decoded, Problem, complete, conform, decode_json, decode_untyped, forget_empty,
    go_kind, go_name, type_meta,
};
pub use structural::structural;
pub use table::{TypeRef, builtin};
