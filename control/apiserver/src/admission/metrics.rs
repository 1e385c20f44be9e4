//! Counters of webhooks and policies, under Kubernetes' names.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use parking_lot::Mutex;

/// Different label sets kept of one metric; names are users', so there could be any number.
const MAX_SERIES: usize = 1024;
/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_seconds: f64,
}

/// Metric and labels, as they are rendered.
type Series = (&'static str, String);

#[derive(Debug, Default)]
pub struct AdmissionMetrics {
    counters: Mutex<BTreeMap<Series, u64>>,
    latencies: Mutex<BTreeMap<String, Latency>>,
}

impl AdmissionMetrics {
    pub fn webhook_called(&self, name: &str, kind: &str, operation: &str, took: Duration) {
        let labels = format!("name={name:?},operation={operation:?},type={kind:?}");
        let mut latencies = self.latencies.lock();
        if latencies.len() >= MAX_SERIES && !latencies.contains_key(&labels) {
            return;
        }
        let latency = latencies.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        latency.count += 1;
        latency.sum_seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            latency.buckets[bucket] += 1;
        }
    }

    /// `error_type`: `calling_webhook_error`, or `no_error` when the webhook itself said no.
    pub fn webhook_rejected(&self, name: &str, error_type: &str) {
        let labels = format!("error_type={error_type:?},name={name:?}");
        self.count("apiserver_admission_webhook_rejection_count", labels);
    }

    pub fn webhook_failed_open(&self, name: &str) {
        self.count(
            "apiserver_admission_webhook_fail_open_count",
            format!("name={name:?}"),
        );
    }

    pub fn policy_denied(&self, policy: &str) {
        let labels = format!("enforcement_action=\"deny\",policy={policy:?}");
        self.count("apiserver_validating_admission_policy_check_total", labels);
    }

    fn count(&self, metric: &'static str, labels: String) {
        let mut counters = self.counters.lock();
        let series = (metric, labels);
        if counters.len() < MAX_SERIES || counters.contains_key(&series) {
            *counters.entry(series).or_default() += 1;
        }
    }

    pub fn write(&self, out: &mut String) -> std::fmt::Result {
        let mut last = "";
        for ((metric, labels), count) in self.counters.lock().iter() {
            if *metric != last {
                writeln!(out, "# TYPE {metric} counter")?;
                last = metric;
            }
            writeln!(out, "{metric}{{{labels}}} {count}")?;
        }
        let metric = "apiserver_admission_webhook_admission_duration_seconds";
        let latencies = self.latencies.lock();
        if !latencies.is_empty() {
            writeln!(out, "# TYPE {metric} histogram")?;
        }
        for (labels, latency) in latencies.iter() {
            let mut below = 0;
            for (bound, bucket) in BUCKETS.iter().zip(latency.buckets) {
                below += bucket;
                writeln!(out, "{metric}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
            }
            writeln!(
                out,
                "{metric}_bucket{{{labels},le=\"+Inf\"}} {}",
                latency.count
            )?;
            writeln!(out, "{metric}_sum{{{labels}}} {}", latency.sum_seconds)?;
            writeln!(out, "{metric}_count{{{labels}}} {}", latency.count)?;
        }
        Ok(())
    }
}
