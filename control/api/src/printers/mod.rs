//! `kubectl get` for the built-in kinds: which columns, and what stands in them.
//!
//! Cells are read straight from the stored JSON: a list of pods prints without a typed pod being made.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;
use serde_json::Value;

use crate::printer::{Column, Printer};

pub mod access;
pub mod core;
pub mod network;
pub mod pods;
pub mod storage;
pub mod workloads;

/// Columns that are made when the first table is asked for, because their descriptions are stored compressed.
struct Lazy {
    columns: LazyLock<Vec<Column>>,
    cells: fn(&Value, Timestamp) -> Vec<Value>,
    conditions: fn(&Value) -> Option<Value>,
    order: Option<fn(&Value, &Value) -> Ordering>,
}

impl Lazy {
    fn new(columns: fn() -> Vec<Column>, cells: fn(&Value, Timestamp) -> Vec<Value>) -> Self {
        Self {
            columns: LazyLock::new(columns),
            cells,
            conditions: |_| None,
            order: None,
        }
    }
}

impl Printer for Lazy {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }

    fn conditions(&self, object: &Value) -> Option<Value> {
        (self.conditions)(object)
    }

    fn order(&self) -> Option<fn(&Value, &Value) -> Ordering> {
        self.order
    }
}

pub(crate) fn table(
    columns: fn() -> Vec<Column>,
    cells: fn(&Value, Timestamp) -> Vec<Value>,
) -> Arc<dyn Printer> {
    Arc::new(Lazy::new(columns, cells))
}

impl Column {
    /// A column that is described as a field of the API is.
    pub fn of(name: &'static str, definition: &'static str, field: &'static str) -> Self {
        let description = DESCRIPTIONS
            .get(&(definition, field))
            .cloned()
            .unwrap_or_default();
        Self {
            description: description.into(),
            ..Self::new(name, "")
        }
    }
}

/// The descriptions of the fields of [`DEFINITIONS`]; the rest of the megabytes is dropped again.
static DESCRIPTIONS: LazyLock<HashMap<(&'static str, &'static str), String>> =
    LazyLock::new(|| {
        let mut all = skep_schema::table::descriptions();
        let mut kept = HashMap::new();
        for (definition, fields) in DEFINITIONS {
            let Some((_, descriptions)) = all.get_mut(*definition) else {
                continue;
            };
            for field in *fields {
                if let Some(description) = descriptions.remove(*field) {
                    kept.insert((*definition, *field), description);
                }
            }
        }
        kept
    });

/// What columns are described by.
const DEFINITIONS: &[(&str, &[&str])] = &[
    ("io.k8s.api.apps.v1.ControllerRevision", &["revision"]),
    ("io.k8s.api.apps.v1.DaemonSetSpec", &["selector"]),
    (
        "io.k8s.api.apps.v1.DaemonSetStatus",
        &[
            "currentNumberScheduled",
            "desiredNumberScheduled",
            "numberAvailable",
            "numberReady",
            "updatedNumberScheduled",
        ],
    ),
    ("io.k8s.api.apps.v1.DeploymentSpec", &["selector"]),
    (
        "io.k8s.api.apps.v1.DeploymentStatus",
        &["availableReplicas", "updatedReplicas"],
    ),
    (
        "io.k8s.api.apps.v1.ReplicaSetSpec",
        &["replicas", "selector"],
    ),
    (
        "io.k8s.api.apps.v1.ReplicaSetStatus",
        &["readyReplicas", "replicas"],
    ),
    (
        "io.k8s.api.autoscaling.v1.HorizontalPodAutoscalerSpec",
        &["minReplicas"],
    ),
    (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec",
        &["maxReplicas", "metrics", "scaleTargetRef"],
    ),
    (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus",
        &["currentReplicas"],
    ),
    (
        "io.k8s.api.batch.v1.CronJobSpec",
        &["schedule", "suspend", "timeZone"],
    ),
    (
        "io.k8s.api.batch.v1.CronJobStatus",
        &["active", "lastScheduleTime"],
    ),
    ("io.k8s.api.batch.v1.JobSpec", &["selector"]),
    ("io.k8s.api.batch.v1.JobStatus", &["succeeded"]),
    (
        "io.k8s.api.certificates.v1.CertificateSigningRequestSpec",
        &["expirationSeconds"],
    ),
    ("io.k8s.api.coordination.v1.LeaseSpec", &["holderIdentity"]),
    ("io.k8s.api.core.v1.ConfigMap", &["data"]),
    ("io.k8s.api.core.v1.Endpoints", &["subsets"]),
    (
        "io.k8s.api.core.v1.Event",
        &[
            "count",
            "firstTimestamp",
            "involvedObject",
            "lastTimestamp",
            "message",
            "reason",
            "source",
            "type",
        ],
    ),
    ("io.k8s.api.core.v1.NodeStatus", &["addresses"]),
    (
        "io.k8s.api.core.v1.NodeSystemInfo",
        &[
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeletVersion",
            "osImage",
        ],
    ),
    ("io.k8s.api.core.v1.ObjectReference", &["fieldPath"]),
    (
        "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
        &["volumeMode", "volumeName"],
    ),
    (
        "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
        &["accessModes", "capacity", "phase"],
    ),
    (
        "io.k8s.api.core.v1.PersistentVolumeSpec",
        &[
            "accessModes",
            "capacity",
            "claimRef",
            "persistentVolumeReclaimPolicy",
            "volumeMode",
        ],
    ),
    (
        "io.k8s.api.core.v1.PersistentVolumeStatus",
        &["phase", "reason"],
    ),
    (
        "io.k8s.api.core.v1.PodSpec",
        &["nodeName", "nodeSelector", "readinessGates"],
    ),
    (
        "io.k8s.api.core.v1.PodStatus",
        &["nominatedNodeName", "podIP"],
    ),
    (
        "io.k8s.api.core.v1.ReplicationControllerSpec",
        &["replicas", "selector"],
    ),
    (
        "io.k8s.api.core.v1.ReplicationControllerStatus",
        &["readyReplicas", "replicas"],
    ),
    ("io.k8s.api.core.v1.Secret", &["data", "type"]),
    (
        "io.k8s.api.core.v1.ServiceSpec",
        &["clusterIP", "externalIPs", "ports", "selector", "type"],
    ),
    (
        "io.k8s.api.discovery.v1.EndpointSlice",
        &["addressType", "endpoints", "ports"],
    ),
    (
        "io.k8s.api.flowcontrol.v1.FlowSchemaSpec",
        &["distinguisherMethod", "matchingPrecedence"],
    ),
    (
        "io.k8s.api.flowcontrol.v1.LimitedPriorityLevelConfiguration",
        &["nominalConcurrencyShares"],
    ),
    (
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationReference",
        &["name"],
    ),
    (
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec",
        &["type"],
    ),
    (
        "io.k8s.api.flowcontrol.v1.QueuingConfiguration",
        &["handSize", "queueLengthLimit", "queues"],
    ),
    ("io.k8s.api.networking.v1.IPAddressSpec", &["parentRef"]),
    (
        "io.k8s.api.networking.v1.NetworkPolicySpec",
        &["podSelector"],
    ),
    ("io.k8s.api.networking.v1.ServiceCIDRSpec", &["cidrs"]),
    ("io.k8s.api.resource.v1.ResourcePool", &["name"]),
    (
        "io.k8s.api.resource.v1.ResourceSliceSpec",
        &["driver", "nodeName"],
    ),
    (
        "io.k8s.api.scheduling.v1.PriorityClass",
        &["globalDefault", "preemptionPolicy", "value"],
    ),
    (
        "io.k8s.api.storage.v1.CSIDriverSpec",
        &[
            "attachRequired",
            "podInfoOnMount",
            "requiresRepublish",
            "storageCapacity",
            "tokenRequests",
            "volumeLifecycleModes",
        ],
    ),
    (
        "io.k8s.api.storage.v1.StorageClass",
        &[
            "allowVolumeExpansion",
            "provisioner",
            "reclaimPolicy",
            "volumeBindingMode",
        ],
    ),
    (
        "io.k8s.api.storage.v1.VolumeAttachmentSource",
        &["persistentVolumeName"],
    ),
    (
        "io.k8s.api.storage.v1.VolumeAttachmentSpec",
        &["attacher", "nodeName"],
    ),
    (
        "io.k8s.api.storage.v1.VolumeAttachmentStatus",
        &["attached"],
    ),
    (
        "io.k8s.api.storage.v1.VolumeAttributesClass",
        &["driverName"],
    ),
];

/// The text at a pointer, or `""`.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("")
}

fn integer(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(object: &Value, pointer: &str) -> bool {
    object
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn entries(object: &Value, pointer: &str) -> usize {
    object
        .pointer(pointer)
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len)
}

fn or<'a>(text: &'a str, instead: &'a str) -> &'a str {
    if text.is_empty() { instead } else { text }
}

/// A quantity or the like, written as text or number.
fn shown(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// `a=b,c=d`
fn labels(value: Option<&Value>) -> String {
    let labels = value.and_then(Value::as_object).into_iter().flatten();
    let mut pairs: Vec<String> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    pairs.sort();
    if pairs.is_empty() {
        "<none>".to_owned()
    } else {
        pairs.join(",")
    }
}

/// A `LabelSelector` object as it is written in a query.
fn selector(value: Option<&Value>) -> String {
    let selector = value.and_then(|value| serde_json::from_value(value.clone()).ok());
    match crate::selector::LabelSelector::from_object(selector.as_ref()) {
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

fn selector_or_none(value: Option<&Value>) -> String {
    let selector = selector(value);
    if selector.is_empty() {
        "<none>".to_owned()
    } else {
        selector
    }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

fn strings<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    items(object, pointer).iter().filter_map(Value::as_str)
}

/// The status of a condition, by type.
fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    items(object, "/status/conditions")
        .iter()
        .find(|one| text(one, "/type") == type_)
}

/// `a,b,c + 2 more...`
fn first_three(all: &[String]) -> (String, bool) {
    let shown = all.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    match all.len() {
        0..=3 => (shown, false),
        many => (format!("{shown} + {} more...", many - 3), true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn every_column_is_described_and_filled() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        for row in crate::builtin() {
            let columns = row.printer.columns();
            for column in columns {
                let known_empty = row.plural == "runtimeclasses" && column.name == "Handler";
                assert!(
                    !column.description.is_empty() || known_empty,
                    "{}: {} has no description",
                    row.plural,
                    column.name
                );
            }
            // An object that says nothing still has a cell for every column.
            let cells = row.printer.cells(&json!({}), now);
            // Upstream prints an age that no column is declared for.
            let extra = usize::from(row.plural == "ipaddresses");
            assert_eq!(cells.len(), columns.len() + extra, "{}", row.plural);
        }
    }
}
