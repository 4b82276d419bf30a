//! The service manager's protocols (systemd's): notification, socket activation and the watchdog.
//!
//! Does nothing without a service manager. The daemon decides what is notified, and when.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// How long to wait for the service manager to process a notification, as `sd_notify(1)` does.
const HEARING: Duration = Duration::from_secs(5);

/// Why a socket that was passed can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// The environment variables that describe it are wrong.
    #[error("the service manager passes sockets (LISTEN_FDS) in a way that cannot be read: {0}")]
    Said(io::Error),
    /// More than one socket was passed.
    #[error(
        "the service manager passes {0} sockets: leave one ListenStream= in blocker.socket, the control socket"
    )]
    TooMany(usize),
    /// It is not a listening Unix stream socket with a path.
    #[error(
        "the socket that the service manager passes has no path in the file system: ListenStream= in blocker.socket must be control.socket's"
    )]
    NotUnix,
}

/// A listening socket that the service manager made, and its path.
#[derive(Debug)]
pub struct Passed {
    /// The socket.
    pub listener: UnixListener,
    /// Where clients find it.
    pub path: PathBuf,
}

/// Takes the control socket, if the service manager passes it (`sd_listen_fds(3)`). To be called
/// once, since the caller owns the socket from then on.
///
/// # Errors
/// If something else was passed.
pub fn passed_socket() -> Result<Option<Passed>, PassedError> {
    let mut descriptors = sd_notify::listen_fds().map_err(PassedError::Said)?;
    let Some(descriptor) = descriptors.next() else {
        return Ok(None);
    };
    if descriptors.len() > 0 {
        return Err(PassedError::TooMany(descriptors.len() + 1));
    }
    // SAFETY: the service manager opened it for this process alone (LISTEN_PID is our pid), and
    // nothing else in it takes passed descriptors.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let listener = UnixListener::from(descriptor);
    // A socket of another family has no such address.
    let address = listener.local_addr().map_err(|_| PassedError::NotUnix)?;
    let path = address.as_pathname().ok_or(PassedError::NotUnix)?;
    let path = path.to_owned();
    Ok(Some(Passed { listener, path }))
}

/// Says that the daemon serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Waits until the service manager has processed all notifications (`sd_notify_barrier(3)`), five
/// seconds at most. Returns whether there is a service manager.
pub async fn heard() -> bool {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    if let Err(error) = barrier().await {
        tracing::warn!("whether the service manager has heard is unknown: {error}");
    }
    true
}

/// Passes one end of a pipe, which the service manager closes when it processes this message.
async fn barrier() -> io::Result<()> {
    let (ours, theirs) = io::pipe()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let mut ours = pipe::Receiver::from_owned_fd(ours.into())?;
    // Nobody writes to it: end of file says that the other end is closed.
    match timeout(HEARING, ours.read_u8()).await {
        Ok(_) => Ok(()),
        Err(late) => Err(late.into()),
    }
}

/// Says that the configuration is being reloaded, until [`ready`] is called.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// Says that the daemon is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells the watchdog that the daemon is alive for as long as `alive` says so; never returns. Without a
/// watchdog, `alive` is not called.
///
/// `alive` is called three times in the watchdog's time. While it does not answer, nothing is sent, so
/// the service manager kills and restarts a daemon that hangs.
pub async fn watchdog<E: Display, F>(alive: impl Fn() -> F) -> Infallible
where
    F: Future<Output = Result<(), E>>,
{
    let Some(within) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let mut tick = tokio::time::interval((within / 3).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match alive().await {
            Ok(()) => notify(&[NotifyState::Watchdog]),
            Err(error) => tracing::error!("the watchdog is not told that all is well: {error}"),
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}
