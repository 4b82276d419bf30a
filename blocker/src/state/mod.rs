//! The API's rules on disk, so that they are back after a restart of the daemon or the host.
//!
//! One file, `rules.json` in the state directory, is replaced as a whole, so that a reader sees the
//! old rules or the new ones. A rule with many targets has them in a file of its own (`lists`), which
//! is written before `rules.json` names it and never changed, so that a change does not write the
//! targets of other rules again. Which rules are in force is not decided here.

mod lists;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rule::{Rule, RuleError};
use lists::{ListFile, Lists};

/// Name of the file in the state directory.
pub const FILE: &str = "rules.json";
/// Version of the file's format. Version 1 had no files of targets.
const VERSION: u64 = 2;
/// More targets than this have a file of their own.
const MANY: usize = 1_024;

/// Size of the write buffer, in bytes.
const BUFFER: usize = 256 * 1024;

/// A rule as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The rule.
    pub rule: Rule,
    /// When it was put there (wall clock).
    pub created: Timestamp,
}

/// What was found on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The rules, in the order in which they were saved.
    pub rules: Vec<Stored>,
    /// Rules whose deadline passed while no daemon was running. Not among `rules`.
    pub expired: Vec<Stored>,
    /// What was wrong with the file, and where it was set aside; there are no rules then.
    pub problem: Option<String>,
}

/// Why rules could not be saved. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot save rules: {attempt} {}: {source}: the rules would not survive a restart", path.display()
)]
pub struct StateError {
    /// What was tried, such as "writing".
    pub attempt: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Why a file cannot be used. The error of a rule names its id.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is torn or is not what was written: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its format has version {0}, this daemon knows versions 1 to {VERSION}")]
    Version(u64),
    #[error("rule {id}: {source}")]
    Rule { id: String, source: RuleError },
    #[error("the targets of rule {id} in {}: {source}", path.display())]
    List {
        id: String,
        path: PathBuf,
        source: lists::Unreadable,
    },
    #[error("the id {0} is there twice")]
    Twice(String),
}

#[derive(Serialize)]
struct Written {
    version: u64,
    rules: Vec<OnDisk>,
}

/// A rule in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    rule: Rule,
    created: Timestamp,
    /// The file of the rule's targets, if they are not in the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targets: Option<ListFile>,
}

/// Read first: the version decides how the rest is read.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(rename = "version")]
    _version: u64,
    rules: Vec<OnDisk>,
}

/// The rules of the API on disk.
pub struct Store {
    dir: PathBuf,
    lists: Lists,
}

impl Store {
    /// Reads the rules. If there is no file, there are no rules, and that is not a problem.
    ///
    /// A file that cannot be used is renamed to `rules.json.bad-TIME`, so that the next save does
    /// not overwrite it.
    #[must_use]
    pub fn open(dir: &Path, now: Timestamp) -> (Self, Loaded) {
        let path = dir.join(FILE);
        let mut store = Self {
            dir: dir.to_owned(),
            lists: Lists::new(dir),
        };
        // Left by a daemon that died while writing it. Nothing in it was acknowledged to a client.
        let _ = fs::remove_file(next_version(&dir.join(FILE)));
        let loaded = match store.read() {
            Ok(rules) => {
                store.lists.sweep();
                let over = |stored: &Stored| stored.rule.expires.is_some_and(|end| end <= now);
                let (expired, rules) = rules.into_iter().partition(over);
                Loaded {
                    rules,
                    expired,
                    problem: None,
                }
            }
            Err(Unusable::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
                Loaded::default()
            }
            Err(unusable) => {
                store.lists.disown();
                Loaded {
                    problem: Some(set_aside(&path, &unusable, now)),
                    ..Loaded::default()
                }
            }
        };
        (store, loaded)
    }

    fn read(&mut self) -> Result<Vec<Stored>, Unusable> {
        let bytes = fs::read(self.dir.join(FILE))?;
        let Header { version } = serde_json::from_slice(&bytes)?;
        if !(1..=VERSION).contains(&version) {
            return Err(Unusable::Version(version));
        }
        let Body { rules, .. } = serde_json::from_slice(&bytes)?;
        let mut ids = BTreeSet::new();
        let mut stored = Vec::new();
        for OnDisk {
            mut rule,
            created,
            targets,
        } in rules
        {
            if let Some(kept) = targets {
                let path = self.dir.join(&kept.file);
                rule.targets = self.lists.read(kept).map_err(|source| Unusable::List {
                    id: rule.id.to_string(),
                    path,
                    source,
                })?;
            }
            rule.check().map_err(|source| Unusable::Rule {
                id: rule.id.to_string(),
                source,
            })?;
            if !ids.insert(rule.id.clone()) {
                return Err(Unusable::Twice(rule.id.to_string()));
            }
            stored.push(Stored { rule, created });
        }
        Ok(stored)
    }

    /// Saves all rules of the API, in place of those saved before. When this returns, they are on
    /// the disk. The directory is made if it is not there.
    ///
    /// # Errors
    /// A [`StateError`]; the rules saved before are intact then.
    pub fn save<'a>(
        &mut self,
        rules: impl IntoIterator<Item = (&'a Rule, Timestamp)>,
    ) -> Result<(), StateError> {
        make(&self.dir)?;
        let outcome = self.replace(rules);
        // Files of targets that only the old `rules.json`, or one that could not be written, names take
        // room on the disk.
        self.lists.settle(outcome.is_ok());
        outcome?;
        sync(&self.dir)
    }

    fn replace<'a>(
        &mut self,
        rules: impl IntoIterator<Item = (&'a Rule, Timestamp)>,
    ) -> Result<(), StateError> {
        let mut written = Written {
            version: VERSION,
            rules: Vec::new(),
        };
        for (rule, created) in rules {
            let mut rule = rule.clone();
            let targets = if rule.targets.len() > MANY {
                let targets = std::mem::take(&mut rule.targets);
                Some(self.lists.keep(targets)?)
            } else {
                None
            };
            written.rules.push(OnDisk {
                rule,
                created,
                targets,
            });
        }
        let path = self.dir.join(FILE);
        put_in_place(&path, |buffer| {
            serde_json::to_writer(&mut *buffer, &written)?;
            buffer.write_all(b"\n")
        })
    }
}

/// Renames a file that cannot be used. Returns a message that says so.
fn set_aside(path: &Path, why: &Unusable, now: Timestamp) -> String {
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let name = |suffix: &str| path.with_file_name(format!("{FILE}.bad-{stamp}{suffix}"));
    // A second one within the same second must not overwrite the first.
    let aside = (1..)
        .map(|n| {
            if n == 1 {
                name("")
            } else {
                name(&format!("-{n}"))
            }
        })
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| name(""));
    let outcome = match fs::rename(path, &aside) {
        Ok(()) => format!("put aside as {}", aside.display()),
        Err(error) => format!(
            "could not be put aside as {} ({error}): the next change overwrites it",
            aside.display()
        ),
    };
    format!(
        "the rules saved in {} cannot be used: {why}; the file was {outcome}; no rule of the API is in force",
        path.display()
    )
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError {
        attempt,
        path,
        source,
    }
}

/// Replaces a file as a whole, creating its directory if needed: a reader sees the old contents or
/// the new. When this returns, the new contents are on the disk.
///
/// # Errors
/// A [`StateError`]; the file is as it was then.
pub fn replace(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), StateError> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    make(dir)?;
    put_in_place(path, contents)?;
    sync(dir)
}

/// Creates a directory for the daemon only, if there is none.
fn make(dir: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("creating", dir))
}

/// The name under which a file's next version is written.
fn next_version(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Writes a new file and renames it to the old one's name. If that fails, the new file is removed.
fn put_in_place(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), StateError> {
    let new = next_version(path);
    let outcome = write(&new, contents)
        .map_err(failed("writing", &new))
        .and_then(|()| fs::rename(&new, path).map_err(failed("replacing", path)));
    if outcome.is_err() {
        let _ = fs::remove_file(&new);
    }
    outcome
}

/// Makes a rename durable, by writing the directory to the disk.
fn sync(dir: &Path) -> Result<(), StateError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("syncing", dir))
}

/// Writes a file and waits for the disk. Only its owner may read it.
fn write(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut buffer = BufWriter::with_capacity(BUFFER, file);
    contents(&mut buffer)?;
    buffer.into_inner()?.sync_all()
}
