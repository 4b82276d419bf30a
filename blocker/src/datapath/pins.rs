//! The pin directory: where links outlive the daemon, who holds it, and how it is emptied.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::qdisc::{self, Qdiscs};
use super::{Error, attach, devices, kept};

/// The pin directory, held by this process alone.
pub struct PinDir {
    path: PathBuf,
    made: bool,
    _lock: Flock<File>,
}

impl PinDir {
    /// Makes the directory if need be and locks it.
    ///
    /// # Errors
    /// If it is not on a bpffs, or another process holds it (which is named).
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
        // The service's user is given the directory, since it may not make it.
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what a daemon that could not start has left, unless another one's work is there.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn give_up(&self) -> Result<(), Error> {
        if self.made {
            kept::remove(&self.path)?;
            self.remove_if_empty();
        }
        Ok(())
    }

    /// Removes the directory, if nothing is left in it.
    pub fn remove_if_empty(&self) {
        for path in [
            &self.path.join("links"),
            &self.path.join(qdisc::MARKS),
            &self.path,
        ] {
            // Not empty, or gone already: both are fine.
            let _removed = fs::remove_dir(path);
        }
    }
}

/// Removes every trace of a datapath without a daemon: pins, and clsact filters of this network
/// namespace, with the qdiscs that blocker added for them. Returns how many links were removed.
///
/// # Errors
/// If a daemon holds the directory, or something can't be removed.
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

/// Removes all entries of a directory but the given ones; that there is no directory is fine.
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

/// Who holds a lock on an inode, from `/proc/locks` (`proc_locks(5)`).
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
