//! From the file format to a runbook: checks that need more than one key.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_yaml::{Location, Spanned};

use super::check::{Check, Command, Http, Probe, Tcp};
use super::document::{CheckDocument, Document, StepDocument};
use super::expect::Connect;
use super::values::{Line, Word};
use super::{Action, DEADLINE, Lift, Runbook, Step};
use crate::lists::{Invalid, List};
use crate::rule::{Defaults, Lifetime, RuleId, RuleSpec};
use crate::yaml::{Fault, Source};

/// The time limit of one try of a check by default.
const TRY: Duration = Duration::from_secs(5);
/// The same, for a command.
const COMMAND: Duration = Duration::from_secs(60);
/// The pause between two tries by default.
const EVERY: Duration = Duration::from_millis(500);

pub(super) fn review(document: Document, source: Source<'_>) -> Result<Runbook, Fault> {
    let deadline = document.deadline.as_ref();
    let deadline = deadline.map_or(DEADLINE, |deadline| span(deadline.value));
    if document.steps.value.is_empty() {
        let place = document.steps.referenced;
        return Err(source.fault(place, "found no steps, expected at least one"));
    }
    let mut reviewer = Reviewer {
        source,
        held: Vec::new(),
        waits: Duration::ZERO,
        deadline,
    };
    let steps = document.steps.value.into_iter();
    let steps = steps.map(|step| reviewer.step(step));
    let steps = steps.collect::<Result<_, _>>()?;
    let stem = || {
        let stem = Path::new(source.name).file_stem();
        stem.unwrap_or_default().to_string_lossy().into_owned()
    };
    Ok(Runbook {
        name: document.name.unwrap_or_else(stem),
        description: document.description,
        deadline,
        steps,
    })
}

struct Reviewer<'a> {
    source: Source<'a>,
    /// The blocks that are in force at this step; `None`: one with a generated id.
    held: Vec<(Option<RuleId>, u64)>,
    /// The sum of all waits.
    waits: Duration,
    deadline: Duration,
}

impl Reviewer<'_> {
    fn step(&mut self, step: Spanned<StepDocument>) -> Result<Step, Fault> {
        const KEYS: &str = "one of block, wait, check and lift";
        let place = step.referenced;
        let StepDocument {
            name,
            block,
            wait,
            check,
            lift,
        } = step.value;
        let action = match (block, wait, check, lift) {
            (Some(spec), None, None, None) => self.block(spec)?,
            (None, Some(wait), None, None) => {
                self.waits = self.waits.saturating_add(span(wait));
                if self.waits >= self.deadline {
                    let message = format!(
                        "the waits up to here take {}, and the run ends after {}: write a longer deadline",
                        shown(self.waits),
                        shown(self.deadline)
                    );
                    return Err(self.source.fault(place, message));
                }
                Action::Wait(span(wait))
            }
            (None, None, Some(check), None) => self.check(check)?,
            (None, None, None, Some(lift)) => self.lift(lift)?,
            (None, None, None, None) => {
                let message = format!("found a step that does nothing, expected {KEYS}");
                return Err(self.source.fault(place, message));
            }
            _ => {
                let message = format!("found a step that does several things, expected {KEYS}");
                return Err(self.source.fault(place, message));
            }
        };
        Ok(Step {
            name,
            line: place.line(),
            action,
        })
    }

    fn block(&mut self, spec: Spanned<RuleSpec>) -> Result<Action, Fault> {
        let (place, mut spec) = (spec.referenced, spec.value);
        let fault = |message: String| self.source.fault(place, message);
        for (key, given) in [
            ("for", spec.lifetime.is_some()),
            ("expires", spec.expires.is_some()),
            ("confirm_within", spec.confirm_within.is_some()),
        ] {
            if given {
                return Err(fault(format!(
                    "a block of a runbook has no {key:?}: it ends by a lift, or with the run, at the runbook's deadline at the latest"
                )));
            }
        }
        let directory = Path::new(self.source.name).parent();
        let directory = directory.unwrap_or_else(|| Path::new(""));
        List::take(&mut spec, directory, Invalid::Refuse)
            .map_err(|error| fault(format!("targets_file: {}", error.brief())))?;
        // The daemon's default mode is not known here; every field is valid with `drop`.
        let id = || "unnamed".parse().expect("\"unnamed\" follows the grammar");
        let rule = spec
            .clone()
            .resolve(id, Defaults::default(), Timestamp::MIN);
        rule.map_err(|error| fault(error.to_string()))?;
        if let Some(id) = &spec.id {
            if id.as_str() == "all" {
                return Err(fault(
                    "the id all is taken: it names every block in lift".to_owned(),
                ));
            }
            let other = self.held.iter().find(|(held, _)| held.as_ref() == Some(id));
            if let Some((_, line)) = other {
                return Err(fault(format!(
                    "the id {id} is that of the block at line {line}, which is not lifted by then: every block needs an id of its own"
                )));
            }
        }
        self.held.push((spec.id.clone(), place.line()));
        Ok(Action::Block(Box::new(spec)))
    }

    fn lift(&mut self, lift: Spanned<Word>) -> Result<Action, Fault> {
        let (place, Word(lift)) = (lift.referenced, lift.value);
        let before = self.held.len();
        match &lift {
            Lift::All => self.held.clear(),
            Lift::One(id) => self.held.retain(|(held, _)| held.as_ref() != Some(id)),
        }
        if self.held.len() < before {
            return Ok(Action::Lift(lift));
        }
        let ids: Vec<&str> = self
            .held
            .iter()
            .filter_map(|(id, _)| id.as_ref().map(RuleId::as_str))
            .collect();
        let message = match &lift {
            Lift::All => "there is no block to lift at this step".to_owned(),
            Lift::One(id) if before == 0 => {
                format!("found {id}, but there is no block to lift at this step")
            }
            Lift::One(id) => format!(
                "found {id}, expected the id of a block that is in force at this step ({}), or all",
                if ids.is_empty() {
                    "none has one".to_owned()
                } else {
                    ids.join(", ")
                }
            ),
        };
        Err(self.source.fault(place, message))
    }

    fn check(&self, check: Spanned<CheckDocument>) -> Result<Action, Fault> {
        let place = check.referenced;
        let CheckDocument {
            http,
            tcp,
            command,
            timeout,
            within,
            every,
        } = check.value;
        let probe = match (http, tcp, command) {
            (Some(http), None, None) => {
                for (name, value) in &http.headers {
                    self.header(place, name, value)?;
                }
                Probe::Http(Http {
                    url: http.url.0,
                    status: http.status.0,
                    body: http.body,
                    headers: http.headers,
                    insecure: http.insecure,
                })
            }
            (None, Some(tcp), None) => Probe::Tcp(Tcp {
                to: tcp.to,
                expect: tcp.expect.unwrap_or(Connect::Connects),
            }),
            (None, None, Some(command)) => {
                let (words, line) = match command.run {
                    Line::Shell(line) => (
                        vec!["sh".to_owned(), "-c".to_owned(), line.clone()],
                        Some(line),
                    ),
                    Line::Words(words) => (words, None),
                };
                Probe::Command(Command {
                    words,
                    line,
                    exit: command.exit,
                    output: command.output,
                })
            }
            _ => {
                return Err(self.source.fault(
                    place,
                    "a check is exactly one of http, tcp and command, beside timeout, within and every",
                ));
            }
        };
        let usual = match probe {
            Probe::Command(_) => COMMAND,
            _ => TRY,
        };
        let check = Check {
            timeout: timeout.map_or(usual, span),
            within: within.map(span),
            every: every.map_or(EVERY, span),
            probe,
        };
        if let Probe::Tcp(tcp) = &check.probe
            && tcp.expect == Connect::TimesOut
            && check.within.is_some_and(|within| within < check.timeout)
        {
            let message = format!(
                "a try takes {} to time out, longer than the {} of within: write a shorter timeout",
                shown(check.timeout),
                shown(check.within.unwrap_or_default())
            );
            return Err(self.source.fault(place, message));
        }
        Ok(Action::Check(Box::new(check)))
    }

    fn header(&self, place: Location, name: &str, value: &str) -> Result<(), Fault> {
        use hyper::header::{HeaderName, HeaderValue};
        let bad = HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err();
        match bad {
            true => {
                let message = format!("the header {name:?}: {value:?} is none that HTTP can carry");
                Err(self.source.fault(place, message))
            }
            false => Ok(()),
        }
    }
}

fn span(time: Lifetime) -> Duration {
    time.duration().unsigned_abs()
}

/// A time as text: `1m 30s`.
fn shown(time: Duration) -> String {
    SignedDuration::try_from(time).map_or_else(|_| format!("{time:?}"), |time| format!("{time:#}"))
}
