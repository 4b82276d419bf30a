//! Port lists as bit sets, equal sets stored once.

use std::collections::HashMap;

use blocker_ebpf as abi;

use crate::matching::{Ports, merged};

/// The port sets of a snapshot.
pub(super) struct PortSets {
    sets: Vec<abi::PortSet>,
    numbers: HashMap<Vec<Ports>, u16>,
    limit: u32,
}

impl PortSets {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            sets: Vec::new(),
            numbers: HashMap::new(),
            limit,
        }
    }

    /// The number of the set of a list's ports; [`abi::ANY_PORTS`] if it is empty. `None` if there are
    /// too many sets.
    pub(super) fn number(&mut self, list: &[Ports]) -> Option<u16> {
        if list.is_empty() {
            return Some(abi::ANY_PORTS);
        }
        let ranges = merged(list);
        if let Some(number) = self.numbers.get(&ranges) {
            return Some(*number);
        }
        if self.sets.len() >= self.limit as usize {
            return None;
        }
        let number = u16::try_from(self.sets.len())
            .ok()
            .filter(|number| *number != abi::ANY_PORTS)?;
        self.sets.push(bits(&ranges));
        self.numbers.insert(ranges, number);
        Some(number)
    }

    pub(super) fn into_sets(self) -> Vec<abi::PortSet> {
        self.sets
    }
}

fn bits(ranges: &[Ports]) -> abi::PortSet {
    let mut set = abi::PortSet { bits: [0; 1_024] };
    for range in ranges {
        for port in range.first..=range.last {
            set.bits[usize::from(port / 64)] |= 1 << (port % 64);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &[&str]) -> Vec<Ports> {
        text.iter().map(|p| p.parse().unwrap()).collect()
    }

    fn members(set: &abi::PortSet) -> Vec<u16> {
        (0..=u16::MAX)
            .filter(|p| set.bits[usize::from(p / 64)] >> (p % 64) & 1 == 1)
            .collect()
    }

    #[test]
    fn a_set_holds_its_ports_and_no_others() {
        let mut sets = PortSets::new(2);
        assert_eq!(sets.number(&list(&["65535", "0", "63-65", "80"])), Some(0));
        assert_eq!(sets.number(&list(&["0-65535"])), Some(1));
        let sets = sets.into_sets();
        assert_eq!(members(&sets[0]), [0, 63, 64, 65, 80, 65535]);
        assert_eq!(members(&sets[1]).len(), 65_536);
    }

    #[test]
    fn equal_sets_are_kept_once_however_they_are_written() {
        let mut sets = PortSets::new(10);
        let first = sets.number(&list(&["80", "81", "82-90"]));
        assert_eq!(first, sets.number(&list(&["85-90", "80-86"])));
        assert_ne!(first, sets.number(&list(&["80-89"])));
        assert_eq!(sets.into_sets().len(), 2);
    }

    #[test]
    fn no_ports_is_no_set() {
        let mut sets = PortSets::new(0);
        assert_eq!(sets.number(&[]), Some(abi::ANY_PORTS));
        assert_eq!(sets.number(&list(&["80"])), None);
        assert!(sets.into_sets().is_empty());
    }
}
