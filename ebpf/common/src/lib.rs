//! What the kernel side and the user side of the datapath must agree on: keys, values, limits and
//! drop reasons. No I/O, no allocation, no dependency.
//!
//! Every address is 128 bits, IPv4 in its mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2), so
//! that one set of maps and one code path serve both families. Network byte order lives in
//! [`Address`] and [`PortBe`]; a bare integer is in host order.
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

/// The layouts' version; part of the pin folder's name, so that an agent of another layout never
/// opens these maps. Raise it with every change of a key or value.
pub const LAYOUT_VERSION: u32 = 2;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
