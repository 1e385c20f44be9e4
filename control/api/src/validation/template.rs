//! Pod templates and the selectors of what owns them.

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject,
};

use super::{
    labels::{SelectorRules, validate_annotations, validate_labels, validate_selector},
    pod_spec::{PodRules, validate_pod_annotations, validate_pod_spec},
    security::validate_profile_annotations_match,
};
use crate::{
    field::{Bad, Errors, IMMUTABLE, Path},
    selector::LabelSelector,
    strategy::Warnings,
    zero::{List, Text},
};

pub fn is_empty(selector: &SelectorObject) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.items().is_empty()
}

/// A selector that cannot be read selects nothing; that it cannot be read is reported elsewhere.
pub fn is_selected(selector: &SelectorObject, template: &PodTemplateSpec) -> bool {
    let selector = if is_empty(selector) {
        LabelSelector::nothing()
    } else {
        match LabelSelector::from_object(Some(selector)) {
            Ok(selector) => selector,
            Err(_reported) => return true,
        }
    };
    let labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    selector.matches(&labels.unwrap_or_default())
}

/// `spec.selector` that must be there and must not select everything.
pub fn validate_required_selector(
    selector: &SelectorObject,
    kind: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let path = path.child("selector");
    // Upstream tells `{}` from nothing; both are an empty selector here.
    if is_empty(selector) {
        errors.required(&path, "");
        return;
    }
    let _ = kind;
    let before = errors.len();
    validate_selector(Some(selector), SelectorRules::default(), &path, errors);
    if errors.len() == before {
        return;
    }
    if LabelSelector::from_object(Some(selector)).is_err() {
        errors.invalid(&path, Bad::json(selector), "invalid label selector");
    }
}

/// The template of a controller that keeps pods running.
pub fn validate_workload_template(
    template: &PodTemplateSpec,
    selector: &SelectorObject,
    kind: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if !is_selected(selector, template) {
        let labels = template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.as_ref());
        errors.invalid(
            &path.child("metadata.labels"),
            Bad::json(&labels),
            "`selector` does not match template `labels`",
        );
    }
    validate_template(template, path, errors);
    let spec = template.spec.clone().unwrap_or_default();
    let policy = spec.restart_policy.text();
    if policy != "Always" {
        errors.not_supported(&path.child("spec.restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        errors.forbidden(
            &path.child("spec.activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

pub fn validate_template(template: &PodTemplateSpec, path: &Path<'_>, errors: &mut Errors) {
    let meta = template.metadata.clone().unwrap_or_default();
    let spec = template.spec.clone().unwrap_or_default();
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    let annotations = path.child("annotations");
    validate_annotations(meta.annotations.as_ref(), &annotations, errors);
    validate_pod_annotations(meta.annotations.as_ref(), &spec, &annotations, errors);
    let spec_path = path.child("spec");
    validate_pod_spec(&spec, None, PodRules::template(), &spec_path, errors);
    validate_profile_annotations_match(meta.annotations.as_ref(), &spec, &spec_path, errors);
    if !spec.ephemeral_containers.items().is_empty() {
        errors.forbidden(
            &spec_path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

pub fn validate_selector_unchanged(
    new: Option<&SelectorObject>,
    old: Option<&SelectorObject>,
    errors: &mut Errors,
) {
    let absent = |selector: Option<&SelectorObject>| selector.cloned().filter(|one| !is_empty(one));
    let (new, old) = (absent(new), absent(old));
    if new != old {
        errors.invalid(&Path::new("spec.selector"), Bad::json(&new), IMMUTABLE);
    }
}

pub fn template_warnings(
    template: Option<&PodTemplateSpec>,
    old: Option<&PodTemplateSpec>,
    path: &str,
) -> Warnings {
    match template {
        Some(template) => super::warnings::pod_template_warnings(template, old, path),
        None => Warnings::new(),
    }
}
