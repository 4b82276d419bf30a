//! A guard that kills a process.

use std::process::Child;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is killed when this is dropped, even if a signal has stopped it.
pub struct Killed(pub Child);

impl Killed {
    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id().cast_signed()), signal)?)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // A process that has ended already is no error.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}
