//! The laboratory: network namespaces, hosts joined by veth, real connections between them, and a
//! real `blocker` in one of them.
//!
//! Everything is a guard: what it made is gone when it is dropped, and [`clean_up`] undoes what a
//! signal would leave. Names carry the pid, so that several laboratories run side by side; those
//! of a process that was killed are swept by the next. Needs root.
//!
//! Owns how the scene is set and what an endpoint saw; knows nothing of what blocker promises.

#![allow(dead_code)] // each test, and the demo, uses a part of it

mod capture;
mod connection;
mod daemon;
mod killed;
mod leftovers;
mod namespace;
mod pins;
mod topology;

#[allow(unused_imports)]
pub(crate) use capture::Capture;
#[allow(unused_imports)]
pub(crate) use connection::{Connection, Death, End, Listener, connect_timed, wait_dead};
#[allow(unused_imports)]
pub(crate) use daemon::{Daemon, Output, Programs, output};
#[allow(unused_imports)]
pub(crate) use killed::Killed;
#[allow(unused_imports)]
pub(crate) use leftovers::clean_up;
#[allow(unused_imports)]
pub(crate) use namespace::Namespace;
#[allow(unused_imports)]
pub(crate) use pins::Pins;
#[allow(unused_imports)]
pub(crate) use topology::{Bridged, Pair, Routed, join};

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How many times as long everything may take, for machines that are slow (emulated ones).
const PATIENCE: &str = "BLOCKER_TEST_PATIENCE";

/// Asks again until the answer is there. `what` is what is waited for, for the error.
///
/// # Errors
/// There is no answer within the time.
pub(crate) fn poll<T>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> Result<T> {
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
