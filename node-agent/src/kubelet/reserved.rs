//! What of the machine pods may have: its capacity less what is reserved for the system, for the agent, and for
//! eviction to act in time. Upstream's "node allocatable".

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::cgroup::Cgroups;
use super::eviction::plan::{Amount, Signal, Threshold};
use super::resources;
use crate::runtime::ResourceLimits;

/// By resource, in billionths.
pub type Reserved = BTreeMap<String, i128>;

/// Adds `cpu=100m,memory=500Mi` to what is reserved already.
///
/// # Errors
/// Says which part is no amount of a resource that can be reserved.
pub fn add(reserved: &mut Reserved, text: &str) -> Result<(), String> {
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let bad = || format!("{part:?} reserves nothing: cpu, memory, ephemeral-storage or pid=N");
        let (name, amount) = part.split_once('=').ok_or_else(bad)?;
        if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&name) {
            return Err(bad());
        }
        let nanos = resources::nanos(&Quantity(amount.to_owned()));
        let nanos = nanos.filter(|n| *n >= 0).ok_or_else(bad)?;
        let sum = reserved.entry(name.to_owned()).or_default();
        *sum = sum.saturating_add(nanos);
    }
    Ok(())
}

/// What is left for pods. A hard threshold's amount is not theirs: they would be evicted before they had it.
pub fn allocatable(
    capacity: &BTreeMap<String, Quantity>,
    reserved: &Reserved,
    thresholds: &[Threshold],
) -> BTreeMap<String, Quantity> {
    let mut left = capacity.clone();
    for (name, quantity) in &mut left {
        let whole = resources::nanos(quantity).unwrap_or(0);
        let signal = match name.as_str() {
            "memory" => Some(Signal::MemoryAvailable),
            "ephemeral-storage" => Some(Signal::NodefsAvailable),
            _ => None,
        };
        let kept = thresholds
            .iter()
            .filter(|t| Some(t.signal) == signal && t.grace.is_none())
            .map(|t| match t.below {
                Amount::Absolute(amount) => i128::from(amount) * 1_000_000_000,
                Amount::Percent(percent) => (whole as f64 * percent / 100.0) as i128,
            })
            .max();
        let taken = reserved.get(name).copied().unwrap_or(0) + kept.unwrap_or(0);
        if taken > 0 {
            *quantity = shown(name, (whole - taken).max(0));
        }
    }
    left
}

fn shown(name: &str, nanos: i128) -> Quantity {
    Quantity(match name {
        "cpu" if nanos % 1_000_000_000 != 0 => format!("{}m", nanos / 1_000_000),
        "memory" => format!("{}Ki", nanos / 1_000_000_000 / 1024),
        _ => (nanos / 1_000_000_000).to_string(),
    })
}

/// Holds all pods together to what is not reserved. Without reservations there is nothing to hold them to.
///
/// # Errors
/// Of the cgroup's files.
pub fn enforce(
    cgroups: &Cgroups,
    parent: &str,
    capacity: &BTreeMap<String, Quantity>,
    reserved: &Reserved,
) -> std::io::Result<()> {
    if reserved.is_empty() {
        return Ok(());
    }
    let left = allocatable(capacity, reserved, &[]);
    let limits = ResourceLimits {
        memory_bytes: reserved
            .get("memory")
            .and(left.get("memory"))
            .map(resources::value),
        cpu_shares: reserved
            .get("cpu")
            .and(left.get("cpu"))
            .map(|cpu| (resources::millis(cpu) * 1024 / 1000).max(2)),
        ..Default::default()
    };
    let group = format!("{}/kubepods", parent.trim_end_matches('/'));
    cgroups.create(&group, &limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::eviction::plan;

    #[test]
    fn pods_get_what_is_left() {
        let capacity: BTreeMap<String, Quantity> = [
            ("cpu", "4"),
            ("memory", "8388608Ki"),
            ("ephemeral-storage", "1000Ki"),
            ("pods", "110"),
        ]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
        .into();
        let mut reserved = Reserved::new();
        add(&mut reserved, "cpu=100m,memory=1Gi").unwrap();
        add(&mut reserved, "cpu=400m").unwrap();
        let thresholds = plan::parse("memory.available<100Mi,nodefs.available<10%").unwrap();
        let left = allocatable(&capacity, &reserved, &thresholds);
        let of = |name: &str| left[name].0.as_str();
        assert_eq!(of("cpu"), "3500m");
        assert_eq!(of("memory"), format!("{}Ki", 7 * 1024 * 1024 - 100 * 1024));
        assert_eq!(of("ephemeral-storage"), "921600");
        assert_eq!(of("pods"), "110");
        assert_eq!(allocatable(&capacity, &Reserved::new(), &[]), capacity);
        add(&mut reserved, "memory=100Gi").unwrap();
        let none = allocatable(&capacity, &reserved, &thresholds);
        assert_eq!(none["memory"].0, "0Ki");
        for bad in ["cpu", "gpu=1", "cpu=x", "cpu=-1"] {
            assert!(add(&mut reserved, bad).is_err(), "{bad}");
        }
    }
}
