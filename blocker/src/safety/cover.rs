//! Which prefixes cover which, without comparing all pairs: a rule may have a million targets, and a
//! configuration may protect thousands of prefixes.

use std::borrow::Cow;

use ipnet::IpNet;

use crate::rule::Target;

/// A prefix and all that cover it, the widest first.
pub(super) fn around(net: IpNet) -> impl Iterator<Item = IpNet> {
    (0..=net.prefix_len()).filter_map(move |length| {
        let wider = IpNet::new(net.addr(), length).ok()?;
        Some(wider.trunc())
    })
}

/// A rule's targets or exceptions.
pub(super) struct Sorted<'a>(Cow<'a, [Target]>);

impl<'a> Sorted<'a> {
    /// Those of a resolved rule are sorted already and are not copied.
    pub(super) fn of(list: &'a [Target]) -> Self {
        let mut list = Cow::Borrowed(list);
        if !list.is_sorted() {
            list.to_mut().sort_unstable();
        }
        Self(list)
    }

    /// Whether one of them is exactly this prefix.
    pub(super) fn name(&self, net: IpNet) -> bool {
        self.0.binary_search(&net.into()).is_ok()
    }

    /// Whether one of them covers this prefix.
    pub(super) fn cover(&self, net: IpNet) -> bool {
        around(net).any(|wider| self.name(wider))
    }
}

/// Prefixes of which none covers another, sorted.
pub(crate) struct Disjoint(Vec<IpNet>);

impl Disjoint {
    /// Those of a list that no other of it covers.
    pub(crate) fn of(list: impl Iterator<Item = IpNet>) -> Self {
        let mut list: Vec<IpNet> = list.collect();
        // By address and then by length: a prefix comes right behind what covers it.
        list.sort_unstable();
        list.dedup_by(|inner, outer| outer.contains(&*inner));
        Self(list)
    }

    /// Whether one of them covers this prefix.
    pub(crate) fn covers(&self, net: IpNet) -> bool {
        let behind = self.0.partition_point(|other| *other <= net);
        behind > 0 && self.0[behind - 1].contains(&net)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Prefixes that often cover one another: few bits, all at the front.
    fn net() -> impl Strategy<Value = IpNet> {
        (0u32..16, 0u8..=4).prop_map(|(bits, length)| {
            let address = IpAddr::from(Ipv4Addr::from(bits << 28));
            IpNet::new(address, length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn both_find_what_comparing_each_with_each_finds(list in vec(net(), 0..8), asked in net()) {
            let covered = list.iter().any(|outer| outer.contains(&asked));
            prop_assert_eq!(Disjoint::of(list.iter().copied()).covers(asked), covered);
            let targets: Vec<Target> = list.iter().map(|net| (*net).into()).collect();
            let sorted = Sorted::of(&targets);
            prop_assert_eq!(sorted.cover(asked), covered);
            prop_assert_eq!(sorted.name(asked), list.contains(&asked));
        }
    }
}
