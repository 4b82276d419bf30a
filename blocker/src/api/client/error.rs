//! Errors between a client and the daemon, classified by what the caller can do about them.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::TIMEOUT;
use crate::wire::BODY_LIMIT;
use crate::wire::Problem;

/// Why the daemon could not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// There is no such file.
    NoSocket,
    /// The socket's file exists, but nobody listens on it: its daemon is gone.
    Stale,
    /// The file is not a socket.
    NotASocket,
    /// Permissions deny access.
    Denied {
        /// What denies it: the socket, or a directory of its path.
        at: PathBuf,
        /// Its group, by number if it has no name.
        group: String,
        /// Its permission bits.
        mode: u32,
        /// Whether joining its group helps: the group has the permission and is not root's.
        group_may: bool,
    },
    /// Another reason, which the source names.
    Other,
}

/// Why a request failed, on the way or by the daemon's answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection was made, so the daemon did not get the request.
    #[error("{}", absence_text(path, why, source))]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        why: Absence,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something answers on the socket, but it is not blocker's daemon.
    #[error("what answers on {} is not blocker's daemon: {found}", path.display())]
    NotBlocker {
        /// The socket's path.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// The request's body is larger than the daemon reads; it was not sent.
    #[error(
        "the request is {bytes} bytes long, and the daemon reads at most {BODY_LIMIT}: split the rules"
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The connection broke before the answer was complete.
    #[error("the daemon closed the connection before it answered {request}: {source}")]
    Lost {
        /// Method and path.
        request: String,
        /// What broke.
        source: hyper::Error,
    },
    /// There was no answer in time.
    #[error("the daemon did not answer {request} within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Method and path.
        request: String,
    },
    /// The daemon's answer is not in the form that this client knows.
    #[error(
        "the daemon's answer to {request} cannot be read ({source}): are client and daemon of one version?"
    )]
    Garbled {
        /// Method and path.
        request: String,
        /// What differs.
        source: serde_json::Error,
    },
    /// The request could not be serialized.
    #[error("the request {request} cannot be written: {why}")]
    Unwritable {
        /// Method and path.
        request: String,
        /// Why.
        why: String,
    },
    /// The daemon answered with a problem.
    #[error("{}", problem_text(.0))]
    Problem(Problem),
}

fn absence_text(path: &Path, why: &Absence, source: &io::Error) -> String {
    let path = path.display();
    match why {
        Absence::NoSocket => format!("there is no control socket at {path}"),
        Absence::Stale => format!("nobody listens on {path}: its daemon is gone"),
        Absence::NotASocket => format!("{path} is not a socket"),
        Absence::Denied {
            at, group, mode, ..
        } => {
            let at = at.display();
            format!(
                "cannot connect to {path}: permission denied by {at} (group {group}, mode {mode:04o})"
            )
        }
        Absence::Other => format!("cannot connect to {path}: {source}"),
    }
}

fn problem_text(problem: &Problem) -> &str {
    if problem.detail.is_empty() {
        &problem.title
    } else {
        &problem.detail
    }
}

impl Absence {
    /// The reason behind an error of connect(2).
    pub(super) fn of(path: &Path, error: &io::Error) -> Self {
        let metadata = std::fs::metadata(path).ok();
        let is_socket = metadata.as_ref().is_some_and(|m| m.file_type().is_socket());
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoSocket,
            io::ErrorKind::PermissionDenied => denied(path),
            // The kernel gives the same error for a file that is not a socket (`unix_find_bsd`).
            io::ErrorKind::ConnectionRefused if is_socket => Self::Stale,
            io::ErrorKind::ConnectionRefused if metadata.is_some() => Self::NotASocket,
            _ => Self::Other,
        }
    }
}

/// What denies access: the longest part of the path that can be examined. A directory without search
/// permission hides what is in it, but not itself.
fn denied(path: &Path) -> Absence {
    let mut visible = path
        .ancestors()
        .filter_map(|at| Some((at, std::fs::metadata(at).ok()?)));
    match visible.next() {
        Some((at, metadata)) => Absence::Denied {
            at: at.to_owned(),
            group: group_name(metadata.gid()),
            mode: metadata.mode() & 0o7777,
            // A directory needs search permission, a socket write permission (unix(7)).
            group_may: metadata.gid() != 0
                && metadata.mode() & if metadata.is_dir() { 0o010 } else { 0o020 } != 0,
        },
        None => Absence::Other,
    }
}

fn group_name(gid: u32) -> String {
    match nix::unistd::Group::from_gid(gid.into()) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}
