//! The network of this node's pods.
//!
//! The kubelet half of the agent knows only [`PodNetwork`]: it hands over the process that holds a
//! sandbox's network namespace and learns the pod's addresses. Two implementations: the real one
//! (veth, routes, eBPF) and [`HollowNetwork`], which only hands out addresses.

mod events;
mod inspect;
pub mod ipam;
pub mod netlink;
pub mod node;
pub mod pods;
mod trace;
mod tunnel;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use node::{NodeNetwork, NodeNetworkConfig, Way};
pub use pods::Pods;

/// Names one pod for as long as it lives; the uid alone identifies it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// One `ports[]` entry with a `hostPort`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `None`: every address of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// What the network may need of a pod beyond its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNetworkSpec {
    pub host_ports: Vec<HostPort>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddresses {
    /// Never empty; the first is `status.podIP`.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node's range is not known yet or all of it is in use; a retry may succeed.
    #[error("no pod address is free: {0}")]
    NoAddress(String),
    /// The sandbox process ended before its namespace was reached.
    #[error("sandbox process {0} is gone")]
    SandboxGone(u32),
    #[error("{0}")]
    Other(String),
}

pub type EventLines = futures::stream::BoxStream<'static, String>;

/// # Guarantees
/// `attach` is idempotent: for a pod that is attached already (by this process or by one before
/// it) it returns the same addresses. `detach` frees the addresses only after the link is gone.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects the network namespace of `sandbox_pid` to the pod network.
    ///
    /// # Errors
    /// Nothing stays behind after an error.
    async fn attach(
        &self,
        pod: &PodIdentity,
        sandbox_pid: u32,
        spec: &PodNetworkSpec,
    ) -> Result<PodAddresses, NetworkError>;

    /// Removes the pod's link and frees its addresses. Not attached is success.
    async fn detach(&self, uid: &str) -> Result<(), NetworkError>;

    /// Detaches every pod that is not in `live_uids`. Called after the API's pods and the
    /// runtime's sandboxes are both known.
    async fn retain(&self, live_uids: &HashSet<String>) -> Result<(), NetworkError>;

    /// For `/metrics`, in Prometheus' text format.
    fn metrics(&self) -> String {
        String::new()
    }

    /// What the kernel has, for people: see `inspect`. `None`: no such view.
    fn view(&self, _name: &str, _query: &HashMap<String, String>) -> Option<serde_json::Value> {
        None
    }

    /// Lines of JSON about connections and drops, as they happen; of one of `sample` new
    /// connections. `None`: this network has no events.
    fn follow(&self, _sample: Option<u32>) -> Option<Result<EventLines, NetworkError>> {
        None
    }
}

/// Hands out addresses and connects nothing: for hollow nodes and tests.
#[derive(Debug, Default)]
pub struct HollowNetwork {
    attached: Mutex<HashMap<String, Ipv4Addr>>,
}

impl HollowNetwork {
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl PodNetwork for HollowNetwork {
    async fn attach(
        &self,
        pod: &PodIdentity,
        _sandbox_pid: u32,
        _spec: &PodNetworkSpec,
    ) -> Result<PodAddresses, NetworkError> {
        let mut attached = self.attached.lock();
        if let Some(ip) = attached.get(&pod.uid) {
            return Ok(PodAddresses {
                ips: vec![IpAddr::V4(*ip)],
            });
        }
        let used: HashSet<Ipv4Addr> = attached.values().copied().collect();
        let free = (2u32..65_535)
            .map(|offset| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + offset))
            .find(|ip| !used.contains(ip))
            .ok_or_else(|| NetworkError::NoAddress("10.244.0.0/16 is in use".into()))?;
        attached.insert(pod.uid.clone(), free);
        Ok(PodAddresses {
            ips: vec![IpAddr::V4(free)],
        })
    }

    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        self.attached.lock().remove(uid);
        Ok(())
    }

    async fn retain(&self, live_uids: &HashSet<String>) -> Result<(), NetworkError> {
        self.attached
            .lock()
            .retain(|uid, _| live_uids.contains(uid));
        Ok(())
    }
}
