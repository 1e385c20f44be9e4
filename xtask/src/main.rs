//! The command line of `cargo xtask`. What the commands do is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{bench, build, check, cluster, codegen, setup, test};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set up, build, run, check and test skep"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine (Docker, the eBPF toolchain, protoc) and start Docker
    Setup,
    /// Build target/release/{skep,skep-control,skep-agent}
    Build,
    /// Start a cluster on this machine and run the quick start in it
    Up(cluster::up::Options),
    /// Make the images of the quick start and the tests (`up` does it by itself)
    Images,
    /// Remove every trace of a cluster
    Down(cluster::down::Options),
    /// What CI checks before it tests: format, clippy, the rules of the tree, licences
    Check,
    /// Set up, build and run every test
    Test(test::Options),
    /// Derive control/schema/src/table.bin from published type definitions (needs the crate registry)
    Codegen,
    /// Measure an area and print the figures
    Bench(bench::Options),
    /// Keep a program of a cluster running (used by `up`)
    #[command(hide = true)]
    Supervise(cluster::supervisor::Options),
    /// Fetch a page over plain HTTP and print it (used by `up` inside namespaces)
    #[command(hide = true)]
    Fetch(cluster::fetch::Options),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Build => {
            setup::run()?;
            build::run()
        }
        Task::Up(options) => cluster::up::run(options),
        Task::Images => cluster::images::ensure(),
        Task::Down(options) => cluster::down::run(options),
        Task::Check => check::run(),
        Task::Test(options) => test::run(options),
        Task::Codegen => codegen::run(),
        Task::Bench(options) => bench::run(options),
        Task::Supervise(options) => cluster::supervisor::run(options),
        Task::Fetch(options) => cluster::fetch::run(options),
    }
}
