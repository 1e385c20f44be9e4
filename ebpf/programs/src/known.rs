//! The shortest way through the packet programs: a plain packet of IPv4 that belongs to a known flow, when
//! there is nothing to tell anybody and nothing to judge; or that begins one, for `fresh`. What it needs stays in
//! registers.
//!
//! Whatever else there may be to do is for `flow` and `forward`, which find the packet as it came.

use core::mem::offset_of;
use core::ptr::addr_of;

use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::{Flow4, FlowKey4, flow_flags};
use skep_ebpf_common::node::pod_flags;
use skep_ebpf_common::{TCP, UDP};

use crate::context::Context;
use crate::direct::{FRAGMENT, IPV4, changed, fold, get, put, updated};
use crate::forward::{Way, way4};
use crate::fresh::{Fresh, begin};
use crate::packet::{ACK, ETH_LEN, FIN, RST, SYN};
use crate::table::{Entry, Sender, known4};

/// Ethernet, IPv4 without options, TCP without options: as much is there of a TCP segment and, filled up
/// for Ethernet, of most datagrams.
const ETH: usize = ETH_LEN as usize;
const V4_LEN: usize = 20;
const SPAN: usize = ETH + V4_LEN + 20;
/// What one hop less adds to the header's checksum.
const ONE_HOP: u64 = 0xfffe;

pub enum Known {
    /// It has the addresses to leave with.
    Rewritten(&'static Way),
    /// Of no known flow.
    NewFlow,
    /// Neither of a known flow nor to a Service for clients outside.
    NotOurs,
    /// Policy does not let it begin a flow; that is counted.
    Denied,
    /// Nothing has happened.
    Unsure,
    /// A helper failed half-way.
    Broken,
}

/// What a caller may want to know before the packet is rewritten.
pub struct Found<'a> {
    pub way: &'a Way,
    /// Source and destination as the packet came, and as it will leave.
    pub addresses: u64,
    pub new_addresses: u64,
    /// Needs no judgement: see `policy::settled`.
    pub is_settled: bool,
}

/// What the headers say.
struct Plain {
    key: FlowKey4,
    /// Hop limit and protocol.
    word: u16,
    checksum: u16,
    is_unfinished: bool,
    is_udp: bool,
    ports: u32,
}

/// Gives the packet what it leaves with, if that is what the caller `accepts`. `begins`: where it may begin a flow.
#[inline(always)]
pub fn rewrite_known<C: Context>(
    context: C,
    begins: Option<Hook>,
    accepts: impl Fn(&Found<'_>) -> bool,
) -> Known {
    let (start, end) = context.span();
    if start + SPAN > end {
        return Known::Unsure;
    }
    let (ip, l4) = (start + ETH, start + ETH + V4_LEN);
    // SAFETY: inside, by the check above.
    let (kind, first, len, fragment, word): (u16, u16, u16, u16, u16) = unsafe {
        (
            get(start + 12),
            get(ip),
            get(ip + 2),
            get(ip + 6),
            get(ip + 8),
        )
    };
    if kind != IPV4 || first as u8 != 0x45 || fragment & FRAGMENT != 0 {
        return Known::Unsure;
    }
    let (hop_limit, protocol) = (word as u8, (word >> 8) as u8);
    let total = u16::from_be(len) as u32;
    if hop_limit <= 1 || total <= V4_LEN as u32 {
        return Known::Unsure;
    }
    // SAFETY: inside, by the check above.
    let (addresses, ports): (u64, u32) = unsafe { (u64::from_le(get(ip + 12)), get(l4)) };
    let is_udp = protocol == UDP;
    let mut opens = false;
    let checksum: u16;
    let headers: u32;
    if protocol == TCP {
        // SAFETY: as above.
        let flags: u8 = unsafe { get(l4 + 13) };
        opens = flags & (SYN | ACK | FIN | RST) == SYN;
        if flags & (SYN | FIN | RST) != 0 && !(opens && begins.is_some()) {
            return Known::Unsure;
        }
        // SAFETY: as above.
        let (words, sum): (u8, u16) = unsafe { (get(l4 + 12), get(l4 + 16)) };
        (headers, checksum) = (V4_LEN as u32 + (words >> 4) as u32 * 4, sum);
    } else if is_udp {
        // SAFETY: as above.
        (headers, checksum) = (V4_LEN as u32 + 8, unsafe { get(l4 + 6) });
    } else {
        return Known::Unsure;
    }
    let is_unfinished = is_unfinished(addresses, protocol, len, checksum);
    if is_unfinished && !C::KNOWS_CHECKSUMS {
        return Known::Unsure;
    }
    let packet = Plain {
        key: FlowKey4([addresses, ports as u64 | (protocol as u64) << 32]),
        word,
        checksum,
        is_unfinished,
        is_udp,
        ports,
    };
    let sender = if begins.is_some() {
        Sender::Outside
    } else {
        Sender::Pod
    };
    let known = if opens {
        None
    } else {
        known4(&packet.key, sender)
    };
    let Some(flow) = known else {
        let Some(hook) = begins.filter(|_| opens || is_udp) else {
            return Known::NewFlow;
        };
        let accepts = |way: &Way, new_addresses| {
            accepts(&Found {
                way,
                addresses,
                new_addresses,
                is_settled: true,
            })
        };
        return match begin(context, hook, packet.key, total, accepts) {
            Fresh::Begun(way, new_addresses, new_ports) => {
                rewrite(context, start, &packet, way, new_addresses, new_ports)
            }
            Fresh::NotOurs => Known::NotOurs,
            Fresh::Denied => Known::Denied,
            Fresh::Unsure if opens => Known::Unsure,
            Fresh::Unsure => Known::NewFlow,
        };
    };
    let flags = flow.flags as u32;
    let asks = flags & flow_flags::REVERSE == 0;
    let tells = flags & flow_flags::DIRECT != 0 || flow.via != 0;
    let is_first_answer = !asks && flags & flow_flags::ANSWERED == 0;
    if tells || is_first_answer || (is_udp && asks && flow.has_lost_backend()) {
        return Known::Unsure;
    }
    let (new_addresses, new_ports) = tuple_of(flow);
    let Some(way) = way4(context, total, new_addresses) else {
        return Known::Unsure;
    };
    if total > way.mtu {
        let segment = context.segment_size();
        if segment == 0 || segment + headers > way.mtu {
            return Known::Unsure;
        }
    }
    let is_settled = !asks || flow.policy_generation == way.policy_generation;
    let found = Found {
        way,
        addresses,
        new_addresses,
        is_settled,
    };
    if (way.pod_flags & pod_flags::INGRESS_ISOLATED != 0 && !is_settled) || !accepts(&found) {
        return Known::Unsure;
    }
    if flow.seen != way.second {
        flow.seen = way.second;
    }
    rewrite(context, start, &packet, way, new_addresses, new_ports)
}

#[inline(always)]
fn rewrite<C: Context>(
    context: C,
    start: usize,
    packet: &Plain,
    way: &'static Way,
    new_addresses: u64,
    new_ports: u32,
) -> Known {
    let l4 = start + ETH + V4_LEN;
    let &Plain {
        key,
        word,
        checksum,
        is_udp,
        ports,
        ..
    } = packet;
    let change = halves(!key.0[0]) + halves(new_addresses);
    if packet.is_unfinished {
        let at = (ETH + V4_LEN) as u32 + if is_udp { 6 } else { 16 };
        if !context.replace_in_checksum(at, is_udp, fold(change), [ports, new_ports]) {
            return Known::Broken;
        }
        // The helper may have moved it.
        let (start, end) = context.span();
        if start + SPAN > end {
            return Known::Broken;
        }
        // SAFETY: inside, by the check above.
        unsafe { write(start, way, word, change, new_addresses, new_ports) };
        return Known::Rewritten(way);
    }
    // SAFETY: inside, by the caller's check.
    unsafe { write(start, way, word, change, new_addresses, new_ports) };
    let change_of_both = change + changed(ports, new_ports);
    if !is_udp {
        // SAFETY: as above.
        unsafe { put(l4 + 16, updated(checksum, change_of_both)) };
    } else if checksum != 0 {
        // None (RFC 768) stays so, and a sum of 0 is sent as its other form.
        let checksum = updated(checksum, change_of_both);
        // SAFETY: as above.
        unsafe { put(l4 + 6, if checksum == 0 { 0xffff } else { checksum }) };
    }
    // As `direct::rewrite_plain` does.
    context.add_to_sum(!fold(change) as u32);
    Known::Rewritten(way)
}

/// All but the transport checksum. `word`: hop limit and protocol, `change`: of the addresses.
///
/// # Safety
/// The verifier has seen a check that [`SPAN`] bytes from `start` are inside the packet.
#[inline(always)]
unsafe fn write(start: usize, way: &Way, word: u16, change: u64, addresses: u64, ports: u32) {
    let ip = start + ETH;
    // SAFETY: the caller's.
    unsafe {
        put(start, way.macs[0]);
        put(start + 4, way.macs[1]);
        put(start + 8, way.macs[2]);
        put(ip + 8, word as u8 - 1);
        put(ip + 10, updated(get(ip + 10), change + ONE_HOP));
        put(ip + 12, addresses.to_le());
        put(ip + V4_LEN, ports);
    }
}

/// As `direct::looks_unfinished`: whether the checksum is the sum of the pseudo header, in either form
/// of 0. `len` is the packet's, as its header has it.
#[inline(always)]
fn is_unfinished(addresses: u64, protocol: u8, len: u16, checksum: u16) -> bool {
    const WITHOUT_HEADER: u64 = 0xffff - (V4_LEN as u16).to_be() as u64;
    let sum = halves(addresses) + (protocol as u16).to_be() as u64 + len as u64 + WITHOUT_HEADER;
    fold(sum + !checksum as u64) == 0xffff
}

/// The sum of both addresses.
#[inline(always)]
fn halves(addresses: u64) -> u64 {
    (addresses & 0xffff_ffff) + (addresses >> 32)
}

/// What packets of this flow leave with, side by side as in the packet.
#[inline(always)]
fn tuple_of(flow: &Flow4) -> (u64, u32) {
    const _: () = assert!(offset_of!(Flow4, destination) == offset_of!(Flow4, source) + 4);
    const _: () = assert!(offset_of!(Flow4, source) == 0);
    const _: () = assert!(offset_of!(Flow4, source_port) == 8);
    const _: () = assert!(offset_of!(Flow4, destination_port) == 10);
    // SAFETY: inside the flow and aligned, as flows are.
    unsafe {
        let flow = addr_of!(*flow);
        (
            u64::from_le(flow.cast::<u64>().read_volatile()),
            flow.cast::<u32>().add(2).read_volatile(),
        )
    }
}
