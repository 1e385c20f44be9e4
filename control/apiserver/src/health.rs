//! `/healthz`, `/livez`, `/readyz`, their sub-checks, and whether the server is draining.

use std::{pin::Pin, sync::Arc};

use axum::response::Response;
use http::StatusCode;
use tokio::sync::watch;

use crate::{context::Ctx, respond::text, status::Result};

/// Turns false → true once, when shutdown begins.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<bool>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Readiness {
    /// From now on `/readyz` fails and watches end, so that clients go elsewhere.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }

    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes when draining begins.
    pub fn draining(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut receiver = self.0.subscribe();
        let sender = self.0.clone();
        Box::pin(async move {
            // The sender lives as long as this future, so that an error is impossible.
            let _draining = receiver.wait_for(|draining| *draining).await;
            drop(sender);
        })
    }
}

const LIVE: [&str; 2] = ["ping", "log"];
const READY: [&str; 5] = ["ping", "log", "etcd", "informer-sync", "shutdown"];

/// `None`: not a health path.
pub async fn handle(ctx: &Ctx) -> Option<Result<Response>> {
    let path = ctx.info.path.trim_matches('/');
    let (endpoint, check) = path.split_once('/').unwrap_or((path, ""));
    let checks: &[&str] = match endpoint {
        "healthz" => &["ping", "log", "etcd"],
        "livez" => &LIVE,
        "readyz" => &READY,
        _ => return None,
    };
    if !check.is_empty() {
        if !checks.contains(&check) {
            return Some(Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")));
        }
        return Some(match run(ctx, check).await {
            Ok(()) => Ok(text(StatusCode::OK, "ok")),
            Err(why) => {
                let message = format!("internal server error: {why}\n");
                Ok(text(StatusCode::INTERNAL_SERVER_ERROR, message))
            }
        });
    }
    let excluded = ctx.query.all("exclude");
    let mut lines = String::new();
    let mut failed = false;
    for check in checks {
        if excluded.iter().any(|e| e == check) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
            continue;
        }
        match run(ctx, check).await {
            Ok(()) => lines.push_str(&format!("[+]{check} ok\n")),
            Err(why) => {
                tracing::warn!(check, %why, "health check failed");
                failed = true;
                lines.push_str(&format!("[-]{check} failed: reason withheld\n"));
            }
        }
    }
    Some(Ok(if failed {
        lines.push_str(&format!("{endpoint} check failed\n"));
        text(StatusCode::INTERNAL_SERVER_ERROR, lines)
    } else if ctx.query.find("verbose").is_some() {
        lines.push_str(&format!("{endpoint} check passed\n"));
        text(StatusCode::OK, lines)
    } else {
        text(StatusCode::OK, "ok")
    }))
}

async fn run(ctx: &Ctx, check: &str) -> std::result::Result<(), String> {
    match check {
        "etcd" | "informer-sync" => {
            let fresh = ctx.api.storage.fresh().await;
            fresh.map(drop).map_err(|status| status.message)
        }
        "shutdown" if ctx.api.readiness.is_draining() => Err("process is shutting down".to_owned()),
        _ => Ok(()),
    }
}

/// `/version`: the Kubernetes version whose API this is.
pub fn version() -> serde_json::Value {
    serde_json::json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.2",
        "gitCommit": option_env!("SKEP_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("SKEP_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "rust", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}
