//! `cargo xtask check`: what CI holds every change to before it tests.

mod licences;
mod tidy;

use anyhow::{Result, bail};

use crate::{command, progress, setup, workspace};

type Check = fn() -> Result<()>;

pub fn run() -> Result<()> {
    setup::run()?;
    let checks: [(&str, Check); 4] = [
        ("the rules of the tree", tidy::run),
        ("licences", licences::run),
        ("format", format),
        ("clippy", clippy),
    ];
    // All of them, so that one run shows everything there is to mend.
    let failures: Vec<&str> = checks
        .into_iter()
        .filter_map(|(what, check)| {
            let failure = progress::step(&format!("checking {what}"), check).err()?;
            eprintln!("  {failure:#}");
            Some(what)
        })
        .collect();
    if !failures.is_empty() {
        bail!("not as they should be: {}", failures.join(", "));
    }
    Ok(())
}

fn format() -> Result<()> {
    command::program(workspace::cargo())
        .args(["fmt", "--all", "--check"])
        .directory(&workspace::root())
        .run()
}

/// The eBPF programs compile for another target, with a toolchain that brings no clippy: the build script of
/// node-agent/datapath, which this runs, builds them.
fn clippy() -> Result<()> {
    // The end-to-end suite is none of "all targets", as `cargo test` is to leave it out.
    for targets in [&["--all-targets"][..], &["--test", "e2e"]] {
        command::program(workspace::cargo())
            .args(["clippy", "--quiet", "--locked", "--workspace"])
            .args(["--exclude", "skep-ebpf-programs"])
            .args(targets)
            .args(["--", "--deny", "warnings"])
            .directory(&workspace::root())
            .run()?;
    }
    Ok(())
}
