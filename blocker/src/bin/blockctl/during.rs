//! `during`: a block while a command runs, and its report.

pub(crate) mod command;
mod report;

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::Duration;

use blocker::api::client::{Change, Client, Lease};
use blocker::rule::{RuleId, RuleSpec};
use blocker::wire::LeaseRequest;

use crate::args::{DuringArgs, Global, Output};
use crate::evidence::ReportFile;
use crate::failure::{Exit, Failure};
use crate::held::{ended, flows, lift};
use crate::output;
use crate::render::{self, View};
use crate::signals::Signals;
use command::Ended;
use report::Report;

/// How often counters are shown if there is no command.
const INTERVAL: Duration = Duration::from_secs(1);

/// Blocks, runs the command, lifts. Returns the exit code and the text to print.
pub(crate) async fn during(
    client: &Client,
    args: &DuringArgs,
    spec: RuleSpec,
    global: &Global,
    view: View,
) -> Result<(u8, String), Failure> {
    let file = args.report.as_deref().map(ReportFile::create).transpose()?;
    // Before the block starts, so that a signal cannot leave it in force.
    let mut signals = Signals::new()?;
    let change = Change {
        force: args.rule.force,
        dry_run: true,
        ..Change::default()
    };
    let before = client.add(&spec, change).await?;
    let mut report = Report::new(
        client.status().await?,
        before.would_kill.unwrap_or_default(),
    );

    let request = LeaseRequest { rules: vec![spec] };
    let mut lease = client.hold(&request, args.rule.force).await?;
    report.held(lease.held());
    let id = lease.held().rules.first().map(|rule| rule.id.clone());
    let Some(id) = id else {
        return Err(Failure::Gone);
    };
    if !global.quiet {
        note(&render::held(lease.held(), view));
    }

    let code = hold(
        client,
        args,
        &mut lease,
        &id,
        &mut signals,
        &mut report,
        global,
    )
    .await;
    report.at_end(client.rule(&id).await.ok(), flows(client, &id).await);
    let lifted = lift(client, &id).await;
    drop(lease);
    report.lifted(lifted.as_ref().ok(), flows(client, &id).await);
    if let Some(file) = file {
        file.write(&report)?;
    }
    if !global.quiet {
        note(&report.summary(view));
    }
    let text = match global.output {
        Output::Table => String::new(),
        exact => output::exact(&report, exact)?,
    };
    let code = code?;
    match report.lost() {
        None => {}
        Some(why) => {
            output::error(&format!("the block did not hold to the end: {why}"));
            if code == 0 {
                return Ok((Exit::Partly as u8, text));
            }
        }
    }
    Ok((code, text))
}

/// Waits for the command, or for a signal. Records it in the report if the block ends first.
async fn hold(
    client: &Client,
    args: &DuringArgs,
    lease: &mut Lease,
    id: &RuleId,
    signals: &mut Signals,
    report: &mut Report,
    global: &Global,
) -> Result<u8, Failure> {
    if args.command.is_empty() {
        let shown = !global.quiet && stderr().is_terminal();
        tokio::select! {
            why = ended(lease) => report.lose(why),
            _ = signals.next() => {}
            () = show(client, id, shown) => {}
        }
        return Ok(0);
    }
    let mut running = command::start(&args.command, id)?;
    report.started(&args.command);
    let mut watching = true;
    let ended = loop {
        tokio::select! {
            ended = running.end(signals) => break ended,
            why = ended(lease), if watching => {
                watching = false;
                output::warning(&format!("the block is over, the command goes on: {why}"));
                report.lose(why);
            }
        }
    };
    report.ended(&ended);
    Ok(match ended {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(127)),
    })
}

/// Shows the rule's counters once an interval, without end.
async fn show(client: &Client, id: &RuleId, shown: bool) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        if let Ok(view) = client.rule(id).await
            && shown
        {
            // A closed standard error does not end the block.
            let _ = write!(stderr(), "\r{}\x1b[K", render::progress(&view.counters));
        }
    }
}

/// Prints to standard error, since standard output belongs to the command.
fn note(text: &str) {
    text.lines().for_each(output::note);
}
