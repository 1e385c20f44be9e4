//! An isolated cluster of this machine, for the length of a test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::cluster::process::Process;
use xtask::cluster::{Node, State, Store, down};
use xtask::{command, workspace};

use crate::client::Client;
use crate::wait::wait_for;

/// Removed, with every trace, when dropped.
pub struct TestCluster {
    pub state: State,
    name: String,
}

impl TestCluster {
    /// Makes a cluster with the binaries in target/release. `shape` are further options of `xtask up`.
    pub fn up(name: &str, nodes: usize, store: Store, shape: &[&str]) -> Result<Self> {
        // What an interrupted run left would be taken for the cluster.
        xtask(&["down", "--name", name])?;
        xtask(&["images"])?;
        let cluster = Removal {
            name: name.to_owned(),
        };
        start(name, nodes, store, shape)?;
        let state = State::read(name)?.context("`up` left no state")?;
        std::mem::forget(cluster);
        Ok(Self {
            state,
            name: name.to_owned(),
        })
    }

    /// Starts again what does not run: what a person does after a machine came back.
    pub fn restart(&self) -> Result<()> {
        let flags = [
            (self.state.split, "--split"),
            (self.state.dual_stack, "--dual-stack"),
        ];
        let shape: Vec<&str> = flags
            .into_iter()
            .filter_map(|(given, flag)| given.then_some(flag))
            .collect();
        start(&self.name, self.state.nodes.len(), self.state.store, &shape)
    }

    /// Runs the binaries of another folder: what a person does who has built anew.
    pub fn upgrade(&self, binaries: &Path) -> Result<()> {
        start_from(
            Some(binaries),
            &self.name,
            self.state.nodes.len(),
            self.state.store,
            &[],
        )
    }

    pub fn kubectl(&self, namespace: &str) -> Client {
        Client::new("kubectl", &self.state.kubeconfig(), namespace)
    }

    pub fn skep(&self, namespace: &str) -> Client {
        Client::new(
            workspace::binary("skep"),
            &self.state.kubeconfig(),
            namespace,
        )
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.state
            .nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no {name}"))
    }

    /// `kill -9` of a supervised program. Returns once another process has taken its place.
    pub fn kill_and_await_successor(
        supervised: &xtask::cluster::process::Supervised,
    ) -> Result<()> {
        let victim = supervised.process().context("it does not run")?;
        kill(victim)?;
        wait_for(
            "the supervisor to start it again",
            Duration::from_secs(30),
            || {
                let next = supervised.process().context("nothing runs")?;
                ensure!(next != victim, "it is still the same");
                Ok(())
            },
        )
    }

    /// Cuts a node's power: agent and containers die at once, the link goes down, and nothing starts again.
    pub fn power_off(&self, node: &Node) -> Result<()> {
        let agent = self.state.agent(node);
        for process in [agent.supervisor(), agent.process()].into_iter().flatten() {
            kill(process)?;
        }
        if let Some(namespace) = &node.namespace {
            command::line(&format!("ip -n {namespace} link set eth0 down")).output()?;
        }
        let containers = down::containers_below(&node.cgroup)?;
        if !containers.is_empty() {
            command::program("docker")
                .args(["rm", "--force"])
                .args(&containers)
                .output()?;
        }
        Ok(())
    }

    /// The node comes back, empty, as after a power cut.
    pub fn power_on(&self, node: &Node) -> Result<()> {
        if let Some(namespace) = &node.namespace {
            command::line(&format!("ip -n {namespace} link set eth0 up")).output()?;
            command::line(&format!(
                "ip -n {namespace} route replace default via {}",
                self.state.control_address
            ))
            .output()?;
            if let Some(address) = &node.address_v6 {
                xtask::cluster::network::give_ipv6(namespace, address)?;
            }
        }
        self.restart()
    }

    /// Keeps the logs of the cluster when it goes.
    pub fn keep_logs(&self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(self.state.directory().join("logs"))? {
            let file = entry?.path();
            if let Some(name) = file.file_name() {
                std::fs::copy(&file, to.join(name))?;
            }
        }
        Ok(())
    }

    /// What a person would look at first.
    pub fn describe_trouble(&self, namespace: &str) -> String {
        let kubectl = self.kubectl(namespace);
        let mut text = String::new();
        for look in [
            &["get", "nodes", "-o", "wide"][..],
            &["get", "pods,services,deployments", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            let seen = match kubectl.attempt(look) {
                Ok(outcome) => format!("{}{}", outcome.stdout, outcome.stderr),
                Err(error) => format!("{error:#}\n"),
            };
            text.push_str(&format!("$ kubectl {}\n{seen}", look.join(" ")));
        }
        text
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        drop(Removal {
            name: std::mem::take(&mut self.name),
        });
    }
}

/// Removes what was made of a cluster, also if making it failed half way.
struct Removal {
    name: String,
}

impl Drop for Removal {
    fn drop(&mut self) {
        if std::env::var_os("SKEP_KEEP").is_some() {
            eprintln!("SKEP_KEEP is set: the cluster {} stays", self.name);
        } else if let Err(error) = xtask(&["down", "--name", &self.name]) {
            eprintln!("the cluster {} is not removed: {error:#}", self.name);
        }
    }
}

fn start(name: &str, nodes: usize, store: Store, shape: &[&str]) -> Result<()> {
    start_from(None, name, nodes, store, shape)
}

fn start_from(
    binaries: Option<&Path>,
    name: &str,
    nodes: usize,
    store: Store,
    shape: &[&str],
) -> Result<()> {
    let nodes = nodes.to_string();
    let mut arguments = vec![
        "up",
        "--isolated",
        "--no-build",
        "--no-quick-start",
        "--name",
        name,
        "--nodes",
        &nodes,
        "--store",
        store.name(),
        // Twice the time between two heartbeats: half of what people have to wait for.
        "--node-monitor-grace-period",
        "20",
    ];
    arguments.extend(shape);
    xtask_with(binaries, &arguments)
}

/// Runs a task of xtask quietly; its output is in the error if it fails.
pub fn xtask(arguments: &[&str]) -> Result<()> {
    xtask_with(None, arguments)
}

fn xtask_with(binaries: Option<&Path>, arguments: &[&str]) -> Result<()> {
    let output = Command::new(xtask_binary()?)
        .args(arguments)
        .envs(binaries.map(|folder| ("SKEP_BINARIES", folder)))
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!(
            "`cargo xtask {}` failed:\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The one that runs us (`cargo xtask test` says so), else the one that `cargo xtask` builds.
pub fn xtask_binary() -> Result<PathBuf> {
    let binary = match std::env::var_os("SKEP_XTASK") {
        Some(binary) => binary.into(),
        None => workspace::target().join("debug/xtask"),
    };
    ensure!(
        binary.exists(),
        "{} is not there: run `cargo xtask setup` first",
        binary.display()
    );
    Ok(binary)
}

pub fn kill(process: Process) -> Result<()> {
    command::line(&format!("kill -9 {}", process.pid()))
        .output()
        .map(drop)
}

/// `value.a.b[0]` as text, by a JSON pointer.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("there is no text at {pointer} in {value}"))
}

/// The items of a list.
pub fn items(list: &Value) -> &[Value] {
    list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}
