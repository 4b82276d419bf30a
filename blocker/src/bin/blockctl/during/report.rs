//! The report of `during`.

use std::ffi::OsString;

use blocker::wire::{
    Account, Carved, DeleteResponse, FlowsResponse, Held, LiveFlow, RuleView, Status,
};
use jiff::Timestamp;
use serde::Serialize;

use super::command::Ended;
use crate::evidence::{AfterLift, AtEnd, Before, Origin, RuleFacts};
use crate::render::{self, View};

/// Version of the report's format.
const VERSION: u32 = 1;

/// A report.
#[derive(Serialize)]
pub(super) struct Report {
    version: u32,
    #[serde(flatten)]
    origin: Origin,
    lease: Option<String>,
    rule: Option<RuleFacts>,
    carved: Vec<Carved>,
    command: Option<CommandFacts>,
    times: Times,
    before: Before,
    /// The account of established flows when the block started.
    teardown: Option<Account>,
    at_end: Option<AtEnd>,
    after_lift: Option<AfterLift>,
    /// Whether the block was in force from its start to its lift.
    held_throughout: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

#[derive(Serialize)]
struct CommandFacts {
    arguments: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
}

#[derive(Default, Serialize)]
struct Times {
    asked: Option<Timestamp>,
    held: Option<Timestamp>,
    command_started: Option<Timestamp>,
    command_ended: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Timestamp>,
    lifted: Option<Timestamp>,
}

impl Report {
    pub(super) fn new(status: Status, flows: Vec<LiveFlow>) -> Self {
        Self {
            version: VERSION,
            origin: Origin::new(status),
            lease: None,
            rule: None,
            carved: Vec::new(),
            command: None,
            times: Times {
                asked: Some(Timestamp::now()),
                ..Times::default()
            },
            before: Before { flows },
            teardown: None,
            at_end: None,
            after_lift: None,
            held_throughout: false,
            lost: None,
        }
    }

    pub(super) fn held(&mut self, held: &Held) {
        self.times.held = Some(Timestamp::now());
        self.lease = Some(held.lease.clone());
        self.carved.clone_from(&held.carved);
        self.teardown = Some(held.teardown.clone());
        self.rule = held.rules.first().map(RuleFacts::new);
    }

    pub(super) fn started(&mut self, command: &[OsString]) {
        self.times.command_started = Some(Timestamp::now());
        let arguments = command
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        self.command = Some(CommandFacts {
            arguments: arguments.collect(),
            exit_code: None,
            signal: None,
        });
    }

    pub(super) fn ended(&mut self, ended: &Ended) {
        self.times.command_ended = Some(Timestamp::now());
        if let Some(command) = &mut self.command {
            match ended {
                Ended::Code(code) => command.exit_code = Some(*code),
                Ended::Signal(signal) => command.signal = Some(*signal),
            }
        }
    }

    /// Records that the block ended early.
    pub(super) fn lose(&mut self, why: String) {
        self.times.lost = Some(Timestamp::now());
        self.lost = Some(why);
    }

    pub(super) fn at_end(&mut self, seen: Option<RuleView>, flows: Option<FlowsResponse>) {
        match seen {
            Some(view) => {
                self.at_end = Some(AtEnd {
                    counters: view.counters,
                    flows,
                });
            }
            None if self.lost.is_none() => {
                self.lose("it could not be looked at before it was lifted".to_owned());
            }
            None => {}
        }
    }

    pub(super) fn lifted(&mut self, lifted: Option<&DeleteResponse>, flows: Option<FlowsResponse>) {
        if let Some(lifted) = lifted {
            self.times.lifted = Some(Timestamp::now());
            self.after_lift = Some(AfterLift {
                teardown: lifted.teardown.clone(),
                flows,
            });
            if lifted.removed.is_empty() && self.lost.is_none() {
                self.lose("the rule was gone when it was to be lifted".to_owned());
            }
        }
        self.held_throughout = self.lost.is_none();
    }

    /// Why the block ended early, if it did.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// The summary, as text.
    pub(super) fn summary(&self, view: View) -> String {
        let counters = self.at_end.as_ref().map(|end| end.counters);
        let killed = self.after_lift.as_ref().map(|after| &after.teardown);
        render::over(self.times.held, self.times.lifted, counters, killed, view)
    }
}
