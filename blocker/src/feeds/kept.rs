//! The last good content of each feed on disk, so that it is in force after a restart even if its
//! source cannot be reached.
//!
//! Each feed has a file, `feeds/NAME` in the state directory, which is replaced as a whole. Its first
//! line is a header in JSON; each line after it has a target, or a decision in JSON.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Decisions;
use super::content::Content;
use super::decisions::Term;
use super::feed::FeedName;
use super::fetch::Validators;
use crate::rule::{Target, Targets};
use crate::state::{self, StateError};

/// Name of the directory in the state directory.
const DIRECTORY: &str = "feeds";
const VERSION: u64 = 1;

/// The content of a feed, when it was received, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The content.
    pub content: Content,
    /// Where it came from: a path or a whole address.
    pub source: String,
    /// The version, as the server named it.
    pub validators: Validators,
    /// When it was received (wall clock).
    pub got: Timestamp,
}

/// The header.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u64,
    decisions: bool,
    source: String,
    got: Timestamp,
    count: u64,
    #[serde(default)]
    validators: Validators,
}

/// The line of a decision.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    target: Target,
    #[serde(flatten)]
    term: Term,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("its format has version {0}, this daemon knows version {VERSION}")]
    Version(u64),
    #[error("line {0}: {1}")]
    Line(u64, String),
    #[error("it has {found} entries, {count} were written")]
    Count { found: u64, count: u64 },
}

/// Reads the saved content of a feed. A file that cannot be used is logged and ignored.
#[must_use]
pub fn load(state_dir: &Path, name: &FeedName) -> Option<Kept> {
    let path = file(state_dir, name);
    match read(&path) {
        Ok(kept) => Some(kept),
        Err(Unusable::Read(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(feed = %name, "its saved content in {} cannot be used: {error}", path.display());
            None
        }
    }
}

fn read(path: &Path) -> Result<Kept, Unusable> {
    let text = fs::read_to_string(path)?;
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let wrong = |line: u64, error: &dyn std::fmt::Display| Unusable::Line(line, error.to_string());
    let header: Header = serde_json::from_str(first).map_err(|error| wrong(1, &error))?;
    if header.version != VERSION {
        return Err(Unusable::Version(header.version));
    }
    let lines = (2..).zip(rest.lines());
    let content = if header.decisions {
        let mut decisions = Decisions::default();
        for (number, line) in lines {
            let line: Line<'_> =
                serde_json::from_str(line).map_err(|error| wrong(number, &error))?;
            decisions.put(&line.kind, line.target, line.term);
        }
        Content::Decisions(decisions)
    } else {
        let targets = lines.map(|(number, line)| {
            let target: Result<Target, _> = line.parse();
            target.map_err(|error| wrong(number, &error))
        });
        Content::List(Targets::from(targets.collect::<Result<Vec<_>, _>>()?))
    };
    if content.len() != header.count {
        return Err(Unusable::Count {
            found: content.len(),
            count: header.count,
        });
    }
    Ok(Kept {
        content,
        source: header.source,
        validators: header.validators,
        got: header.got,
    })
}

/// Replaces the saved content of a feed. On success it is synced to the disk.
///
/// # Errors
/// A [`StateError`]; the file is unchanged then.
pub fn save(state_dir: &Path, name: &FeedName, kept: &Kept) -> Result<(), StateError> {
    state::replace(&file(state_dir, name), |out| {
        let header = Header {
            version: VERSION,
            decisions: matches!(kept.content, Content::Decisions(_)),
            source: kept.source.clone(),
            got: kept.got,
            count: kept.content.len(),
            validators: kept.validators.clone(),
        };
        serde_json::to_writer(&mut *out, &header)?;
        out.write_all(b"\n")?;
        match &kept.content {
            Content::List(targets) => targets.iter().try_for_each(|target| target.write_line(out)),
            Content::Decisions(decisions) => {
                decisions.iter().try_for_each(|(kind, target, term)| {
                    let kind = kind.into();
                    serde_json::to_writer(&mut *out, &Line { kind, target, term })?;
                    out.write_all(b"\n")
                })
            }
        }
    })
}

/// Removes the content of feeds that are no longer configured.
pub fn sweep(state_dir: &Path, names: &[FeedName]) {
    let entries = fs::read_dir(state_dir.join(DIRECTORY))
        .into_iter()
        .flatten();
    for entry in entries.flatten() {
        let is_one = |name: &FeedName| entry.file_name() == name.as_str();
        if !names.iter().any(is_one)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

fn file(state_dir: &Path, name: &FeedName) -> PathBuf {
    state_dir.join(DIRECTORY).join(name.as_str())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn name(text: &str) -> FeedName {
        FeedName::parse(text).unwrap()
    }

    fn list() -> Kept {
        let targets = ["198.51.100.0/24", "2001:db8::7"];
        Kept {
            content: Content::List(targets.iter().map(|text| text.parse().unwrap()).collect()),
            source: "https://user:secret@example.org/l?key=1".to_owned(),
            validators: Validators {
                etag: Some("W/\"1\"".to_owned()),
                last_modified: None,
            },
            got: Timestamp::from_second(1_795_000_000).unwrap(),
        }
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut decisions = Decisions::default();
        for target in ["11.0.0.1", "11.1.0.0/16"] {
            let lasts = SignedDuration::from_mins(7);
            decisions.insert("ban", target.parse().unwrap(), lasts, list().got);
        }
        let decided = Kept {
            content: Content::Decisions(decisions),
            ..list()
        };
        assert_eq!(load(dir.path(), &name("a")), None);
        save(dir.path(), &name("a"), &decided).unwrap();
        save(dir.path(), &name("a"), &list()).unwrap();
        save(dir.path(), &name("b"), &decided).unwrap();
        assert_eq!(load(dir.path(), &name("a")), Some(list()));
        assert_eq!(load(dir.path(), &name("b")), Some(decided));
        sweep(dir.path(), &[name("b")]);
        assert_eq!(load(dir.path(), &name("a")), None);
        assert!(load(dir.path(), &name("b")).is_some());
    }

    #[test]
    fn a_torn_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &name("a"), &list()).unwrap();
        let path = file(dir.path(), &name("a"));
        let whole = fs::read_to_string(&path).unwrap();
        for torn in [
            "",
            "198.51.100.0/24\n",
            whole.strip_suffix("2001:db8::7\n").unwrap(),
            &whole.replace("\"version\":1", "\"version\":9"),
        ] {
            fs::write(&path, torn).unwrap();
            assert_eq!(load(dir.path(), &name("a")), None, "{torn}");
        }
    }
}
