//! Lifecycle hooks, and commands run inside a container.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::probes;
use crate::runtime::{ExecSpec, Runtime};

/// Output of hooks and probes is for messages only.
const MAX_OUTPUT: usize = 10 * 1024;

/// Runs a command to its end: exit code and output.
///
/// # Errors
/// It could not be run.
pub async fn exec(
    runtime: &dyn Runtime,
    id: &str,
    command: Vec<String>,
) -> Result<(i32, String), String> {
    let spec = ExecSpec {
        command,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let mut session = runtime.exec(id, &spec).await.map_err(|e| e.to_string())?;
    let mut output = Vec::new();
    while let Some(piece) = session.output.next().await {
        let piece = piece.map_err(|e| e.to_string())?;
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
            return Ok((code, String::from_utf8_lossy(&output).into_owned()));
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
    container: &Container,
    handler: &LifecycleHandler,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let (code, output) = exec(runtime, id, command.clone()).await?;
        return match code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {output}",
                command.join(" ")
            )),
        };
    }
    if let Some(action) = &handler.http_get {
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        let (url, headers) = probes::url(action, container, &ip)?;
        return match probes::http_get(&url, &headers).await? {
            (status, _) if (200..400).contains(&status) => Ok(()),
            (status, _) => Err(format!("{url} answered {status}")),
        };
    }
    if let Some(action) = &handler.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err("invalid handler: an exec, httpGet or sleep action is needed".into())
}
