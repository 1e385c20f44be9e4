//! What `kubectl logs` shows of a container's file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::Progress;
use super::chain::{Chain, Cursor, inode_of};
use crate::runtime::OutputStream;

const CHUNK: usize = 64 << 10;
/// Of each line as much as its time, stream and tag take.
const HEAD: usize = 64;
/// Pieces that wait for a slow reader.
const AHEAD: usize = 4;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub timestamps: bool,
    pub stream: Option<OutputStream>,
}

/// A line in the CRI format.
struct Entry<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    full: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        Some(Self {
            time: parts.next()?,
            stream: parts.next()?,
            // Tags are joined with colons; the first one says this.
            full: parts.next()?.starts_with(b"F"),
            text: parts.next()?,
        })
    }
}

/// Where to begin so that the last `count` lines follow. A line in several pieces counts once.
fn tail(chain: &Chain, count: u64) -> io::Result<Option<Cursor>> {
    let mut left = count;
    let mut last = true;
    let mut begin = None;
    for path in chain.files()?.into_iter().rev() {
        let file = File::open(&path)?;
        let end = file.metadata()?.len();
        if count == 0 {
            return Cursor::new(file, end).map(Some);
        }
        let mut starts = Starts::new(&file, end);
        let mut follows = end;
        while let Some(start) = starts.next()? {
            let mut head = [0; HEAD];
            let length = file.read_at(&mut head, start)?;
            let full = Entry::parse(&head[..length]).is_none_or(|entry| entry.full);
            if full || last {
                if left == 0 {
                    return Cursor::new(file, follows).map(Some);
                }
                left -= 1;
            }
            last = false;
            follows = start;
        }
        begin = Some(Cursor::new(file, 0)?);
    }
    Ok(begin)
}

/// Where lines start, from the last one back to the first.
struct Starts<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Of what is in the buffer.
    offset: u64,
    /// Where the line found last starts; before that, where the file ends.
    before: u64,
}

impl<'a> Starts<'a> {
    fn new(file: &'a File, end: u64) -> Self {
        Self {
            file,
            buffer: Vec::new(),
            offset: end,
            before: end,
        }
    }

    fn next(&mut self) -> io::Result<Option<u64>> {
        if self.before == 0 {
            return Ok(None);
        }
        // The newline at `before - 1` ends the line whose start is looked for.
        let mut end = self.before - 1;
        loop {
            let within = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(0);
            if let Some(at) = self.buffer[..within.min(self.buffer.len())]
                .iter()
                .rposition(|b| *b == b'\n')
            {
                self.before = self.offset + at as u64 + 1;
                return Ok(Some(self.before));
            }
            if self.offset == 0 {
                self.before = 0;
                return Ok(Some(0));
            }
            end = end.min(self.offset);
            let from = self.offset.saturating_sub(CHUNK as u64);
            self.buffer = vec![0; usize::try_from(self.offset - from).unwrap_or(0)];
            self.file.read_exact_at(&mut self.buffer, from)?;
            self.offset = from;
        }
    }
}

struct Reader {
    chain: Chain,
    options: Options,
    /// `None`: nothing was written yet.
    at: Option<Cursor>,
    /// What is left of `limit_bytes`.
    left: u64,
    line_begins: bool,
}

impl Reader {
    fn new(chain: Chain, options: Options) -> io::Result<Self> {
        let at = match options.tail_lines {
            Some(count) => tail(&chain, count)?,
            None => None,
        };
        Ok(Self {
            at,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            line_begins: true,
            chain,
            options,
        })
    }

    /// `None`: there is nothing more for now.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.at.is_none() {
            let Some(oldest) = self.chain.files()?.into_iter().next() else {
                return Ok(None);
            };
            self.at = Some(Cursor::new(File::open(oldest)?, 0)?);
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            let Some(at) = &mut self.at else {
                return Ok(None);
            };
            let mut length = at.lines(&mut buffer)?;
            if length == 0 && inode_of(&self.chain.path) != Some(at.inode) {
                // Rotated away meanwhile; it is complete now.
                length = at.lines(&mut buffer)?;
                if length == 0 {
                    let Some(next) = self.chain.after(at.inode)? else {
                        return Ok(None);
                    };
                    self.at = Some(Cursor::new(File::open(next)?, 0)?);
                    continue;
                }
            }
            if length == 0 {
                return Ok(None);
            }
            at.offset += length as u64;
            let mut out = BytesMut::new();
            self.show(&buffer[..length], &mut out);
            if !out.is_empty() || self.left == 0 {
                return Ok(Some(out.freeze()));
            }
        }
    }

    fn show(&mut self, lines: &[u8], out: &mut BytesMut) {
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let Some(entry) = Entry::parse(line.strip_suffix(b"\n").unwrap_or(line)) else {
                continue;
            };
            let begins = std::mem::replace(&mut self.line_begins, entry.full);
            let wanted = match self.options.stream {
                Some(OutputStream::Stdout) => entry.stream == b"stdout",
                Some(OutputStream::Stderr) => entry.stream == b"stderr",
                None => true,
            };
            let early = self.options.since.is_some_and(|since| {
                let at = std::str::from_utf8(entry.time).ok();
                at.and_then(|at| at.parse::<Timestamp>().ok())
                    .is_some_and(|at| at < since)
            });
            if !wanted || early {
                continue;
            }
            if self.options.timestamps && begins {
                out.extend_from_slice(entry.time);
                out.extend_from_slice(b" ");
            }
            out.extend_from_slice(entry.text);
            if entry.full {
                out.extend_from_slice(b"\n");
            }
        }
        out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= out.len() as u64;
    }
}

/// The log as its readers want it; with `follow`, until the container has ended.
pub(super) fn stream(
    chain: Chain,
    options: Options,
    mut progress: watch::Receiver<Progress>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (send, receive) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let follow = options.follow;
        let opened = tokio::task::spawn_blocking(move || Reader::new(chain, options)).await;
        let mut reader = match opened {
            Ok(Ok(reader)) => reader,
            Ok(Err(e)) => {
                let _ = send.send(Err(e)).await;
                return;
            }
            Err(_) => return,
        };
        while reader.left > 0 {
            // Looked at before reading: what comes after it is no part of what was read.
            let ended = progress.borrow_and_update().ended;
            let read = tokio::task::spawn_blocking(move || {
                let piece = reader.next();
                (reader, piece)
            });
            let Ok((again, piece)) = read.await else {
                return;
            };
            reader = again;
            match piece.transpose() {
                Some(piece) => {
                    let failed = piece.is_err();
                    if send.send(piece).await.is_err() || failed {
                        return;
                    }
                }
                None if !follow || ended => return,
                None => tokio::select! {
                    changed = progress.changed() => if changed.is_err() { return },
                    () = send.closed() => return,
                },
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receive)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
