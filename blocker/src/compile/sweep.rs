//! Cuts the address space of one family into segments with one state each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use blocker_ebpf as abi;

use super::CompileError;
use super::lists::{Lists, Numbered};
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

/// A prefix that a rule (by its position in trial order) or `protect` claims.
///
/// The order of the fields is that of the sweep: by prefix, the wider before what is nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim<A> {
    pub(super) start: A,
    pub(super) length: u8,
    pub(super) what: What,
    pub(super) place: u16,
}

/// From `start` to the next segment's, this applies.
#[derive(Debug, Clone, Copy)]
struct Segment<A> {
    start: A,
    state: StateId,
}

/// The first address of a range, and its list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<A> {
    pub(super) address: A,
    pub(super) value: u16,
}

/// The addresses at which the list changes, in order; neighbours have different lists. Below the first
/// there is no list.
pub(super) fn starts<A: Address>(
    claims: Vec<Claim<A>>,
    lists: &mut Lists<'_>,
) -> Result<Vec<Start<A>>, CompileError> {
    let mut states = States::new();
    let segments = sweep(claims, &mut states);
    let mut numbered = Numbered::new(lists, &states);
    let mut starts: Vec<Start<A>> = Vec::with_capacity(segments.len());
    let mut current = 0;
    for segment in &segments {
        let value = numbered.of(segment.state, segment.start.ip())?;
        if value != current {
            current = value;
            starts.push(Start {
                address: segment.start,
                value,
            });
        }
    }
    Ok(starts)
}

/// Sweeps over all claims in order of address, and returns the segments: sorted, without gaps, none
/// empty. Linear in the number of claims but for the sort, which is cheap where rules have their
/// targets sorted.
///
/// Stops after a segment with more rules than a list can hold: such a ruleset is refused when its
/// lists are made, and each of the remaining states might repeat thousands of rules.
fn sweep<A: Address>(mut claims: Vec<Claim<A>>, states: &mut States) -> Vec<Segment<A>> {
    // Stable sort: merges runs that are sorted already.
    claims.sort();
    claims.dedup();
    let mut swept = Swept {
        segments: Vec::with_capacity(2 * claims.len() + 1),
        overfull: false,
    };
    swept.begin(A::FIRST, StateId::OUTSIDE, states);
    // The prefixes around the current address, each with its last address and what applies in it.
    let mut open: Vec<(A, StateId)> = Vec::new();
    let mut step = Vec::new();
    for group in claims.chunk_by(|a, b| (a.start, a.length) == (b.start, b.length)) {
        let Claim { start, length, .. } = group[0];
        swept.close(&mut open, |last| last < start, states);
        if swept.overfull {
            return swept.segments;
        }
        step.clear();
        step.extend(group.iter().map(|claim| (claim.what, claim.place)));
        let state = states.inside(innermost(&open), &step);
        swept.begin(start, state, states);
        open.push((start.last(length), state));
    }
    swept.close(&mut open, |_| true, states);
    swept.segments
}

/// What applies in the innermost open prefix.
fn innermost<A>(open: &[(A, StateId)]) -> StateId {
    open.last().map_or(StateId::OUTSIDE, |(_, state)| *state)
}

/// The segments so far.
struct Swept<A> {
    segments: Vec<Segment<A>>,
    /// Whether a segment has more rules than a list can hold.
    overfull: bool,
}

impl<A: Address> Swept<A> {
    /// Begins a segment; one that begins at the same address was empty, and is replaced.
    fn begin(&mut self, start: A, state: StateId, states: &States) {
        let segment = Segment { start, state };
        match self.segments.last_mut() {
            Some(last) if last.start == start => *last = segment,
            Some(last) => {
                self.overfull |= states.active(last.state).len() > abi::RULES_PER_LIST;
                self.segments.push(segment);
            }
            None => self.segments.push(segment),
        }
    }

    /// Leaves the innermost open prefixes that have ended.
    fn close(&mut self, open: &mut Vec<(A, StateId)>, over: impl Fn(A) -> bool, states: &States) {
        while let Some((last, _)) = open.pop_if(|(last, _)| over(*last)) {
            if let Some(next) = last.next() {
                self.begin(next, innermost(open), states);
            }
        }
    }
}
