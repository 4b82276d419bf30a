//! Log lines on changes: who asked, what changed, and why (the rule's comment). One line per rule, so
//! that the history of a rule is found by its id.

use super::Who;
use super::replace::targets_changed;
use crate::datapath::attach::{Attached, hook_name};
use crate::rule::{Owner, Rule, RuleId};
use crate::ruleset::Diff;
use crate::wire::{Account, Left};

/// Logs a line on a rule.
macro_rules! tell {
    ($who:expr, $rule:expr, $what:expr $(, $field:ident = $value:expr)*) => {{
        let (who, rule): (Who, &Rule) = ($who, $rule);
        tracing::info!(
            uid = who.uid, pid = who.pid, rule = %rule.id, mode = %rule.mode,
            targets = rule.targets.len(), expires = rule.expires.map(tracing::field::display),
            comment = rule.comment.as_deref() $(, $field = $value)*, $what
        );
    }};
}

/// A rule was added, or was in force already.
pub(super) fn added(who: Who, rule: &Rule, created: bool) {
    tell!(who, rule, "rule added", created = created);
}

/// Rules, or some targets of them (`narrowed`), were lifted. The targets counted are those lifted.
pub(super) fn lifted(who: Who, rules: &[Rule], narrowed: &[RuleId]) {
    for rule in rules {
        if narrowed.contains(&rule.id) {
            tell!(who, rule, "targets lifted, the rule lives on");
        } else {
            tell!(who, rule, "rule lifted");
        }
    }
}

/// A rule was confirmed.
pub(super) fn confirmed(who: Who, rule: &Rule) {
    tell!(who, rule, "rule confirmed");
}

/// Rules ended by their deadline.
pub(super) fn expired(rules: &[Rule]) {
    for rule in rules {
        tell!(Who::default(), rule, "rule expired");
    }
}

/// All rules of an owner were replaced. A feed has too many rules for a line each.
pub(super) fn replaced(owner: &Owner, who: Who, diff: &Diff) {
    if let Owner::Feed(_) = owner {
        let (targets_added, targets_lifted) = targets_changed(diff);
        tracing::info!(
            owner = %owner,
            targets_added,
            targets_lifted,
            rules_added = diff.added.len(),
            rules_removed = diff.removed.len(),
            rules_changed = diff.changed.len(),
            "feed changed"
        );
        return;
    }
    for rule in &diff.removed {
        tell!(who, rule, "rule lifted");
    }
    for rule in &diff.added {
        tell!(who, rule, "rule added", created = true);
    }
    for (_, rule) in &diff.changed {
        tell!(who, rule, "rule changed");
    }
}

/// The most flows left by a teardown that are logged with a line each.
const NAMED: usize = 50;

/// A teardown ended.
pub(super) fn killed(account: &Account) {
    if account.found == 0 && account.left.is_empty() {
        return;
    }
    tracing::info!(
        found = account.found,
        killed = account.killed,
        left = account.left.len(),
        elapsed_ms = account.elapsed_ms,
        "established flows killed"
    );
    for Left { flow, why } in account.left.iter().take(NAMED) {
        tracing::warn!(
            protocol = flow.protocol,
            remote = %flow.remote,
            remote_port = flow.remote_port,
            local = %flow.local,
            local_port = flow.local_port,
            process = flow.process,
            why,
            "flow left alive"
        );
    }
    if account.left.len() > NAMED {
        let more = account.left.len() - NAMED;
        tracing::warn!(more, "more flows left alive");
    }
}

/// Logs the devices that were attached, with the mode and its reason, and those that were detached.
pub(super) fn devices(before: &[(u32, String)], now: &[&Attached]) {
    let was_there = |index| before.iter().any(|(other, _)| *other == index);
    for attached in now
        .iter()
        .filter(|attached| !was_there(attached.device.index))
    {
        let hooks = attached.hooks.iter();
        let hooks: Vec<String> = hooks
            .map(|hook| format!("{} {}", hook_name(hook.hook), hook.mode))
            .collect();
        let notes = attached.notes.join("; ");
        let notes = Some(notes).filter(|notes| !notes.is_empty());
        tracing::info!(
            device = attached.device.name,
            index = attached.device.index,
            hooks = hooks.join(", "),
            notes,
            "device attached"
        );
    }
    let is_there = |index| now.iter().any(|attached| attached.device.index == index);
    for (index, name) in before.iter().filter(|(index, _)| !is_there(*index)) {
        tracing::info!(device = name, index, "device gone");
    }
}
