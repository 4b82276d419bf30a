//! Runbooks: experiments as files. The steps are block, wait, check and lift.
//!
//! Owns the file format, how it is read, and its JSON Schema. Pure, except that it reads the file and
//! the target lists that its rules name; `blockctl run` carries it out. Errors name the file, the line
//! and the column, what was found and what is expected.

mod check;
mod document;
mod expect;
mod review;
mod schema;
#[cfg(test)]
mod tests;
mod values;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::{Check, Command, Http, Probe, Tcp};
pub use expect::{Connect, Text};
pub use schema::schema;
pub use values::Endpoint;

use crate::rule::{RuleId, RuleSpec};
use crate::yaml::{Fault, Source};
use document::Document;

/// The time limit of a run by default.
pub const DEADLINE: Duration = Duration::from_secs(3_600);

/// An experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Runbook {
    /// Its name. Default: the stem of the file name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The time limit of the whole run.
    pub deadline: Duration,
    /// The steps, in order. Not empty.
    pub steps: Vec<Step>,
}

/// A step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it is for, in the author's words.
    pub name: Option<String>,
    /// Its line in the file, from 1.
    pub line: u64,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Puts a rule in force until it is lifted or the run ends. It has no deadline of its own.
    Block(Box<RuleSpec>),
    /// Waits.
    Wait(Duration),
    /// Checks that something is as expected. If it is not, the run ends.
    Check(Box<Check>),
    /// Lifts a block, or all.
    Lift(Lift),
}

impl Action {
    /// The key that names it in the file.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Wait(_) => "wait",
            Self::Check(_) => "check",
            Self::Lift(_) => "lift",
        }
    }
}

/// Which block is lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lift {
    /// Every one.
    All,
    /// That of this id.
    One(RuleId),
}

/// Why a runbook cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RunbookError {
    /// The file cannot be read.
    #[error("cannot read the runbook {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The text is not valid.
    #[error(transparent)]
    Invalid(#[from] Fault),
}

impl Runbook {
    /// Reads a runbook from text; `name` is its path, for errors. Also reads the target lists that its
    /// rules name; relative paths start at the directory of `name`.
    ///
    /// # Errors
    /// The first thing that is wrong with it or a list, and where.
    pub fn parse(text: &str, name: &str) -> Result<Self, RunbookError> {
        let source = Source { text, name };
        let says_nothing = |line: &str| line.trim().is_empty() || line.trim().starts_with('#');
        if text.lines().all(says_nothing) {
            let place = serde_yaml::Location::UNKNOWN;
            return Err(source.fault(place, "found nothing, expected steps").into());
        }
        let options = serde_yaml::options! { with_snippet: false };
        let document: Document = serde_yaml::from_str_with_options(text, options)
            .map_err(|error| source.unread(&error))?;
        Ok(review::review(document, source)?)
    }

    /// Reads a runbook's file.
    ///
    /// # Errors
    /// If the file cannot be read or is not UTF-8 text, or as [`Runbook::parse`].
    pub fn load(path: &Path) -> Result<Self, RunbookError> {
        let bytes = std::fs::read(path).map_err(|source| RunbookError::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path.display().to_string();
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &name),
            Err(error) => {
                Err(Fault::not_text(&bytes, error.valid_up_to(), name, "a runbook").into())
            }
        }
    }
}
