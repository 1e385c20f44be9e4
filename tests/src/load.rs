//! Request load from any place of a cluster: the report of `skep-load`, and running it.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use xtask::cluster::place::Place;
use xtask::workspace;

use crate::wait::wait_for;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// Each connection carries requests until it is closed
    KeepAlive,
    /// Each request opens a connection
    New,
}

impl Connections {
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::New => "new",
        }
    }
}

/// What to send where.
#[derive(Clone, Debug)]
pub struct Load {
    pub place: Place,
    /// ADDRESS:PORT
    pub target: String,
    pub connections: Connections,
    pub clients: usize,
    /// Between two requests of one client.
    pub pause: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub requests: u64,
    /// No connection, no answer in time, an answer cut short, or another status than 200.
    pub failed: u64,
    /// A kept connection was closed before an answer began, and the request went over a new one, as RFC 9110 §9.2.2
    /// lets clients do it.
    pub reconnected: u64,
    pub seconds: f64,
    pub requests_per_second: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// The longest wait for one answer.
    pub max_us: u64,
    /// The first failures, with the time since the start.
    pub failures: Vec<String>,
}

/// Two targets by turns, A B B A and B A A B: what disturbs one disturbs the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Of the target and of the one beside it.
    pub reports: [Report; 2],
    /// Requests per second, of each four turns.
    pub rates: [Vec<f64>; 2],
}

/// A load generator at work.
pub struct RunningLoad {
    child: Child,
}

impl Load {
    pub fn new(place: Place, target: impl Into<String>, connections: Connections) -> Self {
        Self {
            place,
            target: target.into(),
            connections,
            clients: 4,
            pause: Duration::from_millis(2),
        }
    }

    /// Runs for a time.
    pub fn run(&self, duration: Duration) -> Result<Report> {
        self.spawn(Some(duration))?.finish()
    }

    /// Runs until [`RunningLoad::stop`].
    pub fn start(&self) -> Result<RunningLoad> {
        self.spawn(None)
    }

    fn spawn(&self, duration: Option<Duration>) -> Result<RunningLoad> {
        let mut command = self.place.command(binary())?;
        command
            .arg(&self.target)
            .args(["--connections", self.connections.name()])
            .args(["--clients", &self.clients.to_string()])
            .args(["--pause-us", &self.pause.as_micros().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(duration) = duration {
            command.args(["--seconds", &duration.as_secs_f64().to_string()]);
        }
        Ok(RunningLoad {
            child: command.spawn().context("cannot start skep-load")?,
        })
    }
}

impl RunningLoad {
    /// Ends the load and says what came of it.
    pub fn stop(self) -> Result<Report> {
        let process = xtask::cluster::process::Process::running(self.child.id())
            .context("skep-load ended early")?;
        xtask::command::line(&format!("kill -TERM {}", process.pid())).output()?;
        self.finish()
    }

    fn finish(mut self) -> Result<Report> {
        let mut text = String::new();
        self.child
            .stdout
            .take()
            .context("no output")?
            .read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "skep-load ended with {status}");
        serde_json::from_str(&text).with_context(|| format!("skep-load printed {text:?}"))
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        // A test that failed does not stop its load.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Report {
    pub fn ensure_no_failures(&self, during: &str) -> Result<()> {
        ensure!(self.requests > 0, "no request was made during {during}");
        ensure!(
            self.failed == 0,
            "{} of {} requests failed during {during}: {}",
            self.failed,
            self.requests,
            self.failures.join("; ")
        );
        Ok(())
    }
}

fn binary() -> PathBuf {
    workspace::binary("skep-load")
}

/// Waits until a target answers at all.
pub fn wait_until_answers(place: &Place, target: &str) -> Result<()> {
    wait_for(
        &format!("{target} to answer"),
        Duration::from_secs(30),
        || {
            let probe = Load {
                clients: 1,
                ..Load::new(place.clone(), target, Connections::New)
            };
            probe
                .run(Duration::from_millis(100))?
                .ensure_no_failures("a probe")
        },
    )
}
