//! The Docker daemon: found running, started by systemd, or started by us and then kept running by our supervisor.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cluster::process::Supervised;
use crate::cluster::supervisor::Spec;
use crate::{command, progress};

/// skep makes the pod network itself: Docker must not write iptables rules nor make a bridge. Live restore keeps the
/// containers running when the daemon goes.
const ARGUMENTS: [&str; 4] = [
    "--iptables=false",
    "--ip-masq=false",
    "--bridge=none",
    "--live-restore",
];

/// What every cluster of this machine shares.
pub(crate) const RUN_DIRECTORY: &str = "/run/skep";

/// The same for a daemon that systemd will start as soon as its package is installed.
const CONFIGURATION: &str = r#"{"iptables": false, "ip-masq": false, "bridge": "none", "live-restore": true}
"#;

/// Settings for a Docker that we are about to install. One that is there already keeps its own.
pub(super) fn configure_before_first_start() -> Result<()> {
    let file = Path::new("/etc/docker/daemon.json");
    if !has_systemd() || file.exists() || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    std::fs::create_dir_all("/etc/docker")?;
    std::fs::write(file, CONFIGURATION)?;
    progress::note(
        "Docker gets /etc/docker/daemon.json: no bridge and no iptables rules of its own",
    );
    Ok(())
}

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

pub fn is_running() -> bool {
    command::line("docker version --format {{.Server.Version}}").succeeds()
}

/// Makes sure that a daemon answers.
pub(crate) fn start() -> Result<()> {
    if is_running() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("Docker does not answer: start it, and make sure that this user may talk to it");
    }
    progress::step("starting the Docker daemon", || {
        if has_systemd() {
            command::line("systemctl start docker").run()?;
        } else {
            supervised().start(&Spec {
                program: command::find("dockerd").unwrap_or_else(|| PathBuf::from("dockerd")),
                arguments: ARGUMENTS.map(str::to_owned).to_vec(),
                log: Path::new(RUN_DIRECTORY).join("dockerd.log"),
                ..Spec::default()
            })?;
        }
        crate::cluster::process::wait_for("Docker to answer", Duration::from_secs(60), || {
            is_running()
                .then_some(())
                .ok_or_else(|| "no answer yet".to_owned())
        })
    })
}

/// Stops the daemon if it was we who started it.
pub(crate) fn stop() -> Result<()> {
    supervised().stop()
}

/// The daemon that we started, if we did.
pub fn supervised() -> Supervised {
    Supervised::new(Path::new(RUN_DIRECTORY), "dockerd")
}
