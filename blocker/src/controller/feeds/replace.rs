//! What a feed's new rules change: what ends, what starts, what is told. Pure, but for the log.

use std::collections::HashSet;

use jiff::Timestamp;

use super::super::change::Change;
use super::super::live::Wanted;
use crate::rule::{Mode, Owner, Rule, Target};
use crate::ruleset::Diff;

/// Says what became of a feed's rules, in one line.
pub(super) fn tell(owner: &Owner, diff: &Diff) {
    let (before, after): (Vec<&Rule>, Vec<&Rule>) =
        (diff.before().collect(), diff.after().collect());
    let count = |rules: &[&Rule], others: &[&Rule]| -> usize {
        rules.iter().map(|rule| beyond(rule, others).len()).sum()
    };
    tracing::info!(
        owner = %owner,
        targets_added = count(&after, &before),
        targets_lifted = count(&before, &after),
        rules_added = diff.added.len(),
        rules_removed = diff.removed.len(),
        rules_changed = diff.changed.len(),
        "feed changed"
    );
}

/// Puts rules of an owner into a change, in place of those it has. Only what leaves all of them ends,
/// and only what comes starts: a list that changes is no reason to kill flows of what it had before
/// and has still.
pub(super) fn replace(
    change: &mut Change,
    diff: &Diff,
    rules: Vec<Rule>,
    owner: &Owner,
    now: Timestamp,
) {
    let (before, after): (Vec<&Rule>, Vec<&Rule>) =
        (diff.before().collect(), diff.after().collect());
    for rule in before.iter().filter(|rule| rule.lifts_by_reset()) {
        let gone = beyond(rule, &after);
        if !gone.is_empty() {
            change.ending.push(Rule {
                targets: gone.into(),
                ..(*rule).clone()
            });
        }
    }
    for rule in after.iter().filter(|rule| rule.kills()) {
        let new = beyond(rule, &before);
        if new.is_empty() {
            continue;
        }
        change.starting.push(match rule.mode {
            Mode::Reset => Rule {
                targets: new.into(),
                ..(*rule).clone()
            },
            // For a moment it is a `reset` rule, and must be one of all its targets.
            _ => (*rule).clone(),
        });
    }
    change.wanted.retain(|_, wanted| wanted.owner != *owner);
    let ours = rules.into_iter();
    let ours = ours.map(|rule| Wanted::entry(rule, owner, now));
    change.wanted.extend(ours);
}

/// The targets of a rule that none of others has that do the same.
fn beyond(rule: &Rule, others: &[&Rule]) -> Vec<Target> {
    let alike = others.iter().filter(|other| {
        let bare = Rule {
            targets: rule.targets.clone(),
            except: rule.except.clone(),
            ..(**other).clone()
        };
        bare.same_effect(rule)
    });
    let known: HashSet<Target> = alike
        .flat_map(|other| other.targets.iter().copied())
        .collect();
    let targets = rule.targets.iter().copied();
    targets.filter(|target| !known.contains(target)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::live::WantedRules;
    use super::*;
    use crate::rule::sample::rule;

    fn replaced(before: &[(&str, &[&str])], after: &[(&str, &[&str])], rest: &str) -> Change {
        let make = |rules: &[(&str, &[&str])]| -> Vec<Rule> {
            let one = |(id, targets): &(&str, &[&str])| Rule {
                targets: targets.iter().map(|text| text.parse().unwrap()).collect(),
                ..rule(id, "10.0.0.1", rest)
            };
            rules.iter().map(one).collect()
        };
        let (before, after) = (make(before), make(after));
        let diff = Diff {
            removed: before
                .iter()
                .filter(|old| after.iter().all(|new| new.id != old.id))
                .cloned()
                .collect(),
            added: after
                .iter()
                .filter(|new| before.iter().all(|old| new.id != old.id))
                .cloned()
                .collect(),
            changed: before
                .iter()
                .filter_map(|old| {
                    let new = after.iter().find(|new| new.id == old.id)?;
                    Some((old.clone(), new.clone()))
                })
                .collect(),
            unchanged: Vec::new(),
        };
        let mut change = Change::to(WantedRules::new());
        let owner = Owner::Feed("f".to_owned());
        replace(&mut change, &diff, after, &owner, Timestamp::UNIX_EPOCH);
        change
    }

    fn text(rules: &[Rule]) -> Vec<String> {
        let one = |rule: &Rule| {
            let targets: Vec<String> = rule.targets.iter().map(ToString::to_string).collect();
            format!("{} {}", rule.id, targets.join(" "))
        };
        rules.iter().map(one).collect()
    }

    #[test]
    fn only_what_leaves_ends_and_only_what_comes_starts() {
        let before: [(&str, &[&str]); 2] = [
            ("a", &["11.0.0.1", "11.0.0.2", "11.0.0.3"]),
            ("b", &["11.0.0.4"]),
        ];
        // One moves from rule to rule, one leaves, one comes.
        let after: [(&str, &[&str]); 2] = [
            ("a", &["11.0.0.1"]),
            ("c", &["11.0.0.2", "11.0.0.4", "11.0.0.5"]),
        ];
        let change = replaced(&before, &after, "{mode: drop, on_lift: reset}");
        assert_eq!(text(&change.ending), ["a 11.0.0.3"]);
        assert!(change.starting.is_empty(), "drop kills none");
        assert_eq!(change.wanted.len(), 2);
        let change = replaced(&before, &after, "{mode: reset}");
        assert!(change.ending.is_empty());
        assert_eq!(text(&change.starting), ["c 11.0.0.5"]);
        let change = replaced(&before, &after, "{mode: drop, established: kill}");
        assert_eq!(text(&change.starting), ["c 11.0.0.2 11.0.0.4 11.0.0.5"]);
    }
}
