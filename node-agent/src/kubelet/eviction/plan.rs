//! Whether the node runs out of something, and which pod has to go. Pure.
//!
//! Thresholds, ranking and texts are upstream's (`pkg/kubelet/eviction`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::kubelet::usage::Level;

/// What can run out. The order is the one in which it is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// Files can be removed against it.
    pub fn is_disk(self) -> bool {
        self.condition() == Pressure::Disk
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The node's condition.
    pub fn condition(self) -> Pressure {
        match self {
            Self::MemoryAvailable => Pressure::Memory,
            Self::NodefsAvailable
            | Self::NodefsInodesFree
            | Self::ImagefsAvailable
            | Self::ImagefsInodesFree => Pressure::Disk,
            Self::PidAvailable => Pressure::Pid,
        }
    }

    /// What a pod is said to have used too much of.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    Absolute(u64),
    Percent(f64),
}

impl Amount {
    fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub below: Amount,
    /// `None`: hard. Else how long it must hold before a pod has to go.
    pub grace: Option<Duration>,
}

/// Reads `memory.available<100Mi,nodefs.available<10%`.
///
/// # Errors
/// Says which part is no threshold.
pub fn parse(text: &str) -> Result<Vec<Threshold>, String> {
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts
        .map(|part| {
            let bad = || format!("{part:?} is no eviction threshold");
            let (name, amount) = part.split_once('<').ok_or_else(bad)?;
            let signal = Signal::ALL.into_iter().find(|s| s.name() == name.trim());
            let below = match amount.strip_suffix('%') {
                Some(percent) => {
                    let percent: f64 = percent.parse().map_err(|_| bad())?;
                    if !(0.0..=100.0).contains(&percent) {
                        return Err(bad());
                    }
                    Amount::Percent(percent)
                }
                None => {
                    let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                        amount.trim().to_owned(),
                    );
                    let nanos = crate::kubelet::resources::nanos(&quantity);
                    let whole = nanos.filter(|n| *n >= 0).ok_or_else(bad)? / 1_000_000_000;
                    Amount::Absolute(u64::try_from(whole).map_err(|_| bad())?)
                }
            };
            Ok(Threshold {
                signal: signal.ok_or_else(bad)?,
                below,
                grace: None,
            })
        })
        .collect()
}

/// Upstream's defaults.
pub const DEFAULT: &str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,\
                           imagefs.available<15%,imagefs.inodesFree<5%";

/// How long a condition stays after its cause has gone: upstream's `evictionPressureTransitionPeriod`.
pub const TRANSITION: SignedDuration = SignedDuration::from_secs(300);

pub type Levels = BTreeMap<Signal, Level>;

/// What has been seen so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Since when each threshold, by its place, has been crossed.
    crossed: BTreeMap<usize, Timestamp>,
    last: BTreeMap<Pressure, Timestamp>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    pub signal: Signal,
    pub threshold: u64,
    pub available: u64,
    pub hard: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// What the node's conditions say.
    pub pressure: BTreeSet<Pressure>,
    /// What something must be done about, the most urgent first.
    pub shortages: Vec<Shortage>,
}

pub fn judge(
    history: &mut History,
    thresholds: &[Threshold],
    levels: &Levels,
    now: Timestamp,
) -> Verdict {
    let mut shortages = Vec::new();
    for (at, threshold) in thresholds.iter().enumerate() {
        let Some(level) = levels.get(&threshold.signal).filter(|l| l.capacity > 0) else {
            continue;
        };
        let limit = threshold.below.of(level.capacity);
        if level.available >= limit {
            history.crossed.remove(&at);
            continue;
        }
        let since = *history.crossed.entry(at).or_insert(now);
        history.last.insert(threshold.signal.condition(), now);
        let grace = threshold.grace.unwrap_or_default();
        let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        if now.duration_since(since) >= grace {
            shortages.push(Shortage {
                signal: threshold.signal,
                threshold: limit,
                available: level.available,
                hard: threshold.grace.is_none(),
            });
        }
    }
    shortages.sort_by_key(|s| (s.signal, !s.hard));
    // A clock that jumped back must not keep a condition for longer than its period.
    let recent = |at: &Timestamp| now.duration_since(*at).abs() < TRANSITION;
    let pressure = history.last.iter().filter(|(_, at)| recent(at));
    Verdict {
        pressure: pressure.map(|(kind, _)| *kind).collect(),
        shortages,
    }
}

/// A pod that could go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    /// Static, or of a system class: never evicted.
    pub critical: bool,
    pub containers: Vec<Share>,
}

/// What one container uses and asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    pub memory_request: u64,
    /// Bytes of disk.
    pub disk: u64,
    pub disk_request: u64,
    pub inodes: u64,
    pub pids: u64,
}

impl Candidate {
    fn sums(&self, signal: Signal) -> (u64, u64) {
        let each = self.containers.iter().map(|c| c.amounts(signal));
        each.fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1))
    }
}

impl Share {
    /// What it uses, and what it asked for.
    fn amounts(&self, signal: Signal) -> (u64, u64) {
        match signal {
            Signal::MemoryAvailable => (self.memory, self.memory_request),
            Signal::NodefsAvailable | Signal::ImagefsAvailable => (self.disk, self.disk_request),
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => (self.inodes, 0),
            Signal::PidAvailable => (self.pids, 0),
        }
    }
}

/// The pod that has to go first: one that uses more than it asked for, then of the lowest priority, then with the most
/// above its request.
pub fn victim(signal: Signal, candidates: &[Candidate]) -> Option<&Candidate> {
    let key = |c: &&Candidate| {
        let (used, requested) = c.sums(signal);
        let exceeds = used > requested && signal != Signal::PidAvailable;
        let above = i128::from(used) - i128::from(requested);
        (Reverse(exceeds), c.priority, Reverse(above), c.uid.clone())
    };
    candidates.iter().filter(|c| !c.critical).min_by_key(key)
}

/// What users read.
pub fn message(shortage: &Shortage, victim: &Candidate) -> String {
    let signal = shortage.signal;
    let resource = signal.resource();
    let known = matches!(
        signal,
        Signal::MemoryAvailable | Signal::NodefsAvailable | Signal::ImagefsAvailable
    );
    let shown = |amount: u64| match known {
        true => bytes(amount),
        false => amount.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        shown(shortage.threshold),
        shown(shortage.available),
    );
    for container in &victim.containers {
        let (used, requested) = container.amounts(signal);
        if known && used > requested {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                shown(used),
                shown(requested),
            ));
        }
    }
    text
}

/// As a quantity in the largest binary unit that divides it.
pub fn bytes(amount: u64) -> String {
    let units = [("Gi", 1u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let fits = units
        .iter()
        .find(|(_, unit)| amount >= *unit && amount.is_multiple_of(*unit));
    match fits {
        Some((name, unit)) => format!("{}{name}", amount / unit),
        // Upstream shows usage in Ki, as the kernel counts it.
        None if amount >= 1 << 10 => format!("{}Ki", amount >> 10),
        None => amount.to_string(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
