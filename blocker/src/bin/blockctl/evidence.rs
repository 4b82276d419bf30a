//! The parts that the reports of `during` and `run` share, and the file of a report.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use blocker::rule::{Mode, Rule, RuleId};
use blocker::wire::{Account, Counters, FlowsResponse, LiveFlow, Status};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// The maximum number of targets in a report; a rule may have a million.
const TARGETS: usize = 1_000;

/// The host and the versions that a report is from.
#[derive(Debug, Serialize)]
pub(crate) struct Origin {
    host: String,
    kernel: String,
    blockctl: &'static str,
    blocker: String,
}

impl Origin {
    /// This host, and the daemon of this status.
    pub(crate) fn new(status: Status) -> Self {
        let host =
            nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned());
        Self {
            host: host.unwrap_or_default(),
            kernel: status.kernel,
            blockctl: env!("CARGO_PKG_VERSION"),
            blocker: status.version,
        }
    }
}

/// A rule, as it was put in force.
#[derive(Debug, Serialize)]
pub(crate) struct RuleFacts {
    pub(crate) id: RuleId,
    pub(crate) mode: Mode,
    /// The first [`TARGETS`].
    pub(crate) targets: Vec<String>,
    pub(crate) targets_total: usize,
    rule: Rule,
}

impl RuleFacts {
    /// Copies what a report contains of a rule.
    pub(crate) fn new(rule: &Rule) -> Self {
        let targets = rule.targets.iter().take(TARGETS);
        Self {
            id: rule.id.clone(),
            mode: rule.mode,
            targets: targets.map(ToString::to_string).collect(),
            targets_total: rule.targets.len(),
            rule: Rule {
                targets: Default::default(),
                ..rule.clone()
            },
        }
    }
}

/// The state before a block.
#[derive(Debug, Serialize)]
pub(crate) struct Before {
    /// The flows that the block was to kill, or would have killed with `--established kill`.
    pub(crate) flows: Vec<LiveFlow>,
}

/// The counters and flows of a block at its lift.
#[derive(Debug, Serialize)]
pub(crate) struct AtEnd {
    pub(crate) counters: Counters,
    pub(crate) flows: Option<FlowsResponse>,
}

/// The state after a block.
#[derive(Debug, Serialize)]
pub(crate) struct AfterLift {
    /// The account of the blocked flows.
    pub(crate) teardown: Account,
    pub(crate) flows: Option<FlowsResponse>,
}

/// The file of a report: created before anything is blocked, and renamed when it is complete.
pub(crate) struct ReportFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl ReportFile {
    /// Creates a temporary file in the directory of `path`.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let file = NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|error| unwritable(path, &error))?,
        })
    }

    /// Writes the report, and renames the file to its path.
    pub(crate) fn write(mut self, report: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| unwritable(&self.path, &error.into()))?;
        let file = &mut self.file;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.as_file().sync_all());
        written.map_err(|error| unwritable(&self.path, &error))?;
        let kept = self.file.persist(&self.path);
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
