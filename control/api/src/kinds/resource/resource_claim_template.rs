use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceClaimTemplate;

use super::requests::{set_claim_defaults, validate_claim_spec};
use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    printer::Printer,
    printers,
    validation::{
        internal,
        labels::{validate_annotations, validate_labels},
    },
};

impl Kind for ResourceClaimTemplate {
    const RULES: Rules = Rules::namespaced();

    fn set_defaults(&mut self) {
        set_claim_defaults(&mut self.spec.spec);
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        if let Some(meta) = &self.spec.metadata {
            let path = path.child("metadata");
            let (labels, annotations) = (meta.labels.as_ref(), meta.annotations.as_ref());
            validate_annotations(annotations, &path.child("annotations"), errors);
            validate_labels(labels, &path.child("labels"), errors);
        }
        validate_claim_spec(&self.spec.spec, &path.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        internal::immutable(
            "ResourceClaimTemplateSpec",
            &Path::new("spec"),
            &self.spec,
            &old.spec,
            errors,
        );
    }

    fn printer() -> Arc<dyn Printer> {
        printers::core::name_and_age()
    }
}
