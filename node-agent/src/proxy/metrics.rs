//! What monitors of kube-proxy look for, under its names (kubernetes/kubernetes,
//! `pkg/proxy/metrics/metrics.go`).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 1 ms to 16 s, each twice the one before.
const SYNC_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];
/// kube-proxy's own are linear in between; these are among them.
const PROGRAMMING_BUCKETS: [f64; 15] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0,
];

#[derive(Debug)]
pub struct ProxyMetrics {
    sync: Histogram,
    full_sync: Histogram,
    programming: Histogram,
    /// Milliseconds of the Unix epoch.
    synced_at: AtomicU64,
    queued_at: AtomicU64,
    /// Since when something waits to be synced; 0: nothing does.
    waiting_since: AtomicU64,
    pub(super) services: Changes,
    pub(super) endpoints: Changes,
    pub(super) healthz: [AtomicU64; 2],
    pub(super) livez: [AtomicU64; 2],
}

/// Of objects, and those of them that the kernel does not have yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    total: AtomicU64,
    pending: AtomicU64,
}

impl Changes {
    pub(super) fn arrived(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything that has arrived is looked at now.
    pub(super) fn taken(&self) {
        self.pending.store(0, Ordering::Relaxed);
    }
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        Self {
            sync: Histogram::new(&SYNC_BUCKETS),
            full_sync: Histogram::new(&SYNC_BUCKETS),
            programming: Histogram::new(&PROGRAMMING_BUCKETS),
            synced_at: AtomicU64::default(),
            queued_at: AtomicU64::default(),
            waiting_since: AtomicU64::default(),
            services: Changes::default(),
            endpoints: Changes::default(),
            healthz: Default::default(),
            livez: Default::default(),
        }
    }
}

impl ProxyMetrics {
    pub(super) fn queued(&self) {
        let now = now_ms();
        self.queued_at.store(now, Ordering::Relaxed);
        // The first that waits counts.
        let _ = self
            .waiting_since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the kernel has everything that has been known for longer than `patience`.
    pub(super) fn is_current(&self, patience: Duration) -> bool {
        let since = self.waiting_since.load(Ordering::Relaxed);
        let waited = now_ms().saturating_sub(since);
        since == 0 || u128::from(waited) < patience.as_millis()
    }

    /// Milliseconds of the Unix epoch; 0: never.
    pub(super) fn synced_at(&self) -> u64 {
        self.synced_at.load(Ordering::Relaxed)
    }

    pub(super) fn synced(&self, took: Duration, everything: bool) {
        self.sync.observe(took);
        if everything {
            self.full_sync.observe(took);
        }
        self.synced_at.store(now_ms(), Ordering::Relaxed);
        self.waiting_since.store(0, Ordering::Relaxed);
    }

    /// From the change that made an EndpointSlice differ until the kernel has it.
    pub(super) fn programmed(&self, took: Duration) {
        self.programming.observe(took);
    }

    /// In Prometheus' text format.
    pub fn write(&self, text: &mut String) {
        // Writing to a String cannot fail.
        let _ = self.try_write(text);
    }

    fn try_write(&self, text: &mut String) -> std::fmt::Result {
        self.sync.write(
            text,
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
        )?;
        self.full_sync.write(
            text,
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
        )?;
        self.programming.write(
            text,
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
        )?;
        for (name, help, at) in [
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                &self.synced_at,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                &self.queued_at,
            ),
        ] {
            let seconds = at.load(Ordering::Relaxed) as f64 / 1_000.0;
            writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {seconds}"
            )?;
        }
        for (what, changes) in [("endpoint", &self.endpoints), ("service", &self.services)] {
            let name = format!("kubeproxy_sync_proxy_rules_{what}_changes");
            writeln!(
                text,
                "# HELP {name}_pending Pending proxy rules {what} changes\n\
                 # TYPE {name}_pending gauge\n\
                 {name}_pending {}\n\
                 # HELP {name}_total Cumulative proxy rules {what} changes\n\
                 # TYPE {name}_total counter\n\
                 {name}_total {}",
                changes.pending.load(Ordering::Relaxed),
                changes.total.load(Ordering::Relaxed),
            )?;
        }
        for (check, counts) in [("healthz", &self.healthz), ("livez", &self.livez)] {
            let name = format!("kubeproxy_proxy_{check}_total");
            writeln!(
                text,
                "# HELP {name} Cumulative proxy {check} HTTP status\n# TYPE {name} counter"
            )?;
            for (code, count) in ["200", "503"].iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                writeln!(text, "{name}{{code=\"{code}\"}} {count}")?;
            }
        }
        Ok(())
    }
}

/// Observations by bucket; the last is for what is above all of them.
#[derive(Debug)]
struct Histogram {
    buckets: &'static [f64; 15],
    counts: [AtomicU64; 16],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn new(buckets: &'static [f64; 15]) -> Self {
        Self {
            buckets,
            counts: Default::default(),
            sum_ns: AtomicU64::default(),
        }
    }

    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let limits = self.buckets.iter();
        let slot = limits.take_while(|limit| seconds > **limit).count();
        self.counts[slot].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) -> std::fmt::Result {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram")?;
        let mut below = 0;
        for (limit, count) in self.buckets.iter().zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            writeln!(text, "{name}_bucket{{le=\"{limit}\"}} {below}")?;
        }
        below += self.counts[15].load(Ordering::Relaxed);
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {below}\n{name}_sum {sum}\n{name}_count {below}"
        )
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitors_find_what_they_look_for() {
        let metrics = ProxyMetrics::default();
        metrics.services.arrived();
        metrics.endpoints.arrived();
        metrics.endpoints.arrived();
        metrics.queued();
        assert!(metrics.is_current(Duration::from_secs(60)));
        assert!(!metrics.is_current(Duration::ZERO));
        metrics.services.taken();
        metrics.synced(Duration::from_millis(3), true);
        assert!(metrics.is_current(Duration::ZERO));
        metrics.synced(Duration::from_secs(20), false);
        metrics.programmed(Duration::from_millis(300));
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"+Inf\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum 20.003",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 0",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\n{text}");
        }
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1"));
    }
}
