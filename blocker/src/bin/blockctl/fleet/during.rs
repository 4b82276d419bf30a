//! `fleet during`: a rule on many hosts while a command runs.
//!
//! The rule is bound to an etcd lease that this program keeps alive. If this program dies, etcd deletes the
//! rule some seconds later; if etcd is unreachable too, each host ends the rule at its deadline.

use blocker::fleet::client::FleetClient;
use blocker::fleet::form::Fleet;
use jiff::Timestamp;
use tokio::time::Instant;

use super::args::FleetDuring;
use super::wait::{For, Waiting};
use super::{FleetChanged, ask, done, meant, patience, place, value};
use crate::Done;
use crate::args::{Global, Output};
use crate::during::command::{self, Ended};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::render::{self, View};
use crate::signals::Signals;

/// Blocks, runs the command, lifts.
pub(super) async fn during(
    fleet: &Fleet,
    args: &FleetDuring,
    global: &Global,
    view: View,
) -> Result<Done, Failure> {
    let (id, mut value) = value(&args.rule, &args.on, false, global)?;
    let patience = patience(&args.wait)?;
    // Before the rule is written, so that a signal cannot leave it in force.
    let mut signals = Signals::new()?;
    let client = FleetClient::connect(fleet).await?;
    let meant = meant(&client.hosts().await?, &value, &args.on)?;
    if args.rule.dry_run {
        let tried = ask(&client, &value, meant).await?;
        let text = crate::form(global, &tried, || {
            render::fleet::tried(&tried, &value, view)
        })?;
        return Ok(Done::new(text));
    }
    value.held = true;
    let (id, _) = place(id, &value, &client.rules().await?.all)?;
    let since = Instant::now();
    value.written = Timestamp::now();
    let mut hold = client.hold(&id, &value).await?;
    let mut waiting = Waiting::new(For::Rule(id.as_str()), hold.revision, since, meant.clone());
    let interrupted = tokio::select! {
        () = waiting.wait(fleet, since + patience, !global.quiet) => false,
        _ = signals.next() => true,
    };
    let mut changed = FleetChanged {
        rules: vec![id.clone()],
        revision: hold.revision,
        created: true,
        meant: meant.len(),
        hosts: waiting.results(),
        value: Some(value),
    };
    let begun = changed.exit();
    if !global.quiet {
        note(&render::fleet::added(&changed, view));
    }
    let mut code = None;
    let mut lost = None;
    if interrupted {
        code = Some(130);
    } else if begun == Exit::Done || args.partial {
        let ended = run(args, &id, &mut hold, &mut signals, &mut lost).await;
        code = match ended {
            Ok(code) => Some(code),
            Err(failure) => {
                lift(fleet, &id, &mut changed, patience, global).await?;
                return Err(failure);
            }
        };
    } else {
        output::error(
            "the command was not started: the rule is not in force on all hosts (--partial starts it nevertheless)",
        );
    }
    drop(hold);
    match lift(fleet, &id, &mut changed, patience, global).await {
        Ok(()) if global.quiet => {}
        Ok(()) => note(&render::fleet::lifted(&changed, view)),
        // Not returned: the exit code is that of the command.
        Err(failure) => {
            for message in failure.messages() {
                output::error(&message);
            }
            lost = lost.or_else(|| {
                Some(
                    "it could not be lifted: it ends with its lease, or at its deadline".to_owned(),
                )
            });
        }
    }
    if let Some(why) = &lost {
        output::error(&format!("the block did not hold to the end: {why}"));
    }
    let text = match global.output {
        Output::Table => String::new(),
        exact => output::exact(&changed, exact)?,
    };
    let partly = lost.is_some() || changed.exit() != Exit::Done;
    Ok(match code {
        Some(0) if partly => Done {
            code: Some(Exit::Partly as u8),
            ..done(text, &changed)
        },
        Some(code) => Done {
            code: Some(code),
            ..Done::new(text)
        },
        None => Done {
            exit: begun,
            ..Done::new(text)
        },
    })
}

/// Runs the command, and records in `lost` if the rule ends meanwhile.
async fn run(
    args: &FleetDuring,
    id: &blocker::rule::RuleId,
    hold: &mut blocker::fleet::client::Hold,
    signals: &mut Signals,
    lost: &mut Option<String>,
) -> Result<u8, Failure> {
    let mut running = command::start(&args.command, id)?;
    let ended = loop {
        tokio::select! {
            ended = running.end(signals) => break ended,
            why = hold.lost(), if lost.is_none() => {
                output::warning(&format!("the rule ends, the command goes on: {why}"));
                *lost = Some(why);
            }
        }
    };
    Ok(match ended {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(127)),
    })
}

/// Lifts the rule, and waits for the hosts that have it.
async fn lift(
    fleet: &Fleet,
    id: &blocker::rule::RuleId,
    changed: &mut FleetChanged,
    patience: std::time::Duration,
    global: &Global,
) -> Result<(), Failure> {
    let since = Instant::now();
    // A new connection: the old one may be why the lease was lost.
    let client = FleetClient::connect(fleet).await?;
    let (revision, _) = client.delete(std::slice::from_ref(id)).await?;
    let hosts = changed.hosts.iter().map(|result| result.host.clone());
    let mut waiting = Waiting::new(For::Gone, revision, since, hosts.collect::<Vec<_>>());
    waiting.wait(fleet, since + patience, !global.quiet).await;
    changed.revision = revision;
    changed.hosts = waiting.results();
    Ok(())
}

/// Prints to standard error, since standard output belongs to the command.
fn note(text: &str) {
    text.lines().for_each(output::note);
}
