//! The comparison as Markdown tables, JSON and a chart. Pure, except that it writes the files.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::filters::Filter;
use super::wired::{Comparison, Floor, Row};
use super::{chart, thousands};

/// A row's cell in a table.
type Value = fn(&Row) -> Option<String>;

/// Writes `wire.json`, `performance.md` and `wire.svg`.
///
/// # Errors
/// A file cannot be written.
pub(super) fn keep(comparison: &Comparison, directory: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(comparison)?;
    fs::write(directory.join("wire.json"), json)
        .and_then(|()| fs::write(directory.join("performance.md"), text(comparison)))
        .with_context(|| format!("{} cannot be written", directory.display()))?;
    chart::draw(comparison, &directory.join("wire.svg"))
}

/// All tables.
pub(super) fn text(comparison: &Comparison) -> String {
    let mut text = format!("Linux {}, {}.\n", comparison.kernel, comparison.processor);
    for ip in comparison.versions() {
        let (floors, rows) = comparison.of(ip);
        for hit in [true, false] {
            let what = if hit { "dropped" } else { "passed" };
            let title = format!("IPv{ip}, {what}: CPU ns a packet (times the floor)");
            let table = Table::new(&title, &rows);
            text.push('\n');
            text.push_str(&costs(table, &floors, &rows, hit).render());
        }
        let columns: [(&str, Value); 3] = [
            ("all prefixes in force", |row| row.load_seconds.map(seconds)),
            ("one more, by its command", |row| {
                Some(seconds(row.add_seconds))
            }),
            ("memory, MB", |row| row.memory_bytes.map(megabytes)),
        ];
        for (what, value) in columns {
            let mut table = Table::new(&format!("IPv{ip}, {what}"), &rows);
            for filter in filters(&rows) {
                let cell = |size| {
                    find(&rows, filter, size)
                        .and_then(value)
                        .unwrap_or_default()
                };
                table.row(filter.title(), cell);
            }
            text.push('\n');
            text.push_str(&table.render());
        }
    }
    text
}

fn costs(mut table: Table, floors: &[&Floor], rows: &[&Row], hit: bool) -> Table {
    let title = if hit {
        "floor: an XDP program that only drops"
    } else {
        "floor: no program, up to the IP layer"
    };
    // As measured together with the rows of that size.
    let least = |size| {
        let floor = floors.iter().find(|floor| floor.prefixes == size)?;
        Some(if hit { floor.drop } else { floor.pass }.nanoseconds)
    };
    table.row(title, |size| {
        least(size).map_or_else(String::new, |least| format!("{least:.0}"))
    });
    table.row("a program that only reads the address", |size| {
        let floor = floors.iter().find(|floor| floor.prefixes == size);
        let floor = floor.zip(least(size));
        floor.map_or_else(String::new, |(floor, least)| {
            let reading = if hit {
                floor.read_drop
            } else {
                floor.read_pass
            };
            times(reading.nanoseconds, least)
        })
    });
    let cost = |row: &Row| if hit { row.hit } else { row.miss }.nanoseconds;
    for filter in filters(rows) {
        table.row(filter.title(), |size| {
            let row = find(rows, filter, size).zip(least(size));
            row.map_or_else(String::new, |(row, least)| times(cost(row), least))
        });
    }
    for (title, filter) in [
        ("**blocker's XDP to the best peer**", Filter::BlockerXdp),
        ("**without flow records, likewise**", Filter::BlockerBare),
    ] {
        if !rows.iter().any(|row| row.filter == filter) {
            continue;
        }
        table.row(title, |size| {
            let peers = rows
                .iter()
                .filter(|row| row.prefixes == size && !row.filter.is_blocker());
            let best = peers.map(|row| cost(row)).min_by(f64::total_cmp);
            let ours = find(rows, filter, size).map(cost);
            ours.zip(best).map_or_else(String::new, |(ours, best)| {
                format!("**{:.2}×**", ours / best)
            })
        });
    }
    table
}

fn times(nanoseconds: f64, least: f64) -> String {
    format!("{nanoseconds:.0} ({:.1}×)", nanoseconds / least)
}

/// The filters that have rows.
fn filters(rows: &[&Row]) -> impl Iterator<Item = Filter> {
    Filter::ALL
        .into_iter()
        .filter(|filter| rows.iter().any(|row| row.filter == *filter))
}

fn find<'a>(rows: &[&'a Row], filter: Filter, size: usize) -> Option<&'a Row> {
    rows.iter()
        .find(|row| row.filter == filter && row.prefixes == size)
        .copied()
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.1} s")
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// A table with a column for each number of prefixes.
struct Table {
    sizes: Vec<usize>,
    lines: Vec<Vec<String>>,
}

impl Table {
    fn new(title: &str, rows: &[&Row]) -> Self {
        let sizes: BTreeSet<usize> = rows.iter().map(|row| row.prefixes).collect();
        let sizes: Vec<_> = sizes.into_iter().collect();
        let mut head = vec![title.to_owned()];
        head.extend(sizes.iter().map(|size| thousands(*size as u64)));
        Self {
            sizes,
            lines: vec![head],
        }
    }

    fn row(&mut self, title: &str, cell: impl Fn(usize) -> String) {
        let mut line = vec![title.to_owned()];
        line.extend(self.sizes.iter().map(|size| cell(*size)));
        self.lines.push(line);
    }

    /// As Markdown, with columns aligned in the source.
    fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..=self.sizes.len()).map(width).collect();
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let _ = if column == 0 {
                    write!(text, "| {cell:<width$} |")
                } else {
                    write!(text, " {cell:>width$} |")
                };
            }
            text.push('\n');
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    text.push_str(&if column == 0 {
                        format!("|{dashes}-|")
                    } else {
                        format!("{dashes}:|")
                    });
                }
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::wire::Cost;
    use super::*;

    fn cost(nanoseconds: f64) -> Cost {
        Cost {
            nanoseconds,
            spread: [nanoseconds; 2],
            received: 1,
            sent: 1,
            reached_ip: 0,
            busy: 1.0,
        }
    }

    fn row(filter: Filter, prefixes: usize, nanoseconds: f64) -> Row {
        Row {
            filter,
            ip: 4,
            prefixes,
            hit: cost(nanoseconds),
            miss: cost(nanoseconds + 500.0),
            load_seconds: Some(0.0021),
            add_seconds: 1.5,
            memory_bytes: None,
        }
    }

    /// A small comparison.
    pub(in super::super) fn comparison() -> Comparison {
        Comparison {
            kernel: "6.12".to_owned(),
            processor: "a processor".to_owned(),
            floors: [(1, 100.0), (10_000, 125.0)]
                .map(|(prefixes, least)| Floor {
                    ip: 4,
                    prefixes,
                    drop: cost(least),
                    read_drop: cost(least * 1.2),
                    pass: cost(500.0),
                    read_pass: cost(600.0),
                })
                .into(),
            rows: vec![
                row(Filter::BlockerXdp, 1, 150.0),
                row(Filter::BlockerXdp, 10_000, 200.0),
                row(Filter::XdpTools, 10_000, 250.0),
                row(Filter::Ipset, 10_000, 800.0),
            ],
        }
    }

    #[test]
    fn costs_are_set_beside_the_floor_and_the_best_peer() {
        let text = text(&comparison());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .skip(4)
            .take(6)
            .map(|line| line.split('|').map(str::trim).skip(1).take(3).collect())
            .collect();
        assert_eq!(
            lines,
            [
                ["floor: an XDP program that only drops", "100", "125"],
                [
                    "a program that only reads the address",
                    "120 (1.2×)",
                    "150 (1.2×)"
                ],
                ["blocker, XDP native", "150 (1.5×)", "200 (1.6×)"],
                ["xdp-filter, native (hosts)", "", "250 (2.0×)"],
                ["iptables raw, ipset hash:net", "", "800 (6.4×)"],
                ["**blocker's XDP to the best peer**", "", "**0.80×**"],
            ]
        );
    }

    #[test]
    fn times_have_units() {
        assert_eq!(seconds(0.0021), "2.1 ms");
        assert_eq!(seconds(12.34), "12.3 s");
    }
}
