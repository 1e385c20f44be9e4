use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    validation::text,
};

impl Kind for VolumeAttributesClass {
    const RULES: Rules = Rules::cluster().update_checks(&[
        Check::Metadata,
        Check::Object,
        Check::MetadataChange,
        Check::Metadata,
    ]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let at = Path::new("driverName");
        if self.driver_name.is_empty() {
            errors.required(&at, "");
        } else {
            let lower = self.driver_name.to_lowercase();
            errors.invalid_each(&at, &lower, text::qualified_name(&lower));
        }
        let at = Path::new("parameters");
        super::validate_parameters(self.parameters.as_ref(), &at, errors);
        let parameters = self.parameters.as_ref();
        if parameters.is_none_or(|parameters| parameters.is_empty()) {
            errors.required(&at, "must contain at least one key/value pair");
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if self.driver_name != old.driver_name {
            errors.forbidden(
                &Path::new("driverName"),
                "updates to driverName are forbidden.",
            );
        }
        if self.parameters != old.parameters {
            errors.forbidden(
                &Path::new("parameters"),
                "updates to parameters are forbidden.",
            );
        }
        self.validate(errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::volume_attributes_class()
    }
}
