//! `stats`: requests totals once an interval, and prints the rates between them.

use std::time::Duration;

use blocker::api::client::Client;
use jiff::Timestamp;

use crate::args::{Global, Output, StatsArgs};
use crate::failure::Failure;
use crate::render::{self, View};
use crate::{input, output, rates};

/// The default interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints rates once an interval, as many times as requested or until the reader closes the pipe.
pub(crate) async fn stats(
    client: &Client,
    args: &StatsArgs,
    global: &Global,
) -> Result<(), Failure> {
    let interval = match &args.interval {
        Some(text) => input::interval(text)?,
        None => INTERVAL,
    };
    // Once by default; without end if only an interval is given.
    let wanted = match (args.count, &args.interval) {
        (Some(count), _) => Some(count),
        (None, Some(_)) => None,
        (None, None) => Some(1),
    };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before = client.stats().await?;
    let mut shown: u64 = 0;
    while wanted.is_none_or(|wanted| shown < u64::from(wanted)) {
        ticks.tick().await;
        let after = client.stats().await?;
        let rates = rates::between(&before, &after);
        before = after;
        let text = match global.output {
            _ if global.quiet => String::new(),
            Output::Table => {
                let view = View {
                    width: output::width(),
                    now: Timestamp::now(),
                };
                let gap = if shown > 0 { "\n" } else { "" };
                gap.to_owned() + &render::stats(&rates, view)
            }
            Output::Json => output::line(&rates)?,
            Output::Yaml => format!("---\n{}", output::exact(&rates, Output::Yaml)?),
        };
        if !output::print(&text)? {
            break;
        }
        shown += 1;
    }
    Ok(())
}
