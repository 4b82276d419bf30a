//! Cuts the address space of one family into segments with one state each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use blocker_ebpf as abi;

use super::states::{StateId, States};

/// An address of either family as a number.
pub(super) trait Address: Copy + Ord {
    const FIRST: Self;
    /// The last address of the prefix of this length that begins here.
    fn last(self, length: u8) -> Self;
    /// The address after this one.
    fn next(self) -> Option<Self>;
    fn ip(self) -> IpAddr;
}

impl Address for u32 {
    const FIRST: Self = 0;

    fn last(self, length: u8) -> Self {
        self | Self::MAX.checked_shr(u32::from(length)).unwrap_or(0)
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl Address for u128 {
    const FIRST: Self = 0;

    fn last(self, length: u8) -> Self {
        self | Self::MAX.checked_shr(u32::from(length)).unwrap_or(0)
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

/// What a prefix is claimed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum What {
    /// No rule applies.
    Protect,
    /// The rule does not apply.
    Except,
    /// The rule applies.
    Target,
}

/// A prefix that a rule (by its place in trial order) or `protect` claims.
///
/// The order of the fields is that of the sweep: by prefix, the wider before what is nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim<A> {
    pub(super) start: A,
    pub(super) length: u8,
    pub(super) what: What,
    pub(super) place: u16,
}

/// A prefix, and what applies to the addresses in it that no nested prefix covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<A> {
    pub(super) start: A,
    pub(super) length: u8,
    pub(super) state: StateId,
    /// The node directly around this one; the first node is its own.
    pub(super) around: u32,
}

/// From `start` to the next segment's, addresses belong to `node`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<A> {
    pub(super) start: A,
    pub(super) node: u32,
}

/// The address space, cut up.
pub(super) struct Swept<A> {
    /// The prefixes, sorted; the first is the whole space.
    pub(super) nodes: Vec<Node<A>>,
    /// The segments, sorted, without gaps, none of them empty.
    pub(super) segments: Vec<Segment<A>>,
    /// Whether a segment has more rules than a list can hold.
    overfull: bool,
}

/// Sweeps over all claims in order of address. Takes time in proportion to their number, sorting
/// aside; sorting is cheap, too, where rules bring their targets sorted.
///
/// Stops behind a segment with more rules than a list can hold: such a ruleset is refused once
/// its lists are made, and the states behind might each repeat thousands of rules.
pub(super) fn sweep<A: Address>(mut claims: Vec<Claim<A>>, states: &mut States) -> Swept<A> {
    // The stable sort finds and merges sorted runs.
    claims.sort();
    claims.dedup();
    let mut swept = Swept {
        nodes: Vec::with_capacity(claims.len() + 1),
        segments: Vec::with_capacity(2 * claims.len() + 1),
        overfull: false,
    };
    swept.nodes.push(Node {
        start: A::FIRST,
        length: 0,
        state: StateId::OUTSIDE,
        around: 0,
    });
    swept.begin(A::FIRST, 0, states);
    // The prefixes around the current address, but the whole space, each with its last address.
    let mut open: Vec<(A, u32)> = Vec::new();
    let mut step = Vec::new();
    for group in claims.chunk_by(|a, b| (a.start, a.length) == (b.start, b.length)) {
        let Claim { start, length, .. } = group[0];
        swept.close(&mut open, |last| last < start, states);
        if swept.overfull {
            return swept;
        }
        let around = open.last().map_or(0, |(_, node)| *node);
        step.clear();
        step.extend(group.iter().map(|claim| (claim.what, claim.place)));
        let state = states.inside(swept.nodes[around as usize].state, &step);
        let node = swept.push(Node {
            start,
            length,
            state,
            around,
        });
        swept.begin(start, node, states);
        open.push((start.last(length), node));
    }
    swept.close(&mut open, |_| true, states);
    swept
}

impl<A: Address> Swept<A> {
    fn push(&mut self, node: Node<A>) -> u32 {
        let number = u32::try_from(self.nodes.len())
            .expect("there are no more nodes than prefixes, whose number is a u32");
        self.nodes.push(node);
        number
    }

    /// Begins a segment; one that begins at the same address was empty, and is replaced.
    fn begin(&mut self, start: A, node: u32, states: &States) {
        let segment = Segment { start, node };
        match self.segments.last_mut() {
            Some(last) if last.start == start => *last = segment,
            Some(last) => {
                let state = self.nodes[last.node as usize].state;
                self.overfull |= states.active(state).len() > abi::RULES_PER_LIST;
                self.segments.push(segment);
            }
            None => self.segments.push(segment),
        }
    }

    /// Leaves the innermost open prefixes that are `over`.
    fn close(&mut self, open: &mut Vec<(A, u32)>, over: impl Fn(A) -> bool, states: &States) {
        while let Some((last, _)) = open.pop_if(|(last, _)| over(*last)) {
            let around = open.last().map_or(0, |(_, node)| *node);
            if let Some(next) = last.next() {
                self.begin(next, around, states);
            }
        }
    }
}
