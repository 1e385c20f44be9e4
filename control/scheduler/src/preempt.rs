//! Whom to evict so that a pod of higher priority fits. Pure: the caller deletes the victims.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use skep_client::ObjectKey;

use crate::{
    cluster::Cluster,
    filter::{self, Reason},
    node::NodeInfo,
    pod::PodInfo,
};

/// At least this many candidate nodes are compared, and a tenth of all (upstream's DefaultPreemption arguments).
const MIN_CANDIDATES: usize = 100;

#[derive(Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// # Errors
/// Why preemption does not help, as the second half of the pod's message.
pub fn preempt(
    cluster: &Cluster,
    pod: &PodInfo,
    failures: &BTreeMap<String, Vec<Reason>>,
) -> Result<Preemption, String> {
    if pod.never_preempts {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    // Victims of the last round are still on their way out: wait for them.
    if let Some(node) = cluster
        .nomination(&pod.uid)
        .and_then(|name| cluster.node(name))
    {
        let leaving = node
            .pods
            .iter()
            .any(|other| other.terminating && other.priority < pod.priority);
        if leaving {
            return Err("not eligible due to a terminating pod on the nominated node.".into());
        }
    }
    let total = cluster.existing_count();
    let limit = MIN_CANDIDATES.max(total / 10);
    let mut candidates = Vec::new();
    let mut no_victims = 0usize;
    let mut unhelpful = 0usize;
    for node in cluster.nodes().iter().filter(|node| node.exists) {
        let reasons = failures.get(&node.name);
        if !reasons.is_some_and(|reasons| reasons.iter().all(Reason::is_resolvable)) {
            unhelpful += 1;
        } else if candidates.len() < limit {
            match victims(cluster, pod, node) {
                Some(candidate) => candidates.push(candidate),
                None => no_victims += 1,
            }
        }
    }
    let best = candidates.into_iter().min_by_key(|candidate| {
        let highest = candidate
            .victims
            .iter()
            .map(|victim| victim.priority)
            .max()
            .unwrap_or(i32::MIN);
        let sum: i64 = candidate
            .victims
            .iter()
            .map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1)
            .sum();
        let earliest = candidate
            .victims
            .iter()
            .filter(|victim| victim.priority == highest)
            .map(|victim| victim.started.unwrap_or(Timestamp::MAX))
            .min();
        (
            candidate.violations,
            highest,
            sum,
            candidate.victims.len(),
            Reverse(earliest),
        )
    });
    if let Some(best) = best {
        return Ok(Preemption {
            node: best.node,
            victims: best.victims,
        });
    }
    let mut message = format!("0/{total} nodes are available:");
    let mut parts = Vec::new();
    if no_victims > 0 {
        parts.push(format!(
            "{no_victims} No preemption victims found for incoming pod"
        ));
    }
    if unhelpful > 0 {
        parts.push(format!(
            "{unhelpful} Preemption is not helpful for scheduling"
        ));
    }
    parts.sort();
    // Writing into a String cannot fail.
    let _ = write!(message, " {}.", parts.join(", "));
    Err(message)
}

struct Candidate {
    node: String,
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// The fewest pods of lower priority that must go for the pod to fit. `None`: it does not fit even without all of them,
/// or without removing any (something else is wrong).
fn victims(cluster: &Cluster, pod: &PodInfo, node: &NodeInfo) -> Option<Candidate> {
    let mut lower: Vec<Arc<PodInfo>> = node
        .pods
        .iter()
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    let order = lower.clone();
    let mut gone: HashSet<&str> = order.iter().map(|other| other.uid.as_str()).collect();
    let fits = |gone: &HashSet<&str>, lower: &[Arc<PodInfo>]| {
        let Ok(prepared) = filter::prepare(cluster, pod, gone) else {
            return false;
        };
        let removed: Vec<_> = lower
            .iter()
            .filter(|other| gone.contains(other.uid.as_str()))
            .cloned()
            .collect();
        filter::check(
            cluster,
            &prepared,
            &filter::without_pods(node, &removed),
            pod,
        )
        .is_empty()
    };
    if !fits(&gone, &order) {
        return None;
    }
    let violating = violating(cluster, &order);
    // Spare the ones that a budget protects first, then the most important, then the oldest.
    lower.sort_by_key(|other| {
        (
            !violating.contains(other.uid.as_str()),
            Reverse(other.priority),
            other.started.unwrap_or(Timestamp::MAX),
        )
    });
    for other in &lower {
        let Some(spared) = gone.take(other.uid.as_str()) else {
            continue;
        };
        if !fits(&gone, &order) {
            gone.insert(spared);
        }
    }
    let victims: Vec<_> = lower
        .iter()
        .filter(|other| gone.contains(other.uid.as_str()))
        .cloned()
        .collect();
    let violations = victims
        .iter()
        .filter(|victim| violating.contains(victim.uid.as_str()))
        .count();
    (!victims.is_empty()).then(|| Candidate {
        node: node.name.clone(),
        victims,
        violations,
    })
}

/// Pods whose eviction a PodDisruptionBudget does not allow.
fn violating<'a>(cluster: &Cluster, pods: &'a [Arc<PodInfo>]) -> HashSet<&'a str> {
    let mut left: BTreeMap<&ObjectKey, i32> = BTreeMap::new();
    let mut violating = HashSet::new();
    for pod in pods {
        for (key, budget) in &cluster.budgets {
            if key.namespace != pod.key.namespace {
                continue;
            }
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
            let Some(selector) = selector.and_then(|selector| Selector::try_from(selector).ok())
            else {
                continue;
            };
            let status = budget.status.as_ref();
            let evicted_already = status
                .and_then(|status| status.disrupted_pods.as_ref())
                .is_some_and(|pods| pods.contains_key(&pod.key.name));
            if pod.labels().is_empty() || !selector.matches(pod.labels()) || evicted_already {
                continue;
            }
            let allowed = left.entry(key).or_insert_with(|| {
                status
                    .and_then(|status| status.disruptions_allowed)
                    .unwrap_or_default()
            });
            *allowed -= 1;
            if *allowed < 0 {
                violating.insert(pod.uid.as_str());
            }
        }
    }
    violating
}
