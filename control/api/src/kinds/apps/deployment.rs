use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::json;

use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Bad, Errors, Path},
    kinds::{Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        numbers::{
            int_or_percent, percent_or_int_value, validate_collision_count,
            validate_int_or_percent, validate_non_negative, validate_not_more_than_100_percent,
        },
        template::{
            validate_required_selector, validate_selector_unchanged, validate_workload_template,
        },
        warnings::template_owner_warnings,
    },
    zero::{Flag, Text, fill, set},
};

impl Kind for Deployment {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::SpecOrAnnotations)
        .reset_status(&["spec", "metadata.labels"]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_template_defaults(&mut spec.template);
        set(&mut spec.replicas, 1);
        set_strategy_defaults(spec.strategy.get_or_insert_default());
        set(&mut spec.revision_history_limit, 10);
        set(&mut spec.progress_deadline_seconds, 600);
    }

    fn prepare_status_update(&mut self, old: &Self) {
        self.metadata.labels.clone_from(&old.metadata.labels);
    }

    fn validate(&self, errors: &mut Errors) {
        if let Some(spec) = &self.spec {
            validate_spec(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        let selector =
            |deployment: &Self| deployment.spec.as_ref().map(|spec| spec.selector.clone());
        validate_selector_unchanged(selector(self).as_ref(), selector(old).as_ref(), errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        let path = Path::new("status");
        let status = self.status.clone().unwrap_or_default();
        let old = old.status.clone().unwrap_or_default();
        let replicas = status.replicas.unwrap_or(0);
        let path = &path;
        for (field, value) in [
            (
                "observedGeneration",
                status.observed_generation.unwrap_or(0),
            ),
            ("replicas", i64::from(replicas)),
            (
                "updatedReplicas",
                i64::from(status.updated_replicas.unwrap_or(0)),
            ),
            (
                "readyReplicas",
                i64::from(status.ready_replicas.unwrap_or(0)),
            ),
            (
                "availableReplicas",
                i64::from(status.available_replicas.unwrap_or(0)),
            ),
            (
                "unavailableReplicas",
                i64::from(status.unavailable_replicas.unwrap_or(0)),
            ),
        ] {
            validate_non_negative(value, &path.child(field), errors);
        }
        if let Some(terminating) = status.terminating_replicas {
            validate_non_negative(
                terminating.into(),
                &path.child("terminatingReplicas"),
                errors,
            );
        }
        if let Some(count) = status.collision_count {
            validate_non_negative(count.into(), &path.child("collisionCount"), errors);
        }
        let ready = status.ready_replicas.unwrap_or(0);
        let available = status.available_replicas.unwrap_or(0);
        for (field, value) in [
            ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
            ("readyReplicas", ready),
            ("availableReplicas", available),
        ] {
            if value > replicas {
                errors.invalid(
                    &path.child(field),
                    value,
                    "cannot be greater than status.replicas",
                );
            }
        }
        if available > ready {
            errors.invalid(
                &path.child("availableReplicas"),
                available,
                "cannot be greater than readyReplicas",
            );
        }
        validate_collision_count(status.collision_count, old.collision_count, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let template = self.spec.as_ref().map(|spec| &spec.template);
        let old = old.map(|old| &old.metadata);
        template_owner_warnings(template, &self.metadata, old, "spec.template")
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::deployment()
    }
}

fn set_strategy_defaults(strategy: &mut DeploymentStrategy) {
    fill(&mut strategy.type_, "RollingUpdate");
    if strategy.type_.text() == "RollingUpdate" {
        let rolling = strategy.rolling_update.get_or_insert_default();
        set(
            &mut rolling.max_unavailable,
            IntOrString::String("25%".to_owned()),
        );
        set(
            &mut rolling.max_surge,
            IntOrString::String("25%".to_owned()),
        );
    }
}

fn validate_spec(spec: &DeploymentSpec, path: &Path<'_>, errors: &mut Errors) {
    validate_non_negative(
        spec.replicas.unwrap_or(0).into(),
        &path.child("replicas"),
        errors,
    );
    let (selector, unreadable) = (&spec.selector, "invalid label selector");
    if validate_required_selector(selector, "deployment", unreadable, path, errors) {
        let at = path.child("template");
        validate_workload_template(&spec.template, selector, "ReplicaSet", &at, errors);
    }
    let strategy = spec.strategy.clone().unwrap_or_default();
    validate_strategy(&strategy, &path.child("strategy"), errors);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    validate_non_negative(min_ready.into(), &path.child("minReadySeconds"), errors);
    if let Some(limit) = spec.revision_history_limit {
        validate_non_negative(limit.into(), &path.child("revisionHistoryLimit"), errors);
    }
    if let Some(deadline) = spec.progress_deadline_seconds {
        let path = path.child("progressDeadlineSeconds");
        validate_non_negative(deadline.into(), &path, errors);
        if deadline <= min_ready {
            errors.invalid(&path, deadline, "must be greater than minReadySeconds");
        }
    }
}

fn validate_strategy(strategy: &DeploymentStrategy, path: &Path<'_>, errors: &mut Errors) {
    match strategy.type_.text() {
        "Recreate" => {
            if strategy.rolling_update.is_some() {
                errors.forbidden(
                    &path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let Some(rolling) = &strategy.rolling_update else {
                errors.required(&path, "this should be defaulted and never be nil");
                return;
            };
            let unavailable = int_or_percent(rolling.max_unavailable.as_ref());
            let surge = int_or_percent(rolling.max_surge.as_ref());
            validate_int_or_percent(&unavailable, &path.child("maxUnavailable"), errors);
            validate_int_or_percent(&surge, &path.child("maxSurge"), errors);
            if percent_or_int_value(&unavailable) == 0 && percent_or_int_value(&surge) == 0 {
                errors.invalid(
                    &path.child("maxUnavailable"),
                    Bad::json(&unavailable),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            validate_not_more_than_100_percent(&unavailable, &path.child("maxUnavailable"), errors);
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
            errors.not_supported(path, Bad::shown(shown), &["Recreate", "RollingUpdate"]);
        }
    }
}

/// Of DaemonSets too.
pub(super) fn show_rolling(
    unavailable: Option<&IntOrString>,
    surge: Option<&IntOrString>,
) -> String {
    format!(
        r#"{{"MaxUnavailable":{},"MaxSurge":{}}}"#,
        json!(int_or_percent(unavailable)),
        json!(int_or_percent(surge))
    )
}

/// Whether a rollout is on hold.
pub fn is_paused(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .is_some_and(|spec| spec.paused.is_true())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(strategy: serde_json::Value, expected: &[&str]) {
        let strategy = serde_json::from_value(strategy).unwrap();
        let mut errors = Errors::default();
        validate_strategy(&strategy, &Path::new("s"), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn strategies() {
        let rolling = |unavailable| {
            json!({
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": 0},
            })
        };
        check(rolling(json!("25%")), &[]);
        // Not a percentage, but not zero either.
        check(
            rolling(json!("5")),
            &[
                "s.rollingUpdate.maxUnavailable: Invalid value: \"5\": a valid percent string must be a numeric string \
                 followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
            ],
        );
        check(
            json!({"type": "X", "rollingUpdate": {"maxSurge": "1%"}}),
            &[
                r#"s: Unsupported value: {"Type":"X","RollingUpdate":{"MaxUnavailable":0,"MaxSurge":"1%"}}: supported values: "Recreate", "RollingUpdate""#,
            ],
        );
    }
}
