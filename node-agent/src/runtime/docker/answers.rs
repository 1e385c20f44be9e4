//! Docker's answers in the kubelet's words.

use std::collections::HashMap;

use bollard::container::LogOutput;
use bollard::models::{ContainerInspectResponse, HostConfig};
use jiff::Timestamp;

use crate::runtime::{
    ContainerRole, Observed, Output, OutputStream, PodRef, ResourceLimits, Result, RuntimeError,
    State, label,
};

pub(super) fn error(e: bollard::errors::Error) -> RuntimeError {
    use bollard::errors::Error as E;
    match e {
        E::DockerResponseServerError {
            status_code: 404,
            message,
        } => RuntimeError::NotFound(message),
        E::DockerResponseServerError {
            status_code: 409,
            message,
        } => RuntimeError::Conflict(message),
        E::DockerResponseServerError { message, .. } => RuntimeError::Refused(message),
        E::DockerStreamError { error } => RuntimeError::Refused(error),
        E::DockerContainerWaitError { error, .. } => RuntimeError::Refused(error),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            RuntimeError::Unavailable(format!("cannot reach the Docker daemon: {text}"))
        }
    }
}

/// `304 Not Modified` answers a start or stop that was not needed.
pub(super) fn unless_unchanged(
    result: std::result::Result<(), bollard::errors::Error>,
) -> Result<()> {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError {
            status_code: 304, ..
        }) => Ok(()),
        other => other.map_err(error),
    }
}

pub(super) fn time(text: Option<&str>) -> Option<Timestamp> {
    let at: Timestamp = text?.parse().ok()?;
    // Go's zero time means "never".
    (at.as_second() > 0).then_some(at)
}

pub(super) fn role(labels: &HashMap<String, String>) -> ContainerRole {
    match labels.get(label::ROLE).map(String::as_str) {
        Some("podsandbox") => ContainerRole::Sandbox,
        _ => ContainerRole::App,
    }
}

pub(super) fn pod_ref(labels: &HashMap<String, String>) -> PodRef {
    let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
    PodRef {
        namespace: get(label::POD_NAMESPACE),
        name: get(label::POD_NAME),
        uid: get(label::POD_UID),
    }
}

pub(super) fn observed(c: ContainerInspectResponse) -> Observed {
    let config = c.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let state = c.state.unwrap_or_default();
    let running = state.running == Some(true);
    let started_at = time(state.started_at.as_deref());
    let finished_at = time(state.finished_at.as_deref());
    // A container that could not be started stays "created" with an error and an exit code.
    let failed = state.error.as_ref().is_some_and(|e| !e.is_empty());
    Observed {
        id: c.id.unwrap_or_default(),
        role: role(&labels),
        pod: pod_ref(&labels),
        name: labels
            .get(label::CONTAINER_NAME)
            .cloned()
            .unwrap_or_default(),
        attempt: labels
            .get(label::ATTEMPT)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
        state: match (
            running,
            started_at.is_some() || finished_at.is_some() || failed,
        ) {
            (true, _) => State::Running,
            (false, true) => State::Exited,
            (false, false) => State::Created,
        },
        pid: state
            .pid
            .filter(|pid| *pid > 0)
            .and_then(|pid| u32::try_from(pid).ok()),
        created_at: time(c.created.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at,
        finished_at: finished_at.filter(|_| !running),
        exit_code: state.exit_code.unwrap_or(0) as i32,
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        image: config.image.unwrap_or_default(),
        image_id: c.image.unwrap_or_default(),
        limits: c.host_config.map(limits).unwrap_or_default(),
        layer_path: c
            .graph_driver
            .and_then(|driver| driver.data.get("UpperDir").map(Into::into)),
        log_path: c.log_path.filter(|path| !path.is_empty()).map(Into::into),
        labels: labels.into_iter().collect(),
    }
}

/// Docker says 0 for what is not limited.
fn limits(host: HostConfig) -> ResourceLimits {
    let set = |value: Option<i64>| value.filter(|v| *v > 0);
    ResourceLimits {
        cpu_shares: set(host.cpu_shares),
        cpu_quota_us: set(host.cpu_quota),
        cpu_period_us: set(host.cpu_period),
        memory_bytes: set(host.memory),
        oom_score_adj: host.oom_score_adj,
        pids: set(host.pids_limit),
    }
}

pub(super) fn output(
    item: std::result::Result<LogOutput, bollard::errors::Error>,
) -> Result<Output> {
    Ok(match item.map_err(error)? {
        LogOutput::StdErr { message } => Output {
            stream: OutputStream::Stderr,
            bytes: message,
        },
        LogOutput::StdOut { message }
        | LogOutput::Console { message }
        | LogOutput::StdIn { message } => Output {
            stream: OutputStream::Stdout,
            bytes: message,
        },
    })
}
