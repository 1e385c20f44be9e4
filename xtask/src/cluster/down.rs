//! `cargo xtask down`: removes every trace of a cluster, whatever state it is in. Each step goes by the cluster's name,
//! so that it works after a crash and without the state file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::process::{Process, Supervised, wait_for};
use super::{DEFAULT_NAME, State, kubeconfig, network, up};
use crate::command::{line, program};
use crate::{progress, setup, workspace};

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Remove every cluster of this checkout, and the images that were made for them
    #[arg(long)]
    pub all: bool,
}

const EMPTY: Duration = Duration::from_secs(10);

pub fn run(options: &Options) -> Result<()> {
    super::check_name(&options.name)?;
    let mut names = vec![options.name.clone()];
    if options.all
        && let Ok(entries) = std::fs::read_dir(workspace::root().join("target/clusters"))
    {
        names = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
    }
    for name in &names {
        progress::step(&format!("removing the cluster {name}"), || remove(name))?;
    }
    if options.all {
        super::images::remove();
    }
    stop_docker_if_unused()
}

/// Stops the daemon that we started, once no cluster of this machine is left, and removes what they shared.
pub fn stop_docker_if_unused() -> Result<()> {
    if claimed().is_empty() {
        setup::docker::stop()?;
        remove_tree(Path::new(setup::docker::RUN_DIRECTORY))?;
    }
    Ok(())
}

fn remove(name: &str) -> Result<()> {
    // A broken state file must not keep us from removing what it described.
    let state = State::read(name).ok().flatten();
    let directory = super::directory(name);

    // Supervisors first, then what they ran; agents before the control plane, so that they end in peace.
    let mut supervised = recorded(&directory.join("run"));
    supervised.sort_by_key(|(name, _)| !name.starts_with("agent-"));
    for (_, supervised) in &supervised {
        supervised.stop()?;
    }
    if let Some(state) = &state {
        clean_nodes(state);
    }
    remove_containers(name)?;
    network::remove(name)?;
    let uplink = up::uplink_name(name);
    if line(&format!("ip link show dev {uplink}")).succeeds() {
        line(&format!("ip link delete {uplink}")).output()?;
    }
    if state
        .as_ref()
        .is_some_and(|state| state.network_namespace.is_none())
    {
        network::unfence(&[up::POD_RANGE, up::SERVICE_RANGE]);
    }
    remove_cgroups(name)?;
    let pins = super::bpf_directory(name);
    remove_tree(&pins)?;
    if let Some(shared) = pins.parent() {
        // Goes with the last cluster.
        let _ = std::fs::remove_dir(shared);
    }
    if let Some(state) = &state {
        remove_data(state)?;
        if !state.isolated {
            kubeconfig::forget(&kubeconfig::context(name))?;
        }
    }
    unmount_below(&directory)?;
    remove_tree(&directory)?;
    let _ = std::fs::remove_file(super::claim_file(name));
    Ok(())
}

/// Lets each node's agent undo what it did. The steps after it remove what a broken agent leaves.
fn clean_nodes(state: &State) {
    let agent = workspace::binary("skep-agent");
    if !agent.exists() {
        return;
    }
    for node in &state.nodes {
        let cleanup = node.place().program(&agent).and_then(|program| {
            program
                .arg("cleanup")
                .arg("--node-name")
                .arg(&node.name)
                .arg("--node-ip")
                .arg(&node.address)
                .arg("--state-dir")
                .arg(&node.state_directory)
                .arg("--log-dir")
                .arg(node.state_directory.join("log"))
                .arg("--cgroup-parent")
                .arg(&node.cgroup)
                .arg("--bpf-dir")
                .arg(&node.bpf_directory)
                .output()
        });
        if let Err(error) = cleanup {
            progress::note(&format!("{} did not clean up itself: {error:#}", node.name));
        }
    }
}

/// The programs recorded in a folder.
fn recorded(run: &Path) -> Vec<(String, Supervised)> {
    let Ok(entries) = std::fs::read_dir(run) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let file = entry.ok()?.file_name().into_string().ok()?;
            Some(file.split('.').next()?.to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| (name.clone(), Supervised::new(run, &name)))
        .collect()
}

/// Every container below the cluster's cgroup, which no other container can be.
pub fn containers_below(cgroup: &Path) -> Result<Vec<String>> {
    let all = line("docker ps --all --quiet --no-trunc").output()?;
    let ids: Vec<&str> = all.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // A container may go away meanwhile; inspect still prints the others.
    let listed = program("docker")
        .args([
            "inspect",
            "--format",
            "{{.Id}} {{.HostConfig.CgroupParent}}",
        ])
        .args(&ids)
        .output()
        .or_else(|_| {
            let each = ids.iter().filter_map(|id| {
                program("docker")
                    .args([
                        "inspect",
                        "--format",
                        "{{.Id}} {{.HostConfig.CgroupParent}}",
                        id,
                    ])
                    .output()
                    .ok()
            });
            anyhow::Ok(each.collect())
        })?;
    Ok(listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, parent)| Path::new(parent).starts_with(cgroup))
        .map(|(id, _)| id.to_owned())
        .collect())
}

fn remove_containers(name: &str) -> Result<()> {
    if !setup::docker::is_running() {
        progress::note("Docker does not answer: its containers, if any, stay");
        return Ok(());
    }
    let ids = containers_below(&super::cgroup(name))?;
    if !ids.is_empty() {
        program("docker")
            .args(["rm", "--force", "--volumes"])
            .args(&ids)
            .output()?;
    }
    Ok(())
}

/// Ends what still runs in the cluster's cgroups and removes them from every hierarchy.
fn remove_cgroups(name: &str) -> Result<()> {
    for mount in setup::cgroup_mounts() {
        let top = mount.join("skep").join(name);
        if !top.exists() {
            continue;
        }
        wait_for("the cgroups to be empty", EMPTY, || {
            for directory in deepest_first(&top) {
                let procs =
                    std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                for process in procs
                    .lines()
                    .filter_map(|pid| Process::running(pid.parse().ok()?))
                {
                    let _ = process.signal(Signal::SIGKILL);
                }
                let _ = std::fs::remove_dir(&directory);
            }
            if top.exists() {
                Err(format!("{} is busy", top.display()))
            } else {
                Ok(())
            }
        })?;
        // Shared with other clusters: goes with the last of them.
        let _ = std::fs::remove_dir(mount.join("skep"));
    }
    Ok(())
}

fn deepest_first(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = std::fs::read_dir(&found[next]) {
            let folders = entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .filter(|path| path.is_dir());
            found.extend(folders);
        }
        next += 1;
    }
    found.reverse();
    found
}

/// Only what we made in it: the folder itself may be the user's.
fn remove_data(state: &State) -> Result<()> {
    let nodes = state.nodes.iter().map(|node| node.state_directory.clone());
    let ours = ["control", "etcd"].map(|name| state.data_directory.join(name));
    for directory in nodes.chain(ours) {
        unmount_below(&directory)?;
        remove_tree(&directory)?;
    }
    let _ = std::fs::remove_dir(&state.data_directory);
    Ok(())
}

/// Volumes that an agent could not unmount any more.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut targets: Vec<&Path> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new)
        .filter(|target| target.starts_with(directory))
        .collect();
    targets.reverse();
    for target in targets {
        umount2(target, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The clusters of this machine, of every checkout.
fn claimed() -> Vec<String> {
    let Some(folder) = super::claim_file("x").parent().map(Path::to_owned) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
