//! Links: a program at its hook, pinned. Attaching where a pinned link exists replaces its program
//! in place, so that there is no moment without one and never two of ours at one hook.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::clsact::{self, Side};
use crate::error::Error;
use crate::sys::{self, AttachType, Target};

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcHook {
    /// tcx, or where the kernel has none (before 6.6) clsact.
    #[default]
    Auto,
    Clsact,
}

#[derive(Debug)]
pub(crate) struct Links {
    folder: PathBuf,
    tc: TcHook,
}

impl Links {
    pub(crate) fn new(folder: PathBuf, tc: TcHook) -> Result<Self, Error> {
        std::fs::create_dir_all(&folder).map_err(|error| Error::file("create", &folder, error))?;
        Ok(Self { folder, tc })
    }

    /// Attaches a tc program to a side of an interface. A filter of clsact, which cannot be pinned,
    /// has an empty folder in the place of a link.
    pub(crate) fn attach_tc(
        &self,
        kind: &str,
        ifindex: u32,
        side: Side,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let name = format!("{kind}-{ifindex}-{}", side.name());
        let path = self.path(&name);
        let had_filter = path.is_dir();
        if self.tc == TcHook::Auto && !had_filter {
            let attach_type = match side {
                Side::Ingress => AttachType::TcxIngress,
                Side::Egress => AttachType::TcxEgress,
            };
            let target = Target::Interface(ifindex);
            match self.attach(&name, program, &target, attach_type) {
                // The kernel knows no such attach type.
                Err(Error::Kernel { source, .. })
                    if source.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other,
            }
        }
        clsact::attach(program, ifindex, side)
            .map_err(|error| Error::kernel("attach by clsact", &name, error))?;
        if !had_filter {
            self.unpin(&path)?;
            std::fs::create_dir(&path).map_err(|error| Error::file("create", path, error))?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn attach(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        target: &Target<'_>,
        attach_type: AttachType,
    ) -> Result<(), Error> {
        self.attach_with(name, program, target, attach_type, 0)
    }

    /// `flags` are those of the attach type; a link that exists keeps its own.
    pub(crate) fn attach_with(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        target: &Target<'_>,
        attach_type: AttachType,
        flags: u32,
    ) -> Result<(), Error> {
        let path = self.path(name);
        match sys::open_pin(&path) {
            Ok(link) => match sys::link_update(link.as_fd(), program) {
                Ok(()) => return Ok(()),
                // What it was attached to is gone; so is its use.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                    self.unpin(&path)?;
                }
                Err(error) => return Err(Error::kernel("replace the program of", name, error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("open", path, error)),
        }
        let link = sys::link_create(program, target, attach_type, flags)
            .map_err(|error| Error::kernel("attach", name, error))?;
        sys::pin(link.as_fd(), &path).map_err(|error| Error::file("pin", path, error))
    }

    /// Detaches; missing is success.
    pub(crate) fn detach(&self, name: &str) -> Result<(), Error> {
        self.unpin(&self.path(name))
    }

    pub(crate) fn names(&self) -> Result<Vec<String>, Error> {
        let entries = std::fs::read_dir(&self.folder)
            .map_err(|error| Error::file("list", &self.folder, error))?;
        entries
            .map(|entry| {
                entry
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .map_err(|error| Error::file("list", &self.folder, error))
            })
            .collect()
    }

    fn unpin(&self, path: &Path) -> Result<(), Error> {
        if path.is_dir() {
            return remove_filter(path);
        }
        match std::fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("remove", path, error)),
        }
    }
}

/// Removes every filter whose stand-in is in `folder`. Call inside the node's network namespace.
pub(crate) fn remove_filters(folder: &Path) -> Result<(), Error> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .try_for_each(|path| remove_filter(&path))
}

fn remove_filter(path: &Path) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut words = name.rsplit('-');
    let side = match words.next() {
        Some("in") => Side::Ingress,
        _ => Side::Egress,
    };
    if let Some(ifindex) = words.next().and_then(|word| word.parse().ok()) {
        clsact::detach(ifindex, side)
            .map_err(|error| Error::kernel("detach by clsact", name.clone(), error))?;
    }
    std::fs::remove_dir(path).map_err(|error| Error::file("remove", path, error))
}
