//! What pods and the node use, read from the kernel's own files: no call to the runtime, so that asking every few
//! seconds costs nothing.
//!
//! Which containers run, and under which id, the pods' statuses say.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::disk::Occupied;
use super::{Context, node, pod, spec};
use crate::runtime::{ContainerStats, PodRef};

/// A running container and what it uses.
#[derive(Debug, Clone)]
pub struct Used {
    pub pod: PodRef,
    pub name: String,
    /// Without its scheme.
    pub id: String,
    pub image: String,
    pub started_at: Option<Timestamp>,
    pub stats: ContainerStats,
}

/// An amount that can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    pub available: u64,
    pub capacity: u64,
}

/// Every running container of the node's pods.
pub async fn containers(ctx: &Context) -> Vec<Used> {
    let pods: Vec<_> = ctx.pods.read().values().cloned().collect();
    let mut all = Vec::new();
    for pod in pods {
        for (name, id, image, started_at) in running(&pod) {
            let stats = match &ctx.cgroups {
                Some(cgroups) => {
                    let group = format!("{}/{id}", spec::cgroup(&ctx.config, &pod));
                    cgroups.usage(&group)
                }
                None => ctx.runtime.stats(&id).await.ok(),
            };
            // Ended since.
            let Some(stats) = stats else { continue };
            all.push(Used {
                pod: pod::identity(&pod),
                name,
                id,
                image,
                started_at,
                stats,
            });
        }
    }
    all.sort_by(|a, b| {
        let key = |u: &Used| (u.pod.namespace.clone(), u.pod.name.clone(), u.name.clone());
        key(a).cmp(&key(b))
    });
    all
}

fn running(pod: &Pod) -> Vec<(String, String, String, Option<Timestamp>)> {
    let status = pod.status.as_ref();
    let lists = status.map(|s| {
        [
            &s.container_statuses,
            &s.init_container_statuses,
            &s.ephemeral_container_statuses,
        ]
    });
    lists
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .filter_map(|c| {
            let running = c.state.as_ref()?.running.as_ref()?;
            let (_, id) = c.container_id.as_deref()?.split_once("://")?;
            let started = running.started_at.as_ref().map(|at| at.0);
            Some((c.name.clone(), id.to_owned(), c.image.clone(), started))
        })
        .collect()
}

/// What is left of the node's memory.
pub fn memory() -> Level {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let rest = line.strip_prefix("MemAvailable:")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    Level {
        available: available.unwrap_or(0) * 1024,
        capacity: node::memory_kib() * 1024,
    }
}

/// Bytes and inodes of the file system that `path` is on; what is kept for root is not available.
pub fn disk(path: &Path) -> Option<(Level, Level)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    let bytes = Level {
        available: stat.blocks_available() * unit,
        capacity: stat.blocks() * unit,
    };
    let inodes = Level {
        available: stat.files_available(),
        capacity: stat.files(),
    };
    Some((bytes, inodes))
}

/// Process numbers that are left: the smaller of the kernel's two limits, less the tasks there are.
pub fn pids() -> Option<Level> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let pid_max = number("/proc/sys/kernel/pid_max")?;
    let capacity = number("/proc/sys/kernel/threads-max").map_or(pid_max, |max| max.min(pid_max));
    // `0.20 0.18 0.12 1/80 11206`: the fourth word counts tasks.
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks = load.split_whitespace().nth(3)?.split_once('/')?.1;
    let tasks: u64 = tasks.parse().ok()?;
    Some(Level {
        available: capacity.saturating_sub(tasks),
        capacity,
    })
}

/// What the files below `path` occupy. Each hard link counts once; other file systems are not entered.
pub fn occupied(path: &Path) -> Occupied {
    use std::os::unix::fs::MetadataExt;
    let Ok(top) = fs::symlink_metadata(path) else {
        return Occupied::default();
    };
    let mut seen = std::collections::HashSet::new();
    let mut folders = vec![path.to_path_buf()];
    let mut total = Occupied {
        bytes: top.blocks() * 512,
        inodes: 1,
    };
    while let Some(folder) = folders.pop() {
        // A folder that goes away meanwhile occupies nothing.
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() || (meta.nlink() > 1 && !seen.insert(meta.ino())) {
                continue;
            }
            total.bytes += meta.blocks() * 512;
            total.inodes += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_much_is_left() {
        let memory = memory();
        assert!(memory.available > 0 && memory.available <= memory.capacity);
        let pids = pids().unwrap();
        assert!(pids.available > 0 && pids.available < pids.capacity);
        let (bytes, _) = disk(Path::new("/")).unwrap();
        assert!(bytes.capacity > 0 && bytes.available <= bytes.capacity);
    }

    #[test]
    fn files_are_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = |path: &Path| occupied(path).bytes;
        let empty = occupied(folder.path());
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("below/file"), vec![7u8; 1 << 20]).unwrap();
        let once = occupied(folder.path());
        assert!(
            (1 << 20..2 << 20).contains(&(once - empty)),
            "{empty} {once}"
        );
        fs::hard_link(
            folder.path().join("below/file"),
            folder.path().join("again"),
        )
        .unwrap();
        assert!(occupied(folder.path()) - once < 1 << 16);
        assert_eq!(occupied(&folder.path().join("missing")), 0);
        assert_eq!(super::occupied(folder.path()).inodes, 3);
    }
}
