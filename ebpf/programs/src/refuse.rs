//! "Nobody serves this": ICMP port unreachable (RFC 792, RFC 4443 §3.1) back to whoever sent the
//! packet. A client's connect(2) says ECONNREFUSED at once, for TCP too (RFC 1122 §4.2.3.9).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_tail};
use skep_ebpf_common::node::MARK_DONE;
use skep_ebpf_common::{Address, ICMP, ICMPV6};

use crate::packet::{ETH_LEN, Packet, Shape, checksum, ifindex, load, set_mark, store};

/// Bytes of the packet's transport header that the error quotes.
const QUOTED: u32 = 8;
const ICMP_LEN: u32 = 8;
const HOP_LIMIT: u32 = 64;
/// Type and code.
const PORT_UNREACHABLE_V4: u16 = 0x0303;
const PORT_UNREACHABLE_V6: u16 = 0x0104;

/// Turns the packet into its refusal and sends it back by the interface where it came from. `None`:
/// not a packet that may be answered so; it is as it was.
#[inline(never)]
pub fn refuse(skb: *mut __sk_buff, packet: &Packet) -> Option<i32> {
    if !packet.is(Shape::Ports) {
        return None;
    }
    let macs: [[u8; 6]; 2] = load(skb, 0)?;
    if packet.key.source.is_v4() {
        refuse_v4(skb, packet)?;
    } else {
        refuse_v6(skb, packet)?;
    }
    store(skb, 0, &[macs[1], macs[0]])?;
    set_mark(skb, MARK_DONE);
    // SAFETY: no pointers.
    Some((unsafe { bpf_redirect(ifindex(skb), 0) }) as i32)
}

#[inline(always)]
fn resize(skb: *mut __sk_buff, len: u32) -> Option<()> {
    // SAFETY: the hook's context.
    (unsafe { bpf_skb_change_tail(skb, len, 0) } == 0).then_some(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Message<const WORDS: usize> {
    kind: u16,
    checksum: u16,
    unused: u32,
    quote: [u32; WORDS],
}

#[inline(never)]
fn refuse_v4(skb: *mut __sk_buff, packet: &Packet) -> Option<()> {
    const HEADER: u32 = 20;
    const LEN: u32 = HEADER + ICMP_LEN + HEADER + QUOTED;
    if packet.l4 != ETH_LEN + HEADER {
        return None;
    }
    let mut message = Message {
        kind: PORT_UNREACHABLE_V4.to_be(),
        checksum: 0,
        unused: 0,
        quote: load::<[u32; 7]>(skb, ETH_LEN)?,
    };
    let mut header = [
        (0x4500_0000 | LEN).to_be(),
        0,
        (HOP_LIMIT << 24 | (ICMP as u32) << 16).to_be(),
        message.quote[4],
        message.quote[3],
    ];
    message.checksum = checksum(&message)?;
    let sum = u16::from_be(checksum(&header)?) as u32;
    header[2] |= sum.to_be();
    resize(skb, ETH_LEN + LEN)?;
    store(skb, ETH_LEN, &header)?;
    store(skb, ETH_LEN + HEADER, &message)
}

/// A message after what else its checksum covers (RFC 8200 §8.1).
#[repr(C)]
struct Covered {
    source: Address,
    destination: Address,
    len: u32,
    next: u32,
    message: Message<12>,
}

#[inline(never)]
fn refuse_v6(skb: *mut __sk_buff, packet: &Packet) -> Option<()> {
    const HEADER: u32 = 40;
    const LEN: u32 = ICMP_LEN + HEADER + QUOTED;
    if packet.l4 != ETH_LEN + HEADER {
        return None;
    }
    let mut covered = Covered {
        source: packet.key.destination,
        destination: packet.key.source,
        len: LEN.to_be(),
        next: (ICMPV6 as u32).to_be(),
        message: Message {
            kind: PORT_UNREACHABLE_V6.to_be(),
            checksum: 0,
            unused: 0,
            quote: load::<[u32; 12]>(skb, ETH_LEN)?,
        },
    };
    covered.message.checksum = checksum(&covered)?;
    let first = [
        0x6000_0000u32.to_be(),
        (LEN << 16 | (ICMPV6 as u32) << 8 | HOP_LIMIT).to_be(),
    ];
    resize(skb, ETH_LEN + HEADER + LEN)?;
    store(skb, ETH_LEN, &first)?;
    store(skb, ETH_LEN + 8, &[covered.source, covered.destination])?;
    store(skb, ETH_LEN + HEADER, &covered.message)
}
