//! Reading and rewriting packets of tc programs. The only file that knows header offsets.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use skep_ebpf_common::flow::{
    FlowKey, FragmentKey, FragmentPorts, RETURN_HEADER, RETURN_HEADER_LEN, RETURN_OPTION,
};
use skep_ebpf_common::{Address, ICMP, ICMPV6, PortBe, SCTP, TCP, UDP};

use crate::context::Context;
use crate::maps::FRAGMENTS;

pub const ETH_LEN: u32 = 14;
const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
const ETH_P_ARP: u32 = 0x0806u16.to_be() as u32;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// IPv6's (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT_HEADER: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Of those that are passed over before a fragment's header or the transport's: as many as RFC 8200
/// §4.1 has there, and one more.
const MAX_EXTENSIONS: u32 = 4;

/// Room between the IP header and what follows (`enum bpf_adj_room_mode`).
const BPF_ADJ_ROOM_NET: u32 = 0;

/// What is known of a packet. Offsets count from the Ethernet header.
#[repr(C)]
pub struct Packet {
    pub key: FlowKey,
    /// Offset of the transport header.
    pub l4: u32,
    /// Of the whole, from the IP header on, as that header says.
    pub len: u32,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    pub hop_limit: u8,
    pub shape: Shape,
    /// Of a plain packet: the two bits that the network marks it with.
    pub congestion: u8,
    /// An ended connection of the same tuple is still in the flow table.
    pub again: bool,
}

impl Packet {
    #[inline(always)]
    pub fn is(&self, shape: Shape) -> bool {
        self.shape as u8 == shape as u8
    }

    #[inline(always)]
    pub fn tuple(&self) -> Tuple {
        Tuple {
            source: self.key.source,
            destination: self.key.destination,
            source_port: self.key.source_port,
            destination_port: self.key.destination_port,
        }
    }

    /// Whether the key names one flow.
    #[inline(always)]
    pub fn has_tuple(&self) -> bool {
        self.is(Shape::Ports) || self.is(Shape::LaterFragment)
    }
}

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Ports (or an ICMP echo identifier) are known and in this packet.
    Ports = 0,
    /// Ports are known from the first fragment; the packet carries none.
    LaterFragment = 1,
    /// An ICMP error: the tuple is in its payload.
    IcmpError = 2,
    /// Another protocol: addresses only.
    Portless = 3,
    /// A fragment whose first was not seen.
    UnknownFragment = 4,
    /// IPv6 neighbour discovery and the like: the stack's business.
    LinkLocal = 5,
}

#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    Ip = 0,
    NotIp = 1,
    Truncated = 2,
}

#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills exactly `size_of::<T>()` bytes or fails.
    unsafe {
        let result = bpf_skb_load_bytes(
            skb.cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        );
        (result == 0).then(|| value.assume_init())
    }
}

#[inline(always)]
pub fn store<T: Copy>(skb: *mut __sk_buff, offset: u32, value: &T) -> Option<()> {
    // SAFETY: reads `size_of::<T>()` bytes of `value`.
    let result = unsafe {
        bpf_skb_store_bytes(
            skb,
            offset,
            addr_of!(*value).cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    (result == 0).then_some(())
}

#[inline(always)]
pub fn mark(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the hook's context.
    unsafe { addr_of!((*skb).mark).read_volatile() }
}

#[inline(always)]
pub fn set_mark(skb: *mut __sk_buff, mark: u32) {
    // SAFETY: the hook's context.
    unsafe { addr_of_mut!((*skb).mark).write_volatile(mark) };
}

#[inline(always)]
pub fn ifindex(context: impl Context) -> u32 {
    context.ifindex()
}

#[inline(always)]
pub fn is_arp(skb: *mut __sk_buff) -> bool {
    // SAFETY: the hook's context.
    (unsafe { addr_of!((*skb).protocol).read_volatile() }) == ETH_P_ARP
}

/// Fills `packet`, every field of it.
#[inline(never)]
pub fn parse(skb: *mut __sk_buff, packet: &mut Packet) -> Parsed {
    // SAFETY: the hook's context.
    let protocol = unsafe { addr_of!((*skb).protocol).read_volatile() };
    let parsed = if protocol == ETH_P_IP {
        parse_v4(skb, packet)
    } else if protocol == ETH_P_IPV6 {
        parse_v6(skb, packet)
    } else {
        return Parsed::NotIp;
    };
    match parsed {
        Some(()) => Parsed::Ip,
        None => Parsed::Truncated,
    }
}

#[inline(always)]
fn parse_v4(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let header: [u32; 5] = load(skb, ETH_LEN)?;
    let first = u32::from_be(header[0]);
    let header_len = ((first >> 24) & 0x0f) * 4;
    if header_len < 20 {
        return None;
    }
    let fragment = u32::from_be(header[1]);
    let word = u32::from_be(header[2]);
    let protocol = (word >> 16) as u8;
    packet.hop_limit = (word >> 24) as u8;
    packet.key.source = Address::from_v4_be(header[3]);
    packet.key.destination = Address::from_v4_be(header[4]);
    packet.key.protocol = protocol;
    packet.key._pad = [0; 3];
    packet.l4 = ETH_LEN + header_len;
    packet.len = first & 0xffff;
    packet.tcp_flags = 0;
    packet.again = false;
    if fragment & 0x1fff != 0 {
        return later_fragment(packet, fragment >> 16);
    }
    transport(skb, packet, protocol)?;
    if fragment & 0x2000 != 0 && packet.shape as u8 == Shape::Ports as u8 {
        first_fragment(packet, fragment >> 16);
    }
    Some(())
}

#[inline(always)]
fn parse_v6(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let header: [u32; 10] = load(skb, ETH_LEN)?;
    let word = u32::from_be(header[1]);
    let mut protocol = (word >> 8) as u8;
    packet.hop_limit = word as u8;
    packet.key.source = Address([header[2], header[3], header[4], header[5]]);
    packet.key.destination = Address([header[6], header[7], header[8], header[9]]);
    if packet.key.source.is_v4() || packet.key.destination.is_v4() {
        // Our own form of IPv4's, which no network carries (RFC 4291 §2.5.5.2).
        return None;
    }
    packet.key._pad = [0; 3];
    packet.l4 = ETH_LEN + 40;
    packet.len = 40 + (word >> 16);
    packet.tcp_flags = 0;
    packet.again = false;
    protocol = pass_extensions(skb, packet, protocol)?;
    packet.key.protocol = protocol;
    if protocol != FRAGMENT_HEADER {
        return transport(skb, packet, protocol);
    }
    let [word, id]: [u32; 2] = load(skb, packet.l4)?;
    let word = u32::from_be(word);
    let protocol = (word >> 24) as u8;
    packet.key.protocol = protocol;
    packet.l4 += 8;
    if word & 0xfff8 != 0 {
        return later_fragment(packet, id);
    }
    transport(skb, packet, protocol)?;
    if word & 1 != 0 && packet.is(Shape::Ports) {
        first_fragment(packet, id);
    }
    Some(())
}

/// Moves `l4` past extension headers, the first of which is of the type `next`; returns what follows
/// them. Others than these, and more of them, are left to the stack: the packet has no ports.
#[inline(always)]
fn pass_extensions(skb: *mut __sk_buff, packet: &mut Packet, mut next: u8) -> Option<u8> {
    for _ in 0..MAX_EXTENSIONS {
        if next != HOP_BY_HOP && next != ROUTING && next != DESTINATION_OPTIONS {
            break;
        }
        let [following, len, _, segments_left]: [u8; 4] = load(skb, packet.l4)?;
        if next == ROUTING && segments_left != 0 {
            // The destination is a stop on the way: the transport checksum is another's.
            break;
        }
        packet.l4 += (len as u32 + 1) * 8;
        next = following;
    }
    Some(next)
}

#[inline(always)]
fn transport(skb: *mut __sk_buff, packet: &mut Packet, protocol: u8) -> Option<()> {
    packet.shape = Shape::Ports;
    match protocol {
        TCP => {
            let header: [u16; 7] = load(skb, packet.l4)?;
            packet.key.source_port = PortBe(header[0]);
            packet.key.destination_port = PortBe(header[1]);
            packet.tcp_flags = u16::from_be(header[6]) as u8;
        }
        UDP | SCTP => {
            let ports: [u16; 2] = load(skb, packet.l4)?;
            packet.key.source_port = PortBe(ports[0]);
            packet.key.destination_port = PortBe(ports[1]);
        }
        ICMP | ICMPV6 => {
            let header: [u16; 4] = load(skb, packet.l4)?;
            let kind = (u16::from_be(header[0]) >> 8) as u8;
            packet.key.source_port = PortBe(0);
            packet.key.destination_port = PortBe(0);
            match (protocol, kind) {
                (ICMP, 8) | (ICMPV6, 128) => packet.key.source_port = PortBe(header[2]),
                (ICMP, 0) | (ICMPV6, 129) => packet.key.destination_port = PortBe(header[2]),
                (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4) => packet.shape = Shape::IcmpError,
                (ICMPV6, 133..=137) => packet.shape = Shape::LinkLocal,
                _ => packet.shape = Shape::Portless,
            }
        }
        _ => {
            packet.key.source_port = PortBe(0);
            packet.key.destination_port = PortBe(0);
            packet.shape = Shape::Portless;
        }
    }
    Some(())
}

#[inline(always)]
fn fragment_key(packet: &Packet, id: u32) -> FragmentKey {
    FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        id,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    }
}

#[inline(always)]
fn first_fragment(packet: &Packet, id: u32) {
    let ports = FragmentPorts {
        source_port: packet.key.source_port,
        destination_port: packet.key.destination_port,
    };
    // An LRU: a failed insert loses the later fragments, which are counted.
    let _ = FRAGMENTS.insert(fragment_key(packet, id), ports, 0);
}

#[inline(always)]
fn later_fragment(packet: &mut Packet, id: u32) -> Option<()> {
    // SAFETY: copied at once.
    match unsafe { FRAGMENTS.get(fragment_key(packet, id)) } {
        Some(ports) => {
            packet.key.source_port = ports.source_port;
            packet.key.destination_port = ports.destination_port;
            packet.shape = Shape::LaterFragment;
        }
        None => {
            packet.key.source_port = PortBe(0);
            packet.key.destination_port = PortBe(0);
            packet.shape = Shape::UnknownFragment;
        }
    }
    Some(())
}

/// Addresses and ports side by side, as checksums see them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: PortBe,
    pub destination_port: PortBe,
}

/// Gives the packet another tuple, checksums included; `packet` follows. `None`: a helper refused,
/// or an SCTP port would have to change.
///
/// The helpers, not plain stores: they know whether the checksum is complete or left to the
/// device (`CHECKSUM_PARTIAL`), which decides what an incremental update may touch.
#[inline(never)]
pub fn rewrite(skb: *mut __sk_buff, packet: &mut Packet, new: &Tuple) -> Option<()> {
    let protocol = packet.key.protocol;
    let l4 = packet.l4;
    let has_ports = packet.is(Shape::Ports);
    // SAFETY: source and destination are 32 bytes side by side in both; the mapped prefix of IPv4
    // cancels out.
    let difference = unsafe {
        bpf_csum_diff(
            addr_of!(packet.key.source).cast_mut().cast(),
            32,
            addr_of!(new.source).cast_mut().cast(),
            32,
            0,
        )
    };
    if difference < 0 {
        return None;
    }
    let checksum = match protocol {
        TCP => l4 + 16,
        UDP => l4 + 6,
        ICMP | ICMPV6 => l4 + 2,
        _ => 0,
    };
    let mangled = if protocol == UDP {
        BPF_F_MARK_MANGLED_0 as u64
    } else {
        0
    };
    if has_ports && checksum != 0 && protocol != ICMP {
        // SAFETY: the helper checks the offset.
        let result = unsafe {
            bpf_l4_csum_replace(
                skb,
                checksum,
                0,
                difference as u64,
                BPF_F_PSEUDO_HDR as u64 | mangled,
            )
        };
        if result != 0 {
            return None;
        }
    }
    if has_ports {
        let (first, second) = if is_icmp(protocol) {
            (l4 + 4, l4 + 4)
        } else {
            (l4, l4 + 2)
        };
        if packet.key.source_port != new.source_port {
            let (old, new) = (packet.key.source_port, new.source_port);
            replace_port(skb, checksum, first, old, new, mangled)?;
        }
        if packet.key.destination_port != new.destination_port {
            let (old, new) = (packet.key.destination_port, new.destination_port);
            replace_port(skb, checksum, second, old, new, mangled)?;
        }
    }
    if packet.key.source.is_v4() {
        // SAFETY: the helper checks the offset.
        let result = unsafe { bpf_l3_csum_replace(skb, ETH_LEN + 10, 0, difference as u64, 0) };
        if result != 0 {
            return None;
        }
        store(
            skb,
            ETH_LEN + 12,
            &[new.source.v4_be(), new.destination.v4_be()],
        )?;
    } else {
        store(skb, ETH_LEN + 8, &[new.source, new.destination])?;
    }
    packet.key.source = new.source;
    packet.key.destination = new.destination;
    packet.key.source_port = new.source_port;
    packet.key.destination_port = new.destination_port;
    Some(())
}

#[inline(always)]
fn is_icmp(protocol: u8) -> bool {
    protocol == ICMP || protocol == ICMPV6
}

#[inline(always)]
fn replace_port(
    skb: *mut __sk_buff,
    checksum: u32,
    offset: u32,
    old: PortBe,
    new: PortBe,
    mangled: u64,
) -> Option<()> {
    if checksum == 0 {
        // SCTP: its CRC covers the ports.
        return None;
    }
    // SAFETY: the helper checks the offset.
    let result =
        unsafe { bpf_l4_csum_replace(skb, checksum, old.0 as u64, new.0 as u64, 2 | mangled) };
    if result != 0 {
        return None;
    }
    store(skb, offset, &new.0)
}

/// The Internet checksum (RFC 1071) over a value whose size is a multiple of four.
#[inline(always)]
pub fn checksum<T>(covered: &T) -> Option<u16> {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    // SAFETY: reads `size_of::<T>()` bytes.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            addr_of!(*covered).cast_mut().cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    (sum >= 0).then(|| fold(sum as u32))
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// One hop further. `None`: the limit ran out.
#[inline(never)]
pub fn decrement_hop_limit(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let old = packet.hop_limit;
    if old <= 1 {
        return None;
    }
    let new = old - 1;
    if packet.key.source.is_v4() {
        // The checksum's 16-bit word is hop limit and protocol.
        let word = |limit: u8| u16::from_ne_bytes([limit, packet.key.protocol]) as u64;
        // SAFETY: the helper checks the offset.
        let result = unsafe { bpf_l3_csum_replace(skb, ETH_LEN + 10, word(old), word(new), 2) };
        if result != 0 {
            return None;
        }
        store(skb, ETH_LEN + 8, &new)?;
    } else {
        store(skb, ETH_LEN + 7, &new)?;
    }
    packet.hop_limit = new;
    Some(())
}

/// What a node says in the packet to the backend's node: the address and port to answer with. `None`:
/// nothing.
#[inline(always)]
pub fn note(skb: *mut __sk_buff, packet: &Packet) -> Option<(Address, PortBe)> {
    if packet.key.source.is_v4() {
        if packet.l4 < ETH_LEN + 20 + OPTION_LEN {
            return None;
        }
        let option: [u16; 4] = load(skb, ETH_LEN + 20)?;
        let address = Address::from_v4_be(option[2] as u32 | (option[3] as u32) << 16);
        return (option[0] == u16::from_ne_bytes(RETURN_OPTION))
            .then_some((address, PortBe(option[1])));
    }
    if packet.l4 < ETH_LEN + 40 + RETURN_HEADER_LEN || first_extension(skb)? != DESTINATION_OPTIONS
    {
        return None;
    }
    let header: [u32; 6] = load(skb, ETH_LEN + 40)?;
    if !is_return_header([header[0], header[1]]) {
        return None;
    }
    let address = Address([header[2], header[3], header[4], header[5]]);
    Some((address, PortBe((header[1] >> 16) as u16)))
}

/// Puts a note into a packet that has none.
#[inline(always)]
pub fn add_note(
    skb: *mut __sk_buff,
    packet: &mut Packet,
    address: &Address,
    port: PortBe,
) -> Option<()> {
    let port = (port.0 as u32) << 16;
    if address.is_v4() {
        let kind = u16::from_ne_bytes(RETURN_OPTION) as u32;
        return add_option(skb, packet, &[kind | port, address.v4_be()]);
    }
    let [len, pad, padding, kind, room] = RETURN_HEADER;
    let next = first_extension(skb)?;
    if next == HOP_BY_HOP {
        // Nothing may come before it.
        return None;
    }
    let header = [
        u32::from_ne_bytes([next, len, pad, padding]),
        u16::from_ne_bytes([kind, room]) as u32 | port,
        address.0[0],
        address.0[1],
        address.0[2],
        address.0[3],
    ];
    // SAFETY: no pointers but the context.
    if unsafe { bpf_skb_adjust_room(skb, RETURN_HEADER_LEN as i32, BPF_ADJ_ROOM_NET, 0) } != 0 {
        return None;
    }
    store(skb, ETH_LEN + 40, &header)?;
    packet.l4 += RETURN_HEADER_LEN;
    packet.len += RETURN_HEADER_LEN;
    set_next_header(skb, packet, DESTINATION_OPTIONS)
}

/// Takes away the note that [`note`] has found. Returns how long it was.
#[inline(always)]
pub fn remove_note(skb: *mut __sk_buff, packet: &mut Packet) -> Option<u32> {
    if packet.key.source.is_v4() {
        remove_option(skb, packet)?;
        return Some(OPTION_LEN);
    }
    let next: u8 = load(skb, ETH_LEN + 40)?;
    // SAFETY: no pointers but the context.
    if unsafe { bpf_skb_adjust_room(skb, -(RETURN_HEADER_LEN as i32), BPF_ADJ_ROOM_NET, 0) } != 0 {
        return None;
    }
    packet.l4 -= RETURN_HEADER_LEN;
    packet.len -= RETURN_HEADER_LEN;
    set_next_header(skb, packet, next)?;
    Some(RETURN_HEADER_LEN)
}

#[inline(always)]
fn is_return_header(header: [u32; 2]) -> bool {
    let [len, pad, padding, kind, room] = RETURN_HEADER;
    header[0] >> 8 == u32::from_ne_bytes([len, pad, padding, 0])
        && header[1] as u16 == u16::from_ne_bytes([kind, room])
}

/// The type of what follows the IPv6 header.
#[inline(always)]
fn first_extension(skb: *mut __sk_buff) -> Option<u8> {
    load(skb, ETH_LEN + 6)
}

/// Makes type of the next header and length of an IPv6 header true.
#[inline(always)]
fn set_next_header(skb: *mut __sk_buff, packet: &Packet, next: u8) -> Option<()> {
    let len = packet.len.wrapping_sub(40) & 0xffff;
    let word = len << 16 | (next as u32) << 8 | packet.hop_limit as u32;
    store(skb, ETH_LEN + 4, &word.to_be())
}

/// Bytes of the only option that these two know.
const OPTION_LEN: u32 = 8;

/// Puts an option before all others of an IPv4 packet.
#[inline(always)]
fn add_option(skb: *mut __sk_buff, packet: &mut Packet, option: &[u32; 2]) -> Option<()> {
    let words = (packet.l4 - ETH_LEN) / 4;
    if words + 2 > 15 {
        return None;
    }
    // SAFETY: no pointers but the context.
    if unsafe { bpf_skb_adjust_room(skb, OPTION_LEN as i32, BPF_ADJ_ROOM_NET, 0) } != 0 {
        return None;
    }
    store(skb, ETH_LEN + 20, option)?;
    packet.l4 += OPTION_LEN;
    packet.len += OPTION_LEN;
    resize_header(skb, packet, &[0, 0], option)
}

/// Takes the first option of an IPv4 packet away.
#[inline(always)]
fn remove_option(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let option: [u32; 2] = load(skb, ETH_LEN + 20)?;
    // SAFETY: no pointers but the context.
    if unsafe { bpf_skb_adjust_room(skb, -(OPTION_LEN as i32), BPF_ADJ_ROOM_NET, 0) } != 0 {
        return None;
    }
    packet.l4 -= OPTION_LEN;
    packet.len -= OPTION_LEN;
    resize_header(skb, packet, &option, &[0, 0])
}

/// Makes length and checksum of an IPv4 header true again after its options have changed.
#[inline(always)]
fn resize_header(
    skb: *mut __sk_buff,
    packet: &Packet,
    old_options: &[u32; 2],
    new_options: &[u32; 2],
) -> Option<()> {
    let first: u32 = load(skb, ETH_LEN)?;
    let words = (packet.l4 - ETH_LEN) / 4;
    let resized =
        (u32::from_be(first) & 0x00ff_0000) | 0x4000_0000 | words << 24 | packet.len & 0xffff;
    let resized = resized.to_be();
    let old = [first, old_options[0], old_options[1]];
    let new = [resized, new_options[0], new_options[1]];
    // SAFETY: both buffers are 12 bytes; the helper checks the offset.
    unsafe {
        let difference = bpf_csum_diff(
            addr_of!(old).cast_mut().cast(),
            12,
            addr_of!(new).cast_mut().cast(),
            12,
            0,
        );
        if difference < 0 || bpf_l3_csum_replace(skb, ETH_LEN + 10, 0, difference as u64, 0) != 0 {
            return None;
        }
    }
    store(skb, ETH_LEN, &resized)
}
