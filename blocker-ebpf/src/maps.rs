//! The maps and globals of the datapath: their definitions, and plain reads of them.
//!
//! Sizes here are minimal; the daemon sizes every map at load. Layouts are the ABI's.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use blocker_ebpf::{
    Bank, Bucket, Counters, FLOW_SETS_AT_ONCE, FLOW_WAYS, FlowHigh, FlowKey, FlowSlot,
    HookCounters, Index, InterfaceKey, KNOWN_BLOCKS, KnownBlock, LOCAL_SET_BITS, LocalKey, PortSet,
    RangeBlock, Rule, RuleList, RuleName, State, Tally, Tick, UNNAMED as UNNAMED_WORDS, Unnamed,
    V6Node, bucket, local_set,
};

#[map]
pub static STATE: Array<State> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static V4_INDEX: Array<Index> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static V4_RANGES: Array<RangeBlock> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static V6_NODES: Array<V6Node> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static LISTS: Array<RuleList> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static PORT_SETS: Array<PortSet> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static INTERFACES: HashMap<InterfaceKey, u8> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static LOCALS: LpmTrie<LocalKey, u8> = LpmTrie::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub static RULE_NAMES: Array<RuleName> = Array::with_max_entries(1, 0);
#[map]
pub static HOOKS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(3, 0);
#[map]
pub static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(bucket::COUNT, 0);
#[map]
pub static KILLS: HashMap<FlowKey, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static ESTABLISHED: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static FLOWS: Array<FlowSlot> = Array::with_max_entries(FLOW_WAYS, BPF_F_MMAPABLE);
#[map]
pub static FLOWS_HIGH: Array<FlowHigh> = Array::with_max_entries(FLOW_WAYS, BPF_F_MMAPABLE);
#[map]
pub static FLOW_LOCKS: HashMap<u32, u8> = HashMap::with_max_entries(FLOW_SETS_AT_ONCE, 0);
#[map]
pub static KNOWN: PerCpuArray<KnownBlock> = PerCpuArray::with_max_entries(KNOWN_BLOCKS, 0);
#[map]
pub static UNNAMED: PerCpuArray<Unnamed> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
pub static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TICK: PerCpuArray<Tick> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Room for what does not fit the stack: the packet that an ICMP error quotes, or the chunk
/// that a checksum is taken of.
#[repr(C, align(8))]
pub struct Scratch(pub [u8; SCRATCH_BYTES]);
/// Twice what is read into it, so that a bounded offset plus a bounded length stays inside.
pub const SCRATCH_BYTES: usize = 4096;

#[unsafe(no_mangle)]
static MARK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REPLIES_PER_SECOND: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NEW_FLOWS_PER_SECOND: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(FLOW_WAYS - 1);
#[unsafe(no_mangle)]
static EVENTS_PER_SECOND: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static RANGE_BLOCKS: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static V6_NODES_PER_BANK: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static LISTS_PER_BANK: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static RULES_PER_BANK: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static PORT_SETS_PER_BANK: Global<u32> = Global::new(1);

/// The mark of our own packets.
#[inline(always)]
pub fn mark() -> u32 {
    MARK.load()
}

/// The `tc_index` of packets that audit has counted: never 0, and like the mark, another at each
/// start, so that two blockers do not mistake each other's packets for their own.
#[inline(always)]
pub fn audited() -> u16 {
    mark() as u16 | 1
}

/// Replies a second on this CPU.
#[inline(always)]
pub fn replies_per_second() -> u64 {
    u64::from(REPLIES_PER_SECOND.load())
}

/// Flows a second on this CPU that are recorded anew.
#[inline(always)]
pub fn new_flows_per_second() -> u64 {
    u64::from(NEW_FLOWS_PER_SECOND.load())
}

/// Slots of the table of flows, less one.
#[inline(always)]
pub fn flow_mask() -> u32 {
    FLOW_MASK.load()
}

/// Events a second on this CPU.
#[inline(always)]
pub fn events_per_second() -> u64 {
    u64::from(EVENTS_PER_SECOND.load())
}

/// Whether anybody watches events.
#[inline(always)]
pub fn watching() -> bool {
    STATE.get_ptr(0).is_some_and(|state| {
        // SAFETY: `get_ptr` gave a valid pointer; the daemon writes the word alone.
        unsafe { (&raw const (*state).watching).read_volatile() != 0 }
    })
}

/// The live bank and its description. Every other map must be read by the same bank for this packet.
#[inline(always)]
pub fn active_bank() -> Option<(u32, &'static Bank)> {
    let state = STATE.get_ptr(0)?;
    // SAFETY: `get_ptr` gave a valid pointer. The daemon writes `active` alone, last; a volatile
    // read takes it once, so that one packet sees one bank throughout.
    let bank = unsafe { (&raw const (*state).active).read_volatile() } & 1;
    // SAFETY: `bank` is 0 or 1, so the pointer stays inside the value; a live bank's description
    // is not written.
    let banks = unsafe {
        &*(&raw const (*state).banks)
            .cast::<Bank>()
            .add(bank as usize)
    };
    Some((bank, banks))
}

/// The word in which this CPU may remember that no list names an IPv4 address. Multiplicative hashing:
/// Knuth, The Art of Computer Programming, 6.4.
#[inline(always)]
pub fn unnamed(address: u32) -> Option<*mut u64> {
    let index = (address.wrapping_mul(0x9e37_79b1) >> 24) as usize;
    let words = UNNAMED.get_ptr_mut(0)?.cast::<u64>();
    // SAFETY: the mask keeps the index inside the value, which is this CPU's own.
    Some(unsafe { words.add(index & (UNNAMED_WORDS - 1)) })
}

/// The live bank's IPv4 index.
#[inline(always)]
pub fn index(bank: u32) -> Option<*const Index> {
    V4_INDEX.get_ptr(bank)
}

/// A block of the live bank's ranges.
#[inline(always)]
pub fn range_block(bank: u32, block: u32) -> Option<*const RangeBlock> {
    V4_RANGES.get_ptr(bank * RANGE_BLOCKS.load() + block)
}

/// A node of the live bank's IPv6 tree.
#[inline(always)]
pub fn v6_node(bank: u32, number: u32) -> Option<*const V6Node> {
    V6_NODES.get_ptr(bank * V6_NODES_PER_BANK.load() + number)
}

/// A rule list of the live bank.
#[inline(always)]
pub fn list(bank: u32, number: u32) -> Option<&'static RuleList> {
    LISTS.get(bank * LISTS_PER_BANK.load() + number)
}

/// A rule of the live bank.
#[inline(always)]
pub fn rule(bank: u32, number: u16) -> Option<&'static Rule> {
    RULES.get(bank * RULES_PER_BANK.load() + u32::from(number))
}

/// Whether a port is in a port set of the live bank.
#[inline(always)]
pub fn port_in(bank: u32, set: u16, port: u16) -> bool {
    let Some(set) = PORT_SETS.get_ptr(bank * PORT_SETS_PER_BANK.load() + u32::from(set)) else {
        return false;
    };
    let word = usize::from(port >> 6) & 1023;
    // SAFETY: `word` is less than the 1,024 words of a set.
    let bits = unsafe { (&raw const (*set).bits).cast::<u64>().add(word).read() };
    (bits >> (port & 63)) & 1 == 1
}

/// Whether a device is in an interface set of the live bank.
#[inline(always)]
pub fn interface_in(bank: u32, set: u16, ifindex: u32) -> bool {
    INTERFACES
        .get_ptr(InterfaceKey {
            set: (bank << 31) | u32::from(set),
            ifindex,
        })
        .is_some()
}

/// Whether an address (v4-mapped unless `v6`) is in a local address set of the live bank.
#[inline(always)]
pub fn local_in(bank: u32, set: u16, v6: bool, address: [u8; 16]) -> bool {
    let key = LocalKey {
        set: local_set(bank, v6, set),
        address,
    };
    LOCALS.get(&Key::new(LOCAL_SET_BITS + 128, key)).is_some()
}
