//! The report of a run: its steps, its blocks, and its result.

use std::path::Path;
use std::time::Duration;

use blocker::rule::RuleId;
use blocker::runbook::{Action, Runbook};
use blocker::wire::Status;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Serialize;

use super::block;
use super::plan;
use crate::evidence::Origin;
use crate::failure::Exit;
use crate::render::{printable, shortly};

/// Version of the report's format.
const VERSION: u32 = 1;

/// How the steps ended.
pub(super) enum Verdict {
    /// All succeeded.
    Passed,
    /// One failed: why, and the exit code.
    Failed(String, Exit),
    /// A signal came.
    Interrupted(Signal),
    /// A block ended before its lift: which one, and why.
    Lost(String),
    /// The deadline passed.
    Late,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It succeeded.
    Passed,
    /// It failed.
    Failed,
    /// The run was ended during it.
    Interrupted,
    /// It was not started.
    Skipped,
}

/// The result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Result {
    /// All checks succeeded, and all blocks were in force until their lift.
    Passed,
    /// A step failed, or the deadline passed.
    Failed,
    /// A signal ended it.
    Interrupted,
    /// A block ended before its lift.
    Lost,
    /// All checks succeeded, but some established flows were not killed.
    Partly,
}

/// A report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    file: String,
    #[serde(flatten)]
    origin: Origin,
    pub(crate) result: Result,
    exit_code: u8,
    /// Why the result is not `passed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    started: Timestamp,
    ended: Option<Timestamp>,
    pub(crate) steps: Vec<StepFacts>,
    blocks: Vec<block::Facts>,
}

/// A step and its outcome.
#[derive(Debug, Serialize)]
pub(crate) struct StepFacts {
    pub(crate) number: usize,
    /// Its line in the file.
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Its name, or its action.
    #[serde(skip)]
    title: String,
    pub(crate) action: &'static str,
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    pub(crate) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tries: Option<u32>,
    /// The rule that it put in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
}

impl Report {
    pub(super) fn new(runbook: &Runbook, file: &Path, status: Status) -> Self {
        let steps = runbook
            .steps
            .iter()
            .zip(1..)
            .map(|(step, number)| StepFacts {
                number,
                line: step.line,
                name: step.name.clone(),
                title: plan::title(step),
                action: step.action.word(),
                what: plan::what(step),
                expected: match &step.action {
                    Action::Check(check) => Some(check.probe.expected()),
                    _ => None,
                },
                outcome: Outcome::Skipped,
                found: None,
                tries: None,
                rule: None,
                started: None,
                ended: None,
            });
        Self {
            version: VERSION,
            name: runbook.name.clone(),
            description: runbook.description.clone(),
            file: file.display().to_string(),
            origin: Origin::new(status),
            result: Result::Passed,
            exit_code: Exit::Done as u8,
            why: None,
            started: Timestamp::now(),
            ended: None,
            steps: steps.collect(),
            blocks: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, index: usize) {
        self.steps[index].started = Some(Timestamp::now());
    }

    pub(super) fn blocked(&mut self, index: usize, rule: &RuleId) {
        self.steps[index].rule = Some(rule.clone());
    }

    pub(super) fn tried(&mut self, index: usize, tries: u32) {
        self.steps[index].tries = Some(tries);
    }

    pub(super) fn end(&mut self, index: usize, outcome: Outcome, found: Option<String>) {
        let step = &mut self.steps[index];
        step.ended = Some(Timestamp::now());
        step.outcome = outcome;
        step.found = found.map(|found| found.trim_end().to_owned());
    }

    pub(super) fn step(&self, index: usize) -> &StepFacts {
        &self.steps[index]
    }

    /// Records the end of the run, after every block was lifted.
    pub(super) fn over(&mut self, verdict: Verdict, blocks: Vec<block::Facts>) {
        self.ended = Some(Timestamp::now());
        self.blocks = blocks;
        let trouble = self.blocks.iter().find_map(block::Facts::trouble);
        let lost = self.blocks.iter().any(|block| !block.held_throughout());
        let (result, exit, why) = match verdict {
            Verdict::Passed if lost => (Result::Lost, Exit::Partly as u8, trouble),
            Verdict::Passed => match trouble {
                Some(left) => (Result::Partly, Exit::Partly as u8, Some(left)),
                None => (Result::Passed, Exit::Done as u8, None),
            },
            Verdict::Failed(why, exit) => (Result::Failed, exit as u8, Some(why)),
            Verdict::Lost(why) => (Result::Lost, Exit::Partly as u8, Some(why)),
            Verdict::Late => {
                let why = "the deadline of the runbook passed".to_owned();
                (Result::Failed, Exit::Failed as u8, Some(why))
            }
            Verdict::Interrupted(signal) => {
                let code = 128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(127));
                let why = format!("interrupted by {signal}");
                (Result::Interrupted, code, Some(why))
            }
        };
        self.result = result;
        self.exit_code = exit;
        self.why = why.map(|why| self.at(&why));
    }

    /// Why the run ended, and at which step.
    fn at(&self, why: &str) -> String {
        let ended =
            |step: &&StepFacts| matches!(step.outcome, Outcome::Failed | Outcome::Interrupted);
        let Some(step) = self.steps.iter().find(ended) else {
            return why.to_owned();
        };
        let place = format!(
            "step {} of {}, {}",
            step.number,
            self.steps.len(),
            step.title
        );
        match (&step.expected, step.outcome) {
            (Some(expected), Outcome::Failed) => {
                format!("{place}: expected {expected}; found {why}")
            }
            _ => format!("{place}: {why}"),
        }
    }

    pub(crate) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    pub(super) const fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Its duration in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let ended = self.ended.unwrap_or(self.started);
        ended.duration_since(self.started).as_secs_f64()
    }
}

impl StepFacts {
    /// Its duration in seconds, if it was started.
    pub(crate) fn seconds(&self) -> Option<f64> {
        Some(self.ended?.duration_since(self.started?).as_secs_f64())
    }

    /// The text that follows `ok` or `FAILED`.
    pub(super) fn told(&self) -> String {
        let Some(found) = self.found.as_deref() else {
            return String::new();
        };
        let tries = match (self.tries, self.seconds()) {
            (Some(tries @ 2..), Some(seconds)) => {
                let time = Duration::from_secs_f64(seconds);
                format!(" ({tries} tries in {})", shortly(time))
            }
            _ => String::new(),
        };
        match (&self.expected, self.outcome) {
            (Some(expected), Outcome::Failed) => {
                // A step without a name is already titled by its action.
                let what = self.name.as_ref().map(|_| printable(&self.what));
                let what = what.map_or(String::new(), |what| format!(": {what}"));
                let (expected, found) = (printable(expected), printable(found));
                format!("{what}\nexpected: {expected}\nfound:    {found}{tries}")
            }
            (Some(_), _) => format!(": {}{tries}", printable(found)),
            (None, _) => format!(": {found}"),
        }
    }
}
