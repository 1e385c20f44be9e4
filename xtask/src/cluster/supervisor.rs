//! Keeps one program of a cluster running: what systemd does for skep on a machine that runs it.
//!
//! It holds the listening socket on the root namespace's loopback, so that connections wait in the backlog instead of
//! being refused while the program restarts.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::place::Place;
use super::process::{Process, Supervised};

/// Between the end of the program and its next start; doubles while it does not stay up.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Having run this long, it counts as having been up.
const STABLE: Duration = Duration::from_secs(10);

/// What to run, and where.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spec {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub place: Place,
    /// Handed over as LISTEN_FDS=1. It is made in our namespace, not in the program's.
    pub listen: Option<SocketAddr>,
    pub log: PathBuf,
    /// When the program's file was made, in seconds since 1970: a newer one is reason to restart.
    pub built: u64,
}

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    name: String,
    /// Where the records are
    #[arg(long)]
    directory: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let supervised = Supervised::new(&options.directory, &options.name);
    let spec = supervised.spec()?;
    let listener: Option<OwnedFd> = match spec.listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?
                .into(),
        ),
        None => None,
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let start = Instant::now();
        let outcome = run_once(&supervised, &spec, listener.as_ref());
        if start.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        match outcome {
            Ok(status) => eprintln!(
                "supervisor: {} ended: {status}; next start in {pause:?}",
                options.name
            ),
            Err(error) => eprintln!(
                "supervisor: {}: {error:#}; next try in {pause:?}",
                options.name
            ),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn run_once(
    supervised: &Supervised,
    spec: &Spec,
    listener: Option<&OwnedFd>,
) -> Result<ExitStatus> {
    let words = spec.place.launcher(listener.is_some())?;
    let input = match listener {
        Some(socket) => Stdio::from(socket.try_clone()?),
        None => Stdio::null(),
    };
    let log = File::options().create(true).append(true).open(&spec.log)?;
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .arg(&spec.program)
        .args(&spec.arguments)
        .stdin(input)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", spec.program.display()))?;
    if let Some(process) = Process::running(child.id()) {
        supervised.write_process(process)?;
    }
    Ok(child.wait()?)
}
