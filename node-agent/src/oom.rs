//! Processes that the kernel killed because memory ran out, as its log tells.
//!
//! Docker learns of a container's end by memory only once it has begun to listen for it, a moment after the container's
//! start; what dies before that is to Docker an ordinary SIGKILL. The kernel names the cgroup of each process it kills,
//! and with it the container. A process killed for want of the whole machine's memory is told to users as `SystemOOM`,
//! as the kubelet does.
//!
//! Form of the log: Documentation/ABI/testing/dev-kmsg; of the line: `dump_oom_victim` of Linux 4.19 and later. The
//! kernel bounds its lines to ten in five seconds, so some may be missing where many die at once.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use parking_lot::Mutex;

/// The kernel's log; each read gives one record.
pub const LOG: &str = "/dev/kmsg";
/// No record is longer in any kernel: `CONSOLE_EXT_LOG_MAX`.
const RECORD: usize = 8192;
/// A record's priority counts from here on when a process has written it: the kernel's own facility is 0.
const KERNEL: u32 = 8;
/// Containers remembered; a container is asked for soon after it ended.
const REMEMBERED: usize = 1024;

/// A process that died for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    pub process: String,
    pub pid: u32,
    /// The cgroup it was in, as a path from the hierarchy's root.
    cgroup: String,
    /// The machine's memory ran out, not that of a cgroup.
    system: bool,
}

impl Victim {
    /// `None` for every other record of the log.
    fn parse(record: &str) -> Option<Self> {
        let (head, message) = record.split_once(';')?;
        let priority: u32 = head.split_once(',')?.0.parse().ok()?;
        if priority >= KERNEL {
            return None;
        }
        let message = message.lines().next()?.strip_prefix("oom-kill:")?;
        // A process may have commas in its name: it stands between the last two keys that do not.
        let (front, uid) = message.rsplit_once(",uid=")?;
        uid.parse::<u32>().ok()?;
        let (front, pid) = front.rsplit_once(",pid=")?;
        let (front, cgroup) = front.split_once(",task_memcg=")?;
        let (cgroup, process) = cgroup.split_once(",task=")?;
        Some(Self {
            process: process.into(),
            pid: pid.parse().ok()?,
            cgroup: cgroup.into(),
            system: front.ends_with(",global_oom"),
        })
    }

    /// Containers' cgroups end with the container's id, with systemd as `docker-<id>.scope`.
    fn container(&self) -> Option<&str> {
        let last = self.cgroup.rsplit('/').next()?;
        let id = last.strip_suffix(".scope").unwrap_or(last);
        let id = id.rsplit('-').next()?;
        (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// Ids, the newest last.
    containers: VecDeque<String>,
    /// Not told yet.
    system: Vec<Victim>,
}

#[derive(Debug)]
pub struct OomLog {
    log: File,
    seen: Mutex<Seen>,
}

impl OomLog {
    /// Reads what the log holds already: a container may have ended while no agent ran. What befell the machine before
    /// now was told then.
    ///
    /// # Errors
    /// When the log cannot be opened, as in a container without the right to.
    pub fn open(path: &Path) -> io::Result<Self> {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        Ok(Self::over(log))
    }

    fn over(log: File) -> Self {
        let mut seen = Seen::default();
        seen.read_on(&log);
        seen.system.clear();
        Self {
            log,
            seen: Mutex::new(seen),
        }
    }

    /// Whether a process of this container died for want of memory.
    pub fn killed_in(&self, id: &str) -> bool {
        let mut seen = self.seen.lock();
        seen.read_on(&self.log);
        seen.containers.iter().any(|known| known == id)
    }

    /// Processes that died since the last question because the machine's memory ran out.
    pub fn system_victims(&self) -> Vec<Victim> {
        let mut seen = self.seen.lock();
        seen.read_on(&self.log);
        std::mem::take(&mut seen.system)
    }
}

impl Seen {
    fn read_on(&mut self, mut log: &File) {
        let mut record = [0; RECORD];
        loop {
            match log.read(&mut record) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if let Some(victim) = Victim::parse(&text) {
                        self.remember(victim);
                    }
                }
                // Records were overwritten before they were read: the next one follows.
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }

    fn remember(&mut self, victim: Victim) {
        if let Some(id) = victim.container() {
            if self.containers.len() == REMEMBERED {
                self.containers.pop_front();
            }
            self.containers.push_back(id.into());
        }
        if victim.system {
            self.system.push(victim);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const ID: &str = "143873221b1be348a1d0010dc5471288d243ebac3ce38f10bbc42a4115c8577a";

    fn record(scope: &str, cgroup: &str, task: &str) -> String {
        format!(
            "6,1339,53929560160,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={ID},mems_allowed=0,\
             {scope},task_memcg={cgroup},task={task},pid=23650,uid=0\n SUBSYSTEM=cpu\n"
        )
    }

    #[test]
    fn a_victim_names_its_container() {
        for cgroup in [
            format!("/skep/burstable/pod1/{ID}"),
            format!("/skep.slice/docker-{ID}.scope"),
        ] {
            let text = record("oom_memcg=/skep/burstable/pod1", &cgroup, "dd");
            let victim = Victim::parse(&text).expect("a victim");
            assert_eq!(victim.container(), Some(ID));
            assert_eq!((victim.process.as_str(), victim.pid), ("dd", 23650));
            assert!(!victim.system);
        }
    }

    #[test]
    fn the_machines_memory_is_told_apart() {
        let victim = Victim::parse(&record("global_oom", "/", "a,pid=1,uid=2")).expect("a victim");
        assert!(victim.system);
        assert_eq!(victim.container(), None);
        assert_eq!(
            (victim.process.as_str(), victim.pid),
            ("a,pid=1,uid=2", 23650)
        );
    }

    #[test]
    fn other_records_are_none() {
        for text in [
            "",
            "6,1,2,-;eth0: link up",
            "6,1,2,-;oom-kill:",
            "6,1,2,-;oom-kill:constraint=x,task_memcg=/,task=a,pid=b,uid=0",
            "oom-kill:task_memcg=/,task=a,pid=1,uid=0",
            // Not the kernel's own.
            "14,1,2,-;oom-kill:global_oom,task_memcg=/,task=a,pid=1,uid=0",
        ] {
            assert_eq!(Victim::parse(text), None, "{text}");
        }
    }

    /// A log that holds these records, and what further ones are written to.
    fn log(records: &[String]) -> (UnixDatagram, OomLog) {
        let (write, read) = UnixDatagram::pair().expect("sockets");
        read.set_nonblocking(true).expect("it is a socket");
        for record in records {
            write.send(record.as_bytes()).expect("it is read");
        }
        let log = OomLog::over(File::from(OwnedFd::from(read)));
        (write, log)
    }

    #[test]
    fn what_was_before_is_known_of_containers_only() {
        let cgroup = format!("/skep/{ID}");
        let (write, log) = log(&[
            record("global_oom", "/a", "old"),
            record("oom_memcg=/skep", &cgroup, "dd"),
        ]);
        assert!(log.killed_in(ID));
        assert!(!log.killed_in(&ID.replace('1', "2")));
        for process in ["new", "newer"] {
            let text = record("global_oom", "/a", process);
            write.send(text.as_bytes()).expect("it is read");
        }
        // Whoever asks of a container reads the others' records, too; they are not lost.
        assert!(log.killed_in(ID));
        let victims = log.system_victims();
        let names: Vec<&str> = victims.iter().map(|v| v.process.as_str()).collect();
        assert_eq!(names, ["new", "newer"]);
        assert_eq!(log.system_victims(), []);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut seen = Seen::default();
        for i in 0..=REMEMBERED {
            let text = record("oom_memcg=/p", &format!("/p/{i:064x}"), "dd");
            seen.remember(Victim::parse(&text).expect("a victim"));
        }
        assert_eq!(seen.containers.len(), REMEMBERED);
        assert_eq!(seen.containers[0], format!("{:064x}", 1));
    }
}
