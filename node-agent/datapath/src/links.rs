//! Links: a program at its hook, pinned. Attaching where a pinned link exists replaces its program
//! in place, so that there is no moment without one and never two of ours at one hook.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::sys::{self, AttachType, Target};

#[derive(Debug)]
pub(crate) struct Links {
    folder: PathBuf,
}

impl Links {
    pub(crate) fn new(folder: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&folder).map_err(|error| Error::file("create", &folder, error))?;
        Ok(Self { folder })
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
        match std::fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("remove", path, error)),
        }
    }
}
