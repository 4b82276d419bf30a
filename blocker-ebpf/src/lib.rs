//! The map ABI of blocker's datapath: what the eBPF programs and the daemon agree on.
//!
//! Everything that crosses the boundary between kernel and user space is written here, once:
//! map and program names, keys, values, limits. The daemon depends on this library; the eBPF
//! programs (`main.rs`, built for `bpfel-unknown-none`) are the other side. Nothing here knows
//! how to parse a packet or how to load a program.
//!
//! Byte order: addresses are in network order, as bytes; every integer is in host order.
//! Times are nanoseconds of `CLOCK_BOOTTIME` (`bpf_ktime_get_boot_ns`).

#![cfg_attr(not(feature = "toolchain"), no_std)]

#[cfg(feature = "toolchain")]
pub mod toolchain;

#[macro_use]
mod plain;
pub mod headers;

pub use plain::Plain;

/// Changes whenever a layout below changes in a way that an older daemon would misread.
pub const ABI_VERSION: u32 = 6;

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

/// Entries of a rule list: with its length, one cache line.
pub const RULES_PER_LIST: usize = 31;
/// The most rules that a bank can hold: rule numbers are u16.
pub const MAX_RULES: u32 = 65_536;
/// The most rule lists that a bank can hold: range values are u16, and 0 names no list.
pub const MAX_LISTS: u32 = 65_535;
/// The most port sets that a bank can hold; [`ANY_PORTS`] is not one.
pub const MAX_PORT_SETS: u32 = 1_024;
/// "Every port", in a rule's port set fields.
pub const ANY_PORTS: u16 = u16::MAX;
/// "Every interface", in a rule's interface set field.
pub const ANY_INTERFACES: u16 = u16::MAX;
/// "Every local address", in a rule's local address set field.
pub const ANY_LOCALS: u16 = u16::MAX;
/// Bits of a [`LocalKey`] before its address.
pub const LOCAL_SET_BITS: u32 = 32;
/// "Every protocol", in a rule's protocol field.
pub const ANY_PROTOCOL: u16 = 256;
/// "ICMP for IPv4, ICMPv6 for IPv6", in a rule's protocol field.
pub const ICMP_PROTOCOL: u16 = 257;
/// The protocol of a packet whose transport header is out of reach: behind too many extension
/// headers, or in another fragment.
pub const UNKNOWN_PROTOCOL: u16 = 0xffff;
/// [`Rule::percent`] of a rule that takes every packet; the field's unit is 1/2^32.
pub const ALWAYS: u32 = u32::MAX;
/// [`Rule::deadline`] of a rule without one.
pub const NEVER: u64 = u64::MAX;

/// Children of a node of the IPv6 tree.
pub const V6_FANOUT: usize = 8;
/// The most levels of the IPv6 tree: 8^8 ranges.
pub const V6_LEVELS: usize = 8;

/// Slots of a set in [`maps::FLOWS`]: those that a flow's record may be in.
pub const FLOW_WAYS: u32 = 8;
/// Sets that flows are recorded in at once: as many as there may be CPUs.
pub const FLOW_SETS_AT_ONCE: u32 = 1_024;
/// Set in [`FlowSlot::kind`] of an IPv6 flow.
pub const FLOW_V6: u32 = 1 << 31;

/// Blocks of [`maps::KNOWN`], on each CPU.
pub const KNOWN_BLOCKS: u32 = 32;
/// Words of a block: with its counter 4 KiB. A per-CPU value may not be larger than 32 KiB.
pub const KNOWN_WORDS: usize = 511;

plain! {
    /// The word that makes a change atomic, and the description of each bank.
    pub struct State {
        /// The bank that the datapath reads: 0 or 1. Written last, alone.
        pub active: u32,
        /// Whether a client watches events: 0 or 1.
        pub watching: u32,
        /// The two banks.
        pub banks: [Bank; 2],
    }

    /// What the datapath must know of a bank before it reads it.
    pub struct Bank {
        /// Levels of the bank's IPv6 tree; 0 where no prefix is IPv6, which spares the lookup.
        pub v6_levels: u32,
        /// Keeps the generation aligned.
        pub reserved: u32,
        /// Where each level begins in the bank's nodes; level 0 are the leaves.
        pub v6_first: [u32; V6_LEVELS],
        /// Number of the snapshot that the bank holds.
        pub generation: u64,
        /// One bit per /12, set where any of its addresses has a list: see [`v4_named`].
        pub v4_named: [u64; V4_NAMED_WORDS],
    }

    /// An entry of the IPv4 index: all addresses that share their top 16 bits.
    ///
    /// Such a bucket is cut into ranges, each from its start (the low 16 bits of its first address,
    /// host order) up to the next one's. They are in the bank's range blocks from word `first` on.
    /// Where two lists alternate, as with prefixes of one rule and the gaps between them: the number
    /// of the other list, then the starts, which takes half the memory and cache. Elsewhere: each
    /// start, followed by its list.
    pub struct IndexEntry {
        /// Number of the bucket's first word in the bank's ranges, and [`ALTERNATES`].
        pub first: u32,
        /// How many range starts lie within the bucket, the bucket's own start not counted.
        pub count: u16,
        /// The rule-list number from the bucket's start to the first of those; 0 for none.
        pub value: u16,
    }

    /// A node of the IPv6 tree: two cache lines, of up to eight children (of a leaf: ranges).
    ///
    /// Child `i` begins after the bound `i`, so the child that covers an address is the last whose
    /// bound is less than the address. The bound of child 0 would be the node's own: a leaf has the
    /// lists of its ranges there instead ([`v6_list`]), so that they cost no further cache line.
    /// Bounds of absent children are the highest address.
    pub struct V6Node {
        /// The upper halves of the bounds (host order).
        pub high: [u64; V6_FANOUT],
        /// The lower halves.
        pub low: [u64; V6_FANOUT],
    }

    /// The rules whose targets cover a range, in the order in which they are tried.
    pub struct RuleList {
        /// How many of `rules` are used.
        pub len: u16,
        /// Numbers of rules within the bank.
        pub rules: [u16; RULES_PER_LIST],
    }

    /// A compiled rule.
    pub struct Rule {
        /// `CLOCK_BOOTTIME` nanoseconds after which the rule no longer matches; [`NEVER`].
        pub deadline: u64,
        /// A packet (or flow) is taken if its random number (or hash) is at most this; [`ALWAYS`].
        pub percent: u32,
        /// Slot of the rule's counters, with the number of its incarnation; see [`tag`].
        pub counter: u32,
        /// IP protocol number, [`ANY_PROTOCOL`] or [`ICMP_PROTOCOL`].
        pub protocol: u16,
        /// Port set that either side's port must be in, or [`ANY_PORTS`].
        pub ports: u16,
        /// Port set that the local port must be in, or [`ANY_PORTS`].
        pub local_ports: u16,
        /// Port set that the remote port must be in, or [`ANY_PORTS`].
        pub remote_ports: u16,
        /// Interface set that the device must be in, or [`ANY_INTERFACES`].
        pub interfaces: u16,
        /// Local address set that the local address must be in, or [`ANY_LOCALS`].
        pub locals: u16,
        /// [`flag`] bits.
        pub flags: u16,
        /// [`mode`] number.
        pub mode: u8,
        /// [`direction`] bits.
        pub directions: u8,
    }

    /// A set of ports, a bit each: bit `p % 64` of word `p / 64`.
    pub struct PortSet {
        /// The bits.
        pub bits: [u64; 1_024],
    }

    /// Names one interface of one interface set.
    pub struct InterfaceKey {
        /// Number of the set within its bank, with the bank in the top bit.
        pub set: u32,
        /// The interface's index.
        pub ifindex: u32,
    }

    /// Names an address of one local address set.
    pub struct LocalKey {
        /// [`local_set`], in network order.
        pub set: [u8; 4],
        /// The address, network order. IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`).
        pub address: [u8; 16],
    }

    /// What a rule did in one direction, on one CPU.
    pub struct Counters {
        /// Packets that the rule decided. A GSO packet is one.
        pub packets: u64,
        /// Their bytes with link-layer header, as the hook saw them.
        pub bytes: u64,
        /// Replies sent: RSTs (to the sender and onward) and ICMP errors.
        pub replies: u64,
        /// Packets left without a reply by the rate limit.
        pub suppressed: u64,
    }

    /// The rule whose counters a slot has.
    pub struct RuleName {
        /// The rule's id, padded with zeros; all zeros where the slot is free.
        pub id: [u8; 64],
        /// How many rules had the slot before, modulo 2^16; see [`tag`].
        pub incarnation: u32,
    }

    /// What a hook saw on one device, on one CPU.
    pub struct HookCounters {
        /// Packets that the hook saw.
        pub seen: u64,
        /// Packets that no rule decided.
        pub passed: u64,
        /// Packets whose headers could not be read: they pass.
        pub malformed: u64,
        /// Packets of our own that passed by their mark.
        pub own: u64,
    }

    /// A token bucket, on one CPU.
    pub struct Bucket {
        /// When it was last filled.
        pub filled: u64,
        /// Tokens left.
        pub tokens: u64,
    }

    /// The time in the current tick of the kernel's timer, on one CPU.
    pub struct Tick {
        /// The tick's number.
        pub jiffies: u64,
        /// The time of the first packet in it.
        pub time: u64,
    }

    /// How much was recorded of the packets that rules decided, on one CPU.
    pub struct Tally {
        /// Flows recorded anew.
        pub created: u64,
        /// Packets of flows that were not recorded: over the rate of new ones.
        pub not_recorded: u64,
        /// Events lost: over their rate, or because the ring buffer was full.
        pub lost: u64,
    }

    /// A flow as a rule sees it. IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`).
    pub struct FlowKey {
        /// The remote's address, network order.
        pub remote: [u8; 16],
        /// The local address, network order.
        pub local: [u8; 16],
        /// The remote's port.
        pub remote_port: u16,
        /// The local port.
        pub local_port: u16,
        /// IP protocol number.
        pub protocol: u32,
    }
}

plain! {
    /// A flow as one rule saw it.
    pub struct FlowId {
        /// The flow.
        pub flow: FlowKey,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
    }

    /// The record of a flow that a rule decided.
    pub struct FlowRecord {
        /// Its packets. A GSO packet is one.
        pub packets: u64,
        /// Their bytes with link-layer header, as the hook saw them.
        pub bytes: u64,
        /// When the first of them came.
        pub first_seen: u64,
        /// When the last of them came.
        pub last_seen: u64,
        /// The device that the last one was on.
        pub ifindex: u32,
        /// The verdict on the last one: a number of [`verdict`].
        pub verdict: u8,
        /// The [`Hook`] that decided the last one.
        pub hook: u8,
        /// Fills the word.
        pub reserved: u16,
    }

    /// A flow and its record, in one cache line: all of an IPv4 flow, and of an IPv6 flow all but
    /// the upper 12 bytes of its addresses, which are in [`FlowHigh`].
    pub struct FlowSlot {
        /// A part of the flow's hash, never 0; 0 where there is no flow, or one is being written.
        pub tag: u32,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
        /// The last 4 bytes of the remote's address, as they are in memory.
        pub remote: u32,
        /// The last 4 bytes of the local address, likewise.
        pub local: u32,
        /// The remote's port.
        pub remote_port: u16,
        /// The local port.
        pub local_port: u16,
        /// IP protocol number, and [`FLOW_V6`].
        pub kind: u32,
        /// Its record.
        pub record: FlowRecord,
    }

    /// The upper 12 bytes of an IPv6 flow's addresses, as they are in memory. Not written for IPv4.
    pub struct FlowHigh {
        /// The remote's.
        pub remote: [u32; 3],
        /// The local one's.
        pub local: [u32; 3],
    }

    /// A block of a CPU's Bloom filter of the flows that have a record.
    pub struct KnownBlock {
        /// Flows that were added to it.
        pub learnt: u64,
        /// Two generations of bits, and the number of the younger one, each.
        pub words: [u64; KNOWN_WORDS],
    }

    /// A packet that a rule decided. IPv4 addresses are v4-mapped.
    pub struct Event {
        /// When.
        pub time: u64,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
        /// The device.
        pub ifindex: u32,
        /// Its bytes with link-layer header, as the hook saw them.
        pub length: u32,
        /// IP protocol number, or [`UNKNOWN_PROTOCOL`].
        pub protocol: u16,
        /// The remote's port; 0 where there is none, or it is out of reach.
        pub remote_port: u16,
        /// The local port, likewise.
        pub local_port: u16,
        /// Flags of a TCP segment.
        pub flags: u8,
        /// The [`Hook`] that decided it.
        pub hook: u8,
        /// A number of [`verdict`].
        pub verdict: u8,
        /// First byte of an ICMP message: its type.
        pub icmp_type: u8,
        /// Whether it is a part of a fragmented packet.
        pub fragment: u8,
        /// Fills the word.
        pub reserved: u8,
        /// The remote's address, network order.
        pub remote: [u8; 16],
        /// The local address, network order.
        pub local: [u8; 16],
    }
}

impl Rule {
    /// Whether XDP drops what the rule takes, instead of leaving it to TC. Neighbour discovery passes.
    #[inline(always)]
    #[must_use]
    pub const fn settles_at_xdp(&self) -> bool {
        self.flags & flag::AT_XDP != 0
    }
}

impl FlowSlot {
    /// The flow that the slot has, and its record.
    #[must_use]
    pub fn flow(&self, high: &FlowHigh) -> (FlowId, FlowRecord) {
        let address = |high: [u32; 3], low: u32| {
            let [first, second, third] = match self.kind & FLOW_V6 {
                0 => [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])],
                _ => high,
            };
            let mut bytes = [0; 16];
            for (place, word) in [first, second, third, low].into_iter().enumerate() {
                bytes[place * 4..place * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            bytes
        };
        let flow = FlowKey {
            remote: address(high.remote, self.remote),
            local: address(high.local, self.local),
            remote_port: self.remote_port,
            local_port: self.local_port,
            protocol: self.kind & !FLOW_V6,
        };
        let rule = self.rule;
        (FlowId { flow, rule }, self.record)
    }
}

/// What the datapath did with a packet that a rule decided: [`FlowRecord::verdict`], [`Event::verdict`].
pub mod verdict {
    /// Dropped without a reply: by the rule's mode, or because none was due.
    pub const DROPPED: u8 = 0;
    /// Answered as `reset` does: RSTs, or an ICMP port unreachable.
    pub const RESET: u8 = 1;
    /// Answered by an ICMP administratively prohibited.
    pub const REJECTED: u8 = 2;
    /// Counted, and passed.
    pub const AUDITED: u8 = 3;
    /// Dropped without the reply that was due: over the rate of replies.
    pub const SUPPRESSED: u8 = 4;
}

/// Token buckets in [`maps::BUCKETS`].
pub mod bucket {
    /// Limits replies.
    pub const REPLIES: u32 = 0;
    /// Limits flows that are recorded anew.
    pub const FLOWS: u32 = 1;
    /// Limits events.
    pub const EVENTS: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// [`Rule::counter`] of a rule: its slot, and how many rules had that slot before it (modulo
/// 2^16), so that records of one rule are not mistaken for another's.
#[inline(always)]
pub const fn tag(slot: u32, incarnation: u16) -> u32 {
    slot & 0xffff | (incarnation as u32) << 16
}

/// The slot of a rule's counters, by [`Rule::counter`].
#[inline(always)]
pub const fn slot(tag: u32) -> u32 {
    tag & 0xffff
}

/// Modes, as [`Rule::mode`].
pub mod mode {
    /// Silently dropped.
    pub const DROP: u8 = 0;
    /// Reset: RST to both ends, ICMP port unreachable for what is not TCP.
    pub const RESET: u8 = 1;
    /// Rejected: ICMP administratively prohibited.
    pub const REJECT: u8 = 2;
    /// Counted, and passed.
    pub const AUDIT: u8 = 3;
}

/// Directions, as [`Rule::directions`], seen from this host.
pub mod direction {
    /// From the remote.
    pub const INGRESS: u8 = 1;
    /// To the remote.
    pub const EGRESS: u8 = 2;
}

/// Bits of [`Rule::flags`].
pub mod flag {
    /// RSTs pass: in `reset` mode.
    pub const PASS_RST: u16 = 1;
    /// `percent` is decided per flow, not per packet.
    pub const PER_FLOW: u16 = 2;
    /// The established TCP flows that it blocks are recorded, and killed when it ends.
    pub const RECORD: u16 = 4;
    /// Every incoming packet of the address is dropped until the deadline: the rule's other fields
    /// need not be compared. Only with [`AT_XDP`].
    pub const PLAIN: u16 = 8;
    /// XDP may drop what the rule takes: no reply is sent, no sample is drawn, and blocker's own
    /// replies do not pass there. TC decides all other packets.
    pub const AT_XDP: u16 = 16;
}

/// Bits of a [`maps::KILLS`] value.
pub mod kill {
    /// A RST for the flow passed towards the remote.
    pub const REMOTE: u32 = 1;
    /// A RST for the flow passed towards the local end.
    pub const LOCAL: u32 = 2;
}

/// Words in a block of ranges: 1 MiB.
pub const WORDS_PER_BLOCK: usize = 524_288;
/// Set in [`IndexEntry::first`] of a bucket in which two lists alternate.
pub const ALTERNATES: u32 = 1 << 31;
/// Buckets of the IPv4 index: one for each upper half of an address.
pub const BUCKETS: usize = 65_536;

/// The IPv4 index, one value of [`maps::V4_INDEX`]: 512 KiB.
#[repr(C)]
pub struct Index(pub [IndexEntry; BUCKETS]);

/// A block of ranges, one value of [`maps::V4_RANGES`]. No bucket crosses a block.
#[repr(C)]
pub struct RangeBlock(pub [u16; WORDS_PER_BLOCK]);

/// Entries of [`Unnamed`].
pub const UNNAMED: usize = 256;

/// A cache of IPv4 addresses that no list names, on one CPU, one value of [`maps::UNNAMED`]: each in
/// the upper half of its word (host order), and in the lower half the number of the snapshot of which
/// that is true ([`Bank::generation`], truncated).
#[repr(C)]
pub struct Unnamed(pub [u64; UNNAMED]);

/// Words of [`Bank::v4_named`].
pub const V4_NAMED_WORDS: usize = 64;

/// The word of [`Bank::v4_named`] that has an address's bit, and how far to shift it right: the bit is
/// the lowest then.
#[inline(always)]
pub const fn v4_named(address: u32) -> (usize, u32) {
    ((address >> 26) as usize, address >> 20 & 63)
}

/// The word of a leaf's [`V6Node`] that has the list of a child, counted from the node's beginning,
/// and how far to shift it right: the list is the lowest 16 bits then.
#[inline(always)]
pub const fn v6_list(child: usize) -> (usize, u32) {
    (child / 4 % 2 * V6_FANOUT, 16 * (child as u32 % 4))
}

/// Hooks, in the order in which a packet from the wire meets them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP.
    Xdp = 0,
    /// TC ingress.
    Ingress = 1,
    /// TC egress.
    Egress = 2,
}

/// Devices that have hook counters of their own; those with a higher index share slot 0.
pub const HOOK_DEVICES: u32 = 1_024;

/// The slot of a hook's counters on a device, in [`maps::HOOKS`].
#[inline(always)]
pub const fn hook_slot(hook: Hook, ifindex: u32) -> u32 {
    let device = if ifindex < HOOK_DEVICES { ifindex } else { 0 };
    device * 3 + hook as u32
}

/// A local address set of one bank and family, as [`LocalKey::set`]: the bank in the top bit, the
/// family in the next, so that an IPv6 prefix covers no v4-mapped address.
#[inline(always)]
pub const fn local_set(bank: u32, v6: bool, number: u16) -> [u8; 4] {
    ((bank << 31) | ((v6 as u32) << 30) | number as u32).to_be_bytes()
}

/// The most tokens that a bucket holds, as a share of its rate: a second's worth.
pub const BURST_NANOSECONDS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_the_datapath_was_measured_with() {
        assert_eq!(size_of::<Index>(), 512 * 1024);
        assert_eq!(size_of::<RangeBlock>(), 1024 * 1024);
        assert_eq!(size_of::<V6Node>(), 128);
        assert_eq!(size_of::<RuleList>(), 64);
        assert_eq!(size_of::<Rule>(), 32);
        assert_eq!(size_of::<PortSet>(), 8 * 1024);
        assert_eq!(size_of::<LocalKey>(), 20);
        assert_eq!(size_of::<FlowKey>(), 40);
        assert_eq!(size_of::<FlowId>(), 44);
        assert_eq!(size_of::<FlowSlot>(), 64);
        assert_eq!(size_of::<Event>(), 64);
    }

    #[test]
    fn a_tag_keeps_slot_and_incarnation_apart() {
        for (number, incarnation) in [(0, 0), (MAX_RULES - 1, 0), (7, u16::MAX)] {
            let tagged = tag(number, incarnation);
            assert_eq!(slot(tagged), number);
            assert_eq!(tagged >> 16, u32::from(incarnation));
        }
    }

    #[test]
    fn a_slot_gives_back_its_flow() {
        let slot = FlowSlot {
            tag: 1,
            rule: 7,
            remote: u32::from_ne_bytes([192, 0, 2, 1]),
            local: u32::from_ne_bytes([198, 51, 100, 2]),
            remote_port: 443,
            local_port: 40_000,
            kind: 6,
            record: FlowRecord {
                packets: 1,
                bytes: 2,
                first_seen: 3,
                last_seen: 4,
                ifindex: 5,
                verdict: verdict::RESET,
                hook: Hook::Egress as u8,
                reserved: 0,
            },
        };
        let high = FlowHigh {
            remote: [u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]), 0, 0],
            local: [u32::from_ne_bytes([0x20, 1, 0xd, 0xb9]), 0, 0],
        };
        let (id, record) = slot.flow(&high);
        assert_eq!(
            id.flow.remote[..12],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255]
        );
        assert_eq!(id.flow.remote[12..], [192, 0, 2, 1]);
        assert_eq!(id.flow.local[12..], [198, 51, 100, 2]);
        assert_eq!((id.flow.remote_port, id.flow.local_port), (443, 40_000));
        assert_eq!((id.flow.protocol, id.rule), (6, 7));
        assert_eq!((record.packets, record.bytes), (1, 2));
        assert_eq!((record.first_seen, record.last_seen), (3, 4));
        assert_eq!((record.ifindex, record.verdict, record.hook), (5, 1, 2));
        let kind = slot.kind | FLOW_V6;
        let (id, _) = FlowSlot { kind, ..slot }.flow(&high);
        assert_eq!(id.flow.remote[..4], [0x20, 1, 0xd, 0xb8]);
        assert_eq!(id.flow.local[..4], [0x20, 1, 0xd, 0xb9]);
        assert_eq!(id.flow.protocol, 6);
    }

    #[test]
    fn a_local_address_set_is_of_one_bank_and_family() {
        assert_eq!(local_set(0, false, 1), [0, 0, 0, 1]);
        assert_eq!(local_set(0, true, 0x1234), [0x40, 0, 0x12, 0x34]);
        assert_eq!(local_set(1, false, 0), [0x80, 0, 0, 0]);
        assert_eq!(local_set(1, true, u16::MAX - 1), [0xc0, 0, 0xff, 0xfe]);
    }

    #[test]
    fn every_device_and_hook_has_a_slot_within_the_map() {
        for hook in [Hook::Xdp, Hook::Ingress, Hook::Egress] {
            assert!(hook_slot(hook, HOOK_DEVICES - 1) < HOOK_DEVICES * 3);
            assert_eq!(hook_slot(hook, HOOK_DEVICES), hook_slot(hook, u32::MAX));
        }
        assert_ne!(hook_slot(Hook::Xdp, 7), hook_slot(Hook::Ingress, 7));
    }
}
