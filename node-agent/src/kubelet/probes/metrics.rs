//! `/metrics/probes`: what probes have found, and how long they took. Names, labels and buckets are upstream's
//! (`pkg/kubelet/prober`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::kubelet::counters::Histogram;

/// Seconds.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub probe_type: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    Successful,
    Failed,
    Unknown,
}

const RESULTS: [(Result, &str); 3] = [
    (Result::Successful, "successful"),
    (Result::Failed, "failed"),
    (Result::Unknown, "unknown"),
];

#[derive(Debug, Clone, Default)]
struct Numbers {
    /// As in [`RESULTS`].
    results: [u64; 3],
    durations: Histogram<{ BUCKETS.len() }>,
}

/// What one probe has found.
#[derive(Debug, Default)]
pub struct Series(Mutex<Numbers>);

impl Series {
    pub fn record(&self, result: Result, took: Duration) {
        let mut numbers = self.0.lock();
        for (at, (kind, _)) in RESULTS.iter().enumerate() {
            numbers.results[at] += u64::from(*kind == result);
        }
        if result == Result::Unknown {
            return;
        }
        numbers.durations.record(&BUCKETS, took);
    }
}

/// One entry a probe of a pod that is here.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<Labels, Arc<Series>>>);

impl Metrics {
    /// Where this probe records what it finds.
    pub fn series(&self, labels: Labels) -> Arc<Series> {
        self.0.lock().entry(labels).or_default().clone()
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.0.lock().retain(|labels, _| labels.pod_uid != pod_uid);
    }

    pub fn text(&self) -> String {
        let all = self.0.lock();
        let all: Vec<(&Labels, Numbers)> =
            all.iter().map(|(l, s)| (l, s.0.lock().clone())).collect();
        let mut out = String::from(
            "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a \
             container by result.\n# TYPE prober_probe_total counter\n",
        );
        let common = |l: &Labels| {
            format!(
                "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
                l.container, l.namespace, l.pod
            )
        };
        // Writing to a string cannot fail.
        for (labels, series) in &all {
            for ((_, result), count) in RESULTS.iter().zip(series.results) {
                if count > 0 {
                    let _ = writeln!(
                        out,
                        "prober_probe_total{{{},pod_uid=\"{}\",probe_type=\"{}\",result=\"{result}\"}} {count}",
                        common(labels),
                        labels.pod_uid,
                        labels.probe_type
                    );
                }
            }
        }
        out.push_str(
            "# HELP prober_probe_duration_seconds [ALPHA] Duration in seconds for a probe response.\n\
             # TYPE prober_probe_duration_seconds histogram\n",
        );
        for (labels, series) in all.iter().filter(|(_, s)| !s.durations.is_empty()) {
            let own = format!("{},probe_type=\"{}\"", common(labels), labels.probe_type);
            let name = "prober_probe_duration_seconds";
            series.durations.write(&mut out, name, &own, &BUCKETS);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_by_what_they_found() {
        let metrics = Metrics::default();
        let labels = Labels {
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: "u1".into(),
            container: "c".into(),
            probe_type: "Liveness",
        };
        let took = Duration::from_millis(20);
        metrics
            .series(labels.clone())
            .record(Result::Successful, took);
        let series = metrics.series(labels);
        series.record(Result::Failed, Duration::from_secs(60));
        series.record(Result::Unknown, took);
        let text = metrics.text();
        let own = "container=\"c\",namespace=\"default\",pod=\"web\"";
        for line in [
            format!(
                "prober_probe_total{{{own},pod_uid=\"u1\",probe_type=\"Liveness\",result=\"failed\"}} 1"
            ),
            format!(
                "prober_probe_duration_seconds_bucket{{{own},probe_type=\"Liveness\",le=\"0.025\"}} 1"
            ),
            format!(
                "prober_probe_duration_seconds_bucket{{{own},probe_type=\"Liveness\",le=\"10\"}} 1"
            ),
            format!("prober_probe_duration_seconds_count{{{own},probe_type=\"Liveness\"}} 2"),
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        metrics.forget("u1");
        assert!(!metrics.text().contains("u1"));
    }
}
