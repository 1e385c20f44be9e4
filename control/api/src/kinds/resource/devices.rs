//! What a driver offers: devices, their attributes, capacities and taints.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, Counter, CounterSet, Device,
    DeviceAttribute, DeviceCapacity, DeviceCounterConsumption, DeviceTaint,
};

use super::{validate_items, validate_set};
use crate::{
    field::{Bad, Errors, Path},
    quantity::Amount,
    validation::{
        labels::validate_label_name, scheduling::validate_node_selector, text,
        volume_sources::validate_csi_driver_name,
    },
    zero::{Flag, List, Text},
};

pub(super) const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const POOL_NAME_LIMIT: usize = 253;
const ID_LIMIT: usize = 32;
const VALUE_LIMIT_BYTES: usize = 64;
const LABEL_LIMIT: usize = 63;
const KEY_LIMIT: usize = LABEL_LIMIT + 1 + ID_LIMIT;
const ATTRIBUTES_AND_CAPACITIES_LIMIT: usize = 32;
const TAINTS_LIMIT: usize = 16;
const COUNTERS_LIMIT: usize = 32;
const CONSUMPTIONS_LIMIT: usize = 2;
const CONDITIONS_LIMIT: usize = 4;
const VALUES_LIMIT: usize = 10;

pub(super) fn validate_pool_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > POOL_NAME_LIMIT {
        errors.too_long(path, POOL_NAME_LIMIT);
    }
    for part in name.split('/') {
        errors.invalid_each(path, part, text::dns1123_subdomain(part));
    }
}

fn validate_id(id: &str, path: &Path<'_>, errors: &mut Errors) {
    if id.len() > ID_LIMIT {
        errors.too_long(path, ID_LIMIT);
    }
    errors.invalid_each(path, id, text::c_identifier(id));
}

/// `name` or `domain/name`.
fn validate_qualified_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    match name.split('/').collect::<Vec<_>>()[..] {
        [id] => validate_id(id, path, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                validate_csi_driver_name(domain, path, errors);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                validate_id(id, path, errors);
            }
        }
        // Upstream looks no closer at these.
        _ => {}
    }
}

pub(super) fn validate_fully_qualified_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    validate_qualified_name(name, path, errors);
    if !name.contains('/') {
        errors.invalid(
            path,
            name,
            "a fully qualified name must be a domain and a name separated by a slash",
        );
    }
}

/// Long keys lose their middle in messages.
fn shown_key(key: &str, limit: usize) -> String {
    if key.len() <= limit || !key.is_ascii() {
        return key.to_owned();
    }
    let rest = limit - 3;
    let (head, tail) = (rest.div_ceil(2), rest / 2);
    format!("{}...{}", &key[..head], &key[key.len() - tail..])
}

pub(super) fn validate_device(
    device: &Device,
    old: Option<&Device>,
    per_device: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    errors.invalid_each(
        &path.child("name"),
        &device.name,
        text::dns1123_label(&device.name),
    );
    let none = BTreeMap::new();
    let attributes = device.attributes.as_ref().unwrap_or(&none);
    let no_capacity = BTreeMap::new();
    let capacity = device.capacity.as_ref().unwrap_or(&no_capacity);
    let count = attributes.len() + capacity.len();
    if count > ATTRIBUTES_AND_CAPACITIES_LIMIT {
        errors.invalid(
            path,
            count,
            format!(
                "the total number of attributes and capacities must not exceed {ATTRIBUTES_AND_CAPACITIES_LIMIT}"
            ),
        );
    }
    let at = path.child("attributes");
    for (name, attribute) in attributes {
        let shown = shown_key(name, KEY_LIMIT);
        let at = at.key(&shown);
        validate_qualified_name(name, &at, errors);
        validate_attribute(attribute, &at, errors);
    }
    if old.is_none_or(|old| old.capacity != device.capacity) {
        let at = path.child("capacity");
        let shared = device.allow_multiple_allocations.is_true();
        for (name, capacity) in capacity {
            let shown = shown_key(name, KEY_LIMIT);
            let at = at.key(&shown);
            validate_qualified_name(name, &at, errors);
            validate_capacity(capacity, shared, &at, errors);
        }
    }
    if old.is_none_or(|old| old.taints != device.taints) {
        let at = path.child("taints");
        validate_items(
            device.taints.items(),
            TAINTS_LIMIT,
            &at,
            errors,
            validate_taint,
        );
    }
    validate_set(
        device.consumes_counters.items(),
        CONSUMPTIONS_LIMIT,
        |consumption| consumption.counter_set.clone(),
        &path.child("consumesCounters"),
        errors,
        validate_consumption,
    );
    validate_device_node(device, per_device, path, errors);
    validate_binding_conditions(
        device.binding_conditions.items(),
        device.binding_failure_conditions.items(),
        path,
        errors,
    );
}

fn validate_device_node(device: &Device, per_device: bool, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let any =
        device.node_name.is_some() || device.node_selector.is_some() || device.all_nodes.is_some();
    if !per_device {
        if any {
            errors.invalid(
                path,
                None::<&str>,
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            );
        }
        return;
    }
    let mut chosen = Vec::new();
    if let Some(name) = &device.node_name {
        let at = path.child("nodeName");
        if name.is_empty() {
            errors.invalid(&at, name, "must not be empty");
        } else {
            chosen.push("`nodeName`");
            errors.invalid_each(&at, name, text::dns1123_subdomain(name));
        }
    }
    if let Some(selector) = &device.node_selector {
        chosen.push("`nodeSelector`");
        validate_node_selector(selector, &path.child("nodeSelector"), errors);
    }
    match device.all_nodes {
        Some(true) => chosen.push("`allNodes`"),
        Some(false) => errors.invalid(
            &path.child("allNodes"),
            false,
            "must be either unset or set to true",
        ),
        None => {}
    }
    match chosen.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", chosen.join(", ")), ONE),
    }
}

fn validate_attribute(attribute: &DeviceAttribute, path: &Path<'_>, errors: &mut Errors) {
    let kinds = [
        attribute.bool.is_some(),
        attribute.int.is_some(),
        attribute.string.is_some(),
        attribute.version.is_some(),
        attribute.bools.is_some(),
        attribute.ints.is_some(),
        attribute.strings.is_some(),
        attribute.versions.is_some(),
    ];
    if let Some(text) = &attribute.string {
        validate_text(text, &path.child("string"), errors);
    }
    if let Some(version) = &attribute.version {
        validate_version(version, &path.child("version"), errors);
    }
    let at = path.child("strings");
    for (i, text) in attribute.strings.items().iter().enumerate() {
        validate_text(text, &at.index(i), errors);
    }
    let at = path.child("versions");
    for (i, version) in attribute.versions.items().iter().enumerate() {
        validate_version(version, &at.index(i), errors);
    }
    match kinds.into_iter().filter(|there| *there).count() {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(
            path,
            Bad::json(attribute),
            "exactly one value must be specified",
        ),
    }
}

fn validate_text(value: &str, path: &Path<'_>, errors: &mut Errors) {
    if value.len() > VALUE_LIMIT_BYTES {
        errors.too_long(path, VALUE_LIMIT_BYTES);
    }
}

fn validate_version(version: &str, path: &Path<'_>, errors: &mut Errors) {
    if !is_semantic_version(version) {
        errors.invalid(
            path,
            version,
            "must be a string compatible with semver.org spec 2.0.0",
        );
    }
    validate_text(version, path, errors);
}

/// semver.org 2.0.0: three numbers, `-` and identifiers, `+` and identifiers.
fn is_semantic_version(version: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let (version, build) = version
        .split_once('+')
        .map_or((version, None), |(version, build)| (version, Some(build)));
    let (core, pre) = version
        .split_once('-')
        .map_or((version, None), |(core, pre)| (core, Some(pre)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| {
            pre.split('.')
                .all(|part| word(part) && (number(part) || !digits(part)))
        })
        && build.is_none_or(|build| build.split('.').all(word))
}

fn validate_capacity(
    capacity: &DeviceCapacity,
    shared: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(policy) = &capacity.request_policy else {
        return;
    };
    let at = path.child("requestPolicy");
    if shared {
        validate_request_policy(Amount::of(&capacity.value), policy, &at, errors);
    } else {
        errors.forbidden(&at, "allowMultipleAllocations must be true");
    }
}

fn validate_request_policy(
    whole: Amount,
    policy: &CapacityRequestPolicy,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let values = policy.valid_values.items();
    let default = policy.default.as_ref().map(Amount::of);
    match (values, &policy.valid_range) {
        ([_, ..], Some(_)) => errors.forbidden(
            path,
            r#"exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time"#,
        ),
        ([], None) => {}
        ([_, ..], None) => match default {
            None => errors.required(
                &path.child("default"),
                "required when validValues is defined",
            ),
            Some(default) => {
                let values: Vec<Amount> = values.iter().map(Amount::of).collect();
                validate_values(default, whole, &values, &path.child("validValues"), errors);
            }
        },
        ([], Some(range)) => match default {
            None => errors.required(&path.child("default"), "required when validRange is defined"),
            Some(default) => {
                validate_range(default, whole, range, &path.child("validRange"), errors);
            }
        },
    }
}

fn validate_values(
    default: Amount,
    whole: Amount,
    values: &[Amount],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for i in 1..values.len() {
        if values[i - 1] > values[i] {
            errors.invalid(
                &path.index(i),
                values[i].to_string(),
                "values must be sorted in ascending order",
            );
        }
    }
    validate_set(
        values,
        VALUES_LIMIT,
        |value| value.value().to_string(),
        path,
        errors,
        |value, path, errors| {
            if *value > whole {
                errors.invalid(
                    path,
                    value.to_string(),
                    format!("option is larger than capacity value: {whole}"),
                );
            }
        },
    );
    // Of too many values, none is looked at.
    if values.len() > VALUES_LIMIT || !values.contains(&default) {
        errors.invalid(
            path,
            default.to_string(),
            "default value is not valid according to the requestPolicy",
        );
    }
}

fn validate_range(
    default: Amount,
    whole: Amount,
    range: &CapacityRequestPolicyRange,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let min_at = path.child("min");
    if range.min.0.is_empty() {
        errors.required(&min_at, "required when validRange is defined");
        return;
    }
    let min = Amount::of(&range.min);
    if min > whole {
        errors.invalid(
            &min_at,
            min.to_string(),
            format!("min is larger than capacity value: {whole}"),
        );
    }
    if default < min {
        errors.invalid(
            &min_at,
            default.to_string(),
            format!("default is less than min: {min}"),
        );
    }
    let max = range.max.as_ref().map(Amount::of);
    if let Some(max) = max {
        let at = path.child("max");
        if min > max {
            errors.invalid(
                &at,
                min.to_string(),
                format!("min is larger than max: {max}"),
            );
        }
        if max > whole {
            errors.invalid(
                &at,
                max.to_string(),
                format!("max is larger than capacity value: {whole}"),
            );
        }
        if default > max {
            errors.invalid(
                &at,
                default.to_string(),
                format!("default is more than max: {max}"),
            );
        }
    }
    let Some(step) = range.step.as_ref().map(Amount::of) else {
        return;
    };
    let at = path.child("step");
    if !step.is_positive() {
        errors.invalid(&at, step.to_string(), "must be greater than zero");
        return;
    }
    let one = min + step;
    if one > whole {
        errors.invalid(
            &at,
            step.to_string(),
            format!("one step {one} is larger than capacity value: {whole}"),
        );
    }
    for value in [Some(default), max].into_iter().flatten() {
        if !(value - min).is_multiple_of(step) {
            errors.invalid(
                &at,
                value.to_string(),
                format!("value is not a multiple of a given step ({step}) from ({min})"),
            );
        }
    }
}

fn validate_taint(taint: &DeviceTaint, path: &Path<'_>, errors: &mut Errors) {
    validate_label_name(&taint.key, &path.child("key"), errors);
    let value = taint.value.text();
    errors.invalid_each(&path.child("value"), value, text::label_value(value));
    let at = path.child("effect");
    match taint.effect.as_str() {
        "" => errors.required(&at, ""),
        effect if EFFECTS.contains(&effect) => {}
        other => errors.not_supported(&at, other, &EFFECTS),
    }
}

pub(super) fn validate_counter_set(set: &CounterSet, path: &Path<'_>, errors: &mut Errors) {
    validate_counters("name", &set.name, &set.counters, path, errors);
}

fn validate_consumption(
    consumption: &DeviceCounterConsumption,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (set, counters) = (&consumption.counter_set, &consumption.counters);
    validate_counters("counterSet", set, counters, path, errors);
}

fn validate_counters(
    field: &str,
    name: &str,
    counters: &BTreeMap<String, Counter>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child(field);
    if name.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, name, text::dns1123_label(name));
    }
    let at = path.child("counters");
    if counters.is_empty() {
        errors.required(&at, "");
    } else if counters.len() > COUNTERS_LIMIT {
        errors.too_many(&at, counters.len(), COUNTERS_LIMIT);
    } else {
        for name in counters.keys() {
            let shown = shown_key(name, LABEL_LIMIT);
            errors.invalid_each(&at.key(&shown), name, text::dns1123_label(name));
        }
    }
}

pub(super) fn validate_binding_conditions(
    binding: &[String],
    failure: &[String],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (at, failure_at) = (
        path.child("bindingConditions"),
        path.child("bindingFailureConditions"),
    );
    for (conditions, at) in [(binding, &at), (failure, &failure_at)] {
        validate_items(
            conditions,
            CONDITIONS_LIMIT,
            at,
            errors,
            |name, at, errors| {
                validate_label_name(name, at, errors);
            },
        );
    }
    for (i, condition) in binding.iter().enumerate() {
        if binding[..i].contains(condition) {
            errors.duplicate(&at.index(i), condition);
        }
    }
    for (i, condition) in failure.iter().enumerate() {
        if failure[..i].contains(condition) {
            errors.duplicate(&failure_at.index(i), condition);
        }
        if binding.contains(condition) {
            errors.invalid(
                &failure_at.index(i),
                condition,
                "bindingFailureConditions must not overlap with bindingConditions",
            );
        }
    }
    if binding.is_empty() && !failure.is_empty() {
        errors.invalid(
            &at,
            Bad::json(&binding),
            "bindingConditions are required to use bindingFailureConditions",
        );
    }
    if failure.is_empty() && !binding.is_empty() {
        errors.invalid(
            &failure_at,
            Bad::json(&failure),
            "bindingFailureConditions are required to use bindingConditions",
        );
    }
}

pub(super) fn validate_devices(
    devices: &[Device],
    old: &[Device],
    per_device: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const LIMIT: usize = 128;
    const LIMIT_WITH_ADVANCED_FEATURES: usize = 64;
    let advanced = devices.iter().any(|device| {
        !device.taints.items().is_empty() || !device.consumes_counters.items().is_empty()
    });
    let limit = if advanced {
        LIMIT_WITH_ADVANCED_FEATURES
    } else {
        LIMIT
    };
    validate_set(
        devices,
        limit,
        |device| device.name.clone(),
        path,
        errors,
        |device, path, errors| {
            let old = old.iter().find(|old| old.name == device.name);
            validate_device(device, old, per_device, path, errors);
        },
    );
}

pub(super) fn validate_counter_sets(sets: &[CounterSet], path: &Path<'_>, errors: &mut Errors) {
    const LIMIT: usize = 8;
    validate_set(
        sets,
        LIMIT,
        |set| set.name.clone(),
        path,
        errors,
        validate_counter_set,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantic_versions() {
        for good in [
            "1.2.3",
            "0.0.0",
            "1.0.0-alpha.1",
            "1.0.0-0a+b.01",
            "1.0.0+x",
        ] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in [
            "1.2", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "v1.0.0", "",
        ] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }

    #[test]
    fn long_keys_lose_their_middle() {
        assert_eq!(shown_key("abcdefghij", 10), "abcdefghij");
        assert_eq!(shown_key("abcdefghijk", 10), "abcd...ijk");
    }
}
