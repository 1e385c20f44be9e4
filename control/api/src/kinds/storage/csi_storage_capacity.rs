use k8s_openapi::api::storage::v1::CSIStorageCapacity;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    quantity::Amount,
    validation::{
        labels::{SelectorRules, validate_selector},
        resources, text,
    },
};

impl Kind for CSIStorageCapacity {
    const RULES: Rules = Rules::namespaced().conditional_update();
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
        for (field, quantity) in [
            ("capacity", &self.capacity),
            ("maximumVolumeSize", &self.maximum_volume_size),
        ] {
            if let Some(quantity) = quantity {
                resources::validate_non_negative(Amount::of(quantity), &Path::new(field), errors);
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
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
