//! Docker behind [`Runtime`]. The only folder that knows bollard.
//!
//! Several agents may share one daemon (a cluster on one machine): every container carries a
//! `scope` label, and nothing outside the scope is ever seen or touched.

mod answers;
mod bodies;
mod daemon;

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummaryStateEnum, ContainerUpdateBody,
};
use bollard::query_parameters as query;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use tracing::{info, warn};

use answers::{error, observed, output, pod_ref, role, unless_unchanged};
use daemon::{HostNetwork, daemon_pid, host_network, least_oom_score};

use crate::oom::{self, OomLog};

use super::{
    BoxStream, ContainerSpec, ContainerStats, ExecSpec, Image, Listed, Observed, PodRef,
    RegistryAuth, ResourceLimits, Result, Runtime, RuntimeError, RuntimeVersion, SandboxSpec,
    Session, SessionId, State, Wake, label, pause,
};

/// How long the daemon may take to begin answering. It starts containers within this time even
/// when it is slow; a hung daemon is noticed at the end of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Of a file that is read out of a container.
const MAX_FILE: usize = 4 << 20;
#[derive(Clone)]
pub struct DockerRuntime {
    docker: Docker,
    scope: Arc<str>,
    host_network: HostNetwork,
    daemon_pid: Option<u32>,
    /// The least `oom_score_adj` that the daemon may give.
    least_oom_score: i64,
    /// What Docker may have missed of containers that ran out of memory. `None` where the kernel's log cannot be read.
    ooms: Option<Arc<OomLog>>,
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
        let ooms = OomLog::open(oom::LOG.as_ref())
            .inspect_err(|e| warn!(error = %e, "cannot read the kernel's log: out of memory is told as Docker sees it"))
            .ok()
            .map(Arc::new);
        Ok(Self {
            docker,
            scope: scope.into(),
            host_network,
            daemon_pid,
            least_oom_score: least_oom_score(daemon_pid),
            ooms,
        })
    }

    pub fn ooms(&self) -> Option<Arc<OomLog>> {
        self.ooms.clone()
    }

    fn observed(&self, container: ContainerInspectResponse) -> Observed {
        let mut observed = observed(container);
        if observed.state == State::Exited
            && observed.exit_code != 0
            && let Some(ooms) = &self.ooms
        {
            observed.oom_killed |= ooms.killed_in(&observed.id);
        }
        observed
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
                other => other.map(|c| Some(self.observed(c))),
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
            .map(|c| self.observed(c))
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
                // Whoever creates and starts a container looks at it then.
                let names = ["die", "oom", "destroy"];
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
        let body = self.sandbox_body(spec)?;
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
        let body = self.container_body(sandbox, spec);
        let name = format!(
            "k8s_{}_{}_{}_{}_{}",
            spec.name, spec.pod.name, spec.pod.namespace, spec.pod.uid, spec.attempt
        );
        self.create(&name, body).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        unless_unchanged(self.docker.start_container(id, None).await)
    }

    async fn update(&self, id: &str, limits: &ResourceLimits) -> Result<()> {
        let body = ContainerUpdateBody {
            cpu_shares: limits.cpu_shares,
            cpu_quota: limits.cpu_quota_us,
            cpu_period: limits.cpu_period_us,
            memory: limits.memory_bytes,
            memory_swap: limits.memory_bytes,
            ..Default::default()
        };
        self.docker.update_container(id, body).await.map_err(error)
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

    async fn read_file(&self, id: &str, path: &str) -> Result<Option<Vec<u8>>> {
        let options = query::DownloadFromContainerOptionsBuilder::new()
            .path(path)
            .build();
        let mut pieces = Box::pin(self.docker.download_from_container(id, Some(options)));
        let mut archive = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece.map_err(error) {
                Err(RuntimeError::NotFound(message)) => {
                    // Of the file, or of the container?
                    return match self.inspect(id).await {
                        Ok(_) => Ok(None),
                        Err(_) => Err(RuntimeError::NotFound(message)),
                    };
                }
                piece => archive.extend_from_slice(&piece?),
            }
            if archive.len() > MAX_FILE {
                return Err(RuntimeError::Refused(format!("{path} is too long")));
            }
        }
        let unreadable = |e: std::io::Error| RuntimeError::Refused(format!("{path}: {e}"));
        let mut archive = tar::Archive::new(archive.as_slice());
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(unreadable)?;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
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

    async fn image_root(&self) -> Option<std::path::PathBuf> {
        let info = self.docker.info().await.ok()?;
        info.docker_root_dir.map(Into::into)
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

    fn save_image(&self, reference: &str) -> BoxStream<Result<Bytes>> {
        let docker = self.docker.clone();
        let reference = reference.to_string();
        Box::pin(async_stream(move |send| async move {
            let mut pieces = Box::pin(docker.export_image(&reference));
            while let Some(piece) = pieces.next().await {
                if send.send(piece.map_err(error)).await.is_err() {
                    return;
                }
            }
        }))
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

    async fn end_exec(&self, session: &SessionId) -> Result<()> {
        let SessionId::Exec(id) = session else {
            return Ok(());
        };
        let exec = self.docker.inspect_exec(id).await.map_err(error)?;
        let leader = exec.pid.filter(|_| exec.running == Some(true));
        if let Some(leader) = leader.and_then(|pid| i32::try_from(pid).ok()) {
            daemon::kill_session(leader);
        }
        Ok(())
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
