//! Errors of a configuration.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use serde_yaml::{Error as YamlError, Location};

use crate::yaml::{self, Fault};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {}", path.display(), reason(.source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The text is not valid.
    #[error(transparent)]
    Invalid(#[from] Fault),
    /// A rule that was not read from text is wrong.
    #[error("rule {number} of the configuration: {source}")]
    Rule {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: crate::rule::RuleError,
    },
    /// The configuration cannot be printed.
    #[error("cannot print the configuration as YAML: {0}")]
    Print(String),
}

/// Why reading failed, and what to do.
fn reason(error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: create it (an empty one gives the defaults), or name another"
                .into()
        }
        io::ErrorKind::IsADirectory => "it is a directory: name the file in it".into(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: run as root, or as a user who may read it".into()
        }
        _ => error.to_string().into(),
    }
}

impl ConfigError {
    /// The error of a file whose text ends at byte `valid`.
    pub(super) fn not_text(bytes: &[u8], valid: usize, name: String) -> Self {
        Fault::not_text(bytes, valid, name, "the configuration").into()
    }
}

/// A configuration's text and its name, for errors.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Source<'a> {
    /// An error at a place in the text.
    pub(super) fn error(self, location: Location, message: impl AsRef<str>) -> ConfigError {
        self.yaml().fault(location, message).into()
    }

    /// An error of the YAML reader.
    pub(super) fn yaml_error(self, error: &YamlError) -> ConfigError {
        self.yaml().unread(error).into()
    }

    /// The same, for modules that know only YAML.
    pub(super) fn yaml(self) -> yaml::Source<'a> {
        let Self { text, name } = self;
        yaml::Source { text, name }
    }
}
