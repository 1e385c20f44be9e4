//! The toolchain for the BPF target: a rustc that may use unstable options, the source of `core`, and bpf-linker.
//!
//! Two ways lead there: rustup's nightly with rust-src, or Debian's rustc-web with rust-web-src.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::packages::Package;
use crate::{command, progress};

/// bpf-linker is built against this LLVM, which is the one inside Debian's rustc-web.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";
const LINKER_VERSION: &str = "0.13.0";

const DEBIAN_COMPILER: [Package; 3] = [
    Package {
        name: "rustc-web",
        program: "rustc",
        purpose: "compiling eBPF programs",
    },
    Package {
        name: "cargo-web",
        program: "cargo",
        purpose: "compiling eBPF programs",
    },
    Package {
        name: "rust-web-src",
        program: "rust-src",
        purpose: "the source of core for eBPF",
    },
];

const LINKER_LIBRARIES: [Package; 6] = [
    Package {
        name: "llvm-22-dev",
        program: "llvm-22",
        purpose: "building bpf-linker",
    },
    Package {
        name: "libpolly-22-dev",
        program: "libpolly",
        purpose: "building bpf-linker",
    },
    Package {
        name: "libzstd-dev",
        program: "libzstd",
        purpose: "building bpf-linker",
    },
    Package {
        name: "zlib1g-dev",
        program: "zlib",
        purpose: "building bpf-linker",
    },
    Package {
        name: "libxml2-dev",
        program: "libxml2",
        purpose: "building bpf-linker",
    },
    Package {
        name: "libffi-dev",
        program: "libffi",
        purpose: "building bpf-linker",
    },
];

/// What Debian has to bring, given what is there already.
pub(super) fn missing_packages() -> Vec<Package> {
    let mut missing = Vec::new();
    if !has_compiler() {
        missing.extend(DEBIAN_COMPILER);
    }
    if !has_linker() && !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists() {
        missing.extend(LINKER_LIBRARIES);
    }
    missing
}

/// What to tell a user whose system cannot install packages.
pub(super) fn missing_linker() -> Option<String> {
    (!has_linker()).then(|| {
        format!(
            "bpf-linker: linking eBPF programs; with LLVM 22 there: \
             LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version {LINKER_VERSION} --no-default-features \
             --features {LLVM_FEATURE}. Instead of rustc-web, a nightly of rustup with rust-src will do."
        )
    })
}

/// Builds bpf-linker if it is not there.
pub(super) fn install_linker() -> Result<()> {
    if has_linker() {
        return Ok(());
    }
    progress::step("installing bpf-linker (one to three minutes)", || {
        command::program(crate::workspace::cargo())
            .args([
                "install",
                "--locked",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
            ])
            .args(["--no-default-features", "--features", LLVM_FEATURE])
            .env("LLVM_PREFIX", LLVM_PREFIX)
            // cargo's own settings for our workspace must not reach another project's build.
            .without_env("CARGO_TARGET_DIR")
            .directory(Path::new("/"))
            .run()
            .context("bpf-linker links the eBPF programs")
    })?;
    if !has_linker() {
        bail!("bpf-linker was installed but does not run");
    }
    Ok(())
}

fn has_linker() -> bool {
    command::find("bpf-linker")
        .is_some_and(|linker| command::program(linker).arg("--version").succeeds())
}

fn has_compiler() -> bool {
    let nightly = command::program("rustc").args(["+nightly", "--print", "sysroot"]);
    let debian = command::program("/usr/bin/rustc").args(["--print", "sysroot"]);
    has_core_source(nightly) || has_core_source(debian)
}

fn has_core_source(sysroot: command::Program) -> bool {
    sysroot.output().is_ok_and(|path| {
        Path::new(path.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
    })
}
