//! What the kernel side and the user side of the datapath must agree on: keys, values, limits and
//! drop reasons. No I/O, no allocation, no dependency.
//!
//! Every address is 128 bits, IPv4 in its mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2), so
//! that one set of maps and one code path serve both families; only flows, of which there are many,
//! have a map a family. Network byte order lives in [`Address`] and [`PortBe`]; a bare integer is in
//! host order.
//!
//! Read `service` first, then `flow`.
#![no_std]

pub mod address;
pub mod event;
pub mod flow;
pub mod node;
pub mod policy;
pub mod reason;
pub mod service;

pub use address::{Address, PortBe};

/// Every map and the version of its layout, which is part of its pin's name: an agent of another
/// layout never opens it. Raise a map's with every change of its key or value, or of what
/// they mean; the others keep what they hold over an upgrade.
pub const LAYOUTS: [(&str, u32); 24] = [
    ("FRONTENDS", 1),
    ("SLOTS", 1),
    ("BACKENDS", 2),
    ("AFFINITIES", 1),
    ("SOURCE_RANGES", 1),
    ("SOCKETS", 1),
    ("STREAMS", 1),
    ("PEERS", 1),
    ("FLOWS4", 2),
    ("FLOW_HASH", 1),
    ("FLOWS6", 1),
    ("NEXT_PORTS", 1),
    ("FRAGMENTS", 1),
    ("CONFIG", 2),
    ("PODS", 1),
    ("NODE_ADDRESSES", 1),
    ("ANNOUNCED", 1),
    ("NETWORKS", 1),
    ("NETNS", 2),
    ("RULES", 1),
    ("IDENTITIES", 2),
    ("REASONS", 1),
    ("SERVICE_COUNTERS", 1),
    ("EVENTS", 2),
];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
