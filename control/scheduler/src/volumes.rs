//! Where the volumes of a pod allow it to run, and what must be bound before it can.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use skep_client::ObjectKey;

use crate::{
    pod::PodInfo,
    quantity,
    terms::{LabelMatch, Labels, NodeMatch},
};

#[derive(Default)]
pub struct Volumes {
    pub claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    pub volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub classes: HashMap<String, Arc<StorageClass>>,
}

/// What the claims of one pod ask of a node.
#[derive(Default)]
pub struct VolumeNeeds {
    /// Node affinity of volumes that are bound already.
    bound: Vec<NodeMatch>,
    /// Claims that are bound when the node is known.
    unbound: Vec<Arc<PersistentVolumeClaim>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Yes,
    WrongNode,
    NothingToBind,
}

/// What has to happen to a claim once the node is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Reserve this existing volume for it.
    Volume { claim: ObjectKey, volume: String },
    /// Tell the provisioner the node.
    Provision { claim: ObjectKey },
}

/// # Errors
/// Why the pod can run nowhere now, in upstream's words.
pub fn needs(volumes: &Volumes, pod: &PodInfo) -> Result<VolumeNeeds, String> {
    let mut needs = VolumeNeeds::default();
    for (name, is_ephemeral) in &pod.claims {
        let key = ObjectKey::new(&pod.key.namespace, name);
        let Some(claim) = volumes.claims.get(&key) else {
            return Err(if *is_ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                )
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            });
        };
        if *is_ephemeral
            && !claim
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|owner| owner.uid == pod.uid)
        {
            return Err(format!(
                "PVC {key} was not created for pod {} (pod is not owner)",
                pod.key
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let volume_name = spec.volume_name.clone().unwrap_or_default();
        if claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Lost")
        {
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume_name}\""
            ));
        }
        if is_bound(claim) {
            let Some(volume) = volumes.volumes.get(&volume_name) else {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume_name}\""
                ));
            };
            let affinity = node_affinity(volume);
            if !affinity.is_empty() {
                needs.bound.push(affinity);
            }
        } else if waits_for_consumer(volumes, claim) && volume_name.is_empty() {
            needs.unbound.push(claim.clone());
        } else {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
    }
    Ok(needs)
}

pub fn check(
    volumes: &Volumes,
    needs: &VolumeNeeds,
    node: &String,
    labels: &Labels,
    namespace: &str,
) -> Fit {
    if !needs
        .bound
        .iter()
        .all(|affinity| affinity.matches(node, labels))
    {
        return Fit::WrongNode;
    }
    if needs.unbound.is_empty() || bindings_of(volumes, needs, node, labels, namespace).is_some() {
        Fit::Yes
    } else {
        Fit::NothingToBind
    }
}

/// How the pod's unbound claims would be bound on this node.
pub fn bindings(volumes: &Volumes, pod: &PodInfo, node: &String, labels: &Labels) -> Vec<Binding> {
    needs(volumes, pod)
        .ok()
        .and_then(|needs| bindings_of(volumes, &needs, node, labels, &pod.key.namespace))
        .unwrap_or_default()
}

fn bindings_of(
    volumes: &Volumes,
    needs: &VolumeNeeds,
    node: &String,
    labels: &Labels,
    namespace: &str,
) -> Option<Vec<Binding>> {
    let mut taken: Vec<String> = Vec::new();
    let mut bindings = Vec::new();
    for claim in &needs.unbound {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let key = ObjectKey::new(namespace, name);
        let smallest = volumes
            .volumes
            .values()
            .filter(|volume| {
                let volume_name = volume.metadata.name.as_deref().unwrap_or_default();
                !taken.iter().any(|other| other == volume_name)
                    && satisfies(volume, claim)
                    && node_affinity(volume).matches(node, labels)
            })
            .min_by_key(|volume| capacity(volume));
        if let Some(volume) = smallest {
            let volume = volume.metadata.name.clone().unwrap_or_default();
            taken.push(volume.clone());
            bindings.push(Binding::Volume { claim: key, volume });
        } else if can_provision(volumes, claim, labels) {
            bindings.push(Binding::Provision { claim: key });
        } else {
            return None;
        }
    }
    Some(bindings)
}

pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref())
        .is_some_and(|name| !name.is_empty());
    let completed = claim
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("pv.kubernetes.io/bind-completed"));
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    named && (completed || phase == Some("Bound"))
}

fn class<'a>(volumes: &'a Volumes, claim: &PersistentVolumeClaim) -> Option<&'a Arc<StorageClass>> {
    let name = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_ref())?;
    volumes.classes.get(name)
}

fn waits_for_consumer(volumes: &Volumes, claim: &PersistentVolumeClaim) -> bool {
    class(volumes, claim)
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn can_provision(volumes: &Volumes, claim: &PersistentVolumeClaim, labels: &Labels) -> bool {
    let Some(class) = class(volumes, claim) else {
        return false;
    };
    if class.provisioner == "kubernetes.io/no-provisioner" {
        return false;
    }
    let topologies = class.allowed_topologies.iter().flatten();
    let mut any = false;
    for term in topologies {
        any = true;
        let mut expressions = term.match_label_expressions.iter().flatten();
        if expressions.all(|expression| {
            labels
                .get(&expression.key)
                .is_some_and(|value| expression.values.contains(value))
        }) {
            return true;
        }
    }
    !any
}

fn node_affinity(volume: &PersistentVolume) -> NodeMatch {
    volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref())
        .map(NodeMatch::of_selector)
        .unwrap_or_default()
}

/// In bytes.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity
        .and_then(|capacity| capacity.get("storage"))
        .map_or(0, quantity::value)
}

/// Whether a free volume can serve the claim, its place aside.
pub fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(wish)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    if volume.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let reserved = offer.claim_ref.as_ref();
    let reserved_for_it = reserved.is_some_and(|reserved| {
        reserved.name == claim.metadata.name
            && reserved.namespace == claim.metadata.namespace
            && (reserved.uid.is_none() || reserved.uid == claim.metadata.uid)
    });
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let free = reserved_for_it
        || (reserved.is_none() && matches!(phase, Some("Available" | "Pending") | None));
    let class_of = |name: &Option<String>| name.clone().unwrap_or_default();
    let wanted = wish
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
        .and_then(|requests| requests.get("storage"))
        .map_or(0, quantity::value);
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let no_labels = Labels::new();
    let labels = volume.metadata.labels.as_ref().unwrap_or(&no_labels);
    free && class_of(&offer.storage_class_name) == class_of(&wish.storage_class_name)
        && mode(&offer.volume_mode) == mode(&wish.volume_mode)
        && capacity(volume) >= wanted
        && wish.access_modes.iter().flatten().all(|mode| {
            offer
                .access_modes
                .as_ref()
                .is_some_and(|modes| modes.contains(mode))
        })
        && wish
            .selector
            .as_ref()
            .is_none_or(|selector| LabelMatch::new(Some(selector)).matches(labels))
}
