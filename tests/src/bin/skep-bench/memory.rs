//! Resident memory of processes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use xtask::cluster::State;
use xtask::cluster::process::Process;

use crate::Figure;

const MIB: f64 = 1024.0;

/// VmRSS of proc_pid_status(5), in MiB.
pub(crate) fn resident_mib(pid: i32) -> Result<f64> {
    field_mib(pid, "VmRSS:")
}

/// Without the pages of the program's own file.
pub(crate) fn anonymous_mib(pid: i32) -> Result<f64> {
    field_mib(pid, "RssAnon:")
}

/// Tables of the kernel that a process has mapped: they are there in any case, and count as its memory.
pub(crate) fn tables_mib(pid: i32) -> Result<f64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut of_table, mut kib) = (false, 0.0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Rss:"), Some(number)) if of_table => kib += number.parse::<f64>()?,
            (Some(range), _) if range.contains('-') => of_table = line.ends_with("bpf-map"),
            _ => {}
        }
    }
    Ok(kib / MIB)
}

/// Percent of one core that a process uses during `watched`.
pub(crate) fn cpu_share(pid: i32, watched: Duration) -> Result<f64> {
    let before = cpu_seconds(pid)?;
    let begun = Instant::now();
    std::thread::sleep(watched);
    let used = cpu_seconds(pid)? - before;
    Ok(used / begun.elapsed().as_secs_f64() * 100.0)
}

/// utime and stime of proc_pid_stat(5), 100 ticks a second.
fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn field_mib(pid: i32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
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
