//! `status` of a pod: a pure function of what is seen and remembered.
//!
//! `base` is the status that the API has: times of transitions, conditions that others own and
//! containers that were removed since come from there.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, Pod, PodCondition, PodIP,
    PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{self, Key, Memory, Plan, attempts, has_started, live_sandbox};
use super::pod::{self, Kind};
use super::shutdown::TERMINATED;
use super::{resize, resources, spec};
use crate::runtime::{Observed, State};

/// All termination messages of a pod together: upstream's `MaxPodTerminationMessageLogLength`.
const MAX_MESSAGES: usize = 12 << 10;

/// Why a pod failed that the node could not keep.
pub const EVICTED: &str = "Evicted";

pub struct Input<'a> {
    pub pod: &'a Pod,
    pub base: &'a PodStatus,
    /// The last one computed: a container may be removed before its end has reached the API.
    pub previous: &'a PodStatus,
    pub observed: &'a [Observed],
    pub memory: &'a Memory,
    pub plan: &'a Plan,
    pub busy: &'a dyn Fn(&Key) -> bool,
    pub host_ips: &'a [IpAddr],
    /// The scheme of container ids: `docker`.
    pub runtime: &'a str,
    /// When the agent first saw the pod.
    pub seen_at: Timestamp,
    pub now: Timestamp,
}

pub fn status(input: &Input<'_>) -> PodStatus {
    let (pod, base) = (input.pod, input.base);
    if let Some(rejection) = &input.memory.rejected {
        // None of its containers was ever to be.
        return PodStatus {
            phase: Some("Failed".into()),
            reason: Some(rejection.reason.clone()),
            message: Some(format!("Pod was rejected: {}", rejection.message)),
            observed_generation: pod.metadata.generation,
            start_time: base.start_time.clone().or(Some(Time(input.seen_at))),
            qos_class: Some(resources::qos_class(pod).to_string()),
            conditions: base.conditions.clone(),
            ..Default::default()
        };
    }
    if pod::is_over(pod) && base.container_statuses.is_none() && input.observed.is_empty() {
        // Rejected, by an agent before this one.
        return PodStatus {
            observed_generation: pod.metadata.generation,
            ..base.clone()
        };
    }
    let containers = pod::containers(pod);
    let over = is_over(input);
    let of = |kinds: &[Kind]| -> Vec<ContainerStatus> {
        containers
            .iter()
            .filter(|(kind, _)| kinds.contains(kind))
            .map(|(kind, c)| container_status(input, *kind, c, over))
            .collect()
    };
    let mut init = of(&[Kind::Init, Kind::Sidecar]);
    let mut main = of(&[Kind::Main]);
    let mut ephemeral = of(&[Kind::Ephemeral]);
    let share = MAX_MESSAGES / containers.len().max(1);
    for status in init.iter_mut().chain(&mut main).chain(&mut ephemeral) {
        shorten(status, share);
    }
    let phase = phase(input, &containers, &init, &main, over);

    let mut out = PodStatus {
        phase: Some(phase.to_string()),
        observed_generation: pod.metadata.generation,
        start_time: base.start_time.clone().or(Some(Time(input.seen_at))),
        qos_class: Some(resources::qos_class(pod).to_string()),
        host_ip: input.host_ips.first().map(IpAddr::to_string),
        host_ips: some(
            input
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        nominated_node_name: base.nominated_node_name.clone(),
        resize: base.resize.clone(),
        resource_claim_statuses: base.resource_claim_statuses.clone(),
        ..Default::default()
    };
    if let Some((reason, message)) = &input.plan.failed {
        out.reason = Some(reason.clone());
        out.message = Some(message.clone());
    } else {
        out.reason = base.reason.clone();
        out.message = base.message.clone();
    }
    let ips = addresses(input);
    if ips.is_empty() {
        out.pod_ip = base.pod_ip.clone();
        out.pod_ips = base.pod_ips.clone();
    } else {
        out.pod_ip = ips.first().cloned();
        out.pod_ips = some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
    out.conditions = Some(conditions(input, phase, &containers, &init, &main));
    out.init_container_statuses = some(init);
    out.container_statuses = some(main);
    out.ephemeral_container_statuses = some(ephemeral);
    out
}

/// Of many containers none may say much.
fn shorten(status: &mut ContainerStatus, most: usize) {
    for state in [&mut status.state, &mut status.last_state] {
        let ended = state.as_mut().and_then(|s| s.terminated.as_mut());
        if let Some(message) = ended.and_then(|t| t.message.as_mut()) {
            let mut end = most.min(message.len());
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// No container will start any more.
fn is_over(input: &Input<'_>) -> bool {
    pod::is_terminating(input.pod)
        || pod::is_over(input.pod)
        || input.plan.failed.is_some()
        || super::plan::is_finished(input.pod, input.observed, input.memory)
}

fn addresses(input: &Input<'_>) -> Vec<String> {
    if pod::is_host_network(input.pod) {
        return match live_sandbox(input.observed) {
            Some(_) => input.host_ips.iter().map(IpAddr::to_string).collect(),
            None => Vec::new(),
        };
    }
    live_sandbox(input.observed)
        .and_then(|s| input.memory.network.get(&s.id))
        .map(|ips| ips.iter().map(IpAddr::to_string).collect())
        .unwrap_or_default()
}

fn base_status<'a>(input: &Input<'a>, kind: Kind, name: &str) -> Option<&'a ContainerStatus> {
    let list = match kind {
        Kind::Init | Kind::Sidecar => &input.previous.init_container_statuses,
        Kind::Main => &input.previous.container_statuses,
        Kind::Ephemeral => &input.previous.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|s| s.name == name)
}

fn container_status(
    input: &Input<'_>,
    kind: Kind,
    container: &Container,
    over: bool,
) -> ContainerStatus {
    let name = &container.name;
    let found = attempts(input.observed, name);
    let base = base_status(input, kind, name);
    let memory = input.memory;
    let mut out = ContainerStatus {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: String::new(),
        started: Some(false),
        last_state: Some(ContainerState::default()),
        ..Default::default()
    };
    if matches!(kind, Kind::Main | Kind::Sidecar) {
        // Also when there are none: what can be resized says what it has.
        out.resources = Some(container.resources.clone().unwrap_or_default());
        out.allocated_resources = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.clone());
    }
    if let Some(current) = found.first().filter(|o| o.state == State::Running)
        && matches!(kind, Kind::Main | Kind::Sidecar)
    {
        let wanted = resources::container_limits(input.pod, container, 0);
        out.resources = Some(resize::actual(container, &wanted, &current.limits));
    }
    out.volume_mounts = some(volume_mounts(container));
    out.user = found.first().and_then(|o| {
        let linux = memory.users.get(&o.id).cloned();
        linux.map(|linux| ContainerUser { linux: Some(linux) })
    });
    if kind != Kind::Init || found.first().is_none_or(|o| o.state != State::Exited) {
        out.stop_signal = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.stop_signal.clone());
    }
    let Some(current) = found.first() else {
        // Removed after it ended, or not made yet.
        if let Some(base) = base {
            let ended = base
                .state
                .as_ref()
                .and_then(|s| s.terminated.as_ref())
                .is_some();
            let ran = base
                .state
                .as_ref()
                .and_then(|s| s.running.as_ref())
                .is_some();
            if ended {
                return ContainerStatus {
                    ready: base.ready && kind == Kind::Init,
                    ..base.clone()
                };
            }
            if ran {
                return lost(base, over);
            }
            out.last_state.clone_from(&base.last_state);
            out.restart_count = base.restart_count;
        }
        out.state = Some(waiting(input, container));
        return out;
    };
    out.restart_count = i32::try_from(current.attempt).unwrap_or(i32::MAX);
    out.image.clone_from(&current.image);
    out.image_id = match &current.image_id {
        // One that has only been created is no news.
        id if id.is_empty() || current.state == State::Created => String::new(),
        id => format!("{}://{id}", input.runtime),
    };
    let scheme = input.runtime;
    let last = |o: &Observed| ContainerState {
        terminated: Some(terminated(o, memory, scheme)),
        ..Default::default()
    };
    let starting = (input.busy)(&Key::Container(name.clone()));
    match current.state {
        State::Running if starting && !already_running(base, current) => {
            // Its postStart hook runs: not started yet for the outside.
            out.state = Some(waiting(input, container));
        }
        State::Running => {
            out.container_id = Some(format!("{scheme}://{}", current.id));
            out.state = Some(ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: current.started_at.map(Time),
                }),
                ..Default::default()
            });
            let started = has_started(memory, container, current);
            out.started = Some(started);
            out.ready = match kind {
                Kind::Main | Kind::Sidecar => {
                    started
                        && (container.readiness_probe.is_none()
                            || memory.probes.get(&current.id).and_then(|p| p.ready) == Some(true))
                }
                Kind::Init | Kind::Ephemeral => false,
            };
        }
        State::Created => {
            out.state = Some(waiting(input, container));
        }
        State::Exited => {
            out.container_id = Some(format!("{scheme}://{}", current.id));
            let restarts = !over && plan::restarts(input.pod, container, kind, current, memory);
            let waits = restarts
                && (input.plan.waiting.contains_key(name)
                    || memory.image_failures.contains_key(name)
                    || memory.start_failures.contains_key(name));
            if waits {
                out.state = Some(waiting(input, container));
                out.last_state = Some(last(current));
                return out;
            }
            out.state = Some(last(current));
            out.ready = kind == Kind::Init && current.exit_code == 0;
        }
    }
    if let Some(previous) = found.get(1).filter(|o| o.state == State::Exited) {
        out.last_state = Some(last(previous));
    }
    out
}

fn already_running(base: Option<&ContainerStatus>, o: &Observed) -> bool {
    base.is_some_and(|b| {
        b.container_id
            .as_ref()
            .is_some_and(|id| id.ends_with(&o.id))
            && b.state.as_ref().is_some_and(|s| s.running.is_some())
    })
}

fn volume_mounts(container: &Container) -> Vec<VolumeMountStatus> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts
        .map(|m| VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only.filter(|on| *on),
            recursive_read_only: (m.read_only == Some(true)).then(|| {
                let throughout = spec::is_read_only_throughout(m) == Ok(true);
                if throughout { "Enabled" } else { "Disabled" }.into()
            }),
            ..Default::default()
        })
        .collect()
}

/// The API saw it running, and nothing is left of it.
fn lost(base: &ContainerStatus, over: bool) -> ContainerStatus {
    let state = ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut out = ContainerStatus {
        ready: false,
        started: Some(false),
        ..base.clone()
    };
    if over {
        out.state = Some(state);
    } else {
        out.last_state = Some(state);
        out.state = Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some("ContainerCreating".into()),
                message: None,
            }),
            ..Default::default()
        });
    }
    out
}

fn waiting(input: &Input<'_>, container: &Container) -> ContainerState {
    let name = &container.name;
    let memory = input.memory;
    let (reason, message) = if let Some(message) = input.plan.waiting.get(name) {
        ("CrashLoopBackOff".to_string(), Some(message.clone()))
    } else if let Some(f) = memory
        .image_failures
        .get(name)
        .or(memory.start_failures.get(name))
    {
        (f.reason.clone(), Some(f.message.clone()))
    } else if pod::spec(input.pod)
        .init_containers
        .iter()
        .flatten()
        .next()
        .is_some()
    {
        ("PodInitializing".into(), None)
    } else {
        ("ContainerCreating".into(), None)
    };
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message,
        }),
        ..Default::default()
    }
}

fn terminated(o: &Observed, memory: &Memory, scheme: &str) -> ContainerStateTerminated {
    let never_started = o.started_at.is_none();
    let reason = if o.oom_killed {
        "OOMKilled"
    } else if never_started {
        "StartError"
    } else if o.exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    let message = match memory.termination_messages.get(&o.id) {
        Some(message) if !message.is_empty() => Some(message.clone()),
        _ if !o.error.is_empty() => Some(o.error.clone()),
        _ => None,
    };
    ContainerStateTerminated {
        exit_code: if never_started { 128 } else { o.exit_code },
        reason: Some(reason.into()),
        message,
        // A container that never started shows the epoch, as upstream does.
        started_at: Some(Time(o.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
        finished_at: Some(Time(o.finished_at.unwrap_or(o.created_at))),
        container_id: Some(format!("{scheme}://{}", o.id)),
        signal: None,
    }
}

fn phase(
    input: &Input<'_>,
    containers: &[(Kind, Container)],
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    over: bool,
) -> &'static str {
    match input.base.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let ended = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.terminated.clone());
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    let ended_before =
        |s: &ContainerStatus| s.last_state.as_ref().and_then(|s| s.terminated.clone());
    let any_running = init.iter().chain(main).any(running);
    if input.plan.failed.is_some() {
        // `Failed` is final: containers must have stopped before it is said.
        return if any_running {
            base_phase(input)
        } else {
            "Failed"
        };
    }
    let kind_of = |name: &str| {
        containers
            .iter()
            .find(|(_, c)| c.name == name)
            .map(|(k, _)| *k)
    };
    let mut pending_init = 0;
    let mut pending_sidecars = 0;
    let mut failed_init = false;
    for s in init {
        if kind_of(&s.name) == Some(Kind::Sidecar) {
            if !(running(s) && s.started == Some(true)) {
                pending_sidecars += 1;
            }
            continue;
        }
        match (ended(s), ended_before(s)) {
            (Some(t), _) if t.exit_code == 0 => {}
            (Some(t), _) => {
                let restarts = containers
                    .iter()
                    .find(|(_, c)| c.name == s.name)
                    .is_some_and(|(kind, c)| {
                        !over && pod::restarts(input.pod, c, *kind, t.exit_code)
                    });
                if restarts {
                    pending_init += 1
                } else {
                    failed_init = true
                }
            }
            _ => pending_init += 1,
        }
    }
    if failed_init {
        return if any_running {
            base_phase(input)
        } else {
            "Failed"
        };
    }
    let begun = main
        .iter()
        .any(|s| running(s) || ended(s).is_some() || ended_before(s).is_some());
    let count = |f: &dyn Fn(&ContainerStatus) -> bool| main.iter().filter(|s| f(s)).count();
    let running_count = count(&running);
    let stopped = count(&|s| !running(s) && (ended(s).is_some() || ended_before(s).is_some()));
    let waiting_count = main.len() - running_count - stopped;
    if over && !any_running && begun {
        // A terminating pod: what has not started never will.
        let good = main
            .iter()
            .all(|s| ended(s).is_some_and(|t| t.exit_code == 0));
        return if good { "Succeeded" } else { "Failed" };
    }
    if over && !any_running && !begun && pod::is_terminating(input.pod) {
        return if (input.busy)(&Key::Sandbox) {
            "Pending"
        } else {
            "Failed"
        };
    }
    if pending_init > 0 || (pending_sidecars > 0 && !begun) || waiting_count > 0 {
        return if over { base_phase(input) } else { "Pending" };
    }
    if running_count > 0 {
        return "Running";
    }
    if over && any_running {
        // Only sidecars still run.
        return "Running";
    }
    let restarts = main.iter().any(|s| {
        // What has not ended (it starts, or its hook runs) has no exit code, though the one before has.
        let comes = attempts(input.observed, &s.name)
            .first()
            .is_some_and(|o| o.state != State::Exited || input.memory.replaced.contains(&o.id));
        if comes {
            return true;
        }
        let exit = ended(s).or(ended_before(s)).map_or(0, |t| t.exit_code);
        containers
            .iter()
            .find(|(_, c)| c.name == s.name)
            .is_some_and(|(kind, c)| pod::restarts(input.pod, c, *kind, exit))
    });
    if restarts || main.is_empty() {
        return "Running";
    }
    if main
        .iter()
        .all(|s| ended(s).is_some_and(|t| t.exit_code == 0))
    {
        "Succeeded"
    } else {
        "Failed"
    }
}

fn base_phase(input: &Input<'_>) -> &'static str {
    match input.base.phase.as_deref() {
        Some("Running") => "Running",
        _ => "Pending",
    }
}

pub const RESIZE_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The conditions that are there only while a resize is not done.
fn resizing(input: &Input<'_>, containers: &[(Kind, Container)]) -> Vec<Verdict> {
    let mut out = Vec::new();
    let memory = input.memory;
    if let Some((reason, message)) = &memory.resize_pending {
        out.push(Verdict {
            reason: Some(reason),
            message: Some(message.clone()),
            ..Verdict::yes("PodResizePending")
        });
    }
    let under_way = containers.iter().any(|(kind, c)| {
        matches!(kind, Kind::Main | Kind::Sidecar)
            && attempts(input.observed, &c.name).first().is_some_and(|o| {
                let wanted = resources::container_limits(input.pod, c, 0);
                o.state == State::Running && resize::change(c, &wanted, &o.limits).is_some()
            })
    });
    if under_way {
        let mut verdict = Verdict::yes("PodResizeInProgress");
        if let Some(failure) = &memory.resize_failure {
            verdict.reason = Some("Error");
            verdict.message = Some(failure.message.clone());
        }
        out.push(verdict);
    }
    out
}

struct Verdict {
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    input: &Input<'_>,
    phase: &str,
    containers: &[(Kind, Container)],
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let is_sidecar = |name: &str| {
        containers
            .iter()
            .any(|(k, c)| *k == Kind::Sidecar && c.name == name)
    };
    let sandbox_ready =
        live_sandbox(input.observed).is_some_and(|s| input.memory.network.contains_key(&s.id));
    let begun = main.iter().any(|s| {
        s.state
            .as_ref()
            .is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || s.last_state
                .as_ref()
                .is_some_and(|s| s.terminated.is_some())
    });
    let incomplete: Vec<&str> = init
        .iter()
        .filter(|s| match is_sidecar(&s.name) {
            true => s.started != Some(true),
            false => !s.ready,
        })
        .map(|s| s.name.as_str())
        .collect();
    let initialized = if phase == "Succeeded" && !init.is_empty() {
        Verdict::yes("Initialized").because("PodCompleted")
    } else if incomplete.is_empty() || begun {
        Verdict::yes("Initialized")
    } else {
        Verdict::no(
            "Initialized",
            "ContainersNotInitialized",
            format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            ),
        )
    };

    let unready: Vec<&str> = init
        .iter()
        .filter(|s| is_sidecar(&s.name))
        .chain(main)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let containers_ready = |kind: &'static str| match phase {
        "Succeeded" => Verdict {
            reason: Some("PodCompleted"),
            ..Verdict::bare(kind, false)
        },
        "Failed" => Verdict {
            reason: Some("PodFailed"),
            ..Verdict::bare(kind, false)
        },
        _ if unready.is_empty() => Verdict::yes(kind),
        _ => Verdict::no(
            kind,
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
    };
    let mut ready = containers_ready("Ready");
    if ready.status {
        let gates = pod::spec(input.pod).readiness_gates.iter().flatten();
        let open: Vec<String> = gates
            .filter_map(|gate| {
                let kind = &gate.condition_type;
                match input
                    .base
                    .conditions
                    .iter()
                    .flatten()
                    .find(|c| c.type_ == *kind)
                {
                    None => Some(format!(
                        "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                    )),
                    Some(c) if c.status != "True" => Some(format!(
                        "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                        c.status
                    )),
                    Some(_) => None,
                }
            })
            .collect();
        if !open.is_empty() {
            ready = Verdict::no("Ready", "ReadinessGatesNotReady", open.join(", "));
        }
    }
    let verdicts = [
        Verdict::bare("PodReadyToStartContainers", sandbox_ready),
        initialized,
        ready,
        containers_ready("ContainersReady"),
    ];
    let failed = input.plan.failed.as_ref();
    let evicted = failed.filter(|f| f.0 == EVICTED || f.0 == TERMINATED);
    let disrupted = evicted.map(|(_, message)| Verdict {
        reason: Some("TerminationByKubelet"),
        message: Some(message.clone()),
        ..Verdict::bare("DisruptionTarget", true)
    });
    let mut out: Vec<PodCondition> = verdicts
        .into_iter()
        .chain(disrupted)
        .chain(resizing(input, containers))
        .map(|v| v.condition(input))
        .collect();
    for other in input.base.conditions.iter().flatten() {
        let ended = RESIZE_CONDITIONS.contains(&other.type_.as_str());
        if !ended && !out.iter().any(|c| c.type_ == other.type_) {
            out.push(other.clone());
        }
    }
    out
}

impl Verdict {
    fn bare(kind: &'static str, status: bool) -> Self {
        Self {
            kind,
            status,
            reason: None,
            message: None,
        }
    }

    fn yes(kind: &'static str) -> Self {
        Self::bare(kind, true)
    }

    fn no(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self {
            kind,
            status: false,
            reason: Some(reason),
            message: Some(message),
        }
    }

    fn because(self, reason: &'static str) -> Self {
        Self {
            reason: Some(reason),
            ..self
        }
    }

    fn condition(self, input: &Input<'_>) -> PodCondition {
        let status = if self.status { "True" } else { "False" };
        let old = input
            .base
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == self.kind);
        let since = match old {
            Some(old) if old.status == status => old.last_transition_time.clone(),
            _ => Some(Time(input.now)),
        };
        PodCondition {
            type_: self.kind.into(),
            status: status.into(),
            reason: self.reason.map(Into::into),
            message: self.message,
            last_transition_time: since,
            last_probe_time: None,
            observed_generation: input.pod.metadata.generation,
        }
    }
}
