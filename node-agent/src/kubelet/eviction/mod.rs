//! Keeps the node alive: when memory, disk or process numbers run out, the pod that most exceeds what it asked for
//! has to go; also pods over their own limits on disk.
//!
//! `plan` decides, pure. This loop reads the levels, publishes the node's conditions, and leaves word for the pod's
//! worker, which ends the pod as failed with the reason `Evicted`. One pod at a time: the next look, after it is gone,
//! says whether that was enough.

pub mod plan;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::usage::{self, Used};
use super::{Context, pod, resources};
use plan::{Candidate, History, Levels, Pressure, Share, Signal, Threshold};

/// As upstream's monitoring period.
const PERIOD: Duration = Duration::from_secs(10);
/// Looking through folders is dearer.
const DISK_EVERY: u32 = 3;
/// Evictions that wait for their worker; more are left to the next look.
const MAX_WAITING: usize = 128;
/// Pods of this priority and above belong to the system.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Word for a pod's worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    pub message: String,
    /// How long its containers get; `None`: their own grace period.
    pub grace: Option<Duration>,
}

/// What the loop and everybody else share.
#[derive(Default)]
pub struct Evictions {
    waiting: Mutex<HashMap<String, Eviction>>,
    pressure: RwLock<BTreeSet<Pressure>>,
    /// Somebody has to look at `waiting`.
    pub changed: Notify,
    /// The node's status should be written now.
    pub pressure_changed: Notify,
}

impl Evictions {
    pub fn of(&self, uid: &str) -> Option<Eviction> {
        self.waiting.lock().get(uid).cloned()
    }

    pub fn waiting(&self) -> Vec<String> {
        self.waiting.lock().keys().cloned().collect()
    }

    pub fn pressure(&self) -> BTreeSet<Pressure> {
        self.pressure.read().clone()
    }

    /// False when it is evicted already, or too many are.
    pub fn evict(&self, uid: &str, eviction: Eviction) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.contains_key(uid) || waiting.len() >= MAX_WAITING {
            return false;
        }
        waiting.insert(uid.to_owned(), eviction);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    fn publish(&self, pressure: BTreeSet<Pressure>) {
        let mut published = self.pressure.write();
        if *published != pressure {
            info!(?pressure, "the node's pressure has changed");
            *published = pressure;
            self.pressure_changed.notify_one();
        }
    }

    fn retain(&self, alive: impl Fn(&str) -> bool) {
        self.waiting.lock().retain(|uid, _| alive(uid));
    }
}

pub struct Settings {
    pub thresholds: Vec<Threshold>,
    pub period: Duration,
}

impl Settings {
    pub fn new(thresholds: Vec<Threshold>) -> Self {
        Self {
            thresholds,
            period: PERIOD,
        }
    }
}

/// Looks every period until `stop`.
pub async fn run(ctx: Arc<Context>, settings: Settings, stop: CancellationToken) {
    let Settings { thresholds, period } = settings;
    let mut history = History::default();
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let pods: Vec<Arc<Pod>> = ctx.pods.read().values().cloned().collect();
        ctx.evictions.retain(|uid| {
            pods.iter()
                .any(|pod| pod.metadata.uid.as_deref() == Some(uid))
        });
        let verdict = plan::judge(&mut history, &thresholds, &levels(&ctx), Timestamp::now());
        ctx.evictions.publish(verdict.pressure);
        if let Some(shortage) = verdict.shortages.first() {
            relieve(&ctx, &pods, shortage).await;
        }
        if round.is_multiple_of(DISK_EVERY) {
            enforce_limits(&ctx, &pods).await;
        }
        round = round.wrapping_add(1);
    }
}

fn levels(ctx: &Context) -> Levels {
    let mut levels = Levels::from([(Signal::MemoryAvailable, usage::memory())]);
    if let Some((bytes, inodes)) = usage::disk(&ctx.config.state_dir) {
        levels.insert(Signal::NodefsAvailable, bytes);
        levels.insert(Signal::NodefsInodesFree, inodes);
    }
    if let Some(pids) = usage::pids() {
        levels.insert(Signal::PidAvailable, pids);
    }
    levels
}

async fn relieve(ctx: &Arc<Context>, pods: &[Arc<Pod>], shortage: &plan::Shortage) {
    if !ctx.evictions.waiting().is_empty() {
        // Somebody is on the way out already; what that frees is not seen yet.
        return;
    }
    let used = usage::containers(ctx).await;
    let signal = shortage.signal;
    let disk = matches!(signal, Signal::NodefsAvailable | Signal::NodefsInodesFree);
    let mut candidates = Vec::new();
    for pod in pods.iter().filter(|p| !pod::is_over(p)) {
        let mut candidate = candidate(pod, &used);
        if disk {
            let bytes = occupied(ctx.pod_dir(&candidate.uid)).await;
            if let Some(first) = candidate.containers.first_mut() {
                first.disk = bytes;
            }
        }
        candidates.push(candidate);
    }
    let Some(victim) = plan::victim(signal, &candidates) else {
        warn!(
            signal = signal.name(),
            "the node runs short, and there is no pod to evict"
        );
        return;
    };
    let message = plan::message(shortage, victim);
    warn!(
        uid = victim.uid,
        signal = signal.name(),
        available = shortage.available,
        threshold = shortage.threshold,
        "evicting a pod"
    );
    let grace = shortage.hard.then_some(Duration::from_secs(1));
    ctx.evictions
        .evict(&victim.uid, Eviction { message, grace });
}

fn request(container: &k8s_openapi::api::core::v1::Container, resource: &str) -> u64 {
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let quantity = requests.and_then(|requests| requests.get(resource));
    quantity.map_or(0, |q| u64::try_from(resources::value(q)).unwrap_or(0))
}

fn candidate(pod: &Pod, used: &[Used]) -> Candidate {
    let who = pod::identity(pod);
    let priority = pod::spec(pod).priority.unwrap_or(0);
    let containers = pod::containers(pod).into_iter().map(|(_, c)| {
        let stats = used
            .iter()
            .find(|u| u.pod.uid == who.uid && u.name == c.name)
            .map(|u| u.stats.clone())
            .unwrap_or_default();
        Share {
            memory: stats.memory_working_set_bytes,
            memory_request: request(&c, "memory"),
            disk: 0,
            disk_request: request(&c, "ephemeral-storage"),
            pids: stats.pids,
            name: c.name,
        }
    });
    Candidate {
        containers: containers.collect(),
        priority,
        critical: pod::is_static(pod) || priority >= SYSTEM_CRITICAL,
        uid: who.uid,
    }
}

async fn occupied(path: PathBuf) -> u64 {
    let counted = tokio::task::spawn_blocking(move || usage::occupied(&path));
    counted.await.unwrap_or(0)
}

/// Pods that outgrew the limits that they set themselves.
async fn enforce_limits(ctx: &Arc<Context>, pods: &[Arc<Pod>]) {
    if ctx.volumes.is_none() {
        return;
    }
    for pod in pods.iter().filter(|p| !pod::is_over(p)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(message) = over_limit(ctx, pod, &uid).await else {
            continue;
        };
        let eviction = Eviction {
            message,
            grace: Some(Duration::from_secs(1)),
        };
        if ctx.evictions.evict(&uid, eviction) {
            info!(uid, "a pod has outgrown its own limit on disk");
        }
    }
}

async fn over_limit(ctx: &Context, pod: &Pod, uid: &str) -> Option<String> {
    let folder = ctx.pod_dir(uid).join("volumes");
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let Some(empty) = &volume.empty_dir else {
            continue;
        };
        // One in memory is bounded by its mount.
        if empty.medium.as_deref() == Some("Memory") {
            continue;
        }
        let Some(limit) = &empty.size_limit else {
            continue;
        };
        let bytes = u64::try_from(resources::value(limit)).unwrap_or(0);
        if bytes > 0 && occupied(folder.join(&volume.name)).await > bytes {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            ));
        }
    }
    let limits: Vec<Option<&Quantity>> = pod::spec(pod)
        .containers
        .iter()
        .map(|c| {
            let limits = c.resources.as_ref()?.limits.as_ref()?;
            limits.get("ephemeral-storage")
        })
        .collect();
    // Without a limit on every container the pod as a whole has none.
    let total: Option<u64> = limits
        .iter()
        .map(|limit| u64::try_from(resources::value((*limit)?)).ok())
        .sum();
    let total = total.filter(|total| *total > 0)?;
    let used = occupied(ctx.pod_dir(uid)).await;
    (used > total).then(|| {
        format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            plan::bytes(total)
        )
    })
}
