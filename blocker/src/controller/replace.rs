//! Replaces all rules of an owner: of the configuration, the API, a feed or the fleet.
//!
//! Rules are compared by targets. A target that the owner blocks with the same action before and
//! after stays blocked, even if it moves from one rule to another. Its flows are not killed as at
//! the start or the end of a rule. Targets are compared as they are written: a prefix inside another
//! one is a target of its own, since a more specific rule may decide its packets.

use std::collections::HashSet;

use ipnet::IpNet;
use jiff::Timestamp;

use super::change::Change;
use super::live::{Live, Wanted};
use super::writer::Writer;
use super::{Error, Who, journal};
use crate::rule::{Owner, Rule, Target};
use crate::ruleset::{self, Diff, RulesetError};
use crate::safety::Disjoint;
use crate::wire::Account;

/// A change that replaces all rules of some owners.
pub(super) struct Replacement {
    pub(super) change: Change,
    /// What changes in each owner's rules. Owners without a change are left out.
    pub(super) diffs: Vec<(Owner, Diff)>,
}

impl Replacement {
    /// A replacement that changes nothing yet.
    pub(super) fn new(live: &Live) -> Self {
        Self {
            change: Change::to(live.wanted()),
            diffs: Vec::new(),
        }
    }

    /// Replaces all rules of an owner by these rules. Returns what changes.
    ///
    /// # Errors
    /// If an id is another owner's, or is used twice.
    pub(super) fn put(
        &mut self,
        live: &Live,
        owner: &Owner,
        rules: Vec<Rule>,
        now: Timestamp,
    ) -> Result<Diff, RulesetError> {
        let diff = ruleset::diff(live.ruleset(), owner, &rules)?;
        if diff.is_empty() {
            return Ok(diff);
        }
        let Change {
            ending,
            starting,
            wanted,
            ..
        } = &mut self.change;
        let unchanged = diff.unchanged.iter();
        let unchanged = unchanged.filter_map(|id| Some(&live.ruleset().get(id)?.rule));
        let after = Blocked::by(diff.after().chain(unchanged.clone()));
        let lifted = diff.before().filter(|rule| rule.lifts_by_reset());
        ending.extend(lifted.filter_map(|rule| after.rest_of(rule)));
        let before = Blocked::by(diff.before().chain(unchanged));
        let killing = diff.after().filter(|rule| rule.kills());
        starting.extend(killing.filter_map(|rule| before.rest_of(rule)));
        wanted.retain(|_, wanted| wanted.owner != *owner);
        let ours = rules.into_iter();
        wanted.extend(ours.map(|rule| Wanted::entry(rule, owner, now)));
        self.diffs.push((owner.clone(), diff.clone()));
        Ok(diff)
    }
}

impl Writer {
    /// Carries out a replacement if it changes anything, and reports it as events and to the log.
    /// Returns the account of flows killed, and the rules that start and kill established flows.
    /// The flows of those that are `reset` rules are yet to be killed.
    pub(super) async fn replace(
        &mut self,
        Replacement { change, diffs }: Replacement,
        by: Option<Who>,
        now: Timestamp,
    ) -> Result<(Account, Vec<Rule>), Error> {
        if diffs.is_empty() && change.config.is_none() {
            return Ok(Default::default());
        }
        let starting = change.starting.clone();
        let account = self.change(change, now).await?;
        for (owner, diff) in &diffs {
            self.0.events.replaced(diff, owner, by);
            journal::replaced(owner, by.unwrap_or_default(), diff);
        }
        Ok((account, starting))
    }
}

/// How many targets a difference adds and how many it lifts.
pub(super) fn targets_changed(diff: &Diff) -> (usize, usize) {
    let (before, after) = (Blocked::by(diff.before()), Blocked::by(diff.after()));
    let count = |parts: &mut dyn Iterator<Item = Rule>| -> usize {
        parts.map(|part| part.targets.len()).sum()
    };
    (
        count(&mut diff.after().filter_map(|rule| before.rest_of(rule))),
        count(&mut diff.before().filter_map(|rule| after.rest_of(rule))),
    )
}

/// What rules block, by action.
struct Blocked<'r>(Vec<Alike<'r>>);

/// Rules of the same action.
struct Alike<'r> {
    /// One of them.
    first: &'r Rule,
    /// The targets that one of them blocks: it does not except all of the target.
    targets: HashSet<Target>,
    /// What they except.
    except: Vec<Target>,
}

impl<'r> Blocked<'r> {
    fn by(rules: impl Iterator<Item = &'r Rule>) -> Self {
        let mut groups: Vec<Alike<'r>> = Vec::new();
        for rule in rules {
            let found = groups
                .iter()
                .position(|alike| alike.first.same_action(rule));
            let found = found.unwrap_or_else(|| {
                groups.push(Alike {
                    first: rule,
                    targets: HashSet::new(),
                    except: Vec::new(),
                });
                groups.len() - 1
            });
            let excepted = Disjoint::of(rule.except.iter().map(|target| target.net()));
            let targets = rule.targets.iter().copied();
            let targets = targets.filter(|target| !excepted.covers(target.net()));
            groups[found].targets.extend(targets);
            groups[found].except.extend(&rule.except);
        }
        Self(groups)
    }

    /// The part of a rule that none of these blocks with the same action; `None` if there is none.
    fn rest_of(&self, rule: &Rule) -> Option<Rule> {
        let alike = self.0.iter().find(|alike| alike.first.same_action(rule));
        let mut rest = rule.targets.clone();
        if let Some(alike) = alike {
            rest = rest.only(|target| !alike.targets.contains(target));
            // What the others except of a target, and this rule does not.
            let excepted = alike.except.iter();
            let excepted = excepted.filter(|target| !rule.except.contains(target));
            let excepted: Vec<IpNet> = excepted.map(|target| target.net()).collect();
            if !excepted.is_empty() {
                let within = Disjoint::of(rule.targets.iter().map(|target| target.net()));
                let whole = Disjoint::of(rest.iter().map(|target| target.net()));
                let new = |net: &IpNet| {
                    let blocked = alike.targets.contains(&Target::from(*net));
                    within.covers(*net) && !whole.covers(*net) && !blocked
                };
                let parts = excepted.into_iter().filter(new).map(Target::from);
                rest = rest.iter().copied().chain(parts).collect();
            }
        }
        (!rest.is_empty()).then(|| Rule {
            targets: rest,
            ..rule.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::sample::rule;

    fn part(rule: &Rule, others: &[&Rule]) -> String {
        let blocked = Blocked::by(others.iter().copied());
        blocked.rest_of(rule).map_or_else(String::new, |part| {
            let targets: Vec<String> = part.targets.iter().map(ToString::to_string).collect();
            format!("{} {}", part.id, targets.join(" "))
        })
    }

    fn with(id: &str, targets: &str, fields: &str) -> Rule {
        Rule {
            targets: targets
                .split(' ')
                .map(|text| text.parse().unwrap())
                .collect(),
            ..rule(id, "10.0.0.1", fields)
        }
    }

    #[test]
    fn a_part_is_what_no_rule_of_the_same_action_covers() {
        for fields in [
            "{mode: reset}",
            "{mode: drop, on_lift: reset}",
            "{established: kill}",
        ] {
            let a = with("a", "11.0.0.1 11.0.0.2 11.0.0.3", fields);
            let b = with("b", "11.0.0.4", fields);
            // One target moves to another rule, one is removed, one is added.
            let less = with("a", "11.0.0.1", fields);
            let c = with("c", "11.0.0.2 11.0.0.4 11.0.0.5", fields);
            let (before, after) = ([&a, &b], [&less, &c]);
            assert_eq!(part(&a, &after), "a 11.0.0.3");
            assert_eq!(part(&b, &after), "");
            assert_eq!(part(&less, &before), "");
            assert_eq!(part(&c, &before), "c 11.0.0.5");
            let other = with("c", "11.0.0.5", "{mode: reject}");
            assert_eq!(part(&c, &[&other]), "c 11.0.0.2 11.0.0.4 11.0.0.5");
        }
    }

    #[test]
    fn a_prefix_does_not_stay_blocked_under_a_wider_one_or_its_exceptions() {
        let wide = with("w", "11.0.0.0/8", "{except: [11.2.0.0/16]}");
        // A more specific rule of another action may decide it, or a wider exception spare it.
        let narrow = with("n", "11.1.0.0/16", "{}");
        assert_eq!(part(&narrow, &[&wide]), "n 11.1.0.0/16");
        assert_eq!(part(&wide, &[&narrow]), "w 11.0.0.0/8");
        let both = with("b", "11.0.0.0/8 11.2.0.0/16", "{except: [11.0.0.0/12]}");
        let spared = with("n", "11.2.0.0/16", "{}");
        assert_eq!(part(&spared, &[&both]), "n 11.2.0.0/16");
        let whole = with("w", "11.0.0.0/8", "{}");
        assert_eq!(part(&whole, &[&wide]), "w 11.2.0.0/16");
        assert_eq!(part(&wide, &[&whole]), "");
    }
}
