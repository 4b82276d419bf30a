//! Names for the numbers that the datapath records: rules, protocols, hooks, times.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use blocker_ebpf::headers::protocol;
use blocker_ebpf::{Hook, verdict};
use jiff::Timestamp;

use super::live::{Live, boot_time};
use super::{Controller, lock};
use crate::datapath::attach::hook_name;
use crate::rule::{Direction, Protocol, RuleId, Target};
use crate::wire::Decision;

/// How many names are remembered. Beyond that, the names of removed rules are forgotten.
const NAMES: usize = 2 * blocker_ebpf::MAX_RULES as usize;

/// The rules' names by their tags ([`blocker_ebpf::tag`]). Removed rules are included, because records
/// of them remain. Read without waiting for a change under way.
#[derive(Default)]
pub(super) struct Names(Mutex<HashMap<u32, RuleId>>);

impl Names {
    fn learn(&self, live: &Live) {
        let tagged = |entry: &crate::ruleset::Entry| live.datapath.tag(entry.counter);
        let mut names = lock(&self.0);
        if names.len() > NAMES {
            names.clear();
        }
        for (id, entry) in live.ruleset() {
            // A slot's tags repeat only after 65,536 rules have had the slot.
            names.entry(tagged(entry)).or_insert_with(|| id.clone());
        }
    }

    /// The rule of a tag.
    pub(super) fn of(&self, tag: u32) -> Option<RuleId> {
        lock(&self.0).get(&tag).cloned()
    }

    /// All tags, current and former, of the rules with these names.
    pub(super) fn tags(&self, rules: &[RuleId]) -> Vec<u32> {
        let names = lock(&self.0);
        let tagged = names.iter().filter(|(_, id)| rules.contains(id));
        tagged.map(|(tag, _)| *tag).collect()
    }
}

impl Controller {
    /// Learns the names of all rules in force. May wait for a switch under way, so it must not run on a
    /// thread that serves requests.
    pub(super) fn learn_names(&self) {
        self.0.names.learn(&self.live());
    }
}

/// The offset of the wall clock from `CLOCK_BOOTTIME`, in nanoseconds.
///
/// The same moment must be reported the same each time, but the two clocks cannot be read at once. So
/// the offset is kept until it changes by more than reading takes, that is, until the wall clock is set
/// or has drifted.
#[derive(Default)]
pub(super) struct Wall(AtomicI64);

/// The tolerated error of the offset, in nanoseconds.
const SLACK: i64 = 1_000_000;

impl Wall {
    /// A clock with the current offset.
    pub(super) fn clock(&self) -> Clock {
        let boot = i64::try_from(boot_time()).unwrap_or(0);
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
        self.at(now - boot)
    }

    fn at(&self, distance: i64) -> Clock {
        let known = self.0.load(Ordering::Relaxed);
        if distance.abs_diff(known) <= SLACK.unsigned_abs() {
            return Clock(known);
        }
        self.0.store(distance, Ordering::Relaxed);
        Clock(distance)
    }
}

/// Converts times of `CLOCK_BOOTTIME` to the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock(i64);

impl Clock {
    pub(super) fn wall(self, boot: u64) -> Timestamp {
        let wall = i128::from(boot) + i128::from(self.0);
        Timestamp::from_nanosecond(wall).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// An address that may be v4-mapped.
pub(super) fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// A protocol by its number in the datapath.
pub(super) fn protocol(number: u32) -> String {
    const UNKNOWN: u32 = blocker_ebpf::UNKNOWN_PROTOCOL as u32;
    match number {
        UNKNOWN => "unknown".to_owned(),
        number => match u8::try_from(number) {
            Ok(protocol::ICMP) => "icmp".to_owned(),
            Ok(protocol::TCP) => "tcp".to_owned(),
            Ok(protocol::UDP) => "udp".to_owned(),
            Ok(protocol::ICMPV6) => "icmpv6".to_owned(),
            _ => number.to_string(),
        },
    }
}

/// Whether a protocol, as [`protocol()`] names it, was asked for.
pub(super) fn is_protocol(asked: Protocol, name: &str) -> bool {
    match asked {
        Protocol::Any => true,
        Protocol::Tcp => name == "tcp",
        Protocol::Udp => name == "udp",
        Protocol::Icmp => name == "icmp" || name == "icmpv6",
        Protocol::Number(number) => name == protocol(u32::from(number)),
    }
}

/// Whether an address is in one of the prefixes. Without prefixes, any address is.
pub(super) fn is_in(prefixes: &[Target], address: IpAddr) -> bool {
    prefixes.is_empty()
        || prefixes
            .iter()
            .any(|prefix| prefix.net().contains(&address))
}

/// The decision on a packet, by the datapath's number for the verdict.
pub(super) const fn decision(number: u8) -> Decision {
    match number {
        verdict::RESET => Decision::Reset,
        verdict::REJECTED => Decision::Rejected,
        verdict::AUDITED => Decision::Audited,
        verdict::SUPPRESSED => Decision::Suppressed,
        _ => Decision::Dropped,
    }
}

/// A hook's name by its number, and its direction.
pub(super) fn hook(number: u8) -> (String, Direction) {
    let (hook, direction) = match number {
        number if number == Hook::Xdp as u8 => (Hook::Xdp, Direction::Ingress),
        number if number == Hook::Egress as u8 => (Hook::Egress, Direction::Egress),
        _ => (Hook::Ingress, Direction::Ingress),
    };
    (hook_name(hook).to_owned(), direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_found_by_its_name_and_by_its_number() {
        for (asked, number, found) in [
            ("any", 47, true),
            ("tcp", 6, true),
            ("6", 6, true),
            ("tcp", 17, false),
            ("icmp", 1, true),
            ("icmp", 58, true),
            ("1", 1, true),
            ("1", 58, false),
            ("58", 58, true),
            ("47", 47, true),
            ("any", 0xffff, true),
            ("255", 0xffff, false),
        ] {
            let asked: Protocol = asked.parse().unwrap();
            assert_eq!(
                is_protocol(asked, &protocol(number)),
                found,
                "{asked} {number}"
            );
        }
    }

    #[test]
    fn a_moment_is_told_the_same_each_time_until_the_clock_is_set() {
        let wall = Wall::default();
        let first = wall.at(1_795_469_400_000_000_000);
        assert_eq!(
            first.wall(1_500_000_000).to_string(),
            "2026-11-23T21:30:01.5Z"
        );
        assert_eq!(wall.at(1_795_469_400_000_900_000), first);
        assert_eq!(wall.at(1_795_469_399_999_100_000), first);
        let set = wall.at(1_795_469_399_000_000_000);
        assert_eq!(
            set.wall(1_500_000_000).to_string(),
            "2026-11-23T21:30:00.5Z"
        );
    }
}
