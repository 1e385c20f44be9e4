//! Whether a schema is structural (apiextensions `schema/validation.go`): every field has one type, and what stands under
//! `allOf`, `anyOf`, `oneOf` and `not` only validates.

use serde_json::{Map, Value};

use super::{
    Invalid, InvalidKind,
    check::{flag, object, text},
    compile, join,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps the schema from being structural, in the order of its texts.
pub(super) fn structure(schema: &Map<String, Value>) -> Vec<Invalid> {
    let mut found = Vec::new();
    invariants(schema, Level::Root, "", &mut found);
    // As upstream, of the root's own alternatives only.
    completeness(schema, schema, "", "", &mut found);
    // By whole texts: what follows a field's name is a colon, or what stands below it.
    found.sort_by_cached_key(|one| {
        let kind = match one.kind {
            InvalidKind::Required => "Required value",
            InvalidKind::Forbidden => "Forbidden",
            _ => "Invalid value",
        };
        format!("{}: {kind}: {}", one.field, one.detail)
    });
    found
}

fn add(
    found: &mut Vec<Invalid>,
    kind: InvalidKind,
    field: String,
    bad: impl Into<Value>,
    detail: &str,
) {
    found.push(Invalid::new(kind, field, bad, detail));
}

fn objects<'a>(map: &'a Map<String, Value>, name: &str) -> Vec<&'a Map<String, Value>> {
    map.get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .collect()
}

fn properties(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    object(map, "properties")
        .into_iter()
        .flatten()
        .filter_map(|(name, property)| Some((name, property.as_object()?)))
}

/// `anyOf: [{type: integer}, {type: string}]`: the one place where alternatives may say types.
fn is_int_or_string(any_of: Option<&Value>) -> bool {
    any_of.is_some_and(|any_of| {
        *any_of == serde_json::json!([{"type": "integer"}, {"type": "string"}])
    })
}

fn invariants(map: &Map<String, Value>, level: Level, path: &str, found: &mut Vec<Invalid>) {
    let ty = text(map, "type");
    if ty == "array" && object(map, "items").is_none() {
        let at = join(path, "items");
        add(found, InvalidKind::Required, at, "", "must be specified");
    }
    if let Some(items) = object(map, "items") {
        invariants(items, Level::Item, &join(path, "items"), found);
    }
    for (name, property) in properties(map) {
        let at = join(path, &format!("properties[{name}]"));
        invariants(property, Level::Field, &at, found);
    }
    let additional = map
        .get("additionalProperties")
        .filter(|value| !value.is_null());
    let embedded = flag(map, "x-kubernetes-embedded-resource");
    if let Some(additional) = additional {
        let at = join(path, "additionalProperties");
        if level == Level::Root {
            let detail = "must not be used at the root";
            add(found, InvalidKind::Forbidden, at.clone(), "", detail);
        }
        if let Value::Object(additional) = additional {
            invariants(additional, Level::Field, &at, found);
        }
        if embedded {
            let detail = "must not be used if x-kubernetes-embedded-resource is set";
            add(found, InvalidKind::Forbidden, at, "", detail);
        }
    }
    let int_or_string = flag(map, "x-kubernetes-int-or-string");
    let preserves = flag(map, "x-kubernetes-preserve-unknown-fields");
    for (name, set) in [
        ("x-kubernetes-preserve-unknown-fields", preserves),
        ("x-kubernetes-embedded-resource", embedded),
    ] {
        if int_or_string && set {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            add(found, InvalidKind::Invalid, join(path, name), true, detail);
        }
    }
    let skip_any_of = is_int_or_string(map.get("anyOf"));
    let all_of = objects(map, "allOf");
    let skip_all_of = all_of
        .first()
        .is_some_and(|first| is_int_or_string(first.get("anyOf")));
    values(map, skip_any_of, skip_all_of, path, found);

    let at = || join(path, "type");
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        let kind = if ty.is_empty() {
            InvalidKind::Required
        } else {
            InvalidKind::Invalid
        };
        add(found, kind, at(), ty, detail);
    } else if ty.is_empty() && !int_or_string && !preserves {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        add(found, InvalidKind::Required, at(), "", detail);
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        add(
            found,
            InvalidKind::Invalid,
            at(),
            ty,
            "must be object at the root",
        );
    }
    let resource = level == Level::Root || embedded;
    for (name, property) in properties(map) {
        let below = join(path, &format!("properties[{name}]"));
        let ty = text(property, "type");
        match name.as_str() {
            "kind" | "apiVersion" if resource && ty != "string" => {
                let at = join(&below, "type");
                add(found, InvalidKind::Invalid, at, ty, "must be string");
            }
            "metadata" => {
                if resource && ty != "object" {
                    let at = join(&below, "type");
                    add(found, InvalidKind::Invalid, at, ty, "must be object");
                }
                if level == Level::Root && !is_plain_metadata(property) {
                    let detail = "must not specify anything other than name and generateName, but metadata is implicitly \
                                  specified";
                    add(found, InvalidKind::Forbidden, below, "", detail);
                }
            }
            _ => {}
        }
    }
    if embedded && !preserves && object(map, "properties").is_none_or(Map::is_empty) {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        add(
            found,
            InvalidKind::Required,
            join(path, "properties"),
            "",
            detail,
        );
    }
}

fn is_plain_metadata(metadata: &Map<String, Value>) -> bool {
    metadata.iter().all(|(name, value)| match name.as_str() {
        "type" | "default" => true,
        "properties" => value.as_object().is_some_and(|properties| {
            properties
                .keys()
                .all(|name| name == "name" || name == "generateName")
        }),
        _ => value.is_null() || *value == Value::Bool(false),
    })
}

/// Value validations of a place, and what they nest.
fn values(
    map: &Map<String, Value>,
    skip_any_of: bool,
    skip_all_of: bool,
    path: &str,
    found: &mut Vec<Invalid>,
) {
    if !skip_any_of {
        for (index, below) in objects(map, "anyOf").into_iter().enumerate() {
            nested(below, false, &join(path, &format!("anyOf[{index}]")), found);
        }
    }
    for (index, below) in objects(map, "allOf").into_iter().enumerate() {
        let skip = skip_all_of && index == 0;
        nested(below, skip, &join(path, &format!("allOf[{index}]")), found);
    }
    for (index, below) in objects(map, "oneOf").into_iter().enumerate() {
        nested(below, false, &join(path, &format!("oneOf[{index}]")), found);
    }
    if let Some(below) = object(map, "not") {
        nested(below, false, &join(path, "not"), found);
    }
    let pattern = text(map, "pattern");
    if !pattern.is_empty() && compile(pattern).is_none() {
        let detail = format!(
            "must be a valid regular expression, but isn't: error parsing regexp: {}",
            regex_problem(pattern)
        );
        let at = join(path, "pattern");
        add(found, InvalidKind::Invalid, at, pattern, &detail);
    }
}

/// What Go's parser says, for the common mistakes.
fn regex_problem(pattern: &str) -> String {
    let count = |c: char| pattern.matches(c).count();
    if count('[') > count(']') {
        let from = pattern.rfind('[').unwrap_or(0);
        return format!("missing closing ]: `{}`", &pattern[from..]);
    }
    if count('(') > count(')') {
        return format!("missing closing ): `{pattern}`");
    }
    if count(')') > count('(') {
        return format!("unexpected ): `{pattern}`");
    }
    if pattern.ends_with('\\') {
        return "trailing backslash at end of expression: ``".to_owned();
    }
    match pattern.chars().next() {
        Some(c @ ('*' | '+' | '?')) => {
            format!("missing argument to repetition operator: `{c}`")
        }
        _ if pattern.contains("(?=") || pattern.contains("(?!") || pattern.contains("(?<") => {
            let from = pattern.find("(?").unwrap_or(0);
            let end = pattern[from..]
                .char_indices()
                .nth(3)
                .map_or(pattern.len(), |(at, _)| from + at);
            format!(
                "invalid or unsupported Perl syntax: `{}`",
                &pattern[from..end]
            )
        }
        _ => format!("invalid escape sequence: `{pattern}`"),
    }
}

/// What stands under a logical operator may not say what a place *is*.
fn nested(map: &Map<String, Value>, skip_any_of: bool, path: &str, found: &mut Vec<Invalid>) {
    values(map, skip_any_of, false, path, found);
    if let Some(items) = object(map, "items") {
        nested(items, false, &join(path, "items"), found);
    }
    for (name, property) in properties(map) {
        let at = join(path, &format!("properties[{name}]"));
        nested(property, false, &at, found);
    }
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    const FALSE: &str = "must be false to be structural";
    for (name, detail) in [
        ("type", EMPTY),
        ("additionalProperties", UNDEFINED),
        ("default", UNDEFINED),
        ("title", EMPTY),
        ("description", EMPTY),
        ("nullable", FALSE),
        ("x-kubernetes-preserve-unknown-fields", FALSE),
        ("x-kubernetes-embedded-resource", FALSE),
        ("x-kubernetes-int-or-string", FALSE),
        ("x-kubernetes-list-map-keys", EMPTY),
        ("x-kubernetes-list-type", UNDEFINED),
        ("x-kubernetes-map-type", UNDEFINED),
        ("x-kubernetes-validations", EMPTY),
    ] {
        let set = match map.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if set {
            add(found, InvalidKind::Forbidden, join(path, name), "", detail);
        }
    }
    if object(map, "properties").is_some_and(|properties| properties.contains_key("metadata")) {
        let at = join(path, "properties[metadata]");
        let detail = "must not be specified in a nested context";
        add(found, InvalidKind::Forbidden, at, "", detail);
    }
}

/// Every field that a validation speaks of is a field of the structure. `at`: the place in the structure; `from`: where
/// the validation stands.
fn completeness(
    map: &Map<String, Value>,
    structure: &Map<String, Value>,
    at: &str,
    from: &str,
    found: &mut Vec<Invalid>,
) {
    for name in ["anyOf", "allOf", "oneOf"] {
        for (index, below) in objects(map, name).into_iter().enumerate() {
            let from = join(from, &format!("{name}[{index}]"));
            spoken_of(below, structure, at, &from, found);
        }
    }
    if let Some(not) = object(map, "not") {
        spoken_of(not, structure, at, &join(from, "not"), found);
    }
}

fn spoken_of(
    validation: &Map<String, Value>,
    structure: &Map<String, Value>,
    at: &str,
    from: &str,
    found: &mut Vec<Invalid>,
) {
    completeness(validation, structure, at, from, found);
    let mut check = |below: Option<&Map<String, Value>>, name: &str, validation| {
        let (at, from) = (join(at, name), join(from, name));
        match below {
            Some(below) => spoken_of(validation, below, &at, &from, found),
            None => {
                // The whole path to where it is spoken of is made by the caller, who knows the root.
                let detail = format!("because it is defined in {{root}}.{from}");
                add(found, InvalidKind::Required, at, "", &detail);
            }
        }
    };
    if let Some(items) = object(validation, "items") {
        check(object(structure, "items"), "items", items);
    }
    for (name, property) in properties(validation) {
        let own = object(structure, "properties").and_then(|all| object(all, name));
        check(own, &format!("properties[{name}]"), property);
    }
}
