//! The command lines that people use: the real kubectl, and skep's own.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// No command of a story takes longer, unless it hangs.
const LIMIT_SECONDS: &str = "100";
/// What timeout(1) exits with when it had to end the command.
const TIMED_OUT: i32 = 124;

/// A command-line client of one cluster and one namespace.
#[derive(Clone, Debug)]
pub struct Client {
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

/// A command that serves something, ended when it is dropped.
#[derive(Debug)]
pub struct Serving(Child);

impl Serving {
    /// Writes to its standard input, which stays open.
    pub fn give(&mut self, text: &str) -> Result<()> {
        let input = self.0.stdin.as_mut().context("its input was taken")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    /// The next line that it prints; an error when it ends instead.
    pub fn line(&mut self) -> Result<String> {
        let output = self.0.stdout.as_mut().context("its output was taken")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while output.read(&mut byte)? == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        ensure!(!line.is_empty(), "the command ended: {:?}", self.0.wait()?);
        Ok(String::from_utf8(line)?)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Client {
    pub fn new(program: impl Into<PathBuf>, kubeconfig: &Path, namespace: &str) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// `kubectl` or `skep`.
    pub fn name(&self) -> String {
        self.program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    pub fn path(&self) -> &Path {
        &self.program
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // A command that hangs is a failure to report, not a reason to hang too.
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", LIMIT_SECONDS])
            .arg(&self.program);
        self.completed(command, arguments)
    }

    fn completed(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Starts a command that serves until it is dropped; what it prints is there to be read.
    pub fn start(&self, arguments: &[&str]) -> Result<Serving> {
        let child = self
            .completed(Command::new(&self.program), arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        Ok(Serving(child))
    }

    /// Runs a command that may fail.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Outcome> {
        let output = self
            .command(arguments)
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if output.status.code() == Some(TIMED_OUT) {
            bail!(
                "`{} {}` hung for {LIMIT_SECONDS} s",
                self.name(),
                arguments.join(" ")
            );
        }
        Ok(Outcome {
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.attempt(arguments)?;
        if !outcome.succeeded {
            bail!(
                "`{} {}` failed: {}",
                self.name(),
                arguments.join(" "),
                outcome.stderr.trim()
            );
        }
        Ok(outcome.stdout)
    }

    /// Runs a command that must succeed and print something.
    pub fn expect(&self, arguments: &[&str], printed: &str) -> Result<String> {
        let stdout = self.run(arguments)?;
        if !stdout.contains(printed) {
            bail!(
                "`{} {}` printed {stdout:?}, not {printed:?}",
                self.name(),
                arguments.join(" ")
            );
        }
        Ok(stdout)
    }

    /// Runs a command that must fail and say something.
    pub fn refuse(&self, arguments: &[&str], said: &str) -> Result<String> {
        let outcome = self.attempt(arguments)?;
        if outcome.succeeded {
            bail!(
                "`{} {}` succeeded; expected {said:?}",
                self.name(),
                arguments.join(" ")
            );
        }
        let output = format!("{}{}", outcome.stdout, outcome.stderr);
        if !output.contains(said) {
            bail!(
                "`{} {}` said {output:?}, not {said:?}",
                self.name(),
                arguments.join(" ")
            );
        }
        Ok(output)
    }

    /// `get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get"], arguments, &["-o", "json"]].concat();
        let text = self.run(&arguments)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`{}` printed no JSON", arguments.join(" ")))
    }
}
