//! One decision: where a pod goes, or why it goes nowhere.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    cluster::Cluster,
    filter::{self, Reason, Wakes},
    node::NodeInfo,
    pod::PodInfo,
    preempt::{self, Preemption},
    score,
    volumes::{self, Binding},
};

/// Below this many nodes all are searched; above, enough fitting ones are good enough (upstream's adaptive percentage).
const SEARCH_ALL_BELOW: usize = 100;

#[derive(Debug)]
pub enum Decision {
    Bind {
        node: String,
        bindings: Vec<Binding>,
    },
    Unschedulable {
        message: String,
        wakes: Wakes,
        preemption: Option<Preemption>,
    },
}

/// `tie` picks among equally good nodes; any number will do.
///
/// Moves `cluster.next_start` on; everything else stays as it is: the caller assumes the pod.
pub fn decide(cluster: &mut Cluster, pod: &Arc<PodInfo>, tie: u64) -> Decision {
    let total = cluster.existing_count();
    if total == 0 {
        return Decision::Unschedulable {
            message: "no nodes available to schedule pods".into(),
            wakes: Wakes::NODE,
            preemption: None,
        };
    }
    let prepared = match filter::prepare(cluster, pod, &HashSet::new()) {
        Ok(prepared) => prepared,
        Err(reason) => {
            return Decision::Unschedulable {
                message: format!(
                    "0/{total} nodes are available: {reason}. preemption: 0/{total} nodes are available: {total} \
                     Preemption is not helpful for scheduling."
                ),
                wakes: reason.wakes(),
                preemption: None,
            };
        }
    };
    let enough = enough(total);
    let mut failures: BTreeMap<String, Vec<Reason>> = BTreeMap::new();
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    let nodes = cluster.nodes();
    let mut visited = 0;
    // A node that preemption made room on goes first: others would make the eviction pointless.
    let nominated = cluster
        .nomination(&pod.uid)
        .and_then(|name| cluster.node(name))
        .filter(|node| node.exists);
    if let Some(node) = nominated
        && filter::check(cluster, &prepared, node, pod).is_empty()
    {
        fitting.push(node);
    } else {
        for offset in 0..nodes.len() {
            let node = &nodes[(cluster.next_start + offset) % nodes.len()];
            visited = offset + 1;
            if !node.exists {
                continue;
            }
            let reasons = filter::check(cluster, &prepared, node, pod);
            if reasons.is_empty() {
                fitting.push(node);
                if fitting.len() >= enough {
                    break;
                }
            } else {
                failures.insert(node.name.clone(), reasons);
            }
        }
    }
    let chosen = match fitting.as_slice() {
        [] => None,
        [only] => Some(*only),
        _ => {
            let scores = score::score(cluster, pod, &fitting);
            let best = scores.iter().copied().max().unwrap_or_default();
            let mut equals: Vec<&NodeInfo> = Vec::new();
            equals.extend(
                fitting
                    .iter()
                    .zip(&scores)
                    .filter(|(_, score)| **score == best)
                    .map(|(node, _)| *node),
            );
            let pick = usize::try_from(tie % equals.len().max(1) as u64).unwrap_or_default();
            equals.get(pick).copied()
        }
    };
    if let Some(node) = chosen {
        let bindings = if pod.claims.is_empty() {
            Vec::new()
        } else {
            volumes::bindings(&cluster.volumes, pod, &node.name, &node.labels)
        };
        let node = node.name.clone();
        let count = nodes.len();
        cluster.next_start = (cluster.next_start + visited) % count;
        return Decision::Bind { node, bindings };
    }
    let wakes = failures
        .values()
        .flatten()
        .fold(Wakes::default(), |wakes, reason| wakes.with(reason.wakes()));
    let mut message = summary(total, &failures);
    let preemption = match preempt::preempt(cluster, pod, &failures) {
        Ok(preemption) => Some(preemption),
        Err(why) => {
            message.push_str(" preemption: ");
            message.push_str(&why);
            None
        }
    };
    Decision::Unschedulable {
        message,
        wakes,
        preemption,
    }
}

/// How many fitting nodes end the search.
fn enough(total: usize) -> usize {
    if total < SEARCH_ALL_BELOW {
        return total;
    }
    let percentage = (50usize.saturating_sub(total / 125)).max(5);
    (total * percentage / 100).max(SEARCH_ALL_BELOW)
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
fn summary(total: usize, failures: &BTreeMap<String, Vec<Reason>>) -> String {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for reason in failures.values().flatten() {
        *counts.entry(reason.to_string()).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}
