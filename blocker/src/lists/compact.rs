//! Sorts a list's targets, and leaves out duplicates and covered targets.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::rule::Target;

/// Targets as they are parsed.
///
/// Each is stored as integers, an address before a prefix length: these sort several times as fast
/// as [`Target`] does, and into the same order.
#[derive(Default)]
pub(super) struct Collected {
    v4: Vec<u64>,
    v6: Vec<(u128, u8)>,
}

/// Sorted targets, none of which covers another.
pub(super) struct Compacted {
    pub(super) targets: Vec<Target>,
    pub(super) duplicates: u64,
    pub(super) covered: u64,
}

impl Collected {
    pub(super) fn push(&mut self, target: Target) {
        match target.net() {
            IpNet::V4(net) => {
                let address = u64::from(net.addr().to_bits());
                self.v4.push(address << 8 | u64::from(net.prefix_len()));
            }
            IpNet::V6(net) => self.v6.push((net.addr().to_bits(), net.prefix_len())),
        }
    }

    /// Sorts the targets that were parsed so far.
    pub(super) fn sort(&mut self) {
        self.v4.sort_unstable();
        self.v6.sort_unstable();
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.v4.append(&mut others.v4);
        self.v6.append(&mut others.v6);
    }

    pub(super) fn compact(mut self) -> Compacted {
        // Stable sort: merges the two already sorted halves.
        self.v4.sort();
        self.v6.sort();
        let all = self.v4.len() + self.v6.len();
        self.v4.dedup();
        self.v6.dedup();
        let distinct = self.v4.len() + self.v6.len();
        let mut targets = Vec::with_capacity(distinct);
        // A covering prefix sorts before the prefixes that it covers, with no other prefix between
        // them. So it is enough to compare each prefix with the last one kept.
        let mut last: Option<(u32, u32)> = None;
        for key in self.v4 {
            // The length is the lowest byte, the address the four above.
            let [.., a, b, c, d, length] = key.to_be_bytes();
            let address = u32::from_be_bytes([a, b, c, d]);
            if last.is_some_and(|(kept, mask)| address & mask == kept) {
                continue;
            }
            let mask = u32::MAX
                .checked_shl(32 - u32::from(length))
                .unwrap_or_default();
            last = Some((address, mask));
            let net = Ipv4Net::new_assert(Ipv4Addr::from(address), length);
            targets.push(Target::from(IpNet::V4(net)));
        }
        let mut last: Option<(u128, u128)> = None;
        for (address, length) in self.v6 {
            if last.is_some_and(|(kept, mask)| address & mask == kept) {
                continue;
            }
            let mask = u128::MAX
                .checked_shl(128 - u32::from(length))
                .unwrap_or_default();
            last = Some((address, mask));
            let net = Ipv6Net::new_assert(Ipv6Addr::from(address), length);
            targets.push(Target::from(IpNet::V6(net)));
        }
        Compacted {
            duplicates: (all - distinct) as u64,
            covered: (distinct - targets.len()) as u64,
            targets,
        }
    }
}
