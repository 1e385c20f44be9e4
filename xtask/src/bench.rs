//! `cargo xtask bench AREA`: builds what is measured and what measures, and runs it.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::cluster::{Store, down};
use crate::{build, command, progress, setup, workspace};

#[derive(Clone, Copy, ValueEnum)]
enum Area {
    /// Creates, gets and lists per second of the API server
    Api,
    /// What a Service costs a connection, and the socket hook alone
    Connect,
    /// `kill -9` of the API server under writes, over and over (`--rounds 100`): what was acknowledged must be there
    Crash,
    /// Packets per second beside nftables; requests per second direct, through ClusterIP and NodePort
    Datapath,
    /// Pod start and end, memory of each process
    Node,
    /// Services and endpoints into the kernel: from nothing, and one change; memory
    Programming,
}

#[derive(Args)]
pub struct Options {
    #[arg(value_enum)]
    area: Area,
    /// Write the figures here too
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "redb")]
    store: Store,
    /// How often each figure is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

pub fn run(options: &Options) -> Result<()> {
    setup::run_for_tests()?;
    build::run()?;
    progress::step("building the load generators", || {
        command::program(workspace::cargo())
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "skep-tests",
                "--bins",
            ])
            .directory(&workspace::root())
            .run()
    })?;
    let kernel = |part: &[&str]| {
        command::program(workspace::cargo())
            .args(["bench", "--locked", "--package", "skep-datapath"])
            .args(["--bench", "packets", "--", &options.rounds.to_string()])
            .args(part)
            .directory(&workspace::root())
            .run()
    };
    if matches!(options.area, Area::Datapath) {
        // Packets first: the cluster below would disturb them.
        kernel(&[])?;
    }
    let area = match options.area {
        Area::Api => "api",
        Area::Connect => return kernel(&["sockets"]),
        Area::Crash => "crash",
        Area::Datapath => "datapath",
        Area::Node => "node",
        Area::Programming => "programming",
    };
    let mut bench = command::program(workspace::binary("skep-bench"))
        .arg(area)
        .args([
            "--store",
            options.store.name(),
            "--rounds",
            &options.rounds.to_string(),
        ])
        .env("SKEP_XTASK", std::env::current_exe()?);
    if let Some(file) = &options.json {
        bench = bench.arg("--json").arg(file);
    }
    let measured = bench.run();
    down::stop_docker_if_unused()?;
    measured
}
