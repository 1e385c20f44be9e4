use k8s_openapi::api::core::v1::ConfigMap;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    validation::text,
    zero::Flag,
};

const LIMIT_BYTES: usize = 1024 * 1024;
const FIXED: &str = "field is immutable when `immutable` is set";

impl Kind for ConfigMap {
    const RULES: Rules =
        Rules::namespaced().update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let mut size = 0;
        let path = Path::new("data");
        for (key, value) in self.data.iter().flatten() {
            let at = path.key(key);
            errors.invalid_each(&at, key, text::config_map_key(key));
            if self
                .binary_data
                .as_ref()
                .is_some_and(|binary| binary.contains_key(key))
            {
                errors.invalid(&at, key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        let path = Path::new("binaryData");
        for (key, value) in self.binary_data.iter().flatten() {
            errors.invalid_each(&path.key(key), key, text::config_map_key(key));
            size += value.0.len();
        }
        if size > LIMIT_BYTES {
            errors.too_long(&Path::new(""), LIMIT_BYTES);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if old.immutable.is_true() {
            if !self.immutable.is_true() {
                errors.forbidden(&Path::new("immutable"), FIXED);
            }
            if self.data != old.data {
                errors.forbidden(&Path::new("data"), FIXED);
            }
            if self.binary_data != old.binary_data {
                errors.forbidden(&Path::new("binaryData"), FIXED);
            }
        }
        self.validate(errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::config_map()
    }
}
