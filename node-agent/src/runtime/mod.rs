//! The container runtime behind one trait.
//!
//! The kubelet speaks of sandboxes and containers in its own words; only `docker` knows Docker.
//! Whatever the kubelet must remember about a container is written into its labels, so that a
//! relist after a restart of the agent recovers everything: nothing about containers is stored
//! elsewhere.

pub mod docker;
pub mod hollow;
pub mod pause;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::io::AsyncWrite;

/// A stream that the caller may keep as long as it likes.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No such container, image or exec.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken, or the container is in a state that forbids the call.
    #[error("{0}")]
    Conflict(String),
    /// The daemon does not answer; retry later.
    #[error("{0}")]
    Unavailable(String),
    /// The daemon answered with an error of its own.
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, RuntimeError>;

/// What belongs to which pod, as labels carry it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerRole {
    Sandbox,
    /// Init, ephemeral and ordinary containers alike: the pod's spec says which.
    App,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Created,
    Running,
    Exited,
}

/// One container as the runtime sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub id: String,
    pub role: ContainerRole,
    pub pod: PodRef,
    /// The container's name in the pod; empty for a sandbox.
    pub name: String,
    /// Counts starts of this name in this pod, from 0.
    pub attempt: u32,
    pub state: State,
    pub pid: Option<u32>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why a start failed, in the runtime's words.
    pub error: String,
    /// The reference it was created from, and what that resolved to.
    pub image: String,
    pub image_id: String,
    /// What it is confined to now; of a sandbox nothing.
    pub limits: ResourceLimits,
    /// The file that the runtime writes its log to, one JSON object a line, once it has been started.
    pub log_path: Option<PathBuf>,
    /// The folder of what it has written into its own file system.
    pub layer_path: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
}

/// What a relist compares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listed {
    pub id: String,
    pub role: ContainerRole,
    pub pod: PodRef,
    pub state: State,
    /// The image id, for garbage collection.
    pub image_id: String,
}

/// The names under which labels carry a container's identity.
pub mod label {
    pub const SCOPE: &str = "io.skep.scope";
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const ATTEMPT: &str = "io.kubernetes.container.restartCount";
    /// How often all containers of the pod were restarted together before this one.
    pub const EPOCH: &str = "io.skep.pod.epoch";
    pub const ROLE: &str = "io.kubernetes.docker.type";
    pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Where the termination message is found on the host.
    pub const TERMINATION_FILE: &str = "io.skep.container.terminationMessageFile";
    /// For a pod whose API object is gone.
    pub const GRACE_SECONDS: &str = "io.kubernetes.pod.terminationGracePeriod";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Namespace {
    /// Its own (sandbox) or the sandbox's (container).
    #[default]
    Pod,
    /// The node's.
    Host,
    /// The container's own, not shared with the pod. PID namespaces only.
    Container,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxSpec {
    pub pod: PodRef,
    pub attempt: u32,
    pub hostname: String,
    /// Absolute, as `--cgroup-parent` takes it.
    pub cgroup_parent: String,
    pub network: Namespace,
    pub pid: Namespace,
    pub ipc: Namespace,
    pub sysctls: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    pub host_path: String,
    pub container_path: String,
    pub read_only: bool,
    pub propagation: Propagation,
}

/// A device of the node, inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    pub host_path: String,
    pub container_path: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    pub cpu_shares: Option<i64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<i64>,
    pub memory_bytes: Option<i64>,
    pub oom_score_adj: Option<i64>,
    pub pids: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// `uid[:gid]` or a user name of the image; empty: the image's own.
    pub user: String,
    pub supplemental_groups: Vec<i64>,
    pub privileged: bool,
    pub read_only_rootfs: bool,
    pub no_new_privileges: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// `None`: the runtime's default profile; `unconfined`; or the profile's JSON text.
    pub seccomp: Option<String>,
    /// `None`: the runtime's own choice; `unconfined`; or the name of a loaded profile.
    pub apparmor: Option<String>,
    pub unmasked_proc: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerSpec {
    pub pod: PodRef,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub mounts: Vec<MountSpec>,
    pub devices: Vec<DeviceSpec>,
    pub labels: BTreeMap<String, String>,
    pub cgroup_parent: String,
    pub pid: Namespace,
    /// Joins the PID namespace of this container instead.
    pub pid_of: Option<String>,
    pub resources: ResourceLimits,
    pub security: Security,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub stop_signal: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…`
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size_bytes: i64,
    /// The user it runs as: empty, a name or a number, with or without a group.
    pub user: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub server: String,
    pub identity_token: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// One piece of output of an exec or attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub stream: OutputStream,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A running exec or attach.
pub struct Session {
    /// Names it for [`Runtime::resize`] and [`Runtime::exit_code`].
    pub id: SessionId,
    pub output: BoxStream<Result<Output>>,
    /// Shutting it down closes the process's standard input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionId {
    Exec(String),
    Attach(String),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerStats {
    pub cpu_usage_ns: u64,
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub pids: u64,
    pub read_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// As `status.nodeInfo.containerRuntimeVersion` shows it: `docker://20.10.24`.
    pub version: String,
    pub kernel: String,
    pub os_image: String,
}

/// Something happened to a container of this pod; look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    Pod(String),
    /// Events may have been missed: everything must be looked at again.
    All,
}

/// # Guarantees
/// Calls on one container are idempotent: starting a running one, stopping a stopped one and
/// removing a missing one succeed. Creating with a name that exists (same pod, container and
/// attempt) returns the id of the existing one, so that a repeated call after a crash of the agent
/// never makes a second container.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<RuntimeVersion>;
    /// Every container of this node, cheaply.
    async fn list(&self) -> Result<Vec<Listed>>;
    /// Every container of one pod, in full.
    async fn observe(&self, pod_uid: &str) -> Result<Vec<Observed>>;
    async fn inspect(&self, id: &str) -> Result<Observed>;
    /// Never ends by itself: reconnects, and says [`Wake::All`] after each gap.
    fn events(&self) -> BoxStream<Wake>;

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String>;
    async fn create_container(&self, sandbox: &str, spec: &ContainerSpec) -> Result<String>;
    async fn start(&self, id: &str) -> Result<()>;
    /// Changes what a running container is confined to: CPU and memory. `None` leaves a value as it
    /// is.
    async fn update(&self, id: &str, limits: &ResourceLimits) -> Result<()>;
    /// Asks to stop, waits `grace`, then kills; returns when the container has stopped.
    async fn stop(&self, id: &str, grace: Duration) -> Result<()>;
    async fn remove(&self, id: &str) -> Result<()>;
    /// A small file of a container's own file system, be it running or not. `None`: it has no such file.
    async fn read_file(&self, id: &str, path: &str) -> Result<Option<Vec<u8>>>;

    async fn image(&self, reference: &str) -> Result<Option<Image>>;
    async fn images(&self) -> Result<Vec<Image>>;
    /// The folder that holds images and the containers' own files. `None`: not known (yet).
    async fn image_root(&self) -> Option<PathBuf> {
        None
    }
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<()>;
    /// The image as an archive of its layers, as `docker save` writes it.
    fn save_image(&self, reference: &str) -> BoxStream<Result<Bytes>>;
    async fn remove_image(&self, reference: &str) -> Result<()>;

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session>;
    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session>;
    async fn resize(&self, session: &SessionId, width: u16, height: u16) -> Result<()>;
    /// The exit code of a finished exec, or of the attached container.
    async fn exit_code(&self, session: &SessionId) -> Result<Option<i32>>;
    /// Kills what an exec has begun, with all that it has started.
    async fn end_exec(&self, session: &SessionId) -> Result<()>;
    async fn stats(&self, id: &str) -> Result<ContainerStats>;
}
