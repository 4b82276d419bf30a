//! Changes: `add`, `confirm`, `del`, `flush`, `apply`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use blocker::rule::{Direction, Rule, RuleId, RuleSpec, Target};
use blocker::wire::{
    Account, AddResponse, Carved, Changed, ConfirmResponse, DeleteResponse, LiveFlow,
    RulesetResponse,
};
use serde_json::Value;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{
    BAD, GOOD, WARN, counted, endpoint, matching, printable, seconds_between, span, styled,
};

/// The account of an `add`. `asked` is the rule of the request.
pub(crate) fn added(answer: &AddResponse, asked: &RuleSpec, dry_run: bool, view: View) -> String {
    let rule = &answer.rule;
    let total = answer.targets_total.unwrap_or(rule.targets.len() as u64);
    let what = names_of(&rule.targets, total);
    let (done, would) = if rule.mode.blocks() {
        ("blocked", "block")
    } else {
        ("audited", "audit")
    };
    let head = match (answer.created, dry_run) {
        (true, false) => format!("{done} {what} (rule {}, {})", rule.id, terms(rule, view)),
        (true, true) => format!(
            "would {would} {what} ({}); nothing was changed",
            terms(rule, view)
        ),
        (false, true) => format!("already {done} by rule {}; nothing was changed", rule.id),
        (false, false) => {
            let news = match (
                asked.lifetime.is_some() || asked.expires.is_some(),
                asked.comment.is_some(),
            ) {
                (false, false) => "nothing to add",
                (true, false) => "its deadline is now as given",
                (false, true) => "its comment is now as given",
                (true, true) => "its deadline and comment are now as given",
            };
            format!(
                "already {done} by rule {} ({}): {news}",
                rule.id,
                terms(rule, view)
            )
        }
    };
    let mut out = head + "\n";
    if rule.unconfirmed.is_some() && !dry_run {
        out += &format!("ends by itself, unless: blockctl confirm {}\n", rule.id);
    }
    out += &spared(&answer.carved);
    match &answer.would_kill {
        Some(flows) => out += &doomed(flows, view),
        None if !dry_run => {
            let looked = rule.kills() && answer.created;
            out += &account(&answer.teardown, "established flow", looked, view);
        }
        None => {}
    }
    out
}

/// The outcome of a `confirm`.
pub(crate) fn confirmed(answer: &ConfirmResponse, view: View) -> String {
    let rule = &answer.rule;
    let terms = terms(rule, view);
    if answer.confirmed {
        format!("confirmed rule {} ({terms})\n", rule.id)
    } else {
        format!("rule {} needs no confirmation ({terms})\n", rule.id)
    }
}

/// The account of a `del` or `flush`.
pub(crate) fn lifted(answer: &DeleteResponse, view: View) -> String {
    let mut out = String::new();
    match answer.removed.as_slice() {
        [] if answer.narrowed.is_empty() => out += "no rules to lift\n",
        [] => {}
        [one] => out += &format!("lifted rule {one}\n"),
        many => {
            out += &format!("lifted {}: {}\n", counted(many.len(), "rule"), some(many));
        }
    }
    for id in &answer.narrowed {
        out += &format!("narrowed rule {id}: it stays in force with its other targets\n");
    }
    out += &account(&answer.teardown, "flow", false, view);
    out
}

/// The diff of an `apply`.
pub(crate) fn applied(answer: &RulesetResponse, view: View) -> String {
    let mut out = String::new();
    let line = |rule: &Rule| {
        format!(
            "{}: {} ({})",
            rule.id,
            names(&rule.targets),
            terms(rule, view)
        )
    };
    for rule in &answer.added {
        out += &styled(GOOD, &format!("+ {}", line(rule)));
        out.push('\n');
    }
    for rule in &answer.removed {
        out += &styled(BAD, &format!("- {}", line(rule)));
        out.push('\n');
    }
    for changed in &answer.changed {
        let text = format!("~ {}: {}", changed.after.id, difference(changed));
        out += &styled(WARN, &text);
        out.push('\n');
    }
    out += &spared(&answer.carved);
    let counts = format!(
        "{} added, {} removed, {} changed, {} unchanged",
        answer.added.len(),
        answer.removed.len(),
        answer.changed.len(),
        answer.unchanged
    );
    if answer.dry_run {
        let _ = writeln!(out, "dry run: {counts}; nothing was changed");
    } else {
        let _ = writeln!(out, "{counts}");
        out += &account(&answer.teardown, "established flow", false, view);
    }
    out
}

/// A rule's mode, match, way and deadline in words: `reset, tcp, both directions, until lifted`.
pub(super) fn terms(rule: &Rule, view: View) -> String {
    let mut parts = vec![rule.mode.to_string()];
    let narrowed = matching(rule);
    if !narrowed.is_empty() {
        parts.push(narrowed);
    }
    if rule.matching.direction == Direction::Both {
        parts.push("both directions".to_owned());
    }
    parts.push(match rule.expires {
        Some(at) => format!("{} left", span(seconds_between(view.now, at))),
        None => "until lifted".to_owned(),
    });
    parts.join(", ")
}

/// Targets in a sentence.
pub(super) fn names(targets: &[Target]) -> String {
    names_of(targets, targets.len() as u64)
}

/// The same, for the first targets of `total`.
fn names_of(targets: &[Target], total: u64) -> String {
    match targets {
        [] => "nothing".to_owned(),
        [one] => one.to_string(),
        [first, second] => format!("{first} and {second}"),
        [first, ..] => format!("{first} and {} more", total - 1),
    }
}

fn some(ids: &[RuleId]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = ids.iter().take(SHOWN).map(RuleId::as_str).collect();
    let mut text = shown.join(", ");
    if ids.len() > SHOWN {
        let _ = write!(text, " and {} more", ids.len() - SHOWN);
    }
    text
}

pub(super) fn spared(carved: &[Carved]) -> String {
    carved
        .iter()
        .map(|carved| format!("spared {}: {}\n", carved.target, printable(&carved.why)))
        .collect()
}

/// `looked`: also report that there was nothing to kill.
pub(super) fn account(account: &Account, noun: &str, looked: bool, view: View) -> String {
    let mut out = String::new();
    if account.found > 0 {
        let plural = if account.found == 1 { "" } else { "s" };
        let line = format!(
            "killed {} of {} {noun}{plural} in {}",
            account.killed,
            account.found,
            milliseconds(account.elapsed_ms)
        );
        out += &line;
        out.push('\n');
    } else if looked {
        let _ = writeln!(out, "no {noun}s to kill");
    }
    for note in &account.notes {
        let _ = writeln!(
            out,
            "{}",
            styled(WARN, &format!("note: {}", printable(note)))
        );
    }
    if !account.left.is_empty() {
        let left = counted(account.left.len(), "flow");
        let _ = writeln!(out, "{}", styled(BAD, &format!("not killed, {left}:")));
        let rows = account
            .left
            .iter()
            .map(|left| {
                let mut row = flow(&left.flow);
                row.push(left.why.as_str().into());
                row
            })
            .collect();
        let columns: Vec<_> = FLOW
            .iter()
            .copied()
            .chain([Column::new("WHY", Fit::Wrap)])
            .collect();
        out += &draw(&columns, rows, view.width);
    }
    out
}

/// The flows that a teardown left alive, in a line.
pub(crate) fn left(account: &Account) -> String {
    let flows = counted(account.left.len(), "flow");
    let first = account.left.first().map(|left| {
        let LiveFlow {
            protocol,
            remote,
            remote_port,
            local,
            local_port,
            ..
        } = &left.flow;
        let remote = endpoint(*remote, *remote_port, protocol);
        let local = endpoint(*local, *local_port, protocol);
        format!(": {protocol} {remote} to {local}: {}", printable(&left.why))
    });
    format!("not killed, {flows}{}", first.unwrap_or_default())
}

fn doomed(flows: &[LiveFlow], view: View) -> String {
    if flows.is_empty() {
        return "no established flows would die\n".to_owned();
    }
    let head = counted(flows.len(), "established flow");
    let table = draw(FLOW, flows.iter().map(flow).collect(), view.width);
    format!("{head} would die:\n{table}")
}

const FLOW: &[Column] = &[
    Column::new("PROTO", Fit::Whole),
    Column::new("REMOTE", Fit::Whole),
    Column::new("LOCAL", Fit::Whole),
    Column::optional("STATE", Fit::Whole, 2),
    Column::optional("PROCESS", Fit::Whole, 1),
];

fn flow(flow: &LiveFlow) -> Vec<Cell> {
    let process = match (&flow.process, flow.pid) {
        (Some(name), Some(pid)) => format!("{name} ({pid})"),
        (Some(name), None) => name.clone(),
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => String::new(),
    };
    vec![
        flow.protocol.as_str().into(),
        endpoint(flow.remote, flow.remote_port, &flow.protocol).into(),
        endpoint(flow.local, flow.local_port, &flow.protocol).into(),
        flow.state.as_str().into(),
        process.into(),
    ]
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1_000.0)
    }
}

/// The fields in which two rules differ. Compares their JSON, so that no field can be forgotten.
fn difference(changed: &Changed) -> String {
    let fields = |rule: &Rule| match serde_json::to_value(rule) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(&changed.before), fields(&changed.after));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut parts = Vec::new();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old == new {
            continue;
        }
        parts.push(match (items(old), items(new)) {
            (Some(old), Some(new)) => format!("{name} {}", members(&old, &new)),
            _ => format!("{name} {} -> {}", plain(old), plain(new)),
        });
    }
    printable(&parts.join("; "))
}

/// The members of a list; an absent field is an empty list.
fn items(value: Option<&Value>) -> Option<BTreeSet<String>> {
    match value {
        None => Some(BTreeSet::new()),
        Some(Value::Array(items)) => Some(items.iter().map(|item| plain(Some(item))).collect()),
        Some(_) => None,
    }
}

fn members(old: &BTreeSet<String>, new: &BTreeSet<String>) -> String {
    const SHOWN: usize = 4;
    let side = |sign: char, members: Vec<&String>| {
        let mut words: Vec<_> = members
            .iter()
            .take(SHOWN)
            .map(|member| format!("{sign}{member}"))
            .collect();
        if members.len() > SHOWN {
            words.push(format!("{sign}{} more", members.len() - SHOWN));
        }
        words
    };
    let mut words = side('+', new.difference(old).collect());
    words.extend(side('-', old.difference(new).collect()));
    words.join(" ")
}

fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
