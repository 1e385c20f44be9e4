//! `/containerLogs`: what a container has written, and what it goes on to write.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{App, Refused, bad_request};
use crate::runtime::{Observed, OutputStream, State as ContainerState};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Options {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    tail_lines: Option<i64>,
    limit_bytes: Option<u64>,
    stream: Option<String>,
}

fn on(flag: &Option<String>) -> bool {
    flag.as_deref()
        .is_some_and(|v| !matches!(v, "" | "0" | "false" | "False"))
}

pub(super) async fn container(
    State(app): State<App>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Result<Response, Refused> {
    let pod = app.pod(&namespace, &name)?;
    let (_, attempts) = app.attempts(&pod, &container).await?;
    let wanted = choose(&attempts, on(&options.previous)).ok_or_else(|| {
        bad_request(match on(&options.previous) {
            true => {
                format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
            }
            false => {
                let reason = waiting_reason(&pod, &container);
                format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}")
            }
        })
    })?;
    let since = match (&options.since_time, options.since_seconds) {
        (Some(text), _) => Some(text.parse::<Timestamp>().map_err(|e| {
            bad_request(format!(
                "sinceTime: \"{text}\" is not an RFC 3339 time: {e}"
            ))
        })?),
        (None, Some(seconds)) => Some(Timestamp::now() - SignedDuration::from_secs(seconds)),
        (None, None) => None,
    };
    let only = match options.stream.as_deref() {
        Some("Stdout") => Some(OutputStream::Stdout),
        Some("Stderr") => Some(OutputStream::Stderr),
        _ => None,
    };
    let Some(logs) = &app.ctx.logs else {
        return Err(Refused(
            StatusCode::NOT_FOUND,
            "containers of this node have no logs".into(),
        ));
    };
    let read = crate::kubelet::logs::Options {
        // A container that has ended writes nothing more.
        follow: on(&options.follow) && wanted.state == ContainerState::Running,
        since,
        tail_lines: options.tail_lines.and_then(|n| u64::try_from(n).ok()),
        limit_bytes: options.limit_bytes,
        timestamps: on(&options.timestamps),
        stream: only,
    };
    let body = logs.read(wanted, read).await;
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from_stream(body))
        .map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// The newest attempt that has begun, or the one before it.
fn choose(attempts: &[Observed], previous: bool) -> Option<&Observed> {
    let mut begun = attempts.iter().filter(|o| o.started_at.is_some());
    if !previous {
        return begun.next();
    }
    match begun.next() {
        Some(o) if o.state == ContainerState::Running => begun.next(),
        // It waits to be restarted: the last one is the previous one.
        _ => attempts
            .iter()
            .filter(|o| o.started_at.is_some())
            .nth(1)
            .or_else(|| {
                attempts
                    .iter()
                    .find(|o| o.started_at.is_some() && o.state == ContainerState::Exited)
            }),
    }
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == container)
        .and_then(|s| s.state?.waiting?.reason)
        .unwrap_or_else(|| "ContainerCreating".into())
}
