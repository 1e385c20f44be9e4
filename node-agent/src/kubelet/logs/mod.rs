//! Logs of containers in the usual layout and format (CRI), for log shippers and for `kubectl logs`:
//!
//! ```text
//! pods/NAMESPACE_POD_UID/CONTAINER/N.log          2016-10-06T00:17:09.669794202Z stdout F text
//! pods/NAMESPACE_POD_UID/CONTAINER/N.log.TIME     rotated
//! containers/POD_NAMESPACE_CONTAINER-ID.log       -> the first
//! ```
//!
//! Docker goes on to write files of its own, which keep what containers say while no agent runs. One task waits for
//! inotify and copies (`copy`); what was copied is dropped from Docker's files at their next rotation, so that a log
//! lies on disk once, plus what Docker has not rotated yet. A container that says nothing costs nothing.

mod chain;
mod copy;
mod read;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use futures::Stream;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::runtime::{ContainerRole, Observed, PodRef, State};
use chain::{Chain, Suffix};
use copy::{Copy, Paths};
pub use read::Options;

/// What happens within this time is copied together.
const GATHER: Duration = Duration::from_millis(20);
/// After a failure (a full disk), and where there is no inotify.
const RETRY: Duration = Duration::from_secs(1);
/// How long the logs of a pod that is gone can still be shipped.
const KEPT: Duration = Duration::from_secs(60);
const COMMANDS: usize = 256;
/// Bytes of inotify's events that are read at once.
const EVENTS: usize = 4096;
/// Chunks of one container before the others have their turn.
const TURN: usize = 16;
const PODS: &str = "pods";
const CONTAINERS: &str = "containers";

/// Kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    pub max_size: u64,
    pub max_files: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            max_size: 10 << 20,
            max_files: 5,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    /// Grows with every copy.
    copies: u64,
    /// Nothing more will be written.
    ended: bool,
}

enum Command {
    Follow {
        id: String,
        copy: Box<Copy>,
        watched: PathBuf,
        progress: watch::Sender<Progress>,
        exited: bool,
    },
    Exited(String),
    /// Copy all that there is, then answer.
    Sync(String, oneshot::Sender<()>),
    Forget(String),
    /// The pod is gone; its logs follow.
    Retire(String),
    Stop(oneshot::Sender<()>),
}

struct Known {
    /// Of the pod.
    uid: String,
    progress: watch::Receiver<Progress>,
    exited: bool,
}

/// The handle that everybody else uses.
pub struct Logs {
    folder: PathBuf,
    positions: PathBuf,
    rotation: Rotation,
    commands: mpsc::Sender<Command>,
    known: Mutex<HashMap<String, Known>>,
}

impl Logs {
    /// Logs go below `folder`; what must outlive the agent, below `state`.
    pub fn start(folder: &Path, state: &Path, rotation: Rotation) -> Self {
        let (commands, receive) = mpsc::channel(COMMANDS);
        let positions = positions_below(state);
        let task = Task {
            folder: folder.to_path_buf(),
            positions: positions.clone(),
            watcher: Watcher::new(),
            followed: HashMap::new(),
            dirty: BTreeSet::new(),
            failed: BTreeSet::new(),
            retry_at: None,
            stopped: false,
            retired: BTreeMap::new(),
        };
        tokio::spawn(task.run(receive));
        Self {
            folder: folder.to_path_buf(),
            positions,
            rotation,
            commands,
            known: Mutex::default(),
        }
    }

    /// The logs of a pod, all of its containers together.
    pub fn pod_folder(&self, who: &PodRef) -> PathBuf {
        self.folder.join(PODS).join(pod_name(who))
    }

    fn paths(&self, o: &Observed, source: PathBuf) -> Paths {
        let pod = pod_name(&o.pod);
        let link = format!("{}_{}_{}-{}.log", o.pod.name, o.pod.namespace, o.name, o.id);
        Paths {
            source,
            log: self.log(o),
            link: self.folder.join(CONTAINERS).join(link),
            position: self
                .positions
                .join(pod)
                .join(format!("{}.{}", o.name, o.attempt)),
        }
    }

    fn log(&self, o: &Observed) -> PathBuf {
        self.pod_folder(&o.pod)
            .join(&o.name)
            .join(format!("{}.log", o.attempt))
    }

    /// Takes in which containers there are and which of them have ended.
    pub async fn observe(&self, observed: &[Observed]) {
        for o in observed.iter().filter(|o| o.role == ContainerRole::App) {
            let Some(source) = &o.log_path else { continue };
            let exited = o.state == State::Exited;
            let before = self.known.lock().get(&o.id).map(|known| known.exited);
            let command = match before {
                Some(ended) if ended || !exited => continue,
                Some(_) => {
                    if let Some(known) = self.known.lock().get_mut(&o.id) {
                        known.exited = true;
                    }
                    Command::Exited(o.id.clone())
                }
                None => {
                    let (send, progress) = watch::channel(Progress::default());
                    let known = Known {
                        uid: o.pod.uid.clone(),
                        progress,
                        exited,
                    };
                    self.known.lock().insert(o.id.clone(), known);
                    Command::Follow {
                        id: o.id.clone(),
                        watched: source.parent().unwrap_or(source).to_path_buf(),
                        copy: Box::new(Copy::new(self.paths(o, source.clone()), self.rotation)),
                        progress: send,
                        exited,
                    }
                }
            };
            self.tell(command).await;
        }
    }

    /// The same, of all that there is of one pod: what is not there any more was removed by somebody else.
    pub async fn observe_pod(&self, uid: &str, observed: &[Observed]) {
        self.observe(observed).await;
        let gone: Vec<String> = {
            let known = self.known.lock();
            let of_pod = known.iter().filter(|(_, known)| known.uid == uid);
            let gone = of_pod.filter(|(id, _)| observed.iter().all(|o| o.id != **id));
            gone.map(|(id, _)| id.clone()).collect()
        };
        for id in gone {
            // Its file can still be read: it is open.
            self.sync(&id).await;
            self.known.lock().remove(&id);
            self.tell(Command::Forget(id)).await;
        }
    }

    async fn tell(&self, command: Command) {
        // The task ends with the process only.
        let _ = self.commands.send(command).await;
    }

    /// Waits until all that a container has said so far is copied.
    async fn sync(&self, id: &str) {
        let (send, done) = oneshot::channel();
        self.tell(Command::Sync(id.into(), send)).await;
        let _ = done.await;
    }

    pub async fn read(
        &self,
        o: &Observed,
        options: Options,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> + 'static {
        self.observe(std::slice::from_ref(o)).await;
        self.sync(&o.id).await;
        let progress = self.known.lock().get(&o.id).map(|k| k.progress.clone());
        let chain = Chain {
            path: self.log(o),
            suffix: Suffix::Time,
        };
        // Of a container without files nothing follows.
        let progress = progress.unwrap_or_else(|| watch::channel(Progress::default()).1);
        read::stream(chain, options, progress)
    }

    /// To be called before a container is removed: Docker's files go with it.
    pub async fn finish(&self, id: &str) {
        let known = self.known.lock().contains_key(id);
        if known {
            self.sync(id).await;
        }
    }

    /// The container is removed. `files`: and nobody is to read what it has said.
    pub async fn forget(&self, o: &Observed, files: bool) {
        self.known.lock().remove(&o.id);
        self.tell(Command::Forget(o.id.clone())).await;
        if !files {
            return;
        }
        let (log, link) = (self.log(o), self.paths(o, PathBuf::new()).link);
        let position = self.paths(o, PathBuf::new()).position;
        let removed = tokio::task::spawn_blocking(move || {
            let chain = Chain {
                path: log,
                suffix: Suffix::Time,
            };
            let files = chain.files()?;
            for path in files.iter().chain([&link, &position]) {
                remove_file(path)?;
            }
            Ok::<_, io::Error>(())
        });
        if let Ok(Err(e)) = removed.await {
            warn!(id = o.id, error = %e, "cannot remove the logs of a container");
        }
    }

    /// The pod is gone: so are its logs, in a while.
    pub async fn retire(&self, uid: &str) {
        self.tell(Command::Retire(uid.into())).await;
    }

    /// Nothing is copied any more; what containers say meanwhile, Docker keeps.
    pub async fn stop(&self) {
        let (send, done) = oneshot::channel();
        self.tell(Command::Stop(send)).await;
        let _ = done.await;
    }

    /// The uids of pods that have logs here.
    pub fn pods(&self) -> Vec<String> {
        folders(&self.positions)
            .into_iter()
            .filter_map(|name| Some(name.rsplit_once('_')?.1.to_owned()))
            .collect()
    }
}

fn positions_below(state: &Path) -> PathBuf {
    state.join("logs")
}

fn pod_name(who: &PodRef) -> String {
    format!("{}_{}_{}", who.namespace, who.name, who.uid)
}

fn folders(below: &Path) -> Vec<String> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the logs of every pod that the agent with this state has kept logs of.
///
/// # Errors
/// Of the file system.
pub fn clear(folder: &Path, state: &Path) -> io::Result<()> {
    let positions = positions_below(state);
    for pod in folders(&positions) {
        remove_pod(folder, &positions, &pod)?;
    }
    Ok(())
}

fn remove_pod(folder: &Path, positions: &Path, pod: &str) -> io::Result<()> {
    let logs = folder.join(PODS).join(pod);
    let containers = folder.join(CONTAINERS);
    for name in folders(&containers) {
        let link = containers.join(name);
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(&logs)) {
            remove_file(&link)?;
        }
    }
    remove_folder(&logs)?;
    remove_folder(&positions.join(pod))
}

/// Inotify, whose events are read as from a pipe. `None`: there is none.
struct Watcher(Option<(Inotify, Receiver)>);

impl Watcher {
    fn new() -> Self {
        let made = || {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let events = inotify.as_fd().try_clone_to_owned()?;
            Ok::<_, io::Error>((inotify, Receiver::from_owned_fd_unchecked(events)?))
        };
        match made() {
            Ok(made) => Self(Some(made)),
            Err(e) => {
                warn!(error = %e, "no inotify: looking at the logs every second");
                Self(None)
            }
        }
    }

    fn add(&self, folder: &Path) -> Option<WatchDescriptor> {
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let (inotify, _) = self.0.as_ref()?;
        match inotify.add_watch(folder, flags) {
            Ok(watch) => Some(watch),
            Err(e) => {
                warn!(folder = %folder.display(), error = %e, "cannot watch a log");
                None
            }
        }
    }

    fn remove(&self, watch: WatchDescriptor) {
        if let Some((inotify, _)) = &self.0 {
            // Gone with its folder, most likely.
            let _ = inotify.rm_watch(watch);
        }
    }

    /// Where something has happened, as [`WatchDescriptor`]s print it. `None`: anywhere.
    async fn next(&mut self) -> Option<BTreeSet<i32>> {
        let Some((_, events)) = &mut self.0 else {
            tokio::time::sleep(RETRY).await;
            return None;
        };
        let mut buffer = [0; EVENTS];
        match events.read(&mut buffer).await {
            Ok(length) => touched(&buffer[..length]),
            Err(e) => {
                warn!(error = %e, "cannot read what happened to the logs");
                tokio::time::sleep(RETRY).await;
                None
            }
        }
    }
}

/// The watches that events are about: `struct inotify_event` of inotify(7), each with a name of `len` bytes behind it.
/// `None`: some were lost.
fn touched(mut events: &[u8]) -> Option<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    while let Some((head, rest)) = events.split_at_checked(16) {
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let lost = AddWatchFlags::IN_Q_OVERFLOW.bits();
        if u32::from_ne_bytes(word(4)) & lost != 0 {
            return None;
        }
        found.insert(i32::from_ne_bytes(word(0)));
        let name = usize::try_from(u32::from_ne_bytes(word(12))).unwrap_or(usize::MAX);
        events = rest.get(name..).unwrap_or_default();
    }
    Some(found)
}

struct Followed {
    copy: Box<Copy>,
    watch: Option<WatchDescriptor>,
    progress: watch::Sender<Progress>,
    exited: bool,
}

struct Task {
    folder: PathBuf,
    positions: PathBuf,
    watcher: Watcher,
    followed: HashMap<String, Followed>,
    /// To be copied now, or again later.
    dirty: BTreeSet<String>,
    failed: BTreeSet<String>,
    retry_at: Option<Instant>,
    stopped: bool,
    /// When the logs of a pod go, by its uid.
    retired: BTreeMap<String, Instant>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let due = self.retired.values().min().copied();
            let wake = due.into_iter().chain(self.retry_at).min();
            let mut waiting = Vec::new();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.obey(command, &mut waiting),
                    None => return,
                },
                happened = self.watcher.next(), if self.dirty.is_empty() => {
                    tokio::time::sleep(GATHER).await;
                    self.happened(happened);
                }
                () = std::future::ready(()), if !self.dirty.is_empty() => {}
                () = sleep_until(wake), if self.dirty.is_empty() => {
                    if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                        self.retry_at = None;
                        self.dirty.append(&mut self.failed);
                    }
                    self.sweep().await;
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command, &mut waiting);
            }
            if self.stopped {
                return;
            }
            self.copy().await;
            while !waiting.is_empty() {
                waiting.retain(|(id, _)| self.dirty.contains(id));
                if !waiting.is_empty() {
                    self.copy().await;
                }
            }
        }
    }

    fn obey(&mut self, command: Command, waiting: &mut Vec<(String, oneshot::Sender<()>)>) {
        match command {
            Command::Follow {
                id,
                copy,
                watched,
                progress,
                exited,
            } => {
                let followed = Followed {
                    copy,
                    watch: (!exited).then(|| self.watcher.add(&watched)).flatten(),
                    progress,
                    exited,
                };
                self.followed.insert(id.clone(), followed);
                self.dirty.insert(id);
            }
            Command::Exited(id) => {
                if let Some(followed) = self.followed.get_mut(&id) {
                    followed.exited = true;
                    self.dirty.insert(id);
                }
            }
            Command::Sync(id, done) => {
                let ended = |f: &Followed| f.progress.borrow().ended;
                if self.followed.get(&id).is_some_and(|f| !ended(f)) {
                    self.dirty.insert(id.clone());
                    waiting.push((id, done));
                }
            }
            Command::Forget(id) => {
                let gone = self.followed.remove(&id);
                if let Some(watch) = gone.and_then(|followed| followed.watch) {
                    self.watcher.remove(watch);
                }
                self.dirty.remove(&id);
                self.failed.remove(&id);
            }
            Command::Stop(done) => {
                self.stopped = true;
                waiting.push((String::new(), done));
            }
            Command::Retire(uid) => {
                self.retired.insert(uid, Instant::now() + KEPT);
            }
        }
    }

    fn happened(&mut self, at: Option<BTreeSet<i32>>) {
        let all = self.followed.iter();
        let touched = all.filter(|(_, followed)| match (&at, followed.watch) {
            (Some(at), Some(watch)) => at.contains(&watch.as_raw()),
            _ => true,
        });
        let open = touched.filter(|(_, followed)| !followed.progress.borrow().ended);
        self.dirty.extend(open.map(|(id, _)| id.clone()));
    }

    /// One turn for each container that has something to copy.
    async fn copy(&mut self) {
        for id in std::mem::take(&mut self.dirty) {
            let Some(mut followed) = self.followed.remove(&id) else {
                continue;
            };
            let copied = tokio::task::spawn_blocking(move || {
                let mut more = Ok(true);
                let mut turns = 0;
                while matches!(more, Ok(true)) && turns < TURN {
                    more = followed.copy.pump();
                    turns += 1;
                }
                (followed, more, turns)
            });
            let Ok((mut followed, more, turns)) = copied.await else {
                // A panic is our bug; this log ends here.
                continue;
            };
            followed.progress.send_modify(|progress| {
                progress.copies += turns as u64;
                progress.ended = followed.exited && matches!(more, Ok(false));
            });
            match more {
                Ok(true) => {
                    self.dirty.insert(id.clone());
                }
                Ok(false) if followed.exited => {
                    if let Some(watch) = followed.watch.take() {
                        self.watcher.remove(watch);
                    }
                    followed.copy.close();
                }
                Ok(false) => {}
                Err(e) => {
                    self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
                    if self.failed.insert(id.clone()) {
                        warn!(id, error = %e, "cannot copy a log; will retry");
                    }
                }
            }
            self.followed.insert(id, followed);
        }
    }

    async fn sweep(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .retired
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            self.retired.remove(&uid);
            let (folder, positions) = (self.folder.clone(), self.positions.clone());
            let removed = tokio::task::spawn_blocking(move || {
                for pod in folders(&positions) {
                    if pod.rsplit_once('_').is_some_and(|(_, found)| found == uid) {
                        remove_pod(&folder, &positions, &pod)?;
                        info!(pod, "removed the logs of a pod that is gone");
                    }
                }
                Ok::<_, io::Error>(())
            });
            if let Ok(Err(e)) = removed.await {
                warn!(error = %e, "cannot remove the logs of a pod");
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
