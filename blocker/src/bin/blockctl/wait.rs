//! Shows that something is going on, where waiting takes long enough to wonder.
//!
//! Only on a terminal, on stderr, and gone when the answer is there.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use blocker::api::client::Client;
use indicatif::{HumanCount, ProgressBar};

/// What is over sooner than this needs no sign of life.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often the daemon is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(200);

/// So many targets are worth a mention: the daemon is some time at work on them.
const MANY: usize = 10_000;

/// Waits for an answer that may take a teardown's time; `targets` is how many are sent.
pub(crate) async fn patiently<T>(
    client: &Client,
    quiet: bool,
    targets: usize,
    answer: impl Future<Output = T>,
) -> T {
    tokio::pin!(answer);
    if quiet || !stderr().is_terminal() {
        return answer.await;
    }
    if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut answer).await {
        return answer;
    }
    let work = match targets {
        MANY.. => format!(
            "waiting for the daemon: {} targets",
            HumanCount(targets as u64)
        ),
        _ => "waiting for the daemon".to_owned(),
    };
    let bar = ProgressBar::new_spinner().with_message(work);
    bar.enable_steady_tick(INTERVAL / 2);
    let follow = async {
        loop {
            // A status that can't be had is no reason to trouble whoever waits for something else.
            if let Ok(status) = client.status().await
                && let Some(teardown) = status.teardown
            {
                bar.set_message(format!(
                    "killing established flows: {} of {}",
                    HumanCount(teardown.killed),
                    HumanCount(teardown.found)
                ));
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let answer = tokio::select! {
        answer = &mut answer => answer,
        () = follow => unreachable!("it goes on until it is dropped"),
    };
    bar.finish_and_clear();
    answer
}
