//! Counters and flow events.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use skep_ebpf_common::event::{FlowEvent, Hook, next_sample};
use skep_ebpf_common::flow::FlowKey;
use skep_ebpf_common::node::{config_flags, seconds};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::{Address, PortBe};

use crate::atomic::increment;
use crate::maps::{BACKENDS, EVENTS, REASONS, SERVICE_COUNTERS, UNTIL_TOLD, config};
use crate::packet::Tuple;

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
pub fn service_connection(service: u32, backend: u32) {
    if let Some(element) = BACKENDS.get_ptr_mut(backend) {
        // SAFETY: an element of the map.
        unsafe { increment(addr_of_mut!((*element).connections)) };
    }
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
    if listened_to() {
        tell(flow, None, reason, hook, service, ifindex);
    }
    0
}

/// The same about a new connection, of which there may be many: the listener says how many of them
/// it wants to hear of.
#[inline(never)]
pub fn report_new(flow: &FlowKey, new: &Tuple, reason: Reason, hook: Hook, service: u32) -> i32 {
    count(reason);
    if listened_to() && sampled() {
        tell(flow, Some(new), reason, hook, service, 0);
    }
    0
}

#[inline(always)]
pub fn listened_to() -> bool {
    config().is_some_and(|config| config.flags & config_flags::EVENTS != 0)
}

/// Whether this new connection is one to tell of. How many each CPU passes over is random each time, and right
/// on the average: connections that take turns are told of alike.
#[inline(always)]
pub fn sampled() -> bool {
    let sample = config().map_or(0, |config| config.event_sample);
    if sample <= 1 {
        return true;
    }
    let Some(to_go) = UNTIL_TOLD.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: this CPU's element; a lost race tells of one more or less.
    unsafe {
        if *to_go > 1 {
            *to_go -= 1;
            return false;
        }
        *to_go = next_sample(bpf_get_prandom_u32(), sample);
    }
    true
}

#[inline(always)]
pub fn tell(
    flow: &FlowKey,
    new: Option<&Tuple>,
    reason: Reason,
    hook: Hook,
    service: u32,
    ifindex: u32,
) {
    // A full ring loses the event; the counter has it.
    let Some(mut entry) = EVENTS.reserve(0) else {
        return;
    };
    let event: *mut FlowEvent = entry.as_mut_ptr();
    // SAFETY: every field of the reserved event is written, in place: it is a fifth of the stack.
    unsafe {
        (*event).monotonic_ns = bpf_ktime_get_coarse_ns();
        (*event).flow = *flow;
        (*event).new_source = new.map_or(Address::ANY, |new| new.source);
        (*event).new_destination = new.map_or(Address::ANY, |new| new.destination);
        (*event).new_source_port = new.map_or(PortBe(0), |new| new.source_port);
        (*event).new_destination_port = new.map_or(PortBe(0), |new| new.destination_port);
        (*event).reason = reason as u32;
        (*event).hook = hook as u32;
        (*event).service = service;
        (*event).ifindex = ifindex;
        (*event)._pad = 0;
    }
    entry.submit(0);
}
