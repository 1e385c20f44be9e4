//! XDP on the uplink: `xdp_net` does for plain packets of known flows and Services what `from_net`
//! does for all, before the kernel makes a socket buffer of them. Linux >= 5.18 (frames in several
//! buffers).
//!
//! Whatever is rare it passes on as it came, and `from_net` finds the same tables: nothing is
//! decided twice, because following a flow again changes nothing.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::{FlowKey, flow_flags};
use skep_ebpf_common::node::pod_flags;
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::frontend_flags;

use crate::context::Context;
use crate::count::{count, report};
use crate::direct::{looks_unfinished, parse_plain, rewrite_plain};
use crate::flow::{expect_answer, follow_here, forget_created, tells};
use crate::forward::{Way, way_of};
use crate::known::{Known, rewrite_known};
use crate::maps::{Scratch, scratch};
use crate::net::{FAILED, REFUSED, SERVED, plan, report_failure, start};
use crate::packet::{ACK, SYN};
use crate::policy;
use crate::service::find;
use crate::tunnel;

#[xdp(frags)]
pub fn xdp_net(ctx: XdpContext) -> u32 {
    let frame = ctx.ctx;
    match send_shortest(frame) {
        NEW_FLOW => send_longer(frame, true),
        UNSURE => send_longer(frame, false),
        verdict => verdict,
    }
}

/// What [`send_shortest`] says beside verdicts.
const NEW_FLOW: u32 = u32::MAX - 1;
const UNSURE: u32 = u32::MAX;

// VERIFIER: frames of their own, or one is too large for what the other calls.

#[inline(never)]
fn send_shortest(frame: *mut xdp_md) -> u32 {
    match rewrite_known(frame, Some(Hook::Xdp), |found| is_ours(frame, found.way)) {
        Known::Rewritten(way) => send(way),
        Known::NotOurs => XDP_PASS,
        Known::Denied => XDP_DROP,
        Known::NewFlow => NEW_FLOW,
        Known::Unsure | Known::Broken => UNSURE,
    }
}

/// `is_new`: the flow table has been asked already.
#[inline(never)]
fn send_longer(frame: *mut xdp_md, is_new: bool) -> u32 {
    let Some(scratch) = scratch() else {
        return XDP_PASS;
    };
    if !parse_plain(frame, &mut scratch.packet) || looks_unfinished(frame, &scratch.packet) {
        return XDP_PASS;
    }
    arrived(frame, scratch, is_new)
}

/// Any way but these is the stack's: it knows how to ask for a neighbour, and what is the node's own.
#[inline(always)]
fn is_ours(frame: *mut xdp_md, way: &Way) -> bool {
    if way.is_pod {
        way.pod_flags & pod_flags::TAKES_FRAMES != 0
    } else {
        way.ifindex == frame.ifindex()
    }
}

#[inline(always)]
fn send(way: &Way) -> u32 {
    if !way.is_pod {
        count(Reason::XdpToNeighbour);
        return XDP_TX;
    }
    count(Reason::XdpToPod);
    // Into the receive queue of the pod's end of its veth pair.
    // SAFETY: no pointers.
    (unsafe { bpf_redirect(way.ifindex, 0) }) as u32
}

#[inline(always)]
fn arrived(frame: *mut xdp_md, scratch: &mut Scratch, is_new: bool) -> u32 {
    if scratch.packet.hop_limit <= 1 {
        return XDP_PASS;
    }
    let now = scratch.now();
    // A new flow costs what it waits for memory that nobody has touched lately: one wait for both
    // entries is half of one for each.
    let opens = scratch.packet.tcp_flags & (SYN | ACK) == SYN;
    let planned = if opens { begin(scratch) } else { NOT_OURS };
    if planned == SERVED {
        expect_answer(scratch);
    }
    let followed = if is_new {
        None
    } else {
        follow_here(&mut scratch.packet, &mut scratch.new, now)
    };
    match &followed {
        // Back to the node where it came in; or with an option.
        Some(followed) if followed.via != 0 || tells(followed, &scratch.packet) => {
            return XDP_PASS;
        }
        Some(_) => {}
        None => match start_planned(frame, scratch, opens, planned) {
            SERVED if scratch.wanted.flags & flow_flags::DIRECT != 0 => return XDP_PASS,
            SERVED => {}
            code if code < FAILED => return XDP_PASS,
            code => {
                report_failure(frame, Hook::Xdp, scratch, code);
                return XDP_DROP;
            }
        },
    }
    let Some(way) = way_of(frame, scratch.packet.len, &scratch.new) else {
        return XDP_PASS;
    };
    let isolated = way.pod_flags & pod_flags::INGRESS_ISOLATED != 0;
    if isolated && !followed.as_ref().is_some_and(policy::settled) && !admitted(scratch, way.policy)
    {
        if followed.is_none() {
            forget_created(scratch);
        }
        report(
            &scratch.packet.key,
            Reason::PolicyIngress,
            Hook::Xdp,
            0,
            frame.ifindex(),
        );
        return XDP_DROP;
    }
    if !is_ours(frame, way) {
        return match way.is_pod {
            true => XDP_PASS,
            false => tunnel::enter(frame, scratch, way),
        };
    }
    if !rewrite_plain(frame, &scratch.packet, &scratch.new, &way.macs) {
        return XDP_PASS;
    }
    send(way)
}

const NOT_OURS: u32 = REFUSED;

/// What a new flow should be; as [`plan`] says, and anything below [`FAILED`] but [`SERVED`] is not for
/// this program.
#[inline(never)]
fn begin(scratch: &mut Scratch) -> u32 {
    let key = &scratch.packet.key;
    let found = find(
        &key.destination,
        key.destination_port,
        key.protocol,
        false,
        &mut scratch.frontend,
    );
    if !found
        || scratch.frontend.flags & frontend_flags::INTERNAL_ONLY != 0
        || scratch.frontend.external.len == 0
    {
        return NOT_OURS;
    }
    plan(scratch)
}

#[inline(always)]
fn start_planned(frame: *mut xdp_md, scratch: &mut Scratch, is_planned: bool, planned: u32) -> u32 {
    let planned = if is_planned { planned } else { begin(scratch) };
    match planned {
        SERVED => start(frame, Hook::Xdp, scratch),
        code => code,
    }
}

/// Whether this policy set lets the packet in as it will be.
#[inline(never)]
fn admitted(scratch: &Scratch, policy: u32) -> bool {
    let Scratch { packet, new, .. } = scratch;
    let key = FlowKey {
        source: new.source,
        destination: new.destination,
        source_port: new.source_port,
        destination_port: new.destination_port,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    };
    policy::admits(&key, policy)
}
