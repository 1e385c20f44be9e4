//! Operators and functions. What is called often or differs from cel-go in kube-cel is here; the rest of the standard
//! and Kubernetes libraries is kube-cel's.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, Value,
        common::ast::{CallExpr, Expr, IdedExpr, operators},
        objects::{Opaque, OptionalValue},
    },
};
use parking_lot::Mutex;
use regex::Regex;

use crate::{
    interpret::{Error, as_optional, optional},
    unordered::as_unordered,
};

type Evaluated = Result<Value, Error>;

/// Compiled patterns kept between evaluations.
const MAX_PATTERNS: usize = 512;
/// Largest program of one pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1024 * 1024;

static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());
static PATTERNS: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);

/// A type as a value: `type(x) == string`.
#[derive(Debug, PartialEq, Eq)]
struct TypeName(&'static str);

impl Opaque for TypeName {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

const TYPES: [&str; 11] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "dyn",
];

pub fn type_named(name: &str) -> Option<Value> {
    let name = TYPES.iter().find(|known| **known == name)?;
    Some(Value::Opaque(Arc::new(TypeName(name))))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::Bool(_) => "bool",
        Value::Null => "null_type",
        Value::Duration(_) => "google.protobuf.Duration",
        Value::Timestamp(_) => "google.protobuf.Timestamp",
        Value::Opaque(opaque) if opaque.downcast_ref::<TypeName>().is_some() => "type",
        Value::Opaque(opaque) if opaque.downcast_ref::<OptionalValue>().is_some() => {
            "optional_type"
        }
        value if as_unordered(value).is_some() => "list",
        Value::Opaque(_) | Value::Function(..) => "dyn",
    }
}

/// Prefixes of functions that are no variables.
pub fn is_namespace(name: &str) -> bool {
    matches!(
        name,
        "base64"
            | "cidr"
            | "format"
            | "ip"
            | "jsonpatch"
            | "lists"
            | "math"
            | "optional"
            | "semver"
            | "sets"
            | "strings"
    )
}

/// Whether a literal may be the last argument of a function: patterns and times are looked at before evaluation.
pub fn is_valid_literal(function: &str, literal: &str) -> bool {
    let literal = text(literal.to_owned());
    match function {
        "matches" | ".matches" => matches(&text(String::new()), &literal).is_ok(),
        "duration" | "timestamp" => global(function, &[literal]).is_ok(),
        _ => true,
    }
}

/// A value as an error message or a sort key shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Int(int) => int.to_string(),
        Value::UInt(uint) => uint.to_string(),
        Value::Bool(bool) => bool.to_string(),
        Value::Float(float) => float.to_string(),
        other => format!("{other:?}"),
    }
}

fn text(value: String) -> Value {
    Value::String(Arc::new(value))
}

/// Arithmetic and order. `None`: not an operator.
pub fn operator(name: &str, args: &[Value]) -> Option<Evaluated> {
    let compared = |test: fn(Ordering) -> bool| match args {
        [left, right] => {
            let order = match compare(left, right) {
                Err(_) if !can(left, name) => Err(cannot(name)),
                order => order,
            };
            Some(order.map(|order| Value::Bool(order.is_some_and(test))))
        }
        _ => None,
    };
    match (name, args) {
        (operators::LESS, _) => compared(Ordering::is_lt),
        (operators::LESS_EQUALS, _) => compared(Ordering::is_le),
        (operators::GREATER, _) => compared(Ordering::is_gt),
        (operators::GREATER_EQUALS, _) => compared(Ordering::is_ge),
        (operators::NEGATE, [arg]) => Some(match arg {
            Value::Int(int) => int
                .checked_neg()
                .map(Value::Int)
                .ok_or_else(|| Error::failed("integer overflow")),
            Value::Float(float) => Ok(Value::Float(-float)),
            Value::Duration(duration) => Ok(Value::Duration(-*duration)),
            // Upstream's booleans have the trait, and refuse then.
            Value::Bool(_) => Err(Error::overload()),
            _ => Err(cannot(name)),
        }),
        (
            operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO,
            [left, right],
        ) => Some(arithmetic(name, left, right)),
        _ => None,
    }
}

/// `None`: not ordered (a NaN).
pub fn compare(left: &Value, right: &Value) -> Result<Option<Ordering>, Error> {
    use Value::{Bool, Bytes, Duration, Float, Int, String, Timestamp, UInt};
    match (left, right) {
        (Bytes(a), Bytes(b)) => Ok(Some(a.cmp(b))),
        (Int(_) | UInt(_) | Float(_), Int(_) | UInt(_) | Float(_))
        | (String(_), String(_))
        | (Bool(_), Bool(_))
        | (Duration(_), Duration(_))
        | (Timestamp(_), Timestamp(_)) => Ok(left.partial_cmp(right)),
        _ => Err(Error::overload()),
    }
}

fn arithmetic(name: &str, left: &Value, right: &Value) -> Evaluated {
    use Value::{Bytes, Float, Int, List, String, UInt};
    let overflow = || Error::failed("integer overflow");
    let unsigned = || Error::failed("unsigned integer overflow");
    match (left, right) {
        (Int(a), Int(b)) => match name {
            operators::ADD => a.checked_add(*b).ok_or_else(overflow),
            operators::SUBSTRACT => a.checked_sub(*b).ok_or_else(overflow),
            operators::MULTIPLY => a.checked_mul(*b).ok_or_else(overflow),
            operators::DIVIDE if *b == 0 => Err(Error::failed("division by zero")),
            operators::DIVIDE => a.checked_div(*b).ok_or_else(overflow),
            _ if *b == 0 => Err(Error::failed("modulus by zero")),
            _ => a.checked_rem(*b).ok_or_else(overflow),
        }
        .map(Int),
        (UInt(a), UInt(b)) => match name {
            operators::ADD => a.checked_add(*b).ok_or_else(unsigned),
            operators::SUBSTRACT => a.checked_sub(*b).ok_or_else(unsigned),
            operators::MULTIPLY => a.checked_mul(*b).ok_or_else(unsigned),
            operators::DIVIDE => a
                .checked_div(*b)
                .ok_or_else(|| Error::failed("division by zero")),
            _ => a
                .checked_rem(*b)
                .ok_or_else(|| Error::failed("modulus by zero")),
        }
        .map(UInt),
        (Float(a), Float(b)) => match name {
            operators::ADD => Ok(Float(a + b)),
            operators::SUBSTRACT => Ok(Float(a - b)),
            operators::MULTIPLY => Ok(Float(a * b)),
            operators::DIVIDE => Ok(Float(a / b)),
            _ => Err(cannot(name)),
        },
        (String(a), String(b)) if name == operators::ADD => Ok(text(format!("{a}{b}"))),
        (Bytes(a), Bytes(b)) if name == operators::ADD => {
            Ok(Bytes(Arc::new([a.as_slice(), b.as_slice()].concat())))
        }
        (List(a), List(b)) if name == operators::ADD => {
            Ok(List(Arc::new(a.iter().chain(b.iter()).cloned().collect())))
        }
        (Value::Timestamp(_) | Value::Duration(_), Value::Timestamp(_) | Value::Duration(_)) => {
            let result = match name {
                operators::ADD => left.clone() + right.clone(),
                operators::SUBSTRACT => left.clone() - right.clone(),
                _ => return Err(cannot(name)),
            };
            result.map_err(failure)
        }
        (left, _) if !can(left, name) => Err(cannot(name)),
        _ => Err(Error::overload()),
    }
}

/// cel-go names the operator where the left side's type has not got it, and nothing where only the right side is wrong.
fn cannot(operator: &str) -> Error {
    Error::failed(format!("no such overload: {operator}"))
}

fn can(left: &Value, operator: &str) -> bool {
    use Value::{Bytes, Duration, Float, Int, List, String, Timestamp, UInt};
    let number = matches!(left, Int(_) | UInt(_) | Float(_));
    let text = matches!(left, String(_) | Bytes(_));
    let time = matches!(left, Duration(_) | Timestamp(_));
    match operator {
        operators::ADD => number || text || time || matches!(left, List(_)),
        operators::SUBSTRACT => number || time,
        operators::MULTIPLY | operators::DIVIDE => number,
        operators::MODULO => matches!(left, Int(_) | UInt(_)),
        _ => number || text || time || matches!(left, Value::Bool(_)),
    }
}

fn no_conversion(to: &str) -> Error {
    Error::failed(format!("type conversion error from 'string' to '{to}'"))
}

/// Functions that are one for all types that can do it, and say only their name to others; the rest are chosen by the types
/// of their arguments.
const OF_TRAITS: [&str; 2] = ["size", "matches"];

/// In cel-go's words: which function does not take which types.
fn named(result: Evaluated, name: &str, target: Option<&Value>, args: &[Value]) -> Evaluated {
    if !matches!(&result, Err(error) if *error == Error::overload()) {
        return result;
    }
    let all: Vec<&Value> = target.into_iter().chain(args).collect();
    if OF_TRAITS.contains(&name) {
        let takes = matches!(all.first(), Some(Value::String(_)));
        return Err(match takes {
            true => Error::overload(),
            false => Error::failed(format!("no such overload: {name}")),
        });
    }
    let types: Vec<&str> = all.into_iter().map(type_of).collect();
    let types = types.join(", ");
    Err(Error::failed(format!("no such overload: {name}({types})")))
}

/// A function without a target.
pub fn global(name: &str, args: &[Value]) -> Evaluated {
    named(global_result(name, args), name, None, args)
}

fn global_result(name: &str, args: &[Value]) -> Evaluated {
    match (name, args) {
        ("size", [arg]) => size(arg),
        ("dyn", [arg]) => Ok(arg.clone()),
        ("type", [arg]) => Ok(type_named(type_of(arg))
            .unwrap_or_else(|| Value::Opaque(Arc::new(TypeName(type_of(arg)))))),
        ("string", [arg]) => to_text(arg),
        ("bool", [Value::Bool(bool)]) => Ok(Value::Bool(*bool)),
        ("bool", [Value::String(text)]) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(no_conversion("bool")),
        },
        ("int", [Value::String(text)]) => {
            let parsed = text.parse().map(Value::Int);
            parsed.map_err(|_| no_conversion("int"))
        }
        ("uint", [Value::String(text)]) => {
            let parsed = text.parse().map(Value::UInt);
            parsed.map_err(|_| no_conversion("uint"))
        }
        ("double", [Value::String(text)]) => {
            let parsed = text.parse().map(Value::Float);
            parsed.map_err(|_| no_conversion("double"))
        }
        ("matches", [target, pattern]) => matches(target, pattern),
        _ => library(None, name, args),
    }
}

/// A function behind a prefix: `sets.contains(a, b)`.
pub fn qualified(prefix: &str, name: &str, args: &[Value]) -> Evaluated {
    let full = format!("{prefix}.{name}");
    named(qualified_result(prefix, name, args), &full, None, args)
}

fn qualified_result(prefix: &str, name: &str, args: &[Value]) -> Evaluated {
    match (prefix, name, args) {
        ("optional", "none", []) => Ok(optional(None)),
        ("optional", "of", [arg]) => Ok(optional(Some(arg.clone()))),
        ("optional", "ofNonZeroValue", [arg]) => {
            Ok(optional((!arg.is_zero()).then(|| arg.clone())))
        }
        _ => {
            let prefix = expression(Expr::Ident(prefix.to_owned()));
            library(Some(prefix), name, args)
        }
    }
}

/// A method.
pub fn method(target: &Value, name: &str, args: &[Value]) -> Evaluated {
    named(method_result(target, name, args), name, Some(target), args)
}

fn method_result(target: &Value, name: &str, args: &[Value]) -> Evaluated {
    if let Some(inner) = as_optional(target) {
        let inner = inner.value();
        return match (name, args) {
            ("hasValue", []) => Ok(Value::Bool(inner.is_some())),
            ("value", []) => inner
                .cloned()
                .ok_or_else(|| Error::failed("optional.none() dereference")),
            ("orValue", [default]) => Ok(inner.unwrap_or(default).clone()),
            ("or", [other]) => Ok(if inner.is_some() { target } else { other }.clone()),
            _ => Err(Error::overload()),
        };
    }
    match (name, target, args) {
        ("size", _, []) => size(target),
        ("startsWith", Value::String(target), [Value::String(prefix)]) => {
            Ok(Value::Bool(target.starts_with(prefix.as_str())))
        }
        ("endsWith", Value::String(target), [Value::String(suffix)]) => {
            Ok(Value::Bool(target.ends_with(suffix.as_str())))
        }
        ("contains", Value::String(target), [Value::String(part)]) => {
            Ok(Value::Bool(target.contains(part.as_str())))
        }
        ("matches", _, [pattern]) => matches(target, pattern),
        ("lowerAscii", Value::String(target), []) => Ok(text(target.to_ascii_lowercase())),
        ("upperAscii", Value::String(target), []) => Ok(text(target.to_ascii_uppercase())),
        ("startsWith" | "endsWith", _, _) => Err(Error::overload()),
        _ => library(
            Some(expression(Expr::Ident(TARGET.to_owned()))),
            name,
            &with(target, args),
        ),
    }
}

const TARGET: &str = "@target";

fn with(target: &Value, args: &[Value]) -> Vec<Value> {
    let mut all = vec![target.clone()];
    all.extend(args.iter().cloned());
    all
}

fn size(value: &Value) -> Evaluated {
    let size = match value {
        Value::String(text) => text.chars().count(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.len(),
        Value::Map(map) => map.map.len(),
        _ => return Err(Error::overload()),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

/// `string(x)`
fn to_text(value: &Value) -> Evaluated {
    Ok(match value {
        Value::String(_) => value.clone(),
        Value::Int(_) | Value::UInt(_) | Value::Bool(_) | Value::Float(_) => text(shown(value)),
        Value::Bytes(bytes) => match String::from_utf8(bytes.to_vec()) {
            Ok(valid) => text(valid),
            Err(_) => {
                return Err(Error::failed(
                    "invalid UTF-8 in bytes, cannot convert to string",
                ));
            }
        },
        Value::Timestamp(_) | Value::Duration(_) => text(text_of_time(value).unwrap_or_default()),
        _ => return library(None, "string", std::slice::from_ref(value)),
    })
}

/// `2024-01-01T00:00:00Z`, `3600s`
pub fn text_of_time(value: &Value) -> Option<String> {
    match value {
        Value::Timestamp(at) => Some(at.to_rfc3339().replace("+00:00", "Z")),
        Value::Duration(duration) => {
            let nanos = duration.subsec_nanos();
            let seconds = duration.num_seconds();
            if nanos == 0 {
                return Some(format!("{seconds}s"));
            }
            let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
            let fraction = format!("{:09}", nanos.unsigned_abs());
            Some(format!(
                "{sign}{}.{}s",
                seconds.unsigned_abs(),
                fraction.trim_end_matches('0')
            ))
        }
        _ => None,
    }
}

fn matches(target: &Value, pattern: &Value) -> Evaluated {
    let (Value::String(target), Value::String(pattern)) = (target, pattern) else {
        return Err(Error::overload());
    };
    let mut patterns = PATTERNS.lock();
    if let Some(regex) = patterns.get(pattern.as_str()) {
        let regex = regex.clone();
        drop(patterns);
        return Ok(Value::Bool(regex.is_match(target)));
    }
    let regex = regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .map_err(|error| Error::failed(format!("error parsing regexp: {error}")))?;
    if patterns.len() >= MAX_PATTERNS {
        patterns.clear();
    }
    patterns.insert(pattern.to_string(), regex.clone());
    drop(patterns);
    Ok(Value::Bool(regex.is_match(target)))
}

fn expression(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

/// Calls kube-cel. A method's target is the first of `args`, and named [`TARGET`].
fn library(target: Option<IdedExpr>, name: &str, args: &[Value]) -> Evaluated {
    let mut context = LIBRARY.new_inner_scope();
    let is_method =
        matches!(&target, Some(IdedExpr { expr: Expr::Ident(name), .. }) if name == TARGET);
    let mut names = Vec::with_capacity(args.len());
    for (at, arg) in args.iter().enumerate() {
        if is_method && at == 0 {
            context.add_variable_from_value(TARGET, arg.clone());
            continue;
        }
        let name = format!("@{at}");
        context.add_variable_from_value(name.clone(), arg.clone());
        names.push(expression(Expr::Ident(name)));
    }
    let call = expression(Expr::Call(CallExpr {
        func_name: name.to_owned(),
        target: target.map(Box::new),
        args: names,
    }));
    Value::resolve(&call, &context).map_err(failure)
}

/// kube-cel's errors in cel-go's words.
fn failure(error: ExecutionError) -> Error {
    Error::failed(match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::FunctionError { message, .. } => message,
        ExecutionError::UndeclaredReference(name) => {
            format!("undeclared reference to '{name}' (in container '')")
        }
        ExecutionError::NoSuchOverload
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. }
        | ExecutionError::InvalidArgumentCount { .. } => "no such overload".to_owned(),
        other => other.to_string(),
    })
}
