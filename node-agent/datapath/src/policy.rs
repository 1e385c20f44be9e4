//! NetworkPolicy as the kernel has it: identities of addresses, rules of policy sets, and which set
//! applies to a local pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net};
use skep_ebpf_common::Address;
use skep_ebpf_common::node::pod_flags;
use skep_ebpf_common::policy::{
    EGRESS, IDENTITY_WORLD, INGRESS, Identity, RULE_EXACT_BITS, RuleKey,
};

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
    pub(crate) identities: Table<Prefix<Address>, Identity>,
}

impl PolicyTables {
    /// Takes over what agents wrote that knew nothing of an identity's other addresses.
    pub(crate) fn migrate_identities(
        &self,
        former: &Table<Prefix<Address>, u32>,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        former.for_each(|prefix, identity| found.push((*prefix, *identity)))?;
        for (prefix, identity) in found {
            let identity = Identity {
                identity,
                shared_bits: 128,
            };
            self.identities.set(&prefix, &identity)?;
        }
        Ok(())
    }

    /// Makes the kernel's state `wanted`: what allows more comes first, what allows less last, so
    /// that no moment refuses what both states allow. Then existing connections are judged anew.
    pub(crate) fn apply(&self, node: &NodeTables, wanted: &PolicyState) -> Result<bool, Error> {
        let mut changed = false;
        let wanted_identities = identities(&wanted.identities);
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

/// As the kernel has them. Shorter prefixes come first: before there is a longer one, those around it no longer
/// speak for all of their addresses.
fn identities(wanted: &BTreeMap<IpNet, u32>) -> BTreeMap<(u32, Address), Identity> {
    let mut nets: BTreeMap<IpNet, u32> = wanted
        .iter()
        .map(|(net, identity)| (net.trunc(), *identity))
        .collect();
    // Addresses of IPv4 are some of IPv6 to the kernel, but in no network of IPv6.
    let all_of_v4 = IpNet::V4(Ipv4Net::default());
    let mapped = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    if nets.keys().any(|net| net.contains(&mapped)) {
        nets.entry(all_of_v4).or_insert(IDENTITY_WORLD);
    }
    let of = |(net, identity): (&IpNet, &u32)| {
        let prefix = prefix_of(net);
        // What is inside a network follows it at once.
        let mut after = nets.range((Bound::Excluded(*net), Bound::Unbounded));
        let is_shared = !after.next().is_some_and(|(next, _)| net.contains(next));
        let identity = Identity {
            identity: *identity,
            shared_bits: if is_shared { prefix.bits } else { 128 },
        };
        ((prefix.bits, prefix.data), identity)
    };
    nets.iter().map(of).collect()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<[u8; 4]>(), 0u8..=32);
        let v6 = (any::<[u8; 16]>(), 0u8..=128);
        // Few addresses, so that networks lie in one another.
        prop_oneof![
            4 => v4.prop_map(|(bytes, len)| {
                let ip = Ipv4Addr::from(bytes.map(|byte| byte & 0x81));
                IpNet::new(ip.into(), len).unwrap()
            }),
            1 => v6.prop_map(|(bytes, len)| {
                let ip = std::net::Ipv6Addr::from(bytes.map(|byte| byte & 0x80));
                IpNet::new(ip.into(), len).unwrap()
            }),
        ]
    }

    /// As the kernel's trie matches.
    fn longest(
        prefixes: &BTreeMap<(u32, Address), Identity>,
        address: &Address,
    ) -> Option<Identity> {
        let bits = |address: &Address| match address.to_ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let mut matching = prefixes.iter().rev().filter(|((len, data), _)| {
            let rest = 128 - *len;
            rest == 128 || bits(data) >> rest == bits(address) >> rest
        });
        matching.next().map(|(_, identity)| *identity)
    }

    proptest! {
        #[test]
        fn an_address_speaks_for_those_that_share_its_bits(
            nets in prop::collection::btree_map(net(), 256u32..260, 0..12),
            client in any::<[u8; 4]>(),
            other in any::<u32>(),
        ) {
            let prefixes = identities(&nets);
            let client = Ipv4Addr::from(client.map(|byte| byte & 0x81));
            let found = longest(&prefixes, &Address::from(IpAddr::V4(client)));
            let identity = found.unwrap_or(Identity::WORLD);
            let containing = nets.keys().filter(|net| net.contains(&IpAddr::V4(client)));
            let wanted = containing.max_by_key(|net| net.prefix_len());
            let of_client = |net: Option<&IpNet>| {
                let same = nets.iter().rfind(|(other, _)| Some(other.trunc()) == net.map(IpNet::trunc));
                same.map_or(IDENTITY_WORLD, |(_, identity)| *identity)
            };
            prop_assert_eq!(identity.identity, of_client(wanted));
            let mask = identity.mask_v4();
            let neighbour = Ipv4Addr::from(client.to_bits() & mask | other & !mask);
            let found = longest(&prefixes, &Address::from(IpAddr::V4(neighbour)));
            prop_assert_eq!(found.unwrap_or(Identity::WORLD).identity, identity.identity);
        }
    }
}
