//! Service addresses that no interface holds, answered for on the link: ARP (RFC 826).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_redirect;
use skep_ebpf_common::Address;
use skep_ebpf_common::reason::Reason;

use crate::count::count;
use crate::maps::{ANNOUNCED, config};
use crate::packet::{ETH_LEN, ifindex, load, store};

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
    if arp[0] != ETHERNET || arp[1] != IPV4 || arp[3] != REQUEST {
        return None;
    }
    if !is_announced(&Address::from_v4_be(word(arp[12], arp[13]))) {
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

#[inline(always)]
pub fn is_announced(address: &Address) -> bool {
    ANNOUNCED.get_ptr(address).is_some()
}

#[inline(always)]
fn word(first: u16, second: u16) -> u32 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}
