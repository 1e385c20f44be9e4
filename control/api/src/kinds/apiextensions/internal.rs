//! Versions of a definition as upstream's internal form prints them in errors: Go's field names, every field.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion;
use serde::Serialize;
use serde_json::{Value, value::RawValue};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version<'a> {
    name: &'a str,
    served: bool,
    storage: bool,
    deprecated: bool,
    deprecation_warning: Option<&'a str>,
    schema: Option<Schema>,
    subresources: Option<Box<RawValue>>,
    additional_printer_columns: Option<Box<RawValue>>,
    selectable_fields: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Schema {
    #[serde(rename = "OpenAPIV3Schema")]
    openapi: Box<RawValue>,
}

/// `shared`: the schema is the same in all versions, and stands elsewhere in the internal form.
pub(super) fn versions(versions: &[CustomResourceDefinitionVersion], shared: bool) -> String {
    let shown = versions.iter().map(|version| Version {
        name: &version.name,
        served: version.served,
        storage: version.storage,
        deprecated: version.deprecated == Some(true),
        deprecation_warning: version.deprecation_warning.as_deref(),
        schema: version
            .schema
            .as_ref()
            .and_then(|schema| schema.open_api_v3_schema.as_ref())
            .filter(|_| !shared)
            .and_then(|schema| {
                let value = serde_json::to_value(schema).ok()?;
                let openapi = RawValue::from_string(props(&value)).ok()?;
                Some(Schema { openapi })
            }),
        subresources: None,
        additional_printer_columns: None,
        selectable_fields: None,
    });
    serde_json::to_string(&shown.collect::<Vec<_>>()).unwrap_or_default()
}

/// A rule of `x-kubernetes-validations`.
pub(super) fn rule(rule: &Value) -> String {
    let text = |name: &str| Value::from(rule[name].as_str().unwrap_or_default());
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        escaped(&text("rule")),
        escaped(&text("message")),
        escaped(&text("messageExpression")),
        rule["reason"],
        escaped(&text("fieldPath")),
        rule["optionalOldSelf"],
    )
}

/// Go's encoder writes these as escapes.
fn escaped(value: &Value) -> String {
    value
        .to_string()
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}

/// `JSONSchemaProps`, all fields in the order of the struct.
pub(super) fn props(schema: &Value) -> String {
    enum Of {
        Text,
        Flag,
        Any,
        One,
        Many,
        Named,
        Items,
        OrBool,
        Rules,
    }
    use Of::{Any, Flag, Items, Many, Named, One, OrBool, Rules, Text};
    const FIELDS: [(&str, &str, Of); 44] = [
        ("ID", "id", Text),
        ("Schema", "$schema", Text),
        ("Ref", "$ref", Any),
        ("Description", "description", Text),
        ("Type", "type", Text),
        ("Nullable", "nullable", Flag),
        ("Format", "format", Text),
        ("Title", "title", Text),
        ("Default", "default", Any),
        ("Maximum", "maximum", Any),
        ("ExclusiveMaximum", "exclusiveMaximum", Flag),
        ("Minimum", "minimum", Any),
        ("ExclusiveMinimum", "exclusiveMinimum", Flag),
        ("MaxLength", "maxLength", Any),
        ("MinLength", "minLength", Any),
        ("Pattern", "pattern", Text),
        ("MaxItems", "maxItems", Any),
        ("MinItems", "minItems", Any),
        ("UniqueItems", "uniqueItems", Flag),
        ("MultipleOf", "multipleOf", Any),
        ("Enum", "enum", Any),
        ("MaxProperties", "maxProperties", Any),
        ("MinProperties", "minProperties", Any),
        ("Required", "required", Any),
        ("Items", "items", Items),
        ("AllOf", "allOf", Many),
        ("OneOf", "oneOf", Many),
        ("AnyOf", "anyOf", Many),
        ("Not", "not", One),
        ("Properties", "properties", Named),
        ("AdditionalProperties", "additionalProperties", OrBool),
        ("PatternProperties", "patternProperties", Named),
        ("Dependencies", "dependencies", Any),
        ("AdditionalItems", "additionalItems", OrBool),
        ("Definitions", "definitions", Named),
        ("ExternalDocs", "externalDocs", Any),
        ("Example", "example", Any),
        (
            "XPreserveUnknownFields",
            "x-kubernetes-preserve-unknown-fields",
            Any,
        ),
        ("XEmbeddedResource", "x-kubernetes-embedded-resource", Flag),
        ("XIntOrString", "x-kubernetes-int-or-string", Flag),
        ("XListMapKeys", "x-kubernetes-list-map-keys", Any),
        ("XListType", "x-kubernetes-list-type", Any),
        ("XMapType", "x-kubernetes-map-type", Any),
        ("XValidations", "x-kubernetes-validations", Rules),
    ];
    let field = |(name, source, of): &(&str, &str, Of)| {
        let value = schema.get(*source).unwrap_or(&Value::Null);
        let many = |render: fn(&Value) -> String| match value {
            Value::Array(list) => {
                let list: Vec<String> = list.iter().map(render).collect();
                format!("[{}]", list.join(","))
            }
            _ => "null".to_owned(),
        };
        let shown = match of {
            Text => escaped(&Value::from(value.as_str().unwrap_or_default())),
            Flag => (value == true).to_string(),
            Any => escaped(value),
            One if value.is_object() => props(value),
            One => "null".to_owned(),
            Many => many(props),
            Rules => many(rule),
            Named => match value {
                Value::Object(map) => {
                    let all: Vec<String> = map
                        .iter()
                        .map(|(name, below)| {
                            format!("{}:{}", escaped(&Value::from(name.as_str())), props(below))
                        })
                        .collect();
                    format!("{{{}}}", all.join(","))
                }
                _ => "null".to_owned(),
            },
            Items if value.is_object() => {
                format!("{{\"Schema\":{},\"JSONSchemas\":null}}", props(value))
            }
            Items => "null".to_owned(),
            OrBool => match value {
                Value::Object(_) => format!("{{\"Allows\":true,\"Schema\":{}}}", props(value)),
                Value::Bool(allows) => format!("{{\"Allows\":{allows},\"Schema\":null}}"),
                _ => "null".to_owned(),
            },
        };
        format!("\"{name}\":{shown}")
    };
    let fields: Vec<String> = FIELDS.iter().map(field).collect();
    format!("{{{}}}", fields.join(","))
}
