//! `kill -9` at random moments of a change: the next daemon has the rules from before or after the
//! change, acknowledged rules are kept, lifted rules stay lifted, and no packet leaks.
//!
//! `BLOCKER_FUZZ_SEED` sets the seed of the moments.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use xtask::hosts::{Connection, Listener, Pair, poll};
use xtask::kernel_objects::KernelObjects;

use super::datagrams::{assert_tight, datagrams};
use crate::blocking_pair::{BlockingPair, PATIENCE, receive_until_dead, settle, soon};

const ROUNDS: u32 = 10;
/// How long all rounds may take.
const LONG: Duration = Duration::from_secs(600);

fn dice() -> Result<Rng> {
    let seed = match std::env::var("BLOCKER_FUZZ_SEED") {
        Ok(text) => text.parse().context("BLOCKER_FUZZ_SEED is no number")?,
        Err(_) => 0x6b11,
    };
    println!("BLOCKER_FUZZ_SEED={seed}");
    Ok(Rng::with_seed(seed))
}

/// Hosts whose daemon is killed again and again.
struct Killing {
    hosts: BlockingPair,
    rng: Rng,
    /// How long the change takes when it is not interrupted.
    takes: Duration,
    footprint: KernelObjects,
}

impl Killing {
    fn new(config: &str) -> Result<Self> {
        let hosts = BlockingPair::new(config)?;
        let footprint = KernelObjects::of(&hosts.daemon)?;
        Ok(Self {
            hosts,
            rng: dice()?,
            takes: Duration::ZERO,
            footprint,
        })
    }

    fn start(&self, words: &[&str]) -> Result<Child> {
        let mut command: Command = self.hosts.daemon.blockctl_command();
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().context("blockctl cannot be started")
    }

    /// Does it once, and notes how long it takes.
    fn time(&mut self, words: &[&str]) -> Result<()> {
        let start = Instant::now();
        self.hosts.daemon.blockctl(words)?.success()?;
        self.takes = start.elapsed();
        Ok(())
    }

    /// Begins it, kills the daemon at some moment of it, and starts another. Gives whether it was
    /// acknowledged.
    fn interrupt(&mut self, words: &[&str]) -> Result<bool> {
        let mut request = self.start(words)?;
        // That some time passes is what this is about: from the request's first byte, where most
        // happens, until a little
        // after its end.
        std::thread::sleep(self.takes.mul_f64(self.rng.f64().powi(2) * 1.2));
        self.hosts.daemon.kill()?;
        let status = poll("blockctl to end", PATIENCE, || {
            request.try_wait().ok().flatten()
        })?;
        self.hosts.daemon.run(&self.hosts.pair.a)?;
        Ok(status.success())
    }

    fn ids(&self) -> Result<BTreeSet<String>> {
        let list = self.hosts.daemon.json(&["list"])?;
        let rules = list["rules"].as_array().context("a list of rules")?;
        let ids = rules.iter().filter_map(|rule| rule["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    fn check(&self, round: u32) -> Result<()> {
        let what = format!("round {round}");
        self.footprint.check(&self.hosts.daemon, &what)?;
        // One file of rules, and those files of targets that it names.
        let directory = self.hosts.daemon.state();
        let rules = std::fs::read_to_string(directory.join("rules.json"))?;
        for entry in std::fs::read_dir(&directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let known = name == "rules.json" || rules.contains(&format!("\"{name}\""));
            ensure!(known, "{what}: {name} is left in {}", directory.display());
        }
        let log = self.hosts.daemon.log();
        ensure!(!log.contains("cannot be used"), "{what}: {log}");
        Ok(())
    }
}

/// A ruleset of some rules that bear a name, one of them with many targets, and one that stays.
fn ruleset(name: &str, directory: &std::path::Path) -> Result<(String, BTreeSet<String>)> {
    let list = directory.join(format!("{name}.list"));
    let many = (0..3_000_u32).map(|n| format!("198.18.{}.{}\n", n / 256, n % 256));
    std::fs::write(&list, many.collect::<String>())?;
    let mut text = format!("rules:\n- {{id: always, targets: [{}]}}\n", Pair::B);
    let mut ids = BTreeSet::from(["always".to_owned(), format!("{name}-many")]);
    writeln!(
        text,
        "- {{id: {name}-many, targets_file: {}}}",
        list.display()
    )?;
    for n in 0..40 {
        writeln!(
            text,
            "- {{id: {name}-{n}, targets: [192.0.2.{n}], mode: reject}}"
        )?;
        ids.insert(format!("{name}-{n}"));
    }
    let path = directory.join(format!("{name}.yaml"));
    std::fs::write(&path, text)?;
    Ok((path.display().to_string(), ids))
}

#[test]
fn apply_is_carried_out_or_is_not() -> Result<()> {
    let mut killing = Killing::new("")?;
    let directory = tempfile::tempdir()?;
    let (mut old, mut new) = (
        ruleset("old", directory.path())?,
        ruleset("new", directory.path())?,
    );
    killing.time(&["apply", "-f", &new.0])?;
    killing.time(&["apply", "-f", &old.0])?;
    let (sink, source) = datagrams(&killing.hosts.pair)?;
    let mut done = 0;
    let sent = assert_tight(&sink, &source, LONG, || {
        for round in 0..ROUNDS {
            let acknowledged = killing.interrupt(&["apply", "-f", &new.0])?;
            let ids = killing.ids()?;
            if ids == new.1 {
                std::mem::swap(&mut old, &mut new);
                done += 1;
            } else {
                ensure!(ids == old.1, "round {round}: a mix: {ids:?}");
                ensure!(
                    !acknowledged,
                    "round {round}: it was acknowledged, and is lost"
                );
            }
            killing.check(round)?;
        }
        Ok(())
    })?;
    println!("{done} of {ROUNDS} were carried out; {sent} packets sent, none delivered");
    Ok(())
}

/// Connections from B's second address to A, idle.
fn flows(hosts: &BlockingPair, from: IpAddr) -> Result<Vec<Connection>> {
    let listener = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    let to = from.to_string() + "/32";
    let a = Pair::A.to_string() + "/32";
    hosts.pair.b.run(&[
        "ip",
        "route",
        "replace",
        &a,
        "dev",
        "eth0",
        "src",
        &from.to_string(),
    ])?;
    let flows = (0..20)
        .map(|_| listener.connect(&hosts.pair.b))
        .collect::<Result<Vec<_>>>()?;
    for flow in &flows {
        settle(flow)?;
        ensure!(flow.client.local()?.ip() == from, "{to} is not used");
    }
    Ok(flows)
}

#[test]
fn a_teardown_is_finished_by_the_next_daemon() -> Result<()> {
    let mut killing = Killing::new("")?;
    let other = killing.hosts.pair.second_remote()?;
    let target = other.to_string();
    let add = ["add", target.as_str(), "--mode", "reset", "--id", "cut"];
    let first = flows(&killing.hosts, other)?;
    killing.time(&add)?;
    drop(first);
    killing.hosts.del(&["cut"])?;
    let mut done = 0;
    for round in 0..ROUNDS {
        let mut flows = flows(&killing.hosts, other)?;
        let acknowledged = killing.interrupt(&add)?;
        if killing.ids()?.contains("cut") {
            done += 1;
            for flow in &mut flows {
                ensure!(flow.wait_dead(soon())?, "round {round}: {flow:?} lives");
            }
            killing.check(round)?;
            killing.hosts.del(&["cut"])?;
        } else {
            ensure!(
                !acknowledged,
                "round {round}: it was acknowledged, and is lost"
            );
            for flow in &mut flows {
                flow.check_alive()
                    .with_context(|| format!("round {round}"))?;
            }
            killing.footprint.check(&killing.hosts.daemon, "no rule")?;
        }
    }
    println!("{done} of {ROUNDS} were carried out");
    Ok(())
}

#[test]
fn a_lift_delivers_nothing_of_before() -> Result<()> {
    let mut killing = Killing::new("")?;
    let other = killing.hosts.pair.second_remote()?;
    let target = other.to_string();
    let add = [
        "add",
        &target,
        "--mode",
        "drop",
        "--on-lift",
        "reset",
        "--id",
        "cut",
    ];
    let del = ["del", "cut"];
    let block = |killing: &Killing| -> Result<Vec<Connection>> {
        let mut flows = flows(&killing.hosts, other)?;
        killing.hosts.daemon.blockctl(&add)?.success()?;
        for flow in &mut flows {
            flow.client.send(b"late")?;
        }
        Ok(flows)
    };
    let first = block(&killing)?;
    killing.time(&del)?;
    drop(first);
    let mut done = 0;
    for round in 0..ROUNDS {
        let mut flows = block(&killing)?;
        let acknowledged = killing.interrupt(&del)?;
        killing.check(round)?;
        if killing.ids()?.contains("cut") {
            ensure!(!acknowledged, "round {round}: it was lifted, and is back");
            killing.hosts.daemon.blockctl(&del)?.success()?;
        } else {
            done += 1;
        }
        for flow in &mut flows {
            let received = receive_until_dead(&mut flow.server, soon());
            ensure!(
                received == Some(0),
                "round {round}: {received:?} of {flow:?}"
            );
        }
    }
    println!("{done} of {ROUNDS} were carried out");
    Ok(())
}
