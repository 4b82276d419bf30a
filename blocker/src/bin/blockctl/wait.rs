//! Shows progress on standard error, if it is a terminal, while an answer takes long.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use blocker::api::client::Client;
use indicatif::{HumanCount, ProgressBar};

/// No progress is shown before this time.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often the daemon's status is requested.
const INTERVAL: Duration = Duration::from_millis(200);

/// From this number of targets on, the message names it.
const MANY: usize = 10_000;

/// Waits for an answer that may take as long as a teardown; `targets` is the number that was sent.
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
            // The progress is optional, so errors of its requests are ignored.
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
