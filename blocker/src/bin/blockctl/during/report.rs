//! The evidence: what was blocked, from when to when, and what became of whom.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use blocker::api::types::{
    Account, Carved, Counters, DeleteResponse, FlowsResponse, Held, LiveFlow, RuleView, Status,
};
use blocker::rule::{Mode, Rule, RuleId};
use jiff::Timestamp;
use serde::Serialize;
use tempfile::NamedTempFile;

use super::command::Ended;
use crate::failure::Failure;
use crate::render::{self, View};

/// Version of the form of a report.
const VERSION: u32 = 1;
/// So many targets are named; a rule may have a million.
const TARGETS: usize = 1_000;

/// A report.
#[derive(Serialize)]
pub(super) struct Report {
    version: u32,
    host: String,
    kernel: String,
    blockctl: &'static str,
    blocker: String,
    lease: Option<String>,
    rule: Option<RuleFacts>,
    carved: Vec<Carved>,
    command: Option<CommandFacts>,
    times: Times,
    before: Before,
    /// What became of established flows when the block began.
    teardown: Option<Account>,
    at_end: Option<AtEnd>,
    after_lift: Option<AfterLift>,
    /// Whether the block held from its beginning to its lift.
    held_throughout: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

#[derive(Serialize)]
struct RuleFacts {
    id: RuleId,
    mode: Mode,
    /// The first of them.
    targets: Vec<String>,
    targets_total: usize,
    rule: Rule,
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

#[derive(Serialize)]
struct Before {
    /// The live flows that the block was to kill, or would have killed with `--established kill`.
    flows: Vec<LiveFlow>,
}

#[derive(Serialize)]
struct AtEnd {
    counters: Counters,
    flows: Option<FlowsResponse>,
}

#[derive(Serialize)]
struct AfterLift {
    /// What became of the blocked flows.
    teardown: Account,
    flows: Option<FlowsResponse>,
}

impl Report {
    pub(super) fn new(status: Status, flows: Vec<LiveFlow>) -> Self {
        let host =
            nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned());
        Self {
            version: VERSION,
            host: host.unwrap_or_default(),
            kernel: status.kernel,
            blockctl: env!("CARGO_PKG_VERSION"),
            blocker: status.version,
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
        self.rule = held.rules.first().map(|rule| RuleFacts {
            id: rule.id.clone(),
            mode: rule.mode,
            targets: rule
                .targets
                .iter()
                .take(TARGETS)
                .map(ToString::to_string)
                .collect(),
            targets_total: rule.targets.len(),
            rule: Rule {
                targets: Default::default(),
                ..rule.clone()
            },
        });
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

    /// The block is over before its time.
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

    /// Why the block did not hold to its end, if so.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// What it comes to, for people.
    pub(super) fn summary(&self, view: View) -> String {
        let counters = self.at_end.as_ref().map(|end| end.counters);
        let killed = self.after_lift.as_ref().map(|after| &after.teardown);
        render::over(self.times.held, self.times.lifted, counters, killed, view)
    }
}

/// The file of a report: made before anything is blocked, in place once it is whole.
pub(super) struct ReportFile {
    path: PathBuf,
    file: Option<NamedTempFile>,
}

impl ReportFile {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let file = NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
        Ok(Self {
            path: path.to_owned(),
            file: Some(file.map_err(|error| unwritable(path, &error))?),
        })
    }

    pub(super) fn write(&mut self, report: &Report) -> Result<(), Failure> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| unwritable(&self.path, &error.into()))?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.as_file().sync_all());
        written.map_err(|error| unwritable(&self.path, &error))?;
        let kept = file.persist(&self.path);
        kept.map_err(|error| unwritable(&self.path, &error.error))?;
        Ok(())
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Output(format!(
        "the report {} cannot be written: {error}",
        path.display()
    ))
}
