//! The machine is about to stop: pods end in order of their priority before it does (KEP-2000, KEP-2712).
//!
//! ```text
//! asked ─ node not ready, new pods refused ─ lowest priority ends ─ … ─ system pods end ─ done
//! ```
//!
//! Each group of priorities has a time of its own; a group that has ended early gives the rest of it to nobody, as
//! upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::eviction::Eviction;
use super::{Context, pod};

/// Upstream's words.
pub const TERMINATED: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
pub const REFUSED: (&str, &str) = (
    "NodeShutdown",
    "Pod was rejected as the node is shutting down.",
);
pub const NOT_READY: &str = "node is shutting down";
/// `system-cluster-critical`: what the second period is for.
const CRITICAL: i32 = 2_000_000_000;
/// How soon the end of a group is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// From which priority on pods get how long, by priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Periods(BTreeMap<i32, Duration>);

impl Periods {
    /// Kubelet's `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods`: the second is a part of the first.
    ///
    /// # Errors
    /// When it is longer.
    pub fn new(whole: Duration, critical: Duration) -> Result<Self, String> {
        let Some(others) = whole.checked_sub(critical) else {
            return Err("the grace period of critical pods is part of the whole one".into());
        };
        if whole.is_zero() {
            return Ok(Self::default());
        }
        Ok(Self([(0, others), (CRITICAL, critical)].into()))
    }

    /// `shutdownGracePeriodByPodPriority`: `0=20,2000000000=10`.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        let period = |part: &str| {
            let (priority, seconds) = part.split_once('=')?;
            let seconds = seconds.trim().parse().ok()?;
            Some((priority.trim().parse().ok()?, Duration::from_secs(seconds)))
        };
        parts
            .map(|part| period(part).ok_or_else(|| format!("{part:?} is not PRIORITY=SECONDS")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it together.
    pub fn total(&self) -> Duration {
        self.0.values().sum()
    }

    /// The pods of each group, the least important first. Those below every priority belong to the lowest group.
    fn groups(&self, pods: &[Arc<Pod>]) -> Vec<(Duration, Vec<Arc<Pod>>)> {
        let mut groups: BTreeMap<i32, (Duration, Vec<Arc<Pod>>)> = self
            .0
            .iter()
            .map(|(priority, period)| (*priority, (*period, Vec::new())))
            .collect();
        for pod in pods {
            let priority = pod::spec(pod).priority.unwrap_or(0);
            let own = self.0.range(..=priority).next_back();
            let group = own.or(self.0.iter().next()).map(|(priority, _)| *priority);
            if let Some((_, of)) = group.and_then(|group| groups.get_mut(&group)) {
                of.push(pod.clone());
            }
        }
        groups.into_values().collect()
    }
}

/// What everybody else sees of it.
#[derive(Debug, Default)]
pub struct Shutdown {
    begun: AtomicBool,
    /// The node's status should be written now.
    pub changed: Notify,
}

impl Shutdown {
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    fn set(&self, begun: bool) {
        self.begun.store(begun, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The machine goes on after all: new pods are taken again.
    pub fn cancel(&self) {
        self.set(false);
    }
}

/// Ends the node's pods. Returns when all have ended, or their time is up.
pub async fn run(ctx: &Context, periods: &Periods) {
    info!(seconds = periods.total().as_secs(), "the node shuts down");
    ctx.shutdown.set(true);
    let pods: Vec<Arc<Pod>> = ctx.pods.read().values().cloned().collect();
    for (period, group) in periods.groups(&pods) {
        let mut left: Vec<(String, Duration)> = group
            .iter()
            .filter(|pod| !pod::is_over(pod))
            .map(|pod| {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                (uid, pod::grace(pod).min(period))
            })
            .collect();
        info!(pods = left.len(), seconds = period.as_secs(), "ending pods");
        let end = Instant::now() + period;
        while !left.is_empty() && Instant::now() < end {
            left.retain(|(uid, grace)| {
                let pod = ctx.pods.read().get(uid).cloned();
                let lives = pod.is_some_and(|pod| !pod::is_over(&pod));
                if lives {
                    let eviction = Eviction {
                        reason: TERMINATED,
                        message: MESSAGE.into(),
                        grace: Some(*grace),
                    };
                    // Said already, most of the times.
                    ctx.evictions.evict(uid, eviction);
                }
                lives
            });
            tokio::time::sleep(LOOK).await;
        }
        if !left.is_empty() {
            warn!(pods = left.len(), "pods did not end in their time");
        }
    }
    info!("the node's pods have ended");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: Option<i32>) -> Arc<Pod> {
        let pod = serde_json::json!({"metadata": {"name": name},
            "spec": {"containers": [], "priority": priority}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn groups(periods: &Periods, pods: &[Arc<Pod>]) -> Vec<(u64, Vec<String>)> {
        let names = |pods: Vec<Arc<Pod>>| {
            let names = pods.iter().filter_map(|pod| pod.metadata.name.clone());
            names.collect()
        };
        let groups = periods.groups(pods).into_iter();
        groups.map(|(p, pods)| (p.as_secs(), names(pods))).collect()
    }

    #[test]
    fn important_pods_end_last() {
        let pods = [
            pod("dns", Some(2_000_000_000)),
            pod("web", None),
            pod("node", Some(2_000_001_000)),
            pod("idle", Some(-5)),
        ];
        let seconds = Duration::from_secs;
        let periods = Periods::new(seconds(30), seconds(10)).unwrap();
        let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            groups(&periods, &pods),
            [(20, of(&["web", "idle"])), (10, of(&["dns", "node"]))]
        );
        assert!(Periods::new(seconds(5), seconds(10)).is_err());
        assert!(Periods::new(seconds(0), seconds(0)).unwrap().is_empty());
        let periods = Periods::parse("10=1, 2000001000=7,0=3").unwrap();
        assert_eq!(
            groups(&periods, &pods),
            [
                (3, of(&["web", "idle"])),
                (1, of(&["dns"])),
                (7, of(&["node"]))
            ]
        );
        assert!(Periods::parse("high=1").is_err());
    }
}
