//! `list` and `show`.

use std::fmt::Write as _;

use blocker::rule::{Mode, Rule, Target};
use blocker::wire::{ListResponse, RuleView};
use comfy_table::Color;
use indicatif::HumanCount;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{bytes, count, list as commas, matching, moment, seconds_between, span};
use super::text::{printable, targets, until};

const COLUMNS: &[Column] = &[
    Column::new("ID", Fit::Whole),
    Column::new("TARGETS", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::filled("MATCH", Fit::Cut),
    Column::optional("UNTIL", Fit::Whole, 1),
    Column::optional("PACKETS", Fit::Number, 3),
    Column::optional("BYTES", Fit::Number, 6),
    Column::optional("REPLIES", Fit::Number, 7),
    Column::optional("OWNER", Fit::Whole, 5),
    Column::optional("COMMENT", Fit::Cut, 4),
];

/// All rules, one a line.
pub(crate) fn list(answer: &ListResponse, view: View) -> String {
    if answer.rules.is_empty() {
        return "no rules: nothing is blocked\n".to_owned();
    }
    let rows = answer.rules.iter().map(row).collect();
    draw(COLUMNS, rows, view.width)
}

fn row(view: &RuleView) -> Vec<Cell> {
    let rule = &view.rule;
    vec![
        rule.id.as_str().into(),
        targets(&rule.targets).into(),
        mode(rule.mode),
        matching(rule).into(),
        until(view.remaining_seconds).into(),
        count(view.counters.packets).into(),
        bytes(view.counters.bytes).into(),
        count(view.counters.replies).into(),
        view.owner.to_string().into(),
        rule.comment.as_deref().unwrap_or_default().into(),
    ]
}

/// A mode, in its colour: red drops or resets, yellow rejects, green passes.
fn mode(mode: Mode) -> Cell {
    let cell = Cell::from(mode.word());
    match mode {
        Mode::Reset => cell.color(Color::Red).bold(),
        Mode::Drop => cell.color(Color::Red),
        Mode::Reject => cell.color(Color::Yellow),
        Mode::Audit => cell.color(Color::Green),
    }
}

/// The maximum number of targets or exceptions that `show` lists.
const SHOWN: usize = 20;

/// One rule, one field a line. Only long lists of targets are truncated.
pub(crate) fn show(rule: &RuleView, view: View) -> String {
    let mut out = String::new();
    for (name, values) in fields(&rule.rule)
        .into_iter()
        .chain(circumstances(rule, view))
    {
        for (i, value) in values.iter().enumerate() {
            let name = if i == 0 { name } else { "" };
            // Writing to a String does not fail.
            let _ = writeln!(out, "{name:<14}{}", printable(value));
        }
    }
    out
}

/// Targets, one a line, up to [`SHOWN`].
fn one_by_one(list: &[Target]) -> Vec<String> {
    let shown = if list.len() > SHOWN + 1 {
        SHOWN
    } else {
        list.len()
    };
    let mut lines: Vec<_> = list[..shown].iter().map(ToString::to_string).collect();
    if list.len() > shown {
        let more = HumanCount((list.len() - shown) as u64);
        lines.push(format!("and {more} more: all of them by -o json"));
    }
    lines
}

fn fields(rule: &Rule) -> Vec<(&'static str, Vec<String>)> {
    let some = |text: String| {
        if text.is_empty() {
            Vec::new()
        } else {
            vec![text]
        }
    };
    vec![
        ("id", vec![rule.id.to_string()]),
        ("targets", one_by_one(&rule.targets)),
        ("except", one_by_one(&rule.except)),
        ("mode", vec![rule.mode.to_string()]),
        ("direction", vec![rule.matching.direction.to_string()]),
        ("protocol", vec![rule.matching.protocol.to_string()]),
        ("ports", some(commas(&rule.matching.ports))),
        ("local ports", some(commas(&rule.matching.local_ports))),
        ("remote ports", some(commas(&rule.matching.remote_ports))),
        (
            "local",
            rule.matching
                .local
                .iter()
                .map(ToString::to_string)
                .collect(),
        ),
        ("interfaces", some(rule.matching.interfaces.join(", "))),
        ("percent", vec![rule.matching.percent.to_string()]),
        ("established", vec![rule.established.to_string()]),
        ("on lift", vec![rule.on_lift.to_string()]),
        ("comment", some(rule.comment.clone().unwrap_or_default())),
    ]
}

fn circumstances(rule: &RuleView, view: View) -> Vec<(&'static str, Vec<String>)> {
    let ends = match (rule.rule.expires, rule.remaining_seconds) {
        (Some(at), Some(left)) => format!("{} ({} left)", moment(at), span(left)),
        (Some(at), None) => moment(at),
        (None, _) => "when lifted".to_owned(),
    };
    let age = span(seconds_between(rule.created, view.now));
    let mut replies = count(rule.counters.replies);
    if rule.counters.suppressed > 0 {
        let suppressed = count(rule.counters.suppressed);
        // Writing to a String does not fail.
        let _ = write!(replies, " ({suppressed} more left out by the rate limit)");
    }
    vec![
        ("owner", vec![rule.owner.to_string()]),
        (
            "created",
            vec![format!("{} ({age} ago)", moment(rule.created))],
        ),
        ("ends", vec![ends]),
        ("packets", vec![count(rule.counters.packets)]),
        ("bytes", vec![bytes(rule.counters.bytes)]),
        ("replies", vec![replies]),
    ]
}
