//! Random prefixes to block, and random addresses inside and outside them. Pure, with fixed seeds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Bits of an address.
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Lengths of the mixed prefixes with their share in a million, at least one of each; the rest
    /// are single addresses. Longer ones are more frequent, as in blocklists. Shorter ones come
    /// first, while the address space has room for them.
    fn mix(self) -> &'static [(u8, usize)] {
        match self {
            Self::V4 => &[
                (8, 4),
                (12, 20),
                (16, 800),
                (18, 1_000),
                (20, 5_000),
                (21, 5_000),
                (22, 13_000),
                (23, 15_000),
                (24, 260_000),
                (26, 15_000),
                (28, 25_000),
                (29, 25_000),
                (30, 15_000),
                (31, 20_000),
            ],
            Self::V6 => &[
                (32, 20_000),
                (36, 5_000),
                (40, 15_000),
                (44, 15_000),
                (48, 245_000),
                (52, 20_000),
                (56, 130_000),
                (60, 20_000),
                (64, 230_000),
            ],
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The kind of a set's prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Single addresses.
    Hosts,
    /// Prefixes of many lengths.
    Mixed,
}

impl Kind {
    /// Both kinds, in the order of their numbers.
    pub(super) const ALL: [Self; 2] = [Self::Hosts, Self::Mixed];
}

/// Disjoint prefixes to block.
#[derive(Clone)]
pub(super) struct Set {
    family: Family,
    /// The first and the last address of each prefix.
    ranges: BTreeMap<u128, u128>,
    /// The same prefixes in random order, as first address and length.
    prefixes: Vec<(u128, u8)>,
    random: Random,
}

impl Set {
    /// A set of `count` prefixes. A single one is a host, whatever the kind.
    pub(super) fn new(family: Family, kind: Kind, count: usize) -> Self {
        let mut set = Self {
            family,
            ranges: BTreeMap::new(),
            prefixes: Vec::with_capacity(count),
            random: Random(0x9e37_79b9_7f4a_7c15),
        };
        if kind == Kind::Mixed && count > 1 {
            for (length, share) in family.mix() {
                let share = (count * share / 1_000_000).max(1);
                set.grow(*length, share.min(count - set.prefixes.len()));
            }
        }
        set.grow(family.bits(), count - set.prefixes.len());
        for index in (1..set.prefixes.len()).rev() {
            let other = set.random.below(index + 1);
            set.prefixes.swap(index, other);
        }
        set
    }

    fn grow(&mut self, length: u8, count: usize) {
        let room = u32::from(self.family.bits() - length);
        let below = (1_u128 << room) - 1;
        for _ in 0..count {
            let first = loop {
                let first = self.unicast() & !below;
                if self.covering(first, first | below).is_none() {
                    break first;
                }
            };
            self.ranges.insert(first, first | below);
            self.prefixes.push((first, length));
        }
    }

    /// A range that overlaps this one.
    fn covering(&self, first: u128, last: u128) -> Option<(u128, u128)> {
        let (&start, &end) = self.ranges.range(..=last).next_back()?;
        (end >= first).then_some((start, end))
    }

    /// A random address that can be a packet's source and that no test host has: IPv4 unicast
    /// except 10.0.0.0/8 and loopback, IPv6 of 2000::/3.
    fn unicast(&mut self) -> u128 {
        match self.family {
            Family::V4 => loop {
                let address = u128::from(self.random.next() >> 32);
                let first = address >> 24;
                if (1..224).contains(&first) && first != 10 && first != 127 {
                    return address;
                }
            },
            Family::V6 => {
                let bits = (u128::from(self.random.next()) << 64) | u128::from(self.random.next());
                (bits >> 3) | (1 << 125)
            }
        }
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// Its IP version.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// The prefixes as text, single addresses without a length.
    pub(super) fn texts(&self) -> impl Iterator<Item = String> {
        self.prefixes.iter().map(|(first, length)| {
            let address = self.address(*first);
            if *length == self.family.bits() {
                address.to_string()
            } else {
                format!("{address}/{length}")
            }
        })
    }

    /// The prefixes' first addresses.
    pub(super) fn first_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.prefixes.iter().map(|(first, _)| self.address(*first))
    }

    /// Random addresses inside: each a random one of a random prefix.
    pub(super) fn inside(&mut self, count: usize) -> Vec<IpAddr> {
        let mut inside = Vec::with_capacity(count);
        for _ in 0..count {
            let (first, length) = self.prefixes[self.random.below(self.prefixes.len())];
            let below = (1_u128 << u32::from(self.family.bits() - length)) - 1;
            let bits = (u128::from(self.random.next()) << 64) | u128::from(self.random.next());
            inside.push(self.address(first | (bits & below)));
        }
        inside
    }

    /// Random addresses outside.
    pub(super) fn outside(&mut self, count: usize) -> Vec<IpAddr> {
        let mut outside = Vec::with_capacity(count);
        while outside.len() < count {
            let address = self.unicast();
            if self.covering(address, address).is_none() {
                outside.push(self.address(address));
            }
        }
        outside
    }
}

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`. Limits are far below 2^64, so the bias is negligible.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    #[test]
    fn prefixes_are_as_many_as_asked_for_and_apart() {
        for family in [Family::V4, Family::V6] {
            for kind in [Kind::Hosts, Kind::Mixed] {
                for count in [1, 100, 20_000] {
                    let set = Set::new(family, kind, count);
                    assert_eq!(set.prefixes.len(), count);
                    assert_eq!(set.ranges.len(), count);
                    let ranges: Vec<_> = set.ranges.iter().collect();
                    assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
                    let hosts = set.prefixes.iter().all(|(_, n)| *n == family.bits());
                    assert_eq!(hosts, kind == Kind::Hosts || count == 1);
                }
            }
        }
    }

    #[test]
    fn sources_are_inside_or_outside() {
        for family in [Family::V4, Family::V6] {
            let mut set = Set::new(family, Kind::Mixed, 10_000);
            let within = |set: &Set, address: &IpAddr| {
                set.covering(bits(*address), bits(*address)).is_some()
            };
            let inside = set.inside(10_000);
            assert!(inside.iter().all(|address| within(&set, address)));
            let outside = set.outside(10_000);
            assert!(!outside.iter().any(|address| within(&set, address)));
        }
    }
}
