//! Resident memory of processes.

use anyhow::{Context as _, Result};
use xtask::cluster::State;
use xtask::cluster::process::Process;

use crate::Figure;

const MIB: f64 = 1024.0;

/// VmRSS of proc_pid_status(5), in MiB.
pub(crate) fn resident_mib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("the process has no memory")?;
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .context("no number")?
        .parse()?;
    Ok(kib / MIB)
}

/// What the processes of a cluster hold now.
pub(crate) fn of_cluster(state: &State, when: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut add = |name: &str, process: Option<Process>| -> Result<()> {
        if let Some(process) = process {
            let sample = resident_mib(process.pid())?;
            figures.push(Figure::of(
                format!("memory of {name}, {when}"),
                "MiB",
                vec![sample],
            )?);
        }
        Ok(())
    };
    add("skep-control", state.control().process())?;
    add("etcd", state.etcd().process())?;
    for node in &state.nodes {
        add(
            &format!("skep-agent on {}", node.name),
            state.agent(node).process(),
        )?;
    }
    Ok(figures)
}
