//! Resource names and quantities.

use crate::{
    field::{Bad, Errors, Path},
    quantity::{Amount, ResourceList},
};

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const STANDARD_CONTAINER: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const STANDARD_QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
const INTEGER: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Unprefixed names and those of kubernetes.io.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || is_prefixed_native(name)
}

fn is_prefixed_native(name: &str) -> bool {
    name.contains("kubernetes.io/")
}

/// Whether a request may be less than the limit.
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Devices and whatever else is counted by a plugin.
pub fn is_extended(name: &str) -> bool {
    if is_native(name) || name.starts_with("requests.") {
        return false;
    }
    super::text::qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn is_standard_quota_resource(name: &str) -> bool {
    STANDARD_QUOTA.contains(&name) || is_quota_huge_page(name)
}

fn is_integer(name: &str) -> bool {
    INTEGER.contains(&name) || is_extended(name)
}

/// A rule for the names in a list of resources.
pub type NameRule = fn(&str, &Path<'_>, &mut Errors);

pub fn validate_resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    let before = errors.len();
    errors.invalid_each(path, name, super::text::qualified_name(name));
    let known = STANDARD.contains(&name) || is_quota_huge_page(name);
    if errors.len() == before && !name.contains('/') && !known {
        errors.invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        );
    }
}

pub fn validate_container_resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') {
        if !STANDARD_CONTAINER.contains(&name) && !is_huge_page(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

pub fn validate_pod_resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    let before = errors.len();
    validate_resource_name(name, path, errors);
    if errors.len() == before && !crate::pod::is_pod_level_resource(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

pub fn validate_quota_resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') && !is_standard_quota_resource(name) {
        errors.invalid(path, name, "must be a standard resource for quota");
    }
}

/// Not negative, and whole where the resource is counted.
pub fn validate_resource_quantity(
    name: &str,
    quantity: Amount,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    validate_non_negative(quantity, path, errors);
    if is_integer(name) && quantity.milli_value() % 1000 != 0 {
        errors.invalid(path, Bad::json(&quantity.to_string()), "must be an integer");
    }
}

pub fn validate_non_negative(quantity: Amount, path: &Path<'_>, errors: &mut Errors) {
    if quantity.is_negative() {
        errors.invalid(
            path,
            quantity.to_string(),
            "must be greater than or equal to 0",
        );
    }
}

pub fn validate_positive(quantity: Amount, path: &Path<'_>, errors: &mut Errors) {
    if !quantity.is_positive() {
        errors.invalid(path, quantity.to_string(), "must be greater than zero");
    }
}

pub fn validate_basic_resource(quantity: Amount, path: &Path<'_>, errors: &mut Errors) {
    if quantity.value() < 0 {
        errors.invalid(path, quantity.value(), "must be a valid resource quantity");
    }
}

fn validate_huge_page(name: &str, quantity: Amount, path: &Path<'_>, errors: &mut Errors) {
    let size = name.strip_prefix("hugepages-").and_then(Amount::parse);
    if !size.is_some_and(|size| size.is_positive() && quantity.is_multiple_of(size)) {
        errors.invalid(
            path,
            quantity.to_string(),
            format!("{quantity} is not positive integer multiple of {name}"),
        );
    }
}

/// `limits` and `requests` of a container or pod.
pub fn validate_requirements(
    limits: &ResourceList,
    requests: &ResourceList,
    name_rule: NameRule,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let is_compute = |name: &str| matches!(name, "cpu" | "memory");
    let limits_path = path.child("limits");
    for (name, limit) in limits {
        let path = limits_path.key(name);
        let limit = Amount::of(limit);
        name_rule(name, &path, errors);
        validate_resource_quantity(name, limit, &path, errors);
        if is_huge_page(name) {
            validate_huge_page(name, limit, &path, errors);
        }
    }
    let requests_path = path.child("requests");
    for (name, request) in requests {
        let path = requests_path.key(name);
        let request = Amount::of(request);
        name_rule(name, &path, errors);
        validate_resource_quantity(name, request, &path, errors);
        match limits.get(name).map(Amount::of) {
            Some(limit) if request != limit && !is_overcommit_allowed(name) => errors.invalid(
                &requests_path,
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            ),
            Some(limit) if request > limit => errors.invalid(
                &requests_path,
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            ),
            None if !is_overcommit_allowed(name) => errors.required(
                &limits_path,
                "Limit must be set for non overcommitable resources",
            ),
            _ => {}
        }
        if is_huge_page(name) {
            validate_huge_page(name, request, &path, errors);
        }
    }
    let mut names = limits.keys().chain(requests.keys());
    let mut both = names.clone();
    if names.any(|name| is_huge_page(name)) && !both.any(|name| is_compute(name)) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}
