//! The flow table as one: which family's map an entry is in, and in what form, is known here alone.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::BPF_NOEXIST;
use skep_ebpf_common::flow::*;
use skep_ebpf_common::{Address, PortBe};

use crate::atomic::{clear, exchange, opaque, set};
use crate::maps::{FLOW_HASH, FLOWS4, FLOWS6};
use crate::packet::Tuple;
use crate::service::alive;

/// An entry in its map's own form. Programs of other CPUs use it too: fields are updated by plain
/// stores, and a lost race delays a timestamp or a state bit until the next packet.
pub trait Entry {
    fn flags(&self) -> u32;
    fn set_flags(&mut self, flags: u32);
    fn seen(&self) -> u32;
    fn set_seen(&mut self, now: u32);
    fn policy_generation(&self) -> u32;
    fn via(&self) -> u32;
    /// A Service's, whose backend is none any more.
    fn has_lost_backend(&self) -> bool;
    /// Puts the tuple to leave with into `new`.
    fn tuple(&self, new: &mut Tuple);
    /// In the form of both families.
    fn whole(&self) -> Flow;
}

impl Entry for Flow4 {
    #[inline(always)]
    fn flags(&self) -> u32 {
        self.flags as u32
    }

    #[inline(always)]
    fn set_flags(&mut self, flags: u32) {
        self.flags = flags as u16;
    }

    #[inline(always)]
    fn seen(&self) -> u32 {
        self.seen
    }

    #[inline(always)]
    fn set_seen(&mut self, now: u32) {
        self.seen = now;
    }

    #[inline(always)]
    fn policy_generation(&self) -> u32 {
        self.policy_generation
    }

    #[inline(always)]
    fn via(&self) -> u32 {
        self.via
    }

    #[inline(always)]
    fn has_lost_backend(&self) -> bool {
        self.service != 0
            && !alive(self.backend, self.service as u32)
                .is_some_and(|backend| backend.address.v4_be() == self.destination)
    }

    #[inline(always)]
    fn tuple(&self, new: &mut Tuple) {
        new.source = Address::from_v4_be(self.source);
        new.destination = Address::from_v4_be(self.destination);
        new.source_port = self.source_port;
        new.destination_port = self.destination_port;
    }

    #[inline(always)]
    fn whole(&self) -> Flow {
        self.widened()
    }
}

impl Entry for Flow {
    #[inline(always)]
    fn flags(&self) -> u32 {
        self.flags
    }

    #[inline(always)]
    fn set_flags(&mut self, flags: u32) {
        self.flags = flags;
    }

    #[inline(always)]
    fn seen(&self) -> u32 {
        self.seen
    }

    #[inline(always)]
    fn set_seen(&mut self, now: u32) {
        self.seen = now;
    }

    #[inline(always)]
    fn policy_generation(&self) -> u32 {
        self.policy_generation
    }

    #[inline(always)]
    fn via(&self) -> u32 {
        self.via
    }

    #[inline(always)]
    fn has_lost_backend(&self) -> bool {
        self.service != 0
            && !alive(self.backend, self.service)
                .is_some_and(|backend| backend.address == self.destination)
    }

    #[inline(always)]
    fn tuple(&self, new: &mut Tuple) {
        new.source = self.source;
        new.destination = self.destination;
        new.source_port = self.source_port;
        new.destination_port = self.destination_port;
    }

    #[inline(always)]
    fn whole(&self) -> Flow {
        *self
    }
}

/// A bucket, and the tags that it had when it was looked at.
#[derive(Clone, Copy)]
struct Bucket {
    at: *mut FlowBucket,
    tags: u64,
}

/// A bucket and the tag that a key would have there.
#[derive(Clone, Copy)]
struct Place {
    bucket: Bucket,
    tag: u64,
}

/// Where a key may be.
#[derive(Clone, Copy)]
struct Places {
    own: [Place; 2],
    receiver: Place,
}

#[inline(always)]
fn places(key: &FlowKey4) -> Option<Places> {
    let hash = FLOW_HASH.get(0)?;
    Places::look(&hash.places(key), &hash.receiver(FlowEnd::receiver(key)))
}

impl Places {
    /// At all of them before one is searched: one wait for memory instead of three.
    #[inline(always)]
    fn look(own: &FlowPlaces, receiver: &FlowPlace) -> Option<Self> {
        let [first, second] = own.buckets;
        let (first, second) = (FLOWS4.get_ptr_mut(first)?, FLOWS4.get_ptr_mut(second)?);
        let third = FLOWS4.get_ptr_mut(receiver.bucket)?;
        let place = |at, tag| Place {
            bucket: look_at(at),
            tag,
        };
        Some(Self {
            own: [place(first, own.tag), place(second, own.tag)],
            receiver: place(third, receiver.tag),
        })
    }

    #[inline(always)]
    fn find(&self, key: &FlowKey4) -> Option<*mut FlowSlot> {
        let [first, second] = self.own;
        match find_in(first, key) {
            Some(slot) => Some(slot),
            None => match find_in(second, key) {
                Some(slot) => Some(slot),
                None => find_in(self.receiver, key),
            },
        }
    }

    #[inline(always)]
    fn may_have(&self, key: &FlowKey4) -> bool {
        let [first, second] = self.own;
        may_have(first, key) || may_have(second, key) || may_have(self.receiver, key)
    }
}

#[inline(always)]
fn look_at(at: *mut FlowBucket) -> Bucket {
    // SAFETY: an element of the map.
    let tags = unsafe { addr_of!((*at).tags).read_volatile() };
    Bucket { at, tags }
}

/// `None`: there is no such slot, which does not happen.
#[inline(always)]
fn slot_at(bucket: *mut FlowBucket, slot: u64) -> Option<*mut FlowSlot> {
    if slot >= BUCKET_SLOTS as u64 {
        return None;
    }
    let slot = opaque(slot) as usize;
    // SAFETY: an element of the map has so many slots.
    Some(unsafe { addr_of_mut!((*bucket).slots).cast::<FlowSlot>().add(slot) })
}

/// The slot of `key` in this bucket.
// VERIFIER: without a branch for each slot, after which it would look at all that follows.
#[inline(always)]
fn find_in(place: Place, key: &FlowKey4) -> Option<*mut FlowSlot> {
    let Place { bucket, tag } = place;
    let first = first_matching(bucket.tags, tag);
    if first == 0 {
        return None;
    }
    let slot = slot_at(bucket.at, taken_below(first))?;
    // SAFETY: a slot of an element of the map.
    if unsafe { addr_of!((*slot).key).read_volatile() } == *key {
        return Some(slot);
    }
    // Another key's of the same tag, of which there may be a second.
    match search(bucket.at, key) {
        0 => None,
        found => slot_at(bucket.at, found - 1),
    }
}

/// The number of the slot of `key`, plus one; 0: it is not there.
#[inline(never)]
fn search(bucket: *mut FlowBucket, key: &FlowKey4) -> u64 {
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: a slot of an element of the map.
        let here: FlowKey4 = unsafe {
            let slots = addr_of!((*bucket).slots).cast::<FlowSlot>();
            addr_of!((*slots.add(slot)).key).read_volatile()
        };
        if here == *key {
            return slot as u64 + 1;
        }
    }
    0
}

/// Whether another CPU is about to put a key of this tag into this bucket.
#[inline(always)]
fn is_expecting(place: Place) -> bool {
    let Place { bucket, tag } = place;
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: a slot of an element of the map.
        let rest = unsafe {
            let slots = addr_of!((*bucket.at).slots).cast::<FlowSlot>();
            addr_of!((*slots.add(slot)).key.0[1]).read_volatile()
        };
        if tag_of(bucket.tags, slot) == tag && rest == 0 {
            return true;
        }
    }
    false
}

/// Whether `key` is in this bucket or soon will be.
#[inline(always)]
fn may_have(place: Place, key: &FlowKey4) -> bool {
    first_matching(place.bucket.tags, place.tag) != 0
        && (find_in(place, key).is_some() || is_expecting(place))
}

/// Whether another CPU has put the key somewhere, but into the bucket `taken`.
// VERIFIER: all is asked for again, or it would have to lie on the stack until now.
#[inline(always)]
fn may_have_elsewhere(taken: *mut FlowBucket, key: &FlowKey4) -> bool {
    let Some(Places { own, receiver }) = places(key) else {
        return false;
    };
    let [first, second] = own;
    let has = |place: Place| place.bucket.at != taken && may_have(place, key);
    has(first) || has(second) || has(receiver)
}

/// The entry of an IPv4 key.
// VERIFIER: all buckets are waited for once, and what was there is not kept on the stack.
#[inline(always)]
pub fn entry4(key: &FlowKey) -> Option<&'static mut Flow4> {
    let key = FlowKey4::of(key);
    places(&key)?;
    match known4(&key, Sender::Outside) {
        Some(entry) => Some(entry),
        None => at_receiver(&key),
    }
}

/// Who has sent a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Pod,
    /// What it sends is no answer of a backend here.
    Outside,
}

/// As [`entry4`], of the key as the table has it, for who looks for what is there and not for what is about
/// to be put there. Most are where is looked first, so no other bucket is asked for before.
#[inline(always)]
pub fn known4(key: &FlowKey4, sender: Sender) -> Option<&'static mut Flow4> {
    if sender == Sender::Pod
        && let Some(answer) = at_receiver(key)
    {
        return Some(answer);
    }
    let FlowPlaces { buckets, tag } = FLOW_HASH.get(0)?.places(key);
    let [first, second] = buckets;
    match entry_at(first, tag, key) {
        Some(entry) => Some(entry),
        None => entry_at(second, tag, key),
    }
}

#[inline(always)]
fn at_receiver(key: &FlowKey4) -> Option<&'static mut Flow4> {
    let FlowPlace { bucket, tag } = FLOW_HASH.get(0)?.receiver(FlowEnd::receiver(key));
    entry_at(bucket, tag, key)
}

#[inline(always)]
fn entry_at(bucket: u32, tag: u64, key: &FlowKey4) -> Option<&'static mut Flow4> {
    let bucket = look_at(FLOWS4.get_ptr_mut(bucket)?);
    let slot = find_in(Place { bucket, tag }, key)?;
    // SAFETY: a slot of an element of the map; see `Entry`.
    Some(unsafe { &mut (*slot).flow })
}

/// Has the memory of this key's buckets fetched while something else is done.
#[inline(always)]
pub fn expect(key: &FlowKey) {
    if key.source.is_v4() {
        let _ = places(&FlowKey4::of(key));
    }
}

/// Where both entries of a flow will be that a client outside begins and a backend here answers.
#[derive(Clone, Copy)]
pub struct OpeningPlaces {
    asking: FlowPlaces,
    answering: FlowPlace,
}

impl OpeningPlaces {
    /// Of a flow whose first packet has this key: what it is answered with goes back to its sender.
    #[inline(always)]
    pub fn of(key: &FlowKey4) -> Option<Self> {
        let hash = FLOW_HASH.get(0)?;
        Some(Self {
            asking: hash.places(key),
            answering: hash.receiver(FlowEnd::sender(key)),
        })
    }
}

/// The same, looked at: the own buckets of the key that asks, and the receiver's of the one that answers.
pub struct Opening(Places);

impl Opening {
    #[inline(always)]
    pub fn at(places: &OpeningPlaces) -> Option<Self> {
        Places::look(&places.asking, &places.answering).map(Self)
    }

    /// False: the key was not there when the buckets were looked at. True says little.
    #[inline(always)]
    pub fn may_be_asked(&self) -> bool {
        let [first, second] = self.0.own;
        first_matching(first.bucket.tags, first.tag) != 0
            || first_matching(second.bucket.tags, second.tag) != 0
    }

    /// False: nothing to this receiver that a backend here might answer was anywhere.
    #[inline(always)]
    pub fn may_be_answered(&self) -> bool {
        let Place { bucket, tag } = self.0.receiver;
        bucket.tags & STRAYS != 0 || first_matching(bucket.tags, tag) != 0
    }

    /// Takes the slots of both before either is filled: an atomic exchange waits for all stores before it.
    /// `None`: there is none, or another CPU was faster.
    #[inline(always)]
    pub fn reserve(&self) -> Option<(Reserved, Reserved)> {
        if self.may_be_answered() {
            return None;
        }
        // Who puts the answer's key into a bucket of its own says so in this one before, and looks at it after.
        let Places { own, receiver } = self.0;
        let answers = reserve(receiver, first_free_at_receiver(receiver.bucket.tags))?;
        let emptier = emptier_of(own);
        match reserve(emptier, first_free(emptier.bucket.tags)) {
            Some(asks) => Some((asks, answers)),
            None => {
                answers.give_back();
                None
            }
        }
    }
}

/// A slot that is this CPU's to fill.
pub struct Reserved {
    slot: *mut FlowSlot,
    bucket: *mut FlowBucket,
    taking: u64,
}

/// Takes the slot whose lowest bit this is, before which all are taken, for a key. `None`: it is 0, or another CPU
/// was faster.
#[inline(always)]
fn reserve(place: Place, free: u64) -> Option<Reserved> {
    let Place {
        bucket: Bucket { at, tags },
        tag,
    } = place;
    if free == 0 {
        return None;
    }
    let slot = slot_at(at, taken_below(free))?;
    let taking = free.wrapping_mul(tag);
    // SAFETY: an element of the map.
    unsafe { exchange(addr_of_mut!((*at).tags), tags, tags | taking) }.then_some(Reserved {
        slot,
        bucket: at,
        taking,
    })
}

impl Reserved {
    #[inline(always)]
    fn give_back(self) {
        // SAFETY: an element of the map.
        unsafe { clear(addr_of_mut!((*self.bucket).tags), self.taking) };
    }

    /// `flow`: its words, as [`Flow4`] lies in memory.
    #[inline(always)]
    pub fn fill(self, key: &FlowKey4, flow: [u64; 4]) {
        // SAFETY: this CPU's slot of an element of the map.
        unsafe {
            let words = addr_of_mut!((*self.slot).flow).cast::<u64>();
            words.write_volatile(flow[0].to_le());
            words.add(1).write_volatile(flow[1].to_le());
            words.add(2).write_volatile(flow[2].to_le());
            words.add(3).write_volatile(flow[3].to_le());
            show(self.slot, key);
        }
    }
}

#[inline(always)]
fn emptier_of(places: [Place; 2]) -> Place {
    let [first, second] = places;
    if taken(second.bucket.tags) < taken(first.bucket.tags) {
        second
    } else {
        first
    }
}

/// The second word goes last: whoever finds it finds the rest.
///
/// # Safety
/// `slot` is this CPU's, of an element of the map, and its flow is there.
#[inline(always)]
unsafe fn show(slot: *mut FlowSlot, key: &FlowKey4) {
    // SAFETY: the caller's.
    unsafe {
        addr_of_mut!((*slot).key.0[0]).write_volatile(key.0[0]);
        addr_of_mut!((*slot).key.0[1]).write_volatile(key.0[1]);
    }
}

/// Attempts to take a slot while others take theirs in the same bucket.
const ATTEMPTS: u32 = 2;
const EEXIST: i32 = -17;
const EBUSY: i32 = -16;
const E2BIG: i32 = -7;
const ENOENT: i32 = -2;

#[inline(always)]
fn insert4(key: &FlowKey, flow: &Flow, only_new: bool) -> i32 {
    let (whole_key, key) = (key, FlowKey4::of(key));
    for _ in 0..ATTEMPTS {
        let Some(places) = places(&key) else {
            return E2BIG;
        };
        if only_new {
            if places.may_have(&key) {
                return EEXIST;
            }
        } else if let Some(slot) = places.find(&key) {
            // SAFETY: a slot of an element of the map.
            unsafe { fill(addr_of_mut!((*slot).flow), flow) };
            return 0;
        }
        let Places { own, receiver } = places;
        let at_receiver = first_free_at_receiver(receiver.bucket.tags);
        let (place, free) = if is_local_answer(flow) && at_receiver != 0 {
            (receiver, at_receiver)
        } else {
            if flow.may_stray(whole_key) && receiver.bucket.tags & STRAYED == 0 {
                // SAFETY: an element of the map.
                unsafe { set(addr_of_mut!((*receiver.bucket.at).tags), STRAYED) };
            }
            let emptier = emptier_of(own);
            (emptier, first_free(emptier.bucket.tags))
        };
        if free == 0 {
            return E2BIG;
        }
        let Some(reserved) = reserve(place, free) else {
            continue;
        };
        // Another CPU may have put the same key into another bucket since: of two that see each
        // other both give way.
        if only_new && may_have_elsewhere(reserved.bucket, &key) {
            reserved.give_back();
            return EEXIST;
        }
        // SAFETY: this CPU's slot of an element of the map.
        unsafe {
            fill(addr_of_mut!((*reserved.slot).flow), flow);
            show(reserved.slot, &key);
        }
        return 0;
    }
    EBUSY
}

#[inline(always)]
fn is_local_answer(flow: &Flow) -> bool {
    const BOTH: u32 = flow_flags::REVERSE | flow_flags::LOCAL;
    flow.flags & BOTH == BOTH
}

/// As `Flow4::of` says, without a copy on the way.
///
/// # Safety
/// `to` is in a slot of an element of the map.
#[inline(always)]
unsafe fn fill(to: *mut Flow4, flow: &Flow) {
    // SAFETY: the caller's.
    unsafe {
        addr_of_mut!((*to).source).write_volatile(flow.source.v4_be());
        addr_of_mut!((*to).destination).write_volatile(flow.destination.v4_be());
        addr_of_mut!((*to).source_port).write_volatile(flow.source_port);
        addr_of_mut!((*to).destination_port).write_volatile(flow.destination_port);
        addr_of_mut!((*to).flags).write_volatile(flow.flags as u16);
        addr_of_mut!((*to).service).write_volatile(flow.service as u16);
        addr_of_mut!((*to).seen).write_volatile(flow.seen);
        addr_of_mut!((*to).backend).write_volatile(flow.backend);
        addr_of_mut!((*to).policy_generation).write_volatile(flow.policy_generation);
        addr_of_mut!((*to).via).write_volatile(flow.via);
    }
}

#[inline(always)]
fn remove4(key: &FlowKey) -> i32 {
    let key = FlowKey4::of(key);
    let Some(places) = places(&key) else {
        return ENOENT;
    };
    let [first, second] = places.own;
    let mut removed = remove_from(first, &key);
    if removed == ENOENT {
        removed = remove_from(second, &key);
    }
    if removed == ENOENT {
        removed = remove_from(places.receiver, &key);
    }
    removed
}

#[inline(always)]
fn remove_from(place: Place, key: &FlowKey4) -> i32 {
    let Some(slot) = find_in(place, key) else {
        return ENOENT;
    };
    let bucket = place.bucket;
    // SAFETY: a slot of an element of the map. Of two that remove it one gives it back.
    unsafe {
        if !exchange(addr_of_mut!((*slot).key.0[1]), key.0[1], 0) {
            return ENOENT;
        }
        let number = (slot as usize - bucket.at as usize) / size_of::<FlowSlot>();
        clear(
            addr_of_mut!((*bucket.at).tags),
            TAG_MASK << (TAG_BITS * number as u32),
        );
    }
    0
}

/// The entry of an IPv6 key.
#[inline(always)]
pub fn entry6(key: &FlowKey) -> Option<&'static mut Flow> {
    let entry = FLOWS6.get_ptr_mut(key)?;
    // SAFETY: as in `entry4`.
    Some(unsafe { &mut *entry })
}

// VERIFIER: the four below are verified once and for all, not again wherever they are called (global
// functions, with pointers since Linux 5.12): they may be called with anything, even nothing.

/// Copies the entry of `key` into `flow`. 0: there is none.
#[inline(always)]
pub fn read(key: &FlowKey, flow: &mut Flow) -> u32 {
    // SAFETY: both outlive the call.
    unsafe { flow_read(key, flow) }
}

/// Puts an entry in, over an existing one.
#[inline(always)]
pub fn put(key: &FlowKey, flow: &Flow) -> i32 {
    // SAFETY: both outlive the call.
    unsafe { flow_put(key, flow) }
}

/// Puts an entry in where there is none: -EEXIST, or another error.
#[inline(always)]
pub fn put_new(key: &FlowKey, flow: &Flow) -> i32 {
    // SAFETY: both outlive the call.
    unsafe { flow_put_new(key, flow) }
}

/// Not 0: there was none.
#[inline(always)]
pub fn remove(key: &FlowKey) -> i32 {
    // SAFETY: it outlives the call.
    unsafe { flow_remove(key) }
}

/// # Safety
/// Both are valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_read(key: *const FlowKey, flow: *mut Flow) -> u32 {
    // SAFETY: the caller's.
    match unsafe { (key.as_ref(), flow.as_mut()) } {
        (Some(key), Some(flow)) => read_here(key, flow) as u32,
        _ => 0,
    }
}

/// As [`read`], without a call.
#[inline(always)]
pub fn read_here(key: &FlowKey, flow: &mut Flow) -> bool {
    if key.source.is_v4() {
        let Some(entry) = entry4(key) else {
            return false;
        };
        *flow = entry.widened();
    } else {
        let Some(entry) = entry6(key) else {
            return false;
        };
        *flow = *entry;
    }
    true
}

/// # Safety
/// Both are valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_put(key: *const FlowKey, flow: *const Flow) -> i32 {
    // SAFETY: the caller's.
    match unsafe { (key.as_ref(), flow.as_ref()) } {
        (Some(key), Some(flow)) => write(key, flow, false),
        _ => E2BIG,
    }
}

/// # Safety
/// Both are valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_put_new(key: *const FlowKey, flow: *const Flow) -> i32 {
    // SAFETY: the caller's.
    match unsafe { (key.as_ref(), flow.as_ref()) } {
        (Some(key), Some(flow)) => write(key, flow, true),
        _ => E2BIG,
    }
}

/// # Safety
/// It is valid or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn flow_remove(key: *const FlowKey) -> i32 {
    // SAFETY: the caller's.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return ENOENT;
    };
    if key.source.is_v4() {
        return remove4(key);
    }
    FLOWS6.remove(key).err().unwrap_or(0)
}

#[inline(always)]
fn write(key: &FlowKey, flow: &Flow, only_new: bool) -> i32 {
    if key.source.is_v4() {
        return insert4(key, flow, only_new);
    }
    let flags = if only_new { BPF_NOEXIST as u64 } else { 0 };
    FLOWS6.insert(key, flow, flags).err().unwrap_or(0)
}

/// The other direction of `key`, which has these flags now, learns of FIN, RST and the first answer.
#[inline(always)]
pub fn tell(twin_key: &FlowKey, key: &FlowKey, flags: u32) {
    let mut told = flags & (flow_flags::RESET | flow_flags::ANSWERED | flow_flags::ASKER_FIRST);
    if flags & flow_flags::FIN != 0 {
        told |= flow_flags::PEER_FIN;
    }
    if key.source.is_v4() {
        if let Some(twin) = entry4(twin_key) {
            add_flags(twin, key, told);
        }
    } else if let Some(twin) = entry6(twin_key) {
        add_flags(twin, key, told);
    }
}

#[inline(always)]
fn add_flags(twin: &mut impl Entry, key: &FlowKey, told: u32) {
    if twin.whole().answers(key) {
        twin.set_flags(twin.flags() | told);
    }
}

/// Answers under this key go through the node `via` from now on.
#[inline(always)]
pub fn set_via(key: &FlowKey, via: u32) {
    if key.source.is_v4() {
        if let Some(answer) = entry4(key) {
            answer.via = via;
        }
    } else if let Some(answer) = entry6(key) {
        answer.via = via;
    }
}

/// The flow of this key has been judged by the policy of this generation.
#[inline(always)]
pub fn set_policy_generation(key: &FlowKey, generation: u32) {
    if key.source.is_v4() {
        if let Some(flow) = entry4(key) {
            flow.policy_generation = generation;
        }
    } else if let Some(flow) = entry6(key) {
        flow.policy_generation = generation;
    }
}

/// Where the packet of `key` would be sent, if a flow is known.
#[inline(always)]
pub fn receiver(key: &FlowKey) -> Option<(Address, PortBe)> {
    if key.source.is_v4() {
        let flow = entry4(key)?;
        return Some((Address::from_v4_be(flow.destination), flow.destination_port));
    }
    let flow = entry6(key)?;
    Some((flow.destination, flow.destination_port))
}
