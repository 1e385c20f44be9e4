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
    zero::{List, Text},
};

pub fn is_empty(selector: &SelectorObject) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.items().is_empty()
}

/// Whether the client gave one; `{}` selects everything, nothing selects nothing (see [`crate::kinds::Typed`]).
fn is_given(selector: &SelectorObject) -> bool {
    selector.match_labels.is_some() || selector.match_expressions.is_some()
}

fn shown(selector: &SelectorObject) -> Bad {
    if is_empty(selector) {
        Bad::shown("{}")
    } else {
        Bad::json(selector)
    }
}

/// A selector that cannot be read selects nothing; that it cannot be read is reported elsewhere.
pub fn is_selected(selector: &SelectorObject, template: &PodTemplateSpec) -> bool {
    let selector = if is_given(selector) {
        match LabelSelector::from_object(Some(selector)) {
            Ok(selector) => selector,
            Err(_reported) => return true,
        }
    } else {
        LabelSelector::nothing()
    };
    let labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    selector.matches(&labels.unwrap_or_default())
}

/// `spec.selector` that must not select everything.
pub fn refuse_empty_selector(
    selector: &SelectorObject,
    kind: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if is_given(selector) && is_empty(selector) {
        let detail = format!("empty selector is invalid for {kind}");
        errors.invalid(path, shown(selector), detail);
    }
}

/// `spec.selector` that must be there too. Whether it can be read; what it selects is looked at only then.
pub fn validate_required_selector(
    selector: &SelectorObject,
    kind: &str,
    unreadable: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) -> bool {
    let path = path.child("selector");
    if !is_given(selector) {
        errors.required(&path, "");
        return true;
    }
    validate_selector(Some(selector), SelectorRules::default(), &path, errors);
    refuse_empty_selector(selector, kind, &path, errors);
    let readable = LabelSelector::from_object(Some(selector)).is_ok();
    if !readable {
        errors.invalid(&path, shown(selector), unreadable);
    }
    readable
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
    validate_endless(template, kind, path, errors);
}

/// Pods that are there to stay.
pub fn validate_endless(
    template: &PodTemplateSpec,
    kind: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
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
    let (new, old) = (
        new.filter(|one| is_given(one)),
        old.filter(|one| is_given(one)),
    );
    if new != old {
        let bad = new.map_or_else(|| Bad::json(&()), shown);
        errors.invalid(&Path::new("spec.selector"), bad, IMMUTABLE);
    }
}
