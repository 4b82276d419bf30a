//! Parses flags, files and the arguments of `del` into the types of the API.
//!
//! Pure, except [`files`]. Checks everything that can be checked without the daemon, and reports
//! all errors at once, each with its place. The daemon checks its limits and refusals.

mod files;
mod matching;

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use blocker::lists::{Invalid, List};
use blocker::rule::{Defaults, Ports, RuleError, RuleId, RuleSpec, Target};
use blocker::wire::{EventsRequest, ExplainRequest, FlowOrder, FlowsRequest, RulesetRequest};
use jiff::{SignedDuration, Timestamp};
use serde_yaml::{DefaultMessageFormatter, MessageFormatter as _};

use crate::args::{AddArgs, ExplainArgs, FlowsArgs, WatchArgs};
pub(crate) use files::read_file;
pub(crate) use matching::MatchArgs;

/// All errors of an input, a line each: place, what, why, and what to do.
pub(crate) type Flaws = Vec<String>;

/// A request, and the lists from which it has targets.
pub(crate) type WithLists<T> = (T, Vec<List>);

/// Parses the flags of `add`, and reads the lists that they name.
pub(crate) fn spec(args: &AddArgs, now: Timestamp) -> Result<WithLists<RuleSpec>, Flaws> {
    let mut flaws = Flaws::new();
    let mut spec = RuleSpec {
        id: one(&mut flaws, "--id", args.id.as_deref(), parse),
        targets: many(&mut flaws, "TARGET", &args.targets),
        targets_file: None,
        except: many(&mut flaws, "--except", &args.except),
        mode: one(&mut flaws, "--mode", args.mode.as_deref(), parse),
        matching: args.matching.read(&mut flaws),
        established: one(
            &mut flaws,
            "--established",
            args.established.as_deref(),
            parse,
        ),
        on_lift: one(&mut flaws, "--on-lift", args.on_lift.as_deref(), parse),
        lifetime: one(&mut flaws, "--for", args.lifetime.as_deref(), parse),
        expires: one(&mut flaws, "--expires", args.expires.as_deref(), time),
        confirm_within: one(
            &mut flaws,
            "--confirm-within",
            args.confirm_within.as_deref(),
            parse,
        ),
        comment: args.comment.clone(),
    };
    let lists = files::lists(&args.from_file, invalid(args.skip_invalid), &mut flaws);
    let lists = lists.into_iter().map(|mut list| {
        list.give_to(&mut spec.targets);
        list
    });
    let lists = lists.collect();
    // Only if all parts are valid: a missing part would cause a second error.
    if flaws.is_empty()
        && let Err(error) = check(&mut spec, now)
    {
        flaws.push(match whole_rule_place(&error) {
            Some(place) => format!("{place}: {error}"),
            None => error.to_string(),
        });
    }
    if flaws.is_empty() {
        Ok((spec, lists))
    } else {
        Err(flaws)
    }
}

/// What `--skip-invalid` asks for.
pub(crate) const fn invalid(skip: bool) -> Invalid {
    if skip { Invalid::Skip } else { Invalid::Refuse }
}

fn one<T, E: Display>(
    flaws: &mut Flaws,
    place: &str,
    text: Option<&str>,
    read: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    read(text?)
        .map_err(|error| flaws.push(format!("{place}: {error}")))
        .ok()
}

fn many<T: FromStr<Err = RuleError>>(flaws: &mut Flaws, place: &str, texts: &[String]) -> Vec<T> {
    texts
        .iter()
        .filter_map(|text| one(flaws, place, Some(text.trim()), parse))
        .collect()
}

fn parse<T: FromStr<Err = RuleError>>(text: &str) -> Result<T, RuleError> {
    text.parse()
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        format!("time {text:?} is not valid: write RFC 3339 with its offset, such as 2026-01-31T18:00:00Z or 2026-01-31T19:00:00+01:00")
    })
}

/// Checks fields against each other.
///
/// The daemon's default mode is unknown here. `drop` is used instead: it is compatible with every
/// other field, so no rule is refused that the daemon would accept.
fn check(spec: &mut RuleSpec, now: Timestamp) -> Result<(), RuleError> {
    let id = || "unnamed".parse().expect("\"unnamed\" follows the grammar");
    // Checks the rule with its first target only, since each target is valid: there may be a million.
    let targets = std::mem::take(&mut spec.targets);
    let mut bare = spec.clone();
    bare.targets.extend(targets.first());
    spec.targets = targets;
    bare.resolve(id, Defaults::default(), now).map(|_| ())
}

/// The flag that an error of the whole rule is about, if its message does not name it.
fn whole_rule_place(error: &RuleError) -> Option<&'static str> {
    match error {
        RuleError::Interface(_) => Some("--interface"),
        RuleError::Comment => Some("--comment"),
        RuleError::Expired(_) => Some("--expires"),
        RuleError::TwoDeadlines => Some("--for, --expires"),
        RuleError::PortsWithout(_) => Some("--port, --protocol"),
        _ => None,
    }
}

/// Reads the flags of `explain`.
pub(crate) fn packet(args: &ExplainArgs) -> Result<ExplainRequest, Flaws> {
    let mut flaws = Flaws::new();
    let address = one(&mut flaws, "ADDRESS", Some(&args.address), host);
    let local = one(&mut flaws, "--local", args.local.as_deref(), host);
    let mut ports = |flag, text: &Option<String>| one(&mut flaws, flag, text.as_deref(), port);
    let (port, local_port, remote_port) = (
        ports("--port", &args.port),
        ports("--local-port", &args.local_port),
        ports("--remote-port", &args.remote_port),
    );
    let protocol = one(&mut flaws, "--protocol", args.protocol.as_deref(), parse);
    let direction = one(&mut flaws, "--direction", args.direction.as_deref(), parse);
    match address {
        Some(address) if flaws.is_empty() => Ok(ExplainRequest {
            address,
            local,
            port,
            local_port,
            remote_port,
            protocol,
            direction,
            interface: args.interface.clone(),
        }),
        _ => Err(flaws),
    }
}

/// Reads the flags of `flows`.
pub(crate) fn flows(args: &FlowsArgs) -> Result<FlowsRequest, Flaws> {
    let mut flaws = Flaws::new();
    let rule = many(&mut flaws, "--rule", &args.rule);
    let remote = many(&mut flaws, "--remote", &args.remote);
    let protocol = one(&mut flaws, "--protocol", args.protocol.as_deref(), parse);
    let sort = one(&mut flaws, "--sort", args.sort.as_deref(), parse);
    let request = FlowsRequest {
        rule,
        remote,
        limit: args.limit,
        protocol: protocol.unwrap_or_default(),
        sort: sort.unwrap_or(FlowOrder::LastSeen),
    };
    if flaws.is_empty() {
        Ok(request)
    } else {
        Err(flaws)
    }
}

/// Reads the flags of `watch`.
pub(crate) fn events(args: &WatchArgs) -> Result<EventsRequest, Flaws> {
    let mut flaws = Flaws::new();
    let rule = many(&mut flaws, "--rule", &args.rule);
    let remote = many(&mut flaws, "--remote", &args.remote);
    let protocol = one(&mut flaws, "--protocol", args.protocol.as_deref(), parse);
    let request = EventsRequest {
        rule,
        remote,
        protocol: protocol.unwrap_or_default(),
        verdict: many(&mut flaws, "--verdict", &args.verdict),
        kind: many(&mut flaws, "--kind", &args.kind),
    };
    if flaws.is_empty() {
        Ok(request)
    } else {
        Err(flaws)
    }
}

fn host(text: &str) -> Result<Target, String> {
    let prefix = |address: &str| {
        format!(
            "{text} is a prefix, but one packet is explained: name one address of it, such as {address}"
        )
    };
    match text.parse::<Target>() {
        Ok(target) if target.is_host() => Ok(target),
        Ok(target) => {
            let first = target.net().hosts().next();
            Err(prefix(&first.unwrap_or(target.net().addr()).to_string()))
        }
        Err(RuleError::HostBits { address, .. }) => Err(prefix(&address.to_string())),
        Err(error) => Err(error.to_string()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let ports: Ports = text.parse().map_err(|error: RuleError| error.to_string())?;
    if ports.first == ports.last {
        Ok(ports.first)
    } else {
        Err(format!(
            "{text} is a range, but one packet is explained: name one port of it, such as {}",
            ports.first
        ))
    }
}

/// An argument of `del`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// Parses as an id only.
    Id(RuleId),
    /// Parses as a target only.
    Target(Target),
    /// Parses as both, such as `10.0.0.1`: the id of a rule that has it, else a target.
    Either(RuleId, Target),
}

/// Reads the arguments of `del`.
pub(crate) fn named(arguments: &[String]) -> Result<Vec<Named>, Flaws> {
    let mut flaws = Flaws::new();
    let mut all = Vec::new();
    for text in arguments {
        match (text.parse::<RuleId>(), text.parse::<Target>()) {
            (Ok(id), Ok(target)) => all.push(Named::Either(id, target)),
            (Ok(id), Err(_)) => all.push(Named::Id(id)),
            (Err(_), Ok(target)) => all.push(Named::Target(target)),
            // For text that looks like a prefix, the error of the prefix parser is the useful one.
            (Err(_), Err(error)) if text.contains(['/', ':']) => flaws.push(error.to_string()),
            (Err(_), Err(_)) => flaws.push(format!(
                "{text:?} is neither a rule's id nor an address or prefix: see `blockctl list`"
            )),
        }
    }
    if flaws.is_empty() {
        Ok(all)
    } else {
        Err(flaws)
    }
}

/// Reads a rule's id.
pub(crate) fn id(text: &str) -> Result<RuleId, Flaws> {
    text.parse().map_err(|e: RuleError| vec![e.to_string()])
}

/// Parses an interval between two requests; the minimum bounds the daemon's load.
pub(crate) fn interval(text: &str) -> Result<Duration, Flaws> {
    let flaw = || {
        vec![format!(
            "--interval {text:?} is not valid: write 500ms, 1s or 1m, from 100ms to 1h"
        )]
    };
    let interval: SignedDuration = text.parse().map_err(|_| flaw())?;
    let interval = Duration::try_from(interval).map_err(|_| flaw())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3_600);
    allowed
        .contains(&interval)
        .then_some(interval)
        .ok_or_else(flaw)
}

/// Parses a ruleset, YAML or JSON. Text that starts with a brace is parsed as JSON: that parser is
/// faster and its errors are better. Also reads the lists that rules name; relative paths start at the
/// file's directory.
pub(crate) fn ruleset(
    name: &str,
    text: &str,
    invalid: Invalid,
    now: Timestamp,
) -> Result<WithLists<RulesetRequest>, Flaws> {
    let at_name = |error: String| vec![format!("{name}: {error}")];
    if text.trim().is_empty() {
        return Err(at_name(
            "is empty: write `rules: []` to lift every rule of the API".to_owned(),
        ));
    }
    let mut request: RulesetRequest = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| json_flaw(name, &e))?
    } else {
        serde_yaml::from_str_with_options(text, yaml_options()).map_err(|e| yaml_flaw(name, &e))?
    };
    let mut flaws = Flaws::new();
    let mut lists = Vec::new();
    let directory = Path::new(name).parent().unwrap_or_else(|| Path::new(""));
    for (index, spec) in request.rules.iter_mut().enumerate() {
        let which = match &spec.id {
            Some(id) => format!("{name}: rules[{index}] ({id})"),
            None => format!("{name}: rules[{index}]"),
        };
        match List::take(spec, directory, invalid) {
            Ok(list) => lists.extend(list),
            Err(error) => {
                let messages = files::list_flaws(&error);
                flaws.extend(messages.map(|text| format!("{which}: targets_file: {text}")));
                continue;
            }
        }
        if let Err(error) = check(spec, now) {
            flaws.push(format!("{which}: {error}"));
        }
    }
    if flaws.is_empty() {
        Ok((request, lists))
    } else {
        Err(flaws)
    }
}

/// Without the parser's budget, which is for untrusted documents: this one is the caller's own, and
/// may contain a million prefixes.
fn yaml_options() -> serde_yaml::Options {
    serde_yaml::options! { budget: None, with_snippet: false }
}

/// `FILE:LINE:COLUMN: …`, as compilers write it.
fn yaml_flaw(name: &str, error: &serde_yaml::Error) -> Flaws {
    let message = DefaultMessageFormatter.format_message(error);
    vec![match error.location() {
        Some(at) => format!("{name}:{}:{}: {message}", at.line(), at.column()),
        None => format!("{name}: {message}"),
    }]
}

/// As [`yaml_flaw`], with the position moved from the end of `serde_json`'s message to its start.
fn json_flaw(name: &str, error: &serde_json::Error) -> Flaws {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let place = format!(" at line {line} column {column}");
    let message = message.strip_suffix(&place).unwrap_or(&message);
    vec![format!("{name}:{line}:{column}: {message}")]
}

#[cfg(test)]
mod tests;
