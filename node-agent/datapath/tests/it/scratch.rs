//! A cgroup, a bpffs folder, a network namespace and a loaded datapath of this test's own, gone when it ends.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData};
use nix::sched::{CloneFlags, unshare};
use skep_datapath::layout::flow::{
    BUCKET_SLOTS, FlowEnd, FlowHash, FlowKey4, FlowPlace, FlowPlaces, STRAYS, tag_of,
};
use skep_datapath::{Datapath, DatapathConfig, Limits, TcHook, XdpMode, cleanup, ensure_bpffs};

pub(crate) struct Scratch {
    pub(crate) config: DatapathConfig,
    cgroup: PathBuf,
    bpf_parent: PathBuf,
}

/// `None`, after saying why, where the test cannot run.
pub(crate) fn scratch(name: &str) -> Option<Scratch> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {name} needs root to load eBPF programs");
        return None;
    }
    // Whatever the programs fail to translate: no packet of a test leaves the machine.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    shell("link set lo up");
    let id = format!(
        "skep-dptest-{}-{}-{name}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let cgroup = cgroup2().join(&id);
    std::fs::create_dir(&cgroup).unwrap();
    let bpf_parent = PathBuf::from("/sys/fs/bpf").join(&id);
    ensure_bpffs(&bpf_parent).unwrap();
    let config = DatapathConfig {
        bpf_dir: bpf_parent.join("node"),
        cgroup: cgroup.clone(),
        uplink_ifindex: None,
        uplink_mac: [2, 0, 0, 0, 0, 0xaa],
        node_ips: vec![IpAddr::from([192, 0, 2, 10])],
        masquerade: true,
        tc: TcHook::Auto,
        xdp: XdpMode::Off,
        limits: Limits {
            flows: 4_096,
            frontends: 1_024,
            slots: 1 << 17,
            backends: 8_192,
        },
    };
    Some(Scratch {
        config,
        cgroup,
        bpf_parent,
    })
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn shell(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

impl Scratch {
    /// Leaves the backends as agents had them that counted connections in a map of their own.
    pub(crate) fn split_backends(&self) {
        let maps = self.config.bpf_dir.join("maps");
        let path = maps.join("BACKENDS-v2");
        let pinned = Map::Array(MapData::from_pin(&path).unwrap());
        let elements = Array::<MapData, [u8; 32]>::try_from(pinned).unwrap();
        let mut backends = Array::<MapData, [u8; 24]>::create(elements.len(), 0).unwrap();
        let mut counts = Array::<MapData, [u8; 8]>::create(elements.len(), 0).unwrap();
        for (index, element) in (0..).zip(elements.iter()) {
            let element = element.unwrap();
            let (backend, count) = element.split_at(24);
            let backend = <[u8; 24]>::try_from(backend).unwrap();
            backends.set(index, backend, 0).unwrap();
            let count = <[u8; 8]>::try_from(count).unwrap();
            counts.set(index, count, 0).unwrap();
        }
        backends.pin(maps.join("BACKENDS-v1")).unwrap();
        counts.pin(maps.join("BACKEND_COUNTS-v1")).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    /// Leaves one identity, of a network, as agents had it that knew nothing of its other addresses.
    pub(crate) fn narrow_identities(&self) {
        let maps = self.config.bpf_dir.join("maps");
        std::fs::remove_file(maps.join("IDENTITIES-v2")).unwrap();
        let without_room = 1;
        let mut identities =
            LpmTrie::<MapData, [u8; 16], u32>::create(1_024, without_room).unwrap();
        identities.insert(&ten(), 300, 0).unwrap();
        identities.pin(maps.join("IDENTITIES-v1")).unwrap();
    }

    /// The same as an agent of today has it: the identity, and the bits that it shares.
    pub(crate) fn widened_identity(&self) -> [u32; 2] {
        let path = self.config.bpf_dir.join("maps/IDENTITIES-v2");
        let pinned = Map::LpmTrie(MapData::from_pin(path).unwrap());
        let identities = LpmTrie::<MapData, [u8; 16], [u32; 2]>::try_from(pinned).unwrap();
        identities.get(&ten(), 0).unwrap()
    }

    fn pinned(&self, name: &str) -> Map {
        Map::Array(MapData::from_pin(self.config.bpf_dir.join("maps").join(name)).unwrap())
    }

    pub(crate) fn flow_buckets(&self) -> Array<MapData, [u8; 256]> {
        self.pinned("FLOWS4-v2").try_into().unwrap()
    }

    /// Buckets that say of their receivers that something to them is elsewhere.
    pub(crate) fn straying(&self) -> usize {
        let buckets = self.flow_buckets();
        let tags = buckets.iter().map(|bucket| word(&bucket.unwrap(), 0));
        tags.filter(|tags| tags & STRAYS != 0).count()
    }

    /// Leaves all flows in buckets of their own, as agents had them that knew no others. Returns how many
    /// buckets the answers were in. Connections may be in use meanwhile.
    pub(crate) fn spread_flows(&self) -> usize {
        let hashes: Array<MapData, [u8; 16]> = self.pinned("FLOW_HASH-v1").try_into().unwrap();
        let hash = hashes.get(&0, 0).unwrap();
        let hash = FlowHash {
            seed: word(&hash, 0),
            mask: word(&hash, 8) as u32,
            _pad: 0,
        };
        let mut map = self.flow_buckets();
        let before: Vec<[u8; 256]> = map.iter().map(Result::unwrap).collect();
        let (mut with, mut without) = (before.clone(), before.clone());
        for (index, bucket) in (0..).zip(&before) {
            for slot in 0..BUCKET_SLOTS {
                let at = 16 + slot * 48;
                let key = FlowKey4([word(bucket, at), word(bucket, at + 8)]);
                let tag = tag_of(word(bucket, 0), slot);
                let home = hash.receiver(FlowEnd::receiver(&key));
                if tag == 0 || home != (FlowPlace { bucket: index, tag }) {
                    continue;
                }
                let FlowPlaces { buckets, tag } = hash.places(&key);
                let own = buckets.map(|bucket| bucket as usize);
                let free = own.into_iter().find_map(|own| {
                    let free = |slot: &usize| tag_of(word(&with[own], 0), *slot) == 0;
                    Some((own, (0..BUCKET_SLOTS).find(free)?))
                });
                let (own, free) = free.unwrap();
                let flow = &bucket[at..at + 48];
                for buckets in [&mut with, &mut without] {
                    let to = &mut buckets[own];
                    let tags = word(to, 0) | tag << (12 * free);
                    to[..8].copy_from_slice(&tags.to_le_bytes());
                    to[16 + free * 48..][..48].copy_from_slice(flow);
                }
                let from = &mut without[index as usize];
                let tags = word(from, 0) & !(0xfff << (12 * slot));
                from[..8].copy_from_slice(&tags.to_le_bytes());
                from[at..at + 48].fill(0);
            }
        }
        let mut moved_from = 0;
        for (index, (with, without)) in (0..).zip(with.iter().zip(&without)) {
            map.set(index, with, 0).unwrap();
            moved_from += usize::from(with != without);
        }
        for (index, without) in (0..).zip(&without) {
            map.set(index, without, 0).unwrap();
        }
        moved_from
    }

    pub(crate) fn open(&self) -> Datapath {
        match Datapath::open(&self.config) {
            Ok(datapath) => datapath,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }

    /// Runs `body` on a thread of a child process inside the cgroup: sockets belong to the cgroup
    /// of the process that creates them.
    pub(crate) fn enter(&self) {
        std::fs::write(
            self.cgroup.join("cgroup.procs"),
            std::process::id().to_string(),
        )
        .unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::write(
            cgroup2().join("cgroup.procs"),
            std::process::id().to_string(),
        );
        let _ = cleanup(&self.config.bpf_dir);
        let _ = std::fs::remove_dir_all(&self.bpf_parent);
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// 10.0.0.0/8.
fn ten() -> Key<[u8; 16]> {
    Key::new(104, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0])
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split_whitespace().nth(1).unwrap())
}
