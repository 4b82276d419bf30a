//! The result of a run.

use super::View;
use super::table::{Cell, Column, Fit, draw};
use super::text::{BAD, GOOD, WARN, printable_lines, styled};
use crate::run::report::{Outcome, Report, Result};
use comfy_table::Color;

/// The summary of a run: its result, then its steps.
pub(crate) fn ran(report: &Report, view: View) -> String {
    let verdict = match report.result {
        Result::Passed => styled(GOOD.bold(), "PASSED"),
        Result::Failed => styled(BAD.bold(), "FAILED"),
        Result::Interrupted => styled(WARN.bold(), "INTERRUPTED"),
        Result::Lost => styled(BAD.bold(), "BLOCK LOST"),
        Result::Partly => styled(WARN.bold(), "PASSED, BUT PARTLY ENFORCED"),
    };
    let name = printable_lines(&report.name);
    let mut out = format!("{name}: {verdict} after {:.1} s\n", report.seconds());
    if let Some(why) = report.why() {
        out += &format!("{}\n", printable_lines(why.trim_end()));
    }
    let columns = [
        Column::new("STEP", Fit::Number),
        Column::new("ACTION", Fit::Whole),
        Column::new("WHAT", Fit::Cut),
        Column::new("RESULT", Fit::Whole),
        Column::new("SECONDS", Fit::Number),
    ];
    let rows = report.steps.iter().map(|step| {
        let (word, color) = match step.outcome {
            Outcome::Passed => ("ok", Some(Color::Green)),
            Outcome::Failed => ("FAILED", Some(Color::Red)),
            Outcome::Interrupted => ("ended early", Some(Color::Yellow)),
            Outcome::Skipped => ("not done", None),
        };
        let result = Cell::from(word);
        vec![
            step.number.into(),
            step.action.into(),
            step.name.as_deref().unwrap_or(&step.what).into(),
            match color {
                Some(color) => result.color(color),
                None => result,
            },
            step.seconds()
                .map_or(String::new(), |seconds| format!("{seconds:.1}"))
                .into(),
        ]
    });
    out + &draw(&columns, rows.collect(), view.width)
}
