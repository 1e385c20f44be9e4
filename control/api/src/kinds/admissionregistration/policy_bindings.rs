//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, MutatingAdmissionPolicyBinding, ParamRef, ValidatingAdmissionPolicyBinding,
};

use super::{
    policies::RULES,
    reserved_name_warnings,
    rules::{set_match_defaults, validate_match_resources},
};
use crate::{
    field::{Bad, Errors, Path},
    kinds::{Kind, Rules},
    printer::Printer,
    printers::access,
    strategy::Warnings,
    validation::{
        labels::{SelectorRules, validate_selector},
        text,
    },
    zero::Text,
};

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

impl Kind for ValidatingAdmissionPolicyBinding {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        set_match_defaults(self.spec.match_resources.as_mut());
    }

    fn validate(&self, errors: &mut Errors) {
        let (spec, path) = (&self.spec, Path::new("spec"));
        validate_binding(
            &spec.policy_name,
            spec.param_ref.as_ref(),
            spec.match_resources.as_ref(),
            &path,
            errors,
        );
        let at = path.child("validationActions");
        validate_actions(&spec.validation_actions, &at, errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
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

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        validate_binding(
            spec.policy_name.text(),
            spec.param_ref.as_ref(),
            spec.match_resources.as_ref(),
            &Path::new("spec"),
            errors,
        );
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
    }

    fn printer() -> Arc<dyn Printer> {
        access::mutating_admission_policy_binding()
    }
}

fn validate_binding(
    policy: &str,
    param: Option<&ParamRef>,
    resources: Option<&MatchResources>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("policyName");
    if policy.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, policy, text::dns1123_subdomain(policy));
    }
    if let Some(param) = param {
        validate_param_ref(param, &path.child("paramRef"), errors);
    }
    if let Some(resources) = resources {
        // The name is upstream's.
        validate_match_resources(resources, &path.child("matchResouces"), errors);
    }
}

fn validate_param_ref(param: &ParamRef, path: &Path<'_>, errors: &mut Errors) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let name = param.name.text();
    let both = !name.is_empty() && param.selector.is_some();
    let at = path.child("name");
    if !name.is_empty() {
        errors.invalid_each(&at, name, text::path_segment(name));
    }
    if both {
        errors.forbidden(&at, EXCLUSIVE);
    }
    let at = path.child("selector");
    validate_selector(
        param.selector.as_ref(),
        SelectorRules::default(),
        &at,
        errors,
    );
    if both {
        errors.forbidden(&at, EXCLUSIVE);
    }
    if name.is_empty() && param.selector.is_none() {
        errors.required(path, "one of name or selector must be specified");
    }
    let at = path.child("parameterNotFoundAction");
    match param.parameter_not_found_action.text() {
        "" => errors.required(&at, ""),
        "Allow" | "Deny" => {}
        other => errors.not_supported(&at, other, &["Deny", "Allow"]),
    }
}

fn validate_actions(actions: &[String], path: &Path<'_>, errors: &mut Errors) {
    for (i, action) in actions.iter().enumerate() {
        if !ACTIONS.contains(&action.as_str()) {
            errors.not_supported(&path.index(i), action, &ACTIONS);
        }
        if actions[..i].contains(action) {
            errors.duplicate(&path.index(i), action);
        }
    }
    let has = |action: &str| actions.iter().any(|one| one == action);
    if has("Deny") && has("Warn") {
        errors.invalid(
            path,
            Bad::json(&actions),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        );
    }
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let mut binding: ValidatingAdmissionPolicyBinding =
            serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec}))
                .expect("a binding");
        binding.set_defaults();
        let mut errors = Errors::default();
        binding.validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn bindings() {
        check(
            json!({"policyName": "p", "validationActions": ["Deny"]}),
            &[],
        );
        check(
            json!({"policyName": "", "validationActions": ["Deny", "Warn", "Deny", "X"], "paramRef": {}}),
            &[
                "spec.policyName: Required value",
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.paramRef.parameterNotFoundAction: Required value",
                r#"spec.validationActions[2]: Duplicate value: "Deny""#,
                r#"spec.validationActions[3]: Unsupported value: "X": supported values: "Audit", "Deny", "Warn""#,
                r#"spec.validationActions: Invalid value: ["Deny","Warn","Deny","X"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"#,
            ],
        );
    }
}
