//! A model of a runtime against the plan: any order of completions, crashes, lost containers and
//! restarts of the agent must end in the same state, and nothing may run twice on the way.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodStatus;
use proptest::prelude::*;

use super::*;
use crate::kubelet::status;
use crate::runtime::PodRef;

struct Model {
    pod: Option<Pod>,
    containers: Vec<Observed>,
    memory: Memory,
    busy: BTreeMap<Key, Action>,
    now: Timestamp,
    next_id: u32,
    /// Every (name, attempt) that was ever started.
    started: Vec<(String, u32)>,
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec
    }))
    .unwrap()
}

fn shapes() -> Vec<Pod> {
    let c = |name: &str| serde_json::json!({"name": name, "image": "i"});
    vec![
        pod(serde_json::json!({"containers": [c("a")]})),
        pod(
            serde_json::json!({"containers": [c("a"), c("b")], "initContainers": [c("i"), c("j")]}),
        ),
        pod(
            serde_json::json!({"containers": [c("a")], "initContainers": [
            {"name": "s", "image": "i", "restartPolicy": "Always"}, c("i")]}),
        ),
        pod(serde_json::json!({"restartPolicy": "OnFailure", "containers": [c("a"), c("b")]})),
        pod(
            serde_json::json!({"restartPolicy": "Never", "containers": [c("a")],
            "initContainers": [c("i")]}),
        ),
    ]
}

impl Model {
    fn new(pod: Pod) -> Self {
        Self {
            pod: Some(pod),
            containers: Vec::new(),
            memory: Memory {
                status_written: true,
                ..Default::default()
            },
            busy: BTreeMap::new(),
            now: Timestamp::from_second(1_000_000).unwrap(),
            next_id: 0,
            started: Vec::new(),
        }
    }

    fn plan(&mut self) -> Plan {
        let plan = plan(&Input {
            pod: self.pod.as_ref(),
            observed: &self.containers,
            memory: &self.memory,
            busy: &self.busy,
            now: self.now,
        });
        for (name, ended) in &plan.crashed {
            let previous = self.memory.crash_backoff.get(name);
            let next = Backoff::next(previous, BACKOFF_FIRST, BACKOFF_MAX, *ended, self.now);
            self.memory.crash_backoff.insert(name.clone(), next);
        }
        self.memory.replaced.extend(plan.replaced.iter().cloned());
        if plan.ending {
            self.memory.ending_since.get_or_insert(self.now);
        }
        for (key, action) in &plan.actions {
            assert!(
                !self.busy.contains_key(key),
                "{key:?} is begun while it is under way"
            );
            self.busy.insert(key.clone(), action.clone());
        }
        plan
    }

    fn make(&mut self, role: ContainerRole, name: &str, attempt: u32, sandbox: &str) -> String {
        let same = |o: &&Observed| o.role == role && o.name == name && o.attempt == attempt;
        if let Some(existing) = self.containers.iter().find(same) {
            let of = existing.labels.get(SANDBOX_LABEL).map(String::as_str);
            assert_eq!(of, Some(sandbox), "{name} was made for another sandbox");
            return existing.id.clone();
        }
        self.next_id += 1;
        let id = format!("c{}", self.next_id);
        self.containers.push(Observed {
            id: id.clone(),
            role,
            pod: PodRef::default(),
            name: name.into(),
            attempt,
            state: State::Created,
            pid: None,
            created_at: self.now,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            image: "i".into(),
            image_id: String::new(),
            limits: Default::default(),
            log_path: None,
            layer_path: None,
            labels: BTreeMap::from([(SANDBOX_LABEL.to_string(), sandbox.to_string())]),
        });
        id
    }

    fn create(&mut self, name: &str, attempt: u32, sandbox: &str, epoch: u32) -> String {
        let id = self.make(ContainerRole::App, name, attempt, sandbox);
        if let Some(pod) = self.pod.clone() {
            let all = pod::containers(&pod);
            let (_, c) = all.iter().find(|(_, c)| c.name == name).unwrap();
            let o = self.containers.iter_mut().find(|o| o.id == id).unwrap();
            o.limits = resources::container_limits(&pod, c, 0);
            o.labels.insert(label::EPOCH.into(), epoch.to_string());
        }
        id
    }

    fn start(&mut self, id: &str) {
        let now = self.now;
        let o = self.containers.iter_mut().find(|o| o.id == id).unwrap();
        if o.state == State::Created {
            o.state = State::Running;
            o.started_at = Some(now);
            let key = (o.name.clone(), o.attempt);
            assert!(
                !self.started.contains(&key) || o.role == ContainerRole::Sandbox,
                "{key:?} twice"
            );
            self.started.push(key);
        }
        let mut running = std::collections::BTreeSet::new();
        for o in self.containers.iter().filter(|o| o.state == State::Running) {
            assert!(
                running.insert((o.role == ContainerRole::App, o.name.clone())),
                "{} runs twice",
                o.name
            );
        }
    }

    fn end(&mut self, id: &str, code: i32) {
        let now = self.now;
        if let Some(o) = self.containers.iter_mut().find(|o| o.id == id)
            && o.state == State::Running
        {
            o.state = State::Exited;
            o.exit_code = code;
            o.finished_at = Some(now);
        }
    }

    /// Carries out an action; `half`: the agent dies in the middle of it.
    fn perform(&mut self, action: Action, half: bool) {
        let ip: IpAddr = [10, 0, 0, 1].into();
        match action {
            Action::PrepareVolumes => self.memory.volumes_ready = !half,
            Action::CreateSandbox { attempt } => {
                self.make(ContainerRole::Sandbox, "", attempt, "");
            }
            Action::StartSandbox { sandbox } => {
                if !half && self.containers.iter().any(|o| o.id == sandbox) {
                    self.start(&sandbox);
                    self.memory.network.insert(sandbox, vec![ip]);
                    self.memory.network_detached = false;
                }
            }
            Action::AttachNetwork { sandbox } => {
                self.memory.network.insert(sandbox, vec![ip]);
            }
            Action::EnsureImage { container } => {
                self.memory.images.insert(container, "i".into());
            }
            Action::CreateContainer {
                container,
                attempt,
                sandbox,
                epoch,
            } => {
                if self.containers.iter().any(|o| o.id == sandbox) {
                    self.create(&container, attempt, &sandbox, epoch);
                }
            }
            Action::StartContainer {
                container,
                attempt,
                sandbox,
                epoch,
                created,
            } => {
                let alive = self
                    .containers
                    .iter()
                    .any(|o| o.id == sandbox && o.state == State::Running);
                if alive {
                    assert!(
                        self.memory.network.contains_key(&sandbox),
                        "{container} starts without a network"
                    );
                    let left = created.filter(|id| self.containers.iter().any(|o| o.id == *id));
                    let id =
                        left.unwrap_or_else(|| self.create(&container, attempt, &sandbox, epoch));
                    if !half {
                        self.start(&id);
                    }
                }
            }
            Action::KillContainer { id, .. } => {
                if !half {
                    self.end(&id, 137);
                }
            }
            Action::Resize { containers } => {
                for (name, id) in containers {
                    let pod = self.pod.clone().unwrap();
                    let c = pod::containers(&pod)
                        .into_iter()
                        .find(|(_, c)| c.name == name);
                    let limits = resources::container_limits(&pod, &c.unwrap().1, 0);
                    if let Some(o) = self.containers.iter_mut().find(|o| o.id == id) {
                        o.limits = limits;
                    }
                }
            }
            Action::PreStop { id, .. } => {
                if !half {
                    self.memory.pre_stopped.insert(id);
                }
            }
            Action::Remove { id } => {
                self.containers.retain(|o| o.id != id);
                // What an operator has left of a container may be all that told its number: the API's status would.
                let containers = &self.containers;
                self.started.retain(|(name, _)| {
                    name.is_empty() || containers.iter().any(|o| o.name == *name)
                });
            }
            Action::DetachNetwork => self.memory.network_detached = !half,
            Action::CleanUp => self.memory.cleaned_up = !half,
            Action::DeleteObject => {
                self.memory.object_deleted = true;
                self.pod = None;
            }
        }
    }

    /// Completes everything until nothing more is planned.
    fn settle(&mut self) -> Plan {
        for _ in 0..500 {
            self.finish_init();
            let plan = self.plan();
            if self.busy.is_empty() {
                match plan.wake_at {
                    Some(at) if at > self.now => {
                        self.now = at;
                        continue;
                    }
                    _ => return plan,
                }
            }
            // Init containers of the model end well once they run.
            while let Some((_, action)) = self.busy.pop_first() {
                self.perform(action, false);
            }
        }
        panic!("does not settle: {:?}", self.containers);
    }

    fn finish_init(&mut self) {
        let Some(pod) = &self.pod else { return };
        let init: Vec<String> = pod::containers(pod)
            .into_iter()
            .filter(|(kind, _)| *kind == Kind::Init)
            .map(|(_, c)| c.name)
            .collect();
        let ids: Vec<String> = self
            .containers
            .iter()
            .filter(|o| o.role == ContainerRole::App && init.contains(&o.name))
            .map(|o| o.id.clone())
            .collect();
        for id in ids {
            self.end(&id, 0);
        }
    }

    fn phase(&self, plan: &Plan) -> String {
        let (base, busy) = (PodStatus::default(), |key: &Key| {
            self.busy.contains_key(key)
        });
        let status = status::status(&status::Input {
            pod: self.pod.as_ref().unwrap(),
            base: &base,
            previous: &base,
            observed: &self.containers,
            memory: &self.memory,
            plan,
            busy: &busy,
            host_ips: &[],
            runtime: "docker",
            seen_at: self.now,
            now: self.now,
        });
        status.phase.unwrap()
    }

    fn running(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .containers
            .iter()
            .filter(|o| o.role == ContainerRole::App && o.state == State::Running)
            .map(|o| o.name.as_str())
            .collect();
        names.sort_unstable();
        names
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Plan, then complete the n-th thing that is under way.
    Complete(usize),
    /// The n-th running container ends with this code.
    Exit(usize, i32),
    /// Somebody removes the n-th container behind our back.
    Lose(usize),
    /// The agent dies, in the middle of the n-th action, and starts again.
    Restart(usize),
    Time(u32),
    /// The sandbox that is being started does not come up, and is removed.
    SandboxFails,
    Delete,
    /// The object vanishes without a grace period.
    Vanish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0usize..8).prop_map(Step::Complete),
        3 => (0usize..4, prop_oneof![Just(0), Just(1)]).prop_map(|(n, code)| Step::Exit(n, code)),
        1 => (0usize..6).prop_map(Step::Lose),
        1 => (0usize..8).prop_map(Step::Restart),
        2 => (1u32..400).prop_map(Step::Time),
        1 => Just(Step::SandboxFails),
    ]
}

fn nth<T: Clone>(items: impl Iterator<Item = T>, n: usize) -> Option<T> {
    let all: Vec<T> = items.collect();
    (!all.is_empty()).then(|| all[n % all.len()].clone())
}

fn apply(model: &mut Model, step: Step) {
    match step {
        Step::Complete(n) => {
            model.plan();
            if let Some(key) = nth(model.busy.keys().cloned(), n)
                && let Some(action) = model.busy.remove(&key)
            {
                model.perform(action, false);
            }
        }
        Step::Exit(n, code) => {
            let running = model
                .containers
                .iter()
                .filter(|o| o.state == State::Running);
            if let Some(id) = nth(running.map(|o| o.id.clone()), n) {
                model.end(&id, code);
            }
        }
        Step::Lose(n) => {
            if let Some(id) = nth(model.containers.iter().map(|o| o.id.clone()), n) {
                // An operator removes what has stopped; what runs is killed first.
                model
                    .containers
                    .retain(|o| o.id != id || o.state == State::Running);
                // Its number is free again; the model has no API status that remembers it.
                let left: Vec<(String, u32)> = model
                    .containers
                    .iter()
                    .map(|o| (o.name.clone(), o.attempt))
                    .collect();
                model.started.retain(|key| left.contains(key));
            }
        }
        Step::Restart(n) => {
            if let Some(key) = nth(model.busy.keys().cloned(), n)
                && let Some(action) = model.busy.remove(&key)
            {
                model.perform(action, true);
            }
            model.busy.clear();
            model.memory = Memory {
                status_written: true,
                ..Default::default()
            };
        }
        Step::SandboxFails => {
            let busy = model.busy.get(&Key::Sandbox).cloned();
            if let Some(Action::StartSandbox { sandbox }) = busy {
                model.busy.remove(&Key::Sandbox);
                model.containers.retain(|o| o.id != sandbox);
                let failure = Failure::new(
                    model.memory.sandbox_failure.as_ref(),
                    "FailedCreatePodSandBox",
                    "sysctl".into(),
                    RETRY_FIRST,
                    RETRY_MAX,
                    model.now,
                );
                model.memory.sandbox_failure = Some(failure);
            }
        }
        Step::Time(seconds) => model.now += SignedDuration::from_secs(i64::from(seconds)),
        Step::Delete => {
            if let Some(pod) = &mut model.pod {
                let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(model.now);
                pod.metadata.deletion_timestamp = Some(at);
            }
        }
        Step::Vanish => model.pod = None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_order_of_events_ends_the_same(
        shape in 0usize..3,
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut model = Model::new(shapes().swap_remove(shape));
        for step in steps {
            apply(&mut model, step);
        }
        // These shapes restart always: in the end everything but init containers runs.
        model.settle();
        let expected: &[&str] = match shape {
            0 => &["a"],
            1 => &["a", "b"],
            _ => &["a", "s"],
        };
        prop_assert_eq!(model.running(), expected);
        let sandboxes = model.containers.iter().filter(|o| {
            o.role == ContainerRole::Sandbox && o.state == State::Running
        });
        prop_assert_eq!(sandboxes.count(), 1);
        let created = model.containers.iter().filter(|o| o.state == State::Created);
        prop_assert_eq!(created.count(), 0);
    }

    #[test]
    fn a_deleted_pod_leaves_nothing(
        shape in 0usize..5,
        before in proptest::collection::vec(step(), 0..40),
        vanish in any::<bool>(),
        after in proptest::collection::vec(step(), 0..20),
    ) {
        let mut model = Model::new(shapes().swap_remove(shape));
        for step in before {
            apply(&mut model, step);
        }
        apply(&mut model, if vanish { Step::Vanish } else { Step::Delete });
        for step in after {
            apply(&mut model, step);
        }
        let plan = model.settle();
        prop_assert!(model.containers.is_empty(), "{:?}", model.containers);
        prop_assert!(model.pod.is_none());
        prop_assert!(plan.done);
    }

    #[test]
    fn a_pod_that_ended_never_starts_again(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut model = Model::new(shapes().swap_remove(4));
        model.settle();
        let id = model.containers.iter().find(|o| o.name == "a").unwrap().id.clone();
        model.end(&id, 3);
        model.settle();
        prop_assert_eq!(model.running(), Vec::<&str>::new());
        let started = model.started.len();
        for step in steps {
            if !matches!(step, Step::Lose(_)) {
                apply(&mut model, step);
            }
        }
        model.settle();
        prop_assert_eq!(model.started.len(), started);
    }
}

impl Model {
    /// Completes everything but the start of the sandbox; what was created meanwhile.
    fn all_but_the_sandbox(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            for (_, action) in self.plan().actions {
                match action {
                    Action::CreateContainer { container, .. } => found.push(container),
                    Action::StartContainer { container, .. } => panic!("{container} is too early"),
                    _ => {}
                }
            }
            let starts = |action: &Action| matches!(action, Action::StartSandbox { .. });
            let mut others = self.busy.iter().filter(|(_, action)| !starts(action));
            let Some(key) = others.next().map(|(key, _)| key.clone()) else {
                return found;
            };
            if let Some(action) = self.busy.remove(&key) {
                self.perform(action, false);
            }
        }
    }
}

/// The names of the containers that are begun while their sandbox starts.
fn created_early(spec: serde_json::Value) -> Vec<String> {
    let mut model = Model::new(pod(spec));
    let found = model.all_but_the_sandbox();
    let made = model.containers.clone();
    model.settle();
    for o in made.iter().filter(|o| o.role == ContainerRole::App) {
        let now = model.containers.iter().find(|now| now.id == o.id).unwrap();
        assert!(now.started_at.is_some(), "{} was made in vain", o.name);
    }
    found
}

#[test]
fn what_starts_first_is_created_while_its_sandbox_starts() {
    let c = |name: &str| serde_json::json!({"name": name, "image": "i"});
    assert_eq!(
        created_early(serde_json::json!({"containers": [c("a"), c("b")]})),
        ["a", "b"]
    );
    assert_eq!(
        created_early(
            serde_json::json!({"containers": [c("a")], "initContainers": [c("i"), c("j")]})
        ),
        ["i"]
    );
    let mut sidecar = c("s");
    sidecar["restartPolicy"] = "Always".into();
    assert_eq!(
        created_early(serde_json::json!({"containers": [c("a")], "initContainers": [sidecar]})),
        ["s"]
    );
    // Its environment is known when the pod has its address.
    let mut told = c("a");
    told["env"] = serde_json::json!([
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    assert_eq!(
        created_early(serde_json::json!({"containers": [told, c("b")]})),
        ["b"]
    );
}

#[test]
fn a_sandbox_that_does_not_start_takes_what_was_created_for_it_along() {
    let mut model = Model::new(shapes().swap_remove(3));
    for attempt in 0..3 {
        assert_eq!(model.all_but_the_sandbox(), ["a", "b"]);
        let apps = model
            .containers
            .iter()
            .filter(|o| o.role == ContainerRole::App);
        let made: Vec<(&str, u32)> = apps.map(|o| (o.name.as_str(), o.attempt)).collect();
        assert_eq!(made, [("a", 0), ("b", 0)], "of sandbox {attempt}");
        apply(&mut model, Step::SandboxFails);
        let plan = model.plan();
        let removals = plan.actions.iter();
        let removals = removals.filter(|(_, a)| matches!(a, Action::Remove { .. }));
        assert_eq!(removals.count(), 2, "{plan:?}");
        while let Some((_, action)) = model.busy.pop_first() {
            model.perform(action, false);
        }
        assert!(model.containers.is_empty(), "{:?}", model.containers);
        model.now = plan.wake_at.expect("it is tried again");
    }
    model.settle();
    assert_eq!(model.running(), ["a", "b"]);
    assert!(model.containers.iter().all(|o| o.attempt == 0));
}

#[test]
fn a_crashing_container_waits_longer_each_time() {
    let mut model = Model::new(shapes().swap_remove(0));
    let mut waits = Vec::new();
    for _ in 0..8 {
        model.settle();
        let id = model
            .containers
            .iter()
            .find(|o| o.state == State::Running && o.name == "a")
            .unwrap()
            .id
            .clone();
        model.end(&id, 1);
        let before = model.now;
        model.settle();
        waits.push((model.now.duration_since(before)).as_secs());
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    let attempts: Vec<u32> = attempts(&model.containers, "a")
        .iter()
        .map(|o| o.attempt)
        .collect();
    assert_eq!(attempts, [8, 7], "only the one before stays, for lastState");
}

/// A pod whose container `a` waits for its next restart.
fn crashed_thrice() -> Model {
    let mut model = Model::new(shapes().swap_remove(0));
    for _ in 0..3 {
        model.settle();
        let running = model.containers.iter();
        let mut running = running.filter(|o| o.state == State::Running && o.name == "a");
        let id = running.next().unwrap().id.clone();
        model.end(&id, 1);
    }
    assert!(model.plan().wake_at.is_some(), "it waits for its restart");
    model
}

#[test]
fn a_new_image_does_not_wait_for_the_one_that_crashed() {
    let mut model = crashed_thrice();
    let spec = model.pod.as_mut().unwrap().spec.as_mut().unwrap();
    spec.containers[0].image = Some("another".into());
    let before = model.now;
    model.settle();
    assert_eq!(model.now, before, "it waited");
}

#[test]
fn a_clock_that_was_set_back_makes_nobody_wait() {
    let hour = SignedDuration::from_hours(1);
    let mut model = crashed_thrice();
    model.now -= hour;
    let before = model.now;
    model.settle();
    assert_eq!(model.now, before, "it waited");

    let now = model.now;
    let failure = |at| Failure::new(None, "R", "m".into(), BACKOFF_FIRST, BACKOFF_MAX, at);
    assert!(failure(now).waits_until(now).is_some());
    assert_eq!(failure(now + hour).waits_until(now), None);
}

#[test]
fn a_second_deletion_with_less_patience_overtakes_the_first() {
    let mut model = Model::new(shapes().swap_remove(0));
    model.settle();
    apply(&mut model, Step::Delete);
    model.plan();
    assert!(matches!(model.busy.get(&Key::Container("a".into())),
        Some(Action::KillContainer { grace, .. }) if grace.as_secs() == 30));
    model
        .pod
        .as_mut()
        .unwrap()
        .metadata
        .deletion_grace_period_seconds = Some(2);
    let plan = model.plan();
    assert!(
        matches!(
            &plan.actions[..],
            [(Key::Hasten(_, 2), Action::KillContainer { .. })]
        ),
        "{plan:?}"
    );
    assert_eq!(model.plan().actions, [], "once is enough");
}

#[test]
fn sidecars_stop_after_the_containers_they_serve() {
    let mut model = Model::new(shapes().swap_remove(2));
    model.settle();
    assert_eq!(model.running(), ["a", "s"]);
    apply(&mut model, Step::Delete);
    let killed = |plan: Plan| -> Vec<String> {
        plan.actions
            .into_iter()
            .filter_map(|(_, a)| match a {
                Action::KillContainer { container, .. } => Some(container),
                _ => None,
            })
            .collect()
    };
    assert_eq!(killed(model.plan()), ["a"]);
    assert_eq!(killed(model.plan()), Vec::<String>::new());
    let id = model
        .containers
        .iter()
        .find(|o| o.name == "a")
        .unwrap()
        .id
        .clone();
    model.busy.clear();
    model.end(&id, 0);
    assert_eq!(killed(model.plan()), ["s"]);
}

#[test]
fn hooks_of_sidecars_run_at_once_and_their_grace_is_the_pods() {
    let c = |name: &str| serde_json::json!({"name": name, "image": "i"});
    let mut side = c("s");
    side["restartPolicy"] = "Always".into();
    side["lifecycle"] = serde_json::json!({"preStop": {"sleep": {"seconds": 1}}});
    let mut model = Model::new(pod(
        serde_json::json!({"containers": [c("a")], "initContainers": [side]}),
    ));
    model.settle();
    apply(&mut model, Step::Delete);
    let first: Vec<Key> = model.plan().actions.into_iter().map(|(k, _)| k).collect();
    let side = model.containers.iter().find(|o| o.name == "s").unwrap();
    let side = side.id.clone();
    assert_eq!(
        first,
        [Key::Container("a".into()), Key::PreStop(side.clone())]
    );

    // The main container takes 20 of the 30 seconds.
    model.now += SignedDuration::from_secs(20);
    for key in first {
        let action = model.busy.remove(&key).unwrap();
        model.perform(action, false);
    }
    let plan = model.plan();
    let [
        (
            _,
            Action::KillContainer {
                id,
                grace,
                spent,
                hook,
                ..
            },
        ),
    ] = &plan.actions[..]
    else {
        panic!("{plan:?}");
    };
    assert_eq!((id, *hook), (&side, false), "the hook has run");
    assert_eq!((grace.as_secs(), spent.as_secs()), (30, 20));
}

#[test]
fn the_probe_that_failed_gives_the_grace() {
    let probe = |seconds: i64| serde_json::json!({"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": seconds});
    let mut model = Model::new(pod(
        serde_json::json!({"containers": [{"name": "a", "image": "i",
        "livenessProbe": probe(5), "startupProbe": probe(7)}]}),
    ));
    model.settle();
    let id = model.containers.iter().find(|o| o.name == "a").unwrap();
    let id = id.id.clone();
    for (startup, expected) in [(false, 5), (true, 7)] {
        let unhealthy = Unhealthy {
            startup,
            message: String::new(),
        };
        model.memory.unhealthy.insert(id.clone(), unhealthy);
        let plan = model.plan();
        model.busy.clear();
        assert!(
            matches!(&plan.actions[..], [(_, Action::KillContainer { grace, .. })]
                if grace.as_secs() == expected),
            "{plan:?}"
        );
    }
}

#[test]
fn a_resize_changes_what_runs_or_replaces_it() {
    let shape = |cpu: &str, policy: &str| {
        pod(
            serde_json::json!({"restartPolicy": "OnFailure", "containers": [{"name": "a", "image": "i",
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}],
            "resources": {"requests": {"cpu": cpu}}}]}),
        )
    };
    for policy in ["NotRequired", "RestartContainer"] {
        let mut model = Model::new(shape("1", policy));
        model.settle();
        model.pod = Some(shape("2", policy));
        let plan = model.plan();
        match policy {
            "NotRequired" => {
                assert!(matches!(&plan.actions[..], [(Key::Resize, _)]), "{plan:?}");
                model.settle();
                assert_eq!(model.started.len(), 2, "the sandbox and one container");
            }
            _ => {
                let Some((_, Action::KillContainer { id, .. })) = plan.actions.first() else {
                    panic!("{plan:?}");
                };
                // It ends well, and comes back all the same.
                model.end(&id.clone(), 0);
                model.settle();
                assert_eq!(model.running(), ["a"]);
                assert_eq!(model.started.len(), 3);
            }
        }
        let shares: Vec<Option<i64>> = model
            .containers
            .iter()
            .filter(|o| o.state == State::Running && o.name == "a")
            .map(|o| o.limits.cpu_shares)
            .collect();
        assert_eq!(shares, [Some(2048)]);
    }
}

#[test]
fn one_container_may_take_all_others_into_a_restart() {
    let c = |name: &str| serde_json::json!({"name": name, "image": "i"});
    let mut leader = c("a");
    leader["restartPolicyRules"] = serde_json::json!([
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut model = Model::new(pod(serde_json::json!({"restartPolicy": "Never",
        "containers": [leader, c("b")], "initContainers": [c("i")]})));
    model.settle();
    let starts =
        |model: &Model, name: &str| model.started.iter().filter(|(n, _)| n == name).count();
    let exit = |model: &mut Model, code: i32| {
        let of = |o: &&Observed| o.name == "a" && o.state == State::Running;
        let id = model.containers.iter().find(of).unwrap().id.clone();
        model.end(&id, code);
    };
    let mut waits = Vec::new();
    for round in 2..5 {
        exit(&mut model, 42);
        let before = model.now;
        model.settle();
        waits.push(model.now.duration_since(before).as_secs());
        assert_eq!(model.running(), ["a", "b"]);
        for name in ["i", "a", "b"] {
            assert_eq!(starts(&model, name), round, "{name}");
        }
    }
    assert_eq!(waits, [0, 10, 20]);
    // Any other end is an end, as the pod's policy says.
    exit(&mut model, 1);
    model.settle();
    assert_eq!(model.running(), ["b"]);
    assert_eq!(starts(&model, "b"), 4);
}

/// Status is written at any moment of a replacement, and an end that it tells is final.
#[test]
fn a_pod_whose_container_is_being_replaced_is_not_over() {
    let mut model = Model::new(pod(serde_json::json!({"restartPolicy": "OnFailure",
        "containers": [{"name": "a", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]})));
    model.settle();
    let id = model.containers.iter().find(|o| o.name == "a").unwrap();
    let id = id.id.clone();
    let unhealthy = Unhealthy {
        startup: false,
        message: String::new(),
    };
    model.memory.unhealthy.insert(id.clone(), unhealthy);
    model.plan();
    model.busy.clear();
    // It exits with 0 when it is told to end.
    model.end(&id, 0);
    let plan = model.plan();
    assert_eq!(model.phase(&plan), "Running", "before it is begun again");
    let next = model.make(ContainerRole::App, "a", 1, "c1");
    assert_eq!(model.phase(&plan), "Running", "created");
    model.start(&next);
    assert_eq!(
        model.phase(&plan),
        "Running",
        "started, while its hook runs"
    );
    model.busy.clear();
    assert_eq!(model.phase(&plan), "Running");
    model.end(&next, 0);
    let plan = model.plan();
    assert_eq!(model.phase(&plan), "Succeeded");
}
