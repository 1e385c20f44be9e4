//! From Docker's files of one container to its file in the CRI format.
//!
//! Docker's JSON lines become the same bytes whenever they are read, so two numbers are enough to go on after a crash
//! at any step: up to where Docker's file was read, and how long ours was then. What ours has beyond that was written
//! before the numbers could be kept; that many bytes are made again and dropped. A write that fails (the disk is full)
//! takes the same way.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::Rotation;
use super::chain::{Chain, Cursor, Suffix, inode_of};

/// Longer than any line of Docker's: 16 KiB of text, each byte of it escaped.
const CHUNK: usize = 256 << 10;

/// One line of Docker's file.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// Appends what `json` says in the CRI format: `2016-10-06T00:17:09.669794202Z stdout F text`. A piece without a
/// newline at its end is partial. What is no line of Docker's is left out.
pub fn convert(json: &[u8], out: &mut Vec<u8>) {
    for line in json.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else {
            continue;
        };
        let (text, tag) = match line.log.strip_suffix('\n') {
            Some(text) => (text, "F"),
            None => (&*line.log, "P"),
        };
        out.extend_from_slice(nine_digits(&line.time).as_bytes());
        for part in [" ", &line.stream, " ", tag, " ", text, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Docker leaves zeros at the end of a fraction out; with them, times sort as text.
fn nine_digits(time: &str) -> Cow<'_, str> {
    let Some(bare) = time.strip_suffix('Z') else {
        return time.into();
    };
    let (seconds, fraction) = bare.split_once('.').unwrap_or((bare, ""));
    if fraction.len() == 9 {
        return time.into();
    }
    format!("{seconds}.{fraction:0<9}Z").into()
}

/// Where the paths of one container lead.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Docker's.
    pub source: PathBuf,
    pub log: PathBuf,
    /// What shippers look for; leads to `log`.
    pub link: PathBuf,
    /// Holds the numbers that outlive this process.
    pub position: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    source_inode: u64,
    source_offset: u64,
    log_inode: u64,
    log_size: u64,
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            source_inode: next()?,
            source_offset: next()?,
            log_inode: next()?,
            log_size: next()?,
        })
    }

    /// Always as long: a write replaces all of what was there.
    fn text(&self) -> String {
        format!(
            "{:020} {:020} {:020} {:020}\n",
            self.source_inode, self.source_offset, self.log_inode, self.log_size
        )
    }
}

struct Open {
    source: Cursor,
    log: File,
    log_inode: u64,
    log_size: u64,
    /// Bytes to make again without writing them.
    skip: u64,
}

pub struct Copy {
    paths: Paths,
    source: Chain,
    rotation: Rotation,
    open: Option<Open>,
}

impl Copy {
    pub fn new(paths: Paths, rotation: Rotation) -> Self {
        let source = Chain {
            path: paths.source.clone(),
            suffix: Suffix::Count,
        };
        Self {
            paths,
            source,
            rotation,
            open: None,
        }
    }

    /// Copies what Docker has written since the last time, a chunk of it. True: there may be more.
    ///
    /// # Errors
    /// Of the file system; a later call goes on where this one should have.
    pub fn pump(&mut self) -> io::Result<bool> {
        let result = self.step();
        if result.is_err() {
            // What was written of the last chunk is found out when it is opened again.
            self.open = None;
        }
        result
    }

    /// Nothing more is expected.
    pub fn close(&mut self) {
        self.open = None;
    }

    fn step(&mut self) -> io::Result<bool> {
        if self.open.is_none() {
            self.open = self.open()?;
        }
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        let mut buffer = vec![0; CHUNK];
        let mut length = open.source.lines(&mut buffer)?;
        if length == 0 && inode_of(&self.paths.source) != Some(open.source.inode) {
            // Rotated away: Docker has closed it, so that what is there now is all.
            length = open.source.lines(&mut buffer)?;
            if length == 0 {
                return self.next_source();
            }
        }
        if length == 0 {
            return Ok(false);
        }
        let mut made = Vec::with_capacity(length);
        convert(&buffer[..length], &mut made);
        let again = usize::try_from(open.skip).map_or(made.len(), |skip| skip.min(made.len()));
        open.skip -= again as u64;
        open.log.write_all(&made[again..])?;
        open.log_size += (made.len() - again) as u64;
        open.source.offset += length as u64;
        self.save()?;
        self.rotate()?;
        Ok(true)
    }

    /// `None`: Docker has not made its file yet.
    fn open(&self) -> io::Result<Option<Open>> {
        let kept = fs::read_to_string(&self.paths.position).ok();
        let mut kept = kept.as_deref().and_then(Position::parse);
        let source = match kept {
            Some(kept) => self.resume(kept)?,
            None => None,
        };
        let source = match source {
            Some(source) => source,
            None => {
                if let Some(kept) = &mut kept {
                    // What was read up to there is gone; all there is now is new.
                    (kept.source_inode, kept.source_offset) = (0, 0);
                }
                let Some(oldest) = self.source.files()?.into_iter().next() else {
                    return Ok(None);
                };
                Cursor::new(open_source(&oldest)?, 0)?
            }
        };
        for folder in [&self.paths.log, &self.paths.link, &self.paths.position]
            .into_iter()
            .filter_map(|path| path.parent())
        {
            fs::create_dir_all(folder)?;
        }
        if kept.is_none() {
            // Without its numbers nobody knows what is in it.
            match fs::remove_file(&self.paths.log) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let (log, log_inode, size) = self.open_log()?;
        let skip = match kept {
            Some(kept) if kept.source_inode == 0 => 0,
            Some(kept) if kept.log_inode == log_inode => size.saturating_sub(kept.log_size),
            // Rotated since, which is done only when the numbers say all.
            Some(_) => size,
            None => 0,
        };
        Ok(Some(Open {
            source,
            log,
            log_inode,
            log_size: size,
            skip,
        }))
    }

    /// Docker's file that was being read, where it was left.
    fn resume(&self, kept: Position) -> io::Result<Option<Cursor>> {
        for path in self.source.files()? {
            if inode_of(&path) != Some(kept.source_inode) {
                continue;
            }
            let source = Cursor::new(open_source(&path)?, kept.source_offset)?;
            let mut before = [0];
            let at_line = kept.source_offset == 0
                || (source.file.read_at(&mut before, kept.source_offset - 1)? == 1
                    && before == *b"\n");
            // Otherwise the number was given to another file since.
            return Ok(Some(source).filter(|s| at_line && s.inode == kept.source_inode));
        }
        Ok(None)
    }

    fn open_log(&self) -> io::Result<(File, u64, u64)> {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.paths.log)?;
        let meta = log.metadata()?;
        match symlink(&self.paths.log, &self.paths.link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok((log, meta.ino(), meta.size()))
    }

    fn save(&self) -> io::Result<()> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let position = Position {
            source_inode: open.source.inode,
            source_offset: open.source.offset,
            log_inode: open.log_inode,
            // With a part of it still to be made again, it was as long when it was read up to here.
            log_size: open.log_size - open.skip,
        };
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.paths.position)?
            .write_all_at(position.text().as_bytes(), 0)
    }

    /// On to the next of Docker's files. The one that has been copied is emptied, so that nothing is kept twice for
    /// long; by its handle, as its name may belong to another one by now.
    fn next_source(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        let Some(next) = self.source.after(open.source.inode)? else {
            // Between two names, or removed with its container.
            return Ok(false);
        };
        let next = match open_source(&next) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            next => Cursor::new(next?, 0)?,
        };
        let done = std::mem::replace(&mut open.source, next);
        self.save()?;
        done.file.set_len(0)?;
        Ok(true)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.log_size < self.rotation.max_size || open.skip > 0 {
            return Ok(());
        }
        let chain = Chain {
            path: self.paths.log.clone(),
            suffix: Suffix::Time,
        };
        // Two within a second must not change places, nor must they after the clock was set back.
        let older = chain.files()?;
        let newest = older.iter().rev().find(|path| **path != self.paths.log);
        let (mut name, mut step) = (Timestamp::now(), 1);
        let rotated = loop {
            let at = name.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S");
            let mut path = self.paths.log.clone().into_os_string();
            path.push(format!(".{at}"));
            let path = PathBuf::from(path);
            if newest.is_none_or(|newest| path > *newest) {
                break path;
            }
            name += jiff::SignedDuration::from_secs(step);
            step *= 2;
        };
        fs::rename(&self.paths.log, rotated)?;
        let (log, log_inode, log_size) = self.open_log()?;
        if let Some(open) = &mut self.open {
            (open.log, open.log_inode, open.log_size) = (log, log_inode, log_size);
        }
        self.save()?;
        let files = chain.files()?;
        let excess = files.len().saturating_sub(self.rotation.max_files.max(2));
        for old in &files[..excess] {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn open_source(path: &std::path::Path) -> io::Result<File> {
    // For writing, as it is emptied in the end.
    OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
