//! Errors of lists and of their lines.

use std::io;

/// How many invalid lines are reported in full.
const TOLD: usize = 10;
/// How many characters of an invalid line are quoted.
const CLIP: usize = 60;

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The list cannot be read.
    #[error("cannot read the target list {name}: {source}")]
    Read {
        /// Its name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The list has invalid lines.
    #[error("{}", .bad.messages(name).join("\n"))]
    Invalid {
        /// Its name.
        name: String,
        /// The lines.
        bad: Bad,
    },
    /// The list has no target.
    #[error(
        "{name}: the list has no target{}: nothing would be blocked",
        of(skipped)
    )]
    Empty {
        /// Its name.
        name: String,
        /// The lines that were skipped.
        skipped: Bad,
    },
}

fn of(skipped: &Bad) -> String {
    match skipped.count {
        0 => String::new(),
        n => format!(" beside {n} bad lines"),
    }
}

impl ListError {
    /// The error as one line, which names at most three invalid lines.
    #[must_use]
    pub fn brief(&self) -> String {
        let Self::Invalid { name, bad } = self else {
            return self.to_string();
        };
        let some = Bad {
            count: bad.count,
            first: bad.first.iter().take(3).cloned().collect(),
        };
        some.messages(name).join("; ")
    }

    /// The error as messages of one line each.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Invalid { name, bad } => bad.messages(name),
            other => vec![other.to_string()],
        }
    }
}

/// The invalid lines of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bad {
    /// How many there are.
    pub count: u64,
    /// The first few of them.
    pub first: Vec<BadLine>,
}

/// An invalid line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub number: u64,
    /// Its text, clipped and without control characters.
    pub text: String,
    /// Why the line is invalid.
    pub reason: String,
}

impl Bad {
    pub(super) fn push(&mut self, number: u64, line: &[u8], reason: String) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(BadLine {
                number,
                text: clipped(line.trim_ascii()),
                reason,
            });
        }
    }

    /// Adds the invalid lines of a part that follows the first `lines` lines.
    pub(super) fn append(&mut self, part: Self, lines: u64) {
        self.count += part.count;
        let room = TOLD.saturating_sub(self.first.len());
        self.first
            .extend(part.first.into_iter().take(room).map(|line| BadLine {
                number: lines + line.number,
                ..line
            }));
    }

    fn messages(&self, name: &str) -> Vec<String> {
        let line = |line: &BadLine| {
            let BadLine {
                number,
                text,
                reason,
            } = line;
            // A reason that quotes the whole line needs no second quotation.
            match reason.contains(text.as_str()) {
                true => format!("{name}:{number}: {reason}"),
                false => format!("{name}:{number}: {reason}, in {text:?}"),
            }
        };
        let mut messages: Vec<_> = self.first.iter().map(line).collect();
        let told = messages.len() as u64;
        if self.count > told {
            messages.push(format!("{name}: {} more bad lines", self.count - told));
        }
        messages
    }
}

/// The beginning of a text, with spaces for control characters, which could control a terminal.
pub(super) fn clipped(text: &[u8]) -> String {
    // A UTF-8 character has at most four bytes. A character that is cut in two becomes U+FFFD.
    let start = &text[..text.len().min(4 * CLIP)];
    let whole = String::from_utf8_lossy(start);
    let mut clipped: String = whole.chars().take(CLIP).collect();
    if clipped.len() < whole.len() || start.len() < text.len() {
        clipped.push('…');
    }
    clipped.replace(char::is_control, " ")
}
