//! Environment variables and the downward API.

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector,
};

use super::{text, volumes::VolumesByName};
use crate::{
    field::{Errors, Path},
    quantity::Amount,
    zero::Text,
};

pub const DOWNWARD_VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What the downward API converts at all, for either use.
const CONVERTIBLE: [&str; 12] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.podIP",
];

pub fn validate_env(
    env: &[EnvVar],
    volumes: &VolumesByName<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (i, variable) in env.iter().enumerate() {
        let path = path.index(i);
        if variable.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.invalid_each(
                &path.child("name"),
                &variable.name,
                text::env_var_name(&variable.name),
            );
        }
        if let Some(source) = &variable.value_from {
            let value = variable.value.text();
            validate_value_from(source, value, volumes, &path.child("valueFrom"), errors);
        }
    }
}

fn validate_value_from(
    source: &EnvVarSource,
    value: &str,
    volumes: &VolumesByName<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut count = 0;
    if let Some(field) = &source.field_ref {
        count += 1;
        validate_field_selector(field, &ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        validate_resource_selector(resource, false, &path.child("resourceFieldRef"), errors);
    }
    if let Some(key) = &source.config_map_key_ref {
        count += 1;
        validate_key_selector(&key.name, &key.key, &path.child("configMapKeyRef"), errors);
    }
    if let Some(key) = &source.secret_key_ref {
        count += 1;
        validate_key_selector(&key.name, &key.key, &path.child("secretKeyRef"), errors);
    }
    if let Some(key) = &source.file_key_ref {
        count += 1;
        let path = path.child("fileKeyRef");
        if key.key.is_empty() {
            errors.required(&path.child("key"), "");
        } else {
            errors.invalid_each(&path.child("key"), &key.key, text::env_var_name(&key.key));
        }
        if key.volume_name.is_empty() {
            errors.required(&path.child("volumeName"), "");
        } else if !volumes.contains_key(key.volume_name.as_str()) {
            errors.not_found(&path.child("volumeName"), &key.volume_name);
        } else if volumes[key.volume_name.as_str()].empty_dir.is_none() {
            errors.invalid(
                &path.child("volumeName"),
                &key.volume_name,
                "referenced volume must be of type emptyDir",
            );
        }
        if key.path.is_empty() {
            errors.required(&path.child("path"), "");
        } else {
            super::volume_sources::validate_non_reserved_path(
                &key.path,
                &path.child("path"),
                errors,
            );
        }
    }
    if count == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        );
    }
}

fn validate_key_selector(name: &str, key: &str, path: &Path<'_>, errors: &mut Errors) {
    errors.invalid_each(&path.child("name"), name, text::dns1123_subdomain(name));
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.invalid_each(&path.child("key"), key, text::config_map_key(key));
    }
}

pub fn validate_field_selector(
    selector: &ObjectFieldSelector,
    supported: &[&str],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let version = selector.api_version.text();
    let field = selector.field_path.as_str();
    if version.is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    if field.is_empty() {
        errors.required(&path.child("fieldPath"), "");
        return;
    }
    let subscript = field
        .strip_suffix("']")
        .and_then(|field| field.split_once("['"))
        .filter(|(field, _)| !field.is_empty());
    let known = |field: &str| {
        CONVERTIBLE.contains(&field)
            || matches!(field, "status.hostIPs" | "status.podIPs" | "spec.host")
    };
    let convertible = match subscript {
        _ if version != "v1" => Err(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations" | "metadata.labels", _)) => Ok(()),
        Some(_) => Err(format!("field label does not support subscript: {field}")),
        None if known(field) => Ok(()),
        None => Err(format!("field label not supported: {field}")),
    };
    if let Err(problem) = convertible {
        errors.invalid(
            &path.child("fieldPath"),
            field,
            format!("error converting fieldPath: {problem}"),
        );
        return;
    }
    match subscript {
        Some(("metadata.annotations", key)) => {
            errors.invalid_each(
                path,
                &key.to_lowercase(),
                text::qualified_name(&key.to_lowercase()),
            );
        }
        Some((_, key)) => errors.invalid_each(path, key, text::qualified_name(key)),
        None => {
            // The name of the first releases.
            let field = if field == "spec.host" {
                "spec.nodeName"
            } else {
                field
            };
            if !supported.contains(&field) {
                errors.not_supported(&path.child("fieldPath"), field, supported);
            }
        }
    }
}

/// `of_volume`: no container is implied there.
pub fn validate_resource_selector(
    selector: &ResourceFieldSelector,
    of_volume: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let resource = selector.resource.as_str();
    let huge =
        resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if of_volume && selector.container_name.text().is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.not_supported(&path.child("resource"), resource, &RESOURCES);
    }
    let divisor = selector.divisor.as_ref().map_or(Amount::ZERO, Amount::of);
    if divisor.is_zero() {
        return;
    }
    let text = divisor.to_string();
    let name = match resource {
        "limits.cpu" | "requests.cpu" => {
            if !matches!(text.as_str(), "1m" | "1") {
                errors.invalid(
                    &path.child("divisor"),
                    resource,
                    "only divisor's values 1m and 1 are supported with the cpu resource",
                );
            }
            return;
        }
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    let units = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    if !units.contains(&text.as_str()) {
        errors.invalid(
            &path.child("divisor"),
            resource,
            format!(
                "only divisor's values {} are supported with the {name} resource",
                units.join(", ")
            ),
        );
    }
}

pub fn validate_env_from(sources: &[EnvFromSource], path: &Path<'_>, errors: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = source.prefix.text();
        if !prefix.is_empty() {
            errors.invalid_each(&at.child("prefix"), prefix, text::env_var_name(prefix));
        }
        let mut count = 0;
        for (field, name) in [
            (
                "configMapRef",
                source.config_map_ref.as_ref().map(|one| &one.name),
            ),
            ("secretRef", source.secret_ref.as_ref().map(|one| &one.name)),
        ] {
            let Some(name) = name else { continue };
            count += 1;
            let at = at.child(field);
            let at = at.child("name");
            if name.is_empty() {
                errors.required(&at, "");
            } else {
                let rule = super::meta::NameRule::Subdomain;
                errors.invalid_each(&at, name, rule.check(name, true));
            }
        }
        if count == 0 {
            errors.invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            );
        } else if count > 1 {
            errors.invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            );
        }
    }
}
