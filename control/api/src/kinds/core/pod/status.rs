//! What agents may write about a pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus};

use crate::field::{Errors, Path};
use crate::pod::is_sidecar;
use crate::validation::net::{is_dual_stack, parse_ip, validate_ip};
use crate::validation::security::validate_id;
use crate::validation::text;
use crate::zero::{List, Text};

/// Agents that do not know a field must not remove it.
pub(super) fn keep_what_old_agents_drop(status: &mut PodStatus, old: PodStatus) {
    if status.qos_class.text().is_empty() {
        status.qos_class = old.qos_class;
    }
    if status.observed_generation.unwrap_or(0) == 0 {
        status.observed_generation = old.observed_generation;
    }
    // There may be several conditions of one type.
    let mut before = old.conditions.unwrap_or_default();
    for condition in status.conditions.iter_mut().flatten() {
        let same = |one: &PodCondition| one.type_ == condition.type_;
        let Some(place) = before.iter().position(same) else {
            continue;
        };
        let old = before.remove(place);
        if condition.observed_generation.unwrap_or(0) == 0 {
            condition.observed_generation = old.observed_generation;
        }
    }
}

pub(super) fn validate_status(new: &Pod, old: &Pod, errors: &mut Errors) {
    let status = new.status.clone().unwrap_or_default();
    let old_status = old.status.clone().unwrap_or_default();
    let spec = old.spec.clone().unwrap_or_default();
    let conditions = Path::new("metadata.conditions");
    for (i, condition) in status.conditions.items().iter().enumerate() {
        let type_ = condition.type_.as_str();
        if !matches!(type_, "PodScheduled" | "Ready" | "Initialized") {
            errors.invalid_each(
                &conditions.index(i).child("Type"),
                type_,
                text::qualified_name(type_),
            );
        }
    }
    let path = Path::new("status");
    let nominated = status.nominated_node_name.text();
    if !nominated.is_empty() && nominated != old_status.nominated_node_name.text() {
        errors.invalid_each(
            &path.child("nominatedNodeName"),
            nominated,
            text::dns1123_subdomain(nominated),
        );
    }
    errors.immutable(
        &path.child("qosClass"),
        &status.qos_class,
        &old_status.qos_class,
    );
    let policy = spec.restart_policy.text();
    let sidecars: Vec<&str> = spec
        .init_containers
        .items()
        .iter()
        .filter(|container| is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    for (field, new, old, policy) in [
        (
            "containerStatuses",
            status.container_statuses.items(),
            old_status.container_statuses.items(),
            policy,
        ),
        (
            "initContainerStatuses",
            status.init_container_statuses.items(),
            old_status.init_container_statuses.items(),
            policy,
        ),
        (
            "ephemeralContainerStatuses",
            status.ephemeral_container_statuses.items(),
            old_status.ephemeral_container_statuses.items(),
            "Never",
        ),
    ] {
        let restarts = |name: &str| {
            let containers = spec.containers.iter().chain(spec.init_containers.items());
            let own = containers.filter(|one| one.name == name).any(|one| {
                one.restart_policy.is_some() && one.restart_policy.text() != "Never"
                    || !one.restart_policy_rules.items().is_empty()
            });
            own || sidecars.contains(&name)
        };
        validate_no_resurrection(new, old, policy, &restarts, &path.child(field), errors);
    }
    let claims = path.child("resourceClaimStatuses");
    for (i, claim) in status.resource_claim_statuses.items().iter().enumerate() {
        let at = claims.index(i);
        let at = at.child("name");
        if !spec
            .resource_claims
            .items()
            .iter()
            .any(|one| one.name == claim.name)
        {
            errors.invalid(
                &at,
                &claim.name,
                "must match the name of an entry in `spec.resourceClaims`",
            );
        }
        let all = status.resource_claim_statuses.items();
        if all[..i].iter().any(|one| one.name == claim.name) {
            errors.duplicate(&at, &claim.name);
        }
        if let Some(name) = &claim.resource_claim_name {
            errors.invalid_each(&at, name, text::dns1123_subdomain(name));
        }
    }
    let ips: Vec<&str> = status
        .pod_ips
        .items()
        .iter()
        .map(|one| one.ip.as_str())
        .collect();
    validate_ips(&ips, &path.child("podIPs"), errors);
    let ips: Vec<&str> = status
        .host_ips
        .items()
        .iter()
        .map(|one| one.ip.as_str())
        .collect();
    if let Some(first) = ips.first()
        && *first != status.host_ip.text()
    {
        errors.invalid(
            &path.child("hostIPs").index(0).child("ip"),
            *first,
            "must be equal to `hostIP`",
        );
    }
    validate_ips(&ips, &path.child("hostIPs"), errors);
    let no_containers: &[Container] = &[];
    let all = [
        (
            "containerStatuses",
            status.container_statuses.items(),
            &spec.containers[..],
        ),
        (
            "initContainerStatuses",
            status.init_container_statuses.items(),
            spec.init_containers.items(),
        ),
        (
            "ephemeralContainerStatuses",
            status.ephemeral_container_statuses.items(),
            no_containers,
        ),
    ];
    let os = spec.os.as_ref().map_or("linux", |os| os.name.as_str());
    for (field, statuses, _) in &all {
        validate_container_users(statuses, os, &path.child(field), errors);
    }
    for (field, statuses, containers) in &all {
        let path = path.child(field);
        for (i, status) in statuses.iter().enumerate() {
            let path = path.index(i);
            let path = path.child("allocatedResourcesStatus");
            if *field != "ephemeralContainerStatuses" {
                let container = containers.iter().find(|one| one.name == status.name);
                validate_resource_health(status, container, &path, errors);
            } else if !status.allocated_resources_status.items().is_empty() {
                errors.forbidden(&path, "must not be specified in container status");
            }
        }
    }
}

/// Who the processes of containers run as.
fn validate_container_users(
    statuses: &[ContainerStatus],
    os: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (i, status) in statuses.iter().enumerate() {
        let Some(user) = status.user.as_ref().and_then(|user| user.linux.as_ref()) else {
            continue;
        };
        let path = path.index(i);
        let path = path.child("linux");
        if os == "windows" {
            errors.forbidden(&path, "cannot be set for a windows pod");
            continue;
        }
        validate_id(Some(user.uid), &path.child("uid"), errors);
        validate_id(Some(user.gid), &path.child("gid"), errors);
        let groups = path.child("supplementalGroups");
        for (i, group) in user.supplemental_groups.items().iter().enumerate() {
            validate_id(Some(*group), &groups.index(i), errors);
        }
    }
}

/// How the devices of a container are. A status of no container says what it likes.
fn validate_resource_health(
    status: &ContainerStatus,
    container: Option<&Container>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (i, resource) in status.allocated_resources_status.items().iter().enumerate() {
        let path = path.index(i);
        let name = resource.name.as_str();
        if let Some(container) = container {
            let own = container.resources.clone().unwrap_or_default();
            let (known, detail) = if name.starts_with("claim:") {
                let claims = own.claims.items().iter();
                let mut names = claims.map(|claim| match claim.request.text() {
                    "" => format!("claim:{}", claim.name),
                    request => format!("claim:{}/{request}", claim.name),
                });
                (
                    names.any(|one| one == name),
                    "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
                )
            } else {
                (
                    own.requests.is_some_and(|list| list.contains_key(name)),
                    "must match one of the container's resource requests",
                )
            };
            if !known {
                errors.invalid(&path.child("name"), name, detail);
            }
        }
        let path = path.child("resources");
        let mut ids = BTreeSet::new();
        for (i, one) in resource.resources.items().iter().enumerate() {
            let path = path.index(i);
            let health = one.health.text();
            if !matches!(health, "Healthy" | "Unhealthy" | "Unknown") {
                let words = ["Healthy", "Unhealthy", "Unknown"];
                errors.not_supported(&path.child("health"), health, &words);
            }
            if !ids.insert(one.resource_id.as_str()) {
                errors.duplicate(&path.child("resourceID"), &one.resource_id);
            }
        }
    }
}

/// What ended and is not to be restarted stays ended.
fn validate_no_resurrection(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    policy: &str,
    restarts: &dyn Fn(&str) -> bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if policy == "Always" {
        return;
    }
    let terminated = |status: &ContainerStatus| {
        status
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .map(|one| one.exit_code)
    };
    for (i, old) in old.iter().enumerate() {
        let Some(code) = terminated(old) else {
            continue;
        };
        if (code != 0 && policy == "OnFailure") || restarts(&old.name) {
            continue;
        }
        for new in new.iter().filter(|new| new.name == old.name) {
            if terminated(new).is_none() {
                errors.forbidden(
                    &path.index(i).child("state"),
                    "may not be transitioned to non-terminated state",
                );
            }
        }
    }
}

fn validate_ips(ips: &[&str], path: &Path<'_>, errors: &mut Errors) {
    for (i, ip) in ips.iter().enumerate() {
        validate_ip(ip, &[], &path.index(i), errors);
    }
    if ips.len() < 2 {
        return;
    }
    let parsed: Vec<_> = ips.iter().filter_map(|ip| parse_ip(ip)).collect();
    let shown = serde_json::json!(
        ips.iter()
            .map(|ip| serde_json::json!({"IP": ip}))
            .collect::<Vec<_>>()
    );
    if !is_dual_stack(&parsed) || ips.len() > 2 {
        errors.invalid(
            path,
            shown,
            "may specify no more than one IP for each IP family",
        );
    }
    for (i, ip) in ips.iter().enumerate() {
        if ips[..i].contains(ip) {
            errors.duplicate(&path.index(i), serde_json::json!({"IP": ip}));
        }
    }
}
