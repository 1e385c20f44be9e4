use serde_json::{Value, json};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({ "metadata": { "name": "work", "namespace": "default", "uid": "j" },
        "spec": { "template": { "spec": { "containers": [], "restartPolicy": "Never" } } }, "status": status });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).expect("a job")
}

/// `r` running, `s` succeeded, `f` failed; capitals have lost their finalizer; a number is the index.
fn pods(states: &[(&str, &str, Option<i32>)]) -> Vec<Arc<Pod>> {
    states
        .iter()
        .map(|(name, state, index)| {
            let phase = match state.to_ascii_lowercase().as_str() {
                "s" => "Succeeded",
                "f" => "Failed",
                _ => "Running",
            };
            let tracked = state.chars().all(char::is_lowercase);
            let mut pod = json!({ "metadata": { "name": name, "uid": name, "namespace": "default",
                    "finalizers": if tracked { json!([FINALIZER]) } else { json!([]) } },
                "spec": { "nodeName": "n", "containers": [] },
                "status": { "phase": phase, "containerStatuses": [ { "name": "c", "image": "", "imageID": "",
                    "ready": false, "restartCount": 0, "state": { "terminated": {
                        "exitCode": if phase == "Failed" { 3 } else { 0 }, "finishedAt": "2026-01-01T00:00:00Z" } } } ] } });
            if let Some(index) = index {
                pod["metadata"]["annotations"] = json!({ INDEX: index.to_string() });
            }
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        })
        .collect()
}

fn run(job: &Job, pods: &[Arc<Pod>], now: &str) -> Plan {
    plan(&Input {
        job,
        pods,
        settled: true,
        now: at(now),
    })
}

const NOW: &str = "2026-01-01T01:00:00Z";

fn reason(plan: &Plan, type_: &str) -> Option<String> {
    get(&plan.status, type_).and_then(|condition| condition.reason.clone())
}

#[test]
fn starts_as_many_as_allowed() {
    let job = job(json!({ "completions": 5, "parallelism": 2 }), json!({}));
    let plan = run(&job, &[], NOW);
    assert_eq!(plan.create, [None, None]);
    assert!(plan.status.start_time.is_some());
    let plan = run(
        &job,
        &pods(&[("a", "r", None), ("b", "r", None), ("c", "r", None)]),
        NOW,
    );
    assert_eq!((plan.create.len(), plan.delete.len()), (0, 1));
}

#[test]
fn every_end_is_counted_once() {
    let spec = json!({ "completions": 3, "parallelism": 3 });
    // It ends: first its uid is written down, and it may go.
    let first = run(
        &job(spec.clone(), json!({})),
        &pods(&[("a", "s", None)]),
        NOW,
    );
    let uncounted = first
        .status
        .uncounted_terminated_pods
        .clone()
        .and_then(|lists| lists.succeeded);
    assert_eq!(uncounted, Some(vec!["a".to_owned()]));
    assert_eq!(
        (
            first.status.succeeded,
            first.release.len(),
            first.create.len()
        ),
        (None, 1, 2)
    );
    // Still there with its finalizer: nothing more.
    let written = serde_json::to_value(&first.status).expect("JSON");
    let again = run(
        &job(spec.clone(), written.clone()),
        &pods(&[("a", "s", None)]),
        NOW,
    );
    assert_eq!(again.status.succeeded, None);
    // The finalizer is gone, or the pod: counted.
    for left in [pods(&[("a", "S", None)]), pods(&[])] {
        let counted = run(&job(spec.clone(), written.clone()), &left, NOW);
        assert_eq!(counted.status.succeeded, Some(1));
        let lists = counted
            .status
            .uncounted_terminated_pods
            .clone()
            .expect("written");
        assert_eq!((lists.succeeded, lists.failed), (None, None));
        // A counted pod that lingers is not counted again.
        let written = serde_json::to_value(&counted.status).expect("JSON");
        assert_eq!(
            run(&job(spec.clone(), written), &left, NOW)
                .status
                .succeeded,
            Some(1)
        );
    }
}

#[test]
fn completes_when_all_pods_are_counted() {
    let spec = json!({ "completions": 1 });
    let first = run(
        &job(spec.clone(), json!({})),
        &pods(&[("a", "s", None)]),
        NOW,
    );
    assert_eq!(
        reason(&first, "SuccessCriteriaMet").as_deref(),
        Some("CompletionsReached")
    );
    assert_eq!(reason(&first, "Complete"), None);
    let written = serde_json::to_value(&first.status).expect("JSON");
    let done = run(&job(spec, written), &pods(&[("a", "S", None)]), NOW);
    assert_eq!(
        reason(&done, "Complete").as_deref(),
        Some("CompletionsReached")
    );
    assert!(done.status.completion_time.is_some() && done.create.is_empty());
}

#[test]
fn fails_after_too_many_failures_and_waits_between_them() {
    let spec = json!({ "completions": 1, "backoffLimit": 1 });
    let one = job(spec.clone(), json!({ "failed": 1 }));
    let waiting = run(&one, &pods(&[("a", "F", None)]), "2026-01-01T00:00:04Z");
    assert_eq!(
        (waiting.create.len(), waiting.requeue_after),
        (0, Some(Duration::from_secs(6)))
    );
    assert_eq!(
        run(&one, &pods(&[("a", "F", None)]), "2026-01-01T00:00:10Z")
            .create
            .len(),
        1
    );
    let two = run(
        &job(spec, json!({ "failed": 2 })),
        &pods(&[("b", "r", None)]),
        NOW,
    );
    assert_eq!(
        reason(&two, "FailureTarget").as_deref(),
        Some("BackoffLimitExceeded")
    );
    assert_eq!(
        (reason(&two, "Failed"), two.delete.len()),
        (None, 1),
        "running pods go first"
    );
}

#[test]
fn deadlines_and_suspension() {
    let started = json!({ "startTime": "2026-01-01T00:00:00Z" });
    let spec = json!({ "completions": 1, "activeDeadlineSeconds": 60 });
    let late = run(
        &job(spec.clone(), started.clone()),
        &pods(&[("a", "r", None)]),
        NOW,
    );
    assert_eq!(
        reason(&late, "FailureTarget").as_deref(),
        Some("DeadlineExceeded")
    );
    let early = run(
        &job(spec, started.clone()),
        &pods(&[("a", "r", None)]),
        "2026-01-01T00:00:20Z",
    );
    assert_eq!(early.requeue_after, Some(Duration::from_secs(40)));
    let suspended = run(
        &job(json!({ "completions": 1, "suspend": true }), started),
        &pods(&[("a", "r", None)]),
        NOW,
    );
    assert_eq!(
        (
            suspended.delete.len(),
            suspended.create.len(),
            suspended.status.start_time.is_some()
        ),
        (1, 0, false)
    );
    let written = serde_json::to_value(&suspended.status).expect("JSON");
    let resumed = run(&job(json!({ "completions": 1 }), written), &[], NOW);
    assert!(get(&resumed.status, "Suspended").is_none() && resumed.status.start_time.is_some());
}

#[test]
fn indexed_jobs_fill_the_gaps() {
    let spec = json!({ "completions": 5, "parallelism": 3, "completionMode": "Indexed" });
    let job = job(spec, json!({ "completedIndexes": "0" }));
    let plan = run(
        &job,
        &pods(&[
            ("b", "r", Some(2)),
            ("c", "s", Some(1)),
            ("d", "r", Some(2)),
        ]),
        NOW,
    );
    assert_eq!(plan.create, [Some(3), Some(4)]);
    assert_eq!(plan.delete.len(), 1, "one pod an index");
    assert_eq!(
        (
            plan.status.completed_indexes.as_deref(),
            plan.status.succeeded
        ),
        (Some("0,1"), Some(2))
    );
}

#[test]
fn failure_policies() {
    let policy = |action: &str| {
        json!({ "completions": 1, "backoffLimit": 0, "podFailurePolicy": { "rules": [
            { "action": action, "onExitCodes": { "operator": "In", "values": [3] } } ] } })
    };
    let failed = run(
        &job(policy("FailJob"), json!({})),
        &pods(&[("a", "f", None)]),
        NOW,
    );
    assert_eq!(
        reason(&failed, "FailureTarget").as_deref(),
        Some("PodFailurePolicy")
    );
    let ignored = run(
        &job(policy("Ignore"), json!({})),
        &pods(&[("a", "f", None)]),
        NOW,
    );
    assert_eq!(
        (
            reason(&ignored, "FailureTarget"),
            ignored.create.len(),
            ignored.release.len()
        ),
        (None, 1, 1)
    );
    let counted = run(
        &job(policy("Count"), json!({})),
        &pods(&[("a", "f", None)]),
        NOW,
    );
    assert_eq!(
        reason(&counted, "FailureTarget").as_deref(),
        Some("BackoffLimitExceeded")
    );
}

#[test]
fn work_queues_end_with_the_first_success_and_the_last_pod() {
    let queue = |status: Value| job(json!({ "parallelism": 3 }), status);
    assert_eq!(run(&queue(json!({})), &[], NOW).create.len(), 3);
    let draining = run(
        &queue(json!({ "succeeded": 1 })),
        &pods(&[("b", "r", None)]),
        NOW,
    );
    assert_eq!(
        (
            draining.create.len(),
            reason(&draining, "SuccessCriteriaMet")
        ),
        (0, None)
    );
    let done = run(&queue(json!({ "succeeded": 1 })), &[], NOW);
    assert_eq!(
        reason(&done, "Complete").as_deref(),
        Some("CompletionsReached")
    );
}

#[test]
fn finished_jobs_expire() {
    let done = json!({ "conditions": [ { "type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" } ] });
    let job = job(json!({ "ttlSecondsAfterFinished": 100 }), done);
    assert_eq!(
        expires_in(&job, at("2026-01-01T00:00:40Z")),
        Some(Duration::from_secs(60))
    );
    assert_eq!(expires_in(&job, at(NOW)), Some(Duration::ZERO));
    let plan = run(&job, &pods(&[("a", "r", None)]), NOW);
    assert!(plan.create.is_empty() && plan.delete.is_empty(), "finished");
}
