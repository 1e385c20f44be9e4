//! Formats that a schema names and nothing checks.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool as OrBool,
};

/// Of strings, without dashes.
const KNOWN: [&str; 27] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "quantity",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// What is the same in all versions is listed once: upstream keeps it once.
pub(super) fn unrecognized(definition: &CustomResourceDefinition) -> Vec<String> {
    let schemas = definition.spec.versions.iter().map(|version| {
        let schema = version.schema.as_ref();
        schema.and_then(|schema| schema.open_api_v3_schema.as_ref())
    });
    let mut schemas: Vec<_> = schemas.collect();
    if schemas.iter().all(|schema| *schema == schemas[0]) {
        schemas.truncate(1);
    }
    let mut found = Vec::new();
    for schema in schemas.into_iter().flatten() {
        collect(schema, &mut found);
    }
    found
}

fn collect(schema: &JSONSchemaProps, found: &mut Vec<String>) {
    let format = schema.format.as_deref().unwrap_or_default();
    if !format.is_empty() && !is_known(schema.type_.as_deref().unwrap_or_default(), format) {
        found.push(format.to_owned());
    }
    let mut below: Vec<&JSONSchemaProps> = Vec::new();
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => below.push(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => below.extend(items),
        None => {}
    }
    for list in [&schema.all_of, &schema.any_of, &schema.one_of] {
        below.extend(list.iter().flatten());
    }
    below.extend(schema.not.as_deref());
    below.extend(schema.properties.iter().flatten().map(|(_, one)| one));
    for values in [&schema.additional_properties, &schema.additional_items] {
        if let Some(OrBool::Schema(values)) = values {
            below.push(values);
        }
    }
    for schema in below {
        collect(schema, found);
    }
}

fn is_known(type_: &str, format: &str) -> bool {
    match type_ {
        "" | "string" => KNOWN.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_types() {
        for (type_, format, known) in [
            ("string", "date-time", true),
            ("string", "int32", false),
            ("integer", "int32", true),
            ("number", "int32", false),
            ("object", "uri", false),
            ("", "k8s-short-name", true),
        ] {
            assert_eq!(is_known(type_, format), known, "{type_} {format}");
        }
    }
}
