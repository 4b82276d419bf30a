//! The source `file`: a list in a file, looked at once a second.
//!
//! A file is recognised by its inode, size and times. Looking costs little and notices what inotify
//! does not: a file that is created, a link that is pointed elsewhere, a mount, a network file system.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;

use super::super::fetch::Validators;
use super::super::follower::Follower;
use super::super::list::{ListChecks, sound};
use super::super::{FeedError, Host, blocking};
use super::Form;
use super::form::Reading;
use crate::lists::List;
use crate::yaml::Fault;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the rules are reviewed while the file does not change: the host's own addresses may.
const REVIEW: Duration = Duration::from_secs(60);

/// A list in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Its path. Absolute, if the configuration's is.
    pub path: PathBuf,
    /// What the list must be like.
    #[serde(flatten)]
    pub list: ListChecks,
}

impl File {
    pub(super) fn read(form: &mut Form, reading: &Reading<'_>) -> Result<Self, Fault> {
        let path = reading.needed("path", form.path.take())?;
        Ok(Self {
            path: reading.path(&path.value),
            list: reading.list_checks(form)?,
        })
    }

    /// Reads the list, of `max_bytes` at most, in place of one with `before` targets.
    ///
    /// # Errors
    /// It cannot be read, or is not sound.
    pub fn load(&self, max_bytes: u64, before: Option<u64>) -> Result<List, FeedError> {
        let path = &self.path;
        let shown = path.display().to_string();
        let failed = |source| FeedError::Read {
            path: shown.clone(),
            source,
        };
        // Opening a FIFO would block until somebody writes to it.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(FeedError::File(format!("{shown} is no plain file")));
        }
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(max_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > max_bytes {
            return Err(FeedError::TooLarge {
                from: shown,
                most: max_bytes,
            });
        }
        sound(&shown, &bytes, self.list, before)
    }

    pub(super) async fn follow<H: Host>(self, mut follower: Follower<H>) {
        let mut watched = Watched::default();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry: Option<Instant> = None;
        let mut was_read = false;
        let mut review = Instant::now() + REVIEW;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = follower.reloaded() => retry = retry.map(|_| Instant::now()),
            }
            let path = self.path.clone();
            let looked = spawn_blocking(move || Look::at(&path)).await;
            let look = looked.ok().and_then(Result::ok).flatten();
            let changed = watched.is_due(look);
            if changed || retry.is_some_and(|at| at <= Instant::now()) {
                let outcome = self.take(&follower).await;
                follower.note(outcome);
                was_read = true;
                retry = follower
                    .is_failing()
                    .then(|| Instant::now() + follower.pause(REVIEW));
                follower.tell_next(retry);
            } else if was_read && retry.is_none() {
                follower.account(|account| account.looked(Ok(()), Timestamp::now()));
                if review <= Instant::now() {
                    review = Instant::now() + REVIEW;
                    let outcome = follower.review().await;
                    follower.note(outcome);
                }
            }
        }
    }

    /// Reads the file and puts its list in force.
    async fn take<H: Host>(&self, follower: &Follower<H>) -> Result<(), FeedError> {
        let key = self.path.display().to_string();
        let before = follower.kept_of(&key).map(|kept| kept.content.len());
        let (file, most) = (self.clone(), follower.feed().max_bytes);
        let list = blocking(move || file.load(most, before)).await?;
        follower.take(list, key, Validators::default()).await
    }
}

/// What a file is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    /// Looks at a file, following links. `None`: it is no plain file.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        let meta = fs::metadata(path)?;
        Ok(meta.is_file().then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }))
    }
}

/// Decides when to read a file: when it differs from what was read and has not changed since the last
/// look, so that a file that is being written is left alone.
#[derive(Debug, Default)]
pub(super) struct Watched {
    read: Option<Option<Look>>,
    last: Option<Option<Look>>,
}

impl Watched {
    /// Notes a look (`None`: there is no such file) and tells whether to read the file now.
    pub(super) fn is_due(&mut self, look: Option<Look>) -> bool {
        let still = self.last.replace(look) == Some(look);
        let due = still && self.read != Some(look);
        if due {
            self.read = Some(look);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_differs_and_is_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let look = || Look::at(&path).ok().flatten();
        let mut watched = Watched::default();
        let mut due = || watched.is_due(look());
        assert_eq!([due(), due(), due()], [false, true, false]);
        fs::write(&path, "1").unwrap();
        assert_eq!([due(), due(), due()], [false, true, false]);
        fs::write(&path, "12").unwrap();
        assert!(!due());
        fs::write(&path, "123").unwrap();
        assert_eq!([due(), due(), due()], [false, true, false]);
        let new = dir.path().join("new");
        fs::write(&new, "123").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(
            [due(), due()],
            [false, true],
            "another file of the same size"
        );
        fs::remove_file(&path).unwrap();
        assert_eq!([due(), due(), due()], [false, true, false]);
        assert!(Look::at(dir.path()).unwrap().is_none(), "no plain file");
    }
}
