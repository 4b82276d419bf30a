//! The decisions of a CrowdSec Local API that are in force, grouped into few rules. Pure.
//!
//! There may be tens of thousands of decisions, each with an end of its own, and a rule for each would
//! exceed the limit. Decisions of one mode that end at about the same time therefore share a rule,
//! whose deadline is the last of their ends, rounded up ([`bucket`]). The rounding matters only if the
//! daemon is dead: until then it takes each decision out of its rule when it ends.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::rule::{Mode, Target};

/// Ends that differ by less are taken to be equal.
const SAME: SignedDuration = SignedDuration::from_secs(5);

/// Decisions, by their type and target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions(BTreeMap<(String, Target), Term>);

/// When a decision ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// As the Local API has it.
    pub until: Timestamp,
    /// As the kernel has it; never earlier.
    pub deadline: Timestamp,
}

impl Decisions {
    /// Adds a decision; it replaces the one of its type and target.
    pub fn insert(&mut self, kind: &str, target: Target, lasts: SignedDuration, now: Timestamp) {
        let Ok(until) = now.checked_add(lasts) else {
            return;
        };
        let deadline = bucket(until, now);
        self.put(kind, target, Term { until, deadline });
    }

    /// Adds a decision that was saved.
    pub fn put(&mut self, kind: &str, target: Target, term: Term) {
        self.0.insert((kind.to_owned(), target), term);
    }

    /// Removes a decision.
    pub fn remove(&mut self, kind: &str, target: Target) {
        self.0.remove(&(kind.to_owned(), target));
    }

    /// Removes the decisions that have ended; returns how many.
    pub fn prune(&mut self, now: Timestamp) -> usize {
        let before = self.0.len();
        self.0.retain(|_, term| term.until > now);
        before - self.0.len()
    }

    /// Keeps the ends of decisions that are reported again. The API reports the time that is left, and
    /// an end computed from it anew would move back and forth.
    pub fn keep_terms(&mut self, before: &Self) {
        for (key, term) in &mut self.0 {
            if let Some(old) = before.0.get(key)
                && old.until.duration_since(term.until).abs() < SAME
            {
                *term = *old;
            }
        }
    }

    /// The number of decisions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them: type, target, and when it ends.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Target, Term)> {
        let all = self.0.iter();
        all.map(|((kind, target), term)| (kind.as_str(), *target, *term))
    }

    /// The targets of each mode and deadline. A target with two decisions of one mode appears once, with
    /// the later deadline.
    #[must_use]
    pub fn groups(
        &self,
        types: &BTreeMap<String, Mode>,
    ) -> BTreeMap<(&'static str, Timestamp), (Mode, Vec<Target>)> {
        let mut last: BTreeMap<(&'static str, Target), (Mode, Timestamp)> = BTreeMap::new();
        for (kind, target, term) in self.iter() {
            let Some(mode) = types.get(kind) else {
                continue;
            };
            let entry = last
                .entry((mode.word(), target))
                .or_insert((*mode, term.deadline));
            entry.1 = entry.1.max(term.deadline);
        }
        let mut groups: BTreeMap<_, (Mode, Vec<Target>)> = BTreeMap::new();
        for ((word, target), (mode, deadline)) in last {
            let group = groups
                .entry((word, deadline))
                .or_insert_with(|| (mode, Vec::new()));
            group.1.push(target);
        }
        groups
    }
}

/// When the kernel ends a decision: its end, rounded up to five minutes (if it lasts less than an
/// hour), an hour (a day), a day (30 days) or 30 days. That gives about 80 rules for each mode.
fn bucket(until: Timestamp, now: Timestamp) -> Timestamp {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let left = until.duration_since(now).as_secs();
    let step = match left {
        ..HOUR => 5 * MINUTE,
        HOUR..DAY => HOUR,
        _ if left < 30 * DAY => DAY,
        _ => 30 * DAY,
    };
    let second = until.as_second();
    // An end beyond the range of timestamps counts as the last timestamp.
    Timestamp::from_second((second / step + 1) * step).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    proptest! {
        #[test]
        fn a_deadline_is_after_its_decision_and_not_long(lasts in 0i64..400 * 86_400, now in 0i64..2_000_000_000) {
            let until = at(now + lasts);
            let deadline = bucket(until, at(now)).as_second();
            let late = deadline - until.as_second();
            prop_assert!(late > 0);
            let most = match lasts { ..3600 => 300, 3600..86_400 => 3600, 86_400..2_592_000 => 86_400, _ => 2_592_000 };
            prop_assert!(late <= most, "{late} of {lasts}");
        }
    }

    #[test]
    fn sixty_thousand_decisions_of_all_lengths_come_to_few_rules() {
        let mut decisions = Decisions::default();
        let now = at(1_795_000_000);
        for n in 0..60_000_u32 {
            let lasts = SignedDuration::from_secs(i64::from(n) * 40);
            let address = std::net::Ipv4Addr::from(0x0b00_0000 + n);
            decisions.insert("ban", std::net::IpAddr::from(address).into(), lasts, now);
        }
        let types = BTreeMap::from([("ban".to_owned(), Mode::Drop)]);
        let groups = decisions.groups(&types);
        assert!(groups.len() <= 80, "{}", groups.len());
        let targets: usize = groups.values().map(|(_, targets)| targets.len()).sum();
        assert_eq!(targets, 60_000);
    }

    #[test]
    fn types_make_modes_and_the_later_deadline_holds() {
        let now = at(1_795_000_000);
        let minutes = SignedDuration::from_mins;
        let mut decisions = Decisions::default();
        decisions.insert("ban", target("11.0.0.1"), minutes(7), now);
        decisions.insert("block", target("11.0.0.1"), minutes(50), now);
        decisions.insert("captcha", target("11.0.0.2"), minutes(7), now);
        decisions.insert("watch", target("11.0.0.0/24"), minutes(7), now);
        let types = BTreeMap::from([
            ("ban".to_owned(), Mode::Reset),
            ("block".to_owned(), Mode::Reset),
            ("watch".to_owned(), Mode::Audit),
        ]);
        let groups: Vec<(Mode, Vec<Target>)> = decisions.groups(&types).into_values().collect();
        assert_eq!(
            groups,
            [
                (Mode::Audit, vec![target("11.0.0.0/24")]),
                (Mode::Reset, vec![target("11.0.0.1")]),
            ]
        );
        assert_eq!(decisions.prune(at(1_795_000_000 + 8 * 60)), 3);
        assert_eq!(decisions.len(), 1);
        decisions.remove("block", target("11.0.0.1"));
        assert!(decisions.is_empty());
    }
}
