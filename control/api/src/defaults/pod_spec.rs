//! Pods and pod templates (upstream `SetDefaults_PodSpec`, `SetDefaults_Container`, … and `+default` markers).

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvVar, HTTPGetAction, Lifecycle, Pod, PodSecurityContext,
        PodSpec, PodTemplateSpec, Probe, ResourceFieldSelector, ResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::volumes::set_volume_defaults;
use crate::{
    pod::{aggregate_container_limits, aggregate_container_requests, is_pod_level_resource},
    quantity::{Amount, ResourceList},
    validation::resources::{is_huge_page, is_overcommit_allowed},
    zero::{Flag, Text, fill, set},
};

pub fn set_template_defaults(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    set_pod_spec_defaults(template.spec.get_or_insert_default());
}

pub fn set_pod_spec_defaults(spec: &mut PodSpec) {
    for volume in spec.volumes.iter_mut().flatten() {
        set_volume_defaults(volume);
    }
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        set_container_defaults(container);
    }
    for ephemeral in spec.ephemeral_containers.iter_mut().flatten() {
        let policy = pull_policy(ephemeral.image.text());
        fill(&mut ephemeral.image_pull_policy, policy);
        fill(
            &mut ephemeral.termination_message_path,
            "/dev/termination-log",
        );
        fill(&mut ephemeral.termination_message_policy, "File");
        set_env_defaults(ephemeral.env.as_deref_mut().unwrap_or_default());
        set_port_defaults(ephemeral.ports.as_deref_mut().unwrap_or_default());
        set_resources_defaults(ephemeral.resources.get_or_insert_default());
        set_probe_defaults(ephemeral.liveness_probe.as_mut());
        set_probe_defaults(ephemeral.readiness_probe.as_mut());
        set_probe_defaults(ephemeral.startup_probe.as_mut());
        set_lifecycle_defaults(ephemeral.lifecycle.as_mut());
    }
    round_up(spec.overhead.as_mut());
    if let Some(resources) = &mut spec.resources {
        set_resources_defaults(resources);
    }
    fill(&mut spec.dns_policy, "ClusterFirst");
    fill(&mut spec.restart_policy, "Always");
    spec.security_context
        .get_or_insert_with(PodSecurityContext::default);
    set(&mut spec.termination_grace_period_seconds, 30);
    fill(&mut spec.scheduler_name, "default-scheduler");
    // Both names are the same field; upstream's conversion keeps them so.
    if spec.service_account_name.text().is_empty() && !spec.service_account.text().is_empty() {
        spec.service_account_name = spec.service_account.clone();
    }
    spec.service_account.clone_from(&spec.service_account_name);
    if spec.host_network.is_true() {
        set_host_ports(&mut spec.containers);
        set_host_ports(spec.init_containers.as_deref_mut().unwrap_or_default());
    }
}

fn set_container_defaults(container: &mut Container) {
    let policy = pull_policy(container.image.text());
    fill(&mut container.image_pull_policy, policy);
    fill(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    fill(&mut container.termination_message_policy, "File");
    set_env_defaults(container.env.as_deref_mut().unwrap_or_default());
    set_port_defaults(container.ports.as_deref_mut().unwrap_or_default());
    set_resources_defaults(container.resources.get_or_insert_default());
    set_probe_defaults(container.liveness_probe.as_mut());
    set_probe_defaults(container.readiness_probe.as_mut());
    set_probe_defaults(container.startup_probe.as_mut());
    set_lifecycle_defaults(container.lifecycle.as_mut());
}

fn set_env_defaults(env: &mut [EnvVar]) {
    for source in env
        .iter_mut()
        .filter_map(|variable| variable.value_from.as_mut())
    {
        if let Some(field) = &mut source.field_ref {
            fill(&mut field.api_version, "v1");
        }
        if let Some(resource) = &mut source.resource_field_ref {
            set_divisor(resource);
        }
        if let Some(file) = &mut source.file_key_ref {
            set(&mut file.optional, false);
        }
    }
}

/// A quantity that is not there is written as zero.
pub(super) fn set_divisor(selector: &mut ResourceFieldSelector) {
    set(&mut selector.divisor, Quantity("0".to_owned()));
}

fn set_port_defaults(ports: &mut [ContainerPort]) {
    for port in ports {
        fill(&mut port.protocol, "TCP");
    }
}

/// With the host's network a container's port is the host's.
fn set_host_ports(containers: &mut [Container]) {
    for port in containers
        .iter_mut()
        .filter_map(|container| container.ports.as_mut())
        .flatten()
    {
        if port.host_port.unwrap_or(0) == 0 {
            port.host_port = Some(port.container_port);
        }
    }
}

fn set_resources_defaults(resources: &mut ResourceRequirements) {
    round_up(resources.limits.as_mut());
    round_up(resources.requests.as_mut());
}

/// Thousandths are the smallest unit kept.
pub fn round_up(list: Option<&mut ResourceList>) {
    for quantity in list.into_iter().flat_map(ResourceList::values_mut) {
        let Some(amount) = Amount::parse(&quantity.0) else {
            continue;
        };
        let rounded = amount.rounded_up_to_milli();
        if rounded != amount {
            *quantity = rounded.to_wire();
        }
    }
}

fn set_probe_defaults(probe: Option<&mut Probe>) {
    let Some(probe) = probe else { return };
    for (field, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if field.unwrap_or(0) == 0 {
            *field = Some(default);
        }
    }
    set_http_get_defaults(probe.http_get.as_mut());
    if let Some(grpc) = &mut probe.grpc {
        set(&mut grpc.service, String::new());
    }
}

fn set_http_get_defaults(http_get: Option<&mut HTTPGetAction>) {
    let Some(http_get) = http_get else { return };
    fill(&mut http_get.path, "/");
    fill(&mut http_get.scheme, "HTTP");
}

fn set_lifecycle_defaults(lifecycle: Option<&mut Lifecycle>) {
    let Some(lifecycle) = lifecycle else { return };
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop]
        .into_iter()
        .flatten()
    {
        set_http_get_defaults(handler.http_get.as_mut());
    }
}

/// `Always` for the tag `latest` (which no tag and no digest means), else `IfNotPresent`.
pub(super) fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == Some("latest") {
        "Always"
    } else {
        "IfNotPresent"
    }
}

/// `None` when the image is pinned by digest or cannot be parsed.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash belongs to a port.
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let tag = name[last..].split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), _) => Some(tag),
        (None, Some(_)) => None,
        (None, None) if is_image_name(name) => Some("latest"),
        (None, None) => None,
    }
}

/// Repository names are lower case: anything else is left for the pull to refuse.
fn is_image_name(name: &str) -> bool {
    let (host, path) = match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.chars().any(char::is_uppercase) =>
        {
            (Some(host), path)
        }
        _ => (None, name),
    };
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let component = |part: &str| {
        part.chars().all(allowed)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    host.is_none_or(|host| !host.is_empty()) && path.split('/').all(component)
}

/// What only real pods get, not templates.
pub fn set_pod_defaults(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    set_pod_spec_defaults(spec);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        let Some(resources) = &mut container.resources else {
            continue;
        };
        let Some(limits) = resources.limits.clone() else {
            continue;
        };
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
    set_pod_level_defaults(spec);
    set(&mut spec.enable_service_links, true);
}

/// KEP-2837: what of pod-level requests and limits follows from the other and from the containers.
fn set_pod_level_defaults(spec: &mut PodSpec) {
    let Some(resources) = spec.resources.clone() else {
        return;
    };
    let has = |list: &Option<ResourceList>| list.as_ref().is_some_and(|list| !list.is_empty());
    let mut limits = resources.limits.clone().unwrap_or_default();
    let mut requests = resources.requests.clone().unwrap_or_default();
    let container_limits = aggregate_container_limits(spec);
    if has(&resources.limits) || has(&resources.requests) {
        for (name, limit) in &container_limits {
            if is_huge_page(name) && !requests.contains_key(name) && !limits.contains_key(name) {
                limits.insert(name.clone(), limit.clone());
            }
        }
    }
    if !limits.is_empty() {
        for (name, request) in aggregate_container_requests(spec) {
            if is_pod_level_resource(&name) && is_overcommit_allowed(&name) {
                requests.entry(name).or_insert(request);
            }
        }
        for (name, limit) in &limits {
            if is_pod_level_resource(name) {
                requests
                    .entry(name.clone())
                    .or_insert_with(|| limit.clone());
            }
        }
    }
    let kept = spec.resources.get_or_insert_default();
    if !limits.is_empty() {
        kept.limits = Some(limits);
    }
    if !requests.is_empty() {
        kept.requests = Some(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("host:5000/a/b", "Always"),
            ("host:5000/a/b:v1", "IfNotPresent"),
            ("a@sha256:0123", "IfNotPresent"),
            ("a:latest@sha256:0123", "Always"),
            ("Bad Name", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image:?}");
        }
    }
}
