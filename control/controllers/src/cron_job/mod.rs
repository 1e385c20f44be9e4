//! Starts a Job for each due time of a CronJob, and keeps as many finished ones as it says.
//!
//! Watches: CronJob, Job. Writes: Job, CronJob status.
//! A Job is named after its due time, so a time never starts two.

mod schedule;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Resource,
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};

use self::schedule::Schedule;
use crate::{
    context::{Context, Doing, Error, api_message},
    owners, pods,
};

const WORKERS: usize = 4;
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times looked at one by one; beyond it only the latest counts, and an event says so. As upstream.
const TOO_MANY_MISSED: usize = 100;

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        crons: context.informers.of(),
        jobs: context.informers.of(),
        events: context.events.from("cronjob-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.crons);
    work.feed(&controller.jobs, owners::controllers_of::<CronJob, _>);
    work.run(
        "cronjob",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(cron) = self.crons.get(&key) else {
            return Ok(Action::done());
        };
        let spec = cron.spec.clone();
        if cron.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let uid = cron.metadata.uid.as_deref().unwrap_or_default();
        let owned: Vec<Arc<Job>> = self
            .jobs
            .owned_by(uid)
            .into_iter()
            .filter(|job| owners::controller(&job.metadata).is_some_and(|owner| owner.uid == uid))
            .collect();
        self.trim(&key, &spec, &owned).await?;
        let mut status = observed_status(&cron, &owned);
        let api = self.context.api::<CronJob>(&key.namespace);
        let jobs = self.context.api::<Job>(&key.namespace);
        let now = self.context.now();
        let schedule = Schedule::parse(&spec.schedule);
        let zone = match spec.time_zone.as_deref() {
            None => Ok(TimeZone::UTC),
            Some(name) => TimeZone::get(name),
        };
        let mut next = None;
        match (schedule, zone) {
            (Err(error), _) => {
                let message = format!("unparseable schedule: {} : {error}", spec.schedule);
                self.events
                    .warning(cron.as_ref(), "UnparseableSchedule", message);
            }
            (_, Err(_)) => {
                let name = spec.time_zone.as_deref().unwrap_or_default();
                self.events.warning(
                    cron.as_ref(),
                    "UnknownTimeZone",
                    format!("invalid timeZone: {name:?}"),
                );
            }
            (Ok(schedule), Ok(zone)) => {
                let plan = plan(&cron, &spec, &schedule, &zone, &status, now);
                next = plan
                    .next
                    .map(|at| pods::until(now, at) + Duration::from_millis(100));
                if plan.missed_too_many {
                    self.events.warning(
                        cron.as_ref(),
                        "TooManyMissedTimes",
                        format!(
                            "too many missed start times: more than {TOO_MANY_MISSED}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
                        ),
                    );
                }
                match plan.decision {
                    Decision::Wait => {}
                    Decision::Missed(at) => self.events.warning(
                        cron.as_ref(),
                        "MissSchedule",
                        format!("Missed scheduled time to start a job: {at}"),
                    ),
                    Decision::Forbidden => self.events.normal(
                        cron.as_ref(),
                        "JobAlreadyActive",
                        "Not starting job because prior execution is running and concurrency policy is Forbid",
                    ),
                    Decision::Start { at, replace } => {
                        if replace {
                            for job in owned.iter().filter(|job| !is_finished(job)) {
                                let name = job.metadata.name.clone().unwrap_or_default();
                                let params = DeleteParams::background();
                                writes::delete(&jobs, &name, job.metadata.uid.clone(), params)
                                    .await
                                    .doing("replace the running Job")?;
                                self.events.normal(cron.as_ref(), "SuccessfulDelete", format!("Deleted job {name}"));
                            }
                            status.active = None;
                        }
                        let job = new_job(&cron, &spec, at);
                        let name = job.metadata.name.clone().unwrap_or_default();
                        match jobs.create(&PostParams::default(), &job).await {
                            Ok(job) => {
                                self.events.normal(cron.as_ref(), "SuccessfulCreate", format!("Created job {name}"));
                                status.active.get_or_insert_default().push(reference(&job));
                                status.last_schedule_time = Some(Time(at));
                            }
                            // Ours from before the cache knew, or somebody's: that time is served either way.
                            Err(error) if writes::is_already_exists(&error) => status.last_schedule_time = Some(Time(at)),
                            Err(error) if writes::is_namespace_terminating(&error) => return Ok(Action::done()),
                            Err(error) => {
                                let message = format!("Error creating job: {}", api_message(&error));
                                self.events.warning(cron.as_ref(), "FailedCreate", message);
                                return Err(error).doing("create a Job");
                            }
                        }
                    }
                }
            }
        }
        let old = cron.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &cron.metadata, &old, &status).await {
            Ok(_) => Ok(Action::done().sooner(next)),
            Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
            Err(error) => Err(error).doing("update the status"),
        }
    }

    /// Deletes the oldest finished Jobs beyond the limits.
    async fn trim(
        &self,
        key: &ObjectKey,
        spec: &CronJobSpec,
        owned: &[Arc<Job>],
    ) -> Result<(), Error> {
        let api = self.context.api::<Job>(&key.namespace);
        for (type_, limit) in [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ] {
            let mut finished: Vec<&Arc<Job>> = owned
                .iter()
                .filter(|job| {
                    has_condition(job, type_) && job.metadata.deletion_timestamp.is_none()
                })
                .collect();
            finished.sort_by_key(|job| {
                let started = job
                    .status
                    .as_ref()
                    .and_then(|status| status.start_time.as_ref())
                    .map(|time| time.0);
                (started, job.metadata.name.clone())
            });
            let surplus = finished
                .len()
                .saturating_sub(usize::try_from(limit).unwrap_or_default());
            for job in finished.into_iter().take(surplus) {
                let name = job.metadata.name.clone().unwrap_or_default();
                writes::delete(
                    &api,
                    &name,
                    job.metadata.uid.clone(),
                    DeleteParams::background(),
                )
                .await
                .doing("delete an old Job")?;
            }
        }
        Ok(())
    }
}

fn has_condition(job: &Job, type_: &str) -> bool {
    let conditions = job
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn is_finished(job: &Job) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

fn reference(job: &Job) -> ObjectReference {
    let full = job.object_ref(&());
    ObjectReference {
        field_path: None,
        ..full
    }
}

fn observed_status(cron: &CronJob, owned: &[Arc<Job>]) -> CronJobStatus {
    let mut status = cron.status.clone().unwrap_or_default();
    let mut active: Vec<ObjectReference> = owned
        .iter()
        .filter(|job| !is_finished(job))
        .map(|job| reference(job))
        .collect();
    active.sort_by(|a, b| a.name.cmp(&b.name));
    // The list is compared by what matters: versions of the Jobs change all the time.
    for reference in &mut active {
        let known = status
            .active
            .iter()
            .flatten()
            .find(|known| known.uid == reference.uid);
        if let Some(known) = known {
            *reference = known.clone();
        }
    }
    status.active = (!active.is_empty()).then_some(active);
    let succeeded = owned.iter().filter(|job| has_condition(job, "Complete"));
    let last = succeeded
        .filter_map(|job| job.status.as_ref()?.completion_time.clone())
        .max();
    if last > status.last_successful_time {
        status.last_successful_time = last;
    }
    status
}

fn new_job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp) -> Job {
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(
        SCHEDULED_AT.into(),
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    );
    Job {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{}",
                cron.metadata.name.as_deref().unwrap_or_default(),
                at.as_second() / 60
            )),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owners::reference(cron)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[derive(Debug, PartialEq)]
enum Decision {
    Wait,
    /// Due, and too late to start.
    Missed(Timestamp),
    /// Due, and another is running.
    Forbidden,
    Start {
        at: Timestamp,
        replace: bool,
    },
}

#[derive(Debug)]
struct Plan {
    decision: Decision,
    next: Option<Timestamp>,
    missed_too_many: bool,
}

fn plan(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    status: &CronJobStatus,
    now: Timestamp,
) -> Plan {
    let created = cron
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |time| time.0);
    let mut since = status
        .last_schedule_time
        .as_ref()
        .map_or(created, |time| time.0);
    let deadline = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    if let Some(earliest) = deadline.and_then(|deadline| now.checked_sub(deadline).ok()) {
        since = since.max(earliest);
    }
    let mut due = None;
    let mut missed = 0;
    let mut next = schedule.next_after(since, zone);
    while let Some(at) = next.filter(|at| *at <= now) {
        due = Some(at);
        missed += 1;
        if missed > TOO_MANY_MISSED {
            // Straight to the latest: halve the distance until it is the last one before now.
            let (mut low, mut high) = (at.as_second(), now.as_second());
            while low < high {
                let middle = low + (high - low + 1) / 2;
                let from = Timestamp::from_second(middle - 1).unwrap_or(now);
                match schedule.next_after(from, zone).filter(|at| *at <= now) {
                    Some(at) => {
                        due = Some(at);
                        low = at.as_second().max(middle);
                    }
                    None => high = middle - 1,
                }
            }
            next = schedule.next_after(now, zone);
            break;
        }
        next = schedule.next_after(at, zone);
    }
    let is_active = status
        .active
        .as_ref()
        .is_some_and(|active| !active.is_empty());
    let decision = match due {
        _ if spec.suspend.unwrap_or_default() => Decision::Wait,
        None => Decision::Wait,
        Some(at) => {
            let too_late = deadline.is_some_and(|deadline| now.duration_since(at) > deadline);
            match spec.concurrency_policy.as_deref() {
                _ if too_late => Decision::Missed(at),
                Some("Forbid") if is_active => Decision::Forbidden,
                Some("Replace") => Decision::Start {
                    at,
                    replace: is_active,
                },
                _ => Decision::Start { at, replace: false },
            }
        }
    };
    Plan {
        decision,
        next,
        missed_too_many: missed > TOO_MANY_MISSED,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn decide(spec: Value, status: Value, now: &str) -> Plan {
        let mut cron = json!({ "metadata": { "name": "tick", "creationTimestamp": "2026-01-01T00:00:30Z" },
            "spec": { "schedule": "*/5 * * * *", "jobTemplate": {} }, "status": status });
        for (key, value) in spec.as_object().into_iter().flatten() {
            cron["spec"][key] = value.clone();
        }
        let cron: CronJob = serde_json::from_value(cron).expect("a cron job");
        let spec = cron.spec.clone();
        let schedule = Schedule::parse(&spec.schedule).expect("readable");
        plan(
            &cron,
            &spec,
            &schedule,
            &TimeZone::UTC,
            &cron.status.clone().unwrap_or_default(),
            at(now),
        )
    }

    #[test]
    fn when_a_job_starts() {
        let start = |text: &str, replace| Decision::Start {
            at: at(text),
            replace,
        };
        let plan = decide(json!({}), json!({}), "2026-01-01T00:04:00Z");
        assert_eq!(
            (plan.decision, plan.next),
            (Decision::Wait, Some(at("2026-01-01T00:05:00Z")))
        );
        let plan = decide(json!({}), json!({}), "2026-01-01T00:11:00Z");
        assert_eq!(
            (plan.decision, plan.next),
            (
                start("2026-01-01T00:10:00Z", false),
                Some(at("2026-01-01T00:15:00Z"))
            )
        );
        let served = json!({ "lastScheduleTime": "2026-01-01T00:10:00Z" });
        assert_eq!(
            decide(json!({}), served, "2026-01-01T00:11:00Z").decision,
            Decision::Wait
        );
        let suspended = json!({ "suspend": true });
        assert_eq!(
            decide(suspended, json!({}), "2026-01-01T00:11:00Z").decision,
            Decision::Wait
        );
        let strict = json!({ "startingDeadlineSeconds": 30 });
        assert_eq!(
            decide(strict, json!({}), "2026-01-01T00:11:00Z").decision,
            Decision::Wait
        );
    }

    #[test]
    fn concurrency() {
        let active = || json!({ "active": [ { "name": "tick-1", "uid": "1" } ] });
        let with = |policy: &str| {
            decide(
                json!({ "concurrencyPolicy": policy }),
                active(),
                "2026-01-01T00:05:01Z",
            )
            .decision
        };
        let due = at("2026-01-01T00:05:00Z");
        assert_eq!(
            with("Allow"),
            Decision::Start {
                at: due,
                replace: false
            }
        );
        assert_eq!(with("Forbid"), Decision::Forbidden);
        assert_eq!(
            with("Replace"),
            Decision::Start {
                at: due,
                replace: true
            }
        );
    }

    #[test]
    fn a_long_pause_starts_one_job_for_the_latest_time() {
        let plan = decide(json!({}), json!({}), "2026-02-01T00:03:00Z");
        assert!(plan.missed_too_many);
        assert_eq!(
            plan.decision,
            Decision::Start {
                at: at("2026-02-01T00:00:00Z"),
                replace: false
            }
        );
        assert_eq!(plan.next, Some(at("2026-02-01T00:05:00Z")));
    }
}
