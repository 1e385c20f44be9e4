//! What a controller may write into a Job's status. A rule holds only where what it is about changes, so that an object
//! that broke it before can still be written.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};

use super::indexes;
use crate::{
    field::{Bad, Errors, Path},
    validation::numbers::validate_non_negative,
    zero::{Flag, List, Text},
};

pub fn validate(job: &Job, old: &Job, errors: &mut Errors) {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let old = old.status.clone().unwrap_or_default();
    let path = Path::new("status");
    validate_numbers(&status, &path, errors);
    validate_conditions(&status, &old, &path, errors);
    validate_finished(&status, &old, &path, errors);
    validate_indexes(&spec, &status, &old, &path, errors);
    let finished = is_finished(&status);
    if let Some(count) = status.terminating.filter(|count| *count > 0)
        && finished
        && (!is_finished(&old) || old.terminating != status.terminating)
    {
        let detail = "terminating>0 is invalid for finished job";
        errors.invalid(&path.child("terminating"), count, detail);
    }
    let active = status.active.unwrap_or(0);
    if let Some(ready) = status.ready.filter(|ready| *ready > active)
        && (old.ready != status.ready || old.active.unwrap_or(0) != active)
    {
        let detail = "cannot set more ready pods than active";
        errors.invalid(&path.child("ready"), ready, detail);
    }
    validate_success(&spec, &status, &path, errors);
    validate_change(&spec, &status, &old, &path, errors);
}

pub(super) fn is_condition_true(status: &JobStatus, type_: &str) -> bool {
    let conditions = status.conditions.items();
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn is_finished(status: &JobStatus) -> bool {
    is_condition_true(status, "Complete") || is_condition_true(status, "Failed")
}

fn validate_numbers(status: &JobStatus, path: &Path<'_>, errors: &mut Errors) {
    for (field, value) in [
        ("active", status.active),
        ("succeeded", status.succeeded),
        ("failed", status.failed),
        ("ready", status.ready),
        ("terminating", status.terminating),
    ] {
        validate_non_negative(value.unwrap_or(0).into(), &path.child(field), errors);
    }
    let Some(uncounted) = &status.uncounted_terminated_pods else {
        return;
    };
    let path = path.child("uncountedTerminatedPods");
    let mut seen = BTreeSet::new();
    for (field, uids) in [
        ("succeeded", uncounted.succeeded.items()),
        ("failed", uncounted.failed.items()),
    ] {
        let path = path.child(field);
        for (i, uid) in uids.iter().enumerate() {
            let at = path.index(i);
            if uid.is_empty() {
                errors.invalid(&at, "", "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(&at, uid);
            }
        }
    }
}

fn validate_conditions(status: &JobStatus, old: &JobStatus, path: &Path<'_>, errors: &mut Errors) {
    let changes = |type_: &str| is_condition_true(status, type_) != is_condition_true(old, type_);
    let conditions = path.child("conditions");
    let mut exclude = |type_: &str, other: &str, shown: &str| {
        if is_condition_true(status, type_)
            && is_condition_true(status, other)
            && (changes(type_) || changes(other))
        {
            let detail = format!("cannot set {type_}=True and {shown}=true conditions");
            errors.invalid(&conditions, Bad::omitted(), detail);
        }
    };
    exclude("Complete", "Failed", "Failed");
    exclude("Complete", "FailureTarget", "FailureTarget");
    let complete = is_condition_true(status, "Complete");
    let at = path.child("completionTime");
    let time = &status.completion_time;
    if changes("Complete") || *time != old.completion_time {
        if time.is_some() && !complete {
            let detail = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&at, Bad::json(time), detail);
        }
        if time.is_none() && complete {
            errors.required(&at, "completionTime is required for Complete jobs");
        }
    }
    if let (Some(start), Some(end)) = (&status.start_time, time)
        && end.0 < start.0
        && (status.start_time != old.start_time || *time != old.completion_time)
    {
        let detail = "completionTime cannot be set before startTime";
        errors.invalid(&at, Bad::json(time), detail);
    }
    for (type_, first) in [
        ("Failed", "FailureTarget"),
        ("Complete", "SuccessCriteriaMet"),
    ] {
        if is_condition_true(status, type_)
            && !is_condition_true(status, first)
            && (changes(type_) || changes(first))
        {
            let detail =
                format!("cannot set {type_}=True condition without the {first}=true condition");
            errors.invalid(&conditions, Bad::omitted(), detail);
        }
    }
}

fn validate_finished(status: &JobStatus, old: &JobStatus, path: &Path<'_>, errors: &mut Errors) {
    if !is_finished(status) {
        return;
    }
    let finishes = !is_finished(old);
    let active = status.active.unwrap_or(0);
    if active > 0 && (finishes || active != old.active.unwrap_or(0)) {
        let detail = "active>0 is invalid for finished job";
        errors.invalid(&path.child("active"), active, detail);
    }
    if status.start_time.is_none() && (finishes || old.start_time.is_some()) {
        let detail = "startTime is required for finished job";
        errors.required(&path.child("startTime"), detail);
    }
    let uncounted = &status.uncounted_terminated_pods;
    if let Some(pods) = uncounted
        && !(pods.failed.items().is_empty() && pods.succeeded.items().is_empty())
        && (finishes || *uncounted != old.uncounted_terminated_pods)
    {
        let shown = format!(
            r#"{{"Succeeded":{},"Failed":{}}}"#,
            serde_json::json!(pods.succeeded),
            serde_json::json!(pods.failed)
        );
        errors.invalid(
            &path.child("uncountedTerminatedPods"),
            Bad::shown(shown),
            "uncountedTerminatedPods needs to be empty for finished job",
        );
    }
}

fn validate_indexes(
    spec: &JobSpec,
    status: &JobStatus,
    old: &JobStatus,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (completed, failed) = (status.completed_indexes.text(), &status.failed_indexes);
    let completed_changes = completed != old.completed_indexes.text();
    let failed_changes = *failed != old.failed_indexes;
    let (completed_at, failed_at) = (path.child("completedIndexes"), path.child("failedIndexes"));
    let check = |field: &str, at: &Path<'_>, listed: &str, errors: &mut Errors| {
        if let Some(completions) = spec.completions
            && let Err(problem) = indexes::count(listed, completions)
        {
            errors.invalid(at, listed, format!("error parsing {field}: {problem}"));
        }
    };
    if completed_changes {
        check("completedIndexes", &completed_at, completed, errors);
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    if let Some(failed) = failed.as_deref().filter(|_| failed_changes && per_index) {
        check("failedIndexes", &failed_at, failed, errors);
    }
    if completed_changes && !completed.is_empty() && spec.completion_mode.text() != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&completed_at, completed, detail);
    }
    let Some(failed) = failed else { return };
    if failed_changes && !per_index {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&failed_at, failed, detail);
    }
    if let Some(completions) = spec
        .completions
        .filter(|_| failed_changes || completed_changes)
        && let Some(index) = indexes::overlap(completed, failed, completions)
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.invalid(&failed_at, failed, detail);
    }
}

fn validate_success(spec: &JobSpec, status: &JobStatus, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("conditions");
    let met = is_condition_true(status, "SuccessCriteriaMet");
    for other in ["Failed", "FailureTarget"] {
        if met && is_condition_true(status, other) {
            let detail = format!("cannot set SuccessCriteriaMet=True and {other}=true conditions");
            errors.invalid(&at, Bad::omitted(), detail);
        }
    }
    if spec.success_policy.is_some() && !met && is_condition_true(status, "Complete") {
        let detail =
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.invalid(&at, Bad::omitted(), detail);
    }
}

fn validate_change(
    spec: &JobSpec,
    status: &JobStatus,
    old: &JobStatus,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let conditions = path.child("conditions");
    for type_ in ["Failed", "Complete", "FailureTarget"] {
        if is_condition_true(old, type_) && !is_condition_true(status, type_) {
            let detail = format!("cannot disable the terminal {type_}=True condition");
            errors.invalid(&conditions, Bad::omitted(), detail);
        }
    }
    // An elastic Job may be scaled down.
    let elastic = spec.completion_mode.text() == "Indexed" && spec.completions == spec.parallelism;
    for (field, new, old, fixed) in [
        ("failed", status.failed, old.failed, true),
        ("succeeded", status.succeeded, old.succeeded, !elastic),
    ] {
        let (new, old) = (new.unwrap_or(0), old.unwrap_or(0));
        if fixed && new < old {
            let detail = format!("cannot decrease the {field} counter");
            errors.invalid(&path.child(field), new, detail);
        }
    }
    let time = &status.completion_time;
    if time.is_some() && old.completion_time.is_some() && *time != old.completion_time {
        let detail = "completionTime cannot be mutated";
        errors.invalid(&path.child("completionTime"), Bad::json(time), detail);
    }
    if old.start_time.is_some() && old.start_time != status.start_time && !spec.suspend.is_true() {
        let detail = "startTime cannot be removed for unsuspended job";
        errors.required(&path.child("startTime"), detail);
    }
    let met = |status: &JobStatus| is_condition_true(status, "SuccessCriteriaMet");
    if met(old) && !met(status) {
        let detail = "cannot disable the SuccessCriteriaMet=True condition";
        errors.invalid(&conditions, Bad::omitted(), detail);
    }
    if is_condition_true(old, "Complete") && !met(old) && met(status) {
        let detail =
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.invalid(&conditions, Bad::omitted(), detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, old: Value, new: Value, expected: &[&str]) {
        let job = |status: Value| -> Job {
            let mut whole = json!({"metadata": {"name": "j"}, "spec": {"template": {}}});
            let fields = spec.as_object().into_iter().flatten();
            fields.for_each(|(field, value)| whole["spec"][field] = value.clone());
            whole["status"] = status;
            serde_json::from_value(whole).unwrap()
        };
        let mut errors = Errors::default();
        validate(&job(new), &job(old), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_finished_job_stays_so() {
        let conditions = json!([
            {"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}
        ]);
        let done = json!({
            "startTime": "2026-01-01T00:00:00Z",
            "completionTime": "2026-01-01T00:01:00Z",
            "conditions": conditions,
        });
        check(json!({}), json!({}), done.clone(), &[]);
        check(
            json!({}),
            done,
            json!({"startTime": "2026-01-01T00:00:00Z"}),
            &[
                "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
            ],
        );
        check(
            json!({}),
            json!({}),
            json!({"conditions": conditions, "active": 1}),
            &[
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
                "status.startTime: Required value: startTime is required for finished job",
            ],
        );
    }

    #[test]
    fn indexes_are_of_indexed_jobs() {
        check(
            json!({"completions": 3}),
            json!({}),
            json!({"completedIndexes": "0,5", "ready": 1}),
            &[
                "status.completedIndexes: Invalid value: \"0,5\": error parsing completedIndexes: too large index: \
                 \"5\"",
                "status.completedIndexes: Invalid value: \"0,5\": cannot set non-empty completedIndexes when \
                 non-indexed completion mode",
                "status.ready: Invalid value: 1: cannot set more ready pods than active",
            ],
        );
    }
}
