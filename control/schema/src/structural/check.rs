//! Whether a schema is structural and says what it means (apiextensions' validation of a CustomResourceDefinition).

use serde_json::{Map, Value};

use super::{
    Additional, Invalid, InvalidKind, Schema, join, structure::structure,
    validate::validate_default,
};

/// What is wrong with a schema, in upstream's order.
#[derive(Debug, Default, PartialEq)]
pub struct Faults {
    pub found: Vec<Invalid>,
    /// What the schema means is known, so that its rules can be compiled: where nothing is wrong at them or below.
    pub structural: bool,
}

/// Finds what is wrong with the rules of one schema without compiling them, given where it stands.
pub type Forms<'a> = &'a dyn Fn(&Map<String, Value>, &str, &mut Vec<Invalid>);

/// Everything wrong with an `openAPIV3Schema`, with fields below it (`properties[x].type`). Of CEL rules, what `forms` says.
pub fn check(schema: &Value, forms: Forms<'_>) -> Faults {
    let mut found = Vec::new();
    let Value::Object(map) = schema else {
        found.push(Invalid::new(InvalidKind::Required, "", "", ""));
        return Faults {
            found,
            structural: false,
        };
    };
    let parsed = Schema::parse(schema, "", 0);
    if flag(map, "nullable") {
        let detail = "nullable cannot be true at the root";
        found.push(Invalid::new(InvalidKind::Forbidden, "nullable", "", detail));
    }
    let mut structural = parsed.is_ok();
    if structural {
        let mut deeper = structure(map);
        if deeper.is_empty() {
            all_defaults(map, "", true, &mut deeper);
        }
        structural = deeper.is_empty();
        found.append(&mut deeper);
    }
    let mut markers = Markers { found, forms };
    markers.visit(map, "", &Place::root());
    let mut found = markers.found;
    if let (Err(error), true) = (parsed, found.is_empty()) {
        let kind = InvalidKind::Forbidden;
        found.push(Invalid::new(kind, error.field, "", error.detail));
    }
    Faults { found, structural }
}

pub(super) fn object<'a>(
    map: &'a Map<String, Value>,
    name: &str,
) -> Option<&'a Map<String, Value>> {
    map.get(name).and_then(Value::as_object)
}

pub(super) fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).and_then(Value::as_bool).unwrap_or_default()
}

/// Where a schema stands, as far as it matters for what may be said there.
#[derive(Clone, Copy)]
struct Place {
    root: bool,
    /// `apiVersion`, `kind` or `metadata` of a resource.
    metadata: bool,
    /// Why no default may be set.
    no_default: Option<&'static str>,
}

impl Place {
    fn root() -> Self {
        Self {
            root: true,
            metadata: false,
            no_default: None,
        }
    }

    fn below(self) -> Self {
        Self {
            root: false,
            ..self
        }
    }

    fn property(self, embedded: bool, name: &str) -> Self {
        let mut place = self.below();
        let in_root = match name {
            "metadata" => "in top-level metadata",
            "kind" => "in top-level kind",
            "apiVersion" => "in top-level apiVersion",
            _ => return place,
        };
        if self.root || embedded {
            place.metadata = true;
        }
        if self.root {
            place.no_default = Some(in_root);
        }
        place
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// What OpenAPI version 3 has and definitions may not use.
fn unsupported(map: &Map<String, Value>, path: &str, place: &Place, found: &mut Vec<Invalid>) {
    let mut forbid = |name: &str, detail: &str| {
        let at = join(path, name);
        found.push(Invalid::new(InvalidKind::Forbidden, at, "", detail));
    };
    let ty = text(map, "type");
    let set = |name: &str| {
        map.get(name).is_some_and(|value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        })
    };
    if set("default")
        && let Some(reason) = place.no_default
    {
        forbid("default", &format!("must not be set {reason}"));
    }
    for (name, detail) in [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        if set(name) {
            forbid(name, detail);
        }
    }
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        forbid("type", detail);
    }
    if map.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array");
    }
    if place.metadata && flag(map, "x-kubernetes-embedded-resource") {
        let detail = "must not be used inside of resource meta";
        forbid("x-kubernetes-embedded-resource", detail);
    }
    if !ty.is_empty() && !TYPES.contains(&ty) {
        let types: Vec<String> = TYPES.iter().map(|ty| format!("{ty:?}")).collect();
        let detail = format!("supported values: {}", types.join(", "));
        let at = join(path, "type");
        found.insert(0, Invalid::new(InvalidKind::NotSupported, at, ty, detail));
    }
}

/// What stands in a schema beside its structure: lists, maps, what is not supported
/// (`ValidateCustomResourceDefinitionOpenAPISchema`).
struct Markers<'a> {
    found: Vec<Invalid>,
    forms: Forms<'a>,
}

impl Markers<'_> {
    fn visit(&mut self, map: &Map<String, Value>, path: &str, place: &Place) {
        let mut own = Vec::new();
        unsupported(map, path, place, &mut own);
        self.found.append(&mut own);
        let properties = object(map, "properties");
        let additional = map
            .get("additionalProperties")
            .filter(|value| !value.is_null());
        if flag(map, "uniqueItems") {
            let detail =
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.add(path, "uniqueItems", InvalidKind::Forbidden, "", detail);
        }
        if properties.is_some_and(|properties| !properties.is_empty())
            && additional.is_some_and(|additional| *additional != Value::Bool(true))
        {
            let detail = "additionalProperties and properties are mutual exclusive";
            let name = "additionalProperties";
            self.add(path, name, InvalidKind::Forbidden, "", detail);
        }
        if let Some(Value::Object(values)) = additional {
            let mut place = place.below();
            if place.metadata {
                place.no_default = Some("inside additionalProperties applying to object metadata");
            }
            self.visit(values, &join(path, "additionalProperties"), &place);
        }
        let embedded = flag(map, "x-kubernetes-embedded-resource");
        for (name, property) in properties.into_iter().flatten() {
            if let Value::Object(property) = property {
                let at = join(path, &format!("properties[{name}]"));
                self.visit(property, &at, &place.property(embedded, name));
            }
        }
        if let Some(not) = object(map, "not") {
            self.visit(not, &join(path, "not"), &place.below());
        }
        for name in ["allOf", "oneOf", "anyOf"] {
            let list = map.get(name).and_then(Value::as_array);
            for (index, below) in list.into_iter().flatten().enumerate() {
                if let Value::Object(below) = below {
                    let at = join(path, &format!("{name}[{index}]"));
                    self.visit(below, &at, &place.below());
                }
            }
        }
        if let Some(items) = object(map, "items") {
            self.visit(items, &join(path, "items"), &place.below());
        }
        if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            let name = "x-kubernetes-preserve-unknown-fields";
            let detail = "must be true or undefined";
            self.add(path, name, InvalidKind::Invalid, false, detail);
        }
        self.map_type(map, path);
        self.list_type(map, path);
        (self.forms)(map, path, &mut self.found);
    }

    fn add(
        &mut self,
        path: &str,
        name: &str,
        kind: InvalidKind,
        bad: impl Into<Value>,
        detail: &str,
    ) {
        self.found
            .push(Invalid::new(kind, join(path, name), bad, detail));
    }

    /// The type that a marker asks for.
    fn must_be(&mut self, map: &Map<String, Value>, path: &str, ty: &str, marker: &str) {
        let given = text(map, "type");
        let kind = match given {
            "" => InvalidKind::Required,
            given if given != ty => InvalidKind::Invalid,
            _ => return,
        };
        let detail = format!("must be {ty} if {marker} is specified");
        self.add(path, "type", kind, given, &detail);
    }

    fn map_type(&mut self, map: &Map<String, Value>, path: &str) {
        const MARKER: &str = "x-kubernetes-map-type";
        let Some(map_type) = map.get(MARKER).and_then(Value::as_str) else {
            return;
        };
        self.must_be(map, path, "object", MARKER);
        if !["atomic", "granular"].contains(&map_type) {
            let detail = "supported values: \"atomic\", \"granular\"";
            self.add(path, MARKER, InvalidKind::NotSupported, map_type, detail);
        }
    }

    fn list_type(&mut self, map: &Map<String, Value>, path: &str) {
        const MARKER: &str = "x-kubernetes-list-type";
        const KEYS: &str = "x-kubernetes-list-map-keys";
        let list_type = map.get(MARKER).and_then(Value::as_str);
        let items = object(map, "items");
        let keys: Vec<&str> = map
            .get(KEYS)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if let Some(list_type) = list_type {
            self.must_be(map, path, "array", MARKER);
            if let ("array", "set", Some(items)) = (text(map, "type"), list_type, items) {
                self.set_items(items, path);
            }
            if !["atomic", "set", "map"].contains(&list_type) {
                let detail = "supported values: \"atomic\", \"set\", \"map\"";
                self.add(path, MARKER, InvalidKind::NotSupported, list_type, detail);
            }
        }
        if !keys.is_empty() && list_type != Some("map") {
            let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
            match list_type {
                None => self.add(path, MARKER, InvalidKind::Required, "", detail),
                Some(other) => self.add(path, MARKER, InvalidKind::Invalid, other, detail),
            }
        }
        if list_type == Some("map") {
            if keys.is_empty() {
                let detail = "must not be empty if x-kubernetes-list-type is map";
                self.add(path, KEYS, InvalidKind::Required, "", detail);
            }
            self.keyed_items(items, &keys, path);
        }
        if let (Some(list_type @ ("set" | "map")), Some(items)) = (list_type, items) {
            self.identities(items, list_type, &keys, path);
        }
    }

    /// Items of sets must not be merged.
    fn set_items(&mut self, items: &Map<String, Value>, path: &str) {
        let marker = match text(items, "type") {
            "array" => "x-kubernetes-list-type",
            "object" => "x-kubernetes-map-type",
            _ => return,
        };
        let given = items.get(marker).and_then(Value::as_str);
        let default = (marker == "x-kubernetes-list-type").then_some("atomic");
        if given.or(default) != Some("atomic") {
            let bad = items.get("x-kubernetes-list-type").cloned();
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let at = join(path, "items");
            self.add(
                &at,
                marker,
                InvalidKind::Invalid,
                bad.unwrap_or_default(),
                detail,
            );
        }
    }

    fn keyed_items(&mut self, items: Option<&Map<String, Value>>, keys: &[&str], path: &str) {
        const KEYS: &str = "x-kubernetes-list-map-keys";
        let Some(items) = items else {
            let detail = "must have a schema if x-kubernetes-list-type is map";
            return self.add(path, "items", InvalidKind::Required, "", detail);
        };
        let ty = text(items, "type");
        if ty != "object" {
            let detail = "must be object if parent array's x-kubernetes-list-type is map";
            return self.add(path, "items.type", InvalidKind::Invalid, ty, detail);
        }
        for (index, key) in keys.iter().enumerate() {
            let property =
                object(items, "properties").and_then(|properties| object(properties, key));
            match property {
                None => {
                    let detail = "entries must all be names of item properties";
                    self.add(path, KEYS, InvalidKind::Invalid, keys.to_vec(), detail);
                }
                Some(property) if matches!(text(property, "type"), "array" | "object") => {
                    let at = format!("items.properties[{key}].type");
                    let detail =
                        "must be a scalar type if parent array's x-kubernetes-list-type is map";
                    self.add(path, &at, InvalidKind::Invalid, ty, detail);
                }
                Some(_) => {}
            }
            if keys[..index].contains(key) {
                let detail = "must not contain duplicate entries";
                self.add(path, KEYS, InvalidKind::Invalid, keys.to_vec(), detail);
            }
        }
    }

    /// Items of sets and keyed lists have an identity, which null has not, nor who leaves out a key.
    fn identities(
        &mut self,
        items: &Map<String, Value>,
        list_type: &str,
        keys: &[&str],
        path: &str,
    ) {
        if flag(items, "nullable") {
            let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
            self.add(path, "items.nullable", InvalidKind::Forbidden, "", &detail);
        }
        if list_type != "map" {
            return;
        }
        let required = items.get("required").and_then(Value::as_array);
        for key in keys {
            let property =
                object(items, "properties").and_then(|properties| object(properties, key));
            let Some(property) = property else {
                continue;
            };
            let at = join(path, &format!("items.properties[{key}]"));
            let given = required.is_some_and(|names| names.iter().any(|name| name == key));
            if !given && property.get("default").is_none_or(Value::is_null) {
                let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                              property";
                self.add(&at, "default", InvalidKind::Required, "", detail);
            }
            if flag(property, "nullable") {
                let detail =
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.add(&at, "nullable", InvalidKind::Forbidden, "", detail);
            }
        }
    }
}

/// Every default of a schema must be one of its values. Maps are not followed: defaults may not stand there.
fn all_defaults(map: &Map<String, Value>, path: &str, resource: bool, found: &mut Vec<Invalid>) {
    defaults(map, path, found);
    if let Some(items) = object(map, "items") {
        all_defaults(items, &join(path, "items"), false, found);
    }
    for (name, property) in object(map, "properties").into_iter().flatten() {
        let of_resource = resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if let (Value::Object(property), false) = (property, of_resource) {
            let embedded = flag(property, "x-kubernetes-embedded-resource");
            let at = join(path, &format!("properties[{name}]"));
            all_defaults(property, &at, embedded, found);
        }
    }
}

/// A default must fit its own schema.
fn defaults(map: &Map<String, Value>, path: &str, found: &mut Vec<Invalid>) {
    let Some(default) = map.get("default").filter(|default| !default.is_null()) else {
        return;
    };
    let Ok(schema) = Schema::parse(&Value::Object(map.clone()), "", 0) else {
        return;
    };
    let at = join(path, "default");
    if has_unknown(default, &schema) {
        let detail = "must not have unknown fields";
        found.push(Invalid::new(
            InvalidKind::Invalid,
            at.as_str(),
            default.clone(),
            detail,
        ));
    }
    for invalid in validate_default(default, &schema) {
        let field = match invalid.field.as_str() {
            "" | "<nil>" => at.clone(),
            below if below.starts_with('[') => format!("{at}{below}"),
            below => join(&at, below),
        };
        found.push(Invalid { field, ..invalid });
    }
}

/// Whether pruning would take something away.
fn has_unknown(value: &Value, schema: &Schema) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| {
            let meta = schema.embedded_resource
                && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            match (schema.properties.get(name), &schema.additional) {
                _ if meta => false,
                (Some(schema), _) => has_unknown(value, schema),
                (None, Additional::Schema(schema)) => has_unknown(value, schema),
                (None, Additional::Any) => false,
                (None, Additional::None) => !schema.preserve_unknown,
            }
        }),
        Value::Array(list) => schema
            .items
            .as_ref()
            .is_some_and(|items| list.iter().any(|item| has_unknown(item, items))),
        _ => false,
    }
}
