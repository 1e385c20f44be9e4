//! Everything the scheduler knows, kept up to date by events and by its own assumptions.
//!
//! An assumed pod is one we decided to bind and the informer has not shown bound yet; it holds its resources already, so
//! the next decision counts with it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use skep_client::ObjectKey;

use crate::{node::NodeInfo, pod::PodInfo, terms::Labels, volumes::Volumes};

#[derive(Default)]
pub struct Cluster {
    /// In the order of arrival; `index` finds by name.
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// uid → node of every pod that holds resources.
    placed: HashMap<String, Placed>,
    /// Pods that preempted others and wait for their node, by uid.
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
    pub namespaces: HashMap<String, Labels>,
    pub volumes: Volumes,
    pub budgets: BTreeMap<ObjectKey, Arc<PodDisruptionBudget>>,
    /// How many existing nodes have an image, by name.
    pub image_nodes: HashMap<String, i64>,
    /// Where the next search starts, so that every node gets its turn.
    pub next_start: usize,
}

struct Placed {
    node: String,
    assumed: bool,
}

impl Cluster {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|position| &self.nodes[*position])
    }

    pub fn existing_count(&self) -> usize {
        self.nodes.iter().filter(|node| node.exists).count()
    }

    fn node_mut(&mut self, name: &str) -> &mut NodeInfo {
        let position = *self.index.entry(name.to_owned()).or_insert_with(|| {
            self.nodes.push(NodeInfo::named(name));
            self.nodes.len() - 1
        });
        &mut self.nodes[position]
    }

    /// Returns whether pods that did not fit might fit now.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.count_images(&name, -1);
        let changed = self.node_mut(&name).set_node(node);
        self.count_images(&name, 1);
        changed
    }

    pub fn remove_node(&mut self, name: &str) {
        self.count_images(name, -1);
        let Some(position) = self.index.get(name).copied() else {
            return;
        };
        let pods = std::mem::take(&mut self.nodes[position]).pods;
        if pods.is_empty() {
            self.drop_position(position);
        } else {
            let mut empty = NodeInfo::named(name);
            for pod in pods {
                empty.add(pod);
            }
            self.nodes[position] = empty;
        }
    }

    fn drop_position(&mut self, position: usize) {
        let removed = self.nodes.swap_remove(position);
        self.index.retain(|_, at| *at != position);
        self.index.remove(&removed.name);
        if let Some(moved) = self.nodes.get(position) {
            self.index.insert(moved.name.clone(), position);
        }
    }

    fn count_images(&mut self, name: &str, step: i64) {
        let Some(position) = self.index.get(name) else {
            return;
        };
        for image in self.nodes[*position].images.keys() {
            let count = self.image_nodes.entry(image.clone()).or_default();
            *count += step;
            if *count <= 0 {
                self.image_nodes.remove(image);
            }
        }
    }

    /// Takes the state of a pod as the informer shows it: bound pods that have not ended hold resources.
    /// Returns whether room became free.
    pub fn observe_pod(&mut self, pod: &Arc<Pod>) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|name| !name.is_empty());
        match node {
            Some(node) if !PodInfo::is_finished(pod) => {
                self.release(uid);
                self.denominate(uid);
                self.place(node, Arc::new(PodInfo::new(pod.clone())), false);
                false
            }
            Some(_) => self.release(uid),
            // Not bound in the informer's view: an assumption of ours stands.
            None if self.placed.get(uid).is_some_and(|placed| placed.assumed) => false,
            None => self.release(uid),
        }
    }

    /// The pod is gone.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.denominate(uid);
        self.release(uid)
    }

    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.release(&pod.uid);
        self.denominate(&pod.uid);
        self.place(node, pod, true);
    }

    /// The bind failed. A pod that the informer meanwhile shows bound stays.
    pub fn forget(&mut self, uid: &str) {
        if self.placed.get(uid).is_some_and(|placed| placed.assumed) {
            self.release(uid);
        }
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    fn place(&mut self, node: &str, pod: Arc<PodInfo>, assumed: bool) {
        self.placed.insert(
            pod.uid.clone(),
            Placed {
                node: node.to_owned(),
                assumed,
            },
        );
        self.node_mut(node).add(pod);
    }

    fn release(&mut self, uid: &str) -> bool {
        let Some(placed) = self.placed.remove(uid) else {
            return false;
        };
        let Some(position) = self.index.get(&placed.node).copied() else {
            return false;
        };
        self.nodes[position].remove(uid);
        if !self.nodes[position].exists && self.nodes[position].pods.is_empty() {
            self.drop_position(position);
        }
        true
    }

    /// Keeps room on `node` for a pod that preempted others there.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.nominated
            .insert(pod.uid.clone(), (node.to_owned(), pod));
    }

    pub fn denominate(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// Pods that wait for this node and go before one of `priority`.
    pub fn nominated_before<'a>(
        &'a self,
        node: &'a str,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.nominated
            .values()
            .filter(move |(at, other)| {
                at == node && other.priority >= pod.priority && other.uid != pod.uid
            })
            .map(|(_, other)| other)
    }

    pub fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }

    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|(node, _)| node.as_str())
    }
}
