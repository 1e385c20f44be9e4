//! Running other programs, with errors that say which one failed and what it printed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// A program about to be run.
pub struct Program {
    command: Command,
    shown: String,
}

pub fn program(name: impl AsRef<OsStr>) -> Program {
    Program {
        shown: name.as_ref().to_string_lossy().into_owned(),
        command: Command::new(name),
    }
}

/// `program` with its arguments in one string, for those without blanks in them.
pub fn line(words: &str) -> Program {
    let mut words = words.split_whitespace();
    program(words.next().unwrap_or_default()).args(words)
}

impl Program {
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// An argument that is left out of what errors show.
    pub fn hidden_arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs with our own output; an error if it fails.
    pub fn run(mut self) -> Result<()> {
        let status = self
            .command
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run `{}`", self.shown))?;
        if !status.success() {
            bail!("`{}` failed ({status})", self.shown);
        }
        Ok(())
    }

    /// Runs silently and returns what it printed; an error with its standard error if it fails.
    pub fn output(mut self) -> Result<String> {
        let output = self.captured()?;
        if !output.status.success() {
            bail!(
                "`{}` failed ({}): {}",
                self.shown,
                output.status,
                said(&output)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs silently; whether it succeeded. A program that is not there did not.
    pub fn succeeds(mut self) -> bool {
        self.captured().is_ok_and(|output| output.status.success())
    }

    fn captured(&mut self) -> Result<Output> {
        self.command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{}`", self.shown))
    }
}

fn said(output: &Output) -> String {
    let text = if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    String::from_utf8_lossy(text).trim().to_owned()
}

/// Where a program is: on PATH, in cargo's bin directory, or in the system directories that a plain user's PATH lacks.
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    directories.extend(cargo_bin());
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into));
    directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// Where `cargo install` puts programs.
pub fn cargo_bin() -> Option<std::path::PathBuf> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => home.into(),
        None => Path::new(&std::env::var_os("HOME")?).join(".cargo"),
    };
    Some(home.join("bin"))
}
