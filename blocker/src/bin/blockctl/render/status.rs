//! `status`.

use std::fmt::Write as _;

use blocker::api::types::{InterfaceStatus, Status, Usage};

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{BAD, WARN, bytes, count, moment, printable, seconds_between, span, styled};

const COLUMNS: &[Column] = &[
    Column::new("INTERFACE", Fit::Whole),
    Column::new("HOOK", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::new("SEEN", Fit::Number),
    Column::new("PASSED", Fit::Number),
    Column::new("MALFORMED", Fit::Number),
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
            let refused = format!("REFUSED {when}; the one before it is in force:");
            line("loaded", &styled(BAD, &refused));
            for text in error.lines() {
                line("", &styled(BAD, &printable(text)));
            }
        }
    }
    line("rules", &usage(status.rules));
    line("prefixes", &usage(status.prefixes));
    line(
        "memory",
        &format!(
            "{} of maps in the kernel, {} resident",
            bytes(status.map_bytes),
            bytes(status.resident_bytes)
        ),
    );
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
    out
}

fn usage(usage: Usage) -> String {
    let text = format!("{} of {}", usage.used, usage.allowed);
    // From nine tenths on, the next large change may be refused.
    if u128::from(usage.used) * 10 >= u128::from(usage.allowed) * 9 {
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
