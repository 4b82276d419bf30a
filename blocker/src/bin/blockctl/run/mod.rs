//! `run`: carries out a runbook step by step, and writes its report.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | the dry run, and asking the daemon beforehand |
//! | [`block`] | a block from its start to its lift |
//! | [`check`] | a check: repeated attempts |
//! | [`probe`] | one attempt |
//! | [`progress`] | progress on standard error |
//! | [`report`] | the report |

mod block;
mod check;
mod plan;
mod probe;
mod progress;
pub(crate) mod report;

use std::future::pending;
use std::path::Path;
use std::time::Duration;

use blocker::api::client::Client;
use blocker::runbook::{Action, Lift, Runbook, Step};
use futures_util::future::select_all;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep_until};

use crate::args::{Global, Output, RunArgs};
use crate::evidence::ReportFile;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::output;
use crate::render::{self, View};
use crate::signals::Signals;
use block::Block;
use check::Checked;
use probe::Surroundings;
use progress::Progress;
use report::{Outcome, Report, Verdict};

/// How long after the run's deadline the deadline of its blocks is, so that a run that reaches its
/// deadline can still read the counters of its blocks and lift them.
const GRACE: Duration = Duration::from_secs(5);

/// Carries out a runbook. Returns the exit code and the text to print.
pub(crate) async fn run(
    client: &Client,
    args: &RunArgs,
    global: &Global,
    view: View,
) -> Result<(u8, String), Failure> {
    let runbook = load(&args.file)?;
    if args.dry_run {
        return plan::dry_run(client, &runbook, args.force, global, view).await;
    }
    let file = args.report.as_deref().map(ReportFile::create).transpose()?;
    let surroundings = Surroundings::new(client.path())?;
    // Before the first block starts, so that a signal cannot leave one in force.
    let mut signals = Signals::new()?;
    let status = client.status().await?;
    // A block of a later step that is refused ends the run before its first step.
    plan::ask(client, &runbook, args.force).await?;
    let latest = SignedDuration::try_from(runbook.deadline + GRACE);
    let latest = Timestamp::now().saturating_add(latest.unwrap_or(SignedDuration::MAX));

    let mut run = Run {
        client,
        runbook: &runbook,
        force: args.force,
        surroundings,
        blocks: Vec::new(),
        progress: Progress::new(runbook.steps.len(), global.quiet),
        report: Report::new(&runbook, &args.file, status),
        ends: Instant::now() + runbook.deadline,
        expires: latest.unwrap_or(Timestamp::MAX),
        view,
    };
    let end = run.steps(&mut signals).await;
    run.lift_all(&mut signals).await;
    let Run {
        blocks,
        mut report,
        progress,
        ..
    } = run;
    drop(progress);
    report.over(end, blocks.into_iter().map(Block::into_facts).collect());
    if let Some(file) = file {
        file.write(&report)?;
    }
    let text = match global.output {
        _ if global.quiet => String::new(),
        Output::Table => render::ran(&report, view),
        exact => output::exact(&report, exact)?,
    };
    if global.quiet
        && let Some(why) = report.why()
    {
        output::error(why);
    }
    Ok((report.exit_code(), text))
}

/// Reads the file; `-` is standard input.
fn load(path: &Path) -> Result<Runbook, Failure> {
    if path == Path::new("-") {
        let (name, text) = input::read_file(path)?;
        return Runbook::parse(&text, &name).map_err(Failure::Runbook);
    }
    Runbook::load(path).map_err(Failure::Runbook)
}

/// A run in progress.
struct Run<'a> {
    client: &'a Client,
    runbook: &'a Runbook,
    force: bool,
    surroundings: Surroundings,
    /// All blocks of the run, including lifted ones.
    blocks: Vec<Block>,
    progress: Progress,
    report: Report,
    /// The deadline of the run.
    ends: Instant,
    /// The deadline of every block, on the wall clock.
    expires: Timestamp,
    view: View,
}

/// What a step did.
enum Acted {
    Held(Box<Block>),
    Waited,
    Checked(Checked),
}

impl Run<'_> {
    /// Carries out the steps, until one fails or the run is ended.
    async fn steps(&mut self, signals: &mut Signals) -> Verdict {
        let runbook = self.runbook;
        for (index, step) in runbook.steps.iter().enumerate() {
            self.progress.begin(index, step);
            self.report.begin(index);
            let verdict = self.step(index, step, signals).await;
            let (outcome, found) = match &verdict {
                Ok(found) => (Outcome::Passed, found.clone()),
                Err(Verdict::Failed(why, _)) => (Outcome::Failed, Some(why.clone())),
                Err(_) => (Outcome::Interrupted, None),
            };
            self.report.end(index, outcome, found);
            self.progress.end(self.report.step(index));
            if let Err(verdict) = verdict {
                return verdict;
            }
        }
        Verdict::Passed
    }

    /// Carries out a step, unless the run is ended meanwhile. Returns what to print about it.
    async fn step(
        &mut self,
        index: usize,
        step: &Step,
        signals: &mut Signals,
    ) -> Result<Option<String>, Verdict> {
        // Not interrupted: a lift that was started is completed.
        if let Action::Lift(lift) = &step.action {
            return self.lift(lift).await;
        }
        let Self {
            client,
            blocks,
            progress,
            surroundings,
            ..
        } = self;
        let (expires, force) = (self.expires, self.force);
        let acting = async {
            Ok(match &step.action {
                Action::Block(spec) => {
                    let block = Block::begin(client, index, spec, expires, force).await?;
                    Acted::Held(Box::new(block))
                }
                Action::Check(check) => {
                    Acted::Checked(check::check(check, surroundings, progress).await)
                }
                Action::Wait(time) => {
                    progress.wait(*time).await;
                    Acted::Waited
                }
                Action::Lift(_) => pending().await, // done above
            })
        };
        let acted = tokio::select! {
            biased;
            signal = signals.next() => return Err(Verdict::Interrupted(signal)),
            why = lost(blocks) => return Err(Verdict::Lost(why)),
            () = sleep_until(self.ends) => return Err(Verdict::Late),
            acted = acting => acted,
        };
        match acted {
            Ok(Acted::Held(block)) => {
                let said = render::held(block.held(), self.view);
                self.report.blocked(index, block.id());
                self.blocks.push(*block);
                Ok(Some(said))
            }
            Ok(Acted::Waited) => Ok(None),
            Ok(Acted::Checked(checked)) => {
                self.report.tried(index, checked.tries);
                match checked.met {
                    true => Ok(Some(checked.found)),
                    false => Err(Verdict::Failed(checked.found, Exit::Failed)),
                }
            }
            Err(failure) => {
                let failure: Failure = failure;
                let why = failure.messages().join("\n");
                Err(Verdict::Failed(why, failure.exit()))
            }
        }
    }

    /// Lifts the blocks that a step names.
    async fn lift(&mut self, lift: &Lift) -> Result<Option<String>, Verdict> {
        let mut said = String::new();
        for block in self.blocks.iter_mut().filter(|block| block.is_in_force()) {
            if let Lift::One(id) = lift
                && block.id() != id
            {
                continue;
            }
            block.lift(self.client).await;
            if let Some(why) = block.lost() {
                return Err(Verdict::Lost(block.trouble(why)));
            }
            said += &format!("{}: {}", block.id(), block.summary(self.view));
        }
        Ok(Some(said))
    }

    /// Lifts the remaining blocks. At another signal it closes their connections instead, and the daemon
    /// lifts them.
    async fn lift_all(&mut self, signals: &mut Signals) {
        for block in self.blocks.iter_mut().filter(|block| block.is_in_force()) {
            let lifted = tokio::select! {
                biased;
                () = block.lift(self.client) => true,
                _ = signals.next() => false,
            };
            if !lifted {
                block.abandon();
            }
            let said = format!("{}: {}", block.id(), block.summary(self.view));
            self.progress.note(&said);
        }
    }
}

/// Waits until a block ends that this run did not lift; returns which one, and why.
async fn lost(blocks: &mut [Block]) -> String {
    let waits = blocks.iter_mut().filter(|block| block.is_in_force());
    let waits: Vec<_> = waits.map(|block| Box::pin(block.ended())).collect();
    if waits.is_empty() {
        pending::<()>().await;
    }
    select_all(waits).await.0
}
