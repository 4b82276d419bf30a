//! Runbooks: experiments as files, step by step: block, wait, check, lift.
//!
//! Owns what such a file may say, how it is read, and its JSON Schema. Pure but for reading the file
//! and the target lists that its rules name: `blockctl run` carries it out. Every error names the
//! file, the line and the column, what was found there and what is expected, as those of the
//! configuration do.

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

/// How long a run may take at most, if the file does not say.
pub const DEADLINE: Duration = Duration::from_secs(3_600);

/// An experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Runbook {
    /// What it is called: the file's stem, if the file does not say.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// How long the run may take, all in all.
    pub deadline: Duration,
    /// What is done, one after the other. Not empty.
    pub steps: Vec<Step>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it is for, in the author's words.
    pub name: Option<String>,
    /// Where it stands in the file, from 1.
    pub line: u64,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Puts a rule in force, until it is lifted or the run is over. It has no deadline of its own.
    Block(Box<RuleSpec>),
    /// Lets time pass.
    Wait(Duration),
    /// Looks whether something is as it should be; the run ends where it is not.
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

/// What is wrong with a runbook.
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
    /// Something in the text is wrong.
    #[error(transparent)]
    Invalid(#[from] Fault),
}

impl Runbook {
    /// Reads a runbook from text; `name`, its path, names it in errors. The target lists that its
    /// rules name are read, too; relative paths start at the directory of `name`.
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
