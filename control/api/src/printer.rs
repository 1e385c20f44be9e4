//! Rows of `kubectl get`: the columns of a resource and the cells of an object (`meta.k8s.io/v1 Table`).

use std::borrow::Cow;

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
}
