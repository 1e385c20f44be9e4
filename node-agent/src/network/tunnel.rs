//! The way to nodes that share no link with this one: a VXLAN device (RFC 7348).
//!
//! Every node's device has a MAC that follows from the node's address, and the node's address is
//! the next hop inside the tunnel: routes, neighbours and forwarding entries are all known from the
//! Nodes of the API, and nothing is learned or asked for.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_datapath::layout::node::{TUNNEL_MAC_PREFIX, TUNNEL_PORT, TUNNEL_VNI, tunnel_mac};

use super::netlink::{Interface, Netlink, NetlinkError};

const DEVICE: &str = "skep-vxlan";

/// Bytes that the tunnel adds to a packet: outer IP, UDP, VXLAN and inner Ethernet headers.
pub(super) const fn overhead(node: IpAddr) -> u32 {
    let outer = if node.is_ipv4() { 20 } else { 40 };
    outer + 8 + 8 + 14
}

/// Whether a node's address can be read off its device's MAC.
pub(super) const fn keeps_client(node: IpAddr) -> bool {
    node.is_ipv4()
}

/// Another node as the tunnel sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    /// Where its packets are sent, outside the tunnel.
    pub(super) node: IpAddr,
    /// The next hops that stand for it inside the tunnel.
    pub(super) next_hops: Vec<IpAddr>,
}

/// The node's own address inside the tunnel: the second of its range, which no pod gets.
pub(super) fn own_address(range: &IpNet) -> Option<IpAddr> {
    match range {
        IpNet::V4(range) => u32::from(range.network())
            .checked_add(1)
            .map(|ip| IpAddr::V4(ip.into())),
        IpNet::V6(range) => u128::from(range.network())
            .checked_add(1)
            .map(|ip| IpAddr::V6(ip.into())),
    }
}

/// Makes the device, or adopts that of a predecessor.
pub(super) async fn ensure_device(
    netlink: &Netlink,
    local: IpAddr,
    mtu: u32,
) -> Result<Interface, NetlinkError> {
    let mac = mac_of(local);
    if let Some(existing) = netlink.interface(DEVICE).await? {
        if existing.mac == mac {
            netlink.set_mtu(existing.index, mtu).await?;
            netlink.set_up(existing.index).await?;
            return Ok(existing);
        }
        // Of another address of this node.
        netlink.remove(existing.index).await?;
    }
    netlink
        .add_vxlan(DEVICE, TUNNEL_VNI, local, TUNNEL_PORT)
        .await?;
    let device = netlink
        .interface(DEVICE)
        .await?
        .ok_or_else(|| NetlinkError::missing(DEVICE))?;
    netlink.set_mac(device.index, mac).await?;
    netlink.set_mtu(device.index, mtu).await?;
    netlink.set_up(device.index).await?;
    Ok(Interface { mac, mtu, ..device })
}

pub(super) async fn remove_device(netlink: &Netlink) -> Result<(), NetlinkError> {
    match netlink.interface(DEVICE).await? {
        Some(device) => netlink.remove(device.index).await,
        None => Ok(()),
    }
}

/// Makes the other nodes known to the device. Nodes that have gone are not forgotten: nothing is
/// routed to them.
pub(super) async fn set_peers(
    netlink: &Netlink,
    device: u32,
    peers: &[Peer],
) -> Result<(), NetlinkError> {
    for peer in peers {
        let mac = mac_of(peer.node);
        netlink.set_forwarding(device, mac, peer.node).await?;
        for next_hop in &peer.next_hops {
            netlink.set_neighbour(device, *next_hop, mac).await?;
        }
        // What IPv6 answers that go back to a client through this node are sent to.
        if let IpAddr::V4(ip) = peer.node
            && peer.next_hops.iter().any(IpAddr::is_ipv6)
        {
            let mapped = IpAddr::V6(ip.to_ipv6_mapped());
            netlink.set_neighbour(device, mapped, mac).await?;
        }
    }
    Ok(())
}

fn mac_of(node: IpAddr) -> [u8; 6] {
    match node {
        IpAddr::V4(ip) => tunnel_mac(ip.octets()),
        IpAddr::V6(ip) => {
            // FNV-1a: nodes of one cluster have to differ, no more.
            let hash = ip.octets().iter().fold(0x811c_9dc5u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
            let [a, b, c, d] = hash.to_be_bytes();
            let [first, second] = TUNNEL_MAC_PREFIX;
            [first, second ^ 0x80, a, b, c, d]
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sizes_follow_from_the_node() {
        let own = |range: &str| own_address(&range.parse().unwrap()).unwrap().to_string();
        assert_eq!(own("10.244.3.0/24"), "10.244.3.1");
        assert_eq!(own("fd00:1:2::/64"), "fd00:1:2::1");
        let v4: IpAddr = "10.89.0.7".parse().unwrap();
        assert_eq!(mac_of(v4), [0x0a, 0x5c, 10, 89, 0, 7]);
        let v6 = |text: &str| mac_of(text.parse().unwrap());
        assert_ne!(v6("fd00::1"), v6("fd00::2"));
        assert_ne!(v6("fd00::1")[..2], TUNNEL_MAC_PREFIX, "not an IPv4 node's");
        assert_eq!(
            (overhead(v4), overhead("fd00::1".parse().unwrap())),
            (50, 70)
        );
    }
}
