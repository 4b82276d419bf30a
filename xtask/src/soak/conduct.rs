//! Random operations on the daemon, one at a time, and the checks after each.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::report::{Done, Report, Sample};
use super::traffic::{BLOCKED, CHANGING, FREE, Traffic, address};
use crate::hosts::{Connection, Daemon, Listener, Pair, Programs, poll};
use crate::kernel_objects::KernelObjects;

/// Time limit of operations that normally take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// The share of the time with restarts, and the share of the rest that is the warm-up.
const RESTARTS: f64 = 0.5;
const WARM_UP: f64 = 0.2;

struct Conductor {
    rng: Rng,
    daemon: Daemon,
    pair: Pair,
    traffic: Traffic,
    /// The id of the rule on each changing remote, if there is one.
    rules: [Option<String>; CHANGING],
    /// The number of rules so far, from which names are made.
    count: u64,
    done: Done,
    start: Instant,
    directory: tempfile::TempDir,
}

/// Runs the operations for `time`.
pub(super) fn conduct(programs: &Programs, time: Duration, seed: u64) -> Result<Report> {
    let pair = Pair::new()?;
    let traffic = Traffic::start(&pair)?;
    let daemon = Daemon::start(&pair.a, programs, &config(0))?;
    traffic.oracle.blocked(BLOCKED);
    // Datagrams that arrived before the daemon was ready are not leaks.
    let early = traffic.oracle.totals(BLOCKED..BLOCKED + 1).delivered;
    let mut conductor = Conductor {
        rng: Rng::with_seed(seed),
        daemon,
        pair,
        traffic,
        rules: Default::default(),
        count: 0,
        done: Done::default(),
        start: Instant::now(),
        directory: tempfile::tempdir()?,
    };
    let first = conductor.sample()?;
    let mut samples = Vec::new();
    conductor.run_until(time.mul_f64(RESTARTS), true, &mut samples)?;
    let warm_at = RESTARTS + (1.0 - RESTARTS) * WARM_UP;
    conductor.run_until(time.mul_f64(warm_at), false, &mut samples)?;
    let warm = conductor.settled(&first)?;
    conductor.run_until(time, false, &mut samples)?;
    let last = conductor.settled(&first)?;
    conductor.check()?;
    let Conductor { traffic, done, .. } = conductor;
    let oracle = std::sync::Arc::clone(&traffic.oracle);
    traffic.stop()?;
    let mut blocked = oracle.totals(BLOCKED..BLOCKED + 1);
    blocked.delivered -= early;
    Ok(Report {
        seed,
        minutes: time.as_secs_f64() / 60.0,
        done,
        leaked: oracle.leaked(),
        changing: oracle.totals(0..CHANGING),
        blocked,
        free: oracle.totals(FREE..FREE + 1),
        first,
        warm,
        last,
        samples,
    })
}

/// The configuration; the comment differs by version, so that a reload changes it.
fn config(version: u64) -> String {
    format!(
        "on_stop: keep\nrules:\n- {{id: always, targets: [{}], comment: version {version}}}\n",
        address(BLOCKED)
    )
}

impl Conductor {
    /// Runs random operations until `until`.
    fn run_until(
        &mut self,
        until: Duration,
        restarts: bool,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let mut sampled = Instant::now();
        while self.start.elapsed() < until {
            let step = match self.rng.u32(..100) {
                0..=3 if restarts => self.restart(),
                4..=7 if restarts => self.crash(),
                8..=13 if restarts => self.crash_amid_a_change(),
                14..=19 => self.reload(),
                20..=24 => self.reset(),
                25..=34 => self.apply(),
                _ => self.change(),
            };
            step.with_context(|| {
                format!(
                    "after {:.0?}; blocker said:\n{}",
                    self.start.elapsed(),
                    self.daemon.log()
                )
            })?;
            ensure!(self.traffic.oracle.leaked() == 0, "a blocked packet passed");
            if sampled.elapsed() > Duration::from_secs(5) {
                samples.push(self.sample()?);
                sampled = Instant::now();
            }
        }
        Ok(())
    }

    fn ctl(&self, words: &[&str]) -> Result<()> {
        self.daemon.blockctl(words)?.success()?;
        Ok(())
    }

    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("soak-{}", self.count)
    }

    /// Adds a rule on one remote, or removes it.
    fn change(&mut self) -> Result<()> {
        let remote = self.rng.usize(..CHANGING);
        self.traffic.oracle.begins(remote);
        match self.rules[remote].take() {
            Some(id) => {
                self.ctl(&["del", &id])?;
                self.done.lifts += 1;
                self.traffic.oracle.passes(remote)
            }
            None => {
                let id = self.fresh();
                let target = address(remote).to_string();
                let mode = ["drop", "reset", "reject"][self.rng.usize(..3)];
                self.ctl(&["add", &target, "--mode", mode, "--id", &id, "--for", "2h"])?;
                self.done.adds += 1;
                self.traffic.oracle.blocked(remote);
                self.rules[remote] = Some(id);
                Ok(())
            }
        }
    }

    /// Writes a ruleset to a file; returns its path, and the rule on each remote.
    fn ruleset(&mut self) -> Result<(String, [Option<String>; CHANGING])> {
        let mut rules: [Option<String>; CHANGING] = Default::default();
        let mut text = String::from("rules:\n");
        for (remote, rule) in rules.iter_mut().enumerate() {
            if self.rng.bool() {
                let id = self.fresh();
                text += &format!("- {{id: {id}, targets: [{}]}}\n", address(remote));
                *rule = Some(id);
            }
        }
        if rules.iter().all(Option::is_none) {
            text = String::from("rules: []\n");
        }
        let path = self.directory.path().join("rules.yaml");
        fs::write(&path, text)?;
        Ok((path.display().to_string(), rules))
    }

    /// Tells the oracle which rules are in force.
    fn in_force(&mut self, rules: [Option<String>; CHANGING]) -> Result<()> {
        for (remote, rule) in rules.iter().enumerate() {
            match rule {
                Some(_) => self.traffic.oracle.blocked(remote),
                None => self.traffic.oracle.passes(remote)?,
            }
        }
        self.rules = rules;
        Ok(())
    }

    fn apply(&mut self) -> Result<()> {
        let (path, rules) = self.ruleset()?;
        (0..CHANGING).for_each(|remote| self.traffic.oracle.begins(remote));
        self.ctl(&["apply", "-f", &path])?;
        self.done.applies += 1;
        self.in_force(rules)
    }

    /// Resets a connection from a remote, which must die at both ends.
    fn reset(&mut self) -> Result<()> {
        let Some(remote) = (0..CHANGING).find(|remote| self.rules[*remote].is_none()) else {
            return Ok(());
        };
        let from = address(remote).to_string();
        let a = format!("{}/32", Pair::A);
        self.pair
            .b
            .run(&["ip", "route", "replace", &a, "dev", "eth0", "src", &from])?;
        let mut flow: Connection =
            Listener::new(&self.pair.a, Pair::A, 0)?.connect(&self.pair.b)?;
        flow.check_alive()?;
        let id = self.fresh();
        self.traffic.oracle.begins(remote);
        self.ctl(&["add", &from, "--mode", "reset", "--id", &id])?;
        self.traffic.oracle.blocked(remote);
        self.rules[remote] = Some(id);
        ensure!(
            flow.wait_dead(Instant::now() + PATIENCE)?,
            "a connection of a reset rule lives: {flow:?}"
        );
        self.done.resets += 1;
        Ok(())
    }

    fn reload(&mut self) -> Result<()> {
        self.count += 1;
        self.daemon.write_config(&config(self.count))?;
        self.daemon.reload()?;
        let comment = format!("version {}", self.count);
        poll("the reload", PATIENCE, || {
            let rule = self.daemon.json(&["show", "always"]).ok()?;
            (rule["comment"] == comment).then_some(())
        })?;
        self.done.reloads += 1;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        ensure!(self.daemon.stop()?.success(), "the daemon failed to stop");
        self.daemon.run(&self.pair.a)?;
        self.done.restarts += 1;
        self.check()
    }

    fn crash(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.run(&self.pair.a)?;
        self.done.kills += 1;
        self.check()
    }

    fn crash_amid_a_change(&mut self) -> Result<()> {
        let (path, new) = self.ruleset()?;
        (0..CHANGING).for_each(|remote| self.traffic.oracle.begins(remote));
        let mut request: Child = self
            .daemon
            .blockctl_command()
            .args(["apply", "-f", &path])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("blockctl cannot be started")?;
        // The daemon is killed at a random time of the change.
        std::thread::sleep(Duration::from_millis(self.rng.u64(..150)));
        self.daemon.kill()?;
        let status = poll("blockctl to end", PATIENCE, || {
            request.try_wait().ok().flatten()
        })?;
        self.daemon.run(&self.pair.a)?;
        self.done.kills += 1;
        self.done.interrupted += u64::from(!status.success());
        let ids = self.ids()?;
        let of = |rules: &[Option<String>; CHANGING]| rules.iter().flatten().cloned().collect();
        let (old, new_ids): (BTreeSet<String>, BTreeSet<String>) = (of(&self.rules), of(&new));
        if ids == new_ids {
            return self.in_force(new);
        }
        ensure!(ids == old, "a mix of two rulesets: {ids:?}");
        ensure!(!status.success(), "an acknowledged ruleset is lost");
        self.in_force(self.rules.clone())
    }

    /// The ids of the API's rules.
    fn ids(&self) -> Result<BTreeSet<String>> {
        let list = self.daemon.json(&["list"])?;
        let rules = list["rules"].as_array().context("a list of rules")?;
        let api = rules.iter().filter(|rule| rule["owner"] == "api");
        let ids = api.filter_map(|rule| rule["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// Checks that exactly the requested rules are in force.
    fn check(&self) -> Result<()> {
        let expected: BTreeSet<String> = self.rules.iter().flatten().cloned().collect();
        let ids = self.ids()?;
        ensure!(
            ids == expected,
            "{ids:?} are in force, {expected:?} were requested"
        );
        Ok(())
    }

    fn sample(&self) -> Result<Sample> {
        let footprint = KernelObjects::of(&self.daemon)?;
        let pid = self.daemon.pid().context("the daemon runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .context("/proc says no VmRSS")?;
        Ok(Sample::new(
            self.start.elapsed().as_secs(),
            memory,
            &footprint,
        ))
    }

    /// A sample when the kernel has freed unused objects, or at the time limit.
    fn settled(&self, first: &Sample) -> Result<Sample> {
        let same = |sample: &Sample| {
            let of = |sample: &Sample| (sample.pins, sample.programs, sample.maps, sample.links);
            of(sample) == of(first)
        };
        let settled = poll("the kernel to free unused objects", PATIENCE, || {
            self.sample().ok().filter(same)
        });
        settled.or_else(|_| self.sample())
    }
}
