//! The Service proxy: Services and EndpointSlices of the API into the datapath's tables.
//!
//! ```text
//! informers ─► changed Services ─► plan_service (pure) ─► differences ─► tables, sockets, health ports
//! ```
//! One Service is planned at a time: a change costs what its Service costs. Nothing is written
//! before both informers have synced, since half a list would take backends away; what a
//! predecessor left and no Service claims goes after the first full pass.

pub mod announce;
mod health;
mod healthz;
pub mod metrics;
pub mod plan;
mod sockets;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use skep_client::informer::{BY_SERVICE, Change};
use skep_client::{Informer, Informers, Kept as _, ObjectKey};
use skep_datapath::Datapath;
use skep_datapath::layout::{TCP, UDP};
use skep_datapath::services::{Endpoint, Forwarding, FrontendAddress, ServicePort};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::endpoints::Slice;
use crate::services::Service;
use health::HealthServers;
use metrics::ProxyMetrics;
use plan::{HealthPlan, NodeView, ServicePlan, plan_service};

/// After a failure to write a Service.
const RETRY: Duration = Duration::from_secs(2);

/// Changes of one sync whose age is measured.
const MAX_TRIGGERS: usize = 1_024;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    pub node_name: String,
    /// The cluster DNS address, and where this agent's DNS server listens.
    pub dns: Option<(IpAddr, SocketAddr)>,
    /// The `kubernetes` Service's address, and an API server to begin with.
    pub api: Option<(SocketAddr, SocketAddr)>,
    /// Of Services that do not say how clients outside reach other nodes' backends.
    pub forwarding: Forwarding,
    pub metrics: Arc<ProxyMetrics>,
}

/// Network namespaces whose sockets may be connected to backends: the pods' and `None`, the node's.
pub type NetnsOfPods = Arc<dyn Fn() -> Vec<File> + Send + Sync>;

/// Services that work before, and without, the API: the agent's DNS server, and the way to the API
/// server itself. Writes them at once.
pub fn program_static(
    datapath: &Datapath,
    config: &ProxyConfig,
) -> Result<(), skep_datapath::Error> {
    let mut tables = datapath.services().lock();
    let port = |protocol: u8, frontend: SocketAddr, backend: SocketAddr| {
        let endpoints = vec![Endpoint {
            ip: backend.ip(),
            port: backend.port(),
            local: true,
        }];
        ServicePort {
            protocol,
            frontends: vec![FrontendAddress {
                ip: frontend.ip(),
                port: frontend.port(),
                external: false,
                restricted: false,
            }],
            internal: endpoints.clone(),
            external: endpoints,
            ..ServicePort::default()
        }
    };
    if let Some((ip, server)) = config.dns {
        let frontend = SocketAddr::new(ip, 53);
        tables.set("node/dns:udp", &port(UDP, frontend, server))?;
        tables.set("node/dns:tcp", &port(TCP, frontend, server))?;
    }
    if let Some((frontend, server)) = config.api {
        tables.set(BOOTSTRAP, &port(TCP, frontend, server))?;
    }
    Ok(())
}

const BOOTSTRAP: &str = "node/kubernetes:tcp";

/// Keeps the tables what the API says until `stop`.
pub async fn run(
    informers: Informers,
    datapath: Arc<Datapath>,
    config: ProxyConfig,
    pods: NetnsOfPods,
    stop: CancellationToken,
) {
    let services = informers.of::<Service>();
    let slices = informers.of::<Slice>();
    let nodes = informers.of::<Node>();
    let changed = Arc::new(Changed::default());
    let (mark, all) = (changed.clone(), changed.clone());
    let counts = config.metrics.clone();
    services.on_change(move |change| {
        counts.services.arrived();
        counts.queued();
        mark.service(change.object().key());
    });
    let mark = changed.clone();
    let counts = config.metrics.clone();
    let began = SystemTime::now();
    slices.on_change(move |change| {
        counts.endpoints.arrived();
        counts.queued();
        mark.triggered(change, began);
        for slice in change.each() {
            if let Some(name) = slice.service() {
                mark.service(ObjectKey::new(slice.namespace(), name));
            }
        }
    });
    let own_name = config.node_name.clone();
    nodes.on_change(move |change| {
        let zone = |node: &Node| node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned();
        let ours = change.object().metadata.name.as_ref() == Some(&own_name);
        let before = change.old.as_deref().and_then(zone);
        if ours && before != change.new.as_deref().and_then(zone) {
            all.everything();
        }
    });
    tokio::select! {
        () = async { tokio::join!(services.synced(), slices.synced(), nodes.synced()); } => {}
        () = stop.cancelled() => return,
    }

    let health = healthz::Health {
        metrics: config.metrics.clone(),
        nodes: nodes.clone(),
        node_name: config.node_name.clone(),
    };
    let health = tokio::spawn(healthz::serve(health, stop.clone()));
    let metrics = config.metrics.clone();
    let mut proxy = Proxy {
        datapath,
        config,
        services,
        slices,
        nodes,
        pods,
        programmed: HashMap::new(),
        way_to_api: BTreeMap::new(),
        health: HealthServers::default(),
    };
    changed.everything();
    let mut first = true;
    loop {
        let began = Instant::now();
        metrics.services.taken();
        metrics.endpoints.taken();
        let triggers = changed.take_triggers();
        let (keys, everything) = changed.take();
        let keys: HashSet<ObjectKey> = if everything {
            let existing = proxy.services.all();
            let existing = existing.iter().map(|service| service.key());
            existing
                .chain(proxy.programmed.keys().cloned())
                .chain(keys)
                .collect()
        } else {
            keys
        };
        let count = keys.len();
        let failed = proxy.sync(keys);
        if failed.is_empty() {
            metrics.synced(began.elapsed(), everything);
            for trigger in triggers {
                metrics.programmed(trigger.elapsed().unwrap_or_default());
            }
        }
        if everything {
            // Of lists, and of plans for thousands of Services.
            skep_datapath::give_back_memory();
        }
        if first && failed.is_empty() {
            first = false;
            match proxy.datapath.services().lock().remove_unclaimed() {
                Ok(removed) => info!(
                    services = count,
                    removed,
                    elapsed_ms = began.elapsed().as_millis() as u64,
                    "Services programmed"
                ),
                Err(error) => warn!(%error, "stale Services remain"),
            }
        } else {
            debug!(
                services = count,
                elapsed_us = began.elapsed().as_micros() as u64,
                "synced"
            );
        }
        let retry = !failed.is_empty();
        for key in failed {
            changed.later(key);
        }
        tokio::select! {
            () = changed.wake.notified() => {}
            () = tokio::time::sleep(RETRY), if retry => {}
            () = stop.cancelled() => break,
        }
    }
    health.abort();
}

/// Services to look at again. A set: bounded by their number however often they change.
#[derive(Default)]
struct Changed {
    keys: Mutex<(HashSet<ObjectKey>, bool)>,
    /// When what changed since the last look was changed, as far as it is said.
    triggers: Mutex<Vec<SystemTime>>,
    wake: Notify,
}

impl Changed {
    /// What happened before this process began is no change that anybody waits for.
    fn triggered(&self, change: &Change<Slice>, began: SystemTime) {
        let trigger = change.new.as_ref().and_then(|slice| slice.triggered);
        let mut triggers = self.triggers.lock();
        if triggers.len() < MAX_TRIGGERS {
            triggers.extend(trigger.filter(|trigger| *trigger >= began));
        }
    }

    fn take_triggers(&self) -> Vec<SystemTime> {
        std::mem::take(&mut *self.triggers.lock())
    }

    fn service(&self, key: ObjectKey) {
        self.keys.lock().0.insert(key);
        self.wake.notify_one();
    }

    /// Without waking: for a retry after a pause.
    fn later(&self, key: ObjectKey) {
        self.keys.lock().0.insert(key);
    }

    fn everything(&self) {
        self.keys.lock().1 = true;
        self.wake.notify_one();
    }

    fn take(&self) -> (HashSet<ObjectKey>, bool) {
        std::mem::take(&mut *self.keys.lock())
    }
}

struct Proxy {
    datapath: Arc<Datapath>,
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Informer<Slice>,
    nodes: Informer<Node>,
    pods: NetnsOfPods,
    /// What was last written.
    programmed: HashMap<ObjectKey, Written>,
    /// The last way to the API server that there was.
    way_to_api: BTreeMap<String, ServicePort>,
    health: HealthServers,
}

impl Proxy {
    /// Returns the Services that could not be written.
    fn sync(&mut self, keys: HashSet<ObjectKey>) -> Vec<ObjectKey> {
        let view = self.view();
        let mut failed = Vec::new();
        let mut gone: Vec<SocketAddr> = Vec::new();
        for key in keys {
            let service = self.services.get(&key);
            let index = format!("{}/{}", key.namespace, key.name);
            let mut plan = service.map_or_else(ServicePlan::default, |service| {
                plan_service(&service, &self.slices.by_index(BY_SERVICE, &index), &view)
            });
            let is_api = key.namespace == "default" && key.name == "kubernetes";
            if is_api && plan.ports.values().all(|port| port.internal.is_empty()) {
                // The way to the API server never shrinks to nothing: its endpoints would be
                // learned through it.
                plan.ports.clone_from(&self.way_to_api);
            }
            let wanted = Written::of(&plan);
            let nothing = Written::default();
            let before = self.programmed.get(&key).unwrap_or(&nothing);
            if *before == wanted {
                continue;
            }
            gone.extend(before.lost_udp_backends(&wanted));
            match self.write(before, &plan.ports, &wanted) {
                Ok(()) => {
                    if is_api {
                        self.way_to_api.clone_from(&plan.ports);
                    }
                    if is_api && !plan.ports.is_empty() {
                        self.release_bootstrap();
                    }
                    self.health.set(&key, plan.health.as_ref());
                    if wanted == Written::default() {
                        self.programmed.remove(&key);
                    } else {
                        self.programmed.insert(key, wanted);
                    }
                }
                Err(error) => {
                    warn!(namespace = key.namespace, name = key.name, %error, "Service not programmed");
                    failed.push(key);
                }
            }
        }
        if !gone.is_empty() {
            self.release_clients(gone);
        }
        failed
    }

    fn view(&self) -> NodeView {
        let own = self.nodes.get(&ObjectKey::new("", &self.config.node_name));
        let zone = own
            .as_ref()
            .and_then(|node| node.metadata.labels.as_ref())
            .and_then(|labels| labels.get(ZONE_LABEL).cloned());
        NodeView {
            name: self.config.node_name.clone(),
            zone,
            cluster_dns: self.config.dns.map(|(ip, _)| ip),
            forwarding: self.config.forwarding,
        }
    }

    fn write(
        &self,
        before: &Written,
        ports: &BTreeMap<String, ServicePort>,
        wanted: &Written,
    ) -> Result<(), skep_datapath::Error> {
        let mut tables = self.datapath.services().lock();
        for (name, port) in ports {
            if before.port(name) != wanted.port(name) {
                tables.set(name, port)?;
            }
        }
        let stale = before.ports.iter().map(|(name, _)| &**name);
        for name in stale.filter(|name| !ports.contains_key(*name)) {
            tables.remove(name)?;
        }
        Ok(())
    }

    /// The Service itself is programmed now.
    fn release_bootstrap(&self) {
        if self.config.api.is_some()
            && let Err(error) = self.datapath.services().lock().remove(BOOTSTRAP)
        {
            warn!(%error, "the bootstrap entry of the kubernetes Service remains");
        }
    }

    /// UDP clients of backends that are gone choose anew with their next datagram.
    fn release_clients(&self, gone: Vec<SocketAddr>) {
        let datapath = self.datapath.clone();
        let pods = self.pods.clone();
        tokio::task::spawn_blocking(move || {
            let backends: Vec<(IpAddr, u16)> = gone
                .iter()
                .map(|backend| (backend.ip(), backend.port()))
                .collect();
            if let Err(error) = datapath.forget_backends(&backends) {
                warn!(%error, "UDP flows to removed backends remain");
            }
            let namespaces = pods().into_iter().map(Some).chain([None]);
            for netns in namespaces {
                if let Err(error) = sockets::destroy_connected(netns, gone.clone()) {
                    debug!(%error, "UDP sockets of a namespace were not looked at");
                }
            }
        });
    }
}

/// What was written of a plan, in little memory: enough to see what another plan changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Written {
    /// Sorted by name.
    ports: Box<[(Box<str>, WrittenPort)]>,
    health: Option<HealthPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct WrittenPort {
    /// Of the whole port.
    digest: u64,
    /// Whose clients have to be told when they go: those of UDP.
    udp: Box<[SocketAddr]>,
}

impl Written {
    fn of(plan: &ServicePlan) -> Self {
        let ports = plan.ports.iter().map(|(name, port)| {
            let mut hasher = DefaultHasher::new();
            port.hash(&mut hasher);
            let mut udp = Vec::new();
            if port.protocol == UDP {
                let endpoints = port.internal.iter().chain(&port.external);
                udp.extend(endpoints.map(|each| SocketAddr::new(each.ip, each.port)));
                udp.sort_unstable();
                udp.dedup();
            }
            let written = WrittenPort {
                digest: hasher.finish(),
                udp: udp.into_boxed_slice(),
            };
            (name.as_str().into(), written)
        });
        Self {
            ports: ports.collect(),
            health: plan.health.clone(),
        }
    }

    fn port(&self, name: &str) -> Option<&WrittenPort> {
        let found = self
            .ports
            .binary_search_by(|(known, _)| (**known).cmp(name));
        found.ok().map(|at| &self.ports[at].1)
    }

    fn lost_udp_backends(&self, wanted: &Self) -> Vec<SocketAddr> {
        let of = |written: &Self| -> HashSet<SocketAddr> {
            written
                .ports
                .iter()
                .flat_map(|(_, port)| port.udp.iter().copied())
                .collect()
        };
        of(self).difference(&of(wanted)).copied().collect()
    }
}
