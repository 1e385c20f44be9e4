//! Counts and percentages.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::text;
use crate::field::{Bad, Errors, Path};

pub fn validate_non_negative(value: i64, path: &Path<'_>, errors: &mut Errors) {
    if value < 0 {
        errors.invalid(path, value, "must be greater than or equal to 0");
    }
}

/// An absent value is zero.
pub fn int_or_percent(value: Option<&IntOrString>) -> IntOrString {
    value.cloned().unwrap_or(IntOrString::Int(0))
}

pub fn validate_int_or_percent(value: &IntOrString, path: &Path<'_>, errors: &mut Errors) {
    match value {
        IntOrString::String(percent) => {
            errors.invalid_each(path, percent, text::percent(percent));
        }
        IntOrString::Int(number) => validate_non_negative((*number).into(), path, errors),
    }
}

/// The number before `%`, or the number itself, also in quotes (refused elsewhere). 0 for what is none of them.
pub fn percent_or_int_value(value: &IntOrString) -> i64 {
    match value {
        IntOrString::Int(number) => (*number).into(),
        IntOrString::String(text) => percent_value(value)
            .or_else(|| text.parse().ok())
            .unwrap_or(0),
    }
}

fn percent_value(value: &IntOrString) -> Option<i64> {
    match value {
        IntOrString::String(percent) if text::percent(percent).is_empty() => {
            percent.trim_end_matches('%').parse().ok()
        }
        _ => None,
    }
}

pub fn validate_not_more_than_100_percent(
    value: &IntOrString,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if percent_value(value).is_some_and(|percent| percent > 100) {
        errors.invalid(path, Bad::json(value), "must not be greater than 100%");
    }
}

/// `status.collisionCount` only grows; once there, it stays.
pub fn validate_collision_count(new: Option<i32>, old: Option<i32>, errors: &mut Errors) {
    let decremented = match (new, old) {
        (None, Some(_)) => true,
        (Some(new), Some(old)) => new < old,
        _ => false,
    };
    if decremented {
        errors.invalid(
            &Path::new("status.collisionCount"),
            new.unwrap_or(0),
            "cannot be decremented",
        );
    }
}

/// `status` of ReplicaSets and ReplicationControllers.
pub fn validate_replica_counts(
    replicas: i32,
    fully_labeled: i32,
    ready: i32,
    available: i32,
    observed_generation: i64,
    terminating: Option<i32>,
    errors: &mut Errors,
) {
    let path = Path::new("status");
    for (field, value) in [
        ("replicas", i64::from(replicas)),
        ("fullyLabeledReplicas", i64::from(fully_labeled)),
        ("readyReplicas", i64::from(ready)),
        ("availableReplicas", i64::from(available)),
    ] {
        validate_non_negative(value, &path.child(field), errors);
    }
    if let Some(terminating) = terminating {
        validate_non_negative(
            terminating.into(),
            &path.child("terminatingReplicas"),
            errors,
        );
    }
    validate_non_negative(
        observed_generation,
        &path.child("observedGeneration"),
        errors,
    );
    for (field, value) in [
        ("fullyLabeledReplicas", fully_labeled),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ] {
        if value > replicas {
            errors.invalid(
                &path.child(field),
                value,
                "cannot be greater than status.replicas",
            );
        }
    }
    if available > ready {
        errors.invalid(
            &path.child("availableReplicas"),
            available,
            "cannot be greater than readyReplicas",
        );
    }
}
