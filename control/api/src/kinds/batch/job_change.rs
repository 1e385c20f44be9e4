//! What an update may change of a Job.

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{Affinity, Container, PodSpec},
};

use super::{job::validate_with_selector, job_status::is_condition_true};
use crate::{
    field::{Errors, IMMUTABLE, Path},
    validation::internal,
    zero::{Flag, List, Text},
};

pub fn validate(spec: &JobSpec, old: &JobSpec, old_job: &Job, errors: &mut Errors) {
    let path = Path::new("spec");
    validate_with_selector(spec, &path, errors);
    let (completions, at) = (spec.completions, path.child("completions"));
    if spec.completion_mode.text() != "Indexed" {
        errors.immutable(&at, &completions, &old.completions);
    } else if let Some(completions) = completions.filter(|_| completions != old.completions)
        && Some(completions) != spec.parallelism
    {
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.invalid(&at, completions, detail);
    }
    errors.immutable(&path.child("selector"), &spec.selector, &old.selector);
    validate_template_change(spec, old, old_job, &path.child("template"), errors);
    errors.immutable(
        &path.child("completionMode"),
        &spec.completion_mode,
        &old.completion_mode,
    );
    if spec.pod_failure_policy != old.pod_failure_policy {
        errors.invalid(
            &path.child("podFailurePolicy"),
            internal::bad("PodFailurePolicy", &spec.pod_failure_policy),
            IMMUTABLE,
        );
    }
    errors.immutable(
        &path.child("backoffLimitPerIndex"),
        &spec.backoff_limit_per_index,
        &old.backoff_limit_per_index,
    );
    errors.immutable(&path.child("managedBy"), &spec.managed_by, &old.managed_by);
    if spec.success_policy != old.success_policy {
        errors.invalid(
            &path.child("successPolicy"),
            internal::bad("SuccessPolicy", &spec.success_policy),
            IMMUTABLE,
        );
    }
}

/// A Job of which no pod runs may still be told where its pods run, and on how much.
fn validate_template_change(
    spec: &JobSpec,
    old: &JobSpec,
    old_job: &Job,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let status = old_job.status.clone().unwrap_or_default();
    let idle = status.start_time.is_none() || is_condition_true(&status, "Suspended");
    let movable = old.suspend.is_true() && status.active.unwrap_or(0) == 0 && idle;
    if !movable {
        if spec.template != old.template {
            let shown = internal::bad("PodTemplate", &spec.template);
            errors.invalid(path, shown, IMMUTABLE);
        }
        return;
    }
    let (new, old) = (
        spec.template.spec.clone().unwrap_or_default(),
        old.template.spec.clone().unwrap_or_default(),
    );
    if with_scheduling_of(&old, &new) != new {
        let shown = internal::bad("PodSpec", &new);
        errors.invalid(&path.child("spec"), shown, IMMUTABLE);
    }
}

/// `old` with what may change of it as it is in `new`.
fn with_scheduling_of(old: &PodSpec, new: &PodSpec) -> PodSpec {
    let mut kept = old.clone();
    kept.node_selector.clone_from(&new.node_selector);
    kept.tolerations.clone_from(&new.tolerations);
    kept.scheduling_gates.clone_from(&new.scheduling_gates);
    let node_affinity = new
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.clone());
    if new.affinity.is_some() || kept.affinity.is_some() {
        kept.affinity.get_or_insert_default().node_affinity = node_affinity;
    }
    if new.affinity.is_none() && kept.affinity == Some(Affinity::default()) {
        kept.affinity = None;
    }
    keep_resources(&mut kept.containers, &new.containers);
    let containers = kept.init_containers.as_deref_mut().unwrap_or_default();
    keep_resources(containers, new.init_containers.items());
    kept
}

fn keep_resources(containers: &mut [Container], new: &[Container]) {
    if containers.len() != new.len() {
        return;
    }
    let pairs = containers.iter_mut().zip(new);
    for (container, new) in pairs.filter(|(container, new)| container.name == new.name) {
        container.resources.clone_from(&new.resources);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::job::tests::job, *};
    use crate::kinds::Kind;

    #[track_caller]
    fn check_change(pod: Value, old: &Value, expected: &[&str]) {
        let suspended = json!({"suspend": true});
        let none = json!({});
        let new = job(&suspended, &pod, &none);
        let old = job(&suspended, &none, old);
        let mut errors = Errors::default();
        new.validate_update(&old, &mut errors);
        let found: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn pods_that_do_not_run_may_move_and_grow() {
        let never = json!({});
        let started = json!({"startTime": "2026-01-01T00:00:00Z"});
        let stopped = json!({
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Suspended", "status": "True"}],
        });
        let active = json!({"active": 1});
        let bigger = json!({"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}},
        ]});
        for moved in [bigger, json!({"nodeSelector": {"a": "b"}})] {
            check_change(moved.clone(), &never, &[]);
            check_change(moved.clone(), &stopped, &[]);
            check_change(moved.clone(), &started, &["spec.template"]);
            check_change(moved, &active, &["spec.template"]);
        }
        let other = json!({"containers": [{"name": "c", "image": "j"}]});
        check_change(other.clone(), &never, &["spec.template.spec"]);
        check_change(other, &started, &["spec.template"]);
    }
}
