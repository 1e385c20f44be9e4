//! A node with everything on it: what filters and scores read.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{
    pod::{HostPort, PodInfo, Resources},
    terms::Labels,
};

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub used: Resources,
    pub scored_cpu_millicores: i64,
    pub scored_memory_bytes: i64,
    pub host_ports: Vec<HostPort>,
    pub pods: Vec<Arc<PodInfo>>,
    /// Pods here by the uid of their controller.
    pub owners: HashMap<String, i64>,
    /// How many pods here have required anti-affinity, and any affinity that scores.
    pub anti_affinity_count: usize,
    pub affinity_count: usize,
    /// Size in bytes by name.
    pub images: HashMap<String, i64>,
    /// False: pods are bound to this name, but there is no such Node object (any more).
    pub exists: bool,
}

impl NodeInfo {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Takes what the object says; the pods stay. Returns whether a pod that did not fit might fit now.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let resources = Resources::new(allocatable.into_iter().flatten());
        let allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .map_or(0, crate::quantity::value);
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let unschedulable = spec.unschedulable.unwrap_or_default();
        let images = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten();
        let changed = !self.exists
            || self.allocatable != resources
            || self.allowed_pods != allowed_pods
            || self.labels != labels
            || self.taints != taints
            || self.unschedulable != unschedulable;
        self.images = images
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or_default();
                image
                    .names
                    .iter()
                    .flatten()
                    .map(move |name| (name.clone(), size))
            })
            .collect();
        self.allocatable = resources;
        self.allowed_pods = allowed_pods;
        self.labels = labels;
        self.taints = taints;
        self.unschedulable = unschedulable;
        self.exists = true;
        changed
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.used.add(&pod.requests);
        self.scored_cpu_millicores += pod.scored_cpu_millicores;
        self.scored_memory_bytes += pod.scored_memory_bytes;
        self.host_ports.extend(pod.host_ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.anti_affinity_count += usize::from(!pod.pod_terms.required_anti.is_empty());
        self.affinity_count += usize::from(scores_others(&pod));
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let position = self.pods.iter().position(|pod| pod.uid == uid)?;
        let pod = self.pods.swap_remove(position);
        self.used.subtract(&pod.requests);
        self.scored_cpu_millicores -= pod.scored_cpu_millicores;
        self.scored_memory_bytes -= pod.scored_memory_bytes;
        for port in &pod.host_ports {
            if let Some(position) = self.host_ports.iter().position(|held| held == port) {
                self.host_ports.swap_remove(position);
            }
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        self.anti_affinity_count -= usize::from(!pod.pod_terms.required_anti.is_empty());
        self.affinity_count -= usize::from(scores_others(&pod));
        Some(pod)
    }

    pub fn topology(&self, key: &str) -> Option<&String> {
        self.labels.get(key)
    }
}

/// Whether the pod's own affinity makes a node better or worse for others.
fn scores_others(pod: &PodInfo) -> bool {
    !pod.pod_terms.preferred.is_empty() || !pod.pod_terms.required.is_empty()
}
