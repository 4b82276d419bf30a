//! The rules that etcd had last, and which of them apply to this host; in memory and on disk. Pure
//! except for the file; time is an argument.
//!
//! A host that loses etcd keeps to these rules, and one that starts without etcd to those on disk, each
//! until its deadline.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::form::Fleet;
use crate::rule::{Rule, RuleId};
use crate::state;
use crate::wire::FleetRefusal;
use crate::wire::fleet::selector::Identity;
use crate::wire::fleet::value::{self, Value, ValueError};

/// Name of the file in the state directory.
pub const FILE: &str = "fleet.json";
/// Version of the file format.
const VERSION: u64 = 1;

/// How a value was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// By a watch, as it was written: clocks can be compared.
    Fresh,
    /// By listing.
    Listed,
}

/// A rule that applies to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The rule, with its deadline on this host.
    pub rule: Rule,
    /// Whether refusals are overridden where that is allowed.
    pub force: bool,
    /// etcd's revision at which it was written.
    pub revision: i64,
}

/// A key and its value.
#[derive(Debug, Clone)]
struct Entry {
    revision: i64,
    text: String,
    value: Result<Read, ValueError>,
}

/// A value that was read.
#[derive(Debug, Clone)]
struct Read {
    id: RuleId,
    value: Value,
    until: Option<Timestamp>,
    /// By this host's clock, the deadline had passed when the value arrived.
    dead_on_arrival: bool,
}

/// The rules that etcd had last.
#[derive(Debug, Clone, Default)]
pub struct Held {
    revision: i64,
    entries: BTreeMap<String, Entry>,
    skew: Option<SignedDuration>,
}

impl Held {
    /// etcd's revision up to which all changes are included; 0: none.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// How far this host's clock was ahead of a writer's at the last comparison, including the time that
    /// the value travelled.
    #[must_use]
    pub const fn skew(&self) -> Option<SignedDuration> {
        self.skew
    }

    /// Replaces all values by those listed at a revision. A value that did not change keeps its deadline.
    pub fn list<'a>(
        &mut self,
        revision: i64,
        all: impl IntoIterator<Item = (&'a str, i64, &'a [u8])>,
        now: Timestamp,
    ) {
        let mut before = std::mem::take(&mut self.entries);
        for (tail, at, bytes) in all {
            match before.remove(tail).filter(|entry| entry.revision == at) {
                Some(entry) => {
                    self.entries.insert(tail.to_owned(), entry);
                }
                None => self.put(tail, at, bytes, Came::Listed, now),
            }
        }
        self.revision = revision;
    }

    /// Adds a value that was written at a revision.
    pub fn put(&mut self, tail: &str, revision: i64, bytes: &[u8], came: Came, now: Timestamp) {
        let read = Value::parse(bytes).and_then(|value| {
            let until = value.until(now);
            Ok(Read {
                id: value::id(tail)?,
                dead_on_arrival: came == Came::Fresh && until.is_some_and(|until| until <= now),
                until,
                value,
            })
        });
        if let (Ok(read), Came::Fresh) = (&read, came) {
            self.skew = Some(now.duration_since(read.value.written));
        }
        let entry = Entry {
            revision,
            text: String::from_utf8_lossy(bytes).into_owned(),
            value: read,
        };
        self.entries.insert(tail.to_owned(), entry);
        self.revision = self.revision.max(revision);
    }

    /// Removes a value that was deleted at a revision.
    pub fn delete(&mut self, tail: &str, revision: i64) {
        self.entries.remove(tail);
        self.revision = self.revision.max(revision);
    }

    /// The rules that this host has to enforce now, in the order in which they were written, and the
    /// refused ones. `lost`: without rules that have no deadline.
    #[must_use]
    pub fn due(&self, me: &Identity, now: Timestamp, lost: bool) -> (Vec<Told>, Vec<FleetRefusal>) {
        let mut told = Vec::new();
        let mut refused = Vec::new();
        for (tail, entry) in &self.entries {
            let refusal = |why: String| FleetRefusal {
                rule: tail.clone(),
                revision: entry.revision,
                why,
            };
            let read = match &entry.value {
                Ok(read) if read.value.is_for(me) => read,
                Ok(_) => continue,
                Err(error) => {
                    refused.push(refusal(error.to_string()));
                    continue;
                }
            };
            match read.until {
                Some(until) if until <= now => {
                    if read.dead_on_arrival {
                        refused.push(refusal(format!(
                            "it was over at {until} by this host's clock when it came: the clock is ahead of the writer's"
                        )));
                    }
                    continue;
                }
                None if lost => continue,
                _ => {}
            }
            match read.value.rule(&read.id) {
                Ok(mut rule) => {
                    rule.expires = read.until;
                    told.push(Told {
                        rule,
                        force: read.value.force,
                        revision: entry.revision,
                    });
                }
                Err(error) => refused.push(refusal(error.to_string())),
            }
        }
        told.sort_by_key(|told| told.revision);
        (told, refused)
    }

    /// Reads what was saved for a prefix; empty if there is no file, or one of another prefix.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn load(directory: &Path, prefix: &str, now: Timestamp) -> Result<Self, HeldError> {
        let path = directory.join(FILE);
        let error = |source| HeldError::new("reading", &path, source);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(error(source)),
        };
        let file: OnDisk = serde_json::from_slice(&bytes).map_err(|e| error(e.into()))?;
        if file.version != VERSION {
            let why = format!(
                "its form has version {}, this daemon knows {VERSION}",
                file.version
            );
            return Err(error(io::Error::other(why)));
        }
        let mut held = Self::default();
        if file.prefix != prefix {
            return Ok(held);
        }
        for kept in file.rules {
            held.put(
                &kept.key,
                kept.revision,
                kept.value.as_bytes(),
                Came::Listed,
                now,
            );
            if let Some(Ok(read)) = held.entries.get_mut(&kept.key).map(|e| e.value.as_mut()) {
                read.until = kept.until;
            }
        }
        held.revision = file.revision;
        Ok(held)
    }

    /// Saves the values; replaces the file.
    ///
    /// # Errors
    /// It cannot be written; the file is unchanged.
    pub fn save(&self, directory: &Path, prefix: &str) -> Result<(), HeldError> {
        let rules = self.entries.iter().map(|(key, entry)| Kept {
            key: key.clone(),
            revision: entry.revision,
            value: entry.text.clone(),
            until: entry.value.as_ref().ok().and_then(|read| read.until),
        });
        let file = OnDisk {
            version: VERSION,
            prefix: prefix.to_owned(),
            revision: self.revision,
            rules: rules.collect(),
        };
        let saved = state::replace(&directory.join(FILE), |out| {
            Ok(serde_json::to_writer(out, &file)?)
        });
        saved.map_err(|error| HeldError::new(error.attempt, &error.path, error.source))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(directory: &Path) -> Result<(), HeldError> {
        let path = directory.join(FILE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(HeldError::new("removing", &path, source))
            }
            _ => Ok(()),
        }
    }
}

/// The rules that a host enforces until etcd answers.
///
/// # Errors
/// As [`Held::load`].
pub fn kept(fleet: &Fleet, directory: &Path, now: Timestamp) -> Result<Vec<Told>, HeldError> {
    let held = Held::load(directory, &fleet.prefix, now)?;
    Ok(held.due(&fleet.identity(), now, false).0)
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u64,
    prefix: String,
    revision: i64,
    rules: Vec<Kept>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    revision: i64,
    value: String,
    until: Option<Timestamp>,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("the fleet's rules on disk: {attempt} {}: {source}: they would not survive a restart without etcd", path.display())]
pub struct HeldError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl HeldError {
    fn new(attempt: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self {
            attempt,
            path,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + second).unwrap()
    }

    fn value(hosts: &str, written: i64, expires: Option<i64>) -> Vec<u8> {
        let expires = expires.map_or(String::new(), |e| format!(",\"expires\":\"{}\"", at(e)));
        format!(
            r#"{{"version":1,"hosts":"{hosts}","written":"{}","rule":{{"targets":["10.0.0.1"]{expires}}}}}"#,
            at(written)
        )
        .into_bytes()
    }

    fn me() -> Identity {
        Identity {
            name: "web1".into(),
            ..Identity::default()
        }
    }

    fn ids(held: &Held, now: i64, lost: bool) -> Vec<String> {
        let (told, _) = held.due(&me(), at(now), lost);
        told.iter().map(|told| told.rule.id.to_string()).collect()
    }

    #[test]
    fn a_host_is_told_what_is_meant_for_it_as_long_as_it_lasts() {
        let mut held = Held::default();
        held.put("z", 1, &value("web*", 0, Some(10)), Came::Fresh, at(0));
        held.put("b", 2, &value("db*", 0, Some(10)), Came::Fresh, at(0));
        held.put("a", 3, &value("*", 0, None), Came::Fresh, at(0));
        assert_eq!(ids(&held, 1, false), ["z", "a"]);
        assert_eq!(ids(&held, 10, false), ["a"]);
        assert_eq!(ids(&held, 1, true), ["z"]);
        held.delete("a", 4);
        assert_eq!(ids(&held, 1, false), ["z"]);
        assert_eq!(held.revision(), 4);
    }

    #[test]
    fn a_bad_value_is_refused_for_its_key_alone() {
        let mut held = Held::default();
        held.put("good", 1, &value("*", 0, None), Came::Fresh, at(0));
        held.put("bad", 2, b"{\"version\":9}", Came::Fresh, at(0));
        held.put("Bad", 3, &value("*", 0, None), Came::Fresh, at(0));
        held.put("worse", 4, &[0xff], Came::Fresh, at(0));
        assert_eq!(ids(&held, 1, false), ["good"]);
        let (_, refused) = held.due(&me(), at(1), false);
        let refused: Vec<_> = refused
            .iter()
            .map(|r| (r.rule.as_str(), r.revision))
            .collect();
        assert_eq!(refused, [("Bad", 3), ("bad", 2), ("worse", 4)]);
        held.put("bad", 5, &value("*", 0, None), Came::Fresh, at(0));
        assert_eq!(ids(&held, 1, false), ["good", "bad"]);
    }

    #[test]
    fn clocks_that_differ_are_noticed_by_fresh_values_alone() {
        let mut held = Held::default();
        held.put("a", 1, &value("*", 0, Some(60)), Came::Listed, at(50));
        assert_eq!(held.skew(), None);
        held.put("a", 2, &value("*", 0, Some(60)), Came::Fresh, at(7));
        assert_eq!(held.skew(), Some(SignedDuration::from_secs(7)));
        // A clock that is behind: not longer than a minute from here, whatever it says.
        held.put("a", 3, &value("*", 0, Some(60)), Came::Fresh, at(-3600));
        assert_eq!(ids(&held, -3541, false), ["a"]);
        assert_eq!(ids(&held, -3540, false), Vec::<String>::new());
        // One that is ahead: told, not passed over in silence.
        held.put("a", 4, &value("*", 0, Some(60)), Came::Fresh, at(3600));
        let (told, refused) = held.due(&me(), at(3600), false);
        assert!(told.is_empty() && refused[0].why.contains("ahead of the writer's"));
    }

    #[test]
    fn a_list_replaces_all_and_leaves_deadlines_alone() {
        let mut held = Held::default();
        let (a, b) = (value("*", 0, Some(60)), value("*", 0, None));
        held.put("a", 1, &a, Came::Fresh, at(-100));
        held.put("b", 2, &b, Came::Fresh, at(-100));
        held.list(9, [("a", 1, &a[..]), ("c", 8, &b[..])], at(-90));
        assert_eq!(held.revision(), 9);
        assert_eq!(ids(&held, -41, false), ["a", "c"]);
        assert_eq!(ids(&held, -40, false), ["c"]);
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let load = |prefix| Held::load(directory.path(), prefix, at(0)).unwrap();
        assert_eq!(load("/blocker").revision(), 0);
        let mut held = Held::default();
        held.put("a", 3, &value("*", 0, Some(60)), Came::Fresh, at(-100));
        held.put("bad", 5, b"{", Came::Fresh, at(0));
        held.save(directory.path(), "/blocker").unwrap();
        let again = load("/blocker");
        assert_eq!(
            again.due(&me(), at(-50), false),
            held.due(&me(), at(-50), false)
        );
        assert_eq!(again.revision(), 5);
        assert_eq!(ids(&again, -40, false), Vec::<String>::new());
        assert_eq!(load("/other").revision(), 0);
        fs::write(directory.path().join(FILE), "{").unwrap();
        let error = Held::load(directory.path(), "/blocker", at(0)).unwrap_err();
        assert!(error.to_string().contains(FILE), "{error}");
        Held::forget(directory.path()).unwrap();
        Held::forget(directory.path()).unwrap();
        assert_eq!(load("/blocker").revision(), 0);
    }
}
