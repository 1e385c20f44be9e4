//! Every map, with the layout of skep-ebpf-common. The agent pins them all by these names and may
//! override the sizes.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::btf_map;
use skep_ebpf_common::Address;
use skep_ebpf_common::event::{EVENT_RING_BYTES, FlowEvent};
use skep_ebpf_common::flow::*;
use skep_ebpf_common::node::*;
use skep_ebpf_common::policy::*;
use skep_ebpf_common::reason::MAX_REASONS;
use skep_ebpf_common::service::*;

use crate::count::now;
use crate::flow::Wanted;
use crate::forward::{NextHop, WAYS_BITS, Way};
use crate::packet::{Packet, Tuple};
use crate::policy::{VERDICT_BITS, Verdict};
use crate::service::Walk;

/// `BPF_F_MMAPABLE`: the agent writes these through memory.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, { MAX_FRONTENDS as usize }> = HashMap::new();
#[btf_map]
pub static SLOTS: Array<Slot, { MAX_SLOTS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static BACKENDS: Array<BackendElement, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static AFFINITIES: LruHashMap<AffinityKey, Affinity, { MAX_AFFINITIES as usize }> =
    LruHashMap::new();
#[btf_map]
pub static SOURCE_RANGES: LpmTrie<SourceRange, u32, { MAX_SOURCE_RANGES as usize }> =
    LpmTrie::new();
#[btf_map]
pub static PEERS: Array<Peer, { MAX_PEERS as usize }> = Array::new();
#[btf_map]
pub static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();
#[btf_map]
pub static STREAMS: SkStorage<StreamRecord> = SkStorage::new();

/// These three are `table`'s.
#[btf_map]
pub static FLOWS4: Array<FlowBucket, { MAX_BUCKETS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static FLOW_HASH: Array<FlowHash, 1> = Array::new();
#[btf_map]
pub static FLOWS6: HashMap<FlowKey, Flow, { MAX_FLOWS as usize }> = HashMap::new();
#[btf_map]
pub static NEXT_PORTS: Array<u32, { MAX_NEXT_PORTS as usize }> = Array::new();
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { MAX_FRAGMENTS as usize }> =
    LruHashMap::new();

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static PODS: HashMap<Address, Pod, { MAX_PODS as usize }> = HashMap::new();
/// The node's own addresses.
#[btf_map]
pub static NODE_ADDRESSES: HashMap<Address, u32, { MAX_NODE_ADDRESSES as usize }> = HashMap::new();
#[btf_map]
pub static NETWORKS: LpmTrie<Address, Network, { MAX_NETWORKS as usize }> = LpmTrie::new();
/// Service addresses that this node answers for on its link.
#[btf_map]
pub static ANNOUNCED: HashMap<Address, u32, { MAX_ANNOUNCED as usize }> = HashMap::new();
/// The pod's addresses by the cookie of its network namespace: the client of a connect.
#[btf_map]
pub static NETNS: HashMap<u64, PodAddresses, { MAX_NETNS as usize }> = HashMap::new();

#[btf_map]
pub static RULES: LpmTrie<RuleKey, u32, { MAX_RULES as usize }> = LpmTrie::new();
#[btf_map]
pub static IDENTITIES: LpmTrie<IdentityKey, Identity, { MAX_IDENTITIES as usize }> = LpmTrie::new();

#[btf_map]
pub static REASONS: PerCpuArray<u64, { MAX_REASONS as usize }> = PerCpuArray::new();
#[btf_map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, { MAX_SERVICES as usize }> =
    PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<FlowEvent, { EVENT_RING_BYTES as usize }> = RingBuf::new();

/// New connections until one is told of.
#[btf_map]
pub static UNTIL_TOLD: PerCpuArray<u32, 1> = PerCpuArray::new();

#[btf_map]
pub static WAYS: PerCpuArray<Way, { 1 << WAYS_BITS }> = PerCpuArray::new();

#[btf_map]
pub static VERDICTS: PerCpuArray<Verdict, { 1 << VERDICT_BITS }> = PerCpuArray::new();

#[btf_map]
pub static WALKS: PerCpuArray<Walk, 1> = PerCpuArray::new();

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map]
static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();

/// For a flow and the key of its other direction: as [`Scratch`], which who calls for them is using.
#[repr(C)]
pub struct Room {
    pub flow: Flow,
    pub key: FlowKey,
}

#[inline(always)]
pub fn room() -> Option<&'static mut Room> {
    // SAFETY: this CPU's only element, used by one function at a time.
    ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// Working memory of a packet program: 512 bytes of stack are not enough, and the verifier tracks
/// every stack slot in every state where it takes map memory as it is. Packet programs run with
/// bottom halves disabled and never inside one another, so one per CPU does.
#[repr(C)]
pub struct Scratch {
    pub packet: Packet,
    /// The tuple that the packet came with.
    pub arrived: Tuple,
    /// The tuple that the packet is to leave with.
    pub new: Tuple,
    pub wanted: Wanted,
    pub answer_key: FlowKey,
    pub answer: Flow,
    pub flow: Flow,
    pub frontend: Frontend,
    pub next_hop: NextHop,
    /// The beginning of a packet that an ICMP message is about.
    pub quote: [u32; 32],
    /// When the kernel's clock was last looked at, and what it said.
    tick: u64,
    second: u32,
}

impl Scratch {
    /// As [`now`], which is asked once a tick: the tick itself costs nothing to read.
    #[inline(always)]
    pub fn now(&mut self) -> u32 {
        // SAFETY: no arguments.
        let tick = unsafe { bpf_jiffies64() };
        if self.tick != tick {
            self.tick = tick;
            self.second = now();
        }
        self.second
    }
}

#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: this CPU's only element, used by one program at a time.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Set by the loader when the kernel has `bpf_set_retval` for socket hooks (Linux 5.18).
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 1;

#[inline(always)]
pub fn has_set_retval() -> bool {
    // SAFETY: reads a static. Volatile, because the loader writes its value after the compiler
    // has seen this one.
    unsafe { core::ptr::addr_of!(HAS_SET_RETVAL).read_volatile() != 0 }
}
