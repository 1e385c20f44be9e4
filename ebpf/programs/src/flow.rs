//! The flow table: following a known flow, creating the two entries of a new one, and finding the
//! flow that an ICMP error is about.

use core::mem::zeroed;
use core::ptr::addr_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_PSEUDO_HDR, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
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
use crate::maps::{NEXT_PORTS, Room, Scratch, config, room};
use crate::packet::{ACK, ETH_LEN, FIN, Packet, RST, SYN, Tuple, load, store};
use crate::service::remote_hash;
use crate::table::{self, Entry};

const EEXIST: i32 = -17;

/// Attempts to find a free port before one is taken that is not free for long, or none.
const PORT_ATTEMPTS: u32 = 16;
/// From one port to the next. Coprime to [`NAT_PORT_COUNT`]: none comes again before all have.
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

/// The same without a call (of IPv4), for the shortest ways through the programs.
#[inline(always)]
pub fn follow_here(packet: &mut Packet, new: &mut Tuple, now: u32) -> Option<Followed> {
    if packet.key.source.is_v4() {
        let entry = table::entry4(&packet.key)?;
        follow_entry(entry, packet, new, now)
    } else {
        follow6(packet, new, now)
    }
}

#[inline(never)]
fn follow6(packet: &mut Packet, new: &mut Tuple, now: u32) -> Option<Followed> {
    let entry = table::entry6(&packet.key)?;
    follow_entry(entry, packet, new, now)
}

#[inline(always)]
fn follow_entry(
    flow: &mut impl Entry,
    packet: &mut Packet,
    new: &mut Tuple,
    now: u32,
) -> Option<Followed> {
    let flags = flow.flags();
    if opens(packet) && flags & flow_flags::REVERSE == 0 {
        if flow.has_lost_backend() {
            forget(&packet.key);
            return None;
        }
        if packet.key.protocol == TCP && flags & flow_flags::CLOSING != 0 {
            packet.again = true;
            return None;
        }
    }
    if flow.seen() != now {
        flow.set_seen(now);
    }
    let mut state = flags;
    if packet.tcp_flags & FIN != 0 {
        state |= flow_flags::FIN;
        if flags & (flow_flags::REVERSE | flow_flags::PEER_FIN) == 0 {
            state |= flow_flags::ASKER_FIRST;
        }
    }
    if packet.tcp_flags & RST != 0 {
        state |= flow_flags::RESET;
    }
    if flags & flow_flags::REVERSE != 0 || (flags & flow_flags::DIRECT != 0 && !opens(packet)) {
        // Only who has an answer goes on.
        state |= flow_flags::ANSWERED;
    }
    if state != flags {
        flow.set_flags(state);
        tell_twin(&packet.key, state);
    }
    flow.tuple(new);
    Some(Followed {
        flags: state,
        policy_generation: flow.policy_generation(),
        via: flow.via(),
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
    table::receiver(&key.reversed())
        .is_some_and(|(address, port)| address != key.source || port != key.source_port)
}

/// Answers of the flow that this packet belongs to go back through the node `via` from now on.
// VERIFIER: a frame of its own, or the caller's is too large.
#[inline(never)]
pub fn return_via(packet: &Packet, new: &Tuple, via: u32) -> u32 {
    let key = FlowKey {
        source: new.destination,
        destination: new.source,
        source_port: new.destination_port,
        destination_port: new.source_port,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    };
    table::set_via(&key, via);
    0
}

// VERIFIER: global functions, as those of `table`, are verified once and not wherever they are called.

/// Forgets both directions of a flow.
#[inline(always)]
fn forget(key: &FlowKey) {
    // SAFETY: it outlives the call.
    unsafe { flow_forget(key) };
}

/// # Safety
/// It is valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_forget(key: *const FlowKey) -> u32 {
    // SAFETY: the caller's.
    let (
        Some(key),
        Some(Room {
            flow,
            key: twin_key,
        }),
    ) = (unsafe { key.as_ref() }, room())
    else {
        return 0;
    };
    if table::read(key, flow) != 0 {
        *twin_key = flow.reverse_key(key);
        // Either may be gone already.
        table::remove(twin_key);
        table::remove(key);
    }
    0
}

/// The other direction learns of FIN, RST and the first answer.
#[inline(always)]
fn tell_twin(key: &FlowKey, flags: u32) {
    // SAFETY: it outlives the call.
    unsafe { flow_tell_twin(key, flags) };
}

/// # Safety
/// It is valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_tell_twin(key: *const FlowKey, flags: u32) -> u32 {
    // SAFETY: the caller's.
    let (
        Some(key),
        Some(Room {
            flow,
            key: twin_key,
        }),
    ) = (unsafe { key.as_ref() }, room())
    else {
        return 0;
    };
    if table::read_here(key, flow) {
        *twin_key = flow.reverse_key(key);
        table::tell(twin_key, key, flags);
    }
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

/// Has the memory of the answer's entry of `scratch.wanted` fetched, if it will be where it most often
/// is, while something else is done.
#[inline(always)]
pub fn expect_answer(scratch: &Scratch) {
    let Scratch { packet, wanted, .. } = scratch;
    table::expect(&FlowKey {
        source: wanted.destination,
        destination: wanted.source,
        source_port: wanted.destination_port,
        destination_port: packet.key.source_port,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    });
}

/// Creates both entries of `scratch.wanted` for the packet and leaves its tuple in `scratch.new`.
/// The answer's entry goes first and only if its key is free: that is what allocates a port, per
/// remote address and port. 0 = done, else the reason plus one.
///
/// A client keeps its own source port where that is free: when it takes a port again, its SYN
/// finds the receiver's old connection with sequence numbers that only grow, and is accepted. A
/// port that another client has just used would meet that connection in TIME_WAIT and lose a
/// second, so it is taken last, and the longest unused one first: ports of a server are given out in
/// turn, and are free at once where the client closes first.
#[inline(never)]
pub fn create<C: Context>(context: C, scratch: &mut Scratch) -> u32 {
    let now = scratch.now();
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
    // `flow` is written later.
    if packet.again
        && table::read(key, flow) != 0
        && flow.flags & flow_flags::REVERSE == 0
        && flow.source == wanted.source
        && flow.destination == wanted.destination
        && flow.destination_port == wanted.destination_port
    {
        // The port that this client had towards this backend: still its own.
        keep_port = true;
        answer_key.destination_port = flow.source_port;
    }
    let attempts = if wanted.flags & flow_flags::TRACK_ONLY != 0 {
        1
    } else {
        PORT_ATTEMPTS
    };
    let mut chosen = false;
    let mut longest_unused = 0;
    let mut its_port = PortBe(0);
    for attempt in 0..PORT_ATTEMPTS {
        if attempt >= attempts {
            break;
        }
        if attempt > 0 || !keep_port {
            answer_key.destination_port = PortBe::new(nat_port(next_port(answer_key)));
            if taken_by_node(context, answer_key) != 0 {
                continue;
            }
        }
        match table::put_new(answer_key, answer) {
            0 => {
                chosen = true;
                break;
            }
            EEXIST => {}
            _ => return Reason::FlowTableFull as u32 + 1,
        }
        let unused = left_over(answer_key, answer, flow, now);
        if unused == FREE {
            if replace(answer_key, answer, flow) {
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
        chosen = replace(answer_key, answer, flow);
    }
    if !chosen {
        return Reason::NoPort as u32 + 1;
    }
    let port = answer_key.destination_port;
    let published = publish(key, wanted, port, now, generation, flow, new);
    if published != 0 {
        table::remove(answer_key);
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
    if table::put(key, flow) != 0 {
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
    let now = scratch.now();
    let Scratch {
        packet,
        answer_key,
        answer,
        flow,
        ..
    } = scratch;
    let key = &packet.key;
    *answer_key = key.reversed();
    // `answer` is written later.
    if key.protocol != TCP
        && table::read(answer_key, answer) != 0
        && answer.flags & flow_flags::DIRECT != 0
        && answer.source == *frontend
        && answer.source_port == port
    {
        return 1;
    }
    answer.source = *frontend;
    answer.destination = key.source;
    answer.source_port = port;
    answer.destination_port = key.source_port;
    answer.flags = flow_flags::DIRECT | flow_flags::REVERSE | flow_flags::LOCAL;
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
    (table::put(answer_key, answer) == 0 && table::put(key, flow) == 0) as u32
}

/// Forgets what [`create`] has just made: policy does not let the connection begin, and its next
/// packet must not find it begun.
#[inline(never)]
pub fn forget_created(scratch: &Scratch) -> u32 {
    table::remove(&scratch.answer.reverse_key(&scratch.answer_key));
    table::remove(&scratch.answer_key);
    0
}

/// Which of the [`NAT_PORT_COUNT`] ports to try next for answers from this remote address and port.
#[inline(always)]
fn next_port(answer: &FlowKey) -> u32 {
    // SAFETY: it outlives the call. The rest is for the verifier.
    (unsafe { flow_next_port(answer) }) % NAT_PORT_COUNT
}

/// # Safety
/// It is valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_next_port(answer: *const FlowKey) -> u32 {
    // SAFETY: the caller's.
    let Some(answer) = (unsafe { answer.as_ref() }) else {
        return 0;
    };
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    // Nobody should guess the port of a datagram (RFC 6056 §3.1); a connection is guarded by its
    // sequence numbers.
    if answer.protocol != TCP {
        return random;
    }
    let of_remote = remote_hash(answer) & (MAX_NEXT_PORTS - 1);
    let Some(next) = NEXT_PORTS.get_ptr_mut(of_remote) else {
        return random;
    };
    // SAFETY: an element of the map. Of two CPUs that count at once both may get the same port, and
    // one of them finds it taken.
    let number = match unsafe { *next } {
        0 => random >> 1,
        number => number,
    };
    // SAFETY: as above.
    unsafe { *next = number.wrapping_add(1) };
    ((number as u64 * PORT_STRIDE as u64) % NAT_PORT_COUNT as u64) as u32
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
    let mut tuple: bpf_sock_tuple = unsafe { zeroed() };
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
/// closed, plus one. `existing` is room for the entry.
#[inline(always)]
fn left_over(key: &FlowKey, answer: &Flow, existing: &mut Flow, now: u32) -> u32 {
    // SAFETY: all outlive the call.
    unsafe { flow_left_over(key, answer, existing, now) }
}

/// # Safety
/// All are valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_left_over(
    key: *const FlowKey,
    answer: *const Flow,
    existing: *mut Flow,
    now: u32,
) -> u32 {
    // SAFETY: the caller's.
    let given = unsafe { (key.as_ref(), answer.as_ref(), existing.as_mut()) };
    let (Some(key), Some(answer), Some(existing)) = given else {
        return 0;
    };
    if table::read(key, existing) == 0 {
        // Gone meanwhile; who takes its place finds out.
        return FREE;
    }
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
    let remembered = if existing.flags & flow_flags::ASKER_FIRST != 0 {
        LAST_ACK_SECONDS
    } else {
        TIME_WAIT_SECONDS
    };
    if existing.flags & flow_flags::RESET != 0 || unused >= remembered {
        return FREE;
    }
    unused + 1
}

/// Puts `answer` in the place of an entry that is left over. Of two that try, one succeeds. `existing`
/// is room for an entry.
#[inline(always)]
fn replace(key: &FlowKey, answer: &Flow, existing: &mut Flow) -> bool {
    // SAFETY: both outlive the call.
    (unsafe { flow_make_way(key, existing) }) == 0 && table::put_new(key, answer) == 0
}

/// Removes what is left over under this key. Not 0: another did.
///
/// # Safety
/// Both are valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_make_way(key: *const FlowKey, existing: *mut Flow) -> i32 {
    // SAFETY: the caller's.
    let (Some(key), Some(existing)) = (unsafe { (key.as_ref(), existing.as_mut()) }) else {
        return EEXIST;
    };
    if table::read(key, existing) == 0 {
        return 0;
    }
    let twin_key = existing.reverse_key(key);
    let removed = table::remove(key);
    if removed == 0 && table::read(&twin_key, existing) != 0 && existing.answers(key) {
        table::remove(&twin_key);
    }
    removed
}

/// Translates an ICMP error to what its receiver sent: the quoted packet is one that left after
/// translation, so the entry of its answer says how to turn both headers back. The transport
/// checksum inside the quote stays as it is: it may be cut off, and no receiver looks at it.
///
/// 0 = no flow known, 1 = translated, 2 = failed half-way. `answer_key` and `flow` are room for those.
#[inline(never)]
pub fn translate_icmp_error(
    skb: *mut __sk_buff,
    packet: &mut Packet,
    answer_key: &mut FlowKey,
    flow: &mut Flow,
) -> u32 {
    let quote = packet.l4 + 8;
    let v4 = packet.key.source.is_v4();
    let quoted_protocol;
    let inner_l4;
    if v4 {
        let Some(header) = load::<[u32; 5]>(skb, quote) else {
            return 0;
        };
        answer_key.destination = Address::from_v4_be(header[3]);
        answer_key.source = Address::from_v4_be(header[4]);
        quoted_protocol = (u32::from_be(header[2]) >> 16) as u8;
        inner_l4 = quote + ((u32::from_be(header[0]) >> 24) & 0x0f) * 4;
    } else {
        let Some(header) = load::<[u32; 10]>(skb, quote) else {
            return 0;
        };
        answer_key.destination = Address([header[2], header[3], header[4], header[5]]);
        answer_key.source = Address([header[6], header[7], header[8], header[9]]);
        quoted_protocol = (u32::from_be(header[1]) >> 8) as u8;
        inner_l4 = quote + 40;
    }
    let Some(words) = load::<[u16; 4]>(skb, inner_l4) else {
        return 0;
    };
    let echo = quoted_protocol == ICMP || quoted_protocol == ICMPV6;
    // Of an echo only a request is worth translating.
    let (quoted_source_port, quoted_destination_port) = if echo {
        (PortBe(words[2]), PortBe(0))
    } else {
        (PortBe(words[0]), PortBe(words[1]))
    };
    answer_key.source_port = quoted_destination_port;
    answer_key.destination_port = quoted_source_port;
    answer_key.protocol = quoted_protocol;
    answer_key._pad = [0; 3];
    if table::read(answer_key, flow) == 0 {
        return 0;
    }

    let new_quote = [flow.destination, flow.source];
    let old_quote = [answer_key.destination, answer_key.source];
    let new_destination = if packet.key.destination == answer_key.destination {
        flow.destination
    } else {
        packet.key.destination
    };
    let new_source = if packet.key.source == answer_key.source {
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
    let old_ports = [quoted_source_port, quoted_destination_port];
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
