//! Labels, annotations and label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::text;
use crate::{
    field::{Errors, Path},
    selector,
};

pub type Labels = BTreeMap<String, String>;

const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;

pub fn validate_label_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    errors.invalid_each(path, name, text::qualified_name(name));
}

pub fn validate_labels(labels: Option<&Labels>, path: &Path<'_>, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        validate_label_name(key, path, errors);
        errors.invalid_each(path, value, text::label_value(value));
    }
}

pub fn validate_annotations(annotations: Option<&Labels>, path: &Path<'_>, errors: &mut Errors) {
    let Some(annotations) = annotations else {
        return;
    };
    for key in annotations.keys() {
        errors.invalid_each(path, key, text::qualified_name(&key.to_lowercase()));
    }
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > ANNOTATIONS_LIMIT_BYTES {
        errors.too_long(path, ANNOTATIONS_LIMIT_BYTES);
    }
}

/// What a kind asks of its selectors beyond their shape.
#[derive(Clone, Copy, Default)]
pub struct SelectorRules {
    /// Values were not checked when the kind was young, and stored objects may have bad ones.
    pub allow_invalid_values: bool,
}

/// The selector, if nothing is wrong with it (apimachinery `LabelSelectorAsSelector`).
pub fn readable(selector: &LabelSelector) -> Option<selector::LabelSelector> {
    let mut errors = Errors::default();
    validate_selector(
        Some(selector),
        SelectorRules::default(),
        &Path::ROOT,
        &mut errors,
    );
    let read = selector::LabelSelector::from_object(Some(selector)).ok();
    read.filter(|_| errors.is_empty())
}

pub fn validate_selector(
    selector: Option<&LabelSelector>,
    rules: SelectorRules,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(selector) = selector else { return };
    validate_labels(
        selector.match_labels.as_ref(),
        &path.child("matchLabels"),
        errors,
    );
    let expressions = path.child("matchExpressions");
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        validate_requirement(requirement, rules, &expressions.index(i), errors);
    }
}

fn validate_requirement(
    requirement: &LabelSelectorRequirement,
    rules: SelectorRules,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    if !rules.allow_invalid_values {
        let path = path.child("values");
        for (i, value) in values.iter().enumerate() {
            errors.invalid_each(&path.index(i), value, text::label_value(value));
        }
    }
}
