//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    AuditAnnotation, MatchCondition, MatchResources, MutatingAdmissionPolicy, Mutation, ParamKind,
    ValidatingAdmissionPolicy, Validation, Variable,
};

use super::{
    expressions::Scope,
    reserved_name_warnings,
    rules::{
        FAILURE_POLICIES, set_match_defaults, validate_match_conditions, validate_match_resources,
        validate_word,
    },
};
use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules, keep_status_metadata},
    printer::Printer,
    printers::access,
    strategy::Warnings,
    validation::{labels::validate_label_name, meta::validate_conditions, text},
    zero::{List, Text, set},
};

pub(super) const RULES: Rules = Rules::cluster()
    .generation(Generation::Spec)
    .conditional_update()
    .update_checks(&[Check::Metadata]);

const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const PATCH_TYPES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const AUDIT_ANNOTATIONS_LIMIT: usize = 20;
const VALUE_EXPRESSION_LIMIT_BYTES: usize = 5 * 1024;
const MISSING: &str = "expression is not specified";

impl Kind for ValidatingAdmissionPolicy {
    const RULES: Rules = RULES.status().reset_status(&["metadata", "spec"]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.failure_policy, "Fail".to_owned());
        set_match_defaults(spec.match_constraints.as_mut());
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        validate_validating(self, true, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let parts = |policy: &Self| {
            let spec = policy.spec.clone().unwrap_or_default();
            (spec.param_kind, spec.match_conditions)
        };
        validate_validating(self, parts(self) != parts(old), errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        let path = Path::new("status");
        let warnings = status.type_checking.unwrap_or_default();
        let at = path.child("typeChecking.expressionWarnings");
        for (i, warning) in warnings.expression_warnings.items().iter().enumerate() {
            for (field, value) in [
                ("warning", warning.warning.as_str()),
                ("fieldRef", warning.field_ref.trim()),
            ] {
                if value.is_empty() {
                    errors.required(&at.index(i).child(field), "");
                }
            }
        }
        validate_conditions(status.conditions.items(), &path.child("conditions"), errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
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

    fn validate(&self, errors: &mut Errors) {
        validate_mutating(self, true, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let parts = |policy: &Self| {
            let spec = policy.spec.clone().unwrap_or_default();
            (spec.param_kind, spec.match_conditions)
        };
        validate_mutating(self, parts(self) != parts(old), errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
    }

    fn printer() -> Arc<dyn Printer> {
        access::mutating_admission_policy()
    }
}

/// What both kinds have in common, up to the expressions of their own.
struct Head<'a> {
    failure_policy: Option<&'a String>,
    param_kind: Option<&'a ParamKind>,
    constraints: Option<&'a MatchResources>,
    /// `None`: as they were, and not looked at again.
    conditions: Option<&'a [MatchCondition]>,
    variables: &'a [Variable],
}

/// What the policy's own expressions see.
fn validate_head(head: &Head<'_>, path: &Path<'_>, errors: &mut Errors) -> Scope {
    let at = path.child("failurePolicy");
    if head.failure_policy.is_none() {
        errors.required(&at, "");
    }
    validate_word(head.failure_policy, &FAILURE_POLICIES, &at, errors);
    if let Some(kind) = head.param_kind {
        validate_param_kind(kind, &path.child("paramKind"), errors);
    }
    let at = path.child("matchConstraints");
    match head.constraints {
        None => errors.required(&at, ""),
        Some(constraints) => {
            validate_match_resources(constraints, &at, errors);
            if constraints.resource_rules.items().is_empty() {
                errors.required(&at.child("resourceRules"), "");
            }
        }
    }
    if let Some(conditions) = head.conditions {
        validate_match_conditions(conditions, &path.child("matchConditions"), errors);
    }
    let mut scope = Scope::new(head.param_kind.is_some());
    if let Some(conditions) = head.conditions {
        scope.conditions(conditions, &path.child("matchConditions"), errors);
    }
    let at = path.child("variables");
    scope.variables(head.variables, &at, errors);
    for (i, variable) in head.variables.iter().enumerate() {
        let at = at.index(i);
        let name = variable.name.as_str();
        if name.trim().is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !is_cel_identifier(name) {
            errors.invalid(&at.child("name"), name, "must be a valid CEL identifier");
        }
        if variable.expression.trim().is_empty() {
            errors.required(&at.child("expression"), MISSING);
        }
    }
    scope
}

fn validate_validating(
    policy: &ValidatingAdmissionPolicy,
    conditions_too: bool,
    errors: &mut Errors,
) {
    let spec = policy.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let head = Head {
        failure_policy: spec.failure_policy.as_ref(),
        param_kind: spec.param_kind.as_ref(),
        constraints: spec.match_constraints.as_ref(),
        conditions: conditions_too.then(|| spec.match_conditions.items()),
        variables: spec.variables.items(),
    };
    let scope = validate_head(&head, &path, errors);
    let (validations, annotations) = (spec.validations.items(), spec.audit_annotations.items());
    let (validations_at, annotations_at) =
        (path.child("validations"), path.child("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.required(&validations_at, why);
        errors.required(&annotations_at, why);
        return;
    }
    for (i, validation) in validations.iter().enumerate() {
        validate_validation(validation, &validations_at.index(i), errors);
        scope.validation(validation, &validations_at.index(i), errors);
    }
    if annotations.len() > AUDIT_ANNOTATIONS_LIMIT {
        errors.invalid(
            &annotations_at,
            Bad::json(&annotations),
            format!("must not have more than {AUDIT_ANNOTATIONS_LIMIT} auditAnnotations"),
        );
    }
    let name = policy.metadata.name.text();
    for (i, annotation) in annotations.iter().enumerate() {
        let at = annotations_at.index(i);
        validate_audit_annotation(annotation, name, &at, errors);
        let value = annotation.value_expression.as_str();
        scope.annotation(value, &at.child("valueExpression"), errors);
        let key = &annotation.key;
        if annotations[..i].iter().any(|earlier| earlier.key == *key) {
            errors.duplicate(&at.child("key"), key);
        }
    }
}

fn validate_validation(validation: &Validation, path: &Path<'_>, errors: &mut Errors) {
    if validation.expression.trim().is_empty() {
        errors.required(&path.child("expression"), MISSING);
    }
    for (field, text) in [
        ("messageExpression", &validation.message_expression),
        ("message", &validation.message),
    ] {
        let text = text.text();
        if !text.is_empty() && text.trim().is_empty() {
            errors.invalid(&path.child(field), text, "must be non-empty if specified");
        } else if field == "message" && text.trim().contains(['\n', '\r']) {
            errors.invalid(&path.child(field), text, "must not contain line breaks");
        }
    }
    let at = path.child("reason");
    validate_word(validation.reason.as_ref(), &REASONS, &at, errors);
}

fn validate_audit_annotation(
    annotation: &AuditAnnotation,
    policy: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("key");
    if policy.is_empty() {
        errors.invalid(&at, &annotation.key, "requires metadata.name be non-empty");
    } else {
        let name = format!("{policy}/{}", annotation.key);
        validate_label_name(&name, &at, errors);
    }
    let at = path.child("valueExpression");
    let expression = annotation.value_expression.trim();
    if expression.is_empty() {
        errors.required(&at, "valueExpression is not specified");
    } else if expression.len() > VALUE_EXPRESSION_LIMIT_BYTES {
        errors.required(
            &at,
            format!("must not exceed {VALUE_EXPRESSION_LIMIT_BYTES} bytes in length"),
        );
    }
}

fn validate_mutating(policy: &MutatingAdmissionPolicy, conditions_too: bool, errors: &mut Errors) {
    let spec = policy.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let head = Head {
        failure_policy: spec.failure_policy.as_ref(),
        param_kind: spec.param_kind.as_ref(),
        constraints: spec.match_constraints.as_ref(),
        conditions: conditions_too.then(|| spec.match_conditions.items()),
        variables: spec.variables.items(),
    };
    let scope = validate_head(&head, &path, errors);
    let at = path.child("mutations");
    if spec.mutations.items().is_empty() {
        errors.required(&at, "mutations must contain at least one item");
    }
    for (i, mutation) in spec.mutations.items().iter().enumerate() {
        validate_mutation(mutation, &at.index(i), errors);
        scope.mutation(mutation, &at.index(i), errors);
    }
    let at = path.child("reinvocationPolicy");
    match spec.reinvocation_policy.text() {
        "" => errors.required(&at, ""),
        _ => validate_word(
            spec.reinvocation_policy.as_ref(),
            &REINVOCATION_POLICIES,
            &at,
            errors,
        ),
    }
}

fn validate_mutation(mutation: &Mutation, path: &Path<'_>, errors: &mut Errors) {
    let apply = mutation.apply_configuration.as_ref();
    let patch = mutation.json_patch.as_ref();
    let sides = [
        (
            "ApplyConfiguration",
            "applyConfiguration",
            apply.map(|one| one.expression.text()),
        ),
        (
            "JSONPatch",
            "jsonPatch",
            patch.map(|one| one.expression.text()),
        ),
    ];
    let type_ = mutation.patch_type.as_str();
    let at = path.child("patchType");
    if type_.is_empty() {
        errors.required(&at, "");
        return;
    }
    if !PATCH_TYPES.contains(&type_) {
        errors.not_supported(&at, type_, &PATCH_TYPES);
        return;
    }
    for (of, field, expression) in sides {
        let at = path.child(field);
        match expression {
            None if of == type_ => {
                errors.required(&at, format!("must be specified when patchType is {type_}"));
            }
            Some(_) if of != type_ => {
                errors.invalid(
                    &at,
                    Bad::omitted(),
                    format!("must not be specified when patchType is {type_}"),
                );
            }
            Some(expression) if expression.trim().is_empty() => {
                errors.required(&at.child("expression"), MISSING);
            }
            _ => {}
        }
    }
}

fn validate_param_kind(kind: &ParamKind, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("apiVersion");
    let api_version = kind.api_version.text();
    match api_version.split('/').collect::<Vec<_>>()[..] {
        [""] => errors.required(&at, ""),
        [version] => validate_version(version, api_version, &at, errors),
        [group, version] => {
            let messages = text::dns1123_subdomain(group);
            if !group.is_empty() && !messages.is_empty() {
                errors.invalid(&at, group, messages.join(","));
            }
            validate_version(version, api_version, &at, errors);
        }
        _ => errors.invalid(
            &at,
            api_version,
            format!("unexpected GroupVersion string: {api_version}"),
        ),
    }
    let at = path.child("kind");
    let name = kind.kind.text();
    let messages = text::dns1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.required(&at, "");
    } else if !messages.is_empty() {
        errors.invalid(
            &at,
            name,
            format!(
                "may have mixed case, but should otherwise match: {}",
                messages.join(",")
            ),
        );
    }
}

fn validate_version(version: &str, api_version: &str, path: &Path<'_>, errors: &mut Errors) {
    let messages = text::dns1035_label(version);
    if version.is_empty() {
        errors.invalid(path, api_version, "version must be specified");
    } else if !messages.is_empty() {
        errors.invalid(path, version, messages.join(","));
    }
}

/// CEL's grammar: a name that is no literal and not reserved.
fn is_cel_identifier(name: &str) -> bool {
    text::c_identifier(name).is_empty() && !skep_cel::is_reserved(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    /// `spec` over a good one.
    fn merged(base: Value, spec: Value) -> Value {
        let mut all = base;
        all["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]});
        for (field, value) in spec.as_object().expect("fields") {
            all[field] = value.clone();
        }
        json!({"metadata": {"name": "p"}, "spec": all})
    }

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let all = merged(json!({"validations": [{"expression": "true"}]}), spec);
        let mut policy: ValidatingAdmissionPolicy = serde_json::from_value(all).expect("a policy");
        policy.set_defaults();
        let mut errors = Errors::default();
        policy.validate(&mut errors);
        assert_eq!(texts(&errors), expected);
    }

    #[track_caller]
    fn check_mutating(spec: Value, expected: &[&str]) {
        let base = json!({"reinvocationPolicy": "Never", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]});
        let mut policy: MutatingAdmissionPolicy =
            serde_json::from_value(merged(base, spec)).expect("a policy");
        policy.set_defaults();
        let mut errors = Errors::default();
        policy.validate(&mut errors);
        assert_eq!(texts(&errors), expected);
    }

    #[test]
    fn validating() {
        check(json!({}), &[]);
        check(
            json!({"validations": []}),
            &[
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ],
        );
        check(
            json!({"validations": [{"expression": " ", "message": "a\nb", "reason": "Gone", "messageExpression": " "}]}),
            &[
                "spec.validations[0].expression: Required value: expression is not specified",
                r#"spec.validations[0].messageExpression: Invalid value: " ": must be non-empty if specified"#,
                r#"spec.validations[0].message: Invalid value: "a\nb": must not contain line breaks"#,
                r#"spec.validations[0].reason: Unsupported value: "Gone": supported values: "Forbidden", "Invalid", "RequestEntityTooLarge""#,
            ],
        );
        check(
            json!({"paramKind": {"apiVersion": "a/b/c", "kind": "K"}, "variables": [{"name": "in", "expression": "1"}]}),
            &[
                r#"spec.paramKind.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
                r#"spec.variables[0].name: Invalid value: "in": must be a valid CEL identifier"#,
            ],
        );
        check(
            json!({"matchConditions": [{"name": "a", "expression": "true"}, {"name": "a", "expression": ""}]}),
            &[
                "spec.matchConditions[1].expression: Required value",
                r#"spec.matchConditions[1].name: Duplicate value: "a""#,
            ],
        );
    }

    #[test]
    fn mutating() {
        check_mutating(json!({}), &[]);
        check_mutating(
            json!({"mutations": [], "reinvocationPolicy": "X"}),
            &[
                "spec.mutations: Required value: mutations must contain at least one item",
                r#"spec.reinvocationPolicy: Unsupported value: "X": supported values: "IfNeeded", "Never""#,
            ],
        );
        check_mutating(
            json!({"mutations": [{"patchType": "X"}, {"patchType": "JSONPatch", "jsonPatch": {"expression": ""}}]}),
            &[
                r#"spec.mutations[0].patchType: Unsupported value: "X": supported values: "ApplyConfiguration", "JSONPatch""#,
                "spec.mutations[1].jsonPatch.expression: Required value: expression is not specified",
            ],
        );
    }
}
