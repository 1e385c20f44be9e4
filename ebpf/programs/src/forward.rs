//! Where a packet goes once its addresses are final: straight into a local pod, straight to a
//! neighbour, or up to the stack.

use core::cell::Cell;
use core::mem::{offset_of, zeroed};
use core::ptr::addr_of;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_jiffies64, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
};
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::node::{MARK_DONE, Pod, network_flags, pod_flags};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::{Address, PortBe};

use crate::context::Context;
use crate::count::{count, now, report};
use crate::direct::{looks_unfinished, parse_plain, rewrite_plain};
use crate::flow::{Followed, follow_here, tells};
use crate::known::{Known, rewrite_known};
use crate::maps::{Scratch, WAYS, config};
use crate::packet::{Packet, Tuple, decrement_hop_limit, ifindex, set_mark, store};
use crate::pod::{network_of, pod_at};
use crate::policy;
use crate::too_big::{is_whole, tell_sender};

pub const PASS: i32 = 0; // TC_ACT_OK
pub const DROP: i32 = 2; // TC_ACT_SHOT

/// Of the ways that a CPU remembers.
pub const WAYS_BITS: u32 = 8;
/// And for how long: so many bits of the kernel's tick, 128 ms to 1.3 s. The tick costs nothing to
/// read.
const TICKS: u32 = 7;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FIB_SUCCESS: i64 = 0;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_FORWARDING_DISABLED: i64 = 5;
const FIB_NO_NEIGHBOUR: i64 = 7;
/// Too long for the next device: the tunnel fragments what it carries.
const FIB_TOO_LONG: i64 = 8;
/// What every IPv4 network carries (RFC 791 §3.2).
const MIN_MTU: u32 = 576;

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
    let found = look_up_route(skb, &scratch.packet, &mut scratch.next_hop) as i64;
    if found == FIB_TOO_LONG {
        if is_whole(skb, scratch.packet.key.destination.is_v4()) {
            let mtu = scratch.next_hop.mtu;
            return tell_sender(skb, scratch, mtu, hook);
        }
        if !to_tunnel(&scratch.next_hop) {
            // The stack fragments it.
            return PASS;
        }
    }
    let Scratch {
        packet, next_hop, ..
    } = scratch;
    match found {
        FIB_SUCCESS | FIB_NO_NEIGHBOUR | FIB_TOO_LONG => {}
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

/// The Ethernet addresses of a frame for `pod`, as the packet has them.
#[inline(always)]
fn pod_macs(pod: &Pod) -> [u32; 3] {
    const _: () = assert!(offset_of!(Pod, host_mac) == offset_of!(Pod, mac) + 6);
    const _: () = assert!(offset_of!(Pod, mac) % 4 == 0);
    // SAFETY: 12 bytes side by side, aligned as asserted.
    unsafe { addr_of!(pod.mac).cast::<[u32; 3]>().read() }
}

/// What this CPU has learned of the way of packets with these addresses, for a moment ([`TICKS`]) and
/// as long as policy stays as it is.
#[repr(C)]
pub struct Way {
    /// Of no account on the way to a pod.
    source: Address,
    destination: Address,
    moment: u32,
    pub policy_generation: u32,
    /// The largest packet; 0 = not known, not forwarded, or no neighbour known.
    pub mtu: u32,
    /// The host's end of a pod's veth pair, or the device to a neighbour.
    pub ifindex: u32,
    pub macs: [u32; 3],
    pub is_pod: bool,
    /// No address of the cluster's.
    pub is_outside: bool,
    _pad: [u8; 2],
    /// The pod's, else 0.
    pub pod_flags: u32,
    pub policy: u32,
    /// The programs' clock when this was learned: late by less than [`TICKS`].
    pub second: u32,
    open: Cell<Open>,
    /// Both of IPv4, as a packet has them; else 0.
    addresses: u64,
}

/// What policy is known to open to clients of IPv4.
#[repr(C)]
#[derive(Clone, Copy)]
struct Open {
    /// A port and its protocol, as its answers have it ([`FlowKey4::source_port_and_protocol`]); 0 = none known.
    port: u32,
    /// Whose address has these bits where the mask has any, as a packet has them.
    network: u32,
    mask: u32,
}

impl Way {
    #[inline(always)]
    pub fn open_to(&self, port: u32, network: u32, mask: u32) {
        self.open.set(Open {
            port,
            network,
            mask,
        });
    }

    #[inline(always)]
    pub fn is_open_to(&self, port: u32, client: u32) -> bool {
        let open = self.open.get();
        open.port == port && client & open.mask == open.network
    }
}

/// The way of a packet of this length once it has the addresses of `new`. `None`: the stack, or the
/// slower of our programs, knows better.
#[inline(always)]
pub fn way_of<C: Context>(context: C, len: u32, new: &Tuple) -> Option<&'static Way> {
    let (moment, generation) = (moment(), config()?.policy_generation);
    let way = way_at(new.destination.v4_be())?;
    if way.moment != moment
        || way.policy_generation != generation
        || way.destination != new.destination
        || !(way.is_pod || way.source == new.source)
    {
        way.moment = moment;
        way.policy_generation = generation;
        find_way(context, len, new, way);
    }
    (len <= way.mtu).then_some(way)
}

/// The same for a packet of IPv4 that will have these addresses; whether it fits is for the caller to see.
#[inline(always)]
pub fn way4<C: Context>(context: C, len: u32, addresses: u64) -> Option<&'static Way> {
    let (moment, generation) = (moment(), config()?.policy_generation);
    let way = way_at((addresses >> 32) as u32)?;
    // Of a pod's only the destination counts.
    let differing = way.addresses ^ addresses;
    if way.moment != moment
        || way.policy_generation != generation
        || !(differing == 0 || (way.is_pod && differing >> 32 == 0))
    {
        way.moment = moment;
        way.policy_generation = generation;
        find_way4(context, len, addresses, way);
    }
    (way.mtu != 0).then_some(way)
}

#[inline(never)]
fn find_way4<C: Context>(context: C, len: u32, addresses: u64, way: &mut Way) -> u32 {
    let new = Tuple {
        source: Address::from_v4_be(addresses as u32),
        destination: Address::from_v4_be((addresses >> 32) as u32),
        source_port: PortBe(0),
        destination_port: PortBe(0),
    };
    find_way(context, len, &new, way)
}

#[inline(always)]
fn moment() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_jiffies64() } >> TICKS) as u32
}

/// The place of the ways to this address, its last word.
#[inline(always)]
fn way_at(destination: u32) -> Option<&'static mut Way> {
    let way = WAYS.get_ptr_mut(destination.wrapping_mul(0x9e37_79b1) >> (32 - WAYS_BITS))?;
    // SAFETY: this CPU's element, used by one program at a time.
    Some(unsafe { &mut *way })
}

#[inline(never)]
fn find_way<C: Context>(context: C, len: u32, new: &Tuple, way: &mut Way) -> u32 {
    way.second = now();
    way.addresses = match new.destination.is_v4() {
        true => new.source.v4_be() as u64 | (new.destination.v4_be() as u64) << 32,
        false => 0,
    };
    way.source = new.source;
    way.destination = new.destination;
    way.pod_flags = 0;
    way.mtu = 0;
    way.open_to(0, 0, 0);
    if let Some(pod) = pod_at(&new.destination) {
        way.is_pod = true;
        way.is_outside = false;
        way.mtu = u32::MAX;
        way.ifindex = pod.ifindex;
        way.macs = pod_macs(pod);
        way.pod_flags = pod.flags;
        way.policy = pod.policy;
        return 0;
    }
    way.is_pod = false;
    way.is_outside = network_of(&new.destination) & network_flags::CLUSTER == 0;
    // SAFETY: all-zero is a valid value.
    let mut params: FibLookup = unsafe { zeroed() };
    params.ifindex = context.ifindex();
    // With a length the kernel also says what fits; whether this packet does is compared later.
    params.__bindgen_anon_1.tot_len = len.min(MIN_MTU) as u16;
    set_addresses(&mut params, &new.source, &new.destination);
    // SAFETY: the pointer and its length agree.
    let result = unsafe {
        bpf_fib_lookup(
            context.raw(),
            &raw mut params,
            size_of::<FibLookup>() as i32,
            0,
        )
    };
    if result == FIB_SUCCESS {
        // SAFETY: the helper has written it.
        way.mtu = unsafe { params.__bindgen_anon_1.mtu_result } as u32;
        way.ifindex = params.ifindex;
        let (to, from) = (params.dmac, params.smac);
        way.macs = [
            u32::from_ne_bytes([to[0], to[1], to[2], to[3]]),
            u32::from_ne_bytes([to[4], to[5], from[0], from[1]]),
            u32::from_ne_bytes([from[2], from[3], from[4], from[5]]),
        ];
    }
    0
}

/// What [`forward_known`] found.
pub enum Plain {
    Forwarded(i32),
    /// A plain packet of no known flow; the packet is parsed.
    NewFlow,
    /// Nothing has happened, and the long way knows what to do.
    Unsure,
}

/// A plain packet that [`forward_shortest`] was not sure of; `is_new`: it asked the flow table.
#[inline(always)]
pub fn forward_known(skb: *mut __sk_buff, scratch: &mut Scratch, is_new: bool) -> Plain {
    if is_new && read_plain(skb, scratch) != 0 {
        return Plain::NewFlow;
    }
    forward_rarer(skb, scratch)
}

/// A plain packet of a known flow, or that begins one, in as few steps as there can be. A verdict, [`NEW_FLOW`] or
/// [`UNSURE`].
// VERIFIER: a frame of its own, or the caller's is too large.
#[inline(never)]
pub fn forward_shortest(skb: *mut __sk_buff) -> i32 {
    send_known(skb, rewrite_known(skb, Some(Hook::FromNet), |_| true))
}

/// What [`send_known`] says beside verdicts.
pub const NEW_FLOW: i32 = -2;
pub const UNSURE: i32 = -3;

#[inline(always)]
pub fn send_known(skb: *mut __sk_buff, known: Known) -> i32 {
    match known {
        Known::Rewritten(way) => send(skb, way),
        Known::NewFlow | Known::NotOurs => NEW_FLOW,
        Known::Denied => DROP,
        Known::Unsure => UNSURE,
        Known::Broken => {
            count(Reason::Rewrite);
            DROP
        }
    }
}

#[inline(never)]
fn read_plain(skb: *mut __sk_buff, scratch: &mut Scratch) -> u32 {
    parse_plain(skb, &mut scratch.packet) as u32
}

/// What [`rewrite_known`] does not take: IPv6, and packets that change the state of their flow.
// VERIFIER: a frame of its own, or the callers' are too large.
#[inline(never)]
fn forward_rarer(skb: *mut __sk_buff, scratch: &mut Scratch) -> Plain {
    if !parse_plain(skb, &mut scratch.packet)
        || looks_unfinished(skb, &scratch.packet)
        || scratch.packet.hop_limit <= 1
    {
        return Plain::Unsure;
    }
    let now = scratch.now();
    let Some(followed) = follow_here(&mut scratch.packet, &mut scratch.new, now) else {
        return Plain::NewFlow;
    };
    match forward_followed(skb, scratch, &followed) {
        Some(verdict) => Plain::Forwarded(verdict),
        None => Plain::Unsure,
    }
}

#[inline(always)]
fn forward_followed(
    skb: *mut __sk_buff,
    scratch: &mut Scratch,
    followed: &Followed,
) -> Option<i32> {
    if followed.via != 0 || tells(followed, &scratch.packet) {
        return None;
    }
    let way = way_of(skb, scratch.packet.len, &scratch.new)?;
    if way.pod_flags & pod_flags::INGRESS_ISOLATED != 0 && !policy::settled(followed) {
        return None;
    }
    if !rewrite_plain(skb, &scratch.packet, &scratch.new, &way.macs) {
        return None;
    }
    Some(send(skb, way))
}

/// A rewritten packet on its way.
#[inline(always)]
fn send(skb: *mut __sk_buff, way: &Way) -> i32 {
    if way.is_pod {
        count(Reason::RedirectedToPod);
        // SAFETY: no pointers.
        return (unsafe { bpf_redirect_peer(way.ifindex, 0) }) as i32;
    }
    set_mark(skb, MARK_DONE);
    count(Reason::RedirectedToNeighbour);
    // SAFETY: no pointers.
    (unsafe { bpf_redirect(way.ifindex, 0) }) as i32
}

#[repr(C)]
pub struct NextHop {
    ifindex: u32,
    family: u32,
    /// IPv4 in the first word.
    address: [u32; 4],
    /// Of the device, where a packet was too long for it.
    mtu: u32,
}

#[inline(never)]
fn look_up_route(skb: *mut __sk_buff, packet: &Packet, next_hop: &mut NextHop) -> i32 {
    // SAFETY: all-zero is a valid value.
    let mut params: FibLookup = unsafe { zeroed() };
    params.ifindex = ifindex(skb);
    params.l4_protocol = packet.key.protocol;
    set_addresses(&mut params, &packet.key.source, &packet.key.destination);
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
    // SAFETY: the helper has written it, or it is the length, which was not said.
    next_hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result } as u32;
    // SAFETY: the helper has written the next hop; an IPv4 address is the first word.
    next_hop.address = unsafe { params.__bindgen_anon_4.ipv6_dst };
    result as i32
}

#[inline(always)]
fn set_addresses(params: &mut FibLookup, source: &Address, destination: &Address) {
    if destination.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = source.v4_be();
        params.__bindgen_anon_4.ipv4_dst = destination.v4_be();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = source.0;
        params.__bindgen_anon_4.ipv6_dst = destination.0;
    }
}
