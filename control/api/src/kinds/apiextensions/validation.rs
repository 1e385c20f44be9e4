//! Whether a definition can be served (apiextensions `validation.go`).
//!
//! Upstream validates its internal form, in which what is the same in all versions stands once at the top: fields of
//! errors are those (`spec.validation.openAPIV3Schema`).

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceConversion, CustomResourceDefinition,
    CustomResourceDefinitionNames, CustomResourceDefinitionSpec, CustomResourceDefinitionVersion,
    CustomResourceSubresources, SelectableField,
};
use serde_json::Value;

use super::{each, internal, schema};
use crate::{
    custom::{
        self,
        names::{APPROVED_ANNOTATION, Approval, approval, is_protected},
    },
    field::{Bad, Errors, Path},
    validation::{
        text,
        webhooks::{validate_webhook_service, validate_webhook_url},
    },
};

/// Selectable fields a version may have.
const MAX_SELECTABLE_FIELDS: usize = 8;
const MAX_DEPRECATION_WARNING_BYTES: usize = 256;

pub(super) fn definition(
    new: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    errors: &mut Errors,
) {
    let metadata = Path::new("metadata");
    let spec_path = Path::new("spec");
    let spec = &new.spec;
    if old.is_none() {
        let name = new.metadata.name.as_deref().unwrap_or_default();
        if name != format!("{}.{}", spec.names.plural, spec.group) {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            errors.invalid(&metadata.child("name"), name, detail);
        }
    }
    let established = old.is_some_and(is_established);
    validate_spec(spec, old.map(|old| &old.spec), &spec_path, errors);
    if let Some(conversion) = &spec.conversion {
        // One that is not served yet, or was let in with a bad one before, may have a bad one.
        let trusted = old.filter(|_| established).is_some_and(|old| {
            let bundle = old.spec.conversion.as_ref().and_then(bundle_of);
            bundle.is_none_or(|bundle| bundle_problem(bundle).is_none())
        });
        validate_conversion(conversion, trusted, &spec_path.child("conversion"), errors);
    }
    if let Some(old) = old {
        let (names, old) = (&spec.names, &old.spec);
        let names_path = spec_path.child("names");
        if established {
            errors.immutable(&spec_path.child("scope"), &spec.scope, &old.scope);
            errors.immutable(&names_path.child("kind"), &names.kind, &old.names.kind);
        }
        errors.immutable(&spec_path.child("group"), &spec.group, &old.group);
        errors.immutable(
            &names_path.child("plural"),
            &names.plural,
            &old.names.plural,
        );
    }
    status(new, errors);
    stored_versions(new, errors);
    validate_approval(new, old, &metadata, errors);
    let preserves =
        |spec: &CustomResourceDefinitionSpec| spec.preserve_unknown_fields == Some(true);
    if preserves(spec) && !old.is_some_and(|old| preserves(&old.spec)) {
        errors.invalid(
            &spec_path.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
}

/// Of any write, through `/status` too.
pub(super) fn status(new: &CustomResourceDefinition, errors: &mut Errors) {
    let status = new.status.as_ref();
    if let Some(accepted) = status.and_then(|status| status.accepted_names.as_ref()) {
        validate_names(accepted, &Path::new("status.acceptedNames"), errors);
    }
}

fn stored_versions(new: &CustomResourceDefinition, errors: &mut Errors) {
    let path = Path::new("status");
    let status = new.status.as_ref();
    let stored = status
        .and_then(|status| status.stored_versions.as_deref())
        .unwrap_or_default();
    validate_stored_versions(
        stored,
        &new.spec.versions,
        &path.child("storedVersions"),
        errors,
    );
}

fn validate_stored_versions(
    stored: &[String],
    versions: &[CustomResourceDefinitionVersion],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if stored.is_empty() {
        errors.invalid(path, None::<&str>, "must have at least one stored version");
        return;
    }
    let mut left: Vec<(usize, &String)> = stored.iter().enumerate().collect();
    for version in versions {
        let known = left.iter().any(|(_, name)| **name == version.name);
        if version.storage && !known {
            let detail = format!("must have the storage version {}", version.name);
            errors.invalid(path, Bad::json(&stored), detail);
        }
        left.retain(|(_, name)| **name != version.name);
    }
    for (at, name) in left {
        let detail = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until \
             a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.invalid(&path.index(at), name, detail);
    }
}

fn validate_approval(
    new: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    metadata: &Path<'_>,
    errors: &mut Errors,
) {
    if !is_protected(&new.spec.group) {
        return;
    }
    let said = |definition: &CustomResourceDefinition| -> String {
        let annotations = definition.metadata.annotations.as_ref();
        let found = annotations.and_then(|all| all.get(APPROVED_ANNOTATION));
        found.cloned().unwrap_or_default()
    };
    let given = said(new);
    let (state, reason) = approval(&given);
    if old.is_some_and(|old| approval(&said(old)).0 == state) {
        return;
    }
    let annotations = metadata.child("annotations");
    let at = annotations.key(APPROVED_ANNOTATION);
    match state {
        Approval::Invalid => errors.invalid(&at, given.as_str(), reason),
        Approval::Missing => errors.required(&at, reason),
        Approval::Approved | Approval::Bypassed => {}
    }
}

/// What all versions have in common, which upstream's internal form keeps at the top.
struct Shared {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Shared {
    fn of(versions: &[CustomResourceDefinitionVersion]) -> Self {
        let same = |part: fn(&CustomResourceDefinitionVersion) -> Value| {
            let mut parts = versions.iter().map(part);
            let first = parts.next();
            parts.all(|part| Some(&part) == first.as_ref())
        };
        let mut shared = Self {
            schema: same(|v| serde_json::to_value(&v.schema).unwrap_or_default()),
            subresources: same(|v| serde_json::to_value(&v.subresources).unwrap_or_default()),
            columns: same(|v| {
                serde_json::to_value(&v.additional_printer_columns).unwrap_or_default()
            }),
            selectable: false,
        };
        // Selectable fields are never parted from the schema that they point into.
        shared.selectable = shared.schema
            && same(|v| serde_json::to_value(&v.selectable_fields).unwrap_or_default());
        shared
    }
}

fn validate_spec(
    spec: &CustomResourceDefinitionSpec,
    old: Option<&CustomResourceDefinitionSpec>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let group = path.child("group");
    if spec.group.is_empty() {
        errors.required(&group, "");
    } else {
        let messages = text::dns1123_subdomain(&spec.group);
        if !messages.is_empty() {
            each(&group, &spec.group, messages, "", errors);
        } else if !spec.group.contains('.') {
            errors.invalid(
                &group,
                spec.group.as_str(),
                "should be a domain with at least one dot",
            );
        }
    }
    let scopes = ["Cluster", "Namespaced"];
    one_of(&spec.scope, &scopes, &path.child("scope"), errors);

    let versions = &spec.versions;
    let versions_path = path.child("versions");
    let shared = Shared::of(versions);
    for (at, version) in versions.iter().enumerate() {
        if schema_of(version).is_none() {
            let at = versions_path.index(at);
            let at = at.child("schema");
            errors.required(&at.child("openAPIV3Schema"), "");
        }
    }
    let preserves = spec.preserve_unknown_fields == Some(true);
    let mut schemas = versions.iter().filter_map(schema_of);
    if preserves && schemas.any(|schema| schema::has_default(&schema)) {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid(&path.child("preserveUnknownFields"), true, detail);
    }
    let has_schema = |name: &str, schema: &Value| {
        let old = old?.versions.iter().find(|v| v.name == name)?;
        (schema_of(old)? == *schema).then_some(())
    };
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for (at, version) in versions.iter().enumerate() {
        unique &= seen.insert(version.name.as_str());
        let at = versions_path.index(at);
        let messages = text::dns1035_label(&version.name);
        each(&at.child("name"), &version.name, messages, "", errors);
        deprecation(version, &at.child("deprecationWarning"), errors);
        if !shared.schema
            && let Some(schema) = schema_of(version)
        {
            let unchanged = has_schema(&version.name, &schema).is_some();
            let at = at.child("schema");
            schema::validate(&schema, unchanged, has_status(version), &at, errors);
        }
        if !shared.subresources
            && let Some(subresources) = &version.subresources
        {
            validate_subresources(subresources, &at.child("subresources"), errors);
        }
        if !shared.columns {
            let columns = version.additional_printer_columns.as_deref();
            validate_columns(
                columns.unwrap_or_default(),
                &at.child("additionalPrinterColumns"),
                errors,
            );
        }
        if !shared.selectable {
            let fields = version.selectable_fields.as_deref().unwrap_or_default();
            let at = at.child("selectableFields");
            match schema_of(version).filter(|_| !shared.schema) {
                Some(schema) => validate_selectable(fields, &schema, &at, errors),
                None if fields.is_empty() => {}
                None => {
                    // Upstream's words say the contrary of what they mean.
                    let detail = "selectableFields may only be set when version.schema.openAPIV3Schema is not included";
                    errors.invalid(&at, "", detail);
                }
            }
        }
    }
    let shown = || Bad::shown(internal::versions(versions, shared.schema));
    if !unique {
        errors.invalid(&versions_path, shown(), "must contain unique version names");
    }
    if versions.iter().filter(|version| version.storage).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid(&versions_path, shown(), detail);
    }
    // The internal form repeats the first version's name at the top.
    if let Some(first) = versions.first().filter(|first| !first.name.is_empty()) {
        let messages = text::dns1035_label(&first.name);
        each(&path.child("version"), &first.name, messages, "", errors);
    }

    let names = path.child("names");
    let option = |text: &Option<String>| text.clone().unwrap_or_default();
    for (field, value) in [
        ("plural", spec.names.plural.clone()),
        ("singular", option(&spec.names.singular)),
        ("kind", spec.names.kind.clone()),
        ("listKind", option(&spec.names.list_kind)),
    ] {
        if value.is_empty() {
            errors.required(&names.child(field), "");
        }
    }
    validate_names(&spec.names, &names, errors);

    if let Some(first) = versions.first() {
        if shared.schema
            && let Some(schema) = schema_of(first)
        {
            let unchanged = versions
                .iter()
                .all(|version| has_schema(&version.name, &schema).is_some());
            let status = versions.iter().any(has_status);
            schema::validate(
                &schema,
                unchanged,
                status,
                &path.child("validation"),
                errors,
            );
        }
        if shared.subresources
            && let Some(subresources) = &first.subresources
        {
            validate_subresources(subresources, &path.child("subresources"), errors);
        }
        if shared.columns {
            validate_columns(
                first
                    .additional_printer_columns
                    .as_deref()
                    .unwrap_or_default(),
                &path.child("additionalPrinterColumns"),
                errors,
            );
        }
        if shared.selectable {
            let fields = first.selectable_fields.as_deref().unwrap_or_default();
            let at = path.child("selectableFields");
            match schema_of(first) {
                Some(schema) => validate_selectable(fields, &schema, &at, errors),
                None if fields.is_empty() => {}
                None => {
                    let detail =
                        "selectableFields may only be set when validations.schema is included";
                    errors.invalid(&at, "", detail);
                }
            }
        }
    }
    let strategy = spec.conversion.as_ref().map(|one| one.strategy.as_str());
    if let (true, Some(strategy)) = (preserves, strategy.filter(|one| *one != "None")) {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&path.child("conversion.strategy"), strategy, detail);
    }
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let status = definition.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|one| one.type_ == "Established" && one.status == "True")
}

fn schema_of(version: &CustomResourceDefinitionVersion) -> Option<Value> {
    let schema = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    serde_json::to_value(schema).ok()
}

fn has_status(version: &CustomResourceDefinitionVersion) -> bool {
    let subresources = version.subresources.as_ref();
    subresources.is_some_and(|subresources| subresources.status.is_some())
}

fn one_of(value: &str, accepted: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, "");
    } else if !accepted.contains(&value) {
        errors.not_supported(path, value, accepted);
    }
}

fn deprecation(version: &CustomResourceDefinitionVersion, path: &Path<'_>, errors: &mut Errors) {
    let Some(warning) = version.deprecation_warning.as_deref() else {
        return;
    };
    let mut fail = |detail: String| errors.invalid(path, warning, detail);
    if version.deprecated != Some(true) {
        fail("can only be set for deprecated versions".to_owned());
        return;
    }
    if warning.len() > MAX_DEPRECATION_WARNING_BYTES {
        fail(format!(
            "must be <= {MAX_DEPRECATION_WARNING_BYTES} characters long"
        ));
    }
    if warning.is_empty() {
        fail("must not be an empty string".to_owned());
    }
    let printable = |c: char| c == ' ' || !format!("{:?}", format!("a{c}")).contains("\\u{");
    if let Some((at, _)) = warning
        .char_indices()
        .find(|(_, c)| c.is_control() || !printable(*c))
    {
        fail(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

fn validate_names(names: &CustomResourceDefinitionNames, path: &Path<'_>, errors: &mut Errors) {
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    let label = |field: &str, name: &str, errors: &mut Errors| {
        if !name.is_empty() {
            each(
                &path.child(field),
                name,
                text::dns1035_label(name),
                "",
                errors,
            );
        }
    };
    let kind = |field: &str, name: &str, errors: &mut Errors| {
        if !name.is_empty() {
            let messages = text::dns1035_label(&name.to_lowercase());
            each(&path.child(field), name, messages, MIXED, errors);
        }
    };
    let list_kind = names.list_kind.as_deref().unwrap_or_default();
    label("plural", &names.plural, errors);
    label(
        "singular",
        names.singular.as_deref().unwrap_or_default(),
        errors,
    );
    kind("kind", &names.kind, errors);
    kind("listKind", list_kind, errors);
    let labels = |field: &str, all: &Option<Vec<String>>, errors: &mut Errors| {
        let field = path.child(field);
        for (at, name) in all.iter().flatten().enumerate() {
            each(
                &field.index(at),
                name,
                text::dns1035_label(name),
                "",
                errors,
            );
        }
    };
    labels("shortNames", &names.short_names, errors);
    if !names.kind.is_empty() && names.kind == list_kind {
        let detail = "kind and listKind may not be the same";
        errors.invalid(&path.child("listKind"), list_kind, detail);
    }
    labels("categories", &names.categories, errors);
}

fn simple_path(given: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    if given.is_empty() {
        errors.invalid(path, given, "must not be empty");
    } else if !given.starts_with('.') {
        errors.invalid(path, given, "must be a simple json path starting with .");
    } else {
        return true;
    }
    false
}

fn validate_subresources(
    subresources: &CustomResourceSubresources,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(scale) = &subresources.scale else {
        return;
    };
    let mut below = |field: &str, given: &str, root: &str| {
        let at = path.child(field);
        if given.is_empty() {
            errors.required(&at, "");
        } else if simple_path(given, &at, errors) && !given.starts_with(&format!("{root}.")) {
            errors.invalid(&at, given, format!("should be a json path under {root}"));
        }
    };
    below("scale.specReplicasPath", &scale.spec_replicas_path, ".spec");
    below(
        "scale.statusReplicasPath",
        &scale.status_replicas_path,
        ".status",
    );
    if let Some(selector) = scale
        .label_selector_path
        .as_deref()
        .filter(|p| !p.is_empty())
    {
        let at = path.child("scale.labelSelectorPath");
        if simple_path(selector, &at, errors)
            && !selector.starts_with(".spec.")
            && !selector.starts_with(".status.")
        {
            let detail = "should be a json path under either .spec or .status";
            errors.invalid(&at, selector, detail);
        }
    }
}

fn validate_columns(
    columns: &[CustomResourceColumnDefinition],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = [
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "password",
    ];
    for (at, column) in columns.iter().enumerate() {
        let at = path.index(at);
        if column.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        let types = format!("must be one of {}", TYPES.join(","));
        if column.type_.is_empty() {
            errors.required(&at.child("type"), types);
        } else if !TYPES.contains(&column.type_.as_str()) {
            errors.invalid(&at.child("type"), column.type_.as_str(), types);
        }
        let format = column.format.as_deref().unwrap_or_default();
        if !format.is_empty() && !FORMATS.contains(&format) {
            let detail = format!("must be one of {}", FORMATS.join(","));
            errors.invalid(&at.child("format"), format, detail);
        }
        if column.json_path.is_empty() {
            errors.required(&at.child("JSONPath"), "");
        } else {
            simple_path(&column.json_path, &at.child("JSONPath"), errors);
        }
    }
}

fn validate_selectable(
    fields: &[SelectableField],
    schema: &Value,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut seen = BTreeSet::new();
    for (at, field) in fields.iter().enumerate() {
        let at = path.index(at);
        let at = at.child("jsonPath");
        let given = field.json_path.as_str();
        if given.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let (normal, found) = match custom::path::resolve(schema, given, false) {
            Ok(found) => found,
            Err(problem) => {
                errors.invalid(&at, given, format!("is an invalid path: {problem}"));
                continue;
            }
        };
        if normal == "metadata" || normal.starts_with("metadata.") {
            errors.invalid(&at, given, "must not point to fields in metadata");
        }
        if !["string", "boolean", "integer"].contains(&custom::text(found, "type")) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                          formats are allowed.";
            errors.invalid(&at, given, detail);
        }
        if !seen.insert(normal) {
            errors.duplicate(&at, given);
        }
    }
    if seen.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(path, seen.len(), MAX_SELECTABLE_FIELDS);
    }
}

/// `trusted`: the certificates must be good.
fn validate_conversion(
    conversion: &CustomResourceConversion,
    trusted: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let strategies = ["None", "Webhook"];
    one_of(
        &conversion.strategy,
        &strategies,
        &path.child("strategy"),
        errors,
    );
    let client = conversion
        .webhook
        .as_ref()
        .and_then(|w| w.client_config.as_ref());
    let versions = conversion
        .webhook
        .as_ref()
        .map(|webhook| webhook.conversion_review_versions.as_slice())
        .unwrap_or_default();
    let client_path = path.child("webhookClientConfig");
    let versions_path = path.child("conversionReviewVersions");
    if conversion.strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.forbidden(&client_path, detail);
        }
        if !versions.is_empty() {
            errors.forbidden(&versions_path, detail);
        }
        return;
    }
    match client {
        None => errors.required(&client_path, "required when strategy is set to Webhook"),
        Some(client) => {
            match (&client.url, &client.service) {
                (Some(url), None) => {
                    validate_webhook_url(url, &client_path.child("url"), errors);
                }
                (None, Some(service)) => validate_webhook_service(
                    &service.name,
                    &service.namespace,
                    service.path.as_deref(),
                    service.port.unwrap_or(443),
                    &client_path.child("service"),
                    errors,
                ),
                _ => errors.required(&client_path, "exactly one of url or service is required"),
            }
            let bundle = bundle_of(conversion).filter(|_| trusted);
            if let Some(bundle) = bundle
                && let Some(problem) = bundle_problem(bundle)
            {
                let shown = BASE64_STANDARD.encode(bundle);
                errors.invalid(&client_path.child("caBundle"), shown, problem);
            }
        }
    }
    review_versions(versions, &versions_path, errors);
}

fn bundle_of(conversion: &CustomResourceConversion) -> Option<&[u8]> {
    let client = conversion.webhook.as_ref()?.client_config.as_ref()?;
    let bundle = client.ca_bundle.as_ref()?;
    Some(bundle.0.as_slice()).filter(|bundle| !bundle.is_empty())
}

fn bundle_problem(bundle: &[u8]) -> Option<&'static str> {
    let mut certificates = x509_parser::pem::Pem::iter_from_buffer(bundle)
        .filter_map(Result::ok)
        .filter(|pem| pem.label == "CERTIFICATE")
        .peekable();
    if certificates.peek().is_none() {
        Some("unable to load root certificates: unable to parse bytes as PEM block")
    } else if certificates.any(|pem| pem.parse_x509().is_err()) {
        Some("unable to load root certificates: failed to parse certificate")
    } else {
        None
    }
}

fn review_versions(versions: &[String], path: &Path<'_>, errors: &mut Errors) {
    const KNOWN: [&str; 2] = ["v1", "v1beta1"];
    if versions.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut seen = BTreeSet::new();
    for (at, version) in versions.iter().enumerate() {
        let at = path.index(at);
        if !seen.insert(version.as_str()) {
            errors.invalid(&at, version.as_str(), "duplicate version");
            continue;
        }
        errors.invalid_each(&at, version, text::dns1035_label(version));
    }
    if !versions
        .iter()
        .any(|version| KNOWN.contains(&version.as_str()))
    {
        let detail = format!("must include at least one of {}", KNOWN.join(", "));
        errors.invalid(path, Bad::json(&versions), detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Value), expected: &[&str]) {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"a": {"type": "string"}}}}});
        let mut object = json!({
            "metadata": {"name": "ws.e.io"},
            "spec": {
                "group": "e.io", "scope": "Cluster",
                "names": {"plural": "ws", "singular": "w", "kind": "W", "listKind": "WList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
            "status": {"storedVersions": ["v1"]},
        });
        change(&mut object);
        let definition: CustomResourceDefinition =
            serde_json::from_value(object).expect("a definition");
        let mut errors = Errors::default();
        super::definition(&definition, None, &mut errors);
        let texts: Vec<String> = errors
            .0
            .iter()
            .map(|error| format!("{}: {}", error.field, error.detail))
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn definitions() {
        const ARRAY: &str =
            "spec.selectableFields[0].jsonPath: is an invalid path: array notation is not allowed";
        const LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                             alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
                             'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
        let version = |object: &mut Value| object["spec"]["versions"][0].take();
        check(|_| {}, &[]);
        check(
            |object| {
                object["spec"]["versions"][0]["name"] = json!("1");
                object["status"]["storedVersions"] = json!(["1"]);
            },
            &[
                &format!("spec.versions[0].name: {LABEL}"),
                &format!("spec.version: {LABEL}"),
            ],
        );
        check(
            |object| {
                object["spec"]["versions"][0]["selectableFields"] =
                    json!([{"jsonPath": ".spec['a']"}]);
            },
            &[ARRAY],
        );
        // The schema is the same in both versions and stands at the top, the fields do not.
        check(
            |object| {
                let mut first = version(object);
                let mut second = first.clone();
                second["name"] = json!("v2");
                second["storage"] = json!(false);
                first["selectableFields"] = json!([{"jsonPath": ".spec.a"}]);
                object["spec"]["versions"] = json!([first, second]);
            },
            &[
                "spec.versions[0].selectableFields: selectableFields may only be set when version.schema.openAPIV3Schema \
                 is not included",
            ],
        );
        // Only the first thing that may not stand beside a status.
        check(
            |object| {
                let version = &mut object["spec"]["versions"][0];
                version["subresources"] = json!({"status": {}});
                version["schema"]["openAPIV3Schema"]["type"] = json!("array");
                version["schema"]["openAPIV3Schema"]["maxProperties"] = json!(1);
            },
            &[
                "spec.validation.openAPIV3Schema.type: only \"object\" is allowed as the type at the root of the schema if \
                 the status subresource is enabled",
                "spec.validation.openAPIV3Schema.items: must be specified",
                "spec.validation.openAPIV3Schema.type: must be object at the root",
            ],
        );
        // A default that breaks the rule of its place.
        check(
            |object| {
                object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
                    ["properties"]["a"] = json!({
                    "type": "string", "default": "x", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self != 'x'"}]});
            },
            &[
                "spec.validation.openAPIV3Schema.properties[spec].properties[a].default: failed rule: self != 'x'",
            ],
        );
        // Of a rule with a bad message, nothing is compiled.
        check(
            |object| {
                object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
                    json!([{"rule": "nothing.like", "message": " "}]);
            },
            &[
                "spec.validation.openAPIV3Schema.x-kubernetes-validations[0].message: message must be non-empty if \
                 specified",
            ],
        );
    }
}
