//! `additionalPrinterColumns`: tables of custom resources (apiextensions `tableconvertor`).

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use jsonpath_rust::{parser::model::JpQuery, parser::parse_json_path, query::js_path_process};
use serde_json::{Value, json};

use super::{list, text};
use crate::{
    duration,
    printer::{self, Column, Printer},
};

pub struct Columns {
    columns: Vec<Column>,
    /// Of the columns after the name; `None`: a path that leads nowhere.
    paths: Vec<Option<Arc<JpQuery>>>,
}

impl Columns {
    pub fn new(version: &Value) -> Self {
        let mut columns = vec![Column::name()];
        let mut paths = Vec::new();
        for column in list(&version["additionalPrinterColumns"]) {
            let path = text(column, "jsonPath");
            // Upstream's table ends before the first column that it cannot read.
            let Ok(compiled) = compile(path) else {
                return Self { columns, paths };
            };
            let description = match text(column, "description") {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                given => given.to_owned(),
            };
            columns.push(Column {
                name: Cow::Owned(text(column, "name").to_owned()),
                type_: Cow::Owned(text(column, "type").to_owned()),
                format: Cow::Owned(text(column, "format").to_owned()),
                description: Cow::Owned(description),
                priority: i32::try_from(column["priority"].as_i64().unwrap_or(0)).unwrap_or(0),
            });
            paths.push(Some(Arc::new(compiled)));
        }
        if paths.is_empty() {
            columns.push(Column::age().typed("date"));
            paths.push(compile(".metadata.creationTimestamp").ok().map(Arc::new));
        }
        Self { columns, paths }
    }
}

/// What the `scale` of a custom resource shows as a table: what stands in the `Scale` at the resource's own paths.
pub fn of_scale(spec_replicas: &str, status_replicas: &str) -> Columns {
    let replicas = |name: &str, path: &str, what: &str| {
        let description = format!("Number of {what} replicas");
        json!({"name": name, "type": "integer", "description": description, "jsonPath": path})
    };
    let mut columns = Columns::new(&json!({"additionalPrinterColumns": [
        replicas("Desired", spec_replicas, "desired"),
        replicas("Available", status_replicas, "actual"),
    ]}));
    let age = Columns::new(&Value::Null);
    columns.columns.extend(age.columns.into_iter().skip(1));
    columns.paths.extend(age.paths);
    columns
}

impl Printer for Columns {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![printer::name(object)];
        for (column, path) in self.columns[1..].iter().zip(&self.paths) {
            let found = path
                .as_ref()
                .and_then(|path| js_path_process(path, object).ok())
                .and_then(|found| found.into_iter().next());
            let cell = found.map(|found| cell(&column.type_, found.val(), now));
            cells.push(cell.unwrap_or(Value::Null));
        }
        cells
    }
}

fn cell(ty: &str, value: &Value, now: Timestamp) -> Value {
    match (ty, value) {
        (_, Value::Null) if ty != "string" => Value::Null,
        ("string", Value::String(text)) => Value::from(text.as_str()),
        ("string", Value::Null) => Value::from("<no value>"),
        ("string", Value::Array(_) | Value::Object(_)) => Value::from(go_json(value)),
        ("string", Value::Number(number)) if number.is_f64() => {
            Value::from(go_float(number.as_f64().unwrap_or_default()))
        }
        ("string", other) => Value::from(other.to_string()),
        ("integer", Value::Number(number)) => {
            let whole = number
                .as_i64()
                .or_else(|| number.as_f64().map(|f| f as i64));
            whole.map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) if text.is_empty() || text == "null" => {
            Value::from("<unknown>")
        }
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(at) if printer::is_zero(at) => Value::from("<unknown>"),
            Ok(at) => Value::from(duration::human(now.duration_since(at))),
            Err(_) => Value::from("<invalid>"),
        },
        _ => Value::Null,
    }
}

/// Go writes large and small numbers with an exponent of two digits.
fn go_float(value: f64) -> String {
    let shortest = format!("{value:e}");
    match shortest
        .split_once('e')
        .and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)))
    {
        Some((digits, exponent)) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => value.to_string(),
    }
}

/// Go escapes what HTML would read as tags.
fn go_json(value: &Value) -> String {
    value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// Compiles a path in kubectl's dialect (`.spec.a\.b[0]`) by way of the standard one (`$.spec['a.b'][0]`).
///
/// # Errors
/// What the parser says.
fn compile(path: &str) -> Result<JpQuery, String> {
    let mut out = String::from("$");
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '.' if chars.peek() == Some(&'.') => out.push('.'),
            '.' if chars.peek() == Some(&'[') || chars.peek() == Some(&'*') => {
                if chars.peek() == Some(&'*') {
                    out.push('.');
                }
            }
            '.' => {
                let mut name = String::new();
                while let Some(next) = chars.peek().copied() {
                    match next {
                        '.' | '[' => break,
                        '\\' => {
                            chars.next();
                            name.extend(chars.next());
                        }
                        next => {
                            chars.next();
                            name.push(next);
                        }
                    }
                }
                if name.is_empty() {
                    return Err(format!("empty name in {path:?}"));
                }
                let name = name.replace('\\', "\\\\").replace('\'', "\\'");
                if out.ends_with('.') {
                    // After `..`.
                    out.push('.');
                }
                out.push_str(&format!("['{name}']"));
            }
            '[' => {
                out.push('[');
                let mut quote = None;
                for c in chars.by_ref() {
                    out.push(c);
                    match (quote, c) {
                        (Some(open), c) if c == open => quote = None,
                        (None, '"' | '\'') => quote = Some(c),
                        (None, ']') => break,
                        _ => {}
                    }
                }
            }
            other => return Err(format!("unexpected {other:?} in {path:?}")),
        }
    }
    parse_json_path(&out).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ty: &str, path: &str, expected: Value) {
        let version =
            json!({"additionalPrinterColumns": [{"name": "X", "type": ty, "jsonPath": path}]});
        let object = json!({
            "metadata": {"name": "x", "annotations": {"a.b/c": "odd"}},
            "spec": {"n": 5, "f": 1.5, "s": "t", "on": true, "l": ["p", "q"], "o": {"k": 1},
                     "at": "2024-01-01T00:00:00Z", "bad": "soon", "empty": "", "null": null, "big": 1_500_000.5,
                     "html": ["<b>"]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let now: Timestamp = "2024-01-01T00:05:00Z".parse().expect("a time");
        let cells = Columns::new(&version).cells(&object, now);
        assert_eq!(cells, [json!("x"), expected], "{ty} {path}");
    }

    #[test]
    fn cells_are_what_the_path_finds_in_the_form_of_the_type() {
        check("integer", ".spec.n", json!(5));
        check("integer", ".spec.f", json!(1));
        check("integer", ".spec.s", Value::Null);
        check("number", ".spec.f", json!(1.5));
        check("boolean", ".spec.on", json!(true));
        check("string", ".spec.s", json!("t"));
        check("string", ".spec.n", json!("5"));
        check("string", ".spec.l", json!(r#"["p","q"]"#));
        check("string", ".spec.l[*]", json!("p"));
        check("string", ".spec.l[1]", json!("q"));
        check("string", ".spec.o", json!(r#"{"k":1}"#));
        check("string", ".spec.f", json!("1.5"));
        check("string", ".spec.big", json!("1.5000005e+06"));
        check("string", ".spec.none", Value::Null);
        check("string", ".spec.null", json!("<no value>"));
        check("string", ".spec.html", json!("[\"\\u003cb\\u003e\"]"));
        check("date", ".spec.empty", json!("<unknown>"));
        check("date", ".spec.at", json!("5m"));
        check("date", ".spec.bad", json!("<invalid>"));
        check("string", ".metadata.annotations.a\\.b/c", json!("odd"));
        check(
            "string",
            r#".status.conditions[?(@.type=="Ready")].status"#,
            json!("True"),
        );
    }

    #[test]
    fn a_scale_is_read_at_the_paths_of_its_object() {
        let scale = json!({
            "metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"replicas": 2}, "status": {"replicas": 1},
        });
        let now: Timestamp = "2024-01-01T00:05:00Z".parse().expect("a time");
        let printer = of_scale(".spec.replicas", ".status.count");
        let names: Vec<&str> = printer.columns().iter().map(|c| c.name.as_ref()).collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert_eq!(
            printer.cells(&scale, now),
            [json!("x"), json!(2), Value::Null, json!("5m")]
        );
    }

    #[test]
    fn without_columns_the_age_is_shown() {
        let columns = Columns::new(&json!({}));
        let names: Vec<&str> = columns.columns().iter().map(|c| c.name.as_ref()).collect();
        assert_eq!(names, ["Name", "Age"]);
    }
}
