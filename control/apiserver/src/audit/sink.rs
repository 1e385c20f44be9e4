//! Where events go: a file that is rotated, written by a thread of its own.
//!
//! Requests never wait for the disk. They wait for room in the queue for at most [`WAIT`]; then the event is lost and
//! counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;

/// Events that may wait for the disk.
pub const QUEUE_EVENTS: usize = 10_000;
/// How long a request may wait for room.
pub const WAIT: Duration = Duration::from_millis(100);
/// Written with one flush.
const BATCH_EVENTS: usize = 400;

/// `--audit-log-*`.
#[derive(Clone, Debug)]
pub struct Options {
    /// `-` is the standard output.
    pub path: PathBuf,
    /// The file is rotated before it grows over this; 0: never.
    pub max_size_bytes: u64,
    /// Rotated files older than this go; 0: none.
    pub max_age_days: u64,
    /// Rotated files beyond this many go; 0: none.
    pub max_backups: usize,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub events: AtomicU64,
    /// Lost: the queue was full, or the disk refused them.
    pub lost: AtomicU64,
}

/// The way into the queue.
#[derive(Clone)]
pub struct Sink {
    queue: mpsc::Sender<Vec<u8>>,
    pub counters: Arc<Counters>,
}

impl Sink {
    /// Opens the file and starts the thread, which ends when the last sink is dropped.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(options: Options) -> io::Result<Self> {
        let mut log = Log::open(options)?;
        let (queue, mut events) = mpsc::channel::<Vec<u8>>(QUEUE_EVENTS);
        let counters = Arc::new(Counters::default());
        let counted = counters.clone();
        std::thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || {
                let mut batch = Vec::with_capacity(BATCH_EVENTS);
                while events.blocking_recv_many(&mut batch, BATCH_EVENTS) > 0 {
                    let count = batch.len() as u64;
                    let written = log.write(&batch);
                    batch.clear();
                    match written {
                        Ok(()) => counted.events.fetch_add(count, Ordering::Relaxed),
                        Err(error) => {
                            tracing::error!(%error, path = %log.options.path.display(), "audit events are lost");
                            counted.lost.fetch_add(count, Ordering::Relaxed)
                        }
                    };
                }
            })?;
        Ok(Self { queue, counters })
    }

    pub async fn send(&self, line: Vec<u8>) {
        if self.queue.send_timeout(line, WAIT).await.is_err() {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For where nothing can wait.
    pub fn send_now(&self, line: Vec<u8>) {
        if self.queue.try_send(line).is_err() {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

enum Output {
    Standard(io::Stdout),
    File { file: BufWriter<File>, size: u64 },
}

struct Log {
    options: Options,
    output: Output,
}

impl Log {
    fn open(options: Options) -> io::Result<Self> {
        let output = if options.path == Path::new("-") {
            Output::Standard(io::stdout())
        } else {
            open(&options.path)?
        };
        Ok(Self { options, output })
    }

    fn write(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        for line in lines {
            let length = line.len() as u64;
            if let Output::File { size, .. } = &self.output
                && self.options.max_size_bytes > 0
                && *size > 0
                && size + length > self.options.max_size_bytes
            {
                self.rotate()?;
            }
            match &mut self.output {
                Output::Standard(out) => out.write_all(line)?,
                Output::File { file, size } => {
                    file.write_all(line)?;
                    *size += length;
                }
            }
        }
        match &mut self.output {
            Output::Standard(out) => out.flush(),
            Output::File { file, .. } => file.flush(),
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        if let Output::File { file, .. } = &mut self.output {
            file.flush()?;
        }
        let now = jiff::Timestamp::now();
        std::fs::rename(&self.options.path, backup(&self.options.path, now))?;
        self.output = open(&self.options.path)?;
        self.prune(SystemTime::now());
        Ok(())
    }

    /// A file that cannot be removed is tried again at the next rotation.
    fn prune(&self, now: SystemTime) {
        let (stem, extension) = name_parts(&self.options.path);
        let folder = self.options.path.parent().unwrap_or(Path::new("."));
        let mut backups: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                name.strip_prefix(&stem)
                    .and_then(|rest| rest.strip_suffix(&extension))
                    .is_some_and(|time| time.len() == BACKUP_TIME_BYTES && time.starts_with('-'))
            })
            .collect();
        // The names sort by time, the newest last.
        backups.sort();
        let keep = match self.options.max_backups {
            0 => backups.len(),
            max => max,
        };
        let old = |path: &PathBuf| {
            let limit = Duration::from_secs(self.options.max_age_days * 24 * 3600);
            let age = std::fs::metadata(path)
                .and_then(|m| m.modified())
                .ok()
                .and_then(|modified| now.duration_since(modified).ok());
            self.options.max_age_days > 0 && age.is_some_and(|age| age > limit)
        };
        let surplus = backups.len().saturating_sub(keep);
        for (index, path) in backups.iter().enumerate() {
            if (index < surplus || old(path))
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(%error, path = %path.display(), "a rotated audit log cannot be removed");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<Output> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok(Output::File {
        file: BufWriter::new(file),
        size,
    })
}

/// `-2006-01-02T15-04-05.000`
const BACKUP_TIME_BYTES: usize = 24;

/// `audit-2006-01-02T15-04-05.000.log` for `audit.log`, as upstream's rotation names it.
fn backup(path: &Path, now: jiff::Timestamp) -> PathBuf {
    let (stem, extension) = name_parts(path);
    let time = now.strftime("%Y-%m-%dT%H-%M-%S%.3f");
    path.with_file_name(format!("{stem}-{time}{extension}"))
}

/// File name before the last dot, and from there on.
fn name_parts(path: &Path) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.rfind('.').filter(|at| *at > 0) {
        Some(at) => (name[..at].to_owned(), name[at..].to_owned()),
        None => (name.into_owned(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn rotates_by_size_and_keeps_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            path: folder.path().join("audit.log"),
            max_size_bytes: 10,
            max_age_days: 0,
            max_backups: 1,
        };
        std::fs::write(folder.path().join("audit-other.log"), "kept").unwrap();
        let mut log = Log::open(options).unwrap();
        for letter in [b'a', b'b', b'c'] {
            log.write(&[vec![letter; 8]]).unwrap();
            // Two rotations in one millisecond would have one name.
            let until = SystemTime::now() + Duration::from_millis(2);
            while SystemTime::now() < until {
                std::thread::yield_now();
            }
        }
        let names = names(folder.path());
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.contains(&"audit-other.log".to_owned()));
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("audit.log"), "cccccccc");
        let rotated = names.iter().find(|n| n.starts_with("audit-2")).unwrap();
        assert_eq!(read(rotated), "bbbbbbbb");
    }

    #[test]
    fn old_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let then = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(
            backup(&path, then).file_name().unwrap(),
            "audit-2027-01-15T08-00-00.000.log"
        );
        std::fs::write(backup(&path, then), "old").unwrap();
        let log = Log::open(Options {
            path,
            max_size_bytes: 0,
            max_age_days: 2,
            max_backups: 0,
        })
        .unwrap();
        let day = Duration::from_secs(24 * 3600);
        log.prune(SystemTime::now() + day);
        assert_eq!(names(folder.path()).len(), 2);
        log.prune(SystemTime::now() + 3 * day);
        assert_eq!(names(folder.path()), ["audit.log"]);
    }

    #[tokio::test]
    async fn a_full_queue_loses_and_counts() {
        let (queue, mut events) = mpsc::channel(1);
        let sink = Sink {
            queue,
            counters: Arc::default(),
        };
        sink.send(vec![1]).await;
        sink.send_now(vec![2]);
        sink.send(vec![3]).await;
        assert_eq!(sink.counters.lost.load(Ordering::Relaxed), 2);
        assert_eq!(events.recv().await, Some(vec![1]));
    }
}
