//! `/metrics`: counters of requests under Kubernetes' well-known names, in Prometheus' text format.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{audit::Audit, cache::Cache};

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];
/// Different label sets kept; requests beyond are counted under `other`.
const MAX_SERIES: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_seconds: f64,
}

#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Series, Latency>>,
    pub in_flight: AtomicI64,
    pub panics: AtomicU64,
    /// Requests that waited too long for their turn.
    pub refused: AtomicU64,
    pub admission: crate::admission::metrics::AdmissionMetrics,
}

impl Metrics {
    pub fn record(&self, info: &crate::request::RequestInfo, code: u16, took: Duration) {
        let mut series = Series {
            verb: info.verb,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            code,
        };
        // A name that no resource has would let clients make series at will.
        if code == 404 && !info.is_resource {
            series.resource.clear();
        }
        let mut requests = self.requests.lock();
        if requests.len() >= MAX_SERIES && !requests.contains_key(&series) {
            series.group.clear();
            series.version.clear();
            series.resource = "other".to_owned();
            series.subresource.clear();
        }
        let latency = requests.entry(series).or_default();
        let seconds = took.as_secs_f64();
        latency.count += 1;
        latency.sum_seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            latency.buckets[bucket] += 1;
        }
    }

    pub fn render(&self, cache: &Cache, audit: Option<&Audit>) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _written = self.write(cache, audit, &mut out);
        out
    }

    fn write(&self, cache: &Cache, audit: Option<&Audit>, out: &mut String) -> std::fmt::Result {
        let requests = self.requests.lock().clone();
        head(
            out,
            "apiserver_request_total",
            "counter",
            "Requests by verb, resource and code.",
        )?;
        for (series, latency) in &requests {
            writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",{}}} {}",
                series.code,
                labels(series),
                latency.count
            )?;
        }
        let name = "apiserver_request_duration_seconds";
        head(
            out,
            name,
            "histogram",
            "Time to answer, without the time to stream a body.",
        )?;
        let mut by_labels: BTreeMap<String, Latency> = BTreeMap::new();
        for (series, latency) in &requests {
            let sum = by_labels.entry(labels(series)).or_default();
            sum.count += latency.count;
            sum.sum_seconds += latency.sum_seconds;
            for (sum, bucket) in sum.buckets.iter_mut().zip(latency.buckets) {
                *sum += bucket;
            }
        }
        for (labels, latency) in by_labels {
            let mut below = 0;
            for (bound, bucket) in BUCKETS.iter().zip(latency.buckets) {
                below += bucket;
                writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
            }
            writeln!(
                out,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {}",
                latency.count
            )?;
            writeln!(out, "{name}_sum{{{labels}}} {}", latency.sum_seconds)?;
            writeln!(out, "{name}_count{{{labels}}} {}", latency.count)?;
        }
        let gauge = |out: &mut String, name: &str, kind: &str, help: &str, value: u64| {
            head(out, name, kind, help)?;
            writeln!(out, "{name} {value}")
        };
        let in_flight = u64::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(0);
        let current = "apiserver_current_inflight_requests";
        gauge(out, current, "gauge", "Requests being handled.", in_flight)?;
        let panics = self.panics.load(Ordering::Relaxed);
        gauge(
            out,
            "skep_apiserver_panics_total",
            "counter",
            "Handlers that panicked.",
            panics,
        )?;
        let refused = self.refused.load(Ordering::Relaxed);
        let rejected = "apiserver_flowcontrol_rejected_requests_total";
        gauge(
            out,
            rejected,
            "counter",
            "Requests refused with 429.",
            refused,
        )?;
        let metrics = cache.metrics();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        if let Some(counters) = audit.map(|audit| &audit.sink.counters) {
            let (events, lost) = (load(&counters.events), load(&counters.lost));
            let name = "apiserver_audit_event_total";
            gauge(out, name, "counter", "Audit events written.", events)?;
            let name = "apiserver_audit_error_total";
            gauge(out, name, "counter", "Audit events lost.", lost)?;
        }
        for (name, kind, help, value) in [
            (
                "apiserver_longrunning_requests",
                "gauge",
                "Open watches.",
                load(&metrics.watchers),
            ),
            (
                "skep_cache_watchers_fell_behind_total",
                "counter",
                "Watches ended because their queue was full.",
                load(&metrics.watchers_fell_behind),
            ),
            (
                "skep_cache_events_total",
                "counter",
                "Events taken in.",
                load(&metrics.events),
            ),
            (
                "skep_cache_history_overflows_total",
                "counter",
                "Events forgotten for size before they were old.",
                load(&metrics.history_overflows),
            ),
            (
                "skep_cache_unreadable_values_total",
                "counter",
                "Stored values that are not served because they cannot be read.",
                load(&metrics.unreadable_values),
            ),
            (
                "skep_cache_relists_total",
                "counter",
                "Complete reloads.",
                load(&metrics.relists),
            ),
            (
                "skep_cache_watch_restarts_total",
                "counter",
                "Times that the watch on the store broke and was started again.",
                load(&metrics.watch_restarts),
            ),
            (
                "skep_store_compactions_total",
                "counter",
                "Compactions of the store that succeeded.",
                load(&metrics.compactions),
            ),
            (
                "skep_store_compacted_revision",
                "gauge",
                "Revision that the last compaction kept from.",
                load(&metrics.compacted_revision),
            ),
            (
                "skep_cache_revision",
                "gauge",
                "Newest revision visible.",
                cache.revision(),
            ),
        ] {
            gauge(out, name, kind, help, value)?;
        }
        if let Some(metrics) = cache.store_metrics() {
            for (name, kind, help, value) in [
                (
                    "skep_store_txns_total",
                    "counter",
                    "Transactions answered, conflicts included.",
                    load(&metrics.txns),
                ),
                (
                    "skep_store_conflicts_total",
                    "counter",
                    "Transactions whose guards did not hold.",
                    load(&metrics.conflicts),
                ),
                (
                    "skep_store_fsyncs_total",
                    "counter",
                    "Commits of the file, each of many transactions.",
                    load(&metrics.fsyncs),
                ),
                (
                    "skep_store_fsync_nanoseconds_total",
                    "counter",
                    "Time spent committing the file.",
                    load(&metrics.fsync_ns),
                ),
                (
                    "skep_store_queue_full_total",
                    "counter",
                    "Requests that waited for room in the writer's queue.",
                    load(&metrics.queue_full),
                ),
                (
                    "skep_store_reopens_total",
                    "counter",
                    "Times that the file was opened again after an I/O error.",
                    load(&metrics.reopens),
                ),
                (
                    "skep_store_expired_keys_total",
                    "counter",
                    "Keys deleted at the end of their time to live.",
                    load(&metrics.expired_keys),
                ),
                (
                    "skep_store_file_bytes",
                    "gauge",
                    "Size of the file.",
                    load(&metrics.file_bytes),
                ),
            ] {
                gauge(out, name, kind, help, value)?;
            }
        }
        self.admission.write(out)?;
        head(
            out,
            "apiserver_storage_objects",
            "gauge",
            "Objects by resource.",
        )?;
        for (prefix, count) in cache.counts() {
            let mut parts = prefix.trim_matches('/').split('/').skip(1);
            let group = parts.next().filter(|g| *g != "core").unwrap_or_default();
            let plural = parts.next().unwrap_or_default();
            let resource = crate::status::qualified(group, plural);
            writeln!(
                out,
                "apiserver_storage_objects{{resource=\"{resource}\"}} {count}"
            )?;
        }
        Ok(())
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn labels(series: &Series) -> String {
    let verb = series.verb.to_ascii_uppercase();
    let escaped = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    format!(
        "group=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{verb}\",version=\"{}\"",
        escaped(&series.group),
        escaped(&series.resource),
        escaped(&series.subresource),
        escaped(&series.version),
    )
}
