use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};

use crate::{
    field::{Errors, IMMUTABLE, Path},
    kinds::{Check, Kind, Rules},
    validation::{internal, text, volume_sources::validate_csi_driver_name},
    zero::List,
};

impl Kind for CSINode {
    const RULES: Rules = Rules::cluster().conditional_update().update_checks(&[
        Check::Metadata,
        Check::Object,
        Check::Metadata,
    ]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_drivers(&self.spec.drivers, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_drivers(&self.spec.drivers, errors);
        let at = Path::new("spec.drivers");
        for before in &old.spec.drivers {
            for driver in &self.spec.drivers {
                let (before, driver) = (without_count(before), without_count(driver));
                if driver.name == before.name && driver != before {
                    errors.invalid(&at, internal::bad("CSINodeDriver", &driver), IMMUTABLE);
                }
            }
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::csi_node()
    }
}

/// How many volumes a node takes may change while it runs.
fn without_count(driver: &CSINodeDriver) -> CSINodeDriver {
    CSINodeDriver {
        allocatable: None,
        ..driver.clone()
    }
}

fn validate_drivers(drivers: &[CSINodeDriver], errors: &mut Errors) {
    let path = Path::new("spec.drivers");
    for (index, driver) in drivers.iter().enumerate() {
        let path = path.index(index);
        validate_csi_driver_name(&driver.name, &path.child("name"), errors);
        let at = path.child("nodeID");
        if driver.node_id.is_empty() {
            errors.required(&at, "");
        }
        if driver.node_id.len() > 256 {
            errors.invalid(
                &at,
                driver.node_id.as_str(),
                "must be 256 characters or less",
            );
        }
        let count = driver
            .allocatable
            .as_ref()
            .and_then(|allocatable| allocatable.count);
        if let Some(count) = count.filter(|count| *count < 0) {
            errors.invalid(
                &path.child("allocatable.count"),
                count,
                "must be greater than or equal to 0",
            );
        }
        if drivers[..index]
            .iter()
            .any(|before| before.name == driver.name)
        {
            errors.duplicate(&path.child("name"), driver.name.as_str());
        }
        let keys = driver.topology_keys.items();
        for (index, key) in keys.iter().enumerate() {
            if key.is_empty() {
                errors.required(&path, "");
            }
            if keys[..index].contains(key) {
                errors.duplicate(&path, key.as_str());
            }
            errors.invalid_each(&path, key, text::qualified_name(key));
        }
    }
}
