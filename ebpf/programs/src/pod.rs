//! The host end of a pod's veth pair: `from_pod` (tcx ingress) sees what the pod sends, `to_pod`
//! (tcx egress) what the stack sends to the pod. Linux >= 5.11.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use skep_ebpf_common::Address;
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::flow_flags;
use skep_ebpf_common::node::{Pod, config_flags, network_flags, pod_flags};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::backend_flags;

use crate::count::{
    count, listened_to, report, report_new, sampled, service_connection, service_refused, tell,
};
use crate::flow::{create, follow, forget_created, opens, translate_icmp_error};
use crate::forward::{
    DROP, NEW_FLOW, PASS, UNSURE, deliver, drop, routable, route, send_known, tunnel,
};
use crate::known::{Found, rewrite_known};
use crate::maps::{NETWORKS, PODS, Scratch, config, scratch};
use crate::packet::{Packet, Parsed, Shape, ifindex, parse, rewrite};
use crate::policy;
use crate::refuse::refuse;
use crate::service::{Balance, choose, find, is_node_address};

const ISOLATED: u32 = pod_flags::INGRESS_ISOLATED | pod_flags::EGRESS_ISOLATED;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    match send_shortest(skb) {
        NEW_FLOW | UNSURE => {}
        verdict => return verdict,
    }
    let Some(scratch) = scratch() else {
        return DROP;
    };
    match parse(skb, &mut scratch.packet) {
        Parsed::Ip if scratch.packet.is(Shape::LinkLocal) => PASS,
        Parsed::Ip => sent(skb, scratch),
        Parsed::NotIp => PASS,
        Parsed::Truncated => {
            count(Reason::Truncated);
            DROP
        }
    }
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(scratch) = scratch() else {
        return DROP;
    };
    match parse(skb, &mut scratch.packet) {
        Parsed::Ip => received(skb, scratch),
        // Nothing that policy could be about.
        Parsed::NotIp | Parsed::Truncated => PASS,
    }
}

#[inline(always)]
pub fn pod_at(address: &Address) -> Option<&'static Pod> {
    // SAFETY: the agent replaces elements as a whole; one that goes while it is read belongs to a
    // pod that is going.
    unsafe { PODS.get(address) }
}

/// From now on this pod's cluster traffic is looked up in the flow table.
#[inline(always)]
pub fn set_tracked(address: &Address) {
    if let Some(pod) = PODS.get_ptr_mut(address) {
        // SAFETY: an element of the map; the bit is only ever set.
        unsafe { (*pod).flags |= pod_flags::TRACKED };
    }
}

// VERIFIER: a frame of its own, or the caller's is too large.
#[inline(never)]
fn send_shortest(skb: *mut __sk_buff) -> i32 {
    send_known(skb, rewrite_known(skb, None, |found| may_leave(skb, found)))
}

/// Whether `sent` would do no more with this packet than send it on.
#[inline(always)]
fn may_leave(skb: *mut __sk_buff, found: &Found<'_>) -> bool {
    let Some(pod) = pod_at(&Address::from_v4_be(found.addresses as u32)) else {
        return false;
    };
    if pod.ifindex != ifindex(skb)
        || (pod.flags & pod_flags::EGRESS_ISOLATED != 0 && !found.is_settled)
    {
        return false;
    }
    // Inside the cluster, only who is watched has flows.
    let is_outside = found.way.is_outside && found.addresses >> 32 == found.new_addresses >> 32;
    is_outside || pod.flags & (pod_flags::TRACKED | ISOLATED) != 0
}

#[inline(always)]
fn flags_of(pod: Option<&Pod>) -> u32 {
    pod.map_or(0, |pod| pod.flags)
}

#[inline(always)]
fn sent(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    scratch.arrived = scratch.packet.tuple();
    let packet = &mut scratch.packet;
    let Some(pod) = pod_at(&packet.key.source) else {
        return unknown_source(skb, packet);
    };
    if pod.ifindex != ifindex(skb) {
        return drop(skb, packet, Reason::Spoofed, Hook::FromPod, 0);
    }
    if packet.is(Shape::IcmpError)
        && translate_icmp_error(skb, packet, &mut scratch.answer_key, &mut scratch.flow) == 1
    {
        count(Reason::IcmpTranslated);
    }

    if packet.is(Shape::Ports) && opens(packet) && listened_to() && sampled() {
        // What happens to it beyond this is told where it happens.
        count(Reason::Forwarded);
        tell(
            &packet.key,
            None,
            Reason::Forwarded,
            Hook::FromPod,
            0,
            ifindex(skb),
        );
    }

    let peer = pod_at(&packet.key.destination);
    let network = match peer {
        Some(_) => network_flags::CLUSTER,
        None => network_of(&packet.key.destination),
    };
    let watched = (pod.flags | flags_of(peer)) & (pod_flags::TRACKED | ISOLATED) != 0;
    let in_cluster =
        network & (network_flags::CLUSTER | network_flags::SERVICE) == network_flags::CLUSTER;
    if in_cluster && !watched && !is_node_address(&packet.key.destination) {
        // East-west, already translated at the socket: no flow entry, no Service lookup.
        return match peer {
            Some(peer) => deliver(skb, packet, peer, Hook::FromPod),
            None => route(skb, scratch, Hook::FromPod),
        };
    }

    let mut followed = None;
    let mut begun = false;
    if packet.has_tuple() {
        followed = follow(packet, &mut scratch.new);
        let translated = match followed {
            Some(_) => NEW_TUPLE,
            None => translation(skb, scratch, network),
        };
        if translated == REFUSED {
            return refused(skb, scratch);
        }
        begun = followed.is_none() && translated == NEW_TUPLE;
        if translated >= FAILED {
            return failed(skb, &scratch.packet, translated);
        }
        if translated == NEW_TUPLE && rewrite(skb, &mut scratch.packet, &scratch.new).is_none() {
            return drop(skb, &scratch.packet, Reason::Rewrite, Hook::FromPod, 0);
        }
    }
    let packet = &mut scratch.packet;
    let peer = pod_at(&packet.key.destination);
    let denied = if !policy::allows_egress(packet, pod, followed.as_ref()) {
        Some(Reason::PolicyEgress)
    } else if let Some(peer) = peer
        && !policy::allows_ingress(packet, peer, followed.as_ref())
    {
        Some(Reason::PolicyIngress)
    } else {
        None
    };
    if let Some(reason) = denied {
        if begun {
            forget_created(scratch);
        }
        return drop(skb, &scratch.packet, reason, Hook::FromPod, 0);
    }
    let packet = &scratch.packet;
    if packet.has_tuple() && (pod.flags | flags_of(peer)) & ISOLATED != 0 {
        match &followed {
            Some(followed) => policy::renew(packet, followed),
            None => policy::remember(skb, scratch),
        }
    }
    match peer {
        Some(peer) => deliver(skb, &mut scratch.packet, peer, Hook::FromPod),
        None if followed.as_ref().is_some_and(|followed| followed.via != 0) => {
            let via = followed.map_or(0, |followed| followed.via);
            tunnel(skb, &mut scratch.packet, via, Hook::FromPod)
        }
        None if is_node_address(&scratch.packet.key.destination) => PASS,
        None => route(skb, scratch, Hook::FromPod),
    }
}

/// Not the address of any pod: its own link-local address may talk to the node, nothing else may.
#[inline(always)]
fn unknown_source(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let first = u32::from_be(packet.key.source.0[0]);
    if first >> 22 == 0xfe80 >> 6 {
        return PASS;
    }
    drop(skb, packet, Reason::Spoofed, Hook::FromPod, 0)
}

#[inline(always)]
pub fn may_have_network(v4_be: u32) -> bool {
    config().is_none_or(|config| config.may_have_network(v4_be))
}

#[inline(always)]
pub fn network_of(address: &Address) -> u32 {
    if address.is_v4() && config().is_some_and(|config| !config.may_have_network(address.v4_be())) {
        return 0;
    }
    NETWORKS
        .get(&Key::new(128, *address))
        .map_or(0, |network| network.flags)
}

/// What [`translation`] did; from [`FAILED`] on a reason.
const UNCHANGED: u32 = 0;
const NEW_TUPLE: u32 = 1;
const REFUSED: u32 = 2;
const FAILED: u32 = 3;

/// A Service without a backend: the pod is told.
#[inline(always)]
fn refused(skb: *mut __sk_buff, scratch: &Scratch) -> i32 {
    let service = scratch.frontend.service;
    report(
        &scratch.packet.key,
        Reason::NoBackend,
        Hook::FromPod,
        service,
        ifindex(skb),
    );
    refuse(skb, &scratch.packet).unwrap_or(DROP)
}

#[inline(always)]
fn failed(skb: *mut __sk_buff, packet: &Packet, code: u32) -> i32 {
    let reason = match code - FAILED {
        code if code == Reason::NoSuchFrontend as u32 => Reason::NoSuchFrontend,
        code if code == Reason::NoPort as u32 => Reason::NoPort,
        _ => Reason::FlowTableFull,
    };
    drop(skb, packet, reason, Hook::FromPod, 0)
}

/// A new flow: to a Service that was not translated at the socket, or out of the cluster.
#[inline(never)]
fn translation(skb: *mut __sk_buff, scratch: &mut Scratch, network: u32) -> u32 {
    let Scratch {
        packet,
        wanted,
        frontend,
        next_hop,
        ..
    } = scratch;
    let key = &packet.key;
    wanted.source = key.source;
    wanted.destination = key.destination;
    wanted.destination_port = key.destination_port;
    wanted.flags = 0;
    wanted.service = 0;
    wanted.backend = 0;
    wanted.answer_via = 0;
    if find(
        &key.destination,
        key.destination_port,
        key.protocol,
        false,
        frontend,
    ) {
        let Some(chosen) = choose(
            frontend,
            frontend.internal,
            Balance::Random,
            &key.source,
            false,
        ) else {
            service_refused(frontend.service);
            return REFUSED;
        };
        service_connection(frontend.service, chosen.index);
        wanted.destination = chosen.backend.address;
        wanted.destination_port = chosen.backend.port;
        wanted.service = frontend.service;
        wanted.backend = chosen.index;
        if chosen.backend.flags & backend_flags::LOCAL != 0 {
            wanted.flags = flow_flags::LOCAL;
        }
        // The answer must find its way back through the flow table on both sides.
        set_tracked(&key.source);
        set_tracked(&wanted.destination);
    } else if network & network_flags::SERVICE != 0 {
        return FAILED + Reason::NoSuchFrontend as u32;
    } else if network & network_flags::CLUSTER == 0 && !is_node_address(&key.destination) {
        let Some(source) = masquerade(key.destination.is_v4()) else {
            return UNCHANGED;
        };
        if !routable(skb, packet, next_hop) {
            // Unchanged to the stack, which tells the pod (ICMP) that there is no way.
            return UNCHANGED;
        }
        wanted.source = *source;
        wanted.flags = flow_flags::MASQUERADE;
        count(Reason::Masqueraded);
    } else {
        return UNCHANGED;
    }
    match create(skb, scratch) {
        0 => {
            report_new(
                &scratch.packet.key,
                &scratch.new,
                Reason::FlowCreated,
                Hook::FromPod,
                scratch.wanted.service,
            );
            NEW_TUPLE
        }
        code => FAILED + code - 1,
    }
}

/// The address that hides pods from the world, if the node has one of this family.
#[inline(always)]
pub fn masquerade(v4: bool) -> Option<&'static Address> {
    let config = config()?;
    if config.flags & config_flags::MASQUERADE == 0 {
        return None;
    }
    let address = if v4 { &config.node_v4 } else { &config.node_v6 };
    (*address != Address::ANY).then_some(address)
}

#[inline(always)]
fn received(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    let packet = &mut scratch.packet;
    let Some(pod) = pod_at(&packet.key.destination) else {
        return PASS;
    };
    if pod.flags & (pod_flags::TRACKED | ISOLATED) == 0 {
        return PASS;
    }
    let mut followed = None;
    if packet.has_tuple() {
        followed = follow(packet, &mut scratch.new);
        if followed.is_some() && rewrite(skb, packet, &scratch.new).is_none() {
            return drop(skb, packet, Reason::Rewrite, Hook::ToPod, 0);
        }
    }
    if !policy::allows_ingress(packet, pod, followed.as_ref()) {
        return drop(skb, packet, Reason::PolicyIngress, Hook::ToPod, 0);
    }
    if followed.is_none() && pod.flags & ISOLATED != 0 && packet.is(Shape::Ports) {
        policy::remember(skb, scratch);
    }
    PASS
}
