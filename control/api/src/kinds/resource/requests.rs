//! What a claim asks for: requests, constraints between them, configuration for drivers.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::resource::v1::{
        DeviceClaim, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceToleration,
        OpaqueDeviceConfiguration, ResourceClaimSpec,
    },
    apimachinery::pkg::runtime::RawExtension,
};
use serde_json::Value;
use skep_cel::{
    Program,
    check::{Type, check},
};

use super::{
    devices::{EFFECTS, validate_fully_qualified_name},
    validate_items, validate_set,
};
use crate::{
    field::{Bad, Errors, Path},
    validation::{labels::validate_label_name, text, volume_sources::validate_csi_driver_name},
    zero::{List, Text, fill},
};

const REQUESTS_LIMIT: usize = 32;
const CONSTRAINTS_LIMIT: usize = 32;
pub(super) const CONFIG_LIMIT: usize = 32;
pub(super) const SELECTORS_LIMIT: usize = 32;
const CHOICES_LIMIT: usize = 8;
const TOLERATIONS_LIMIT: usize = 16;
const EXPRESSION_LIMIT_BYTES: usize = 10 * 1024;
const PARAMETERS_LIMIT_BYTES: usize = 10 * 1024;

pub(super) fn set_claim_defaults(spec: &mut ResourceClaimSpec) {
    let Some(devices) = &mut spec.devices else {
        return;
    };
    for request in devices.requests.iter_mut().flatten() {
        if let Some(exactly) = &mut request.exactly {
            fill(&mut exactly.allocation_mode, "ExactCount");
            set_count(exactly.allocation_mode.as_deref(), &mut exactly.count);
            set_operators(&mut exactly.tolerations);
        }
        for choice in request.first_available.iter_mut().flatten() {
            fill(&mut choice.allocation_mode, "ExactCount");
            set_count(choice.allocation_mode.as_deref(), &mut choice.count);
            set_operators(&mut choice.tolerations);
        }
    }
}

fn set_count(mode: Option<&str>, count: &mut Option<i64>) {
    if mode == Some("ExactCount") && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
}

fn set_operators(tolerations: &mut Option<Vec<DeviceToleration>>) {
    for toleration in tolerations.iter_mut().flatten() {
        fill(&mut toleration.operator, "Equal");
    }
}

pub(super) fn validate_claim_spec(spec: &ResourceClaimSpec, path: &Path<'_>, errors: &mut Errors) {
    let none = DeviceClaim::default();
    let claim = spec.devices.as_ref().unwrap_or(&none);
    let names = RequestNames::of(spec);
    let path = path.child("devices");
    validate_set(
        claim.requests.items(),
        REQUESTS_LIMIT,
        |request| request.name.clone(),
        &path.child("requests"),
        errors,
        validate_request,
    );
    validate_items(
        claim.constraints.items(),
        CONSTRAINTS_LIMIT,
        &path.child("constraints"),
        errors,
        |constraint, path, errors| validate_constraint(constraint, &names, path, errors),
    );
    validate_items(
        claim.config.items(),
        CONFIG_LIMIT,
        &path.child("config"),
        errors,
        |config, path, errors| {
            names.validate_references(config.requests.items(), path, errors);
            validate_configuration(config.opaque.as_ref(), path, errors);
        },
    );
}

/// The requests of a claim and, where one offers choices, those.
pub(super) struct RequestNames(Vec<(String, Vec<String>)>);

impl RequestNames {
    pub(super) fn of(spec: &ResourceClaimSpec) -> Self {
        let requests = spec.devices.as_ref().map(|claim| claim.requests.items());
        let names = requests.unwrap_or_default().iter().map(|request| {
            let choices = request.first_available.items().iter();
            (
                request.name.clone(),
                choices.map(|choice| choice.name.clone()).collect(),
            )
        });
        Self(names.collect())
    }

    fn has(&self, request: &str, choice: Option<&str>) -> bool {
        self.0.iter().any(|(name, choices)| {
            name == request && choice.is_none_or(|choice| choices.iter().any(|one| one == choice))
        })
    }

    /// `requests` of a constraint or configuration.
    pub(super) fn validate_references(
        &self,
        references: &[String],
        path: &Path<'_>,
        errors: &mut Errors,
    ) {
        validate_set(
            references,
            REQUESTS_LIMIT,
            String::clone,
            &path.child("requests"),
            errors,
            |name, path, errors| self.validate_reference(name, path, errors),
        );
    }

    pub(super) fn validate_reference(&self, name: &str, path: &Path<'_>, errors: &mut Errors) {
        const WRONG: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > 2 {
            errors.invalid(path, name, WRONG);
            return;
        }
        for part in &parts {
            errors.invalid_each(path, part, text::dns1123_label(part));
        }
        if !self.has(parts[0], parts.get(1).copied()) {
            errors.invalid(path, name, WRONG);
        }
    }
}

/// What `exactly` and the choices of `firstAvailable` share.
struct Asked<'a> {
    class: &'a str,
    selectors: &'a [DeviceSelector],
    mode: &'a str,
    count: i64,
    tolerations: &'a [DeviceToleration],
}

fn validate_request(request: &DeviceRequest, path: &Path<'_>, errors: &mut Errors) {
    validate_name(&request.name, path, errors);
    let choices = request.first_available.items();
    match (&request.exactly, choices) {
        (None, []) => errors.required(
            path,
            "exactly one of `exactly` or `firstAvailable` is required",
        ),
        (Some(_), [_, ..]) => errors.invalid(
            path,
            None::<&str>,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (None, choices) => validate_set(
            choices,
            CHOICES_LIMIT,
            |choice| choice.name.clone(),
            &path.child("firstAvailable"),
            errors,
            |choice, path, errors| {
                validate_name(&choice.name, path, errors);
                let asked = Asked {
                    class: &choice.device_class_name,
                    selectors: choice.selectors.items(),
                    mode: choice.allocation_mode.text(),
                    count: choice.count.unwrap_or(0),
                    tolerations: choice.tolerations.items(),
                };
                validate_asked(&asked, path, errors);
            },
        ),
        (Some(exactly), []) => {
            let asked = Asked {
                class: &exactly.device_class_name,
                selectors: exactly.selectors.items(),
                mode: exactly.allocation_mode.text(),
                count: exactly.count.unwrap_or(0),
                tolerations: exactly.tolerations.items(),
            };
            validate_asked(&asked, &path.child("exactly"), errors);
        }
    }
}

fn validate_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    errors.invalid_each(&path.child("name"), name, text::dns1123_label(name));
}

fn validate_asked(asked: &Asked<'_>, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("deviceClassName");
    if asked.class.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, asked.class, text::dns1123_subdomain(asked.class));
    }
    validate_items(
        asked.selectors,
        SELECTORS_LIMIT,
        &path.child("selectors"),
        errors,
        validate_selector,
    );
    let at = path.child("count");
    match asked.mode {
        "All" if asked.count != 0 => errors.invalid(
            &at,
            asked.count,
            "must not be specified when allocationMode is 'All'",
        ),
        "ExactCount" if asked.count <= 0 => {
            errors.invalid(&at, asked.count, "must be greater than zero");
        }
        "All" | "ExactCount" => {}
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    validate_items(
        asked.tolerations,
        TOLERATIONS_LIMIT,
        &path.child("tolerations"),
        errors,
        validate_toleration,
    );
}

pub(super) fn validate_selector(selector: &DeviceSelector, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("cel");
    match &selector.cel {
        None => errors.required(&at, ""),
        Some(cel) if cel.expression.len() > EXPRESSION_LIMIT_BYTES => {
            errors.too_long(&at.child("expression"), EXPRESSION_LIMIT_BYTES);
        }
        Some(cel) => {
            if let Err(why) = check_expression(&cel.expression) {
                errors.invalid(&at.child("expression"), cel.expression.as_str(), why);
            }
        }
    }
}

/// What selects devices must say yes or no of one (dynamic-resource-allocation `cel.Compile`).
fn check_expression(source: &str) -> Result<(), String> {
    let program =
        Program::compile(source).map_err(|error| format!("compilation failed: {error}"))?;
    // The names of attributes and of what can be consumed stand under the domains of their drivers.
    let by_domain = |of: Type| Type::map(Type::map(of));
    let device = BTreeMap::from([
        ("driver".to_owned(), Type::TEXT),
        ("attributes".to_owned(), by_domain(Type::Dyn)),
        (
            "capacity".to_owned(),
            by_domain(Type::named("kubernetes.Quantity")),
        ),
        ("allowMultipleAllocations".to_owned(), Type::Bool),
    ]);
    let declarations = BTreeMap::from([("device".to_owned(), Type::Object(Arc::new(device)))]);
    match check(&program, &declarations) {
        Err(problems) => Err(format!("compilation failed: {problems}")),
        Ok(checked) if matches!(checked.ty, Type::Bool | Type::Dyn) => Ok(()),
        Ok(checked) => Err(format!(
            "must evaluate to bool or the unknown type, not {}",
            checked.ty
        )),
    }
}

pub(super) fn validate_toleration(
    toleration: &DeviceToleration,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let key = toleration.key.text();
    if !key.is_empty() {
        validate_label_name(key, &path.child("key"), errors);
    }
    let value = toleration.value.text();
    let at = path.child("value");
    match toleration.operator.text() {
        "Exists" if !value.is_empty() => {
            errors.invalid(&at, value, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => errors.invalid_each(&at, value, text::label_value(value)),
        "" => errors.required(&path.child("operator"), ""),
        other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
    }
    let effect = toleration.effect.text();
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.not_supported(&path.child("effect"), effect, &EFFECTS);
    }
}

fn validate_constraint(
    constraint: &DeviceConstraint,
    names: &RequestNames,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    names.validate_references(constraint.requests.items(), path, errors);
    let attribute = [
        ("matchAttribute", &constraint.match_attribute),
        ("distinctAttribute", &constraint.distinct_attribute),
    ];
    let named = attribute
        .into_iter()
        .find_map(|(field, name)| Some((field, name.as_ref()?)));
    match named {
        Some((field, name)) => validate_fully_qualified_name(name, &path.child(field), errors),
        None => errors.required(
            path,
            r#"exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set"#,
        ),
    }
}

pub(super) fn validate_configuration(
    opaque: Option<&OpaqueDeviceConfiguration>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("opaque");
    let Some(opaque) = opaque else {
        errors.required(&at, "");
        return;
    };
    validate_csi_driver_name(&opaque.driver, &at.child("driver"), errors);
    validate_raw(
        &opaque.parameters,
        PARAMETERS_LIMIT_BYTES,
        &at.child("parameters"),
        errors,
    );
}

/// A JSON object of limited size.
pub(super) fn validate_raw(
    raw: &RawExtension,
    limit_bytes: usize,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    match &raw.0 {
        Value::Null => errors.required(path, ""),
        value if value.to_string().len() > limit_bytes => errors.too_long(path, limit_bytes),
        Value::Object(_) => {}
        _ => errors.invalid(
            path,
            Bad::from("<value omitted>"),
            "must be a valid JSON object",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::check_expression;

    #[test]
    fn selectors_of_devices_are_compiled() {
        for source in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model == 'a100'",
            "device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('40Gi'))",
            "cel.bind(a, device.attributes['x.example.com'], has(a.fast) && a.fast)",
            "device.attributes['x.example.com'].version.isGreaterThan(semver('1.0.0'))",
        ] {
            assert_eq!(check_expression(source), Ok(()), "{source}");
        }
        for (source, why) in [
            (
                "device.driver",
                "must evaluate to bool or the unknown type, not string",
            ),
            (
                "device.name == 'x'",
                "compilation failed: ERROR: <input>:1:7: undefined field 'name'",
            ),
            ("object.x", "undeclared reference to 'object'"),
            ("device.driver ==", "compilation failed: ERROR: <input>:1:"),
        ] {
            let wrong = check_expression(source).expect_err(source);
            assert!(wrong.starts_with(why) || wrong.contains(why), "{wrong}");
        }
    }
}
