//! `flows`.

use std::fmt::Write as _;

use blocker::wire::{Decision, FlowView, FlowsResponse};
use comfy_table::Color;
use jiff::Timestamp;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{WARN, bytes, count, endpoint, many, seconds_between, span, styled};

const COLUMNS: &[Column] = &[
    Column::new("PROTO", Fit::Whole),
    Column::new("REMOTE", Fit::Whole),
    Column::new("LOCAL", Fit::Whole),
    Column::new("RULE", Fit::Cut),
    Column::optional("VERDICT", Fit::Whole, 1),
    Column::optional("PACKETS", Fit::Number, 2),
    Column::optional("LAST", Fit::Number, 3),
    Column::optional("BYTES", Fit::Number, 5),
    Column::optional("FIRST", Fit::Number, 6),
    Column::optional("DEVICE", Fit::Whole, 4),
    Column::optional("HOOK", Fit::Whole, 7),
];

/// The flows that rules decided, one a line, and the numbers of those that are missing.
pub(crate) fn flows(answer: &FlowsResponse, view: View) -> String {
    let mut out = if !answer.recording {
        "flows are not recorded: limits.flows is 0\n".to_owned()
    } else if answer.flows.is_empty() {
        "no such flow was recorded\n".to_owned()
    } else {
        let rows = answer.flows.iter().map(|flow| row(flow, view.now));
        draw(COLUMNS, rows.collect(), view.width)
    };
    for (number, noun, what) in [
        (
            answer.truncated,
            "more flow",
            "left out: --limit shows more",
        ),
        (
            answer.evicted,
            "flow",
            "replaced by newer ones (limits.flows)",
        ),
        (
            answer.not_recorded,
            "packet",
            "not recorded: too many new flows at once",
        ),
    ] {
        if number > 0 {
            let text = format!("{} {what}", many(number, noun));
            // Writing to a String does not fail.
            let _ = writeln!(out, "{}", styled(WARN, &text));
        }
    }
    out
}

fn row(flow: &FlowView, now: Timestamp) -> Vec<Cell> {
    let ago = |at| format!("{} ago", span(seconds_between(at, now)));
    let end = |address, port| endpoint(address, port, &flow.protocol);
    let rule = flow.rule.as_ref().map_or("?", |rule| rule.as_str());
    vec![
        flow.protocol.as_str().into(),
        end(flow.remote, flow.remote_port).into(),
        end(flow.local, flow.local_port).into(),
        rule.into(),
        verdict(flow.last_verdict),
        count(flow.packets).into(),
        ago(flow.last_seen).into(),
        bytes(flow.bytes).into(),
        ago(flow.first_seen).into(),
        flow.interface.as_str().into(),
        flow.hook.as_str().into(),
    ]
}

/// A verdict, in the colour of its mode.
fn verdict(verdict: Decision) -> Cell {
    let cell = Cell::from(verdict.word());
    match verdict {
        Decision::Reset => cell.color(Color::Red).bold(),
        Decision::Dropped | Decision::Suppressed => cell.color(Color::Red),
        Decision::Rejected => cell.color(Color::Yellow),
        Decision::Audited => cell.color(Color::Green),
    }
}

#[cfg(test)]
mod tests;
