use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, NodeAffinity, Pod, PodAffinityTerm, PodCondition, PodIP,
        PodSpec, PodStatus, ResourceRequirements, TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use serde_json::Value;

use crate::{
    defaults::pod_spec::set_pod_defaults,
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules, Selectable},
    pod::{is_sidecar, qos_class},
    quantity::{Amount, ResourceList},
    strategy::Warnings,
    validation::{
        containers::validate_image_padding,
        internal::{self, ephemeral_container_diff, pod_spec_diff},
        labels::Labels,
        net::{ip_warning, is_dual_stack, parse_ip, validate_ip},
        pod_spec::{PodRules, labels_of, validate_pod_annotations, validate_pod_spec},
        scheduling::validate_tolerations,
        security::{validate_id, validate_profile_annotations_match},
        text,
        warnings::pod_warnings,
    },
    zero::{List, Text},
};

const MIRROR: &str = "kubernetes.io/config.mirror";

impl Kind for Pod {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .reset_status(&[
            "spec",
            "metadata.deletionTimestamp",
            "metadata.ownerReferences",
        ])
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        set_pod_defaults(self);
        // `podIP` is the first of `podIPs`.
        let Some(status) = &mut self.status else {
            return;
        };
        let ip = status.pod_ip.clone().filter(|ip| !ip.is_empty());
        let first = status.pod_ips.items().first().map(|one| one.ip.clone());
        match ip {
            // Where both are given and disagree, the old one counts.
            Some(ip) if first.as_ref() != Some(&ip) => status.pod_ips = Some(vec![PodIP { ip }]),
            Some(_) => {}
            None => status.pod_ip = first,
        }
    }

    fn prepare_create(&mut self) {
        let labels = labels_of(Some(&self.metadata));
        let qos = qos_class(self);
        let spec = self.spec.get_or_insert_default();
        select_by_label_keys(spec, &labels);
        if let Some(seconds) = spec.termination_grace_period_seconds.filter(|one| *one < 0) {
            spec.termination_grace_period_seconds = Some(seconds.max(1));
        }
        let gated = !spec.scheduling_gates.items().is_empty();
        let gate = gated.then(|| {
            vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("SchedulingGated".to_owned()),
                message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
                ..PodCondition::default()
            }]
        });
        self.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos.to_owned()),
            conditions: gate,
            ..PodStatus::default()
        });
    }

    fn prepare_status_update(&mut self, old: &Self) {
        self.metadata
            .owner_references
            .clone_from(&old.metadata.owner_references);
        self.metadata
            .deletion_timestamp
            .clone_from(&old.metadata.deletion_timestamp);
        let status = self.status.get_or_insert_default();
        let old = old.status.clone().unwrap_or_default();
        keep_what_old_agents_drop(status, old);
    }

    fn prepare_subresource_update(&mut self, old: &Self, subresource: &str) {
        // These two carry no pod: what changes is the server's own doing.
        if matches!(subresource, "binding" | "eviction") {
            return;
        }
        let asked = std::mem::replace(self, old.clone());
        self.metadata.resource_version = asked.metadata.resource_version;
        self.metadata.managed_fields = asked.metadata.managed_fields;
        let Some(asked) = asked.spec else { return };
        let spec = self.spec.get_or_insert_default();
        match subresource {
            "ephemeralcontainers" => spec.ephemeral_containers = asked.ephemeral_containers,
            "resize" => {
                resize(&mut spec.containers, &asked.containers);
                let mut init = spec.init_containers.take().unwrap_or_default();
                resize(&mut init, asked.init_containers.items());
                spec.init_containers = Some(init).filter(|init| !init.is_empty());
            }
            _ => {}
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate_pod(self, errors);
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        if !spec.ephemeral_containers.items().is_empty() {
            errors.forbidden(
                &path.child("ephemeralContainers"),
                "cannot be set on create",
            );
        }
        if !spec.node_name.text().is_empty() && !spec.scheduling_gates.items().is_empty() {
            errors.forbidden(
                &path.child("nodeName"),
                "cannot be set until all schedulingGates have been cleared",
            );
        }
        let annotations = self.metadata.annotations.as_ref();
        validate_profile_annotations_match(annotations, &spec, &path, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_pod(self, errors);
        validate_annotation_change(self, old, errors);
        validate_spec_change(self, old, errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        validate_annotation_change(self, old, errors);
        validate_status(self, old, errors);
    }

    fn validate_subresource_update(&self, old: &Self, subresource: &str, errors: &mut Errors) {
        validate_pod(self, errors);
        match subresource {
            "ephemeralcontainers" => validate_ephemeral_change(self, old, errors),
            "resize" => validate_resize(self, old, errors),
            _ => {}
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        pod_warnings(self, old)
    }

    fn status_warnings(&self) -> Warnings {
        let status = self.status.clone().unwrap_or_default();
        let pod_ips = status.pod_ips.items().iter().map(|one| one.ip.as_str());
        let host_ips = status.host_ips.items().iter().map(|one| one.ip.as_str());
        let path = Path::new("status");
        let mut warnings = Warnings::new();
        let mut look = |ips: &mut dyn Iterator<Item = &str>, field: &str| {
            let path = path.child(field);
            for (i, ip) in ips.enumerate() {
                warnings.extend(ip_warning(ip, &path.index(i).child("ip")));
            }
        };
        look(&mut { pod_ips }, "podIPs");
        look(&mut { host_ips }, "hostIPs");
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::pods::pod()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(SELECTABLE)
    }

    fn grace_period(object: &Value, requested_seconds: Option<i64>) -> i64 {
        let of_pod = object
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64);
        let unscheduled = text_at(object, "/spec/nodeName").is_empty();
        let done = matches!(
            text_at(object, "/status/phase").as_str(),
            "Succeeded" | "Failed"
        );
        match requested_seconds.or(of_pod).unwrap_or(0) {
            _ if unscheduled || done => 0,
            seconds if seconds < 0 => 1,
            seconds => seconds,
        }
    }
}

fn text_at(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned()
}

const SELECTABLE: &[Selectable] = &[
    Selectable {
        name: "spec.nodeName",
        get: |pod| text_at(pod, "/spec/nodeName"),
    },
    Selectable {
        name: "spec.restartPolicy",
        get: |pod| text_at(pod, "/spec/restartPolicy"),
    },
    Selectable {
        name: "spec.schedulerName",
        get: |pod| text_at(pod, "/spec/schedulerName"),
    },
    Selectable {
        name: "spec.serviceAccountName",
        get: |pod| text_at(pod, "/spec/serviceAccountName"),
    },
    Selectable {
        name: "spec.hostNetwork",
        get: |pod| {
            let flag = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool);
            flag.unwrap_or(false).to_string()
        },
    },
    Selectable {
        name: "status.phase",
        get: |pod| text_at(pod, "/status/phase"),
    },
    Selectable {
        name: "status.podIP",
        get: |pod| text_at(pod, "/status/podIP"),
    },
    Selectable {
        name: "status.nominatedNodeName",
        get: |pod| text_at(pod, "/status/nominatedNodeName"),
    },
];

/// `matchLabelKeys`: the pod's own labels become part of the selectors (KEP-3633, KEP-3243).
fn select_by_label_keys(spec: &mut PodSpec, labels: &Labels) {
    if let Some(affinity) = &mut spec.affinity {
        if let Some(affinity) = &mut affinity.pod_affinity {
            let required = affinity
                .required_during_scheduling_ignored_during_execution
                .iter_mut();
            let preferred = affinity
                .preferred_during_scheduling_ignored_during_execution
                .iter_mut();
            required
                .flatten()
                .for_each(|term| select_term(term, labels));
            preferred
                .flatten()
                .for_each(|term| select_term(&mut term.pod_affinity_term, labels));
        }
        if let Some(affinity) = &mut affinity.pod_anti_affinity {
            let required = affinity
                .required_during_scheduling_ignored_during_execution
                .iter_mut();
            let preferred = affinity
                .preferred_during_scheduling_ignored_during_execution
                .iter_mut();
            required
                .flatten()
                .for_each(|term| select_term(term, labels));
            preferred
                .flatten()
                .for_each(|term| select_term(&mut term.pod_affinity_term, labels));
        }
    }
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        let TopologySpreadConstraint {
            label_selector,
            match_label_keys,
            ..
        } = constraint;
        require_labels(label_selector, match_label_keys.items(), "In", labels);
    }
}

fn select_term(term: &mut PodAffinityTerm, labels: &Labels) {
    let matching = term.match_label_keys.clone();
    let mismatching = term.mismatch_label_keys.clone();
    require_labels(&mut term.label_selector, matching.items(), "In", labels);
    require_labels(
        &mut term.label_selector,
        mismatching.items(),
        "NotIn",
        labels,
    );
}

fn require_labels(
    selector: &mut Option<LabelSelector>,
    keys: &[String],
    operator: &str,
    labels: &Labels,
) {
    let Some(selector) = selector else { return };
    for key in keys {
        let Some(value) = labels.get(key) else {
            continue;
        };
        selector
            .match_expressions
            .get_or_insert_default()
            .push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
    }
}

/// Takes resources and resize policies over, container by container. Lists that do not match are taken as they are, for
/// validation to refuse.
fn resize(containers: &mut Vec<Container>, asked: &[Container]) {
    let same = containers.len() == asked.len()
        && containers
            .iter()
            .zip(asked)
            .all(|(own, asked)| own.name == asked.name);
    if !same {
        *containers = asked.to_vec();
        return;
    }
    for (container, asked) in containers.iter_mut().zip(asked) {
        container.resources.clone_from(&asked.resources);
        container.resize_policy.clone_from(&asked.resize_policy);
    }
}

/// Agents that do not know a field must not remove it.
fn keep_what_old_agents_drop(status: &mut PodStatus, old: PodStatus) {
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

fn validate_pod(pod: &Pod, errors: &mut Errors) {
    let spec = pod.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let annotations = pod.metadata.annotations.as_ref();
    validate_pod_annotations(
        annotations,
        &spec,
        &Path::new("metadata.annotations"),
        errors,
    );
    validate_pod_spec(&spec, Some(&pod.metadata), PodRules::pod(), &path, errors);
    if spec.service_account_name.text().is_empty() {
        let volumes = path.child("volumes");
        for (i, volume) in spec.volumes.items().iter().enumerate() {
            let path = volumes.index(i);
            let path = path.child("projected.sources");
            let sources = volume.projected.as_ref().map(|one| one.sources.items());
            for (j, source) in sources.unwrap_or_default().iter().enumerate() {
                if source.service_account_token.is_some() {
                    errors.forbidden(
                        &path.index(j).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for (field, containers) in [
        ("containers", &spec.containers[..]),
        ("initContainers", spec.init_containers.items()),
    ] {
        let path = path.child(field);
        for (i, container) in containers.iter().enumerate() {
            validate_image_padding(container, &path.index(i), errors);
        }
    }
}

fn validate_annotation_change(new: &Pod, old: &Pod, errors: &mut Errors) {
    let path = Path::new("metadata.annotations");
    let none = Labels::new();
    let new_all = new.metadata.annotations.as_ref().unwrap_or(&none);
    let old_all = old.metadata.annotations.as_ref().unwrap_or(&none);
    let is_app_armor =
        |key: &str| key.starts_with("container.apparmor.security.beta.kubernetes.io/");
    for (key, value) in old_all {
        if new_all.get(key) == Some(value) {
            continue;
        }
        if is_app_armor(key) {
            errors.forbidden(
                &path.key(key),
                "may not remove or update AppArmor annotations",
            );
        }
        if key == MIRROR {
            errors.forbidden(
                &path.key(key),
                "may not remove or update mirror pod annotation",
            );
        }
    }
    for key in new_all.keys().filter(|key| !old_all.contains_key(*key)) {
        if is_app_armor(key) {
            errors.forbidden(&path.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&path.key(key), "may not add mirror pod annotation");
        }
    }
    let spec = new.spec.clone().unwrap_or_default();
    validate_pod_annotations(new.metadata.annotations.as_ref(), &spec, &path, errors);
}

/// Answers whether the lists have different lengths, after which nothing else can be compared.
fn validate_images(
    new: &[Container],
    old: &[Container],
    path: &Path<'_>,
    errors: &mut Errors,
) -> bool {
    if new.len() != old.len() {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return true;
    }
    for (i, container) in new.iter().enumerate() {
        let path = path.index(i);
        if container.image.text().is_empty() {
            errors.required(&path.child("image"), "");
        }
        validate_image_padding(container, &path, errors);
    }
    false
}

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_spec_change(new: &Pod, old: &Pod, errors: &mut Errors) {
    let spec = new.spec.clone().unwrap_or_default();
    let old = old.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let stop = validate_images(
        &spec.containers,
        &old.containers,
        &path.child("containers"),
        errors,
    ) || validate_images(
        spec.init_containers.items(),
        old.init_containers.items(),
        &path.child("initContainers"),
        errors,
    );
    if stop {
        return;
    }
    let at = path.child("activeDeadlineSeconds");
    match (spec.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), old) => {
            if !(0..=i64::from(i32::MAX)).contains(&new) {
                errors.invalid(&at, new, text::inclusive_range(0, i32::MAX.into()));
                return;
            }
            if old.is_some_and(|old| old < new) {
                errors.invalid(&at, new, "must be less than or equal to previous value");
                return;
            }
        }
        (None, Some(_)) => {
            errors.invalid(
                &at,
                None::<i64>,
                "must not update from a positive integer to nil value",
            );
        }
        (None, None) => {}
    }
    validate_added_tolerations(&spec, &old, &path.child("tolerations"), errors);
    let gates = path.child("schedulingGates");
    for (i, gate) in spec.scheduling_gates.items().iter().enumerate() {
        if !old.scheduling_gates.items().contains(gate) {
            errors.forbidden(
                &gates.index(i).child("name"),
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    gate.name
                ),
            );
        }
    }
    let mut kept = spec.clone();
    for (container, old) in kept.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&old.image);
    }
    let init = kept.init_containers.as_deref_mut().unwrap_or_default();
    for (container, old) in init.iter_mut().zip(old.init_containers.items()) {
        container.image.clone_from(&old.image);
    }
    kept.active_deadline_seconds = old.active_deadline_seconds;
    kept.scheduling_gates.clone_from(&old.scheduling_gates);
    kept.tolerations.clone_from(&old.tolerations);
    let grace = (
        old.termination_grace_period_seconds,
        kept.termination_grace_period_seconds,
    );
    if matches!(grace, (Some(old), Some(1)) if old < 0) {
        kept.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if !old.scheduling_gates.items().is_empty() {
        validate_gated_change(&mut kept, &old, &path, errors);
    }
    if kept != old {
        let diff = pod_spec_diff(&old, &kept);
        errors.forbidden(&path, format!("{UPDATABLE}\n{diff}"));
    }
}

fn validate_added_tolerations(spec: &PodSpec, old: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let tolerations = spec.tolerations.items();
    for old in old.tolerations.items() {
        let kept = tolerations.iter().any(|new| {
            let mut old = old.clone();
            old.toleration_seconds = new.toleration_seconds;
            old == *new
        });
        if !kept {
            errors.forbidden(
                path,
                "existing toleration can not be modified except its tolerationSeconds",
            );
            return;
        }
    }
    validate_tolerations(tolerations, path, errors);
}

/// Before it is scheduled, what a pod asks of nodes may be narrowed.
fn validate_gated_change(kept: &mut PodSpec, old: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let none = Labels::new();
    let selector = kept.node_selector.as_ref().unwrap_or(&none);
    let lost = old
        .node_selector
        .iter()
        .flatten()
        .any(|(key, value)| selector.get(key) != Some(value));
    if lost {
        errors.invalid(
            &path.child("nodeSelector"),
            Bad::json(selector),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    kept.node_selector.clone_from(&old.node_selector);
    let of = |spec: &PodSpec| -> Option<NodeAffinity> { spec.affinity.clone()?.node_affinity };
    let (new_affinity, old_affinity) = (of(kept), of(old));
    if new_affinity != old_affinity {
        let at = path.child("affinity.nodeAffinity");
        validate_node_affinity_change(new_affinity.as_ref(), old_affinity.as_ref(), &at, errors);
        match (&mut kept.affinity, &old.affinity) {
            (Some(affinity), None)
                if affinity.pod_affinity.is_none() && affinity.pod_anti_affinity.is_none() =>
            {
                kept.affinity = None;
            }
            (Some(affinity), _) => affinity.node_affinity = old_affinity,
            (None, _) => kept.affinity.clone_from(&old.affinity),
        }
    }
}

fn validate_node_affinity_change(
    new: Option<&NodeAffinity>,
    old: Option<&NodeAffinity>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let terms = |affinity: Option<&NodeAffinity>| {
        affinity
            .and_then(|one| {
                one.required_during_scheduling_ignored_during_execution
                    .clone()
            })
            .map(|selector| selector.node_selector_terms)
    };
    let Some(old_terms) = terms(old).filter(|terms| !terms.is_empty()) else {
        return;
    };
    let new_terms = terms(new).unwrap_or_default();
    let path = path.child("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    if new_terms.len() != old_terms.len() {
        errors.invalid(
            &path,
            internal::bad("NodeTerm", &new_terms),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        );
        return;
    }
    for (i, (new, old)) in new_terms.iter().zip(&old_terms).enumerate() {
        let path = path.index(i);
        let was_empty =
            old.match_expressions.items().is_empty() && old.match_fields.items().is_empty();
        if was_empty {
            if new != old {
                errors.invalid(
                    &path,
                    internal::bad("NodeTerm", new),
                    "NodeSelectorTerms with empty MatchExpressions and MatchFields cannot be updated",
                );
            }
            continue;
        }
        if !new
            .match_expressions
            .items()
            .starts_with(old.match_expressions.items())
            || !new
                .match_fields
                .items()
                .starts_with(old.match_fields.items())
        {
            errors.invalid(
                &path,
                internal::bad("NodeTerm", new),
                "only additions are allowed (no mutations or deletions)",
            );
        }
    }
}

fn validate_status(new: &Pod, old: &Pod, errors: &mut Errors) {
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

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
}

fn validate_ephemeral_change(new: &Pod, old: &Pod, errors: &mut Errors) {
    if is_mirror(old) {
        errors.0.clear();
        errors.forbidden(
            &Path::new(""),
            "static pods do not support ephemeral containers",
        );
        return;
    }
    let path = Path::new("spec.ephemeralContainers");
    let new = new.spec.clone().unwrap_or_default();
    let old = old.spec.clone().unwrap_or_default();
    for old in old.ephemeral_containers.items() {
        let name = crate::field::quoted(&old.name);
        match new
            .ephemeral_containers
            .items()
            .iter()
            .find(|one| one.name == old.name)
        {
            None => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name} may not be removed\n"),
            ),
            Some(new) if new != old => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name} may not be changed\n{}",
                    ephemeral_container_diff(old, new)
                ),
            ),
            Some(_) => {}
        }
    }
}

fn validate_resize(new: &Pod, old: &Pod, errors: &mut Errors) {
    let mut only = |text: &str| {
        errors.0.clear();
        errors.forbidden(&Path::new(""), text);
    };
    let windows = |pod: &Pod| {
        let os = pod.spec.as_ref().and_then(|spec| spec.os.as_ref());
        os.is_some_and(|os| os.name == "windows")
    };
    if is_mirror(old) {
        only("static pods cannot be resized");
        return;
    }
    if windows(old) {
        only("windows pods cannot be resized");
        return;
    }
    let path = Path::new("spec");
    if qos_class(new) != qos_class(old) {
        let qos = new
            .status
            .as_ref()
            .and_then(|status| status.qos_class.clone());
        errors.invalid(
            &path,
            qos,
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    if !runs_where_resizing_works(old) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let (new, old) = (
        new.spec.clone().unwrap_or_default(),
        old.spec.clone().unwrap_or_default(),
    );
    let before = errors.len();
    for (field, new, old) in [
        ("containers", &new.containers[..], &old.containers[..]),
        (
            "initContainers",
            new.init_containers.items(),
            old.init_containers.items(),
        ),
    ] {
        validate_same_containers(field, new, old, &path.child(field), errors);
    }
    if errors.len() > before {
        return;
    }
    let both = |new: &[Container], old: &[Container]| -> Vec<(Container, Container)> {
        new.iter().cloned().zip(old.iter().cloned()).collect()
    };
    let init = both(new.init_containers.items(), old.init_containers.items());
    let containers = both(&new.containers, &old.containers);
    for (field, pairs) in [("initContainers", &init), ("containers", &containers)] {
        let path = path.child(field);
        for (i, (new, old)) in pairs.iter().enumerate() {
            if field == "containers" || is_sidecar(old) {
                validate_container_resize(new, old, &path.index(i).child("resources"), errors);
            }
        }
    }
    for (new, old) in &containers {
        if with_compute_of(new, old) != *old {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    for (new, old) in &init {
        let (allowed, detail) = if is_sidecar(new) {
            let detail = "only cpu and memory resources for sidecar containers are mutable";
            (with_compute_of(new, old) == *old, detail)
        } else {
            let detail = "resources for non-sidecar init containers are immutable";
            (new == old, detail)
        };
        if !allowed {
            errors.forbidden(&path, detail);
        }
    }
}

/// What follows compares them one by one.
fn validate_same_containers(
    field: &str,
    new: &[Container],
    old: &[Container],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if new.len() != old.len() {
        errors.forbidden(
            path,
            format!("{field} may not be added or removed on resize"),
        );
        return;
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        if new.name != old.name {
            errors.forbidden(
                &path.index(i).child("name"),
                format!("{field} may not be renamed or reordered on resize"),
            );
        }
    }
}

/// An agent that can resize reports what containers run with. Before any runs, it is not known.
fn runs_where_resizing_works(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let mut statuses = status.container_statuses.items().iter();
    let running = statuses.find(|one| {
        one.state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    running.is_none_or(|one| one.resources.is_some())
}

fn validate_container_resize(
    new: &Container,
    old: &Container,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let resources = |container: &Container| container.resources.clone().unwrap_or_default();
    let (new, old): (ResourceRequirements, ResourceRequirements) = (resources(new), resources(old));
    for (field, what, new, old) in [
        ("requests", "requests", &new.requests, &old.requests),
        ("limits", "limits", &new.limits, &old.limits),
    ] {
        let has = |name: &String| new.as_ref().is_some_and(|list| list.contains_key(name));
        if !old.iter().flatten().all(|(name, _)| has(name)) {
            errors.forbidden(
                &path.child(field),
                format!("resource {what} cannot be removed"),
            );
        }
    }
}

/// `new` with cpu and memory as `old` has them: what is left shows the other changes.
fn with_compute_of(new: &Container, old: &Container) -> Container {
    let mut container = new.clone();
    container.resize_policy.clone_from(&old.resize_policy);
    let old = old.resources.clone().unwrap_or_default();
    if let Some(resources) = &mut container.resources {
        for (list, old) in [
            (&mut resources.limits, &old.limits),
            (&mut resources.requests, &old.requests),
        ] {
            let mut kept: ResourceList = list.take().unwrap_or_default();
            for name in ["cpu", "memory"] {
                kept.remove(name);
                if let Some(quantity) = old.as_ref().and_then(|list| list.get(name)) {
                    kept.insert(name.to_owned(), Amount::of(quantity).to_wire());
                }
            }
            *list = Some(kept).filter(|list| !list.is_empty() || old.is_some());
        }
    }
    container
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        kinds::Typed,
        strategy::{Strategy, UpdateOf},
    };

    fn stored(spec: Value, status: Value) -> Value {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": spec,
            "status": status,
        });
        strategy().default(&mut pod);
        pod
    }

    fn strategy() -> Typed<Pod> {
        Default::default()
    }

    fn containers() -> Value {
        json!({
            "containers": [
                {"name": "a", "image": "i", "resources": {"requests": {"cpu": "1", "example.com/x": "1"},
                                                          "limits": {"example.com/x": "1"}}},
                {"name": "b", "image": "i", "resources": {"requests": {"cpu": "1"}}},
            ],
        })
    }

    fn check(of: UpdateOf<'_>, old: &Value, change: impl FnOnce(&mut Value), expected: &[&str]) {
        let mut new = old.clone();
        change(&mut new);
        let refused = strategy().update(&mut new, old, of);
        let texts: Vec<String> = refused
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_resize_keeps_the_containers() {
        let old = stored(containers(), json!({"qosClass": "Burstable"}));
        let of = UpdateOf::Subresource("resize");
        let more = |pod: &mut Value| {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
        };
        check(of, &old, more, &[]);
        let fewer = |pod: &mut Value| {
            let all = pod["spec"]["containers"].as_array_mut();
            all.expect("containers").truncate(1);
        };
        let refused =
            "spec.containers: Forbidden: containers may not be added or removed on resize";
        check(of, &old, fewer, &[refused]);
        let swap = |pod: &mut Value| {
            let all = pod["spec"]["containers"].as_array_mut();
            all.expect("containers").swap(0, 1);
        };
        let renamed = |i: usize| {
            format!(
                "spec.containers[{i}].name: Forbidden: containers may not be renamed or reordered on resize"
            )
        };
        check(of, &old, swap, &[&renamed(0), &renamed(1)]);
    }

    #[test]
    fn a_status_keeps_what_old_agents_leave_out() {
        let old = stored(
            containers(),
            json!({
                "qosClass": "Burstable",
                "observedGeneration": 3,
                "conditions": [
                    {"type": "Ready", "status": "True", "observedGeneration": 2},
                    {"type": "x.io/y", "status": "True"},
                ],
            }),
        );
        let mut new = old.clone();
        new["status"] = json!({"conditions": [
            {"type": "x.io/y", "status": "False", "observedGeneration": 3},
            {"type": "Ready", "status": "False"},
        ]});
        let written = strategy().update(&mut new, &old, UpdateOf::Status);
        assert_eq!(written, Ok(Warnings::new()));
        assert_eq!(new["status"]["qosClass"], "Burstable");
        assert_eq!(new["status"]["observedGeneration"], 3);
        assert_eq!(new["status"]["conditions"][0]["observedGeneration"], 3);
        assert_eq!(new["status"]["conditions"][1]["observedGeneration"], 2);
    }

    #[test]
    fn statuses_name_users_and_devices_that_are_there() {
        let old = stored(containers(), json!({"qosClass": "Burstable"}));
        let report = |pod: &mut Value| {
            let health = |id: &str, health: &str| json!({"resourceID": id, "health": health});
            pod["status"]["containerStatuses"] = json!([{
                "name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "user": {"linux": {"uid": -1, "gid": 0}},
                "allocatedResourcesStatus": [
                    {"name": "example.com/x", "resources": [health("1", "Healthy"), health("1", "Odd")]},
                    {"name": "claim:c"},
                ],
            }]);
        };
        check(
            UpdateOf::Status,
            &old,
            report,
            &[
                "status.containerStatuses[0].linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                r#"status.containerStatuses[0].allocatedResourcesStatus[0].resources[1].health: Unsupported value: "Odd": supported values: "Healthy", "Unhealthy", "Unknown""#,
                r#"status.containerStatuses[0].allocatedResourcesStatus[0].resources[1].resourceID: Duplicate value: "1""#,
                "status.containerStatuses[0].allocatedResourcesStatus[1].name: Invalid value: \"claim:c\": must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
            ],
        );
    }
}
