//! What an expression may cost at most (cel-go's estimator with the API server's factors): one unit is about one
//! comparison.

use std::sync::Arc;

use super::types::Type;

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const OBJECT: u64 = 40;
/// Two authorization checks are as much as one evaluation may cost.
const AUTHORIZATION: u64 = 350_000;

/// Walking over a string or list: a tenth a byte or item.
pub fn traverse(size: u64) -> u64 {
    size.div_ceil(10)
}

/// Running a regular expression: a quarter for each of its bytes and traversed step.
fn regex(input: u64, pattern: u64) -> u64 {
    traverse(input.saturating_add(1)).saturating_mul(pattern.div_ceil(4))
}

/// Comparing two values.
pub fn compared(a: &Type, b: &Type) -> u64 {
    let walked = |ty: &Type| {
        matches!(
            ty,
            Type::String(_) | Type::Bytes(_) | Type::List(..) | Type::Map(..) | Type::Dyn
        )
    };
    if walked(a) && walked(b) {
        traverse(a.size().min(b.size())).max(1)
    } else {
        1
    }
}

/// One call of a function, which may be a method: the target is the first argument then.
pub fn call(name: &str, arguments: &[Type]) -> u64 {
    let size = |at: usize| arguments.get(at).map_or(0, Type::size);
    let whole = traverse(size(0)).max(1);
    match name.rsplit('.').next().unwrap_or(name) {
        "check" => AUTHORIZATION,
        "size" | "hasValue" | "value" | "orValue" | "or" | "dyn" | "type" | "first" | "last" => 1,
        "matches" | "find" | "findAll" => regex(size(0), size(1)),
        "contains" | "intersects" if name.starts_with("sets.") => size(0).saturating_mul(size(1)),
        "equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2),
        "contains" => whole.saturating_mul(traverse(size(1)).max(1)),
        "startsWith" | "endsWith" => traverse(size(1)),
        "replace" | "split" | "isCanonical" => whole.saturating_mul(2),
        "join" => traverse(result_size(name, arguments)).max(1),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => match arguments.first() {
            Some(Type::List(items, count)) => match &**items {
                Type::String(bytes) | Type::Bytes(bytes) => {
                    count.saturating_mul(traverse(*bytes).saturating_add(1))
                }
                _ => *count,
            },
            _ => whole,
        },
        "distinct" | "sort" | "sortBy" => size(0).saturating_mul(size(0)).max(1),
        _ => whole,
    }
}

/// How large the result of a call may get.
fn result_size(name: &str, arguments: &[Type]) -> u64 {
    let size = |at: usize| arguments.get(at).map_or(0, Type::size);
    match name {
        ".join" => match arguments.first() {
            Some(Type::List(items, count)) => count
                .saturating_mul(items.size())
                .saturating_add(count.saturating_mul(size(1))),
            _ => size(0),
        },
        ".replace" => size(0)
            .saturating_add(1)
            .saturating_mul(size(2).max(1))
            .saturating_add(size(0)),
        ".format" => size(0).saturating_add(size(1)),
        "strings.quote" | "base64.encode" | "jsonpatch.escapeKey" => size(0).saturating_mul(2),
        _ => size(0),
    }
}

/// A result with the size that its call gives it.
pub fn sized(name: &str, arguments: &[Type], result: Type) -> Type {
    let size = result_size(name, arguments);
    match result {
        Type::String(max) => Type::String(max.min(size)),
        Type::Bytes(max) => Type::Bytes(max.min(size)),
        Type::List(items, max) => {
            let items = match &*items {
                Type::String(bytes) => Arc::new(Type::String((*bytes).min(size))),
                _ => items,
            };
            Type::List(items, max.min(size))
        }
        Type::Map(keys, values, max) => Type::Map(keys, values, max.min(size)),
        other => other,
    }
}
