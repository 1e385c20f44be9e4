//! Containers, init containers and ephemeral containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, EphemeralContainer, ResourceClaim,
    ResourceRequirements, VolumeDevice, VolumeMount,
};

use super::{
    env::{validate_env, validate_env_from},
    net::{validate_port_number, validate_protocol},
    probes::{ProbeOf, validate_lifecycle, validate_probe},
    resources::{NameRule, validate_container_resource_name, validate_requirements},
    security::validate_security_context,
    text,
    volume_sources::{validate_descending_path, validate_no_backsteps},
    volumes::VolumesByName,
};
use crate::{
    field::{Bad, Errors, FieldError, FieldErrorKind, Path},
    pod::is_sidecar,
    quantity::ResourceList,
    zero::{Flag, List, Text},
};

/// What of the pod its containers are checked against.
pub struct Around<'a> {
    pub volumes: &'a VolumesByName<'a>,
    /// Names in `spec.resourceClaims`.
    pub claims: &'a BTreeSet<&'a str>,
    pub grace_seconds: Option<i64>,
    pub restart_policy: &'a str,
    /// Whether the pod shares the node's user namespace.
    pub host_users: bool,
}

const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

pub fn validate_pull_policy(policy: &str, path: &Path<'_>, errors: &mut Errors) {
    if policy.is_empty() {
        errors.required(path, "");
    } else if !PULL_POLICIES.contains(&policy) {
        errors.not_supported(path, policy, &PULL_POLICIES);
    }
}

pub fn validate_containers(
    containers: &[Container],
    around: &Around<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if containers.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut names = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        validate_common(container, around, &path, errors);
        validate_restart_policy(container, &path, errors);
        if !names.insert(container.name.as_str()) {
            errors.duplicate(&path.child("name"), &container.name);
        }
        validate_hooks(container, around, &path, errors);
    }
    validate_host_ports(containers, path, errors);
}

fn validate_hooks(
    container: &Container,
    around: &Around<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let grace = around.grace_seconds;
    if let Some(lifecycle) = &container.lifecycle {
        validate_lifecycle(lifecycle, grace, &path.child("lifecycle"), errors);
    }
    for (field, of, probe) in [
        (
            "livenessProbe",
            ProbeOf::Liveness,
            &container.liveness_probe,
        ),
        (
            "readinessProbe",
            ProbeOf::Readiness,
            &container.readiness_probe,
        ),
        ("startupProbe", ProbeOf::Startup, &container.startup_probe),
    ] {
        validate_probe(probe.as_ref(), of, grace, &path.child(field), errors);
    }
}

pub fn validate_init_containers(
    containers: &[Container],
    regular: &[Container],
    around: &Around<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut names: BTreeSet<&str> = regular.iter().map(|one| one.name.as_str()).collect();
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        validate_common(container, around, &at, errors);
        validate_restart_policy(container, &at, errors);
        if names.contains(container.name.as_str()) {
            errors.duplicate(&at.child("name"), &container.name);
        } else if !container.name.is_empty() {
            names.insert(&container.name);
        }
        validate_host_ports(std::slice::from_ref(container), path, errors);
        if is_sidecar(container) {
            validate_hooks(container, around, &at, errors);
            continue;
        }
        for (field, present) in [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ] {
            if present {
                errors.forbidden(
                    &at.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

/// KEP-5307: a policy of the container's own, and rules by exit code.
fn validate_restart_policy(container: &Container, path: &Path<'_>, errors: &mut Errors) {
    let rules = container.restart_policy_rules.items();
    match &container.restart_policy {
        Some(policy) if !RESTART_POLICIES.contains(&policy.as_str()) => {
            errors.not_supported(&path.child("restartPolicy"), policy, &RESTART_POLICIES);
        }
        None if !rules.is_empty() => errors.required(
            &path.child("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        ),
        _ => {}
    }
    let rules_path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&rules_path, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = rules_path.index(i);
        if rule.action.is_empty() {
            errors.required(&path.child("action"), "");
        } else if rule.action != "Restart" {
            errors.not_supported(&path.child("action"), &rule.action, &["Restart"]);
        }
        let path = path.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&path, "must be specified");
            continue;
        };
        if codes.operator.is_empty() {
            errors.required(&path.child("operator"), "");
        } else if !matches!(codes.operator.as_str(), "In" | "NotIn") {
            errors.not_supported(&path.child("operator"), &codes.operator, &["In", "NotIn"]);
        }
        let values = codes.values.items();
        if values.is_empty() {
            errors.required(&path.child("values"), "must specify at least one value");
        } else if values.len() > 255 {
            errors.too_many(&path.child("values"), values.len(), 255);
        }
    }
}

pub fn validate_ephemeral_containers(
    containers: &[EphemeralContainer],
    others: &[&Container],
    around: &Around<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let targets: BTreeSet<&str> = others.iter().map(|one| one.name.as_str()).collect();
    let mut names = targets.clone();
    for (i, ephemeral) in containers.iter().enumerate() {
        let path = path.index(i);
        let container = as_container(ephemeral);
        validate_common(&container, around, &path, errors);
        validate_image_padding(&container, &path, errors);
        if !names.insert(ephemeral.name.as_str()) {
            errors.duplicate(&path.child("name"), &ephemeral.name);
        }
        let target = ephemeral.target_container_name.text();
        if !target.is_empty() && !targets.contains(target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        let resources = ephemeral.resources.clone().unwrap_or_default();
        for (field, set) in [
            ("ports", !ephemeral.ports.items().is_empty()),
            ("resources", resources != ResourceRequirements::default()),
            ("resizePolicy", ephemeral.resize_policy.is_some()),
            ("restartPolicy", ephemeral.restart_policy.is_some()),
            (
                "restartPolicyRules",
                ephemeral.restart_policy_rules.is_some(),
            ),
            ("livenessProbe", ephemeral.liveness_probe.is_some()),
            ("readinessProbe", ephemeral.readiness_probe.is_some()),
            ("startupProbe", ephemeral.startup_probe.is_some()),
            ("lifecycle", ephemeral.lifecycle.is_some()),
        ] {
            if set {
                errors.forbidden(
                    &path.child(field),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
        let mounts = path.child("volumeMounts");
        for (i, mount) in ephemeral.volume_mounts.items().iter().enumerate() {
            for (field, value) in [
                ("subPath", &mount.sub_path),
                ("subPathExpr", &mount.sub_path_expr),
            ] {
                if !value.text().is_empty() {
                    errors.forbidden(
                        &mounts.index(i).child(field),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
    }
}

/// The fields that both have.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let one = ephemeral.clone();
    Container {
        args: one.args,
        command: one.command,
        env: one.env,
        env_from: one.env_from,
        image: one.image,
        image_pull_policy: one.image_pull_policy,
        lifecycle: one.lifecycle,
        liveness_probe: one.liveness_probe,
        name: one.name,
        ports: one.ports,
        readiness_probe: one.readiness_probe,
        resize_policy: one.resize_policy,
        resources: one.resources,
        restart_policy: one.restart_policy,
        restart_policy_rules: one.restart_policy_rules,
        security_context: one.security_context,
        startup_probe: one.startup_probe,
        stdin: one.stdin,
        stdin_once: one.stdin_once,
        termination_message_path: one.termination_message_path,
        termination_message_policy: one.termination_message_policy,
        tty: one.tty,
        volume_devices: one.volume_devices,
        volume_mounts: one.volume_mounts,
        working_dir: one.working_dir,
    }
}

/// Templates may have it; pods may not.
pub fn validate_image_padding(container: &Container, path: &Path<'_>, errors: &mut Errors) {
    let image = container.image.text();
    if image.trim() != image {
        errors.invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
}

fn validate_common(
    container: &Container,
    around: &Around<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if container.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(
            &path.child("name"),
            &container.name,
            text::dns1123_label(&container.name),
        );
    }
    if container.image.text().is_empty() {
        errors.required(&path.child("image"), "");
    }
    let at = path.child("terminationMessagePolicy");
    match container.termination_message_policy.text() {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.required(&at, ""),
        other => errors.not_supported(&at, other, &["File", "FallbackToLogsOnError"]),
    }
    let mounts = container.volume_mounts.items();
    let devices = container.volume_devices.items();
    validate_ports(container.ports.items(), &path.child("ports"), errors);
    validate_env(
        container.env.items(),
        around.volumes,
        &path.child("env"),
        errors,
    );
    validate_env_from(container.env_from.items(), &path.child("envFrom"), errors);
    validate_mounts(
        container,
        mounts,
        devices,
        around.volumes,
        &path.child("volumeMounts"),
        errors,
    );
    validate_devices(
        devices,
        mounts,
        around.volumes,
        &path.child("volumeDevices"),
        errors,
    );
    validate_pull_policy(
        container.image_pull_policy.text(),
        &path.child("imagePullPolicy"),
        errors,
    );
    if let Some(resources) = &container.resources {
        validate_resources(
            resources,
            validate_container_resource_name,
            around.claims,
            &path.child("resources"),
            errors,
        );
    }
    validate_resize_policy(
        container.resize_policy.items(),
        around.restart_policy,
        &path.child("resizePolicy"),
        errors,
    );
    validate_security_context(
        container.security_context.as_ref(),
        around.host_users,
        &path.child("securityContext"),
        errors,
    );
}

pub fn validate_resources(
    resources: &ResourceRequirements,
    rule: NameRule,
    claims: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let none = ResourceList::new();
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let requests = resources.requests.as_ref().unwrap_or(&none);
    validate_requirements(limits, requests, rule, path, errors);
    validate_claim_names(
        resources.claims.items(),
        claims,
        &path.child("claims"),
        errors,
    );
}

fn validate_claim_names(
    claims: &[ResourceClaim],
    known: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let name = claim.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let request = claim.request.text();
        if names.contains(name) {
            errors.duplicate(&path, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.invalid_each(
                    &path.child("request"),
                    request,
                    text::dns1123_label(request),
                );
                key = format!("{name}/{request}");
            }
            let part = format!("{name}/");
            if names.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() && names.iter().any(|key| key.starts_with(&part)) {
                errors.duplicate(&path, name);
            }
            names.insert(key);
        }
        if !known.contains(name) {
            let all: Vec<&str> = known.iter().copied().collect();
            let which = if all.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", all.join(", "))
            };
            errors.push(FieldError::new(
                FieldErrorKind::NotFound,
                path,
                name,
                format!("must be one of the names in pod.spec.resourceClaims{which}"),
            ));
        }
    }
}

fn validate_ports(ports: &[ContainerPort], path: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.name.text();
        if !name.is_empty() {
            let messages = text::port_name(name);
            if !messages.is_empty() {
                errors.invalid_each(&path.child("name"), name, messages);
            } else if !names.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        if port.container_port == 0 {
            errors.required(&path.child("containerPort"), "");
        } else {
            validate_port_number(port.container_port, &path.child("containerPort"), errors);
        }
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            validate_port_number(host_port, &path.child("hostPort"), errors);
        }
        validate_protocol(port.protocol.text(), &path.child("protocol"), errors);
    }
}

/// No two may ask for the same port of the node.
fn validate_host_ports(containers: &[Container], path: &Path<'_>, errors: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        let path = path.child("ports");
        for (j, port) in container.ports.items().iter().enumerate() {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else {
                continue;
            };
            let key = format!(
                "{}/{}/{host_port}",
                port.protocol.text(),
                port.host_ip.text()
            );
            if taken.contains(&key) {
                errors.duplicate(&path.index(j).child("hostPort"), key);
            } else {
                taken.insert(key);
            }
        }
    }
}

/// Some paths leave the index out, as upstream's do.
fn validate_mounts(
    container: &Container,
    mounts: &[VolumeMount],
    devices: &[VolumeDevice],
    volumes: &VolumesByName<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut points = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let at = path.index(i);
        if mount.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        let volume = volumes.get(mount.name.as_str());
        if volume.is_none() {
            errors.not_found(&at.child("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            errors.required(&at.child("mountPath"), "");
        }
        if !points.insert(mount.mount_path.as_str()) {
            errors.invalid(&at.child("mountPath"), &mount.mount_path, "must be unique");
        }
        if devices.iter().any(|device| device.name == mount.name) {
            errors.invalid(
                &at.child("name"),
                &mount.name,
                "must not already exist in volumeDevices",
            );
        }
        if devices
            .iter()
            .any(|device| device.device_path == mount.mount_path)
        {
            errors.invalid(
                &at.child("mountPath"),
                &mount.mount_path,
                "must not already exist as a path in volumeDevices",
            );
        }
        let sub_path = mount.sub_path.text();
        if !sub_path.is_empty() {
            validate_descending_path(sub_path, &path.child("subPath"), errors);
        }
        let expression = mount.sub_path_expr.text();
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                errors.invalid(
                    &at.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            validate_descending_path(expression, &path.child("subPathExpr"), errors);
        }
        validate_propagation(container, mount, &path.child("mountPropagation"), errors);
        validate_recursive_read_only(mount, &path.child("recursiveReadOnly"), errors);
    }
}

fn validate_propagation(
    container: &Container,
    mount: &VolumeMount,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let modes = ["Bidirectional", "HostToContainer", "None"];
    let Some(mode) = &mount.mount_propagation else {
        return;
    };
    if !modes.contains(&mode.as_str()) {
        errors.not_supported(path, mode, &modes);
    }
    let privileged = container
        .security_context
        .as_ref()
        .is_some_and(|context| context.privileged.is_true());
    if mode == "Bidirectional" && !privileged {
        errors.forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn validate_recursive_read_only(mount: &VolumeMount, path: &Path<'_>, errors: &mut Errors) {
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.read_only.is_true() {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount
                .mount_propagation
                .as_deref()
                .is_some_and(|mode| mode != "None")
            {
                errors.forbidden(
                    path,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        Some(other) => {
            errors.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]);
        }
    }
}

fn validate_devices(
    devices: &[VolumeDevice],
    mounts: &[VolumeMount],
    volumes: &VolumesByName<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for (i, device) in devices.iter().enumerate() {
        let path = path.index(i);
        let (name, device_path) = (device.name.as_str(), device.device_path.as_str());
        let name_at = path.child("name");
        let path_at = path.child("devicePath");
        if name.is_empty() {
            errors.required(&name_at, "");
        }
        if names.contains(name) {
            errors.invalid(&name_at, name, "must be unique");
        }
        match volumes.get(name) {
            Some(volume)
                if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() =>
            {
                errors.invalid(
                    &name_at,
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                );
            }
            Some(_) => {}
            None => errors.not_found(&name_at, name),
        }
        if device_path.is_empty() {
            errors.required(&path_at, "");
        }
        if paths.contains(device_path) {
            errors.invalid(&path_at, device_path, "must be unique");
        }
        let mut steps = Errors::default();
        validate_no_backsteps(device_path, &path_at, &mut steps);
        if steps.is_empty() {
            paths.insert(device_path);
        } else {
            errors.invalid(&path_at, device_path, "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|mount| mount.name == name) {
            errors.invalid(&name_at, name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|mount| mount.mount_path == device_path) {
            errors.invalid(
                &path_at,
                device_path,
                "must not already exist as a path in volumeMounts",
            );
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

fn validate_resize_policy(
    policies: &[ContainerResizePolicy],
    pod_policy: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut seen = BTreeSet::new();
    for (i, policy) in policies.iter().enumerate() {
        let (resource, restart) = (
            policy.resource_name.as_str(),
            policy.restart_policy.as_str(),
        );
        if !seen.insert(resource) {
            errors.duplicate(&path.index(i), resource);
        }
        match resource {
            "cpu" | "memory" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["NotRequired", "RestartContainer"]),
        }
        if pod_policy == "Never" && restart != "NotRequired" {
            errors.invalid(
                path,
                Bad::json(&restart),
                "must be 'NotRequired' when `restartPolicy` is 'Never'",
            );
        }
    }
}
