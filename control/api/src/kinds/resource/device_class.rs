use std::sync::Arc;

use k8s_openapi::api::resource::v1::DeviceClass;

use super::{
    requests::{CONFIG_LIMIT, SELECTORS_LIMIT, validate_configuration, validate_selector},
    validate_items,
};
use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules},
    printer::Printer,
    printers,
    validation::resources::is_extended,
    zero::List,
};

impl Kind for DeviceClass {
    const RULES: Rules = Rules::cluster().generation(Generation::Spec);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, Some(old), errors);
    }

    fn printer() -> Arc<dyn Printer> {
        printers::storage::device_class()
    }
}

fn validate(class: &DeviceClass, old: Option<&DeviceClass>, errors: &mut Errors) {
    let (spec, path) = (&class.spec, Path::new("spec"));
    // What is stored was checked when it came.
    let unchanged = old.is_some_and(|old| old.spec.selectors == spec.selectors);
    validate_items(
        spec.selectors.items(),
        SELECTORS_LIMIT,
        &path.child("selectors"),
        errors,
        |selector, path, errors| {
            if !unchanged || selector.cel.is_none() {
                validate_selector(selector, path, errors);
            }
        },
    );
    validate_items(
        spec.config.items(),
        CONFIG_LIMIT,
        &path.child("config"),
        errors,
        |config, path, errors| validate_configuration(config.opaque.as_ref(), path, errors),
    );
    if let Some(name) = &spec.extended_resource_name
        && !is_extended(name)
    {
        errors.invalid(
            &path.child("extendedResourceName"),
            name,
            "must be a valid extended resource name",
        );
    }
}
