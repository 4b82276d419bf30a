//! The pin directory, in which links and maps outlive the daemon: its lock and its removal.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::qdisc::{self, Qdiscs};
use super::{Error, attach, devices, kept};

/// The pin directory, locked by this process.
pub struct PinDir {
    path: PathBuf,
    made: bool,
    _lock: Flock<File>,
}

impl PinDir {
    /// Creates the directory if it does not exist, and locks it.
    ///
    /// # Errors
    /// If it is not on a BPF file system, or another process, which the error names, has locked it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let error = |source| Error::Pins {
            path: path.to_owned(),
            source,
        };
        let parent = existing_ancestor(path);
        let on = statfs(parent).map_err(|source| error(source.into()))?;
        if on.filesystem_type() != BPF_FS_MAGIC {
            return Err(Error::NotBpffs {
                path: path.to_owned(),
            });
        }
        // An empty directory counts as made here: the service's user is given one.
        let made = entries(path)?.is_empty();
        fs::create_dir_all(path).map_err(error)?;
        let directory = File::open(path).map_err(error)?;
        let inode = directory.metadata().map_err(error)?.ino();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                made,
                _lock: lock,
            }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Held {
                path: path.to_owned(),
                by: holder(inode),
            }),
            Err((_, source)) => Err(error(source.into())),
        }
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cleans up after a failed start: removes the maps' pins if the directory was empty before.
    ///
    /// # Errors
    /// If the pins can't be removed.
    pub fn give_up(&self) -> Result<(), Error> {
        if self.made {
            kept::remove(&self.path)?;
            self.remove_if_empty();
        }
        Ok(())
    }

    /// Removes the directory and its known subdirectories, each if it is empty.
    pub fn remove_if_empty(&self) {
        for path in [
            &self.path.join("links"),
            &self.path.join(qdisc::MARKS),
            &self.path,
        ] {
            // A directory that is not empty stays, and one that does not exist is no error.
            let _removed = fs::remove_dir(path);
        }
    }
}

/// Removes a datapath whose daemon does not run: the pins, and in this network namespace the clsact
/// filters and the qdiscs that blocker added for them. Returns how many pinned links were removed.
///
/// # Errors
/// If a daemon has locked the directory, or a pin or qdisc can't be removed.
pub async fn unload(path: &Path) -> Result<usize, Error> {
    let mut removed = 0;
    let mut pins = None;
    if path.exists() {
        pins = Some(PinDir::open(path)?);
        let links = path.join("links");
        removed = entries(&links)?.len();
        remove_except(&links, &[])?;
        kept::remove(path)?;
    }
    let qdiscs = Qdiscs::new(path);
    for device in devices::list().await? {
        if device.kind != devices::LinkKind::Loopback {
            attach::remove_filters(&device.name);
            qdiscs.release(device.index)?;
        }
    }
    qdiscs.sweep(&[])?;
    if let Some(pins) = pins {
        pins.remove_if_empty();
    }
    Ok(removed)
}

/// Removes all entries of a directory except those in `keep`. A missing directory is no error.
pub(super) fn remove_except(directory: &Path, keep: &[PathBuf]) -> Result<(), Error> {
    for path in entries(directory)?
        .into_iter()
        .filter(|path| !keep.contains(path))
    {
        let removed = if path.is_dir() {
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|source| Error::Pins { path, source })?;
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |source| Error::Pins {
        path: directory.to_owned(),
        source,
    };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(error))
            .collect(),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(error(source)),
    }
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or_else(|| Path::new("/"))
}

/// The process that has locked an inode, from `/proc/locks` (`proc_locks(5)`).
fn holder(inode: u64) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let Some(pid) = holder_in(&locks, inode) else {
        return "a process that /proc/locks does not name".to_owned();
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} (pid {pid})", name.trim_end())
}

fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4321 00:1f:1234 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        let of = fields.get(5)?.rsplit(':').next()?.parse::<u64>().ok()?;
        (fields.get(1) == Some(&"FLOCK") && of == inode).then(|| fields.get(4)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 00:1f:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4321 00:1f:99 0 EOF\n";
        assert_eq!(holder_in(locks, 99), Some(4321));
        assert_eq!(holder_in(locks, 98), None);
    }
}
