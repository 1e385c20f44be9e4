//! What is accepted but probably not meant (upstream `pkg/api/pod/warnings.go`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{net::ip_warning, path_overlaps::overlap_warnings, security::visit_containers};
use crate::{
    field::{Path, quoted},
    pod::is_sidecar,
    quantity::{Amount, ResourceList},
    strategy::Warnings,
    zero::{List, Text},
};

/// Updates of pods come from machines: nobody reads what they are warned of.
pub fn pod_warnings(pod: &Pod, old: Option<&Pod>) -> Warnings {
    if old.is_some() {
        return Warnings::new();
    }
    let mut warnings = name_warnings(&pod.metadata, "the Pod's hostname");
    if let Some(spec) = &pod.spec {
        spec_warnings(spec, &pod.metadata, &Path::ROOT, false, &mut warnings);
    }
    warnings
}

/// A name that becomes part of pods' and does not do for a hostname.
fn name_warnings(meta: &ObjectMeta, use_: &str) -> Warnings {
    let messages = super::text::dns1123_label(meta.name.text());
    if messages.is_empty() {
        return Warnings::new();
    }
    vec![format!(
        "metadata.name: this is used in {use_}, which can result in surprising behavior; a DNS label is recommended: [{}]",
        messages.join(" ")
    )]
}

/// Of a controller whose name begins those of its pods, and of its template.
pub fn template_owner_warnings(
    template: Option<&PodTemplateSpec>,
    meta: &ObjectMeta,
    old: Option<&ObjectMeta>,
    path: &str,
) -> Warnings {
    let mut warnings = match old {
        Some(_) => Warnings::new(),
        None => name_warnings(meta, "Pod names and hostnames"),
    };
    warnings.extend(pod_template_warnings(template, meta, old, path));
    warnings
}

/// Of a controller's template: of a new one, and of one whose generation an update changes.
pub fn pod_template_warnings(
    template: Option<&PodTemplateSpec>,
    meta: &ObjectMeta,
    old: Option<&ObjectMeta>,
    path: &str,
) -> Warnings {
    let mut warnings = Warnings::new();
    let unchanged = old.is_some_and(|old| old.generation == meta.generation);
    if let Some(template) = template.filter(|_| !unchanged)
        && let Some(spec) = &template.spec
    {
        let meta = template.metadata.clone().unwrap_or_default();
        spec_warnings(spec, &meta, &Path::new(path), true, &mut warnings);
    }
    warnings
}

/// Labels of nodes that were renamed.
pub fn deprecated_node_label(label: &str) -> Option<String> {
    let (since, instead) = match label {
        "beta.kubernetes.io/arch" => ("v1.14", "kubernetes.io/arch"),
        "beta.kubernetes.io/os" => ("v1.14", "kubernetes.io/os"),
        "failure-domain.beta.kubernetes.io/region" => ("v1.17", "topology.kubernetes.io/region"),
        "failure-domain.beta.kubernetes.io/zone" => ("v1.17", "topology.kubernetes.io/zone"),
        "beta.kubernetes.io/instance-type" => ("v1.17", "node.kubernetes.io/instance-type"),
        _ => return None,
    };
    Some(format!(
        "deprecated since {since}; use {} instead",
        quoted(instead)
    ))
}

/// `values`: whether those are looked at too; where they are required, a bad one is refused.
pub fn node_selector_term_warnings(
    term: &NodeSelectorTerm,
    values: bool,
    path: &Path<'_>,
    warnings: &mut Warnings,
) {
    let at = path.child("matchExpressions");
    for (i, expression) in term.match_expressions.items().iter().enumerate() {
        let at = at.index(i);
        if let Some(message) = deprecated_node_label(&expression.key) {
            warnings.push(format!(
                "{}: {} is {message}",
                at.child("key"),
                expression.key
            ));
        }
        if !values {
            continue;
        }
        let at = at.child("values");
        for (j, value) in expression.values.items().iter().enumerate() {
            for message in super::text::label_value(value) {
                warnings.push(format!("{}: {value} is invalid, {message}", at.index(j)));
            }
        }
    }
}

fn spec_warnings(
    spec: &PodSpec,
    meta: &ObjectMeta,
    root: &Path<'_>,
    is_template: bool,
    warnings: &mut Warnings,
) {
    let path = root.child("spec");
    scheduling_warnings(spec, &path, warnings);
    annotation_warnings(meta, root, warnings);
    volume_warnings(spec, &path, warnings);
    overlap_warnings(spec, warnings);
    let at = path.child("hostAliases");
    let mut seen = BTreeSet::new();
    for (i, alias) in spec.host_aliases.items().iter().enumerate() {
        if !seen.insert(&alias.ip) {
            warnings.push(format!(
                "{}: duplicate ip {}",
                at.index(i).child("ip"),
                quoted(&alias.ip)
            ));
        }
    }
    let at = path.child("imagePullSecrets");
    let mut seen = BTreeSet::new();
    for (i, secret) in spec.image_pull_secrets.items().iter().enumerate() {
        if !seen.insert(&secret.name) {
            let name = quoted(&secret.name);
            warnings.push(format!(
                "{}: duplicate name {name}",
                at.index(i).child("name")
            ));
        }
    }
    for (i, secret) in spec.image_pull_secrets.items().iter().enumerate() {
        if secret.name.is_empty() {
            warnings.push(format!(
                "{}: invalid empty name \"\"",
                at.index(i).child("name")
            ));
        }
    }
    fraction_warnings(spec.overhead.as_ref(), &path.child("overhead"), warnings);
    let context = spec.security_context.clone().unwrap_or_default();
    let annotations = root.child("metadata.annotations");
    let has = |key: &str| {
        meta.annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(key))
    };
    const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    if context.seccomp_profile.is_none() && has(SECCOMP_POD) {
        warnings.push(format!(
            "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
            annotations.key(SECCOMP_POD)
        ));
    }
    visit_containers(spec, &path, &mut |container, path| {
        let own = container.security_context.clone().unwrap_or_default();
        let key = format!(
            "container.seccomp.security.alpha.kubernetes.io/{}",
            container.name
        );
        if own.seccomp_profile.is_none() && has(&key) {
            warnings.push(format!(
                "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
                annotations.key(&key)
            ));
        }
        let key = format!(
            "container.apparmor.security.beta.kubernetes.io/{}",
            container.name
        );
        let has_field = context.app_armor_profile.is_some() || own.app_armor_profile.is_some();
        if is_template && !has_field && has(&key) {
            warnings.push(format!(
                "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                annotations.key(&key)
            ));
        }
        container_warnings(container, path, warnings);
    });
    port_warnings(spec, &path, warnings);
    if spec
        .termination_grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        warnings.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    pod_affinity_warnings(spec, &path, warnings);
    let at = path.child("dnsConfig.nameservers");
    let servers = spec.dns_config.as_ref().map(|dns| dns.nameservers.items());
    for (i, server) in servers.unwrap_or_default().iter().enumerate() {
        warnings.extend(ip_warning(server, &at.index(i)));
    }
    let at = path.child("hostAliases");
    for (i, alias) in spec.host_aliases.items().iter().enumerate() {
        warnings.extend(ip_warning(&alias.ip, &at.index(i).child("ip")));
    }
}

/// Terms without a selector are no use.
fn pod_affinity_warnings(spec: &PodSpec, path: &Path<'_>, warnings: &mut Warnings) {
    let affinity = spec.affinity.clone().unwrap_or_default();
    let near = affinity.pod_affinity.map(|one| {
        (
            one.required_during_scheduling_ignored_during_execution,
            one.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let far = affinity.pod_anti_affinity.map(|one| {
        (
            one.required_during_scheduling_ignored_during_execution,
            one.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let affinity = path.child("affinity");
    for (field, terms) in [("podAffinity", near), ("podAntiAffinity", far)] {
        let Some((required, preferred)) = terms else {
            continue;
        };
        let path = affinity.child(field);
        let mut report = |at: &Path<'_>| {
            let at = at.child("labelSelector");
            warnings.push(format!(
                "{at}: a null labelSelector results in matching no pod"
            ));
        };
        let at = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in required.items().iter().enumerate() {
            if term.label_selector.is_none() {
                report(&at.index(i));
            }
        }
        let at = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in preferred.items().iter().enumerate() {
            if term.pod_affinity_term.label_selector.is_none() {
                report(&at.index(i).child("podAffinityTerm"));
            }
        }
    }
}

fn scheduling_warnings(spec: &PodSpec, path: &Path<'_>, warnings: &mut Warnings) {
    let at = path.child("nodeSelector");
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(message) = deprecated_node_label(key) {
            warnings.push(format!("{}: {message}", at.key(key)));
        }
    }
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    if let Some(affinity) = affinity {
        let path = path.child("affinity.nodeAffinity");
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref();
        let at = path.child("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        let terms = required.map(|selector| selector.node_selector_terms.as_slice());
        for (i, term) in terms.unwrap_or_default().iter().enumerate() {
            node_selector_term_warnings(term, false, &at.index(i), warnings);
        }
        let at = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        let terms = affinity
            .preferred_during_scheduling_ignored_during_execution
            .items();
        for (i, term) in terms.iter().enumerate() {
            let at = at.index(i);
            let preference = &term.preference;
            node_selector_term_warnings(preference, true, &at.child("preference"), warnings);
        }
    }
    let at = path.child("topologySpreadConstraints");
    for (i, constraint) in spec.topology_spread_constraints.items().iter().enumerate() {
        let at = at.index(i);
        if let Some(message) = deprecated_node_label(&constraint.topology_key) {
            let key = &constraint.topology_key;
            warnings.push(format!("{}: {key} is {message}", at.child("topologyKey")));
        }
        if constraint.label_selector.is_none() {
            warnings.push(format!(
                "{}: a null labelSelector results in matching no pod",
                at.child("labelSelector")
            ));
        }
    }
}

fn annotation_warnings(meta: &ObjectMeta, root: &Path<'_>, warnings: &mut Warnings) {
    let at = root.child("metadata.annotations");
    for (key, message) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/unsafe-sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
    ] {
        if meta
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(key))
        {
            warnings.push(format!("{}: {message}", at.key(key)));
        }
    }
}

fn volume_warnings(spec: &PodSpec, path: &Path<'_>, warnings: &mut Warnings) {
    let at = path.child("volumes");
    for (i, volume) in spec.volumes.items().iter().enumerate() {
        let at = at.index(i);
        for (used, field, message) in [
            (
                volume.photon_persistent_disk.is_some(),
                "photonPersistentDisk",
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            (
                volume.git_repo.is_some(),
                "gitRepo",
                "deprecated in v1.11, and disabled by default in v1.33+",
            ),
            (
                volume.scale_io.is_some(),
                "scaleIO",
                "deprecated in v1.16, non-functional in v1.22+",
            ),
            (
                volume.flocker.is_some(),
                "flocker",
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                volume.storageos.is_some(),
                "storageOS",
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                volume.quobyte.is_some(),
                "quobyte",
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                volume.glusterfs.is_some(),
                "glusterfs",
                "deprecated in v1.25, non-functional in v1.26+",
            ),
        ] {
            if used {
                warnings.push(format!("{}: {message}", at.child(field)));
            }
        }
        let template = volume
            .ephemeral
            .as_ref()
            .and_then(|one| one.volume_claim_template.as_ref());
        if let Some(template) = template {
            let at = at.child("ephemeral.volumeClaimTemplate.spec");
            claim_warnings(
                template
                    .spec
                    .resources
                    .as_ref()
                    .and_then(|one| one.requests.as_ref()),
                &at,
                warnings,
            );
        }
        for (used, field) in [
            (volume.cephfs.is_some(), "cephfs"),
            (volume.rbd.is_some(), "rbd"),
        ] {
            if used {
                warnings.push(format!(
                    "{}: deprecated in v1.28, non-functional in v1.31+",
                    at.child(field)
                ));
            }
        }
    }
}

/// `resources.requests[storage]` in fractions of a byte.
pub fn claim_warnings(requests: Option<&ResourceList>, path: &Path<'_>, warnings: &mut Warnings) {
    let storage = requests
        .and_then(|requests| requests.get("storage"))
        .map(Amount::of);
    if let Some(storage) = storage.filter(|amount| amount.milli_value() % 1000 != 0) {
        let at = path.child("resources.requests");
        warnings.push(format!(
            "{}: fractional byte value {} is invalid, must be an integer",
            at.key("storage"),
            quoted(&storage.to_string())
        ));
    }
}

fn fraction_warnings(list: Option<&ResourceList>, path: &Path<'_>, warnings: &mut Warnings) {
    for name in ["memory", "ephemeral-storage"] {
        let Some(amount) = list.and_then(|list| list.get(name)).map(Amount::of) else {
            continue;
        };
        if amount.milli_value() % 1000 != 0 {
            warnings.push(format!(
                "{}: fractional byte value {} is invalid, must be an integer",
                path.key(name),
                quoted(&amount.to_string())
            ));
        }
    }
}

fn container_warnings(container: &Container, path: &Path<'_>, warnings: &mut Warnings) {
    let resources = container.resources.clone().unwrap_or_default();
    for name in ["memory", "ephemeral-storage"] {
        for (field, list) in [
            ("limits", &resources.limits),
            ("requests", &resources.requests),
        ] {
            let one: Option<ResourceList> = list.as_ref().and_then(|list| {
                list.get(name)
                    .map(|quantity| BTreeMap::from([(name.to_owned(), quantity.clone())]))
            });
            let at = path.child("resources");
            fraction_warnings(one.as_ref(), &at.child(field), warnings);
        }
    }
    let mut names = BTreeSet::new();
    for (i, variable) in container.env.items().iter().enumerate() {
        if names.insert(&variable.name) {
            continue;
        }
        let reference = format!("$({})", variable.name);
        let value = variable.value.text();
        let hides =
            variable.value_from.is_some() || value == reference || !value.contains(&reference);
        if hides {
            warnings.push(format!(
                "{}: hides previous definition of {}, which may be dropped when using apply",
                path.child("env").index(i),
                quoted(&variable.name)
            ));
        }
    }
}

fn port_warnings(spec: &PodSpec, path: &Path<'_>, warnings: &mut Warnings) {
    let mut seen: BTreeMap<(i32, String), Vec<(String, ContainerPort)>> = BTreeMap::new();
    visit_containers(spec, path, &mut |container, path| {
        let at = path.child("ports");
        for (i, port) in container.ports.items().iter().enumerate() {
            let place = at.index(i).to_string();
            let host_port = port.host_port.unwrap_or(0);
            if !port.host_ip.text().is_empty() && host_port == 0 {
                warnings.push(format!(
                    "{place}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{}}}",
                    port.name.text(),
                    port.container_port,
                    port.protocol.text(),
                    port.host_ip.text()
                ));
            }
            let key = (port.container_port, port.protocol.text().to_owned());
            let others = seen.entry(key).or_default();
            for (other_place, other) in others.iter() {
                let other_host_port = other.host_port.unwrap_or(0);
                let (ip, other_ip) = (port.host_ip.text(), other.host_ip.text());
                let what = if ip == other_ip && host_port == other_host_port {
                    "duplicate"
                } else if host_port == 0 || other_host_port == 0 {
                    "overlapping"
                } else if host_port == other_host_port && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!(
                    "{place}: {what} port definition with {other_place}"
                ));
            }
            others.push((place, port.clone()));
        }
    });
    // Names are looked up pod-wide by Services: a second one is never found.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    visit_containers(spec, path, &mut |container, path| {
        let lasting = spec.containers.contains(container) || is_sidecar(container);
        let at = path.child("ports");
        for (i, port) in container.ports.items().iter().enumerate() {
            let name = port.name.text();
            if name.is_empty() || !lasting {
                continue;
            }
            let place = at.index(i).to_string();
            match names.get(name) {
                Some(first) => warnings.push(format!(
                    "{place}: duplicate port name {} with {first}, services and probes that select ports by name will use {first}",
                    quoted(name)
                )),
                None => {
                    names.insert(name.to_owned(), place);
                }
            }
        }
    });
}
