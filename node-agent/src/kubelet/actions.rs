//! Carrying out what `plan` decided. Each action is idempotent: it may have been begun before by
//! an agent that died.

use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodStatus, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::counters::ContainerType;
use super::env::{self, NodeFacts, Sources};
use super::plan::Action;
use super::pod::{self, Kind};
use super::volumes::{MountNamespace, VolumePaths, Volumes};
use super::worker::{Shared, reference};
use super::{Context, hooks, logs, objects, pull, resources, spec, status};
use crate::network::PodIdentity;
use crate::runtime::{
    ContainerSpec, Image, Observed, ResourceLimits, Runtime, RuntimeError, State, label,
};

const DRAIN_MAX: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_millis(10);
const DRAIN_OTHERS: Duration = Duration::from_millis(100);
/// A container gets this long to react to its signal, whatever is left of the grace period:
/// kubelet's `minimumGracePeriodInSeconds`.
const LEAST_GRACE: Duration = Duration::from_secs(2);
const MAX_MESSAGE: u64 = 4096;
/// Linux' `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;
const MAX_LOG_MESSAGE: usize = 2048;
const LOG_MESSAGE_LINES: u64 = 80;

const OWN_CONDITIONS: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodResizePending",
    "PodResizeInProgress",
];

/// Reason and message of a waiting container.
pub type Refusal = (String, String);

pub enum Outcome {
    Done,
    Volumes(Result<VolumePaths, String>),
    Sandbox(Result<(String, Vec<IpAddr>), String>),
    Image(String, Result<Image, Refusal>),
    Started(String, Result<(), Refusal>),
    Resized(Result<(), String>),
    /// The preStop hook of this container has ended, well or not.
    PreStopped(String),
    Detached(Result<(), String>),
    CleanedUp(Result<(), String>),
    Deleted(Result<(), String>),
}

pub async fn perform(shared: Shared, pod: Option<Arc<Pod>>, action: Action) -> Outcome {
    match (action, pod) {
        (Action::PrepareVolumes, Some(pod)) => Outcome::Volumes(volumes(&shared, &pod).await),
        (Action::CreateSandbox { attempt }, Some(pod)) => {
            match create_sandbox(&shared, &pod, attempt).await {
                Ok(()) => Outcome::Done,
                Err(message) => no_sandbox(&shared, &pod, message),
            }
        }
        (Action::StartSandbox { sandbox }, Some(pod)) => {
            match start_sandbox(&shared, &pod, &sandbox).await {
                Ok(ips) => {
                    let counters = &shared.ctx.counters;
                    counters.container(ContainerType::Sandbox, true);
                    Outcome::Sandbox(Ok((sandbox, ips)))
                }
                Err(message) => no_sandbox(&shared, &pod, message),
            }
        }
        (Action::AttachNetwork { sandbox }, Some(pod)) => Outcome::Sandbox(
            attach(&shared, &pod, &sandbox)
                .await
                .map(|ips| (sandbox, ips)),
        ),
        (Action::EnsureImage { container }, Some(pod)) => {
            let result = match find(&pod, &container) {
                Some((_, c)) => {
                    let about = reference(&pod, Some(&container));
                    pull::ensure(&shared, &pod, &c, &about).await
                }
                None => Err((
                    "ErrImagePull".into(),
                    "the container is not in the spec".into(),
                )),
            };
            if let Err((reason, _)) = &result {
                let about = reference(&pod, Some(&container));
                shared
                    .ctx
                    .recorder
                    .warning(&about, "Failed", format!("Error: {reason}"));
            }
            Outcome::Image(container, result)
        }
        (
            Action::CreateContainer {
                container,
                attempt,
                sandbox,
                epoch,
            },
            Some(pod),
        ) => {
            let begin = Begin {
                attempt,
                sandbox: &sandbox,
                epoch,
                created: None,
            };
            match begin.create(&shared, &pod, &container).await {
                Ok(()) => Outcome::Done,
                Err(refusal) => {
                    if let Some((kind, _)) = find(&pod, &container) {
                        shared.ctx.counters.container(kind.into(), false);
                    }
                    refused(&shared, &pod, container, refusal)
                }
            }
        }
        (
            Action::StartContainer {
                container,
                attempt,
                sandbox,
                epoch,
                created,
            },
            Some(pod),
        ) => {
            let begin = Begin {
                attempt,
                sandbox: &sandbox,
                epoch,
                created: created.as_deref(),
            };
            let result = match find(&pod, &container) {
                Some((kind, c)) => {
                    let result = begin.start(&shared, &pod, kind, &c).await;
                    let counters = &shared.ctx.counters;
                    counters.container(kind.into(), result.is_ok());
                    result
                }
                None => Err(not_in_spec()),
            };
            match result {
                Ok(()) => Outcome::Started(container, Ok(())),
                Err(refusal) => refused(&shared, &pod, container, refusal),
            }
        }
        (
            Action::KillContainer {
                container,
                id,
                grace,
                spent,
                hook,
                message,
            },
            pod,
        ) => {
            let kill = Kill {
                container: &container,
                id: &id,
                grace: grace.saturating_sub(spent),
                hook,
                message: &message,
            };
            kill.perform(&shared, pod.as_deref()).await;
            Outcome::Done
        }
        (Action::Resize { containers }, Some(pod)) => {
            let result = resize(&shared, &pod, &containers).await;
            if let Err(message) = &result {
                warn!(uid = shared.who.uid, message, "cannot resize; will retry");
            }
            Outcome::Resized(result)
        }
        (
            Action::PreStop {
                container,
                id,
                grace,
            },
            pod,
        ) => {
            if let Some(pod) = &pod {
                pre_stop(&shared, pod, &container, &id, grace).await;
            }
            Outcome::PreStopped(id)
        }
        (Action::Remove { id }, pod) => {
            remove(&shared, pod.as_deref(), &id).await;
            Outcome::Done
        }
        (Action::DetachNetwork, pod) => {
            if pod.as_deref().is_some_and(pod::is_host_network) {
                return Outcome::Detached(Ok(()));
            }
            let result = shared.ctx.network.detach(&shared.who.uid).await;
            Outcome::Detached(result.map_err(|e| e.to_string()))
        }
        (Action::CleanUp, _) => Outcome::CleanedUp(clean_up(&shared).await),
        (Action::DeleteObject, _) => Outcome::Deleted(delete(&shared).await),
        // Without an object there is nothing to start.
        (_, None) => Outcome::Done,
    }
}

fn find(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    pod::containers(pod)
        .into_iter()
        .find(|(_, c)| c.name == name)
}

async fn remove(shared: &Shared, pod: Option<&Pod>, id: &str) {
    let ctx = &shared.ctx;
    let container = match &ctx.logs {
        Some(logs) => {
            logs.finish(id).await;
            ctx.runtime.inspect(id).await.ok()
        }
        None => None,
    };
    if let Err(e) = ctx.runtime.remove(id).await {
        warn!(id, error = %e, "cannot remove a container; will retry");
        tokio::time::sleep(Duration::from_secs(1)).await;
        return;
    }
    if let (Some(logs), Some(o)) = (&ctx.logs, container) {
        // When the pod ends, what its containers have said can be read a while longer.
        let goes_on = pod.is_some_and(|pod| !pod::is_terminating(pod));
        logs.forget(&o, goes_on).await;
    }
}

async fn volumes(shared: &Shared, pod: &Pod) -> Result<VolumePaths, String> {
    let Some(volumes) = &shared.ctx.volumes else {
        return Ok(VolumePaths::default());
    };
    let node = shared.ctx.facts(&shared.ips);
    let images = image_volumes(shared, pod, volumes)
        .await
        .inspect_err(|message| {
            let about = reference(pod, None);
            shared
                .ctx
                .recorder
                .warning(&about, "FailedMount", message.clone());
        })?;
    let prepared = volumes.prepare(pod, &node).await.map(|mut paths| {
        paths.extend(images);
        paths
    });
    prepared.map_err(|e| {
        warn!(namespace = shared.who.namespace, name = shared.who.name, error = %e,
            "cannot prepare the pod's volumes; will retry");
        shared
            .ctx
            .recorder
            .warning(&reference(pod, None), "FailedMount", e.to_string());
        e.to_string()
    })
}

/// Volumes that are the files of an image (KEP-4639).
async fn image_volumes(
    shared: &Shared,
    pod: &Pod,
    volumes: &Volumes,
) -> Result<VolumePaths, String> {
    let mut paths = VolumePaths::new();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let Some(source) = &volume.image else {
            continue;
        };
        let wanted = Container {
            name: volume.name.clone(),
            image: source.reference.clone(),
            image_pull_policy: source.pull_policy.clone(),
            ..Default::default()
        };
        let about = reference(pod, None);
        let image =
            pull::ensure(shared, pod, &wanted, &about)
                .await
                .map_err(|(reason, message)| {
                    let text = format!("Error: {reason}");
                    shared.ctx.recorder.warning(&about, "Failed", text);
                    format!("failed to get image volume \"{}\": {message}", volume.name)
                })?;
        let archive = shared.ctx.runtime.save_image(&image.id);
        let path = volumes
            .unpack(pod, &volume.name, archive)
            .await
            .map_err(|e| format!("failed to unpack image volume \"{}\": {e}", volume.name))?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

fn no_sandbox(shared: &Shared, pod: &Pod, message: String) -> Outcome {
    let ctx = &shared.ctx;
    ctx.counters.container(ContainerType::Sandbox, false);
    warn!(
        namespace = shared.who.namespace,
        name = shared.who.name,
        message,
        "cannot make the pod's sandbox; will retry"
    );
    let text = format!("Failed to create pod sandbox: {message}");
    ctx.recorder
        .warning(&reference(pod, None), "FailedCreatePodSandBox", text);
    Outcome::Sandbox(Err(message))
}

async fn create_sandbox(shared: &Shared, pod: &Pod, attempt: u32) -> Result<(), String> {
    let ctx = &shared.ctx;
    if let Some(message) = spec::unsupported(pod) {
        return Err(message);
    }
    if attempt > 0 {
        let text = "Pod sandbox changed, it will be killed and re-created.";
        ctx.recorder
            .normal(&reference(pod, None), "SandboxChanged", text);
        // The old namespace is gone; a new one needs a new link.
        ctx.network
            .detach(&shared.who.uid)
            .await
            .map_err(|e| e.to_string())?;
    }
    let name = spec::hostname(&ctx.config, pod);
    if name.len() > MAX_HOSTNAME {
        return Err(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {name} is too long \
             ({MAX_HOSTNAME} characters is the max, {} characters requested)",
            name.len()
        ));
    }
    let wanted = spec::sandbox(&ctx.config, pod, attempt);
    let _permit = ctx.creates.acquire().await;
    let created = ctx.runtime.create_sandbox(&wanted).await;
    created.map(drop).map_err(|e| e.to_string())
}

/// What does not start is removed.
async fn start_sandbox(shared: &Shared, pod: &Pod, id: &str) -> Result<Vec<IpAddr>, String> {
    let ctx = &shared.ctx;
    let ready = async {
        let group = spec::cgroup(&ctx.config, pod);
        if let Some(cgroups) = &ctx.cgroups {
            let class = spec::class_cgroup(&ctx.config, pod);
            cgroups
                .create(&class, &class_limits(shared, pod))
                .map_err(|e| format!("cannot make the cgroup {class}: {e}"))?;
            cgroups
                .create(&group, &pod_limits(shared, pod))
                .map_err(|e| format!("cannot make the pod's cgroup {group}: {e}"))?;
        }
        let _permit = ctx.starts.acquire().await;
        ctx.runtime.start(id).await.map_err(|e| e.to_string())?;
        attach(shared, pod, id).await
    };
    let ready = ready.await;
    if ready.is_err()
        && let Err(e) = ctx.runtime.remove(id).await
    {
        debug!(id, error = %e, "cannot remove a sandbox that did not start");
    }
    ready
}

/// Of the group that holds all pods of this QoS class: best effort gets what others leave, and all
/// burstable pods together get what they ask for.
fn class_limits(shared: &Shared, pod: &Pod) -> ResourceLimits {
    let class = resources::qos_class(pod);
    let shares = match class {
        "Burstable" => {
            let pods = shared.ctx.pods.read();
            let of_class = pods.values().filter(|p| resources::qos_class(p) == class);
            let each = of_class.filter(|p| !pod::is_over(p));
            Some(
                each.filter_map(|p| resources::pod_limits(p).cpu_shares)
                    .sum(),
            )
        }
        "BestEffort" => Some(2),
        _ => None,
    };
    ResourceLimits {
        cpu_shares: shares.map(|s: i64| s.clamp(2, 262_144)),
        ..Default::default()
    }
}

/// The pod's own group gives way first and is set last: it must at no time hold less than its
/// containers, whichever of them grow and shrink.
async fn resize(shared: &Shared, pod: &Pod, containers: &[(String, String)]) -> Result<(), String> {
    let ctx = &shared.ctx;
    let group = spec::cgroup(&ctx.config, pod);
    if let Some(cgroups) = &ctx.cgroups {
        cgroups.relax(&group).map_err(|e| e.to_string())?;
    }
    let mut result = Ok(());
    for (name, id) in containers {
        let Some((_, c)) = find(pod, name) else {
            continue;
        };
        let limits = resources::container_limits(pod, &c, ctx.memory_capacity);
        if let Err(e) = ctx.runtime.update(id, &limits).await {
            result = Err(format!("failed to resize container \"{name}\": {e}"));
        }
    }
    if let Some(cgroups) = &ctx.cgroups {
        cgroups
            .create(&group, &pod_limits(shared, pod))
            .map_err(|e| format!("failed to resize the pod's cgroup: {e}"))?;
    }
    result
}

fn pod_limits(shared: &Shared, pod: &Pod) -> ResourceLimits {
    ResourceLimits {
        pids: shared.ctx.config.pod_max_pids,
        ..resources::pod_limits(pod)
    }
}

async fn attach(shared: &Shared, pod: &Pod, sandbox: &str) -> Result<Vec<IpAddr>, String> {
    let ctx = &shared.ctx;
    if pod::is_host_network(pod) {
        return Ok(ctx.host_ips.clone());
    }
    let observed = ctx
        .runtime
        .inspect(sandbox)
        .await
        .map_err(|e| e.to_string())?;
    let pid = observed.pid.ok_or("the sandbox is not running")?;
    let who = PodIdentity {
        namespace: shared.who.namespace.clone(),
        name: shared.who.name.clone(),
        uid: shared.who.uid.clone(),
    };
    let attached = ctx.network.attach(&who, pid, &spec::network(pod)).await;
    attached.map(|a| a.ips).map_err(|e| {
        format!(
            "failed to set up the network of pod \"{}_{}\": {e}",
            who.name, who.namespace
        )
    })
}

fn not_in_spec() -> Refusal {
    (
        "CreateContainerConfigError".into(),
        "the container is not in the spec".into(),
    )
}

fn refused(shared: &Shared, pod: &Pod, container: String, refusal: Refusal) -> Outcome {
    let about = reference(pod, Some(&container));
    let text = format!("Error: {}", refusal.1);
    shared.ctx.recorder.warning(&about, "Failed", text);
    Outcome::Started(container, Err(refusal))
}

/// Which start of a container this is, and where.
struct Begin<'a> {
    attempt: u32,
    sandbox: &'a str,
    epoch: u32,
    /// The id of the container, if there is one.
    created: Option<&'a str>,
}

/// What a container is made from.
struct Ingredients {
    environment: Vec<(String, String)>,
    node: NodeFacts,
}

impl Begin<'_> {
    /// Only creates the container.
    async fn create(&self, shared: &Shared, pod: &Pod, name: &str) -> Result<(), Refusal> {
        let (kind, c) = find(pod, name).ok_or_else(not_in_spec)?;
        let ingredients = ingredients(shared, pod, &c).await?;
        if shared.ctx.volumes.is_some() {
            // Mounts need the files; what is in them is written before the start.
            let dir = shared.ctx.pod_dir(&shared.who.uid);
            spec::ensure_etc(&dir).map_err(bad_config)?;
        }
        let _permit = shared.ctx.creates.acquire().await;
        match self.make(shared, pod, kind, &c, &ingredients).await {
            // Its sandbox has gone meanwhile, which says nothing about the container.
            Err(Unmade::Runtime(RuntimeError::NotFound(message)))
                if shared.ctx.runtime.inspect(self.sandbox).await.is_err() =>
            {
                debug!(container = name, message, "not created");
                Ok(())
            }
            made => made.map(drop).map_err(Refusal::from),
        }
    }

    async fn make(
        &self,
        shared: &Shared,
        pod: &Pod,
        kind: Kind,
        c: &Container,
        ingredients: &Ingredients,
    ) -> Result<String, Unmade> {
        let ctx = &shared.ctx;
        let empty = Image::default();
        let own = MountNamespace::own();
        let made = spec::Made {
            config: &ctx.config,
            pod,
            kind,
            container: c,
            attempt: self.attempt,
            sandbox: self.sandbox,
            image: shared.images.get(&c.name).unwrap_or(&empty),
            env: ingredients.environment.clone(),
            volumes: &shared.volumes,
            namespace: ctx.volumes.as_ref().map_or(&own, Volumes::namespace),
            node: &ingredients.node,
            memory_capacity: ctx.memory_capacity,
            dir: ctx.pod_dir(&shared.who.uid),
        };
        let mut wanted = spec::container(&made).map_err(Unmade::Config)?;
        let epoch = self.epoch.to_string();
        wanted.labels.insert(label::EPOCH.into(), epoch);
        if let Some(id) = self.created {
            // Its mounts are there, also after the machine has started again.
            return Ok(id.into());
        }
        if kind == Kind::Ephemeral {
            let target = target(shared, pod, &c.name).await;
            wanted.pid_of = target.map_err(Unmade::Config)?;
        }
        let id = create(shared, self.sandbox, wanted, &made)
            .await
            .map_err(Unmade::Runtime)?;
        let about = reference(pod, Some(&c.name));
        ctx.recorder.normal(&about, "Created", "Container created");
        Ok(id)
    }

    async fn start(
        &self,
        shared: &Shared,
        pod: &Pod,
        kind: Kind,
        c: &Container,
    ) -> Result<(), Refusal> {
        let ctx = &shared.ctx;
        let about = reference(pod, Some(&c.name));
        let namespace = shared.who.namespace.as_str();
        let ingredients = ingredients(shared, pod, c).await?;
        if ctx.volumes.is_some() {
            let dir = ctx.pod_dir(&shared.who.uid);
            spec::write_etc(&ctx.config, pod, &ingredients.node, &dir).map_err(bad_config)?;
        }
        let permit = ctx.starts.acquire().await;
        let id = self.make(shared, pod, kind, c, &ingredients).await?;
        ctx.runtime
            .start(&id)
            .await
            .map_err(|e| ("RunContainerError".to_string(), e.to_string()))?;
        drop(permit);
        ctx.recorder.normal(&about, "Started", "Container started");
        info!(
            namespace,
            name = shared.who.name,
            container = c.name,
            attempt = self.attempt,
            "started a container"
        );
        if let Some(handler) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            let ip = shared.ips.first().copied();
            let outcome = tokio::select! {
                outcome = hooks::run(&*ctx.runtime, &id, pod, c, handler, ip) => outcome,
                // The container is stopped as any other.
                () = shared.ending.cancelled() => Ok(()),
            };
            if let Err(message) = outcome {
                warn!(
                    namespace,
                    name = shared.who.name,
                    container = c.name,
                    message,
                    "postStart failed"
                );
                // Without the message, which may hold what a server keeps secret.
                ctx.recorder
                    .warning(&about, "FailedPostStartHook", "PostStartHook failed");
                let kill = Kill {
                    container: &c.name,
                    id: &id,
                    grace: pod::grace(pod),
                    hook: true,
                    message: "FailedPostStartHook",
                };
                kill.perform(shared, Some(pod)).await;
                return Err(("PostStartHookError".into(), message));
            }
        }
        Ok(())
    }
}

/// Why there is no container.
enum Unmade {
    Config(String),
    Runtime(RuntimeError),
}

impl From<Unmade> for Refusal {
    fn from(why: Unmade) -> Self {
        match why {
            Unmade::Config(message) => bad_config(message),
            Unmade::Runtime(e) => ("CreateContainerError".into(), e.to_string()),
        }
    }
}

fn bad_config(message: String) -> Refusal {
    ("CreateContainerConfigError".into(), message)
}

async fn ingredients(shared: &Shared, pod: &Pod, c: &Container) -> Result<Ingredients, Refusal> {
    let ctx = &shared.ctx;
    let namespace = shared.who.namespace.as_str();
    let mut sources = Sources::default();
    let (maps, secrets) = env::references(c);
    for name in maps {
        let found: Option<ConfigMap> = ctx
            .objects
            .get(Some(namespace), name)
            .await
            .map_err(bad_config)?;
        sources
            .config_maps
            .extend(found.map(|map| (name.to_string(), map)));
    }
    for name in secrets {
        let found: Option<Secret> = ctx
            .objects
            .get(Some(namespace), name)
            .await
            .map_err(bad_config)?;
        sources
            .secrets
            .extend(found.map(|secret| (name.to_string(), secret)));
    }
    for (volume, path) in env::files(c) {
        if let (Some(volumes), Some(folder)) = (&ctx.volumes, shared.volumes.get(volume))
            && let Some(text) = volumes
                .read_file(folder, path)
                .map_err(|e| bad_config(format!("cannot read {path:?}: {e}")))?
        {
            let file = env::parse_file(&text).map_err(|e| {
                bad_config(format!(
                    "failed to parse environment variable file {path:?}: {e}"
                ))
            })?;
            sources.files.insert((volume.into(), path.into()), file);
        }
    }
    let node = ctx.facts(&shared.ips);
    let services = ctx.services(namespace);
    let environment = env::environment(pod, c, &sources, &services, &node).map_err(bad_config)?;
    Ok(Ingredients { environment, node })
}

/// Makes a container whose process has the groups that it should.
///
/// Those may depend on files of the image, which only a container of it shows: the first one of an image is made twice.
async fn create(
    shared: &Shared,
    sandbox: &str,
    mut wanted: ContainerSpec,
    made: &spec::Made<'_>,
) -> Result<String, RuntimeError> {
    let runtime = &*shared.ctx.runtime;
    let (question, image) = (made.question(), made.image.id.as_str());
    if !question.needs_accounts(&wanted.security) {
        return runtime.create_container(sandbox, &wanted).await;
    }
    let known = &shared.ctx.accounts;
    if let Some(accounts) = known.get(image) {
        wanted.security = question.answer(&wanted.security, &accounts);
        return runtime.create_container(sandbox, &wanted).await;
    }
    let id = runtime.create_container(sandbox, &wanted).await?;
    let accounts = known.read(runtime, &id, image).await?;
    let security = question.answer(&wanted.security, &accounts);
    if security == wanted.security {
        return Ok(id);
    }
    runtime.remove(&id).await?;
    wanted.security = security;
    runtime.create_container(sandbox, &wanted).await
}

/// The container whose processes an ephemeral container is to see, if it names one.
async fn target(shared: &Shared, pod: &Pod, name: &str) -> Result<Option<String>, String> {
    let all = pod::spec(pod).ephemeral_containers.iter().flatten();
    let target = all
        .filter(|c| c.name == name)
        .find_map(|c| c.target_container_name.clone());
    let Some(target) = target.filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let observed = shared
        .ctx
        .runtime
        .observe(&shared.who.uid)
        .await
        .map_err(|e| e.to_string())?;
    match super::plan::attempts(&observed, &target).first() {
        Some(o) if o.state == State::Running => Ok(Some(o.id.clone())),
        _ => Err(format!("unable to find target container {target}")),
    }
}

struct Kill<'a> {
    container: &'a str,
    id: &'a str,
    /// What is left of it.
    grace: Duration,
    hook: bool,
    message: &'a str,
}

impl Kill<'_> {
    async fn perform(&self, shared: &Shared, pod: Option<&Pod>) {
        let ctx = &shared.ctx;
        let began = Instant::now();
        if let Some(pod) = pod {
            let about = reference(pod, Some(self.container));
            ctx.recorder.normal(&about, "Killing", self.message);
            let hook = async {
                if self.hook {
                    pre_stop(shared, pod, self.container, self.id, self.grace).await;
                }
            };
            let drained = async {
                if pod::is_terminating(pod) {
                    drain(shared, self.grace).await;
                }
            };
            tokio::join!(hook, drained);
        }
        let left = self.grace.saturating_sub(began.elapsed()).max(LEAST_GRACE);
        stop(ctx.runtime.as_ref(), self.id, left).await;
    }
}

/// Runs the preStop hook, if the container has one, for as long as `grace` at most.
async fn pre_stop(shared: &Shared, pod: &Pod, container: &str, id: &str, grace: Duration) {
    let hook = find(pod, container).and_then(|(_, c)| {
        let handler = c.lifecycle.as_ref()?.pre_stop.clone()?;
        Some((c, handler))
    });
    let Some((c, handler)) = hook.filter(|_| !grace.is_zero()) else {
        return;
    };
    let ctx = &shared.ctx;
    let ip = shared.ips.first().copied();
    let run = hooks::run(&*ctx.runtime, id, pod, &c, &handler, ip);
    match timeout(grace, run).await {
        Ok(Ok(())) => {}
        Ok(Err(message)) => {
            debug!(container, message, "preStop failed");
            let about = reference(pod, Some(container));
            ctx.recorder
                .warning(&about, "FailedPreStopHook", "PreStopHook failed");
        }
        Err(_) => debug!(container, "preStop did not end within the grace period"),
    }
}

/// Waits until Services no longer send anything here.
///
/// The deletion of a pod reaches its node and the authors of EndpointSlices at the same time, and a
/// node that is quicker stops a server that still gets connections. Kubernetes leaves that race to
/// a preStop sleep of the user's; here a pod that is no endpoint does not wait at all, and one that
/// is waits as long as the change takes, which this node's own watch tells.
async fn drain(shared: &Shared, grace: Duration) {
    let Some(slices) = &shared.ctx.endpoint_slices else {
        return;
    };
    let is_endpoint = || {
        let of = slices.in_namespace(&shared.who.namespace);
        of.iter()
            .flat_map(|slice| slice.endpoints())
            .any(|endpoint| {
                endpoint.is_pod(&shared.who.uid)
                    && endpoint.is_ready()
                    && !endpoint.is_terminating()
            })
    };
    if !is_endpoint() {
        return;
    }
    let limit = Instant::now() + DRAIN_MAX.min(grace / 2);
    while is_endpoint() && Instant::now() < limit {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    // Other nodes hear of it at about the same time.
    tokio::time::sleep(DRAIN_OTHERS).await;
}

async fn stop(runtime: &dyn Runtime, id: &str, grace: Duration) {
    if let Err(e) = runtime.stop(id, grace).await {
        warn!(id, error = %e, "cannot stop a container; will retry");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn clean_up(shared: &Shared) -> Result<(), String> {
    let ctx = shared.ctx.clone();
    if let Some(logs) = &ctx.logs {
        logs.retire(&shared.who.uid).await;
    }
    let uid = shared.who.uid.clone();
    let parent = ctx.config.cgroup_parent.trim_end_matches('/').to_string();
    tokio::task::spawn_blocking(move || {
        if let Some(volumes) = &ctx.volumes {
            volumes
                .clean_up(&uid)
                .map_err(|e| format!("cannot remove the pod's folder: {e}"))?;
        }
        if let Some(cgroups) = &ctx.cgroups {
            for class in ["", "burstable/", "besteffort/"] {
                let group = format!("{parent}/kubepods/{class}pod{uid}");
                if let Err(e) = cgroups.remove(&group) {
                    // The kernel empties a group a moment after its last process ended.
                    return Err(format!("cannot remove cgroup {group}: {e}"));
                }
            }
        }
        Ok(())
    })
    .await
    .map_err(|e| e.to_string())?
}

async fn delete(shared: &Shared) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(shared.ctx.client.clone(), &shared.who.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(shared.who.uid.clone()),
            resource_version: None,
        }),
        ..Default::default()
    };
    match api.delete(&shared.who.name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(e) => Err(objects::describe(&e)),
    }
}

/// What a container left in its `terminationMessagePath`, or the end of its log.
pub async fn termination_message(ctx: &Context, o: &Observed) -> String {
    let file = o.labels.get(label::TERMINATION_FILE);
    let written = file
        .and_then(|path| file_end(path, MAX_MESSAGE).ok())
        .unwrap_or_default();
    if !written.is_empty() {
        return String::from_utf8_lossy(&written).into_owned();
    }
    let policy = o.labels.get(label::TERMINATION_POLICY).map(String::as_str);
    if policy != Some("FallbackToLogsOnError") || o.exit_code == 0 {
        return String::new();
    }
    let Some(logs) = &ctx.logs else {
        return String::new();
    };
    let options = logs::Options {
        tail_lines: Some(LOG_MESSAGE_LINES),
        ..Default::default()
    };
    let mut text = Vec::new();
    let read = async {
        let mut pieces = Box::pin(logs.read(o, options).await);
        while let Some(Ok(piece)) = pieces.next().await {
            text.extend_from_slice(&piece);
        }
    };
    if timeout(Duration::from_secs(2), read).await.is_err() {
        debug!(id = o.id, "the log is too slow for a termination message");
    }
    let from = text.len().saturating_sub(MAX_LOG_MESSAGE);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

/// The last `most` bytes of a file, however long a container has made it.
fn file_end(path: &str, most: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A strategic merge patch: conditions of others stay, our own lists replace.
pub fn status_patch(uid: &str, base: &PodStatus, wanted: &PodStatus) -> Value {
    let mut status = serde_json::to_value(wanted).unwrap_or_default();
    let before = serde_json::to_value(base).unwrap_or_default();
    if let (Some(new), Some(old)) = (status.as_object_mut(), before.as_object()) {
        if let Some(Value::Array(conditions)) = new.get_mut("conditions") {
            // Those of others are not ours to repeat: they may have changed meanwhile.
            conditions.retain(|c| {
                // Whoever disrupts a pod writes this one; the reason says that it was us.
                let evicted =
                    c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet";
                evicted || OWN_CONDITIONS.iter().any(|own| c["type"] == *own)
            });
            let old = old.get("conditions").and_then(Value::as_array);
            for c in old.into_iter().flatten() {
                let kind = c["type"].as_str().unwrap_or_default();
                // Why it was not so is no longer why it is.
                if let Some(new) = conditions.iter_mut().find(|new| new["type"] == kind) {
                    for key in ["reason", "message"] {
                        if !c[key].is_null() && new[key].is_null() {
                            new[key] = Value::Null;
                        }
                    }
                }
                let ended = status::RESIZE_CONDITIONS.contains(&kind)
                    && !conditions.iter().any(|c| c["type"] == kind);
                if ended {
                    conditions.push(json!({"$patch": "delete", "type": kind}));
                }
            }
        }
        // What is no longer set must be said.
        for key in ["reason", "message"] {
            if old.contains_key(key) && !new.contains_key(key) {
                new.insert(key.into(), Value::Null);
            }
        }
        // These lists are merged by address: the old ones go by name.
        for key in ["podIPs", "hostIPs"] {
            let Some(Value::Array(items)) = new.get_mut(key) else {
                continue;
            };
            for item in old.get(key).and_then(Value::as_array).into_iter().flatten() {
                if !items.contains(item) {
                    items.push(json!({"$patch": "delete", "ip": item["ip"]}));
                }
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

pub async fn write_status(shared: &Shared, patch: Value) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = Api::namespaced(shared.ctx.client.clone(), &shared.who.namespace);
    let params = PatchParams::default();
    api.patch_status(&shared.who.name, &params, &Patch::Strategic(&patch))
        .await
}
