//! The flow table: address translation and connection tracking in one hash.
//!
//! An entry is keyed by the tuple as it arrives and carries the tuple to leave with, so that no
//! entry depends on another or on a Service that still exists. Every translated connection has
//! two: one per direction. They are removed by the agent's sweep, never by the kernel: a full
//! table refuses new flows and keeps the live ones.

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
    pub const CLOSING: u32 = FIN | RESET | PEER_FIN;
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

pub const MAX_FLOWS: u32 = 131_072;
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

pub const FIRST_UNPRIVILEGED_PORT: u16 = 1_024;
/// The API server's default `--service-node-port-range`.
pub const NODE_PORT_FIRST: u16 = 30_000;
pub const NODE_PORT_LAST: u16 = 32_767;

/// How long Linux remembers a closed connection (`TCP_TIMEWAIT_LEN`, 60 s), in the programs' clock
/// and with a margin: so long a port stays its last user's.
pub const TIME_WAIT_SECONDS: u32 = 62;

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 60);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(nat_port(0) == FIRST_UNPRIVILEGED_PORT && nat_port(NAT_PORT_COUNT - 1) == u16::MAX);
};
