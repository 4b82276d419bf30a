//! What is said while a run is under way: a line a step, and on a terminal a line that lives.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use blocker::runbook::{Action, Step};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, interval, sleep};

use super::plan;
use super::report::{Outcome, StepFacts};
use crate::output;
use crate::render::{BAD, GOOD, WARN, printable, shortly, styled};

/// How often the line that lives is drawn.
const TICK: Duration = Duration::from_millis(100);

/// The progress of a run.
pub(super) struct Progress {
    steps: usize,
    /// Nothing is said.
    quiet: bool,
    /// Whether there is a terminal for a line that lives.
    terminal: bool,
    /// That line, of the step under way.
    bar: Option<ProgressBar>,
    /// `[2/7] the client is in rotation`, of the step under way.
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

    /// A step begins.
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
            // Whoever reads a log is to see what is waited for.
            self.note(&format!("{}: waiting {}", self.label, shortly(*time)));
        }
    }

    /// Waits, and shows how long still.
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

    /// A try was not as expected, and there will be another.
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

    /// A step is over.
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

    /// Says something.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            output::note(text);
        }
    }
}
