//! The summary of a parsed list and the warning about it, one line each.

use std::fmt::Write as _;

use indicatif::HumanCount;

use super::List;

impl List {
    /// What was parsed, and what was left out and why:
    /// `list.netset: 1,000,000 lines, 999,983 targets, 3 duplicates, 12 covered by others`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut out = format!(
            "{}: {}, {}",
            self.name,
            counted(self.lines, "line"),
            counted(self.kept, "target")
        );
        // Writing to a `String` cannot fail.
        if self.duplicates > 0 {
            let _ = write!(out, ", {}", counted(self.duplicates, "duplicate"));
        }
        if self.covered > 0 {
            let _ = write!(out, ", {} covered by others", HumanCount(self.covered));
        }
        if let Some(first) = self.skipped.first.first() {
            let count = HumanCount(self.skipped.count);
            let (number, reason) = (first.number, &first.reason);
            let _ = write!(out, ", {count} skipped (first: line {number}: {reason})");
        }
        out
    }

    /// The warning for a list with targets in private or special ranges: a few, and what to do.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let special = &self.special;
        if special.count == 0 {
            return None;
        }
        let named = special.first.iter();
        let named: Vec<_> = named.map(|(t, what)| format!("{t} ({what})")).collect();
        let more = match special.count - named.len() as u64 {
            0 => String::new(),
            more => format!(" and {} more", HumanCount(more)),
        };
        Some(format!(
            "{}: {} in private or special ranges: {}{more}: if this network uses them, leave them out of the rule with `except` (--except), or `protect` them in the configuration",
            self.name,
            counted(special.count, "target"),
            named.join(", "),
        ))
    }
}

/// "1 line", "1,000 lines".
fn counted(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", HumanCount(n))
}
