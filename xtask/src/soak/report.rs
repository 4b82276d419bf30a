//! The report of a soak, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::traffic::Totals;
use crate::kernel_objects::KernelObjects;

/// Tolerance of open descriptors, which vary with requests.
const SOME_DESCRIPTORS: usize = 4;
/// Tolerated growth of memory after the warm-up, in kilobytes: the allocator's free memory.
const SOME_MEMORY: u64 = 4 * 1_024;

/// How often each operation ran.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Done {
    pub(super) adds: u64,
    pub(super) lifts: u64,
    pub(super) applies: u64,
    pub(super) resets: u64,
    pub(super) reloads: u64,
    pub(super) restarts: u64,
    pub(super) kills: u64,
    /// The kills that interrupted a change.
    pub(super) interrupted: u64,
}

/// The daemon's use of resources.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sample {
    pub(super) seconds: u64,
    pub(super) memory_kb: u64,
    pub(super) descriptors: usize,
    pub(super) pins: usize,
    pub(super) programs: usize,
    pub(super) maps: usize,
    pub(super) links: usize,
}

impl Sample {
    pub(super) fn new(seconds: u64, memory_kb: u64, footprint: &KernelObjects) -> Self {
        Self {
            seconds,
            memory_kb,
            descriptors: footprint.descriptors,
            pins: footprint.pins,
            programs: footprint.programs,
            maps: footprint.maps,
            links: footprint.links,
        }
    }
}

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) minutes: f64,
    pub(super) done: Done,
    pub(super) leaked: u64,
    pub(super) changing: Totals,
    pub(super) blocked: Totals,
    pub(super) free: Totals,
    /// At the first start.
    pub(super) first: Sample,
    /// After the restarts, and the warm-up of the last life.
    pub(super) warm: Sample,
    pub(super) last: Sample,
    /// During the run.
    pub(super) samples: Vec<Sample>,
}

impl Report {
    /// The failed checks.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.leaked > 0 || self.blocked.delivered > 0 {
            let leaked = self.leaked.max(self.blocked.delivered);
            faults.push(format!("{leaked} blocked packets passed"));
        }
        if self.free.delivered != self.free.sent {
            let lost = self.free.sent.saturating_sub(self.free.delivered);
            faults.push(format!("{lost} packets that no rule matches were lost"));
        }
        let (first, warm, last) = (&self.first, &self.warm, &self.last);
        for (what, before, after) in [
            ("pins", first.pins, last.pins),
            ("programs", first.programs, last.programs),
            ("maps", first.maps, last.maps),
            ("links", first.links, last.links),
        ] {
            if before != after {
                faults.push(format!("{before} {what} became {after}"));
            }
        }
        if last.descriptors > warm.descriptors + SOME_DESCRIPTORS {
            let (before, after) = (warm.descriptors, last.descriptors);
            faults.push(format!("{before} descriptors became {after}"));
        }
        if last.memory_kb > warm.memory_kb + warm.memory_kb / 10 + SOME_MEMORY {
            let (before, after) = (warm.memory_kb, last.memory_kb);
            faults.push(format!("{before} kB of memory became {after}"));
        }
        faults
    }

    pub(super) fn table(&self) -> String {
        let done = &self.done;
        let mut text = format!(
            "{:.1} minutes, seed {}\n\
             {} adds, {} lifts, {} whole rulesets, {} connections reset, {} reloads, {} restarts, \
             {} kills ({} amid a change)\n\n",
            self.minutes,
            self.seed,
            done.adds,
            done.lifts,
            done.applies,
            done.resets,
            done.reloads,
            done.restarts,
            done.kills,
            done.interrupted
        );
        let _ = writeln!(text, "{:<28}{:>12}{:>12}", "packets", "sent", "delivered");
        for (what, totals) in [
            ("blocked all the time", self.blocked),
            ("matched by no rule", self.free),
            ("of changing rules", self.changing),
        ] {
            let _ = writeln!(
                text,
                "{what:<28}{:>12}{:>12}",
                totals.sent, totals.delivered
            );
        }
        let _ = writeln!(
            text,
            "{:<28}{:>24}\n",
            "delivered during a block", self.leaked
        );
        let _ = writeln!(
            text,
            "{:<28}{:>12}{:>12}{:>12}",
            "the daemon", "first", "warm", "last"
        );
        type Row = (&'static str, fn(&Sample) -> u64);
        let rows: [Row; 6] = [
            ("memory (RSS), kB", |sample| sample.memory_kb),
            ("file descriptors", |sample| sample.descriptors as u64),
            ("pins", |sample| sample.pins as u64),
            ("programs", |sample| sample.programs as u64),
            ("maps", |sample| sample.maps as u64),
            ("links", |sample| sample.links as u64),
        ];
        for (what, of) in rows {
            let [first, warm, last] = [&self.first, &self.warm, &self.last].map(of);
            let _ = writeln!(text, "{what:<28}{first:>12}{warm:>12}{last:>12}");
        }
        text
    }
}
