//! Numbers by prefix, looked up by address. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::rule::Target;

/// Numbers by prefix, looked up by address.
///
/// One sorted list a prefix length: a lookup is one binary search for each length in use, at most
/// 33 or 129 of them, whatever the number of prefixes.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    v4: Vec<Length>,
    v6: Vec<Length>,
}

/// The prefixes of one length.
#[derive(Debug)]
struct Length {
    bits: u8,
    /// First address (as an integer) and number, sorted.
    entries: Vec<(u128, u32)>,
}

impl Prefixes {
    /// Takes prefixes, each with its number.
    pub(crate) fn new<'a>(prefixes: impl Iterator<Item = (&'a Target, u32)>) -> Self {
        let mut v4: Vec<Vec<(u128, u32)>> = vec![Vec::new(); 33];
        let mut v6: Vec<Vec<(u128, u32)>> = vec![Vec::new(); 129];
        for (target, number) in prefixes {
            match target.net() {
                IpNet::V4(net) => v4[usize::from(net.prefix_len())]
                    .push((u128::from(u32::from(net.network())), number)),
                IpNet::V6(net) => {
                    v6[usize::from(net.prefix_len())].push((u128::from(net.network()), number));
                }
            }
        }
        let pack = |lengths: Vec<Vec<(u128, u32)>>| {
            (0u8..)
                .zip(lengths)
                .filter(|(_, entries)| !entries.is_empty())
                .map(|(bits, mut entries)| {
                    entries.sort_unstable();
                    Length { bits, entries }
                })
                .collect()
        };
        Self {
            v4: pack(v4),
            v6: pack(v6),
        }
    }

    /// The numbers of all prefixes that cover an address: the longest prefix first, then the lowest
    /// number.
    pub(crate) fn covering(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let (lengths, value, width) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (&self.v6, u128::from(v6), 128),
        };
        lengths.iter().rev().flat_map(move |length| {
            let shift = width - u32::from(length.bits);
            let start = value
                .checked_shr(shift)
                .map_or(0, |top| top.checked_shl(shift).unwrap_or(0));
            let first = length.entries.partition_point(|&(entry, _)| entry < start);
            length.entries[first..]
                .iter()
                .take_while(move |&&(entry, _)| entry == start)
                .map(|&(_, number)| number)
        })
    }

    /// Whether any prefix covers an address.
    pub(crate) fn cover(&self, address: IpAddr) -> bool {
        self.covering(address).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn lookup_agrees_with_asking_every_prefix(
            nets in proptest::collection::vec((0u32..1024, 22u8..=32), 1..40),
            addresses in proptest::collection::vec(0u32..1024, 1..40),
        ) {
            let targets: Vec<Target> = nets
                .iter()
                .map(|&(address, bits)| {
                    let net = ipnet::Ipv4Net::new(address.into(), bits).unwrap().trunc();
                    net.to_string().parse().unwrap()
                })
                .collect();
            let prefixes = Prefixes::new(targets.iter().zip(0..));
            for address in addresses {
                let address = IpAddr::V4(address.into());
                let found: Vec<u32> = prefixes.covering(address).collect();
                let mut expected: Vec<(&Target, u32)> = targets
                    .iter()
                    .zip(0..)
                    .filter(|(target, _)| target.net().contains(&address))
                    .collect();
                let longest = |target: &Target| std::cmp::Reverse(target.net().prefix_len());
                expected.sort_by_key(|(target, number)| (longest(target), *number));
                let expected: Vec<u32> = expected.into_iter().map(|(_, number)| number).collect();
                proptest::prop_assert_eq!(found, expected);
            }
        }
    }
}
