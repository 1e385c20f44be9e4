//! Lifecycle hooks, and commands run inside a container.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use tokio::time::{Instant, timeout_at};

use super::{pod, probes};
use crate::runtime::{ExecSpec, Runtime};

/// Output of hooks and probes is for messages only.
const MAX_OUTPUT: usize = 10 * 1024;
/// A hook takes as long as its container lives.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs a command to its end: exit code and output. `None`: that took longer than `limit`, and nothing is left of it.
///
/// # Errors
/// It could not be run.
pub async fn exec(
    runtime: &dyn Runtime,
    id: &str,
    command: Vec<String>,
    limit: Duration,
) -> Result<Option<(i32, String)>, String> {
    let end = Instant::now() + limit;
    let spec = ExecSpec {
        command,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let begun = timeout_at(end, runtime.exec(id, &spec)).await;
    let Ok(begun) = begun else { return Ok(None) };
    let mut session = begun.map_err(|e| e.to_string())?;
    let mut output = Vec::new();
    loop {
        let piece = match timeout_at(end, session.output.next()).await {
            Ok(Some(piece)) => piece.map_err(|e| e.to_string())?,
            Ok(None) => break,
            Err(_) => {
                runtime
                    .end_exec(&session.id)
                    .await
                    .map_err(|e| e.to_string())?;
                return Ok(None);
            }
        };
        let room = MAX_OUTPUT.saturating_sub(output.len());
        output.extend_from_slice(&piece.bytes[..piece.bytes.len().min(room)]);
    }
    // Docker may close the output a moment before it knows the exit code.
    for wait in [0, 5, 20, 50, 100, 200, 500] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if let Some(code) = runtime
            .exit_code(&session.id)
            .await
            .map_err(|e| e.to_string())?
        {
            return Ok(Some((code, String::from_utf8_lossy(&output).into_owned())));
        }
    }
    Err("the command's exit code is not known".into())
}

/// Runs one hook to its end.
///
/// # Errors
/// Why it failed, for the event.
pub async fn run(
    runtime: &dyn Runtime,
    id: &str,
    pod: &Pod,
    container: &Container,
    handler: &LifecycleHandler,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    let of = format!(
        "for Container \"{}\" in Pod \"{}\" failed - error:",
        container.name,
        pod::full_name(&pod::identity(pod))
    );
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let line = command.join(" ");
        let failed = |error: String, output: &str| {
            format!("Exec lifecycle hook ([{line}]) {of} {error}, message: {output:?}")
        };
        return match exec(runtime, id, command, UNLIMITED).await {
            Ok(None | Some((0, _))) => Ok(()),
            Ok(Some((code, output))) => {
                let error = format!("command '{line}' exited with {code}: {output}");
                Err(failed(error, &output))
            }
            Err(e) => Err(failed(e, "")),
        };
    }
    if let Some(action) = &handler.http_get {
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        let path = action.path.as_deref().unwrap_or_default();
        let failed = |error: String| format!("HTTP lifecycle hook ({path}) {of} {error}");
        let (url, headers) = probes::url(action, container, &ip).map_err(failed)?;
        // Whatever it answers, it was told.
        let asked = async { probes::http::Get::new(&url, headers)?.send().await };
        return match asked.await {
            Ok(_) => Ok(()),
            Err(e) => Err(failed(format!("Get \"{url}\": {e}"))),
        };
    }
    if let Some(action) = &handler.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err(format!("invalid handler: {handler:?}"))
}
