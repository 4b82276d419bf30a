//! The state of `top`: rates, their history, and the sort order. Pure.

use std::collections::{BTreeMap, VecDeque};

use blocker::wire::{FlowView, Stats};

use crate::rates::{self, Rates, RuleRates};

/// The number of intervals in a history: as many as the widest terminal shows.
const HISTORY: usize = 400;

/// The order of rules and flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Packets a second.
    #[default]
    Packets,
    /// Bits a second.
    Bits,
    /// Packets since the rule was put in force.
    Total,
    /// The rule's name.
    Rule,
}

impl Sort {
    /// The next key; the first follows the last.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Packets => Self::Bits,
            Self::Bits => Self::Total,
            Self::Total => Self::Rule,
            Self::Rule => Self::Packets,
        }
    }

    /// Its name in the help line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Packets => "pkt/s",
            Self::Bits => "bit/s",
            Self::Total => "packets",
            Self::Rule => "rule",
        }
    }
}

/// Packets a second, the latest last.
pub(super) type History = VecDeque<f64>;

/// A flow and its rates.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FlowRates {
    pub(super) flow: FlowView,
    pub(super) packets_per_second: f64,
    pub(super) bits_per_second: f64,
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Model {
    last: Option<Stats>,
    last_flows: Vec<FlowView>,
    rates: Option<Rates>,
    flows: Vec<FlowRates>,
    histories: BTreeMap<String, History>,
    /// Of all rules together.
    pub(super) total: History,
    /// The order.
    pub(super) sort: Sort,
    /// Whether the display is paused.
    pub(super) paused: bool,
    /// The number of rules above the first one that is shown.
    pub(super) offset: usize,
}

impl Model {
    /// Takes new totals.
    pub(super) fn take(&mut self, stats: Stats, flows: Vec<FlowView>) {
        if let Some(before) = &self.last {
            let rates = rates::between(before, &stats);
            self.histories
                .retain(|id, _| rates.rules.iter().any(|rule| rule.id == *id));
            for rule in &rates.rules {
                let history = self.histories.entry(rule.id.clone()).or_default();
                remember(history, rule.both.packets_per_second);
            }
            let all = rates.rules.iter().map(|rule| rule.both.packets_per_second);
            remember(&mut self.total, all.sum());
            self.flows = flow_rates(&self.last_flows, &flows, rates.seconds);
            self.rates = Some(rates);
            self.scroll(0);
        }
        self.last = Some(stats);
        self.last_flows = flows;
    }

    /// The rates of the last interval; `None` before the first interval ends.
    pub(super) const fn rates(&self) -> Option<&Rates> {
        self.rates.as_ref()
    }

    /// The rules, sorted.
    pub(super) fn rules(&self) -> Vec<&RuleRates> {
        let mut rules: Vec<&RuleRates> = self.rates.iter().flat_map(|rates| &rates.rules).collect();
        rules.sort_by(|one, other| {
            let by = match self.sort {
                Sort::Packets => {
                    let rate = |rule: &RuleRates| rule.both.packets_per_second;
                    rate(other).total_cmp(&rate(one))
                }
                Sort::Bits => {
                    let rate = |rule: &RuleRates| rule.both.bits_per_second;
                    rate(other).total_cmp(&rate(one))
                }
                Sort::Total => other.packets.cmp(&one.packets),
                Sort::Rule => std::cmp::Ordering::Equal,
            };
            by.then_with(|| one.id.cmp(&other.id))
        });
        rules
    }

    /// The flows, sorted.
    pub(super) fn flows(&self) -> Vec<&FlowRates> {
        let mut flows: Vec<&FlowRates> = self.flows.iter().collect();
        flows.sort_by(|one, other| {
            let by = match self.sort {
                Sort::Packets => other.packets_per_second.total_cmp(&one.packets_per_second),
                Sort::Bits => other.bits_per_second.total_cmp(&one.bits_per_second),
                Sort::Total => std::cmp::Ordering::Equal,
                Sort::Rule => one.flow.rule.cmp(&other.flow.rule),
            };
            by.then_with(|| other.flow.packets.cmp(&one.flow.packets))
        });
        flows
    }

    /// The history of a rule.
    pub(super) fn history(&self, id: &str) -> Option<&History> {
        self.histories.get(id)
    }

    /// Scrolls the rules by a number of lines, within their number.
    pub(super) fn scroll(&mut self, lines: isize) {
        let rules = self.rates.as_ref().map_or(0, |rates| rates.rules.len());
        let last = rules.saturating_sub(1);
        self.offset = self.offset.saturating_add_signed(lines).min(last);
    }
}

fn remember(history: &mut History, rate: f64) {
    history.push_back(rate);
    if history.len() > HISTORY {
        history.pop_front();
    }
}

fn flow_rates(before: &[FlowView], now: &[FlowView], seconds: f64) -> Vec<FlowRates> {
    let same = |one: &FlowView, other: &FlowView| {
        let ends = |flow: &FlowView| (flow.remote, flow.remote_port, flow.local, flow.local_port);
        ends(one) == ends(other) && one.protocol == other.protocol && one.rule == other.rule
    };
    let rates = now.iter().map(|flow| {
        let old = before.iter().find(|old| same(old, flow));
        // A record that was replaced and created again starts at 0.
        let since = |now: u64, old: Option<u64>| {
            let old = old.unwrap_or(0);
            now.checked_sub(old).unwrap_or(now) as f64 / seconds
        };
        FlowRates {
            packets_per_second: since(flow.packets, old.map(|old| old.packets)),
            bits_per_second: 8.0 * since(flow.bytes, old.map(|old| old.bytes)),
            flow: flow.clone(),
        }
    });
    rates.collect()
}
