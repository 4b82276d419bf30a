//! What can be wrong with a configuration, and how it is shown: file, line, column, what was
//! found, what is expected, and the lines around.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use serde_yaml::{Error as YamlError, Location, MessageFormatter as _, UserMessageFormatter};

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
    /// The file is no UTF-8 text.
    #[error(
        "{name}:{line}:{column}: byte 0x{byte:02x} is not UTF-8: the configuration must be UTF-8 text"
    )]
    NotText {
        /// The file.
        name: String,
        /// Line of the first byte that is not, from 1.
        line: u64,
        /// Its column in characters, from 1.
        column: u64,
        /// The byte.
        byte: u8,
    },
    /// Something in the text is wrong.
    #[error("{name}:{line}:{column}: {message}{snippet}")]
    Invalid {
        /// The file.
        name: String,
        /// The line, from 1.
        line: u64,
        /// The column in characters, from 1.
        column: u64,
        /// What was found, and what is expected.
        message: String,
        /// The lines around, each after a line break.
        snippet: String,
    },
    /// A rule that was not read from text is wrong.
    #[error("rule {number} of the configuration: {source}")]
    Rule {
        /// Which one, from 1.
        number: usize,
        /// What is wrong.
        source: crate::rule::RuleError,
    },
    /// The configuration cannot be printed.
    #[error("cannot print the configuration as YAML: {0}")]
    Print(String),
}

/// The reason of a failed read, with the way out where there is one.
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
        let before = String::from_utf8_lossy(&bytes[..valid]);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self::NotText {
            name,
            line: 1 + before.matches('\n').count() as u64,
            column: 1 + before[line_start..].chars().count() as u64,
            byte: bytes.get(valid).copied().unwrap_or(0),
        }
    }
}

/// A configuration's text and its name, from which errors are made.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) name: &'a str,
}

/// Lines shown before the one that an error names.
const LINES_BEFORE: u64 = 2;
/// Columns shown of a long line, half of them before the error.
const COLUMNS: usize = 100;

impl Source<'_> {
    /// An error at a place in the text.
    pub(super) fn error(self, location: Location, message: impl AsRef<str>) -> ConfigError {
        let (line, column) = (location.line().max(1), location.column().max(1));
        ConfigError::Invalid {
            name: self.name.to_owned(),
            line,
            column,
            message: printable(message.as_ref()),
            snippet: self.snippet(line, column, location.span().len()),
        }
    }

    /// An error of the YAML reader, in words for who writes the file.
    pub(super) fn yaml_error(self, error: &YamlError) -> ConfigError {
        let error = error.without_snippet();
        let location = error.location().unwrap_or(Location::UNKNOWN);
        let found = self.at(location);
        let message = match error {
            YamlError::Unexpected { expected, .. } => {
                let expected = match *expected {
                    "sequence start" => "a list, such as [one, two]",
                    "mapping start" => "a mapping, such as key: value",
                    "scalar" | "string scalar" => "a single value",
                    other => other,
                };
                format!("found {found}, expected {expected}")
            }
            YamlError::InvalidScalar { ty, .. } => format!("found {found}, expected a valid {ty}"),
            YamlError::MultipleDocuments { .. } => {
                "found a second YAML document (after ---), expected one only".to_owned()
            }
            YamlError::SerdeUnknownField {
                field, expected, ..
            } => format!(
                "unknown key {field:?}, expected one of {}",
                expected.join(", ")
            ),
            YamlError::SerdeUnknownVariant {
                variant, expected, ..
            } => format!("found {variant:?}, expected one of {}", expected.join(", ")),
            YamlError::SerdeMissingField { field, .. } => {
                format!("the key {field:?} is missing here")
            }
            YamlError::SerdeInvalidType {
                unexpected,
                expected,
                ..
            }
            | YamlError::SerdeInvalidValue {
                unexpected,
                expected,
                ..
            } => format!("found {unexpected}, expected {expected}"),
            other => UserMessageFormatter.format_message(other).into_owned(),
        };
        self.error(location, message)
    }

    /// What stands at a place, in quotes; its first line, cut if long.
    fn at(self, location: Location) -> String {
        let line = self.line(location.line());
        let start = usize::try_from(location.column().saturating_sub(1)).unwrap_or(0);
        let length = usize::try_from(location.span().len()).unwrap_or(0).max(1);
        let text: String = line.chars().skip(start).take(length.min(60)).collect();
        match text.trim_end() {
            "" => "nothing".to_owned(),
            text => format!("{text:?}"),
        }
    }

    fn line(&self, number: u64) -> &str {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        self.text.lines().nth(index).unwrap_or("")
    }

    fn snippet(self, line: u64, column: u64, length: u64) -> String {
        let first = line.saturating_sub(LINES_BEFORE).max(1);
        let skip = usize::try_from(first - 1).unwrap_or(usize::MAX);
        let column = usize::try_from(column - 1).unwrap_or(0);
        let from = column.saturating_sub(COLUMNS / 2);
        let width = line.to_string().len();
        let mut snippet = String::new();
        for (number, text) in (first..=line).zip(self.text.lines().skip(skip)) {
            let shown: String = printable(text).chars().skip(from).take(COLUMNS).collect();
            let _ = write!(snippet, "\n{number:>width$} | {}", shown.trim_end());
        }
        let length = usize::try_from(length).unwrap_or(1);
        let carets = "^".repeat(length.clamp(1, COLUMNS / 2));
        let _ = write!(
            snippet,
            "\n{:width$} | {:indent$}{carets}",
            "",
            "",
            indent = column - from
        );
        snippet
    }
}

/// Text that moves no cursor: control characters become blanks.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}
