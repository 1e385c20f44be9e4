//! Quantities, QoS classes and what becomes of requests and limits on the node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod;
use crate::runtime::ResourceLimits;

/// A quantity in billionths of its unit. `None` when it is none.
pub fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || (*i == 0 && matches!(c, '+' | '-'))))
        .map_or(text.len(), |(i, _)| i);
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    if digits.is_empty() || fraction.len() > 18 || digits.len() > 27 {
        return None;
    }
    let value: i128 = digits.parse().ok()?;
    let binary = |power: u32| Some(1024i128.checked_pow(power)? * 1_000_000_000);
    let multiplier: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 1_000_000_000_000_000,
        "G" => 1_000_000_000_000_000_000,
        "T" => 1_000_000_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000_000_000_000,
        "Ki" => binary(1)?,
        "Mi" => binary(2)?,
        "Gi" => binary(3)?,
        "Ti" => binary(4)?,
        "Pi" => binary(5)?,
        "Ei" => binary(6)?,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10i128.checked_pow(u32::try_from(power + 9).ok()?)?
        }
    };
    let scaled = value.checked_mul(multiplier)?;
    let divisor = 10i128.pow(fraction.len() as u32);
    // Rounded away from zero, as upstream does.
    let rounded = scaled.checked_add(divisor - 1)? / divisor;
    Some(if negative { -rounded } else { rounded })
}

/// In whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    let nanos = nanos(quantity).unwrap_or(0);
    i64::try_from((nanos + 999_999_999).div_euclid(1_000_000_000)).unwrap_or(i64::MAX)
}

pub fn millis(quantity: &Quantity) -> i64 {
    let nanos = nanos(quantity).unwrap_or(0);
    i64::try_from((nanos + 999_999).div_euclid(1_000_000)).unwrap_or(i64::MAX)
}

/// How often `divisor` fits, rounded up: the value of a `resourceFieldRef`.
pub fn divided(quantity: &Quantity, divisor: Option<&Quantity>) -> String {
    let amount = nanos(quantity).unwrap_or(0);
    let by = divisor
        .and_then(nanos)
        .filter(|d| *d > 0)
        .unwrap_or(1_000_000_000);
    ((amount + by - 1).div_euclid(by)).to_string()
}

type List = BTreeMap<String, Quantity>;

fn limits(r: Option<&ResourceRequirements>) -> Option<&List> {
    r?.limits.as_ref()
}

fn requests(r: Option<&ResourceRequirements>) -> Option<&List> {
    r?.requests.as_ref()
}

fn positive<'a>(list: Option<&'a List>, name: &str) -> Option<&'a Quantity> {
    list?.get(name).filter(|q| nanos(q).unwrap_or(0) > 0)
}

/// `Guaranteed`, `Burstable` or `BestEffort`: never changes in a pod's life.
pub fn qos_class(pod: &Pod) -> &'static str {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => "Guaranteed",
        Some("Burstable") => "Burstable",
        Some("BestEffort") => "BestEffort",
        _ => skep_api::pod::qos_class(pod),
    }
}

fn shares(millis: i64) -> i64 {
    (millis * 1024 / 1000).clamp(2, 262_144)
}

const PERIOD_US: i64 = 100_000;

fn quota(millis: i64) -> i64 {
    (millis * PERIOD_US / 1000).max(1000)
}

/// Of one container.
pub fn container_limits(pod: &Pod, container: &Container, memory_capacity: i64) -> ResourceLimits {
    let r = container.resources.as_ref();
    let cpu_limit = positive(limits(r), "cpu").map(millis);
    let cpu_request = positive(requests(r), "cpu").map(millis).or(cpu_limit);
    ResourceLimits {
        cpu_shares: Some(cpu_request.map_or(2, shares)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_bytes: positive(limits(r), "memory").map(value),
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity)),
        pids: None,
    }
}

/// Who dies first when the node is out of memory: kubelet's `pkg/kubelet/qos/policy.go`.
fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod::spec(pod).priority.is_some_and(|p| p >= 2_000_000_000) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = memory_request(pod, container);
            let share = 1000i128 * i128::from(request) / i128::from(memory_capacity.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

/// Under pod-level requests a container's share of them: what it asks for itself, and an equal part of
/// what no container asks for (KEP-2837).
fn memory_request(pod: &Pod, container: &Container) -> i64 {
    let own = |c: &Container| positive(requests(c.resources.as_ref()), "memory").map_or(0, value);
    let spec = pod::spec(pod);
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let Some(whole) = positive(whole, "memory").map(value) else {
        return own(container);
    };
    let claimed: i64 = spec.containers.iter().map(own).sum();
    let count = i64::try_from(spec.containers.len()).unwrap_or(1).max(1);
    own(container) + (whole - claimed).max(0) / count
}

/// Of the pod's own cgroup: what the pod says as a whole, or sums over its containers where every
/// container has a limit. Kubelet's `ResourceConfigForPod`.
pub fn pod_limits(pod: &Pod) -> ResourceLimits {
    let spec = pod::spec(pod);
    let requests = skep_api::pod::requests(pod);
    let totals = skep_api::pod::limits(pod);
    let pod_level = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    let sidecars = spec.init_containers.iter().flatten();
    let lasting: Vec<&Container> = sidecars
        .filter(|c| pod::is_sidecar(c))
        .chain(&spec.containers)
        .collect();
    let limit = |name: &str| {
        let declared = positive(pod_level, name).is_some()
            || lasting
                .iter()
                .all(|c| positive(limits(c.resources.as_ref()), name).is_some());
        positive(Some(&totals), name).filter(|_| declared)
    };
    let cpu_limit = limit("cpu").map(millis);
    let cpu_request = positive(Some(&requests), "cpu").map(millis).or(cpu_limit);
    ResourceLimits {
        cpu_shares: Some(cpu_request.map_or(2, shares)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_bytes: limit("memory").map(value),
        oom_score_adj: None,
        pids: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        for (text, nano) in [
            ("1", 1_000_000_000),
            ("100m", 100_000_000),
            ("0.5", 500_000_000),
            ("1.5Gi", 1_610_612_736_000_000_000),
            ("2k", 2_000_000_000_000),
            ("1e3", 1_000_000_000_000),
            ("-1", -1_000_000_000),
            ("3n", 3),
        ] {
            assert_eq!(nanos(&Quantity(text.into())), Some(nano), "{text}");
        }
        for text in ["", "x", "1Q", "1 Gi", "."] {
            assert_eq!(nanos(&Quantity(text.into())), None, "{text}");
        }
        assert_eq!(divided(&Quantity("1500m".into()), None), "2");
        assert_eq!(
            divided(&Quantity("64Mi".into()), Some(&Quantity("1Mi".into()))),
            "64"
        );
    }
}
