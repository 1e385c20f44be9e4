//! CEL as Kubernetes evaluates it: compile once, evaluate under a cost budget.
//!
//! The grammar and the Kubernetes function libraries are kube-cel's; the interpreter is ours, because an expression must
//! not cost more than its budget, must not panic, and must fail in the words that users know from cel-go. It must not
//! know what an admission policy is: callers bring their variables in an [`Environment`]. No I/O.
//!
//! Read `interpret` first.
#![forbid(unsafe_code)]

pub mod check;
mod functions;
mod interpret;
mod json;
mod names;
mod object;
mod unordered;

pub use interpret::{Budget, CALL_COST_LIMIT, CompileError, Environment, Error, Program};
pub use json::{from_json, to_json};
pub use kube_cel::cel::{
    Value,
    objects::{Opaque, OptionalValue},
};
pub use names::{escape, is_reserved};
pub use object::Object;
pub use unordered::Unordered;
