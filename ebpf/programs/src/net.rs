//! The uplink: `from_net` (tcx ingress) sees what the network sends to the node, `to_net` (tcx
//! egress) what the stack sends out. Linux >= 5.11.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::flow_flags;
use skep_ebpf_common::node::{
    MARK_DONE, Pod, TUNNEL_MAC_PREFIX, config_flags, network_flags, pod_flags,
};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, SCTP};

use crate::announce::{answer_arp, answer_ndp, is_announced};
use crate::context::Context;
use crate::count::{count, report, report_new, service_connection, service_refused};
use crate::flow::{
    Followed, answer_taken, create, create_direct, expect_answer, follow, forget_created, opens,
    return_via, translate_icmp_error,
};
use crate::forward::{
    DROP, NEW_FLOW, PASS, Plain, UNSURE, deliver, drop, forward_known, forward_shortest, route,
};
use crate::maps::{NETWORKS, SOURCE_RANGES, Scratch, config, scratch};
use crate::packet::{
    ETH_LEN, Packet, Parsed, Shape, add_note, ifindex, is_arp, load, mark, note, parse,
    remove_note, rewrite,
};
use crate::pod::{masquerade, network_of, pod_at, set_tracked};
use crate::policy;
use crate::refuse::refuse;
use crate::service::{Balance, choose, find, find_node_port, flow_hash, is_node_address};

const ISOLATED: u32 = pod_flags::INGRESS_ISOLATED | pod_flags::EGRESS_ISOLATED;

#[classifier]
pub fn from_net(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // What the tunnel brings may say where it came in.
    if !config().is_some_and(|config| config.tunnel_ifindex != ifindex(skb)) {
        return from_net_longer(skb, TUNNELLED);
    }
    match forward_shortest(skb) {
        unsure @ (NEW_FLOW | UNSURE) => from_net_longer(skb, unsure),
        verdict => verdict,
    }
}

/// No verdict either, as [`NEW_FLOW`] and [`UNSURE`].
const TUNNELLED: i32 = -4;

// VERIFIER: a frame of its own, or those of the shortest way do not fit.
#[inline(never)]
fn from_net_longer(skb: *mut __sk_buff, shortest: i32) -> i32 {
    let Some(scratch) = scratch() else {
        return DROP;
    };
    let mut new_flow = false;
    if shortest != TUNNELLED {
        match forward_known(skb, scratch, shortest == NEW_FLOW) {
            Plain::Forwarded(verdict) => return verdict,
            Plain::NewFlow => new_flow = true,
            Plain::Unsure => {}
        }
    }
    if !new_flow {
        match parse(skb, &mut scratch.packet) {
            Parsed::Ip if accept_direct(skb, scratch) => {}
            Parsed::Ip => return drop(skb, &scratch.packet, Reason::Rewrite, Hook::FromNet, 0),
            Parsed::NotIp if is_arp(skb) => return answer_arp(skb).unwrap_or(PASS),
            Parsed::NotIp | Parsed::Truncated => return PASS,
        }
    }
    arrived(skb, scratch, new_flow)
}

#[classifier]
pub fn to_net(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if mark(skb) == MARK_DONE {
        return PASS;
    }
    let Some(scratch) = scratch() else {
        return DROP;
    };
    match parse(skb, &mut scratch.packet) {
        Parsed::Ip => leaving(skb, scratch),
        Parsed::NotIp | Parsed::Truncated => PASS,
    }
}

/// `new_flow`: the flow table has been asked already.
#[inline(always)]
fn arrived(skb: *mut __sk_buff, scratch: &mut Scratch, new_flow: bool) -> i32 {
    scratch.arrived = scratch.packet.tuple();
    let packet = &mut scratch.packet;
    if let Some(pod) = pod_at(&packet.key.destination) {
        return to_local_pod(skb, scratch, pod);
    }
    if packet.is(Shape::IcmpError) {
        return match translate_icmp_error(skb, packet, &mut scratch.answer_key, &mut scratch.flow) {
            0 => PASS,
            1 => {
                count(Reason::IcmpTranslated);
                onward(skb, scratch, None, false)
            }
            _ => drop(skb, packet, Reason::Rewrite, Hook::FromNet, 0),
        };
    }
    if packet.is(Shape::LinkLocal) {
        return answer_ndp(skb, packet).unwrap_or(PASS);
    }
    if !packet.has_tuple() {
        return PASS;
    }
    let followed = if new_flow {
        None
    } else {
        follow(packet, &mut scratch.new)
    };
    if followed.is_none() {
        let found = find(
            &packet.key.destination,
            packet.key.destination_port,
            packet.key.protocol,
            false,
            &mut scratch.frontend,
        );
        if !found && is_announced(&packet.key.destination) {
            // Not the node's either: the stack would send it back to the link.
            return drop(skb, packet, Reason::NoSuchFrontend, Hook::FromNet, 0);
        }
        if !found || scratch.frontend.flags & frontend_flags::INTERNAL_ONLY != 0 {
            return PASS;
        }
        match serve(skb, Hook::FromNet, scratch) {
            SERVED => {}
            REFUSED => {
                let service = scratch.frontend.service;
                service_refused(service);
                report(
                    &scratch.packet.key,
                    Reason::NoBackend,
                    Hook::FromNet,
                    service,
                    ifindex(skb),
                );
                return refuse(skb, &scratch.packet).unwrap_or(PASS);
            }
            code => {
                report_failure(skb, Hook::FromNet, scratch, code);
                return DROP;
            }
        }
    }
    let flags = followed
        .as_ref()
        .map_or(scratch.wanted.flags, |followed| followed.flags);
    let tell = flags & (flow_flags::DIRECT | flow_flags::TRACK_ONLY) == flow_flags::DIRECT
        && opens(&scratch.packet)
        && scratch.packet.is(Shape::Ports);
    if rewrite(skb, &mut scratch.packet, &scratch.new).is_none()
        || (tell && tell_backend(skb, scratch).is_none())
    {
        return drop(skb, &scratch.packet, Reason::Rewrite, Hook::FromNet, 0);
    }
    onward(skb, scratch, followed.as_ref(), followed.is_none())
}

/// A packet that another node has sent here for a backend that is to answer its client directly
/// says so in a note. Believes only what the Services here say too, remembers it, and takes the note
/// away. False: a helper failed half-way.
#[inline(always)]
fn accept_direct(skb: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    // There is no room for one.
    let packet = &scratch.packet;
    if packet.l4 < ETH_LEN + 28 || (packet.l4 < ETH_LEN + 64 && !packet.key.source.is_v4()) {
        return true;
    }
    take_note(skb, scratch) != 0
}

#[inline(never)]
fn take_note(skb: *mut __sk_buff, scratch: &mut Scratch) -> u32 {
    if !scratch.packet.is(Shape::Ports) {
        return 1;
    }
    let Some((address, port)) = note(skb, &scratch.packet) else {
        return 1;
    };
    let protocol = scratch.packet.key.protocol;
    // Another node's address is none of ours, but a NodePort is the same everywhere.
    let exact = find(&address, port, protocol, false, &mut scratch.frontend);
    let of_a_node = || {
        network_of(&address) & network_flags::CLUSTER != 0
            // A tunnel's MAC names its node by IPv4 only; of its IPv6 address a node is believed.
            || tunnel_source(skb).is_some_and(|node| !address.is_v4() || node == address.v4_be())
    };
    if !exact && (!of_a_node() || !find_node_port(&address, port, protocol, &mut scratch.frontend))
    {
        return 1;
    }
    let direct = scratch.frontend.flags & frontend_flags::DIRECT_RETURN != 0;
    if !direct || address == address.unspecified() {
        return 1;
    }
    if create_direct(scratch, &address, port) == 0 {
        // Passed on without: the sender tries again.
        count(Reason::FlowTableFull);
        return 0;
    }
    if network_of(&scratch.packet.key.source) & network_flags::CLUSTER != 0 {
        set_tracked(&scratch.packet.key.destination);
    }
    remove_note(skb, &mut scratch.packet).is_some() as u32
}

/// Tells the backend's node what to answer with.
#[inline(never)]
fn tell_backend(skb: *mut __sk_buff, scratch: &mut Scratch) -> Option<()> {
    let Scratch {
        packet, arrived, ..
    } = scratch;
    add_note(skb, packet, &arrived.destination, arrived.destination_port)
}

/// What [`serve`] did; from [`FAILED`] on a reason.
pub const SERVED: u32 = 0;
pub const REFUSED: u32 = 1;
pub const FAILED: u32 = 2;

/// Counts why [`serve`] failed.
#[inline(always)]
pub fn report_failure<C: Context>(context: C, hook: Hook, scratch: &Scratch, code: u32) {
    let reason = match code - FAILED {
        code if code == Reason::SourceRange as u32 => Reason::SourceRange,
        code if code == Reason::NoLocalBackend as u32 => {
            service_refused(scratch.frontend.service);
            Reason::NoLocalBackend
        }
        code if code == Reason::SctpPort as u32 => Reason::SctpPort,
        code if code == Reason::NoPort as u32 => Reason::NoPort,
        _ => Reason::FlowTableFull,
    };
    let service = scratch.frontend.service;
    report(
        &scratch.packet.key,
        reason,
        hook,
        service,
        context.ifindex(),
    );
}

/// A new connection from outside to a Service: chooses a backend and creates the flow.
#[inline(always)]
pub fn serve<C: Context>(context: C, hook: Hook, scratch: &mut Scratch) -> u32 {
    match plan(scratch) {
        SERVED => {
            expect_answer(scratch);
            start(context, hook, scratch)
        }
        code => code,
    }
}

/// Chooses a backend for a new connection from outside and says in `scratch.wanted` what its flow
/// should be. Nothing has happened yet, but that a client is tied to a backend if it wants to be.
#[inline(never)]
pub fn plan(scratch: &mut Scratch) -> u32 {
    let Scratch {
        packet,
        wanted,
        frontend,
        ..
    } = scratch;
    let key = &packet.key;
    let service = frontend.service;
    if frontend.flags & frontend_flags::SOURCE_RANGES != 0
        && !in_source_ranges(service, &key.source)
    {
        return FAILED + Reason::SourceRange as u32;
    }
    let balance = if frontend.flags & frontend_flags::EXTERNAL_MAGLEV != 0 {
        Balance::Hash(flow_hash(key))
    } else {
        Balance::Random
    };
    let local_only = frontend.flags & frontend_flags::EXTERNAL_LOCAL != 0;
    let Some(chosen) = choose(
        frontend,
        frontend.external,
        balance,
        &key.source,
        local_only,
    ) else {
        return if frontend.flags & frontend_flags::EXTERNAL_DROP != 0 {
            FAILED + Reason::NoLocalBackend as u32
        } else {
            REFUSED
        };
    };
    let backend = &chosen.backend;
    if key.protocol == SCTP && backend.port != key.destination_port {
        return FAILED + Reason::SctpPort as u32;
    }
    wanted.source = key.source;
    wanted.destination = backend.address;
    wanted.destination_port = backend.port;
    wanted.flags = 0;
    wanted.service = service;
    wanted.backend = chosen.index;
    wanted.answer_via = 0;
    if backend.flags & backend_flags::LOCAL != 0 {
        wanted.flags = flow_flags::LOCAL;
        return SERVED;
    }
    // The answer must come back through this node.
    let Some(config) = config() else {
        return REFUSED;
    };
    let v4 = backend.address.is_v4();
    let tunnelled = is_tunnelled(&backend.address);
    if frontend.flags & frontend_flags::DIRECT_RETURN != 0 {
        wanted.flags = flow_flags::DIRECT;
    } else if tunnelled
        && config.flags & config_flags::TUNNEL_KEEPS_CLIENT != 0
        && frontend.flags & frontend_flags::SOURCE_NAT == 0
    {
        // The backend's node sends it back to where the packet came from.
    } else {
        wanted.source = match (tunnelled, v4) {
            (false, true) => config.node_v4,
            (false, false) => config.node_v6,
            (true, true) => config.tunnel_v4,
            (true, false) => config.tunnel_v6,
        };
    }
    SERVED
}

/// Creates the flow of [`plan`].
#[inline(never)]
pub fn start<C: Context>(context: C, hook: Hook, scratch: &mut Scratch) -> u32 {
    let Scratch { packet, wanted, .. } = &mut *scratch;
    let service = wanted.service;
    if wanted.flags & flow_flags::DIRECT != 0 {
        count(Reason::DirectReturn);
    } else if wanted.source != packet.key.source {
        count(Reason::SourceTranslated);
    } else if network_of(&packet.key.source) & network_flags::CLUSTER != 0 {
        set_tracked(&wanted.destination);
    }
    match create(context, scratch) {
        0 => {}
        code => return FAILED + code - 1,
    }
    report_new(
        &scratch.packet.key,
        &scratch.new,
        Reason::FlowCreated,
        hook,
        service,
    );
    service_connection(service, scratch.wanted.backend);
    SERVED
}

#[inline(always)]
fn is_tunnelled(address: &Address) -> bool {
    NETWORKS
        .get(&Key::new(128, *address))
        .is_some_and(|network| network.tunnel != Address::ANY)
}

#[inline(always)]
fn in_source_ranges(service: u32, client: &Address) -> bool {
    SOURCE_RANGES
        .get(&Key::new(
            160,
            SourceRange {
                service,
                client: *client,
            },
        ))
        .is_some()
}

/// Straight to a pod's address: from another node, or from a router that knows the pod network.
#[inline(always)]
fn to_local_pod(skb: *mut __sk_buff, scratch: &mut Scratch, pod: &Pod) -> i32 {
    let via = entry_node(skb, &scratch.packet);
    if via != 0 {
        return from_entry_node(skb, scratch, pod, via);
    }
    let packet = &mut scratch.packet;
    if pod.flags & (pod_flags::TRACKED | ISOLATED) == 0 {
        return deliver(skb, packet, pod, Hook::FromNet);
    }
    let mut followed = None;
    if packet.has_tuple() {
        followed = follow(packet, &mut scratch.new);
        if followed.is_some() && rewrite(skb, packet, &scratch.new).is_none() {
            return drop(skb, packet, Reason::Rewrite, Hook::FromNet, 0);
        }
    }
    if !policy::allows_ingress(packet, pod, followed.as_ref()) {
        return drop(skb, packet, Reason::PolicyIngress, Hook::FromNet, 0);
    }
    if packet.has_tuple() && pod.flags & ISOLATED != 0 {
        match &followed {
            Some(followed) => policy::renew(packet, followed),
            None => policy::remember(skb, scratch),
        }
    }
    deliver(skb, &mut scratch.packet, pod, Hook::FromNet)
}

/// The node (an IPv4 address) that sent us, through the tunnel, what a client outside the cluster
/// had sent to a Service; else 0.
#[inline(always)]
fn entry_node(skb: *mut __sk_buff, packet: &Packet) -> u32 {
    if !packet.has_tuple() {
        return 0;
    }
    match tunnel_source(skb) {
        Some(node) if network_of(&packet.key.source) & network_flags::CLUSTER == 0 => node,
        _ => 0,
    }
}

/// The node (an IPv4 address) at whose end of the tunnel the packet came in.
#[inline(always)]
fn tunnel_source(skb: *mut __sk_buff) -> Option<u32> {
    let config = config()?;
    if config.tunnel_ifindex != ifindex(skb)
        || config.flags & config_flags::TUNNEL_KEEPS_CLIENT == 0
    {
        return None;
    }
    match load::<[u8; 6]>(skb, 6) {
        Some([a, b, node @ ..]) if [a, b] == TUNNEL_MAC_PREFIX => Some(u32::from_ne_bytes(node)),
        _ => None,
    }
}

/// A connection from outside, sent on by the node where it came in: its answers go back there.
#[inline(never)]
fn from_entry_node(skb: *mut __sk_buff, scratch: &mut Scratch, pod: &Pod, via: u32) -> i32 {
    let Scratch {
        packet,
        wanted,
        new,
        ..
    } = &mut *scratch;
    let followed = follow(packet, new);
    match &followed {
        Some(followed) if followed.flags & flow_flags::REVERSE == 0 => {
            // The client may have come through another node before.
            if opens(packet) && followed.flags & flow_flags::DIRECT == 0 {
                return_via(packet, new, via);
            }
        }
        Some(_) => {}
        None => {
            if !policy::allows_ingress(packet, pod, None) {
                return drop(skb, packet, Reason::PolicyIngress, Hook::FromNet, 0);
            }
            wanted.source = packet.key.source;
            wanted.destination = packet.key.destination;
            wanted.destination_port = packet.key.destination_port;
            wanted.flags = flow_flags::LOCAL;
            wanted.service = 0;
            wanted.backend = 0;
            wanted.answer_via = via;
            if create(skb, scratch) != 0 {
                return drop(
                    skb,
                    &scratch.packet,
                    Reason::FlowTableFull,
                    Hook::FromNet,
                    0,
                );
            }
        }
    }
    if rewrite(skb, &mut scratch.packet, &scratch.new).is_none() {
        return drop(skb, &scratch.packet, Reason::Rewrite, Hook::FromNet, 0);
    }
    let packet = &mut scratch.packet;
    if followed.is_some() && !policy::allows_ingress(packet, pod, followed.as_ref()) {
        return drop(skb, packet, Reason::PolicyIngress, Hook::FromNet, 0);
    }
    deliver(skb, packet, pod, Hook::FromNet)
}

/// To where the translated packet belongs; `begun` says that its flow was made for it.
#[inline(always)]
fn onward(
    skb: *mut __sk_buff,
    scratch: &mut Scratch,
    followed: Option<&Followed>,
    begun: bool,
) -> i32 {
    let packet = &mut scratch.packet;
    if let Some(pod) = pod_at(&packet.key.destination) {
        if !policy::allows_ingress(packet, pod, followed) {
            if begun {
                forget_created(scratch);
            }
            return drop(
                skb,
                &scratch.packet,
                Reason::PolicyIngress,
                Hook::FromNet,
                0,
            );
        }
        return deliver(skb, packet, pod, Hook::FromNet);
    }
    if is_node_address(&packet.key.destination) {
        return PASS;
    }
    route(skb, scratch, Hook::FromNet)
}

#[inline(always)]
fn leaving(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    let Scratch {
        packet,
        wanted,
        new,
        answer_key,
        flow,
        ..
    } = &mut *scratch;
    if packet.is(Shape::IcmpError) {
        if translate_icmp_error(skb, packet, answer_key, flow) == 1 {
            count(Reason::IcmpTranslated);
        }
        return PASS;
    }
    if !packet.has_tuple() {
        return PASS;
    }
    // Answers of backends in the host's namespace, and flows that the stack forwarded.
    if follow(packet, new).is_none() {
        wanted.source = packet.key.source;
        wanted.destination = packet.key.destination;
        wanted.destination_port = packet.key.destination_port;
        wanted.flags = 0;
        wanted.service = 0;
        wanted.backend = 0;
        wanted.answer_via = 0;
        if pod_at(&packet.key.source).is_none() {
            // The node's own: on the port that its socket has, unless a flow behind the node's
            // address has it towards the same server.
            if !opens(packet) || !answer_taken(&packet.key) {
                return PASS;
            }
        } else {
            if network_of(&packet.key.destination) & network_flags::CLUSTER != 0 {
                return PASS;
            }
            let Some(source) = masquerade(packet.key.source.is_v4()) else {
                return PASS;
            };
            wanted.source = *source;
            wanted.flags = flow_flags::MASQUERADE;
        }
        if create(skb, scratch) != 0 {
            return drop(skb, &scratch.packet, Reason::FlowTableFull, Hook::ToNet, 0);
        }
        if scratch.wanted.flags & flow_flags::MASQUERADE != 0 {
            count(Reason::Masqueraded);
        }
    }
    match rewrite(skb, &mut scratch.packet, &scratch.new) {
        Some(()) => PASS,
        None => drop(skb, &scratch.packet, Reason::Rewrite, Hook::ToNet, 0),
    }
}
