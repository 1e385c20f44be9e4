//! The flow table: address translation and connection tracking in one hash a family.
//!
//! An entry is keyed by the tuple as it arrives and carries the tuple to leave with, so that no
//! entry depends on another or on a Service that still exists. Every translated connection has
//! two: one per direction. They are removed by the agent's sweep, never by the kernel: a full
//! table refuses new flows and keeps the live ones.
//!
//! [`FlowKey`] and [`Flow`] hold both families and are what the map of IPv6, a hash of the kernel's, has.
//! What a new flow costs is mostly the waits for memory that nobody has touched lately, and the locks of
//! the kernel's hash. So IPv4 has a hash of its own in an array: [`FlowKey4`] and [`Flow4`] say the same
//! in half the bytes, and lie in buckets.
//!
//! ```text
//! FLOWS4  array   FlowBucket {tags of the slots, slots {key, flow}}
//! ```
//! A key has two buckets of its own ([`FlowHash::places`]) and goes into the emptier one; with
//! [`BUCKET_SLOTS`] slots for two flows on the average, both are full about never. But what a backend of
//! this node will answer goes into the bucket of its receiver ([`FlowHash::receiver`]), if there is room:
//! who begins a flow knows that one before it knows the backend, and waits for all memory at once. Whether
//! such a key may be in buckets of its own, its receiver's says ([`STRAYS`]).
//!
//! A slot is taken by an atomic exchange of its bucket's tags, and found when the second word of its key
//! is written, last of all. It is given back by the exchange of that word for 0, and then of its tag.
//! Whoever has found a slot may be about to use it when it becomes another flow's, as with the kernel's hash.

use core::mem::offset_of;

use crate::{Address, PortBe};

/// A packet's tuple. ICMP echo: the identifier is the source port of a request and the
/// destination port of a reply; the other is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub source: Address,
    pub destination: Address,
    pub source_port: PortBe,
    pub destination_port: PortBe,
    pub protocol: u8,
    pub _pad: [u8; 3],
}

impl FlowKey {
    /// The tuple of the answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            _pad: [0; 3],
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The tuple to leave with.
    pub source: Address,
    pub destination: Address,
    pub source_port: PortBe,
    pub destination_port: PortBe,
    /// `flow_flags`.
    pub flags: u32,
    /// When a packet last used it, in seconds of the monotonic clock.
    pub seen: u32,
    /// The Service translated, or 0.
    pub service: u32,
    /// The backend chosen, or 0 without a Service.
    pub backend: u32,
    /// The policy generation that allowed it; another generation asks again.
    pub policy_generation: u32,
    /// The node to tunnel the packet to, an IPv4 address in network byte order; 0 = as routed.
    pub via: u32,
}

impl Flow {
    /// Whether this entry's other direction is the one of `key`. An entry may outlive its pair: the
    /// asking side has begun anew, and the old answer's entry keeps the port.
    #[inline(always)]
    pub fn answers(&self, key: &FlowKey) -> bool {
        self.destination_port == key.source_port
            && self.destination == key.source
            && (self.flags & flow_flags::DIRECT != 0
                || (self.source_port == key.destination_port && self.source == key.destination))
    }

    /// Whether a backend of this node might answer under `key`, this entry's own: not if its receiver is
    /// a port that this node gave out.
    #[inline(always)]
    pub fn may_stray(&self, key: &FlowKey) -> bool {
        self.flags & flow_flags::REVERSE == 0 || self.destination == key.destination
    }

    /// The key under which the other direction's entry is found; `key` is this entry's own.
    #[inline(always)]
    pub fn reverse_key(&self, key: &FlowKey) -> FlowKey {
        if self.flags & flow_flags::DIRECT != 0 {
            return key.reversed();
        }
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: key.protocol,
            _pad: [0; 3],
        }
    }
}

/// A [`FlowKey`] of IPv4 in two words: the addresses; the ports, and the protocol, which is never 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq)]
pub struct FlowKey4(pub [u64; 2]);

impl PartialEq for FlowKey4 {
    // As of `Address`.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0[0] == other.0[0] && self.0[1] == other.0[1]
    }
}

impl FlowKey4 {
    /// Meaningless of another family's.
    #[inline(always)]
    pub const fn of(key: &FlowKey) -> Self {
        Self([
            key.source.v4_be() as u64 | (key.destination.v4_be() as u64) << 32,
            key.source_port.0 as u64
                | (key.destination_port.0 as u64) << 16
                | (key.protocol as u64) << 32,
        ])
    }

    /// Addresses and ports of what goes the other way, side by side as in a packet.
    #[inline(always)]
    pub const fn reversed(&self) -> (u64, u32) {
        let [addresses, rest] = self.0;
        (addresses.rotate_left(32), (rest as u32).rotate_left(16))
    }

    /// The port that it comes from and its protocol, in one number other than 0.
    #[inline(always)]
    pub const fn source_port_and_protocol(&self) -> u32 {
        let rest = self.0[1];
        rest as u16 as u32 | ((rest >> 32) as u32) << 16
    }

    #[inline(always)]
    pub const fn widened(&self) -> FlowKey {
        let [addresses, rest] = self.0;
        FlowKey {
            source: Address::from_v4_be(addresses as u32),
            destination: Address::from_v4_be((addresses >> 32) as u32),
            source_port: PortBe(rest as u16),
            destination_port: PortBe((rest >> 16) as u16),
            protocol: (rest >> 32) as u8,
            _pad: [0; 3],
        }
    }
}

/// An address, a port and their protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd(u64);

impl FlowEnd {
    /// Where what has this key comes from.
    #[inline(always)]
    pub const fn sender(key: &FlowKey4) -> Self {
        let [addresses, rest] = key.0;
        Self(addresses as u32 as u64 | (rest as u16 as u64 | rest >> 32 << 16) << 32)
    }

    /// Where it goes.
    #[inline(always)]
    pub const fn receiver(key: &FlowKey4) -> Self {
        let [addresses, rest] = key.0;
        Self(addresses >> 32 | rest >> 16 << 32)
    }
}

/// How keys of IPv4 are spread over the buckets. The seed is this node's own: nobody outside can fill a
/// bucket on purpose.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowHash {
    pub seed: u64,
    /// Buckets, a power of two, less one.
    pub mask: u32,
    pub _pad: u32,
}

/// A key's own buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPlaces {
    pub buckets: [u32; 2],
    /// What its slot has in [`FlowBucket::tags`]: odd.
    pub tag: u64,
}

/// The bucket of a key's receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPlace {
    pub bucket: u32,
    /// As [`FlowPlaces::tag`]; all keys to this receiver have the same.
    pub tag: u64,
}

impl FlowHash {
    /// Of what goes to `to`.
    #[inline(always)]
    pub const fn receiver(&self, to: FlowEnd) -> FlowPlace {
        let mut hash = (to.0 ^ self.seed).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        FlowPlace {
            bucket: hash as u32 & self.mask,
            tag: tag_in(hash),
        }
    }

    // The finaliser of MurmurHash3, for two words.
    #[inline(always)]
    pub const fn places(&self, key: &FlowKey4) -> FlowPlaces {
        let mut hash = key.0[0] ^ self.seed;
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33 ^ key.0[1]).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
        FlowPlaces {
            buckets: [hash as u32 & self.mask, (hash >> 32) as u32 & self.mask],
            tag: tag_in(hash),
        }
    }
}

#[inline(always)]
const fn tag_in(hash: u64) -> u64 {
    hash >> (64 - TAG_BITS) | 1
}

pub const BUCKET_SLOTS: usize = 5;
pub const TAG_BITS: u32 = 12;
pub const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
/// The lowest bit of every tag.
const TAG_ONES: u64 = 0x1_0010_0100_1001;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowSlot {
    pub key: FlowKey4,
    pub flow: Flow4,
}

/// Beyond the tags: a key to a receiver of this bucket has been put into a bucket of its own since the last
/// sweep. Set before it is put there.
pub const STRAYED: u64 = 1 << 60;
/// One had been before the last sweep, and is there still.
pub const STRAYING: u64 = 1 << 61;
pub const STRAYS: u64 = STRAYED | STRAYING;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowBucket {
    /// [`TAG_BITS`] of each slot; 0: free. Above them [`STRAYS`].
    pub tags: u64,
    pub _pad: u64,
    pub slots: [FlowSlot; BUCKET_SLOTS],
}

/// How many slots are taken.
#[inline(always)]
pub const fn taken(tags: u64) -> u64 {
    // The product's highest such digit is the sum of all.
    (tags & TAG_ONES).wrapping_mul(TAG_ONES) >> (TAG_BITS * (BUCKET_SLOTS as u32 - 1)) & TAG_MASK
}

/// The lowest bit of the first slot with this tag; 0: there is none.
#[inline(always)]
pub const fn first_matching(tags: u64, tag: u64) -> u64 {
    let differing = tags ^ tag.wrapping_mul(TAG_ONES);
    // The highest bit of each tag that was 0 before the subtraction, and perhaps of some above it.
    let same = differing.wrapping_sub(TAG_ONES) & !differing & TAG_ONES << (TAG_BITS - 1);
    (same & same.wrapping_neg()) >> (TAG_BITS - 1)
}

/// How many slots there are before the one with this lowest bit.
#[inline(always)]
pub const fn taken_below(lowest: u64) -> u64 {
    taken(lowest.wrapping_sub(1))
}

/// The lowest bit of the first free slot; 0: all are taken.
#[inline(always)]
pub const fn first_free(tags: u64) -> u64 {
    let free = !tags & TAG_ONES;
    free & free.wrapping_neg()
}

/// The same for a key whose receiver's bucket this is: the last slot is left to keys that have only one other.
#[inline(always)]
pub const fn first_free_at_receiver(tags: u64) -> u64 {
    first_free(tags | 1 << (TAG_BITS * (BUCKET_SLOTS as u32 - 1)))
}

/// The tag of a slot.
#[inline(always)]
pub const fn tag_of(tags: u64, slot: usize) -> u64 {
    tags >> (TAG_BITS * slot as u32) & TAG_MASK
}

/// Buckets for so many flows.
pub const fn buckets_for(flows: u32) -> u32 {
    let half = flows.div_ceil(2);
    if half < 4 {
        4
    } else {
        half.next_power_of_two()
    }
}

/// A [`Flow`] of IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow4 {
    pub source: u32,
    pub destination: u32,
    pub source_port: PortBe,
    pub destination_port: PortBe,
    pub flags: u16,
    /// Of [`crate::service::MAX_SERVICES`].
    pub service: u16,
    pub seen: u32,
    pub backend: u32,
    pub policy_generation: u32,
    pub via: u32,
}

// Programs write it by words.
const _: () = {
    assert!(offset_of!(Flow4, destination) == 4 && offset_of!(Flow4, source_port) == 8);
    assert!(offset_of!(Flow4, destination_port) == 10 && offset_of!(Flow4, flags) == 12);
    assert!(offset_of!(Flow4, service) == 14 && offset_of!(Flow4, seen) == 16);
    assert!(offset_of!(Flow4, backend) == 20 && offset_of!(Flow4, policy_generation) == 24);
    assert!(offset_of!(Flow4, via) == 28 && offset_of!(FlowSlot, flow) % 8 == 0);
};

impl Flow4 {
    /// Meaningless of another family's.
    #[inline(always)]
    pub const fn of(flow: &Flow) -> Self {
        Self {
            source: flow.source.v4_be(),
            destination: flow.destination.v4_be(),
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            flags: flow.flags as u16,
            service: flow.service as u16,
            seen: flow.seen,
            backend: flow.backend,
            policy_generation: flow.policy_generation,
            via: flow.via,
        }
    }

    #[inline(always)]
    pub const fn widened(&self) -> Flow {
        Flow {
            source: Address::from_v4_be(self.source),
            destination: Address::from_v4_be(self.destination),
            source_port: self.source_port,
            destination_port: self.destination_port,
            flags: self.flags as u32,
            seen: self.seen,
            service: self.service as u32,
            backend: self.backend,
            policy_generation: self.policy_generation,
            via: self.via,
        }
    }
}

pub mod flow_flags {
    /// Runs from the answering side to the asking side.
    pub const REVERSE: u32 = 1 << 0;
    /// An answer was seen: not a half-open connection.
    pub const ANSWERED: u32 = 1 << 1;
    /// FIN seen in this direction.
    pub const FIN: u32 = 1 << 2;
    /// RST seen in either direction.
    pub const RESET: u32 = 1 << 3;
    /// FIN seen in the other direction.
    pub const PEER_FIN: u32 = 1 << 4;
    /// A pod's address hidden behind the node's.
    pub const MASQUERADE: u32 = 1 << 5;
    /// Nothing is rewritten: the entry only remembers that policy allowed the connection.
    pub const TRACK_ONLY: u32 = 1 << 6;
    /// Direct server return: the backend's node answers the client. The node where a connection
    /// comes in has one entry, of the asking direction; the backend's node has a pair whose keys
    /// are each other's reverse, because the packet arrives there translated.
    pub const DIRECT: u32 = 1 << 7;
    /// The asking side has closed first: TIME_WAIT is its own, and the answering side soon remembers
    /// nothing. (Of two that close at the same moment both remember; that is rare.)
    pub const ASKER_FIRST: u32 = 1 << 8;
    /// A backend of this node answers, and its answer's entry is in its receiver's bucket if there was room.
    pub const LOCAL: u32 = 1 << 9;
    pub const CLOSING: u32 = FIN | RESET | PEER_FIN;
    const _: () = assert!(LOCAL <= u16::MAX as u32, "see `Flow4`");
}

/// First fragments tell the ports of the later ones (RFC 791 §3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    pub id: u32,
    pub protocol: u8,
    pub _pad: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub source_port: PortBe,
    pub destination_port: PortBe,
}

/// The IPv4 option by which a node tells the backend's node which Service address and port to
/// answer with: an experimental one (RFC 4727 §3.1), copied into fragments. Type, length, port,
/// address.
pub const RETURN_OPTION: [u8; 2] = [0x9e, 8];

/// The same in IPv6: a header of destination options (RFC 8200 §4.6) that is nothing else. Its first
/// word after the next header's type says its length and pads; then an experimental option (RFC 4727)
/// that who does not know it passes over: type, length, port, address.
pub const RETURN_HEADER: [u8; 5] = [2, 1, 0, 0x1e, 18];
pub const RETURN_HEADER_LEN: u32 = 24;

/// Of each family.
pub const MAX_FLOWS: u32 = 131_072;
pub const MAX_BUCKETS: u32 = buckets_for(MAX_FLOWS);
pub const MAX_FRAGMENTS: u32 = 4_096;

/// Where a port for a translated source is looked for when its own is taken: all that a server may
/// not have, but for NodePorts. Ports of the node's own sockets are among them; each is asked for.
pub const NAT_PORT_COUNT: u32 =
    65_536 - FIRST_UNPRIVILEGED_PORT as u32 - (NODE_PORT_LAST as u32 - NODE_PORT_FIRST as u32 + 1);

/// One of the [`NAT_PORT_COUNT`] ports; `index` counts them.
#[inline(always)]
pub const fn nat_port(index: u32) -> u16 {
    let port = FIRST_UNPRIVILEGED_PORT as u32 + index;
    if port < NODE_PORT_FIRST as u32 {
        port as u16
    } else {
        (port + (NODE_PORT_LAST - NODE_PORT_FIRST + 1) as u32) as u16
    }
}

/// Counters of the ports given out, a power of two. Each remote address and port has one, which it may
/// share: a port comes round when all others have.
pub const MAX_NEXT_PORTS: u32 = 4_096;

pub const FIRST_UNPRIVILEGED_PORT: u16 = 1_024;
/// The API server's default `--service-node-port-range`.
pub const NODE_PORT_FIRST: u16 = 30_000;
pub const NODE_PORT_LAST: u16 = 32_767;

/// How long Linux remembers a closed connection (`TCP_TIMEWAIT_LEN`, 60 s), in the programs' clock
/// and with a margin: so long a port stays its last user's.
pub const TIME_WAIT_SECONDS: u32 = 62;
/// How long the side that closed last waits for the acknowledgement of that: a packet or two.
pub const LAST_ACK_SECONDS: u32 = 3;

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 60);
    assert!(size_of::<FlowKey4>() == 16);
    assert!(size_of::<Flow4>() == 32);
    // Four lines of the cache, the tags in the first.
    assert!(size_of::<FlowBucket>() == 256);
    assert!(1 << (TAG_BITS * BUCKET_SLOTS as u32) <= STRAYED);
    assert!(taken(STRAYS) == 0 && first_free(STRAYS | 1) == 1 << 12);
    assert!(first_matching(STRAYS | 0x123, 0x123) == 1 && first_matching(STRAYS, 0x123) == 0);
    assert!(taken(0) == 0 && taken(TAG_ONES) == 5 && taken(TAG_MASK << 24 | 1) == 2);
    assert!(first_free(0) == 1 && first_free(TAG_ONES) == 0 && first_free(0x7001) == 1 << 24);
    assert!(first_matching(0x12_3045, 0x123) == 1 << 12 && first_matching(0x12_3045, 0x125) == 0);
    assert!(taken_below(1) == 0 && taken_below(1 << 12) == 1 && taken_below(1 << 48) == 4);
    assert!(crate::service::MAX_SERVICES - 1 <= u16::MAX as u32);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(MAX_NEXT_PORTS.is_power_of_two());
    assert!(nat_port(0) == FIRST_UNPRIVILEGED_PORT && nat_port(NAT_PORT_COUNT - 1) == u16::MAX);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use super::*;

    #[test]
    fn buckets_take_more_flows_than_there_may_be() {
        let key = |number: u32, answer: bool| {
            let asked = FlowKey {
                source: Address::from_v4_be((0xc612_0000 | number >> 8).to_be()),
                destination: Address::from_v4_be(0xc000_020au32.to_be()),
                source_port: PortBe::new(40_000 + (number & 0xff) as u16),
                destination_port: PortBe::new(30_080),
                protocol: 6,
                _pad: [0; 3],
            };
            FlowKey4::of(&if answer { asked.reversed() } else { asked })
        };
        for (seed, flows) in [(0, 16_384), (1, MAX_FLOWS), (0x5ce9_5ce9_5ce9, 100_000)] {
            let buckets = buckets_for(flows);
            let hash = FlowHash {
                seed,
                mask: buckets - 1,
                _pad: 0,
            };
            let mut tags = vec![0u64; buckets as usize];
            let mut strays = 0;
            for number in 0..flows {
                let key = key(number / 2, number % 2 == 1);
                assert_eq!(FlowKey4::of(&key.widened()), key);
                let FlowPlaces { buckets, tag } = hash.places(&key);
                let emptier = buckets
                    .into_iter()
                    .min_by_key(|bucket| taken(tags[*bucket as usize]));
                let receiver = hash.receiver(FlowEnd::receiver(&key));
                let is_full = first_free_at_receiver(tags[receiver.bucket as usize]) == 0;
                let (bucket, tag) = if number % 2 == 0 || is_full {
                    strays += number % 2;
                    (emptier.unwrap_or(0), tag)
                } else {
                    (receiver.bucket, receiver.tag)
                };
                let tags = &mut tags[bucket as usize];
                let free = (0..BUCKET_SLOTS).find(|slot| tag_of(*tags, *slot) == 0);
                let free = free.expect("a slot");
                *tags |= tag << (TAG_BITS * free as u32);
                assert_eq!(tag_of(*tags, free), tag);
            }
            assert!(strays < flows / 100, "{strays} of {flows}");
        }
    }
}
