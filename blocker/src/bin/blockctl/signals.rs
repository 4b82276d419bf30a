//! SIGINT, SIGTERM and SIGHUP as a stream.

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// SIGINT, SIGTERM and SIGHUP.
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// Handles these signals from now on; they no longer end the process.
    pub(crate) fn new() -> Result<Self, Failure> {
        let of = |kind| {
            unix::signal(kind)
                .map_err(|error| Failure::Output(format!("signals cannot be waited for: {error}")))
        };
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// The next signal, also one that came before the call. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
        }
    }
}
