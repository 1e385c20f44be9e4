//! storage.k8s.io/v1

pub mod csi_driver;
pub mod csi_node;
pub mod csi_storage_capacity;
pub mod storage_class;
pub mod volume_attachment;
pub mod volume_attributes_class;

use std::collections::BTreeMap;

use crate::field::{Errors, Path};

/// What a driver is told: neither empty keys nor more than it can be expected to read.
fn validate_parameters(
    parameters: Option<&BTreeMap<String, String>>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const LIMIT: usize = 512;
    const LIMIT_BYTES: usize = 256 * 1024;
    let Some(parameters) = parameters else { return };
    if parameters.len() > LIMIT {
        errors.too_long(path, LIMIT);
        return;
    }
    for _ in parameters.keys().filter(|key| key.is_empty()) {
        errors.invalid(path, "", "field can not be empty.");
    }
    let size: usize = parameters
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > LIMIT_BYTES {
        errors.too_long(path, LIMIT_BYTES);
    }
}
