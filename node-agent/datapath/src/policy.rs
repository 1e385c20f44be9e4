//! NetworkPolicy as the kernel has it: identities of addresses, rules of policy sets, and which set
//! applies to a local pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use skep_ebpf_common::Address;
use skep_ebpf_common::node::pod_flags;
use skep_ebpf_common::policy::{EGRESS, INGRESS, RULE_EXACT_BITS, RuleKey};

use crate::error::Error;
use crate::pods::{NodeTables, prefix_of};
use crate::table::{Prefix, Table};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Allows `identity` on the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// The policy set, not 0.
    pub policy: u32,
    pub direction: Direction,
    /// 0 = anybody.
    pub identity: u32,
    /// IANA number; 0 = any protocol (then every port).
    pub protocol: u8,
    /// First port and how many leading bits of it count: 16 = this port, 0 = every port.
    pub port: u16,
    pub port_bits: u8,
}

/// What applies to a local pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    pub policy: u32,
    pub ingress_isolated: bool,
    pub egress_isolated: bool,
}

/// Everything at once; what is not named is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    pub identities: BTreeMap<IpNet, u32>,
    pub rules: HashSet<Rule>,
    pub pods: HashMap<IpAddr, PodPolicy>,
}

pub(crate) struct PolicyTables {
    pub(crate) rules: Table<Prefix<RuleKey>, u32>,
    pub(crate) identities: Table<Prefix<Address>, u32>,
}

impl PolicyTables {
    /// Makes the kernel's state `wanted`: what allows more comes first, what allows less last, so
    /// that no moment refuses what both states allow. Then existing connections are judged anew.
    pub(crate) fn apply(&self, node: &NodeTables, wanted: &PolicyState) -> Result<bool, Error> {
        let mut changed = false;
        let wanted_identities: HashMap<(u32, Address), u32> = wanted
            .identities
            .iter()
            .map(|(net, identity)| {
                let prefix = prefix_of(net);
                ((prefix.bits, prefix.data), *identity)
            })
            .collect();
        let wanted_rules: HashSet<(u32, RuleKey)> = wanted.rules.iter().map(encode).collect();

        let present_rules: HashSet<(u32, RuleKey)> = self
            .rules
            .keys()?
            .into_iter()
            .map(|prefix| (prefix.bits, prefix.data))
            .collect();
        for (bits, data) in wanted_rules.difference(&present_rules) {
            self.rules.set(
                &Prefix {
                    bits: *bits,
                    data: *data,
                },
                &1,
            )?;
            changed = true;
        }
        for ((bits, data), identity) in &wanted_identities {
            let key = Prefix {
                bits: *bits,
                data: *data,
            };
            // A lookup in a trie finds the longest match, not this very prefix; write to be sure.
            if self.identities.get(&key)? != Some(*identity) {
                self.identities.set(&key, identity)?;
                changed = true;
            }
        }
        let present_identities = self.identities.keys()?;
        for key in &present_identities {
            if let Some(identity) = wanted_identities.get(&(key.bits, key.data)) {
                self.identities.set(key, identity)?;
            }
        }
        changed |= apply_pods(node, &wanted.pods)?;
        for key in present_identities {
            if !wanted_identities.contains_key(&(key.bits, key.data)) {
                self.identities.remove(&key)?;
                changed = true;
            }
        }
        for (bits, data) in present_rules.difference(&wanted_rules) {
            self.rules.remove(&Prefix {
                bits: *bits,
                data: *data,
            })?;
            changed = true;
        }
        if changed {
            node.update_config(|config| {
                config.policy_generation = config.policy_generation.wrapping_add(1);
            })?;
        }
        Ok(changed)
    }
}

fn apply_pods(node: &NodeTables, wanted: &HashMap<IpAddr, PodPolicy>) -> Result<bool, Error> {
    const ISOLATED: u32 = pod_flags::INGRESS_ISOLATED | pod_flags::EGRESS_ISOLATED;
    let mut changed = false;
    for ip in node.pod_ips()? {
        let policy = wanted.get(&ip).copied().unwrap_or_default();
        let mut flags = 0;
        if policy.ingress_isolated {
            flags |= pod_flags::INGRESS_ISOLATED;
        }
        if policy.egress_isolated {
            flags |= pod_flags::EGRESS_ISOLATED;
        }
        let address = Address::from(ip);
        let _writer = node.writer.lock();
        let Some(mut pod) = node.pods.get(&address)? else {
            continue;
        };
        if pod.flags & ISOLATED != flags || pod.policy != policy.policy {
            pod.flags = pod.flags & !ISOLATED | flags;
            pod.policy = policy.policy;
            node.pods.set(&address, &pod)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn encode(rule: &Rule) -> (u32, RuleKey) {
    let port_bits = u32::from(rule.port_bits.min(16));
    let mask = if port_bits == 0 {
        0
    } else {
        u16::MAX << (16 - port_bits)
    };
    let key = RuleKey {
        policy: rule.policy,
        identity: rule.identity,
        direction: match rule.direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        },
        protocol: rule.protocol,
        port: (rule.port & mask).to_be_bytes(),
    };
    (RULE_EXACT_BITS + port_bits, key)
}
