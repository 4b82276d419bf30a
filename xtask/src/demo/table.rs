//! Prints the demonstration's rows, and checks those of blocker.

use std::io::ErrorKind;
use std::time::Duration;

use super::play::{Attempt, CONNECT, Flow, LIFT, Observed, SEND, Seen, Sender, Sent};
use super::rows::{Block, Promise, Row};

const GOOD: &str = "\x1b[32m";
const BAD: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// An end must see its error within this time from the start of the block's command. A few
/// milliseconds were measured; the rest is for a busy machine.
const SOON: Duration = Duration::from_millis(1000);

/// The lines above the table.
pub(super) fn heading() -> String {
    format!(
        "A (10.48.22.221) is cut off from B (10.171.170.104), and joined again after {:.0} s.\n\
         Three connections are open all the while: one idle, one where B sends, one where A sends,\n\
         {} ms after the block's command was started. Times count from that command.\n\n{}",
        LIFT.as_secs_f64(),
        SEND.as_millis(),
        line("", "A sees", "B sees", "what was sent during the block")
    )
}

/// A row: a line for each connection, and one for new connections.
pub(super) fn row(row: &Row, observed: &Observed) -> String {
    let mut text = format!("\n{BOLD}{}{PLAIN}\n", row.title);
    for flow in &observed.flows {
        let sender = match flow.sender {
            Sender::Nobody => "idle",
            Sender::B => "B sends",
            Sender::A => "A sends",
        };
        text += &line(sender, &seen(flow.a), &seen(flow.b), &sent(row, flow));
    }
    let (a, b) = (attempt(observed.from_a), attempt(observed.from_b));
    text += &line("connect()", &a, &b, "");
    if let Some(account) = &observed.account
        && kills(row)
    {
        text += &format!("  reported  {account}\n");
    }
    for broken in broken(row, observed) {
        text += &format!("  {BAD}BROKEN{PLAIN}  {broken}\n");
    }
    text
}

/// Whether a row must kill established connections at its start.
fn kills(row: &Row) -> bool {
    matches!(
        row.block,
        Block::Blocker {
            promise: Promise::Reset | Promise::KilledOutage,
            ..
        }
    )
}

fn line(label: &str, a: &str, b: &str, sent: &str) -> String {
    let line = format!("  {label:<9} {a:<20} {b:<20} {sent}");
    line.trim_end().to_owned() + "\n"
}

fn seen(seen: Option<Seen>) -> String {
    match seen {
        None => "nothing".to_owned(),
        Some(Seen { error, after }) => {
            let error = error.map_or_else(|| "end".to_owned(), |error| format!("{error:?}"));
            format!("{error} {}", time(after))
        }
    }
}

fn sent(row: &Row, flow: &Flow) -> String {
    let text = match flow.sent {
        Sent::Nothing => None,
        Sent::Never => Some(format!("{GOOD}never delivered{PLAIN}")),
        Sent::NotYet => Some("not delivered yet".to_owned()),
        Sent::DuringTheBlock => Some(format!("{BAD}delivered during the block{PLAIN}")),
        Sent::AfterTheLift(after) => {
            let colour = match row.block {
                Block::Blocker {
                    promise: Promise::Outage,
                    ..
                } => PLAIN,
                _ => BAD,
            };
            Some(format!(
                "{colour}delivered, {} after lift{PLAIN}",
                time(after)
            ))
        }
    };
    let ends = match (flow.later, flow.a.is_some(), flow.b.is_some()) {
        ([Some(a), Some(b)], _, _) => Some(format!(
            "both reset at lift + {}",
            time(a.after.max(b.after))
        )),
        ([None, None], true, false) => Some(format!("{BAD}B is half-open{PLAIN}")),
        ([None, None], false, true) => Some(format!("{BAD}A is half-open{PLAIN}")),
        _ => None,
    };
    let parts: Vec<_> = text.into_iter().chain(ends).collect();
    parts.join("; ")
}

fn attempt(attempt: Attempt) -> String {
    match attempt.error {
        None => format!("connected {}", time(attempt.after)),
        Some(ErrorKind::ConnectionRefused) => format!("refused {}", time(attempt.after)),
        Some(ErrorKind::TimedOut) => format!("no answer in {} ms", CONNECT.as_millis()),
        Some(ErrorKind::HostUnreachable) => format!("unreachable {}", time(attempt.after)),
        Some(other) => format!("{other} {}", time(attempt.after)),
    }
}

fn time(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1000.0;
    if milliseconds < 10.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

/// The promises that a row broke; none for rows without one.
pub(super) fn broken(row: &Row, observed: &Observed) -> Vec<String> {
    let Block::Blocker { promise, .. } = row.block else {
        return Vec::new();
    };
    let mut broken = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            broken.push(what);
        }
    };
    for flow in &observed.flows {
        let name = match flow.sender {
            Sender::Nobody => "the idle connection",
            Sender::B => "the connection where B sends",
            Sender::A => "the connection where A sends",
        };
        let killed = [flow.a, flow.b].map(|seen| seen.is_some_and(|seen| seen.after < SOON));
        let quiet = flow.a.is_none() && flow.b.is_none();
        let stale = matches!(flow.sent, Sent::AfterTheLift(_) | Sent::DuringTheBlock);
        match promise {
            Promise::Reset | Promise::KilledOutage => {
                must(
                    killed == [true, true],
                    format!("{name} dies at both ends at once"),
                );
                must(!stale, format!("{name} delivers nothing stale"));
            }
            Promise::Outage => {
                must(quiet, format!("{name} sees nothing during the block"));
                must(
                    flow.later.iter().all(Option::is_none) && flow.sent != Sent::DuringTheBlock,
                    format!("{name} goes on after the lift, and not before"),
                );
                must(
                    flow.sender == Sender::Nobody || matches!(flow.sent, Sent::AfterTheLift(_)),
                    format!("{name} delivers after the lift what was sent before"),
                );
            }
            Promise::OutageThenReset => {
                must(quiet, format!("{name} sees nothing during the block"));
                must(!stale, format!("{name} delivers nothing stale"));
                must(
                    flow.sender == Sender::Nobody || flow.later.iter().all(Option::is_some),
                    format!("{name} dies at both ends at the lift"),
                );
            }
        }
    }
    for (from, attempt) in [("A", observed.from_a), ("B", observed.from_b)] {
        let refused = attempt.error == Some(ErrorKind::ConnectionRefused);
        let silent = attempt.error == Some(ErrorKind::TimedOut);
        match promise {
            Promise::Reset => must(
                refused && attempt.after < CONNECT,
                format!("a new connection from {from} is refused at once"),
            ),
            Promise::Outage | Promise::KilledOutage | Promise::OutageThenReset => must(
                silent,
                format!("a new connection from {from} gets no answer"),
            ),
        }
    }
    broken
}
