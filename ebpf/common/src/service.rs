//! Services: a frontend names extents of slots, a slot names a backend.
//!
//! ```text
//! FRONTENDS  hash   {address, port, protocol} -> Frontend {internal extent, external extent}
//! SLOTS      array  u64: index of a backend; an extent is a run of slots
//! BACKENDS   array  BackendElement {Backend {address, port, service}, connections}
//! ```
//!
//! Publishing is one write of a frontend after its backends and slots are in place; a slot is one
//! atomic 64-bit store, so that one backend of many changes in O(1). A backend that left its
//! extents gets [`Backend::service`] 0 at once and is reused only after every program that may
//! have read it has ended.

use crate::{Address, PortBe};

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// [`Address::unspecified`]: a NodePort, valid on every address of the node.
    pub address: Address,
    pub port: PortBe,
    pub protocol: u8,
    pub _pad: u8,
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(address: Address, port: PortBe, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            _pad: 0,
        }
    }
}

/// A run of slots. Empty: no backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub base: u32,
    pub len: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Index into the per-Service counters; 0 is never a Service.
    pub service: u32,
    /// `frontend_flags`.
    pub flags: u32,
    /// For clients on the nodes and in the pods: internalTrafficPolicy applied.
    pub internal: Extent,
    /// For clients outside: externalTrafficPolicy applied.
    pub external: Extent,
    /// sessionAffinity ClientIP; 0 = none.
    pub affinity_seconds: u32,
    pub _pad: u32,
}

pub mod frontend_flags {
    /// Without an external backend drop instead of refusing: externalTrafficPolicy Local and the
    /// backends are on other nodes.
    pub const EXTERNAL_DROP: u32 = 1 << 0;
    /// The external extent is a Maglev table: index by the flow's hash.
    pub const EXTERNAL_MAGLEV: u32 = 1 << 1;
    /// Clients from outside must be in the Service's source ranges.
    pub const SOURCE_RANGES: u32 = 1 << 2;
    /// Not reachable from outside (a ClusterIP).
    pub const INTERNAL_ONLY: u32 = 1 << 3;
    /// External backends are all local: the client's address is never replaced.
    pub const EXTERNAL_LOCAL: u32 = 1 << 4;
    /// Backends of other nodes answer clients outside directly.
    pub const DIRECT_RETURN: u32 = 1 << 5;
    /// Clients outside are hidden behind this node even where the tunnel could keep their address.
    pub const SOURCE_NAT: u32 = 1 << 6;
}

/// A slot's value: the index of its backend.
pub type Slot = u64;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub address: Address,
    pub port: PortBe,
    /// `backend_flags`.
    pub flags: u16,
    /// The Service that may use it; 0 = gone.
    pub service: u32,
}

/// A backend and what it was given, side by side: whoever chooses it counts it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendElement {
    pub backend: Backend,
    /// Connections since the element was taken. One word for all CPUs: a word for each would be 128 MB on a
    /// machine of 64, and a connection is rare beside packets.
    pub connections: u64,
}

pub mod backend_flags {
    /// Runs on this node.
    pub const LOCAL: u16 = 1 << 0;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityKey {
    pub client: Address,
    pub service: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub backend: u32,
    /// Seconds of the monotonic clock (see [`crate::node::seconds`]).
    pub seen: u32,
}

/// loadBalancerSourceRanges: the Service, then the client's prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    pub service: u32,
    pub client: Address,
}

/// What the socket hooks did to one destination of a socket; they undo it for the application.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Translation {
    pub frontend: Address,
    pub backend: Address,
    pub frontend_port: PortBe,
    pub backend_port: PortBe,
    pub index: u32,
    pub service: u32,
    pub _pad: u32,
}

/// The translation of one socket, in the place that its cookie gives it. A place is taken while it is
/// free and given back when the socket is closed; a socket whose place another has keeps its
/// translation in its own storage, whose allocation costs three times what the rest of a hook does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// Whose place it is; 0 = free.
    pub cookie: u64,
    pub translation: Translation,
    pub _pad: u64,
}

/// The storage of a TCP socket, which has one destination for good.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamRecord {
    pub frontend: Address,
    pub backend: Address,
    pub frontend_port: PortBe,
    pub backend_port: PortBe,
}

/// Destinations in a datagram socket's storage: a resolver that sends to its servers in turn has up to
/// three.
pub const TRANSLATIONS: usize = 4;

/// The storage of a datagram socket; dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketRecord {
    /// Translations made so far; the next goes to `count % TRANSLATIONS`.
    pub count: u32,
    pub _pad: u32,
    pub entries: [Translation; TRANSLATIONS],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Connections (or unconnected datagrams' first packets) given a backend.
    pub connections: u64,
    /// Connections refused for want of a backend.
    pub refused: u64,
}

pub const MAX_FRONTENDS: u32 = 65_536;
pub const MAX_SERVICES: u32 = 65_536;
pub const MAX_SLOTS: u32 = 1 << 21;
pub const MAX_BACKENDS: u32 = 1 << 18;
pub const MAX_AFFINITIES: u32 = 65_536;
pub const MAX_SOURCE_RANGES: u32 = 16_384;
/// A power of two. Cookies are counted up, so places are taken in turn.
pub const MAX_PEERS: u32 = 1 << 15;

const _: () = {
    assert!(size_of::<FrontendKey>() == 20);
    assert!(size_of::<Frontend>() == 32);
    assert!(size_of::<Backend>() == 24);
    // Never in two lines of the cache.
    assert!(size_of::<BackendElement>() == 32);
    assert!(size_of::<AffinityKey>() == 20);
    assert!(size_of::<Affinity>() == 8);
    assert!(size_of::<SourceRange>() == 20);
    assert!(size_of::<Translation>() == 48);
    assert!(size_of::<SocketRecord>() == 200);
    assert!(size_of::<StreamRecord>() == 36);
    // A line of the cache.
    assert!(size_of::<Peer>() == 64);
    assert!(MAX_PEERS.is_power_of_two());
};
