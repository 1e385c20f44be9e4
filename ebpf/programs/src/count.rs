//! Counters and flow events.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use skep_ebpf_common::event::{FlowEvent, Hook};
use skep_ebpf_common::flow::FlowKey;
use skep_ebpf_common::node::{config_flags, seconds};
use skep_ebpf_common::reason::Reason;

use crate::maps::{EVENTS, REASONS, SERVICE_COUNTERS, config};

#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    seconds(unsafe { bpf_ktime_get_coarse_ns() })
}

#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's element; programs of one hook are not preempted by one another.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub fn service_connection(service: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
        // SAFETY: as in `count`.
        unsafe { (*counters).connections += 1 };
    }
}

#[inline(always)]
pub fn service_refused(service: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
        // SAFETY: as in `count`.
        unsafe { (*counters).refused += 1 };
    }
}

/// Counts, and tells the listener if there is one.
#[inline(never)]
pub fn report(flow: &FlowKey, reason: Reason, hook: Hook, service: u32, ifindex: u32) -> i32 {
    count(reason);
    if let Some(config) = config()
        && config.flags & config_flags::EVENTS != 0
    {
        let event = FlowEvent {
            // SAFETY: no arguments.
            monotonic_ns: unsafe { bpf_ktime_get_coarse_ns() },
            flow: *flow,
            reason: reason as u32,
            hook: hook as u32,
            service,
            ifindex,
        };
        // A full ring loses the event; the counter above has it.
        let _ = EVENTS.output(&event, 0);
    }
    0
}
