//! What the agent must know of the daemon's process: its network namespace and what it may do.

use std::path::{Path, PathBuf};

use tracing::warn;

/// What a hostNetwork sandbox needs in order to be in the node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostNetwork {
    /// The daemon is in the agent's own network namespace.
    Docker,
    /// The agent's namespace as a file that the daemon can mount.
    File(PathBuf),
    Unreachable,
}

/// Known by the peer of its socket.
pub(super) async fn daemon_pid(socket: &Path) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    u32::try_from(stream.peer_cred().ok()?.pid()?).ok()
}

/// Without CAP_SYS_RESOURCE (a daemon inside a confined machine) a score cannot be lowered, and a
/// container that asks for it does not start at all.
pub(super) fn least_oom_score(daemon: Option<u32>) -> i64 {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let Some(pid) = daemon else { return -1000 };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let capabilities = read("status").ok().and_then(|status| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?
            .trim();
        u64::from_str_radix(line, 16).ok()
    });
    match capabilities {
        Some(held) if held & CAP_SYS_RESOURCE == 0 => {
            let least = read("oom_score_adj")
                .ok()
                .and_then(|n| n.trim().parse().ok())
                .unwrap_or(0);
            warn!(
                least,
                "Docker lacks CAP_SYS_RESOURCE: containers keep at least this OOM score"
            );
            least
        }
        _ => -1000,
    }
}

pub(super) fn host_network(daemon: Option<u32>) -> HostNetwork {
    let own = std::fs::read_link("/proc/self/ns/net").ok();
    let daemon = daemon.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok());
    if own.is_some() && own == daemon {
        return HostNetwork::Docker;
    }
    use std::os::unix::fs::MetadataExt;
    let Ok(own) = std::fs::metadata("/proc/self/ns/net") else {
        return HostNetwork::Unreachable;
    };
    let named = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    for entry in named {
        if let Ok(meta) = entry
            .metadata()
            .or_else(|_| std::fs::metadata(entry.path()))
            && (meta.dev(), meta.ino()) == (own.dev(), own.ino())
        {
            return HostNetwork::File(entry.path());
        }
    }
    HostNetwork::Unreachable
}

/// Kills every process of a session. What Docker executes leads a session of its own.
pub(super) fn kill_session(leader: i32) {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let session = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; after it: state, parent, group, session.
        let rest = stat.rsplit_once(')')?.1;
        rest.split_whitespace().nth(3)?.parse::<i32>().ok()
    };
    for entry in entries {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|pid| session(*pid) == Some(leader)) {
            let process = nix::unistd::Pid::from_raw(pid);
            // Ended by itself meanwhile, most likely.
            let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
