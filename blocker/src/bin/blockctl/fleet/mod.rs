//! `fleet`: rules for many hosts, through etcd.
//!
//! | module | owns |
//! |---|---|
//! | [`args`] | the command line |
//! | [`wait`] | waiting for hosts, and their results |
//! | [`during`] | a rule while a command runs |
//!
//! Each host decides whether it accepts a rule; etcd decides who may write one.

pub(crate) mod args;
mod during;
pub(crate) mod wait;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use blocker::config::Config;
use blocker::fleet::client::{At, FleetClient, FleetError, News, Stored};
use blocker::fleet::form::Fleet;
use blocker::rule::{Mode, RuleId};
use blocker::wire::FleetRefusal;
use blocker::wire::fleet::report::{Answer, HostReport};
use blocker::wire::fleet::selector::Selector;
use blocker::wire::fleet::value::{VERSION, Value};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::args::{AddArgs, Global, Output};
use crate::failure::{Exit, Failure};
use crate::render::{self, View};
use crate::{Done, form, input, output, tell};
use args::{FleetAdd, FleetArgs, FleetCommand, On, Wait};
use wait::{For, HostResult, State, Waiting};

/// The files that may name etcd; the first that exists is used.
const CONFIGS: [&str; 2] = ["/etc/blocker/fleet.yaml", "/etc/blocker/blocker.yaml"];
/// How long hosts may take to answer a dry run, for which each lists its flows.
const ANSWER: Duration = Duration::from_secs(5);
/// The maximum number of rules that are deleted as one change: etcd's limit of operations in a
/// transaction (`--max-txn-ops`).
const AT_ONCE: usize = 128;

/// The result of a change.
#[derive(Debug, Serialize)]
pub(crate) struct FleetChanged {
    pub(crate) rules: Vec<RuleId>,
    /// etcd's revision.
    pub(crate) revision: i64,
    /// Whether the rule is new; for a lift: whether all rules existed.
    pub(crate) created: bool,
    /// The number of selected hosts.
    pub(crate) meant: usize,
    /// The hosts' results; empty without `--wait`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hosts: Vec<HostResult>,
    #[serde(skip)]
    pub(crate) value: Option<Value>,
}

impl FleetChanged {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        let refused = |host: &HostResult| host.state == State::Refused;
        if self.hosts.iter().all(HostResult::is_well) {
            Exit::Done
        } else if self.hosts.iter().all(refused) {
            Exit::Refused
        } else {
            Exit::Partly
        }
    }
}

/// The result of a dry run.
#[derive(Debug, Serialize)]
pub(crate) struct FleetTried {
    /// By host: its answer, if it arrived in time.
    pub(crate) hosts: BTreeMap<String, Option<Answer>>,
}

/// A rule, and the number of hosts that have applied it.
#[derive(Debug, Serialize)]
pub(crate) struct FleetRule {
    pub(crate) id: String,
    pub(crate) revision: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<Value>,
    /// Why every host refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The number of selected hosts.
    pub(crate) meant: usize,
    /// The number of hosts that have reached its revision and have not refused it.
    pub(crate) applied: usize,
}

/// A host, as it reported itself.
#[derive(Debug, Serialize)]
pub(crate) struct FleetHost {
    #[serde(flatten)]
    pub(crate) report: HostReport,
    /// Whether it has not applied all changes.
    pub(crate) behind: bool,
}

/// Runs a command of `fleet`.
pub(crate) async fn run(args: &FleetArgs, global: &Global, view: View) -> Result<Done, Failure> {
    let fleet = config(args.config.as_deref())?;
    match &args.command {
        FleetCommand::Add(add) => self::add(&fleet, add, global, view).await,
        FleetCommand::During(args) => during::during(&fleet, args, global, view).await,
        FleetCommand::Del { ids, wait } => del(&fleet, ids, wait, global, view).await,
        FleetCommand::List => {
            let rules = list(&fleet).await?;
            Ok(Done::new(form(global, &rules, || {
                render::fleet::list(&rules, view)
            })?))
        }
        FleetCommand::Status { hosts } => {
            let hosts = status(&fleet, &selector(hosts)?).await?;
            Ok(Done::new(form(global, &hosts, || {
                render::fleet::status(&hosts, view)
            })?))
        }
        FleetCommand::Watch { hosts } => {
            watch(&fleet, &selector(hosts)?, global).await?;
            Ok(Done::new(String::new()))
        }
    }
}

/// The file that names etcd.
fn config(path: Option<&Path>) -> Result<Fleet, Failure> {
    let known = CONFIGS
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists());
    let Some(path) = path.or(known) else {
        return Err(invalid(format!(
            "no file names the fleet's etcd: write one with `fleet: {{endpoints: [...], tls: {{...}}}}` to {}, or name it with --config",
            CONFIGS[0]
        )));
    };
    let config = Config::load(path).map_err(|error| invalid(error.to_string()))?;
    config.fleet.ok_or_else(|| {
        invalid(format!(
            "{} has no `fleet`: name etcd there, or another file with --config",
            path.display()
        ))
    })
}

fn invalid(message: String) -> Failure {
    Failure::Fleet {
        message,
        exit: Exit::Invalid,
    }
}

fn selector(text: &str) -> Result<Selector, Failure> {
    text.parse()
        .map_err(|error| invalid(format!("--hosts: {error}")))
}

/// Parses `--wait`.
fn patience(text: &str) -> Result<Duration, Failure> {
    let duration: Result<SignedDuration, _> = text.parse();
    let duration = duration.ok().and_then(|d| Duration::try_from(d).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| invalid(format!("--wait {text:?} is not valid: write 10s or 1m")))
}

/// The id, if the flags name one, and the value of the rule.
fn value(
    args: &AddArgs,
    on: &On,
    forever: bool,
    global: &Global,
) -> Result<(Option<RuleId>, Value), Failure> {
    let now = Timestamp::now();
    let (mut rule, lists) = input::spec(args, now)?;
    tell(&lists, global.quiet);
    if rule.confirm_within.is_some() {
        return Err(invalid(
            "--confirm-within is for one host: give the rule a short --for, and add it again to prolong it"
                .to_owned(),
        ));
    }
    if let Some(lifetime) = rule.lifetime.take() {
        rule.expires = now.checked_add(lifetime.duration()).ok();
    }
    if rule.expires.is_none() && !forever {
        return Err(invalid(
            "a rule for many hosts needs a deadline, so that it does not stay in force by mistake: write --for 10m, or --forever"
                .to_owned(),
        ));
    }
    // Set explicitly, so that the hosts' defaults do not apply.
    rule.mode = Some(rule.mode.unwrap_or(Mode::Drop));
    let id = rule.id.take();
    let value = Value {
        version: VERSION,
        hosts: selector(&on.hosts)?,
        rule,
        written: now,
        by: Some(by()),
        held: false,
        force: args.force,
    };
    Ok((id, value))
}

/// The author of a rule: user and host.
fn by() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].map(std::env::var);
    let user = user.into_iter().find_map(Result::ok);
    let host = nix::sys::utsname::uname()
        .map(|name| name.nodename().to_string_lossy().into_owned())
        .unwrap_or_default();
    format!("{}@{host}", user.unwrap_or_else(|| "root".to_owned()))
}

/// The selected hosts: at least one, and at most `--max-hosts`.
fn meant(hosts: &At<HostReport>, value: &Value, on: &On) -> Result<Vec<String>, Failure> {
    let meant = hosts.all.iter().filter(|host| value.is_for(&host.host));
    let meant: Vec<String> = meant.map(|host| host.host.name.clone()).collect();
    if meant.is_empty() {
        let some: Vec<&str> = hosts
            .all
            .iter()
            .take(8)
            .map(|h| h.host.name.as_str())
            .collect();
        let there = match some.as_slice() {
            [] => "no host has reported to this fleet".to_owned(),
            some => format!("known hosts: {} of {}", some.join(", "), hosts.all.len()),
        };
        return Err(invalid(format!(
            "no host matches --hosts {}: {there}; see blockctl fleet status",
            value.hosts
        )));
    }
    if meant.len() > on.max_hosts {
        return Err(Failure::Fleet {
            message: format!(
                "--hosts {} selects {} hosts, more than --max-hosts {}: nothing was changed\nto block on all of them: --max-hosts {}",
                value.hosts,
                meant.len(),
                on.max_hosts,
                meant.len()
            ),
            exit: Exit::Refused,
        });
    }
    Ok(meant)
}

/// The id of a new rule. If a rule with the same effect on the same hosts exists: its id and the revision
/// at which it was written.
fn place(
    id: Option<RuleId>,
    value: &Value,
    rules: &[Stored],
) -> Result<(RuleId, Option<i64>), FleetError> {
    let same = |stored: &Stored, id: &RuleId| {
        let other = stored.value.as_ref().ok();
        let other = other.filter(|other| !other.held && other.hosts == value.hosts);
        let rules = other
            .and_then(|other| other.rule(id).ok())
            .zip(value.rule(id).ok());
        rules.is_some_and(|(one, other)| one.same_effect(&other))
    };
    if let Some(id) = id {
        return match rules.iter().find(|stored| stored.id == id.as_str()) {
            None => Ok((id, None)),
            Some(stored) if same(stored, &id) => Ok((id, Some(stored.revision))),
            Some(_) => Err(FleetError::Taken(id)),
        };
    }
    for stored in rules {
        if let Ok(id) = stored.id.parse()
            && same(stored, &id)
        {
            return Ok((id, Some(stored.revision)));
        }
    }
    loop {
        let number = getrandom::u32().unwrap_or_else(|_| std::process::id());
        let id: Option<RuleId> = format!("{:06x}", number & 0xff_ffff).parse().ok();
        let free = |id: &RuleId| rules.iter().all(|stored| stored.id != id.as_str());
        if let Some(id) = id.filter(free) {
            return Ok((id, None));
        }
    }
}

async fn add(fleet: &Fleet, args: &FleetAdd, global: &Global, view: View) -> Result<Done, Failure> {
    let (id, mut value) = value(&args.rule, &args.on, args.forever, global)?;
    let wait = args.wait.wait.as_deref().map(patience).transpose()?;
    let client = FleetClient::connect(fleet).await?;
    let hosts = client.hosts().await?;
    let meant = meant(&hosts, &value, &args.on)?;
    let (id, replaces) = place(id, &value, &client.rules().await?.all)?;
    if args.rule.dry_run {
        let tried = ask(&client, &value, meant).await?;
        let text = form(global, &tried, || {
            render::fleet::tried(&tried, &value, view)
        })?;
        return Ok(Done::new(text));
    }
    let since = Instant::now();
    value.written = Timestamp::now();
    let revision = client.write(&id, &value, replaces).await?;
    let count = meant.len();
    let mut results = Vec::new();
    if let Some(wait) = wait {
        let mut waiting = Waiting::new(For::Rule(id.as_str()), revision, since, meant);
        waiting.wait(fleet, since + wait, !global.quiet).await;
        results = waiting.results();
    }
    let changed = FleetChanged {
        rules: vec![id.clone()],
        revision,
        created: replaces.is_none(),
        meant: count,
        hosts: results,
        value: Some(value),
    };
    let text = if global.quiet {
        format!("{id}\n")
    } else {
        form(global, &changed, || render::fleet::added(&changed, view))?
    };
    Ok(done(text, &changed))
}

/// The result with its exit code and, if not all hosts applied it, a line for `--quiet`.
fn done(text: String, changed: &FleetChanged) -> Done {
    let exit = changed.exit();
    let left = (exit != Exit::Done).then(|| render::fleet::problem(changed));
    Done {
        exit,
        left,
        ..Done::new(text)
    }
}

async fn del(
    fleet: &Fleet,
    ids: &[String],
    wait: &Wait,
    global: &Global,
    view: View,
) -> Result<Done, Failure> {
    if ids.len() > AT_ONCE {
        return Err(invalid(format!(
            "at most {AT_ONCE} rules can be lifted as one change"
        )));
    }
    let wait = wait.wait.as_deref().map(patience).transpose()?;
    let ids: Vec<RuleId> = ids
        .iter()
        .map(|id| input::id(id))
        .collect::<Result<_, _>>()?;
    let client = FleetClient::connect(fleet).await?;
    let rules = client.rules().await?.all;
    let unknown = ids
        .iter()
        .filter(|id| !rules.iter().any(|r| r.id == id.as_str()));
    let unknown: Vec<String> = unknown.map(ToString::to_string).collect();
    if !unknown.is_empty() {
        return Err(Failure::Unknown(unknown));
    }
    let named = |stored: &&Stored| ids.iter().any(|id| id.as_str() == stored.id);
    let values: Vec<&Value> = rules
        .iter()
        .filter(named)
        .filter_map(|stored| stored.value.as_ref().ok())
        .collect();
    let hosts = client.hosts().await?.all;
    let meant = hosts
        .iter()
        .filter(|h| values.iter().any(|v| v.is_for(&h.host)));
    let meant: Vec<String> = meant.map(|host| host.host.name.clone()).collect();
    let since = Instant::now();
    let (revision, gone) = client.delete(&ids).await?;
    let count = meant.len();
    let mut results = Vec::new();
    if let Some(wait) = wait {
        let mut waiting = Waiting::new(For::Gone, revision, since, meant);
        waiting.wait(fleet, since + wait, !global.quiet).await;
        results = waiting.results();
    }
    let changed = FleetChanged {
        created: gone == ids.len(),
        rules: ids,
        revision,
        meant: count,
        hosts: results,
        value: None,
    };
    let text = form(global, &changed, || render::fleet::lifted(&changed, view))?;
    Ok(done(text, &changed))
}

/// Asks the hosts what a rule would do on them.
async fn ask(
    client: &FleetClient,
    value: &Value,
    meant: Vec<String>,
) -> Result<FleetTried, Failure> {
    let mut hosts: BTreeMap<String, Option<Answer>> =
        meant.into_iter().map(|host| (host, None)).collect();
    let until = Instant::now() + ANSWER;
    let behind = client.rules().await?.revision;
    let mut watch = client.watch(behind, false).await?;
    let number = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    client.ask(&format!("{number:016x}"), value).await?;
    while hosts.values().any(Option::is_none) {
        // Hosts without an answer in time are reported as such.
        let Ok(news) = timeout_at(until, watch.next()).await else {
            break;
        };
        for news in news? {
            if let News::Answer(answer) = news
                && let Some(place) = hosts.get_mut(&answer.host)
            {
                *place = Some(answer);
            }
        }
    }
    Ok(FleetTried { hosts })
}

async fn list(fleet: &Fleet) -> Result<Vec<FleetRule>, Failure> {
    let client = FleetClient::connect(fleet).await?;
    let rules = client.rules().await?.all;
    let hosts = client.hosts().await?.all;
    let rule = |stored: Stored| {
        let meant: Vec<&HostReport> = match &stored.value {
            Ok(value) => hosts.iter().filter(|h| value.is_for(&h.host)).collect(),
            Err(_) => Vec::new(),
        };
        let refuses = |host: &HostReport| {
            let of = |refused: &FleetRefusal| refused.rule == stored.id;
            host.refused.iter().any(of)
        };
        let has = |host: &&&HostReport| host.revision >= stored.revision && !refuses(host);
        FleetRule {
            revision: stored.revision,
            meant: meant.len(),
            applied: meant.iter().filter(has).count(),
            error: stored.value.as_ref().err().map(ToString::to_string),
            value: stored.value.ok(),
            id: stored.id,
        }
    };
    Ok(rules.into_iter().map(rule).collect())
}

async fn status(fleet: &Fleet, which: &Selector) -> Result<Vec<FleetHost>, Failure> {
    let client = FleetClient::connect(fleet).await?;
    let rules = client.rules().await?.all;
    let hosts = client.hosts().await?.all;
    // A lift leaves no key, so its revision is known only from the hosts that have applied it.
    let known = rules.iter().map(|stored| stored.revision);
    let latest = known
        .chain(hosts.iter().map(|host| host.revision))
        .max()
        .unwrap_or(0);
    let hosts = hosts.into_iter().filter(|host| which.matches(&host.host));
    let host = |report: HostReport| FleetHost {
        behind: report.revision < latest,
        report,
    };
    Ok(hosts.map(host).collect())
}

async fn watch(fleet: &Fleet, which: &Selector, global: &Global) -> Result<(), Failure> {
    let client = FleetClient::connect(fleet).await?;
    let hosts = client.hosts().await?;
    let mut known = blocker::fleet::client::by_name(hosts.all);
    let mut watch = client.watch(hosts.revision, true).await?;
    loop {
        let news = tokio::select! {
            news = watch.next() => news?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        for news in news {
            if let News::Host(report) = &news
                && !which.matches(&report.host)
            {
                continue;
            }
            let before = match &news {
                News::Host(report) => known.insert(report.host.name.clone(), (**report).clone()),
                News::HostGone(host) => match known.remove(host) {
                    Some(before) if which.matches(&before.host) => Some(before),
                    _ => continue,
                },
                _ => None,
            };
            let Some(line) = render::fleet::news(&news, before.as_ref(), Timestamp::now()) else {
                continue;
            };
            let text = match global.output {
                Output::Table => line.text + "\n",
                Output::Json => output::line(&line)?,
                Output::Yaml => format!("---\n{}", output::exact(&line, Output::Yaml)?),
            };
            if !global.quiet && !output::print(&text)? {
                return Ok(());
            }
        }
    }
}
