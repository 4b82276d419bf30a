//! Network namespaces as hosts, joined by veth; real connections between them; a real `blocker` in one
//! of them.
//!
//! Everything is a guard: what it made is gone when it is dropped, and [`clean_up`] undoes what a
//! signal would leave. Names carry the pid and a number, so that tests and processes can run side by
//! side; what a killed process left, the next process removes. Needs root.
//!
//! Owns how hosts are made and what an endpoint saw; knows nothing of what blocker promises.

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

/// How many times as long everything may take, for machines that are slow (emulated ones).
const PATIENCE: &str = "BLOCKER_TEST_PATIENCE";

/// Asks again until the answer is there. `what` is what is waited for, for the error.
///
/// # Errors
/// There is no answer within the time.
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
