//! Plain packets, read and rewritten in place: TCP and UDP without IPv4 options, fragments or
//! IPv6 extension headers. Half the cost of the helpers that `packet` uses for all the others.
//!
//! Every offset is a constant, so that each access is one compare against the end of the packet.

use skep_ebpf_common::{Address, PortBe, TCP, UDP};

use crate::context::Context;
use crate::packet::{ETH_LEN, Packet, Shape, Tuple};

pub const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();
/// Of an IPv4 header without options, and of an IPv6 header.
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const ETH: usize = ETH_LEN as usize;
/// More fragments, and the fragment's offset.
pub const FRAGMENT: u16 = 0x3fffu16.to_be();

/// Explicit congestion notification (RFC 3168 §5).
const CONGESTION: u8 = 3;

/// # Safety
/// The verifier has seen a check that `at + size_of::<T>()` is inside the packet. The address is
/// even, not aligned: BPF loads any.
#[inline(always)]
pub unsafe fn get<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's.
    unsafe { (at as *const T).read_volatile() }
}

/// # Safety
/// As for [`get`].
#[inline(always)]
pub unsafe fn put<T: Copy>(at: usize, value: T) {
    // SAFETY: the caller's.
    unsafe { (at as *mut T).write_volatile(value) };
}

/// Fills `packet` if it is plain.
#[inline(always)]
pub fn parse_plain<C: Context>(context: C, packet: &mut Packet) -> bool {
    let (start, end) = context.span();
    if start + ETH + V4_LEN + 8 > end {
        return false;
    }
    // SAFETY: inside, by the check above.
    let kind: u16 = unsafe { get(start + 12) };
    let ip = start + ETH;
    if kind == IPV4 {
        // SAFETY: as above.
        let (first, len, fragment, word): (u16, u16, u16, u16) =
            unsafe { (get(ip), get(ip + 2), get(ip + 6), get(ip + 8)) };
        if first as u8 != 0x45 || fragment & FRAGMENT != 0 {
            return false;
        }
        packet.congestion = (first >> 8) as u8 & CONGESTION;
        // SAFETY: as above.
        unsafe {
            packet.key.source = Address::from_v4_be(get(ip + 12));
            packet.key.destination = Address::from_v4_be(get(ip + 16));
        }
        packet.len = u16::from_be(len) as u32;
        packet.hop_limit = word as u8;
        packet.key.protocol = (word >> 8) as u8;
        packet.l4 = ETH_LEN + V4_LEN as u32;
        return transport(ip + V4_LEN, end, packet);
    }
    if kind != IPV6 || start + ETH + V6_LEN + 8 > end {
        return false;
    }
    // SAFETY: inside, by the check above.
    unsafe {
        let (first, len, word): (u16, u16, u16) = (get(ip), get(ip + 4), get(ip + 6));
        packet.congestion = (first >> 12) as u8 & CONGESTION;
        packet.len = V6_LEN as u32 + u16::from_be(len) as u32;
        packet.key.protocol = word as u8;
        packet.hop_limit = (word >> 8) as u8;
        packet.key.source = Address([get(ip + 8), get(ip + 12), get(ip + 16), get(ip + 20)]);
        packet.key.destination = Address([get(ip + 24), get(ip + 28), get(ip + 32), get(ip + 36)]);
    }
    if packet.key.source.is_v4() || packet.key.destination.is_v4() {
        // See `packet`: not for the short way.
        return false;
    }
    packet.l4 = ETH_LEN + V6_LEN as u32;
    transport(ip + V6_LEN, end, packet)
}

#[inline(always)]
fn transport(l4: usize, end: usize, packet: &mut Packet) -> bool {
    packet.tcp_flags = 0;
    if packet.key.protocol == TCP {
        if l4 + 20 > end {
            return false;
        }
        // SAFETY: inside, by the check above.
        packet.tcp_flags = unsafe { get(l4 + 13) };
    } else if packet.key.protocol != UDP {
        return false;
    }
    // SAFETY: the caller has checked 8 bytes.
    let ports: u32 = unsafe { get(l4) };
    packet.key.source_port = PortBe(ports as u16);
    packet.key.destination_port = PortBe((ports >> 16) as u16);
    packet.key._pad = [0; 3];
    packet.shape = Shape::Ports;
    packet.again = false;
    true
}

/// Whether the transport checksum of a plain packet looks as if it was left to the device
/// (`CHECKSUM_PARTIAL`): it is the sum of the pseudo header then. So is one complete checksum in
/// 65,536 by accident; the helpers of tc know, and take both.
#[inline(always)]
pub fn looks_unfinished<C: Context>(context: C, packet: &Packet) -> bool {
    let (start, end) = context.span();
    let ip = start + ETH;
    let v4 = packet.l4 == ETH_LEN + V4_LEN as u32;
    let header = if v4 { V4_LEN } else { V6_LEN };
    let (len, l4) = (packet.len.wrapping_sub(header as u32) as u16, ip + header);
    let at = checksum_at(packet.key.protocol);
    if l4 + at + 2 > end {
        return true;
    }
    // SAFETY: inside, by the check above.
    let found: u16 = unsafe { get(l4 + at) };
    let (source, destination) = (&packet.key.source.0, &packet.key.destination.0);
    let mut sum = source[3] as u64 + destination[3] as u64;
    if !v4 {
        sum += source[0] as u64 + source[1] as u64 + source[2] as u64;
        sum += destination[0] as u64 + destination[1] as u64 + destination[2] as u64;
    }
    sum += (packet.key.protocol as u16).to_be() as u64 + len.to_be() as u64;
    let sum = fold(sum);
    // Both forms of 0; and a packet too long for its header to say its length.
    found == sum
        || (found == 0 && sum == 0xffff && packet.key.protocol == TCP)
        || packet.len <= header as u32
}

#[inline(always)]
fn checksum_at(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// The ones' complement sum in 16 bits (RFC 1071 §2).
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    // Each half added to the other one: the upper half has the carry of the lower one's sum, too.
    let sum = sum.wrapping_add(sum << 32 | sum >> 32) >> 32;
    let sum = sum as u32;
    (sum.wrapping_add(sum << 16 | sum >> 16) >> 16) as u16
}

#[inline(always)]
pub fn changed(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// `checksum` after the words that `change` sums up have changed (RFC 1624 §3).
#[inline(always)]
pub fn updated(checksum: u16, change: u64) -> u16 {
    !fold((!checksum) as u64 + change)
}

/// Gives a plain packet with a complete checksum another tuple, one hop less and, unless they
/// are zero, the Ethernet addresses `macs` (destination, then source). `packet` does not follow.
#[inline(always)]
pub fn rewrite_plain<C: Context>(
    context: C,
    packet: &Packet,
    new: &Tuple,
    macs: &[u32; 3],
) -> bool {
    let (start, end) = context.span();
    let ip = start + ETH;
    let protocol = packet.key.protocol;
    let (from, to) = (&packet.key.source.0, &packet.key.destination.0);
    let (new_from, new_to) = (&new.source.0, &new.destination.0);
    let mut change = changed(from[3], new_from[3]) + changed(to[3], new_to[3]);
    let l4;
    // By how much the sum of all bytes after the Ethernet header changes. The headers with a
    // checksum make up for their own changes, the transport checksum also for the addresses.
    let by;
    if packet.l4 == ETH_LEN + V4_LEN as u32 {
        if ip + V4_LEN + 8 > end {
            return false;
        }
        l4 = ip + V4_LEN;
        by = !fold(change);
        // SAFETY: inside, by the check above.
        unsafe {
            // Hop limit and protocol are one word of the checksum.
            let word = packet.hop_limit as u32 | (protocol as u32) << 8;
            let checksum: u16 = get(ip + 10);
            put(ip + 8, packet.hop_limit.wrapping_sub(1));
            put(
                ip + 10,
                updated(checksum, change + changed(word, word.wrapping_sub(1))),
            );
            put(ip + 12, new_from[3]);
            put(ip + 16, new_to[3]);
        }
    } else {
        if ip + V6_LEN + 8 > end {
            return false;
        }
        l4 = ip + V6_LEN;
        change += changed(from[0], new_from[0])
            + changed(from[1], new_from[1])
            + changed(from[2], new_from[2])
            + changed(to[0], new_to[0])
            + changed(to[1], new_to[1])
            + changed(to[2], new_to[2]);
        let word = (protocol as u32) | (packet.hop_limit as u32) << 8;
        by = fold(changed(word, word.wrapping_sub(1 << 8)));
        // SAFETY: inside, by the check above.
        unsafe {
            put(ip + 7, packet.hop_limit.wrapping_sub(1));
            put(ip + 8, new_from[0]);
            put(ip + 12, new_from[1]);
            put(ip + 16, new_from[2]);
            put(ip + 20, new_from[3]);
            put(ip + 24, new_to[0]);
            put(ip + 28, new_to[1]);
            put(ip + 32, new_to[2]);
            put(ip + 36, new_to[3]);
        }
    }
    let ports =
        |source: PortBe, destination: PortBe| source.0 as u32 | (destination.0 as u32) << 16;
    let old_ports = ports(packet.key.source_port, packet.key.destination_port);
    let new_ports = ports(new.source_port, new.destination_port);
    change += changed(old_ports, new_ports);
    if protocol == TCP {
        if l4 + 18 > end {
            return false;
        }
        // SAFETY: inside, by the check above.
        unsafe { put(l4 + 16, updated(get(l4 + 16), change)) };
    } else {
        // SAFETY: 8 bytes were checked above.
        let checksum: u16 = unsafe { get(l4 + 6) };
        // None (RFC 768): stays so.
        if checksum != 0 {
            let checksum = updated(checksum, change);
            // SAFETY: as above. A sum of 0 is sent as its other form.
            unsafe { put(l4 + 6, if checksum == 0 { 0xffff } else { checksum }) };
        }
    }
    // SAFETY: 8 bytes of the transport header and all before it were checked above.
    unsafe {
        put(l4, new_ports);
        put(start, macs[0]);
        put(start + 4, macs[1]);
        put(start + 8, macs[2]);
    }
    context.add_to_sum(by as u32);
    true
}
