//! The schema of a version: structure, values, rules.

use serde_json::{Map, Value};
use skep_schema::structural::{self, Invalid, InvalidKind};

use super::internal;
use crate::{
    custom::{self, path, rules::check, strategy::to_field_error},
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
    let faults = structural::check(schema, &forms);
    let faulty: Vec<String> = faults
        .found
        .iter()
        .map(|invalid| format!(".{}", invalid.field))
        .collect();
    for mut invalid in faults.found {
        invalid.field = match invalid.field.as_str() {
            "" => root.clone(),
            below => format!("{root}.{below}"),
        };
        invalid.detail = invalid.detail.replace("{root}", &root);
        errors.push(to_field_error(invalid));
    }
    if faults.structural && !unchanged {
        for problem in check::rules(schema, &faulty) {
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
    if !ty.is_empty() && ty != "object" {
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

/// What can be said about the rules of one schema without compiling them.
fn forms(schema: &Map<String, Value>, at: &str, found: &mut Vec<Invalid>) {
    let rules = schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let given = |name: &str| custom::text(rule, name);
        let mut add = |kind: InvalidKind, field: &str, detail: &str| {
            let place = format!("x-kubernetes-validations[{index}].{field}");
            let place = match at {
                "" => place,
                at => format!("{at}.{place}"),
            };
            found.push(Invalid::new(kind, place, given(field), detail));
        };
        let (text, message) = (given("rule").trim(), given("message").trim());
        let lines = |text: &str| text.contains(['\n', '\r']);
        if text.is_empty() {
            add(InvalidKind::Required, "rule", "rule is not specified");
        } else if !given("message").is_empty() && message.is_empty() {
            let detail = "message must be non-empty if specified";
            add(InvalidKind::Invalid, "message", detail);
        } else if lines(message) {
            let detail = "message must not contain line breaks";
            add(InvalidKind::Invalid, "message", detail);
        } else if lines(text) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            add(InvalidKind::Required, "message", detail);
        }
        if !given("messageExpression").is_empty() && given("messageExpression").trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            add(InvalidKind::Required, "messageExpression", detail);
        }
        if rule["reason"]
            .as_str()
            .is_some_and(|r| !REASONS.contains(&r))
        {
            let mut sorted = REASONS;
            sorted.sort_unstable();
            let all: Vec<String> = sorted.iter().map(|r| format!("{r:?}")).collect();
            let detail = format!("supported values: {}", all.join(", "));
            add(InvalidKind::NotSupported, "reason", &detail);
        }
        let field = given("fieldPath");
        if !field.is_empty() {
            if field.trim().is_empty() {
                let detail = "fieldPath must be non-empty if specified";
                add(InvalidKind::Invalid, "fieldPath", detail);
            }
            if lines(field) {
                let detail = "fieldPath must not contain line breaks";
                add(InvalidKind::Invalid, "fieldPath", detail);
            }
            if at_path(&Value::Object(schema.clone()), field).is_err() {
                let detail = "fieldPath must be a valid path";
                add(InvalidKind::Invalid, "fieldPath", detail);
            }
        }
    }
}

/// The schema at a path (`.spec.a`, `['odd.name']`) below another one.
///
/// # Errors
/// Upstream's words for a path that leads nowhere.
pub(super) fn at_path(schema: &Value, given: &str) -> Result<Value, String> {
    let Some(parts) = path::parts(given).filter(|parts| !parts.is_empty()) else {
        return Err("does not refer to a valid field".to_owned());
    };
    let mut at = schema.clone();
    for part in parts {
        let below = match (&at["properties"][&part], &at["additionalProperties"]) {
            (property @ Value::Object(_), _) => property.clone(),
            (_, values @ Value::Object(_)) => values.clone(),
            _ => return Err("does not refer to a valid field".to_owned()),
        };
        at = below;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        validate(&schema, false, true, &Path::new("schema"), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{schema}");
    }

    #[test]
    fn rules_are_compiled_where_nothing_else_is_wrong() {
        let rule = |rule: &str| json!([{"rule": rule}]);
        let place = |rules: Value| json!({"type": "integer", "x-kubernetes-validations": rules});
        check(
            json!({"type": "object", "x-kubernetes-validations": rule("self.c"), "properties": {
                "a": place(rule(" ")),
                "b": place(rule("self")),
                "c": place(json!([{"rule": "self > 1", "fieldPath": " .d"}])),
            }}),
            &[
                "schema.openAPIV3Schema.properties[a].x-kubernetes-validations[0].rule: Required value: rule is not specified",
                "schema.openAPIV3Schema.properties[c].x-kubernetes-validations[0].fieldPath: Invalid value: \" .d\": \
                 fieldPath must be a valid path",
                "schema.openAPIV3Schema.properties[b].x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self\"}: \
                 cel expression must evaluate to a bool",
            ],
        );
        check(
            json!({"type": "object", "properties": {"a": {"items": {}}, "b": place(rule("self"))}}),
            &[
                "schema.openAPIV3Schema.properties[a].items.type: Required value: must not be empty for specified array items",
                "schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
            ],
        );
    }

    #[test]
    fn a_root_with_a_status_of_its_own_is_an_object() {
        check(
            json!({"type": "string", "nullable": false, "oneOf": [{}]}),
            &[
                "schema.openAPIV3Schema.type: Invalid value: \"string\": only \"object\" is allowed as the type at the \
                 root of the schema if the status subresource is enabled",
                "schema.openAPIV3Schema.type: Invalid value: \"string\": must be object at the root",
            ],
        );
    }
}
