//! From what node agents count to what is used: two readings of `/metrics/resource` make a rate.
//!
//! Pure; the rules are metrics-server's (`pkg/storage`).

use std::collections::HashMap;

use jiff::Timestamp;

/// A container that is younger than this has used too little to judge.
const MIN_AGE_MS: i64 = 10_000;

/// Cumulative CPU time and memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Since the epoch.
    pub at_ms: i64,
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    /// When the container was started; 0 = unknown. Another start is another counter.
    pub started_ms: i64,
}

/// One reading of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub node: Option<Point>,
    /// By (namespace, pod); then by container.
    pub pods: HashMap<(String, String), HashMap<String, Point>>,
}

/// What was used over a window that ends at `at_ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub at_ms: i64,
    pub window_ms: i64,
    pub cpu_ns_per_second: u64,
    pub memory_bytes: u64,
}

impl Reading {
    /// Reads the Prometheus text of `/metrics/resource`. Lines that say nothing to us are skipped; `now` dates the ones
    /// without a time of their own.
    pub fn parse(text: &str, now: Timestamp) -> Self {
        let mut reading = Self::default();
        for line in text.lines() {
            let Some(sample) = Sample::parse(line) else {
                continue;
            };
            let at_ms = sample.at_ms.unwrap_or(now.as_millisecond());
            if let Some(rest) = sample.name.strip_prefix("node_") {
                let point = reading.node.get_or_insert_default();
                set(point, rest, sample.value, at_ms);
            } else if let Some(rest) = sample.name.strip_prefix("container_") {
                let label = |name| sample.label(name).unwrap_or_default().to_owned();
                let pod = reading
                    .pods
                    .entry((label("namespace"), label("pod")))
                    .or_default();
                let point = pod.entry(label("container")).or_default();
                set(point, rest, sample.value, at_ms);
            }
        }
        reading
    }
}

fn set(point: &mut Point, what: &str, value: f64, at_ms: i64) {
    match what {
        "cpu_usage_seconds_total" => {
            point.cpu_seconds = value;
            point.at_ms = at_ms;
        }
        "memory_working_set_bytes" => point.memory_bytes = value as u64,
        "start_time_seconds" => point.started_ms = (value * 1000.0) as i64,
        _ => {}
    }
}

struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
    at_ms: Option<i64>,
}

impl<'a> Sample<'a> {
    /// `name{label="value",…} value [milliseconds]`. Names of pods and containers need no escapes.
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (head, rest) = match line.split_once('}') {
            Some((head, rest)) => (head, rest),
            None => line.split_once(' ')?,
        };
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        let mut words = rest.split_whitespace();
        let value: f64 = words.next()?.parse().ok()?;
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        Some(Self {
            name: name.trim_end(),
            labels,
            value,
            at_ms: words.next().and_then(|word| word.parse().ok()),
        })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.split(',').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim() == name).then(|| value.trim_matches('"'))
        })
    }
}

/// `None` while there is no window yet.
pub fn usage(previous: Option<&Point>, last: &Point) -> Option<Usage> {
    let same = |before: &&Point| {
        before.started_ms == last.started_ms
            && before.at_ms < last.at_ms
            && before.cpu_seconds <= last.cpu_seconds
    };
    let since_start = Point {
        at_ms: last.started_ms,
        started_ms: last.started_ms,
        ..Point::default()
    };
    let before = match previous.filter(same) {
        Some(before) => before,
        // Started since the last reading: all it has used, it has used since then.
        None => {
            let known = last.started_ms > 0 && previous.is_none_or(|p| last.started_ms > p.at_ms);
            let age_ms = last.at_ms - last.started_ms;
            let fresh = known && (MIN_AGE_MS..4 * MIN_AGE_MS).contains(&age_ms);
            fresh.then_some(&since_start)?
        }
    };
    let window_ms = last.at_ms - before.at_ms;
    let used = last.cpu_seconds - before.cpu_seconds;
    Some(Usage {
        at_ms: last.at_ms,
        window_ms,
        cpu_ns_per_second: (used * 1e12 / window_ms as f64).round() as u64,
        memory_bytes: last.memory_bytes,
    })
}

/// A pod's containers, by name. `None` unless all of them can be judged: a part would look like the whole.
pub fn pod_usage(
    previous: Option<&HashMap<String, Point>>,
    last: &HashMap<String, Point>,
) -> Option<Vec<(String, Usage)>> {
    let mut all = Vec::with_capacity(last.len());
    for (name, point) in last {
        let before = previous.and_then(|points| points.get(name));
        all.push((name.clone(), usage(before, point)?));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"a\"} 4.710169 1633253812125
container_memory_working_set_bytes{container=\"web\",namespace=\"default\",pod=\"a\"} 1.2853248e+07 1633253812125
container_start_time_seconds{container=\"web\",namespace=\"default\",pod=\"a\"} 1.633253000e+09
node_cpu_usage_seconds_total 357.35491 1633253809720
node_memory_working_set_bytes 1.616273408e+09 1633253809720
pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"a\"} 4.7
resource_scrape_error 0
nonsense{ } x
container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"b\"} NaN
";

    #[test]
    fn reads_what_kubelets_say() {
        let reading = Reading::parse(TEXT, Timestamp::UNIX_EPOCH);
        let node = reading.node.expect("a node");
        assert_eq!(node.at_ms, 1_633_253_809_720);
        assert_eq!(node.memory_bytes, 1_616_273_408);
        assert_eq!(reading.pods.len(), 1);
        let pod = &reading.pods[&("default".to_owned(), "a".to_owned())];
        let expected = Point {
            at_ms: 1_633_253_812_125,
            cpu_seconds: 4.710169,
            memory_bytes: 12_853_248,
            started_ms: 1_633_253_000_000,
        };
        assert_eq!(pod["web"], expected);
    }

    #[test]
    fn a_rate_needs_a_window_of_one_life() {
        let point = |at_ms, cpu_seconds, started_ms| Point {
            at_ms,
            cpu_seconds,
            memory_bytes: 5,
            started_ms,
        };
        let rate = |previous: Option<Point>, last| {
            usage(previous.as_ref(), &last).map(|u| (u.window_ms, u.cpu_ns_per_second))
        };
        // A quarter of a core over 10 s.
        let before = point(100_000, 1.0, 50_000);
        assert_eq!(
            rate(Some(before), point(110_000, 3.5, 50_000)),
            Some((10_000, 250_000_000))
        );
        // Nothing before, and too old to be judged from its start.
        assert_eq!(rate(None, point(110_000, 3.5, 50_000)), None);
        // Restarted since: its counter began again.
        assert_eq!(
            rate(Some(before), point(120_000, 6.0, 105_000)),
            Some((15_000, 400_000_000))
        );
        // Restarted, and too young.
        assert_eq!(rate(Some(before), point(110_000, 6.0, 105_000)), None);
        // The same reading again, and a counter that went backwards.
        assert_eq!(rate(Some(before), before), None);
        assert_eq!(rate(Some(before), point(110_000, 0.5, 50_000)), None);
    }

    #[test]
    fn a_pod_is_judged_as_a_whole() {
        let point = |at_ms, cpu_seconds| Point {
            at_ms,
            cpu_seconds,
            memory_bytes: 5,
            started_ms: 1,
        };
        let of = |points: &[(&str, Point)]| -> HashMap<String, Point> {
            points.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect()
        };
        let before = of(&[("a", point(1000, 1.0))]);
        let both = of(&[("a", point(2000, 2.0)), ("b", point(2000, 2.0))]);
        assert_eq!(pod_usage(Some(&before), &both), None);
        let one = of(&[("a", point(2000, 2.0))]);
        let usage = pod_usage(Some(&before), &one).expect("usage");
        assert_eq!(usage[0].1.cpu_ns_per_second, 1_000_000_000);
    }
}
