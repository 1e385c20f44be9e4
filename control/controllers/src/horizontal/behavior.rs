//! How fast a proposal may be followed: stabilization windows, policies and bounds. Pure.
//!
//! The rules and texts are upstream's (`pkg/controller/podautoscaler/horizontal.go`).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Of an autoscaler that says nothing else: upstream's `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWNSCALE_STABILIZATION: SignedDuration = SignedDuration::from_secs(300);
/// The longest window and the longest period that the API allows.
const REMEMBERED: SignedDuration = SignedDuration::from_secs(3600);

/// What this autoscaler has thought and done lately.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    recommendations: Vec<(Timestamp, i32)>,
    /// How many were added or removed, and when.
    ups: Vec<(Timestamp, i32)>,
    downs: Vec<(Timestamp, i32)>,
}

impl Memory {
    /// The size that was found first counts as recommended: a new controller must not shrink at once.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        let fresh = |(at, _): &(Timestamp, i32)| *at > now - REMEMBERED;
        self.recommendations.retain(fresh);
        self.recommendations.push((now, replicas));
    }

    /// Remembers a change that was made.
    pub fn changed(&mut self, from: i32, to: i32, now: Timestamp) {
        let events = if to > from {
            &mut self.ups
        } else {
            &mut self.downs
        };
        events.retain(|(at, _)| *at > now - REMEMBERED);
        events.push((now, (to - from).abs()));
    }
}

fn since(events: &[(Timestamp, i32)], period: SignedDuration, now: Timestamp) -> i32 {
    let recent = events.iter().filter(|(at, _)| *at > now - period);
    recent.map(|(_, count)| count).sum()
}

/// A condition's status, reason and message.
pub type Verdict = (bool, &'static str, &'static str);

#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub replicas: i32,
    pub able_to_scale: Verdict,
    pub scaling_limited: Verdict,
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub min: i32,
    pub max: i32,
}

const READY: Verdict = (
    true,
    "ReadyForNewScale",
    "recommended size matches current size",
);
const LOWERED: Verdict = (
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const RAISED: Verdict = (
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_LIMIT: (&str, &str) = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: (&str, &str) = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: (&str, &str) = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: (&str, &str) = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const WITHIN: (&str, &str) = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);

/// The size to go to now, given the size that metrics ask for.
pub fn decide(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    memory: &mut Memory,
    bounds: Bounds,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> Decision {
    let (stabilized, able_to_scale) = match behavior {
        None => {
            let recent = memory.recommendations.iter();
            let recent = recent.filter(|(at, _)| *at > now - DOWNSCALE_STABILIZATION);
            let highest = recent.map(|(_, count)| *count).fold(desired, i32::max);
            let verdict = if highest == desired { READY } else { RAISED };
            (highest, verdict)
        }
        Some(behavior) => stabilize(behavior, memory, current, desired, now),
    };
    memory.recommend(desired, now);
    let (replicas, (reason, message)) = match behavior {
        None => limit(bounds, current, stabilized),
        Some(behavior) => limit_by_rules(behavior, memory, bounds, current, stabilized, now),
    };
    Decision {
        replicas,
        able_to_scale,
        scaling_limited: (replicas != stabilized, reason, message),
    }
}

fn window(rules: Option<&HPAScalingRules>, default: i32) -> SignedDuration {
    let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
    SignedDuration::from_secs(seconds.unwrap_or(default).into())
}

fn stabilize(
    behavior: &HorizontalPodAutoscalerBehavior,
    memory: &Memory,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, Verdict) {
    let up_since = now - window(behavior.scale_up.as_ref(), 0);
    let down_since = now - window(behavior.scale_down.as_ref(), 300);
    let (mut lowest, mut highest) = (desired, desired);
    for (at, count) in &memory.recommendations {
        if *at > up_since {
            lowest = lowest.min(*count);
        }
        if *at > down_since {
            highest = highest.max(*count);
        }
    }
    let stabilized = current.max(lowest).min(highest);
    let verdict = if stabilized == desired {
        READY
    } else if desired >= current {
        LOWERED
    } else {
        RAISED
    };
    (stabilized, verdict)
}

/// Without rules of its own, an autoscaler at most doubles.
fn limit(bounds: Bounds, current: i32, desired: i32) -> (i32, (&'static str, &'static str)) {
    let fastest = current.saturating_mul(2).max(4);
    let (max, why) = if bounds.max > fastest {
        (fastest, UP_LIMIT)
    } else {
        (bounds.max, TOO_MANY)
    };
    if desired < bounds.min {
        (bounds.min, TOO_FEW)
    } else if desired > max {
        (max, why)
    } else {
        (desired, WITHIN)
    }
}

fn limit_by_rules(
    behavior: &HorizontalPodAutoscalerBehavior,
    memory: &Memory,
    bounds: Bounds,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    if desired > current {
        let fastest = up_limit(behavior.scale_up.as_ref(), memory, current, now).max(current);
        let (max, why) = if bounds.max > fastest {
            (fastest, UP_LIMIT)
        } else {
            (bounds.max, TOO_MANY)
        };
        if desired > max {
            return (max, why);
        }
    } else if desired < current {
        let fastest = down_limit(behavior.scale_down.as_ref(), memory, current, now).min(current);
        let (min, why) = if bounds.min < fastest {
            (fastest, DOWN_LIMIT)
        } else {
            (bounds.min, TOO_FEW)
        };
        if desired < min {
            return (min, why);
        }
    }
    (desired, WITHIN)
}

/// The sizes that the policies lead to, from the size at the beginning of each one's period.
fn proposals(
    rules: &HPAScalingRules,
    memory: &Memory,
    current: i32,
    now: Timestamp,
    to: impl Fn(&str, i32, i32) -> f64,
) -> Vec<i32> {
    let policies = rules.policies.iter().flatten();
    policies
        .map(|policy| {
            let period = SignedDuration::from_secs(policy.period_seconds.into());
            let added = since(&memory.ups, period, now);
            let removed = since(&memory.downs, period, now);
            let start = current - added + removed;
            to(&policy.type_, start, policy.value) as i32
        })
        .collect()
}

fn up_limit(rules: Option<&HPAScalingRules>, memory: &Memory, current: i32, now: Timestamp) -> i32 {
    let Some(rules) = rules else { return i32::MAX };
    let all = proposals(rules, memory, current, now, |type_, start, value| {
        if type_ == "Pods" {
            f64::from(start) + f64::from(value)
        } else {
            (f64::from(start) * (1.0 + f64::from(value) / 100.0)).ceil()
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => all.into_iter().min().unwrap_or(i32::MAX),
        _ => all.into_iter().max().unwrap_or(i32::MIN),
    }
}

fn down_limit(
    rules: Option<&HPAScalingRules>,
    memory: &Memory,
    current: i32,
    now: Timestamp,
) -> i32 {
    let Some(rules) = rules else { return i32::MIN };
    let all = proposals(rules, memory, current, now, |type_, start, value| {
        if type_ == "Pods" {
            f64::from(start) - f64::from(value)
        } else {
            (f64::from(start) * (1.0 - f64::from(value) / 100.0)).trunc()
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        // The smallest change leaves the most.
        Some("Min") => all.into_iter().max().unwrap_or(i32::MIN),
        _ => all.into_iter().min().unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
#[path = "behavior_tests.rs"]
mod tests;
