//! Target lists: files with one address or prefix per line, as blocklists are published.
//!
//! The format is detected for each line:
//!
//! | format | a line |
//! |---|---|
//! | plain; FireHOL's `.netset` and `.ipset`; Spamhaus' `drop.txt` | a target; `#` and `;` begin a comment, on its own line or after the target |
//! | Spamhaus' `drop_v4.json` (NDJSON) | an object with a `cidr`; one whose `type` is `metadata` is ignored |
//!
//! Pure, except that [`List::load`], [`List::take`] and [`List::load_stdin`] read a file. A parsed
//! list is sorted, without duplicates and without targets that another target of the list covers:
//! these would take room in the datapath and change nothing. Neighbours are not merged into a wider
//! prefix, so that each target can be found and lifted as the list names it.

mod compact;
mod error;
mod line;
mod special;
mod summary;
#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::panic::resume_unwind;
use std::path::Path;

pub use error::{Bad, BadLine, ListError};
pub use special::{Special, is_special};

use serde::{Deserialize, Serialize};

use crate::rule::{RuleSpec, Target};

/// Lists below this size are parsed by one thread: starting a second one takes as long.
const MANY_BYTES: usize = 64 * 1024;

/// What happens to a list with invalid lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invalid {
    /// The list is refused.
    Refuse,
    /// The lines are left out and counted.
    Skip,
}

/// A parsed list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Its name in messages: a path, a feed's source, or "standard input".
    pub name: String,
    /// Its targets: sorted, none covering another. Empty only after [`List::give_to`].
    pub targets: Vec<Target>,
    /// How many targets were parsed and not left out.
    pub kept: u64,
    /// How many lines it has, comments and empty lines included.
    pub lines: u64,
    /// How many targets were left out as duplicates.
    pub duplicates: u64,
    /// How many targets were left out because another one covers them.
    pub covered: u64,
    /// Lines that were left out as invalid.
    pub skipped: Bad,
    /// Targets in private and special ranges, which a public blocklist is not expected to have.
    pub special: Special,
}

/// The result of parsing a part of a list.
#[derive(Default)]
struct Part {
    read: compact::Collected,
    bad: Bad,
    lines: u64,
}

impl Part {
    /// Parses lines, the last one without its newline. A second thread parses half of a long list.
    fn of(body: &[u8]) -> Self {
        let middle = body.len() / 2;
        let end = body[middle..].iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) if body.len() >= MANY_BYTES => {
                let (first, second) = (&body[..middle + end], &body[middle + end + 1..]);
                std::thread::scope(|scope| {
                    let second = scope.spawn(|| Self::of_lines(second));
                    let first = Self::of_lines(first);
                    first.and(second.join().unwrap_or_else(|panic| resume_unwind(panic)))
                })
            }
            _ if body.is_empty() => Self::default(),
            _ => Self::of_lines(body),
        }
    }

    fn of_lines(body: &[u8]) -> Self {
        let mut part = Self::default();
        for line in body.split(|byte| *byte == b'\n') {
            part.lines += 1;
            match line::target(line) {
                Ok(Some(target)) => part.read.push(target),
                Ok(None) => {}
                Err(reason) => part.bad.push(part.lines, line, reason),
            }
        }
        part.read.sort();
        part
    }

    /// Appends the part that follows this one.
    fn and(mut self, next: Self) -> Self {
        self.read.append(next.read);
        self.bad.append(next.bad, self.lines);
        self.lines += next.lines;
        self
    }
}

impl List {
    /// Parses a list; `name` is its name in messages.
    ///
    /// # Errors
    /// [`ListError::Invalid`] if lines are invalid, unless they are to be skipped;
    /// [`ListError::Empty`] if there is no target.
    pub fn parse(name: &str, bytes: &[u8], invalid: Invalid) -> Result<Self, ListError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes); // a byte order mark
        let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let Part { read, bad, lines } = Part::of(body);
        let name = name.to_owned();
        if bad.count > 0 && invalid == Invalid::Refuse {
            return Err(ListError::Invalid { name, bad });
        }
        let compact::Compacted {
            targets,
            duplicates,
            covered,
        } = read.compact();
        if targets.is_empty() {
            return Err(ListError::Empty { name, skipped: bad });
        }
        Ok(Self {
            special: Special::of(&targets),
            kept: targets.len() as u64,
            name,
            targets,
            lines,
            duplicates,
            covered,
            skipped: bad,
        })
    }

    /// Reads and parses a list's file.
    ///
    /// # Errors
    /// [`ListError::Read`], or as [`List::parse`].
    pub fn load(path: &Path, invalid: Invalid) -> Result<Self, ListError> {
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&name, &bytes, invalid),
            Err(source) => Err(ListError::Read { name, source }),
        }
    }

    /// Moves the targets of a rule's `targets_file` into the rule, and clears that field. A
    /// relative path starts at `directory`. Returns the list without its targets, or `None` if the
    /// rule names no file.
    ///
    /// # Errors
    /// As [`List::load`].
    pub fn take(
        spec: &mut RuleSpec,
        directory: &Path,
        invalid: Invalid,
    ) -> Result<Option<Self>, ListError> {
        let Some(path) = spec.targets_file.take() else {
            return Ok(None);
        };
        let mut list = Self::load(&directory.join(path), invalid)?;
        list.give_to(&mut spec.targets);
        Ok(Some(list))
    }

    /// Moves the list's targets to the end of `targets`.
    pub fn give_to(&mut self, targets: &mut Vec<Target>) {
        if targets.is_empty() {
            *targets = std::mem::take(&mut self.targets);
        } else {
            targets.append(&mut self.targets);
        }
    }

    /// Reads and parses a list from standard input.
    ///
    /// # Errors
    /// As [`List::load`].
    pub fn load_stdin(invalid: Invalid) -> Result<Self, ListError> {
        let name = "standard input";
        let mut bytes = Vec::new();
        match std::io::stdin().read_to_end(&mut bytes) {
            Ok(_) => Self::parse(name, &bytes, invalid),
            Err(source) => Err(ListError::Read {
                name: name.to_owned(),
                source,
            }),
        }
    }
}
