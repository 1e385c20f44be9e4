use k8s_openapi::api::storage::v1::CSIStorageCapacity;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    quantity::Amount,
    validation::{
        labels::{SelectorRules, validate_selector},
        resources, text,
    },
};

impl Kind for CSIStorageCapacity {
    const RULES: Rules = Rules::namespaced()
        .conditional_update()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_selector(
            self.node_topology.as_ref(),
            SelectorRules::default(),
            &Path::new("nodeTopology"),
            errors,
        );
        let class = &self.storage_class_name;
        errors.invalid_each(
            &Path::new("storageClassName"),
            class,
            text::dns1123_subdomain(class),
        );
        if let Some(quantity) = &self.capacity {
            let at = Path::new("capacity");
            resources::validate_non_negative(Amount::of(quantity), &at, errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        errors.immutable(
            &Path::new("nodeTopology"),
            &self.node_topology,
            &old.node_topology,
        );
        errors.immutable(
            &Path::new("storageClassName"),
            &self.storage_class_name,
            &old.storage_class_name,
        );
    }
}
