//! resource.k8s.io/v1

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimSpec, ResourceClaimTemplate, ResourceSlice,
};

use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules, Selectable, core::event::first_text},
    printer::Printer,
    printers,
    zero::fill,
};

impl Kind for ResourceClaim {
    const RULES: Rules = Rules::namespaced().status();

    fn set_defaults(&mut self) {
        set_claim_defaults(&mut self.spec);
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        errors.immutable(&Path::new("spec"), &self.spec, &old.spec);
    }

    fn printer() -> Arc<dyn Printer> {
        printers::storage::resource_claim()
    }
}

impl Kind for ResourceClaimTemplate {
    const RULES: Rules = Rules::namespaced();

    fn set_defaults(&mut self) {
        set_claim_defaults(&mut self.spec.spec);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        errors.immutable(&Path::new("spec"), &self.spec, &old.spec);
    }

    fn printer() -> Arc<dyn Printer> {
        printers::core::name_and_age()
    }
}

impl Kind for ResourceSlice {
    const RULES: Rules = Rules::cluster().generation(Generation::Spec);
    const HAS_DEFAULTS: bool = false;

    fn printer() -> Arc<dyn Printer> {
        printers::storage::resource_slice()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(&[
            Selectable {
                name: "spec.nodeName",
                get: |object| first_text(object, &["/spec/nodeName"]),
            },
            Selectable {
                name: "spec.driver",
                get: |object| first_text(object, &["/spec/driver"]),
            },
        ])
    }
}

fn set_claim_defaults(spec: &mut ResourceClaimSpec) {
    let Some(devices) = &mut spec.devices else {
        return;
    };
    for request in devices.requests.iter_mut().flatten() {
        if let Some(exactly) = &mut request.exactly {
            fill(&mut exactly.allocation_mode, "ExactCount");
            set_count(exactly.allocation_mode.as_deref(), &mut exactly.count);
        }
        for choice in request.first_available.iter_mut().flatten() {
            fill(&mut choice.allocation_mode, "ExactCount");
            set_count(choice.allocation_mode.as_deref(), &mut choice.count);
        }
    }
}

fn set_count(mode: Option<&str>, count: &mut Option<i64>) {
    if mode == Some("ExactCount") && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
}
