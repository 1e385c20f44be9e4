//! Tables about the node: pods, its addresses, networks, the configuration.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use parking_lot::Mutex;
use skep_ebpf_common::Address;
use skep_ebpf_common::node::{Config, Network, Pod, PodAddresses, network_flags, pod_flags};

use crate::error::Error;
use crate::table::{Prefix, Table};

/// How a local pod is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The host end of the veth pair.
    pub ifindex: u32,
    /// The pod's end.
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// XDP may redirect frames into it (see [`crate::Offload::Gro`]).
    pub takes_frames: bool,
}

pub(crate) struct NodeTables {
    pub(crate) config: Table<u32, Config>,
    pub(crate) pods: Table<Address, Pod>,
    pub(crate) addresses: Table<Address, u32>,
    pub(crate) announced: Table<Address, u32>,
    pub(crate) networks: Table<Prefix<Address>, Network>,
    pub(crate) netns: Table<u64, PodAddresses>,
    /// Serialises read-modify-write of `config` and of pods.
    pub(crate) writer: Mutex<()>,
}

impl NodeTables {
    pub(crate) fn update_config(&self, change: impl FnOnce(&mut Config)) -> Result<(), Error> {
        let _writer = self.writer.lock();
        let mut config = self.config.get(&0)?.unwrap_or_default();
        change(&mut config);
        self.config.set(&0, &config)
    }

    pub(crate) fn add_pod(&self, ips: &[IpAddr], link: &PodLink) -> Result<(), Error> {
        ips.iter().try_for_each(|ip| self.add_address(*ip, link))?;
        let of = |v4: bool| {
            ips.iter()
                .find(|ip| ip.is_ipv4() == v4)
                .map_or(Address::ANY, |ip| Address::from(*ip))
        };
        let addresses = PodAddresses {
            v4: of(true),
            v6: of(false),
        };
        self.netns.set(&link.netns_cookie, &addresses)
    }

    /// Takes over what agents wrote that knew one address of a pod.
    pub(crate) fn migrate_netns(&self, former: &Table<u64, Address>) -> Result<(), Error> {
        let mut found = Vec::new();
        former.for_each(|cookie, address| found.push((*cookie, *address)))?;
        for (cookie, address) in found {
            let mut addresses = PodAddresses {
                v4: Address::ANY,
                v6: Address::ANY,
            };
            if address.is_v4() {
                addresses.v4 = address;
            } else {
                addresses.v6 = address;
            }
            self.netns.set(&cookie, &addresses)?;
        }
        Ok(())
    }

    fn add_address(&self, ip: IpAddr, link: &PodLink) -> Result<(), Error> {
        let address = Address::from(ip);
        let _writer = self.writer.lock();
        // Flags that programs or policy set stay over an agent's restart.
        let before = self
            .pods
            .get(&address)?
            .filter(|pod| pod.ifindex == link.ifindex);
        let mut pod = Pod {
            ifindex: link.ifindex,
            mac: link.mac,
            host_mac: link.host_mac,
            ..before.unwrap_or_default()
        };
        if link.takes_frames {
            pod.flags |= pod_flags::TAKES_FRAMES;
        }
        self.pods.set(&address, &pod)
    }

    pub(crate) fn remove_pod(&self, ip: IpAddr) -> Result<(), Error> {
        let address = Address::from(ip);
        let _writer = self.writer.lock();
        self.pods.remove(&address)?;
        let mut cookies = Vec::new();
        self.netns.for_each(|cookie, pod| {
            if pod.v4 == address || pod.v6 == address {
                cookies.push(*cookie);
            }
        })?;
        cookies
            .iter()
            .try_for_each(|cookie| self.netns.remove(cookie))
    }

    pub(crate) fn pod_ips(&self) -> Result<Vec<IpAddr>, Error> {
        let mut ips = Vec::new();
        self.pods.for_each(|address, _| ips.push(address.to_ip()))?;
        Ok(ips)
    }

    pub(crate) fn set_addresses(&self, ips: &[IpAddr]) -> Result<(), Error> {
        let wanted: HashSet<Address> = ips.iter().copied().map(Address::from).collect();
        for address in &wanted {
            self.addresses.set(address, &1)?;
        }
        for address in self.addresses.keys()? {
            if !wanted.contains(&address) {
                self.addresses.remove(&address)?;
            }
        }
        Ok(())
    }

    pub(crate) fn add_addresses(&self, ips: &[IpAddr]) -> Result<(), Error> {
        ips.iter()
            .try_for_each(|ip| self.addresses.set(&Address::from(*ip), &1))
    }

    /// Returns the addresses that were not announced before.
    pub(crate) fn set_announced(&self, ips: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let known: HashSet<Address> = self.announced.keys()?.into_iter().collect();
        let mut added = Vec::new();
        for ip in ips {
            let address = Address::from(*ip);
            if !known.contains(&address) {
                self.announced.set(&address, &1)?;
                added.push(*ip);
            }
        }
        for address in known {
            if !ips.contains(&address.to_ip()) {
                self.announced.remove(&address)?;
            }
        }
        Ok(added)
    }

    /// Which networks are the cluster's own (pods and nodes: never masqueraded) and which belong
    /// to Services.
    pub(crate) fn set_networks(
        &self,
        cluster: &[IpNet],
        services: &[IpNet],
        tunnelled: &[(IpNet, IpAddr)],
    ) -> Result<(), Error> {
        let mut wanted: HashMap<(u32, Address), Network> = HashMap::new();
        let flagged = [
            (cluster, network_flags::CLUSTER),
            (services, network_flags::SERVICE),
        ];
        for (nets, flag) in flagged {
            for net in nets {
                let prefix = prefix_of(net);
                wanted.entry((prefix.bits, prefix.data)).or_default().flags |= flag;
            }
        }
        for (net, node) in tunnelled {
            let prefix = prefix_of(net);
            let network = wanted.entry((prefix.bits, prefix.data)).or_default();
            network.flags |= network_flags::CLUSTER;
            network.tunnel = Address::from(*node);
        }
        let without = v4_without(
            cluster
                .iter()
                .chain(services)
                .chain(tunnelled.iter().map(|(net, _)| net)),
        );
        // A program that still asks for what is gone loses nothing, one that does not ask for what is new does.
        self.update_config(|config| config.v4_without_network &= without)?;
        for ((bits, data), network) in &wanted {
            self.networks.set(
                &Prefix {
                    bits: *bits,
                    data: *data,
                },
                network,
            )?;
        }
        for prefix in self.networks.keys()? {
            if !wanted.contains_key(&(prefix.bits, prefix.data)) {
                self.networks.remove(&prefix)?;
            }
        }
        self.update_config(|config| config.v4_without_network = without)
    }
}

/// See [`Config::v4_without_network`].
fn v4_without<'a>(nets: impl Iterator<Item = &'a IpNet>) -> u32 {
    let mut without = u32::MAX;
    for net in nets {
        if let IpNet::V4(net) = net {
            let [first, ..] = net.network().octets();
            let [last, ..] = net.broadcast().octets();
            for byte in first..=last {
                without &= !(1 << (byte & 31));
            }
        }
    }
    without
}

pub(crate) fn prefix_of(net: &IpNet) -> Prefix<Address> {
    let net = net.trunc();
    let family_bits = if net.addr().is_ipv4() { 96 } else { 0 };
    Prefix {
        bits: family_bits + u32::from(net.prefix_len()),
        data: Address::from(net.addr()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_network_holds_is_not_looked_up() {
        let check = |nets: &[&str], within: &[u8], without: &[u8]| {
            let nets: Vec<IpNet> = nets
                .iter()
                .map(|net| net.parse().expect("a literal"))
                .collect();
            let config = Config {
                v4_without_network: v4_without(nets.iter()),
                ..Config::default()
            };
            let may_have = |byte: u8| config.may_have_network(u32::from_ne_bytes([byte, 1, 2, 3]));
            for byte in within {
                assert!(may_have(*byte), "{nets:?} {byte}");
            }
            for byte in without {
                assert!(!may_have(*byte), "{nets:?} {byte}");
            }
        };
        check(&[], &[], &[0, 10, 255]);
        check(&["fd00::/8"], &[], &[0, 10, 255]);
        check(
            &["10.244.0.0/16", "192.0.2.10/32"],
            &[10, 192, 42, 0],
            &[11, 198, 172],
        );
        check(&["12.0.0.0/6"], &[12, 13, 14, 15], &[11, 16]);
        check(&["0.0.0.0/0"], &[0, 10, 255], &[]);
        // An agent that knows nothing of it.
        assert!(Config::default().may_have_network(u32::from_ne_bytes([198, 1, 2, 3])));
    }
}
