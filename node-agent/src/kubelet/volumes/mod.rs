//! A pod's volumes as folders and files of the node.
//!
//! `pods/UID/volumes/NAME` under the state folder holds what the kubelet makes itself; host paths
//! and local persistent volumes are used where they are. Preparing is idempotent: after a restart
//! of the agent it finds what is there and changes only what differs.

mod atomic;
mod image;
mod mounts;
mod ownership;
mod payload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod,
    Volume,
};
use parking_lot::Mutex;

use super::env::NodeFacts;
use super::objects::Objects;
use super::{pod, resources};
use crate::runtime::{BoxStream, RuntimeError};
pub use mounts::MountNamespace;
pub(super) use payload::is_written;

#[derive(Debug, Clone, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub struct VolumeError {
    pub volume: String,
    pub message: String,
}

const MAX_ENV_FILE: u64 = 64 << 10;
/// Of the state folder: what is made for each pod, by its uid.
const PODS: &str = "pods";
/// Of the state folder, by the pod's uid: read-only copies of mounts. Not in the pod's own folder, whose files are
/// counted as the pod's.
const READ_ONLY: &str = "read-only-mounts";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The provisioner of node-local folders; it lives in the controllers.
const LOCAL_PATH: &str = "skep.io/local-path";

/// Where each volume of a pod is, by its name.
pub type VolumePaths = BTreeMap<String, PathBuf>;

/// Where the read-only copies of a pod's mounts are.
pub(super) fn read_only_folder(state_dir: &Path, uid: &str) -> PathBuf {
    state_dir.join(READ_ONLY).join(uid)
}

pub struct Volumes {
    pods: PathBuf,
    read_only: PathBuf,
    /// A file for each local volume that was made here: its name, and in it where it is.
    local: PathBuf,
    objects: Objects,
    namespace: MountNamespace,
    tokens: Mutex<BTreeMap<(String, String, String), payload::Token>>,
}

impl Volumes {
    pub fn new(state_dir: &Path, objects: Objects, namespace: MountNamespace) -> Self {
        Self {
            pods: state_dir.join(PODS),
            read_only: state_dir.join(READ_ONLY),
            local: state_dir.join("local-volumes"),
            objects,
            namespace,
            tokens: Mutex::default(),
        }
    }

    /// All that is there only for pods, mounts in it included.
    pub fn folders(state_dir: &Path) -> [PathBuf; 2] {
        [READ_ONLY, PODS].map(|name| state_dir.join(name))
    }

    /// What a file of a volume says, if it is there. Containers write it: no link leads out of the volume.
    ///
    /// # Errors
    /// Of the file system, and for a file that is too long for an environment.
    pub fn read_file(&self, volume: &Path, path: &str) -> io::Result<Option<String>> {
        use std::io::Read;

        use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
        self.namespace.inside(|| {
            let folder = fs::File::open(volume)?;
            let how = OpenHow::new()
                // A pipe must not keep us waiting.
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT);
            let file = match openat2(&folder, path, how) {
                Err(nix::errno::Errno::ENOENT) => return Ok(None),
                opened => fs::File::from(opened?),
            };
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("not a file"));
            }
            let mut text = String::new();
            file.take(MAX_ENV_FILE + 1).read_to_string(&mut text)?;
            match text.len() as u64 > MAX_ENV_FILE {
                true => Err(io::Error::other("longer than 64 KiB")),
                false => Ok(Some(text)),
            }
        })
    }

    /// Where mounts are made.
    pub fn namespace(&self) -> &MountNamespace {
        &self.namespace
    }

    /// Makes a volume of the files of an image.
    pub async fn unpack(
        &self,
        pod: &Pod,
        name: &str,
        archive: BoxStream<Result<Bytes, RuntimeError>>,
    ) -> io::Result<PathBuf> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let own = self.pod_dir(uid).join("volumes").join(name);
        image::unpack(&own, archive).await?;
        Ok(own)
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// Makes every volume ready for the first container.
    pub async fn prepare(&self, pod: &Pod, node: &NodeFacts) -> Result<VolumePaths, VolumeError> {
        let mut paths = VolumePaths::new();
        for volume in pod::spec(pod).volumes.iter().flatten() {
            if volume.image.is_some() {
                continue;
            }
            let path = self
                .prepare_one(pod, volume, node)
                .await
                .map_err(|message| VolumeError {
                    volume: volume.name.clone(),
                    message,
                })?;
            paths.insert(volume.name.clone(), path);
        }
        Ok(paths)
    }

    async fn prepare_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        node: &NodeFacts,
    ) -> Result<PathBuf, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let own = self.pod_dir(uid).join("volumes").join(&volume.name);
        let group = fs_group(pod);
        if let Some(source) = &volume.empty_dir {
            if let Some(medium) = &source.medium
                && medium.starts_with("HugePages")
            {
                return Err(format!(
                    "emptyDir: this node has no volumes of the medium {medium}"
                ));
            }
            self.empty_dir(pod, &own, source, group)
                .map_err(|e| e.to_string())?;
            return Ok(own);
        }
        if let Some(source) = &volume.host_path {
            return host_path(source);
        }
        if payload::is_written(volume) {
            let files = self.payload(pod, volume, node).await?;
            atomic::write(&own, &files, group).map_err(|e| e.to_string())?;
            return Ok(own);
        }
        let (claim, owned) = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => (source.claim_name.clone(), false),
            (None, Some(_)) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                (format!("{name}-{}", volume.name), true)
            }
            (None, None) => {
                return Err(
                    "no volume plugin matched: this node supports emptyDir, hostPath, configMap, secret, \
                     downwardAPI, projected and image volumes, claims and ephemeral claims for volumes of this \
                     node; it has no CSI drivers"
                        .into(),
                );
            }
        };
        self.claim(pod, &volume.name, &claim, owned).await
    }

    /// Writes changed config maps, secrets, labels and expiring tokens.
    pub async fn refresh(&self, pod: &Pod, node: &NodeFacts) -> Result<(), VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        for volume in pod::spec(pod)
            .volumes
            .iter()
            .flatten()
            .filter(|v| payload::is_written(v))
        {
            let own = self.pod_dir(uid).join("volumes").join(&volume.name);
            let outcome = match self.payload(pod, volume, node).await {
                Ok(files) => atomic::write(&own, &files, fs_group(pod)).map_err(|e| e.to_string()),
                Err(message) => Err(message),
            };
            outcome.map_err(|message| VolumeError {
                volume: volume.name.clone(),
                message,
            })?;
        }
        Ok(())
    }

    /// Whether [`Self::refresh`] has anything to do for this pod.
    pub fn changes(pod: &Pod) -> bool {
        pod::spec(pod)
            .volumes
            .iter()
            .flatten()
            .any(payload::is_written)
    }

    fn empty_dir(
        &self,
        pod: &Pod,
        path: &Path,
        source: &EmptyDirVolumeSource,
        group: Option<u32>,
    ) -> io::Result<()> {
        fs::create_dir_all(path)?;
        let memory = source.medium.as_deref() == Some("Memory");
        if memory && !self.namespace.is_mounted(path) {
            // What is written there counts as the pod's memory, so more than its limit is no use.
            let limits = [
                source.size_limit.as_ref().map(resources::value),
                resources::pod_limits(pod).memory_bytes,
            ];
            let size = limits.into_iter().flatten().filter(|s| *s > 0).min();
            self.namespace.mount_tmpfs(path, size)?;
        }
        self.namespace.inside(|| {
            let mode = if group.is_some() { 0o2777 } else { 0o777 };
            if group.is_some() {
                nix::unistd::chown(path, None, group.map(Into::into)).map_err(io::Error::from)?;
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        })
    }

    /// `owned`: the claim was made for this pod alone.
    async fn claim(
        &self,
        pod: &Pod,
        of_pod: &str,
        name: &str,
        owned: bool,
    ) -> Result<PathBuf, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claim: PersistentVolumeClaim = self
            .objects
            .get(Some(namespace), name)
            .await?
            .ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let owners = claim.metadata.owner_references.iter().flatten();
        let controller = owners.clone().find(|o| o.controller == Some(true));
        if owned && controller.map(|o| &o.uid) != pod.metadata.uid.as_ref() {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!(
                "can't start pod because PVC \"{name}\" is being deleted"
            ));
        }
        let bound = claim.status.and_then(|s| s.phase).as_deref() == Some("Bound");
        let volume = claim.spec.and_then(|s| s.volume_name).filter(|_| bound);
        let Some(volume) = volume else {
            return Err(format!("persistentvolumeclaim \"{name}\" is not bound"));
        };
        let pv: PersistentVolume = self
            .objects
            .get(None, &volume)
            .await?
            .ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
        let spec = pv.spec.unwrap_or_default();
        let is_block = spec.volume_mode.as_deref() == Some("Block");
        used_by_its_mode(pod, of_pod, is_block)?;
        if let Some(local) = spec.local {
            return local_volume(&local.path, is_block, pod);
        }
        if is_block {
            return Err(format!(
                "no block volume plugin matched: persistentvolume \"{volume}\" is not local"
            ));
        }
        if let Some(source) = spec.host_path {
            let made_for_us = pv.metadata.annotations.as_ref();
            let made_for_us = made_for_us.and_then(|a| a.get(PROVISIONED_BY));
            return match made_for_us.map(String::as_str) {
                Some(LOCAL_PATH) => {
                    let path = PathBuf::from(&source.path);
                    self.note_local(&volume, &path)
                        .and_then(|()| provisioned(&path, pod))
                        .map_err(|e| format!("{}: {e}", source.path))?;
                    Ok(path)
                }
                _ => host_path(&source),
            };
        }
        Err(format!(
            "no volume plugin matched name: persistentvolume \"{volume}\" is not local"
        ))
    }

    /// Written before the folder is made, so that each one can be found again.
    fn note_local(&self, name: &str, path: &Path) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        fs::create_dir_all(&self.local)?;
        fs::write(self.local.join(name), path.as_os_str().as_bytes())
    }

    /// Removes the folder that was made here for a local volume. Missing is success.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove_local(&self, name: &str) -> io::Result<()> {
        use std::os::unix::ffi::OsStringExt;
        let missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        // A name of ours, and no way to another folder.
        if name.contains('/') || name.starts_with('.') {
            return Ok(());
        }
        let note = self.local.join(name);
        let path = match fs::read(&note) {
            Err(e) if missing(&e) => return Ok(()),
            read => PathBuf::from(std::ffi::OsString::from_vec(read?)),
        };
        match fs::remove_dir_all(&path) {
            Err(e) if !missing(&e) => Err(e),
            _ => fs::remove_file(&note),
        }
    }

    /// Unmounts and removes everything of a pod. Missing is success.
    pub fn clean_up(&self, uid: &str) -> io::Result<()> {
        self.tokens.lock().retain(|(owner, _, _), _| owner != uid);
        // The pod's own folder last: it tells that there is something left.
        for dir in [self.read_only.join(uid), self.pod_dir(uid)] {
            self.namespace.unmount_below(&dir)?;
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Pods that left something behind: their uids.
    pub fn left_behind(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.pods).into_iter().flatten().flatten();
        entries
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()
    }

    async fn payload(
        &self,
        pod: &Pod,
        volume: &Volume,
        node: &NodeFacts,
    ) -> Result<atomic::Files, String> {
        payload::build(
            &self.objects,
            &self.tokens,
            pod,
            volume,
            node,
            Timestamp::now(),
        )
        .await
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// A block device is no folder, and the other way round.
fn used_by_its_mode(pod: &Pod, volume: &str, is_block: bool) -> Result<(), String> {
    let containers = pod::containers(pod);
    let mut all = containers.iter().map(|(_, c)| c);
    let (mode, wrong, is_wrong) = match is_block {
        true => (
            "Block",
            "volumeMounts",
            all.any(|c| c.volume_mounts.iter().flatten().any(|m| m.name == volume)),
        ),
        false => (
            "Filesystem",
            "volumeDevices",
            all.any(|c| c.volume_devices.iter().flatten().any(|d| d.name == volume)),
        ),
    };
    match is_wrong {
        true => Err(format!(
            "volume {volume} has volumeMode {mode}, but is specified in {wrong}"
        )),
        false => Ok(()),
    }
}

fn local_volume(path: &str, is_block: bool, pod: &Pod) -> Result<PathBuf, String> {
    let Ok(found) = fs::metadata(path) else {
        return Err(format!("local volume path \"{path}\" does not exist"));
    };
    let wrong = |what: &str| Err(format!("local volume path \"{path}\" is not a {what}"));
    match (is_block, found.file_type()) {
        (true, kind) if !kind.is_block_device() => return wrong("block device"),
        (true, _) => {}
        (false, kind) if !kind.is_dir() => return wrong("directory"),
        (false, _) => ownership::give(Path::new(path), pod).map_err(|e| e.to_string())?,
    }
    Ok(path.into())
}

/// A folder that was provisioned for a claim: whoever the pod runs as may write there.
fn provisioned(path: &Path, pod: &Pod) -> io::Result<()> {
    if !path.is_dir() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    ownership::give(path, pod)
}

/// Checks `type` and makes what may be made.
fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    let wanted = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(&path).ok();
    let is = |f: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(|m| f(&m.file_type()));
    let failed = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not a {what}",
            source.path
        ))
    };
    let made = |result: io::Result<()>| result.map_err(|e| format!("{}: {e}", source.path));
    match wanted {
        "" if found.is_none() => made(fs::create_dir_all(&path))?,
        "DirectoryOrCreate" => {
            if found.is_none() {
                made(fs::create_dir_all(&path))?;
            } else if !is(fs::FileType::is_dir) {
                return failed("directory");
            }
        }
        "FileOrCreate" => {
            if found.is_none() {
                made(fs::File::create(&path).map(drop))?;
            } else if !is(fs::FileType::is_file) {
                return failed("file");
            }
        }
        "Directory" if !is(fs::FileType::is_dir) => return failed("directory"),
        "File" if !is(fs::FileType::is_file) => return failed("file"),
        "Socket" if !is(FileTypeExt::is_socket) => return failed("socket file"),
        "CharDevice" if !is(FileTypeExt::is_char_device) => return failed("character device"),
        "BlockDevice" if !is(FileTypeExt::is_block_device) => return failed("block device"),
        _ => {}
    }
    Ok(path)
}

/// The path of `sub` inside a volume, made if it is missing.
///
/// # Caveats
/// Symlinks are resolved here and the result must stay inside the volume; a container that swaps a
/// folder for a symlink between this check and the mount is not caught.
pub fn sub_path(volume: &Path, sub: &str) -> io::Result<PathBuf> {
    let root = fs::canonicalize(volume)?;
    let wanted = root.join(sub);
    if fs::symlink_metadata(&wanted).is_err() {
        make_folders(&root, sub)?;
    }
    let real = fs::canonicalize(&wanted)?;
    match real.starts_with(&root) {
        true => Ok(real),
        false => Err(io::Error::other(format!(
            "subPath \"{sub}\" leaves the volume"
        ))),
    }
}

/// New folders get the volume's mode and group, as a container of any user may have to write there.
fn make_folders(root: &Path, sub: &str) -> io::Result<()> {
    let meta = fs::metadata(root)?;
    let mut path = root.to_path_buf();
    for part in sub.split('/').filter(|part| !part.is_empty()) {
        path.push(part);
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::canonicalize(&path)?.starts_with(root) {
                    return Err(io::Error::other("a symlink leaves the volume"));
                }
            }
            Err(e) => return Err(e),
            Ok(()) => {
                std::os::unix::fs::chown(&path, None, Some(meta.gid()))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
            }
        }
    }
    Ok(())
}
