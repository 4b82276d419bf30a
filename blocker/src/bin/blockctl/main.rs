//! `blockctl`: the daemon's control socket for people and scripts.
//!
//! | module | owns |
//! |---|---|
//! | [`args`] | the command line |
//! | [`input`] | flags, files and arguments → API types, every error at once |
//! | [`lift`] | what `del` names, looked up and lifted |
//! | [`during`] | a block while a command runs |
//! | [`mod@run`] | the steps of a runbook |
//! | [`held`] | rules under a lease |
//! | [`evidence`] | the parts that all reports share |
//! | [`signals`] | SIGINT, SIGTERM and SIGHUP |
//! | `fleet` | rules for many hosts, through etcd |
//! | [`render`] | answers → words and tables |
//! | [`rates`] | totals → rates |
//! | [`stats`] | rates as text, once an interval |
//! | [`top`] | rates as a terminal display |
//! | [`output`] | streams, colours, JSON and YAML |
//! | [`failure`] | errors → messages and exit codes |
//! | [`wait`] | progress while an answer takes long |
//! | [`watch`] | the stream of events |
//!
//! The library defines what a rule means; the daemon enforces it.

mod args;
mod during;
mod evidence;
mod failure;
#[cfg(feature = "fleet")]
mod fleet;
mod held;
mod input;
mod lift;
mod output;
mod rates;
mod render;
mod run;
mod signals;
mod stats;
mod top;
mod wait;
mod watch;

use std::process::ExitCode;

use blocker::api::client::{Change, Client};
use blocker::lists::List;
use blocker::manual;
use blocker::runbook;
use blocker::wire::Account;
use clap::{CommandFactory as _, Parser as _};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{AddArgs, Cli, Command, Global, Output};
use crate::failure::{Exit, Failure};
use crate::render::View;
use crate::wait::patiently;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    output::set_color(cli.global.color);
    let result = run(&cli).await.and_then(|done| {
        output::print(&done.text)?;
        if let Some(left) = done.left.filter(|_| cli.global.quiet) {
            output::error(&left);
        }
        Ok(done.code.unwrap_or(done.exit as u8))
    });
    let exit = result.unwrap_or_else(|failure| {
        for message in failure.messages() {
            output::error(&message);
        }
        failure.exit() as u8
    });
    ExitCode::from(exit)
}

/// `--help` and `--version` are results; all other messages of clap are errors.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let text = error.render().to_string();
        output::error(text.strip_prefix("error: ").unwrap_or(&text));
        return ExitCode::from(Exit::Invalid as u8);
    }
    let printed = output::print(&error.render().ansi().to_string());
    ExitCode::from(printed.map_or_else(|failure| failure.exit(), |_| Exit::Done) as u8)
}

/// The result of a command that did not fail.
struct Done {
    text: String,
    exit: Exit,
    /// The exit code of the program that the command ran, instead of `exit`.
    code: Option<u8>,
    /// A line about what was not done, printed even with `--quiet`.
    left: Option<String>,
}

impl Done {
    fn new(text: String) -> Self {
        Self {
            text,
            exit: Exit::Done,
            code: None,
            left: None,
        }
    }

    /// A change that left flows alive is partial.
    fn after(self, account: &Account) -> Self {
        if account.left.is_empty() {
            return self;
        }
        Self {
            exit: Exit::Partly,
            left: Some(render::left(account)),
            ..self
        }
    }
}

async fn run(cli: &Cli) -> Result<Done, Failure> {
    let now = Timestamp::now();
    let global = &cli.global;
    let view = View {
        width: output::width(),
        now,
    };
    let mut client = Client::new(&global.socket);
    if let Ok(connection) = std::env::var("SSH_CONNECTION") {
        client = client.with_ssh_connection(&connection);
    }
    match &cli.command {
        Command::Add(args) => add(&client, args, global, view).await,
        // A dry run blocks nothing, so the command is not run either.
        Command::During(args) if args.rule.dry_run => add(&client, &args.rule, global, view).await,
        Command::During(args) => {
            let (spec, lists) = input::spec(&args.rule, now)?;
            tell(&lists, global.quiet);
            let (code, text) = during::during(&client, args, spec, global, view).await?;
            Ok(Done {
                code: Some(code),
                ..Done::new(text)
            })
        }
        Command::Run(args) => {
            let (code, text) = run::run(&client, args, global, view).await?;
            Ok(Done {
                code: Some(code),
                ..Done::new(text)
            })
        }
        Command::Schema => Ok(Done::new(output::exact(&runbook::schema(), Output::Json)?)),
        Command::Del { what } => {
            let names = input::named(what)?;
            let lifting = lift::lift(&client, &names);
            let (answer, gone) = patiently(&client, global.quiet, 0, lifting).await?;
            if !global.quiet {
                gone.iter().for_each(|line| output::warning(line));
            }
            let text = form(global, &answer, || render::lifted(&answer, view))?;
            Ok(Done::new(text).after(&answer.teardown))
        }
        Command::Confirm { id } => {
            let answer = client.confirm(&input::id(id)?).await?;
            Ok(Done::new(form(global, &answer, || {
                render::confirmed(&answer, view)
            })?))
        }
        Command::List => {
            let answer = client.list().await?;
            if global.quiet {
                let ids = answer
                    .rules
                    .iter()
                    .map(|view| format!("{}\n", view.rule.id));
                return Ok(Done::new(ids.collect()));
            }
            Ok(Done::new(form(global, &answer, || {
                render::list(&answer, view)
            })?))
        }
        Command::Show { id } => {
            let answer = client.rule(&input::id(id)?).await?;
            Ok(Done::new(form(global, &answer, || {
                render::show(&answer, view)
            })?))
        }
        Command::Flush { all } => {
            let answer = patiently(&client, global.quiet, 0, client.flush(*all)).await?;
            let text = form(global, &answer, || render::lifted(&answer, view))?;
            Ok(Done::new(text).after(&answer.teardown))
        }
        Command::Apply {
            file,
            skip_invalid,
            dry_run,
            force,
        } => {
            let (name, text) = input::read_file(file)?;
            let invalid = input::invalid(*skip_invalid);
            let (rules, lists) = input::ruleset(&name, &text, invalid, now)?;
            tell(&lists, global.quiet);
            let change = Change {
                force: *force,
                dry_run: *dry_run,
                ..Change::default()
            };
            let targets = rules.rules.iter().map(|rule| rule.targets.len()).sum();
            let replacing = client.replace(&rules, change);
            let answer = patiently(&client, global.quiet, targets, replacing).await?;
            let text = form(global, &answer, || render::applied(&answer, view))?;
            Ok(Done::new(text).after(&answer.teardown))
        }
        Command::Explain(args) => {
            let answer = client.explain(&input::packet(args)?).await?;
            Ok(Done::new(form(global, &answer, || {
                render::explained(&answer, view)
            })?))
        }
        Command::Flows(args) => {
            let answer = client.flows(&input::flows(args)?).await?;
            Ok(Done::new(form(global, &answer, || {
                render::flows(&answer, view)
            })?))
        }
        Command::Watch(args) => {
            watch::watch(&client, &input::events(args)?, global, view.width).await?;
            Ok(Done::new(String::new()))
        }
        Command::Status => {
            let answer = client.status().await?;
            Ok(Done::new(form(global, &answer, || {
                render::status(&answer, view)
            })?))
        }
        #[cfg(feature = "fleet")]
        Command::Fleet(args) => fleet::run(args, global, view).await,
        Command::Stats(args) => {
            stats::stats(&client, args, global).await?;
            Ok(Done::new(String::new()))
        }
        Command::Top(args) => {
            top::top(&client, args).await?;
            Ok(Done::new(String::new()))
        }
        Command::Completions { shell } => {
            // Into memory first: clap_complete panics when its stream breaks.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "blockctl", &mut script);
            Ok(Done::new(String::from_utf8_lossy(&script).into_owned()))
        }
        Command::Manual { directory } => {
            manual::write(Cli::command(), directory).map_err(|error| {
                Failure::Output(format!("cannot write to {}: {error}", directory.display()))
            })?;
            Ok(Done::new(String::new()))
        }
    }
}

async fn add(
    client: &Client,
    args: &AddArgs,
    global: &Global,
    view: View,
) -> Result<Done, Failure> {
    let (spec, lists) = input::spec(args, view.now)?;
    tell(&lists, global.quiet);
    let change = Change {
        force: args.force,
        dry_run: args.dry_run,
        // Tables show at most two targets; the other formats show the whole rule.
        few_targets: global.output == Output::Table,
    };
    let adding = client.add(&spec, change);
    let answer = patiently(client, global.quiet, spec.targets.len(), adding).await?;
    let text = if global.quiet {
        format!("{}\n", answer.rule.id)
    } else {
        form(global, &answer, || {
            render::added(&answer, &spec, args.dry_run, view)
        })?
    };
    Ok(Done::new(text).after(&answer.teardown))
}

/// Summarises the lists that were read, before the request is sent.
fn tell(lists: &[List], quiet: bool) {
    for list in lists.iter().filter(|_| !quiet) {
        output::note(&list.summary());
        if let Some(warning) = list.warning() {
            output::warning(&warning);
        }
    }
}

/// The answer in the requested format.
fn form<T: Serialize>(
    global: &Global,
    answer: &T,
    table: impl FnOnce() -> String,
) -> Result<String, Failure> {
    match global.output {
        _ if global.quiet => Ok(String::new()),
        Output::Table => Ok(table()),
        exact => output::exact(answer, exact),
    }
}
