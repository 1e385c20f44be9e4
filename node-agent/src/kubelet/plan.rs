//! What happens next to one pod: a pure function of what is wanted, what is seen and what is
//! remembered.
//!
//! ```text
//!            volumes ──┐
//!  desired ─ image ────┼─ sandbox ─ init 1 ─ … ─ containers ─ (restart with back-off)
//!                      │
//!  deleted, over, failed ─ kill mains ─ kill sidecars ─ remove all, detach ─ clean up ─ delete object
//! ```
//!
//! What starts first in a sandbox is created while the sandbox itself starts: for that it needs to be there and no more.
//!
//! The worker executes actions concurrently, at most one per [`Key`], and plans again whenever
//! anything has changed. [`Input::busy`] holds what is under way, so that nothing is begun twice;
//! an observation is never older than the completion of an action that is no longer busy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, LinuxContainerUser, Pod};

use super::admit::Rejection;
use super::env;
use super::pod::{self, Kind};
use super::resize::{self, Change};
use super::resources;
use crate::runtime::{ContainerRole, Observed, State, label};

pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Retries of what the kubelet does itself (volumes, sandbox, configuration).
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
pub const RETRY_MAX: Duration = Duration::from_secs(120);
/// Which sandbox a container belongs to.
pub const SANDBOX_LABEL: &str = "io.kubernetes.sandbox.id";

/// An exponential back-off whose clock is a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    pub delay: Duration,
    pub updated_at: Timestamp,
}

impl Backoff {
    /// What follows `previous` after a failure at `failed_at`.
    pub fn next(
        previous: Option<&Self>,
        first: Duration,
        max: Duration,
        failed_at: Timestamp,
        now: Timestamp,
    ) -> Self {
        let delay = match previous {
            Some(p) if !p.expired(failed_at, max) => (p.delay * 2).min(max),
            _ => first,
        };
        Self {
            delay,
            updated_at: now,
        }
    }

    /// A container that ran for ten minutes begins again with the first delay.
    fn expired(&self, at: Timestamp, max: Duration) -> bool {
        since(self.updated_at, at) > max * 2
    }

    /// When the next attempt may be made, counted from the last failure.
    pub fn until(&self, failed_at: Timestamp) -> Timestamp {
        failed_at + SignedDuration::try_from(self.delay).unwrap_or(SignedDuration::MAX)
    }
}

fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A failure to be retried, and what the user reads meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
    pub backoff: Backoff,
}

impl Failure {
    pub fn new(
        previous: Option<&Self>,
        reason: &str,
        message: String,
        first: Duration,
        max: Duration,
        now: Timestamp,
    ) -> Self {
        let backoff = Backoff::next(previous.map(|p| &p.backoff), first, max, now, now);
        Self {
            reason: reason.into(),
            message,
            at: now,
            backoff,
        }
    }

    /// Until when the next try has to wait, if it has to.
    pub fn waits_until(&self, now: Timestamp) -> Option<Timestamp> {
        // A clock that was set back must not make it wait for as long.
        let set_back = now < self.at;
        let until = self.backoff.until(self.at);
        (until > now && !set_back).then_some(until)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeResults {
    /// `None`: no such probe, or no answer yet.
    pub started: Option<bool>,
    pub ready: Option<bool>,
}

/// Which probe gave a container up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    pub startup: bool,
    /// For the event.
    pub message: String,
}

/// What the worker remembers beyond what the runtime can tell. All of it may be lost: a restart of
/// the agent starts from `Default`.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    pub volumes_ready: bool,
    pub volumes_failure: Option<Failure>,
    /// Addresses by sandbox id.
    pub network: BTreeMap<String, Vec<IpAddr>>,
    pub sandbox_failure: Option<Failure>,
    /// Images known to be present, by container name, with the id they resolved to.
    pub images: BTreeMap<String, String>,
    pub image_failures: BTreeMap<String, Failure>,
    /// Errors before a container existed (configuration, create).
    pub start_failures: BTreeMap<String, Failure>,
    /// By [`backoff_key`].
    pub crash_backoff: BTreeMap<String, Backoff>,
    pub probes: BTreeMap<String, ProbeResults>,
    /// Containers to be killed and restarted, by id.
    pub unhealthy: BTreeMap<String, Unhealthy>,
    /// Containers whose preStop hook has run while others were still to end before them, by id.
    pub pre_stopped: BTreeSet<String>,
    /// Containers that were killed in order to be replaced, by id: they restart whatever they exit
    /// with.
    pub replaced: BTreeSet<String>,
    /// Why a resize is not taken up: reason and message.
    pub resize_pending: Option<(&'static str, String)>,
    pub resize_failure: Option<Failure>,
    /// When the pod as a whole began to end: what is left of its grace period counts from here.
    pub ending_since: Option<Timestamp>,
    /// The node does not take the pod.
    pub rejected: Option<Rejection>,
    /// Set once; the pod has failed as a whole: reason, message.
    pub failed: Option<(String, String)>,
    /// Whom the first process of a running container belongs to, by id.
    pub users: BTreeMap<String, LinuxContainerUser>,
    /// Instead of the pod's own, when the node cannot wait that long.
    pub hurry: Option<Duration>,
    /// By container id, read when it ended.
    pub termination_messages: BTreeMap<String, String>,
    /// The container of each name whose crash loop an event has told of.
    pub noted_crash: BTreeMap<String, String>,
    pub cleaned_up: bool,
    pub network_detached: bool,
    pub object_deleted: bool,
    pub delete_failure: Option<Failure>,
    /// The last status computed has reached the API.
    pub status_written: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Volumes,
    Sandbox,
    Network,
    Image(String),
    Container(String),
    Resize,
    /// The preStop hook of a container that waits for its turn to end, by id.
    PreStop(String),
    /// A kill that overtakes one that is under way, with its grace in seconds.
    Hasten(String, u64),
    Remove(String),
    CleanUp,
    Object,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox {
        attempt: u32,
    },
    /// Starts a sandbox and attaches it to the network.
    StartSandbox {
        sandbox: String,
    },
    /// Finds the addresses of a running sandbox again.
    AttachNetwork {
        sandbox: String,
    },
    EnsureImage {
        container: String,
    },
    /// Creates a container whose sandbox cannot take it yet.
    CreateContainer {
        container: String,
        attempt: u32,
        sandbox: String,
        /// See [`Epoch`].
        epoch: u32,
    },
    /// Creates (if need be) and starts a container; runs its postStart hook.
    StartContainer {
        container: String,
        attempt: u32,
        sandbox: String,
        epoch: u32,
        /// The id of the container that there is already.
        created: Option<String>,
    },
    KillContainer {
        container: String,
        id: String,
        /// The whole grace period, and how much of it has passed already.
        grace: Duration,
        spent: Duration,
        /// Run the preStop hook first.
        hook: bool,
        message: String,
    },
    /// Gives running containers what was allocated to them: names and ids.
    Resize {
        containers: Vec<(String, String)>,
    },
    /// Runs the preStop hook of a container whose turn to end has not come.
    PreStop {
        container: String,
        id: String,
        grace: Duration,
    },
    /// Removes a dead container, or a sandbox dead or alive.
    Remove {
        id: String,
    },
    DetachNetwork,
    /// Unmounts volumes, removes the pod's folder and cgroup.
    CleanUp,
    DeleteObject,
}

impl Action {
    pub fn key(&self) -> Key {
        match self {
            Self::PrepareVolumes => Key::Volumes,
            Self::CreateSandbox { .. } | Self::StartSandbox { .. } => Key::Sandbox,
            Self::AttachNetwork { .. } | Self::DetachNetwork => Key::Network,
            Self::EnsureImage { container } => Key::Image(container.clone()),
            Self::CreateContainer { container, .. }
            | Self::StartContainer { container, .. }
            | Self::KillContainer { container, .. } => Key::Container(container.clone()),
            Self::Resize { .. } => Key::Resize,
            Self::PreStop { id, .. } => Key::PreStop(id.clone()),
            Self::Remove { id } => Key::Remove(id.clone()),
            Self::CleanUp => Key::CleanUp,
            Self::DeleteObject => Key::Object,
        }
    }
}

pub struct Input<'a> {
    /// `None`: the API does not know the pod any more.
    pub pod: Option<&'a Pod>,
    pub observed: &'a [Observed],
    pub memory: &'a Memory,
    pub busy: &'a BTreeMap<Key, Action>,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<(Key, Action)>,
    /// Plan again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// The pod as a whole is being stopped.
    pub ending: bool,
    /// Nothing is left of the pod, and the API does not have it either.
    pub done: bool,
    /// The pod as a whole has failed from now on: reason, message.
    pub failed: Option<(String, String)>,
    /// Containers whose restart waits, for the status: name → message.
    pub waiting: BTreeMap<String, String>,
    /// Containers killed now in order to be replaced, by id.
    pub replaced: Vec<String>,
    /// Containers, by [`backoff_key`], that restart now after they ended at this time: their back-off grows one step.
    pub crashed: BTreeMap<String, Timestamp>,
}

impl Plan {
    fn push(&mut self, input: &Input<'_>, action: Action) {
        let key = action.key();
        if !input.busy.contains_key(&key) {
            self.actions.push((key, action));
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// True when `failure` forbids a retry now.
    fn waits_for(&mut self, failure: Option<&Failure>, now: Timestamp) -> bool {
        match failure.and_then(|failure| failure.waits_until(now)) {
            Some(until) => {
                self.wake(until);
                true
            }
            None => false,
        }
    }
}

/// The attempts of one container, newest first.
pub fn attempts<'a>(observed: &'a [Observed], name: &str) -> Vec<&'a Observed> {
    let mut found: Vec<_> = observed
        .iter()
        .filter(|o| o.role == ContainerRole::App && o.name == name)
        .collect();
    found.sort_by_key(|o| std::cmp::Reverse(o.attempt));
    found
}

pub fn sandboxes(observed: &[Observed]) -> Vec<&Observed> {
    let mut found: Vec<_> = observed
        .iter()
        .filter(|o| o.role == ContainerRole::Sandbox)
        .collect();
    found.sort_by_key(|o| std::cmp::Reverse(o.attempt));
    found
}

/// The sandbox that runs, if one does.
pub fn live_sandbox(observed: &[Observed]) -> Option<&Observed> {
    sandboxes(observed)
        .into_iter()
        .find(|s| s.state == State::Running)
}

/// Where containers are to be: the sandbox that runs, or else the one that is about to.
fn home(observed: &[Observed]) -> Option<&Observed> {
    let newest = || sandboxes(observed).into_iter().next();
    live_sandbox(observed).or_else(|| newest().filter(|s| s.state == State::Created))
}

fn is_of(o: &Observed, sandbox: &Observed) -> bool {
    o.labels.get(SANDBOX_LABEL) == Some(&sandbox.id)
}

/// Created for a sandbox that is no more: it can never start.
fn is_stray(o: &Observed, home: Option<&Observed>) -> bool {
    o.role == ContainerRole::App
        && o.state == State::Created
        && !home.is_some_and(|home| is_of(o, home))
}

pub fn plan(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = input.pod else {
        let grace = orphan_grace(input.observed);
        tear_down(input, &mut plan, None, grace, true);
        return plan;
    };
    if pod::is_terminating(pod) {
        tear_down(input, &mut plan, Some(pod), pod::grace(pod), true);
        return plan;
    }
    plan.failed = input
        .memory
        .failed
        .clone()
        .or_else(|| deadline(input, pod, &mut plan));
    if plan.failed.is_some()
        || input.memory.rejected.is_some()
        || pod::is_over(pod)
        || is_finished(pod, input.observed, input.memory)
    {
        let grace = pod::grace(pod);
        let grace = input.memory.hurry.map_or(grace, |hurry| hurry.min(grace));
        tear_down(input, &mut plan, Some(pod), grace, false);
        return plan;
    }
    run(input, pod, &mut plan);
    plan
}

fn orphan_grace(observed: &[Observed]) -> Duration {
    let seconds = observed
        .iter()
        .find_map(|o| o.labels.get(label::GRACE_SECONDS)?.parse::<u64>().ok())
        .unwrap_or(30);
    Duration::from_secs(seconds.max(1))
}

fn deadline(input: &Input<'_>, pod: &Pod, plan: &mut Plan) -> Option<(String, String)> {
    let limit = pod::spec(pod).active_deadline_seconds?;
    let started = pod.status.as_ref()?.start_time.as_ref()?.0;
    let end = started + SignedDuration::from_secs(limit);
    if input.now < end {
        plan.wake(end);
        return None;
    }
    Some((
        "DeadlineExceeded".into(),
        "Pod was active on the node longer than the specified deadline".into(),
    ))
}

/// All containers of a pod may restart together (KEP-5532): each time is an epoch, which its
/// containers carry as a label. What is left of an earlier one has ended and counts no more.
struct Epoch<'a> {
    current: u32,
    /// The container of the epoch before whose end began this one, while nothing of this one exists.
    begun_by: Option<&'a Observed>,
}

fn epoch_of(o: &Observed) -> u32 {
    let label = o.labels.get(label::EPOCH);
    label.and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl<'a> Epoch<'a> {
    fn of(containers: &[(Kind, Container)], observed: &'a [Observed]) -> Self {
        let apps = || observed.iter().filter(|o| o.role == ContainerRole::App);
        let last = apps().map(epoch_of).max().unwrap_or(0);
        let begun_by = apps().filter(|o| epoch_of(o) == last).find(|o| {
            let of = containers.iter().find(|(_, c)| c.name == o.name);
            o.state == State::Exited && of.is_some_and(|(_, c)| pod::restarts_all(c, exit_code(o)))
        });
        Self {
            current: last + u32::from(begun_by.is_some()),
            begun_by,
        }
    }

    fn has(&self, o: &Observed) -> bool {
        epoch_of(o) == self.current
    }
}

/// Every main container has ended for good, or an init container that may not be retried failed.
pub fn is_finished(pod: &Pod, observed: &[Observed], memory: &Memory) -> bool {
    let all = pod::containers(pod);
    let epoch = Epoch::of(&all, observed);
    let failed_init = all.iter().any(|(kind, c)| {
        *kind == Kind::Init
            && attempts(observed, &c.name).first().is_some_and(|o| {
                epoch.has(o)
                    && o.state == State::Exited
                    && o.exit_code != 0
                    && !pod::restarts(pod, c, Kind::Init, o.exit_code)
            })
    });
    let mut mains = all
        .iter()
        .filter(|(kind, _)| *kind == Kind::Main)
        .peekable();
    let mains_done = mains.peek().is_some()
        && mains.all(|(kind, c)| {
            attempts(observed, &c.name)
                .first()
                .is_some_and(|o| o.state == State::Exited && !restarts(pod, c, *kind, o, memory))
        });
    failed_init || mains_done
}

/// Whether a container that has ended starts again.
pub fn restarts(pod: &Pod, c: &Container, kind: Kind, o: &Observed, memory: &Memory) -> bool {
    memory.replaced.contains(&o.id) || pod::restarts(pod, c, kind, exit_code(o))
}

/// A start that failed has no exit code of its own.
pub fn exit_code(o: &Observed) -> i32 {
    if o.started_at.is_none() && o.exit_code == 0 {
        128
    } else {
        o.exit_code
    }
}

fn run(input: &Input<'_>, pod: &Pod, plan: &mut Plan) {
    let memory = input.memory;
    let containers = pod::containers(pod);

    // 1. Volumes and the sandbox do not depend on each other.
    if !memory.volumes_ready && !plan.waits_for(memory.volumes_failure.as_ref(), input.now) {
        plan.push(input, Action::PrepareVolumes);
    }
    let sandbox = sandbox(input, plan);
    let home = home(input.observed);

    // 2. Dead sandboxes and dead containers beyond the one that `lastState` shows.
    for old in sandboxes(input.observed) {
        if Some(old.id.as_str()) != sandbox.map(|s| s.id.as_str()) && old.state == State::Exited {
            plan.push(input, Action::Remove { id: old.id.clone() });
        }
    }
    for (_, container) in &containers {
        for dead in attempts(input.observed, &container.name)
            .into_iter()
            .skip(2)
        {
            plan.push(
                input,
                Action::Remove {
                    id: dead.id.clone(),
                },
            );
        }
    }
    for o in input.observed {
        let busy = input.busy.contains_key(&Key::Container(o.name.clone()));
        if is_stray(o, home) && !busy {
            plan.push(input, Action::Remove { id: o.id.clone() });
        }
    }

    // 3. Containers of a sandbox that is gone have lost their namespaces.
    let current = sandbox.map(|s| s.id.as_str());
    let mut stale = false;
    for o in input.observed {
        let in_other = o.labels.get(SANDBOX_LABEL).map(String::as_str) != current;
        if o.role == ContainerRole::App && o.state == State::Running && in_other {
            stale = true;
            kill(
                input,
                plan,
                o,
                pod::grace(pod),
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
    }
    let starting = input.busy.keys().any(|k| matches!(k, Key::Container(_)));
    if sandbox.is_none()
        && !stale
        && !starting
        && !plan.waits_for(memory.sandbox_failure.as_ref(), input.now)
    {
        let action = match home {
            Some(created) => Action::StartSandbox {
                sandbox: created.id.clone(),
            },
            None => Action::CreateSandbox {
                attempt: sandboxes(input.observed)
                    .first()
                    .map_or(0, |s| s.attempt + 1),
            },
        };
        plan.push(input, action);
    }

    // 4. All of them restart, if one has ended that way: first everything ends.
    let epoch = Epoch::of(&containers, input.observed);
    let mut ending = false;
    for o in input.observed {
        if o.role == ContainerRole::App && o.state == State::Running && !epoch.has(o) {
            ending = true;
            let message = format!("Stopping container {}", o.name);
            kill(input, plan, o, pod::grace(pod), &message);
        }
    }
    if ending {
        return;
    }
    if let Some(o) = epoch.begun_by
        && waits_after_crash(input, plan, pod, o)
    {
        return;
    }

    // 5. Containers in order.
    let initialized = home.is_some_and(|s| {
        containers.iter().any(|(kind, c)| {
            *kind == Kind::Main
                && attempts(input.observed, &c.name)
                    .iter()
                    .any(|o| is_of(o, s) && epoch.has(o))
        })
    });
    for (kind, container) in &containers {
        let here = attempts(input.observed, &container.name);
        let latest = here
            .first()
            .copied()
            .filter(|o| home.is_none_or(|s| is_of(o, s)))
            .filter(|o| epoch.has(o));
        let situation = Situation {
            pod,
            kind: *kind,
            container,
            latest,
            home,
            open: sandbox.is_some_and(|s| memory.network.contains_key(&s.id)),
            epoch: epoch.current,
        };
        let proceed = match kind {
            Kind::Init if initialized => true,
            Kind::Init => match latest {
                Some(o)
                    if o.state == State::Exited && o.exit_code == 0 && o.started_at.is_some() =>
                {
                    true
                }
                _ => {
                    one(input, plan, &situation);
                    false
                }
            },
            Kind::Sidecar => {
                one(input, plan, &situation);
                initialized || latest.is_some_and(|o| has_started(memory, container, o))
            }
            Kind::Main | Kind::Ephemeral => {
                one(input, plan, &situation);
                true
            }
        };
        if !proceed {
            break;
        }
    }
    let starts = |(_, action): &(Key, Action)| matches!(action, Action::StartContainer { .. });
    if let Some(o) = epoch.begun_by
        && plan.actions.iter().any(starts)
    {
        let key = backoff_key(pod, &o.name);
        plan.crashed
            .insert(key, o.finished_at.unwrap_or(o.created_at));
    }
}

/// A container whose image changes begins with a new back-off.
pub fn backoff_key(pod: &Pod, name: &str) -> String {
    let all = pod::containers(pod);
    let of = all.iter().find(|(_, c)| c.name == name);
    let hash = of.map(|(_, c)| pod::hash(c)).unwrap_or_default();
    format!("{name}/{hash}")
}

/// True while the back-off of a container that has ended forbids its restart.
fn waits_after_crash(input: &Input<'_>, plan: &mut Plan, pod: &Pod, o: &Observed) -> bool {
    let key = backoff_key(pod, &o.name);
    let Some(backoff) = input.memory.crash_backoff.get(&key) else {
        return false;
    };
    let ended = o.finished_at.unwrap_or(o.created_at);
    let until = backoff.until(ended);
    // It ends in the future where the clock was set back since, which must not make it wait for as long.
    if until <= input.now || ended > input.now || backoff.expired(ended, BACKOFF_MAX) {
        return false;
    }
    plan.wake(until);
    let who = pod::full_name(&pod::identity(pod));
    let message = format!(
        "back-off {} restarting failed container={} pod={who}",
        go_duration(backoff.delay),
        o.name
    );
    plan.waiting.insert(o.name.clone(), message);
    true
}

/// Running, past its startup probe and its postStart hook.
pub fn has_started(memory: &Memory, container: &Container, o: &Observed) -> bool {
    o.state == State::Running
        && (container.startup_probe.is_none()
            || memory
                .probes
                .get(&o.id)
                .is_some_and(|p| p.started == Some(true)))
}

/// The running sandbox whose addresses are known.
fn sandbox<'a>(input: &Input<'a>, plan: &mut Plan) -> Option<&'a Observed> {
    if input.busy.contains_key(&Key::Sandbox) {
        return None;
    }
    let live = live_sandbox(input.observed)?;
    if !input.memory.network.contains_key(&live.id)
        && !plan.waits_for(input.memory.sandbox_failure.as_ref(), input.now)
    {
        plan.push(
            input,
            Action::AttachNetwork {
                sandbox: live.id.clone(),
            },
        );
    }
    Some(live)
}

/// One container and where it stands.
struct Situation<'a> {
    pod: &'a Pod,
    kind: Kind,
    container: &'a Container,
    /// Its newest start in this sandbox and epoch.
    latest: Option<&'a Observed>,
    home: Option<&'a Observed>,
    /// The home runs and has its addresses: containers may start there.
    open: bool,
    epoch: u32,
}

fn one(input: &Input<'_>, plan: &mut Plan, situation: &Situation<'_>) {
    let Situation {
        pod,
        kind,
        container,
        latest,
        home,
        open,
        epoch,
    } = *situation;
    let name = &container.name;
    if input.busy.contains_key(&Key::Container(name.clone())) {
        return;
    }
    if let Some(o) = latest {
        match o.state {
            State::Running => {
                if let Some(unhealthy) = input.memory.unhealthy.get(&o.id) {
                    let grace = unhealthy_grace(pod, container, unhealthy.startup);
                    kill(input, plan, o, grace, &unhealthy.message);
                    if pod::restarts_on_failure(pod, container) {
                        plan.replaced.push(o.id.clone());
                    }
                } else if kind != Kind::Ephemeral
                    && o.labels
                        .get(label::CONTAINER_HASH)
                        .is_some_and(|h| *h != pod::hash(container))
                {
                    let message = format!("Container {name} definition changed, will be restarted");
                    kill(input, plan, o, pod::grace(pod), &message);
                    plan.replaced.push(o.id.clone());
                } else if matches!(kind, Kind::Main | Kind::Sidecar) {
                    resize(input, plan, pod, container, o);
                }
                return;
            }
            State::Exited => {
                if !restarts(pod, container, kind, o, input.memory) {
                    return;
                }
                if waits_after_crash(input, plan, pod, o) {
                    return;
                }
            }
            State::Created => {}
        }
    }
    // The image can be fetched before the sandbox is there.
    if !input.memory.images.contains_key(name) {
        if !plan.waits_for(input.memory.image_failures.get(name), input.now) {
            plan.push(
                input,
                Action::EnsureImage {
                    container: name.clone(),
                },
            );
        }
        return;
    }
    let Some(home) = home else { return };
    if !input.memory.volumes_ready
        || plan.waits_for(input.memory.start_failures.get(name), input.now)
    {
        return;
    }
    // Counted over all sandboxes: the name must be new, and so is the restart count.
    let newest = attempts(input.observed, name).first().copied();
    let created = latest.filter(|o| o.state == State::Created);
    let attempt = match (created, newest) {
        (Some(o), _) => o.attempt,
        // Its number is free when it is gone.
        (None, Some(o)) if is_stray(o, Some(home)) => return,
        (None, Some(o)) => o.attempt + 1,
        (None, None) => known_restarts(pod, name),
    };
    if !open {
        let ended = newest.is_none_or(|o| o.state == State::Exited);
        if latest.is_none() && ended && kind != Kind::Ephemeral && !env::needs_address(container) {
            let action = Action::CreateContainer {
                container: name.clone(),
                attempt,
                sandbox: home.id.clone(),
                epoch,
            };
            plan.push(input, action);
        }
        return;
    }
    if let Some(o) = latest.filter(|o| o.state == State::Exited) {
        let key = backoff_key(pod, name);
        plan.crashed
            .insert(key, o.finished_at.unwrap_or(o.created_at));
    }
    let action = Action::StartContainer {
        container: name.clone(),
        attempt,
        sandbox: home.id.clone(),
        epoch,
        created: created.map(|o| o.id.clone()),
    };
    plan.push(input, action);
}

fn resize(input: &Input<'_>, plan: &mut Plan, pod: &Pod, container: &Container, o: &Observed) {
    let wanted = resources::container_limits(pod, container, 0);
    match resize::change(container, &wanted, &o.limits) {
        None => {}
        Some(Change::Restart) => {
            let message = format!("Container {} resize requires restart", container.name);
            kill(input, plan, o, pod::grace(pod), &message);
            plan.replaced.push(o.id.clone());
        }
        Some(Change::InPlace) => {
            let key = Key::Resize;
            if input.busy.contains_key(&key)
                || plan.waits_for(input.memory.resize_failure.as_ref(), input.now)
            {
                return;
            }
            let one = (container.name.clone(), o.id.clone());
            // All of a pod's containers at once: their limits and the pod's depend on each other.
            match plan.actions.iter_mut().find(|(k, _)| *k == key) {
                Some((_, Action::Resize { containers })) => containers.push(one),
                _ => plan.push(
                    input,
                    Action::Resize {
                        containers: vec![one],
                    },
                ),
            }
        }
    }
}

/// Dead containers may have been pruned; the API still knows how often it was started.
fn known_restarts(pod: &Pod, name: &str) -> u32 {
    let Some(status) = &pod.status else { return 0 };
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == name && s.container_id.as_ref().is_some_and(|id| !id.is_empty()))
        .map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
}

/// A probe may give less (or more) time than the pod does.
fn unhealthy_grace(pod: &Pod, container: &Container, startup: bool) -> Duration {
    let probe = match startup {
        true => &container.startup_probe,
        false => &container.liveness_probe,
    };
    probe
        .as_ref()
        .and_then(|p| p.termination_grace_period_seconds)
        .map_or_else(
            || pod::grace(pod),
            |s| Duration::from_secs(s.max(1).unsigned_abs()),
        )
}

fn kill(input: &Input<'_>, plan: &mut Plan, o: &Observed, grace: Duration, message: &str) {
    // Of the pod's own end, that is: a container that is only replaced has its whole grace.
    let spent = match (plan.ending, input.memory.ending_since) {
        (true, Some(began)) => since(began, input.now),
        _ => Duration::ZERO,
    };
    let action = Action::KillContainer {
        container: o.name.clone(),
        id: o.id.clone(),
        grace,
        spent,
        hook: !input.memory.pre_stopped.contains(&o.id),
        message: message.into(),
    };
    match input.busy.get(&action.key()) {
        // Deleted again with less patience.
        Some(Action::KillContainer { grace: slower, .. }) if grace < *slower => {
            let key = Key::Hasten(o.id.clone(), grace.as_secs());
            let overtaken = input
                .busy
                .keys()
                .any(|k| matches!(k, Key::Hasten(id, s) if *id == o.id && *s <= grace.as_secs()));
            if !overtaken {
                let mut action = action;
                if let Action::KillContainer { spent, .. } = &mut action {
                    // The new patience counts from now.
                    *spent = Duration::ZERO;
                }
                plan.actions.push((key, action));
            }
        }
        Some(_) => {}
        None => plan.actions.push((action.key(), action)),
    }
}

fn has_pre_stop(pod: &Pod, name: &str) -> bool {
    pod::containers(pod).iter().any(|(_, c)| {
        let lifecycle = c.lifecycle.as_ref();
        c.name == name && lifecycle.is_some_and(|l| l.pre_stop.is_some())
    })
}

/// Stops everything; `forget` also removes what is left and the object itself.
fn tear_down(input: &Input<'_>, plan: &mut Plan, pod: Option<&Pod>, grace: Duration, forget: bool) {
    plan.ending = true;
    let message = |o: &Observed| format!("Stopping container {}", o.name);
    let sidecars: Vec<String> = pod
        .map(pod::containers)
        .into_iter()
        .flatten()
        .filter(|(kind, _)| *kind == Kind::Sidecar)
        .map(|(_, c)| c.name)
        .collect();
    let running: Vec<&Observed> = input
        .observed
        .iter()
        .filter(|o| o.role == ContainerRole::App && o.state == State::Running)
        .collect();
    // A container may be about to start: wait for it, then stop it.
    let starting = input.busy.values().any(|a| {
        matches!(
            a,
            Action::CreateContainer { .. }
                | Action::StartContainer { .. }
                | Action::CreateSandbox { .. }
                | Action::StartSandbox { .. }
        )
    });
    let (last, first): (Vec<&Observed>, Vec<&Observed>) = running
        .iter()
        .copied()
        .partition(|o| sidecars.contains(&o.name));
    for o in &first {
        kill(input, plan, o, grace, &message(o));
    }
    // Sidecars end after the containers they serve, in the reverse order of their start.
    let position = |o: &Observed| sidecars.iter().position(|s| *s == o.name);
    let next = last
        .iter()
        .max_by_key(|o| position(o))
        .filter(|_| first.is_empty() && !starting);
    for o in &last {
        let hooked = input.busy.contains_key(&Key::PreStop(o.id.clone()));
        let is_next = next.is_some_and(|n| n.id == o.id);
        if is_next && !hooked {
            kill(input, plan, o, grace, &message(o));
        } else if !is_next
            && pod.is_some_and(|pod| has_pre_stop(pod, &o.name))
            && !input.memory.pre_stopped.contains(&o.id)
        {
            // Every container's preStop hook runs when the pod begins to end; only the signal
            // waits for its turn.
            let action = Action::PreStop {
                container: o.name.clone(),
                id: o.id.clone(),
                grace,
            };
            plan.push(input, action);
        }
    }
    let killing = input
        .busy
        .keys()
        .any(|k| matches!(k, Key::Container(_) | Key::Hasten(..) | Key::PreStop(_)));
    if !running.is_empty() || starting || killing {
        return;
    }
    for o in input.observed {
        // What never ran has nothing to show.
        if o.role == ContainerRole::Sandbox || forget || o.state == State::Created {
            plan.push(input, Action::Remove { id: o.id.clone() });
        }
    }
    let removing = input.busy.contains_key(&Key::Network);
    if !input.memory.network_detached && !removing {
        plan.push(input, Action::DetachNetwork);
    }
    let left = input
        .observed
        .iter()
        .any(|o| o.role == ContainerRole::Sandbox || forget);
    if !forget || left || !input.memory.network_detached {
        return;
    }
    if !input.memory.cleaned_up {
        if !plan.waits_for(input.memory.volumes_failure.as_ref(), input.now)
            && !input.busy.contains_key(&Key::Volumes)
        {
            plan.push(input, Action::CleanUp);
        }
        return;
    }
    match pod {
        None => plan.done = true,
        Some(_) if input.memory.object_deleted => {}
        // The last status must be readable before the object goes.
        Some(_) if !input.memory.status_written => {}
        Some(_) => {
            if !plan.waits_for(input.memory.delete_failure.as_ref(), input.now) {
                plan.push(input, Action::DeleteObject);
            }
        }
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(d: Duration) -> String {
    let seconds = d.as_secs();
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
