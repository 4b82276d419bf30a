//! Small pieces of text: times, counts, endpoints, what a rule matches.
//!
//! Pure: the wall clock is an argument.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blocker::rule::{Direction, Ports, Protocol, Rule, Target};
use clap::builder::styling::{AnsiColor, Style};
use indicatif::{BinaryBytes, HumanCount};
use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};
use jiff::{RoundMode, SpanRound, Timestamp, ToSpan as _, Unit};

/// Errors.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Warnings.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Success, and what was added.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();

/// Text in a style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Text without control characters, which a terminal would obey. Process names, for example, are chosen by
/// the process.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// As [`printable`], line by line.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// A duration: `500ms`, `2.5s`, `1m 30s`.
pub(crate) fn shortly(time: Duration) -> String {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match milliseconds {
        0..1_000 => format!("{milliseconds}ms"),
        // To a tenth, without `.0`.
        1_000..60_000 => format!("{}s", (time.as_secs_f64() * 10.0).round() / 10.0),
        _ => span(milliseconds.saturating_add(500) / 1_000),
    }
}

/// A duration in its two largest units, rounded down: `4m 51s`, `2d 3h`.
pub(crate) fn span(seconds: u64) -> String {
    let smallest = match seconds {
        0..3_600 => Unit::Second,
        3_600..86_400 => Unit::Minute,
        _ => Unit::Hour,
    };
    let round = SpanRound::new()
        .largest(Unit::Day)
        .smallest(smallest)
        .mode(RoundMode::Trunc)
        .days_are_24_hours();
    let printer = SpanPrinter::new()
        .designator(Designator::Compact)
        .spacing(Spacing::BetweenUnits);
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| 0.seconds().try_seconds(seconds).ok())
        .and_then(|span| span.round(round).ok())
        .map_or_else(
            || format!("{seconds}s"),
            |span| printer.span_to_string(&span),
        )
}

/// Seconds from `earlier` to `later`, rounded to the nearest, so that a deadline of `5m` is shown as `5m`
/// some milliseconds later; 0 if `later` is earlier.
pub(crate) fn seconds_between(earlier: Timestamp, later: Timestamp) -> u64 {
    let milliseconds = later.as_millisecond() - earlier.as_millisecond();
    u64::try_from((milliseconds + 500).div_euclid(1_000)).unwrap_or(0)
}

/// When a rule ends, in a table: `4m 51s left`, `lifted`.
pub(crate) fn until(remaining_seconds: Option<u64>) -> String {
    match remaining_seconds {
        Some(seconds) => format!("{} left", span(seconds)),
        None => "lifted".to_owned(),
    }
}

/// A point in time, to the second, UTC: `2026-11-23 21:30:00 UTC`.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A count, exact up to four digits, else with three significant digits: `12.3k`, `4.56M`.
pub(crate) fn count(n: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1_000, "k"),
    ];
    if n < 10_000 {
        return n.to_string();
    }
    let (unit, letter) = UNITS
        .into_iter()
        .find(|(unit, _)| n >= *unit)
        .unwrap_or((1, ""));
    // Truncated, not rounded, so that 999,999 is not "1000k".
    let thousandths = u128::from(n) * 1_000 / u128::from(unit);
    let (whole, rest) = (thousandths / 1_000, thousandths % 1_000);
    match whole {
        0..10 => format!("{whole}.{:02}{letter}", rest / 10),
        10..100 => format!("{whole}.{}{letter}", rest / 100),
        _ => format!("{whole}{letter}"),
    }
}

/// A rate: exact to a tenth below a hundred, as [`count`] above.
pub(crate) fn per_second(rate: f64) -> String {
    if rate == 0.0 {
        "0".to_owned()
    } else if rate < 99.95 {
        format!("{rate:.1}")
    } else {
        // No rate is near the limit of u64.
        count(rate.round() as u64)
    }
}

/// A number of bytes: `412 B`, `1.46 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    BinaryBytes(n).to_string()
}

/// "1 rule", "3 rules".
pub(crate) fn counted(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// "1 event", "12,345 events".
pub(crate) fn many(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", HumanCount(n))
}

/// An address and port: `192.0.2.7:80`, `[2001:db8::1]:443`; without the port if the protocol has
/// none.
pub(crate) fn endpoint(address: IpAddr, port: u16, protocol: &str) -> String {
    match protocol {
        "tcp" | "udp" | "sctp" | "dccp" => SocketAddr::new(address, port).to_string(),
        _ => address.to_string(),
    }
}

/// The first target, and the number of the others: `10.0.0.0/8 (+3)`.
pub(crate) fn targets(targets: &[Target]) -> String {
    match targets {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, others @ ..] => format!("{first} (+{})", others.len()),
    }
}

/// What narrows a rule beside its targets, as short as may be: `tcp, port 80, ingress`. Empty if
/// nothing does.
pub(crate) fn matching(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if rule.matching.protocol != Protocol::Any {
        parts.push(rule.matching.protocol.to_string());
    }
    for (name, ports) in [
        ("port", &rule.matching.ports),
        ("local port", &rule.matching.local_ports),
        ("remote port", &rule.matching.remote_ports),
    ] {
        if !ports.is_empty() {
            parts.push(format!("{name} {}", list(ports)));
        }
    }
    if !rule.matching.local.is_empty() {
        parts.push(format!("local {}", targets(&rule.matching.local)));
    }
    if rule.matching.direction != Direction::Both {
        parts.push(rule.matching.direction.to_string());
    }
    if !rule.matching.interfaces.is_empty() {
        parts.push(format!("on {}", rule.matching.interfaces.join(",")));
    }
    if !rule.matching.percent.is_all() {
        parts.push(format!("{} percent", rule.matching.percent));
    }
    if !rule.except.is_empty() {
        parts.push(format!("except {}", targets(&rule.except)));
    }
    parts.join(", ")
}

/// Port ranges, separated by commas: `80,8080-8085`.
pub(crate) fn list(ports: &[Ports]) -> String {
    let mut out = String::new();
    for (i, ports) in ports.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(out, "{comma}{ports}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (291, "4m 51s"),
            (300, "5m"),
            (3_600, "1h"),
            (11_549, "3h 12m"),
            (86_399, "23h 59m"),
            (183_600, "2d 3h"),
            (315_360_000, "3650d"),
        ] {
            assert_eq!(span(seconds), text, "{seconds} seconds");
        }
        assert_eq!(span(u64::MAX), "18446744073709551615s");
    }

    #[test]
    fn short_times_keep_their_tenths() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (500, "500ms"),
            (1_000, "1s"),
            (2_480, "2.5s"),
            (90_000, "1m 30s"),
            (3_600_000, "1h"),
        ] {
            assert_eq!(shortly(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn counts_keep_three_digits() {
        for (n, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (12_345, "12.3k"),
            (999_999, "999k"),
            (1_000_000, "1.00M"),
            (45_670_000, "45.6M"),
            (u64::MAX, "18446744T"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn time_that_runs_backwards_is_none() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(seconds_between(at(10), at(25)), 15);
        assert_eq!(seconds_between(at(25), at(10)), 0);
    }

    #[test]
    fn endpoints() {
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(endpoint(v6, 443, "tcp"), "[2001:db8::1]:443");
        assert_eq!(endpoint(v6, 0, "icmp"), "2001:db8::1");
    }
}
