//! How a change is combined with an object: JSON Patch, merge patch, strategic merge patch, server-side apply and the
//! bookkeeping of `metadata.managedFields`. Pure functions over a value and its schema. No I/O, no clock.
#![forbid(unsafe_code)]

mod fieldset;
pub mod managed;
mod patch;
mod strategic;
mod typed;

pub use patch::{PatchError, json_patch, merge_patch};
pub use strategic::strategic_merge;
