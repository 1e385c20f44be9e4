//! Validation shared among kinds: small functions over a value, a [`crate::field::Path`] and [`crate::field::Errors`].

pub mod labels;
pub mod meta;
pub mod resources;
pub mod text;
