//! Flow events: what the programs tell whoever listens (`skep flows`).

use crate::flow::FlowKey;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent {
    pub monotonic_ns: u64,
    pub flow: FlowKey,
    /// [`crate::reason::Reason`].
    pub reason: u32,
    /// [`Hook`].
    pub hook: u32,
    pub service: u32,
    pub ifindex: u32,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod = 0,
    ToPod = 1,
    FromNet = 2,
    ToNet = 3,
    Socket = 4,
    Xdp = 5,
}

/// Bytes of the ring; a full ring drops events, never packets.
pub const EVENT_RING_BYTES: u32 = 256 * 1024;

const _: () = assert!(size_of::<FlowEvent>() == 64);
