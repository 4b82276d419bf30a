//! Target lists: files with an address or prefix a line, as blocklists are published.
//!
//! The forms are told apart line by line, so no file has to say which it is:
//!
//! | form | a line |
//! |---|---|
//! | plain; FireHOL's `.netset` and `.ipset`; Spamhaus' `drop.txt` | a target; `#` and `;` begin a comment, at the start or behind it |
//! | Spamhaus' `drop_v4.json` (NDJSON) | an object with a `cidr`; one whose `type` is `metadata` is ignored |
//!
//! Pure but for [`List::load`] and its like, which read the file. What comes out is sorted. Of targets that are written twice, and
//! of those that another target of the same list covers, only one is left: they would take room in
//! the datapath and change nothing. Neighbours are not merged into a wider prefix, so that every
//! target is still one that stands in the list, and can be found and lifted by that name.

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

/// Reading fewer takes no longer than starting a thread.
const MANY_BYTES: usize = 64 * 1024;

/// Whether lines that cannot be read are left out, or refuse the whole list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invalid {
    /// They refuse it.
    Refuse,
    /// They are left out, and counted.
    Skip,
}

/// A list that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What to call it: its path, or "standard input".
    pub name: String,
    /// Its targets: sorted, none covering another. Not empty, until [`List::give_to`].
    pub targets: Vec<Target>,
    /// How many these are.
    pub kept: u64,
    /// Its lines, comments and empty ones included.
    pub lines: u64,
    /// Targets left out because they had been written before.
    pub duplicates: u64,
    /// Targets left out because another one covers them.
    pub covered: u64,
    /// Lines left out because they could not be read.
    pub skipped: Bad,
    /// Targets in private and special ranges, which a public blocklist is not expected to have.
    pub special: Special,
}

/// Lines that were read, and what came out of them.
#[derive(Default)]
struct Part {
    read: compact::Collected,
    bad: Bad,
    lines: u64,
}

impl Part {
    /// Of lines, the last one without an end. Of many, a half is read on a thread of its own.
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

    /// With what came behind it.
    fn and(mut self, next: Self) -> Self {
        self.read.append(next.read);
        self.bad.append(next.bad, self.lines);
        self.lines += next.lines;
        self
    }
}

impl List {
    /// Reads a list; `name` names it in errors.
    ///
    /// # Errors
    /// [`ListError::Invalid`] if there are bad lines, unless they are skipped;
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

    /// Reads a list's file.
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

    /// Puts the targets of the file that a rule names as `targets_file` into the rule, and the
    /// name out of it; a relative path starts at `directory`. Gives what else was read, or `None`
    /// if the rule names no file.
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

    /// Moves its targets to the end of others.
    pub fn give_to(&mut self, targets: &mut Vec<Target>) {
        if targets.is_empty() {
            *targets = std::mem::take(&mut self.targets);
        } else {
            targets.append(&mut self.targets);
        }
    }

    /// Reads a list from standard input.
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
