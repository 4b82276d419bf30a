//! `stats`.

use std::fmt::Write as _;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{count, moment, per_second};
use crate::rates::{HookRates, Rates, RuleRates};

const RULES: &[Column] = &[
    Column::new("RULE", Fit::Cut),
    Column::optional("MODE", Fit::Whole, 5),
    Column::new("PKT/S", Fit::Number),
    Column::new("BIT/S", Fit::Number),
    Column::optional("IN PKT/S", Fit::Number, 2),
    Column::optional("OUT PKT/S", Fit::Number, 2),
    Column::optional("REPLY/S", Fit::Number, 3),
    Column::optional("SUPPR/S", Fit::Number, 4),
    Column::optional("PACKETS", Fit::Number, 1),
];

const HOOKS: &[Column] = &[
    Column::new("INTERFACE", Fit::Whole),
    Column::new("HOOK", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::new("SEEN/S", Fit::Number),
    Column::new("PASSED/S", Fit::Number),
    Column::new("MALFORMED/S", Fit::Number),
];

/// The rates of an interval, the busiest rule first.
pub(crate) fn stats(rates: &Rates, view: View) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(out, "{}, over {:.2} s", moment(rates.at), rates.seconds);
    if rates.rules.is_empty() {
        out += "no rules: nothing is blocked\n";
    } else {
        let mut rules: Vec<&RuleRates> = rates.rules.iter().collect();
        rules.sort_by(|one, other| {
            let rate = |rule: &RuleRates| rule.both.packets_per_second;
            let busier = rate(other).total_cmp(&rate(one));
            busier.then_with(|| one.id.cmp(&other.id))
        });
        let rows = rules.into_iter().map(rule).collect();
        out += &draw(RULES, rows, view.width);
    }
    out.push('\n');
    out += &draw(HOOKS, rates.hooks.iter().map(hook).collect(), view.width);
    out
}

fn rule(rule: &RuleRates) -> Vec<Cell> {
    let both = rule.both;
    vec![
        rule.id.as_str().into(),
        rule.mode.as_str().into(),
        per_second(both.packets_per_second).into(),
        per_second(both.bits_per_second).into(),
        per_second(rule.ingress.packets_per_second).into(),
        per_second(rule.egress.packets_per_second).into(),
        per_second(both.replies_per_second).into(),
        per_second(both.suppressed_per_second).into(),
        count(rule.packets).into(),
    ]
}

fn hook(hook: &HookRates) -> Vec<Cell> {
    vec![
        hook.device.as_str().into(),
        hook.hook.as_str().into(),
        hook.mode.as_str().into(),
        per_second(hook.seen_per_second).into(),
        per_second(hook.passed_per_second).into(),
        per_second(hook.malformed_per_second).into(),
    ]
}
