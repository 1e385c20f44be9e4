//! Where a pod may run: affinity, tolerations, spread constraints, node selectors.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Taint,
        Toleration, TopologySelectorTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    labels::{SelectorRules, validate_label_name, validate_selector},
    text,
};
use crate::{
    field::{Bad, Errors, FieldError, FieldErrorKind, Path},
    zero::{List, Text},
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub fn validate_affinity(affinity: Option<&Affinity>, path: &Path<'_>, errors: &mut Errors) {
    let Some(affinity) = affinity else { return };
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            validate_node_selector(selector, &path.child(REQUIRED), errors);
        }
        let preferred = path.child(PREFERRED);
        let terms = node
            .preferred_during_scheduling_ignored_during_execution
            .items();
        for (i, term) in terms.iter().enumerate() {
            let path = preferred.index(i);
            validate_weight(term.weight, &path, errors);
            // Values of preferences were never checked: a bad one just matches nothing.
            validate_term(&term.preference, true, &path.child("preference"), errors);
        }
    }
    if let Some(pod) = &affinity.pod_affinity {
        let path = path.child("podAffinity");
        let required = pod
            .required_during_scheduling_ignored_during_execution
            .items();
        let preferred = pod
            .preferred_during_scheduling_ignored_during_execution
            .items();
        validate_pod_terms(required, preferred, &path, errors);
    }
    if let Some(pod) = &affinity.pod_anti_affinity {
        let path = path.child("podAntiAffinity");
        let required = pod
            .required_during_scheduling_ignored_during_execution
            .items();
        let preferred = pod
            .preferred_during_scheduling_ignored_during_execution
            .items();
        validate_pod_terms(required, preferred, &path, errors);
    }
}

fn validate_weight(weight: i32, path: &Path<'_>, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn validate_pod_terms(
    required: &[PodAffinityTerm],
    preferred: &[WeightedPodAffinityTerm],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child(REQUIRED);
    for (i, term) in required.iter().enumerate() {
        validate_pod_term(term, &at.index(i), errors);
    }
    let at = path.child(PREFERRED);
    for (i, term) in preferred.iter().enumerate() {
        let at = at.index(i);
        validate_weight(term.weight, &at, errors);
        validate_pod_term(
            &term.pod_affinity_term,
            &at.child("podAffinityTerm"),
            errors,
        );
    }
}

fn validate_pod_term(term: &PodAffinityTerm, path: &Path<'_>, errors: &mut Errors) {
    let rules = SelectorRules::default();
    let selector = term.label_selector.as_ref();
    validate_selector(selector, rules, &path.child("labelSelector"), errors);
    let namespaces = term.namespace_selector.as_ref();
    validate_selector(namespaces, rules, &path.child("namespaceSelector"), errors);
    for name in term.namespaces.items() {
        errors.invalid_each(&path.child("namespace"), name, text::dns1123_label(name));
    }
    let matching = term.match_label_keys.items();
    let mismatching = term.mismatch_label_keys.items();
    validate_label_keys(matching, selector, &path.child("matchLabelKeys"), errors);
    validate_label_keys(
        mismatching,
        selector,
        &path.child("mismatchLabelKeys"),
        errors,
    );
    if let Some(selector) = selector {
        let mut seen: BTreeSet<&str> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        for expression in selector.match_expressions.items() {
            let key = expression.key.as_str();
            let index = matching.iter().position(|one| one == key);
            if let Some(index) = index.filter(|_| seen.contains(key)) {
                errors.invalid(
                    &path.index(index),
                    key,
                    "exists in both matchLabelKeys and labelSelector",
                );
            }
            seen.insert(key);
        }
    }
    let at = path.child("matchLabelKeys");
    for (i, key) in matching.iter().enumerate() {
        if mismatching.contains(key) {
            errors.invalid(
                &at.index(i),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            );
        }
    }
    let at = path.child("topologyKey");
    if term.topology_key.is_empty() {
        errors.required(&at, "can not be empty");
    }
    validate_label_name(&term.topology_key, &at, errors);
}

fn validate_label_keys(
    keys: &[String],
    selector: Option<&LabelSelector>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if keys.is_empty() {
        return;
    }
    if selector.is_none() {
        errors.forbidden(path, "must not be specified when labelSelector is not set");
        return;
    }
    for (i, key) in keys.iter().enumerate() {
        validate_label_name(key, &path.index(i), errors);
    }
}

pub fn validate_node_selector(selector: &NodeSelector, path: &Path<'_>, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
        return;
    }
    for (i, term) in selector.node_selector_terms.iter().enumerate() {
        validate_term(term, false, &path.index(i), errors);
    }
}

fn validate_term(term: &NodeSelectorTerm, any_values: bool, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("matchExpressions");
    for (i, requirement) in term.match_expressions.items().iter().enumerate() {
        validate_requirement(requirement, any_values, &at.index(i), errors);
    }
    let at = path.child("matchFields");
    for (i, requirement) in term.match_fields.items().iter().enumerate() {
        validate_field_requirement(requirement, &at.index(i), errors);
    }
}

fn validate_requirement(
    requirement: &NodeSelectorRequirement,
    any_values: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let values = requirement.values.items();
    let at = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
            &at,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "Gt" | "Lt" if values.len() != 1 => {
            errors.required(
                &at,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    if !any_values {
        for (i, value) in values.iter().enumerate() {
            errors.invalid_each(&at.index(i), value, text::label_value(value));
        }
    }
}

fn validate_field_requirement(
    requirement: &NodeSelectorRequirement,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let values = requirement.values.items();
    let at = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.len() != 1 {
                errors.required(
                    &at,
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
        }
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    if requirement.key != "metadata.name" {
        errors.invalid(
            &path.child("key"),
            &requirement.key,
            "not a valid field selector key",
        );
        return;
    }
    for (i, value) in values.iter().enumerate() {
        errors.invalid_each(&at.index(i), value, text::dns1123_subdomain(value));
    }
}

fn validate_effect(effect: &str, path: &Path<'_>, errors: &mut Errors) {
    if !EFFECTS.contains(&effect) {
        errors.not_supported(path, effect, &EFFECTS);
    }
}

pub fn validate_tolerations(tolerations: &[Toleration], path: &Path<'_>, errors: &mut Errors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let (key, value) = (toleration.key.text(), toleration.value.text());
        let (operator, effect) = (toleration.operator.text(), toleration.effect.text());
        let at = path.child("operator");
        if !key.is_empty() {
            validate_label_name(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            errors.invalid(
                &at,
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            errors.invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                let messages = text::label_value(value);
                if !messages.is_empty() {
                    errors.invalid(&at, value, messages.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(
                        &at,
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            other => errors.not_supported(&at, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            validate_effect(effect, &path.child("effect"), errors);
        }
    }
}

/// Of a node.
pub fn validate_taints(taints: &[Taint], path: &Path<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = path.index(i);
        validate_label_name(&taint.key, &path.child("key"), errors);
        let value = taint.value.text();
        let messages = text::label_value(value);
        if !messages.is_empty() {
            errors.invalid(&path.child("value"), value, messages.join(";"));
        }
        if taint.effect.is_empty() {
            errors.required(&path.child("effect"), "");
        } else {
            validate_effect(&taint.effect, &path.child("effect"), errors);
        }
        if !seen.insert((taint.key.as_str(), taint.effect.as_str())) {
            let shown = format!(
                r#"{{"Key":{},"Value":{},"Effect":{},"TimeAdded":{}}}"#,
                serde_json::json!(taint.key),
                serde_json::json!(value),
                serde_json::json!(taint.effect),
                serde_json::json!(taint.time_added)
            );
            errors.push(FieldError::new(
                FieldErrorKind::Duplicate,
                path,
                Bad::shown(shown),
                "taints must be unique by key and effect pair",
            ));
        }
    }
}

pub fn validate_spread(
    constraints: &[TopologySpreadConstraint],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (i, constraint) in constraints.iter().enumerate() {
        let path = path.index(i);
        let action = constraint.when_unsatisfiable.as_str();
        if constraint.max_skew <= 0 {
            errors.invalid(
                &path.child("maxSkew"),
                constraint.max_skew,
                "must be greater than zero",
            );
        }
        if constraint.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            errors.not_supported(&path.child("whenUnsatisfiable"), action, &actions);
        }
        let repeated = constraints[i + 1..].iter().any(|other| {
            other.topology_key == constraint.topology_key && other.when_unsatisfiable == action
        });
        if repeated {
            errors.duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {action}}}", constraint.topology_key),
            );
        }
        if let Some(minimum) = constraint.min_domains {
            let at = path.child("minDomains");
            if minimum <= 0 {
                errors.invalid(&at, minimum, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                errors.invalid(
                    &at,
                    minimum,
                    format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                    ),
                );
            }
        }
        for (field, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            if let Some(policy) = policy
                && !matches!(policy.as_str(), "Honor" | "Ignore")
            {
                errors.not_supported(&path.child(field), policy, &["Honor", "Ignore"]);
            }
        }
        validate_spread_keys(constraint, &path.child("matchLabelKeys"), errors);
        validate_selector(
            constraint.label_selector.as_ref(),
            SelectorRules::default(),
            &path.child("labelSelector"),
            errors,
        );
    }
}

fn validate_spread_keys(
    constraint: &TopologySpreadConstraint,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let keys = constraint.match_label_keys.items();
    if keys.is_empty() {
        return;
    }
    let mut selected = BTreeSet::new();
    match &constraint.label_selector {
        None => errors.forbidden(path, "must not be specified when labelSelector is not set"),
        Some(selector) => {
            selected.extend(
                selector
                    .match_labels
                    .iter()
                    .flatten()
                    .map(|(key, _)| key.as_str()),
            );
            selected.extend(
                selector
                    .match_expressions
                    .items()
                    .iter()
                    .map(|one| one.key.as_str()),
            );
        }
    }
    for (i, key) in keys.iter().enumerate() {
        validate_label_name(key, &path.index(i), errors);
        if selected.contains(key.as_str()) {
            errors.invalid(
                &path.index(i),
                key,
                "exists in both matchLabelKeys and labelSelector",
            );
        }
    }
}

/// `allowedTopologies` of a StorageClass.
pub fn validate_topology_terms(
    terms: &[TopologySelectorTerm],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    // Upstream starts with as many empty ones: an empty term repeats each of them.
    let mut before = vec![BTreeMap::new(); terms.len()];
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i);
        let expressions = path.child("matchLabelExpressions");
        let mut wanted = BTreeMap::new();
        for (j, requirement) in term.match_label_expressions.items().iter().enumerate() {
            let path = expressions.index(j);
            let at = path.child("values");
            if requirement.values.is_empty() {
                errors.required(&at, "");
            }
            let mut values = BTreeSet::new();
            for (k, value) in requirement.values.iter().enumerate() {
                if !values.insert(value) {
                    errors.duplicate(&at.index(k), value);
                }
            }
            validate_label_name(&requirement.key, &path.child("key"), errors);
            if wanted.insert(&requirement.key, values).is_some() {
                errors.duplicate(&path.child("key"), &requirement.key);
            }
        }
        for _ in before.iter().filter(|before| **before == wanted) {
            errors.duplicate(&path.child("matchLabelExpressions"), "");
        }
        before.push(wanted);
    }
}
