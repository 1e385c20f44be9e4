//! `cargo xtask codegen`: the table of built-in types. The generator is an example of the crate that holds the table,
//! so that xtask itself stays quick to build.

use anyhow::Result;

use crate::{command, workspace};

pub fn run() -> Result<()> {
    command::program(workspace::cargo())
        .args([
            "run",
            "--quiet",
            "--package",
            "skep-schema",
            "--example",
            "codegen",
        ])
        .directory(&workspace::root())
        .run()
}
