//! A cluster on one machine: each node is a network namespace, a sub-cgroup and a slice of one Docker daemon.
//!
//! ```text
//!  root namespace          skep-NAME-net (plays the physical network)
//!  127.0.0.1:PORT ───────▶ skep-control, etcd    ┌─────────────── br0 192.168.88.1/24
//!   (socket handed over)                         │        │        │          │
//!                                             node1    node2     nodeN     outside
//!                                    eth0 .11 │    .12 │         │     .200 │
//!                                    skep-NAME-node1 …             skep-NAME-outside
//!                                    skep-agent + pods             a client
//! ```
//!
//! The names are fixed, so that people, tests and scripts can rely on them. [`State`] is what a running cluster's
//! folder says about it.

pub mod down;
pub mod fetch;
pub mod images;
mod kubeconfig;
pub mod network;
pub mod place;
pub mod process;
mod quick_start;
pub mod supervisor;
pub mod up;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::workspace;
use place::Place;
use process::Supervised;

/// The name of a cluster that was given none.
pub const DEFAULT_NAME: &str = "default";

/// Where the control plane keeps its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    Redb,
    Etcd,
    Memory,
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Etcd => "etcd",
            Self::Memory => "memory",
        }
    }
}

/// What runs beside the API server in a split control plane.
const SPLIT_ROLES: [&str; 2] = ["scheduler", "controllers"];

/// A node, and where everything that belongs to it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// The address other machines reach it by.
    pub address: String,
    /// The same, in a dual-stack cluster.
    #[serde(default)]
    pub address_v6: Option<String>,
    /// Its network namespace; none if it is this machine itself.
    pub namespace: Option<String>,
    /// `--cgroup-parent`: below every cgroup mount.
    pub cgroup: PathBuf,
    pub bpf_directory: PathBuf,
    pub state_directory: PathBuf,
}

impl Node {
    /// Where to run a program that is to be a process of this node: its namespace, and a leaf of its cgroup (cgroup2
    /// lets only leaves hold processes once a controller is enabled).
    pub fn place(&self) -> Place {
        Place {
            namespace: self.namespace.clone(),
            cgroup: Some(self.cgroup.join("system")),
        }
    }
}

/// What `target/clusters/NAME/state.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    pub isolated: bool,
    pub store: Store,
    /// The scheduler and the controllers are processes of their own.
    #[serde(default)]
    pub split: bool,
    /// Nodes, pods and Services have IPv6 addresses beside those of IPv4.
    #[serde(default)]
    pub dual_stack: bool,
    pub data_directory: PathBuf,
    /// The API server on the root namespace's loopback.
    pub api_port: u16,
    /// The address of the API server that nodes use.
    pub control_address: String,
    /// The namespace of the control plane and the bridge; none on the host network.
    pub network_namespace: Option<String>,
    /// The client outside the cluster; none on the host network.
    pub outside_namespace: Option<String>,
    pub nodes: Vec<Node>,
}

impl State {
    /// Reads the state of a cluster of this checkout; `None` if there is no such cluster.
    pub fn read(name: &str) -> Result<Option<Self>> {
        let file = directory(name).join("state.json");
        match std::fs::read(&file) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged", file.display()))?;
                Ok(Some(state))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn write(&self) -> Result<()> {
        let file = self.directory().join("state.json");
        std::fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory().join("kubeconfig")
    }

    /// Every process of the control plane; the API server first.
    pub fn control_plane(&self) -> Vec<Supervised> {
        let others = SPLIT_ROLES
            .iter()
            .filter(|_| self.split)
            .map(|role| self.process(role));
        std::iter::once(self.control()).chain(others).collect()
    }

    /// `skep-control`, with all of the control plane in it, or just the API server.
    pub fn control(&self) -> Supervised {
        self.process("control")
    }

    pub fn etcd(&self) -> Supervised {
        self.process("etcd")
    }

    pub fn agent(&self, node: &Node) -> Supervised {
        self.process(&format!("agent-{}", node.name))
    }

    fn process(&self, name: &str) -> Supervised {
        Supervised::new(&self.directory().join("run"), name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory().join("logs").join(format!("{name}.log"))
    }

    pub fn outside(&self) -> Place {
        Place {
            namespace: self.outside_namespace.clone(),
            cgroup: None,
        }
    }
}

/// The folder of a cluster of this checkout.
pub fn directory(name: &str) -> PathBuf {
    workspace::root().join("target/clusters").join(name)
}

/// Names become parts of file, namespace, cgroup and label names.
fn check_name(name: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= 40
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !valid {
        bail!(
            "a cluster's name is at most 40 lowercase letters, digits and inner hyphens, which {name:?} is not"
        );
    }
    Ok(())
}

/// Everything of a cluster lies below this in each cgroup mount.
fn cgroup(name: &str) -> PathBuf {
    Path::new("/skep").join(name)
}

/// Everything that a cluster pins lies below this.
fn bpf_directory(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf/skep").join(name)
}

fn namespace(name: &str, role: &str) -> String {
    format!("skep-{name}-{role}")
}

/// Clusters of every checkout share the machine. This file says whose a name is.
fn claim_file(name: &str) -> PathBuf {
    Path::new(crate::setup::docker::RUN_DIRECTORY)
        .join("clusters")
        .join(name)
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_safe_in_paths() {
        for good in ["default", "a", "ci-2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "../x", "a/b", "-a", "a-", "a b", &"x".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
