//! The API's rules on disk, so that they are back after a restart of the daemon or the host.
//!
//! One file, `rules.json` in the state directory, replaced as a whole: whoever reads it sees the
//! old rules or the new ones. Which rules are in force is [`crate::controller`]'s to decide.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rule::{Rule, RuleError};

/// Name of the file in the state directory.
pub const FILE: &str = "rules.json";
/// Version of the file's format.
const VERSION: u64 = 1;

/// A rule as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Rules whose deadline passed while nobody looked. Not among `rules`.
    pub expired: Vec<Stored>,
    /// What was wrong with the file, and where it was put aside; there are no rules then.
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

/// Why a file holds no rules. A rule's own fault is told by its id.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is torn or is not what was written: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its format has version {0}, this daemon knows version {VERSION}")]
    Version(u64),
    #[error("rule {id}: {source}")]
    Rule { id: String, source: RuleError },
    #[error("the id {0} is there twice")]
    Twice(String),
}

#[derive(Serialize)]
struct Written<'a> {
    version: u64,
    rules: Vec<WrittenRule<'a>>,
}

#[derive(Serialize)]
struct WrittenRule<'a> {
    rule: &'a Rule,
    created: Timestamp,
}

/// Read first, whatever else the file holds.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(rename = "version")]
    _version: u64,
    rules: Vec<Stored>,
}

/// Reads the rules. No file: no rules, and no problem.
///
/// A file that cannot be used is renamed to `rules.json.bad-TIME`, so that the next save does not
/// destroy what may be wanted.
#[must_use]
pub fn load(state_dir: &Path, now: Timestamp) -> Loaded {
    let path = state_dir.join(FILE);
    match read(&path) {
        Ok(rules) => {
            let over = |stored: &Stored| stored.rule.expires.is_some_and(|end| end <= now);
            let (expired, rules) = rules.into_iter().partition(over);
            Loaded {
                rules,
                expired,
                problem: None,
            }
        }
        Err(Unusable::Read(error)) if error.kind() == io::ErrorKind::NotFound => Loaded::default(),
        Err(unusable) => Loaded {
            problem: Some(set_aside(&path, &unusable, now)),
            ..Loaded::default()
        },
    }
}

fn read(path: &Path) -> Result<Vec<Stored>, Unusable> {
    let bytes = fs::read(path)?;
    let Header { version } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    let Body { rules, .. } = serde_json::from_slice(&bytes)?;
    let mut ids = BTreeSet::new();
    for stored in &rules {
        let id = || stored.rule.id.to_string();
        let unusable = |source| Unusable::Rule { id: id(), source };
        stored.rule.check().map_err(unusable)?;
        if !ids.insert(&stored.rule.id) {
            return Err(Unusable::Twice(id()));
        }
    }
    Ok(rules)
}

/// Renames a file that cannot be used; says so in words.
fn set_aside(path: &Path, why: &Unusable, now: Timestamp) -> String {
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let name = |suffix: &str| path.with_file_name(format!("{FILE}.bad-{stamp}{suffix}"));
    // Two in one second: the first is worth as much as the second.
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

/// Saves all rules of the API, in place of those saved before. When this returns, they are on the
/// disk. The directory is made if it is not there.
///
/// # Errors
/// A [`StateError`]; the rules saved before are intact then.
pub fn save<'a>(
    state_dir: &Path,
    rules: impl IntoIterator<Item = (&'a Rule, Timestamp)>,
) -> Result<(), StateError> {
    let written = Written {
        version: VERSION,
        rules: rules
            .into_iter()
            .map(|(rule, created)| WrittenRule { rule, created })
            .collect(),
    };
    let path = state_dir.join(FILE);
    let new = state_dir.join(format!("{FILE}.new"));
    let failed = |attempt, path: &Path| {
        let path = path.to_owned();
        move |source| StateError {
            attempt,
            path,
            source,
        }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(failed("creating", state_dir))?;
    let outcome = write(&new, &written)
        .map_err(failed("writing", &new))
        .and_then(|()| fs::rename(&new, &path).map_err(failed("replacing", &path)));
    if outcome.is_err() {
        // What is left of the attempt is in nobody's way, but takes room that the disk may lack.
        let _ = fs::remove_file(&new);
    }
    outcome?;
    // A rename is durable once the directory is.
    File::open(state_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("syncing", state_dir))
}

/// Writes the file and waits for the disk. Only its owner may read it.
fn write(path: &Path, written: &Written<'_>) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut buffer = BufWriter::new(file);
    serde_json::to_writer(&mut buffer, written)?;
    buffer.write_all(b"\n")?;
    buffer.into_inner()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::rule;

    const NOW: &str = "2026-06-01T12:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn stored(id: &str, fields: &str) -> Stored {
        Stored {
            rule: rule(id, "10.0.0.1 2001:db8::/32", fields),
            created: "2026-05-31T00:00:00.123456789Z".parse().unwrap(),
        }
    }

    fn save_all(dir: &Path, rules: &[Stored]) -> Result<(), StateError> {
        save(dir, rules.iter().map(|s| (&s.rule, s.created)))
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn no_file_is_no_rules_and_no_problem() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), now()), Loaded::default());
        let missing = dir.path().join("missing");
        assert_eq!(load(&missing, now()), Loaded::default());
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/for/it");
        let rules = [
            stored("b", "{mode: reset, ports: [80, 90-99], protocol: tcp}"),
            stored(
                "a",
                "{expires: 2027-01-01T00:00:00Z, comment: \"x\", except: [10.0.0.1], interfaces: [\"veth*\"]}",
            ),
        ];
        save_all(&dir, &[]).unwrap();
        assert_eq!(load(&dir, now()), Loaded::default());
        save_all(&dir, &rules).unwrap();
        let loaded = load(&dir, now());
        assert_eq!(loaded.rules, rules);
        assert_eq!((loaded.expired.len(), loaded.problem), (0, None));
        assert_eq!(names(&dir), [FILE]);
    }

    #[test]
    fn what_expired_meanwhile_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let rules = [
            stored("over", "{expires: 2026-06-01T12:00:00Z}"),
            stored("lives", "{expires: 2026-06-01T12:00:01Z}"),
        ];
        save_all(dir.path(), &rules).unwrap();
        let loaded = load(dir.path(), now());
        assert_eq!(loaded.expired, rules[..1]);
        assert_eq!(loaded.rules, rules[1..]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_put_aside_and_told() {
        let dir = tempfile::tempdir().unwrap();
        save_all(dir.path(), &[stored("a", "{}")]).unwrap();
        let path = dir.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let once = good.trim_end();
        let twice = once.replace("]}\n", "").replacen(
            "\"rules\":[",
            &format!(
                "\"rules\":[{},",
                &once[once.find("{\"rule\"").unwrap()..once.len() - 2]
            ),
            1,
        );
        let cases = [
            (String::new(), "it is torn"),
            (good[..good.len() / 2].to_owned(), "it is torn"),
            (format!("{good}x"), "it is torn"),
            ("\0".repeat(100), "it is torn"),
            (
                good.replace("\"version\":1", "\"version\":2"),
                "its format has version 2, this daemon knows version 1",
            ),
            (
                good.replace("\"version\":1", "\"version\":1,\"more\":1"),
                "unknown field `more`",
            ),
            (
                good.replace("\"percent\":100", "\"percent\":0"),
                "rule a: percent 0 is not valid",
            ),
            (
                good.replace("[\"10.0.0.1\",\"2001:db8::/32\"]", "[]"),
                "rule a: a rule needs at least one target",
            ),
            (twice, "the id a is there twice"),
        ];
        for (n, (text, why)) in cases.iter().enumerate() {
            fs::write(&path, text).unwrap();
            let loaded = load(dir.path(), now());
            let problem = loaded.problem.unwrap();
            assert!(problem.contains(why), "{problem}\nexpected: {why}");
            assert!(
                problem.contains(&format!(
                    "put aside as {}.bad-20260601T120000Z",
                    path.display()
                )),
                "{problem}"
            );
            assert!(loaded.rules.is_empty());
            // Nothing is lost: each is kept, under a name of its own.
            assert!(!path.exists());
            assert_eq!(names(dir.path()).len(), n + 1);
        }
        let first = dir.path().join("rules.json.bad-20260601T120000Z-2");
        assert_eq!(fs::read_to_string(first).unwrap(), cases[1].0);
        // And the next save works.
        save_all(dir.path(), &[stored("a", "{}")]).unwrap();
        assert_eq!(load(dir.path(), now()).rules, [stored("a", "{}")]);
    }

    #[test]
    fn a_save_that_fails_leaves_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        save_all(dir.path(), &[stored("a", "{}")]).unwrap();
        // A directory in the new file's place makes writing it fail, for root, too.
        let new = dir.path().join("rules.json.new");
        fs::create_dir(&new).unwrap();
        let error = save_all(dir.path(), &[]).unwrap_err().to_string();
        let expected = format!("cannot save rules: writing {}: ", new.display());
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(load(dir.path(), now()).rules, [stored("a", "{}")]);
        // What is no directory can hold no state.
        let file = dir.path().join(FILE);
        assert!(save_all(&file, &[]).is_err());
    }

    #[test]
    fn only_the_owner_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        save_all(dir.path(), &[]).unwrap();
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
