//! `explain`: the verdict, the hook, and the rules that were tried.

use std::fmt::Write as _;

use blocker::wire::{ExplainResponse, Explanation, Fate, Outcome, TriedRule};
use clap::builder::styling::Style;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{BAD, GOOD, WARN, printable, styled};

const COLUMNS: &[Column] = &[
    Column::new("RULE", Fit::Whole),
    Column::new("TARGET", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::new("RESULT", Fit::Whole),
    Column::optional("AT", Fit::Whole, 1),
    Column::filled("WHY", Fit::Wrap),
];

/// The verdict on a packet, and why.
pub(crate) fn explained(answer: &ExplainResponse, view: View) -> String {
    let mut out = headline(answer);
    out.push('\n');
    let alike = say_the_same(&answer.answers);
    for explanation in &answer.answers {
        let direction = explanation.direction.word();
        let place = place(explanation);
        // Writing to a String does not fail.
        let _ = if alike {
            writeln!(out, "  {direction:<8} {place}")
        } else {
            let what = what(explanation).join(",\n           else ");
            writeln!(out, "  {direction:<8} {what}, {place}")
        };
    }
    for spared in &answer.spared_by {
        let _ = writeln!(
            out,
            "spared by rule {}: it targets {} and excepts {}",
            spared.rule, spared.target, spared.except
        );
    }
    let mut notes: Vec<&String> = answer.answers.iter().flat_map(|a| &a.notes).collect();
    notes.dedup();
    for note in notes {
        let _ = writeln!(out, "note: {}", printable(note));
    }
    out + &tables(&answer.answers, view)
}

fn headline(answer: &ExplainResponse) -> String {
    let address = answer.address;
    let Some(first) = answer.answers.first() else {
        let text = format!("{address}: passed: no interface is attached, nothing is enforced");
        return styled(BAD, &text);
    };
    let text = if say_the_same(&answer.answers) {
        what(first).join(",\n  else ")
    } else {
        let fates = answer.answers.iter().map(|one| {
            let mut way = answer.answers.iter();
            let alone = way.all(|other| other == one || other.direction != one.direction);
            let on = if alone { String::new() } else { on(one) + " " };
            format!("{} {on}{}", one.direction, word(one.verdict))
        });
        fates.collect::<Vec<_>>().join(", ")
    };
    let certain = answer
        .answers
        .iter()
        .all(|one| one.verdict == first.verdict);
    let style = if certain { color(first.verdict) } else { WARN };
    styled(style, &format!("{address}: {text}"))
}

fn say_the_same(answers: &[Explanation]) -> bool {
    answers.iter().all(|one| what(one) == what(&answers[0]))
}

/// The verdict and the rule: `dropped by rule dev01 (10.1.0.0/16)`; if several rules may decide, all in
/// their order.
fn what(answer: &Explanation) -> Vec<String> {
    if let Some(why) = &answer.why {
        return vec![format!("{}: {}", word(answer.verdict), printable(why))];
    }
    let mut parts = Vec::new();
    let mut decided = false;
    for row in answer.rules.iter().filter(|row| row.hook.is_some()) {
        decided |= row.outcome == Outcome::Decides;
        let target = row.target.to_string();
        let why = printable(row.why.as_deref().unwrap_or(&target));
        parts.push(format!(
            "{} by rule {} ({why})",
            word(row.mode.into()),
            row.id
        ));
    }
    if !decided {
        parts.push(word(Fate::Passed).to_owned());
    }
    if answer.verdict == Fate::Depends {
        parts[0].insert_str(0, "depends: ");
    }
    parts
}

const fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Passed => "passed",
        Fate::Dropped => "dropped",
        Fate::Reset => "reset",
        Fate::Rejected => "rejected",
        Fate::Audited => "counted and passed",
        Fate::Depends => "depends",
    }
}

const fn color(fate: Fate) -> Style {
    match fate {
        Fate::Dropped | Fate::Reset | Fate::Rejected => BAD,
        Fate::Depends => WARN,
        Fate::Passed | Fate::Audited => GOOD,
    }
}

/// `at XDP on eth0, eth1`.
fn place(answer: &Explanation) -> String {
    let on = on(answer);
    match &answer.hook {
        Some(hook) => format!("at {} {on}", at(hook)),
        None => on,
    }
}

fn on(answer: &Explanation) -> String {
    format!("on {}", printable(&answer.interfaces.join(", ")))
}

/// A hook without its direction, which has a column of its own.
fn at(hook: &str) -> &str {
    match hook {
        "xdp" => "XDP",
        "tc-ingress" | "tc-egress" => "TC",
        other => other,
    }
}

/// One table for all answers whose rules have the same outcomes, except for the hook.
fn tables(answers: &[Explanation], view: View) -> String {
    let mut groups: Vec<Vec<&Explanation>> = Vec::new();
    for answer in answers.iter().filter(|answer| !answer.rules.is_empty()) {
        match groups.iter_mut().find(|group| fare_alike(group[0], answer)) {
            Some(group) => group.push(answer),
            None => groups.push(vec![answer]),
        }
    }
    let mut out = String::new();
    let several = groups.len() > 1;
    for group in groups {
        out.push('\n');
        if several {
            let heads = group.iter().map(|e| format!("{} {}", e.direction, on(e)));
            let _ = writeln!(out, "{}:", heads.collect::<Vec<_>>().join(", "));
        }
        let rows = (0..group[0].rules.len()).map(|place| row(&group, place));
        out += &draw(COLUMNS, rows.collect(), view.width);
    }
    out
}

fn fare_alike(one: &Explanation, other: &Explanation) -> bool {
    let bare = |row: &TriedRule| TriedRule {
        hook: None,
        ..row.clone()
    };
    one.rules.iter().map(bare).eq(other.rules.iter().map(bare))
}

fn row(group: &[&Explanation], place: usize) -> Vec<Cell> {
    let row = &group[0].rules[place];
    let mut hooks: Vec<&str> = Vec::new();
    for hook in group.iter().filter_map(|e| e.rules[place].hook.as_deref()) {
        if !hooks.contains(&at(hook)) {
            hooks.push(at(hook));
        }
    }
    vec![
        row.id.as_str().into(),
        row.target.into(),
        row.mode.into(),
        match row.outcome {
            Outcome::Decides => "decides",
            Outcome::Share => "takes a part",
            Outcome::Depends => "depends",
            Outcome::Shadowed => "shadowed",
            Outcome::NoMatch => "no match",
        }
        .into(),
        hooks.join(", ").into(),
        row.why.as_deref().unwrap_or_default().into(),
    ]
}

#[cfg(test)]
mod tests;
