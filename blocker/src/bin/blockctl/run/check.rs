//! A check: repeats attempts until one finds what is expected, or the time is over.

use std::time::Duration;

use blocker::runbook::{Check, Connect, Probe};
use tokio::time::{Instant, sleep_until};

use super::probe::{self, Surroundings, Tried};
use super::progress::Progress;

/// The result of a check.
pub(super) struct Checked {
    /// Whether the last attempt found what is expected.
    pub(super) met: bool,
    /// What the last attempt found.
    pub(super) found: String,
    /// The number of attempts.
    pub(super) tries: u32,
}

/// Carries out a check. If it is dropped, a command in progress is killed.
pub(super) async fn check(
    check: &Check,
    surroundings: &Surroundings,
    progress: &mut Progress,
) -> Checked {
    let end = check.within.map(|within| Instant::now() + within);
    let least = least(check);
    let mut tries = 0;
    loop {
        tries += 1;
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = left.map_or(check.timeout, |left| check.timeout.min(left.max(least)));
        let (met, found, again) = match probe::once(&check.probe, limit, surroundings).await {
            Tried::Met(found) => (true, found, false),
            Tried::Unmet(found) => (false, found, true),
            Tried::Impossible(why) => (false, why, false),
        };
        let next = Instant::now() + check.every;
        match end.filter(|end| again && next + least <= *end) {
            Some(end) => progress.again(&found, tries, end),
            None => return Checked { met, found, tries },
        }
        sleep_until(next).await;
    }
}

/// The time that must be left for another attempt. A shorter attempt would only find its own limit, and a
/// connection that is expected to time out would seem to do so.
fn least(check: &Check) -> Duration {
    match &check.probe {
        Probe::Tcp(tcp) if tcp.expect == Connect::TimesOut => check.timeout,
        _ => check.timeout.min(check.every),
    }
}
