//! `cargo xtask build`: the three binaries, in the release profile.

use anyhow::Result;

use crate::{command, progress, workspace};

/// The packages of the binaries that users run.
pub const PACKAGES: [&str; 3] = ["skep-cli", "skep-server", "skep-agent"];

pub fn run() -> Result<()> {
    progress::step(
        "building skep, skep-control and skep-agent (the first time takes minutes)",
        || {
            let packages = PACKAGES
                .into_iter()
                .flat_map(|package| ["--package", package]);
            command::program(workspace::cargo())
                .args(["build", "--release", "--locked"])
                .args(packages)
                .directory(&workspace::root())
                .run()
        },
    )
}
