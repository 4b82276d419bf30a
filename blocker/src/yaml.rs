//! What all YAML files that people write have in common: errors that name the file, the line and the
//! column, what was found and what is expected, and show the lines around; and absolute paths.
//!
//! What a file may say is defined by its own module.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};
use serde_yaml::{Error as YamlError, Location, MessageFormatter as _, UserMessageFormatter};

/// An error at a position of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub name: String,
    /// The line, from 1.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: u64,
    /// What was found, and what is expected.
    pub message: String,
    /// The lines around it, each after a line break.
    pub snippet: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            line,
            column,
            message,
            snippet,
        } = self;
        write!(f, "{name}:{line}:{column}: {message}{snippet}")
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// The fault of a file that is not UTF-8 after byte `valid`; `what` names the file.
    pub(crate) fn not_text(bytes: &[u8], valid: usize, name: String, what: &str) -> Self {
        let before = String::from_utf8_lossy(&bytes[..valid]);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let byte = bytes.get(valid).copied().unwrap_or(0);
        Self {
            name,
            line: 1 + before.matches('\n').count() as u64,
            column: 1 + before[line_start..].chars().count() as u64,
            message: format!("byte 0x{byte:02x} is not UTF-8: {what} must be UTF-8 text"),
            snippet: String::new(),
        }
    }
}

/// A file's text and its name, for faults.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) text: &'a str,
    pub(crate) name: &'a str,
}

/// How many lines are shown before the line of a fault.
const LINES_BEFORE: u64 = 2;
/// How many columns are shown of a long line, half of them before the fault.
const COLUMNS: usize = 100;

impl Source<'_> {
    /// A fault at a position in the text.
    pub(crate) fn fault(self, location: Location, message: impl AsRef<str>) -> Fault {
        let (line, column) = (location.line().max(1), location.column().max(1));
        Fault {
            name: self.name.to_owned(),
            line,
            column,
            message: printable(message.as_ref()),
            snippet: self.snippet(line, column, location.span().len()),
        }
    }

    /// An error of the YAML parser, in terms of the file.
    pub(crate) fn unread(self, error: &YamlError) -> Fault {
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
        self.fault(location, message)
    }

    /// The text at a position, in quotes: its first line, shortened if long.
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

/// Reads an absolute path: a relative one would depend on the daemon's working directory.
pub(crate) fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = PathBuf::from(&text);
    if !path.is_absolute() {
        return Err(de::Error::custom(format!(
            "path {text:?} is not valid: expected an absolute path, beginning with /"
        )));
    }
    Ok(path)
}

/// As [`absolute`], or nothing.
pub(crate) fn absolute_if_any<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    absolute(deserializer).map(Some)
}

/// Text without control characters: each becomes a blank.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// The YAML examples in a Markdown document.
#[cfg(test)]
pub(crate) fn examples(document: &str) -> Vec<&str> {
    let begun = document.split("```yaml\n").skip(1);
    begun.filter_map(|rest| rest.split("```").next()).collect()
}
