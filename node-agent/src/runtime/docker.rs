//! Docker behind [`Runtime`]. The only file that knows bollard.
//!
//! Several agents may share one daemon (a cluster on one machine): every container carries a
//! `scope` label, and nothing outside the scope is ever seen or touched.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummaryStateEnum, HostConfig,
    HostConfigLogConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType,
};
use bollard::query_parameters as query;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use tracing::{info, warn};

use super::{
    BoxStream, ContainerRole, ContainerSpec, ContainerStats, ExecSpec, Image, Listed, LogEntry,
    LogOptions, Namespace, Observed, Output, OutputStream, PodRef, Propagation, RegistryAuth,
    Result, Runtime, RuntimeError, RuntimeVersion, SandboxSpec, Session, SessionId, State, Wake,
    label, pause,
};

/// How long the daemon may take to begin answering. It starts containers within this time even
/// when it is slow; a hung daemon is noticed at the end of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Rotation of the daemon's own log files, kubelet's `containerLogMaxSize` and `MaxFiles`.
const LOG_MAX_SIZE: &str = "10m";
const LOG_MAX_FILES: &str = "5";

/// What a hostNetwork sandbox needs in order to be in the node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HostNetwork {
    /// The daemon is in the agent's own network namespace.
    Docker,
    /// The agent's namespace as a file that the daemon can mount.
    File(PathBuf),
    Unreachable,
}

#[derive(Clone)]
pub struct DockerRuntime {
    docker: Docker,
    scope: Arc<str>,
    host_network: HostNetwork,
    daemon_pid: Option<u32>,
    /// The least `oom_score_adj` that the daemon may give.
    least_oom_score: i64,
}

impl DockerRuntime {
    /// `scope` names this node among all agents that use the daemon.
    pub async fn connect(socket: &Path, scope: &str) -> Result<Self> {
        let docker = Docker::connect_with_unix(
            &socket.to_string_lossy(),
            ANSWER_TIMEOUT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|e| RuntimeError::Unavailable(e.to_string()))?;
        let daemon_pid = daemon_pid(socket).await;
        let host_network = host_network(daemon_pid);
        Ok(Self {
            docker,
            scope: scope.into(),
            host_network,
            daemon_pid,
            least_oom_score: least_oom_score(daemon_pid),
        })
    }

    /// The daemon's process, or the one that opened its socket for it.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon_pid
    }

    /// Makes sure the pause image is there.
    pub async fn ensure_pause_image(&self) -> Result<()> {
        if self.image(pause::IMAGE).await?.is_some() {
            return Ok(());
        }
        let archive = pause::image_archive(std::env::consts::ARCH).ok_or_else(|| {
            RuntimeError::Refused(format!(
                "there is no pause program for {} yet",
                std::env::consts::ARCH
            ))
        })?;
        let options = query::ImportImageOptionsBuilder::new().quiet(true).build();
        let body = bollard::body_full(Bytes::from(archive));
        self.docker
            .import_image(options, body, None)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(error)?;
        info!(image = pause::IMAGE, "loaded the pause image");
        Ok(())
    }

    async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String> {
        let options = query::CreateContainerOptionsBuilder::new()
            .name(name)
            .build();
        match self
            .docker
            .create_container(Some(options), body)
            .await
            .map_err(error)
        {
            Ok(created) => Ok(created.id),
            // The agent died between creating and remembering, or the call was repeated.
            Err(RuntimeError::Conflict(message)) => {
                match self
                    .docker
                    .inspect_container(name, None)
                    .await
                    .map_err(error)
                {
                    Ok(ContainerInspectResponse { id: Some(id), .. }) => Ok(id),
                    _ => Err(RuntimeError::Conflict(message)),
                }
            }
            Err(e) => Err(e),
        }
    }

    fn labels(&self, more: &BTreeMap<String, String>, pod: &PodRef) -> HashMap<String, String> {
        let mut labels: HashMap<String, String> =
            more.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        labels.insert(label::SCOPE.into(), self.scope.to_string());
        labels.insert(label::POD_NAME.into(), pod.name.clone());
        labels.insert(label::POD_NAMESPACE.into(), pod.namespace.clone());
        labels.insert(label::POD_UID.into(), pod.uid.clone());
        labels
    }

    fn filters(&self, more: Option<String>) -> HashMap<String, Vec<String>> {
        let mut labels = vec![format!("{}={}", label::SCOPE, self.scope)];
        labels.extend(more);
        HashMap::from([("label".to_string(), labels)])
    }

    async fn summaries(
        &self,
        more: Option<String>,
    ) -> Result<Vec<bollard::models::ContainerSummary>> {
        let options = query::ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&self.filters(more))
            .build();
        self.docker
            .list_containers(Some(options))
            .await
            .map_err(error)
    }
}

/// Known by the peer of its socket.
async fn daemon_pid(socket: &Path) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    u32::try_from(stream.peer_cred().ok()?.pid()?).ok()
}

/// Without CAP_SYS_RESOURCE (a daemon inside a confined machine) a score cannot be lowered, and a
/// container that asks for it does not start at all.
fn least_oom_score(daemon: Option<u32>) -> i64 {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let Some(pid) = daemon else { return -1000 };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let capabilities = read("status").ok().and_then(|status| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?
            .trim();
        u64::from_str_radix(line, 16).ok()
    });
    match capabilities {
        Some(held) if held & CAP_SYS_RESOURCE == 0 => {
            let least = read("oom_score_adj")
                .ok()
                .and_then(|n| n.trim().parse().ok())
                .unwrap_or(0);
            warn!(
                least,
                "Docker lacks CAP_SYS_RESOURCE: containers keep at least this OOM score"
            );
            least
        }
        _ => -1000,
    }
}

fn host_network(daemon: Option<u32>) -> HostNetwork {
    let own = std::fs::read_link("/proc/self/ns/net").ok();
    let daemon = daemon.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok());
    if own.is_some() && own == daemon {
        return HostNetwork::Docker;
    }
    use std::os::unix::fs::MetadataExt;
    let Ok(own) = std::fs::metadata("/proc/self/ns/net") else {
        return HostNetwork::Unreachable;
    };
    let named = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    for entry in named {
        if let Ok(meta) = entry
            .metadata()
            .or_else(|_| std::fs::metadata(entry.path()))
            && (meta.dev(), meta.ino()) == (own.dev(), own.ino())
        {
            return HostNetwork::File(entry.path());
        }
    }
    HostNetwork::Unreachable
}

fn error(e: bollard::errors::Error) -> RuntimeError {
    use bollard::errors::Error as E;
    match e {
        E::DockerResponseServerError {
            status_code: 404,
            message,
        } => RuntimeError::NotFound(message),
        E::DockerResponseServerError {
            status_code: 409,
            message,
        } => RuntimeError::Conflict(message),
        E::DockerResponseServerError { message, .. } => RuntimeError::Refused(message),
        E::DockerStreamError { error } => RuntimeError::Refused(error),
        E::DockerContainerWaitError { error, .. } => RuntimeError::Refused(error),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            RuntimeError::Unavailable(format!("cannot reach the Docker daemon: {text}"))
        }
    }
}

/// `304 Not Modified` answers a start or stop that was not needed.
fn unless_unchanged(result: std::result::Result<(), bollard::errors::Error>) -> Result<()> {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError {
            status_code: 304, ..
        }) => Ok(()),
        other => other.map_err(error),
    }
}

fn time(text: Option<&str>) -> Option<Timestamp> {
    let at: Timestamp = text?.parse().ok()?;
    // Go's zero time means "never".
    (at.as_second() > 0).then_some(at)
}

fn role(labels: &HashMap<String, String>) -> ContainerRole {
    match labels.get(label::ROLE).map(String::as_str) {
        Some("podsandbox") => ContainerRole::Sandbox,
        _ => ContainerRole::App,
    }
}

fn pod_ref(labels: &HashMap<String, String>) -> PodRef {
    let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
    PodRef {
        namespace: get(label::POD_NAMESPACE),
        name: get(label::POD_NAME),
        uid: get(label::POD_UID),
    }
}

fn observed(c: ContainerInspectResponse) -> Observed {
    let config = c.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let state = c.state.unwrap_or_default();
    let running = state.running == Some(true);
    let started_at = time(state.started_at.as_deref());
    let finished_at = time(state.finished_at.as_deref());
    // A container that could not be started stays "created" with an error and an exit code.
    let failed = state.error.as_ref().is_some_and(|e| !e.is_empty());
    Observed {
        id: c.id.unwrap_or_default(),
        role: role(&labels),
        pod: pod_ref(&labels),
        name: labels
            .get(label::CONTAINER_NAME)
            .cloned()
            .unwrap_or_default(),
        attempt: labels
            .get(label::ATTEMPT)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
        state: match (
            running,
            started_at.is_some() || finished_at.is_some() || failed,
        ) {
            (true, _) => State::Running,
            (false, true) => State::Exited,
            (false, false) => State::Created,
        },
        pid: state
            .pid
            .filter(|pid| *pid > 0)
            .and_then(|pid| u32::try_from(pid).ok()),
        created_at: time(c.created.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at,
        finished_at: finished_at.filter(|_| !running),
        exit_code: state.exit_code.unwrap_or(0) as i32,
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        image: config.image.unwrap_or_default(),
        image_id: c.image.unwrap_or_default(),
        labels: labels.into_iter().collect(),
    }
}

fn mount(spec: &super::MountSpec) -> Mount {
    Mount {
        target: Some(spec.container_path.clone()),
        source: Some(spec.host_path.clone()),
        typ: Some(MountType::BIND),
        read_only: Some(spec.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(match spec.propagation {
                Propagation::Private => MountBindOptionsPropagationEnum::RPRIVATE,
                Propagation::HostToContainer => MountBindOptionsPropagationEnum::RSLAVE,
                Propagation::Bidirectional => MountBindOptionsPropagationEnum::RSHARED,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn logging() -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".into()),
        config: Some(HashMap::from([
            ("max-size".into(), LOG_MAX_SIZE.into()),
            ("max-file".into(), LOG_MAX_FILES.into()),
        ])),
    }
}

fn some<T>(list: &[T]) -> Option<Vec<T>>
where
    T: Clone,
{
    (!list.is_empty()).then(|| list.to_vec())
}

fn output(item: std::result::Result<LogOutput, bollard::errors::Error>) -> Result<Output> {
    Ok(match item.map_err(error)? {
        LogOutput::StdErr { message } => Output {
            stream: OutputStream::Stderr,
            bytes: message,
        },
        LogOutput::StdOut { message }
        | LogOutput::Console { message }
        | LogOutput::StdIn { message } => Output {
            stream: OutputStream::Stdout,
            bytes: message,
        },
    })
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        let info = self.docker.info().await.map_err(error)?;
        let version = info.server_version.unwrap_or_default();
        Ok(RuntimeVersion {
            // The distribution's suffix (`20.10.24+dfsg1`) is no part of the version.
            version: format!("docker://{}", version.split('+').next().unwrap_or_default()),
            kernel: info.kernel_version.unwrap_or_default(),
            os_image: info.operating_system.unwrap_or_default(),
        })
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let all = self.summaries(None).await?;
        Ok(all
            .into_iter()
            .map(|c| {
                let labels = c.labels.unwrap_or_default();
                Listed {
                    id: c.id.unwrap_or_default(),
                    role: role(&labels),
                    pod: pod_ref(&labels),
                    state: match c.state {
                        Some(ContainerSummaryStateEnum::CREATED) => State::Created,
                        Some(
                            ContainerSummaryStateEnum::RUNNING
                            | ContainerSummaryStateEnum::PAUSED
                            | ContainerSummaryStateEnum::RESTARTING,
                        ) => State::Running,
                        _ => State::Exited,
                    },
                    image_id: c.image_id.unwrap_or_default(),
                }
            })
            .collect())
    }

    async fn observe(&self, pod_uid: &str) -> Result<Vec<Observed>> {
        let listed = self
            .summaries(Some(format!("{}={pod_uid}", label::POD_UID)))
            .await?;
        let ids = listed.into_iter().filter_map(|c| c.id);
        let inspected = futures::future::join_all(ids.map(|id| async move {
            match self
                .docker
                .inspect_container(&id, None)
                .await
                .map_err(error)
            {
                // Removed between the two calls.
                Err(RuntimeError::NotFound(_)) => Ok(None),
                other => other.map(|c| Some(observed(c))),
            }
        }))
        .await;
        inspected
            .into_iter()
            .filter_map(Result::transpose)
            .collect()
    }

    async fn inspect(&self, id: &str) -> Result<Observed> {
        self.docker
            .inspect_container(id, None)
            .await
            .map(observed)
            .map_err(error)
    }

    fn events(&self) -> BoxStream<Wake> {
        let (send, receive) = tokio::sync::mpsc::channel(256);
        let this = self.clone();
        tokio::spawn(async move {
            let mut wait = Duration::from_millis(100);
            loop {
                let mut filters = this.filters(None);
                filters.insert("type".into(), vec!["container".into()]);
                let names = ["start", "die", "oom", "destroy"];
                filters.insert("event".into(), names.map(String::from).to_vec());
                let options = query::EventsOptionsBuilder::new().filters(&filters).build();
                let mut events = Box::pin(this.docker.events(Some(options)));
                if this.docker.ping().await.is_ok() {
                    wait = Duration::from_millis(100);
                    if send.send(Wake::All).await.is_err() {
                        return;
                    }
                    while let Some(event) = events.next().await {
                        let event = match event {
                            Ok(event) => event,
                            Err(e) => {
                                warn!(error = %error(e), "the stream of Docker events ended");
                                break;
                            }
                        };
                        let uid = event
                            .actor
                            .and_then(|actor| actor.attributes)
                            .and_then(|labels| labels.get(label::POD_UID).cloned());
                        if let Some(uid) = uid
                            && send.send(Wake::Pod(uid)).await.is_err()
                        {
                            return;
                        }
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = send.closed() => return,
                }
                wait = (wait * 2).min(RECONNECT_MAX);
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String> {
        let mut labels = self.labels(&spec.labels, &spec.pod);
        labels.insert(label::ROLE.into(), "podsandbox".into());
        labels.insert(label::ATTEMPT.into(), spec.attempt.to_string());
        let (network_mode, netns) = match (spec.network, &self.host_network) {
            (Namespace::Host, HostNetwork::Docker) => ("host", None),
            (Namespace::Host, HostNetwork::File(path)) => ("none", Some(path)),
            (Namespace::Host, HostNetwork::Unreachable) => {
                return Err(RuntimeError::Refused(
                    "hostNetwork: the agent's network namespace has no name under /run/netns and \
                     is not Docker's"
                        .into(),
                ));
            }
            _ => ("none", None),
        };
        let host = HostConfig {
            network_mode: Some(network_mode.into()),
            pid_mode: (spec.pid == Namespace::Host).then(|| "host".into()),
            ipc_mode: Some(
                if spec.ipc == Namespace::Host {
                    "host"
                } else {
                    "shareable"
                }
                .into(),
            ),
            cgroup_parent: Some(spec.cgroup_parent.clone()),
            oom_score_adj: Some(self.least_oom_score.max(-998)),
            cpu_shares: Some(2),
            sysctls: (!spec.sysctls.is_empty()).then(|| {
                spec.sysctls
                    .iter()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            }),
            readonly_rootfs: Some(true),
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".into()),
                config: None,
            }),
            cap_add: netns.is_some().then(|| vec!["SYS_ADMIN".into()]),
            security_opt: Some(match netns {
                Some(_) => vec!["seccomp=unconfined".into(), "apparmor=unconfined".into()],
                None => vec!["no-new-privileges".into()],
            }),
            mounts: netns.map(|path| {
                vec![Mount {
                    target: Some(pause::NETNS_PATH.into()),
                    source: Some(path.to_string_lossy().into_owned()),
                    typ: Some(MountType::BIND),
                    read_only: Some(true),
                    ..Default::default()
                }]
            }),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: Some(pause::IMAGE.into()),
            cmd: netns.is_some().then(|| vec![pause::NETNS_PATH.into()]),
            // Docker's own host network keeps the machine's name.
            hostname: (network_mode != "host").then(|| spec.hostname.clone()),
            labels: Some(labels),
            host_config: Some(host),
            ..Default::default()
        };
        let name = format!(
            "k8s_POD_{}_{}_{}_{}",
            spec.pod.name, spec.pod.namespace, spec.pod.uid, spec.attempt
        );
        match self.create(&name, body.clone()).await {
            // Somebody pruned images.
            Err(RuntimeError::NotFound(_)) => {
                self.ensure_pause_image().await?;
                self.create(&name, body).await
            }
            other => other,
        }
    }

    async fn create_container(&self, sandbox: &str, spec: &ContainerSpec) -> Result<String> {
        let mut labels = self.labels(&spec.labels, &spec.pod);
        labels.insert(label::ROLE.into(), "container".into());
        labels.insert(label::CONTAINER_NAME.into(), spec.name.clone());
        labels.insert(label::ATTEMPT.into(), spec.attempt.to_string());
        let joined = format!("container:{sandbox}");
        let security = &spec.security;
        let mut options = Vec::new();
        if let Some(profile) = &security.seccomp {
            options.push(format!("seccomp={profile}"));
        }
        if security.no_new_privileges {
            options.push("no-new-privileges".into());
        }
        let limits = &spec.resources;
        let host = HostConfig {
            network_mode: Some(joined.clone()),
            ipc_mode: Some(joined.clone()),
            pid_mode: match (&spec.pid_of, spec.pid) {
                (Some(target), _) => Some(format!("container:{target}")),
                (None, Namespace::Pod) => Some(joined),
                (None, Namespace::Host) => Some("host".into()),
                (None, Namespace::Container) => None,
            },
            cgroup_parent: Some(spec.cgroup_parent.clone()),
            cpu_shares: limits.cpu_shares,
            cpu_quota: limits.cpu_quota_us,
            cpu_period: limits.cpu_period_us,
            memory: limits.memory_bytes,
            // Equal means no swap beyond the limit.
            memory_swap: limits.memory_bytes,
            oom_score_adj: limits
                .oom_score_adj
                .map(|score| score.max(self.least_oom_score)),
            pids_limit: limits.pids,
            mounts: Some(spec.mounts.iter().map(mount).collect()),
            privileged: Some(security.privileged),
            readonly_rootfs: Some(security.read_only_rootfs),
            cap_add: some(&security.add_capabilities),
            cap_drop: some(&security.drop_capabilities),
            group_add: some(
                &security
                    .supplemental_groups
                    .iter()
                    .map(i64::to_string)
                    .collect::<Vec<_>>(),
            ),
            security_opt: some(&options),
            masked_paths: security.unmasked_proc.then(Vec::new),
            readonly_paths: security.unmasked_proc.then(Vec::new),
            log_config: Some(logging()),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: Some(spec.image.clone()),
            user: (!security.user.is_empty()).then(|| security.user.clone()),
            entrypoint: some(&spec.command),
            cmd: some(&spec.args),
            env: Some(spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            working_dir: (!spec.working_dir.is_empty()).then(|| spec.working_dir.clone()),
            open_stdin: Some(spec.stdin),
            stdin_once: Some(spec.stdin_once),
            tty: Some(spec.tty),
            stop_signal: spec.stop_signal.clone(),
            labels: Some(labels),
            // The pod's probes say how it is; the image's own check would only cost.
            healthcheck: Some(bollard::models::HealthConfig {
                test: Some(vec!["NONE".into()]),
                ..Default::default()
            }),
            host_config: Some(host),
            ..Default::default()
        };
        let name = format!(
            "k8s_{}_{}_{}_{}_{}",
            spec.name, spec.pod.name, spec.pod.namespace, spec.pod.uid, spec.attempt
        );
        self.create(&name, body).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        unless_unchanged(self.docker.start_container(id, None).await)
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let container = match self.docker.inspect_container(id, None).await.map_err(error) {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        if container.state.and_then(|s| s.running) != Some(true) {
            return Ok(());
        }
        let signal = container
            .config
            .and_then(|c| c.stop_signal)
            .filter(|s| !s.is_empty())
            .unwrap_or_else(|| "SIGTERM".into());
        // Asked for before the signal, so that no exit is missed.
        let docker = self.docker.clone();
        let owned = id.to_string();
        let mut exited = tokio::spawn(async move {
            let mut wait = Box::pin(docker.wait_container(&owned, None));
            while let Some(answer) = wait.next().await {
                if let Err(bollard::errors::Error::DockerResponseServerError { .. }) = answer {
                    break;
                }
            }
        });
        for (signal, patience) in [(signal.as_str(), grace), ("SIGKILL", ANSWER_TIMEOUT)] {
            let options = query::KillContainerOptionsBuilder::new()
                .signal(signal)
                .build();
            match self
                .docker
                .kill_container(id, Some(options))
                .await
                .map_err(error)
            {
                // Not running any more.
                Ok(()) | Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => {}
                Err(e) => {
                    exited.abort();
                    return Err(e);
                }
            }
            if tokio::time::timeout(patience, &mut exited).await.is_ok() {
                return Ok(());
            }
        }
        exited.abort();
        Err(RuntimeError::Unavailable(format!(
            "container {id} does not end"
        )))
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let options = query::RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self
            .docker
            .remove_container(id, Some(options))
            .await
            .map_err(error)
        {
            // A conflict says that its removal is under way already.
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => Ok(()),
            other => other,
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        match self.docker.inspect_image(reference).await.map_err(error) {
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
            Ok(image) => {
                let config = image.config.unwrap_or_default();
                Ok(Some(Image {
                    id: image.id.unwrap_or_default(),
                    tags: image.repo_tags.unwrap_or_default(),
                    digests: image.repo_digests.unwrap_or_default(),
                    size_bytes: image.size.unwrap_or(0),
                    user: config.user.unwrap_or_default(),
                    entrypoint: config.entrypoint.unwrap_or_default(),
                    cmd: config.cmd.unwrap_or_default(),
                }))
            }
        }
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let options = query::ListImagesOptionsBuilder::new().build();
        let all = self
            .docker
            .list_images(Some(options))
            .await
            .map_err(error)?;
        Ok(all
            .into_iter()
            .map(|image| Image {
                id: image.id,
                tags: image
                    .repo_tags
                    .into_iter()
                    .filter(|t| t != "<none>:<none>")
                    .collect(),
                digests: image
                    .repo_digests
                    .into_iter()
                    .filter(|d| d != "<none>@<none>")
                    .collect(),
                size_bytes: image.size,
                ..Default::default()
            })
            .collect())
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<()> {
        let options = query::CreateImageOptionsBuilder::new()
            .from_image(reference)
            .build();
        let credentials = auth.map(|auth| DockerCredentials {
            username: Some(auth.username.clone()),
            password: Some(auth.password.clone()),
            serveraddress: Some(auth.server.clone()),
            identitytoken: (!auth.identity_token.is_empty()).then(|| auth.identity_token.clone()),
            ..Default::default()
        });
        let mut progress = Box::pin(self.docker.create_image(Some(options), None, credentials));
        while let Some(step) = progress.next().await {
            step.map_err(error)?;
        }
        Ok(())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        match self
            .docker
            .remove_image(reference, None::<query::RemoveImageOptions>, None)
            .await
            .map_err(error)
        {
            Ok(_) | Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn logs(&self, id: &str, options: &LogOptions) -> BoxStream<Result<LogEntry>> {
        let mut query = query::LogsOptionsBuilder::new()
            .follow(options.follow)
            .stdout(true)
            .stderr(true)
            .timestamps(true);
        if let Some(since) = options.since {
            query = query.since(since.as_second().clamp(0, i64::from(i32::MAX)) as i32);
        }
        query = match options.tail_lines {
            Some(lines) => query.tail(&lines.to_string()),
            None => query.tail("all"),
        };
        let docker = self.docker.clone();
        let id = id.to_string();
        let query = query.build();
        let stream = async_stream(move |send| async move {
            let mut logs = Box::pin(docker.logs(&id, Some(query)));
            let mut console = BytesMut::new();
            while let Some(item) = logs.next().await {
                let entries = match item {
                    Ok(LogOutput::StdErr { message }) => {
                        vec![log_entry(OutputStream::Stderr, message)]
                    }
                    Ok(LogOutput::StdOut { message } | LogOutput::StdIn { message }) => {
                        vec![log_entry(OutputStream::Stdout, message)]
                    }
                    // With a terminal there are no frames: cut at the newlines.
                    Ok(LogOutput::Console { message }) => {
                        console.extend_from_slice(&message);
                        let mut lines = Vec::new();
                        while let Some(end) = console.iter().position(|b| *b == b'\n') {
                            let line = console.split_to(end + 1).freeze();
                            lines.push(log_entry(OutputStream::Stdout, line));
                        }
                        lines
                    }
                    Err(e) => {
                        let _ = send.send(Err(error(e))).await;
                        return;
                    }
                };
                for entry in entries {
                    if send.send(Ok(entry)).await.is_err() {
                        return;
                    }
                }
            }
            if !console.is_empty() {
                let _ = send
                    .send(Ok(log_entry(OutputStream::Stdout, console.freeze())))
                    .await;
            }
        });
        Box::pin(stream)
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let options = CreateExecOptions {
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(spec.stdout || spec.tty),
            attach_stderr: Some(spec.stderr && !spec.tty),
            tty: Some(spec.tty),
            cmd: Some(spec.command.clone()),
            ..Default::default()
        };
        let exec = self
            .docker
            .create_exec(id, options)
            .await
            .map_err(error)?
            .id;
        let start = StartExecOptions {
            detach: false,
            tty: spec.tty,
            output_capacity: None,
        };
        match self
            .docker
            .start_exec(&exec, Some(start))
            .await
            .map_err(error)?
        {
            StartExecResults::Attached { output: out, input } => Ok(Session {
                id: SessionId::Exec(exec),
                output: Box::pin(out.map(output)),
                input,
            }),
            StartExecResults::Detached => Err(RuntimeError::Refused(
                "Docker did not attach to the exec".into(),
            )),
        }
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let options = query::AttachContainerOptionsBuilder::new()
            .stream(true)
            .logs(false)
            .stdin(spec.stdin)
            .stdout(spec.stdout)
            .stderr(spec.stderr && !spec.tty)
            .build();
        let attached = self
            .docker
            .attach_container(id, Some(options))
            .await
            .map_err(error)?;
        Ok(Session {
            id: SessionId::Attach(id.to_string()),
            output: Box::pin(attached.output.map(output)),
            input: attached.input,
        })
    }

    async fn resize(&self, session: &SessionId, width: u16, height: u16) -> Result<()> {
        match session {
            SessionId::Exec(id) => {
                self.docker
                    .resize_exec(id, ResizeExecOptions { height, width })
                    .await
            }
            SessionId::Attach(id) => {
                let options = query::ResizeContainerTTYOptionsBuilder::new()
                    .h(i32::from(height))
                    .w(i32::from(width))
                    .build();
                self.docker.resize_container_tty(id, options).await
            }
        }
        .map_err(error)
    }

    async fn exit_code(&self, session: &SessionId) -> Result<Option<i32>> {
        match session {
            SessionId::Exec(id) => {
                let exec = self.docker.inspect_exec(id).await.map_err(error)?;
                Ok(match exec.running {
                    Some(true) => None,
                    _ => exec.exit_code.map(|code| code as i32),
                })
            }
            SessionId::Attach(id) => {
                let container = self.inspect(id).await?;
                Ok((container.state == State::Exited).then_some(container.exit_code))
            }
        }
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats> {
        let options = query::StatsOptionsBuilder::new()
            .stream(false)
            .one_shot(true)
            .build();
        let mut stream: Pin<Box<_>> = Box::pin(self.docker.stats(id, Some(options)));
        let stats = match stream.next().await {
            Some(stats) => stats.map_err(error)?,
            None => return Err(RuntimeError::NotFound(format!("no stats of {id}"))),
        };
        let memory = stats.memory_stats.unwrap_or_default();
        let detail = memory.stats.unwrap_or_default();
        let get = |names: &[&str]| {
            names
                .iter()
                .find_map(|n| detail.get(*n).copied())
                .unwrap_or(0)
        };
        let usage = memory.usage.unwrap_or(0);
        Ok(ContainerStats {
            cpu_usage_ns: stats
                .cpu_stats
                .and_then(|cpu| cpu.cpu_usage)
                .and_then(|usage| usage.total_usage)
                .unwrap_or(0),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage
                .saturating_sub(get(&["total_inactive_file", "inactive_file"])),
            memory_rss_bytes: get(&["total_rss", "anon"]),
            pids: stats.pids_stats.and_then(|p| p.current).unwrap_or(0),
            read_at: Some(Timestamp::now()),
        })
    }
}

/// A stream fed by a task that ends with its reader.
fn async_stream<T, F, Fut>(produce: F) -> tokio_stream::wrappers::ReceiverStream<T>
where
    T: Send + 'static,
    F: FnOnce(tokio::sync::mpsc::Sender<T>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (send, receive) = tokio::sync::mpsc::channel(64);
    let closed = send.clone();
    let work = produce(send);
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = closed.closed() => {}
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receive)
}

/// Every piece begins with its time and a space.
fn log_entry(stream: OutputStream, mut bytes: Bytes) -> LogEntry {
    let at = match bytes.iter().take(40).position(|b| *b == b' ') {
        Some(end) => {
            let at = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let _ = bytes.split_to(end + 1);
            at
        }
        None => String::new(),
    };
    LogEntry { at, stream, bytes }
}
