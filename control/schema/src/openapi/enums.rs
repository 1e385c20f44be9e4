//! Fields with a fixed set of values, as upstream's generator shows them: `enum`, and a list in the description.

use std::{collections::HashMap, fmt::Write};

use serde_json::{Value, json};

static FACTS: &str = include_str!("enums.txt");

/// Values and their texts, sorted by value. A value that upstream declares twice is here twice, as in its documents.
pub(super) struct Enum(Vec<(&'static str, &'static str)>);

/// `core.v1.Container.imagePullPolicy` → its values.
pub(super) struct Enums {
    all: Vec<Enum>,
    by_field: HashMap<&'static str, usize>,
}

impl Enums {
    pub(super) fn read() -> Self {
        let mut enums = Self {
            all: Vec::new(),
            by_field: HashMap::new(),
        };
        let lines = FACTS.lines();
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if !line.starts_with(' ') {
                for field in line.split(' ') {
                    enums.by_field.insert(field, enums.all.len());
                }
                enums.all.push(Enum(Vec::new()));
                continue;
            }
            let Some(Enum(values)) = enums.all.last_mut() else {
                continue;
            };
            let unquoted = |value: &'static str| if value == "\"\"" { "" } else { value };
            match line.trim_start().split_once(" =") {
                Some((value, text)) => values.push((unquoted(value), text.trim())),
                None => values.extend(line.trim().split(", ").map(|value| (unquoted(value), ""))),
            }
        }
        enums
    }

    pub(super) fn of(&self, definition: &str, field: &str) -> Option<&Enum> {
        let definition = definition.strip_prefix("io.k8s.api.")?;
        let index = self
            .by_field
            .get(format!("{definition}.{field}").as_str())?;
        self.all.get(*index)
    }

    #[cfg(test)]
    pub(super) fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.by_field.keys().copied()
    }
}

impl Enum {
    /// Adds to a field's schema: to itself, or to the items of a list or the values of a map.
    pub(super) fn describe(&self, schema: &mut Value) {
        let values: Value = self.0.iter().map(|(value, _)| *value).collect();
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                schema[inner]["enum"] = values;
                return;
            }
        }
        let mut text = schema["description"].as_str().unwrap_or("").to_owned();
        text.push_str("\n\nPossible enum values:");
        for (value, meaning) in &self.0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n - `{}`", json!(value));
            if !meaning.is_empty() {
                let _ = write!(text, " {meaning}");
            }
        }
        schema["description"] = Value::from(text);
        schema["enum"] = values;
    }
}
