//! NetworkPolicy at the pod's edge. A connection is judged once, at its first packet; the flow
//! table remembers the verdict until policy changes. Answers of an allowed connection pass.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use skep_ebpf_common::flow::{FlowKey, flow_flags};
use skep_ebpf_common::node::{Pod, pod_flags};
use skep_ebpf_common::policy::*;
use skep_ebpf_common::{Address, PortBe};

use crate::flow::{Followed, create};
use crate::maps::{IDENTITIES, RULES, Scratch, VERDICTS, config};
use crate::packet::{Packet, Shape};
use crate::service::is_node_address;
use crate::table::set_policy_generation;

/// Whether policy lets this packet into `pod`.
#[inline(always)]
pub fn allows_ingress(packet: &Packet, pod: &Pod, followed: Option<&Followed>) -> bool {
    pod.flags & pod_flags::INGRESS_ISOLATED == 0
        || exempt(packet, followed)
        || admits(&packet.key, pod.policy)
}

/// Whether this policy set lets a connection in.
#[inline(always)]
pub fn admits(key: &FlowKey, policy: u32) -> bool {
    admits_whom(key, policy) != NOBODY
}

/// The same, and whom else: [`NOBODY`], [`NODE`], [`PEER`] or [`ANYBODY`].
#[inline(always)]
pub fn admits_whom(key: &FlowKey, policy: u32) -> u32 {
    match judge(key, policy, INGRESS) {
        NOBODY if is_node_address(&key.source) => NODE,
        whom => whom,
    }
}

/// Whether policy lets `pod` send this packet (its destination already translated).
#[inline(always)]
pub fn allows_egress(packet: &Packet, pod: &Pod, followed: Option<&Followed>) -> bool {
    pod.flags & pod_flags::EGRESS_ISOLATED == 0
        || exempt(packet, followed)
        || judge(&packet.key, pod.policy, EGRESS) != NOBODY
        || is_node_address(&packet.key.destination)
}

/// Already judged under today's policy, an answer, or an error about something that was.
#[inline(always)]
fn exempt(packet: &Packet, followed: Option<&Followed>) -> bool {
    if packet.is(Shape::IcmpError) {
        return true;
    }
    followed.is_some_and(settled)
}

/// Whether the packets of this flow need no judgement: answers, and what today's policy allowed.
#[inline(always)]
pub fn settled(followed: &Followed) -> bool {
    followed.flags & flow_flags::REVERSE != 0
        || config().is_some_and(|config| followed.policy_generation == config.policy_generation)
}

/// Remembers that this connection may go on, so that its answers pass. Nothing is remembered when
/// the table is full: then only what policy allows in both directions passes.
#[inline(always)]
pub fn remember(skb: *mut __sk_buff, scratch: &mut Scratch) {
    let Scratch { packet, wanted, .. } = scratch;
    wanted.source = packet.key.source;
    wanted.destination = packet.key.destination;
    wanted.destination_port = packet.key.destination_port;
    wanted.flags = flow_flags::TRACK_ONLY;
    wanted.service = 0;
    wanted.backend = 0;
    wanted.answer_via = 0;
    create(skb, scratch);
}

/// Today's policy allows a connection of yesterday: it is not asked again until policy changes. A
/// translated one, whose key is not at hand any more, is.
#[inline(always)]
pub fn renew(packet: &Packet, followed: &Followed) {
    let Some(config) = config() else { return };
    if followed.policy_generation != config.policy_generation {
        set_policy_generation(&packet.key, config.policy_generation);
    }
}

/// Whom a policy set allows what was asked.
pub const NOBODY: u32 = 0;
pub const ANYBODY: u32 = 1;
/// All of its identity.
pub const PEER: u32 = 2;
/// An address of a node, for no other reason.
pub const NODE: u32 = 3;

#[inline(never)]
fn judge(key: &FlowKey, policy: u32, direction: u8) -> u32 {
    let asked = |identity: u32, protocol: u8| Asked {
        policy,
        identity,
        rest: Asked::rest(direction, protocol, key.destination_port),
    };
    let generation = config().map_or(0, |config| config.policy_generation);
    let anybody = asked(IDENTITY_ANY, key.protocol);
    if is_known(&anybody, generation) {
        return ANYBODY;
    }
    let peer = if direction == INGRESS {
        &key.source
    } else {
        &key.destination
    };
    let identity = identity_of(peer).identity;
    let this = asked(identity, key.protocol);
    if is_known(&this, generation) {
        return PEER;
    }
    if allowed(anybody) || allowed(asked(IDENTITY_ANY, 0)) {
        learn(anybody, generation);
        return ANYBODY;
    }
    if allowed(this) || allowed(asked(identity, 0)) {
        learn(this, generation);
        return PEER;
    }
    NOBODY
}

#[inline(always)]
pub fn identity_of(peer: &Address) -> Identity {
    let identity = IDENTITIES.get(&Key::new(128, *peer));
    identity.copied().unwrap_or(Identity::WORLD)
}

/// A [`RuleKey`] in words.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    policy: u32,
    identity: u32,
    rest: u32,
}

impl Asked {
    #[inline(always)]
    fn rest(direction: u8, protocol: u8, port: PortBe) -> u32 {
        direction as u32 | (protocol as u32) << 8 | (port.0 as u32) << 16
    }

    #[inline(always)]
    fn rule(self) -> RuleKey {
        let [direction, protocol, high, low] = self.rest.to_le_bytes();
        RuleKey {
            policy: self.policy,
            identity: self.identity,
            direction,
            protocol,
            port: [high, low],
        }
    }

    /// Of the verdict on it, in [`VERDICTS`].
    #[inline(always)]
    fn place(self) -> u32 {
        let words = self.policy ^ self.identity.rotate_left(16) ^ self.rest.rotate_left(8);
        words.wrapping_mul(0x9e37_79b1) >> (32 - VERDICT_BITS)
    }
}

#[inline(always)]
fn is_known(asked: &Asked, generation: u32) -> bool {
    let verdict = VERDICTS.get_ptr_mut(asked.place());
    // SAFETY: this CPU's element, used by one program at a time.
    verdict.is_some_and(|verdict| unsafe { (*verdict).allows(asked, generation) })
}

#[inline(always)]
fn learn(asked: Asked, generation: u32) {
    if let Some(verdict) = VERDICTS.get_ptr_mut(asked.place()) {
        // SAFETY: as above.
        unsafe {
            *verdict = Verdict {
                asked,
                generation,
                is_known: 1,
            }
        };
    }
}

/// Of the verdicts that a CPU remembers.
pub const VERDICT_BITS: u32 = 8;

/// What the policy of a generation allows. What it does not is asked each time: an agent that is
/// about to allow it says so afterwards.
#[repr(C)]
pub struct Verdict {
    asked: Asked,
    generation: u32,
    is_known: u32,
}

impl Verdict {
    #[inline(always)]
    fn allows(&self, asked: &Asked, generation: u32) -> bool {
        self.is_known != 0
            && self.generation == generation
            && self.asked.policy == asked.policy
            && self.asked.identity == asked.identity
            && self.asked.rest == asked.rest
    }
}

#[inline(always)]
fn allowed(asked: Asked) -> bool {
    RULES
        .get(&Key::new(RULE_EXACT_BITS + 16, asked.rule()))
        .is_some()
}
