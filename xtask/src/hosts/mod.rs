//! Hosts for tests: network namespaces joined by veth, TCP connections between them, and a real
//! `blocker` in one of them. Needs root.
//!
//! Every object is a guard that removes what it made when it is dropped. [`clean_up`] removes the
//! rest before a signal ends the process. Names contain the pid and a number, so that tests can run
//! in parallel. The next process removes the pins and namespaces that a killed process left.
//!
//! Knows how hosts are made and what an endpoint saw, but not what blocker promises.

mod capture;
mod connection;
mod daemon;
mod killed;
mod leftovers;
mod namespace;
mod pins;
mod topology;

pub use capture::Capture;
pub use connection::{Connection, Death, End, Listener, connect_timed, wait_dead};
pub use daemon::{Daemon, Output, Programs, output};
pub use killed::Killed;
pub use leftovers::clean_up;
pub use namespace::Namespace;
pub use pins::Pins;
pub use topology::{Bridged, Pair, Routed, join};

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Environment variable: the factor on the time limits of [`poll`], for slow (emulated) machines.
const PATIENCE: &str = "BLOCKER_TEST_PATIENCE";

/// Calls `ask` until it returns an answer. The error names `what`, the event that is waited for.
///
/// # Errors
/// `ask` returns no answer within the time.
pub fn poll<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let patience = std::env::var(PATIENCE).ok();
    let within = within * patience.and_then(|times| times.parse().ok()).unwrap_or(1);
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {within:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
