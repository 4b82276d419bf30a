//! Watching a file: by its inode, its size and its times, once a second.
//!
//! Looking costs next to nothing, and sees what notifications miss: a file that comes into being, a
//! link that is pointed elsewhere, a mount, a network file system.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How a file looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    /// Looks at a file; links are followed. `None`: it is no plain file.
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

/// Tells when a file is to be read: it differs from what was read, and has not changed since the
/// last look, so that nobody is writing it at the moment.
#[derive(Debug, Default)]
pub(super) struct Watched {
    read: Option<Option<Look>>,
    last: Option<Option<Look>>,
}

impl Watched {
    /// Takes a look into account; `None`: there is no such file. Says whether to read it now.
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
