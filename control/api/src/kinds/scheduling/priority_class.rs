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
        if name.starts_with("system-") {
            if let Err(problem) = check_system_class(name, value, self.global_default.is_true()) {
                errors.forbidden(
                    &Path::new("metadata.name"),
                    format!(
                        "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
                    ),
                );
            }
        } else if value > HIGHEST {
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

fn check_system_class(name: &str, value: i32, is_default: bool) -> Result<(), String> {
    let known = SYSTEM.iter().find(|(known, _)| *known == name);
    match known {
        None => Err(format!("{name} is not a known system priority class")),
        Some((_, number)) if *number != value => {
            Err(format!("value of {name} PriorityClass must be {number}"))
        }
        Some(_) if is_default => Err(format!(
            "globalDefault of {name} PriorityClass must be false"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::check_system_class;

    #[test]
    fn system_classes_are_those_that_are_there() {
        let critical = "system-cluster-critical";
        assert_eq!(check_system_class(critical, 2_000_000_000, false), Ok(()));
        for (name, value, is_default, expected) in [
            (
                "system-x",
                1,
                false,
                "system-x is not a known system priority class",
            ),
            (
                critical,
                1,
                false,
                "value of system-cluster-critical PriorityClass must be 2000000000",
            ),
            (
                critical,
                2_000_000_000,
                true,
                "globalDefault of system-cluster-critical PriorityClass must be false",
            ),
        ] {
            let problem = check_system_class(name, value, is_default);
            assert_eq!(problem, Err(expected.to_owned()));
        }
    }
}
