//! Files of targets, for rules with too many of them to write again with every change.
//!
//! One target per line. A file is written once, before `rules.json` names it, and removed once
//! `rules.json` no longer does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FILE, StateError, failed, write};
use crate::rule::{RuleError, Target, Targets};

const PREFIX: &str = "targets-";
const SUFFIX: &str = ".txt";

/// A file of targets, as `rules.json` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListFile {
    /// Name of the file in the state directory.
    pub(super) file: String,
    /// How many there are.
    pub(super) count: u64,
}

/// Why a file's targets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The name is not that of a file of targets.
    #[error("that is no file of targets")]
    Name,
    /// The file can't be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// A line is not a target.
    #[error("line {line}: {source}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        source: RuleError,
    },
    /// The file has another number of targets than `rules.json` says.
    #[error("it has {found} targets, {written} were written")]
    Count {
        /// How many there are.
        found: u64,
        /// How many there were.
        written: u64,
    },
}

/// The files of targets in a state directory.
pub(super) struct Lists {
    dir: PathBuf,
    /// The files that `rules.json` names.
    named: Vec<List>,
    /// The files that the next `rules.json` will name: some of `named`, and new ones.
    next: Vec<List>,
    /// Number of the last file that was written.
    last: u64,
}

#[derive(Clone)]
struct List {
    file: String,
    targets: Targets,
}

impl Lists {
    pub(super) fn new(dir: &Path) -> Self {
        let numbers = files(dir).filter_map(|file| number(&file));
        Self {
            dir: dir.to_owned(),
            named: Vec::new(),
            next: Vec::new(),
            last: numbers.max().unwrap_or(0),
        }
    }

    /// Reads a file that `rules.json` names.
    pub(super) fn read(&mut self, kept: ListFile) -> Result<Targets, Unreadable> {
        if number(&kept.file).is_none() {
            return Err(Unreadable::Name);
        }
        let text = fs::read_to_string(self.dir.join(&kept.file))?;
        let parse = |(line, text): (usize, &str)| {
            let line = line + 1;
            text.parse::<Target>()
                .map_err(|source| Unreadable::Line { line, source })
        };
        let lines = text.lines().enumerate();
        let targets: Vec<Target> = lines.map(parse).collect::<Result<_, _>>()?;
        let targets = Targets::from(targets);
        if targets.len() as u64 != kept.count {
            return Err(Unreadable::Count {
                found: targets.len() as u64,
                written: kept.count,
            });
        }
        self.named.push(List {
            file: kept.file,
            targets: targets.clone(),
        });
        Ok(targets)
    }

    /// Removes files that `rules.json` does not name, left by a daemon that died. Does nothing if there
    /// is a `rules.json` that was set aside, because that may name them.
    pub(super) fn sweep(&self) {
        let aside = format!("{FILE}.bad-");
        if files(&self.dir).any(|file| file.starts_with(&aside)) {
            return;
        }
        for file in files(&self.dir).filter(|file| number(file).is_some()) {
            if self.named.iter().all(|list| list.file != file) {
                self.remove(&file);
            }
        }
    }

    /// Forgets all files without removing them: the `rules.json` that was set aside names them.
    pub(super) fn disown(&mut self) {
        self.named.clear();
    }

    /// Makes sure that a file has these targets, for `rules.json` to name.
    pub(super) fn keep(&mut self, targets: Targets) -> Result<ListFile, StateError> {
        let count = targets.len() as u64;
        // The file may have been removed by somebody else.
        let is_there = |list: &&List| self.dir.join(&list.file).is_file();
        let known = || self.named.iter().chain(&self.next).filter(is_there);
        // Most targets are shared with the rule's last version, so comparing pointers suffices; those that
        // were read or sent again are compared one by one.
        let same = known().find(|list| list.targets.is_same(&targets));
        let list = match same.or_else(|| known().find(|list| list.targets == targets)) {
            Some(list) => list.clone(),
            None => self.write(targets)?,
        };
        let file = list.file.clone();
        self.next.push(list);
        Ok(ListFile { file, count })
    }

    fn write(&mut self, targets: Targets) -> Result<List, StateError> {
        self.last += 1;
        let file = format!("{PREFIX}{}{SUFFIX}", self.last);
        let path = self.dir.join(&file);
        let written = write(&path, |buffer| {
            targets
                .iter()
                .try_for_each(|target| target.write_line(buffer))
        });
        if written.is_err() {
            self.remove(&file);
        }
        written.map_err(failed("writing", &path))?;
        Ok(List { file, targets })
    }

    /// Removes files that are no longer needed: the old ones if `rules.json` was replaced, else the new.
    pub(super) fn settle(&mut self, replaced: bool) {
        let next = std::mem::take(&mut self.next);
        let (stay, go) = if replaced {
            (next, std::mem::take(&mut self.named))
        } else {
            (std::mem::take(&mut self.named), next)
        };
        for list in go {
            if stay.iter().all(|other| other.file != list.file) {
                self.remove(&list.file);
            }
        }
        self.named = stay;
    }

    /// Removes a file. If that fails, [`Lists::sweep`] does it at the next start.
    fn remove(&self, file: &str) {
        let _ = fs::remove_file(self.dir.join(file));
    }
}

/// The names of the files in a directory.
fn files(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The number of a file of targets, by its name.
fn number(file: &str) -> Option<u64> {
    file.strip_prefix(PREFIX)?
        .strip_suffix(SUFFIX)?
        .parse()
        .ok()
}
