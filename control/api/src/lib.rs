//! The kinds: what each resource is called, how it is defaulted, validated, prepared for storage, printed and selected.
//!
//! Read [`resource`] first: one row per resource, built-in and custom alike. [`strategy`] is what a row does with an
//! object; `kinds` holds the built-in ones, a file a kind. No I/O, no clock: `now` is a parameter.
#![forbid(unsafe_code)]

mod builtin;
pub mod custom;
pub mod defaults;
pub mod duration;
pub mod field;
pub mod kinds;
pub mod node;
pub mod pod;
pub mod printer;
pub mod printers;
pub mod quantity;
pub mod resource;
pub mod selector;
pub mod strategy;
pub mod validation;
pub mod zero;

pub use builtin::builtin;
