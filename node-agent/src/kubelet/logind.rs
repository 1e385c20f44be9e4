//! systemd-logind holds the machine's shutdown back until the node's pods have ended (KEP-2000).
//!
//! ```text
//! lock held ─ PrepareForShutdown(true) ─ pods end ─ lock let go ─ the machine stops
//!     └──────── PrepareForShutdown(false): it goes on after all ────────┘
//! ```
//!
//! logind waits no longer than `InhibitDelayMaxSec` (5 s by default). Where pods have longer than that, a file in its
//! `logind.conf.d` says so, as the kubelet's does. Where there is no logind, SIGPWR tells of a shutdown.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zbus::wire::OwnedFd;

use super::Context;
use super::shutdown::{self, Periods};

const CONF_DIR: &str = "/etc/systemd/logind.conf.d";
const CONF_FILE: &str = "99-skep.conf";
const UNIT: &str = "systemd-logind.service";
/// Between two attempts to reach logind, at first and at most: it may start after the agent.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long it may take to read its files again.
const RELOAD: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
}

/// Where logind is.
#[derive(Debug, Clone)]
pub struct Logind {
    /// The D-Bus address; `None`: the system's bus.
    pub bus: Option<String>,
    /// Files here change what logind does.
    pub conf_dir: PathBuf,
}

impl Default for Logind {
    fn default() -> Self {
        Self {
            bus: None,
            conf_dir: CONF_DIR.into(),
        }
    }
}

/// Ends the node's pods whenever logind says that the machine stops, until `stop`.
pub async fn run(ctx: Arc<Context>, periods: Periods, logind: Logind, stop: CancellationToken) {
    let mut wait = RETRY;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = follow(&ctx, &periods, &logind) => ended,
        };
        match ended {
            Err(Failure::NotThere(why)) if wait == RETRY => {
                info!(%why, "no logind; SIGPWR tells when the machine stops");
            }
            Err(Failure::NotThere(_)) => {}
            Err(Failure::Lost) => {
                warn!("logind is lost; it is asked again");
                wait = RETRY;
            }
            Ok(never) => match never {},
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Removes what was said to logind in a file. It holds until logind reads its files again.
///
/// # Errors
/// When a file that is there cannot be removed.
pub fn clear(logind: &Logind) -> io::Result<()> {
    match std::fs::remove_file(logind.conf_dir.join(CONF_FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

enum Failure {
    NotThere(zbus::Error),
    /// It was there.
    Lost,
}

impl From<zbus::Error> for Failure {
    fn from(e: zbus::Error) -> Self {
        Self::NotThere(e)
    }
}

async fn follow(ctx: &Context, periods: &Periods, logind: &Logind) -> Result<Infallible, Failure> {
    let bus = match &logind.bus {
        Some(address) => zbus::connection::Builder::address(address.as_str()),
        None => zbus::connection::Builder::system(),
    };
    let bus = bus.build().await?;
    let manager = ManagerProxy::new(&bus).await?;
    let mut signals = manager.receive_prepare_for_shutdown().await?;
    let mut lock = Some(hold(&manager).await?);
    grant(&bus, &manager, periods.total(), &logind.conf_dir).await;
    info!(
        seconds = periods.total().as_secs(),
        "logind waits for the node's pods"
    );
    while let Some(signal) = signals.next().await {
        if signal.args()?.start {
            shutdown::run(ctx, periods).await;
            drop(lock.take());
        } else {
            info!("the machine goes on");
            ctx.shutdown.cancel();
            lock = Some(hold(&manager).await.map_err(|_| Failure::Lost)?);
        }
    }
    Err(Failure::Lost)
}

/// logind waits as long as the answer is open.
async fn hold(manager: &ManagerProxy<'_>) -> zbus::Result<OwnedFd> {
    let why = "Pods of the node have to end first";
    manager
        .inhibit("shutdown", "skep-agent", why, "delay")
        .await
}

/// Makes sure that logind waits as long as pods have, or says that it does not.
async fn grant(
    bus: &zbus::Connection,
    manager: &ManagerProxy<'_>,
    asked: Duration,
    conf_dir: &Path,
) {
    let granted = async || {
        let usec = manager.inhibit_delay_max_usec().await;
        Duration::from_micros(usec.unwrap_or(0))
    };
    if granted().await >= asked {
        return;
    }
    if let Err(why) = ask(bus, asked, conf_dir).await {
        warn!(%why, "cannot tell logind how long pods have");
    }
    let end = tokio::time::Instant::now() + RELOAD;
    loop {
        let granted = granted().await;
        if granted >= asked {
            return;
        }
        if tokio::time::Instant::now() > end {
            warn!(
                asked = asked.as_secs(),
                granted = granted.as_secs(),
                "logind waits less than pods have; set InhibitDelayMaxSec in logind.conf"
            );
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn ask(bus: &zbus::Connection, asked: Duration, conf_dir: &Path) -> Result<(), String> {
    let file = conf_dir.join(CONF_FILE);
    let text = format!(
        "# Written by skep-agent: pods have as long to end.\n[Login]\nInhibitDelayMaxSec={}\n",
        asked.as_secs()
    );
    std::fs::create_dir_all(conf_dir)
        .and_then(|()| std::fs::write(&file, text))
        .map_err(|e| format!("{}: {e}", file.display()))?;
    let systemd = SystemdProxy::new(bus).await.map_err(|e| e.to_string())?;
    systemd
        .kill_unit(UNIT, "main", Signal::SIGHUP as i32)
        .await
        .map_err(|e| format!("{UNIT} is not told to read {}: {e}", file.display()))
}
