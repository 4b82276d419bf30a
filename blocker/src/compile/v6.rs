//! The IPv6 tree: the sorted starts of ranges, eight to a node.
//!
//! A static search tree (an implicit B+ tree). Level 0 are the leaves; each level above holds, in
//! the same order, the first addresses of the nodes below. There are no pointers: child `i` of the
//! node `n` is node `8 n + i` of the level below. Every lookup takes as many steps as there are
//! levels; a direct index, as for IPv4, would not bound them, since real IPv6 lists share their top
//! bits.

use std::net::Ipv6Addr;

use blocker_ebpf::{V6_FANOUT, V6_LEVELS, V6Node, v6_list};

use super::lists::Lists;
use super::sweep::{Claim, Start, starts};
use super::{CompileError, Limits};

/// The compiled IPv6 table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V6Table {
    /// How many levels there are; 0 if no prefix is IPv6.
    pub levels: u32,
    /// Where each level begins in `nodes`.
    pub first: [u32; V6_LEVELS],
    /// The nodes, level by level from the leaves up.
    pub nodes: Vec<V6Node>,
}

impl V6Table {
    /// The number of an address's list, found as the datapath finds it.
    #[must_use]
    pub fn list(&self, address: Ipv6Addr) -> u16 {
        if self.levels == 0 {
            return 0;
        }
        walk(address, self.levels, &self.first, |node| self.nodes[node])
    }
}

/// Walks from the root to the range that an address is in, and returns its list. The tree has at least
/// one level.
pub(crate) fn walk(
    address: Ipv6Addr,
    levels: u32,
    first: &[u32; V6_LEVELS],
    node: impl Fn(usize) -> V6Node,
) -> u16 {
    let address = u128::from(address);
    let (mut place, mut list) = (0, 0);
    for first in first[..levels as usize].iter().rev() {
        let node = node(*first as usize + place);
        let before = |child: &usize| bound(&node, *child) < address;
        let child = (1..V6_FANOUT).take_while(before).count();
        place = place * V6_FANOUT + child;
        list = self::list(&node, child);
    }
    list
}

/// The list of a child, if the node is a leaf.
fn list(leaf: &V6Node, child: usize) -> u16 {
    let (word, shift) = v6_list(child);
    let word = match word.checked_sub(V6_FANOUT) {
        None => leaf.high[word],
        Some(word) => leaf.low[word],
    };
    (word >> shift) as u16
}

fn bound(node: &V6Node, child: usize) -> u128 {
    u128::from(node.high[child]) << 64 | u128::from(node.low[child])
}

/// Leaves that a bank needs for any set of this many prefixes: each begins a range and ends one.
pub(super) fn leaves(prefixes: u32) -> u32 {
    let ranges = 2 * u64::from(prefixes) + 1;
    u32::try_from(ranges.div_ceil(V6_FANOUT as u64)).unwrap_or(u32::MAX)
}

/// Nodes of a tree of so many leaves.
pub(super) fn nodes(leaves: u32) -> u32 {
    let mut level = leaves;
    let mut nodes = level;
    while level > 1 {
        level = level.div_ceil(V6_FANOUT as u32);
        nodes += level;
    }
    nodes
}

pub(super) fn compile(
    claims: Vec<Claim<u128>>,
    lists: &mut Lists<'_>,
    limits: &Limits,
) -> Result<V6Table, CompileError> {
    let mut starts = starts(claims, lists)?;
    let mut table = V6Table {
        levels: 0,
        first: [0; V6_LEVELS],
        nodes: Vec::new(),
    };
    if starts.is_empty() {
        return Ok(table);
    }
    if starts[0].address != 0 {
        starts.insert(
            0,
            Start {
                address: 0,
                value: 0,
            },
        );
    }
    let full = CompileError::V6Ranges {
        ranges: starts.len(),
        limit: limits.v6_leaves as usize * V6_FANOUT,
    };
    if starts.len() > limits.v6_leaves as usize * V6_FANOUT {
        return Err(full);
    }
    let mut level: Vec<u128> = starts.iter().map(|start| start.address).collect();
    while table.levels == 0 || level.len() > 1 {
        let Some(first) = table.first.get_mut(table.levels as usize) else {
            return Err(full);
        };
        *first = u32::try_from(table.nodes.len()).unwrap_or(u32::MAX);
        table.levels += 1;
        table.nodes.extend(level.chunks(V6_FANOUT).map(node));
        level = level.iter().copied().step_by(V6_FANOUT).collect();
    }
    for (leaf, ranges) in table.nodes.iter_mut().zip(starts.chunks(V6_FANOUT)) {
        give_lists(leaf, ranges);
    }
    Ok(table)
}

/// Writes the lists of a leaf's ranges in place of its first bound, which no lookup reads.
fn give_lists(leaf: &mut V6Node, ranges: &[Start<u128>]) {
    (leaf.high[0], leaf.low[0]) = (0, 0);
    for (child, range) in ranges.iter().enumerate() {
        let (word, shift) = v6_list(child);
        let word = match word.checked_sub(V6_FANOUT) {
            None => &mut leaf.high[word],
            Some(word) => &mut leaf.low[word],
        };
        *word |= u64::from(range.value) << shift;
    }
}

/// A node of children that begin at these addresses.
fn node(begins: &[u128]) -> V6Node {
    let mut node = V6Node {
        high: [u64::MAX; V6_FANOUT],
        low: [u64::MAX; V6_FANOUT],
    };
    for (child, begin) in begins.iter().enumerate() {
        // The very first child begins at the address 0; its bound is never read as one.
        let bound = begin.saturating_sub(1);
        node.high[child] = (bound >> 64) as u64;
        node.low[child] = bound as u64;
    }
    node
}
