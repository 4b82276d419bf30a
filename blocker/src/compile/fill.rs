//! How full a bank is: how much of its limits a snapshot uses.

use blocker_ebpf::{self as abi, maps};

use super::{Limits, Snapshot};

/// What a snapshot uses, readable after the snapshot is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fill {
    /// Prefixes: targets, exceptions and local addresses of all rules, and protected ones.
    pub prefixes: u64,
    /// IPv6 ones among those that are looked up by the remote's address.
    pub prefixes_v6: u64,
    /// By map name: entries that the snapshot uses, and entries of one bank (of
    /// [`maps::V4_RANGES`], words). The IPv4 index is always full, and not among them.
    pub entries: Vec<(&'static str, u64, u64)>,
}

impl Snapshot {
    /// How much of these limits the snapshot uses.
    #[must_use]
    pub fn fill(&self, limits: &Limits) -> Fill {
        let words: usize = self.v4.ranges.iter().map(Vec::len).sum();
        let members: usize = self.interface_sets.iter().map(Vec::len).sum();
        let locals: usize = self.local_sets.iter().map(Vec::len).sum();
        let room = u64::from;
        let entries = [
            (
                maps::V4_RANGES,
                words,
                room(limits.range_blocks) * abi::WORDS_PER_BLOCK as u64,
            ),
            (maps::V6_NODES, self.v6.nodes.len(), room(limits.v6_nodes())),
            (maps::LISTS, self.lists.len(), room(limits.lists)),
            (maps::RULES, self.rules.len(), room(limits.rules)),
            (
                maps::PORT_SETS,
                self.port_sets.len(),
                room(limits.port_sets),
            ),
            // One map has the sets of both banks.
            (maps::INTERFACES, members, room(limits.rules) * 4),
            (maps::LOCALS, locals, room(limits.prefixes)),
            // Two directions a rule; both banks count in the same slots.
            (maps::COUNTERS, self.rules.len() * 2, room(limits.rules) * 2),
        ];
        let entries = entries.map(|(map, used, allowed)| (map, used as u64, allowed));
        Fill {
            prefixes: self.prefixes,
            prefixes_v6: self.prefixes_v6,
            entries: entries.to_vec(),
        }
    }
}
