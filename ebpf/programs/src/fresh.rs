//! The shortest way for what begins a flow: a plain packet of IPv4 from a client outside to a Service, with a
//! backend in a pod of this node, which sees the client's own address and port.
//!
//! A new flow costs what it waits for memory that nobody has touched lately. So the buckets of both entries, which
//! depend on the packet alone, are asked for at once and with what the choice and the next one need; and both slots
//! are taken before either is filled, because an atomic exchange waits for all stores before it.
//!
//! Clients that want to be tied to a backend or kept out, ports that must be found, what is left of former
//! connections, full buckets: all that is rarer is for `flow`, which finds the packet as it came.

use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::{FlowKey4, flow_flags};
use skep_ebpf_common::node::{network_flags, pod_flags};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, PortBe};

use crate::context::Context;
use crate::count::{count, listened_to, report, sampled, service_connection, tell};
use crate::forward::{Way, way4};
use crate::maps::scratch;
use crate::packet::Tuple;
use crate::pod::{may_have_network, network_of, set_tracked};
use crate::policy;
use crate::service::{choose_ahead, find};
use crate::table::{Opening, OpeningPlaces};

/// What may become a flow.
struct Plan {
    key: FlowKey4,
    places: OpeningPlaces,
    answer: FlowKey4,
    service: u32,
    backend: u32,
}

/// What [`begin`] has found.
pub enum Fresh {
    /// Both of its entries are there: the way, and the addresses and ports to leave with.
    Begun(&'static Way, u64, u32),
    /// No Service for clients outside.
    NotOurs,
    /// Policy does not let it in. Told.
    Denied,
    /// Nothing has happened.
    Unsure,
}

/// What [`prepare`] found.
const PLANNED: u32 = 0;
const NOT_OURS: u32 = 1;
const UNSURE: u32 = 2;

/// Makes both entries of the flow of `key`, if its way is one that the caller `accepts`.
#[inline(always)]
pub fn begin<C: Context>(
    context: C,
    hook: Hook,
    key: FlowKey4,
    len: u32,
    accepts: impl Fn(&Way, u64) -> bool,
) -> Fresh {
    let Some(places) = OpeningPlaces::of(&key) else {
        return Fresh::Unsure;
    };
    let mut plan = Plan {
        key,
        places,
        answer: key,
        service: 0,
        backend: 0,
    };
    match prepare(&mut plan) {
        PLANNED => {}
        NOT_OURS => return Fresh::NotOurs,
        _ => return Fresh::Unsure,
    }
    let Plan { answer, .. } = plan;
    let (new_addresses, new_ports) = answer.reversed();
    let Some(way) = way4(context, len, new_addresses) else {
        return Fresh::Unsure;
    };
    if !way.is_pod || !accepts(way, new_addresses) {
        return Fresh::Unsure;
    }
    if way.pod_flags & pod_flags::INGRESS_ISOLATED != 0
        && !way.is_open_to(answer.source_port_and_protocol(), key.0[0] as u32)
        && admitted(&answer, way) == 0
    {
        deny(&key, hook, context.ifindex());
        return Fresh::Denied;
    }
    if commit(&plan, way) == 0 {
        return Fresh::Unsure;
    }
    if listened_to() && sampled() {
        tell_begun(&plan, hook);
    }
    Fresh::Begun(way, new_addresses, new_ports)
}

// VERIFIER: frames of their own, or the caller's is too large.

/// Chooses a backend and looks at the buckets of both entries.
#[inline(never)]
fn prepare(plan: &mut Plan) -> u32 {
    let [addresses, rest] = plan.key.0;
    let (client, address) = (addresses as u32, (addresses >> 32) as u32);
    let (client_port, port) = (rest as u16, (rest >> 16) as u16);
    let protocol = (rest >> 32) as u8;
    let Some(scratch) = scratch() else {
        return UNSURE;
    };
    let frontend = &mut scratch.frontend;
    let at = Address::from_v4_be(address);
    if !find(&at, PortBe(port), protocol, false, frontend)
        || frontend.flags & frontend_flags::INTERNAL_ONLY != 0
    {
        return match Opening::at(&plan.places) {
            Some(opening) if !opening.may_be_asked() => NOT_OURS,
            _ => UNSURE,
        };
    }
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0 || frontend.affinity_seconds != 0 {
        return UNSURE;
    }
    let Some((chosen, expected)) = choose_ahead(frontend, &plan.key) else {
        return UNSURE;
    };
    // Asked for after what the choice needs, or a CPU would not look as far ahead as that while it waits: so there is
    // one wait for all of it.
    let Some(opening) = Opening::at(&plan.places) else {
        return UNSURE;
    };
    let backend = &chosen.backend;
    if backend.flags & backend_flags::LOCAL == 0 || !backend.address.is_v4() {
        return UNSURE;
    }
    plan.service = frontend.service;
    plan.backend = chosen.index;
    plan.answer = FlowKey4([
        backend.address.v4_be() as u64 | (client as u64) << 32,
        backend.port.0 as u64 | (client_port as u64) << 16 | (protocol as u64) << 32,
    ]);
    expected.expect();
    if opening.may_be_asked() || opening.may_be_answered() {
        return UNSURE;
    }
    PLANNED
}

/// Makes both entries. 0: nothing has happened.
#[inline(never)]
fn commit(plan: &Plan, way: &Way) -> u32 {
    let Plan {
        key,
        places,
        answer,
        service,
        backend,
    } = plan;
    let Some((asks, answers)) = Opening::at(places).and_then(|opening| opening.reserve()) else {
        return 0;
    };
    service_connection(*service, *backend);
    count(Reason::FlowCreated);
    let client = key.0[0] as u32;
    if may_have_network(client) {
        track(client, answer.0[0] as u32);
    }
    let (new_addresses, new_ports) = answer.reversed();
    let (old_addresses, old_ports) = key.reversed();
    let service = (*service as u64) << 48;
    let rest = [
        way.second as u64 | (*backend as u64) << 32,
        way.policy_generation as u64,
    ];
    // The answer's goes first: a flow that is known can be answered.
    let ports = old_ports as u64 | (flow_flags::REVERSE as u64) << 32 | service;
    answers.fill(answer, [old_addresses, ports, rest[0], rest[1]]);
    let ports = new_ports as u64 | service;
    asks.fill(key, [new_addresses, ports, rest[0], rest[1]]);
    1
}

#[inline(never)]
fn admitted(answer: &FlowKey4, way: &Way) -> u32 {
    let key = answer.widened().reversed();
    let whom = policy::admits_whom(&key, way.policy);
    let port = answer.source_port_and_protocol();
    if whom == policy::ANYBODY {
        way.open_to(port, 0, 0);
    } else if whom == policy::PEER {
        let mask = policy::identity_of(&key.source).mask_v4().to_be();
        way.open_to(port, key.source.v4_be() & mask, mask);
    }
    whom
}

#[inline(never)]
fn deny(key: &FlowKey4, hook: Hook, ifindex: u32) -> u32 {
    report(&key.widened(), Reason::PolicyIngress, hook, 0, ifindex);
    0
}

/// From now on a pod that one of the cluster reaches through a Service is watched.
#[inline(never)]
fn track(client: u32, pod: u32) -> u32 {
    if network_of(&Address::from_v4_be(client)) & network_flags::CLUSTER != 0 {
        set_tracked(&Address::from_v4_be(pod));
    }
    0
}

#[inline(never)]
fn tell_begun(plan: &Plan, hook: Hook) -> u32 {
    let key = plan.key.widened();
    let new = plan.answer.widened().reversed();
    let new = Tuple {
        source: new.source,
        destination: new.destination,
        source_port: new.source_port,
        destination_port: new.destination_port,
    };
    let service = plan.service;
    tell(&key, Some(&new), Reason::FlowCreated, hook, service, 0);
    0
}
