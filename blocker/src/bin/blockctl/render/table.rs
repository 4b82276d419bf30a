//! Tables: aligned, without borders, fitted to the terminal.
//!
//! Columns that identify a row are never truncated. If the width is too small for all columns, optional
//! ones are omitted first, the highest rank first; then columns are truncated or wrapped, as they say.

use comfy_table::{
    Attribute, Cell as ComfyCell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row,
    Table, Width, presets,
};

use super::text::printable;

/// What happens to a column's content when it is too wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It is shown whole, even if the line becomes longer than the terminal is wide.
    Whole,
    /// As `Whole`, and right-aligned: numbers.
    Number,
    /// It is truncated, ending in `…`.
    Cut,
    /// It is wrapped into further lines.
    Wrap,
}

impl Fit {
    /// The smallest useful width of a column, given the width of its content.
    fn least(self, natural: u16) -> u16 {
        match self {
            Self::Whole | Self::Number => natural,
            Self::Cut => natural.min(8),
            Self::Wrap => natural.min(20),
        }
    }
}

/// A column's head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    fit: Fit,
    rank: Rank,
}

/// When a column may be omitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Never.
    Always,
    /// When it is empty.
    Filled,
    /// When it is empty, or when there is no room; the highest number first.
    Room(u8),
}

impl Column {
    const fn ranked(name: &'static str, fit: Fit, rank: Rank) -> Self {
        Self { name, fit, rank }
    }

    /// A column that is never omitted.
    pub(crate) const fn new(name: &'static str, fit: Fit) -> Self {
        Self::ranked(name, fit, Rank::Always)
    }

    /// A column that is omitted only when it is empty: without it, a row could be misunderstood.
    pub(crate) const fn filled(name: &'static str, fit: Fit) -> Self {
        Self::ranked(name, fit, Rank::Filled)
    }

    /// A column that is omitted when it is empty or when there is no room, the highest rank first.
    pub(crate) const fn optional(name: &'static str, fit: Fit, rank: u8) -> Self {
        Self::ranked(name, fit, Rank::Room(rank))
    }
}

/// A cell's text and style.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    color: Option<Color>,
    bold: bool,
}

impl Cell {
    /// Sets the colour.
    pub(crate) fn color(mut self, color: Color) -> Self {
        self.color = Some(color);
        self
    }

    /// Makes it bold.
    pub(crate) fn bold(mut self) -> Self {
        self.bold = true;
        self
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: printable(&text.to_string()),
            color: None,
            bold: false,
        }
    }
}

/// The space between columns.
const GAP: u16 = 2;

/// Draws a table, each line ending in a newline. `width` is the terminal's in characters; `None`
/// leaves every column as wide as its content.
pub(crate) fn draw(columns: &[Column], rows: Vec<Vec<Cell>>, width: Option<u16>) -> String {
    let used: Vec<bool> = (0..columns.len())
        .map(|i| columns[i].rank == Rank::Always || rows.iter().any(|row| !row[i].text.is_empty()))
        .collect();
    let one_line = columns.iter().all(|column| column.fit != Fit::Wrap);
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        // Colours are always written; the output stream removes them if they are disabled.
        .enforce_styling()
        .style_text_only();
    table.set_header(columns.iter().map(|column| column.name));
    for row in rows {
        let mut line = Row::from(row.into_iter().map(comfy).collect::<Vec<_>>());
        if one_line {
            line.max_height(1);
        }
        table.add_row(line);
    }
    arrange(&mut table, columns, used, width);
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

fn comfy(cell: Cell) -> ComfyCell {
    let mut out = ComfyCell::new_owned(cell.text);
    if let Some(color) = cell.color {
        out = out.fg(color);
    }
    if cell.bold {
        out = out.add_attribute(Attribute::Bold);
    }
    out
}

fn arrange(table: &mut Table, columns: &[Column], mut shown: Vec<bool>, width: Option<u16>) {
    let natural = table.column_max_content_widths();
    let total = |shown: &[bool], width_of: &dyn Fn(usize) -> u16| -> u32 {
        let widths = (0..columns.len()).filter(|&i| shown[i]).map(width_of);
        widths.map(|w| u32::from(w + GAP)).sum::<u32>() - u32::from(GAP)
    };
    let least = |i: usize| columns[i].fit.least(natural[i]);
    if let Some(width) = width {
        while total(&shown, &least) > u32::from(width) {
            let candidates =
                (0..columns.len()).filter(|&i| shown[i] && columns[i].rank > Rank::Filled);
            let Some(drop) = candidates.max_by_key(|&i| columns[i].rank) else {
                break;
            };
            shown[drop] = false;
        }
    }
    let last = shown.iter().rposition(|&shown| shown).unwrap_or_default();
    // Wide enough for the columns that never shrink; the terminal breaks lines that are too long.
    let needed = total(&shown, &least);
    let natural_total = total(&shown, &|i| natural[i]);
    let width = width.map_or(natural_total, |width| u32::from(width).max(needed));
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    for (i, column) in columns.iter().enumerate() {
        let Some(out) = table.column_mut(i) else {
            continue;
        };
        out.set_padding((0, if i == last { 0 } else { GAP }));
        if column.fit == Fit::Number {
            out.set_cell_alignment(CellAlignment::Right);
        }
        out.set_constraint(match column.fit {
            _ if !shown[i] => ColumnConstraint::Hidden,
            Fit::Whole | Fit::Number => ColumnConstraint::ContentWidth,
            Fit::Cut | Fit::Wrap => ColumnConstraint::LowerBoundary(Width::Fixed(least(i))),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::new("ID", Fit::Whole),
        Column::new("N", Fit::Number),
        Column::optional("OWNER", Fit::Whole, 2),
        Column::optional("COMMENT", Fit::Cut, 1),
    ];

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![
                "dev01".into(),
                7.into(),
                "config".into(),
                "a comment that is long".into(),
            ],
            vec!["b".into(), 1234.into(), "api".into(), "".into()],
        ]
    }

    #[test]
    fn whole_where_there_is_room() {
        insta::assert_snapshot!(draw(COLUMNS, rows(), Some(80)), @"
        ID        N  OWNER   COMMENT
        dev01     7  config  a comment that is long
        b      1234  api
        ");
        assert_eq!(draw(COLUMNS, rows(), None), draw(COLUMNS, rows(), Some(80)));
    }

    #[test]
    fn cuts_before_it_leaves_out() {
        insta::assert_snapshot!(draw(COLUMNS, rows(), Some(36)), @"
        ID        N  OWNER   COMMENT
        dev01     7  config  a comment that…
        b      1234  api
        ");
    }

    #[test]
    fn leaves_out_the_highest_rank_first() {
        insta::assert_snapshot!(draw(COLUMNS, rows(), Some(26)), @"
        ID        N  COMMENT
        dev01     7  a comment…
        b      1234
        ");
    }

    #[test]
    fn never_hides_what_identifies() {
        insta::assert_snapshot!(draw(COLUMNS, rows(), Some(5)), @"
        ID        N
        dev01     7
        b      1234
        ");
    }

    #[test]
    fn wraps_what_must_be_read() {
        const COLUMNS: &[Column] = &[
            Column::new("REMOTE", Fit::Whole),
            Column::new("WHY", Fit::Wrap),
        ];
        let rows = vec![vec![
            "[2001:db8::1]:443".into(),
            "the kernel has no SOCK_DESTROY and the probe was not answered".into(),
        ]];
        insta::assert_snapshot!(draw(COLUMNS, rows, Some(50)), @"
        REMOTE             WHY
        [2001:db8::1]:443  the kernel has no SOCK_DESTROY
                           and the probe was not answered
        ");
    }

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        let text = draw(
            &[Column::new("ID", Fit::Whole)],
            vec![vec!["a\u{1b}[2Jb\nc".into()]],
            Some(80),
        );
        insta::assert_snapshot!(text, @"
        ID
        a�[2Jb c
        ");
    }
}
