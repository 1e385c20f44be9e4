//! Gives every node its share of the pod range: `spec.podCIDR`.
//!
//! Watches: Node. Writes: Node spec. One worker, so that two nodes never get the same share; what was written and is not
//! yet in the cache is remembered.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};

use crate::context::{Context, Doing, Error};

pub async fn run(context: Arc<Context>) {
    if context.config.cluster_cidrs.is_empty() {
        return;
    }
    let controller = Arc::new(Controller {
        nodes: context.informers.of(),
        given: Mutex::default(),
        events: context.events.from("cidrAllocator"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.nodes);
    work.run("node-ipam", 1, controller, |controller, key| async move {
        controller.reconcile(key).await
    })
    .await;
}

struct Controller {
    nodes: Informer<Node>,
    /// Shares written and perhaps not in the cache yet, by node.
    given: Mutex<HashMap<String, Vec<IpNet>>>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(node) = self.nodes.get(&key) else {
            self.given.lock().remove(&key.name);
            return Ok(Action::done());
        };
        if !shares(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let mut used: HashSet<IpNet> = self
            .nodes
            .all()
            .iter()
            .flat_map(|node| shares(node))
            .collect();
        let mut chosen = Vec::new();
        {
            let mut given = self.given.lock();
            if let Some(before) = given.get(&key.name) {
                chosen.clone_from(before);
            } else {
                used.extend(given.values().flatten().copied());
                for range in &self.context.config.cluster_cidrs {
                    let prefix = match range {
                        IpNet::V4(_) => self.context.config.node_prefix_v4,
                        IpNet::V6(_) => self.context.config.node_prefix_v6,
                    };
                    match allocate(*range, prefix, &used) {
                        Some(share) => chosen.push(share),
                        None => {
                            self.events.warning(
                                node.as_ref(),
                                "CIDRNotAvailable",
                                format!("Node {} status is now: CIDRNotAvailable", key.name),
                            );
                            return Err(Error::Invalid(format!(
                                "the pod range {range} has no /{prefix} left"
                            )));
                        }
                    }
                }
                given.insert(key.name.clone(), chosen.clone());
            }
        }
        let texts: Vec<String> = chosen.iter().map(IpNet::to_string).collect();
        let patch = json!({ "metadata": { "uid": node.metadata.uid },
            "spec": { "podCIDR": texts.first(), "podCIDRs": texts } });
        let api = self.context.cluster_api::<Node>();
        match api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => {
                tracing::info!(kind = "Node", name = %key.name, cidr = %texts.join(","), "pod range assigned");
                Ok(Action::done())
            }
            Err(error) => {
                self.given.lock().remove(&key.name);
                if writes::is_not_found(&error) {
                    Ok(Action::done())
                } else {
                    Err(error).doing("assign a pod range")
                }
            }
        }
    }
}

fn shares(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec
        .pod_cidrs
        .iter()
        .flatten()
        .chain(spec.pod_cidr.as_ref());
    all.filter_map(|text| text.parse().ok()).collect()
}

/// The first share of `range` that overlaps no used one.
fn allocate(range: IpNet, prefix: u8, used: &HashSet<IpNet>) -> Option<IpNet> {
    if prefix < range.prefix_len() || prefix > range.max_prefix_len() {
        return None;
    }
    // Far more than there can be nodes; keeps the search finite for IPv6.
    let count: u64 = 1u64.checked_shl(u32::from(prefix - range.prefix_len()).min(24))?;
    let step = u32::from(range.max_prefix_len() - prefix);
    let overlapping: Vec<&IpNet> = used
        .iter()
        .filter(|share| share.prefix_len() != prefix)
        .collect();
    (0..count)
        .map(|number| share(range, prefix, number, step))
        .find(|share| {
            !used.contains(share)
                && !overlapping
                    .iter()
                    .any(|other| other.contains(share) || share.contains(*other))
        })
}

fn share(range: IpNet, prefix: u8, number: u64, step: u32) -> IpNet {
    let address = match range.network() {
        IpAddr::V4(base) => {
            let offset =
                u32::try_from(number.checked_shl(step).unwrap_or_default()).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() | offset))
        }
        IpAddr::V6(base) => {
            let offset = u128::from(number).checked_shl(step).unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | offset))
        }
    };
    match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::new_assert(address, prefix)),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new_assert(address, prefix)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn first_free_share() {
        let range = net("10.244.0.0/16");
        assert_eq!(
            allocate(range, 24, &HashSet::new()),
            Some(net("10.244.0.0/24"))
        );
        let used = [net("10.244.0.0/24"), net("10.244.2.0/24")].into();
        assert_eq!(allocate(range, 24, &used), Some(net("10.244.1.0/24")));
        let large = [net("10.244.0.0/22")].into();
        assert_eq!(allocate(range, 24, &large), Some(net("10.244.4.0/24")));
        assert_eq!(
            allocate(net("10.0.0.0/24"), 24, &[net("10.0.0.0/24")].into()),
            None
        );
        assert_eq!(allocate(range, 8, &HashSet::new()), None);
        assert_eq!(
            allocate(net("fd00::/56"), 64, &[net("fd00::/64")].into()),
            Some(net("fd00:0:0:1::/64"))
        );
    }

    proptest! {
        #[test]
        fn never_hands_out_twice(releases in prop::collection::vec(any::<usize>(), 0..300)) {
            let range = net("10.244.0.0/20");
            let mut used: HashSet<IpNet> = HashSet::new();
            for release in releases {
                if release % 3 == 0 && !used.is_empty() {
                    let gone = *used.iter().nth(release % used.len()).expect("not empty");
                    used.remove(&gone);
                } else if let Some(share) = allocate(range, 24, &used) {
                    prop_assert!(range.contains(&share));
                    prop_assert!(used.insert(share));
                } else {
                    prop_assert_eq!(used.len(), 16);
                }
            }
        }
    }
}
