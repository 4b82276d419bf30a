//! What the laboratory has made outside of its process: a list, so that a signal can undo it,
//! and names that tell whose it is, so that a later run can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What every name of ours begins with; the pid follows.
const PREFIX: &str = "blocker-test-";

/// Where named network namespaces lie.
pub(super) const NAMESPACES: &str = "/run/netns";
/// Where the kernel's BPF file system is mounted.
pub(super) const BPF: &str = "/sys/fs/bpf";

/// Something that outlives the process unless it is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leftover {
    /// A process that we started.
    Process(i32),
    /// A directory of pins.
    Pins(PathBuf),
    /// A directory of files.
    Directory(PathBuf),
    /// A network namespace, by name.
    Namespace(String),
}

static LEFTOVERS: Mutex<Vec<Leftover>> = Mutex::new(Vec::new());
/// Held for as long as everything is being undone.
static CLEANING: Mutex<()> = Mutex::new(());
static CLOSED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A name that nobody else has: `blocker-test-<pid>-<number>-<label>`.
pub(super) fn unique(label: &str) -> String {
    SWEEP.call_once(sweep);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{label}", std::process::id())
}

/// Notes that something is about to be made, or was. Once everything is being undone it does not
/// return: the process is about to end, and nothing more is made.
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

/// Undoes something, if it was not undone yet.
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

/// Takes something off the list that is gone already.
pub(super) fn gone(what: &Leftover) {
    list().retain(|other| other != what);
}

/// Undoes everything. For a process that is about to end, by a signal or not: nothing can be made
/// after it. Whoever calls it while another thread is at it waits.
pub fn clean_up() {
    let _cleaning = CLEANING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut everything = {
        let mut list = list();
        CLOSED.store(true, Ordering::SeqCst);
        std::mem::take(&mut *list)
    };
    // A namespace lives on as long as a process is in it.
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
    /// Nothing can be done about a failure, and mostly it means that it is gone already.
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

/// Undoes what processes left that are no more: they were killed, so no guard of theirs ran.
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
