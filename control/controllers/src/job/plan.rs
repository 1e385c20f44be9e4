//! One step of a Job. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobCondition, JobSpec, JobStatus, PodFailurePolicyRule, UncountedTerminatedPods,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use skep_client::Backoff;

use super::{FINALIZER, INDEX, indexes};
use crate::pods;

/// Between a failure and the next try; as upstream.
const RETRY: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(600));
/// Ends waiting to be counted at once; the rest waits for the next round.
const MAX_UNCOUNTED: usize = 500;
const MAX_CREATE: usize = 500;

pub(super) struct Input<'a> {
    pub(super) job: &'a Job,
    pub(super) pods: &'a [Arc<Pod>],
    /// The cache shows all our own creations and deletions.
    pub(super) settled: bool,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// One entry a pod: its index, if the Job is indexed.
    pub(super) create: Vec<Option<i32>>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that lose their finalizer once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) requeue_after: Option<Duration>,
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER)
}

fn get<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_ && condition.status == "True")
}

pub(super) fn is_finished(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|status| get(status, "Complete").is_some() || get(status, "Failed").is_some())
}

/// Until a finished Job is removed; `None`: it stays.
pub(super) fn expires_in(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let status = job.status.as_ref()?;
    let finished = get(status, "Complete")
        .or_else(|| get(status, "Failed"))?
        .last_transition_time
        .as_ref()?
        .0;
    let end = finished
        .checked_add(SignedDuration::from_secs(i64::from(ttl)))
        .ok()?;
    Some(pods::until(now, end))
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// An end that counts: succeeded, or failed (also by being deleted while it ran).
fn outcome(pod: &Pod, job_is_ending: bool) -> Option<bool> {
    match pods::phase(pod) {
        "Succeeded" => Some(true),
        "Failed" => Some(false),
        // A pod that is being deleted has failed once it is certain that it will not succeed: when nothing can run it
        // any more, or when nobody asks for its result.
        _ if pods::is_terminating(pod) && (pods::node_name(pod).is_none() || job_is_ending) => {
            Some(false)
        }
        _ => None,
    }
}

pub(super) fn plan(input: &Input<'_>) -> Plan {
    let no_spec = JobSpec::default();
    let spec = input.job.spec.as_ref().unwrap_or(&no_spec);
    let mut status = input.job.status.clone().unwrap_or_default();
    let now = Time(Timestamp::from_second(input.now.as_second()).unwrap_or(input.now));
    let deleting = input.job.metadata.deletion_timestamp.is_some();
    let was_finished = is_finished(input.job);
    let suspended = spec.suspend.unwrap_or_default();
    let mut plan = Plan::default();
    if status.start_time.is_none() && !suspended && !deleting {
        status.start_time = Some(now.clone());
    }
    let counting = Counting::new(
        spec,
        &status,
        input.pods,
        deleting || was_finished || suspended,
    );
    plan.release.clone_from(&counting.release);
    counting.write(spec, &mut status);

    let active: Vec<Arc<Pod>> = input
        .pods
        .iter()
        .filter(|pod| pods::is_active(pod))
        .cloned()
        .collect();
    let terminating: Vec<&Arc<Pod>> = input
        .pods
        .iter()
        .filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod))
        .collect();
    let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    status.ready = Some(number(ready));
    status.terminating = Some(number(terminating.len()));
    status.active = (!active.is_empty()).then(|| number(active.len()));
    if deleting || was_finished {
        plan.status = status;
        return plan;
    }

    let verdict = verdict(
        spec,
        &status,
        &counting,
        active.len() + terminating.len(),
        input,
    );
    if let Some((type_, reason, message)) = verdict {
        let (interim, last) = if type_ == "Failed" {
            ("FailureTarget", "Failed")
        } else {
            ("SuccessCriteriaMet", "Complete")
        };
        set_condition(&mut status, interim, "True", &reason, &message, &now);
        plan.delete = active;
        // The last word is spoken when every pod is gone and counted.
        if plan.delete.is_empty() && terminating.is_empty() && counting.is_done() {
            set_condition(&mut status, last, "True", &reason, &message, &now);
            // One that ends while it is suspended has begun for all that.
            status.start_time.get_or_insert_with(|| now.clone());
            if last == "Complete" {
                status.completion_time = Some(now);
            }
        }
        plan.status = status;
        return plan;
    }

    if suspended {
        if get(&status, "Suspended").is_none() {
            set_condition(
                &mut status,
                "Suspended",
                "True",
                "JobSuspended",
                "Job suspended",
                &now,
            );
        }
        status.start_time = None;
        plan.delete = active;
        plan.status = status;
        return plan;
    }
    if get(&status, "Suspended").is_some() {
        set_condition(
            &mut status,
            "Suspended",
            "False",
            "JobResumed",
            "Job resumed",
            &now,
        );
        status.start_time = Some(now);
    }
    plan.requeue_after = deadline_in(spec, &status, input.now);
    if input.settled {
        size(spec, &counting, active, terminating.len(), input, &mut plan);
    }
    plan.status = status;
    plan
}

/// What the ends of pods add up to.
struct Counting {
    succeeded: i32,
    failed: i32,
    uncounted_succeeded: BTreeSet<String>,
    uncounted_failed: BTreeSet<String>,
    completed: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// Failures per index that still has pods.
    failures_by_index: BTreeMap<i32, i32>,
    release: Vec<Arc<Pod>>,
    last_failure: Option<Timestamp>,
    /// A rule of the failure policy says that the whole Job has failed.
    policy_failure: Option<String>,
}

impl Counting {
    fn new(spec: &JobSpec, status: &JobStatus, all: &[Arc<Pod>], ending: bool) -> Self {
        let completions = spec.completions.unwrap_or(i32::MAX);
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let mut counting = Self {
            succeeded: status.succeeded.unwrap_or_default(),
            failed: status.failed.unwrap_or_default(),
            uncounted_succeeded: uncounted
                .succeeded
                .unwrap_or_default()
                .into_iter()
                .collect(),
            uncounted_failed: uncounted.failed.unwrap_or_default().into_iter().collect(),
            completed: indexes::parse(
                status.completed_indexes.as_deref().unwrap_or_default(),
                completions,
            ),
            failed_indexes: indexes::parse(
                status.failed_indexes.as_deref().unwrap_or_default(),
                completions,
            ),
            failures_by_index: BTreeMap::new(),
            release: Vec::new(),
            last_failure: None,
            policy_failure: None,
        };
        let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let by_uid: BTreeMap<&str, &Arc<Pod>> =
            all.iter().map(|pod| (pods::uid(pod), pod)).collect();
        // Those that lost their finalizer, or are gone, are counted now.
        let tracked = |uid: &String| {
            by_uid
                .get(uid.as_str())
                .is_some_and(|pod| has_finalizer(pod))
        };
        let before = counting.uncounted_succeeded.len();
        counting.uncounted_succeeded.retain(tracked);
        if !is_indexed {
            counting.succeeded +=
                i32::try_from(before - counting.uncounted_succeeded.len()).unwrap_or(i32::MAX);
        }
        let before = counting.uncounted_failed.len();
        counting.uncounted_failed.retain(tracked);
        counting.failed +=
            i32::try_from(before - counting.uncounted_failed.len()).unwrap_or(i32::MAX);

        for pod in all {
            let Some(success) = outcome(pod, ending) else {
                continue;
            };
            let index =
                index_of(pod).filter(|index| is_indexed && (0..completions).contains(index));
            let rule = if success {
                None
            } else {
                policy_action(spec, pod)
            };
            if !success {
                counting.last_failure = counting.last_failure.max(Some(ended_at(pod)));
                if let Some(("FailJob", message)) = &rule {
                    counting
                        .policy_failure
                        .get_or_insert_with(|| message.clone());
                }
                if let Some(index) = index {
                    if matches!(rule, Some(("FailIndex", _))) {
                        counting.failed_indexes.insert(index);
                    } else if !matches!(rule, Some(("Ignore", _))) {
                        *counting.failures_by_index.entry(index).or_default() += 1;
                    }
                }
            }
            if let Some(index) = index.filter(|_| success) {
                counting.completed.insert(index);
            }
            if !has_finalizer(pod) {
                continue;
            }
            let uid = pods::uid(pod).to_owned();
            let room = counting.uncounted_succeeded.len() + counting.uncounted_failed.len()
                < MAX_UNCOUNTED;
            // An index without meaning, or a failure that the policy ignores, is released without being counted.
            let counts = if success {
                !is_indexed
            } else {
                !matches!(rule, Some(("Ignore", _)))
            };
            if counts {
                let list = if success {
                    &mut counting.uncounted_succeeded
                } else {
                    &mut counting.uncounted_failed
                };
                if !list.contains(&uid) {
                    if !room {
                        continue;
                    }
                    list.insert(uid);
                }
            }
            counting.release.push(pod.clone());
        }
        if let Some(limit) = spec.backoff_limit_per_index {
            for (index, failures) in &counting.failures_by_index {
                if *failures > limit && !counting.completed.contains(index) {
                    counting.failed_indexes.insert(*index);
                }
            }
        }
        counting
            .failed_indexes
            .retain(|index| !counting.completed.contains(index));
        if is_indexed {
            counting.succeeded = i32::try_from(counting.completed.len()).unwrap_or(i32::MAX);
        }
        counting
    }

    fn all_succeeded(&self) -> i32 {
        self.succeeded + i32::try_from(self.uncounted_succeeded.len()).unwrap_or(i32::MAX)
    }

    fn all_failed(&self) -> i32 {
        self.failed + i32::try_from(self.uncounted_failed.len()).unwrap_or(i32::MAX)
    }

    fn is_done(&self) -> bool {
        self.uncounted_succeeded.is_empty()
            && self.uncounted_failed.is_empty()
            && self.release.is_empty()
    }

    fn write(&self, spec: &JobSpec, status: &mut JobStatus) {
        let nonzero = |number: i32| (number != 0).then_some(number);
        let list = |uids: &BTreeSet<String>| {
            (!uids.is_empty()).then(|| uids.iter().cloned().collect::<Vec<_>>())
        };
        status.succeeded = nonzero(self.succeeded);
        status.failed = nonzero(self.failed);
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(&self.uncounted_succeeded),
            failed: list(&self.uncounted_failed),
        });
        if spec.completion_mode.as_deref() == Some("Indexed") {
            let text = indexes::format(&self.completed);
            status.completed_indexes = (!text.is_empty()).then_some(text);
            if spec.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(indexes::format(&self.failed_indexes));
            }
        }
    }
}

fn ended_at(pod: &Pod) -> Timestamp {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|status| {
        status
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .finished_at
            .as_ref()
    });
    let created = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MIN, |time| time.0);
    ends.map(|time| time.0).max().unwrap_or(created)
}

/// The first rule of the failure policy that fits: its action and a message.
fn policy_action<'a>(spec: &'a JobSpec, pod: &Pod) -> Option<(&'a str, String)> {
    let rules = &spec.pod_failure_policy.as_ref()?.rules;
    rules.iter().enumerate().find_map(|(number, rule)| {
        let why = rule_matches(rule, pod)?;
        let (namespace, name) = (
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        Some((
            rule.action.as_str(),
            format!(
                "{why} for pod {namespace}/{name} matching {} rule at index {number}",
                rule.action
            ),
        ))
    })
}

fn rule_matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let containers = status
            .container_statuses
            .iter()
            .flatten()
            .chain(status.init_container_statuses.iter().flatten());
        for container in containers {
            if codes
                .container_name
                .as_ref()
                .is_some_and(|name| *name != container.name)
            {
                continue;
            }
            let ended = container
                .state
                .as_ref()
                .and_then(|state| state.terminated.as_ref());
            let Some(code) = ended.map(|ended| ended.exit_code).filter(|code| *code != 0) else {
                continue;
            };
            let listed = codes.values.contains(&code);
            if (codes.operator == "In") == listed {
                return Some(format!(
                    "Container {} for pod failed with exit code {code}",
                    container.name
                ));
            }
        }
        return None;
    }
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let condition = pods::condition(pod, &pattern.type_)?;
        (condition.status == pattern.status.as_deref().unwrap_or("True"))
            .then(|| format!("Pod has condition {} which", pattern.type_))
    })
}

/// Whether the Job is decided: (`Complete` or `Failed`, reason, message).
fn verdict(
    spec: &JobSpec,
    status: &JobStatus,
    counting: &Counting,
    alive: usize,
    input: &Input<'_>,
) -> Option<(&'static str, String, String)> {
    // What was decided stays decided.
    for (interim, type_) in [
        ("FailureTarget", "Failed"),
        ("SuccessCriteriaMet", "Complete"),
    ] {
        if let Some(condition) = get(status, interim) {
            let (reason, message) = (condition.reason.clone(), condition.message.clone());
            return Some((
                type_,
                reason.unwrap_or_default(),
                message.unwrap_or_default(),
            ));
        }
    }
    let verdict =
        |type_, reason: &str, message: &str| Some((type_, reason.to_owned(), message.to_owned()));
    if let Some(message) = &counting.policy_failure {
        return verdict("Failed", "PodFailurePolicy", message);
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let limit = spec
        .backoff_limit
        .unwrap_or(if per_index { i32::MAX } else { 6 });
    let restarts: i32 = if on_failure(spec) {
        input
            .pods
            .iter()
            .filter(|pod| pods::is_active(pod))
            .map(|pod| pods::restarts(pod))
            .sum()
    } else {
        0
    };
    let failures = counting.all_failed().saturating_add(restarts);
    let too_many = if on_failure(spec) && limit == 0 {
        failures > 0
    } else {
        failures > limit
    };
    if too_many {
        return verdict(
            "Failed",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    if !spec.suspend.unwrap_or_default()
        && deadline_in(spec, status, input.now).is_some_and(|left| left.is_zero())
    {
        return verdict(
            "Failed",
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        );
    }
    if spec
        .max_failed_indexes
        .is_some_and(|max| counting.failed_indexes.len() > usize::try_from(max).unwrap_or_default())
    {
        return verdict(
            "Failed",
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    for rule in spec.success_policy.iter().flat_map(|policy| &policy.rules) {
        let limit = spec.completions.unwrap_or(i32::MAX);
        let wanted = rule
            .succeeded_indexes
            .as_deref()
            .map(|text| indexes::parse(text, limit));
        let have = match &wanted {
            Some(wanted) => counting.completed.intersection(wanted).count(),
            None => counting.completed.len(),
        };
        let needed = match (rule.succeeded_count, &wanted) {
            (Some(count), _) => usize::try_from(count).unwrap_or_default(),
            (None, Some(wanted)) => wanted.len(),
            (None, None) => continue,
        };
        if have >= needed {
            return verdict("Complete", "SuccessPolicy", "Matched rules at index 0");
        }
    }
    match spec.completions {
        Some(completions) => {
            if counting.all_succeeded() >= completions {
                return verdict(
                    "Complete",
                    "CompletionsReached",
                    "Reached expected number of succeeded pods",
                );
            }
            let decided = counting.completed.len() + counting.failed_indexes.len();
            if per_index && decided >= usize::try_from(completions).unwrap_or_default() {
                return verdict("Failed", "FailedIndexes", "Job has failed indexes");
            }
            None
        }
        // A work queue: one success says that the work is done, the others finish what they hold.
        None if counting.all_succeeded() > 0 && alive == 0 => verdict(
            "Complete",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        ),
        None => None,
    }
}

fn on_failure(spec: &JobSpec) -> bool {
    spec.template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        == Some("OnFailure")
}

fn deadline_in(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<Duration> {
    let seconds = spec.active_deadline_seconds?;
    let start = status.start_time.as_ref()?.0;
    let end = start.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    Some(pods::until(now, end))
}

/// Creates what is missing and deletes what is too much.
fn size(
    spec: &JobSpec,
    counting: &Counting,
    mut active: Vec<Arc<Pod>>,
    terminating: usize,
    input: &Input<'_>,
    plan: &mut Plan,
) {
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or_default();
    let succeeded = usize::try_from(counting.all_succeeded()).unwrap_or_default();
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let wanted = match spec.completions {
        Some(completions) => {
            let decided = if is_indexed {
                counting.completed.len() + counting.failed_indexes.len()
            } else {
                succeeded
            };
            usize::try_from(completions)
                .unwrap_or_default()
                .saturating_sub(decided)
                .min(parallelism)
        }
        None if succeeded > 0 => active.len().min(parallelism),
        None => parallelism,
    };
    if is_indexed {
        // Two pods of one index, or of an index that needs none: the later ones go.
        let mut seen: BTreeSet<i32> = counting
            .completed
            .union(&counting.failed_indexes)
            .copied()
            .collect();
        active.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let (kept, surplus): (Vec<_>, Vec<_>) = active
            .into_iter()
            .partition(|pod| index_of(pod).is_some_and(|index| seen.insert(index)));
        plan.delete.extend(surplus);
        active = kept;
    }
    if active.len() > wanted {
        active.sort_by_cached_key(|pod| pods::deletion_rank(pod, 0));
        let surplus = active.len() - wanted;
        plan.delete.extend(active.drain(..surplus));
        return;
    }
    let occupied = match spec.pod_replacement_policy.as_deref() {
        // Replacements wait until the old ones are really gone.
        Some("Failed") => active.len() + terminating,
        _ => active.len(),
    };
    let missing = wanted.saturating_sub(occupied).min(MAX_CREATE);
    if missing == 0 {
        return;
    }
    let failures = u32::try_from(counting.all_failed()).unwrap_or_default();
    if let (Some(last), true) = (counting.last_failure, failures > 0) {
        let wait = RETRY.ceiling(failures.saturating_sub(1));
        let at = SignedDuration::try_from(wait)
            .ok()
            .and_then(|wait| last.checked_add(wait).ok());
        if let Some(at) = at.filter(|at| *at > input.now) {
            let left = pods::until(input.now, at);
            plan.requeue_after = Some(plan.requeue_after.map_or(left, |other| other.min(left)));
            return;
        }
    }
    if !is_indexed {
        plan.create = vec![None; missing];
        return;
    }
    let mut busy: BTreeSet<i32> = active.iter().filter_map(|pod| index_of(pod)).collect();
    busy.extend(&counting.completed);
    busy.extend(&counting.failed_indexes);
    let free = (0..spec.completions.unwrap_or_default()).filter(|index| !busy.contains(index));
    plan.create = free.take(missing).map(Some).collect();
}

fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: &Time,
) {
    let conditions = status.conditions.get_or_insert_default();
    let condition = JobCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    };
    match conditions.iter_mut().find(|current| current.type_ == type_) {
        Some(current) if current.status == value && current.reason == condition.reason => {}
        Some(current) => *current = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
