//! The control socket: made by the daemon, or taken from the service manager.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use tokio::net::UnixListener;

use crate::config::Control;
use crate::service::Passed;

/// Why the control socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon listens at the path.
    #[error("control socket {}: another daemon answers there: stop it, or set control.socket", .0.display())]
    InUse(PathBuf),
    /// The path is not a socket.
    #[error("control socket {}: something that is no socket is in its place", .0.display())]
    NotASocket(PathBuf),
    /// The configured group does not exist.
    #[error(
        "control.group: there is no group {0:?}: create it (`groupadd --system {0}`), or leave the key out"
    )]
    NoGroup(String),
    /// The socket can't be made.
    #[error("control socket {}: {source}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The service manager made a socket elsewhere.
    #[error(
        "control.socket is {}, but the service manager listens on {}: make them the same (`systemctl edit blocker.socket`), or do without blocker.socket (`systemctl mask --now blocker.socket`)",
        .configured.display(), .passed.display()
    )]
    Elsewhere {
        /// What the configuration says.
        configured: PathBuf,
        /// Where the passed socket is.
        passed: PathBuf,
    },
}

/// The control socket. Dropping it removes its file if the daemon made it.
pub struct Socket {
    pub(super) listener: UnixListener,
    pub(super) file: Option<SocketFile>,
}

pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _removed = fs::remove_file(&self.0);
    }
}

/// Makes the control socket, with its directory, mode and group.
///
/// A socket file that nobody listens on is left by a dead daemon, and is replaced.
///
/// # Errors
/// See [`ServeError`].
pub fn bind(control: &Control) -> Result<Socket, ServeError> {
    let path = &control.socket;
    let error = |source| ServeError::Socket {
        path: path.clone(),
        source,
    };
    let group = control.group.as_deref().map(find_group).transpose()?;
    clear(path)?;
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::create_dir_all(directory).map_err(error)?;
    }
    // Nobody may connect before mode and group are set.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(error)?;
    let file = SocketFile(path.clone());
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(error)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(control.mode.bits())).map_err(error)?;
    Ok(Socket {
        listener,
        file: Some(file),
    })
}

/// Takes the control socket that the service manager made. Its mode and group are the service
/// manager's; if the configuration differs, that is logged.
///
/// # Errors
/// If it is not where the configuration says, or can't be served.
pub fn take(control: &Control, passed: Passed) -> Result<Socket, ServeError> {
    let path = &control.socket;
    let error = |source| ServeError::Socket {
        path: path.clone(),
        source,
    };
    let group = control.group.as_deref().map(find_group).transpose()?;
    if passed.path != *path {
        return Err(ServeError::Elsewhere {
            configured: path.clone(),
            passed: passed.path,
        });
    }
    let metadata = fs::symlink_metadata(path).map_err(error)?;
    let mode = metadata.mode() & 0o777;
    if mode != control.mode.bits() {
        let wanted = control.mode.bits();
        tracing::warn!(
            "control.mode is {wanted:04o}, but the service manager made the socket with mode {mode:04o}: blocker.socket decides"
        );
    }
    if let Some(group) = group.filter(|group| *group != metadata.gid()) {
        let its = metadata.gid();
        tracing::warn!(
            "control.group has gid {group}, but the service manager gave the socket to gid {its}: blocker.socket decides who can connect, control.group who may change rules"
        );
    }
    passed.listener.set_nonblocking(true).map_err(error)?;
    Ok(Socket {
        listener: UnixListener::from_std(passed.listener).map_err(error)?,
        file: None,
    })
}

pub(super) fn find_group(name: &str) -> Result<u32, ServeError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(ServeError::NoGroup(name.to_owned())),
    }
}

fn clear(path: &Path) -> Result<(), ServeError> {
    let error = |source| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket(path.to_owned()));
    }
    if StdUnixStream::connect(path).is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(error)
}
