//! The datapath by itself: a network namespace, a cgroup and a folder of pins of this process's own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};
use skep_datapath::{Datapath, DatapathConfig, Limits, TcHook, XdpMode, cleanup, ensure_bpffs};

pub(crate) struct Scratch {
    pub(crate) config: DatapathConfig,
}

impl Scratch {
    /// Moves this thread into an empty network namespace: nothing that is sent leaves it.
    pub(crate) fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("needs root, for a network namespace")?;
        xtask::command::line("ip link set lo up").output()?;
        let id = format!("skep-bench-{}", std::process::id());
        let cgroup = cgroup2()?.join(&id);
        std::fs::create_dir(&cgroup)?;
        let bpf_dir = Path::new("/sys/fs/bpf").join(&id);
        ensure_bpffs(&bpf_dir)?;
        Ok(Self {
            config: DatapathConfig {
                bpf_dir,
                cgroup,
                uplink_ifindex: None,
                uplink_mac: [0; 6],
                node_ips: vec![IpAddr::from([192, 0, 2, 10])],
                masquerade: true,
                tc: TcHook::Auto,
                xdp: XdpMode::Off,
                limits: Limits::default(),
            },
        })
    }

    pub(crate) fn open(&self) -> Result<Datapath> {
        Datapath::open(&self.config).context("opening the datapath")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let left = cgroup2()
            .and_then(|root| enter(&root))
            .and_then(|()| Ok(cleanup(&self.config.bpf_dir)?))
            .and_then(|()| Ok(std::fs::remove_dir(&self.config.cgroup)?));
        if let Err(error) = left {
            eprintln!("something of the bench remains: {error:#}");
        }
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    let pid = std::process::id().to_string();
    std::fs::write(cgroup.join("cgroup.procs"), pid).context("entering a cgroup")
}

fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .and_then(|words| words.get(1).map(PathBuf::from))
        .context("no cgroup2 is mounted")
}
