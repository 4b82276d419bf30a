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
mod names;
mod records;

pub use names::{globals, maps, programs};
pub use plain::Plain;
pub use records::*;

/// Changes whenever a layout below changes in a way that an older daemon would misread.
pub const ABI_VERSION: u32 = 6;

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

}

impl Rule {
    /// Whether XDP drops what the rule takes, instead of leaving it to TC. Neighbour discovery passes.
    #[inline(always)]
    #[must_use]
    pub const fn settles_at_xdp(&self) -> bool {
        self.flags & flag::AT_XDP != 0
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
