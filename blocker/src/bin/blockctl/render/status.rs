//! `status`.

use std::fmt::Write as _;

use blocker::wire::{
    FeedStatus, FleetState, FleetStatus, InterfaceStatus, MapStatus, Status, Usage,
};
use comfy_table::Color;
use jiff::Timestamp;

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{
    BAD, WARN, bytes, count, counted, moment, printable, seconds_between, span, styled,
};

const COLUMNS: &[Column] = &[
    Column::new("INTERFACE", Fit::Whole),
    Column::new("HOOK", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::new("SEEN", Fit::Number),
    Column::new("PASSED", Fit::Number),
    Column::new("MALFORMED", Fit::Number),
];

const FEEDS: &[Column] = &[
    Column::new("FEED", Fit::Whole),
    Column::new("TYPE", Fit::Whole),
    Column::new("STATE", Fit::Whole),
    Column::new("ENTRIES", Fit::Number),
    Column::new("CHANGED", Fit::Number),
    Column::new("CHECKED", Fit::Number),
    Column::new("FAILURES", Fit::Number),
    Column::new("SOURCE", Fit::Cut),
];

const MAPS: &[Column] = &[
    Column::new("MAP", Fit::Whole),
    Column::new("MEMORY", Fit::Number),
    Column::new("USED", Fit::Number),
    Column::new("ROOM", Fit::Number),
    Column::new("FILL", Fit::Number),
];

/// The daemon's state.
pub(crate) fn status(status: &Status, view: View) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line(
        "blocker",
        &format!("{} (map ABI {})", printable(&status.version), status.abi),
    );
    line(
        "running",
        &format!("{}, pid {}", span(status.uptime_seconds), status.pid),
    );
    line("kernel", &printable(&status.kernel));
    line("config", &printable(&status.config));
    let at = status.last_reload.at;
    let when = format!(
        "{} ({} ago)",
        moment(at),
        span(seconds_between(at, view.now))
    );
    match &status.last_reload.error {
        None => line("loaded", &when),
        Some(error) => {
            line("loaded", &styled(BAD, &format!("REFUSED {when}")));
            for text in error.lines() {
                line("", &styled(BAD, &printable(text)));
            }
            let before = moment(status.last_reload.in_force_since);
            line("", &format!("the configuration of {before} is in force"));
        }
    }
    line("rules", &usage(status.rules));
    line(
        "prefixes",
        &format!(
            "{}; IPv6 {}",
            usage(status.prefixes),
            usage(status.prefixes_v6)
        ),
    );
    line(
        "memory",
        &format!(
            "{} of maps in the kernel, {} resident",
            bytes(status.map_bytes),
            bytes(status.resident_bytes)
        ),
    );
    let killed = status.teardowns;
    line(
        "teardown",
        &format!(
            "{} of {} flows killed since the start",
            killed.killed, killed.found
        ),
    );
    if killed.left > 0 {
        let left = format!("{} flows were left alive: the log says which", killed.left);
        line("", &styled(WARN, &left));
    }
    if let Some(fleet) = &status.fleet {
        for (i, text) in followed(fleet).iter().enumerate() {
            line(if i == 0 { "fleet" } else { "" }, text);
        }
    }
    match status.lacks.as_slice() {
        [] => line("lacks", "nothing"),
        lacks => {
            for (i, lack) in lacks.iter().enumerate() {
                let name = if i == 0 { "lacks" } else { "" };
                line(name, &styled(WARN, &printable(lack)));
            }
        }
    }
    out.push('\n');
    out += &interfaces(&status.interfaces, view);
    if !status.feeds.is_empty() {
        out.push('\n');
        out += &feeds(&status.feeds, view);
    }
    if !status.maps.is_empty() {
        out.push('\n');
        out += &maps(&status.maps, view);
    }
    out
}

/// The state of the fleet, in lines.
fn followed(fleet: &FleetStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let endpoint = printable(fleet.endpoint.as_deref().unwrap_or("etcd"));
    let rules = counted(usize::try_from(fleet.rules).unwrap_or(usize::MAX), "rule");
    let stale = span(fleet.stale_seconds as u64);
    lines.push(match fleet.state {
        FleetState::Following => format!(
            "follows {endpoint} as {}: revision {}, {rules}, last message {stale} ago",
            fleet.name, fleet.revision
        ),
        FleetState::Connecting => styled(
            WARN,
            &format!("{endpoint} has not been reached for {stale}; {rules} as stored on disk"),
        ),
        FleetState::Lost => styled(
            BAD,
            &format!(
                "LOST {endpoint}: no message for {stale}; {rules} as of revision {}, until their deadlines",
                fleet.revision
            ),
        ),
    });
    let mut note = |style, text: &str| lines.push(styled(style, &printable(text)));
    if let Some(error) = &fleet.error {
        note(BAD, error);
    }
    if fleet.lifted_by_loss {
        note(
            WARN,
            "rules without a deadline are lifted, because etcd is unreachable (on_loss)",
        );
    }
    if let (true, Some(skew)) = (fleet.skewed, fleet.skew_seconds) {
        let way = if skew > 0.0 { "ahead of" } else { "behind" };
        let skew = skew.abs();
        note(
            BAD,
            &format!(
                "this host's clock is {skew:.1} s {way} the clock of a rule's writer: deadlines follow this host's clock"
            ),
        );
    }
    for refused in &fleet.refused {
        note(BAD, &format!("refused {}: {}", refused.rule, refused.why));
    }
    if let Some(error) = &fleet.report_error {
        note(WARN, &format!("cannot write its report: {error}"));
    }
    lines
}

/// The state of each feed, and the errors.
fn feeds(feeds: &[FeedStatus], view: View) -> String {
    let ago = |at: Option<Timestamp>| {
        at.map_or_else(
            || "never".to_owned(),
            |at| span(seconds_between(at, view.now)),
        )
    };
    let rows = feeds.iter().map(|feed| {
        let state = Cell::from(feed.state.word());
        let state = match feed.error {
            Some(_) => state.color(Color::Red),
            None => state,
        };
        vec![
            feed.name.as_str().into(),
            feed.kind.as_str().into(),
            state,
            count(feed.entries).into(),
            ago(feed.changed).into(),
            ago(feed.last_success).into(),
            count(feed.failures).into(),
            feed.source.as_str().into(),
        ]
    });
    let mut out = draw(FEEDS, rows.collect(), view.width);
    for feed in feeds {
        let name = printable(&feed.name);
        if let Some(error) = &feed.error {
            let text = format!("{name}: {}", printable(error));
            let _ = writeln!(out, "{}", styled(BAD, &text));
        }
        if let Some(first) = &feed.left_out_first {
            let more = match feed.left_out {
                ..=1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let text = format!("{name}: left out {}{more}", printable(first));
            let _ = writeln!(out, "{}", styled(WARN, &text));
        }
    }
    out
}

/// Memory and fill, the largest map first.
fn maps(maps: &[MapStatus], view: View) -> String {
    let mut maps: Vec<&MapStatus> = maps.iter().collect();
    maps.sort_by(|one, other| (other.bytes, &one.name).cmp(&(one.bytes, &other.name)));
    let rows = maps.into_iter().map(|map| {
        let (used, allowed, fill) = map.entries.map_or_else(Default::default, |entries| {
            let fill = entries.used as f64 * 100.0 / entries.allowed.max(1) as f64;
            (
                count(entries.used),
                count(entries.allowed),
                format!("{fill:.1}%"),
            )
        });
        let full = map.entries.is_some_and(nearly_full);
        let paint = |cell: Cell| {
            if full {
                cell.color(Color::Yellow)
            } else {
                cell
            }
        };
        vec![
            map.name.as_str().into(),
            bytes(map.bytes).into(),
            used.into(),
            allowed.into(),
            paint(fill.into()),
        ]
    });
    draw(MAPS, rows.collect(), view.width)
}

/// From nine tenths on, a large change may be refused.
fn nearly_full(usage: Usage) -> bool {
    u128::from(usage.used) * 10 >= u128::from(usage.allowed) * 9
}

fn usage(usage: Usage) -> String {
    let text = format!("{} of {}", usage.used, usage.allowed);
    if nearly_full(usage) {
        styled(WARN, &text)
    } else {
        text
    }
}

fn interfaces(interfaces: &[InterfaceStatus], view: View) -> String {
    if interfaces.is_empty() {
        let text = "no interface is attached: nothing is enforced";
        return styled(BAD, text) + "\n";
    }
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for interface in interfaces {
        for (i, hook) in interface.hooks.iter().enumerate() {
            let name = if i == 0 { interface.name.as_str() } else { "" };
            rows.push(vec![
                name.into(),
                hook.hook.as_str().into(),
                hook.mode.as_str().into(),
                count(hook.seen).into(),
                count(hook.passed).into(),
                count(hook.malformed).into(),
            ]);
        }
    }
    let mut out = if rows.is_empty() {
        String::new()
    } else {
        draw(COLUMNS, rows, view.width)
    };
    for interface in interfaces {
        if interface.hooks.is_empty() {
            let text = format!("{}: no hook is attached", printable(&interface.name));
            let _ = writeln!(out, "{}", styled(BAD, &text));
        }
        for note in &interface.notes {
            let text = format!("{}: {}", printable(&interface.name), printable(note));
            let _ = writeln!(out, "{}", styled(WARN, &text));
        }
    }
    out
}
