//! The kubelet: the pods of this node.
//!
//! Three sources say what happens: the API's pods of this node (what should be), the runtime's
//! events (what changed), and a periodic relist (what the events missed). All of them only wake the
//! worker of the pod concerned. Read `plan.rs` first.

pub mod accounts;
pub mod actions;
pub mod admit;
pub mod bootstrap;
pub mod cgroup;
pub mod counters;
pub mod disk;
pub mod env;
pub mod events;
pub mod eviction;
pub mod hooks;
pub mod image_gc;
pub mod images;
mod insecure;
pub mod logind;
pub mod logs;
pub mod node;
pub mod objects;
pub mod own_node;
pub mod plan;
pub mod pod;
pub mod probes;
pub mod pull;
pub mod pulled;
pub mod reserved;
pub mod resize;
pub mod resources;
pub mod server;
pub mod shutdown;
pub mod spec;
pub mod static_pods;
pub mod status;
pub mod usage;
pub mod volumes;
pub mod watches;
pub mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use skep_client::informer::Informer;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::endpoints::Slice;
use crate::network::PodNetwork;
use crate::runtime::{Listed, PodRef, Runtime, RuntimeError, Wake};
use crate::services::Service;
use env::NodeFacts;
use events::Recorder;
use objects::Objects;
use volumes::Volumes;
use worker::Handle;

/// Between two looks at every container; events say the same earlier.
const RELIST: Duration = Duration::from_secs(20);
/// A runtime that takes longer to answer does not hold up what else there is to do.
pub const RUNTIME_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the folder of static pods.
const STATIC_LOOK: Duration = Duration::from_secs(1);
/// Between two attempts to write a mirror pod.
const MIRROR_RETRY: Duration = Duration::from_secs(5);
const WATCH_RETRY: Duration = Duration::from_millis(200);
const WATCH_RETRY_MAX: Duration = Duration::from_secs(3);
/// Containers that Docker is asked to start at the same time, and as many again to create before they can start.
const STARTS: usize = 8;

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub state_dir: PathBuf,
    pub cgroup_parent: String,
    pub cluster_dns: Option<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub port: u16,
    pub max_pods: u32,
    /// Processes and threads that a pod may have. `None`: as many as the node.
    pub pod_max_pids: Option<i64>,
    /// Where files describe static pods.
    pub static_pods: Option<PathBuf>,
}

impl Config {
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            node_name: "node1".into(),
            node_ip: [192, 0, 2, 1].into(),
            state_dir: "/nonexistent".into(),
            cgroup_parent: "/skep-test".into(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/nonexistent".into(),
            port: 10250,
            max_pods: 110,
            pod_max_pids: None,
            static_pods: None,
        }
    }
}

/// What all workers share.
pub struct Context {
    pub config: Config,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    /// The scheme of container ids: `docker` or `hollow`.
    pub runtime_name: &'static str,
    pub network: Arc<dyn PodNetwork>,
    pub objects: Objects,
    /// `None` on a hollow node, which has no files.
    pub volumes: Option<Volumes>,
    pub watches: Option<watches::Watches>,
    /// `None` where containers have no files to write.
    pub logs: Option<logs::Logs>,
    pub cgroups: Option<cgroup::Cgroups>,
    pub recorder: Recorder,
    pub services: Option<Informer<Service>>,
    pub endpoint_slices: Option<Informer<Slice>>,
    pub host_ips: Vec<IpAddr>,
    pub allocatable: RwLock<BTreeMap<String, Quantity>>,
    /// Kept from pods, by reservation and by thresholds.
    pub reserved: reserved::Reserved,
    pub thresholds: Vec<eviction::plan::Threshold>,
    pub memory_capacity: i64,
    pub starts: Semaphore,
    pub creates: Semaphore,
    pub desk: admit::Desk,
    pub node: own_node::OwnNode,
    pub evictions: eviction::Evictions,
    pub shutdown: shutdown::Shutdown,
    pub layers: disk::Layers,
    pub accounts: accounts::Known,
    /// `None` where nothing is really pulled.
    pub pulled: Option<pulled::Pulled>,
    pub counters: counters::Counters,
    pub probes: Arc<probes::metrics::Metrics>,
    /// Pods as the workers see them, for the agent's server.
    pub pods: RwLock<HashMap<String, Arc<Pod>>>,
}

impl Context {
    pub fn facts(&self, pod_ips: &[IpAddr]) -> NodeFacts {
        NodeFacts {
            name: self.config.node_name.clone(),
            host_ips: self.host_ips.iter().map(IpAddr::to_string).collect(),
            pod_ips: pod_ips.iter().map(IpAddr::to_string).collect(),
            allocatable: self.allocatable.read().clone(),
        }
    }

    /// The Services whose variables a pod of this namespace gets.
    pub fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let Some(informer) = &self.services else {
            return Vec::new();
        };
        let mut found = informer.in_namespace(namespace);
        if namespace != "default" {
            found.extend(informer.in_namespace("default"));
        }
        found
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.state_dir.join("pods").join(uid)
    }

    pub fn starts() -> Semaphore {
        Semaphore::new(STARTS)
    }
}

/// A control plane that restarts must not wait long for its nodes.
struct WatchBackoff {
    next: Duration,
}

impl WatchBackoff {
    fn new() -> Self {
        Self { next: WATCH_RETRY }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        self.next = (self.next * 2).min(WATCH_RETRY_MAX);
        Some(wait)
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.next = WATCH_RETRY;
    }
}

pub struct Kubelet {
    ctx: Arc<Context>,
    workers: HashMap<String, Handle>,
    /// What the last relist saw of each pod.
    listed: HashMap<String, HashSet<Listed>>,
    /// The API's pods are complete: what is not among them is an orphan.
    synced: bool,
    /// Pods named by a list that is under way.
    arriving: Option<HashSet<String>>,
    /// By uid.
    statics: BTreeMap<String, Pod>,
    /// Mirrors of static pods in the API, by namespace and name.
    mirrors: HashMap<(String, String), Arc<Pod>>,
    /// When a mirror was last written or deleted, by its namespace and name.
    mirrored_at: HashMap<(String, String), tokio::time::Instant>,
}

impl Kubelet {
    pub fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            workers: HashMap::new(),
            listed: HashMap::new(),
            synced: false,
            arriving: None,
            statics: BTreeMap::new(),
            mirrors: HashMap::new(),
            mirrored_at: HashMap::new(),
        }
    }

    /// Runs until `stop`; pods keep running after it.
    pub async fn run(mut self, stop: CancellationToken) {
        let api: Api<Pod> = Api::all(self.ctx.client.clone());
        let selector = format!("spec.nodeName={}", self.ctx.config.node_name);
        let config = watcher::Config::default().fields(&selector);
        let ctx = self.ctx.clone();
        // Pods are judged by the node: it is to be known when they come.
        let known = async move {
            ctx.node.synced().await;
            watcher(api, config).backoff(WatchBackoff::new())
        };
        let mut pods = known.flatten_stream().boxed();
        let mut events = self.ctx.runtime.events();
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(STATIC_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let has_statics = self.ctx.config.static_pods.is_some();
        self.static_pods();
        loop {
            tokio::select! {
                _ = look.tick(), if has_statics => self.static_pods(),
                () = stop.cancelled() => return,
                event = pods.next() => match event {
                    Some(Ok(event)) => self.pod_event(event).await,
                    Some(Err(e)) => debug!(error = %e, "the watch of pods is interrupted"),
                    None => return,
                },
                wake = events.next() => match wake {
                    Some(Wake::Pod(uid)) => self.wake(&uid),
                    Some(Wake::All) => self.relist().await,
                    None => return,
                },
                () = self.ctx.evictions.changed.notified() => {
                    for uid in self.ctx.evictions.waiting() {
                        self.wake(&uid);
                    }
                }
                _ = relist.tick() => {
                    self.workers.retain(|_, worker| !worker.is_done());
                    self.relist().await;
                }
            }
        }
    }

    async fn pod_event(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.arriving = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let Some(arriving) = &mut self.arriving {
                    arriving.extend(pod.uid());
                }
                self.desire(pod);
            }
            watcher::Event::InitDone => {
                let live = self.arriving.take().unwrap_or_default();
                let gone: Vec<String> = self
                    .ctx
                    .pods
                    .read()
                    .keys()
                    .filter(|uid| !live.contains(*uid) && !self.statics.contains_key(*uid))
                    .cloned()
                    .collect();
                self.mirrors
                    .retain(|_, mirror| mirror.uid().is_some_and(|uid| live.contains(&uid)));
                for uid in gone {
                    self.forget(&uid);
                }
                if !self.synced {
                    self.synced = true;
                    info!(pods = live.len(), "the API's pods are known");
                }
                self.relist().await;
                self.collect(&live).await;
            }
            watcher::Event::Apply(pod) => self.desire(pod),
            watcher::Event::Delete(pod) if static_pods::is_mirror(&pod) => {
                let name = full_name(&pod);
                let known = self.mirrors.get(&name).and_then(|m| m.uid());
                if known == pod.uid() {
                    self.mirrors.remove(&name);
                }
                self.mirrored_at.remove(&name);
                self.reflect();
            }
            watcher::Event::Delete(pod) => self.forget(&pod.uid().unwrap_or_default()),
        }
    }

    /// Looks at the files again.
    fn static_pods(&mut self) {
        let Some(folder) = self.ctx.config.static_pods.clone() else {
            return;
        };
        let mut found = static_pods::read(&folder, &self.ctx.config.node_name);
        let gone: Vec<String> = self
            .statics
            .keys()
            .filter(|uid| !found.contains_key(*uid))
            .cloned()
            .collect();
        for uid in gone {
            info!(uid, "the file of a static pod is gone or has changed");
            self.forget(&uid);
        }
        for (uid, pod) in &mut found {
            // It was seen when it was seen first.
            if let Some(known) = self.statics.remove(uid) {
                *pod = known;
            }
        }
        self.statics = found;
        self.reflect();
    }

    /// Brings static pods, their workers and their mirrors together.
    fn reflect(&mut self) {
        let statics: Vec<Pod> = self.statics.values().cloned().collect();
        for pod in &statics {
            let name = full_name(pod);
            let uid = pod.uid().unwrap_or_default();
            let before = self.workers.iter().any(|(other, worker)| {
                let same = worker.who.namespace == name.0 && worker.who.name == name.1;
                same && *other != uid && !worker.is_done()
            });
            if before {
                // The version before this one has not ended yet.
                continue;
            }
            let mirror = self.mirrors.get(&name).cloned();
            let mirror = mirror.filter(|m| static_pods::is_mirror_of(m, pod));
            let shown = static_pods::with_mirror(pod, mirror.as_deref());
            self.run_pod(shown, mirror.as_ref().and_then(|m| m.uid()));
            if mirror.is_none() && !self.mirrors.contains_key(&name) {
                self.write_mirror(pod);
            }
        }
        let stale: Vec<Arc<Pod>> = self
            .mirrors
            .values()
            .filter(|mirror| {
                let shows = |pod: &&Pod| full_name(pod) == full_name(mirror);
                !statics
                    .iter()
                    .find(shows)
                    .is_some_and(|pod| static_pods::is_mirror_of(mirror, pod))
            })
            .cloned()
            .collect();
        for mirror in stale {
            self.delete_mirror(&mirror);
        }
    }

    /// False when the last attempt is too young.
    fn may_write_mirror(&mut self, name: &(String, String)) -> bool {
        let now = tokio::time::Instant::now();
        let young = |at: &tokio::time::Instant| now.duration_since(*at) < MIRROR_RETRY;
        if !self.synced || self.mirrored_at.get(name).is_some_and(young) {
            return false;
        }
        self.mirrored_at.insert(name.clone(), now);
        true
    }

    fn write_mirror(&mut self, pod: &Pod) {
        let Some(node) = self.ctx.node.watched() else {
            return;
        };
        let name = full_name(pod);
        if !self.may_write_mirror(&name) {
            return;
        }
        let mirror = static_pods::mirror(pod, &node);
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &name.0);
        tokio::spawn(async move {
            match api.create(&PostParams::default(), &mirror).await {
                Ok(_) => info!(name = name.1, "the API shows a static pod"),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(e) => warn!(name = name.1, error = %e, "cannot write a mirror pod; will retry"),
            }
        });
    }

    fn delete_mirror(&mut self, mirror: &Pod) {
        let name = full_name(mirror);
        let shown = static_pods::hash_of_mirror(mirror);
        let ends = shown
            .and_then(|uid| self.workers.get(uid))
            .is_some_and(|worker| !worker.is_done());
        // Until its containers have ended there is something to show.
        let wait = ends && mirror.metadata.deletion_timestamp.is_none();
        if wait || !self.may_write_mirror(&name) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &name.0);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: mirror.uid(),
                resource_version: None,
            }),
            ..Default::default()
        };
        tokio::spawn(async move {
            match api.delete(&name.1, &params).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(e) => {
                    warn!(name = name.1, error = %e, "cannot delete a mirror pod; will retry")
                }
            }
        });
    }

    fn desire(&mut self, mut pod: Pod) {
        // Who wrote what is half of an object, and nothing to a kubelet.
        pod.metadata.managed_fields = None;
        if static_pods::is_mirror(&pod) {
            // Only shown by the API, not run from there.
            self.mirrors.insert(full_name(&pod), Arc::new(pod));
            self.reflect();
            return;
        }
        self.run_pod(pod, None);
    }

    /// `mirror_uid`: of a static pod, the object that its status is written to.
    fn run_pod(&mut self, pod: Pod, mirror_uid: Option<String>) {
        let Some(uid) = pod.uid() else { return };
        let pod = Arc::new(pod);
        let known = self.ctx.pods.read().get(&uid).cloned();
        if pod::is_static(&pod) && known.as_deref() == Some(&*pod) {
            return;
        }
        self.ctx.pods.write().insert(uid.clone(), pod.clone());
        match self.workers.get(&uid).filter(|w| !w.is_done()) {
            Some(worker) => {
                *worker.mirror_uid.lock() = mirror_uid;
                worker.desired.send_replace(Some(pod));
            }
            None => {
                let who = pod::identity(&pod);
                let worker = Handle::spawn(self.ctx.clone(), who, Some(pod));
                *worker.mirror_uid.lock() = mirror_uid;
                self.workers.insert(uid, worker);
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        self.ctx.pods.write().remove(uid);
        if let Some(worker) = self.workers.get(uid) {
            worker.desired.send_replace(None);
        }
    }

    fn wake(&self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.wake.notify_one();
        }
    }

    /// Wakes every pod whose containers differ from the last time, and takes on orphans.
    async fn relist(&mut self) {
        let listed = tokio::time::timeout(RUNTIME_PATIENCE, self.ctx.runtime.list()).await;
        let silent = || RuntimeError::Unavailable("the container runtime does not answer".into());
        let all = match listed.unwrap_or_else(|_| Err(silent())) {
            Ok(all) => all,
            Err(e) => {
                warn!(error = %e, "cannot list containers; will retry");
                return;
            }
        };
        let mut listed: HashMap<String, HashSet<Listed>> = HashMap::new();
        let mut names: HashMap<String, PodRef> = HashMap::new();
        for container in all {
            names.insert(container.pod.uid.clone(), container.pod.clone());
            listed
                .entry(container.pod.uid.clone())
                .or_default()
                .insert(container);
        }
        for (uid, worker) in &self.workers {
            if self.listed.get(uid) != listed.get(uid) {
                worker.wake.notify_one();
            }
        }
        if self.synced {
            for (uid, who) in names {
                let known = self.workers.get(&uid).is_some_and(|w| !w.is_done());
                if !known && !uid.is_empty() {
                    info!(
                        namespace = who.namespace,
                        name = who.name,
                        uid,
                        "removing an orphan"
                    );
                    self.workers
                        .insert(uid, Handle::spawn(self.ctx.clone(), who, None));
                }
            }
        }
        self.listed = listed;
    }

    /// Frees what pods that are gone have left in the network and on disk.
    async fn collect(&mut self, live: &HashSet<String>) {
        let mut keep = live.clone();
        keep.extend(self.workers.keys().cloned());
        if let Err(e) = self.ctx.network.retain(&keep).await {
            warn!(error = %e, "cannot clean up the pod network");
        }
        let logged = self.ctx.logs.as_ref().map(logs::Logs::pods);
        for uid in logged
            .into_iter()
            .flatten()
            .filter(|uid| !keep.contains(uid))
        {
            if let Some(logs) = &self.ctx.logs {
                logs.retire(&uid).await;
            }
        }
        let left = self
            .ctx
            .volumes
            .as_ref()
            .map(Volumes::left_behind)
            .unwrap_or_default();
        for uid in left.into_iter().filter(|uid| !keep.contains(uid)) {
            info!(uid, "removing the files of a pod that is gone");
            let who = PodRef {
                uid: uid.clone(),
                ..Default::default()
            };
            self.workers
                .insert(uid, Handle::spawn(self.ctx.clone(), who, None));
        }
    }
}

fn full_name(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}
