//! All rules that are in force, and what a wanted set of rules would change. Pure.
//!
//! [`crate::rule`] says what a rule is, [`crate::compile`] what the kernel gets.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::rule::{Owner, Rule, RuleId};

/// The rules in force, by id.
pub type Ruleset = BTreeMap<RuleId, Entry>;

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The rule.
    pub rule: Rule,
    /// Who put it there.
    pub owner: Owner,
    /// When it was put there (wall clock).
    pub created: Timestamp,
    /// When it ends, in nanoseconds of `CLOCK_BOOTTIME`.
    pub deadline: Option<u64>,
    /// Slot of its counters. No two rules share one.
    pub counter: u32,
}

/// What changes when one owner's rules are replaced by others. Each part is sorted by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Rules that were not there.
    pub added: Vec<Rule>,
    /// Rules that are no longer wanted.
    pub removed: Vec<Rule>,
    /// Rules that differ in any field: before, after.
    pub changed: Vec<(Rule, Rule)>,
    /// Rules that stay as they are.
    pub unchanged: Vec<RuleId>,
}

impl Diff {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// The changed and removed rules, as they were.
    pub fn before(&self) -> impl Iterator<Item = &Rule> {
        let changed = self.changed.iter().map(|(before, _)| before);
        self.removed.iter().chain(changed)
    }

    /// The changed and added rules, as they will be.
    pub fn after(&self) -> impl Iterator<Item = &Rule> {
        let changed = self.changed.iter().map(|(_, after)| after);
        self.added.iter().chain(changed)
    }
}

/// Why rules cannot be the rules of an owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesetError {
    /// The id is that of another owner's rule.
    #[error(
        "rule id {id} is taken by a rule of owner \"{owner}\": choose another id, or remove that rule first"
    )]
    Taken {
        /// The id.
        id: RuleId,
        /// The owner of that rule.
        owner: Owner,
    },
    /// Two of the wanted rules have the same id.
    #[error("rule id {0} is used twice: every rule needs an id of its own")]
    Twice(RuleId),
}

/// What changes if `wanted` becomes all that `owner` has. Other owners' rules stay.
///
/// # Errors
/// If an id is that of another owner's rule, or is used twice.
pub fn diff(current: &Ruleset, owner: &Owner, wanted: &[Rule]) -> Result<Diff, RulesetError> {
    let mut sorted: Vec<&Rule> = wanted.iter().collect();
    sorted.sort_by_key(|rule| &rule.id);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(RulesetError::Twice(pair[0].id.clone()));
    }
    let mut diff = Diff::default();
    for rule in &sorted {
        match current.get(&rule.id) {
            Some(entry) if entry.owner != *owner => {
                return Err(RulesetError::Taken {
                    id: rule.id.clone(),
                    owner: entry.owner.clone(),
                });
            }
            Some(entry) if entry.rule == **rule => diff.unchanged.push(rule.id.clone()),
            Some(entry) => diff.changed.push((entry.rule.clone(), (*rule).clone())),
            None => diff.added.push((*rule).clone()),
        }
    }
    let wanted: BTreeSet<&RuleId> = sorted.iter().map(|rule| &rule.id).collect();
    diff.removed = current
        .values()
        .filter(|entry| entry.owner == *owner && !wanted.contains(&entry.rule.id))
        .map(|entry| entry.rule.clone())
        .collect();
    Ok(diff)
}

/// Counter slots that no rule uses, in ascending order, without end.
pub fn free_counters(current: &Ruleset) -> impl Iterator<Item = u32> + use<> {
    let used: BTreeSet<u32> = current.values().map(|entry| entry.counter).collect();
    (0..).filter(move |slot| !used.contains(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::sample::rule;

    fn entry(id: &str, fields: &str, owner: Owner, counter: u32) -> (RuleId, Entry) {
        let rule = rule(id, "10.0.0.1", fields);
        let entry = Entry {
            owner,
            created: Timestamp::UNIX_EPOCH,
            deadline: None,
            counter,
            rule,
        };
        (entry.rule.id.clone(), entry)
    }

    fn current() -> Ruleset {
        Ruleset::from([
            entry("a", "{}", Owner::Config, 0),
            entry("b", "{}", Owner::Config, 2),
            entry("c", "{}", Owner::Config, 1),
            entry("x", "{}", Owner::Api, 5),
        ])
    }

    #[test]
    fn a_diff_tells_what_is_new_gone_changed_and_the_same() {
        let wanted = [
            rule("d", "10.0.0.1", "{}"),
            rule("b", "10.0.0.1", "{comment: new}"),
            rule("a", "10.0.0.1", "{}"),
        ];
        let diff = diff(&current(), &Owner::Config, &wanted).unwrap();
        assert_eq!(diff.added, [wanted[0].clone()]);
        assert_eq!(diff.removed, [rule("c", "10.0.0.1", "{}")]);
        assert_eq!(
            diff.changed,
            [(rule("b", "10.0.0.1", "{}"), wanted[1].clone())]
        );
        assert_eq!(diff.unchanged, ["a".parse().unwrap()]);
        assert!(!diff.is_empty());
    }

    #[test]
    fn an_owners_rules_are_its_own_business() {
        let none = diff(&current(), &Owner::Api, &[]).unwrap();
        assert_eq!(none.removed, [rule("x", "10.0.0.1", "{}")]);
        let same = diff(&current(), &Owner::Api, &none.removed).unwrap();
        assert!(same.is_empty());
    }

    #[test]
    fn an_id_of_another_owner_is_refused() {
        let error = diff(&current(), &Owner::Api, &[rule("a", "10.0.0.9", "{}")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rule id a is taken by a rule of owner \"config\": choose another id, or remove that rule first"
        );
    }

    #[test]
    fn an_id_wanted_twice_is_refused() {
        let twice = [rule("n", "10.0.0.9", "{}"), rule("n", "10.0.0.8", "{}")];
        let error = diff(&current(), &Owner::Api, &twice).unwrap_err();
        assert_eq!(error, RulesetError::Twice("n".parse().unwrap()));
    }

    #[test]
    fn free_counters_are_the_gaps_and_then_what_follows() {
        let free: Vec<u32> = free_counters(&current()).take(4).collect();
        assert_eq!(free, [3, 4, 6, 7]);
    }
}
