//! The API's answers as text and tables.
//!
//! Pure: the terminal's width and the wall clock are arguments. The text always contains colours; the
//! output stream removes them if they are disabled. [`crate::output`] writes JSON and YAML.

mod change;
mod during;
mod explain;
#[cfg(feature = "fleet")]
pub(crate) mod fleet;
mod flows;
mod rules;
mod run;
mod stats;
mod status;
mod table;
mod text;
mod watch;

use jiff::Timestamp;

pub(crate) use change::{added, applied, confirmed, left, lifted};
pub(crate) use during::{held, over, progress};
pub(crate) use explain::explained;
pub(crate) use flows::flows;
pub(crate) use rules::{list, show};
pub(crate) use run::ran;
pub(crate) use stats::stats;
pub(crate) use status::status;
pub(crate) use text::{
    BAD, GOOD, WARN, count, counted, endpoint, moment, per_second, printable, printable_lines,
    shortly, styled, targets,
};
pub(crate) use watch::Lines;

/// The parameters of rendering.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// The terminal's width in characters; `None`: not a terminal, nothing is truncated.
    pub(crate) width: Option<u16>,
    /// The wall clock.
    pub(crate) now: Timestamp,
}

#[cfg(test)]
mod tests;
