//! A host's report, `PREFIX/hosts/NAME/status`, and its answers to questions. Pure.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::FleetRefusal;
use super::selector::Identity;
use crate::wire::{Account, TeardownTotals};

/// Version of the format of reports and answers.
pub const VERSION: u64 = 1;
/// A report has at most so many refusals, and changes with so many rules each: its size is bounded.
const REFUSALS: usize = 32;
const CHANGES: usize = 8;
const RULES: usize = 32;

/// A host's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// [`VERSION`].
    pub version: u64,
    /// Its name and labels.
    #[serde(flatten)]
    pub host: Identity,
    /// The daemon's version.
    pub blocker: String,
    /// When the daemon began to follow the fleet.
    pub started: Timestamp,
    /// When the report was written, by the host's clock.
    pub at: Timestamp,
    /// etcd's revision up to which all changes are applied.
    pub revision: i64,
    /// The number of the fleet's rules in force.
    pub rules: u64,
    /// The first refused rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<FleetRefusal>,
    /// The number of refused rules.
    pub refused_total: u64,
    /// The last changes that started rules, the oldest first.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub changes: VecDeque<Change>,
    /// The sum of all teardowns.
    pub teardowns: TeardownTotals,
    /// How far its clock was ahead of a writer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<i64>,
    /// Whether that is more than `max_skew`.
    pub skewed: bool,
    /// How many times it lost etcd since it started.
    pub losses: u64,
}

/// A change that started rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// etcd's revision.
    pub revision: i64,
    /// When it was in force, by the host's clock.
    pub at: Timestamp,
    /// The first of the rules.
    pub rules: Vec<String>,
    /// The result for established flows; absent while they are being killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<Killed>,
}

/// A teardown's account, without the flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Killed {
    /// Flows found.
    pub found: u64,
    /// Flows dead at both ends.
    pub killed: u64,
    /// Flows left.
    pub left: u64,
    /// Time taken, in milliseconds.
    pub elapsed_ms: f64,
}

impl From<&Account> for Killed {
    fn from(account: &Account) -> Self {
        Self {
            found: account.found,
            killed: account.killed,
            left: account.left.len() as u64,
            elapsed_ms: account.elapsed_ms,
        }
    }
}

/// A host's answer to a question, under `PREFIX/hosts/NAME/answers/ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u64,
    /// The host.
    pub host: String,
    /// Live flows that would be hit; absent if the rule would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<u64>,
    /// Why the rule would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl HostReport {
    /// The report of a host that has done nothing yet.
    #[must_use]
    pub fn new(host: Identity, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            host,
            blocker: env!("CARGO_PKG_VERSION").to_owned(),
            started: now,
            at: now,
            revision: 0,
            rules: 0,
            refused: Vec::new(),
            refused_total: 0,
            changes: VecDeque::new(),
            teardowns: TeardownTotals::default(),
            skew_ms: None,
            skewed: false,
            losses: 0,
        }
    }

    /// Records the rules that are refused now.
    pub fn refuse(&mut self, refused: &[FleetRefusal]) {
        self.refused_total = refused.len() as u64;
        self.refused = refused.iter().take(REFUSALS).cloned().collect();
    }

    /// Records a change that started rules.
    pub fn change(&mut self, revision: i64, started: &[String], now: Timestamp) {
        self.changes.push_back(Change {
            revision,
            at: now,
            rules: started.iter().take(RULES).cloned().collect(),
            teardown: None,
        });
        while self.changes.len() > CHANGES {
            self.changes.pop_front();
        }
    }

    /// Records the teardown of a change.
    pub fn killed(&mut self, revision: i64, account: &Account) {
        self.teardowns.add(account);
        let change = self.changes.iter_mut().find(|c| c.revision == revision);
        if let Some(change) = change {
            change.teardown = Some(account.into());
        }
    }

    /// The outcome for a rule that was written at `revision`; `None`: the host has not read it yet.
    #[must_use]
    pub fn outcome(&self, rule: &str, revision: i64) -> Option<Outcome> {
        if self.revision < revision {
            return None;
        }
        let refused = self.refused.iter().find(|r| r.rule == rule);
        if let Some(refused) = refused.filter(|r| r.revision >= revision) {
            return Some(Outcome::Refused(refused.why.clone()));
        }
        let named = |c: &&Change| c.revision >= revision && c.rules.iter().any(|r| r == rule);
        match self.changes.iter().rev().find(named) {
            Some(Change { teardown: None, .. }) => Some(Outcome::Killing),
            Some(Change { teardown, at, .. }) => Some(Outcome::Applied {
                at: Some(*at),
                teardown: *teardown,
            }),
            // It was in force already, or the change is no longer in the report.
            None => Some(Outcome::Applied {
                at: None,
                teardown: None,
            }),
        }
    }
}

/// The outcome for a rule on a host.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is in force, and established flows are being killed.
    Killing,
    /// It is in force.
    Applied {
        /// Since when, by the host's clock.
        at: Option<Timestamp>,
        /// The result for established flows.
        teardown: Option<Killed>,
    },
    /// The host refuses it, for this reason.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_became_of_a_rule() {
        let mut report = HostReport::new(Identity::default(), Timestamp::UNIX_EPOCH);
        report.revision = 4;
        assert_eq!(report.outcome("a", 5), None);
        report.revision = 5;
        report.change(5, &["a".to_owned()], Timestamp::UNIX_EPOCH);
        assert_eq!(report.outcome("a", 5), Some(Outcome::Killing));
        report.killed(
            5,
            &Account {
                found: 2,
                killed: 2,
                ..Account::default()
            },
        );
        let Some(Outcome::Applied {
            teardown: Some(killed),
            ..
        }) = report.outcome("a", 5)
        else {
            panic!("{report:?}")
        };
        assert_eq!((killed.found, killed.left), (2, 0));
        assert_eq!(report.teardowns.killed, 2);
        report.refuse(&[FleetRefusal {
            rule: "b".into(),
            revision: 6,
            why: "no".into(),
        }]);
        report.revision = 6;
        assert_eq!(report.outcome("b", 6), Some(Outcome::Refused("no".into())));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<HostReport>(&text).unwrap(), report);
    }

    #[test]
    fn a_report_is_small_whatever_there_is() {
        let mut report = HostReport::new(Identity::default(), Timestamp::UNIX_EPOCH);
        let rules: Vec<String> = (0..10_000).map(|n| format!("rule-{n}")).collect();
        let refused: Vec<FleetRefusal> = rules
            .iter()
            .map(|rule| FleetRefusal {
                rule: rule.clone(),
                revision: 1,
                why: "w".repeat(100),
            })
            .collect();
        report.refuse(&refused);
        for revision in 0..100 {
            report.change(revision, &rules, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(report.refused_total, 10_000);
        assert!(serde_json::to_string(&report).unwrap().len() < 12_000);
    }
}
