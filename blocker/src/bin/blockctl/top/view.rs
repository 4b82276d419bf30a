//! Draws `top`: the sum of all rules, the rules, the flows if the daemon records them, and a line of
//! help. Pure: draws a model into a buffer.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table};

use blocker::rule::RuleId;

use super::model::{FlowRates, History, Model, Sort};
use crate::rates::RuleRates;
use crate::render::{count, endpoint, moment, per_second, printable};

/// From this width on, optional columns are shown.
const WIDE: u16 = 120;
/// The space between columns.
const GAP: u16 = 2;
/// A number: `1.23M`, `99.9k`.
const NUMBER: u16 = 7;

/// Whether there are colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    colours: bool,
}

impl Theme {
    /// With colours, or with bold text only.
    pub(super) const fn new(colours: bool) -> Self {
        Self { colours }
    }

    fn paint(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    /// The style of a mode, as in `list`.
    fn mode(self, mode: &str) -> Style {
        match mode {
            "reset" => self.paint(Color::Red).add_modifier(Modifier::BOLD),
            "drop" => self.paint(Color::Red),
            "reject" => self.paint(Color::Yellow),
            _ => self.paint(Color::Green),
        }
    }

    fn head(self) -> Style {
        self.paint(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn sorted(self) -> Style {
        self.head().add_modifier(Modifier::UNDERLINED)
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme) {
    let flows = Some(model.flows()).filter(|flows| !flows.is_empty());
    let area = frame.area();
    let (rules_height, flows_height) = match &flows {
        Some(flows) => {
            // As many lines as there are flows, and at most half of the screen.
            let lines = |n: usize| Constraint::Max(u16::try_from(n + 2).unwrap_or(u16::MAX));
            (Constraint::Fill(1), half(area, lines(flows.len())))
        }
        None => (Constraint::Fill(1), Constraint::Length(0)),
    };
    let [head, graph, rules, below, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        rules_height,
        flows_height,
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(summary(model, theme), head);
    sum(frame, graph, model, theme);
    rule_table(frame, rules, model, theme);
    if let Some(flows) = flows {
        flow_table(frame, below, &flows, model.sort, theme);
    }
    frame.render_widget(keys(model, theme), help);
}

/// At most half of the screen.
fn half(area: Rect, wanted: Constraint) -> Constraint {
    match wanted {
        Constraint::Max(lines) => Constraint::Length(lines.min(area.height / 2)),
        other => other,
    }
}

fn summary(model: &Model, theme: Theme) -> Line<'static> {
    let Some(rates) = model.rates() else {
        return Line::from("waiting for the first interval …");
    };
    let sum = |of: fn(&RuleRates) -> f64| rates.rules.iter().map(of).sum::<f64>();
    let packets = per_second(sum(|rule| rule.both.packets_per_second));
    let bits = per_second(sum(|rule| rule.both.bits_per_second));
    let rules = match rates.rules.len() {
        1 => "1 rule".to_owned(),
        n => format!("{n} rules"),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut line = Line::from(vec![
        Span::styled("blocker", theme.head()),
        Span::raw(format!("  {}  {rules}  ", moment(rates.at))),
        Span::styled(format!("{packets} pkt/s  {bits} bit/s"), bold),
    ]);
    if model.paused {
        let paused = theme.paint(Color::Yellow).add_modifier(Modifier::REVERSED);
        line.push_span(Span::raw("  "));
        line.push_span(Span::styled(" paused ", paused));
    }
    line
}

/// Packets of all rules over time, the latest at the right.
fn sum(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let rates = latest(&model.total, usize::from(area.width));
    let sparkline = Sparkline::default()
        .data(rates.iter().map(|rate| rate.round() as u64))
        .style(theme.paint(Color::Blue));
    frame.render_widget(sparkline, area);
}

fn rule_table(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let rules = model.rules();
    if rules.is_empty() {
        if model.rates().is_some() {
            frame.render_widget(Paragraph::new("no rules: nothing is blocked"), area);
        }
        return;
    }
    let wide = area.width >= WIDE;
    let longest = rules.iter().map(|rule| rule.id.len()).max().unwrap_or(0);
    // The rest of the line is for the history.
    let name = u16::try_from(longest)
        .unwrap_or(u16::MAX)
        .max(4)
        .min(area.width / 4);
    let mut columns: Vec<(&str, u16, Option<Sort>)> = vec![
        ("RULE", name, Some(Sort::Rule)),
        ("MODE", 6, None),
        ("PKT/S", NUMBER, Some(Sort::Packets)),
        ("BIT/S", NUMBER, Some(Sort::Bits)),
    ];
    if wide {
        columns.extend([("IN PKT/S", 9, None), ("OUT PKT/S", 9, None)]);
    }
    columns.push(("REPLY/S", NUMBER, None));
    if wide {
        columns.push(("SUPPR/S", NUMBER, None));
    }
    columns.push(("PACKETS", NUMBER, Some(Sort::Total)));
    if wide {
        columns.push(("OWNER", 6, None));
    }
    let used: u16 = columns.iter().map(|(_, width, _)| width + GAP).sum();
    let history = area.width.saturating_sub(used);
    let rows = rules.iter().skip(model.offset).map(|rule| {
        let mut cells = vec![
            Cell::from(cut(&rule.id, name)),
            Cell::from(Span::styled(rule.mode.clone(), theme.mode(&rule.mode))),
            number(per_second(rule.both.packets_per_second)),
            number(per_second(rule.both.bits_per_second)),
        ];
        if wide {
            cells.push(number(per_second(rule.ingress.packets_per_second)));
            cells.push(number(per_second(rule.egress.packets_per_second)));
        }
        cells.push(number(per_second(rule.both.replies_per_second)));
        if wide {
            cells.push(number(per_second(rule.both.suppressed_per_second)));
        }
        cells.push(number(count(rule.packets)));
        if wide {
            cells.push(Cell::from(rule.owner.clone()));
        }
        let bars = model
            .history(&rule.id)
            .map(|rates| bars(rates, usize::from(history)));
        let bars = Span::styled(bars.unwrap_or_default(), theme.paint(Color::Blue));
        cells.push(Cell::from(bars));
        Row::new(cells)
    });
    let rows: Vec<Row<'_>> = rows.collect();
    columns.push(("", history, None));
    table(frame, area, rows, &columns, model.sort, theme);
}

fn flow_table(frame: &mut Frame<'_>, area: Rect, flows: &[&FlowRates], sort: Sort, theme: Theme) {
    let fixed = [5, 10, NUMBER, NUMBER, NUMBER];
    let used: u16 = fixed.iter().map(|width| width + GAP).sum::<u16>() + GAP;
    // The maximum is an IPv6 address in brackets with its port.
    let end = (area.width.saturating_sub(used) / 2).clamp(8, 47);
    let columns = [
        ("PROTO", 5, None),
        ("REMOTE", end, None),
        ("LOCAL", end, None),
        ("RULE", 10, Some(Sort::Rule)),
        ("PKT/S", NUMBER, Some(Sort::Packets)),
        ("BIT/S", NUMBER, Some(Sort::Bits)),
        ("PACKETS", NUMBER, Some(Sort::Total)),
    ];
    let rows = flows.iter().map(|rates| {
        let flow = &rates.flow;
        let of = |address, port| cut(&endpoint(address, port, &flow.protocol), end);
        Row::new(vec![
            Cell::from(cut(&flow.protocol, 5)),
            Cell::from(of(flow.remote, flow.remote_port)),
            Cell::from(of(flow.local, flow.local_port)),
            Cell::from(cut(flow.rule.as_ref().map_or("-", RuleId::as_str), 10)),
            number(per_second(rates.packets_per_second)),
            number(per_second(rates.bits_per_second)),
            number(count(flow.packets)),
        ])
    });
    // An empty line after the rules.
    let [_, area] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    table(frame, area, rows.collect(), &columns, sort, theme);
}

/// A table with its header; the sort key is underlined.
fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    rows: Vec<Row<'_>>,
    columns: &[(&str, u16, Option<Sort>)],
    sort: Sort,
    theme: Theme,
) {
    let heads = columns.iter().map(|(name, width, by)| {
        let style = if *by == Some(sort) {
            theme.sorted()
        } else {
            theme.head()
        };
        // Headers are aligned as their columns: text left, numbers right.
        let is_number = name.ends_with("/S") || *name == "PACKETS";
        let line = Line::from(Span::styled((*name).to_owned(), style));
        let line = if is_number && *width > 0 {
            line.right_aligned()
        } else {
            line
        };
        Cell::from(line)
    });
    let widths = columns
        .iter()
        .map(|(_, width, _)| Constraint::Length(*width));
    let table = Table::new(rows, widths)
        .header(Row::new(heads))
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

fn keys(model: &Model, theme: Theme) -> Line<'static> {
    let key = |name: &'static str| Span::styled(name, theme.head());
    let sorted = format!(" sort ({})  ", model.sort.name());
    let pause = if model.paused {
        " resume  "
    } else {
        " pause  "
    };
    Line::from(vec![
        key("q"),
        Span::raw(" quit  "),
        key("s"),
        Span::raw(sorted),
        key("p"),
        Span::raw(pause),
        key("↑ ↓"),
        Span::raw(" scroll"),
    ])
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// Text truncated to a width, ending in `…` if it was truncated.
fn cut(text: &str, width: u16) -> String {
    let text = printable(text);
    let width = usize::from(width);
    if text.chars().count() <= width {
        return text;
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The latest rates, as many as fit; 0 before the first.
fn latest(history: &History, width: usize) -> Vec<f64> {
    let known = history.len().min(width);
    let mut rates = vec![0.0; width - known];
    rates.extend(history.iter().skip(history.len() - known));
    rates
}

/// A history as bars, scaled to the highest.
fn bars(history: &History, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let rates = latest(history, width);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let bar = |rate: &f64| {
        if *rate <= 0.0 {
            return ' ';
        }
        let step = (rate / most * (BARS.len() - 1) as f64).round() as usize;
        BARS[step.min(BARS.len() - 1)]
    };
    rates.iter().map(bar).collect()
}

#[cfg(test)]
mod tests;
