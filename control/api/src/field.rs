//! Validation errors that name a field, in Kubernetes' own wording (apimachinery `field.Error`).
//!
//! A validation function takes what it looks at, a [`Path`] that says where that stands, and [`Errors`] to add to.

use std::{collections::HashSet, fmt};

use serde::Serialize;
use serde_json::Value;

/// What is wrong with a field. `reason()` is the word in `Status.details.causes[].reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl FieldErrorKind {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One problem with one field. `Display` gives what `kubectl` shows: `spec.replicas: Invalid value: -1: must be …`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// `spec.containers[0].name`; keys of maps stand in brackets.
    pub field: String,
    pub bad_value: Value,
    pub detail: String,
    /// How the value is shown where its JSON would not do; empty = the value is left out.
    pub shown: Option<String>,
}

impl FieldError {
    pub fn new(
        kind: FieldErrorKind,
        field: impl fmt::Display,
        bad: impl Into<Bad>,
        detail: impl Into<String>,
    ) -> Self {
        let bad = bad.into();
        Self {
            kind,
            field: field.to_string(),
            bad_value: bad.value,
            detail: detail.into(),
            shown: bad.shown,
        }
    }

    /// The text without the field, which is the `message` of a cause.
    pub fn body(&self) -> String {
        let words = match self.kind {
            FieldErrorKind::NotFound => "Not found",
            FieldErrorKind::Required => "Required value",
            FieldErrorKind::Duplicate => "Duplicate value",
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => "Invalid value",
            FieldErrorKind::NotSupported => "Unsupported value",
            FieldErrorKind::Forbidden => "Forbidden",
            FieldErrorKind::TooLong => "Too long",
            FieldErrorKind::TooMany => "Too many",
            FieldErrorKind::Internal => "Internal error",
        };
        let without_value = matches!(
            self.kind,
            FieldErrorKind::Required
                | FieldErrorKind::Forbidden
                | FieldErrorKind::TooLong
                | FieldErrorKind::Internal
        );
        let mut text = words.to_owned();
        match &self.shown {
            _ if without_value => {}
            Some(shown) if shown.is_empty() => {}
            Some(shown) => text = format!("{text}: {shown}"),
            None => text = format!("{text}: {}", show(&self.bad_value)),
        }
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// The text of several errors in one line, each different one once: `a` or `[a, b]` (apimachinery `Aggregate`).
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen = HashSet::new();
    let texts: Vec<String> = errors
        .iter()
        .map(ToString::to_string)
        .filter(|text| seen.insert(text.clone()))
        .collect();
    match texts.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

/// A refused value, as it is shown.
#[derive(Clone, Debug)]
pub struct Bad {
    value: Value,
    shown: Option<String>,
}

impl Bad {
    /// Left out of the message.
    pub fn omitted() -> Self {
        Self {
            value: Value::Null,
            shown: Some(String::new()),
        }
    }

    /// A value with a text form of its own (a quantity, a struct whose fields have an order).
    pub fn shown(text: impl Into<String>) -> Self {
        Self {
            value: Value::Null,
            shown: Some(text.into()),
        }
    }

    /// A struct or list, shown as JSON in the order of its fields.
    pub fn json(value: &impl Serialize) -> Self {
        let value_json = serde_json::to_value(value).unwrap_or_default();
        if value_json.is_string() || value_json.is_number() || value_json.is_boolean() {
            return Self {
                value: value_json,
                shown: None,
            };
        }
        let text = serde_json::to_string(value).unwrap_or_default();
        Self {
            shown: Some(html_escaped(&text)),
            value: value_json,
        }
    }
}

impl From<&str> for Bad {
    fn from(text: &str) -> Self {
        Self {
            value: Value::from(text),
            shown: None,
        }
    }
}

impl From<&String> for Bad {
    fn from(text: &String) -> Self {
        Self {
            value: Value::from(text.as_str()),
            shown: None,
        }
    }
}

impl<T> From<Option<T>> for Bad
where
    Bad: From<T>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(
            Self {
                value: Value::Null,
                shown: None,
            },
            Self::from,
        )
    }
}

macro_rules! bad_from {
    ($($type:ty),*) => {$(
        impl From<$type> for Bad {
            fn from(value: $type) -> Self {
                Self { value: Value::from(value), shown: None }
            }
        }
    )*};
}
bad_from!(String, Value, bool, i32, i64, u32, u64, usize, f64);

/// Go's `%q` for strings, plain numbers and booleans, JSON for the rest; nothing at all is `null`.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) => quoted(text),
        other => html_escaped(&other.to_string()),
    }
}

/// Go's `strconv.Quote`.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c if (c as u32) < 0x7f => out.push(c),
            c if c.is_control() || (c.is_whitespace()) || c == '\u{ad}' || c == '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's encoder writes these three as escapes.
fn html_escaped(json: &str) -> String {
    if !json.contains(['<', '>', '&']) {
        return json.to_owned();
    }
    json.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}

/// Where a value stands in an object. Built on the stack; becomes text only when there is something to report.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    /// The top of the object: adds nothing.
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    pub const ROOT: Path<'static> = Path {
        parent: None,
        segment: Segment::Root,
    };

    pub const fn new(field: &'a str) -> Self {
        Self {
            parent: None,
            segment: Segment::Field(field),
        }
    }

    /// A field below; `a.b` means two steps.
    pub const fn child(&'a self, field: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Field(field),
        }
    }

    pub const fn index(&'a self, index: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }

    pub const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut has_parent = false;
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            has_parent = parent.parent.is_some() || !matches!(parent.segment, Segment::Root);
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) if has_parent => write!(f, ".{name}"),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// The problems found so far, in the order they were found.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    pub fn add(
        &mut self,
        kind: FieldErrorKind,
        path: &Path<'_>,
        bad: impl Into<Bad>,
        detail: impl Into<String>,
    ) {
        self.0.push(FieldError::new(kind, path, bad, detail));
    }

    pub fn invalid(&mut self, path: &Path<'_>, bad: impl Into<Bad>, detail: impl Into<String>) {
        self.add(FieldErrorKind::Invalid, path, bad, detail);
    }

    /// One error for each message of a check in `validation::text`.
    pub fn invalid_each(&mut self, path: &Path<'_>, bad: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, bad, message);
        }
    }

    pub fn required(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.add(FieldErrorKind::Required, path, "", detail);
    }

    pub fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.add(FieldErrorKind::Forbidden, path, "", detail);
    }

    pub fn duplicate(&mut self, path: &Path<'_>, bad: impl Into<Bad>) {
        self.add(FieldErrorKind::Duplicate, path, bad, "");
    }

    pub fn not_found(&mut self, path: &Path<'_>, bad: impl Into<Bad>) {
        self.add(FieldErrorKind::NotFound, path, bad, "");
    }

    pub fn internal(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.add(FieldErrorKind::Internal, path, "", detail);
    }

    /// `supported` is listed as given: callers sort where upstream does.
    pub fn not_supported(&mut self, path: &Path<'_>, bad: impl Into<Bad>, supported: &[&str]) {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let all: Vec<String> = supported.iter().map(|value| quoted(value)).collect();
            format!("supported values: {}", all.join(", "))
        };
        self.add(FieldErrorKind::NotSupported, path, bad, detail);
    }

    pub fn too_long(&mut self, path: &Path<'_>, limit_bytes: usize) {
        let detail = format!("may not be more than {limit_bytes} bytes");
        self.add(FieldErrorKind::TooLong, path, "", detail);
    }

    pub fn too_many(&mut self, path: &Path<'_>, actual: usize, limit: usize) {
        let items = if limit == 1 { "item" } else { "items" };
        let detail = format!("must have at most {limit} {items}");
        self.add(FieldErrorKind::TooMany, path, actual, detail);
    }

    /// `field is immutable` unless both are the same.
    pub fn immutable<T: PartialEq + Serialize>(&mut self, path: &Path<'_>, new: &T, old: &T) {
        if new != old {
            self.invalid(path, Bad::json(new), IMMUTABLE);
        }
    }
}

pub const IMMUTABLE: &str = "field is immutable";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(error: FieldError, expected: &str) {
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn texts_are_those_of_apimachinery() {
        let path = Path::ROOT;
        let path = path.child("spec");
        let path = path.child("ports");
        let path = path.index(2);
        let mut errors = Errors::default();
        errors.invalid(&path.child("port"), 0, "must be positive");
        errors.required(&path.key("a b"), "");
        errors.not_supported(&path, "X", &["A", "B"]);
        errors.invalid(&path, Bad::omitted(), "one of a and b");
        errors.invalid(&path, None::<&str>, "gone");
        errors.invalid(&path, json!({"a": "<b>"}), "odd");
        errors.too_many(&path, 4, 3);
        errors.duplicate(&path, "a\"\n");
        let mut errors = errors.0.into_iter();
        let mut next = || errors.next().expect("one for each line below");
        check(
            next(),
            "spec.ports[2].port: Invalid value: 0: must be positive",
        );
        check(next(), "spec.ports[2][a b]: Required value");
        check(
            next(),
            r#"spec.ports[2]: Unsupported value: "X": supported values: "A", "B""#,
        );
        check(next(), "spec.ports[2]: Invalid value: one of a and b");
        check(next(), "spec.ports[2]: Invalid value: null: gone");
        check(
            next(),
            r#"spec.ports[2]: Invalid value: {"a":"\u003cb\u003e"}: odd"#,
        );
        check(
            next(),
            "spec.ports[2]: Too many: 4: must have at most 3 items",
        );
        check(next(), r#"spec.ports[2]: Duplicate value: "a\"\n""#);
    }
}
