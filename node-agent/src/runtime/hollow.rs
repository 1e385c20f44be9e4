//! A runtime in memory: containers are table rows that run until they are stopped.
//!
//! For hollow nodes (thousands on one machine) and for tests of the kubelet, which can end
//! containers and make calls fail through [`HollowRuntime::crash`] and friends. Every image exists.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{
    BoxStream, ContainerRole, ContainerSpec, ContainerStats, ExecSpec, Image, Listed, Observed,
    Output, OutputStream, PodRef, RegistryAuth, ResourceLimits, Result, Runtime, RuntimeError,
    RuntimeVersion, SandboxSpec, Session, SessionId, State, Wake,
};

const EVENTS: usize = 4096;

#[derive(Clone)]
pub struct HollowRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    containers: Mutex<HashMap<String, Observed>>,
    /// The sandbox of each container.
    sandboxes: Mutex<HashMap<String, String>>,
    next: AtomicU64,
    events: broadcast::Sender<String>,
}

/// A container or sandbox to be made.
struct Wanted<'a> {
    role: ContainerRole,
    pod: &'a PodRef,
    /// Empty for a sandbox.
    name: &'a str,
    attempt: u32,
    image: &'a str,
    limits: &'a ResourceLimits,
    labels: &'a BTreeMap<String, String>,
}

impl Default for HollowRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl HollowRuntime {
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(EVENTS);
        let inner = Inner {
            containers: Mutex::default(),
            sandboxes: Mutex::default(),
            next: AtomicU64::new(1),
            events,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Ends a running container as if its process had exited.
    pub fn crash(&self, id: &str, exit_code: i32) {
        self.end(id, exit_code);
    }

    fn end(&self, id: &str, exit_code: i32) {
        let mut containers = self.inner.containers.lock();
        if let Some(c) = containers.get_mut(id)
            && c.state == State::Running
        {
            c.state = State::Exited;
            c.pid = None;
            c.exit_code = exit_code;
            c.finished_at = Some(Timestamp::now());
            self.wake(&c.pod.uid);
        }
    }

    fn wake(&self, uid: &str) {
        // Nobody listening is fine.
        let _ = self.inner.events.send(uid.to_string());
    }

    fn create(&self, wanted: &Wanted<'_>) -> String {
        let mut containers = self.inner.containers.lock();
        let same = |o: &Observed| {
            o.role == wanted.role
                && o.pod.uid == wanted.pod.uid
                && o.name == wanted.name
                && o.attempt == wanted.attempt
        };
        if let Some(existing) = containers.values().find(|o| same(o)) {
            return existing.id.clone();
        }
        let id = format!("{:064x}", self.inner.next.fetch_add(1, Ordering::Relaxed));
        let made = Observed {
            id: id.clone(),
            role: wanted.role,
            pod: wanted.pod.clone(),
            name: wanted.name.into(),
            attempt: wanted.attempt,
            state: State::Created,
            pid: None,
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            image: wanted.image.into(),
            image_id: format!("sha256:{}", wanted.image),
            limits: wanted.limits.clone(),
            log_path: None,
            layer_path: None,
            labels: wanted.labels.clone(),
        };
        containers.insert(id.clone(), made);
        id
    }

    fn not_found(id: &str) -> RuntimeError {
        RuntimeError::NotFound(format!("no such container: {id}"))
    }
}

#[async_trait]
impl Runtime for HollowRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            version: "hollow://1.0.0".into(),
            ..Default::default()
        })
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let containers = self.inner.containers.lock();
        Ok(containers
            .values()
            .map(|o| Listed {
                id: o.id.clone(),
                role: o.role,
                pod: o.pod.clone(),
                state: o.state,
                image_id: o.image_id.clone(),
            })
            .collect())
    }

    async fn observe(&self, pod_uid: &str) -> Result<Vec<Observed>> {
        let containers = self.inner.containers.lock();
        Ok(containers
            .values()
            .filter(|o| o.pod.uid == pod_uid)
            .cloned()
            .collect())
    }

    async fn inspect(&self, id: &str) -> Result<Observed> {
        self.inner
            .containers
            .lock()
            .get(id)
            .cloned()
            .ok_or_else(|| Self::not_found(id))
    }

    fn events(&self) -> BoxStream<Wake> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.inner.events.subscribe());
        // A gap means that events were lost.
        let wakes = stream.map(|event| event.map_or(Wake::All, Wake::Pod));
        Box::pin(futures::stream::once(async { Wake::All }).chain(wakes))
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String> {
        Ok(self.create(&Wanted {
            role: ContainerRole::Sandbox,
            pod: &spec.pod,
            name: "",
            attempt: spec.attempt,
            image: super::pause::IMAGE,
            limits: &ResourceLimits::default(),
            labels: &spec.labels,
        }))
    }

    async fn create_container(&self, sandbox: &str, spec: &ContainerSpec) -> Result<String> {
        if self.inspect(sandbox).await?.state == State::Exited {
            return Err(RuntimeError::Conflict(format!("sandbox {sandbox} is over")));
        }
        let id = self.create(&Wanted {
            role: ContainerRole::App,
            pod: &spec.pod,
            name: &spec.name,
            attempt: spec.attempt,
            image: &spec.image,
            limits: &spec.resources,
            labels: &spec.labels,
        });
        let mut sandboxes = self.inner.sandboxes.lock();
        sandboxes
            .entry(id.clone())
            .or_insert_with(|| sandbox.into());
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<()> {
        let sandbox = self.inner.sandboxes.lock().get(id).cloned();
        let mut containers = self.inner.containers.lock();
        let runs = |id: &String| {
            containers
                .get(id)
                .is_some_and(|o| o.state == State::Running)
        };
        if let Some(sandbox) = sandbox.filter(|sandbox| !runs(sandbox)) {
            return Err(RuntimeError::Conflict(format!(
                "sandbox {sandbox} is not running"
            )));
        }
        let c = containers.get_mut(id).ok_or_else(|| Self::not_found(id))?;
        if c.state == State::Created {
            c.state = State::Running;
            c.pid = Some(1);
            c.started_at = Some(Timestamp::now());
            self.wake(&c.pod.uid);
        }
        Ok(())
    }

    async fn update(&self, id: &str, limits: &ResourceLimits) -> Result<()> {
        let mut containers = self.inner.containers.lock();
        let c = containers.get_mut(id).ok_or_else(|| Self::not_found(id))?;
        c.limits = limits.clone();
        self.wake(&c.pod.uid);
        Ok(())
    }

    async fn stop(&self, id: &str, _grace: Duration) -> Result<()> {
        self.end(id, 0);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.inner.sandboxes.lock().remove(id);
        if let Some(c) = self.inner.containers.lock().remove(id) {
            self.wake(&c.pod.uid);
        }
        Ok(())
    }

    async fn read_file(&self, id: &str, _path: &str) -> Result<Option<Vec<u8>>> {
        self.inspect(id).await.map(|_| None)
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        Ok(Some(Image {
            id: format!("sha256:{reference}"),
            tags: vec![reference.into()],
            ..Default::default()
        }))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn pull(&self, _reference: &str, _auth: Option<&RegistryAuth>) -> Result<()> {
        Ok(())
    }

    fn save_image(&self, _reference: &str) -> BoxStream<Result<Bytes>> {
        Box::pin(futures::stream::empty())
    }

    async fn remove_image(&self, _reference: &str) -> Result<()> {
        Ok(())
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        self.inspect(id).await?;
        let echo = Output {
            stream: OutputStream::Stdout,
            bytes: Bytes::from(format!("{}\n", spec.command.join(" "))),
        };
        Ok(Session {
            id: SessionId::Exec(id.into()),
            output: Box::pin(futures::stream::once(async { Ok(echo) })),
            input: Box::pin(tokio::io::sink()),
        })
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        self.exec(id, spec).await
    }

    async fn resize(&self, _session: &SessionId, _width: u16, _height: u16) -> Result<()> {
        Ok(())
    }

    async fn exit_code(&self, _session: &SessionId) -> Result<Option<i32>> {
        Ok(Some(0))
    }

    async fn end_exec(&self, _session: &SessionId) -> Result<()> {
        Ok(())
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats> {
        self.inspect(id).await?;
        Ok(ContainerStats {
            read_at: Some(Timestamp::now()),
            ..Default::default()
        })
    }
}
