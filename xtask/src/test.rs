//! `cargo xtask test`: everything that CI runs, on a machine that may have nothing yet.
//!
//! One build in the dev profile serves the binaries, the unit tests and the end-to-end suite: it takes a quarter of the
//! optimizer's time, and arithmetic that overflows and debug assertions fail in it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::cluster::{Store, down};
use crate::{check, command, progress, setup, workspace};

#[derive(Args)]
pub struct Options {
    /// Only the end-to-end suite, and in it only stories whose name contains one of these words
    words: Vec<String>,
    /// Stores to run the end-to-end suite with [default: redb and etcd]
    #[arg(long, value_enum)]
    store: Vec<Store>,
    /// Leave out the checks of format, lints and licences
    #[arg(long)]
    no_check: bool,
    /// Leave out the tests of the crates
    #[arg(long)]
    no_unit: bool,
    /// Leave out the end-to-end suite
    #[arg(long)]
    no_e2e: bool,
}

/// The BPF programs are not built for this machine: node-agent/datapath builds them.
const ALL_BUT_PROGRAMS: [&str; 3] = ["--workspace", "--exclude", "skep-ebpf-programs"];

const END_TO_END: [&str; 2] = ["--test", "e2e"];

pub fn run(options: &Options) -> Result<()> {
    setup::run_for_tests()?;
    let only_stories = !options.words.is_empty();
    let mut total = Tally::default();

    if !options.no_check && !only_stories {
        total.add(tally_of(check::run(), "check"));
    }
    progress::step(
        "building everything, tests included (the first time takes many minutes)",
        build,
    )?;
    if !options.no_unit && !only_stories {
        total.add(progress::step(
            "running the tests of the crates",
            unit_tests,
        )?);
    }
    if !options.no_e2e {
        let stores = if options.store.is_empty() {
            &[Store::Redb, Store::Etcd][..]
        } else {
            &options.store
        };
        for store in stores {
            let name = format!("running the end-to-end suite on {}", store.name());
            total.add(progress::step(&name, || {
                end_to_end(*store, &options.words)
            })?);
        }
    }
    // Docker too, if it was we who started it.
    down::stop_docker_if_unused()?;

    println!("\n{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("{} test(s) failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

fn build() -> Result<()> {
    command::program(workspace::cargo())
        .args(["build", "--locked"])
        .args(ALL_BUT_PROGRAMS)
        .args(["--lib", "--bins", "--tests"])
        .directory(&workspace::root())
        .run()?;
    // `--tests` leaves it out, as `cargo test` is to do.
    command::program(workspace::cargo())
        .args(["build", "--locked"])
        .args(ALL_BUT_PROGRAMS)
        .args(END_TO_END)
        .directory(&workspace::root())
        .run()
}

fn unit_tests() -> Result<Tally> {
    let mut command = Command::new(workspace::cargo());
    if command::find("cargo-nextest").is_some() {
        command.args([
            "nextest",
            "run",
            "--no-fail-fast",
            "--status-level",
            "fail",
            "--final-status-level",
            "fail",
        ]);
    } else {
        command.args(["test", "--no-fail-fast", "--lib", "--bins", "--tests"]);
    }
    command.arg("--locked").args(ALL_BUT_PROGRAMS);
    counted(command)
}

fn end_to_end(store: Store, words: &[String]) -> Result<Tally> {
    let binaries = workspace::target().join("debug");
    let mut command = Command::new(workspace::cargo());
    command
        .args(["test", "--quiet", "--locked"])
        .args(ALL_BUT_PROGRAMS)
        .args(END_TO_END)
        .args(["--", "--store", store.name()])
        .args(words)
        // Not this program's own file, which the build may have replaced.
        .env("SKEP_XTASK", binaries.join("xtask"))
        .env("SKEP_BINARIES", binaries);
    counted(command)
}

/// Runs a test runner, passes on what it prints, and counts by its closing lines.
fn counted(mut command: Command) -> Result<Tally> {
    let shown = format!("{command:?}");
    // nextest reports on standard error, cargo test on standard output: both go through one pipe.
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    // It holds the writing end, which must close when the child ends.
    drop(command);
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if let Some(counted) = closing_line(&line) {
            tally.add(counted);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not come to testing: a build error, or a crash.
        tally.failed = 1;
    }
    Ok(tally)
}

fn tally_of(result: Result<()>, what: &str) -> Tally {
    match result {
        Ok(()) => Tally {
            passed: 1,
            failed: 0,
        },
        Err(error) => {
            println!("{what} failed: {error:#}");
            Tally {
                passed: 0,
                failed: 1,
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

/// `test result: ok. 3 passed; 0 failed; …`, `Summary [ 1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 0 skipped`, or our
/// own `e2e on redb: 3 passed, 0 failed`.
fn closing_line(line: &str) -> Option<Tally> {
    let plain = without_colours(line);
    let plain = plain.trim();
    let ours = plain.starts_with("e2e on ") && plain.contains(" passed");
    if !ours && !plain.starts_with("test result:") && !plain.starts_with("Summary [") {
        return None;
    }
    Some(Tally {
        passed: number_before(plain, "passed")?,
        failed: number_before(plain, "failed").unwrap_or(0)
            + number_before(plain, "timed out").unwrap_or(0),
    })
}

fn number_before(text: &str, word: &str) -> Option<u64> {
    let before = text
        .split(word)
        .next()
        .filter(|before| before.len() < text.len())?;
    before.trim_end().rsplit(' ').next()?.parse().ok()
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines() {
        let counted = |line| closing_line(line).map(|tally| (tally.passed, tally.failed));
        assert_eq!(
            counted("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured"),
            Some((3, 0))
        );
        assert_eq!(
            counted("     Summary [   1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped"),
            Some((4, 1))
        );
        assert_eq!(
            counted("\u{1b}[1m     Summary\u{1b}[0m [ 1s] 9 tests run: 9 passed, 0 skipped"),
            Some((9, 0))
        );
        assert_eq!(
            counted("Summary [ 1s] 9 tests run: 7 passed, 1 failed, 1 timed out, 0 skipped"),
            Some((7, 2))
        );
        assert_eq!(counted("e2e on redb: 15 passed, 2 failed"), Some((15, 2)));
        assert_eq!(counted("e2e on redb: 15 stories on 3 nodes"), None);
        assert_eq!(counted("ok      a story that passed"), None);
    }
}
