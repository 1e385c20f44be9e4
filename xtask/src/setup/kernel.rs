//! What the kernel must offer: cgroup2 and bpffs, mounted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};

pub(super) fn prepare() -> Result<()> {
    let bpffs = Path::new("/sys/fs/bpf");
    if mount_point("bpf").is_none() {
        mount_one("bpf", bpffs)?;
    }
    if mount_point("cgroup2").is_none() {
        let target = Path::new("/sys/fs/cgroup/unified");
        std::fs::create_dir_all(target).with_context(|| {
            format!(
                "no cgroup2 is mounted, and {} cannot be made",
                target.display()
            )
        })?;
        mount_one("cgroup2", target)?;
    }
    Ok(())
}

fn mount_one(kind: &str, target: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "{kind} must be mounted at {}, which needs root",
            target.display()
        );
    }
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("cannot mount {kind} at {}", target.display()))
}

/// Where the first file system of this kind is mounted.
pub(crate) fn mount_point(kind: &str) -> Option<PathBuf> {
    mount_points(|found, _| found == kind).into_iter().next()
}

/// Where cgroup file systems are mounted, of both versions.
pub(crate) fn cgroup_mounts() -> Vec<PathBuf> {
    mount_points(|kind, _| kind == "cgroup" || kind == "cgroup2")
}

fn mount_points(wanted: impl Fn(&str, &str) -> bool) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (target, kind) = (fields.next()?, fields.next()?);
            wanted(kind, target).then(|| PathBuf::from(target))
        })
        .collect()
}
