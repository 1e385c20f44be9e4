//! Where things are in the tree.

use std::path::{Path, PathBuf};

/// The root of the checkout. cargo says where xtask's manifest is; the path compiled in serves a binary that is run
/// without cargo, as the supervisor is.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// cargo's target directory.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// One of our binaries, as `cargo xtask build` leaves it.
pub fn binary(name: &str) -> PathBuf {
    binaries().join(name)
}

/// target/release, unless `SKEP_BINARIES` names another folder: the tests' is target/debug.
pub fn binaries() -> PathBuf {
    match std::env::var_os("SKEP_BINARIES") {
        Some(folder) => root().join(folder),
        None => target().join("release"),
    }
}

/// The cargo that runs us, or the one on PATH.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
