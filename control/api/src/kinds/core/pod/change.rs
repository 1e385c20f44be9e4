//! What may change of a pod once it is there.

use k8s_openapi::api::core::v1::{Container, NodeAffinity, Pod, PodSpec};

use crate::field::{Bad, Errors, Path};
use crate::validation::containers::validate_image_padding;
use crate::validation::internal::{ephemeral_container_diff, pod_spec_diff};
use crate::validation::labels::Labels;
use crate::validation::scheduling::validate_tolerations;
use crate::validation::{internal, text};
use crate::zero::{List, Text};

use super::is_mirror;

/// Answers whether the lists have different lengths, after which nothing else can be compared.
fn validate_images(
    new: &[Container],
    old: &[Container],
    path: &Path<'_>,
    errors: &mut Errors,
) -> bool {
    if new.len() != old.len() {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return true;
    }
    for (i, container) in new.iter().enumerate() {
        let path = path.index(i);
        if container.image.text().is_empty() {
            errors.required(&path.child("image"), "");
        }
        validate_image_padding(container, &path, errors);
    }
    false
}

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate_spec_change(new: &Pod, old: &Pod, errors: &mut Errors) {
    let spec = new.spec.clone().unwrap_or_default();
    let old = old.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let stop = validate_images(
        &spec.containers,
        &old.containers,
        &path.child("containers"),
        errors,
    ) || validate_images(
        spec.init_containers.items(),
        old.init_containers.items(),
        &path.child("initContainers"),
        errors,
    );
    if stop {
        return;
    }
    let at = path.child("activeDeadlineSeconds");
    match (spec.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), old) => {
            if !(0..=i64::from(i32::MAX)).contains(&new) {
                errors.invalid(&at, new, text::inclusive_range(0, i32::MAX.into()));
                return;
            }
            if old.is_some_and(|old| old < new) {
                errors.invalid(&at, new, "must be less than or equal to previous value");
                return;
            }
        }
        (None, Some(_)) => {
            errors.invalid(
                &at,
                None::<i64>,
                "must not update from a positive integer to nil value",
            );
        }
        (None, None) => {}
    }
    validate_added_tolerations(&spec, &old, &path.child("tolerations"), errors);
    let gates = path.child("schedulingGates");
    for (i, gate) in spec.scheduling_gates.items().iter().enumerate() {
        if !old.scheduling_gates.items().contains(gate) {
            errors.forbidden(
                &gates.index(i).child("name"),
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    gate.name
                ),
            );
        }
    }
    let mut kept = spec.clone();
    for (container, old) in kept.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&old.image);
    }
    let init = kept.init_containers.as_deref_mut().unwrap_or_default();
    for (container, old) in init.iter_mut().zip(old.init_containers.items()) {
        container.image.clone_from(&old.image);
    }
    kept.active_deadline_seconds = old.active_deadline_seconds;
    kept.scheduling_gates.clone_from(&old.scheduling_gates);
    kept.tolerations.clone_from(&old.tolerations);
    let grace = (
        old.termination_grace_period_seconds,
        kept.termination_grace_period_seconds,
    );
    if matches!(grace, (Some(old), Some(1)) if old < 0) {
        kept.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if !old.scheduling_gates.items().is_empty() {
        validate_gated_change(&mut kept, &old, &path, errors);
    }
    if kept != old {
        let diff = pod_spec_diff(&old, &kept);
        errors.forbidden(&path, format!("{UPDATABLE}\n{diff}"));
    }
}

fn validate_added_tolerations(spec: &PodSpec, old: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let tolerations = spec.tolerations.items();
    for old in old.tolerations.items() {
        let kept = tolerations.iter().any(|new| {
            let mut old = old.clone();
            old.toleration_seconds = new.toleration_seconds;
            old == *new
        });
        if !kept {
            errors.forbidden(
                path,
                "existing toleration can not be modified except its tolerationSeconds",
            );
            return;
        }
    }
    validate_tolerations(tolerations, path, errors);
}

/// Before it is scheduled, what a pod asks of nodes may be narrowed.
fn validate_gated_change(kept: &mut PodSpec, old: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let none = Labels::new();
    let selector = kept.node_selector.as_ref().unwrap_or(&none);
    let lost = old
        .node_selector
        .iter()
        .flatten()
        .any(|(key, value)| selector.get(key) != Some(value));
    if lost {
        errors.invalid(
            &path.child("nodeSelector"),
            Bad::json(selector),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    kept.node_selector.clone_from(&old.node_selector);
    let of = |spec: &PodSpec| -> Option<NodeAffinity> { spec.affinity.clone()?.node_affinity };
    let (new_affinity, old_affinity) = (of(kept), of(old));
    if new_affinity != old_affinity {
        let at = path.child("affinity.nodeAffinity");
        validate_node_affinity_change(new_affinity.as_ref(), old_affinity.as_ref(), &at, errors);
        match (&mut kept.affinity, &old.affinity) {
            (Some(affinity), None)
                if affinity.pod_affinity.is_none() && affinity.pod_anti_affinity.is_none() =>
            {
                kept.affinity = None;
            }
            (Some(affinity), _) => affinity.node_affinity = old_affinity,
            (None, _) => kept.affinity.clone_from(&old.affinity),
        }
    }
}

fn validate_node_affinity_change(
    new: Option<&NodeAffinity>,
    old: Option<&NodeAffinity>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let terms = |affinity: Option<&NodeAffinity>| {
        affinity
            .and_then(|one| {
                one.required_during_scheduling_ignored_during_execution
                    .clone()
            })
            .map(|selector| selector.node_selector_terms)
    };
    let Some(old_terms) = terms(old).filter(|terms| !terms.is_empty()) else {
        return;
    };
    let new_terms = terms(new).unwrap_or_default();
    let path = path.child("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    if new_terms.len() != old_terms.len() {
        errors.invalid(
            &path,
            internal::bad("NodeTerm", &new_terms),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        );
        return;
    }
    for (i, (new, old)) in new_terms.iter().zip(&old_terms).enumerate() {
        let path = path.index(i);
        let was_empty =
            old.match_expressions.items().is_empty() && old.match_fields.items().is_empty();
        if was_empty {
            if new != old {
                errors.invalid(
                    &path,
                    internal::bad("NodeTerm", new),
                    "NodeSelectorTerms with empty MatchExpressions and MatchFields cannot be updated",
                );
            }
            continue;
        }
        if !new
            .match_expressions
            .items()
            .starts_with(old.match_expressions.items())
            || !new
                .match_fields
                .items()
                .starts_with(old.match_fields.items())
        {
            errors.invalid(
                &path,
                internal::bad("NodeTerm", new),
                "only additions are allowed (no mutations or deletions)",
            );
        }
    }
}

pub(super) fn validate_ephemeral_change(new: &Pod, old: &Pod, errors: &mut Errors) {
    if is_mirror(old) {
        errors.0.clear();
        errors.forbidden(
            &Path::new(""),
            "static pods do not support ephemeral containers",
        );
        return;
    }
    let path = Path::new("spec.ephemeralContainers");
    let new = new.spec.clone().unwrap_or_default();
    let old = old.spec.clone().unwrap_or_default();
    for old in old.ephemeral_containers.items() {
        let name = crate::field::quoted(&old.name);
        match new
            .ephemeral_containers
            .items()
            .iter()
            .find(|one| one.name == old.name)
        {
            None => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name} may not be removed\n"),
            ),
            Some(new) if new != old => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name} may not be changed\n{}",
                    ephemeral_container_diff(old, new)
                ),
            ),
            Some(_) => {}
        }
    }
}
