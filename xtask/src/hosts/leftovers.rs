//! The objects that this process has made outside itself. A list of them lets a signal handler
//! remove them, and names with the pid let a later process remove them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The prefix of every name that this module makes. The pid follows.
const PREFIX: &str = "blocker-test-";

/// The directory of named network namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";
/// The mount point of the BPF file system.
pub(super) const BPF: &str = "/sys/fs/bpf";

/// An object that outlives this process unless it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leftover {
    /// A child process.
    Process(i32),
    /// A pin directory.
    Pins(PathBuf),
    /// A directory of files.
    Directory(PathBuf),
    /// A network namespace, by name.
    Namespace(String),
}

static LEFTOVERS: Mutex<Vec<Leftover>> = Mutex::new(Vec::new());
/// Locked while [`clean_up`] runs.
static CLEANING: Mutex<()> = Mutex::new(());
static CLOSED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A unique name: `blocker-test-<pid>-<number>-<label>`.
pub(super) fn unique(label: &str) -> String {
    SWEEP.call_once(sweep);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{label}", std::process::id())
}

/// Lists an object that is about to be made, or was just made. Once [`clean_up`] has begun, removes
/// the object and does not return, since the process is about to end.
pub(super) fn made(what: Leftover) {
    let mut list = list();
    if CLOSED.load(Ordering::SeqCst) {
        drop(list);
        what.undo();
        loop {
            std::thread::park();
        }
    }
    list.push(what);
}

/// Removes an object that is still listed.
pub(super) fn undo(what: &Leftover) {
    let noted = {
        let mut list = list();
        let before = list.len();
        list.retain(|other| other != what);
        list.len() < before
    };
    if noted {
        what.undo();
    }
}

/// Takes an object off the list that does not exist any more.
pub(super) fn gone(what: &Leftover) {
    list().retain(|other| other != what);
}

/// Removes all listed objects, before the process ends. No object can be made afterwards. A second
/// caller waits until the first one has finished.
pub fn clean_up() {
    let _cleaning = CLEANING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut everything = {
        let mut list = list();
        CLOSED.store(true, Ordering::SeqCst);
        std::mem::take(&mut *list)
    };
    // Processes first: a namespace exists as long as a process is in it.
    everything.sort_by_key(|what| match what {
        Leftover::Process(_) => 0,
        Leftover::Pins(_) => 1,
        Leftover::Directory(_) => 2,
        Leftover::Namespace(_) => 3,
    });
    for what in everything {
        what.undo();
    }
}

impl Leftover {
    /// Ignores failures, which mostly mean that the object does not exist any more.
    fn undo(&self) {
        match self {
            Self::Process(pid) => {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            Self::Pins(path) | Self::Directory(path) => {
                let _ = fs::remove_dir_all(path);
            }
            Self::Namespace(name) => {
                let _ = Command::new("ip")
                    .args(["netns", "delete", name])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

fn list() -> MutexGuard<'static, Vec<Leftover>> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the pins and namespaces of killed processes, whose guards did not run.
fn sweep() {
    let orphans = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| is_orphan(name)).collect()
    };
    for name in orphans(BPF) {
        Leftover::Pins(Path::new(BPF).join(name)).undo();
    }
    for name in orphans(NAMESPACES) {
        Leftover::Namespace(name).undo();
    }
}

fn is_orphan(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
