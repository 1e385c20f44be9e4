//! Kubernetes' protobuf: `k8s\0`, then `runtime.Unknown` around the object. An interpreter of the table's tags.
//!
//! JSON inlines what protobuf keeps in messages of their own (a Volume's source, a Probe's handler): an object's
//! `embedded` says which.

mod decode;
mod encode;
pub(crate) mod wire;

pub use decode::decode;
pub use encode::{encode, encode_watch_frame};

/// The four bytes before every object.
pub const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    #[error(
        "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    )]
    UnknownKind { api_version: String, kind: String },
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0} has no protobuf form")]
    NoProtobuf(String),
}

const TRUNCATED: ProtobufError = ProtobufError::Malformed("unexpected EOF");

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

#[cfg(test)]
mod tests;
