use k8s_openapi::{
    api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde_json::json;

use super::deployment::show_rolling;
use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        labels::{SelectorRules, validate_selector},
        numbers::{
            int_or_percent, percent_or_int_value, validate_collision_count,
            validate_int_or_percent, validate_non_negative, validate_not_more_than_100_percent,
        },
        template::{
            is_selected, refuse_empty_selector, validate_selector_unchanged, validate_template,
        },
        warnings::pod_template_warnings,
    },
    zero::{Text, fill, set},
};

impl Kind for DaemonSet {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    const FIELD_ANNOTATIONS: &'static [&'static str] = &[TEMPLATE_GENERATION];

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_template_defaults(&mut spec.template);
        let strategy = spec.update_strategy.get_or_insert_default();
        fill(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.text() == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_default();
            set(&mut rolling.max_unavailable, IntOrString::Int(1));
            set(&mut rolling.max_surge, IntOrString::Int(0));
        }
        set(&mut spec.revision_history_limit, 10);
        let generation = template_generation(&self.metadata);
        set_template_generation(&mut self.metadata, generation);
    }

    fn prepare_create(&mut self) {
        let generation = template_generation(&self.metadata).max(1);
        set_template_generation(&mut self.metadata, generation);
    }

    fn prepare_update(&mut self, old: &Self) {
        let template = |set: &Self| set.spec.as_ref().map(|spec| spec.template.clone());
        let changed = template(self) != template(old);
        let generation = template_generation(&old.metadata) + i64::from(changed);
        set_template_generation(&mut self.metadata, generation);
    }

    fn prepare_status_update(&mut self, old: &Self) {
        set_template_generation(&mut self.metadata, template_generation(&old.metadata));
    }

    fn validate(&self, errors: &mut Errors) {
        if let Some(spec) = &self.spec {
            validate_spec(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        let selector = |set: &Self| set.spec.as_ref().map(|spec| spec.selector.clone());
        validate_selector_unchanged(selector(self).as_ref(), selector(old).as_ref(), errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        let path = Path::new("status");
        for (field, value) in [
            (
                "currentNumberScheduled",
                i64::from(status.current_number_scheduled),
            ),
            ("numberMisscheduled", i64::from(status.number_misscheduled)),
            (
                "desiredNumberScheduled",
                i64::from(status.desired_number_scheduled),
            ),
            ("numberReady", i64::from(status.number_ready)),
            (
                "observedGeneration",
                status.observed_generation.unwrap_or(0),
            ),
            (
                "updatedNumberScheduled",
                status.updated_number_scheduled.unwrap_or(0).into(),
            ),
            (
                "numberAvailable",
                status.number_available.unwrap_or(0).into(),
            ),
            (
                "numberUnavailable",
                status.number_unavailable.unwrap_or(0).into(),
            ),
        ] {
            validate_non_negative(value, &path.child(field), errors);
        }
        if let Some(count) = status.collision_count {
            validate_non_negative(count.into(), &path.child("collisionCount"), errors);
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
        pod_template_warnings(template, &self.metadata, old, "spec.template")
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::daemon_set()
    }
}

/// A field of the first DaemonSets, `spec.templateGeneration`, that lives on as an annotation: it counts changes of the
/// template, and no client may set it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(meta: &ObjectMeta) -> i64 {
    let annotations = meta.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(TEMPLATE_GENERATION));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_template_generation(meta: &mut ObjectMeta, generation: i64) {
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string());
}

fn validate_spec(spec: &DaemonSetSpec, path: &Path<'_>, errors: &mut Errors) {
    let selector = &spec.selector;
    validate_selector(
        Some(selector),
        SelectorRules::default(),
        &path.child("selector"),
        errors,
    );
    let template_path = path.child("template");
    if !is_selected(selector, &spec.template) {
        let labels = spec
            .template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.as_ref());
        errors.invalid(
            &template_path.child("metadata.labels"),
            Bad::json(&labels),
            "`selector` does not match template `labels`",
        );
    }
    refuse_empty_selector(selector, "daemonset", &path.child("selector"), errors);
    validate_template(&spec.template, &template_path, errors);
    let pod = spec.template.spec.clone().unwrap_or_default();
    if pod.restart_policy.text() != "Always" {
        errors.not_supported(
            &template_path.child("spec.restartPolicy"),
            pod.restart_policy.text(),
            &["Always"],
        );
    }
    if pod.active_deadline_seconds.is_some() {
        errors.forbidden(
            &template_path.child("spec.activeDeadlineSeconds"),
            "activeDeadlineSeconds in DaemonSet is not Supported",
        );
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    validate_non_negative(min_ready.into(), &path.child("minReadySeconds"), errors);
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    validate_update_strategy(&strategy, &path.child("updateStrategy"), errors);
    if let Some(limit) = spec.revision_history_limit {
        validate_non_negative(limit.into(), &path.child("revisionHistoryLimit"), errors);
    }
}

fn validate_update_strategy(
    strategy: &DaemonSetUpdateStrategy,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    match strategy.type_.text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let Some(rolling) = &strategy.rolling_update else {
                errors.required(&path, "");
                return;
            };
            let unavailable = int_or_percent(rolling.max_unavailable.as_ref());
            let surge = int_or_percent(rolling.max_surge.as_ref());
            let has_unavailable = percent_or_int_value(&unavailable) != 0;
            let has_surge = percent_or_int_value(&surge) != 0;
            validate_int_or_percent(&unavailable, &path.child("maxUnavailable"), errors);
            validate_int_or_percent(&surge, &path.child("maxSurge"), errors);
            validate_not_more_than_100_percent(&unavailable, &path.child("maxUnavailable"), errors);
            validate_not_more_than_100_percent(&surge, &path.child("maxSurge"), errors);
            if has_unavailable && has_surge {
                errors.invalid(
                    &path.child("maxSurge"),
                    Bad::json(&surge),
                    "may not be set when maxUnavailable is non-zero",
                );
            } else if !has_unavailable && !has_surge {
                errors.required(
                    &path.child("maxUnavailable"),
                    "cannot be 0 when maxSurge is 0",
                );
            }
        }
        other => {
            let rolling = strategy.rolling_update.as_ref();
            let rolling =
                rolling.map(|it| show_rolling(it.max_unavailable.as_ref(), it.max_surge.as_ref()));
            let shown = format!(
                r#"{{"Type":{},"RollingUpdate":{}}}"#,
                json!(other),
                rolling.as_deref().unwrap_or("null")
            );
            errors.not_supported(path, Bad::shown(shown), &["RollingUpdate", "OnDelete"]);
        }
    }
}
