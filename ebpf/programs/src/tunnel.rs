//! Into the tunnel from XDP: what the device would put around a packet, put around it in place. IPv4
//! between the nodes.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_xdp_adjust_head, bpf_xdp_get_buff_len,
};
use skep_ebpf_common::Address;
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::node::{TUNNEL_MAC_PREFIX, TUNNEL_PORT, TUNNEL_VNI};
use skep_ebpf_common::reason::Reason;

use crate::context::Context;
use crate::count::{count, report};
use crate::direct::{fold, put, rewrite_plain};
use crate::forward::{Way, way_of};
use crate::maps::{Scratch, config};
use crate::packet::ETH_LEN;
use crate::service::flow_hash;

/// Ethernet, IPv4, UDP and VXLAN (RFC 7348 §5).
const ETH: usize = ETH_LEN as usize;
const OUTER: usize = ETH + 20 + 8 + 8;
/// Where senders of tunnels have their ports (RFC 7348 §5): the flow's hash tells flows apart.
const FIRST_PORT: u16 = 49_152;
const PORTS: u16 = 16_384;
const HOP_LIMIT: u8 = 64;

/// Sends a plain packet, which `way` would lead into the tunnel's device, to the node at the other end.
#[inline(never)]
pub fn enter(frame: *mut xdp_md, scratch: &mut Scratch, way: &Way) -> u32 {
    let Some(config) = config() else {
        return XDP_PASS;
    };
    let macs = way.macs;
    let Some(node) = node_of(&macs) else {
        return XDP_PASS;
    };
    if config.tunnel_ifindex == 0 || way.ifindex != config.tunnel_ifindex || !config.node_v4.is_v4()
    {
        return XDP_PASS;
    }
    // SAFETY: no pointers but the context.
    let len = unsafe { bpf_xdp_get_buff_len(frame) } as u32 + (OUTER - ETH) as u32;
    let Scratch {
        packet,
        new,
        arrived,
        ..
    } = scratch;
    arrived.source = config.node_v4;
    arrived.destination = Address::from_v4_be(node);
    let Some(outer) = way_of(frame, len, arrived) else {
        return XDP_PASS;
    };
    if outer.is_pod || outer.ifindex != frame.ifindex() {
        return XDP_PASS;
    }
    let hash = flow_hash(&packet.key);
    // The sender's mark of congestion is the network's business (RFC 6040 §4.1).
    let congestion = packet.congestion;
    if !rewrite_plain(frame, packet, new, &macs) {
        return XDP_PASS;
    }
    // SAFETY: no pointers but the context.
    if unsafe { bpf_xdp_adjust_head(frame, -(OUTER as i32)) } != 0
        || !write(
            frame,
            len,
            hash,
            congestion,
            arrived.source.v4_be(),
            node,
            &outer.macs,
        )
    {
        report(&packet.key, Reason::Rewrite, Hook::Xdp, 0, frame.ifindex());
        return XDP_DROP;
    }
    count(Reason::Tunnelled);
    XDP_TX
}

/// The node (an IPv4 address in network byte order) whose end of the tunnel has this MAC.
#[inline(always)]
fn node_of(macs: &[u32; 3]) -> Option<u32> {
    let [a, b] = TUNNEL_MAC_PREFIX;
    (macs[0] as u16 == u16::from_ne_bytes([a, b])).then_some(macs[0] >> 16 | macs[1] << 16)
}

#[inline(always)]
fn write(
    frame: *mut xdp_md,
    len: u32,
    hash: u32,
    congestion: u8,
    source: u32,
    destination: u32,
    macs: &[u32; 3],
) -> bool {
    const UDP: u32 = skep_ebpf_common::UDP as u32;
    let (start, end) = frame.span();
    if start + OUTER > end {
        return false;
    }
    // SAFETY: no arguments.
    let id = unsafe { bpf_get_prandom_u32() } & 0xffff;
    let port = (FIRST_PORT + (hash as u16 & (PORTS - 1))) as u32;
    let mut words = [
        (0x4500_0000 | (congestion as u32) << 16 | len & 0xffff).to_be(),
        (id << 16).to_be(),
        ((HOP_LIMIT as u32) << 24 | UDP << 16).to_be(),
        source,
        destination,
        (port << 16 | TUNNEL_PORT as u32).to_be(),
        // Without a checksum (RFC 7348 §5): the packet inside has its own.
        ((len.wrapping_sub(20) & 0xffff) << 16).to_be(),
        0x0800_0000u32.to_be(),
        (TUNNEL_VNI << 8).to_be(),
    ];
    let mut sum = 0u64;
    for word in &words[..5] {
        sum += *word as u64;
    }
    words[2] |= ((!fold(sum)) as u32) << 16;
    // SAFETY: inside, by the check above.
    unsafe {
        for (index, word) in macs.iter().enumerate() {
            put(start + index * 4, *word);
        }
        put(start + 12, 0x0800u16.to_be());
        for (index, word) in words.iter().enumerate() {
            put(start + ETH + index * 4, *word);
        }
    }
    true
}
