//! Flow events: what the programs tell whoever listens (`skep flows --follow`).

use crate::flow::FlowKey;
use crate::{Address, PortBe};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent {
    pub monotonic_ns: u64,
    /// As the packet came, or as the application asked.
    pub flow: FlowKey,
    /// As it goes on. [`Address::ANY`]: it does not, or as it came.
    pub new_source: Address,
    pub new_destination: Address,
    pub new_source_port: PortBe,
    pub new_destination_port: PortBe,
    /// [`crate::reason::Reason`].
    pub reason: u32,
    /// [`Hook`].
    pub hook: u32,
    pub service: u32,
    pub ifindex: u32,
    pub _pad: u32,
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

impl Hook {
    pub const fn name(number: u32) -> &'static str {
        match number {
            0 => "from_pod",
            1 => "to_pod",
            2 => "from_net",
            3 => "to_net",
            4 => "socket",
            5 => "xdp_net",
            _ => "unknown",
        }
    }
}

/// After how many connections the next one is told of, when that is one of `sample` on the average: from 1
/// to twice as many less one.
#[inline(always)]
pub const fn next_sample(random: u32, sample: u32) -> u32 {
    let span = sample as u64 * 2 - 1;
    1 + ((random as u64 * span) >> 32) as u32
}

/// Bytes of the ring; a full ring drops events, never packets.
pub const EVENT_RING_BYTES: u32 = 256 * 1024;

const _: () = {
    assert!(size_of::<FlowEvent>() == 104);
    assert!(next_sample(0, 100) == 1 && next_sample(u32::MAX, 100) == 199);
    assert!(next_sample(1 << 31, 100) == 100 && next_sample(u32::MAX, 1) == 1);
};
