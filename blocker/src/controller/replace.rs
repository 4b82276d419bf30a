//! All rules of an owner replaced by others, whether the owner is the configuration, the API, a feed
//! or the fleet.
//!
//! Rules are compared by targets. A target that the owner blocks before and after stays blocked, so
//! its flows are neither killed as at the start of a rule nor as at its end, even if it moves from one
//! rule to another.

use ipnet::IpNet;
use jiff::Timestamp;

use super::change::Change;
use super::live::{Live, Wanted};
use super::writer::Writer;
use super::{Error, Who, journal};
use crate::rule::{Owner, Rule, Target, Targets};
use crate::ruleset::{self, Diff, RulesetError};
use crate::safety::Disjoint;
use crate::wire::Account;

/// A change that replaces all rules of some owners.
pub(super) struct Replacement {
    pub(super) change: Change,
    /// What changes of each owner's rules. Owners of whose rules nothing changes are left out.
    pub(super) diffs: Vec<(Owner, Diff)>,
}

impl Replacement {
    /// A replacement of nothing yet.
    pub(super) fn new(live: &Live) -> Self {
        Self {
            change: Change::to(live.wanted()),
            diffs: Vec::new(),
        }
    }

    /// Makes these rules all that an owner has. Returns what that changes.
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
        let (before, after) = (rules_of(diff.before()), rules_of(diff.after()));
        let lifted = before.iter().filter(|rule| rule.lifts_by_reset());
        ending.extend(lifted.filter_map(|rule| beyond(rule, &after)));
        let killing = after.iter().filter(|rule| rule.kills());
        starting.extend(killing.filter_map(|rule| beyond(rule, &before)));
        wanted.retain(|_, wanted| wanted.owner != *owner);
        let ours = rules.into_iter();
        wanted.extend(ours.map(|rule| Wanted::entry(rule, owner, now)));
        self.diffs.push((owner.clone(), diff.clone()));
        Ok(diff)
    }
}

impl Writer {
    /// Carries a replacement out, if it changes anything, and tells of it. Returns what was killed on
    /// the way, and the rules whose flows are yet to be killed.
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

/// How many targets come and how many go.
pub(super) fn targets_changed(diff: &Diff) -> (usize, usize) {
    let (before, after) = (rules_of(diff.before()), rules_of(diff.after()));
    let count = |rules: &[&Rule], others: &[&Rule]| -> usize {
        let parts = rules.iter().filter_map(|rule| beyond(rule, others));
        parts.map(|part| part.targets.len()).sum()
    };
    (count(&after, &before), count(&before, &after))
}

fn rules_of<'r>(rules: impl Iterator<Item = &'r Rule>) -> Vec<&'r Rule> {
    rules.collect()
}

/// The part of a rule that none of others covers with the same action; `None` if there is none.
fn beyond(rule: &Rule, others: &[&Rule]) -> Option<Rule> {
    let alike = others.iter().filter(|other| other.same_action(rule));
    let alike: Vec<&Rule> = alike.copied().collect();
    let nets = alike.iter().flat_map(|other| other.targets.iter());
    let covered = Disjoint::of(nets.map(|target| target.net()));
    let mut targets: Vec<Target> = rule
        .targets
        .iter()
        .copied()
        .filter(|target| !covered.covers(target.net()))
        .collect();
    // What the others except and this rule does not.
    let excepted = alike.iter().flat_map(|other| &other.except);
    let excepted = excepted.filter(|target| !rule.except.contains(target));
    let excepted: Vec<IpNet> = excepted.map(|target| target.net()).collect();
    if !excepted.is_empty() {
        let within = Disjoint::of(rule.targets.iter().map(|target| target.net()));
        let whole = Disjoint::of(targets.iter().map(|target| target.net()));
        let new = |net: &IpNet| within.covers(*net) && !whole.covers(*net);
        targets.extend(excepted.into_iter().filter(new).map(Target::from));
    }
    let targets = Targets::from(targets);
    (!targets.is_empty()).then(|| Rule {
        targets,
        ..rule.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::sample::rule;

    fn part(rule: &Rule, others: &[&Rule]) -> String {
        beyond(rule, others).map_or_else(String::new, |part| {
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
            // One target moves from rule to rule, one leaves, one comes.
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
    fn a_prefix_stays_blocked_under_a_wider_one_but_not_under_its_exceptions() {
        let wide = with("w", "11.0.0.0/8", "{except: [11.2.0.0/16]}");
        let narrow = with("n", "11.1.0.0/16", "{}");
        assert_eq!(part(&narrow, &[&wide]), "");
        assert_eq!(part(&wide, &[&narrow]), "w 11.0.0.0/8");
        let whole = with("w", "11.0.0.0/8", "{}");
        assert_eq!(part(&whole, &[&wide]), "w 11.2.0.0/16");
        assert_eq!(part(&wide, &[&whole]), "");
    }
}
