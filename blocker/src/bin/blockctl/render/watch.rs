//! `watch`: one line an event, aligned with the lines before it.

use std::fmt::Write as _;

use blocker::rule::{Direction, RuleId};
use blocker::wire::Decision;
use blocker::wire::event::{
    DeviceChange, DeviceFate, Event, Killed, Lost, LostAt, Packet, RuleChange, RuleFate, What,
};
use clap::builder::styling::{AnsiColor, Style};
use indicatif::HumanCount;
use jiff::Timestamp;

use super::text::{BAD, GOOD, WARN, endpoint, many, printable, styled};

/// Columns of a packet's line. All but the last are as wide as their widest text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Time,
    Device,
    Direction,
    Protocol,
    Remote,
    Local,
    Flags,
    Verdict,
    Rule,
}

use Column::{Device, Direction as Way, Flags, Local, Protocol, Remote, Rule, Time, Verdict};

impl Column {
    const ALL: [Self; 9] = [
        Time, Device, Way, Protocol, Remote, Local, Flags, Verdict, Rule,
    ];

    const fn name(self) -> &'static str {
        match self {
            Time => "TIME (UTC)",
            Device => "DEVICE",
            Way => "DIR",
            Protocol => "PROTO",
            Remote => "REMOTE",
            Local => "LOCAL",
            Flags => "FLAGS",
            Verdict => "VERDICT",
            Rule => "RULE",
        }
    }

    /// The initial width of a column, for IPv4.
    const fn usual(self, narrow: Narrow) -> usize {
        match self {
            Time if narrow.time => 8,
            Time => 12,
            Device => 6,
            Way => 3,
            Protocol => 5,
            Local if narrow.local => 6,
            Remote | Local => 19,
            Flags => 7,
            Verdict => 10,
            Rule => 8,
        }
    }
}

/// What is shortened or omitted on a narrow terminal, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Narrow {
    /// Only the port of the local end.
    local: bool,
    /// No fractions of seconds.
    time: bool,
    /// One space between columns.
    gap: bool,
    /// No device.
    device: bool,
    /// No flags.
    flags: bool,
}

impl Narrow {
    fn for_width(width: Option<u16>) -> Self {
        let mut narrow = Self::default();
        let Some(width) = width else {
            return narrow;
        };
        let steps: [fn(&mut Self); 5] = [
            |narrow| narrow.local = true,
            |narrow| narrow.time = true,
            |narrow| narrow.gap = true,
            |narrow| narrow.device = true,
            |narrow| narrow.flags = true,
        ];
        for step in steps {
            if narrow.usual_width() <= usize::from(width) {
                break;
            }
            step(&mut narrow);
        }
        narrow
    }

    fn usual_width(self) -> usize {
        let columns = self.columns();
        let gaps = (columns.clone().count() - 1) * self.gap_width();
        columns.map(|column| column.usual(self)).sum::<usize>() + gaps
    }

    fn columns(self) -> impl Iterator<Item = Column> + Clone {
        let left_out =
            move |column| (self.device && column == Device) || (self.flags && column == Flags);
        Column::ALL
            .into_iter()
            .filter(move |column| !left_out(*column))
    }

    const fn gap_width(self) -> usize {
        if self.gap { 1 } else { 2 }
    }
}

/// Writes lines, each aligned with those before it.
pub(crate) struct Lines {
    narrow: Narrow,
    widths: [usize; Column::ALL.len()],
    /// The terminal's width.
    room: usize,
}

impl Lines {
    /// For a terminal of this width; `None`: not a terminal, nothing is omitted.
    pub(crate) fn new(width: Option<u16>) -> Self {
        let narrow = Narrow::for_width(width);
        Self {
            narrow,
            widths: Column::ALL.map(|column| column.usual(narrow)),
            room: width.map_or(usize::MAX, usize::from),
        }
    }

    /// The names of the columns.
    pub(crate) fn head(&mut self) -> String {
        let name = |column: Column| match column {
            Time if self.narrow.time => "TIME",
            column => column.name(),
        };
        let head: Vec<_> = self
            .narrow
            .columns()
            .map(|column| (column, name(column).to_owned(), Style::new()))
            .collect();
        self.row(head)
    }

    /// A line of an event.
    pub(crate) fn line(&mut self, event: &Event) -> String {
        let text = match &event.what {
            What::Packet(packet) => return self.packet(event.time, packet),
            What::Rule(change) => rule(change),
            What::Teardown(killed) => teardown(killed),
            What::Reload(reloaded) => reload(reloaded.error.as_deref()),
            What::Device(change) => device(change),
            What::Lost(lost) => self::lost(*lost),
        };
        let time = self.time(event.time);
        let width = self.widths[Time as usize] + self.narrow.gap_width();
        format!("{time:width$}{text}\n")
    }

    fn time(&self, at: Timestamp) -> String {
        let form = if self.narrow.time {
            "%H:%M:%S"
        } else {
            "%H:%M:%S%.3f"
        };
        at.strftime(form).to_string()
    }

    fn packet(&mut self, time: Timestamp, packet: &Packet) -> String {
        let plain = Style::new();
        let cell = |column: Column| match column {
            Time => (self.time(time), plain),
            Device => (printable(&packet.interface), plain),
            Way => (way(packet.direction).to_owned(), plain),
            Protocol => (packet.protocol.clone(), plain),
            Remote => (
                endpoint(packet.remote, packet.remote_port, &packet.protocol),
                plain,
            ),
            Local if self.narrow.local => (port(packet), plain),
            Local => (
                endpoint(packet.local, packet.local_port, &packet.protocol),
                plain,
            ),
            Flags => (flags(packet), plain),
            Verdict => (packet.verdict.word().to_owned(), color(packet.verdict)),
            Rule => {
                let rule = packet.rule.as_ref().map_or("?", |rule| rule.as_str());
                (rule.to_owned(), plain)
            }
        };
        let cells: Vec<_> = self
            .narrow
            .columns()
            .map(|column| {
                let (text, style) = cell(column);
                (column, text, style)
            })
            .collect();
        self.row(cells)
    }

    fn row(&mut self, cells: Vec<(Column, String, Style)>) -> String {
        let mut line = String::new();
        for (column, text, style) in cells {
            // Assumes that every character has width 1.
            let length = text.chars().count();
            self.widen(column, length);
            let width = self.widths[column as usize];
            let pad = width.saturating_sub(length) + self.narrow.gap_width();
            // Writing to a String does not fail.
            let _ = write!(line, "{style}{text}{style:#}{:pad$}", "");
        }
        let mut line = line.trim_end().to_owned();
        line.push('\n');
        line
    }

    /// Makes a column as wide as its widest text, if there is room. A text that is too long for the
    /// terminal then breaks only its own line, not all that follow.
    fn widen(&mut self, column: Column, length: usize) {
        let columns = self.narrow.columns();
        let gaps = (columns.clone().count() - 1) * self.narrow.gap_width();
        let used = columns
            .map(|column| self.widths[column as usize])
            .sum::<usize>()
            + gaps;
        let width = &mut self.widths[column as usize];
        if length > *width && used + length - *width <= self.room {
            *width = length;
        }
    }
}

const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "out",
        _ => "in",
    }
}

/// The local port, for lines without room for the address.
fn port(packet: &Packet) -> String {
    match packet.protocol.as_str() {
        "tcp" | "udp" => format!(":{}", packet.local_port),
        _ => String::new(),
    }
}

/// The TCP flags, the ICMP type, or `frag` for a fragment.
fn flags(packet: &Packet) -> String {
    if !packet.tcp_flags.is_empty() {
        return printable(&packet.tcp_flags.join(",").to_uppercase());
    }
    match packet.icmp_type {
        Some(kind) => format!("type {kind}"),
        None if packet.fragment => "frag".to_owned(),
        None => String::new(),
    }
}

/// The colour of a verdict: red drops or resets, yellow rejects, green passes.
const fn color(verdict: Decision) -> Style {
    match verdict {
        Decision::Reset => BAD.bold(),
        Decision::Dropped | Decision::Suppressed => BAD,
        Decision::Rejected => WARN,
        Decision::Audited => GOOD,
    }
}

/// Events other than packets.
const NEWS: Style = AnsiColor::Cyan.on_default();

fn rule(change: &RuleChange) -> String {
    let RuleChange {
        change: fate,
        rule,
        owner,
        mode,
        ..
    } = change;
    let first = change.targets.first().map(ToString::to_string);
    let mut targets = first.unwrap_or_else(|| "nothing".to_owned());
    if change.targets_total > 1 {
        targets = format!("{targets} (+{})", HumanCount(change.targets_total - 1));
    }
    let mut text = format!("rule {rule} {fate}: {mode} {targets}, owner {owner}");
    if let (Some(expires), RuleFate::Added | RuleFate::Changed) = (change.expires, fate) {
        text += &format!(", until {}", super::text::moment(expires));
    }
    if let Some(by) = &change.by {
        text += &format!(", by {}", printable(by));
    }
    if let Some(comment) = &change.comment {
        text += &format!(" ({})", printable(comment));
    }
    styled(NEWS, &text)
}

fn teardown(killed: &Killed) -> String {
    let rules: Vec<_> = killed.rules.iter().map(RuleId::as_str).collect();
    let text = format!(
        "killed {} of {} of {} in {:.1} ms",
        killed.killed,
        many(killed.found, "established flow"),
        match rules.as_slice() {
            [rule] => format!("rule {rule}"),
            rules => format!("rules {}", rules.join(" ")),
        },
        killed.elapsed_ms
    );
    let style = if killed.left == 0 { NEWS } else { WARN };
    styled(style, &text)
}

fn reload(error: Option<&str>) -> String {
    match error {
        None => styled(NEWS, "configuration reloaded"),
        Some(error) => {
            let text = format!("configuration REFUSED: {}", printable(error));
            styled(BAD, &text)
        }
    }
}

fn device(change: &DeviceChange) -> String {
    let name = printable(&change.interface);
    match change.change {
        DeviceFate::Attached => {
            let hooks = change.hooks.join(", ");
            styled(NEWS, &format!("device {name} attached: {hooks}"))
        }
        DeviceFate::Detached => styled(WARN, &format!("device {name} detached")),
    }
}

fn lost(lost: Lost) -> String {
    let events = many(lost.events, "event");
    let why = match lost.at {
        LostAt::Datapath => {
            "over the rate limit, or the daemon was too slow (limits.events_per_second)"
        }
        LostAt::Watcher => "this watcher was too slow",
    };
    styled(WARN, &format!("{events} lost: {why}"))
}

#[cfg(test)]
mod tests;
