//! How good a node is for a pod, among those that fit. Each rule gives 0 to 100; the weights are upstream's.

use std::collections::{HashMap, HashSet};

use crate::{cluster::Cluster, filter, node::NodeInfo, pod::PodInfo, terms};

const MAX: i64 = 100;
const ZONE: &str = "topology.kubernetes.io/zone";
const MB: i64 = 1024 * 1024;
/// Images below the first add nothing; above the second (per container) add no more.
const IMAGE_FLOOR_BYTES: i64 = 23 * MB;
const IMAGE_CEILING_BYTES: i64 = 1000 * MB;

/// One score per candidate, in their order.
pub fn score(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Vec<i64> {
    let mut totals: Vec<i64> = candidates
        .iter()
        .map(|node| least_allocated(node, pod) + balanced(node, pod))
        .collect();
    add(&mut totals, 1, images(cluster, pod, candidates));
    add(&mut totals, 3, tainted(pod, candidates));
    add(&mut totals, 2, preferred_nodes(pod, candidates));
    add(&mut totals, 2, preferred_pods(cluster, pod, candidates));
    add(&mut totals, 2, spread(cluster, pod, candidates));
    totals
}

fn add(totals: &mut [i64], weight: i64, scores: Option<Vec<i64>>) {
    for (total, score) in totals.iter_mut().zip(scores.into_iter().flatten()) {
        *total += weight * score;
    }
}

/// Scales so that the best gets 100. `None` if all are equal at zero.
fn normalized(mut scores: Vec<i64>, lower_is_better: bool) -> Option<Vec<i64>> {
    let best = scores.iter().copied().max().unwrap_or_default();
    if best == 0 {
        return None;
    }
    for score in &mut scores {
        *score = *score * MAX / best;
        if lower_is_better {
            *score = MAX - *score;
        }
    }
    Some(scores)
}

fn least_allocated(node: &NodeInfo, pod: &PodInfo) -> i64 {
    let free = |used: i64, allocatable: i64| {
        if allocatable <= 0 || used > allocatable {
            0
        } else {
            (allocatable - used) * MAX / allocatable
        }
    };
    let cpu = free(
        node.scored_cpu_millicores + pod.scored_cpu_millicores,
        node.allocatable.cpu_millicores,
    );
    // In kilobytes, so that the product stays within 64 bits.
    let memory = free(
        (node.scored_memory_bytes + pod.scored_memory_bytes) / 1024,
        node.allocatable.memory_bytes / 1024,
    );
    (cpu + memory) / 2
}

/// High when cpu and memory would be used to a similar fraction.
fn balanced(node: &NodeInfo, pod: &PodInfo) -> i64 {
    let fraction = |used: i64, allocatable: i64| {
        if allocatable <= 0 {
            1.0
        } else {
            (used as f64 / allocatable as f64).min(1.0)
        }
    };
    let cpu = fraction(
        node.used.cpu_millicores + pod.requests.cpu_millicores,
        node.allocatable.cpu_millicores,
    );
    let memory = fraction(
        node.used.memory_bytes + pod.requests.memory_bytes,
        node.allocatable.memory_bytes,
    );
    let deviation = (cpu - memory).abs() / 2.0;
    ((1.0 - deviation) * MAX as f64) as i64
}

fn images(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    if pod.images.is_empty() || cluster.image_nodes.is_empty() {
        return None;
    }
    let total = i64::try_from(cluster.nodes().len().max(1)).unwrap_or(i64::MAX);
    let ceiling = IMAGE_CEILING_BYTES * i64::try_from(pod.images.len()).unwrap_or(1);
    // An image that few nodes have counts less, or every pod of a rollout would land on the first node that pulled it.
    let weights: Vec<(&String, i64)> = pod
        .images
        .iter()
        .filter_map(|image| cluster.image_nodes.get(image).map(|count| (image, *count)))
        .collect();
    let scores = candidates.iter().map(|node| {
        let present: i64 = weights
            .iter()
            .filter_map(|(image, count)| node.images.get(*image).map(|size| size / total * count))
            .sum();
        (present.clamp(IMAGE_FLOOR_BYTES, ceiling) - IMAGE_FLOOR_BYTES) * MAX
            / (ceiling - IMAGE_FLOOR_BYTES)
    });
    Some(scores.collect())
}

/// PreferNoSchedule taints that the pod does not tolerate.
fn tainted(pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let count = |node: &&NodeInfo| {
        let unwelcome = node.taints.iter().filter(|taint| {
            taint.effect == "PreferNoSchedule"
                && !pod
                    .tolerations
                    .iter()
                    .any(|toleration| terms::tolerates(toleration, taint))
        });
        i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
    };
    normalized(candidates.iter().map(count).collect(), true)
}

fn preferred_nodes(pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    if pod.preferred_nodes.is_empty() {
        return None;
    }
    let sum = |node: &&NodeInfo| {
        let matching = pod
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&node.name, &node.labels));
        matching.map(|(weight, _)| weight).sum()
    };
    normalized(candidates.iter().map(sum).collect(), false)
}

/// Preferred affinity and anti-affinity, this pod's and that of the pods already running.
fn preferred_pods(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let own = !pod.pod_terms.preferred.is_empty();
    let mut worth: HashMap<(&str, &str), i64> = HashMap::new();
    for node in cluster.nodes() {
        if !own && node.affinity_count == 0 {
            continue;
        }
        for other in &node.pods {
            for (weight, term) in &pod.pod_terms.preferred {
                if let Some(value) = node.topology(&term.topology_key)
                    && term.matches(&other.key.namespace, other.labels(), &cluster.namespaces)
                {
                    *worth.entry((&term.topology_key, value)).or_default() += weight;
                }
            }
            let theirs = other
                .pod_terms
                .preferred
                .iter()
                .map(|(weight, term)| (*weight, term));
            // Upstream's hardPodAffinityWeight.
            let required = other.pod_terms.required.iter().map(|term| (1, term));
            for (weight, term) in theirs.chain(required) {
                if let Some(value) = node.topology(&term.topology_key)
                    && term.matches(&pod.key.namespace, pod.labels(), &cluster.namespaces)
                {
                    *worth.entry((&term.topology_key, value)).or_default() += weight;
                }
            }
        }
    }
    if worth.is_empty() {
        return None;
    }
    let mut scores: Vec<i64> = candidates
        .iter()
        .map(|node| {
            node.labels
                .iter()
                .filter_map(|(key, value)| worth.get(&(key.as_str(), value.as_str())))
                .sum()
        })
        .collect();
    let least = scores.iter().copied().min().unwrap_or_default();
    for score in &mut scores {
        *score -= least;
    }
    normalized(scores, false)
}

/// Soft topology spread constraints; without any, pods of one controller are spread over nodes and zones.
fn spread(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let soft: Vec<_> = pod.spreads.iter().filter(|spread| !spread.hard).collect();
    if soft.is_empty() {
        return if pod.spreads.is_empty() {
            spread_by_owner(cluster, pod, candidates)
        } else {
            None
        };
    }
    let nobody = HashSet::new();
    let mut crowding = vec![0f64; candidates.len()];
    let mut ignored = vec![false; candidates.len()];
    for spread in soft {
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for node in cluster.nodes() {
            let Some(value) = node.topology(&spread.topology_key) else {
                continue;
            };
            if filter::counts_for_spread(node, pod, spread) {
                *counts.entry(value).or_default() +=
                    filter::matching_pods(node, pod, spread, &nobody);
            }
        }
        let weight = (counts.len() as f64 + 2.0).ln();
        for ((node, crowding), ignored) in candidates.iter().zip(&mut crowding).zip(&mut ignored) {
            match node.topology(&spread.topology_key) {
                Some(value) => {
                    let count = counts.get(value.as_str()).copied().unwrap_or_default();
                    *crowding += count as f64 * weight + (spread.max_skew - 1) as f64;
                }
                None => *ignored = true,
            }
        }
    }
    Some(inverted(&crowding, &ignored))
}

fn spread_by_owner(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let owner = pod.owner.as_ref()?;
    let mut zones: HashMap<&str, i64> = HashMap::new();
    let mut any = false;
    for node in cluster.nodes() {
        if let Some(count) = node.owners.get(owner) {
            any = true;
            if let Some(zone) = node.topology(ZONE) {
                *zones.entry(zone).or_default() += count;
            }
        }
    }
    if !any {
        return None;
    }
    let crowding: Vec<f64> = candidates
        .iter()
        .map(|node| {
            let here = node.owners.get(owner).copied().unwrap_or_default() as f64;
            let zone = node
                .topology(ZONE)
                .and_then(|zone| zones.get(zone.as_str()))
                .copied()
                .unwrap_or_default();
            here * (candidates.len() as f64 + 2.0).ln()
                + zone as f64 * (zones.len() as f64 + 2.0).ln()
        })
        .collect();
    Some(inverted(&crowding, &vec![false; candidates.len()]))
}

/// 100 for the least crowded, less in proportion; 0 for ignored nodes.
fn inverted(crowding: &[f64], ignored: &[bool]) -> Vec<i64> {
    let counted = || {
        crowding
            .iter()
            .zip(ignored)
            .filter(|(_, ignored)| !**ignored)
            .map(|(value, _)| *value)
    };
    let most = counted().fold(0.0, f64::max);
    let least = counted().fold(f64::INFINITY, f64::min);
    crowding
        .iter()
        .zip(ignored)
        .map(|(value, ignored)| match (ignored, most > 0.0) {
            (true, _) => 0,
            (false, false) => MAX,
            (false, true) => (MAX as f64 * (most + least - value) / most) as i64,
        })
        .collect()
}
