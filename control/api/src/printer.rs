//! Rows of `kubectl get`: the columns of a resource and the cells of an object (`meta.k8s.io/v1 Table`).

use std::{borrow::Cow, cmp::Ordering};

use jiff::Timestamp;
use serde_json::Value;

/// A `TableColumnDefinition`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// An OpenAPI type: `string`, `integer`, `number`, `boolean`, `date`.
    pub type_: Cow<'static, str>,
    pub format: Cow<'static, str>,
    pub description: Cow<'static, str>,
    /// 0 = always shown; above 0 = only with `-o wide`.
    pub priority: i32,
}

pub trait Printer: Send + Sync {
    fn columns(&self) -> &[Column];
    /// One cell a column, in column order. A missing value is an empty cell, never an error.
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value>;

    /// What a row says of its object beside the cells: that a pod is over.
    fn conditions(&self, _object: &Value) -> Option<Value> {
        None
    }

    /// The order of a list's rows, where it is not that of the list.
    fn order(&self) -> Option<fn(&Value, &Value) -> Ordering> {
        None
    }
}

impl Column {
    /// A column of `type: string`, always shown.
    pub const fn new(name: &'static str, description: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            type_: Cow::Borrowed("string"),
            format: Cow::Borrowed(""),
            description: Cow::Borrowed(description),
            priority: 0,
        }
    }

    pub fn typed(mut self, type_: &'static str) -> Self {
        self.type_ = Cow::Borrowed(type_);
        self
    }

    pub fn format(mut self, format: &'static str) -> Self {
        self.format = Cow::Borrowed(format);
        self
    }

    /// Only with `-o wide`.
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    pub fn name() -> Self {
        Self::new("Name", NAME_DOC).format("name")
    }

    pub fn age() -> Self {
        Self::new("Age", AGE_DOC)
    }
}

const NAME_DOC: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_DOC: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// `metadata.name`, or nothing.
pub fn name(object: &Value) -> Value {
    object
        .pointer("/metadata/name")
        .cloned()
        .unwrap_or_else(|| Value::from(""))
}

/// How long ago the object was made, as `kubectl get` shows it.
pub fn age(object: &Value, now: Timestamp) -> Value {
    Value::from(time_since(
        object.pointer("/metadata/creationTimestamp"),
        now,
    ))
}

/// `5m`, or `<unknown>` for what is no time.
pub fn time_since(time: Option<&Value>, now: Timestamp) -> String {
    match time
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .filter(|time| !is_zero(*time))
    {
        Some(time) => crate::duration::human(now.duration_since(time)),
        None => "<unknown>".to_owned(),
    }
}

/// Go's zero time, the first second of the year 1, is no time.
pub(crate) fn is_zero(time: Timestamp) -> bool {
    time.as_nanosecond() == -62_135_596_800_000_000_000
}

/// Columns and a function that fills them.
pub struct Table {
    pub columns: Vec<Column>,
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
}

impl Printer for Table {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }
}

/// What kinds without columns of their own show; the only one where the second is called `Created At`.
pub struct NameAndAge {
    columns: [Column; 2],
}

impl NameAndAge {
    pub fn new() -> Self {
        Self {
            columns: [
                Column::name(),
                Column::new("Created At", AGE_DOC).typed("date"),
            ],
        }
    }
}

impl Default for NameAndAge {
    fn default() -> Self {
        Self::new()
    }
}

impl Printer for NameAndAge {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let created = object.pointer("/metadata/creationTimestamp").cloned();
        vec![name(object), created.unwrap_or_else(|| Value::from(""))]
    }
}
