//! A log file together with what was rotated away from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How older files are named: the name of the file that is written, a dot, and this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suffix {
    /// Docker's `.1` is newer than `.2`.
    Count,
    /// The kubelet's `.20161006-001709`.
    Time,
}

#[derive(Debug, Clone)]
pub struct Chain {
    /// The file that is being written.
    pub path: PathBuf,
    pub suffix: Suffix,
}

impl Chain {
    /// Oldest first; the file that is being written is the last one.
    ///
    /// # Errors
    /// Of the file system; a folder that is not there holds no file.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut older: Vec<(i64, PathBuf)> = Vec::new();
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(Vec::new());
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut current = false;
        for entry in entries {
            let entry = entry?;
            let (found, name) = (entry.file_name(), name.to_string_lossy());
            let found = found.to_string_lossy();
            if found == name {
                current = true;
                continue;
            }
            let suffix = found
                .strip_prefix(&*name)
                .and_then(|rest| rest.strip_prefix('.'));
            let Some(suffix) = suffix else { continue };
            let age = match self.suffix {
                Suffix::Count => suffix.parse().ok().map(|n: i64| -n),
                Suffix::Time => suffix.replace('-', "").parse().ok(),
            };
            older.extend(age.map(|age| (age, entry.path())));
        }
        older.sort();
        let mut files: Vec<PathBuf> = older.into_iter().map(|(_, path)| path).collect();
        files.extend(current.then(|| self.path.clone()));
        Ok(files)
    }

    /// The file that was begun after the one with this inode; the oldest one when that is gone. `None`: there is no
    /// newer one.
    ///
    /// # Errors
    /// Of the file system.
    pub fn after(&self, inode: u64) -> io::Result<Option<PathBuf>> {
        let files = self.files()?;
        let at = files
            .iter()
            .position(|path| inode_of(path).is_some_and(|found| found == inode));
        Ok(files.into_iter().nth(at.map_or(0, |at| at + 1)))
    }
}

pub fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// A place in a chain of files.
#[derive(Debug)]
pub struct Cursor {
    pub file: File,
    pub inode: u64,
    pub offset: u64,
}

impl Cursor {
    pub fn new(file: File, offset: u64) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self {
            file,
            inode,
            offset,
        })
    }

    /// Whole lines from here on, as many as fit into `buffer`. Zero: no whole line has been written yet.
    pub fn lines(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self
                .file
                .read_at(&mut buffer[filled..], self.offset + filled as u64)
            {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let whole = buffer[..filled].iter().rposition(|b| *b == b'\n');
        Ok(match whole {
            Some(end) => end + 1,
            // No line is that long: not a log. All of it goes.
            None if filled == buffer.len() => filled,
            None => 0,
        })
    }
}
