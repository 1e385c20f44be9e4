//! Specs of pods and pod templates (upstream `ValidatePodSpec`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, PodResourceClaim, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{
    containers::{
        Around, validate_containers, validate_ephemeral_containers, validate_init_containers,
        validate_resources,
    },
    labels::{Labels, validate_labels},
    net::validate_ip,
    resources::{
        validate_container_resource_name, validate_pod_resource_name, validate_requirements,
    },
    scheduling::{validate_affinity, validate_spread, validate_tolerations},
    security::{
        validate_host_process, validate_host_users, validate_os_specifics,
        validate_pod_security_context, validate_profile_annotations,
    },
    text,
    volumes::validate_volumes,
};
use crate::{
    field::{Bad, Errors, Path},
    pod::aggregate_container_requests,
    quantity::{Amount, ResourceList},
    zero::{Flag, List, Text},
};

/// What differs between a pod and the template of one.
#[derive(Clone, Copy)]
pub struct PodRules {
    pub is_pod: bool,
}

impl PodRules {
    pub const fn pod() -> Self {
        Self { is_pod: true }
    }

    pub const fn template() -> Self {
        Self { is_pod: false }
    }
}

pub fn validate_pod_annotations(
    annotations: Option<&BTreeMap<String, String>>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let Some(annotations) = annotations else {
        return;
    };
    if let Some(value) = annotations.get(MIRROR)
        && spec.node_name.text().is_empty()
    {
        errors.invalid(
            &path.key(MIRROR),
            value,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    if let Some(cost) = annotations.get(DELETION_COST) {
        // No leading zeros and no plus sign: the text must be what the number prints as.
        let fits = cost
            .parse::<i32>()
            .is_ok_and(|number| number.to_string() == *cost);
        if !fits {
            errors.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
        }
    }
    validate_profile_annotations(annotations, spec, path, errors);
}

/// `meta`: of a real pod, for the names of claims that are made for it.
pub fn validate_pod_spec(
    spec: &PodSpec,
    meta: Option<&ObjectMeta>,
    rules: PodRules,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let grace_seconds = spec.termination_grace_period_seconds;
    if grace_seconds.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = validate_volumes(spec.volumes.items(), meta, &path.child("volumes"), errors);
    let claims: BTreeSet<&str> = spec
        .resource_claims
        .items()
        .iter()
        .map(|claim| claim.name.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    validate_resource_claims(
        spec.resource_claims.items(),
        &path.child("resourceClaims"),
        errors,
    );
    let around = Around {
        volumes: &volumes,
        claims: &claims,
        grace_seconds,
        restart_policy: spec.restart_policy.text(),
        host_users: spec.host_users.unwrap_or(true),
    };
    let init = spec.init_containers.items();
    validate_containers(&spec.containers, &around, &path.child("containers"), errors);
    validate_init_containers(
        init,
        &spec.containers,
        &around,
        &path.child("initContainers"),
        errors,
    );
    let others: Vec<&Container> = spec.containers.iter().chain(init).collect();
    validate_ephemeral_containers(
        spec.ephemeral_containers.items(),
        &others,
        &around,
        &path.child("ephemeralContainers"),
        errors,
    );
    validate_pod_resources(spec, &claims, &path.child("resources"), errors);
    validate_host_network_ports(spec, rules, &path.child("containers"), errors);
    validate_word(
        spec.restart_policy.text(),
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        errors,
    );
    validate_word(
        spec.dns_policy.text(),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        &path.child("dnsPolicy"),
        errors,
    );
    validate_labels(
        spec.node_selector.as_ref(),
        &path.child("nodeSelector"),
        errors,
    );
    validate_pod_security_context(spec, &path.child("securityContext"), errors);
    validate_affinity(spec.affinity.as_ref(), &path.child("affinity"), errors);
    validate_dns_config(spec, &path.child("dnsConfig"), errors);
    let gates = path.child("readinessGates");
    for (i, gate) in spec.readiness_gates.items().iter().enumerate() {
        let type_ = gate.condition_type.as_str();
        errors.invalid_each(
            &gates.index(i).child("conditionType"),
            type_,
            text::qualified_name(type_),
        );
    }
    let gates = path.child("schedulingGates");
    let mut seen = BTreeSet::new();
    for (i, gate) in spec.scheduling_gates.items().iter().enumerate() {
        errors.invalid_each(
            &gates.index(i),
            &gate.name,
            text::qualified_name(&gate.name),
        );
        if !seen.insert(&gate.name) {
            errors.duplicate(&gates.index(i), &gate.name);
        }
    }
    validate_spread(
        spec.topology_spread_constraints.items(),
        &path.child("topologySpreadConstraints"),
        errors,
    );
    validate_host_process(spec, path, errors);
    validate_host_users(spec, path, errors);
    validate_name(
        spec.service_account_name.text(),
        text::dns1123_subdomain,
        &path.child("serviceAccountName"),
        errors,
    );
    validate_name(
        spec.node_name.text(),
        text::dns1123_subdomain,
        &path.child("nodeName"),
        errors,
    );
    if let Some(seconds) = spec.active_deadline_seconds {
        for message in text::in_range(seconds, 1, i32::MAX.into()) {
            errors.invalid(&path.child("activeDeadlineSeconds"), seconds, message);
        }
    }
    validate_name(
        spec.hostname.text(),
        text::dns1123_label,
        &path.child("hostname"),
        errors,
    );
    validate_name(
        spec.subdomain.text(),
        text::dns1123_label,
        &path.child("subdomain"),
        errors,
    );
    validate_hostname_override(spec, path, errors);
    validate_tolerations(spec.tolerations.items(), &path.child("tolerations"), errors);
    validate_host_aliases(spec, &path.child("hostAliases"), errors);
    validate_name(
        spec.priority_class_name.text(),
        text::dns1123_subdomain,
        &path.child("priorityClassName"),
        errors,
    );
    if let Some(name) = &spec.runtime_class_name {
        errors.invalid_each(
            &path.child("runtimeClassName"),
            name,
            text::dns1123_subdomain(name),
        );
    }
    if let Some(policy) = &spec.preemption_policy {
        validate_word(
            policy,
            &["PreemptLowerPriority", "Never"],
            &path.child("preemptionPolicy"),
            errors,
        );
    }
    if let Some(overhead) = &spec.overhead {
        validate_requirements(
            overhead,
            &ResourceList::new(),
            validate_container_resource_name,
            &path.child("overhead"),
            errors,
        );
    }
    if let Some(os) = &spec.os {
        if os.name.is_empty() {
            errors.required(&path.child("os.name"), "cannot be empty");
        } else if !matches!(os.name.as_str(), "linux" | "windows") {
            errors.not_supported(&path.child("os"), &os.name, &["linux", "windows"]);
        }
    }
    validate_os_specifics(spec, path, errors);
}

/// One of a few words, none of them empty.
pub fn validate_word(word: &str, words: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if word.is_empty() {
        errors.required(path, "");
    } else if !words.contains(&word) {
        errors.not_supported(path, word, words);
    }
}

/// A name that may be left out.
fn validate_name(
    name: &str,
    rule: fn(&str) -> text::Messages,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if !name.is_empty() {
        errors.invalid_each(path, name, rule(name));
    }
}

fn validate_hostname_override(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(name) = &spec.hostname_override else {
        return;
    };
    let at = path.child("hostnameOverride");
    if spec.set_hostname_as_fqdn.is_true() {
        errors.forbidden(
            &path.child("setHostnameAsFQDN"),
            "may not be specified when `hostnameOverride` is specified",
        );
    }
    if spec.host_network.is_true() {
        errors.forbidden(&at, "may not be specified when `hostNetwork` is true");
    }
    errors.invalid_each(&at, name, text::dns1123_subdomain(name));
    if name.len() > 64 {
        errors.too_long(&at, 64);
    }
}

fn validate_resource_claims(claims: &[PodResourceClaim], path: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let at = path.child("name");
        if claim.name.is_empty() {
            errors.required(&at, "");
        } else if !names.insert(claim.name.as_str()) {
            errors.duplicate(&at, &claim.name);
        } else {
            errors.invalid_each(&at, &claim.name, text::dns1123_label(&claim.name));
        }
        let shown = || {
            Bad::shown(format!(
                r#"{{"Name":{},"ResourceClaimName":{},"ResourceClaimTemplateName":{}}}"#,
                json!(claim.name),
                json!(claim.resource_claim_name),
                json!(claim.resource_claim_template_name)
            ))
        };
        match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (Some(_), Some(_)) => errors.invalid(
                &path,
                shown(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (None, None) => errors.invalid(
                &path,
                shown(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
        for (field, name) in [
            ("resourceClaimName", &claim.resource_claim_name),
            (
                "resourceClaimTemplateName",
                &claim.resource_claim_template_name,
            ),
        ] {
            if let Some(name) = name {
                errors.invalid_each(&path.child(field), name, text::dns1123_subdomain(name));
            }
        }
    }
}

/// KEP-2837.
fn validate_pod_resources(
    spec: &PodSpec,
    claims: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(resources) = &spec.resources else {
        return;
    };
    if resources.claims.is_some() {
        errors.forbidden(
            &path.child("claims"),
            "claims cannot be set for Resources at pod-level",
        );
    }
    validate_resources(resources, validate_pod_resource_name, claims, path, errors);
    let none = ResourceList::new();
    let requests = resources.requests.as_ref().unwrap_or(&none);
    let at = path.child("requests");
    for (name, sum) in aggregate_container_requests(spec) {
        let sum = Amount::of(&sum);
        let have = requests.get(&name).map_or(Amount::ZERO, Amount::of);
        if crate::pod::is_pod_level_resource(&name) && sum > have {
            errors.invalid(
                &at.key(&name),
                have.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let containers = path.child("containers");
    for (i, container) in spec.containers.iter().enumerate() {
        let own = container
            .resources
            .as_ref()
            .and_then(|all| all.limits.as_ref());
        for (name, limit) in own.into_iter().flatten() {
            let Some(pod_limit) = limits.get(name).map(Amount::of) else {
                continue;
            };
            let limit = Amount::of(limit);
            if limit > pod_limit {
                errors.invalid(
                    &containers.index(i).key(name).child("limits"),
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {pod_limit}"),
                );
            }
        }
    }
}

fn validate_host_network_ports(
    spec: &PodSpec,
    rules: PodRules,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if !spec.host_network.is_true() {
        return;
    }
    for (i, container) in spec.containers.iter().enumerate() {
        let path = path.index(i);
        let path = path.child("ports");
        for (j, port) in container.ports.items().iter().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if (rules.is_pod || host_port != 0) && host_port != port.container_port {
                errors.invalid(
                    &path.index(j).child("hostPort"),
                    host_port,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn validate_dns_config(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    if spec.dns_policy.text() == "None" {
        match &spec.dns_config {
            None => {
                errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
                return;
            }
            Some(config) if config.nameservers.items().is_empty() => {
                errors.required(
                    &path.child("nameservers"),
                    "must provide at least one DNS nameserver when `dnsPolicy` is None",
                );
                return;
            }
            Some(_) => {}
        }
    }
    let Some(config) = &spec.dns_config else {
        return;
    };
    let servers = config.nameservers.items();
    let at = path.child("nameservers");
    if servers.len() > 3 {
        errors.invalid(
            &at,
            Bad::json(&servers),
            "must not have more than 3 nameservers",
        );
    }
    for (i, server) in servers.iter().enumerate() {
        validate_ip(server, &[], &at.index(i), errors);
    }
    let searches = config.searches.items();
    let at = path.child("searches");
    if searches.len() > 32 {
        errors.invalid(
            &at,
            Bad::json(&searches),
            "must not have more than 32 search paths",
        );
    }
    if searches.join(" ").len() > 2048 {
        errors.invalid(
            &at,
            Bad::json(&searches),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, search) in searches
        .iter()
        .enumerate()
        .filter(|(_, search)| *search != ".")
    {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.invalid_each(
            &at.index(i),
            search,
            text::dns1123_subdomain_with_underscore(search),
        );
    }
    let at = path.child("options");
    for (i, option) in config.options.items().iter().enumerate() {
        if option.name.text().is_empty() {
            errors.required(&at.index(i), "must not be empty");
        }
    }
}

fn validate_host_aliases(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    for (i, alias) in spec.host_aliases.items().iter().enumerate() {
        let path = path.index(i);
        validate_ip(&alias.ip, &[], &path.child("ip"), errors);
        let at = path.child("hostnames");
        for (j, name) in alias.hostnames.items().iter().enumerate() {
            errors.invalid_each(&at.index(j), name, text::dns1123_subdomain(name));
        }
    }
}

/// Labels of a pod or of its template.
pub fn labels_of(meta: Option<&ObjectMeta>) -> Labels {
    meta.and_then(|meta| meta.labels.clone())
        .unwrap_or_default()
}
