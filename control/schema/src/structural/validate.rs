//! Values against a schema, in the words of kube-openapi's validator as apiextensions reports them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Additional, Invalid, InvalidKind, Schema, format, join, root_of};
use crate::TypeRef;

/// Most violations that are reported of one object.
const MAX_ERRORS: usize = 500;

/// Checks a value against the schema's value validations (`minimum`, `pattern`, `enum`, `required`, …) and the
/// uniqueness of sets and keyed lists. Nothing for built-in types.
pub fn validate(value: &Value, ty: &TypeRef) -> Vec<Invalid> {
    let mut found = validate_values(value, None, ty);
    if found.is_empty() {
        found = duplicates(value, ty);
    }
    found
}

/// The value validations alone. `old`: what the value replaces; parts that stay as they were are not looked at, so that
/// an object which a later schema forbids can still be changed elsewhere (KEP-4008).
pub fn validate_values(value: &Value, old: Option<&Value>, ty: &TypeRef) -> Vec<Invalid> {
    let Some(schema) = root_of(ty) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    schema.validate(value, old, "", &mut found);
    found.truncate(MAX_ERRORS);
    found
}

/// As [`validate_values`] of one field below the root, for endpoints that write no other.
pub fn validate_field(value: &Value, old: &Value, field: &str, ty: &TypeRef) -> Vec<Invalid> {
    let schema = root_of(ty).and_then(|root| root.properties.get(field));
    let (Some(schema), Some(value)) = (schema, value.get(field)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    schema.validate(value, old.get(field), "", &mut found);
    found.truncate(MAX_ERRORS);
    // Upstream's texts name what is below the field only.
    for one in &mut found {
        one.field = match one.field.as_str() {
            "" | "<nil>" => field.to_owned(),
            below => format!("{field}.{below}"),
        };
    }
    found
}

/// Items that stand twice in a set, and keys that stand twice in a keyed list.
pub fn duplicates(value: &Value, ty: &TypeRef) -> Vec<Invalid> {
    let mut found = Vec::new();
    if let Some(schema) = root_of(ty) {
        schema.unique(value, "", &mut found);
    }
    found.truncate(MAX_ERRORS);
    found
}

/// The objects within a value that are resources themselves (`x-kubernetes-embedded-resource`), and where they stand.
pub fn embedded<'a>(value: &'a Value, ty: &TypeRef) -> Vec<(String, &'a Map<String, Value>)> {
    let mut found = Vec::new();
    if let Some(schema) = root_of(ty) {
        schema.embedded(value, "", &mut found);
    }
    found
}

/// Checks one value against one schema, given as JSON (a default, an item of an enum).
pub(super) fn validate_default(value: &Value, schema: &Schema) -> Vec<Invalid> {
    let mut found = Vec::new();
    schema.validate(value, None, "", &mut found);
    found
}

/// JSON schema's name of a value's type.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go prints floats without a fraction as integers.
fn number_text(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1.0e15 {
        format!("{}", value as i64)
    } else {
        format!("{value}")
    }
}

impl Schema {
    fn validate(&self, value: &Value, old: Option<&Value>, path: &str, found: &mut Vec<Invalid>) {
        if found.len() >= MAX_ERRORS || (value.is_null() && self.nullable) || old == Some(value) {
            return;
        }
        self.validate_type(value, path, found);
        self.validate_combinations(value, path, found);
        match value {
            Value::String(text) => self.validate_string(text, path, found),
            Value::Number(number) => {
                self.validate_number(value, number.as_f64().unwrap_or_default(), path, found);
            }
            Value::Array(list) => self.validate_list(list, old, path, found),
            _ => {}
        }
        if !self.one_of_values.is_empty() && !self.one_of_values.contains(value) {
            // What is no string is shown as one of JSON.
            let values: Vec<String> = self
                .one_of_values
                .iter()
                .map(|value| match value {
                    Value::String(_) => value.to_string(),
                    other => format!("{:?}", other.to_string()),
                })
                .collect();
            let detail = format!("supported values: {}", values.join(", "));
            found.push(Invalid::new(
                InvalidKind::NotSupported,
                path,
                value.clone(),
                detail,
            ));
        }
        if let Value::Object(map) = value {
            self.validate_object(map, old, path, found);
        }
    }

    fn validate_type(&self, value: &Value, path: &str, found: &mut Vec<Invalid>) {
        let is = type_of(value);
        if self.int_or_string {
            if !matches!(is, "integer" | "string") {
                let detail = format!("{path} in body must be of type integer,string: {is:?}");
                found.push(Invalid::new(InvalidKind::TypeInvalid, path, is, detail));
            }
            return;
        }
        if self.ty.is_empty() {
            return;
        }
        let fits = match self.ty.as_str() {
            "number" => matches!(is, "number" | "integer"),
            ty => ty == is,
        };
        if !fits {
            let detail = format!("{path} in body must be of type {}: {is:?}", self.ty);
            found.push(Invalid::new(InvalidKind::TypeInvalid, path, is, detail));
            if self.ty == "integer" && is == "number" {
                self.odd_number("integer (default format)", path, found);
            }
            return;
        }
        if let Value::String(text) = value
            && !self.format.is_empty()
            && format::matches(&self.format, text) == Some(false)
        {
            let detail = format!("{path} in body must be of type {}: {text:?}", self.format);
            found.push(Invalid::new(
                InvalidKind::TypeInvalid,
                path,
                text.as_str(),
                detail,
            ));
        }
        let integer = value.as_i64();
        let overflows = match self.format.as_str() {
            "int32" => integer.is_none_or(|wide| i32::try_from(wide).is_err()),
            "int64" => integer.is_none(),
            _ => false,
        };
        if self.ty == "integer" && overflows {
            self.odd_number(&format!("integer with format {}", self.format), path, found);
        }
    }

    #[expect(clippy::unused_self, reason = "reads as one of the checks of a schema")]
    fn odd_number(&self, wanted: &str, path: &str, found: &mut Vec<Invalid>) {
        let detail = format!("Checked value must be of type {wanted} in {path}");
        found.push(Invalid::new(InvalidKind::Invalid, "<nil>", "", detail));
    }

    fn validate_combinations(&self, value: &Value, path: &str, found: &mut Vec<Invalid>) {
        let results = |schemas: &[Schema]| -> Vec<Vec<Invalid>> {
            schemas
                .iter()
                .map(|schema| {
                    let mut found = Vec::new();
                    schema.validate(value, None, path, &mut found);
                    found
                })
                .collect()
        };
        let mut nameless = |detail: String, more: Vec<Invalid>| {
            found.push(Invalid::new(InvalidKind::Invalid, "<nil>", "", detail));
            found.extend(more);
        };
        // What the closest alternative complains of is shown too.
        let closest = |results: Vec<Vec<Invalid>>| {
            results.into_iter().min_by_key(Vec::len).unwrap_or_default()
        };
        if !self.any_of.is_empty() {
            let results = results(&self.any_of);
            if results.iter().all(|found| !found.is_empty()) {
                let detail = format!("{path:?} must validate at least one schema (anyOf)");
                nameless(detail, closest(results));
            }
        }
        if !self.one_of.is_empty() {
            let results = results(&self.one_of);
            match results.iter().filter(|found| found.is_empty()).count() {
                1 => {}
                0 => nameless(
                    format!(
                        "{path:?} must validate one and only one schema (oneOf). Found none valid"
                    ),
                    closest(results),
                ),
                count => nameless(
                    format!(
                        "{path:?} must validate one and only one schema (oneOf). Found {count} valid alternatives"
                    ),
                    Vec::new(),
                ),
            }
        }
        if !self.all_of.is_empty() {
            let results = results(&self.all_of);
            let valid = results.iter().filter(|found| found.is_empty()).count();
            if valid != results.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                nameless(
                    format!("{path:?} must validate all the schemas (allOf){none}"),
                    results.into_iter().flatten().collect(),
                );
            }
        }
        if let Some(not) = &self.not {
            let mut inner = Vec::new();
            not.validate(value, None, path, &mut inner);
            if inner.is_empty() {
                nameless(
                    format!("{path:?} must not validate the schema (not)"),
                    Vec::new(),
                );
            }
        }
    }

    fn validate_string(&self, text: &str, path: &str, found: &mut Vec<Invalid>) {
        // Characters, although the text says bytes.
        let length = text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            let detail = format!("may not be more than {max} bytes");
            found.push(Invalid::new(InvalidKind::TooLong, path, text, detail));
        } else if let Some(min) = self.min_length.filter(|min| length < *min) {
            let detail = format!("{path} in body should be at least {min} chars long");
            found.push(Invalid::new(InvalidKind::Invalid, path, text, detail));
        } else if let Some(pattern) = &self.pattern
            && !pattern.matches(text)
        {
            let detail = format!("{path} in body should match '{}'", pattern.text);
            found.push(Invalid::new(InvalidKind::Invalid, path, text, detail));
        }
    }

    fn validate_number(&self, value: &Value, number: f64, path: &str, found: &mut Vec<Invalid>) {
        let mut fail = |detail: String| {
            found.push(Invalid::new(
                InvalidKind::Invalid,
                path,
                value.clone(),
                detail,
            ));
        };
        if let Some(factor) = self.multiple_of.filter(|factor| *factor > 0.0) {
            let quotient = number / factor;
            if (quotient - quotient.round()).abs() > 1e-9 * quotient.abs().max(1.0) {
                fail(format!(
                    "{path} in body should be a multiple of {}",
                    number_text(factor)
                ));
            }
        }
        if let Some(bound) = self.maximum {
            let text = number_text(bound.value);
            if bound.exclusive && number >= bound.value {
                fail(format!("{path} in body should be less than {text}"));
            } else if number > bound.value {
                fail(format!(
                    "{path} in body should be less than or equal to {text}"
                ));
            }
        }
        if let Some(bound) = self.minimum {
            let text = number_text(bound.value);
            if bound.exclusive && number <= bound.value {
                fail(format!("{path} in body should be greater than {text}"));
            } else if number < bound.value {
                fail(format!(
                    "{path} in body should be greater than or equal to {text}"
                ));
            }
        }
    }

    fn validate_list(
        &self,
        list: &[Value],
        old: Option<&Value>,
        path: &str,
        found: &mut Vec<Invalid>,
    ) {
        if let Some(items) = &self.items {
            for (at, item) in list.iter().enumerate() {
                let old = self.old_item(item, old);
                items.validate(item, old, &format!("{path}[{at}]"), found);
            }
        }
        let length = list.len() as u64;
        if let Some(min) = self.min_items.filter(|min| length < *min) {
            let detail = format!("{path} in body should have at least {min} items");
            found.push(Invalid::new(InvalidKind::Invalid, path, length, detail));
        }
        if let Some(max) = self.max_items.filter(|max| length > *max) {
            let detail = format!("must have at most {max} items");
            found.push(Invalid::new(InvalidKind::TooMany, path, length, detail));
        }
        if self.unique_items && has_duplicates(list) {
            let detail = format!("{path} in body shouldn't contain duplicates");
            found.push(Invalid::new(InvalidKind::Duplicate, path, "", detail));
        }
    }

    /// What an item was before: only the items of keyed lists have an identity.
    fn old_item<'a>(&self, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
        let old = old?.as_array().filter(|_| self.list_type == "map")?;
        let keys = &self.list_map_keys;
        old.iter()
            .find(|other| keys.iter().all(|name| other.get(name) == item.get(name)))
    }

    fn embedded<'a>(
        &self,
        value: &'a Value,
        path: &str,
        found: &mut Vec<(String, &'a Map<String, Value>)>,
    ) {
        match value {
            Value::Object(map) => {
                if self.embedded_resource {
                    found.push((path.to_owned(), map));
                }
                for (name, value) in map {
                    if let Some((schema, at)) = self.below(name, path) {
                        schema.embedded(value, &at, found);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (at, item) in list.iter().enumerate() {
                        items.embedded(item, &format!("{path}[{at}]"), found);
                    }
                }
            }
            _ => {}
        }
    }

    fn validate_object(
        &self,
        map: &Map<String, Value>,
        old: Option<&Value>,
        path: &str,
        found: &mut Vec<Invalid>,
    ) {
        let length = map.len() as u64;
        if let Some(min) = self.min_properties.filter(|min| length < *min) {
            let detail = format!("{path} in body should have at least {min} properties");
            found.push(Invalid::new(InvalidKind::Invalid, path, length, detail));
            return;
        }
        if let Some(max) = self.max_properties.filter(|max| length > *max) {
            let detail = format!("must have at most {max} items");
            found.push(Invalid::new(InvalidKind::TooMany, path, length, detail));
            return;
        }
        for (name, value) in map {
            let below = match (self.properties.get(name), &self.additional) {
                (Some(schema), _) => schema,
                (None, Additional::Schema(schema)) => schema,
                (None, _) => continue,
            };
            let old = old.and_then(|old| old.get(name));
            below.validate(value, old, &join(path, name), found);
        }
        let needed = ["apiVersion", "kind"];
        let embedded = needed.into_iter().filter(|_| self.embedded_resource);
        let required = self.required.iter().map(String::as_str);
        let required = required.filter(|name| !self.embedded_resource || !needed.contains(name));
        for name in required
            .chain(embedded)
            .filter(|name| !map.contains_key(*name))
        {
            let at = join(path, name);
            found.push(Invalid::new(InvalidKind::Required, at, "", ""));
        }
    }

    /// Sets and keyed lists hold each item once. What stands there more often is told where it is repeated first.
    fn unique(&self, value: &Value, path: &str, found: &mut Vec<Invalid>) {
        match value {
            Value::Array(list) => {
                self.unique_items(list, path, found);
                if let Some(items) = &self.items {
                    for (at, item) in list.iter().enumerate() {
                        items.unique(item, &format!("{path}[{at}]"), found);
                    }
                }
            }
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some((schema, at)) = self.below(name, path) {
                        schema.unique(value, &at, found);
                    }
                }
            }
            _ => {}
        }
    }

    /// The schema of a field or of a map's values, and the path as Go's field paths show it.
    fn below(&self, name: &str, path: &str) -> Option<(&Self, String)> {
        match (self.properties.get(name), &self.additional) {
            (Some(schema), _) => Some((schema, join(path, name))),
            (None, Additional::Schema(schema)) => Some((schema, format!("{path}[{name}]"))),
            (None, _) => None,
        }
    }

    fn unique_items(&self, list: &[Value], path: &str, found: &mut Vec<Invalid>) {
        let keyed = match self.list_type.as_str() {
            "set" => false,
            "map" => true,
            _ => return,
        };
        let odd = |item: &Value| !item.is_object() && !item.is_null();
        if keyed && let Some(at) = list.iter().position(odd) {
            let (path, detail) = (
                format!("{path}[{at}]"),
                "must be an object for an array of list-type map",
            );
            let bad = list[at].clone();
            found.push(Invalid::new(InvalidKind::Invalid, path, bad, detail));
            return;
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (at, item) in list.iter().enumerate() {
            let identity = if keyed {
                let keys = self.list_map_keys.iter();
                let keys = keys.filter_map(|name| Some((name.clone(), item.get(name)?.clone())));
                Value::Object(keys.collect())
            } else {
                item.clone()
            };
            let times = seen.entry(identity.to_string()).or_default();
            *times += 1;
            if *times == 2 {
                let at = format!("{path}[{at}]");
                found.push(Invalid::new(InvalidKind::Duplicate, at, identity, ""));
            }
        }
    }
}

fn has_duplicates(list: &[Value]) -> bool {
    let mut texts: Vec<String> = list.iter().map(|item| json!(item).to_string()).collect();
    texts.sort_unstable();
    texts.windows(2).any(|pair| pair[0] == pair[1])
}
