//! A process that ends with its guard.

use std::process::Child;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process, killed when dropped, even if it is stopped.
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
        // Gone already is as good.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}
