//! The API's rules on disk, so that they are back after a restart or a reboot.
//!
//! One file, `rules.json` in the state directory, written anew at every change: to a temporary
//! file beside it, synced, renamed over it, and the directory synced. A file that can't be read
//! is set aside under another name, never overwritten.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rule::Rule;

/// The layout of the file.
const VERSION: u32 = 1;
const FILE: &str = "rules.json";

/// Why rules can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("rules cannot be kept in {}: {source}", .path.display())]
pub struct StateError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// What was kept.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Rules that are still to be in force.
    pub rules: Vec<Rule>,
    /// Rules whose deadline has passed since.
    pub expired: Vec<Rule>,
    /// Why the file could not be read, and where it is now.
    pub problem: Option<String>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    rules: &'a [Rule],
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    rules: Vec<Rule>,
}

/// Writes the rules, all or nothing.
///
/// # Errors
/// What the file system said; the file is as it was.
pub fn save(directory: &Path, rules: &[Rule]) -> Result<(), StateError> {
    let path = directory.join(FILE);
    let error = |source| StateError {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(directory).map_err(error)?;
    let mut file = tempfile::Builder::new()
        .prefix(".rules.")
        .tempfile_in(directory)
        .map_err(error)?;
    let written = Written {
        version: VERSION,
        rules,
    };
    serde_json::to_writer(io::BufWriter::new(&mut file), &written)
        .map_err(|json| error(json.into()))?;
    file.write_all(b"\n").map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    file.persist(&path)
        .map_err(|persist| error(persist.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(error)
}

/// Reads the rules back. That there is no file is no problem.
#[must_use]
pub fn load(directory: &Path, now: Timestamp) -> Loaded {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::default(),
        Err(error) => return set_aside(&path, &error.to_string(), now),
    };
    match read(&bytes) {
        Ok(rules) => {
            let ended = |rule: &Rule| rule.expires.is_some_and(|expires| expires <= now);
            let (expired, rules) = rules.into_iter().partition(ended);
            Loaded {
                rules,
                expired,
                problem: None,
            }
        }
        Err(why) => set_aside(&path, &why, now),
    }
}

fn read(bytes: &[u8]) -> Result<Vec<Rule>, String> {
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, this program reads version {VERSION}"
        ));
    }
    let Read { rules } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(rules)
}

fn set_aside(path: &Path, why: &str, now: Timestamp) -> Loaded {
    let aside = path.with_file_name(format!("{FILE}.bad-{}", now.as_second()));
    let problem = match fs::rename(path, &aside) {
        Ok(()) => format!(
            "{} cannot be read ({why}); it is now {}",
            path.display(),
            aside.display()
        ),
        Err(error) => format!(
            "{} cannot be read ({why}), nor set aside: {error}",
            path.display()
        ),
    };
    Loaded {
        problem: Some(problem),
        ..Loaded::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Defaults, RuleSpec};

    fn rule(id: &str, expires: Option<Timestamp>) -> Rule {
        let spec: RuleSpec =
            serde_json::from_str(r#"{"targets": ["192.0.2.1"], "comment": "c"}"#).unwrap();
        let rule = spec
            .resolve(
                || id.parse().unwrap(),
                Defaults::default(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap();
        Rule { expires, ..rule }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("made/on/demand");
        save(&state, &[rule("a", None), rule("b", Some(at(50)))]).unwrap();
        let loaded = load(&state, at(10));
        assert_eq!(loaded.rules, [rule("a", None), rule("b", Some(at(50)))]);
        assert!(loaded.problem.is_none() && loaded.expired.is_empty());
        // Nothing but the file itself is left behind.
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn rules_whose_deadline_passed_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        save(
            directory.path(),
            &[rule("a", None), rule("b", Some(at(50)))],
        )
        .unwrap();
        let loaded = load(directory.path(), at(50));
        assert_eq!(loaded.rules, [rule("a", None)]);
        assert_eq!(loaded.expired, [rule("b", Some(at(50)))]);
    }

    #[test]
    fn no_file_is_no_rules_and_no_problem() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = load(directory.path(), at(0));
        assert!(loaded.rules.is_empty() && loaded.problem.is_none());
    }

    #[test]
    fn a_torn_file_is_set_aside_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), &[rule("a", None)]).unwrap();
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let problem = load(directory.path(), at(7)).problem.unwrap();
        assert!(problem.contains("rules.json.bad-7"), "{problem}");
        assert_eq!(
            fs::read(directory.path().join("rules.json.bad-7")).unwrap(),
            whole[..whole.len() / 2]
        );
        assert!(load(directory.path(), at(8)).problem.is_none());
    }

    #[test]
    fn a_file_of_another_version_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join(FILE),
            r#"{"version": 9, "future": true}"#,
        )
        .unwrap();
        let problem = load(directory.path(), at(7)).problem.unwrap();
        assert!(problem.contains("version 9"), "{problem}");
    }

    #[test]
    fn where_nothing_can_be_written_the_error_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = save(&file, &[]).unwrap_err().to_string();
        assert!(error.contains("file/rules.json"), "{error}");
    }
}
