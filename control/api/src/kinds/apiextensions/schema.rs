//! The schema of a version: structure, values, rules.

use serde_json::Value;
use skep_schema::structural;

use super::internal;
use crate::{
    custom::{
        self, list, path,
        rules::{Rules, check},
        strategy::to_field_error,
    },
    field::{Bad, Errors, FieldError, FieldErrorKind, Path},
};

/// `unchanged`: the same schema stood in the definition before, whose rules need not be checked again.
/// `status`: the status subresource is on.
pub(super) fn validate(
    schema: &Value,
    unchanged: bool,
    status: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("openAPIV3Schema");
    let root = at.to_string();
    if status {
        with_status(schema, &at, errors);
    }
    let found = structural::check(schema);
    let mut broken = Vec::new();
    for mut invalid in found.invalid {
        broken.push(format!(".{}", invalid.field));
        invalid.field = match invalid.field.as_str() {
            "" => root.clone(),
            below => format!("{root}.{below}"),
        };
        invalid.detail = invalid.detail.replace("{root}", &root);
        errors.push(to_field_error(invalid));
    }
    let mut formal = Errors::default();
    forms(schema, &root, &mut formal);
    broken.extend(formal.0.iter().map(|error| {
        let below = error.field.strip_prefix(&root);
        below.unwrap_or_default().to_owned()
    }));
    errors.0.append(&mut formal.0);
    let mut sound_defaults = true;
    if found.structural {
        let before = errors.0.len();
        default_rules(schema, &root, errors);
        sound_defaults = errors.0.len() == before;
    }
    if found.structural && sound_defaults && !unchanged {
        // Rules are compiled where nothing else is wrong at their place or below it.
        let sound = |at: &str| {
            let below = |error: &String| {
                let rest = error.strip_prefix(at);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            !broken.iter().any(below)
        };
        for problem in check::rules(schema, &sound) {
            let field = format!("{root}{}", problem.field);
            let bad = match &problem.bad {
                check::Bad::None => Bad::omitted(),
                check::Bad::Rule(rule) => Bad::shown(internal::rule(rule)),
                check::Bad::Value(value) => Bad::from(value.clone()),
            };
            let kind = match problem.kind {
                check::Kind::Invalid => FieldErrorKind::Invalid,
                check::Kind::Forbidden => FieldErrorKind::Forbidden,
            };
            let detail = problem.detail.replace("{root}", &root);
            errors.push(FieldError::new(kind, field, bad, detail));
        }
    }
}

/// The status is validated by its own part of the schema, so that the root may say nothing about it.
fn with_status(schema: &Value, at: &Path<'_>, errors: &mut Errors) {
    const ALLOWED: [(&str, &str); 22] = [
        ("description", "Description"),
        ("type", "Type"),
        ("format", "Format"),
        ("title", "Title"),
        ("maximum", "Maximum"),
        ("exclusiveMaximum", "ExclusiveMaximum"),
        ("minimum", "Minimum"),
        ("exclusiveMinimum", "ExclusiveMinimum"),
        ("maxLength", "MaxLength"),
        ("minLength", "MinLength"),
        ("pattern", "Pattern"),
        ("maxItems", "MaxItems"),
        ("minItems", "MinItems"),
        ("uniqueItems", "UniqueItems"),
        ("multipleOf", "MultipleOf"),
        ("required", "Required"),
        ("items", "Items"),
        ("properties", "Properties"),
        ("externalDocs", "ExternalDocs"),
        ("example", "Example"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "XPreserveUnknownFields",
        ),
        ("x-kubernetes-validations", "XValidations"),
    ];
    let ty = custom::text(schema, "type");
    // Only the first field that may not stand there is told, in the order of upstream's struct.
    let before = ["id", "$schema", "$ref"];
    let first = |name: &&str| !custom::text(schema, name).is_empty();
    if !ty.is_empty() && ty != "object" && !before.iter().any(first) {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&at.child("type"), ty, detail);
        return;
    }
    let other = schema
        .as_object()
        .into_iter()
        .flatten()
        .any(|(name, value)| {
            let zero = value.is_null() || *value == Value::Bool(false);
            !zero && !ALLOWED.iter().any(|(allowed, _)| allowed == name)
        });
    if other {
        let names: Vec<&str> = ALLOWED.iter().map(|(_, name)| *name).collect();
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.invalid(at, Bad::shown(internal::props(schema)), detail);
    }
}

const REASONS: [&str; 4] = [
    "FieldValueRequired",
    "FieldValueInvalid",
    "FieldValueForbidden",
    "FieldValueDuplicate",
];

/// A default keeps the rules of its place.
fn default_rules(schema: &Value, at: &str, errors: &mut Errors) {
    let default = &schema["default"];
    if !default.is_null() {
        let rules = Rules::of_part(schema);
        rules.validate_default(default, &format!("{at}.default"), errors);
    }
    if schema["items"].is_object() {
        default_rules(&schema["items"], &format!("{at}.items"), errors);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        default_rules(property, &format!("{at}.properties[{name}]"), errors);
    }
}

/// Whether some part of a schema has a default.
pub(super) fn has_default(schema: &Value) -> bool {
    let named = |value: &Value| {
        value
            .as_object()
            .is_some_and(|all| all.values().any(has_default))
    };
    match schema {
        Value::Object(map) => map.iter().any(|(name, value)| match name.as_str() {
            "default" => !value.is_null(),
            "properties" => named(value),
            "enum" | "example" => false,
            _ => has_default(value),
        }),
        Value::Array(list) => list.iter().any(has_default),
        _ => false,
    }
}

/// What can be said about rules without compiling them.
fn forms(schema: &Value, at: &str, errors: &mut Errors) {
    if schema["additionalProperties"].is_object() {
        let below = format!("{at}.additionalProperties");
        forms(&schema["additionalProperties"], &below, errors);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        forms(property, &format!("{at}.properties[{name}]"), errors);
    }
    if schema["items"].is_object() {
        forms(&schema["items"], &format!("{at}.items"), errors);
    }
    for (index, rule) in list(&schema["x-kubernetes-validations"]).enumerate() {
        let place = |field: &str| format!("{at}.x-kubernetes-validations[{index}].{field}");
        let given = |name: &str| custom::text(rule, name);
        let mut add = |kind: FieldErrorKind, field: &str, detail: String| {
            let bad = given(field).to_owned();
            errors.push(FieldError::new(kind, place(field), bad, detail));
        };
        let (text, message) = (given("rule").trim(), given("message").trim());
        let lines = |text: &str| text.contains(['\n', '\r']);
        if text.is_empty() {
            add(
                FieldErrorKind::Required,
                "rule",
                "rule is not specified".into(),
            );
        } else if !given("message").is_empty() && message.is_empty() {
            let detail = "message must be non-empty if specified";
            add(FieldErrorKind::Invalid, "message", detail.into());
        } else if lines(message) {
            let detail = "message must not contain line breaks";
            add(FieldErrorKind::Invalid, "message", detail.into());
        } else if lines(text) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            add(FieldErrorKind::Required, "message", detail.into());
        }
        if !given("messageExpression").is_empty() && given("messageExpression").trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            add(FieldErrorKind::Required, "messageExpression", detail.into());
        }
        if rule["reason"]
            .as_str()
            .is_some_and(|r| !REASONS.contains(&r))
        {
            let mut sorted = REASONS;
            sorted.sort_unstable();
            let all: Vec<String> = sorted.iter().map(|r| format!("{r:?}")).collect();
            let detail = format!("supported values: {}", all.join(", "));
            add(FieldErrorKind::NotSupported, "reason", detail);
        }
        let field = given("fieldPath");
        if !field.is_empty() {
            if field.trim().is_empty() {
                let detail = "fieldPath must be non-empty if specified";
                add(FieldErrorKind::Invalid, "fieldPath", detail.into());
            }
            if lines(field) {
                let detail = "fieldPath must not contain line breaks";
                add(FieldErrorKind::Invalid, "fieldPath", detail.into());
            }
            if path::resolve(schema, field, true).is_err() {
                let detail = "fieldPath must be a valid path";
                add(FieldErrorKind::Invalid, "fieldPath", detail.into());
            }
        }
    }
}
