//! The dry run: lists the steps, and asks the daemon about the blocks. Changes nothing.

use blocker::api::client::{Change, Client, ClientError};
use blocker::rule::RuleSpec;
use blocker::runbook::{Action, Check, Lift, Runbook, Step};
use blocker::wire::{AddResponse, Code, Problem};
use serde::Serialize;

use crate::args::{Global, Output};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::render::{self, View, shortly};

/// A plan, as `-o json` prints it.
#[derive(Serialize)]
struct Plan<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    deadline_seconds: f64,
    steps: Vec<Planned<'a>>,
}

#[derive(Serialize)]
struct Planned<'a> {
    number: usize,
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    action: &'static str,
    what: String,
    /// The daemon's answer about the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<AddResponse>,
}

/// Prints the plan. An error of the daemon is reported after the plan.
pub(super) async fn dry_run(
    client: &Client,
    runbook: &Runbook,
    force: bool,
    global: &Global,
    view: View,
) -> Result<(u8, String), Failure> {
    let mut objection = None;
    let mut steps = Vec::new();
    for (number, step) in (1..).zip(&runbook.steps) {
        let answer = match &step.action {
            Action::Block(spec) if objection.is_none() => match would(client, spec, force).await {
                Ok(answer) => Some(answer),
                Err(failure) => {
                    objection = Some(failure);
                    None
                }
            },
            _ => None,
        };
        steps.push(Planned {
            number,
            line: step.line,
            name: step.name.as_deref(),
            action: step.action.word(),
            what: what(step),
            answer,
        });
    }
    let plan = Plan {
        name: &runbook.name,
        description: runbook.description.as_deref(),
        deadline_seconds: runbook.deadline.as_secs_f64(),
        steps,
    };
    let text = match global.output {
        _ if global.quiet => String::new(),
        Output::Table => table(&plan, runbook, view),
        exact => output::exact(&plan, exact)?,
    };
    match objection {
        None => Ok((Exit::Done as u8, text)),
        Some(failure) => {
            output::print(&text)?;
            Err(failure)
        }
    }
}

/// Asks the daemon whether it would accept every block.
pub(super) async fn ask(client: &Client, runbook: &Runbook, force: bool) -> Result<(), Failure> {
    for step in &runbook.steps {
        if let Action::Block(spec) = &step.action {
            would(client, spec, force).await?;
        }
    }
    Ok(())
}

async fn would(client: &Client, spec: &RuleSpec, force: bool) -> Result<AddResponse, Failure> {
    let dry_run = Change {
        force,
        dry_run: true,
        ..Change::default()
    };
    let answer = client.add(spec, dry_run).await?;
    if let (Some(id), false) = (&spec.id, answer.created) {
        // Adding a rule that exists is not an error, but holding it under a lease is.
        let detail = format!(
            "the id {id} is taken by a rule that is in force: give the block another, or lift the rule first"
        );
        return Err(Failure::Client(ClientError::Problem(Problem {
            kind: "about:blank".to_owned(),
            title: "the id is taken".to_owned(),
            status: 409,
            detail,
            code: Code::Conflict,
        })));
    }
    Ok(answer)
}

/// A step's name, or its action.
pub(super) fn title(step: &Step) -> String {
    let what = || format!("{} {}", step.action.word(), what(step));
    step.name.clone().unwrap_or_else(what)
}

/// The object of a step's action.
pub(super) fn what(step: &Step) -> String {
    match &step.action {
        Action::Block(spec) => {
            let id = spec.id.as_ref().map(|id| format!("rule {id}, "));
            let mode = spec.mode.map_or("mode as configured", |mode| mode.word());
            let targets = render::targets(&spec.targets);
            format!("{targets} ({}{mode})", id.unwrap_or_default())
        }
        Action::Wait(time) => shortly(*time),
        Action::Check(check) => check.probe.to_string(),
        Action::Lift(Lift::All) => "every block".to_owned(),
        Action::Lift(Lift::One(id)) => id.to_string(),
    }
}

fn table(plan: &Plan<'_>, runbook: &Runbook, view: View) -> String {
    let mut out = format!(
        "{}: {} in at most {}; nothing is changed now\n",
        plan.name,
        render::counted(plan.steps.len(), "step"),
        shortly(runbook.deadline)
    );
    for (planned, step) in plan.steps.iter().zip(&runbook.steps) {
        let name = planned.name.map(|name| format!("{name}\n     "));
        out += &render::printable_lines(&format!(
            "{:>3}. {}{} {}\n",
            planned.number,
            name.unwrap_or_default(),
            planned.action,
            planned.what
        ));
        if let Action::Check(check) = &step.action {
            out += &render::printable_lines(&format!("     {}\n", terms(check)));
        }
        if let (Action::Block(spec), Some(answer)) = (&step.action, &planned.answer) {
            for line in render::added(answer, spec, true, view).lines() {
                out += &format!("     {line}\n");
            }
        }
    }
    out + "  at the end, also after a failure: every block is lifted\n"
}

/// What a check expects, and how often it is attempted.
fn terms(check: &Check) -> String {
    let patience = match check.within {
        Some(within) => format!("within {}, every {}", shortly(within), shortly(check.every)),
        None => "once".to_owned(),
    };
    let timeout = shortly(check.timeout);
    format!(
        "expects {}; tried {patience}, {timeout} each at most",
        check.probe.expected()
    )
}
