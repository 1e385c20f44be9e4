//! Starting a program as a process of a node: inside a network namespace and a cgroup.
//!
//! A process can only move itself, so a shell does it and then becomes the program: the process id stays the same.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::command::{Program, program};
use crate::setup;

/// A network namespace by name and a cgroup below the cgroup2 mount; `None` means our own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub namespace: Option<String>,
    pub cgroup: Option<PathBuf>,
}

/// $1 is a cgroup.procs file or empty, $2 a network namespace or empty, $3 `listen` if standard input is a listening
/// socket that the program shall find as systemd hands it over. `nsenter` rather than `ip netns exec`, which would
/// mount a new /sys and hide the cgroups and pins.
const LAUNCH: &str = r#"
set -e
if [ -n "$1" ]; then echo $$ > "$1"; fi
namespace="$2"
if [ "$3" = listen ]; then
  exec 3<&0 </dev/null
  export LISTEN_FDS=1 LISTEN_PID=$$
fi
shift 3
if [ -n "$namespace" ]; then exec nsenter --net="/run/netns/$namespace" -- "$@"; fi
exec "$@"
"#;

impl Place {
    /// The words of a command line that runs what follows them in this place.
    ///
    /// # Errors
    /// If the cgroup cannot be made.
    pub fn launcher(&self, listens: bool) -> Result<Vec<String>> {
        let procs = match &self.cgroup {
            Some(cgroup) => {
                let directory = cgroup_directory(cgroup)?;
                std::fs::create_dir_all(&directory)
                    .with_context(|| format!("cannot make the cgroup {}", directory.display()))?;
                directory
                    .join("cgroup.procs")
                    .to_string_lossy()
                    .into_owned()
            }
            None => String::new(),
        };
        let namespace = self.namespace.clone().unwrap_or_default();
        let listen = if listens { "listen" } else { "" };
        Ok(["sh", "-c", LAUNCH, "launch", &procs, &namespace, listen]
            .map(str::to_owned)
            .to_vec())
    }

    /// A program in this place, to be run to its end.
    pub fn program(&self, name: impl AsRef<std::ffi::OsStr>) -> Result<Program> {
        let words = self.launcher(false)?;
        let launcher = words[1..]
            .iter()
            .fold(program(&words[0]), |launcher, word| {
                launcher.hidden_arg(word)
            });
        Ok(launcher.arg(name))
    }

    /// The same as a plain [`Command`], to be spawned.
    pub fn command(&self, name: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let words = self.launcher(false)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(name).stdin(Stdio::null());
        Ok(command)
    }
}

/// The folder of a cgroup in the cgroup2 mount.
pub fn cgroup_directory(cgroup: &Path) -> Result<PathBuf> {
    let mount = setup::cgroup2_mount().context("no cgroup2 is mounted: run `cargo xtask setup`")?;
    Ok(mount.join(cgroup.strip_prefix("/").unwrap_or(cgroup)))
}
