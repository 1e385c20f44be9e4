//! A cgroup, a bpffs folder, a network namespace and a loaded datapath of this test's own, gone when it ends.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{Array, Map, MapData};
use nix::sched::{CloneFlags, unshare};
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

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some("cgroup2"))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split_whitespace().nth(1).unwrap())
}
