use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use serde_json::json;

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Generation, Kind, Rules},
    validation::{
        labels::{SelectorRules, validate_selector},
        meta::validate_conditions,
        numbers::{
            validate_int_or_percent, validate_non_negative, validate_not_more_than_100_percent,
        },
    },
    zero::List,
};

impl Kind for PodDisruptionBudget {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .conditional_update()
        .update_checks(&[]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            errors.invalid(
                &path,
                Bad::shown(shown(&spec)),
                "minAvailable and maxUnavailable cannot be both set",
            );
        }
        for (field, value) in [
            ("minAvailable", &spec.min_available),
            ("maxUnavailable", &spec.max_unavailable),
        ] {
            if let Some(value) = value {
                validate_int_or_percent(value, &path.child(field), errors);
                validate_not_more_than_100_percent(value, &path.child(field), errors);
            }
        }
        validate_selector(
            spec.selector.as_ref(),
            SelectorRules::default(),
            &path.child("selector"),
            errors,
        );
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        if let Some(policy) = &spec.unhealthy_pod_eviction_policy
            && !policies.contains(&policy.as_str())
        {
            errors.not_supported(&path.child("unhealthyPodEvictionPolicy"), policy, &policies);
        }
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        let path = Path::new("status");
        validate_conditions(status.conditions.items(), &path.child("conditions"), errors);
        for (field, value) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            validate_non_negative(value.unwrap_or(0).into(), &path.child(field), errors);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::pod_disruption_budget()
    }
}

/// The spec as upstream's internal type is shown.
fn shown(spec: &PodDisruptionBudgetSpec) -> String {
    format!(
        r#"{{"MinAvailable":{},"Selector":{},"MaxUnavailable":{},"UnhealthyPodEvictionPolicy":{}}}"#,
        json!(spec.min_available),
        json!(spec.selector),
        json!(spec.max_unavailable),
        json!(spec.unhealthy_pod_eviction_policy)
    )
}
