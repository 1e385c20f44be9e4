//! A packet that the way onwards does not take whole and that nobody may fragment: its sender is told
//! (RFC 1191 §4, RFC 4443 §3.2), about the packet as it was sent.

use core::ptr::{addr_of, addr_of_mut, null_mut};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
};
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::node::MARK_DONE;
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::{Address, ICMP, ICMPV6};

use crate::count::report;
use crate::forward::DROP;
use crate::maps::{Scratch, config};
use crate::packet::{ETH_LEN, Shape, ifindex, load, note, remove_note, rewrite, set_mark, store};

/// Bytes of the packet that the message quotes: as many as `Scratch::quote` has.
const QUOTE: u32 = 128;
/// Between the Ethernet header and what follows (`enum bpf_adj_room_mode`).
const BPF_ADJ_ROOM_MAC: u32 = 1;
const DONT_FRAGMENT: u16 = 0x4000u16.to_be();

/// Whether nobody on the way may fragment the packet.
#[inline(always)]
pub fn is_whole(skb: *mut __sk_buff, v4: bool) -> bool {
    !v4 || load::<u16>(skb, ETH_LEN + 6).is_some_and(|flags| flags & DONT_FRAGMENT != 0)
}

/// Makes the packet the message to its sender and sends it back out of the interface it came by.
#[inline(never)]
pub fn tell_sender(skb: *mut __sk_buff, scratch: &mut Scratch, mtu: u32, hook: Hook) -> i32 {
    report(&scratch.packet.key, Reason::TooBig, hook, 0, ifindex(skb));
    // No error about an error (RFC 1122 §3.2.2).
    if scratch.packet.is(Shape::IcmpError) {
        return DROP;
    }
    match message(skb, scratch, mtu) {
        Some(()) => {
            set_mark(skb, MARK_DONE);
            // SAFETY: no pointers.
            (unsafe { bpf_redirect(ifindex(skb), 0) }) as i32
        }
        None => DROP,
    }
}

#[inline(never)]
fn message(skb: *mut __sk_buff, scratch: &mut Scratch, mut mtu: u32) -> Option<()> {
    let Scratch {
        packet,
        arrived,
        quote,
        ..
    } = scratch;
    let v4 = arrived.source.is_v4();
    if note(skb, packet).is_some() {
        // Ours takes room on the way.
        mtu = mtu.wrapping_sub(remove_note(skb, packet)?);
    }
    rewrite(skb, packet, arrived)?;
    let header = if v4 { 28 } else { 48 };
    // SAFETY: the quote has room for as much as is loaded.
    unsafe {
        if bpf_skb_change_tail(skb, ETH_LEN + QUOTE, 0) != 0 {
            return None;
        }
        // Not by `load`: it would take the stack for it.
        if bpf_skb_load_bytes(skb.cast(), ETH_LEN, addr_of_mut!(*quote).cast(), QUOTE) != 0 {
            return None;
        }
        if bpf_skb_adjust_room(skb, header, BPF_ADJ_ROOM_MAC, 0) != 0 {
            return None;
        }
    }
    let macs: [u16; 6] = load(skb, 0)?;
    store(
        skb,
        0,
        &[macs[3], macs[4], macs[5], macs[0], macs[1], macs[2]],
    )?;
    let config = config()?;
    let quoted = sum(addr_of!(*quote).cast(), QUOTE, 0)?;
    if v4 {
        let mut icmp = [0x0304_0000u32.to_be(), mtu.to_be()];
        let checksum = !fold(sum(addr_of!(icmp).cast(), 8, quoted)?);
        icmp[0] |= (checksum as u32) << 16;
        let mut ip = [
            (0x4500_0000 | (28 + QUOTE)).to_be(),
            0x4000u32.to_be(),
            (64 << 24 | (ICMP as u32) << 16).to_be(),
            config.node_v4.v4_be(),
            arrived.source.v4_be(),
        ];
        let checksum = !fold(sum(addr_of!(ip).cast(), 20, 0)?);
        ip[2] |= (checksum as u32) << 16;
        store(skb, ETH_LEN, &ip)?;
        return store(skb, ETH_LEN + 20, &icmp);
    }
    let source = if config.node_v6 == Address::ANY {
        arrived.destination
    } else {
        config.node_v6
    };
    let len = 8 + QUOTE;
    let pseudo = [len.to_be(), (ICMPV6 as u32).to_be()];
    let mut icmp = [0x0200_0000u32.to_be(), mtu.to_be()];
    let addresses = [source, arrived.source];
    let so_far = sum(addr_of!(addresses).cast(), 32, quoted)?;
    let so_far = sum(addr_of!(pseudo).cast(), 8, so_far)?;
    let checksum = !fold(sum(addr_of!(icmp).cast(), 8, so_far)?);
    icmp[0] |= (checksum as u32) << 16;
    let first = [
        0x6000_0000u32.to_be(),
        (len << 16 | (ICMPV6 as u32) << 8 | 64).to_be(),
    ];
    store(skb, ETH_LEN, &first)?;
    store(skb, ETH_LEN + 8, &addresses)?;
    store(skb, ETH_LEN + 40, &icmp)
}

/// Of `len` bytes, a multiple of 4, added to `seed`.
#[inline(always)]
fn sum(bytes: *const u32, len: u32, seed: u32) -> Option<u32> {
    // SAFETY: the callers' buffers are as long as said.
    let sum = unsafe { bpf_csum_diff(null_mut(), 0, bytes.cast_mut(), len, seed) };
    (sum >= 0).then_some(sum as u32)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + sum) as u16
}
