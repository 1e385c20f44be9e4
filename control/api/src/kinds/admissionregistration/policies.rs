//! Admission policies and their bindings: what upstream fills in.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};

use crate::{
    kinds::{Generation, Kind, Rules},
    printer::Printer,
    printers::access,
    zero::{fill, set},
};

const RULES: Rules = Rules::cluster()
    .generation(Generation::Spec)
    .conditional_update();

impl Kind for ValidatingAdmissionPolicy {
    const RULES: Rules = RULES.status();

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.failure_policy, "Fail".to_owned());
        set_match_defaults(spec.match_constraints.as_mut());
    }

    fn printer() -> Arc<dyn Printer> {
        access::validating_admission_policy()
    }
}

impl Kind for MutatingAdmissionPolicy {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.failure_policy, "Fail".to_owned());
        set_match_defaults(spec.match_constraints.as_mut());
    }

    fn printer() -> Arc<dyn Printer> {
        access::mutating_admission_policy()
    }
}

impl Kind for ValidatingAdmissionPolicyBinding {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        set_match_defaults(self.spec.match_resources.as_mut());
    }

    fn printer() -> Arc<dyn Printer> {
        access::validating_admission_policy_binding()
    }
}

impl Kind for MutatingAdmissionPolicyBinding {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_match_defaults(spec.match_resources.as_mut());
    }

    fn printer() -> Arc<dyn Printer> {
        access::mutating_admission_policy_binding()
    }
}

fn set_match_defaults(resources: Option<&mut MatchResources>) {
    let Some(resources) = resources else { return };
    set(&mut resources.match_policy, "Equivalent".to_owned());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    let included = resources.resource_rules.iter_mut().flatten();
    for rule in included.chain(resources.exclude_resource_rules.iter_mut().flatten()) {
        fill(&mut rule.scope, "*");
    }
}
