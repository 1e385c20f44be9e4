//! What webhooks and policies are both about: which requests they look at, and conditions on those.

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, RuleWithOperations,
};

use crate::{
    field::{Bad, Errors, Path},
    validation::{
        labels::{SelectorRules, validate_label_name, validate_selector},
        text,
    },
    zero::{List, Text},
};

pub(super) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const CONDITIONS_LIMIT: usize = 64;

/// One of the words, if it is there.
pub(super) fn validate_word(
    value: Option<&String>,
    words: &[&str],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if let Some(value) = value
        && !words.contains(&value.as_str())
    {
        errors.not_supported(path, value, words);
    }
}

fn has_wildcard(values: &[String]) -> bool {
    values.iter().any(|value| value == "*")
}

pub(super) fn validate_rule(rule: &RuleWithOperations, path: &Path<'_>, errors: &mut Errors) {
    validate_parts(
        &Parts {
            operations: rule.operations.items(),
            groups: rule.api_groups.items(),
            versions: rule.api_versions.items(),
            resources: rule.resources.items(),
            scope: rule.scope.as_ref(),
        },
        path,
        errors,
    );
}

fn validate_named_rule(rule: &NamedRuleWithOperations, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("resourceNames");
    let names = rule.resource_names.items();
    for (i, name) in names.iter().enumerate() {
        errors.invalid_each(&at.index(i), name, text::path_segment(name));
        if names[..i].contains(name) {
            errors.duplicate(&at.index(i), name);
        }
    }
    validate_parts(
        &Parts {
            operations: rule.operations.items(),
            groups: rule.api_groups.items(),
            versions: rule.api_versions.items(),
            resources: rule.resources.items(),
            scope: rule.scope.as_ref(),
        },
        path,
        errors,
    );
}

/// What a rule says, named or not.
struct Parts<'a> {
    operations: &'a [String],
    groups: &'a [String],
    versions: &'a [String],
    resources: &'a [String],
    scope: Option<&'a String>,
}

fn validate_parts(rule: &Parts<'_>, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("operations");
    let alone = |values: &[String], what: &str, at: &Path<'_>, errors: &mut Errors| {
        if values.is_empty() {
            errors.required(at, "");
        }
        if values.len() > 1 && has_wildcard(values) {
            errors.invalid(
                at,
                Bad::json(&values),
                format!("if '*' is present, must not specify other {what}"),
            );
        }
    };
    alone(rule.operations, "operations", &at, errors);
    for (i, operation) in rule.operations.iter().enumerate() {
        validate_word(Some(operation), &OPERATIONS, &at.index(i), errors);
    }
    alone(rule.groups, "API groups", &path.child("apiGroups"), errors);
    let at = path.child("apiVersions");
    alone(rule.versions, "API versions", &at, errors);
    for (i, version) in rule.versions.iter().enumerate() {
        if version.is_empty() {
            errors.required(&at.index(i), "");
        }
    }
    validate_resources(rule.resources, &path.child("resources"), errors);
    validate_word(rule.scope, &SCOPES, &path.child("scope"), errors);
}

fn validate_resources(resources: &[String], path: &Path<'_>, errors: &mut Errors) {
    if resources.is_empty() {
        errors.required(path, "");
    }
    let mut whole: Vec<&str> = Vec::new();
    let mut everywhere: Vec<&str> = Vec::new();
    // Only the last entry without a subresource counts: upstream does it too.
    let mut plain = false;
    for (i, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            errors.required(&path.index(i), "");
            continue;
        }
        let Some((name, sub)) = resource.split_once('/') else {
            plain = resource != "*";
            continue;
        };
        if whole.contains(&name) {
            errors.invalid(
                &path.index(i),
                resource,
                format!("if '{name}/*' is present, must not specify {resource}"),
            );
        }
        if everywhere.contains(&sub) {
            errors.invalid(
                &path.index(i),
                resource,
                format!("if '*/{sub}' is present, must not specify {resource}"),
            );
        }
        if sub == "*" {
            whole.push(name);
        }
        if name == "*" {
            everywhere.push(sub);
        }
    }
    if resources.len() > 1 && resources.iter().any(|one| one == "*/*") {
        errors.invalid(
            path,
            Bad::json(&resources),
            "if '*/*' is present, must not specify other resources",
        );
    }
    if plain && has_wildcard(resources) {
        errors.invalid(
            path,
            Bad::json(&resources),
            "if '*' is present, must not specify other resources without subresources",
        );
    }
}

pub(super) fn validate_match_resources(
    resources: &MatchResources,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("matchPolicy");
    if resources.match_policy.is_none() {
        errors.required(&at, "");
    }
    validate_word(
        resources.match_policy.as_ref(),
        &MATCH_POLICIES,
        &at,
        errors,
    );
    for (field, selector) in [
        ("namespaceSelector", &resources.namespace_selector),
        ("objectSelector", &resources.object_selector),
    ] {
        let at = path.child(field);
        if selector.is_none() {
            errors.required(&at, "");
        }
        validate_selector(selector.as_ref(), SelectorRules::default(), &at, errors);
    }
    for (field, rules) in [
        ("resourceRules", &resources.resource_rules),
        ("excludeResourceRules", &resources.exclude_resource_rules),
    ] {
        let at = path.child(field);
        for (i, rule) in rules.items().iter().enumerate() {
            validate_named_rule(rule, &at.index(i), errors);
        }
    }
}

pub(super) fn validate_match_conditions(
    conditions: &[MatchCondition],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if conditions.len() > CONDITIONS_LIMIT {
        errors.too_many(path, conditions.len(), CONDITIONS_LIMIT);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.index(i);
        if condition.expression.trim().is_empty() {
            errors.required(&at.child("expression"), "");
        }
        let at = at.child("name");
        let name = condition.name.as_str();
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        validate_label_name(name, &at, errors);
        if conditions[..i].iter().any(|earlier| earlier.name == name) {
            errors.duplicate(&at, name);
        }
    }
}

/// Defaults of what a policy or binding matches.
pub(super) fn set_match_defaults(resources: Option<&mut MatchResources>) {
    use crate::zero::{fill, set};

    let Some(resources) = resources else { return };
    set(&mut resources.match_policy, "Equivalent".to_owned());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    let included = resources.resource_rules.iter_mut().flatten();
    for rule in included.chain(resources.exclude_resource_rules.iter_mut().flatten()) {
        if rule.scope.text().is_empty() {
            fill(&mut rule.scope, "*");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(rule: Value, expected: &[&str]) {
        let mut all = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
        for (field, value) in rule.as_object().expect("fields") {
            all[field] = value.clone();
        }
        let rule: RuleWithOperations = serde_json::from_value(all).expect("a rule");
        let mut errors = Errors::default();
        validate_rule(&rule, &Path::new("r"), &mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn rules() {
        check(json!({}), &[]);
        check(json!({"resources": ["*", "pods/status"]}), &[]);
        check(
            json!({"operations": ["*", "EAT"]}),
            &[
                r#"r.operations: Invalid value: ["*","EAT"]: if '*' is present, must not specify other operations"#,
                r#"r.operations[1]: Unsupported value: "EAT": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE""#,
            ],
        );
        check(
            json!({"resources": ["pods/*", "pods/status", "*/scale", "x/scale"]}),
            &[
                r#"r.resources[1]: Invalid value: "pods/status": if 'pods/*' is present, must not specify pods/status"#,
                r#"r.resources[3]: Invalid value: "x/scale": if '*/scale' is present, must not specify x/scale"#,
            ],
        );
        check(
            json!({"resources": ["*", "pods"], "apiVersions": [""], "scope": "X"}),
            &[
                "r.apiVersions[0]: Required value",
                r#"r.resources: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources without subresources"#,
                r#"r.scope: Unsupported value: "X": supported values: "*", "Cluster", "Namespaced""#,
            ],
        );
    }
}
