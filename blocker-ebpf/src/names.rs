//! Names in the eBPF object: of its programs, its maps, and the globals that the daemon sets.

/// Names of the eBPF programs in the object.
pub mod programs {
    /// XDP, on devices with an Ethernet header.
    pub const XDP: &str = "blocker_xdp";
    /// TC ingress, on devices with an Ethernet header.
    pub const INGRESS: &str = "blocker_ingress";
    /// TC egress, on devices with an Ethernet header.
    pub const EGRESS: &str = "blocker_egress";
    /// TC ingress, on devices without a link-layer header (tun, WireGuard).
    pub const INGRESS_L3: &str = "blocker_in_l3";
    /// TC egress, on devices without a link-layer header (tun, WireGuard).
    pub const EGRESS_L3: &str = "blocker_out_l3";
    /// All of them.
    pub const ALL: [&str; 5] = [XDP, INGRESS, EGRESS, INGRESS_L3, EGRESS_L3];
}

/// Names of the maps in the object.
pub mod maps {
    /// `ARRAY` of one [`State`](crate::State), mmapable.
    pub const STATE: &str = "STATE";
    /// `ARRAY` of [`Index`](crate::Index), mmapable, one a bank.
    pub const V4_INDEX: &str = "V4_INDEX";
    /// `ARRAY` of [`RangeBlock`](crate::RangeBlock), mmapable, both banks.
    pub const V4_RANGES: &str = "V4_RANGES";
    /// `ARRAY` of [`V6Node`](crate::V6Node), mmapable, both banks.
    pub const V6_NODES: &str = "V6_NODES";
    /// `ARRAY` of [`RuleList`](crate::RuleList), mmapable, both banks.
    pub const LISTS: &str = "LISTS";
    /// `ARRAY` of [`Rule`](crate::Rule), mmapable, both banks.
    pub const RULES: &str = "RULES";
    /// `ARRAY` of [`PortSet`](crate::PortSet), mmapable, both banks.
    pub const PORT_SETS: &str = "PORT_SETS";
    /// `HASH` of [`InterfaceKey`](crate::InterfaceKey) to u8: the interfaces of an interface set.
    pub const INTERFACES: &str = "INTERFACES";
    /// `LPM_TRIE` of [`LocalKey`](crate::LocalKey) to u8: the prefixes of local address sets. The
    /// set's number is matched whole, so a prefix has [`LOCAL_SET_BITS`](crate::LOCAL_SET_BITS)
    /// more bits than it is long, IPv4 ones 96 more again.
    pub const LOCALS: &str = "LOCALS";
    /// `PERCPU_ARRAY` of [`Counters`](crate::Counters), two a slot: ingress, egress.
    pub const COUNTERS: &str = "COUNTERS";
    /// `ARRAY` of [`RuleName`](crate::RuleName): the rule whose counters a slot has. Only the daemon
    /// reads it.
    pub const RULE_NAMES: &str = "RULE_NAMES";
    /// `PERCPU_ARRAY` of [`HookCounters`](crate::HookCounters), see [`hook_slot`](crate::hook_slot).
    pub const HOOKS: &str = "HOOKS";
    /// `PERCPU_ARRAY` of [`Bucket`](crate::Bucket)s, see [`bucket`](crate::bucket).
    pub const BUCKETS: &str = "BUCKETS";
    /// `HASH` of [`FlowKey`](crate::FlowKey) to u32 ([`kill`](crate::kill) bits): flows under
    /// teardown. The daemon inserts them; the datapath sets which ends it saw a RST go to.
    pub const KILLS: &str = "KILLS";
    /// `LRU_HASH` of [`FlowKey`](crate::FlowKey) to u32 ([`Rule::counter`](crate::Rule::counter)):
    /// established TCP flows that rules with [`flag::RECORD`](crate::flag::RECORD) blocked. Apart
    /// from [`FLOWS`], so that no flood of other packets evicts one.
    pub const ESTABLISHED: &str = "ESTABLISHED";
    /// `ARRAY` of [`FlowSlot`](crate::FlowSlot), mmapable: every flow that a rule decided. A power of
    /// two of them, in sets of [`FLOW_WAYS`](crate::FLOW_WAYS).
    pub const FLOWS: &str = "FLOWS";
    /// `ARRAY` of [`FlowHigh`](crate::FlowHigh), mmapable: one to each slot of [`FLOWS`].
    pub const FLOWS_HIGH: &str = "FLOWS_HIGH";
    /// `HASH` of u32 to u8: the sets of [`FLOWS`] that a CPU is making a record in. Private to the
    /// datapath.
    pub const FLOW_LOCKS: &str = "FLOW_LOCKS";
    /// `PERCPU_ARRAY` of [`KNOWN_BLOCKS`](crate::KNOWN_BLOCKS) [`KnownBlock`](crate::KnownBlock)s,
    /// private to the datapath.
    pub const KNOWN: &str = "KNOWN";
    /// `RINGBUF` of [`Event`](crate::Event)s: packets that rules decided, while a client watches.
    pub const EVENTS: &str = "EVENTS";
    /// `PERCPU_ARRAY` of one [`Unnamed`](crate::Unnamed), private to the datapath.
    pub const UNNAMED: &str = "UNNAMED";
    /// `PERCPU_ARRAY` of one [`Tally`](crate::Tally): how much was recorded, and how much was not.
    pub const TALLY: &str = "TALLY";
    /// `PERCPU_ARRAY` of one [`Tick`](crate::Tick), private to the datapath.
    pub const TICK: &str = "TICK";
    /// `PERCPU_ARRAY` of one scratch buffer, private to the datapath.
    pub const SCRATCH: &str = "SCRATCH";
}

/// Names of the globals that the daemon sets at load.
pub mod globals {
    /// u32: the mark that our own packets carry; random per start, never 0.
    pub const MARK: &str = "MARK";
    /// u32: replies a second on each CPU.
    pub const REPLIES_PER_SECOND: &str = "REPLIES_PER_SECOND";
    /// u32: flows a second on each CPU that are recorded anew.
    pub const NEW_FLOWS_PER_SECOND: &str = "NEW_FLOWS_PER_SECOND";
    /// u32: slots of [`maps::FLOWS`](crate::maps::FLOWS), less one: a mask.
    pub const FLOW_MASK: &str = "FLOW_MASK";
    /// u32: events a second on each CPU.
    pub const EVENTS_PER_SECOND: &str = "EVENTS_PER_SECOND";
    /// u32: range blocks of one bank in [`maps::V4_RANGES`](crate::maps::V4_RANGES).
    pub const RANGE_BLOCKS: &str = "RANGE_BLOCKS";
    /// u32: IPv6 nodes of one bank in [`maps::V6_NODES`](crate::maps::V6_NODES).
    pub const V6_NODES_PER_BANK: &str = "V6_NODES_PER_BANK";
    /// u32: rule lists of one bank.
    pub const LISTS_PER_BANK: &str = "LISTS_PER_BANK";
    /// u32: rules of one bank.
    pub const RULES_PER_BANK: &str = "RULES_PER_BANK";
    /// u32: port sets of one bank.
    pub const PORT_SETS_PER_BANK: &str = "PORT_SETS_PER_BANK";
    /// u8: the level of the datapath's diagnostics (aya-log); 0 removes them at load.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}
