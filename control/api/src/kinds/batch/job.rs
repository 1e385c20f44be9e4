use k8s_openapi::{
    api::batch::v1::{
        Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{indexes, job_change, job_status};
use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules, Selectable},
    selector::LabelSelector,
    strategy::Warnings,
    validation::{
        internal,
        labels::{SelectorRules, readable, validate_selector},
        numbers::validate_non_negative,
        template::validate_template,
        text,
        warnings::{pod_template_warnings, template_owner_warnings},
    },
    zero::{Flag, List, Text, fill, set},
};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const OLD_UID_LABEL: &str = "controller-uid";
const OLD_NAME_LABEL: &str = "job-name";
/// With so many completions, there is less of other things.
const MANY: i32 = 100_000;
const FEW: i32 = 10_000;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

impl Kind for Job {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_template_defaults(&mut spec.template);
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        set(&mut spec.parallelism, 1);
        let per_index = spec.backoff_limit_per_index.is_some();
        set(
            &mut spec.backoff_limit,
            if per_index { i32::MAX } else { 6 },
        );
        set(&mut spec.completion_mode, "NonIndexed".to_owned());
        set(&mut spec.suspend, false);
        let policy = if spec.pod_failure_policy.is_some() {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        set(&mut spec.pod_replacement_policy, policy.to_owned());
        set_failure_policy_defaults(spec);
        set(&mut spec.manual_selector, false);
        take_template_labels(self);
    }

    fn prepare_create(&mut self) {
        let uid = self.metadata.uid.text().to_owned();
        let name = self.metadata.name.text().to_owned();
        let spec = self.spec.get_or_insert_default();
        if !spec.manual_selector.is_true() {
            generate_selector(spec, &uid, &name);
        }
        // Upstream defaults again when it reads the object back: the generated labels become the Job's own. A name that
        // does not do for a label is refused before, and only where it was generated.
        if text::label_value(&name).is_empty() {
            take_template_labels(self);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        validate_generated_selector(&spec, &self.metadata, errors);
        validate_with_selector(&spec, &Path::new("spec"), errors);
        let indexed = spec.completion_mode.text() == "Indexed";
        if let Some(completions) = spec.completions.filter(|count| indexed && *count > 0) {
            let name = self.metadata.name.text();
            let last = format!("{name}-{}", completions - 1);
            if !text::dns1123_label(&last).is_empty() {
                errors.invalid(
                    &Path::new("metadata.name"),
                    name,
                    format!("will not able to create pod with invalid DNS label: {last}"),
                );
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let (spec, old_spec) = (
            self.spec.clone().unwrap_or_default(),
            old.spec.clone().unwrap_or_default(),
        );
        job_change::validate(&spec, &old_spec, old, errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        job_status::validate(self, old, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        job_warnings(
            self.spec.as_ref(),
            &self.metadata,
            old.map(|old| &old.metadata),
            &Path::new("spec"),
        )
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::job()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "status.successful",
            get: |job| {
                job.pointer("/status/succeeded")
                    .and_then(Value::as_i64)
                    .unwrap_or(0)
                    .to_string()
            },
        }];
        Some(FIELDS)
    }
}

/// `meta` is of what owns the spec: a Job, or a CronJob.
pub(super) fn job_warnings(
    spec: Option<&JobSpec>,
    meta: &ObjectMeta,
    old: Option<&ObjectMeta>,
    path: &Path<'_>,
) -> Warnings {
    let mut warnings = template_owner_warnings(None, meta, old, "");
    let unchanged = old.is_some_and(|old| old.generation == meta.generation);
    let Some(spec) = spec.filter(|_| !unchanged) else {
        return warnings;
    };
    let (completions, parallelism) = (spec.completions, spec.parallelism);
    if spec.completion_mode.text() == "Indexed"
        && completions.unwrap_or(0) > MANY
        && parallelism.unwrap_or(0) > FEW
    {
        warnings.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    let path = path.child("template").to_string();
    warnings.extend(pod_template_warnings(
        Some(&spec.template),
        meta,
        old,
        &path,
    ));
    warnings
}

pub(super) fn set_failure_policy_defaults(spec: &mut JobSpec) {
    let rules = spec
        .pod_failure_policy
        .iter_mut()
        .flat_map(|policy| &mut policy.rules);
    for condition in rules.flat_map(|rule| rule.on_pod_conditions.iter_mut().flatten()) {
        fill(&mut condition.status, "True");
    }
}

/// The labels by which a Job's pods are its own, unless the user wants to say so himself.
/// A Job without labels has those of its pods.
fn take_template_labels(job: &mut Job) {
    let own = &mut job.metadata.labels;
    if own.as_ref().is_none_or(|own| own.is_empty()) {
        let template = job
            .spec
            .as_ref()
            .and_then(|spec| spec.template.metadata.as_ref());
        if let Some(labels) = template.and_then(|meta| meta.labels.clone()) {
            *own = Some(labels);
        }
    }
}

fn generate_selector(spec: &mut JobSpec, uid: &str, name: &str) {
    let labels = spec
        .template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    for (label, value) in [
        (OLD_NAME_LABEL, name),
        (NAME_LABEL, name),
        (OLD_UID_LABEL, uid),
        (UID_LABEL, uid),
    ] {
        labels
            .entry(label.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    let selector = spec.selector.get_or_insert_default();
    let labels = selector.match_labels.get_or_insert_default();
    labels
        .entry(UID_LABEL.to_owned())
        .or_insert_with(|| uid.to_owned());
}

fn validate_generated_selector(spec: &JobSpec, meta: &ObjectMeta, errors: &mut Errors) {
    let Some(selector) = &spec.selector else {
        return;
    };
    if spec.manual_selector.is_true() {
        return;
    }
    let (uid, name) = (meta.uid.text(), meta.name.text());
    if uid.is_empty() {
        errors.required(&Path::new("metadata.uid"), "");
    }
    let labels = crate::validation::pod_spec::labels_of(spec.template.metadata.as_ref());
    let path = Path::new("spec.template.metadata.labels");
    let expected = [
        (OLD_UID_LABEL, uid),
        (OLD_NAME_LABEL, name),
        (UID_LABEL, uid),
        (NAME_LABEL, name),
    ];
    for (label, value) in expected {
        let at = path.key(label);
        match labels.get(label) {
            None => errors.required(&at, format!("must be '{value}'")),
            Some(actual) if actual != value => {
                errors.invalid(&at, Bad::json(&labels), format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
    let expected = expected
        .iter()
        .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
        .collect();
    if readable(selector).is_some_and(|one| !one.matches(&expected)) {
        errors.invalid(
            &Path::new("spec.selector"),
            Bad::json(selector),
            "`selector` not auto-generated",
        );
    }
}

pub(super) fn validate_with_selector(spec: &JobSpec, path: &Path<'_>, errors: &mut Errors) {
    validate_spec(spec, path, errors);
    let at = path.child("selector");
    match &spec.selector {
        None => errors.required(&at, ""),
        Some(selector) => {
            validate_selector(Some(selector), SelectorRules::default(), &at, errors);
        }
    }
    let labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    let selected = match &spec.selector {
        Some(selector) => readable(selector),
        None => Some(LabelSelector::nothing()),
    };
    if selected.is_some_and(|one| !one.matches(&labels.clone().unwrap_or_default())) {
        errors.invalid(
            &path.child("template.metadata.labels"),
            Bad::json(&labels),
            "`selector` does not match template `labels`",
        );
    }
}

/// A Job's spec, or the part of it that a CronJob holds.
pub(super) fn validate_spec(spec: &JobSpec, path: &Path<'_>, errors: &mut Errors) {
    for (field, value) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        (
            "ttlSecondsAfterFinished",
            spec.ttl_seconds_after_finished.map(i64::from),
        ),
        (
            "backoffLimitPerIndex",
            spec.backoff_limit_per_index.map(i64::from),
        ),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ] {
        if let Some(value) = value {
            validate_non_negative(value, &path.child(field), errors);
        }
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errors.required(
            &path.child("backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        );
    }
    if let Some(manager) = &spec.managed_by {
        let at = path.child("managedBy");
        validate_domain_prefixed_path(manager, &at, errors);
        if manager.len() > 63 {
            errors.too_long(&at, 63);
        }
    }
    validate_completion_mode(spec, path, errors);
    validate_failure_policy(spec, &path.child("podFailurePolicy"), errors);
    if let Some(policy) = &spec.success_policy {
        let at = path.child("successPolicy");
        if spec.completion_mode.text() == "Indexed" {
            validate_success_policy(policy, spec, &at, errors);
        } else {
            errors.invalid(
                &at,
                internal::bad("SuccessPolicy", policy),
                "requires indexed completion mode",
            );
        }
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let at = path.child("podReplacementPolicy");
        if spec.pod_failure_policy.is_some() {
            if policy != "Failed" {
                errors.not_supported(&at, policy, &["Failed"]);
            }
        } else if !matches!(policy.as_str(), "Failed" | "TerminatingOrFailed") {
            errors.not_supported(&at, policy, &["Failed", "TerminatingOrFailed"]);
        }
    }
    let at = path.child("template");
    validate_template(&spec.template, &at, errors);
    let policy = spec
        .template
        .spec
        .as_ref()
        .map_or("", |spec| spec.restart_policy.text());
    let at = at.child("spec.restartPolicy");
    match policy {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {
            if spec.pod_failure_policy.is_some() && policy != "Never" {
                errors.invalid(
                    &at,
                    policy,
                    "only \"Never\" is supported when podFailurePolicy is specified",
                );
            }
        }
        other => errors.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

/// `acme.io/foo`; also of IngressClasses.
pub(crate) fn validate_domain_prefixed_path(value: &str, path: &Path<'_>, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts = value
        .split_once('/')
        .filter(|(host, rest)| !host.is_empty() && !rest.is_empty());
    let Some((host, rest)) = parts else {
        errors.invalid(
            path,
            value,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        );
        return;
    };
    errors.invalid_each(path, host, text::dns1123_subdomain(host));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !rest.bytes().all(allowed) {
        errors.invalid_each(
            path,
            rest,
            text::pattern(
                false,
                "Invalid path",
                r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+",
                &[],
            ),
        );
    }
}

fn validate_completion_mode(spec: &JobSpec, path: &Path<'_>, errors: &mut Errors) {
    let mode = spec.completion_mode.text();
    if let Some(mode) = &spec.completion_mode
        && !matches!(mode.as_str(), "NonIndexed" | "Indexed")
    {
        errors.not_supported(
            &path.child("completionMode"),
            mode,
            &["NonIndexed", "Indexed"],
        );
    }
    let most = spec.max_failed_indexes;
    match mode {
        "Indexed" => validate_indexed(spec, path, errors),
        "" | "NonIndexed" => {
            for (field, value) in [
                ("backoffLimitPerIndex", spec.backoff_limit_per_index),
                ("maxFailedIndexes", most),
            ] {
                if let Some(value) = value {
                    let detail = "requires indexed completion mode";
                    errors.invalid(&path.child(field), value, detail);
                }
            }
        }
        _ => {}
    }
}

fn validate_indexed(spec: &JobSpec, path: &Path<'_>, errors: &mut Errors) {
    if spec.completions.is_none() {
        let detail = "when completion mode is Indexed";
        errors.required(&path.child("completions"), detail);
    }
    let completions = spec.completions.unwrap_or(i32::MAX);
    let (parallelism, most) = (spec.parallelism, spec.max_failed_indexes);
    let parallelism_at = path.child("parallelism");
    let most_at = path.child("maxFailedIndexes");
    let mut limit = |at: &Path<'_>, value: Option<i32>, limit: i32, detail: String| {
        if let Some(value) = value.filter(|value| *value > limit) {
            errors.invalid(at, value, format!("must be less than or equal to {detail}"));
        }
    };
    let detail = format!("{MANY} when completion mode is Indexed");
    limit(&parallelism_at, parallelism, MANY, detail);
    limit(&most_at, most, completions, "completions".to_owned());
    limit(&most_at, most, MANY, MANY.to_string());
    if spec.completions.is_none() || completions <= MANY || spec.backoff_limit_per_index.is_none() {
        return;
    }
    let detail =
        format!("{FEW} when completions are above {MANY} and used with backoff limit per index");
    if most.is_none() {
        let detail = format!("must be specified when completions is above {MANY}");
        errors.required(&most_at, detail);
    }
    let mut limit = |at: &Path<'_>, value: Option<i32>| {
        if let Some(value) = value.filter(|value| *value > FEW) {
            errors.invalid(at, value, format!("must be less than or equal to {detail}"));
        }
    };
    limit(&parallelism_at, parallelism);
    limit(&most_at, most);
}

fn validate_failure_policy(spec: &JobSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(policy) = &spec.pod_failure_policy else {
        return;
    };
    let path = path.child("rules");
    if policy.rules.len() > 20 {
        errors.too_many(&path, policy.rules.len(), 20);
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        validate_failure_rule(rule, spec, &path.index(i), errors);
    }
}

fn validate_failure_rule(
    rule: &PodFailurePolicyRule,
    spec: &JobSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("action");
    if rule.action.is_empty() {
        errors.required(
            &at,
            "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
        );
    } else if rule.action == "FailIndex" {
        if spec.backoff_limit_per_index.is_none() {
            errors.invalid(
                &at,
                &rule.action,
                "requires the backoffLimitPerIndex to be set",
            );
        }
    } else if !ACTIONS.contains(&rule.action.as_str()) {
        errors.not_supported(&at, &rule.action, &ACTIONS);
    }
    if let Some(codes) = &rule.on_exit_codes {
        validate_exit_codes(codes, spec, &path.child("onExitCodes"), errors);
    }
    let conditions = rule.on_pod_conditions.items();
    let at = path.child("onPodConditions");
    if conditions.len() > 20 {
        errors.too_many(&at, conditions.len(), 20);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        errors.invalid_each(
            &at.child("type"),
            &condition.type_,
            text::qualified_name(&condition.type_),
        );
        let statuses = ["False", "True", "Unknown"];
        match condition.status.text() {
            "" => errors.required(
                &at.child("status"),
                "valid values: [\"False\" \"True\" \"Unknown\"]",
            ),
            status if !statuses.contains(&status) => {
                errors.not_supported(&at.child("status"), status, &statuses);
            }
            _ => {}
        }
    }
    match (rule.on_exit_codes.is_some(), !conditions.is_empty()) {
        (true, true) => errors.invalid(
            path,
            Bad::omitted(),
            "specifying both OnExitCodes and OnPodConditions is not supported",
        ),
        (false, false) => errors.invalid(
            path,
            Bad::omitted(),
            "specifying one of OnExitCodes and OnPodConditions is required",
        ),
        _ => {}
    }
}

fn validate_exit_codes(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    spec: &JobSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let operators = ["In", "NotIn"];
    match codes.operator.as_str() {
        "" => errors.required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        operator if !operators.contains(&operator) => {
            errors.not_supported(&path.child("operator"), operator, &operators);
        }
        _ => {}
    }
    if let Some(name) = &codes.container_name {
        let pod = spec.template.spec.clone().unwrap_or_default();
        let mut all = pod.containers.iter().chain(pod.init_containers.items());
        if !all.any(|container| container.name == *name) {
            errors.invalid(
                &path.child("containerName"),
                name,
                "must be one of the container or initContainer names in the pod template",
            );
        }
    }
    let at = path.child("values");
    let values = &codes.values;
    if values.is_empty() {
        errors.invalid(&at, Bad::json(values), "at least one value is required");
    } else if values.len() > 255 {
        errors.too_many(&at, values.len(), 255);
    }
    for (i, value) in values.iter().enumerate() {
        if codes.operator == "In" && *value == 0 {
            errors.invalid(&at.index(i), *value, "must not be 0 for the In operator");
        }
        if values[..i].contains(value) {
            errors.duplicate(&at.index(i), *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&at, Bad::json(values), "must be ordered");
    }
}

fn validate_success_policy(
    policy: &SuccessPolicy,
    spec: &JobSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let path = path.child("rules");
    if policy.rules.is_empty() {
        errors.required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    if policy.rules.len() > 20 {
        errors.too_many(&path, policy.rules.len(), 20);
    }
    let completions = spec.completions.unwrap_or(0);
    for (i, rule) in policy.rules.iter().enumerate() {
        let path = path.index(i);
        if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
            errors.required(
                &path,
                "at least one of succeededCount or succeededIndexes must be specified",
            );
        }
        let mut listed = None;
        if let Some(given) = &rule.succeeded_indexes {
            let at = path.child("succeededIndexes");
            if given.len() > 64 * 1024 {
                errors.too_long(&at, 64 * 1024);
            }
            let count = indexes::count(given, completions).unwrap_or_else(|problem| {
                let detail = format!("error parsing succeededIndexes: {problem}");
                errors.invalid(&at, given, detail);
                0
            });
            listed = Some(count);
        }
        if let Some(count) = rule.succeeded_count {
            let at = path.child("succeededCount");
            validate_non_negative(count.into(), &at, errors);
            if count > completions {
                errors.invalid(
                    &at,
                    count,
                    format!("must be less than or equal to {completions} (the number of specified completions)"),
                );
            }
            if let Some(listed) = listed.filter(|listed| count > *listed) {
                errors.invalid(
                    &at,
                    count,
                    format!("must be less than or equal to {listed} (the number of indexes in the specified succeededIndexes field)"),
                );
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub fn job(spec: &Value, pod: &Value, status: &Value) -> Job {
        let mut job = json!({
            "metadata": {"name": "j", "uid": "u", "namespace": "n"},
            "spec": {"template": {"spec": {
                "containers": [{"name": "c", "image": "i"}],
                "restartPolicy": "Never",
            }}},
            "status": status,
        });
        let overlay = |to: &mut Value, from: &Value| {
            let fields = from.as_object().into_iter().flatten();
            fields.for_each(|(field, value)| to[field] = value.clone());
        };
        overlay(&mut job["spec"], spec);
        overlay(&mut job["spec"]["template"]["spec"], pod);
        let mut job: Job = serde_json::from_value(job).unwrap();
        job.set_defaults();
        job.prepare_create();
        job
    }

    #[track_caller]
    fn check_warnings(parallelism: i32, expected: usize) {
        let spec = json!({
            "completionMode": "Indexed",
            "completions": 100_001,
            "parallelism": parallelism,
        });
        let job = job(&spec, &json!({}), &json!({}));
        let warnings = job.warnings(None);
        assert_eq!(warnings.len(), expected, "{warnings:?}");
        let begins = |text: &String| text.starts_with("spec: In Indexed Jobs ");
        assert!(warnings.iter().all(begins), "{warnings:?}");
    }

    #[test]
    fn too_much_to_keep_track_of() {
        check_warnings(10_000, 0);
        check_warnings(10_001, 1);
    }
}
