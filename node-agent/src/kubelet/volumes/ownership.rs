//! `fsGroup` of a volume that lives longer than its pod: its files become the group's.
//!
//! Upstream: `pkg/volume/volume_linux.go`, `SetVolumeOwnership`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::fs_group;
use crate::kubelet::pod;

const READ_WRITE: u32 = 0o660;
/// Of folders also: enter, and new files get the group.
const FOLDER: u32 = 0o2110;

pub(super) fn give(volume: &Path, pod: &Pod) -> io::Result<()> {
    let Some(group) = fs_group(pod) else {
        return Ok(());
    };
    let security = pod::spec(pod).security_context.as_ref();
    let policy = security.and_then(|s| s.fs_group_change_policy.as_deref());
    if policy == Some("OnRootMismatch") && is_given(volume, group)? {
        return Ok(());
    }
    walk(volume, group)
}

fn is_given(volume: &Path, group: u32) -> io::Result<bool> {
    let meta = fs::metadata(volume)?;
    let wanted = READ_WRITE | FOLDER;
    Ok(meta.gid() == group && meta.mode() & wanted == wanted)
}

/// The root last: it tells whether all was done.
fn walk(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), group)?;
        }
    }
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let more = if meta.is_dir() { FOLDER } else { 0 };
    let mode = (meta.mode() & 0o7777) | READ_WRITE | more;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_becomes_its_groups() {
        let dir = tempfile::tempdir().unwrap();
        let group = nix::unistd::getegid().as_raw();
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [],
            "securityContext": {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}}}))
        .unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x").unwrap();
        fs::set_permissions(dir.path().join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
        give(dir.path(), &pod).unwrap();
        assert_eq!(mode("d/f"), 0o660);
        assert_eq!(mode("d") & 0o2770, 0o2770);
        // The root fits: nothing is looked at again.
        fs::set_permissions(dir.path().join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        give(dir.path(), &pod).unwrap();
        assert_eq!(mode("d/f"), 0o600);
    }
}
