//! The kubelet: the pods of this node.
//!
//! Three sources say what happens: the API's pods of this node (what should be), the runtime's
//! events (what changed), and a periodic relist (what the events missed). All of them only wake the
//! worker of the pod concerned. Read `plan.rs` first.

pub mod actions;
pub mod admit;
pub mod bootstrap;
pub mod cgroup;
pub mod env;
pub mod events;
pub mod hooks;
pub mod images;
mod insecure;
pub mod node;
pub mod objects;
pub mod plan;
pub mod pod;
pub mod probes;
pub mod resize;
pub mod resources;
pub mod server;
pub mod spec;
pub mod status;
pub mod volumes;
pub mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use skep_client::informer::Informer;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::network::PodNetwork;
use crate::runtime::{Listed, PodRef, Runtime, Wake};
use env::NodeFacts;
use events::Recorder;
use objects::Objects;
use volumes::Volumes;
use worker::Handle;

/// Between two looks at every container; events say the same earlier.
const RELIST: Duration = Duration::from_secs(20);
const WATCH_RETRY: Duration = Duration::from_millis(200);
const WATCH_RETRY_MAX: Duration = Duration::from_secs(3);
/// Containers that Docker is asked to start at the same time.
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
    pub cgroups: Option<cgroup::Cgroups>,
    pub recorder: Recorder,
    pub services: Option<Informer<Service>>,
    pub endpoint_slices: Option<Informer<EndpointSlice>>,
    pub host_ips: Vec<IpAddr>,
    pub allocatable: RwLock<BTreeMap<String, Quantity>>,
    pub memory_capacity: i64,
    pub starts: Semaphore,
    pub desk: admit::Desk,
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
    pub fn services(&self, namespace: &str) -> Vec<Service> {
        let Some(informer) = &self.services else {
            return Vec::new();
        };
        let mut found = informer.in_namespace(namespace);
        if namespace != "default" {
            found.extend(informer.in_namespace("default"));
        }
        found.iter().map(|s| (**s).clone()).collect()
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
}

impl Kubelet {
    pub fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            workers: HashMap::new(),
            listed: HashMap::new(),
            synced: false,
            arriving: None,
        }
    }

    /// Runs until `stop`; pods keep running after it.
    pub async fn run(mut self, stop: CancellationToken) {
        let api: Api<Pod> = Api::all(self.ctx.client.clone());
        let selector = format!("spec.nodeName={}", self.ctx.config.node_name);
        let config = watcher::Config::default().fields(&selector);
        let mut pods = watcher(api, config).backoff(WatchBackoff::new()).boxed();
        let mut events = self.ctx.runtime.events();
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
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
                    .filter(|uid| !live.contains(*uid))
                    .cloned()
                    .collect();
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
            watcher::Event::Delete(pod) => self.forget(&pod.uid().unwrap_or_default()),
        }
    }

    fn desire(&mut self, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        // A mirror of a static pod is not run from the API.
        let pod = Arc::new(pod);
        self.ctx.pods.write().insert(uid.clone(), pod.clone());
        match self.workers.get(&uid).filter(|w| !w.is_done()) {
            Some(worker) => {
                worker.desired.send_replace(Some(pod));
            }
            None => {
                let who = pod::identity(&pod);
                self.workers
                    .insert(uid, Handle::spawn(self.ctx.clone(), who, Some(pod)));
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
        let all = match self.ctx.runtime.list().await {
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
