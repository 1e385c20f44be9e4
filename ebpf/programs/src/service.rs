//! Frontend lookup and the choice of a backend; the same for sockets and packets.

use core::ptr::addr_of;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use skep_ebpf_common::flow::{FlowKey, FlowKey4};
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, PortBe};

use crate::count::now;
use crate::maps::{AFFINITIES, BACKENDS, FRONTENDS, NODE_ADDRESSES, SLOTS, WALKS, config};

/// A chosen backend and its index.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub index: u32,
    pub backend: Backend,
}

/// The frontend at exactly this address, or the NodePort when the address is the node's.
#[inline(always)]
pub fn find(
    address: &Address,
    port: PortBe,
    protocol: u8,
    loopback_too: bool,
    found: &mut Frontend,
) -> bool {
    let key = FrontendKey::new(*address, port, protocol);
    // SAFETY: copied at once; the element may be replaced but never half-written.
    if let Some(frontend) = unsafe { FRONTENDS.get(&key) } {
        *found = *frontend;
        return true;
    }
    if !(loopback_too && address.is_loopback()) && !is_node_address(address) {
        return false;
    }
    find_node_port(address, port, protocol, found)
}

/// The NodePort of this number, whatever node's `address` is.
#[inline(always)]
pub fn find_node_port(address: &Address, port: PortBe, protocol: u8, found: &mut Frontend) -> bool {
    let key = FrontendKey::new(address.unspecified(), port, protocol);
    // SAFETY: copied at once; the element may be replaced but never half-written.
    match unsafe { FRONTENDS.get(&key) } {
        Some(frontend) => {
            *found = *frontend;
            true
        }
        None => false,
    }
}

#[inline(always)]
pub fn is_node_address(address: &Address) -> bool {
    // The one that most ask for, without a look into the table.
    if let Some(config) = config()
        && address.is_v4()
        && *address == config.node_v4
    {
        return true;
    }
    NODE_ADDRESSES.get_ptr(address).is_some()
}

/// Whether `backend` still belongs to `service`.
#[inline(always)]
pub fn alive(index: u32, service: u32) -> Option<Backend> {
    let backend = BACKENDS.get(index)?.backend;
    (backend.service == service).then_some(backend)
}

/// How to choose among an extent's slots.
#[derive(Clone, Copy)]
pub enum Balance {
    Random,
    /// By the flow's hash, for a Maglev table.
    Hash(u32),
    /// Of this number.
    At(u32),
}

/// Chooses a backend for `client`, keeping sessionAffinity. `None`: no backend.
#[inline(always)]
pub fn choose(
    frontend: &Frontend,
    extent: Extent,
    balance: Balance,
    client: &Address,
    local_only: bool,
) -> Option<Chosen> {
    if extent.len == 0 {
        return None;
    }
    if frontend.affinity_seconds == 0 {
        return pick(frontend.service, extent, balance);
    }
    let key = AffinityKey {
        client: *client,
        service: frontend.service,
    };
    let now = now();
    if let Some(affinity) = AFFINITIES.get_ptr_mut(&key) {
        // SAFETY: an element of the map; a lost race changes which backend is remembered.
        let (index, seen) = unsafe { ((*affinity).backend, (*affinity).seen) };
        if now.wrapping_sub(seen) <= frontend.affinity_seconds
            && let Some(backend) = alive(index, frontend.service)
            && (!local_only || backend.flags & backend_flags::LOCAL != 0)
        {
            if seen != now {
                // SAFETY: as above.
                unsafe { (*affinity).seen = now };
            }
            return Some(Chosen { index, backend });
        }
    }
    let chosen = pick(frontend.service, extent, balance)?;
    // An LRU: a failed insert costs this client its affinity, not its connection.
    let _ = AFFINITIES.insert(
        &key,
        Affinity {
            backend: chosen.index,
            seen: now,
        },
        0,
    );
    Some(chosen)
}

#[inline(always)]
fn pick(service: u32, extent: Extent, balance: Balance) -> Option<Chosen> {
    let offset = match balance {
        Balance::Hash(hash) => below(hash, extent.len),
        Balance::Random => random_below(extent.len),
        Balance::At(offset) => offset,
    };
    let index = *SLOTS.get(extent.base.wrapping_add(offset))? as u32;
    if let Some(backend) = alive(index, service) {
        return Some(Chosen { index, backend });
    }
    // The backend left between our reading the frontend and its slot: the first slot is rewritten
    // before a backend is marked gone.
    let index = *SLOTS.get(extent.base)? as u32;
    alive(index, service).map(|backend| Chosen { index, backend })
}

#[inline(always)]
fn random_below(len: u32) -> u32 {
    if len == 1 {
        return 0;
    }
    below(random(), len)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn below(number: u32, len: u32) -> u32 {
    ((number as u64 * len as u64) >> 32) as u32
}

/// Choices of one Service that follow one another in its extent before a number is drawn again. The memory of
/// neighbours comes together; and a choice is as likely to be any backend as if each were drawn.
const WALK: u32 = 64;

/// Where this CPU's walk through an extent is.
#[repr(C)]
pub struct Walk {
    /// 0: nowhere.
    service: u32,
    /// The next two choices, in the extent.
    next: u32,
    after: u32,
    /// Choices from `after` on until a number is drawn.
    left: u32,
}

impl Walk {
    /// The choice that is due, of so many.
    #[inline(always)]
    fn step(&mut self, service: u32, len: u32) -> u32 {
        let this = self.next;
        if self.service != service || this >= len {
            self.service = service;
            let this = below(random(), len);
            self.next = follower(this, len);
            self.after = follower(self.next, len);
            self.left = WALK - 3;
            return this;
        }
        self.next = self.after;
        if self.left == 0 {
            self.after = below(random(), len);
            self.left = WALK;
        } else {
            self.after = follower(self.after, len);
        }
        self.left -= 1;
        this
    }
}

#[inline(always)]
fn follower(choice: u32, len: u32) -> u32 {
    if choice + 1 < len { choice + 1 } else { 0 }
}

/// What the next choices will need, if they are of the same Service.
pub struct Expected {
    /// Of one backend, or by the flow's hash: nothing is known of them.
    is_known: bool,
    next: u32,
    after: u32,
}

impl Expected {
    pub const NOTHING: Self = Self {
        is_known: false,
        next: 0,
        after: 0,
    };

    /// Has the memory fetched: the slot two choices before it is needed, its backend one before.
    #[inline(always)]
    pub fn expect(&self) {
        if !self.is_known {
            return;
        }
        if let Some(slot) = SLOTS.get_ptr_mut(self.after) {
            // SAFETY: an element of the map, as those below.
            unsafe { slot.read_volatile() };
        }
        let Some(slot) = SLOTS.get_ptr_mut(self.next) else {
            return;
        };
        // SAFETY: as above.
        let index = unsafe { slot.read_volatile() } as u32;
        if let Some(element) = BACKENDS.get_ptr_mut(index) {
            // SAFETY: as above.
            unsafe { addr_of!((*element).backend.service).read_volatile() };
        }
    }
}

/// As [`choose`], for a client outside that is tied to no backend. What comes is known two choices ahead: most
/// new flows are of the Service of the one before, and of many backends the next is in nobody's cache.
#[inline(always)]
pub fn choose_ahead(frontend: &Frontend, key: &FlowKey4) -> Option<(Chosen, Expected)> {
    let (service, extent) = (frontend.service, frontend.external);
    if extent.len == 0 {
        return None;
    }
    if frontend.flags & frontend_flags::EXTERNAL_MAGLEV != 0 {
        let balance = Balance::Hash(flow_hash4(key));
        return Some((pick(service, extent, balance)?, Expected::NOTHING));
    }
    if extent.len == 1 {
        return Some((pick(service, extent, Balance::At(0))?, Expected::NOTHING));
    }
    let walk = WALKS.get_ptr_mut(0)?;
    // SAFETY: this CPU's element, used by one program at a time.
    let walk = unsafe { &mut *walk };
    let this = walk.step(service, extent.len);
    let expected = Expected {
        is_known: true,
        next: extent.base.wrapping_add(walk.next),
        after: extent.base.wrapping_add(walk.after),
    };
    Some((pick(service, extent, Balance::At(this))?, expected))
}

/// The same on every node for the same packet (Maglev needs that).
#[inline(always)]
pub fn flow_hash(key: &FlowKey) -> u32 {
    if key.source.is_v4() {
        return flow_hash4(&FlowKey4::of(key));
    }
    let ports = ((key.source_port.0 as u32) << 16) | key.destination_port.0 as u32;
    let mut hash = key.protocol as u32 ^ 0x9e37_79b1;
    hash = mix(hash ^ key.source.0[0]);
    hash = mix(hash ^ key.source.0[1]);
    hash = mix(hash ^ key.source.0[3]);
    hash = mix(hash ^ key.destination.0[3]);
    mix(hash ^ ports)
}

/// Of a key of IPv4. A slot is waited for until its hash is known, so it takes two steps: each carries all bits
/// into the upper half, of which the highest choose.
#[inline(always)]
fn flow_hash4(key: &FlowKey4) -> u32 {
    let [addresses, rest] = key.0;
    let hash = addresses.wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 32 ^ rest).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash >> 32) as u32
}

/// Of the address and port that a packet comes from.
#[inline(always)]
pub fn remote_hash(key: &FlowKey) -> u32 {
    let mut hash = mix(key.source.0[0] ^ key.protocol as u32);
    hash = mix(hash ^ key.source.0[1]);
    hash = mix(hash ^ key.source.0[3]);
    mix(hash ^ key.source_port.0 as u32)
}

/// The finaliser of MurmurHash3.
#[inline(always)]
fn mix(mut value: u32) -> u32 {
    value ^= value >> 16;
    value = value.wrapping_mul(0x85eb_ca6b);
    value ^= value >> 13;
    value = value.wrapping_mul(0xc2b2_ae35);
    value ^ (value >> 16)
}
