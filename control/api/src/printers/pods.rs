//! Pods.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::printer::{Column, Printer, age, name, time_since};

pub fn pod() -> Arc<dyn Printer> {
    let table = Lazy::new(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Ready",
                    "The aggregate readiness state of this pod for accepting traffic.",
                ),
                Column::new(
                    "Status",
                    "The aggregate status of the containers in this pod.",
                ),
                Column::new(
                    "Restarts",
                    "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
                ),
                Column::age(),
                Column::of("IP", "io.k8s.api.core.v1.PodStatus", "podIP").wide(),
                Column::of("Node", "io.k8s.api.core.v1.PodSpec", "nodeName").wide(),
                Column::of(
                    "Nominated Node",
                    "io.k8s.api.core.v1.PodStatus",
                    "nominatedNodeName",
                )
                .wide(),
                Column::of(
                    "Readiness Gates",
                    "io.k8s.api.core.v1.PodSpec",
                    "readinessGates",
                )
                .wide(),
            ]
        },
        pod_cells,
    );
    Arc::new(Lazy {
        conditions: completed,
        ..table
    })
}

fn completed(pod: &Value) -> Option<Value> {
    let phase = text(pod, "/status/phase");
    let message = match phase {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]))
}

/// What a pod is up to, in a word: the phase, or why a container is not running.
fn pod_cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let mut restarts = summary.restarts.to_string();
    if summary.restarts != 0 && summary.last_restart.is_some() {
        restarts = format!("{restarts} ({} ago)", time_since(summary.last_restart, now));
    }
    let gates = items(pod, "/spec/readinessGates");
    let open = gates.iter().filter(|gate| {
        condition(pod, text(gate, "/conditionType"))
            .is_some_and(|one| text(one, "/status") == "True")
    });
    let gates_cell = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        format!("{}/{}", open.count(), gates.len())
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or(text(pod, "/status/podIPs/0/ip"), "<none>").into(),
        or(text(pod, "/spec/nodeName"), "<none>").into(),
        or(text(pod, "/status/nominatedNodeName"), "<none>").into(),
        gates_cell.into(),
    ]
}

struct Summary<'a> {
    total: usize,
    ready: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<&'a Value>,
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Self {
        let phase = text(pod, "/status/phase");
        let mut reason = or(text(pod, "/status/reason"), phase).to_owned();
        let gated = condition(pod, "PodScheduled")
            .is_some_and(|one| text(one, "/reason") == "SchedulingGated");
        if gated {
            "SchedulingGated".clone_into(&mut reason);
        }
        let specs = items(pod, "/spec/initContainers");
        let is_sidecar = |name: &str| {
            let spec = specs.iter().find(|spec| text(spec, "/name") == name);
            spec.is_some_and(|spec| text(spec, "/restartPolicy") == "Always")
        };
        let sidecars = specs
            .iter()
            .filter(|spec| text(spec, "/restartPolicy") == "Always")
            .count();
        let mut summary = Self {
            total: items(pod, "/spec/containers").len() + sidecars,
            ready: 0,
            reason,
            restarts: 0,
            last_restart: None,
        };
        let mut of_sidecars = Restarts::default();
        let mut all = Restarts::default();
        let mut initializing = false;
        for (i, status) in items(pod, "/status/initContainerStatuses")
            .iter()
            .enumerate()
        {
            let sidecar = is_sidecar(text(status, "/name"));
            all.add(status);
            if sidecar {
                of_sidecars.add(status);
            }
            let terminated = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some_and(|one| integer(one, "/exitCode") == 0) {
                continue;
            }
            if sidecar && flag(status, "/started") {
                summary.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            initializing = true;
            summary.reason = match terminated {
                Some(terminated) => format!("Init:{}", end_reason(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => {
                    format!("Init:{waiting}")
                }
                None => format!("Init:{i}/{}", specs.len()),
            };
            break;
        }
        (summary.restarts, summary.last_restart) = (all.count, all.last);
        let initialized =
            condition(pod, "Initialized").is_some_and(|one| text(one, "/status") == "True");
        if !initializing || initialized {
            summary.add_containers(pod, of_sidecars);
        }
        if pod
            .pointer("/metadata/deletionTimestamp")
            .is_some_and(|time| !time.is_null())
        {
            if text(pod, "/status/reason") == "NodeLost" {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    fn add_containers(&mut self, pod: &'a Value, mut restarts: Restarts<'a>) {
        let mut running = false;
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(terminated) = status.pointer("/state/terminated") {
                self.reason = end_reason(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        (self.restarts, self.last_restart) = (restarts.count, restarts.last);
        if self.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|one| text(one, "/status") == "True");
            let reason = if ready { "Running" } else { "NotReady" };
            reason.clone_into(&mut self.reason);
        }
    }
}

#[derive(Default)]
struct Restarts<'a> {
    count: i64,
    /// RFC 3339 in one zone: the text sorts as the time does.
    last: Option<&'a Value>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a Value) {
        self.count += integer(status, "/restartCount");
        let finished = status.pointer("/lastState/terminated/finishedAt");
        let later = |finished: &Value| finished.as_str() > self.last.and_then(Value::as_str);
        if let Some(finished) = finished.filter(|finished| later(finished)) {
            self.last = Some(finished);
        }
    }
}

fn end_reason(terminated: &Value) -> String {
    let reason = text(terminated, "/reason");
    let signal = integer(terminated, "/signal");
    if !reason.is_empty() {
        reason.to_owned()
    } else if signal != 0 {
        format!("Signal:{signal}")
    } else {
        format!("ExitCode:{}", integer(terminated, "/exitCode"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pod: Value, ready: &str, status: &str, restarts: &str) {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let cells = pod_cells(&pod, now);
        assert_eq!(
            (&cells[1], &cells[2], &cells[3]),
            (&json!(ready), &json!(status), &json!(restarts))
        );
    }

    #[test]
    fn words_for_pods() {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]});
        let running =
            json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
        check(
            json!({"spec": spec, "status": {"phase": "Pending"}}),
            "0/1",
            "Pending",
            "0",
        );
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [running]}}),
            "1/1",
            "Running",
            "0",
        );
        check(
            json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            "0/1",
            "Init:0/1",
            "1",
        );
        check(
            json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}}),
            "0/1",
            "Init:ExitCode:3",
            "0",
        );
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [{
                "name": "c", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}}]}}),
            "0/1",
            "CrashLoopBackOff",
            "2 (5m ago)",
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
                "status": {"phase": "Running", "containerStatuses": [running]}}),
            "1/1",
            "Terminating",
            "0",
        );
        check(
            json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 1, "signal": 9}}}]}}),
            "0/1",
            "Init:Signal:9",
            "0",
        );
    }

    #[test]
    fn rows_say_which_pods_are_over() {
        let printer = pod();
        let of = |phase: &str| printer.conditions(&json!({"status": {"phase": phase}}));
        assert_eq!(of("Running"), None);
        let over = of("Failed").expect("a condition");
        assert_eq!(
            over,
            json!([{"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}])
        );
    }
}
