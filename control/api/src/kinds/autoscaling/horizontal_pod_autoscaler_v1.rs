use k8s_openapi::api::autoscaling::{v1::HorizontalPodAutoscaler, v2};

use super::convert;
use crate::{
    field::Errors,
    kinds::{Kind, Rules},
    zero::set,
};

impl Kind for HorizontalPodAutoscaler {
    const RULES: Rules = Rules::namespaced().status();

    const FIELD_ANNOTATIONS: &'static [&'static str] = &convert::ANNOTATIONS;

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        set(&mut spec.min_replicas, 1);
        self.status.get_or_insert_default();
        let annotations = self.metadata.annotations.as_ref();
        let measures_something = annotations.is_some_and(|all| all.contains_key(convert::METRICS));
        if spec.target_cpu_utilization_percentage.is_none() && !measures_something {
            spec.target_cpu_utilization_percentage = Some(80);
        }
        // Whatever comes in is read as the internal form and shown from it: annotations get that form's spelling.
        if let Ok(object) = serde_json::to_value(&*self)
            && let Ok(same) = serde_json::from_value(convert::from_v2(convert::to_v2(object)))
        {
            *self = same;
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn validate(&self, errors: &mut Errors) {
        if let Some(stored) = as_v2(self) {
            stored.validate(errors);
        }
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        if let (Some(new), Some(old)) = (as_v2(self), as_v2(old)) {
            new.validate_status_update(&old, errors);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        struct ByStoredForm(std::sync::Arc<dyn crate::printer::Printer>);

        impl crate::printer::Printer for ByStoredForm {
            fn columns(&self) -> &[crate::printer::Column] {
                self.0.columns()
            }

            fn cells(
                &self,
                object: &serde_json::Value,
                now: jiff::Timestamp,
            ) -> Vec<serde_json::Value> {
                self.0.cells(&convert::to_v2(object.clone()), now)
            }
        }

        std::sync::Arc::new(ByStoredForm(
            crate::printers::workloads::horizontal_pod_autoscaler(),
        ))
    }
}

fn as_v2(object: &HorizontalPodAutoscaler) -> Option<v2::HorizontalPodAutoscaler> {
    let value = convert::to_v2(serde_json::to_value(object).ok()?);
    serde_json::from_value(value).ok()
}
