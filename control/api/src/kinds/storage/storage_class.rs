use k8s_openapi::api::storage::v1::StorageClass;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    validation::{scheduling::validate_topology_terms, text},
    zero::{List, Text, set},
};

impl Kind for StorageClass {
    const RULES: Rules = Rules::cluster();

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
            errors.invalid_each(&at, &self.provisioner, text::qualified_name(&lower));
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

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::storage_class()
    }
}
