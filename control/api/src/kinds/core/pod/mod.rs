mod change;
mod resize;
mod status;

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, PodCondition, PodIP, PodSpec, PodStatus, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::Value;

use crate::defaults::pod_spec::set_pod_defaults;
use crate::field::{Errors, Path};
use crate::kinds::{Check, Generation, Kind, Rules, Selectable, text_at};
use crate::pod::qos_class;
use crate::strategy::Warnings;
use crate::validation::containers::validate_image_padding;
use crate::validation::labels::Labels;
use crate::validation::net::ip_warning;
use crate::validation::pod_spec::{
    PodRules, labels_of, validate_pod_annotations, validate_pod_spec,
};
use crate::validation::security::validate_profile_annotations_match;
use crate::validation::warnings::pod_warnings;
use crate::zero::{List, Text};

use change::{validate_ephemeral_change, validate_spec_change};
use resize::{resize, validate_resize};
use status::{keep_what_old_agents_drop, validate_status};

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
        if let Some(near) = &mut affinity.pod_affinity {
            select_terms(
                &mut near.required_during_scheduling_ignored_during_execution,
                &mut near.preferred_during_scheduling_ignored_during_execution,
                labels,
            );
        }
        if let Some(far) = &mut affinity.pod_anti_affinity {
            select_terms(
                &mut far.required_during_scheduling_ignored_during_execution,
                &mut far.preferred_during_scheduling_ignored_during_execution,
                labels,
            );
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

fn select_terms(
    required: &mut Option<Vec<PodAffinityTerm>>,
    preferred: &mut Option<Vec<WeightedPodAffinityTerm>>,
    labels: &Labels,
) {
    let preferred = preferred.iter_mut().flatten();
    let preferred = preferred.map(|one| &mut one.pod_affinity_term);
    for term in required.iter_mut().flatten().chain(preferred) {
        select_term(term, labels);
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

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
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
