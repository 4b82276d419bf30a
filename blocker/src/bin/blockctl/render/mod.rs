//! The API's answers in words and tables, for people.
//!
//! Pure: an answer, the terminal's width and the wall clock go in, text comes out. Colours are
//! always in the text; the stream that it goes to takes them out where none are wanted. Scripts
//! get JSON or YAML, which [`crate::output`] writes without any of this.

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

/// What rendering depends on beside the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// The terminal's width in characters; `None`: no terminal, nothing is cut.
    pub(crate) width: Option<u16>,
    /// The wall clock.
    pub(crate) now: Timestamp,
}

#[cfg(test)]
mod tests;
