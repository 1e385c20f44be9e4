//! What the kubelet counts on `/metrics`, under upstream's names (`pkg/kubelet/metrics`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::pod::Kind;

/// As upstream's `container_type` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerType {
    Sandbox,
    Container,
    Init,
    Ephemeral,
}

impl From<Kind> for ContainerType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Main => Self::Container,
            Kind::Init | Kind::Sidecar => Self::Init,
            Kind::Ephemeral => Self::Ephemeral,
        }
    }
}

const TYPES: [(ContainerType, &str); 4] = [
    (ContainerType::Sandbox, "pod_sandbox"),
    (ContainerType::Container, "container"),
    (ContainerType::Init, "init_container"),
    (ContainerType::Ephemeral, "ephemeral_container"),
];

/// Seconds until a pod ran.
const START_BUCKETS: [f64; 12] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0,
];

#[derive(Debug, Default)]
pub struct Counters {
    pods: AtomicU64,
    /// Begun and failed, as in [`TYPES`].
    containers: [(AtomicU64, AtomicU64); TYPES.len()],
    /// By signal.
    evictions: Mutex<BTreeMap<&'static str, u64>>,
    starts: Mutex<Histogram<{ START_BUCKETS.len() }>>,
    actions: AtomicU64,
}

impl Counters {
    /// A container was begun, or could not be.
    pub fn container(&self, kind: ContainerType, began: bool) {
        let at = TYPES.iter().position(|(own, _)| *own == kind).unwrap_or(0);
        let (begun, failed) = &self.containers[at];
        begun.fetch_add(1, Ordering::Relaxed);
        failed.fetch_add(u64::from(!began), Ordering::Relaxed);
    }

    /// Something is begun for a pod.
    pub fn action(&self) {
        self.actions.fetch_add(1, Ordering::Relaxed);
    }

    pub fn actions(&self) -> u64 {
        self.actions.load(Ordering::Relaxed)
    }

    pub fn evicted(&self, signal: &'static str) {
        *self.evictions.lock().entry(signal).or_default() += 1;
    }

    /// A pod runs, this long after it was seen first.
    pub fn running(&self, after: Duration) {
        self.pods.fetch_add(1, Ordering::Relaxed);
        self.starts.lock().record(&START_BUCKETS, after);
    }

    pub fn text(&self) -> String {
        // Writing to a string cannot fail.
        let mut out = String::new();
        let pods = self.pods.load(Ordering::Relaxed);
        let _ = write!(
            out,
            "# TYPE kubelet_started_pods_total counter\nkubelet_started_pods_total {pods}\n\
             # TYPE kubelet_started_containers_total counter\n"
        );
        for ((_, name), (begun, _)) in TYPES.iter().zip(&self.containers) {
            let count = begun.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "kubelet_started_containers_total{{container_type=\"{name}\"}} {count}"
            );
        }
        out.push_str("# TYPE kubelet_started_containers_errors_total counter\n");
        for ((_, name), (_, failed)) in TYPES.iter().zip(&self.containers) {
            let count = failed.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "kubelet_started_containers_errors_total{{container_type=\"{name}\"}} {count}"
            );
        }
        let actions = self.actions();
        let _ = write!(
            out,
            "# HELP skep_kubelet_actions_total What was begun for pods: one step of one pod each.\n\
             # TYPE skep_kubelet_actions_total counter\nskep_kubelet_actions_total {actions}\n"
        );
        out.push_str("# TYPE kubelet_evictions counter\n");
        for (signal, count) in self.evictions.lock().iter() {
            let _ = writeln!(
                out,
                "kubelet_evictions{{eviction_signal=\"{signal}\"}} {count}"
            );
        }
        out.push_str("# TYPE kubelet_pod_start_duration_seconds histogram\n");
        let starts = self.starts.lock();
        starts.write(
            &mut out,
            "kubelet_pod_start_duration_seconds",
            "",
            &START_BUCKETS,
        );
        out
    }
}

/// How long something took, by bucket; the buckets are its owner's.
#[derive(Debug, Clone)]
pub struct Histogram<const N: usize> {
    /// Not added up.
    buckets: [u64; N],
    count: u64,
    seconds: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: [0; N],
            count: 0,
            seconds: 0.0,
        }
    }
}

impl<const N: usize> Histogram<N> {
    pub fn record(&mut self, limits: &[f64; N], took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.seconds += seconds;
        if let Some(at) = limits.iter().position(|most| seconds <= *most) {
            self.buckets[at] += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its lines. `labels`: `name="value",…`, or nothing.
    pub fn write(&self, out: &mut String, name: &str, labels: &str, limits: &[f64; N]) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut sum = 0;
        for (most, count) in limits.iter().zip(self.buckets) {
            sum += count;
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{most}\"}} {sum}");
        }
        let Self { count, seconds, .. } = self;
        let braces = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = write!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n\
             {name}_sum{braces} {seconds}\n{name}_count{braces} {count}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let counters = Counters::default();
        counters.container(Kind::Sidecar.into(), true);
        counters.container(ContainerType::Container, false);
        counters.evicted("memory.available");
        counters.running(Duration::from_millis(700));
        let text = counters.text();
        for line in [
            "kubelet_started_pods_total 1",
            "kubelet_started_containers_total{container_type=\"init_container\"} 1",
            "kubelet_started_containers_errors_total{container_type=\"container\"} 1",
            "kubelet_evictions{eviction_signal=\"memory.available\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"0.5\"} 0",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_pod_start_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
