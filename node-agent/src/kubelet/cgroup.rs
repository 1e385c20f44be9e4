//! A pod's own cgroup, the parent of its containers' cgroups.
//!
//! Docker runs with the cgroupfs driver and makes missing parents itself, without limits; here the
//! pod's limits are set before and the folders removed after. Version 1 (one hierarchy a
//! controller), version 2 and the mixture of both are told apart by what is mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::{ContainerStats, ResourceLimits};

#[derive(Debug, Clone)]
pub struct Cgroups {
    /// Mount point and controllers of each hierarchy; version 2 has the controller `unified`.
    hierarchies: Vec<(PathBuf, Vec<String>)>,
}

impl Cgroups {
    pub fn discover() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let hierarchies = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1);
                let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
                let controllers = match kind {
                    "cgroup2" => vec!["unified".to_string()],
                    "cgroup" => options.split(',').map(String::from).collect(),
                    _ => return None,
                };
                Some((PathBuf::from(path), controllers))
            })
            .collect();
        Self { hierarchies }
    }

    fn version2_only(&self) -> bool {
        self.hierarchies
            .iter()
            .all(|(_, controllers)| controllers.iter().any(|c| c == "unified"))
    }

    fn folder(&self, controller: &str, group: &str) -> Option<PathBuf> {
        self.hierarchies
            .iter()
            .find(|(_, controllers)| controllers.iter().any(|c| c == controller))
            .map(|(mount, _)| mount.join(group.trim_start_matches('/')))
    }

    /// The group's folder in the version 2 hierarchy.
    pub fn unified(&self, group: &str) -> Option<PathBuf> {
        self.folder("unified", group)
    }

    /// Moves this process into a leaf below `parent`, if it is in `parent` itself: a version 2 group
    /// with processes of its own cannot give controllers to its children.
    pub fn enter(&self, parent: &str) -> io::Result<()> {
        let Some(folder) = self.unified(parent) else {
            return Ok(());
        };
        fs::create_dir_all(&folder)?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let here = own.lines().find_map(|line| line.strip_prefix("0::"));
        if here.map(|path| path.trim_matches('/')) != Some(parent.trim_matches('/')) {
            return Ok(());
        }
        let leaf = folder.join("agent");
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())
    }

    /// Makes the group with these limits. A limit that cannot be set is an error; a controller that
    /// is not mounted is not.
    pub fn create(&self, group: &str, limits: &ResourceLimits) -> io::Result<()> {
        if self.version2_only() {
            return self.create_v2(group, limits);
        }
        if let Some(folder) = self.folder("cpu", group) {
            fs::create_dir_all(&folder)?;
            if let Some(shares) = limits.cpu_shares {
                write(&folder, "cpu.shares", shares)?;
            }
            if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us) {
                write(&folder, "cpu.cfs_period_us", period)?;
                write(&folder, "cpu.cfs_quota_us", quota)?;
            }
        }
        if let Some(folder) = self.folder("memory", group) {
            fs::create_dir_all(&folder)?;
            if let Some(bytes) = limits.memory_bytes {
                write(&folder, "memory.limit_in_bytes", bytes)?;
            }
        }
        if let Some((folder, pids)) = self.folder("pids", group).zip(limits.pids) {
            fs::create_dir_all(&folder)?;
            write(&folder, "pids.max", pids)?;
        }
        Ok(())
    }

    /// Takes the limits of a group away, not its share of the CPU. Missing is success.
    pub fn relax(&self, group: &str) -> io::Result<()> {
        let files: &[(&str, &str, &str)] = match self.version2_only() {
            true => &[
                ("unified", "cpu.max", "max"),
                ("unified", "memory.max", "max"),
            ],
            false => &[
                ("cpu", "cpu.cfs_quota_us", "-1"),
                ("memory", "memory.limit_in_bytes", "-1"),
            ],
        };
        for (controller, file, value) in files {
            let folder = self.folder(controller, group);
            if let Some(folder) = folder.filter(|f| f.join(file).exists()) {
                write(&folder, file, value)?;
            }
        }
        Ok(())
    }

    fn create_v2(&self, group: &str, limits: &ResourceLimits) -> io::Result<()> {
        let Some(folder) = self.folder("unified", group) else {
            return Ok(());
        };
        fs::create_dir_all(&folder)?;
        let Some(root) = self.folder("unified", "") else {
            return Ok(());
        };
        let mut parent = root;
        for part in group.trim_matches('/').split('/') {
            for controller in ["+cpu", "+memory", "+pids"] {
                // Already on, or not offered by the parent: the limit's write says so.
                let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
            }
            parent.push(part);
        }
        if let Some(shares) = limits.cpu_shares {
            // KEP-2254: 2..262144 shares become a weight of 1..10000.
            let weight = 1 + ((shares.max(2) - 2) * 9999) / 262_142;
            write(&folder, "cpu.weight", weight)?;
        }
        if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us) {
            write(&folder, "cpu.max", format!("{quota} {period}"))?;
        }
        if let Some(bytes) = limits.memory_bytes {
            write(&folder, "memory.max", bytes)?;
        }
        if let Some(pids) = limits.pids {
            write(&folder, "pids.max", pids)?;
        }
        Ok(())
    }

    /// What the group's processes use. `None`: there is no such group.
    pub fn usage(&self, group: &str) -> Option<ContainerStats> {
        let read_at = Some(jiff::Timestamp::now());
        let number = |folder: &Path, file: &str| -> Option<u64> {
            fs::read_to_string(folder.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        // `name value` lines.
        let table = |folder: &Path, file: &str, name: &str| -> u64 {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
        };
        if self.version2_only() {
            let folder = self.folder("unified", group).filter(|f| f.exists())?;
            let memory = number(&folder, "memory.current").unwrap_or(0);
            let inactive = table(&folder, "memory.stat", "inactive_file");
            return Some(ContainerStats {
                cpu_usage_ns: table(&folder, "cpu.stat", "usage_usec") * 1000,
                memory_usage_bytes: memory,
                memory_working_set_bytes: memory.saturating_sub(inactive),
                memory_rss_bytes: table(&folder, "memory.stat", "anon"),
                pids: number(&folder, "pids.current").unwrap_or(0),
                read_at,
            });
        }
        let cpu = self.folder("cpuacct", group).filter(|f| f.exists())?;
        let (mut memory, mut inactive, mut rss) = (0, 0, 0);
        if let Some(folder) = self.folder("memory", group) {
            memory = number(&folder, "memory.usage_in_bytes").unwrap_or(0);
            inactive = table(&folder, "memory.stat", "total_inactive_file");
            rss = table(&folder, "memory.stat", "total_rss");
        }
        let pids = self.folder("pids", group);
        Some(ContainerStats {
            cpu_usage_ns: number(&cpu, "cpuacct.usage").unwrap_or(0),
            memory_usage_bytes: memory,
            memory_working_set_bytes: memory.saturating_sub(inactive),
            memory_rss_bytes: rss,
            pids: pids.and_then(|f| number(&f, "pids.current")).unwrap_or(0),
            read_at,
        })
    }

    /// Removes the group in every hierarchy. What still has processes stays and is an error.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        let mut result = Ok(());
        for (mount, _) in &self.hierarchies {
            let folder = mount.join(group.trim_start_matches('/'));
            if let Err(e) = remove_tree(&folder)
                && e.kind() != io::ErrorKind::NotFound
            {
                result = Err(e);
            }
        }
        result
    }
}

/// The files of a cgroup cannot be unlinked, only its folders.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

fn write(folder: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = folder.join(file);
    fs::write(&path, value.to_string())
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}
