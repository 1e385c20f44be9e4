use k8s_openapi::api::storage::v1::StorageClass;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    strategy::Warnings,
    validation::{scheduling::validate_topology_terms, text, warnings::deprecated_node_label},
    zero::{List, Text, set},
};

impl Kind for StorageClass {
    const RULES: Rules = Rules::cluster().update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        set(&mut self.reclaim_policy, "Delete".to_owned());
        set(&mut self.volume_binding_mode, "Immediate".to_owned());
    }

    fn validate(&self, errors: &mut Errors) {
        let at = Path::new("provisioner");
        if self.provisioner.is_empty() {
            errors.required(&at, "");
        } else {
            let lower = self.provisioner.to_lowercase();
            errors.invalid_each(&at, &lower, text::qualified_name(&lower));
        }
        super::validate_parameters(self.parameters.as_ref(), &Path::new("parameters"), errors);
        let policy = self.reclaim_policy.text();
        if !matches!(policy, "" | "Delete" | "Retain") {
            errors.not_supported(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        }
        let at = Path::new("volumeBindingMode");
        match self.volume_binding_mode.as_deref() {
            None => errors.required(&at, ""),
            Some("Immediate" | "WaitForFirstConsumer") => {}
            Some(other) => {
                errors.not_supported(&at, other, &["Immediate", "WaitForFirstConsumer"]);
            }
        }
        let at = Path::new("allowedTopologies");
        validate_topology_terms(self.allowed_topologies.items(), &at, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        if self.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default()
        {
            errors.forbidden(
                &Path::new("parameters"),
                "updates to parameters are forbidden.",
            );
        }
        if self.provisioner != old.provisioner {
            errors.forbidden(
                &Path::new("provisioner"),
                "updates to provisioner are forbidden.",
            );
        }
        if self.reclaim_policy != old.reclaim_policy {
            errors.forbidden(
                &Path::new("reclaimPolicy"),
                "updates to reclaimPolicy are forbidden.",
            );
        }
        errors.immutable(
            &Path::new("volumeBindingMode"),
            &self.volume_binding_mode,
            &old.volume_binding_mode,
        );
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let path = Path::new("allowedTopologies");
        for (i, term) in self.allowed_topologies.items().iter().enumerate() {
            let path = path.index(i);
            let path = path.child("matchLabelExpressions");
            for (j, expression) in term.match_label_expressions.items().iter().enumerate() {
                if let Some(message) = deprecated_node_label(&expression.key) {
                    warnings.push(format!("{}: {message}", path.index(j).child("key")));
                }
            }
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::storage_class()
    }
}
