use k8s_openapi::{
    api::{
        apps::v1::{
            RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    defaults::{pod_spec::set_template_defaults, volumes::set_claim_defaults},
    field::{Bad, Errors, Path},
    kinds::{Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        claims::validate_claim_spec,
        meta::NameRule,
        numbers::{
            int_or_percent, percent_or_int_value, validate_collision_count,
            validate_int_or_percent, validate_non_negative, validate_not_more_than_100_percent,
        },
        template::{validate_endless, validate_required_selector, validate_workload_template},
        text,
        warnings::pod_template_warnings,
    },
    zero::{List, Text, fill, set},
};

impl Kind for StatefulSet {
    const RULES: Rules = Rules::namespaced()
        .name(NameRule::Label)
        .status()
        .generation(Generation::Spec);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_template_defaults(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            // A template says of itself what it is (upstream's decoding of the embedded object).
            set_claim_defaults(claim);
        }
        fill(&mut spec.pod_management_policy, "OrderedReady");
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.text().is_empty() {
            strategy.type_ = Some("RollingUpdate".to_owned());
            strategy.rolling_update.get_or_insert_default();
        }
        if strategy.type_.text() == "RollingUpdate"
            && let Some(rolling) = &mut strategy.rolling_update
        {
            set(&mut rolling.partition, 0);
        }
        let retention = spec
            .persistent_volume_claim_retention_policy
            .get_or_insert_default();
        fill(&mut retention.when_deleted, "Retain");
        fill(&mut retention.when_scaled, "Retain");
        set(&mut spec.replicas, 1);
        set(&mut spec.revision_history_limit, 10);
    }

    fn validate(&self, errors: &mut Errors) {
        if let Some(spec) = &self.spec {
            validate_spec(spec, true, &Path::new("spec"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if let Some(spec) = &self.spec {
            validate_spec(spec, false, &Path::new("spec"), errors);
        }
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else {
            return;
        };
        let mut kept = new.clone();
        kept.replicas = old.replicas;
        kept.template = old.template.clone();
        kept.update_strategy.clone_from(&old.update_strategy);
        kept.min_ready_seconds = old.min_ready_seconds;
        kept.ordinals.clone_from(&old.ordinals);
        kept.revision_history_limit = old.revision_history_limit;
        kept.persistent_volume_claim_retention_policy
            .clone_from(&old.persistent_volume_claim_retention_policy);
        if kept != *old {
            errors.forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        let root = Path::new("status");
        let ready = status.ready_replicas.unwrap_or(0);
        let current = status.current_replicas.unwrap_or(0);
        let updated = status.updated_replicas.unwrap_or(0);
        let available = status.available_replicas.unwrap_or(0);
        for (field, value) in [
            ("replicas", status.replicas),
            ("readyReplicas", ready),
            ("currentReplicas", current),
            ("updatedReplicas", updated),
            ("availableReplicas", available),
        ] {
            validate_non_negative(value.into(), &root.child(field), errors);
        }
        if let Some(generation) = status.observed_generation {
            validate_non_negative(generation, &root.child("observedGeneration"), errors);
        }
        if let Some(count) = status.collision_count {
            validate_non_negative(count.into(), &root.child("collisionCount"), errors);
        }
        for (field, value) in [
            ("readyReplicas", ready),
            ("currentReplicas", current),
            ("updatedReplicas", updated),
            ("availableReplicas", available),
        ] {
            if value > status.replicas {
                errors.invalid(
                    &root.child(field),
                    value,
                    "cannot be greater than status.replicas",
                );
            }
        }
        if available > ready {
            errors.invalid(
                &root.child("availableReplicas"),
                available,
                "cannot be greater than status.readyReplicas",
            );
        }
        let old = old
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        validate_collision_count(status.collision_count, old, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let template = self.spec.as_ref().map(|spec| &spec.template);
        let old = old.map(|old| &old.metadata);
        let mut warnings = pod_template_warnings(template, &self.metadata, old, "spec.template");
        let negative = self
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .is_some_and(|limit| limit < 0);
        if negative {
            warnings.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::stateful_set()
    }
}

/// `new`: what no update may change is checked too.
fn validate_spec(spec: &StatefulSetSpec, new: bool, path: &Path<'_>, errors: &mut Errors) {
    match spec.pod_management_policy.text() {
        "" => errors.required(&path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => errors.invalid(
            &path.child("podManagementPolicy"),
            other,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    validate_update_strategy(&strategy, &path.child("updateStrategy"), errors);
    if let Some(retention) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for (field, value) in [
            ("whenDeleted", &retention.when_deleted),
            ("whenScaled", &retention.when_scaled),
        ] {
            let value = value.text();
            if !matches!(value, "Retain" | "Delete") {
                errors.not_supported(&path.child(field), value, &["Retain", "Delete"]);
            }
        }
    }
    if new {
        let path = path.child("volumeClaimTemplates");
        validate_claims(spec.volume_claim_templates.items(), &path, errors);
    }
    validate_non_negative(
        spec.replicas.unwrap_or(0).into(),
        &path.child("replicas"),
        errors,
    );
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    validate_non_negative(min_ready.into(), &path.child("minReadySeconds"), errors);
    if let Some(ordinals) = &spec.ordinals {
        let start = ordinals.start.unwrap_or(0);
        validate_non_negative(start.into(), &path.child("ordinals").child("start"), errors);
    }
    let service = spec.service_name.text();
    if new && !service.is_empty() {
        let path = path.child("serviceName");
        errors.invalid_each(&path, service, text::dns1123_label(service));
    }
    let (selector, template) = (&spec.selector, with_claims(spec));
    let at = path.child("template");
    if validate_required_selector(selector, "statefulset", "", path, errors) {
        validate_workload_template(&template, selector, "StatefulSet", &at, errors);
    } else {
        validate_endless(&template, "StatefulSet", &at, errors);
    }
}

fn validate_claims(claims: &[PersistentVolumeClaim], path: &Path<'_>, errors: &mut Errors) {
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        if let Some(spec) = &claim.spec {
            validate_claim_spec(spec, &path.child("spec"), errors);
        }
        let name = claim.metadata.name.text();
        if !name.is_empty() {
            errors.invalid_each(
                &path.child("metadata.name"),
                name,
                text::dns1123_subdomain(name),
            );
        }
    }
}

/// The template as its pods will be: each claim is a volume, in place of one of the same name.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let Some(pod) = &mut template.spec else {
        return template;
    };
    for claim in spec.volume_claim_templates.items() {
        let name = claim.metadata.name.text();
        let volumes = pod.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume {
            name: name.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    template
}

fn show_rolling(rolling: &RollingUpdateStatefulSetStrategy) -> String {
    format!(
        r#"{{"Partition":{},"MaxUnavailable":{}}}"#,
        rolling.partition.unwrap_or(0),
        serde_json::json!(rolling.max_unavailable)
    )
}

fn validate_update_strategy(
    strategy: &StatefulSetUpdateStrategy,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let rolling_path = path.child("rollingUpdate");
    match strategy.type_.text() {
        "" => errors.required(path, ""),
        "OnDelete" => {
            if let Some(rolling) = &strategy.rolling_update {
                errors.invalid(
                    &rolling_path,
                    Bad::shown(show_rolling(rolling)),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = &strategy.rolling_update else {
                return;
            };
            let partition = rolling.partition.unwrap_or(0);
            validate_non_negative(partition.into(), &rolling_path.child("partition"), errors);
            if rolling.max_unavailable.is_some() {
                let path = rolling_path.child("maxUnavailable");
                let unavailable: IntOrString = int_or_percent(rolling.max_unavailable.as_ref());
                validate_int_or_percent(&unavailable, &path, errors);
                if percent_or_int_value(&unavailable) == 0 {
                    errors.invalid(&path, Bad::json(&unavailable), "cannot be 0");
                }
                validate_not_more_than_100_percent(&unavailable, &path, errors);
            }
        }
        other => {
            let rolling = strategy.rolling_update.as_ref().map(show_rolling);
            let shown = format!(
                r#"{{"Type":{},"RollingUpdate":{}}}"#,
                serde_json::json!(other),
                rolling.as_deref().unwrap_or("null")
            );
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.invalid(path, Bad::shown(shown), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(mount: &str) -> StatefulSet {
        let mut set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "db"}},
                "serviceName": "db",
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {"containers": [{
                        "name": "db",
                        "image": "db",
                        "volumeMounts": [{"name": mount, "mountPath": "/data"}],
                    }]},
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    },
                }],
            },
        }))
        .unwrap();
        set.set_defaults();
        set
    }

    #[track_caller]
    fn check(set: &StatefulSet, old: Option<&StatefulSet>, fields: &[&str]) {
        let mut errors = Errors::default();
        match old {
            Some(old) => set.validate_update(old, &mut errors),
            None => set.validate(&mut errors),
        }
        let found: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(found, fields);
    }

    #[test]
    fn containers_mount_claims_as_volumes() {
        check(&set("data"), None, &[]);
        let field = "spec.template.spec.containers[0].volumeMounts[0].name";
        check(&set("other"), None, &[field]);
    }

    #[test]
    fn what_cannot_change_is_not_looked_at_again() {
        let old = set("data");
        let mut new = old.clone();
        let spec = new.spec.as_mut().unwrap();
        spec.service_name = Some("a.b".to_owned());
        spec.replicas = Some(-1);
        let claims = spec.volume_claim_templates.as_mut().unwrap();
        claims[0].spec.as_mut().unwrap().access_modes = None;
        check(
            &new,
            None,
            &[
                "spec.volumeClaimTemplates[0].spec.accessModes",
                "spec.replicas",
                "spec.serviceName",
            ],
        );
        check(&new, Some(&old), &["spec.replicas", "spec"]);
    }
}
