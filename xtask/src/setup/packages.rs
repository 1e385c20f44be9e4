//! Debian packages.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{command, progress};

/// A program, what we need it for, and the Debian package that brings it.
#[derive(Clone, Copy)]
pub(super) struct Package {
    pub name: &'static str,
    pub program: &'static str,
    pub purpose: &'static str,
}

/// Installs packages with apt-get.
///
/// # Errors
/// Says why it cannot be done here at all (no apt, no root), or what apt said.
pub(super) fn install(packages: &[Package]) -> Result<()> {
    if command::find("apt-get").is_none() {
        bail!("there is no apt-get on this system");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing packages needs root");
    }
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name).collect();
    let shown = names.iter().copied().collect::<Vec<_>>().join(" ");
    progress::step(&format!("installing Debian packages: {shown}"), || {
        refresh()?;
        apt(&["install", "--yes", "--no-install-recommends"], &names)
    })
}

/// Fetches packages without installing them, and unpacks them into a folder.
///
/// # Errors
/// There is no apt, or it cannot fetch them.
pub fn unpack(names: &[&str], into: &Path) -> Result<()> {
    let archives = into.with_extension("debs");
    // apt's own user must be able to write here, or it warns.
    std::fs::create_dir_all(&archives)?;
    std::fs::create_dir_all(into)?;
    let download = || {
        command::program("apt-get")
            .args(["download", "--quiet=2"])
            .args(names)
            .directory(&archives)
            .output()
            .map(drop)
    };
    // An empty or old package list is the usual reason for a failure.
    download()
        .or_else(|_| refresh().and_then(|()| download()))
        .with_context(|| format!("cannot fetch the Debian packages {}", names.join(" ")))?;
    for entry in std::fs::read_dir(&archives)? {
        let archive = entry?.path();
        command::program("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(into)
            .output()?;
    }
    std::fs::remove_dir_all(&archives)?;
    Ok(())
}

fn refresh() -> Result<()> {
    apt(&["update"], &BTreeSet::new())
}

fn apt(words: &[&str], names: &BTreeSet<&str>) -> Result<()> {
    command::program("apt-get")
        .args(["--quiet=2", "-o", "Dpkg::Use-Pty=0"])
        .args(words)
        .args(names)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}
