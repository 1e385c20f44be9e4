use k8s_openapi::api::coordination::v1::Lease;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    zero::Text,
};

impl Kind for Lease {
    const RULES: Rules = Rules::namespaced().create_on_update().conditional_update();
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            errors.invalid(
                &path.child("leaseDurationSeconds"),
                seconds,
                "must be greater than 0",
            );
        }
        if let Some(count) = spec.lease_transitions.filter(|count| *count < 0) {
            errors.invalid(
                &path.child("leaseTransitions"),
                count,
                "must be greater than or equal to 0",
            );
        }
        if !spec.preferred_holder.text().is_empty() && spec.strategy.text().is_empty() {
            errors.forbidden(
                &path.child("preferredHolder"),
                "may only be specified if `strategy` is defined",
            );
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::lease()
    }
}
