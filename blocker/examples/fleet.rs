//! Many hosts of a fleet in one process, without a datapath: the daemon's own client code follows a
//! real etcd, and what would enforce only notes the time. `cargo xtask fleet` runs it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use blocker::config::Config;
use blocker::fleet::board::Board;
use blocker::fleet::client::FleetClient;
use blocker::fleet::held::Told;
use blocker::fleet::link::Link;
use blocker::fleet::source::Follower;
use blocker::fleet::{Host, Replaced};
use blocker::rule::{RuleId, RuleSpec};
use blocker::wire::fleet::value::{VERSION, Value};
use blocker::wire::{Account, FleetState};
use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

/// How long a phase may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many rules are added, one after the other.
const ROUNDS: usize = 10;
/// How long nothing happens, while etcd's load is measured.
const IDLE: Duration = Duration::from_secs(30);

/// Follows etcd as many hosts, and prints what that took as JSON.
#[derive(Parser)]
struct Arguments {
    /// How many hosts.
    #[arg(long)]
    hosts: usize,
    /// How many rules are there already.
    #[arg(long)]
    rules: usize,
    /// A configuration with `fleet`.
    #[arg(long)]
    config: PathBuf,
    /// The processes of etcd's members, in the order of the endpoints.
    #[arg(long, value_delimiter = ',', required = true)]
    members: Vec<i32>,
}

/// When each rule was enforced, by host.
#[derive(Clone, Default)]
struct Enforced(Arc<Mutex<BTreeMap<RuleId, Vec<Instant>>>>);

/// A host that notes when it is told to enforce what it did not have.
#[derive(Clone)]
struct Simulated {
    enforced: Enforced,
    has: Arc<Mutex<Vec<RuleId>>>,
}

impl Host for Simulated {
    async fn enforce(&self, told: Vec<Told>) -> Result<Replaced, String> {
        let now = Instant::now();
        let ids: Vec<RuleId> = told.into_iter().map(|told| told.rule.id).collect();
        let before = std::mem::replace(&mut *lock(&self.has), ids.clone());
        let started: Vec<RuleId> = ids
            .iter()
            .filter(|id| !before.contains(id))
            .cloned()
            .collect();
        for id in &started {
            lock(&self.enforced.0)
                .entry(id.clone())
                .or_default()
                .push(now);
        }
        Ok(Replaced {
            in_force: ids.len(),
            started,
            refused: Vec::new(),
            teardown: tokio::spawn(async { Account::default() }),
        })
    }

    async fn flows(&self, _rule: RuleSpec, _force: bool) -> Result<u64, String> {
        Ok(0)
    }
}

/// What it took.
#[derive(Serialize)]
struct Row {
    hosts: usize,
    rules: usize,
    /// From a write until hosts enforce it, over all rounds, in milliseconds.
    enforced_median_ms: f64,
    enforced_p99_ms: f64,
    enforced_max_ms: f64,
    /// From a write until the last host's report is in etcd, the median of all rounds.
    reported_ms: f64,
    /// From the death of the leader until all hosts follow another member, seconds.
    recovered_s: f64,
    /// Processor time of all members, in milliseconds: for one rule to all and their reports; each second
    /// while nothing happens; for the leader's death.
    cpu_rule_ms: f64,
    cpu_idle_ms: f64,
    cpu_recovery_ms: f64,
    /// Of the largest member, in MiB.
    rss_mib: f64,
    db_mib: f64,
    /// Of all simulated hosts together.
    client_rss_mib: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    let fleet = config.fleet.context("the configuration has no `fleet`")?;
    let client = FleetClient::connect(&fleet).await?;
    for number in 0..arguments.rules {
        client
            .write(&format!("before{number}").parse()?, &value(), None)
            .await?;
    }

    let enforced = Enforced::default();
    let mut boards = Vec::new();
    for number in 0..arguments.hosts {
        let board = Board::default();
        let fleet = blocker::fleet::form::Fleet {
            name: format!("host{number}"),
            ..fleet.clone()
        };
        let host = Simulated {
            enforced: enforced.clone(),
            has: Arc::default(),
        };
        tokio::spawn(Follower::new(fleet, host, board.clone(), None).run());
        boards.push(board);
    }
    wait("all hosts to follow", || following(&boards)).await?;
    wait_reports(&client, &arguments, 0).await?;

    let cpu = cpu(&arguments.members)?;
    tokio::time::sleep(IDLE).await;
    let cpu_idle_ms = (self::cpu(&arguments.members)? - cpu) / IDLE.as_secs_f64();

    let mut times = Vec::new();
    let mut reported = Vec::new();
    let before = self::cpu(&arguments.members)?;
    for round in 0..ROUNDS {
        let id: RuleId = format!("round{round}").parse()?;
        let since = Instant::now();
        let revision = client.write(&id, &value(), None).await?;
        let all = || lock(&enforced.0).get(&id).map_or(0, Vec::len) == arguments.hosts;
        wait("all hosts to enforce a rule", all).await?;
        wait_reports(&client, &arguments, revision).await?;
        reported.push(since.elapsed().as_secs_f64() * 1_000.0);
        let at = lock(&enforced.0).get(&id).cloned().unwrap_or_default();
        times.extend(
            at.iter()
                .map(|at| at.duration_since(since).as_secs_f64() * 1_000.0),
        );
    }
    let cpu_rule_ms = (self::cpu(&arguments.members)? - before) / ROUNDS as f64;
    times.sort_by(f64::total_cmp);
    reported.sort_by(f64::total_cmp);

    let db_mib = database(&fleet).await?;
    let rss = arguments
        .members
        .iter()
        .map(|pid| resident(&pid.to_string()));
    let rss_mib = rss
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .fold(0.0, f64::max);

    let before = self::cpu(&arguments.members)?;
    let leader = leader(&fleet).await?;
    let died = self::cpu(&arguments.members[leader..=leader])?;
    kill(Pid::from_raw(arguments.members[leader]), Signal::SIGKILL)?;
    let since = Instant::now();
    // Those that followed another member are without a leader for a moment, and notice or don't.
    tokio::time::sleep(Duration::from_secs(2)).await;
    wait("all hosts to follow another member", || following(&boards)).await?;
    let id: RuleId = "after".parse()?;
    let client = FleetClient::connect(&fleet).await?;
    client.write(&id, &value(), None).await?;
    wait(
        "all hosts to enforce a rule after the leader's death",
        || lock(&enforced.0).get(&id).map_or(0, Vec::len) == arguments.hosts,
    )
    .await?;
    let recovered_s = since.elapsed().as_secs_f64();
    let left: Vec<i32> = arguments
        .members
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != leader)
        .map(|(_, pid)| *pid)
        .collect();
    let cpu_recovery_ms = self::cpu(&left)? + died - before;

    let row = Row {
        hosts: arguments.hosts,
        rules: arguments.rules,
        enforced_median_ms: times[times.len() / 2],
        enforced_p99_ms: times[times.len() * 99 / 100],
        enforced_max_ms: times[times.len() - 1],
        reported_ms: reported[reported.len() / 2],
        recovered_s,
        cpu_rule_ms,
        cpu_idle_ms,
        cpu_recovery_ms,
        rss_mib,
        db_mib,
        client_rss_mib: resident("self")?,
    };
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

fn value() -> Value {
    let targets = ["198.51.100.7"]
        .iter()
        .filter_map(|target| target.parse().ok());
    let now = Timestamp::now();
    Value {
        version: VERSION,
        hosts: "*".parse().expect("\"*\" follows the grammar"),
        rule: RuleSpec {
            targets: targets.collect(),
            expires: now.checked_add(SignedDuration::from_hours(1)).ok(),
            ..RuleSpec::default()
        },
        written: now,
        by: None,
        held: false,
        force: false,
    }
}

fn following(boards: &[Board]) -> bool {
    let follows = |board: &Board| {
        board
            .read()
            .is_some_and(|s| s.state == FleetState::Following && s.error.is_none())
    };
    boards.iter().all(follows)
}

/// Waits until each host has reported that it is as far as a revision.
async fn wait_reports(client: &FleetClient, arguments: &Arguments, revision: i64) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let hosts = client.hosts().await?;
        let there = hosts
            .all
            .iter()
            .filter(|host| host.revision >= revision)
            .count();
        if there == arguments.hosts {
            return Ok(());
        }
        if Instant::now() > until {
            bail!(
                "waited in vain for reports: {there} of {} are there",
                arguments.hosts
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait(what: &str, so: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !so() {
        if Instant::now() > until {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Which endpoint is the leader's.
async fn leader(fleet: &blocker::fleet::form::Fleet) -> Result<usize> {
    for (number, endpoint) in fleet.endpoints.iter().enumerate() {
        let mut link = Link::open(fleet, endpoint).await?;
        let status = link.client.status().await?;
        if status.header().map(etcd_client::ResponseHeader::member_id) == Some(status.leader()) {
            return Ok(number);
        }
    }
    bail!("no member leads")
}

/// The size of the first member's database, in MiB.
async fn database(fleet: &blocker::fleet::form::Fleet) -> Result<f64> {
    let mut link = Link::open(fleet, &fleet.endpoints[0]).await?;
    Ok(link.client.status().await?.db_size() as f64 / f64::from(1 << 20))
}

/// Processor time of processes so far, in milliseconds (proc(5): utime and stime of `stat`, in ticks of
/// 10 ms).
fn cpu(members: &[i32]) -> Result<f64> {
    let mut ticks = 0_u64;
    for pid in members {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(')').context("a stat line")?.1;
        let times = fields.split_whitespace().skip(11).take(2);
        ticks += times
            .filter_map(|field| field.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(ticks as f64 * 10.0)
}

/// Resident memory of a process, in MiB.
fn resident(pid: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    Ok(kib.context("VmRSS")? / 1024.0)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
