//! Keeps the node alive: when memory, disk or process numbers run out, the pod that most exceeds what it asked for
//! has to go; also pods over their own limits on disk.
//!
//! `plan` decides, pure. This loop reads the levels, publishes the node's conditions, and leaves word for the pod's
//! worker, which ends the pod as failed with the reason `Evicted`. One pod at a time: the next look, after it is gone,
//! says whether that was enough.

pub mod plan;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::status::EVICTED;
use super::usage::{self, Used};
use super::{Context, disk, image_gc, node, pod, resources};
use crate::oom::{OomLog, Victim};
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
    /// The pod's from then on.
    pub reason: &'static str,
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
    /// Where it is seen that the kernel was quicker. `None` where its log cannot be read.
    pub ooms: Option<Arc<OomLog>>,
    pub period: Duration,
}

impl Settings {
    pub fn new(thresholds: Vec<Threshold>, ooms: Option<Arc<OomLog>>) -> Self {
        Self {
            thresholds,
            ooms,
            period: PERIOD,
        }
    }
}

/// Looks every period until `stop`.
pub async fn run(ctx: Arc<Context>, settings: Settings, stop: CancellationToken) {
    let Settings {
        thresholds,
        ooms,
        period,
    } = settings;
    let mut history = History::default();
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    let mut images: Option<PathBuf> = None;
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
        if images.is_none() {
            images = ctx.runtime.image_root().await;
        }
        let levels = || levels(&ctx, images.as_deref());
        let verdict = plan::judge(&mut history, &thresholds, &levels(), Timestamp::now());
        ctx.evictions.publish(verdict.pressure);
        if let Some(shortage) = verdict.shortages.first() {
            let signal = shortage.signal;
            // What nobody uses goes before a pod does.
            let enough = signal.is_disk() && {
                image_gc::remove_unused(&ctx).await;
                let left = levels().get(&signal).map(|level| level.available);
                left.is_some_and(|left| left >= shortage.threshold)
            };
            if !enough {
                relieve(&ctx, &pods, shortage).await;
            }
        }
        for victim in ooms.iter().flat_map(|ooms| ooms.system_victims()) {
            tell_oom(&ctx, &victim);
        }
        if round.is_multiple_of(DISK_EVERY) {
            enforce_limits(&ctx, &pods).await;
        }
        round = round.wrapping_add(1);
    }
}

/// The machine's memory ran out before a pod could be evicted.
fn tell_oom(ctx: &Context, victim: &Victim) {
    let Victim { process, pid, .. } = victim;
    let message = format!("System OOM encountered, victim process: {process}, pid: {pid}");
    let about = node::reference(&ctx.config.node_name);
    ctx.recorder.warning(&about, "SystemOOM", message);
}

fn levels(ctx: &Context, images: Option<&Path>) -> Levels {
    let mut levels = Levels::from([(Signal::MemoryAvailable, usage::memory())]);
    if let Some((bytes, inodes)) = usage::disk(&ctx.config.state_dir) {
        levels.insert(Signal::NodefsAvailable, bytes);
        levels.insert(Signal::NodefsInodesFree, inodes);
    }
    if let Some((bytes, inodes)) = images.and_then(usage::disk) {
        levels.insert(Signal::ImagefsAvailable, bytes);
        levels.insert(Signal::ImagefsInodesFree, inodes);
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
    let mut candidates = Vec::new();
    for pod in pods.iter().filter(|p| !pod::is_over(p)) {
        let mut candidate = candidate(pod, &used);
        if signal.is_disk() {
            let disk = disk::of(ctx, pod).await;
            for share in &mut candidate.containers {
                let own = disk.containers.get(&share.name);
                let mut used = own.map(|own| own.rootfs).unwrap_or_default();
                used += own.map(|own| own.logs).unwrap_or_default();
                (share.disk, share.inodes) = (used.bytes, used.inodes);
            }
            // Volumes are nobody's in particular.
            let own: u64 = candidate.containers.iter().map(|c| c.disk).sum();
            let inodes: u64 = candidate.containers.iter().map(|c| c.inodes).sum();
            if let Some(first) = candidate.containers.first_mut() {
                first.disk += disk.total.bytes.saturating_sub(own);
                first.inodes += disk.total.inodes.saturating_sub(inodes);
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
    let eviction = Eviction {
        reason: EVICTED,
        message,
        grace,
    };
    if ctx.evictions.evict(&victim.uid, eviction) {
        ctx.counters.evicted(signal.name());
    }
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
            inodes: 0,
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

/// Pods that outgrew the limits that they set themselves.
async fn enforce_limits(ctx: &Arc<Context>, pods: &[Arc<Pod>]) {
    if ctx.volumes.is_none() {
        return;
    }
    for pod in pods.iter().filter(|p| !pod::is_over(p)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(message) = over_limit(ctx, pod).await else {
            continue;
        };
        let eviction = Eviction {
            reason: EVICTED,
            message,
            grace: Some(Duration::from_secs(1)),
        };
        if ctx.evictions.evict(&uid, eviction) {
            info!(uid, "a pod has outgrown its own limit on disk");
        }
    }
}

async fn over_limit(ctx: &Context, pod: &Pod) -> Option<String> {
    let spec = pod::spec(pod);
    let amount = |quantity: &Quantity| {
        let bytes = u64::try_from(resources::value(quantity)).unwrap_or(0);
        (bytes > 0).then_some(bytes)
    };
    let limits: Vec<(&str, Option<&Quantity>)> = spec
        .containers
        .iter()
        .map(|c| {
            let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            let limit = limits.and_then(|limits| limits.get("ephemeral-storage"));
            (c.name.as_str(), limit)
        })
        .collect();
    let volumes = || {
        let empty = spec.volumes.iter().flatten();
        let empty = empty.filter_map(|v| Some((&v.name, v.empty_dir.as_ref()?)));
        // One in memory is bounded by its mount.
        let on_disk = empty.filter(|(_, empty)| empty.medium.as_deref() != Some("Memory"));
        on_disk.filter_map(|(name, empty)| Some((name, empty.size_limit.as_ref()?)))
    };
    if volumes().next().is_none() && limits.iter().all(|(_, limit)| limit.is_none()) {
        return None;
    }
    let used = disk::of(ctx, pod).await;
    for (name, limit) in volumes() {
        let occupied = used.volumes.get(name).copied().unwrap_or_default();
        if amount(limit).is_some_and(|limit| occupied.bytes > limit) {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                limit.0
            ));
        }
    }
    // Without a limit on every container the pod as a whole has none.
    let total: Option<u64> = limits.iter().map(|(_, limit)| amount((*limit)?)).sum();
    if let Some(total) = total.filter(|total| used.total.bytes > *total) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            plan::bytes(total)
        ));
    }
    limits.iter().find_map(|(name, limit)| {
        let own = used.containers.get(*name)?;
        let limit = (*limit)?;
        (own.rootfs.bytes + own.logs.bytes > amount(limit)?).then(|| {
            format!(
                "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                limit.0
            )
        })
    })
}
