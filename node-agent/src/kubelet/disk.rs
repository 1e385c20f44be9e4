//! What pods occupy on the node's disk: what their containers have written into their own file systems, their logs,
//! and their volumes.
//!
//! Only files that pods have written are looked at, none of their images, so that a look costs as much as there is.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;

use super::{Context, pod, usage};
use crate::runtime::{ContainerRole, Observed};

/// Where the writable layers of containers are: by the pod's uid the container's name and the folder. The workers keep
/// it, as nothing else looks at the containers.
#[derive(Debug, Default)]
pub struct Layers(RwLock<HashMap<String, Vec<(String, PathBuf)>>>);

impl Layers {
    pub fn observe(&self, uid: &str, observed: &[Observed]) {
        let apps = observed.iter().filter(|o| o.role == ContainerRole::App);
        let layers: Vec<(String, PathBuf)> = apps
            .filter_map(|o| Some((o.name.clone(), o.layer_path.clone()?)))
            .collect();
        if layers.is_empty() {
            self.0.write().remove(uid);
        } else if self.0.read().get(uid) != Some(&layers) {
            self.0.write().insert(uid.to_owned(), layers);
        }
    }

    fn of(&self, uid: &str) -> Vec<(String, PathBuf)> {
        self.0.read().get(uid).cloned().unwrap_or_default()
    }
}

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupied {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Occupied {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerDisk {
    /// All that is left of this container, of earlier starts too.
    pub rootfs: Occupied,
    pub logs: Occupied,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDisk {
    pub containers: BTreeMap<String, ContainerDisk>,
    /// Those that are the node's own, by name.
    pub volumes: BTreeMap<String, Occupied>,
    /// Of everything, with what the agent keeps for the pod.
    pub total: Occupied,
}

/// Looks at the files of one pod.
pub async fn of(ctx: &Context, pod: &Pod) -> PodDisk {
    let who = pod::identity(pod);
    let layers = ctx.layers.of(&who.uid);
    let folder = ctx.pod_dir(&who.uid);
    let logs = ctx.logs.as_ref().map(|logs| logs.pod_folder(&who));
    let names: Vec<String> = pod::containers(pod)
        .into_iter()
        .map(|(_, c)| c.name)
        .collect();
    let volumes: Vec<String> = pod::spec(pod)
        .volumes
        .iter()
        .flatten()
        .map(|v| v.name.clone())
        .collect();
    let looked = tokio::task::spawn_blocking(move || {
        let mut disk = PodDisk {
            total: usage::occupied(&folder),
            ..Default::default()
        };
        for name in names {
            let mut container = ContainerDisk::default();
            for (_, layer) in layers.iter().filter(|(of, _)| *of == name) {
                container.rootfs += usage::occupied(layer);
            }
            if let Some(logs) = &logs {
                container.logs = usage::occupied(&logs.join(&name));
            }
            disk.total += container.rootfs;
            disk.total += container.logs;
            disk.containers.insert(name, container);
        }
        for name in volumes {
            let path = folder.join("volumes").join(&name);
            if path.is_dir() {
                disk.volumes.insert(name, usage::occupied(&path));
            }
        }
        disk
    });
    looked.await.unwrap_or_default()
}
