//! Marks of definitions that matter to readers of the documents only, so that the table of types does not hold them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

static FACTS: &str = include_str!("marks.txt");

/// The lines of the file, by their first word and definition.
pub(super) struct Marks {
    lines: HashMap<&'static str, HashMap<&'static str, Vec<&'static str>>>,
}

impl Marks {
    pub(super) fn read() -> Self {
        let mut lines: HashMap<_, HashMap<_, Vec<_>>> = HashMap::new();
        for line in FACTS.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            if let (Some(what), Some(definition), Some(rest)) =
                (words.next(), words.next(), words.next())
            {
                let of = lines.entry(what).or_default();
                of.entry(definition).or_default().push(rest);
            }
        }
        Self { lines }
    }

    fn of(&self, what: &str, definition: &str) -> &[&'static str] {
        let definition = definition.strip_prefix("io.k8s.").unwrap_or(definition);
        let found = self.lines.get(what).and_then(|of| of.get(definition));
        found.map(Vec::as_slice).unwrap_or_default()
    }

    fn names(&self, what: &str, definition: &str, field: &str) -> bool {
        let lines = self.of(what, definition).iter();
        lines
            .flat_map(|line| line.split(' '))
            .any(|name| name == field)
    }

    /// Adds what is said of a field to its schema.
    pub(super) fn describe_field(&self, definition: &str, field: &str, schema: &mut Value) {
        if self.names("atomic", definition, field) {
            schema["x-kubernetes-list-type"] = json!("atomic");
        }
        if self.names("granular", definition, field) {
            schema["x-kubernetes-map-type"] = json!("granular");
        }
    }

    /// The description of a definition, or of `DEFINITION.FIELD`, that the sources lack.
    pub(super) fn text(&self, what: &str) -> Option<&'static str> {
        self.of("text", what).first().copied()
    }

    /// Adds what is said of a definition to its schema.
    pub(super) fn describe(&self, definition: &str, schema: &mut Value) {
        if let [order] = self.of("order", definition) {
            schema["required"] = order.split(' ').collect();
        }
        let unions = self.of("union", definition).iter().map(|union| {
            let mut words = union.split(' ');
            let mut union = Map::new();
            if let Some(discriminator) = words.next().filter(|word| *word != "-") {
                union.insert("discriminator".to_owned(), json!(discriminator));
            }
            let fields: Map<String, Value> = words
                .filter_map(|word| word.split_once('='))
                .map(|(field, value)| (field.to_owned(), json!(value)))
                .collect();
            union.insert("fields-to-discriminateBy".to_owned(), fields.into());
            Value::Object(union)
        });
        let unions: Vec<Value> = unions.collect();
        if !unions.is_empty() {
            schema["x-kubernetes-unions"] = unions.into();
        }
    }
}

/// The sources wrap addresses in `<>`, as Rust's documentation wants it.
pub(super) fn unwrapped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("<http") {
        let (before, link) = rest.split_at(at);
        out.push_str(before);
        match link.find('>') {
            Some(end) => {
                out.push_str(&link[1..end]);
                rest = &link[end + 1..];
            }
            None => {
                out.push_str(link);
                rest = "";
            }
        }
    }
    out.push_str(rest);
    out
}
