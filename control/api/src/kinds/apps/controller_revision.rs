use k8s_openapi::api::apps::v1::ControllerRevision;

use crate::{
    field::{Bad, Errors, IMMUTABLE, Path},
    kinds::{Check, Kind, Rules},
};

impl Kind for ControllerRevision {
    const RULES: Rules =
        Rules::namespaced().update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        if self.data.is_none() {
            errors.required(&Path::new("data"), "data is mandatory");
        }
        if self.revision < 0 {
            errors.invalid(
                &Path::new("revision"),
                self.revision,
                "must be greater than or equal to 0",
            );
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        if self.data != old.data {
            errors.invalid(&Path::new("data"), Bad::json(&self.data), IMMUTABLE);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::controller_revision()
    }
}
