//! Network namespaces of this host: finding each once, and opening sockets inside.
//!
//! A socket stays in the namespace in which it was opened. So a thread enters a namespace only to open
//! sockets, and the caller's thread does everything else.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// How people may find it: its path under `/run/netns` or `/proc/PID/ns/net`.
    pub(crate) path: PathBuf,
    /// Absent for the namespace that this program runs in.
    file: Option<File>,
}

impl Namespace {
    /// The one that this program runs in.
    pub(crate) fn own() -> Self {
        Self {
            path: PathBuf::from(OWN),
            file: None,
        }
    }

    /// Whether it is the one that this program runs in.
    pub(crate) fn is_own(&self) -> bool {
        self.file.is_none()
    }

    /// A descriptor of it.
    pub(crate) fn descriptor(&self) -> io::Result<File> {
        self.file
            .as_ref()
            .map_or_else(|| File::open(OWN), File::try_clone)
    }

    /// Runs `open` inside, on another thread. Its result must not depend on that thread.
    pub(crate) fn inside<T: Send>(
        &self,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let Some(file) = &self.file else {
            return open();
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    open()
                })?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread inside panicked")))
        })
    }
}

const OWN: &str = "/proc/thread-self/ns/net";

/// Every network namespace that a process is in or that has a name, each once, ours first.
///
/// Notes say which could not be looked at. A namespace that only an open descriptor or a mount elsewhere
/// keeps alive is not found.
pub(crate) fn all(notes: &mut Vec<String>) -> Vec<Namespace> {
    let mut seen = HashSet::new();
    let mut namespaces = vec![Namespace::own()];
    let nsfs = match fs::metadata(OWN) {
        Ok(own) => {
            seen.insert(own.ino());
            own.dev()
        }
        Err(e) => {
            notes.push(format!(
                "{OWN}: {e}: other network namespaces were not looked at"
            ));
            return namespaces;
        }
    };
    let mut refused = 0u32;
    for path in candidates() {
        // A process may have ended since it was listed; then its namespace needs no teardown.
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) => {
                refused += u32::from(e.kind() == io::ErrorKind::PermissionDenied);
                continue;
            }
        };
        // A plain file under /run/netns is what `ip netns add` leaves behind if it fails.
        if metadata.dev() != nsfs || !seen.insert(metadata.ino()) {
            continue;
        }
        match File::open(&path) {
            Ok(file) => namespaces.push(Namespace {
                path,
                file: Some(file),
            }),
            Err(e) => {
                refused += u32::from(e.kind() == io::ErrorKind::PermissionDenied);
                seen.remove(&metadata.ino());
            }
        }
    }
    if refused > 0 {
        notes.push(format!(
            "the network namespaces of {refused} processes could not be looked at: permission denied (CAP_SYS_PTRACE)"
        ));
    }
    namespaces
}

/// Names first, so that notes show them rather than a pid.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = ["/run/netns", "/run/docker/netns"]
        .into_iter()
        .flat_map(|dir| entries(Path::new(dir)));
    let processes = entries(Path::new("/proc"))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
        })
        .map(|path| path.join("ns/net"));
    named.chain(processes)
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_comes_first_and_none_comes_twice() {
        let mut notes = Vec::new();
        let namespaces = all(&mut notes);
        assert!(namespaces[0].is_own());
        let mut seen = HashSet::new();
        for namespace in &namespaces {
            let file = namespace.file.as_ref();
            let metadata = file.map_or_else(|| fs::metadata(OWN), File::metadata);
            let metadata = metadata.unwrap();
            assert!(seen.insert((metadata.dev(), metadata.ino())));
        }
    }

    #[test]
    fn our_own_is_entered_without_a_thread() {
        let thread = std::thread::current().id();
        let inside = Namespace::own().inside(|| Ok(std::thread::current().id()));
        assert_eq!(inside.unwrap(), thread);
    }
}
