//! The pinned maps of a node: those of this agent's layouts, and what former ones left.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use skep_ebpf_common::event::EVENT_RING_BYTES;
use skep_ebpf_common::flow::*;
use skep_ebpf_common::node::{Config, Network, Pod, PodAddresses};
use skep_ebpf_common::policy::{Identity, IdentityKey, RuleKey};
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, LAYOUTS};

use crate::error::Error;
use crate::sys;
use crate::table::{Plain, Prefix, Table};

/// The only folder of agents that gave all maps one version; their maps are today's of version 1.
const FORMER_FOLDER: &str = "maps-v2";
const FORMER_FOLDERS: &str = "maps-v";
/// Both families' flows in one map, of version 1.
pub(crate) const FORMER_FLOWS: &str = "FLOWS";

pub(crate) struct Pins {
    bpf_dir: PathBuf,
    folder: PathBuf,
}

impl Pins {
    /// Finds what a predecessor pinned, and refuses what cannot be its.
    pub(crate) fn open(bpf_dir: &Path) -> Result<Self, Error> {
        let folder = bpf_dir.join("maps");
        fs::create_dir_all(&folder).map_err(|error| Error::file("create", &folder, error))?;
        let pins = Self {
            bpf_dir: bpf_dir.to_path_buf(),
            folder,
        };
        pins.take_over_former()?;
        for (name, version) in LAYOUTS {
            let path = pins.path(name, version);
            if path.exists() {
                check(name, &path)?;
            }
        }
        Ok(pins)
    }

    pub(crate) fn path(&self, name: &str, version: u32) -> PathBuf {
        self.folder.join(format!("{name}-v{version}"))
    }

    pub(crate) fn current(&self, name: &str) -> PathBuf {
        let version = LAYOUTS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, version)| *version);
        self.path(name, version)
    }

    /// Maps whose layout is still today's are kept, with the connections in them.
    fn take_over_former(&self) -> Result<(), Error> {
        let former = self.bpf_dir.join(FORMER_FOLDER);
        let names = LAYOUTS.iter().map(|(name, _)| *name);
        for name in names.chain([FORMER_FLOWS]) {
            let (from, to) = (former.join(name), self.path(name, 1));
            if from.exists() && !to.exists() {
                fs::rename(&from, &to).map_err(|error| Error::file("take over", from, error))?;
            }
        }
        Ok(())
    }

    /// Gives a map of a former layout, if a predecessor left one, today's name beside its own: its keys and
    /// values have the same form, and today's programs understand what is in it. Returns whether one did; it
    /// stays beside until [`Self::remove_former`], so that who fails before begins again.
    pub(crate) fn carry_over(&self, name: &str, version: u32) -> Result<bool, Error> {
        let (from, to) = (self.path(name, version), self.current(name));
        if !from.exists() || to.exists() {
            return Ok(from.exists());
        }
        check(name, &from)?;
        let map = sys::open_pin(&from).map_err(|error| Error::file("open", &from, error))?;
        sys::pin(map.as_fd(), &to).map_err(|error| Error::file("pin", &to, error))?;
        Ok(true)
    }

    /// A map of a former layout, if a predecessor left one.
    pub(crate) fn former<K: Plain, V: Plain>(
        &self,
        name: &'static str,
        version: u32,
    ) -> Result<Option<Table<K, V>>, Error> {
        let path = self.path(name, version);
        if !path.exists() {
            return Ok(None);
        }
        let info = check_sizes(&path, size_of::<K>(), size_of::<V>())?;
        let map = sys::open_pin(&path).map_err(|error| Error::file("open", &path, error))?;
        Ok(Some(Table::new(name, info.max_entries(), map)))
    }

    /// Removes the maps of former layouts, once no program of ours uses them.
    pub(crate) fn remove_former(&self) -> Result<(), Error> {
        let current: HashSet<PathBuf> = LAYOUTS
            .iter()
            .map(|(name, version)| self.path(name, *version))
            .collect();
        for name in entries(&self.folder)? {
            let path = self.folder.join(name);
            if !current.contains(&path) {
                remove_all(&path)?;
            }
        }
        for name in entries(&self.bpf_dir)? {
            if name.to_string_lossy().starts_with(FORMER_FOLDERS) {
                remove_all(&self.bpf_dir.join(name))?;
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<Vec<OsString>, Error> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect()
        })
        .map_err(|error| Error::file("list", folder, error))
}

fn remove_all(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(|error| Error::file("remove", path, error))
}

/// Bytes of a map's keys and values.
fn sizes(name: &str) -> Option<(usize, usize)> {
    const fn of<K, V>() -> Option<(usize, usize)> {
        Some((size_of::<K>(), size_of::<V>()))
    }
    match name {
        "FRONTENDS" => of::<FrontendKey, Frontend>(),
        "SLOTS" => of::<u32, Slot>(),
        "BACKENDS" => of::<u32, BackendElement>(),
        "AFFINITIES" => of::<AffinityKey, Affinity>(),
        "SOURCE_RANGES" => of::<Prefix<SourceRange>, u32>(),
        "SOCKETS" => of::<u32, SocketRecord>(),
        "PEERS" => of::<u32, Peer>(),
        "STREAMS" => of::<u32, StreamRecord>(),
        "FLOWS4" => of::<u32, FlowBucket>(),
        "FLOW_HASH" => of::<u32, FlowHash>(),
        "FLOWS6" => of::<FlowKey, Flow>(),
        "NEXT_PORTS" => of::<u32, u32>(),
        "FRAGMENTS" => of::<FragmentKey, FragmentPorts>(),
        "CONFIG" => of::<u32, Config>(),
        "PODS" => of::<Address, Pod>(),
        "NODE_ADDRESSES" | "ANNOUNCED" => of::<Address, u32>(),
        "NETWORKS" => of::<Prefix<Address>, Network>(),
        "NETNS" => of::<u64, PodAddresses>(),
        "RULES" => of::<Prefix<RuleKey>, u32>(),
        "IDENTITIES" => of::<Prefix<IdentityKey>, Identity>(),
        "REASONS" => of::<u32, u64>(),
        "SERVICE_COUNTERS" => of::<u32, ServiceCounters>(),
        _ => None,
    }
}

fn check(name: &str, path: &Path) -> Result<(), Error> {
    if let Some((key, value)) = sizes(name) {
        return check_sizes(path, key, value).map(drop);
    }
    let found = info_of(path)?.max_entries();
    if found != EVENT_RING_BYTES {
        return Err(Error::Layout {
            path: path.to_path_buf(),
            found: format!("{found} bytes"),
            expected: format!("a ring of {EVENT_RING_BYTES} bytes"),
        });
    }
    Ok(())
}

/// Refuses a map whose keys and values are not of so many bytes.
fn check_sizes(path: &Path, key: usize, value: usize) -> Result<MapInfo, Error> {
    let info = info_of(path)?;
    let found = (info.key_size() as usize, info.value_size() as usize);
    if found != (key, value) {
        let shown = |(key, value)| format!("keys of {key} bytes, values of {value}");
        return Err(Error::Layout {
            path: path.to_path_buf(),
            found: shown(found),
            expected: shown((key, value)),
        });
    }
    Ok(info)
}

fn info_of(path: &Path) -> Result<MapInfo, Error> {
    MapData::from_pin(path)
        .and_then(|map| map.info())
        .map_err(|error| Error::file("look at", path, io::Error::other(error)))
}
