//! A check: tries, until one is as expected or the time is over.

use std::time::Duration;

use blocker::runbook::{Check, Connect, Probe};
use tokio::time::{Instant, sleep_until};

use super::probe::{self, Surroundings, Tried};
use super::progress::Progress;

/// What came of a check.
pub(super) struct Checked {
    /// Whether the last try was as expected.
    pub(super) met: bool,
    /// What it found.
    pub(super) found: String,
    /// How many there were.
    pub(super) tries: u32,
}

/// Checks. May be dropped at any time: a command that runs is killed then.
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

/// How long there must be left for another try. One that is cut short would find nothing but that,
/// and a connection that is to time out would seem to.
fn least(check: &Check) -> Duration {
    match &check.probe {
        Probe::Tcp(tcp) if tcp.expect == Connect::TimesOut => check.timeout,
        _ => check.timeout.min(check.every),
    }
}
