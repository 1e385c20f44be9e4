//! This node's object as the API has it: what others say of the node (labels, taints, resources of their own) counts when
//! a pod asks for a place.
//!
//! A watch keeps it. The scheduler may have seen a newer one: who is about to refuse a pod for it asks the API first.
//! Upstream: `pkg/kubelet/kubelet_nodecache.go`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use skep_client::ObjectKey;
use skep_client::informer::Informer;
use tokio::time::timeout;

/// How long the API may take to show the node.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct OwnNode {
    name: String,
    /// Of this node, or of all: a node that carries traffic follows the others too.
    nodes: Informer<Node>,
    api: Api<Node>,
}

impl OwnNode {
    pub fn new(client: Client, name: &str, nodes: Informer<Node>) -> Self {
        Self {
            name: name.into(),
            nodes,
            api: Api::all(client),
        }
    }

    /// Returns when the watch has shown what there is.
    pub async fn synced(&self) {
        self.nodes.synced().await;
    }

    /// As the watch has it. `None`: it is not registered.
    pub fn watched(&self) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectKey::new("", &self.name))
    }

    /// As the API has it now. `None`: it did not say.
    pub async fn asked(&self) -> Option<Arc<Node>> {
        let answer = timeout(PATIENCE, self.api.get(&self.name)).await;
        answer.ok()?.ok().map(Arc::new)
    }
}
