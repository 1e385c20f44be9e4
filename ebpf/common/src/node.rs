//! What the programs know of the node: its addresses, pods, networks and settings.

use crate::Address;

/// One network interface of a local pod, keyed by the pod's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The host end of the pod's veth pair.
    pub ifindex: u32,
    /// `pod_flags`.
    pub flags: u32,
    /// Identity for policy (see [`crate::policy`]).
    pub identity: u32,
    /// The policy set that applies to it, or 0.
    pub policy: u32,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    pub _pad: u32,
}

/// Whose sockets a network namespace holds: the pod's addresses, by family; [`Address::ANY`]: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    pub v4: Address,
    pub v6: Address,
}

pub mod pod_flags {
    /// Some flow of this pod with another pod or node is translated or tracked: look up the flow
    /// table for its cluster traffic too. Set by the programs, never cleared while the pod lives.
    pub const TRACKED: u32 = 1 << 0;
    /// Policy applies to what reaches the pod.
    pub const INGRESS_ISOLATED: u32 = 1 << 1;
    /// Policy applies to what the pod sends.
    pub const EGRESS_ISOLATED: u32 = 1 << 2;
    /// XDP may redirect frames into the pod: its end of the veth pair receives by NAPI. Without,
    /// the kernel drops them.
    pub const TAKES_FRAMES: u32 = 1 << 3;
}

/// The longest matching prefix says what an address belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// `network_flags`.
    pub flags: u32,
    /// The node to tunnel to, or [`Address::ANY`]: reached natively.
    pub tunnel: Address,
}

pub mod network_flags {
    /// Inside the cluster: never masquerade.
    pub const CLUSTER: u32 = 1 << 0;
    /// Only reachable through a Service; a packet that gets here has no frontend.
    pub const SERVICE: u32 = 1 << 1;
}

/// The only element of the CONFIG array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Source of translated connections, by family; [`Address::ANY`] = family unused.
    pub node_v4: Address,
    pub node_v6: Address,
    pub uplink_ifindex: u32,
    pub tunnel_ifindex: u32,
    /// `config_flags`.
    pub flags: u32,
    /// Raised with every change of policy that may end an existing connection.
    pub policy_generation: u32,
    /// Cookie of the node's own network namespace: only there is 127.0.0.1:NodePort a Service.
    pub host_netns_cookie: u64,
    pub uplink_mac: [u8; 6],
    pub _pad: u16,
    /// One of so many new connections is told of; drops always are. 0 and 1: all.
    pub event_sample: u32,
    /// Bit n: no network that the programs know of has an IPv4 address whose first byte is n, modulo 32. What an
    /// agent that does not know this leaves, 0, says nothing.
    pub v4_without_network: u32,
    /// The node's own addresses in the tunnel: sources of connections to the pods behind it.
    pub tunnel_v4: Address,
    pub tunnel_v6: Address,
}

impl Config {
    /// Whether a network may hold this IPv4 address, in network byte order.
    #[inline(always)]
    pub const fn may_have_network(&self, v4_be: u32) -> bool {
        self.v4_without_network >> (v4_be.to_ne_bytes()[0] & 31) & 1 == 0
    }
}

pub mod config_flags {
    pub const MASQUERADE: u32 = 1 << 0;
    /// Somebody reads the flow events.
    pub const EVENTS: u32 = 1 << 1;
    /// Clients from outside keep their address through the tunnel: every node can tell from a
    /// packet's Ethernet source which node it came from (see [`tunnel_mac`]).
    pub const TUNNEL_KEEPS_CLIENT: u32 = 1 << 2;
}

/// `skb->mark` of packets that the programs have finished with.
pub const MARK_DONE: u32 = 0x5ce9_0001;

pub const MAX_PODS: u32 = 1_024;
pub const MAX_NETNS: u32 = 1_024;
pub const MAX_NODE_ADDRESSES: u32 = 256;
pub const MAX_NETWORKS: u32 = 16_384;
/// Service addresses that this node answers ARP for.
pub const MAX_ANNOUNCED: u32 = 1_024;

/// First bytes of a tunnel device's MAC: locally administered, "skep" as far as it goes.
pub const TUNNEL_MAC_PREFIX: [u8; 2] = [0x0a, 0x5c];

/// The tunnel is VXLAN (RFC 7348). The port is Linux' own choice before the IANA's 4789, and that of
/// other pod networks.
pub const TUNNEL_VNI: u32 = 0x5ce9;
pub const TUNNEL_PORT: u16 = 8_472;

/// The MAC of the tunnel device of the node with this IPv4 address: the address itself, so that no
/// node has to be asked.
pub const fn tunnel_mac(node: [u8; 4]) -> [u8; 6] {
    let [a, b] = TUNNEL_MAC_PREFIX;
    [a, b, node[0], node[1], node[2], node[3]]
}

/// The programs' clock: `bpf_ktime_get_coarse_ns() >> 30`, a little more than a second.
#[inline(always)]
pub const fn seconds(monotonic_ns: u64) -> u32 {
    (monotonic_ns >> 30) as u32
}

const _: () = {
    assert!(size_of::<Pod>() == 32);
    assert!(size_of::<PodAddresses>() == 32);
    assert!(size_of::<Network>() == 20);
    assert!(size_of::<Config>() == 104);
};
