//! Private and special ranges. A public list is not expected to have targets in them. Blocking such
//! targets may cut off the host's own network.

use std::net::IpAddr;
use std::sync::OnceLock;

use ipnet::IpNet;

use crate::rule::Target;

/// How many targets a warning names.
const NAMED: usize = 3;

/// The ranges of the IANA special-purpose registries (RFC 6890) and of multicast that hosts use.
/// The ranges for documentation and benchmarks are left out: blocking them does no harm.
const RANGES: [(&str, &str); 16] = [
    ("0.0.0.0/8", "this network, RFC 1122"),
    ("10.0.0.0/8", "private, RFC 1918"),
    ("100.64.0.0/10", "carrier-grade NAT, RFC 6598"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local, RFC 3927"),
    ("172.16.0.0/12", "private, RFC 1918"),
    ("192.168.0.0/16", "private, RFC 1918"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved or broadcast, RFC 1112"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("64:ff9b::/96", "NAT64, RFC 6052"),
    ("64:ff9b:1::/48", "NAT64, RFC 8215"),
    ("fc00::/7", "unique local, RFC 4193"),
    ("fe80::/10", "link-local, RFC 4291"),
    ("ff00::/8", "multicast"),
];

/// A list's targets that lie in private or special ranges, or cover one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Special {
    /// How many there are.
    pub count: u64,
    /// The first few targets, each with the name of its range.
    pub first: Vec<(Target, &'static str)>,
}

impl Special {
    /// The special ones of targets that are sorted and don't cover each other.
    pub(super) fn of(targets: &[Target]) -> Self {
        let mut special = Self::default();
        let mut counted = 0; // targets before this index are: a wide one overlaps several ranges
        for (range, what) in ranges() {
            // The targets are disjoint, so both their first and their last addresses ascend.
            let from = targets.partition_point(|target| last(target.net()) < first(range));
            let to = targets.partition_point(|target| first(target.net()) <= last(range));
            let met = targets.get(from.max(counted)..to).unwrap_or_default();
            let room = NAMED - special.first.len();
            let named = met.iter().take(room).map(|target| (*target, what));
            special.first.extend(named);
            special.count += met.len() as u64;
            counted = counted.max(to);
        }
        special
    }
}

/// The special range that a target lies in or covers, in words.
#[must_use]
pub fn is_special(target: Target) -> Option<&'static str> {
    static RANGES: OnceLock<Vec<(IpNet, &'static str)>> = OnceLock::new();
    let net = target.net();
    let mut ranges = RANGES.get_or_init(|| ranges().collect()).iter();
    let meets = |(range, _): &&(IpNet, _)| range.contains(&net) || net.contains(range);
    ranges.find(meets).map(|(_, what)| *what)
}

fn ranges() -> impl Iterator<Item = (IpNet, &'static str)> {
    RANGES
        .iter()
        .filter_map(|(range, what)| Some((range.parse().ok()?, *what)))
}

fn first(net: IpNet) -> IpAddr {
    net.network()
}

fn last(net: IpNet) -> IpAddr {
    net.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_prefixes_in_order() {
        let ranges: Vec<_> = ranges().map(|(range, _)| range).collect();
        assert_eq!(ranges.len(), RANGES.len(), "each is a prefix");
        assert!(ranges.is_sorted_by(|a, b| last(*a) < first(*b)));
    }
}
