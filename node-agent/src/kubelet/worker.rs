//! One task for each pod: observe, plan, execute, report.
//!
//! The worker owns everything about its pod. Actions run beside it and bring their outcome back;
//! a wake-up only makes it look again. Nothing is decided here that `plan` could decide.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    LinuxContainerUser, Node, ObjectReference, Pod, PodCondition, PodStatus,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::actions::{self, Outcome};
use super::plan::{self, Action, BACKOFF_FIRST, BACKOFF_MAX, Backoff, Failure, Key, Memory, Plan};
use super::plan::{RETRY_FIRST, RETRY_MAX};
use super::probes::{self, Report, Which};
use super::resize::{self, Allocated};
use super::volumes::VolumePaths;
use super::{Context, RUNTIME_PATIENCE, admit, pod, shutdown, status};
use crate::runtime::{ContainerRole, Image, Observed, PodRef, RuntimeError, State};

/// How often config maps, secrets and tokens in volumes are looked at.
const REFRESH: Duration = Duration::from_secs(45);
/// While the refresh before is still under way.
const REFRESH_AGAIN: Duration = Duration::from_millis(100);
/// `ErrImagePull` turns into `ImagePullBackOff` after this time.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(2);
/// How often a resize that did not fit is tried again.
const DEFERRED: Duration = Duration::from_secs(5);
const REPORTS: usize = 64;
/// In the pod's folder: what was allocated to its containers.
const ALLOCATED: &str = "allocated.json";

/// What actions may need of the worker.
#[derive(Clone)]
pub struct Shared {
    pub ctx: Arc<Context>,
    pub who: PodRef,
    pub volumes: Arc<VolumePaths>,
    pub images: Arc<HashMap<String, Image>>,
    pub ips: Vec<IpAddr>,
    /// Cancelled when the pod is to end: hooks of starting containers stop waiting.
    pub ending: CancellationToken,
    pub mirror_uid: Arc<Mutex<Option<String>>>,
}

pub struct Handle {
    pub who: PodRef,
    /// `None`: the API does not have it.
    pub desired: watch::Sender<Option<Arc<Pod>>>,
    pub wake: Arc<Notify>,
    /// Of a static pod: the uid of its mirror in the API, once there is one.
    pub mirror_uid: Arc<Mutex<Option<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Handle {
    pub fn spawn(ctx: Arc<Context>, who: PodRef, pod: Option<Arc<Pod>>) -> Self {
        let (desired, receive) = watch::channel(pod);
        let wake = Arc::new(Notify::new());
        let mut worker = Worker::new(ctx, who.clone(), receive, wake.clone());
        let mirror_uid = worker.shared.mirror_uid.clone();
        // By reference: a task that takes it as its own keeps the room where it stood before.
        let task = tokio::spawn(async move { worker.run().await });
        Self {
            who,
            desired,
            wake,
            mirror_uid,
            task,
        }
    }

    pub fn is_done(&self) -> bool {
        self.task.is_finished()
    }
}

struct Worker {
    shared: Shared,
    desired: watch::Receiver<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
    /// What was given to the containers; `None` before the pod was first seen.
    allocated: Option<Allocated>,
    /// The newest object with what was allocated instead of what it asks for.
    effective: Option<Arc<Pod>>,
    /// What was allocated has not reached every container yet.
    resizing: bool,
    /// The newest object seen; kept after the API has forgotten it only as `None`.
    pod: Option<Arc<Pod>>,
    observed: Vec<Observed>,
    memory: Memory,
    busy: BTreeMap<Key, Action>,
    running: JoinSet<(Key, Outcome)>,
    handles: BTreeMap<Key, AbortHandle>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    probing: HashMap<String, AbortHandle>,
    /// Status writes: what was sent last, and what the API answered.
    sent: Option<Arc<PodStatus>>,
    /// What the last plan made of it, written or not; where it is the same, it is so in memory too.
    computed: Option<Arc<PodStatus>>,
    answered: Option<Pod>,
    writing: bool,
    writes: JoinSet<Result<Pod, kube::Error>>,
    write_failure: Option<Failure>,
    seen_at: Timestamp,
    refresh_at: tokio::time::Instant,
    /// Notified when something that a volume shows has changed.
    news: Arc<Notify>,
    refreshing: Option<AbortHandle>,
    observe_failed: bool,
    /// There has been an observation.
    seen: bool,
    abandoned: bool,
}

impl Worker {
    fn new(
        ctx: Arc<Context>,
        who: PodRef,
        mut desired: watch::Receiver<Option<Arc<Pod>>>,
        wake: Arc<Notify>,
    ) -> Self {
        let pod = desired.borrow_and_update().clone();
        Self {
            shared: Shared {
                ctx,
                who,
                volumes: Arc::default(),
                images: Arc::default(),
                ips: Vec::new(),
                ending: CancellationToken::new(),
                mirror_uid: Arc::default(),
            },
            desired,
            wake,
            allocated: None,
            effective: None,
            resizing: false,
            pod,
            observed: Vec::new(),
            memory: Memory::default(),
            busy: BTreeMap::new(),
            running: JoinSet::new(),
            handles: BTreeMap::new(),
            reports: mpsc::channel(REPORTS),
            probing: HashMap::new(),
            sent: None,
            computed: None,
            answered: None,
            writing: false,
            writes: JoinSet::new(),
            write_failure: None,
            seen_at: Timestamp::now(),
            refresh_at: tokio::time::Instant::now() + REFRESH,
            news: Arc::default(),
            refreshing: None,
            observe_failed: false,
            seen: false,
            abandoned: false,
        }
    }

    async fn run(&mut self) {
        if let (Some(watches), Some(pod)) = (&self.shared.ctx.watches, &self.pod) {
            watches.follow(pod, &self.news);
        }
        let mut stale = true;
        loop {
            if stale {
                self.observe().await;
            }
            if !self.observe_failed {
                self.admit().await;
            }
            let now = Timestamp::now();
            let unwritten = !self.memory.status_written;
            let plan = self.step(now);
            if unwritten && self.memory.status_written {
                // What waited for this (the end of the object) can go on.
                stale = false;
                continue;
            }
            if plan.done && self.running.is_empty() {
                self.shared
                    .ctx
                    .desk
                    .taken
                    .lock()
                    .remove(&self.shared.who.uid);
                for handle in self.probing.values() {
                    handle.abort();
                }
                debug!(
                    namespace = self.shared.who.namespace,
                    name = self.shared.who.name,
                    uid = self.shared.who.uid,
                    "nothing is left of the pod"
                );
                return;
            }
            stale = self.wait(plan.wake_at).await;
            if self.abandoned {
                // The agent shuts down: pods stay as they are, as after a crash.
                return;
            }
        }
    }

    /// Waits for something to happen; true when containers must be looked at again.
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> bool {
        let retry = self.observe_failed.then_some(Duration::from_secs(1));
        let now = Timestamp::now();
        let sleep = [
            wake_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            self.write_failure.as_ref().map(|f| {
                let until = f.waits_until(now).unwrap_or(now);
                Duration::try_from(until.duration_since(now)).unwrap_or_default()
            }),
            retry,
            self.pod
                .as_ref()
                .filter(|pod| super::volumes::Volumes::changes(pod))
                .map(|_| {
                    self.refresh_at
                        .saturating_duration_since(tokio::time::Instant::now())
                }),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(Duration::from_secs(3600));
        let mut stale = false;
        tokio::select! {
            Some(done) = self.running.join_next() => stale |= self.finish(done),
            Some(done) = self.writes.join_next() => self.written(done),
            Some(report) = self.reports.1.recv() => self.report(report),
            changed = self.desired.changed() => match changed {
                Ok(()) => self.adopt(),
                Err(_) => self.abandoned = true,
            },
            () = self.wake.notified() => stale = true,
            () = self.news.notified() => {
                self.refresh_at = tokio::time::Instant::now();
                // What was missing may be there now.
                self.memory.volumes_failure = None;
            }
            () = tokio::time::sleep(sleep) => stale = self.observe_failed,
        }
        // What else has happened meanwhile needs no plan of its own.
        while let Some(done) = self.running.try_join_next() {
            stale |= self.finish(done);
        }
        while let Some(done) = self.writes.try_join_next() {
            self.written(done);
        }
        while let Ok(report) = self.reports.1.try_recv() {
            self.report(report);
        }
        stale
    }

    fn adopt(&mut self) {
        let next = self.desired.borrow_and_update().clone();
        let differs = |before: &Pod, after: &Pod| {
            before.metadata.labels != after.metadata.labels
                || before.metadata.annotations != after.metadata.annotations
                || before.spec != after.spec
        };
        if let (Some(before), Some(after)) = (&self.pod, &next)
            && differs(before, after)
        {
            // Volumes may show labels, annotations and resources.
            self.refresh_at = tokio::time::Instant::now();
        }
        self.pod = next;
        // The watch has caught up with our own last write, or with somebody else's after it.
        let newer = |seen: &Pod, answered: &Pod| {
            let number = |pod: &Pod| pod.metadata.resource_version.as_ref()?.parse::<u64>().ok();
            number(seen) >= number(answered)
        };
        if let (Some(seen), Some(answered)) = (&self.pod, &self.answered)
            && newer(seen, answered)
        {
            self.answered = None;
        }
    }

    async fn observe(&mut self) {
        let look = self.shared.ctx.runtime.observe(&self.shared.who.uid);
        let silent = || RuntimeError::Unavailable("the container runtime does not answer".into());
        let looked = timeout(RUNTIME_PATIENCE, look).await;
        match looked.unwrap_or_else(|_| Err(silent())) {
            Ok(observed) => {
                self.observed = observed;
                self.observe_failed = false;
                if !self.seen {
                    self.seen = true;
                    self.recall();
                }
            }
            Err(e) => {
                if !self.observe_failed {
                    warn!(uid = self.shared.who.uid, error = %e, "cannot look at the pod's containers");
                }
                self.observe_failed = true;
                return;
            }
        }
        if let Some(logs) = &self.shared.ctx.logs {
            logs.observe_pod(&self.shared.who.uid, &self.observed).await;
        }
        let layers = &self.shared.ctx.layers;
        layers.observe(&self.shared.who.uid, &self.observed);
        let unread: Vec<Observed> = self
            .observed
            .iter()
            .filter(|o| o.role == ContainerRole::App && o.state == State::Exited)
            .filter(|o| !self.memory.termination_messages.contains_key(&o.id))
            .cloned()
            .collect();
        for o in unread {
            // Boxed, as other large things that are rarely waited for: what a task may wait for, it has room for all its life.
            let message = Box::pin(actions::termination_message(&self.shared.ctx, &o)).await;
            self.memory.termination_messages.insert(o.id, message);
        }
        // A hollow container is no process.
        if self.shared.ctx.volumes.is_some() {
            for o in self.observed.iter().filter(|o| o.state == State::Running) {
                let user = o.pid.filter(|_| !self.memory.users.contains_key(&o.id));
                if let Some(user) = user.and_then(process_user) {
                    self.memory.users.insert(o.id.clone(), user);
                }
            }
        }
        let live: Vec<&str> = self.observed.iter().map(|o| o.id.as_str()).collect();
        self.memory
            .users
            .retain(|id, _| live.contains(&id.as_str()));
        self.memory
            .termination_messages
            .retain(|id, _| live.contains(&id.as_str()));
        self.memory
            .probes
            .retain(|id, _| live.contains(&id.as_str()));
        self.memory
            .unhealthy
            .retain(|id, _| live.contains(&id.as_str()));
        self.memory
            .network
            .retain(|id, _| live.contains(&id.as_str()));
        self.memory
            .replaced
            .retain(|id| live.contains(&id.as_str()));
        self.memory
            .pre_stopped
            .retain(|id| live.contains(&id.as_str()));
    }

    /// What probes have found before the agent died holds until they find something else: a pod
    /// must not lose its endpoints because its node's agent starts again.
    fn recall(&mut self) {
        let status = self.pod.as_ref().and_then(|pod| pod.status.as_ref());
        let statuses = status.into_iter().flat_map(|s| {
            let lists = [&s.init_container_statuses, &s.container_statuses];
            lists.into_iter().flatten().flatten()
        });
        for status in statuses {
            let id = status.container_id.as_deref().unwrap_or_default();
            let same = |o: &&Observed| o.state == State::Running && id.ends_with(&o.id);
            if let Some(o) = self.observed.iter().find(same) {
                let results = plan::ProbeResults {
                    started: status.started.filter(|s| *s),
                    ready: Some(status.ready).filter(|r| *r),
                };
                self.memory.probes.insert(o.id.clone(), results);
            }
        }
    }

    /// Plans, begins what is planned, and reports.
    fn step(&mut self, now: Timestamp) -> Plan {
        self.show_back_off(now);
        if self.observe_failed {
            self.report_blindly(now);
            return Plan::default();
        }
        if self.pod.as_ref().is_none_or(|pod| pod::is_terminating(pod)) {
            self.shared.ending.cancel();
            // A pull may take minutes; nobody needs the image any more.
            for (key, handle) in &self.handles {
                if matches!(key, Key::Image(_)) {
                    handle.abort();
                }
            }
        }
        self.take_notice();
        self.allocate();
        let pod = self.effective.clone();
        let input = plan::Input {
            pod: pod.as_deref(),
            observed: &self.observed,
            memory: &self.memory,
            busy: &self.busy,
            now,
        };
        let mut plan = plan::plan(&input);
        if let Some(failed) = &plan.failed
            && self.memory.failed.is_none()
        {
            info!(
                uid = self.shared.who.uid,
                reason = failed.0,
                "the pod has failed"
            );
            self.memory.failed = Some(failed.clone());
            if let Some(pod) = &pod {
                self.shared
                    .ctx
                    .recorder
                    .normal(&reference(pod, None), &failed.0, failed.1.clone());
            }
        }
        if plan.ending {
            self.memory.ending_since.get_or_insert(now);
        }
        for (key, ended) in &plan.crashed {
            let next = Backoff::next(
                self.memory.crash_backoff.get(key),
                BACKOFF_FIRST,
                BACKOFF_MAX,
                *ended,
                now,
            );
            self.memory.crash_backoff.insert(key.clone(), next);
        }
        self.memory.replaced.extend(plan.replaced.iter().cloned());
        if matches!(self.memory.resize_pending, Some(("Deferred", _))) {
            let at = now + jiff::SignedDuration::try_from(DEFERRED).unwrap_or_default();
            plan.wake_at = Some(plan.wake_at.map_or(at, |w| w.min(at)));
        }
        self.note_crash_loops(&plan);
        self.probe(now);
        if let Some(pod) = &pod {
            self.write_status(pod.clone(), &plan, now);
            self.refresh(pod);
        }
        for (key, action) in std::mem::take(&mut plan.actions) {
            self.begin(key, action);
        }
        if let Some(f) = self
            .memory
            .image_failures
            .values()
            .find(|f| f.reason == "ErrImagePull")
        {
            let at = f.at + jiff::SignedDuration::try_from(PULL_ERROR_SHOWN).unwrap_or_default();
            plan.wake_at = Some(plan.wake_at.map_or(at, |w| w.min(at)));
        }
        plan
    }

    /// The node is short of something, or the pod has outgrown its limits: it has failed.
    fn take_notice(&mut self) {
        let Some(pod) = self.pod.clone() else { return };
        let over = self.memory.failed.is_some() || pod::is_terminating(&pod) || pod::is_over(&pod);
        let evictions = &self.shared.ctx.evictions;
        let Some(eviction) = evictions.of(&self.shared.who.uid).filter(|_| !over) else {
            return;
        };
        info!(
            uid = self.shared.who.uid,
            reason = eviction.reason,
            message = eviction.message,
            "the pod has to go"
        );
        self.shared.ctx.recorder.warning(
            &reference(&pod, None),
            eviction.reason,
            eviction.message.clone(),
        );
        self.memory.failed = Some((eviction.reason.into(), eviction.message));
        self.memory.hurry = eviction.grace;
    }

    /// Once in the pod's life, before anything of it exists.
    async fn admit(&mut self) {
        let ctx = self.shared.ctx.clone();
        let mut verdict = self.judge(ctx.node.watched());
        if verdict
            .as_ref()
            .is_err_and(admit::Rejection::is_for_the_node)
            && let Some(node) = Box::pin(ctx.node.asked()).await
        {
            verdict = self.judge(Some(node));
        }
        let Err(rejection) = verdict else { return };
        info!(
            uid = self.shared.who.uid,
            reason = rejection.reason,
            message = rejection.message,
            "rejected the pod"
        );
        if let Some(pod) = &self.pod {
            let about = reference(pod, None);
            let message = rejection.message.clone();
            let recorder = &self.shared.ctx.recorder;
            recorder.warning(&about, &rejection.reason, message);
        }
        self.memory.rejected = Some(rejection);
    }

    /// # Errors
    /// When the pod, of which nothing exists, cannot run here.
    fn judge(&self, node: Option<Arc<Node>>) -> Result<(), admit::Rejection> {
        let Some(pod) = self.pod.clone() else {
            return Ok(());
        };
        let ctx = self.shared.ctx.clone();
        let uid = &self.shared.who.uid;
        let mut taken = ctx.desk.taken.lock();
        if self.memory.rejected.is_some() || taken.contains(uid) {
            return Ok(());
        }
        let begun = !self.observed.is_empty() || pod::phase(&pod) != "Pending";
        if begun || pod::is_terminating(&pod) {
            taken.insert(uid.clone());
            return Ok(());
        }
        let pods = ctx.pods.read();
        let others: Vec<Arc<Pod>> = pods
            .iter()
            .filter(|(other, p)| {
                let counts = taken.contains(*other) || pod::phase(p) == "Running";
                *other != uid && counts && !pod::is_over(p)
            })
            .map(|(_, p)| p.clone())
            .collect();
        drop(pods);
        let refused = ctx.shutdown.has_begun().then(|| admit::Rejection {
            reason: shutdown::REFUSED.0.into(),
            message: shutdown::REFUSED.1.into(),
        });
        let verdict = admit::admit(&admit::Input {
            pod: &pod,
            node: node.as_deref(),
            allocatable: &ctx.allocatable.read(),
            others: &others,
            has_apparmor: super::spec::has_apparmor(),
            unsafe_sysctls: &ctx.desk.unsafe_sysctls,
        });
        refused.map_or(verdict, Err)?;
        taken.insert(uid.clone());
        Ok(())
    }

    /// Decides what the pod's containers get of what it asks for.
    fn allocate(&mut self) {
        let Some(pod) = self.pod.clone() else {
            self.effective = None;
            return;
        };
        let ctx = &self.shared.ctx;
        let file = ctx.pod_dir(&self.shared.who.uid).join(ALLOCATED);
        let allocated = self.allocated.get_or_insert_with(|| {
            let kept = std::fs::read(&file).ok();
            kept.and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_else(|| resize::wanted(&pod))
        });
        if resize::wanted(&pod) == *allocated {
            self.memory.resize_pending = None;
            self.effective = Some(pod);
            return;
        }
        let mut used = BTreeMap::new();
        for (uid, other) in ctx.pods.read().iter() {
            if *uid != self.shared.who.uid && !pod::is_over(other) {
                skep_api::quantity::add_to(&mut used, &skep_api::pod::requests(other));
            }
        }
        match resize::decide(&pod, allocated, &ctx.allocatable.read(), &used) {
            resize::Decision::Settled => self.memory.resize_pending = None,
            resize::Decision::Pending(reason, message) => {
                let pending = Some((reason, message));
                if let Some((_, message)) = &pending
                    && self.memory.resize_pending != pending
                {
                    let text = resize::told(reason, &pod, Some(message));
                    let event = format!("Resize{reason}");
                    ctx.recorder.warning(&reference(&pod, None), &event, text);
                }
                self.memory.resize_pending = pending;
            }
            resize::Decision::Allocate(fresh) => {
                info!(uid = self.shared.who.uid, "resizing the pod");
                if ctx.volumes.is_some()
                    && let Ok(bytes) = serde_json::to_vec(&fresh)
                    && let Err(e) = std::fs::write(&file, bytes)
                {
                    warn!(file = %file.display(), error = %e, "cannot keep what was allocated");
                }
                *allocated = fresh;
                let text = resize::told("started", &pod, None);
                ctx.recorder
                    .normal(&reference(&pod, None), "ResizeStarted", text);
                self.resizing = true;
                self.memory.resize_pending = None;
                self.memory.resize_failure = None;
            }
        }
        self.effective = Some(Arc::new(resize::with(&pod, allocated)));
    }

    /// Without an observation nothing is known, least of all that nothing runs: nothing is begun.
    /// But probes go on over the network, and what they find is told.
    fn report_blindly(&mut self, now: Timestamp) {
        let Some(pod) = self.effective.clone().filter(|_| self.seen) else {
            return;
        };
        let plan = plan::plan(&plan::Input {
            pod: Some(&pod),
            observed: &self.observed,
            memory: &self.memory,
            busy: &self.busy,
            now,
        });
        self.write_status(pod, &plan, now);
    }

    fn begin(&mut self, key: Key, action: Action) {
        debug!(uid = self.shared.who.uid, ?action, "begin");
        self.shared.ctx.counters.action();
        let work = actions::perform(self.shared.clone(), self.effective.clone(), action.clone());
        let result_key = key.clone();
        let handle = self.running.spawn(async move { (result_key, work.await) });
        self.busy.insert(key.clone(), action);
        self.handles.insert(key, handle);
    }

    /// Whether containers must be looked at again: Docker does not let anybody look at one that it starts.
    fn finish(&mut self, done: Result<(Key, Outcome), tokio::task::JoinError>) -> bool {
        let (key, outcome) = match done {
            Ok(done) => done,
            Err(e) => {
                // A panic is our bug; the pod goes on.
                warn!(uid = self.shared.who.uid, error = %e, "an action did not end well");
                let ended: Vec<Key> = self
                    .handles
                    .iter()
                    .filter(|(_, handle)| handle.is_finished())
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in ended {
                    self.busy.remove(&key);
                    self.handles.remove(&key);
                }
                return true;
            }
        };
        let stale = !matches!(outcome, Outcome::Volumes(_) | Outcome::Image(..));
        self.busy.remove(&key);
        self.handles.remove(&key);
        let now = Timestamp::now();
        let retry = |previous: Option<&Failure>, reason: &str, message: String| {
            Failure::new(previous, reason, message, RETRY_FIRST, RETRY_MAX, now)
        };
        let memory = &mut self.memory;
        match outcome {
            Outcome::Done => {}
            Outcome::Volumes(Ok(paths)) => {
                self.shared.volumes = Arc::new(paths);
                memory.volumes_ready = true;
                memory.volumes_failure = None;
            }
            Outcome::Volumes(Err(message)) => {
                let failure = retry(memory.volumes_failure.as_ref(), "FailedMount", message);
                memory.volumes_failure = Some(failure);
            }
            Outcome::Sandbox(Ok((id, ips))) => {
                self.shared.ips.clone_from(&ips);
                memory.network.insert(id, ips);
                memory.network_detached = false;
                memory.sandbox_failure = None;
            }
            Outcome::Sandbox(Err(message)) => {
                let failure = retry(
                    memory.sandbox_failure.as_ref(),
                    "FailedCreatePodSandBox",
                    message,
                );
                memory.sandbox_failure = Some(failure);
            }
            Outcome::Image(name, Ok(image)) => {
                memory.images.insert(name.clone(), image.id.clone());
                memory.image_failures.remove(&name);
                let mut images = (*self.shared.images).clone();
                images.insert(name, image);
                self.shared.images = Arc::new(images);
            }
            Outcome::Image(name, Err((reason, message))) => {
                let previous = memory.image_failures.get(&name);
                let failure =
                    Failure::new(previous, &reason, message, BACKOFF_FIRST, BACKOFF_MAX, now);
                memory.image_failures.insert(name, failure);
            }
            Outcome::Started(name, Ok(())) => {
                memory.start_failures.remove(&name);
                // A restart looks at the image again: its policy may say so.
                memory.images.remove(&name);
            }
            Outcome::Started(name, Err((reason, message))) => {
                memory.images.remove(&name);
                let failure = retry(memory.start_failures.get(&name), &reason, message);
                memory.start_failures.insert(name, failure);
            }
            Outcome::Resized(Ok(())) => memory.resize_failure = None,
            Outcome::Resized(Err(message)) => {
                if let Some(pod) = &self.effective {
                    let text = resize::told("error", pod, Some(&message));
                    let recorder = &self.shared.ctx.recorder;
                    recorder.warning(&reference(pod, None), "ResizeError", text);
                }
                let failure = retry(memory.resize_failure.as_ref(), "Error", message);
                memory.resize_failure = Some(failure);
            }
            Outcome::PreStopped(id) => {
                memory.pre_stopped.insert(id);
            }
            Outcome::Detached(Ok(())) => memory.network_detached = true,
            Outcome::CleanedUp(Ok(())) => memory.cleaned_up = true,
            Outcome::Deleted(Ok(())) => memory.object_deleted = true,
            Outcome::Detached(Err(message)) | Outcome::CleanedUp(Err(message)) => {
                warn!(
                    uid = self.shared.who.uid,
                    message, "cannot clean up; will retry"
                );
                let failure = retry(memory.volumes_failure.as_ref(), "FailedCleanUp", message);
                memory.volumes_failure = Some(failure);
            }
            Outcome::Deleted(Err(message)) => {
                debug!(
                    uid = self.shared.who.uid,
                    message, "cannot delete the pod's object yet"
                );
                let failure = retry(memory.delete_failure.as_ref(), "FailedDelete", message);
                memory.delete_failure = Some(failure);
            }
        }
        stale
    }

    /// A failed pull is shown as itself first, then as waiting for the next try.
    fn show_back_off(&mut self, now: Timestamp) {
        let Some(pod) = self.pod.clone() else { return };
        for (name, failure) in &mut self.memory.image_failures {
            // Negative where the clock was set back: shown for long enough.
            let shown = Duration::try_from(now.duration_since(failure.at));
            if failure.reason != "ErrImagePull" || shown.is_ok_and(|s| s < PULL_ERROR_SHOWN) {
                continue;
            }
            let image = pod::containers(&pod)
                .into_iter()
                .find(|(_, c)| c.name == *name)
                .and_then(|(_, c)| c.image)
                .unwrap_or_default();
            let about = reference(&pod, Some(name));
            let text = format!("Back-off pulling image \"{image}\"");
            failure.message = format!("{text}: ErrImagePull: {}", failure.message);
            failure.reason = "ImagePullBackOff".into();
            self.shared.ctx.recorder.normal(&about, "BackOff", text);
            self.shared
                .ctx
                .recorder
                .warning(&about, "Failed", "Error: ImagePullBackOff");
        }
    }

    fn note_crash_loops(&mut self, plan: &Plan) {
        let Some(pod) = &self.pod else { return };
        for name in plan.waiting.keys() {
            let Some(o) = plan::attempts(&self.observed, name).first().copied() else {
                continue;
            };
            let message = format!(
                "Back-off restarting failed container {name} in pod {}",
                pod::full_name(&self.shared.who)
            );
            // Once for each container that ended.
            if self.memory.noted_crash.get(name) != Some(&o.id) {
                self.memory.noted_crash.insert(name.clone(), o.id.clone());
                self.shared
                    .ctx
                    .recorder
                    .warning(&reference(pod, Some(name)), "BackOff", message);
            }
        }
    }

    fn report(&mut self, report: Report) {
        let Some(pod) = self.pod.clone() else { return };
        let find = |id: &str| self.observed.iter().find(|o| o.id == id);
        match report {
            Report::Told {
                id,
                reason,
                message,
            } => {
                if let Some(o) = find(&id).filter(|o| o.state == State::Running) {
                    let about = reference(&pod, Some(&o.name));
                    self.shared.ctx.recorder.warning(&about, reason, message);
                }
            }
            Report::Verdict { id, which, good } => {
                let Some(name) = find(&id).map(|o| o.name.clone()) else {
                    return;
                };
                let results = self.memory.probes.entry(id.clone()).or_default();
                match which {
                    Which::Readiness => results.ready = Some(good),
                    Which::Startup => results.started = Some(good),
                    Which::Liveness => {}
                }
                let probe = match which {
                    Which::Startup => "startup",
                    _ => "liveness",
                };
                if !good && which != Which::Readiness {
                    let all = pod::containers(&pod);
                    let again = all
                        .iter()
                        .any(|(_, c)| c.name == name && pod::restarts_on_failure(&pod, c));
                    let then = if again { ", will be restarted" } else { "" };
                    let unhealthy = plan::Unhealthy {
                        startup: which == Which::Startup,
                        message: format!("Container {name} failed {probe} probe{then}"),
                    };
                    self.memory.unhealthy.insert(id, unhealthy);
                }
            }
        }
    }

    /// One probing task for each running container that has probes.
    fn probe(&mut self, now: Timestamp) {
        let Some(pod) = &self.pod else { return };
        let all = pod::containers(pod);
        let mut wanted = HashMap::new();
        for o in &self.observed {
            let busy = matches!(
                self.busy.get(&Key::Container(o.name.clone())),
                Some(Action::StartContainer { .. })
            );
            if o.role != ContainerRole::App || o.state != State::Running || busy {
                continue;
            }
            if let Some((_, c)) = all.iter().find(|(_, c)| c.name == o.name)
                && (c.liveness_probe.is_some()
                    || c.readiness_probe.is_some()
                    || c.startup_probe.is_some())
            {
                wanted.insert(o.id.clone(), (o, c));
            }
        }
        self.probing.retain(|id, handle| {
            let keep = wanted.contains_key(id);
            if !keep {
                handle.abort();
            }
            keep
        });
        for (id, (o, container)) in wanted {
            if self.probing.contains_key(&id) {
                continue;
            }
            let Some(ip) = self.ip() else { continue };
            let target = probes::Target {
                runtime: self.shared.ctx.runtime.clone(),
                id: id.clone(),
                pod: self.shared.who.clone(),
                container: container.clone(),
                metrics: self.shared.ctx.probes.clone(),
                ip: Some(ip),
                age: o
                    .started_at
                    .and_then(|at| Duration::try_from(now.duration_since(at)).ok())
                    .unwrap_or_default(),
                known: self.memory.probes.get(&id).copied().unwrap_or_default(),
                ending: self.shared.ending.clone(),
                reports: self.reports.0.clone(),
            };
            self.probing
                .insert(id, tokio::spawn(probes::run(target)).abort_handle());
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        let sandbox = plan::live_sandbox(&self.observed)?;
        self.memory.network.get(&sandbox.id)?.first().copied()
    }

    fn refresh(&mut self, pod: &Arc<Pod>) {
        let now = tokio::time::Instant::now();
        if !self.memory.volumes_ready || now < self.refresh_at || pod::is_terminating(pod) {
            return;
        }
        if self.refreshing.as_ref().is_some_and(|r| !r.is_finished()) {
            self.refresh_at = now + REFRESH_AGAIN;
            return;
        }
        self.refresh_at = now + REFRESH.mul_f64(0.8 + 0.4 * rand::random::<f64>());
        let (shared, pod) = (self.shared.clone(), pod.clone());
        let task = tokio::spawn(async move {
            let node = shared.ctx.facts(&shared.ips);
            if let Some(volumes) = &shared.ctx.volumes
                && let Err(e) = volumes.refresh(&pod, &node).await
            {
                shared
                    .ctx
                    .recorder
                    .warning(&reference(&pod, None), "FailedMount", e.to_string());
            }
        });
        self.refreshing = Some(task.abort_handle());
    }

    fn write_status(&mut self, pod: Arc<Pod>, plan: &Plan, now: Timestamp) {
        let empty = PodStatus::default();
        // Our own last answer is newer than what the watch has shown, until the watch catches up.
        let newest = self.answered.as_ref().unwrap_or(&pod);
        let base = newest.status.as_ref().unwrap_or(&empty);
        let busy = |key: &Key| {
            matches!(
                self.busy.get(key),
                Some(
                    Action::StartContainer { .. }
                        | Action::CreateSandbox { .. }
                        | Action::StartSandbox { .. }
                )
            )
        };
        let wanted = status::status(&status::Input {
            pod: &pod,
            base,
            previous: self.computed.as_deref().unwrap_or(base),
            observed: &self.observed,
            memory: &self.memory,
            plan,
            busy: &busy,
            host_ips: &self.shared.ctx.host_ips,
            runtime: self.shared.ctx.runtime_name,
            seen_at: self.seen_at,
            now,
        });
        let phase = |status: &PodStatus| status.phase.clone().unwrap_or_default();
        let before = phase(self.computed.as_deref().unwrap_or(base));
        if phase(&wanted) == "Running" && before != "Running" {
            let took = Duration::try_from(now.duration_since(self.seen_at));
            let counters = &self.shared.ctx.counters;
            counters.running(took.unwrap_or_default());
        }
        let under_way = |c: &PodCondition| c.type_ == "PodResizeInProgress";
        if self.resizing && !wanted.conditions.iter().flatten().any(under_way) {
            self.resizing = false;
            let text = resize::told("completed", &pod, None);
            let recorder = &self.shared.ctx.recorder;
            recorder.normal(&reference(&pod, None), "ResizeCompleted", text);
        }
        let current = self.sent.as_deref() == Some(&wanted);
        let wanted = match &self.sent {
            Some(sent) if current => sent.clone(),
            _ => Arc::new(wanted),
        };
        self.computed = Some(wanted.clone());
        self.memory.status_written = current && !self.writing && self.write_failure.is_none();
        let waits = self
            .write_failure
            .as_ref()
            .is_some_and(|f| f.waits_until(now).is_some());
        let uid = match pod::is_static(&pod) {
            true => self.shared.mirror_uid.lock().clone(),
            false => Some(self.shared.who.uid.clone()),
        };
        let Some(uid) = uid else {
            // Nothing in the API shows this pod yet.
            self.sent = None;
            return;
        };
        if self.writing || waits || (current && self.write_failure.is_none()) {
            return;
        }
        let unchanged = self.sent.is_none() && pod.status.as_ref() == Some(&*wanted);
        if unchanged || self.memory.object_deleted {
            self.sent = Some(wanted);
            self.memory.status_written = true;
            return;
        }
        self.sent = Some(wanted.clone());
        self.writing = true;
        let patch = actions::status_patch(&uid, base, &wanted);
        let shared = self.shared.clone();
        self.writes
            .spawn(async move { actions::write_status(&shared, patch).await });
    }

    fn written(&mut self, done: Result<Result<Pod, kube::Error>, tokio::task::JoinError>) {
        self.writing = false;
        match done {
            Ok(Ok(mut pod)) => {
                pod.metadata.managed_fields = None;
                self.answered = Some(pod);
                self.write_failure = None;
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                // Gone, or another pod of this name: the watch will say so.
                debug!(
                    uid = self.shared.who.uid,
                    message = status.message,
                    "status not written"
                );
                self.write_failure = None;
            }
            Ok(Err(e)) => {
                warn!(namespace = self.shared.who.namespace, name = self.shared.who.name,
                    error = %e, "cannot write the pod's status; will retry");
                let failure = Failure::new(
                    self.write_failure.as_ref(),
                    "FailedStatus",
                    e.to_string(),
                    RETRY_FIRST,
                    Duration::from_secs(10),
                    Timestamp::now(),
                );
                self.write_failure = Some(failure);
                self.sent = None;
            }
            Err(e) => warn!(error = %e, "a status write did not end well"),
        }
    }
}

/// User and groups of a process. See proc(5).
fn process_user(pid: u32) -> Option<LinuxContainerUser> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<Vec<i64>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(
            line.split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect(),
        )
    };
    Some(LinuxContainerUser {
        uid: field("Uid:")?.first().copied()?,
        gid: field("Gid:")?.first().copied()?,
        supplemental_groups: field("Groups:").filter(|g| !g.is_empty()),
    })
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.ctx.probes.forget(&self.shared.who.uid);
        self.shared.ctx.layers.observe(&self.shared.who.uid, &[]);
        if let Some(watches) = &self.shared.ctx.watches {
            watches.forget(&self.shared.who.uid);
        }
    }
}

/// What an event is about: the pod, or one of its containers.
pub fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let field_path = container.map(|name| {
        let spec = pod::spec(pod);
        let list = if spec.containers.iter().any(|c| c.name == name) {
            "containers"
        } else if spec
            .init_containers
            .iter()
            .flatten()
            .any(|c| c.name == name)
        {
            "initContainers"
        } else {
            "ephemeralContainers"
        };
        format!("spec.{list}{{{name}}}")
    });
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}
