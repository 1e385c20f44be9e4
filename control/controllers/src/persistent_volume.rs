//! Binds PersistentVolumeClaims to PersistentVolumes, makes node-local volumes, and protects both while they are in use.
//!
//! Watches: PersistentVolumeClaim, PersistentVolume, StorageClass, Pod. Writes: claims, volumes and their status.
//!
//! A claim of a class with `WaitForFirstConsumer` waits until the scheduler has named a node (`selected-node`) or reserved
//! a volume. For the provisioner [`LOCAL_PATH`] a volume is a directory on that node: the node agent makes it when the
//! first pod mounts it (`hostPath`, `DirectoryOrCreate`). Generic ephemeral volumes get their claims here too.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use serde_json::{Value, json};
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};
use skep_scheduler::volumes::{self, capacity, is_bound};

use crate::{
    context::{Context, Doing, Error},
    owners, pods,
};

const WORKERS: usize = 4;
/// Between two attempts to have a node remove a folder.
const FOLDER_RETRY: std::time::Duration = std::time::Duration::from_secs(15);
/// What the runtimes of nodes without containers say.
const HOLLOW: &str = "hollow://";
/// The provisioner of node-local directories.
pub const LOCAL_PATH: &str = "skep.io/local-path";
const LOCAL_PATH_ROOT: &str = "/var/lib/skep/volumes";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        claims: context.informers.of(),
        volumes: context.informers.of(),
        classes: context.informers.of(),
        pods: context.informers.of(),
        events: context.events.from("persistentvolume-controller"),
        context: context.clone(),
    });
    let (mut claims, mut volumes, mut ephemeral) = (context.work(), context.work(), context.work());
    claims.feed_self(&controller.claims);
    volumes.feed_self(&controller.volumes);
    volumes.feed(&controller.claims, |change| {
        let names = change
            .each()
            .filter_map(|claim| claim.spec.as_ref()?.volume_name.clone());
        names
            .filter(|name| !name.is_empty())
            .map(ObjectKey::cluster)
            .collect()
    });
    let watcher = controller.clone();
    claims.feed(&controller.volumes, move |change| {
        let reserved = change
            .each()
            .filter_map(|volume| volume.spec.as_ref()?.claim_ref.clone());
        let mut keys: Vec<ObjectKey> = reserved
            .map(|claim| {
                ObjectKey::new(
                    claim.namespace.unwrap_or_default(),
                    claim.name.unwrap_or_default(),
                )
            })
            .collect();
        if keys.is_empty() {
            // A free volume: whoever waits may want it.
            let open = watcher
                .claims
                .all()
                .into_iter()
                .filter(|claim| !is_bound(claim));
            keys.extend(open.map(|claim| ObjectKey::of(&claim.metadata)));
        }
        keys
    });
    let watcher = controller.clone();
    claims.feed(&controller.classes, move |_| {
        let open = watcher
            .claims
            .all()
            .into_iter()
            .filter(|claim| !is_bound(claim));
        open.map(|claim| ObjectKey::of(&claim.metadata)).collect()
    });
    claims.feed(&controller.pods, |change| {
        // Protection ends with the last pod that uses the claim.
        let ended = change.new.as_ref().is_none_or(|pod| pods::is_finished(pod));
        if ended {
            used_claims(change.object())
        } else {
            Vec::new()
        }
    });
    ephemeral.feed(&controller.pods, |change| match &change.new {
        Some(pod) if has_ephemeral(pod) && !pods::is_terminating(pod) => {
            vec![ObjectKey::of(&pod.metadata)]
        }
        _ => Vec::new(),
    });
    volumes.reads(&controller.classes);
    volumes.reads(&controller.pods);
    ephemeral.reads(&controller.claims);
    ephemeral.reads(&controller.volumes);
    ephemeral.reads(&controller.classes);
    let (a, b, c) = (controller.clone(), controller.clone(), controller);
    tokio::join!(
        // One worker: two claims must not choose the same volume.
        claims.run(
            "persistentvolume-binder",
            1,
            a,
            |controller, key| async move { controller.reconcile_claim(key).await }
        ),
        volumes.run(
            "persistentvolume",
            WORKERS,
            b,
            |controller, key| async move { controller.reconcile_volume(key).await }
        ),
        ephemeral.run(
            "ephemeral-volume",
            WORKERS,
            c,
            |controller, key| async move { controller.reconcile_ephemeral(key).await }
        ),
    );
}

struct Controller {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    events: Recorder,
    context: Arc<Context>,
}

fn used_claims(pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .into_iter()
        .filter_map(
            |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => Some(claim.claim_name.clone()),
                (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
                (None, None) => None,
            },
        )
        .map(|claim| ObjectKey::new(namespace, claim))
        .collect()
}

fn has_ephemeral(pod: &Pod) -> bool {
    pod.spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .any(|volume| volume.ephemeral.is_some())
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the volume is promised to this very claim.
fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reserved = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    reserved.is_some_and(|reserved| {
        reserved.name == claim.metadata.name
            && reserved.namespace == claim.metadata.namespace
            && (reserved.uid.as_ref().is_none_or(String::is_empty)
                || reserved.uid == claim.metadata.uid)
    })
}

/// The class for an unbound claim that names none, not even `""`: it was made before there was a default one (KEP-3333).
/// Of several default classes the newest counts, as in admission.
fn late_default(claim: &PersistentVolumeClaim, classes: &[Arc<StorageClass>]) -> Option<String> {
    let spec = claim.spec.as_ref()?;
    let named = spec.storage_class_name.is_some()
        || annotation(&claim.metadata, CLASS_ANNOTATION).is_some()
        || spec
            .volume_name
            .as_ref()
            .is_some_and(|name| !name.is_empty());
    if named {
        return None;
    }
    let default = classes.iter().filter(|class| {
        DEFAULT_CLASS
            .iter()
            .any(|key| annotation(&class.metadata, key) == Some("true"))
    });
    let newest = default.max_by(|a, b| {
        let made = |class: &StorageClass| class.metadata.creation_timestamp.clone();
        made(a)
            .cmp(&made(b))
            .then_with(|| b.metadata.name.cmp(&a.metadata.name))
    })?;
    newest.metadata.name.clone()
}

/// What to do with an unbound claim.
#[derive(Debug, PartialEq)]
enum Plan {
    Bind(String),
    Provision {
        node: String,
    },
    Wait {
        reason: &'static str,
        message: String,
    },
}

fn plan(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    all: &[Arc<PersistentVolume>],
) -> Plan {
    let name = |volume: &PersistentVolume| volume.metadata.name.clone().unwrap_or_default();
    let asked = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.clone())
        .filter(|name| !name.is_empty());
    if let Some(asked) = asked {
        let volume = all.iter().find(|volume| name(volume) == asked);
        let free = volume.is_some_and(|volume| {
            is_reserved_for(volume, claim)
                || volume
                    .spec
                    .as_ref()
                    .is_some_and(|spec| spec.claim_ref.is_none())
        });
        return if free {
            Plan::Bind(asked)
        } else {
            let message = match volume {
                Some(_) => format!("volume \"{asked}\" already bound to a different claim."),
                None => format!("volume \"{asked}\" not found"),
            };
            Plan::Wait {
                reason: "FailedBinding",
                message,
            }
        };
    }
    if let Some(volume) = all.iter().find(|volume| is_reserved_for(volume, claim)) {
        return Plan::Bind(name(volume));
    }
    let waits = class.and_then(|class| class.volume_binding_mode.as_deref())
        == Some("WaitForFirstConsumer");
    if waits {
        let node = annotation(&claim.metadata, SELECTED_NODE);
        let spec = claim.spec.as_ref();
        let is_block = spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block");
        return match (node, class) {
            (Some(_), Some(class)) if class.provisioner == LOCAL_PATH && is_block => Plan::Wait {
                reason: "ProvisioningFailed",
                message: format!(
                    "{LOCAL_PATH} makes folders: a claim with volumeMode: Block needs a local volume of a block device"
                ),
            },
            (Some(node), Some(class)) if class.provisioner == LOCAL_PATH => Plan::Provision {
                node: node.to_owned(),
            },
            (Some(_), Some(class)) => waiting_for(&class.provisioner),
            _ => Plan::Wait {
                reason: "WaitForFirstConsumer",
                message: "waiting for first consumer to be created before binding".into(),
            },
        };
    }
    let smallest = all
        .iter()
        .filter(|volume| volumes::satisfies(volume, claim))
        .min_by_key(|volume| capacity(volume));
    match (smallest, class) {
        (Some(volume), _) => Plan::Bind(name(volume)),
        (None, Some(class)) if class.provisioner == LOCAL_PATH => Plan::Wait {
            reason: "ProvisioningFailed",
            message: format!(
                "{LOCAL_PATH} needs a storage class with volumeBindingMode: WaitForFirstConsumer"
            ),
        },
        (None, Some(class)) if class.provisioner != "kubernetes.io/no-provisioner" => {
            waiting_for(&class.provisioner)
        }
        (None, _) => Plan::Wait {
            reason: "FailedBinding",
            message: "no persistent volumes available for this claim and no storage class is set"
                .into(),
        },
    }
}

fn waiting_for(provisioner: &str) -> Plan {
    Plan::Wait {
        reason: "ExternalProvisioning",
        message: format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        ),
    }
}

/// The node that a local volume of ours is on.
fn node_of(spec: &PersistentVolumeSpec) -> Option<String> {
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == "metadata.name")?;
    name.values.as_ref()?.first().cloned()
}

/// A directory on one node.
fn local_volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &str,
) -> Result<PersistentVolume, Error> {
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let spec = claim.spec.clone().unwrap_or_default();
    let name = format!("pvc-{uid}");
    let root = class
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.get("path"))
        .map_or(LOCAL_PATH_ROOT, String::as_str);
    let volume = json!({
        "metadata": { "name": name, "annotations": { PROVISIONED_BY: LOCAL_PATH } },
        "spec": {
            "capacity": { "storage": spec.resources.and_then(|resources| resources.requests?.get("storage").cloned()) },
            "accessModes": spec.access_modes,
            "volumeMode": spec.volume_mode,
            "storageClassName": spec.storage_class_name,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "hostPath": { "path": format!("{root}/{name}"), "type": "DirectoryOrCreate" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [ { "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": [node] } ] } ] } },
            "claimRef": { "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": uid },
        },
    });
    serde_json::from_value(volume)
        .map_err(|error| Error::Invalid(format!("cannot describe a local volume: {error}")))
}

/// Adds or removes one finalizer.
pub(crate) async fn set_finalizer<K>(
    api: &kube::Api<K>,
    object: &K,
    finalizer: &str,
    wanted: bool,
) -> Result<(), Error>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let meta = object.meta();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    finalizers.retain(|own| own != finalizer);
    if wanted {
        finalizers.push(finalizer.to_owned());
    }
    let patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version,
        "finalizers": finalizers } });
    let name = meta.name.as_deref().unwrap_or_default();
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if writes::is_not_found(&error) => Ok(()),
        Err(error) => Err(error).doing("change a protection finalizer"),
    }
}

impl Controller {
    async fn reconcile_claim(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.get(&key) else {
            return Ok(Action::done());
        };
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        let has_protection = claim
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|own| own == CLAIM_PROTECTION);
        if claim.metadata.deletion_timestamp.is_some() {
            let in_use = self
                .pods
                .in_namespace(&key.namespace)
                .iter()
                .any(|pod| !pods::is_finished(pod) && used_claims(pod).contains(&key));
            if has_protection && !in_use {
                set_finalizer(&api, claim.as_ref(), CLAIM_PROTECTION, false).await?;
            }
            return Ok(Action::done());
        }
        if !has_protection {
            set_finalizer(&api, claim.as_ref(), CLAIM_PROTECTION, true).await?;
            return Ok(Action::done());
        }
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_default();
        if is_bound(&claim) && annotation(&claim.metadata, BIND_COMPLETED).is_some() {
            let volume_name = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.volume_name.clone())
                .unwrap_or_default();
            let volume = self.volumes.get(&ObjectKey::cluster(&volume_name));
            return match volume.filter(|volume| is_reserved_for(volume, &claim)) {
                Some(volume) => {
                    self.claim_status(&api, &claim, &bound_status(&volume))
                        .await?;
                    Ok(Action::done())
                }
                None => {
                    if phase != "Lost" {
                        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                        self.events.warning(claim.as_ref(), "ClaimLost", message);
                    }
                    self.claim_status(&api, &claim, &json!({ "phase": "Lost" }))
                        .await?;
                    Ok(Action::done())
                }
            };
        }
        if let Some(class) = late_default(&claim, &self.classes.all()) {
            let patch = json!({ "metadata": { "resourceVersion": claim.metadata.resource_version },
                "spec": { "storageClassName": class } });
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .doing("give the claim the default storage class")?;
            return Ok(Action::done());
        }
        let class = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.clone())
            .unwrap_or_default();
        let class = self.classes.get(&ObjectKey::cluster(class));
        match plan(&claim, class.as_deref(), &self.volumes.all()) {
            Plan::Bind(volume) => self.bind(&key, &claim, &volume).await?,
            Plan::Provision { node } => {
                let Some(class) = class else {
                    return Ok(Action::done());
                };
                let volume = local_volume(&claim, &class, &node)?;
                let name = volume.metadata.name.clone().unwrap_or_default();
                match self
                    .context
                    .cluster_api::<PersistentVolume>()
                    .create(&PostParams::default(), &volume)
                    .await
                {
                    Ok(_) => self.events.normal(
                        claim.as_ref(),
                        "ProvisioningSucceeded",
                        format!("Successfully provisioned volume {name}"),
                    ),
                    Err(error) if writes::is_already_exists(&error) => {}
                    Err(error) => return Err(error).doing("create a local volume"),
                }
            }
            Plan::Wait { reason, message } => {
                if phase.is_empty() {
                    self.claim_status(&api, &claim, &json!({ "phase": "Pending" }))
                        .await?;
                }
                self.events.normal(claim.as_ref(), reason, message);
            }
        }
        Ok(Action::done())
    }

    /// Volume first: what it says decides if we stop half way.
    async fn bind(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        volume: &str,
    ) -> Result<(), Error> {
        let Some(cached) = self.volumes.get(&ObjectKey::cluster(volume)) else {
            return Ok(());
        };
        let volumes = self.context.cluster_api::<PersistentVolume>();
        let reserved_uid = cached
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref())
            .and_then(|claim| claim.uid.clone());
        let mut current = (*cached).clone();
        if reserved_uid != claim.metadata.uid {
            let patch = json!({ "metadata": { "resourceVersion": cached.metadata.resource_version,
                    "annotations": { BOUND_BY_CONTROLLER: "yes" } },
                "spec": { "claimRef": { "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": key.namespace,
                    "name": key.name, "uid": claim.metadata.uid } } });
            current = volumes
                .patch(volume, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .doing("reserve the volume")?;
        }
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        let patch = json!({ "metadata": { "uid": claim.metadata.uid,
                "annotations": { BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes" } },
            "spec": { "volumeName": volume } });
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing("bind the claim")?;
        self.claim_status(&api, &written, &bound_status(&current))
            .await?;
        self.volume_phase(&current, "Bound").await?;
        tracing::info!(kind = "PersistentVolumeClaim", namespace = %key.namespace, name = %key.name, volume, "bound");
        Ok(())
    }

    async fn claim_status(
        &self,
        api: &kube::Api<PersistentVolumeClaim>,
        claim: &PersistentVolumeClaim,
        status: &Value,
    ) -> Result<(), Error> {
        // Other fields of the status (resize, modify) are left alone.
        let old = serde_json::to_value(&claim.status).unwrap_or_default();
        let mut new = if old.is_object() {
            old.clone()
        } else {
            json!({})
        };
        for (field, value) in status.as_object().into_iter().flatten() {
            new[field] = value.clone();
        }
        match writes::merge_status(api, &claim.metadata, &old, &new).await {
            Ok(_) => Ok(()),
            Err(error) if writes::is_not_found(&error) => Ok(()),
            Err(error) => Err(error).doing("update the claim's status"),
        }
    }

    async fn volume_phase(&self, volume: &PersistentVolume, phase: &str) -> Result<(), Error> {
        let old = serde_json::to_value(&volume.status).unwrap_or_default();
        let mut new = if old.is_object() {
            old.clone()
        } else {
            json!({})
        };
        new["phase"] = json!(phase);
        let api = self.context.cluster_api::<PersistentVolume>();
        match writes::merge_status(&api, &volume.metadata, &old, &new).await {
            Ok(_) => Ok(()),
            Err(error) if writes::is_not_found(&error) => Ok(()),
            Err(error) => Err(error).doing("update the volume's phase"),
        }
    }

    async fn reconcile_volume(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(volume) = self.volumes.get(&key) else {
            return Ok(Action::done());
        };
        let api = self.context.cluster_api::<PersistentVolume>();
        let spec = volume.spec.clone().unwrap_or_default();
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_default();
        let has_protection = volume
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|own| own == VOLUME_PROTECTION);
        if volume.metadata.deletion_timestamp.is_some() {
            if has_protection && phase != "Bound" {
                if let Err(why) = self.remove_folder(&volume).await? {
                    let message = format!("cannot remove the folder of the volume: {why}");
                    self.events
                        .warning(volume.as_ref(), "VolumeFailedDelete", message);
                    return Ok(Action::requeue(FOLDER_RETRY));
                }
                set_finalizer(&api, volume.as_ref(), VOLUME_PROTECTION, false).await?;
                return Ok(Action::done());
            }
        } else if !has_protection {
            set_finalizer(&api, volume.as_ref(), VOLUME_PROTECTION, true).await?;
            return Ok(Action::done());
        }
        let Some(reserved) = &spec.claim_ref else {
            self.volume_phase(&volume, "Available").await?;
            return Ok(Action::done());
        };
        let claim = self.claims.get(&ObjectKey::new(
            reserved.namespace.clone().unwrap_or_default(),
            reserved.name.clone().unwrap_or_default(),
        ));
        match claim {
            Some(claim) if is_reserved_for(&volume, &claim) => {
                let bound = claim
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.volume_name.as_ref())
                    == Some(&key.name);
                if bound {
                    self.volume_phase(&volume, "Bound").await?;
                } else if phase.is_empty() {
                    self.volume_phase(&volume, "Available").await?;
                }
            }
            // Reserved by hand for a claim that does not exist yet.
            None if reserved.uid.as_ref().is_none_or(String::is_empty) => {
                self.volume_phase(&volume, "Available").await?
            }
            _ => {
                // The cache may miss a claim that a provisioner just saw: ask before giving data up.
                let (namespace, name) = (
                    reserved.namespace.as_deref().unwrap_or_default(),
                    reserved.name.as_deref().unwrap_or_default(),
                );
                let live = self
                    .context
                    .api::<PersistentVolumeClaim>(namespace)
                    .get_opt(name)
                    .await;
                if live
                    .doing("look up the claim")?
                    .is_some_and(|live| live.metadata.uid == reserved.uid)
                {
                    return Ok(Action::requeue(std::time::Duration::from_secs(1)));
                }
                self.volume_phase(&volume, "Released").await?;
                let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(LOCAL_PATH);
                if ours && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
                    writes::delete(
                        &api,
                        &key.name,
                        volume.metadata.uid.clone(),
                        DeleteParams::default(),
                    )
                    .await
                    .doing("delete a released volume")?;
                }
            }
        }
        Ok(Action::done())
    }

    /// Has the node remove what it made for a volume whose policy is to go with its claim. A node that is no more
    /// holds no folder. The inner error: why the node did not.
    async fn remove_folder(&self, volume: &PersistentVolume) -> Result<Result<(), String>, Error> {
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(LOCAL_PATH);
        let node = spec
            .and_then(node_of)
            .filter(|_| ours && policy == Some("Delete"));
        let Some(node) = node else { return Ok(Ok(())) };
        let found = self.context.cluster_api::<Node>().get_opt(&node).await;
        let status = found.doing("look up the node of a volume")?;
        let Some(status) = status.and_then(|node| node.status) else {
            return Ok(Ok(()));
        };
        let runtime = status.node_info.map(|info| info.container_runtime_version);
        if runtime.is_none_or(|version| version.is_empty() || version.starts_with(HOLLOW)) {
            // Never had a file.
            return Ok(Ok(()));
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let path = format!("/api/v1/nodes/{node}/proxy/skep/volumes/{name}");
        let request = http::Request::delete(path).body(Vec::new());
        let request = request.map_err(|error| Error::Invalid(error.to_string()))?;
        let asked = self.context.client.request_text(request).await;
        Ok(match asked {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => Err(error.to_string()),
        })
    }

    async fn reconcile_ephemeral(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.get(&key) else {
            return Ok(Action::done());
        };
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for volume in pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
        {
            let Some(template) = volume
                .ephemeral
                .as_ref()
                .and_then(|source| source.volume_claim_template.as_ref())
            else {
                continue;
            };
            let name = format!("{}-{}", key.name, volume.name);
            if self
                .claims
                .get(&ObjectKey::new(&key.namespace, &name))
                .is_some()
            {
                continue;
            }
            let meta = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(key.namespace.clone()),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![owners::reference(pod.as_ref())]),
                    ..Default::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {}
                Err(error)
                    if writes::is_already_exists(&error)
                        || writes::is_namespace_terminating(&error) => {}
                Err(error) => return Err(error).doing("create the claim of an ephemeral volume"),
            }
        }
        Ok(Action::done())
    }
}

fn bound_status(volume: &PersistentVolume) -> Value {
    let spec = volume.spec.clone().unwrap_or_default();
    json!({ "phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(extra: Value) -> PersistentVolumeClaim {
        let mut claim = json!({ "metadata": { "name": "data", "namespace": "default", "uid": "c" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
        for (key, value) in extra.as_object().into_iter().flatten() {
            for (field, value) in value.as_object().into_iter().flatten() {
                claim[key][field] = value.clone();
            }
        }
        serde_json::from_value(claim).expect("a claim")
    }

    fn volume(name: &str, size: &str, claim_ref: Value) -> Arc<PersistentVolume> {
        let volume = json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
            "capacity": { "storage": size }, "claimRef": claim_ref }, "status": { "phase": "Available" } });
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    fn class(provisioner: &str, mode: &str) -> StorageClass {
        serde_json::from_value(json!({ "metadata": { "name": "s" }, "provisioner": provisioner, "volumeBindingMode": mode }))
            .expect("a class")
    }

    fn reason(plan: Plan) -> &'static str {
        match plan {
            Plan::Wait { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_from_before_the_default_class_gets_it() {
        let classes = |default: &[&str]| -> Vec<Arc<StorageClass>> {
            let names = ["a", "b"].into_iter();
            let made = names.map(|name| {
                let mut class = class("x", "Immediate");
                class.metadata.name = Some(name.into());
                if default.contains(&name) {
                    let default = (DEFAULT_CLASS[0].to_owned(), "true".to_owned());
                    class.metadata.annotations = Some([default].into());
                }
                Arc::new(class)
            });
            made.collect()
        };
        let late = |extra: Value, default: &[&str]| late_default(&claim(extra), &classes(default));
        assert_eq!(late(json!({}), &["b"]).as_deref(), Some("b"));
        assert_eq!(late(json!({}), &["a", "b"]).as_deref(), Some("a"));
        assert_eq!(late(json!({}), &[]), None);
        assert_eq!(
            late(json!({"spec": {"storageClassName": ""}}), &["b"]),
            None
        );
        assert_eq!(late(json!({"spec": {"volumeName": "mine"}}), &["b"]), None);
    }

    #[test]
    fn which_volume_a_claim_gets() {
        let free = [
            volume("large", "5Gi", json!(null)),
            volume("fits", "2Gi", json!(null)),
            volume("small", "1Mi", json!(null)),
        ];
        assert_eq!(
            plan(&claim(json!({})), None, &free),
            Plan::Bind("fits".into())
        );
        assert_eq!(
            reason(plan(&claim(json!({})), None, &free[2..])),
            "FailedBinding"
        );
        let reserved = [volume(
            "mine",
            "2Gi",
            json!({ "name": "data", "namespace": "default", "uid": "c" }),
        )];
        assert_eq!(
            plan(&claim(json!({})), None, &reserved),
            Plan::Bind("mine".into())
        );
        let theirs = [volume(
            "theirs",
            "2Gi",
            json!({ "name": "data", "namespace": "default", "uid": "old" }),
        )];
        assert_eq!(
            reason(plan(&claim(json!({})), None, &theirs)),
            "FailedBinding"
        );
        let named = claim(json!({ "spec": { "volumeName": "theirs" } }));
        assert_eq!(reason(plan(&named, None, &theirs)), "FailedBinding");
    }

    #[test]
    fn the_first_consumer_decides_where() {
        let waiting = class(LOCAL_PATH, "WaitForFirstConsumer");
        let plain = claim(json!({ "spec": { "storageClassName": "s" } }));
        assert_eq!(
            reason(plan(&plain, Some(&waiting), &[])),
            "WaitForFirstConsumer"
        );
        let chosen = claim(
            json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } }, "spec": { "storageClassName": "s" } }),
        );
        assert_eq!(
            plan(&chosen, Some(&waiting), &[]),
            Plan::Provision { node: "n1".into() }
        );
        let block = claim(
            json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } }, "spec": { "volumeMode": "Block" } }),
        );
        assert_eq!(
            reason(plan(&block, Some(&waiting), &[])),
            "ProvisioningFailed"
        );
        let other = class("example.com/disk", "WaitForFirstConsumer");
        assert_eq!(
            reason(plan(&chosen, Some(&other), &[])),
            "ExternalProvisioning"
        );
        assert_eq!(
            reason(plan(&plain, Some(&class(LOCAL_PATH, "Immediate")), &[])),
            "ProvisioningFailed"
        );
        let made = local_volume(&chosen, &waiting, "n1").expect("describable");
        assert!(is_reserved_for(&made, &chosen));
        let path = made
            .spec
            .and_then(|spec| spec.host_path)
            .map(|path| path.path);
        assert_eq!(path.as_deref(), Some("/var/lib/skep/volumes/pvc-c"));
    }
}
