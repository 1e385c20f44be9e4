use k8s_openapi::api::{core::v1::Toleration, node::v1::RuntimeClass};

use crate::{
    defaults::pod_spec::round_up,
    field::{Errors, IMMUTABLE, Path},
    kinds::{Check, Kind, Rules},
    quantity::ResourceList,
    strategy::Warnings,
    validation::{
        internal,
        labels::validate_labels,
        resources::{validate_container_resource_name, validate_requirements},
        scheduling::validate_tolerations,
        text,
        warnings::deprecated_node_label,
    },
    zero::List,
};

impl Kind for RuntimeClass {
    const RULES: Rules = Rules::cluster()
        .conditional_update()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        if let Some(overhead) = &mut self.overhead {
            round_up(overhead.pod_fixed.as_mut());
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("handler");
        if self.handler.is_empty() {
            errors.required(&path, "");
        } else {
            errors.invalid_each(&path, &self.handler, text::dns1123_label(&self.handler));
        }
        if let Some(overhead) = &self.overhead {
            let none = ResourceList::new();
            validate_requirements(
                overhead.pod_fixed.as_ref().unwrap_or(&none),
                &none,
                validate_container_resource_name,
                &Path::new("overhead"),
                errors,
            );
        }
        if let Some(scheduling) = &self.scheduling {
            let path = Path::new("scheduling");
            validate_labels(
                scheduling.node_selector.as_ref(),
                &path.child("nodeSelector"),
                errors,
            );
            let tolerations = scheduling.tolerations.items();
            let at = path.child("tolerations");
            validate_tolerations(tolerations, &at, errors);
            let key = |one: &Toleration| Toleration {
                toleration_seconds: None,
                ..one.clone()
            };
            for (i, toleration) in tolerations.iter().enumerate() {
                if tolerations[..i]
                    .iter()
                    .any(|one| key(one) == key(toleration))
                {
                    errors.duplicate(&at.index(i), internal::bad("Toleration", toleration));
                }
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        if self.handler != old.handler {
            errors.invalid(&Path::new("handler"), &self.handler, IMMUTABLE);
        }
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let selector = self
            .scheduling
            .iter()
            .filter_map(|one| one.node_selector.as_ref());
        let labels = selector.flat_map(|selector| selector.keys());
        let messages = labels.filter_map(|label| deprecated_node_label(label));
        messages
            .map(|message| format!("scheduling.nodeSelector: {message}"))
            .collect()
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::runtime_class()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_differ_in_more_than_their_time() {
        let class = json!({"metadata": {"name": "c"}, "handler": "h", "scheduling": {"tolerations": [
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
            {"key": "a b"},
            {"key": "a", "operator": "Exists", "effect": "NoExecute"},
        ]}});
        let class: RuntimeClass = serde_json::from_value(class).unwrap();
        let mut errors = Errors::default();
        class.validate(&mut errors);
        let found: Vec<(&str, &str)> = errors
            .0
            .iter()
            .map(|error| (error.field.as_str(), error.kind.reason()))
            .collect();
        assert_eq!(
            found,
            [
                ("scheduling.tolerations[1].key", "FieldValueInvalid"),
                ("scheduling.tolerations[2]", "FieldValueDuplicate"),
            ]
        );
    }
}
