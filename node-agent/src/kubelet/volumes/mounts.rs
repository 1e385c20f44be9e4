//! Mounts that Docker must see.
//!
//! An agent that runs in a network namespace often has a mount namespace of its own too
//! (`ip netns exec` makes one), and what it mounts there no container would see. So mounts happen
//! in the daemon's namespace, on a thread that enters it and ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The mount namespace of the process that starts containers.
#[derive(Debug, Clone)]
pub struct MountNamespace {
    /// `None`: it is our own. Held open, as the daemon's successor lives in the same one and its
    /// predecessor's number means nothing any more.
    daemon: Option<Arc<File>>,
}

impl MountNamespace {
    pub fn own() -> Self {
        Self { daemon: None }
    }

    pub fn of_process(pid: u32) -> Self {
        let path = format!("/proc/{pid}/ns/mnt");
        let own = fs::read_link("/proc/self/ns/mnt").ok();
        let theirs = fs::read_link(&path).ok();
        let daemon = match theirs.is_some() && own != theirs {
            true => File::open(&path).ok().map(Arc::new),
            false => None,
        };
        Self { daemon }
    }

    /// Runs `work` where containers' mounts are seen.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Some(namespace) = &self.daemon else {
            return work();
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // A thread that shares its root folder with others may not change namespaces.
                unshare(CloneFlags::CLONE_FS)?;
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the mount thread panicked")))
        })
    }

    pub fn is_mounted(&self, path: &Path) -> bool {
        self.mounted_below(path).iter().any(|p| p == path)
    }

    fn mounted_below(&self, path: &Path) -> Vec<PathBuf> {
        let mounts = self
            .inside(|| fs::read_to_string("/proc/thread-self/mounts"))
            .unwrap_or_default();
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(plain)
            .filter(|p| p.starts_with(path))
            .collect()
    }

    /// Shows at `target` what is at `source` with all that is mounted below it, and none of it can be written to there.
    /// What is mounted below `source` later does not appear.
    ///
    /// Docker before version 25 makes only the mount itself read-only; a copy of mounts keeps what each of them allows.
    pub fn mount_read_only(&self, source: &Path, target: &Path) -> io::Result<()> {
        self.unmount_below(target)?;
        self.inside(|| {
            match source.is_dir() {
                true => fs::create_dir_all(target)?,
                false => {
                    fs::create_dir_all(target.parent().unwrap_or(target))?;
                    File::create(target).map(drop)?;
                }
            }
            let none = None::<&str>;
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(source), target, none, bind, none)?;
            let protect = || -> io::Result<()> {
                let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
                mount(none, target, none, private, none)?;
                for line in fs::read_to_string("/proc/thread-self/mounts")?.lines() {
                    let mut fields = line.split(' ').skip(1);
                    let at = plain(fields.next().unwrap_or_default());
                    if at.starts_with(target) {
                        let kept = kept_flags(fields.nth(1).unwrap_or_default());
                        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                        mount(none, &at, none, flags | kept, none)?;
                    }
                }
                Ok(())
            };
            protect().inspect_err(|_| {
                // Half of it must not be taken for the whole.
                let _ = umount2(target, MntFlags::MNT_DETACH);
            })
        })
    }

    pub fn mount_tmpfs(&self, path: &Path, size_bytes: Option<i64>) -> io::Result<()> {
        let mut options = "mode=777".to_string();
        if let Some(size) = size_bytes {
            options.push_str(&format!(",size={size}"));
        }
        self.inside(|| {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some("tmpfs"),
                path,
                Some("tmpfs"),
                flags,
                Some(options.as_str()),
            )?;
            Ok(())
        })
    }

    pub fn unmount_below(&self, path: &Path) -> io::Result<()> {
        let mut mounted = self.mounted_below(path);
        if mounted.is_empty() {
            return Ok(());
        }
        // The deepest first.
        mounted.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
        self.inside(|| {
            for path in &mounted {
                umount2(path, MntFlags::MNT_DETACH)?;
            }
            Ok(())
        })
    }
}

/// A path of /proc/mounts, where white space and backslashes are octal.
fn plain(text: &str) -> PathBuf {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let plain = escapes
        .iter()
        .fold(text.to_owned(), |text, (escape, c)| text.replace(escape, c));
    plain.into()
}

/// What a mount forbids besides: a remount that does not repeat it would allow it again.
fn kept_flags(options: &str) -> MsFlags {
    let known = [
        ("nosuid", MsFlags::MS_NOSUID),
        ("nodev", MsFlags::MS_NODEV),
        ("noexec", MsFlags::MS_NOEXEC),
        ("noatime", MsFlags::MS_NOATIME),
        ("nodiratime", MsFlags::MS_NODIRATIME),
        ("relatime", MsFlags::MS_RELATIME),
    ];
    let given = |name: &str| options.split(',').any(|option| option == name);
    let flags = known.iter().filter(|(name, _)| given(name));
    flags.fold(MsFlags::empty(), |all, (_, flag)| all | *flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mount_forbids_stays_forbidden() {
        let flags = kept_flags("rw,nosuid,noexec,relatime,size=4k");
        let expected = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
        assert_eq!(flags, expected);
        assert_eq!(plain("/a\\040b\\134040"), Path::new("/a b\\040"));
    }
}
