use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec};

use super::{
    job::{job_warnings, set_failure_policy_defaults, validate_spec as validate_job_spec},
    schedule,
};
use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Bad, Errors, Path},
    kinds::{Generation, Kind, Rules},
    strategy::Warnings,
    validation::numbers::validate_non_negative,
    zero::{Flag, Text, fill, set},
};

impl Kind for CronJob {
    const RULES: Rules = Rules::namespaced().status().generation(Generation::Spec);

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        fill(&mut spec.concurrency_policy, "Allow");
        set(&mut spec.suspend, false);
        set(&mut spec.successful_jobs_history_limit, 3);
        set(&mut spec.failed_jobs_history_limit, 1);
        let job = spec.job_template.spec.get_or_insert_default();
        set_template_defaults(&mut job.template);
        set_failure_policy_defaults(job);
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, Some(old), errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let mut warnings = job_warnings(
            self.spec.job_template.spec.as_ref(),
            &self.metadata,
            old.map(|old| &old.metadata),
            &Path::new("spec.jobTemplate.spec"),
        );
        if self.spec.schedule.contains("TZ") {
            warnings.push("cannot use TZ or CRON_TZ in spec.schedule, use spec.timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#time-zones for more details".to_owned());
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::cron_job()
    }
}

fn validate(job: &CronJob, old: Option<&CronJob>, errors: &mut Errors) {
    validate_spec(
        &job.spec,
        old.map(|old| &old.spec),
        &Path::new("spec"),
        errors,
    );
    // A Job's name is ours and eleven characters.
    let name = job.metadata.name.text();
    if old.is_none() && name.len() > 52 {
        errors.invalid(
            &Path::new("metadata.name"),
            name,
            "must be no more than 52 characters",
        );
    }
}

fn validate_spec(
    spec: &CronJobSpec,
    old: Option<&CronJobSpec>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("schedule");
    let zone_in = |spec: &CronJobSpec| spec.schedule.contains("TZ");
    if spec.schedule.is_empty() {
        errors.required(&at, "");
    } else {
        if let Err(problem) = check_schedule(&spec.schedule) {
            errors.invalid(&at, &spec.schedule, problem);
        }
        let detail = match old.is_some_and(zone_in) {
            true if spec.time_zone.is_some() => {
                Some("cannot use both timeZone field and TZ or CRON_TZ in schedule")
            }
            true => None,
            false => Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
        };
        if let Some(detail) = detail.filter(|_| zone_in(spec)) {
            errors.invalid(&at, &spec.schedule, detail);
        }
    }
    if let Some(seconds) = spec.starting_deadline_seconds {
        validate_non_negative(seconds, &path.child("startingDeadlineSeconds"), errors);
    }
    if let Some(zone) = &spec.time_zone
        && old.is_none_or(|old| old.time_zone.as_ref() != Some(zone))
    {
        validate_time_zone(zone, &path.child("timeZone"), errors);
    }
    let at = path.child("concurrencyPolicy");
    match spec.concurrency_policy.text() {
        "Allow" | "Forbid" | "Replace" => {}
        "" => errors.required(&at, ""),
        other => errors.not_supported(&at, other, &["Allow", "Forbid", "Replace"]),
    }
    let job = spec.job_template.spec.clone().unwrap_or_default();
    let at = path.child("jobTemplate.spec");
    validate_job_spec(&job, &at, errors);
    if job.selector.is_some() {
        errors.invalid(
            &at.child("selector"),
            Bad::json(&job.selector),
            "`selector` will be auto-generated",
        );
    }
    if job.manual_selector.is_true() {
        errors.not_supported(&at.child("manualSelector"), true, &["nil", "false"]);
    }
    for (field, limit) in [
        (
            "successfulJobsHistoryLimit",
            spec.successful_jobs_history_limit,
        ),
        ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
    ] {
        if let Some(limit) = limit {
            validate_non_negative(limit.into(), &path.child(field), errors);
        }
    }
}

/// A zone before the fields is only there in old objects.
fn check_schedule(schedule: &str) -> Result<(), String> {
    let zoned = ["TZ=", "CRON_TZ="]
        .iter()
        .find_map(|prefix| schedule.strip_prefix(prefix));
    let Some(zoned) = zoned else {
        return schedule::check(schedule);
    };
    let (zone, fields) = zoned.split_once(' ').unwrap_or((zoned, ""));
    if !is_known_zone(zone) {
        return Err(format!(
            "provided bad location {zone}: unknown time zone {zone}"
        ));
    }
    schedule::check(fields)
}

fn validate_time_zone(zone: &str, path: &Path<'_>, errors: &mut Errors) {
    if zone.is_empty() {
        errors.invalid(path, zone, "timeZone must be nil or non-empty string");
        return;
    }
    let unknown = format!("unknown time zone {zone}");
    if !zone.split('/').all(is_zone_part) {
        errors.invalid(path, zone, unknown);
        return;
    }
    if zone.eq_ignore_ascii_case("local") {
        errors.invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    }
    if !is_known_zone(zone) {
        errors.invalid(path, zone, unknown);
    }
}

/// Go knows the first three without looking them up.
fn is_known_zone(zone: &str) -> bool {
    matches!(zone, "" | "UTC" | "Local") || jiff::tz::TimeZone::get(zone).is_ok()
}

fn is_zone_part(part: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b".-_+".contains(&c);
    matches!(part.len(), 1..=14)
        && part.bytes().all(allowed)
        && !matches!(part, "." | "..")
        && !part.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::check_schedule;

    #[test]
    fn zones_before_the_fields_are_looked_up() {
        assert_eq!(check_schedule("TZ=UTC * * * * *"), Ok(()));
        let bad = check_schedule("CRON_TZ=Nope/Where * * * * *").expect_err("refused");
        assert_eq!(
            bad,
            "provided bad location Nope/Where: unknown time zone Nope/Where"
        );
    }
}
