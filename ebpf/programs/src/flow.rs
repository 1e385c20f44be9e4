//! The flow table: following a known flow, creating the two entries of a new one, and finding the
//! flow that an ICMP error is about.

use core::ptr::addr_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_PSEUDO_HDR, BPF_NOEXIST, bpf_sock_tuple,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_get_prandom_u32, bpf_l3_csum_replace, bpf_l4_csum_replace,
    bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use skep_ebpf_common::flow::*;
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::{Address, ICMP, ICMPV6, PortBe, TCP, UDP};

use crate::context::Context;
use crate::count::now;
use crate::maps::{FLOWS, Scratch, config};
use crate::packet::{ACK, ETH_LEN, FIN, Packet, RST, SYN, Tuple, load, store};
use crate::service::{alive, flow_hash};

const EEXIST: i32 = -17;

/// Attempts to find a free port before giving up; at half-full port space 1 in 65,536 flows fails.
const PORT_ATTEMPTS: u32 = 16;
/// Coprime to [`NAT_PORT_COUNT`], so that attempts never repeat a port.
const PORT_STRIDE: u32 = 7_919;
/// What [`left_over`] says of an entry that nobody needs.
const FREE: u32 = u32::MAX;

/// What a known flow says beside its tuple.
#[derive(Clone, Copy)]
pub struct Followed {
    pub flags: u32,
    pub policy_generation: u32,
    /// See [`Flow::via`].
    pub via: u32,
}

/// Looks the packet's flow up, keeps its state and says in `new` how the packet leaves. `None`: a
/// new flow.
///
/// A SYN on a connection that was closing begins a new one at once: clients reuse ports. [`create`]
/// finds the old one, whose answer's entry keeps the translated port for as long as the backend may
/// remember it.
#[inline(never)]
pub fn follow(packet: &mut Packet, new: &mut Tuple) -> Option<Followed> {
    follow_here(packet, new, now())
}

/// The same without a call, for the shortest ways through the programs.
#[inline(always)]
pub fn follow_here(packet: &mut Packet, new: &mut Tuple, now: u32) -> Option<Followed> {
    let flow = FLOWS.get_ptr_mut(&packet.key)?;
    // SAFETY: an element of the map; fields are updated by plain stores, a lost race delays a
    // timestamp or a state bit until the next packet.
    let flow = unsafe { &mut *flow };
    let flags = flow.flags;
    if opens(packet) && flags & flow_flags::REVERSE == 0 {
        if backend_gone(flow) {
            forget(&packet.key, flow);
            return None;
        }
        if packet.key.protocol == TCP && flags & flow_flags::CLOSING != 0 {
            packet.again = true;
            return None;
        }
    }
    if flow.seen != now {
        flow.seen = now;
    }
    let mut state = flags;
    if packet.tcp_flags & FIN != 0 {
        state |= flow_flags::FIN;
    }
    if packet.tcp_flags & RST != 0 {
        state |= flow_flags::RESET;
    }
    if flags & flow_flags::REVERSE != 0 || (flags & flow_flags::DIRECT != 0 && !opens(packet)) {
        // Only who has an answer goes on.
        state |= flow_flags::ANSWERED;
    }
    if state != flags {
        flow.flags = state;
        tell_twin(&packet.key, flow, state);
    }
    new.source = flow.source;
    new.destination = flow.destination;
    new.source_port = flow.source_port;
    new.destination_port = flow.destination_port;
    Some(Followed {
        flags: state,
        policy_generation: flow.policy_generation,
        via: flow.via,
    })
}

/// Whether the packet may be the first of its flow.
#[inline(always)]
pub fn opens(packet: &Packet) -> bool {
    packet.key.protocol != TCP || packet.tcp_flags & (SYN | ACK) == SYN
}

/// Whether the packet has to tell the backend's node what to answer its client with.
#[inline(always)]
pub fn tells(followed: &Followed, packet: &Packet) -> bool {
    followed.flags & (flow_flags::DIRECT | flow_flags::TRACK_ONLY) == flow_flags::DIRECT
        && opens(packet)
}

/// Whether answers to this packet of the node's own would be taken for those of a translated flow:
/// pods and clients keep their ports behind the node's address where they are free.
#[inline(always)]
pub fn answer_taken(key: &FlowKey) -> bool {
    // SAFETY: copied at once.
    match unsafe { FLOWS.get(key.reversed()) } {
        Some(flow) => flow.destination != key.source || flow.destination_port != key.source_port,
        None => false,
    }
}

/// Answers of the flow that this packet belongs to go back through the node `via` from now on.
#[inline(always)]
pub fn return_via(packet: &Packet, new: &Tuple, via: u32) {
    let key = FlowKey {
        source: new.destination,
        destination: new.source,
        source_port: new.destination_port,
        destination_port: new.source_port,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    };
    if let Some(answer) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: an element of the map; a plain store.
        unsafe { (*answer).via = via };
    }
}

#[inline(always)]
fn backend_gone(flow: &Flow) -> bool {
    flow.service != 0
        && !alive(flow.backend, flow.service)
            .is_some_and(|backend| backend.address == flow.destination)
}

/// The other direction learns of FIN, RST and the first answer.
#[inline(never)]
fn tell_twin(key: &FlowKey, flow: &Flow, state: u32) -> u32 {
    if let Some(twin) = FLOWS.get_ptr_mut(&flow.reverse_key(key)) {
        // SAFETY: an element of the map, as in `follow`.
        if !unsafe { (*twin).answers(key) } {
            return 0;
        }
        let mut told = state & (flow_flags::RESET | flow_flags::ANSWERED);
        if state & flow_flags::FIN != 0 {
            told |= flow_flags::PEER_FIN;
        }
        // SAFETY: an element of the map, as in `follow`.
        unsafe { (*twin).flags |= told };
    }
    0
}

#[inline(never)]
fn forget(key: &FlowKey, flow: &Flow) -> u32 {
    let twin = flow.reverse_key(key);
    // Either may be gone already.
    let _ = FLOWS.remove(&twin);
    let _ = FLOWS.remove(key);
    0
}

/// A flow to be created.
#[repr(C)]
pub struct Wanted {
    /// The source to leave with; its port is chosen by [`create`].
    pub source: Address,
    pub destination: Address,
    pub destination_port: PortBe,
    pub _pad: u16,
    pub flags: u32,
    pub service: u32,
    pub backend: u32,
    /// The node that answers go back through (see [`Flow::via`]).
    pub answer_via: u32,
}

/// Creates both entries of `scratch.wanted` for the packet and leaves its tuple in `scratch.new`.
/// The answer's entry goes first and only if its key is free: that is what allocates a port, per
/// remote address and port. 0 = done, else the reason plus one.
///
/// A client keeps its own source port where that is free: when it takes a port again, its SYN
/// finds the receiver's old connection with sequence numbers that only grow, and is accepted. A
/// port that another client has just used would meet that connection in TIME_WAIT and lose a
/// second, so it is taken last, and the longest unused one first.
#[inline(never)]
pub fn create<C: Context>(context: C, scratch: &mut Scratch) -> u32 {
    let Scratch {
        packet,
        wanted,
        answer_key,
        answer,
        flow,
        new,
        ..
    } = scratch;
    let key = &packet.key;
    let now = now();
    let generation = config().map_or(0, |config| config.policy_generation);
    if wanted.flags & flow_flags::DIRECT != 0 {
        // No answer comes by here, so there is no port to allocate.
        answer_key.destination_port = key.source_port;
        return publish(key, wanted, key.source_port, now, generation, flow, new);
    }
    answer_key.source = wanted.destination;
    answer_key.destination = wanted.source;
    answer_key.source_port = wanted.destination_port;
    answer_key.destination_port = key.source_port;
    answer_key.protocol = key.protocol;
    answer_key._pad = [0; 3];
    answer.source = key.destination;
    answer.destination = key.source;
    answer.source_port = key.destination_port;
    answer.destination_port = key.source_port;
    answer.flags = wanted.flags | flow_flags::REVERSE;
    answer.seen = now;
    answer.service = wanted.service;
    answer.backend = wanted.backend;
    answer.policy_generation = generation;
    answer.via = wanted.answer_via;

    let mut keep_port = wanted.source == key.source
        || key.protocol == ICMP
        || key.protocol == ICMPV6
        || (may_keep(key.source_port.get()) && taken_by_node(context, answer_key) == 0);
    if packet.again
        // SAFETY: read at once.
        && let Some(before) = unsafe { FLOWS.get(key) }
        && before.flags & flow_flags::REVERSE == 0
        && before.source == wanted.source
        && before.destination == wanted.destination
        && before.destination_port == wanted.destination_port
    {
        // The port that this client had towards this backend: still its own.
        keep_port = true;
        answer_key.destination_port = before.source_port;
    }
    let attempts = if wanted.flags & flow_flags::TRACK_ONLY != 0 {
        1
    } else {
        PORT_ATTEMPTS
    };
    let mut start = 0;
    let mut chosen = false;
    let mut longest_unused = 0;
    let mut its_port = PortBe(0);
    for attempt in 0..PORT_ATTEMPTS {
        if attempt >= attempts {
            break;
        }
        if attempt > 0 || !keep_port {
            if start == 0 {
                // SAFETY: no arguments.
                start = (flow_hash(key) ^ unsafe { bpf_get_prandom_u32() }) | 1;
            }
            let index = start.wrapping_add(attempt.wrapping_mul(PORT_STRIDE)) % NAT_PORT_COUNT;
            answer_key.destination_port = PortBe::new(nat_port(index));
            if taken_by_node(context, answer_key) != 0 {
                continue;
            }
        }
        match FLOWS.insert(&*answer_key, &*answer, BPF_NOEXIST as u64) {
            Ok(()) => {
                chosen = true;
                break;
            }
            Err(EEXIST) => {}
            Err(_) => return Reason::FlowTableFull as u32 + 1,
        }
        let unused = left_over(answer_key, answer, now);
        if unused == FREE {
            if replace(answer_key, answer) != 0 {
                chosen = true;
                break;
            }
        } else if unused > longest_unused {
            longest_unused = unused;
            its_port = answer_key.destination_port;
        }
    }
    if !chosen && longest_unused != 0 {
        answer_key.destination_port = its_port;
        chosen = replace(answer_key, answer) != 0;
    }
    if !chosen {
        return Reason::NoPort as u32 + 1;
    }
    let port = answer_key.destination_port;
    let published = publish(key, wanted, port, now, generation, flow, new);
    if published != 0 {
        let _ = FLOWS.remove(&*answer_key);
    }
    published
}

/// The asking direction's entry, which makes the flow known.
#[inline(always)]
fn publish(
    key: &FlowKey,
    wanted: &Wanted,
    source_port: PortBe,
    now: u32,
    generation: u32,
    flow: &mut Flow,
    new: &mut Tuple,
) -> u32 {
    flow.source = wanted.source;
    flow.destination = wanted.destination;
    flow.source_port = source_port;
    flow.destination_port = wanted.destination_port;
    flow.flags = wanted.flags;
    flow.seen = now;
    flow.service = wanted.service;
    flow.backend = wanted.backend;
    flow.policy_generation = generation;
    flow.via = 0;
    if FLOWS.insert(key, &*flow, 0).is_err() {
        return Reason::FlowTableFull as u32 + 1;
    }
    new.source = flow.source;
    new.destination = flow.destination;
    new.source_port = flow.source_port;
    new.destination_port = flow.destination_port;
    0
}

/// A connection that another node has sent here, to be answered directly: makes its pair, the
/// answers of which leave with `frontend` as their source, unless it is there. Returns whether it
/// is there now.
#[inline(never)]
pub fn create_direct(scratch: &mut Scratch, frontend: &Address, port: PortBe) -> u32 {
    let Scratch {
        packet,
        answer_key,
        answer,
        flow,
        ..
    } = scratch;
    let key = &packet.key;
    let now = now();
    *answer_key = key.reversed();
    if key.protocol != TCP
        && let Some(existing) = FLOWS.get_ptr_mut(&*answer_key)
    {
        // SAFETY: an element of the map, as in `follow`.
        let existing = unsafe { &mut *existing };
        if existing.flags & flow_flags::DIRECT != 0
            && existing.source == *frontend
            && existing.source_port == port
        {
            return 1;
        }
    }
    answer.source = *frontend;
    answer.destination = key.source;
    answer.source_port = port;
    answer.destination_port = key.source_port;
    answer.flags = flow_flags::DIRECT | flow_flags::REVERSE;
    answer.seen = now;
    answer.service = 0;
    answer.backend = 0;
    answer.policy_generation = config().map_or(0, |config| config.policy_generation);
    answer.via = 0;
    flow.source = key.source;
    flow.destination = key.destination;
    flow.source_port = key.source_port;
    flow.destination_port = key.destination_port;
    flow.flags = flow_flags::DIRECT | flow_flags::TRACK_ONLY;
    flow.seen = now;
    flow.service = 0;
    flow.backend = 0;
    // Policy has not judged it yet.
    flow.policy_generation = answer.policy_generation.wrapping_sub(1);
    flow.via = 0;
    (FLOWS.insert(&*answer_key, &*answer, 0).is_ok() && FLOWS.insert(key, &*flow, 0).is_ok()) as u32
}

/// Forgets what [`create`] has just made: policy does not let the connection begin, and its next
/// packet must not find it begun.
#[inline(never)]
pub fn forget_created(scratch: &Scratch) -> u32 {
    let _ = FLOWS.remove(scratch.answer.reverse_key(&scratch.answer_key));
    let _ = FLOWS.remove(&scratch.answer_key);
    0
}

/// Ports that a client may keep behind the node's address: no server's, no NodePort's.
#[inline(always)]
fn may_keep(port: u16) -> bool {
    port >= FIRST_UNPRIVILEGED_PORT && !(NODE_PORT_FIRST <= port && port <= NODE_PORT_LAST)
}

/// Whether a socket of the node would get this answer (`bpf_skc_lookup_tcp`, Linux 5.2).
#[inline(never)]
fn taken_by_node<C: Context>(context: C, answer: &FlowKey) -> u32 {
    /// The namespace of the packet's interface.
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: all-zero is a valid value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let len = if answer.source.is_v4() {
        tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: answer.source.v4_be(),
            daddr: answer.destination.v4_be(),
            sport: answer.source_port.0,
            dport: answer.destination_port.0,
        };
        12
    } else {
        tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: answer.source.0,
            daddr: answer.destination.0,
            sport: answer.source_port.0,
            dport: answer.destination_port.0,
        };
        36
    };
    // SAFETY: the tuple and its length agree; what is found is released at once.
    unsafe {
        let socket = match answer.protocol {
            TCP => bpf_skc_lookup_tcp(context.raw(), &raw mut tuple, len, CURRENT_NETNS, 0),
            UDP => bpf_sk_lookup_udp(context.raw(), &raw mut tuple, len, CURRENT_NETNS, 0),
            _ => return 0,
        };
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
    }
    1
}

/// How long the existing entry of this key has been of no use: 0 = in use, [`FREE`] = this very
/// flow's own left-over, or nobody remembers its connection any more, else seconds since it was
/// closed, plus one.
#[inline(never)]
fn left_over(key: &FlowKey, answer: &Flow, now: u32) -> u32 {
    let Some(existing) = FLOWS.get_ptr_mut(key) else {
        // Gone meanwhile; `replace` finds out.
        return FREE;
    };
    // SAFETY: copied at once.
    let existing = unsafe { *existing };
    if existing.source == answer.source
        && existing.destination == answer.destination
        && existing.source_port == answer.source_port
        && existing.destination_port == answer.destination_port
    {
        return FREE;
    }
    let both_ended =
        existing.flags & flow_flags::FIN != 0 && existing.flags & flow_flags::PEER_FIN != 0;
    if existing.flags & flow_flags::RESET == 0 && !both_ended {
        return 0;
    }
    let unused = now.wrapping_sub(existing.seen);
    if existing.flags & flow_flags::RESET != 0 || unused >= TIME_WAIT_SECONDS {
        return FREE;
    }
    unused + 1
}

/// Puts `answer` in the place of an entry that is left over. Of two that try, one succeeds.
#[inline(never)]
fn replace(key: &FlowKey, answer: &Flow) -> u32 {
    if let Some(existing) = FLOWS.get_ptr_mut(key) {
        // SAFETY: copied at once.
        let twin_key = unsafe { (*existing).reverse_key(key) };
        if FLOWS.remove(key).is_err() {
            return 0;
        }
        // SAFETY: read at once.
        if unsafe { FLOWS.get(twin_key) }.is_some_and(|twin| twin.answers(key)) {
            let _ = FLOWS.remove(&twin_key);
        }
    }
    FLOWS.insert(key, answer, BPF_NOEXIST as u64).is_ok() as u32
}

/// Translates an ICMP error to what its receiver sent: the quoted packet is one that left after
/// translation, so the entry of its answer says how to turn both headers back. The transport
/// checksum inside the quote stays as it is: it may be cut off, and no receiver looks at it.
///
/// 0 = no flow known, 1 = translated, 2 = failed half-way.
#[inline(never)]
pub fn translate_icmp_error(skb: *mut __sk_buff, packet: &mut Packet) -> u32 {
    let quote = packet.l4 + 8;
    let v4 = packet.key.source.is_v4();
    let mut quoted = FlowKey {
        source: Address::ANY,
        destination: Address::ANY,
        source_port: PortBe(0),
        destination_port: PortBe(0),
        protocol: 0,
        _pad: [0; 3],
    };
    let inner_l4;
    if v4 {
        let Some(header) = load::<[u32; 5]>(skb, quote) else {
            return 0;
        };
        quoted.source = Address::from_v4_be(header[3]);
        quoted.destination = Address::from_v4_be(header[4]);
        quoted.protocol = (u32::from_be(header[2]) >> 16) as u8;
        inner_l4 = quote + ((u32::from_be(header[0]) >> 24) & 0x0f) * 4;
    } else {
        let Some(header) = load::<[u32; 10]>(skb, quote) else {
            return 0;
        };
        quoted.source = Address([header[2], header[3], header[4], header[5]]);
        quoted.destination = Address([header[6], header[7], header[8], header[9]]);
        quoted.protocol = (u32::from_be(header[1]) >> 8) as u8;
        inner_l4 = quote + 40;
    }
    let Some(words) = load::<[u16; 4]>(skb, inner_l4) else {
        return 0;
    };
    let echo = quoted.protocol == ICMP || quoted.protocol == ICMPV6;
    if echo {
        // Only a request is worth translating.
        quoted.source_port = PortBe(words[2]);
    } else {
        quoted.source_port = PortBe(words[0]);
        quoted.destination_port = PortBe(words[1]);
    }
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { FLOWS.get(quoted.reversed()) }).copied() else {
        return 0;
    };

    let new_quote = [flow.destination, flow.source];
    let old_quote = [quoted.source, quoted.destination];
    let new_destination = if packet.key.destination == quoted.source {
        flow.destination
    } else {
        packet.key.destination
    };
    let new_source = if packet.key.source == quoted.destination {
        flow.source
    } else {
        packet.key.source
    };

    // SAFETY: both buffers are 32 bytes.
    let inner = unsafe {
        bpf_csum_diff(
            addr_of!(old_quote).cast_mut().cast(),
            32,
            addr_of!(new_quote).cast_mut().cast(),
            32,
            0,
        )
    };
    let old_ports = [quoted.source_port, quoted.destination_port];
    let new_ports = if echo {
        [flow.destination_port, PortBe(0)]
    } else {
        [flow.destination_port, flow.source_port]
    };
    // SAFETY: both buffers are 4 bytes.
    let ports = unsafe {
        bpf_csum_diff(
            addr_of!(old_ports).cast_mut().cast(),
            4,
            addr_of!(new_ports).cast_mut().cast(),
            4,
            0,
        )
    };
    if inner < 0 || ports < 0 {
        return 2;
    }
    let checksum = packet.l4 + 2;
    // SAFETY: the helpers check the offsets.
    unsafe {
        if bpf_l4_csum_replace(skb, checksum, 0, ports as u64, 0) != 0 {
            return 2;
        }
        if v4 {
            // The quoted header's own checksum makes up for its new addresses.
            if bpf_l3_csum_replace(skb, quote + 10, 0, inner as u64, 0) != 0 {
                return 2;
            }
        } else if bpf_l4_csum_replace(skb, checksum, 0, inner as u64, 0) != 0 {
            return 2;
        }
    }
    let stored = if v4 {
        store(
            skb,
            quote + 12,
            &[flow.destination.v4_be(), flow.source.v4_be()],
        )
    } else {
        store(skb, quote + 8, &new_quote)
    };
    if stored.is_none() {
        return 2;
    }
    let stored = if echo {
        store(skb, inner_l4 + 4, &new_ports[0])
    } else {
        store(skb, inner_l4, &new_ports)
    };
    if stored.is_none() {
        return 2;
    }
    let old_outer = [packet.key.source, packet.key.destination];
    let new_outer = [new_source, new_destination];
    // SAFETY: both buffers are 32 bytes; the helpers check the offsets.
    unsafe {
        let outer = bpf_csum_diff(
            addr_of!(old_outer).cast_mut().cast(),
            32,
            addr_of!(new_outer).cast_mut().cast(),
            32,
            0,
        );
        if outer < 0 {
            return 2;
        }
        let result = if v4 {
            bpf_l3_csum_replace(skb, ETH_LEN + 10, 0, outer as u64, 0)
        } else {
            bpf_l4_csum_replace(skb, checksum, 0, outer as u64, BPF_F_PSEUDO_HDR as u64)
        };
        if result != 0 {
            return 2;
        }
    }
    let stored = if v4 {
        store(
            skb,
            ETH_LEN + 12,
            &[new_source.v4_be(), new_destination.v4_be()],
        )
    } else {
        store(skb, ETH_LEN + 8, &new_outer)
    };
    if stored.is_none() {
        return 2;
    }
    packet.key.source = new_source;
    packet.key.destination = new_destination;
    1
}
