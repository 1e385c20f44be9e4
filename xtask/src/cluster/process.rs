//! Long-running programs: started under our supervisor, found again by a recorded process id and start time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::supervisor::Spec;

/// How long a program may take to end after SIGTERM.
const TERMINATION: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// In clock ticks since boot: field 22 of /proc/PID/stat, see proc(5).
    start_time: u64,
}

impl Process {
    /// The process with this id, if it runs.
    pub fn running(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self {
            pid,
            start_time: start_time(pid)?,
        })
    }

    pub fn pid(self) -> i32 {
        self.pid
    }

    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Asks it to end, insists after a while, and returns once it is gone.
    pub fn stop(self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.is_gone_within(TERMINATION) {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        if self.is_gone_within(TERMINATION) {
            return Ok(());
        }
        bail!("process {} does not end", self.pid)
    }

    fn is_gone_within(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// `None` if there is no such process, or if it has ended and only waits for its parent.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name in parentheses may contain anything, so the fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, start_time) = (fields.first()?, fields.get(19)?);
    if matches!(*state, "Z" | "X") {
        return None;
    }
    start_time.parse().ok()
}

/// A program that our supervisor keeps running, known by a name in a folder of records.
#[derive(Clone, Debug)]
pub struct Supervised {
    directory: PathBuf,
    name: String,
}

impl Supervised {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: name.to_owned(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program itself, if it runs now.
    pub fn process(&self) -> Option<Process> {
        self.record("process")
    }

    pub fn supervisor(&self) -> Option<Process> {
        self.record("supervisor")
    }

    /// Starts it; if it runs with this very specification already, leaves it alone.
    pub(crate) fn start(&self, spec: &Spec) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let file = self.file("spec");
        let text = serde_json::to_vec_pretty(spec)?;
        if self.supervisor().is_some() {
            if std::fs::read(&file).is_ok_and(|running| running == text) {
                return Ok(());
            }
            self.stop()?;
        }
        std::fs::write(&file, text)?;
        if let Some(folder) = spec.log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = File::options().create(true).append(true).open(&spec.log)?;
        // A session of its own: it survives our terminal.
        let child = Command::new("setsid")
            .arg(std::env::current_exe()?)
            .args(["supervise", "--name", &self.name, "--directory"])
            .arg(&self.directory)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the supervisor")?;
        let supervisor = Process::running(child.id()).context("the supervisor ended at once")?;
        self.write("supervisor", supervisor)
    }

    /// Stops it for good. Nothing to do if it does not run.
    pub fn stop(&self) -> Result<()> {
        if let Some(supervisor) = self.supervisor() {
            supervisor.signal(Signal::SIGKILL)?;
            if !supervisor.is_gone_within(TERMINATION) {
                bail!("the supervisor of {} does not end", self.name);
            }
        }
        if let Some(process) = self.process() {
            process
                .stop()
                .with_context(|| format!("cannot stop {}", self.name))?;
        }
        for kind in ["supervisor", "process", "spec"] {
            match std::fs::remove_file(self.file(kind)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn spec(&self) -> Result<Spec> {
        let file = self.file("spec");
        let text =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(super) fn write_process(&self, process: Process) -> Result<()> {
        self.write("process", process)
    }

    fn record(&self, kind: &str) -> Option<Process> {
        let text = std::fs::read(self.file(kind)).ok()?;
        let process: Process = serde_json::from_slice(&text).ok()?;
        process.is_alive().then_some(process)
    }

    fn write(&self, kind: &str, process: Process) -> Result<()> {
        // Replaced as a whole: a reader never sees half a record.
        let temporary = self.file(&format!("{kind}.new"));
        std::fs::write(&temporary, serde_json::to_vec(&process)?)?;
        Ok(std::fs::rename(temporary, self.file(kind))?)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}.json", self.name))
    }
}

/// Polls until `check` succeeds; when time is up, says what was seen last.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > deadline => {
                bail!("waited {} s for {what}; last seen: {last}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(POLL * 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_counted_from_the_end_of_the_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(parse_start_time(&format!("7 (a) b) {rest}")), Some(4242));
        assert_eq!(
            parse_start_time(&format!("7 (a) {}", rest.replacen('S', "Z", 1))),
            None
        );
        assert_eq!(parse_start_time("7 (a) S 1"), None);
    }

    #[test]
    fn a_recorded_process_is_not_a_later_one_with_its_id() {
        let ourselves = Process::running(std::process::id()).unwrap();
        assert!(ourselves.is_alive());
        assert!(
            !Process {
                start_time: ourselves.start_time + 1,
                ..ourselves
            }
            .is_alive()
        );
    }
}
