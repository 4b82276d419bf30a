//! All rules in force, by id.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::rule::{Owner, Rule, RuleId};

/// The rules in force.
pub type Ruleset = BTreeMap<RuleId, Entry>;

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The rule.
    pub rule: Rule,
    /// Who put it there.
    pub owner: Owner,
    /// When it was put there.
    pub created: Timestamp,
    /// `CLOCK_BOOTTIME` nanoseconds at which the datapath ends it.
    pub deadline: Option<u64>,
    /// Slot of its counters.
    pub counter: u32,
}
