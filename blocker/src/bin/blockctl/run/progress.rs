//! Progress of a run on standard error: a line for each step, and on a terminal a status line.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use blocker::runbook::{Action, Step};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, interval, sleep};

use super::plan;
use super::report::{Outcome, StepFacts};
use crate::output;
use crate::render::{BAD, GOOD, WARN, printable, shortly, styled};

/// How often the status line is drawn.
const TICK: Duration = Duration::from_millis(100);

/// The progress of a run.
pub(super) struct Progress {
    steps: usize,
    /// Nothing is printed.
    quiet: bool,
    /// Whether there is a terminal for the status line.
    terminal: bool,
    /// The status line of the current step.
    bar: Option<ProgressBar>,
    /// `[2/7] the client is in rotation`: the current step.
    label: String,
}

impl Progress {
    pub(super) fn new(steps: usize, quiet: bool) -> Self {
        Self {
            steps,
            quiet,
            terminal: !quiet && stderr().is_terminal(),
            bar: None,
            label: String::new(),
        }
    }

    /// Starts a step.
    pub(super) fn begin(&mut self, index: usize, step: &Step) {
        let title = printable(&plan::title(step));
        self.label = format!("[{}/{}] {title}", index + 1, self.steps);
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_message(self.label.clone());
            bar.enable_steady_tick(TICK);
            self.bar = Some(bar);
        } else if let Action::Wait(time) = &step.action {
            // For logs, which have no status line.
            self.note(&format!("{}: waiting {}", self.label, shortly(*time)));
        }
    }

    /// Waits, and shows the remaining time.
    pub(super) async fn wait(&self, time: Duration) {
        let ends = Instant::now() + time;
        let Some(bar) = &self.bar else {
            return sleep(time).await;
        };
        let mut ticks = interval(TICK);
        while Instant::now() < ends {
            let left = ends.saturating_duration_since(Instant::now());
            bar.set_message(format!("{}: {:.1} s left", self.label, left.as_secs_f64()));
            tokio::select! {
                _ = ticks.tick() => {}
                () = tokio::time::sleep_until(ends) => {}
            }
        }
    }

    /// Reports an attempt that failed and will be repeated.
    pub(super) fn again(&self, found: &str, tries: u32, ends: Instant) {
        let left = shortly(ends.saturating_duration_since(Instant::now()));
        let found = printable(found);
        match &self.bar {
            Some(bar) => {
                let label = &self.label;
                bar.set_message(format!("{label}: try {tries}: {found}; {left} left"));
            }
            None if tries == 1 => {
                let label = &self.label;
                self.note(&format!("{label}: not yet: {found}; trying for {left}"));
            }
            None => {}
        }
    }

    /// Ends a step.
    pub(super) fn end(&mut self, facts: &StepFacts) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let word = match facts.outcome {
            Outcome::Passed => styled(GOOD, "ok"),
            Outcome::Failed => styled(BAD.bold(), "FAILED"),
            Outcome::Interrupted | Outcome::Skipped => styled(WARN, "ended early"),
        };
        self.note(&format!("{}: {word}{}", self.label, facts.told()));
    }

    /// Prints a note.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            output::note(text);
        }
    }
}
