use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules},
    validation::pod_spec::validate_word,
    zero::{Flag, Text, set},
};

const SYSTEM: [(&str, i32); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];
const HIGHEST: i32 = 1_000_000_000;
const POLICIES: [&str; 2] = ["PreemptLowerPriority", "Never"];

impl Kind for PriorityClass {
    const RULES: Rules = Rules::cluster().generation(Generation::CreateOnly);

    fn set_defaults(&mut self) {
        set(
            &mut self.preemption_policy,
            "PreemptLowerPriority".to_owned(),
        );
        set(&mut self.value, 0);
    }

    fn validate(&self, errors: &mut Errors) {
        let name = self.metadata.name.text();
        let value = self.value.unwrap_or(0);
        let known = SYSTEM.iter().any(|(known, number)| {
            name == *known && value == *number && !self.global_default.is_true()
        });
        if name.starts_with("system-") && !known {
            errors.forbidden(
                &Path::new("metadata.name"),
                "priority class names with 'system-' prefix are reserved for system use only. error: only system priority classes can have such names",
            );
        } else if value > HIGHEST && !name.starts_with("system-") {
            errors.forbidden(
                &Path::new("value"),
                format!("maximum allowed value of a user defined priority is {HIGHEST}"),
            );
        }
        if let Some(policy) = &self.preemption_policy {
            validate_word(policy, &POLICIES, &Path::new("preemptionPolicy"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if self.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        errors.immutable(
            &Path::new("preemptionPolicy"),
            &self.preemption_policy,
            &old.preemption_policy,
        );
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::priority_class()
    }
}
