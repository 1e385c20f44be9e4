//! What runs pods, and what bears on it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::printer::{Column, Printer, age, name, time_since};

fn containers_column() -> Column {
    Column::new("Containers", "Names of each container in the template.")
}

fn images_column() -> Column {
    Column::new(
        "Images",
        "Images referenced by each container in the template.",
    )
}

pub fn pod_template() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                containers_column(),
                images_column(),
                Column::new("Pod Labels", "The labels for the pod template."),
            ]
        },
        pod_template_cells,
    )
}

pub fn replication_controller() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Desired",
                    "io.k8s.api.core.v1.ReplicationControllerSpec",
                    "replicas",
                )
                .typed("integer"),
                Column::of(
                    "Current",
                    "io.k8s.api.core.v1.ReplicationControllerStatus",
                    "replicas",
                )
                .typed("integer"),
                Column::of(
                    "Ready",
                    "io.k8s.api.core.v1.ReplicationControllerStatus",
                    "readyReplicas",
                )
                .typed("integer"),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of(
                    "Selector",
                    "io.k8s.api.core.v1.ReplicationControllerSpec",
                    "selector",
                )
                .wide(),
            ]
        },
        replication_controller_cells,
    )
}

pub fn controller_revision() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Controller", "Controller of the object"),
                Column::of(
                    "Revision",
                    "io.k8s.api.apps.v1.ControllerRevision",
                    "revision",
                ),
                Column::age(),
            ]
        },
        controller_revision_cells,
    )
}

pub fn daemon_set() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Desired",
                    "io.k8s.api.apps.v1.DaemonSetStatus",
                    "desiredNumberScheduled",
                )
                .typed("integer"),
                Column::of(
                    "Current",
                    "io.k8s.api.apps.v1.DaemonSetStatus",
                    "currentNumberScheduled",
                )
                .typed("integer"),
                Column::of("Ready", "io.k8s.api.apps.v1.DaemonSetStatus", "numberReady")
                    .typed("integer"),
                Column::of(
                    "Up-to-date",
                    "io.k8s.api.apps.v1.DaemonSetStatus",
                    "updatedNumberScheduled",
                )
                .typed("integer"),
                Column::of(
                    "Available",
                    "io.k8s.api.apps.v1.DaemonSetStatus",
                    "numberAvailable",
                )
                .typed("integer"),
                Column::of(
                    "Node Selector",
                    "io.k8s.api.core.v1.PodSpec",
                    "nodeSelector",
                ),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of("Selector", "io.k8s.api.apps.v1.DaemonSetSpec", "selector").wide(),
            ]
        },
        daemon_set_cells,
    )
}

pub fn deployment() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Ready", "Number of the pod with ready state"),
                Column::of(
                    "Up-to-date",
                    "io.k8s.api.apps.v1.DeploymentStatus",
                    "updatedReplicas",
                ),
                Column::of(
                    "Available",
                    "io.k8s.api.apps.v1.DeploymentStatus",
                    "availableReplicas",
                ),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of("Selector", "io.k8s.api.apps.v1.DeploymentSpec", "selector").wide(),
            ]
        },
        deployment_cells,
    )
}

pub fn replica_set() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Desired", "io.k8s.api.apps.v1.ReplicaSetSpec", "replicas")
                    .typed("integer"),
                Column::of("Current", "io.k8s.api.apps.v1.ReplicaSetStatus", "replicas")
                    .typed("integer"),
                Column::of(
                    "Ready",
                    "io.k8s.api.apps.v1.ReplicaSetStatus",
                    "readyReplicas",
                )
                .typed("integer"),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of("Selector", "io.k8s.api.apps.v1.ReplicaSetSpec", "selector").wide(),
            ]
        },
        replica_set_cells,
    )
}

pub fn stateful_set() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Ready", "Number of the pod with ready state"),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
            ]
        },
        stateful_set_cells,
    )
}

pub fn horizontal_pod_autoscaler() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Reference",
                    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec",
                    "scaleTargetRef",
                ),
                Column::of(
                    "Targets",
                    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec",
                    "metrics",
                ),
                Column::of(
                    "MinPods",
                    "io.k8s.api.autoscaling.v1.HorizontalPodAutoscalerSpec",
                    "minReplicas",
                ),
                Column::of(
                    "MaxPods",
                    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec",
                    "maxReplicas",
                ),
                Column::of(
                    "Replicas",
                    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus",
                    "currentReplicas",
                ),
                Column::age(),
            ]
        },
        horizontal_pod_autoscaler_cells,
    )
}

pub fn cron_job() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Schedule", "io.k8s.api.batch.v1.CronJobSpec", "schedule"),
                Column::of("Timezone", "io.k8s.api.batch.v1.CronJobSpec", "timeZone"),
                Column::of("Suspend", "io.k8s.api.batch.v1.CronJobSpec", "suspend")
                    .typed("boolean"),
                Column::of("Active", "io.k8s.api.batch.v1.CronJobStatus", "active")
                    .typed("integer"),
                Column::of(
                    "Last Schedule",
                    "io.k8s.api.batch.v1.CronJobStatus",
                    "lastScheduleTime",
                ),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of("Selector", "io.k8s.api.batch.v1.JobSpec", "selector").wide(),
            ]
        },
        cron_job_cells,
    )
}

pub fn job() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new("Status", "Status of the job."),
                Column::of("Completions", "io.k8s.api.batch.v1.JobStatus", "succeeded"),
                Column::new("Duration", "Time required to complete the job."),
                Column::age(),
                containers_column().wide(),
                images_column().wide(),
                Column::of("Selector", "io.k8s.api.batch.v1.JobSpec", "selector").wide(),
            ]
        },
        job_cells,
    )
}

pub fn pod_disruption_budget() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Min Available",
                    "The minimum number of pods that must be available.",
                ),
                Column::new(
                    "Max Unavailable",
                    "The maximum number of pods that may be unavailable.",
                ),
                Column::new(
                    "Allowed Disruptions",
                    "Calculated number of pods that may be disrupted at this time.",
                )
                .typed("integer"),
                Column::age(),
            ]
        },
        pod_disruption_budget_cells,
    )
}

pub fn priority_class() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Value", "io.k8s.api.scheduling.v1.PriorityClass", "value")
                    .typed("integer"),
                Column::of(
                    "Global-Default",
                    "io.k8s.api.scheduling.v1.PriorityClass",
                    "globalDefault",
                )
                .typed("boolean"),
                Column::age(),
                Column::of(
                    "PreemptionPolicy",
                    "io.k8s.api.scheduling.v1.PriorityClass",
                    "preemptionPolicy",
                ),
            ]
        },
        priority_class_cells,
    )
}

pub fn runtime_class() -> Arc<dyn Printer> {
    table(
        || vec![Column::name(), Column::new("Handler", ""), Column::age()],
        runtime_class_cells,
    )
}

fn containers_of(spec: Option<&Value>) -> (Value, Value) {
    let nothing = Value::Null;
    let spec = spec.unwrap_or(&nothing);
    let of = |pointer: &str| {
        joined(
            items(spec, "/containers")
                .iter()
                .map(|container| text(container, pointer)),
            ",",
        )
    };
    (of("/name").into(), of("/image").into())
}

fn template_cells(object: &Value) -> (Value, Value) {
    containers_of(object.pointer("/spec/template/spec"))
}

fn pod_template_cells(object: &Value, _now: Timestamp) -> Vec<Value> {
    let (names, images) = containers_of(object.pointer("/template/spec"));
    vec![
        name(object),
        names,
        images,
        labels(object.pointer("/template/metadata/labels")).into(),
    ]
}

fn replication_controller_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    vec![
        name(object),
        integer(object, "/spec/replicas").into(),
        integer(object, "/status/replicas").into(),
        integer(object, "/status/readyReplicas").into(),
        age(object, now),
        names,
        images,
        labels(object.pointer("/spec/selector")).into(),
    ]
}

fn controller_revision_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = items(object, "/metadata/ownerReferences");
    let controller = owners.iter().find(|owner| flag(owner, "/controller"));
    let controller = controller.map_or("<none>".to_owned(), |owner| {
        let group = text(owner, "/apiVersion")
            .split_once('/')
            .map_or("", |(group, _)| group);
        let dot = if group.is_empty() { "" } else { "." };
        format!(
            "{}{dot}{group}/{}",
            text(owner, "/kind").to_lowercase(),
            text(owner, "/name")
        )
    });
    vec![
        name(object),
        controller.into(),
        integer(object, "/revision").into(),
        age(object, now),
    ]
}

fn daemon_set_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    vec![
        name(object),
        integer(object, "/status/desiredNumberScheduled").into(),
        integer(object, "/status/currentNumberScheduled").into(),
        integer(object, "/status/numberReady").into(),
        integer(object, "/status/updatedNumberScheduled").into(),
        integer(object, "/status/numberAvailable").into(),
        labels(object.pointer("/spec/template/spec/nodeSelector")).into(),
        age(object, now),
        names,
        images,
        selector_or_none(object.pointer("/spec/selector")).into(),
    ]
}

fn ready_of_desired(object: &Value) -> Value {
    let ready = integer(object, "/status/readyReplicas");
    format!("{ready}/{}", integer(object, "/spec/replicas")).into()
}

fn deployment_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    vec![
        name(object),
        ready_of_desired(object),
        integer(object, "/status/updatedReplicas").into(),
        integer(object, "/status/availableReplicas").into(),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/selector")).into(),
    ]
}

fn replica_set_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    vec![
        name(object),
        integer(object, "/spec/replicas").into(),
        integer(object, "/status/replicas").into(),
        integer(object, "/status/readyReplicas").into(),
        age(object, now),
        names,
        images,
        selector_or_none(object.pointer("/spec/selector")).into(),
    ]
}

fn stateful_set_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    vec![
        name(object),
        ready_of_desired(object),
        age(object, now),
        names,
        images,
    ]
}

fn horizontal_pod_autoscaler_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let target = |field: &str| text(object, &format!("/spec/scaleTargetRef/{field}"));
    let minimum = object
        .pointer("/spec/minReplicas")
        .cloned()
        .map_or("<unset>".into(), |value| Value::from(value.to_string()));
    vec![
        name(object),
        format!("{}/{}", target("kind"), target("name")).into(),
        metrics(object).into(),
        minimum,
        integer(object, "/spec/maxReplicas").into(),
        integer(object, "/status/currentReplicas").into(),
        age(object, now),
    ]
}

/// Current and wanted value of the first two metrics, in the v2 form.
fn metrics(object: &Value) -> String {
    let specs = items(object, "/spec/metrics");
    let statuses = items(object, "/status/currentMetrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let all: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| metric(spec, statuses.get(i).unwrap_or(&Value::Null)))
        .collect();
    let first = all.iter().take(2).cloned().collect::<Vec<_>>().join(", ");
    match all.len() {
        0..=2 => first,
        many => format!("{first} + {} more...", many - 2),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let type_ = text(spec, "/type");
    let field = match type_ {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let target = |name: &str| shown(spec.pointer(&format!("/{field}/target/{name}")));
    let current = |name: &str| shown(status.pointer(&format!("/{field}/current/{name}")));
    let unknown = || "<unknown>".to_owned();
    // A quantity that is absent from a status that is there.
    let quantity = |name: &str| match status.get(field).is_some_and(Value::is_object) {
        true => current(name).unwrap_or("<nil>".to_owned()),
        false => unknown(),
    };
    let average = target("averageValue");
    let resource = text(spec, &format!("/{field}/name"));
    match type_ {
        "External" | "Object" => match average {
            Some(wanted) => {
                format!(
                    "{}/{wanted} (avg)",
                    current("averageValue").unwrap_or_else(unknown)
                )
            }
            None => format!(
                "{}/{}",
                quantity("value"),
                target("value").unwrap_or_default()
            ),
        },
        "Pods" => format!(
            "{}/{}",
            quantity("averageValue"),
            average.unwrap_or_default()
        ),
        _ => match average {
            Some(wanted) => {
                let have = quantity("averageValue");
                format!("{resource}: {have}/{wanted}")
            }
            None => {
                let have =
                    current("averageUtilization").map_or_else(unknown, |have| format!("{have}%"));
                let wanted = target("averageUtilization")
                    .map_or("<auto>".to_owned(), |one| format!("{one}%"));
                format!("{resource}: {have}/{wanted}")
            }
        },
    }
}

fn cron_job_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers_of(object.pointer("/spec/jobTemplate/spec/template/spec"));
    let suspend = match object.pointer("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let last = object
        .pointer("/status/lastScheduleTime")
        .filter(|time| !time.is_null());
    vec![
        name(object),
        text(object, "/spec/schedule").into(),
        or(text(object, "/spec/timeZone"), "<none>").into(),
        suspend.into(),
        items(object, "/status/active").len().into(),
        last.map_or("<none>".to_owned(), |time| time_since(Some(time), now))
            .into(),
        age(object, now),
        names,
        images,
        selector_or_none(object.pointer("/spec/jobTemplate/spec/selector")).into(),
    ]
}

fn job_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_cells(object);
    let succeeded = integer(object, "/status/succeeded");
    let parallelism = integer(object, "/spec/parallelism");
    let completions = match object.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let time = |pointer: &str| -> Option<Timestamp> { text(object, pointer).parse().ok() };
    let duration = time("/status/startTime").map_or(String::new(), |start| {
        let end = time("/status/completionTime").unwrap_or(now);
        crate::duration::human(end.duration_since(start))
    });
    vec![
        name(object),
        job_status(object).into(),
        completions.into(),
        duration.into(),
        age(object, now),
        names,
        images,
        selector_or_none(object.pointer("/spec/selector")).into(),
    ]
}

fn job_status(object: &Value) -> &'static str {
    let has =
        |type_: &str| condition(object, type_).is_some_and(|one| text(one, "/status") == "True");
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !text(object, "/metadata/deletionTimestamp").is_empty() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn pod_disruption_budget_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let limit = |pointer: &str| shown(object.pointer(pointer)).unwrap_or("N/A".to_owned());
    vec![
        name(object),
        limit("/spec/minAvailable").into(),
        limit("/spec/maxUnavailable").into(),
        integer(object, "/status/disruptionsAllowed").into(),
        age(object, now),
    ]
}

fn priority_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        integer(object, "/value").into(),
        flag(object, "/globalDefault").into(),
        age(object, now),
        text(object, "/preemptionPolicy").into(),
    ]
}

fn runtime_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(object, "/handler").into(),
        age(object, now),
    ]
}
