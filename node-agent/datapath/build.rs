//! Builds ebpf/programs for the BPF target and leaves the ELF in `OUT_DIR/skep-programs`.
//!
//! The BPF target has no prebuilt `core`, so a toolchain with the library sources is needed, plus
//! bpf-linker. Candidates, first match wins: rustup's nightly with rust-src, the toolchain that
//! builds the workspace if it has rust-src, Debian's rustc with rust-web-src.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";
const PACKAGE: &str = "skep-ebpf-programs";
const BINARY: &str = "skep-programs";

/// A cargo and rustc pair whose sysroot holds the sources of `core`.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(required("OUT_DIR")?);
    let root = manifest_dir
        .ancestors()
        .nth(2)
        .ok_or("node-agent/datapath has no workspace root above it")?
        .to_path_buf();

    println!("cargo::rerun-if-changed=build.rs");
    for source in ["ebpf/programs", "ebpf/common"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");

    let linker = find_program("bpf-linker");
    let toolchain = find_toolchain();
    let (Some(linker), Some(toolchain)) = (&linker, &toolchain) else {
        return Err(missing(linker.is_none(), toolchain.is_none()));
    };

    // Beside the profiles, so that `dev` and `release` share one build of the programs.
    let target_dir = out_dir
        .ancestors()
        .nth(4)
        .ok_or_else(|| format!("{} is not inside a target directory", out_dir.display()))?
        .join("ebpf");

    let mut cargo = Command::new(&toolchain.cargo);
    clear_inherited_settings(&mut cargo);
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_string(),
        "-Clink-arg=--disable-memory-builtins".to_string(),
        // With it, LLVM leaves every memset and memmove to a loop over bytes: 64 of them take 80 ns.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_string(),
    ];
    cargo
        .current_dir(&root)
        .env("RUSTC", &toolchain.rustc)
        // `-Z build-std` on a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            PACKAGE,
            "--bin",
            BINARY,
        ])
        .args([
            "--target",
            TARGET,
            "--profile",
            PROFILE,
            "-Zbuild-std=core",
            "--target-dir",
        ])
        .arg(&target_dir);
    let output = cargo.output().map_err(|error| {
        format!(
            "cannot run {} for the eBPF programs: {error}",
            toolchain.cargo.display()
        )
    })?;
    if !output.status.success() {
        return Err(format!(
            "building ebpf/programs for {TARGET} with {} failed:\n{}",
            toolchain.rustc.display(),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    let built = target_dir.join(TARGET).join(PROFILE).join(BINARY);
    let embedded = out_dir.join(BINARY);
    // Another target directory may share the file by a hard link: it keeps what it has.
    let _ = std::fs::remove_file(&embedded);
    std::fs::copy(&built, &embedded).map_err(|error| {
        format!(
            "cannot copy {} to {}: {error}",
            built.display(),
            embedded.display()
        )
    })?;
    Ok(())
}

fn required(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// This build's own target, flags, wrappers and toolchain must not leak into the nested build.
/// Where cargo and rustup keep their files stays.
fn clear_inherited_settings(command: &mut Command) {
    const KEEP: [&str; 3] = ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME"];
    const PREFIXES: [&str; 6] = ["CARGO", "__CARGO", "RUSTC", "RUSTUP", "RUSTDOC", "CLIPPY"];
    const NAMES: [&str; 8] = [
        "RUSTFLAGS",
        "LD_LIBRARY_PATH",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let kept = KEEP.contains(&&*name) || name.starts_with("CARGO_REGISTR");
        let inherited = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !kept && (inherited || NAMES.contains(&&*name)) {
            command.env_remove(&*name);
        }
    }
}

fn find_toolchain() -> Option<Toolchain> {
    nightly().or_else(own).or_else(debian)
}

fn nightly() -> Option<Toolchain> {
    let rustup = find_program("rustup")?;
    let which = |tool: &str| -> Option<PathBuf> {
        let output = Command::new(&rustup)
            .args(["which", "--toolchain", "nightly", tool])
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        (output.status.success() && path.is_file()).then_some(path)
    };
    with_sources(which("cargo")?, which("rustc")?)
}

fn own() -> Option<Toolchain> {
    with_sources(env::var_os("CARGO")?.into(), env::var_os("RUSTC")?.into())
}

fn debian() -> Option<Toolchain> {
    with_sources("/usr/bin/cargo".into(), "/usr/bin/rustc".into())
}

fn with_sources(cargo: PathBuf, rustc: PathBuf) -> Option<Toolchain> {
    let mut command = Command::new(&rustc);
    command.args(["--print", "sysroot"]);
    if rustc.starts_with("/usr") {
        command.env_remove("LD_LIBRARY_PATH");
    }
    let sysroot = String::from_utf8(command.output().ok()?.stdout).ok()?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    (sources.is_file() && (cargo.is_file() || cargo.components().count() == 1))
        .then_some(Toolchain { cargo, rustc })
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(cargo_home)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}

fn missing(linker: bool, toolchain: bool) -> String {
    let mut message = String::from(
        "the eBPF programs cannot be built on this machine. `cargo xtask setup` installs what is missing:",
    );
    if toolchain {
        message.push_str(
            "\n- a Rust toolchain with the sources of `core`: \
             `rustup toolchain install nightly --component rust-src`, \
             or on Debian 12 `apt-get install rustc-web cargo-web rust-web-src`",
        );
    }
    if linker {
        message.push_str(
            "\n- bpf-linker: `cargo install bpf-linker` (needs the LLVM that matches the toolchain, \
             on Debian 12 `apt-get install llvm-22-dev`)",
        );
    }
    message
}
