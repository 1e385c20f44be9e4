//! Service addresses that no interface holds, answered for on the link: ARP (RFC 826) and neighbour
//! discovery (RFC 4861).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_tail};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::{Address, ICMPV6};

use crate::count::count;
use crate::maps::{ANNOUNCED, config};
use crate::packet::{ETH_LEN, Packet, checksum, ifindex, load, store};

const ETHERNET: u16 = 1u16.to_be();
const IPV4: u16 = 0x0800u16.to_be();
const REQUEST: u16 = 1u16.to_be();
const REPLY: u16 = 2u16.to_be();

/// Turns a question for one of our addresses into its answer and sends it back. `None`: not ours.
#[inline(never)]
pub fn answer_arp(skb: *mut __sk_buff) -> Option<i32> {
    // Hardware, protocol, lengths, operation; sender's MAC (4..7) and IP (7..9); target's MAC
    // (9..12) and IP (12..14).
    let arp: [u16; 14] = load(skb, ETH_LEN)?;
    if arp[0] != ETHERNET || arp[1] != IPV4 {
        return None;
    }
    if is_announced(&Address::from_v4_be(word(arp[7], arp[8]))) {
        // Its sender has, or wants, what is ours. A move of the address looks so for a moment.
        count(Reason::AddressClash);
    }
    if arp[3] != REQUEST || !is_announced(&Address::from_v4_be(word(arp[12], arp[13]))) {
        return None;
    }
    let own = config()?.uplink_mac;
    let mac = [
        u16::from_ne_bytes([own[0], own[1]]),
        u16::from_ne_bytes([own[2], own[3]]),
        u16::from_ne_bytes([own[4], own[5]]),
    ];
    store(skb, 0, &[arp[4], arp[5], arp[6], mac[0], mac[1], mac[2]])?;
    let answer = [
        arp[0], arp[1], arp[2], REPLY, mac[0], mac[1], mac[2], arp[12], arp[13], arp[4], arp[5],
        arp[6], arp[7], arp[8],
    ];
    store(skb, ETH_LEN, &answer)?;
    count(Reason::ArpAnswered);
    // SAFETY: no pointers.
    Some((unsafe { bpf_redirect(ifindex(skb), 0) }) as i32)
}

/// An IPv6 header, and a neighbour message with one link-layer address option.
const SOLICITATION: u16 = 135;
const ADVERTISEMENT: u16 = 136;
const TARGET_LINK_ADDRESS: u16 = 0x0201;
/// Of a message with that option.
const MESSAGE_LEN: u32 = 32;
const FRAME_LEN: u32 = ETH_LEN + 40 + MESSAGE_LEN;
/// Solicited and override (RFC 4861 §4.4).
const SOLICITED: u16 = 0x6000;
const OVERRIDE: u16 = 0x2000;
const ALL_NODES: Address = Address([0xff02_0000u32.to_be(), 0, 0, 1u32.to_be()]);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Turns a solicitation for one of our addresses into its advertisement and sends it back. `None`:
/// not ours, or not genuine (RFC 4861 §7.1.1: the hop limit says that no router has passed it on).
#[inline(never)]
pub fn answer_ndp(skb: *mut __sk_buff, packet: &Packet) -> Option<i32> {
    let header: [u16; 4] = load(skb, packet.l4)?;
    let target: Address = load(skb, packet.l4 + 8)?;
    let kind = u16::from_be(header[0]) >> 8;
    if packet.hop_limit != 255 || !is_announced(&target) {
        return None;
    }
    if kind == ADVERTISEMENT {
        // Another machine says that it has what is ours.
        count(Reason::AddressClash);
    }
    if kind != SOLICITATION {
        return None;
    }
    let asker = packet.key.source;
    // Somebody wants to know whether the address is free: all are told that it is not.
    let probe = asker == Address::ANY;
    let asker_mac: [u8; 6] = if probe { ALL_NODES_MAC } else { load(skb, 6)? };
    let own = config()?.uplink_mac;
    // SAFETY: the hook's context.
    if unsafe { bpf_skb_change_tail(skb, FRAME_LEN, 0) } != 0 {
        return None;
    }
    let flags = if probe { OVERRIDE } else { SOLICITED };
    let message = Advertisement {
        source: target,
        destination: if probe { ALL_NODES } else { asker },
        len: MESSAGE_LEN.to_be(),
        next: (ICMPV6 as u32).to_be(),
        kind: (ADVERTISEMENT << 8).to_be(),
        checksum: 0,
        flags: flags.to_be(),
        reserved: 0,
        target,
        option: TARGET_LINK_ADDRESS.to_be(),
        mac: own,
    };
    let sum = checksum(&message)?;
    store(skb, 0, &asker_mac)?;
    store(skb, 6, &own)?;
    // Version 6, no class, no label; length, next header, hop limit.
    let first = [
        0x6000_0000u32.to_be(),
        (MESSAGE_LEN << 16 | (ICMPV6 as u32) << 8 | 255).to_be(),
    ];
    store(skb, ETH_LEN, &first)?;
    store(skb, ETH_LEN + 8, &[message.source, message.destination])?;
    let icmp = ETH_LEN + 40;
    store(
        skb,
        icmp,
        &[message.kind, sum, message.flags, message.reserved],
    )?;
    store(skb, icmp + 8, &target)?;
    store(skb, icmp + 24, &message.option)?;
    store(skb, icmp + 26, &own)?;
    count(Reason::NdpAnswered);
    // SAFETY: no pointers.
    Some((unsafe { bpf_redirect(ifindex(skb), 0) }) as i32)
}

/// What the checksum of an advertisement covers: the pseudo header (RFC 8200 §8.1), then the message.
#[repr(C)]
struct Advertisement {
    source: Address,
    destination: Address,
    len: u32,
    next: u32,
    kind: u16,
    checksum: u16,
    flags: u16,
    reserved: u16,
    target: Address,
    option: u16,
    mac: [u8; 6],
}

#[inline(always)]
pub fn is_announced(address: &Address) -> bool {
    ANNOUNCED.get_ptr(address).is_some()
}

#[inline(always)]
fn word(first: u16, second: u16) -> u32 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}
