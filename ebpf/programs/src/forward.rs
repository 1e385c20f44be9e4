//! Where a packet goes once its addresses are final: straight into a local pod, straight to a
//! neighbour, or up to the stack.

use core::mem::zeroed;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer};
use skep_ebpf_common::Address;
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::node::{MARK_DONE, Pod};
use skep_ebpf_common::reason::Reason;

use crate::count::{count, report};
use crate::maps::{Scratch, config};
use crate::packet::{Packet, decrement_hop_limit, ifindex, set_mark, store};

pub const PASS: i32 = 0; // TC_ACT_OK
pub const DROP: i32 = 2; // TC_ACT_SHOT

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_FORWARDING_DISABLED: i64 = 5;
const FIB_NO_NEIGHBOUR: i64 = 7;
/// Too long for the next device: the tunnel fragments what it carries.
const FIB_TOO_LONG: i64 = 8;

#[inline(always)]
pub fn drop(skb: *mut __sk_buff, packet: &Packet, reason: Reason, hook: Hook, service: u32) -> i32 {
    report(&packet.key, reason, hook, service, ifindex(skb));
    DROP
}

/// Into a pod of this node, past the host's end of its veth pair (`bpf_redirect_peer`, Linux 5.10).
#[inline(never)]
pub fn deliver(skb: *mut __sk_buff, packet: &mut Packet, pod: &Pod, hook: Hook) -> i32 {
    if decrement_hop_limit(skb, packet).is_none() {
        return drop(skb, packet, Reason::HopLimit, hook, 0);
    }
    let mut macs = [0u8; 12];
    macs[..6].copy_from_slice(&pod.mac);
    macs[6..].copy_from_slice(&pod.host_mac);
    if store(skb, 0, &macs).is_none() {
        return drop(skb, packet, Reason::Rewrite, hook, 0);
    }
    count(Reason::RedirectedToPod);
    // SAFETY: no pointers.
    (unsafe { bpf_redirect_peer(pod.ifindex, 0) }) as i32
}

/// By the node's routing table to a neighbour; what the table gives to the node goes to the stack.
#[inline(never)]
pub fn route(skb: *mut __sk_buff, scratch: &mut Scratch, hook: Hook) -> i32 {
    let Scratch {
        packet, next_hop, ..
    } = scratch;
    match look_up_route(skb, packet, next_hop) as i64 {
        FIB_SUCCESS | FIB_NO_NEIGHBOUR => {}
        FIB_TOO_LONG if to_tunnel(next_hop) => {}
        // Local, multicast, broadcast.
        FIB_NOT_FORWARDED | FIB_FORWARDING_DISABLED => return PASS,
        _ => {
            // An unreachable route: the stack says so to the sender (ICMP), unless the source is
            // already ours, in which case it drops the packet; counted either way.
            report(&packet.key, Reason::NoRoute, hook, 0, ifindex(skb));
            return PASS;
        }
    }
    if decrement_hop_limit(skb, packet).is_none() {
        return drop(skb, packet, Reason::HopLimit, hook, 0);
    }
    set_mark(skb, MARK_DONE);
    count(Reason::RedirectedToNeighbour);
    // SAFETY: all-zero is a valid value.
    let mut neighbour: bpf_redir_neigh = unsafe { zeroed() };
    neighbour.nh_family = next_hop.family;
    neighbour.__bindgen_anon_1.ipv6_nh = next_hop.address;
    // SAFETY: the pointer and its length agree.
    (unsafe {
        bpf_redirect_neigh(
            next_hop.ifindex,
            &raw mut neighbour,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        )
    }) as i32
}

/// Through the tunnel to a node, by that node's IPv4 address. For an IPv6 packet the next hop is
/// that address in mapped form: the tunnel's device knows both as neighbours.
#[inline(never)]
pub fn tunnel(skb: *mut __sk_buff, packet: &mut Packet, via: u32, hook: Hook) -> i32 {
    let Some(config) = config() else {
        return DROP;
    };
    if decrement_hop_limit(skb, packet).is_none() {
        return drop(skb, packet, Reason::HopLimit, hook, 0);
    }
    set_mark(skb, MARK_DONE);
    count(Reason::Tunnelled);
    // SAFETY: all-zero is a valid value.
    let mut neighbour: bpf_redir_neigh = unsafe { zeroed() };
    if packet.key.source.is_v4() {
        neighbour.nh_family = AF_INET as u32;
        neighbour.__bindgen_anon_1.ipv6_nh = [via, 0, 0, 0];
    } else {
        neighbour.nh_family = AF_INET6 as u32;
        neighbour.__bindgen_anon_1.ipv6_nh = Address::from_v4_be(via).0;
    }
    // SAFETY: the pointer and its length agree.
    (unsafe {
        bpf_redirect_neigh(
            config.tunnel_ifindex,
            &raw mut neighbour,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        )
    }) as i32
}

/// Whether the routing table sends the packet on to somewhere.
#[inline(always)]
pub fn routable(skb: *mut __sk_buff, packet: &Packet, next_hop: &mut NextHop) -> bool {
    matches!(
        look_up_route(skb, packet, next_hop) as i64,
        FIB_SUCCESS | FIB_NO_NEIGHBOUR
    )
}

#[inline(always)]
fn to_tunnel(next_hop: &NextHop) -> bool {
    config().is_some_and(|config| {
        config.tunnel_ifindex != 0 && config.tunnel_ifindex == next_hop.ifindex
    })
}

#[repr(C)]
pub struct NextHop {
    ifindex: u32,
    family: u32,
    /// IPv4 in the first word.
    address: [u32; 4],
}

#[inline(never)]
fn look_up_route(skb: *mut __sk_buff, packet: &Packet, next_hop: &mut NextHop) -> i32 {
    // SAFETY: all-zero is a valid value.
    let mut params: FibLookup = unsafe { zeroed() };
    params.ifindex = ifindex(skb);
    params.l4_protocol = packet.key.protocol;
    if packet.key.destination.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = packet.key.source.v4_be();
        params.__bindgen_anon_4.ipv4_dst = packet.key.destination.v4_be();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = packet.key.source.0;
        params.__bindgen_anon_4.ipv6_dst = packet.key.destination.0;
    }
    // SAFETY: the pointer and its length agree.
    let result = unsafe {
        bpf_fib_lookup(
            skb.cast(),
            &raw mut params,
            size_of::<FibLookup>() as i32,
            0,
        )
    };
    next_hop.ifindex = params.ifindex;
    next_hop.family = params.family as u32;
    // SAFETY: the helper has written the next hop; an IPv4 address is the first word.
    next_hop.address = unsafe { params.__bindgen_anon_4.ipv6_dst };
    result as i32
}
