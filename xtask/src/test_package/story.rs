//! The package's life: installed, used, restarted, broken, stopped, upgraded, booted, removed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::TASK;
use super::machine::Machine;
use super::wire::Wire;
use crate::command::say;
use crate::lab::{Pair, poll};

const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: &str = "/etc/blocker/blocker.yaml";
/// The exit code of `blockctl` for a daemon that can't be reached.
const UNREACHABLE: i32 = 3;

struct Story {
    machine: Machine,
    wire: Wire,
}

/// A part of the story.
type Step = fn(&mut Story) -> Result<()>;

/// Takes a package through its life.
///
/// # Errors
/// What it did not do as it should.
pub(super) fn tell(package: &Path, newer: &Path) -> Result<()> {
    let pair = Pair::new()?;
    let wire = Wire::new(&pair)?;
    let machine = Machine::boot(&pair.a)?;
    for (name, deb) in [("package.deb", package), ("newer.deb", newer)] {
        fs::copy(deb, machine.file(name)).with_context(|| format!("{}", deb.display()))?;
    }
    let mut story = Story { machine, wire };
    let steps: [(&str, Step); 13] = [
        ("install", Story::install),
        ("who may", Story::who_may),
        ("restart", Story::restart),
        ("reload", Story::reload),
        ("watchdog", Story::watchdog),
        ("kill", Story::kill),
        ("stop with lift", Story::stop_with_lift),
        ("stop with keep", Story::stop_with_keep),
        ("without the socket unit", Story::without_socket),
        ("upgrade", Story::upgrade),
        ("boot", Story::boot),
        ("remove", Story::remove),
        ("purge", Story::purge),
    ];
    for (name, step) in steps {
        let result = step(&mut story);
        if result.is_err() {
            let log = [
                "journalctl",
                "--unit",
                "blocker*",
                "--lines=60",
                "--no-pager",
            ];
            if let Ok(log) = story.machine.run(&log) {
                say(TASK, &log.stdout);
            }
        }
        result.with_context(|| name.to_owned())?;
        println!("ok: {name}");
    }
    Ok(())
}

impl Story {
    fn ok(&self, words: &[&str]) -> Result<String> {
        self.machine.ok(words)
    }

    /// The rules in force, as blockctl says them.
    fn rules(&self) -> Result<Vec<Value>> {
        let said = self.ok(&["blockctl", "list", "-o", "json"])?;
        let said: Value = serde_json::from_str(&said)?;
        Ok(said["rules"].as_array().context("no rules")?.clone())
    }

    /// A property of the service.
    fn property(&self, name: &str) -> Result<String> {
        let said = self.ok(&[
            "systemctl",
            "show",
            "--value",
            "-p",
            name,
            "blocker.service",
        ])?;
        Ok(said.trim().to_owned())
    }

    fn active(&self) -> Result<bool> {
        Ok(self.property("ActiveState")? == "active")
    }

    fn block(&self) -> Result<()> {
        let b = Pair::B.to_string();
        let words = ["--mode", "drop", "--id", "dev01", "--for", "1h"];
        self.ok(&[&["blockctl", "add", &b], &words[..]].concat())?;
        self.wire.tight(|| Ok(()))
    }

    fn configure(&self, old: &str, new: &str) -> Result<()> {
        let path = self.machine.file(CONFIG);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(old), "{CONFIG} has no {old:?}");
        Ok(fs::write(path, text.replacen(old, new, 1))?)
    }

    fn install(&mut self) -> Result<()> {
        self.wire.wait_passing()?;
        self.ok(&["dpkg", "--install", "/package.deb"])?;
        ensure!(self.active()?, "it does not run");
        for unit in ["blocker.service", "blocker.socket"] {
            self.ok(&["systemctl", "is-enabled", unit])?;
            let path = format!("/usr/lib/systemd/system/{unit}");
            let ran = self
                .machine
                .run(&["systemd-analyze", "verify", "--man=no", &path])?;
            let said = ran.stdout + &ran.stderr;
            ensure!(ran.code == 0 && said.is_empty(), "{unit}: {said}");
        }
        let security = ["systemd-analyze", "security", "--threshold=25"];
        self.ok(&[&security[..], &["blocker.service"]].concat())?;
        let pid = self.property("MainPID")?;
        let user = self.ok(&["ps", "-o", "user=", "-p", &pid])?;
        ensure!(user.trim() == "blocker", "it runs as {user}");
        let status = self.ok(&["blockctl", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let hooks = &status["interfaces"][0]["hooks"];
        ensure!(
            hooks.as_array().is_some_and(|hooks| hooks.len() == 3),
            "{status}"
        );
        for path in ["man1/blocker.1.gz", "man1/blockctl-add.1.gz"] {
            let path = format!("/usr/share/man/{path}");
            ensure!(self.machine.file(&path).exists(), "{path} is not there");
        }
        self.block()
    }

    fn who_may(&mut self) -> Result<()> {
        for (user, group) in [("alice", "users"), ("bob", "blocker")] {
            self.ok(&["useradd", "--groups", group, user])?;
        }
        let list = |user: &str| {
            let words = ["runuser", "-u", user, "--", "blockctl", "list"];
            self.machine.run(&words)
        };
        let alice = list("alice")?;
        let refused = alice.code == UNREACHABLE && alice.stderr.contains("permission denied");
        ensure!(refused, "alice: {} {}", alice.code, alice.stderr);
        let bob = list("bob")?;
        ensure!(
            bob.code == 0 && bob.stdout.contains("dev01"),
            "bob: {}",
            bob.stderr
        );
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let before = self.property("MainPID")?;
        self.wire.tight(|| {
            for _ in 0..3 {
                self.ok(&["systemctl", "restart", "blocker"])?;
            }
            Ok(())
        })?;
        ensure!(self.property("MainPID")? != before, "it is the same daemon");
        ensure!(self.rules()?[0]["id"] == "dev01", "the rule is gone");
        Ok(())
    }

    fn reload(&mut self) -> Result<()> {
        let rule = "\nrules:\n  - {id: fixed, targets: [192.0.2.7]}\n";
        self.configure("\nrules: []\n", rule)?;
        self.ok(&["systemctl", "reload", "blocker"])?;
        poll("the rule of the configuration", PATIENCE, || {
            (self.rules().ok()?.len() == 2).then_some(())
        })?;
        self.configure("192.0.2.7", "192.0.2.777")?;
        let ran = self.machine.run(&["systemctl", "reload", "blocker"])?;
        ensure!(ran.code != 0, "a bad configuration was taken");
        let log = self.ok(&["journalctl", "--unit=blocker", "--output=cat", "--no-pager"])?;
        ensure!(log.contains("192.0.2.777"), "the log does not say why");
        ensure!(self.active()? && self.rules()?.len() == 2, "not as before");
        self.configure("192.0.2.777", "192.0.2.7")
    }

    fn watchdog(&mut self) -> Result<()> {
        let directory = self.machine.file("/etc/systemd/system/blocker.service.d");
        fs::create_dir_all(&directory)?;
        let quick = directory.join("quick.conf");
        fs::write(&quick, "[Service]\nWatchdogSec=2s\n")?;
        self.ok(&["systemctl", "daemon-reload"])?;
        self.ok(&["systemctl", "restart", "blocker"])?;
        let pid = self.property("MainPID")?;
        // It is told that all is well for longer than it would wait.
        let stamp = || self.property("WatchdogTimestampMonotonic");
        let first: u64 = stamp()?.parse()?;
        poll("the watchdog to be told", PATIENCE, || {
            let now: u64 = stamp().ok()?.parse().ok()?;
            (now > first + 2_500_000).then_some(())
        })?;
        ensure!(self.property("MainPID")? == pid, "a sane daemon was killed");
        self.wire.tight(|| {
            self.ok(&["kill", "-STOP", &pid])?;
            self.wait_other(&pid)
        })?;
        let log = self.ok(&["journalctl", "--unit=blocker", "--output=cat", "--no-pager"])?;
        ensure!(log.contains("'watchdog'"), "it was not the watchdog");
        fs::remove_dir_all(directory)?;
        self.ok(&["systemctl", "daemon-reload"])?;
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let pid = self.property("MainPID")?;
        self.wire.tight(|| {
            self.ok(&["kill", "-KILL", &pid])?;
            self.wait_other(&pid)
        })
    }

    /// Waits until another daemon answers.
    fn wait_other(&self, pid: &str) -> Result<()> {
        poll("another daemon", PATIENCE, || {
            let other = self.property("MainPID").ok()?;
            let replaced = other != pid && other != "0" && self.active().ok()?;
            (replaced && self.rules().ok()?.len() == 2).then_some(())
        })
    }

    fn stop_with_lift(&mut self) -> Result<()> {
        self.ok(&["systemctl", "stop", "blocker"])?;
        self.wire.wait_passing()?;
        poll("the socket to be gone", PATIENCE, || {
            let ran = self
                .machine
                .run(&["systemctl", "is-active", "blocker.socket"]);
            (ran.ok()?.code != 0).then_some(())
        })?;
        let ran = self.machine.run(&["blockctl", "list"])?;
        ensure!(ran.code == UNREACHABLE, "something answers: {}", ran.stdout);
        ensure!(!self.active()?, "a client started it again");
        self.ok(&["systemctl", "start", "blocker"])?;
        ensure!(self.rules()?.len() == 2, "the rules are not back");
        self.wire.tight(|| Ok(()))
    }

    fn stop_with_keep(&mut self) -> Result<()> {
        self.configure("\non_stop: lift\n", "\non_stop: keep\n")?;
        self.ok(&["systemctl", "restart", "blocker"])?;
        self.wire.tight(|| {
            self.ok(&["systemctl", "stop", "blocker"])?;
            ensure!(!self.active()?, "it runs");
            Ok(())
        })?;
        self.ok(&["blocker", "unload"])?;
        self.wire.wait_passing()?;
        self.ok(&["systemctl", "start", "blocker"])?;
        self.wire.tight(|| Ok(()))?;
        self.configure("\non_stop: keep\n", "\non_stop: lift\n")?;
        self.ok(&["systemctl", "reload", "blocker"])?;
        Ok(())
    }

    fn without_socket(&mut self) -> Result<()> {
        self.ok(&["systemctl", "stop", "blocker"])?;
        self.ok(&["systemctl", "mask", "--now", "blocker.socket"])?;
        self.ok(&["systemctl", "start", "blocker"])?;
        let socket = "/run/blocker/control.sock";
        let made = self.ok(&["stat", "--format=%G %a", socket])?;
        ensure!(made.trim() == "blocker 660", "{socket}: {made}");
        ensure!(self.rules()?.len() == 2, "the rules are not back");
        self.ok(&["systemctl", "stop", "blocker"])?;
        self.ok(&["systemctl", "unmask", "blocker.socket"])?;
        self.ok(&["systemctl", "start", "blocker"])?;
        self.ok(&["systemctl", "is-active", "blocker.socket"])?;
        Ok(())
    }

    fn upgrade(&mut self) -> Result<()> {
        let before = self.property("MainPID")?;
        self.wire.tight(|| {
            self.ok(&["dpkg", "--install", "/newer.deb"])?;
            Ok(())
        })?;
        ensure!(self.property("MainPID")? != before, "it is the old daemon");
        ensure!(self.active()? && self.rules()?.len() == 2, "not as before");
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        let left = |rules: &[Value]| {
            let rule = rules.iter().find(|rule| rule["id"] == "dev01");
            let left = rule.and_then(|rule| rule["remaining_seconds"].as_u64());
            left.context("dev01 has no deadline")
        };
        let before = left(&self.rules()?)?;
        self.machine.reboot()?;
        ensure!(self.active()?, "it is not started at boot");
        let after = left(&self.rules()?)?;
        ensure!(
            after < before && after > before.saturating_sub(600),
            "{before} s, then {after} s"
        );
        let order = [
            "systemctl",
            "show",
            "--value",
            "-p",
            "Before",
            "blocker.service",
        ];
        ensure!(
            self.ok(&order)?.contains("network-pre.target"),
            "it comes late"
        );
        let log = self.ok(&["journalctl", "--boot", "--no-pager", "--output=cat"])?;
        ensure!(!log.contains("ordering cycle"), "an ordering cycle: {log}");
        self.wire.tight(|| Ok(()))
    }

    fn remove(&mut self) -> Result<()> {
        self.configure("\non_stop: lift\n", "\non_stop: keep\n")?;
        self.ok(&["systemctl", "reload", "blocker"])?;
        self.ok(&["dpkg", "--remove", "blocker"])?;
        self.wire.wait_passing()?;
        ensure!(!self.active()?, "it runs");
        ensure!(
            self.machine.file(CONFIG).exists(),
            "the configuration is gone"
        );
        let pins = self.ok(&["find", "/sys/fs/bpf", "-path", "/sys/fs/bpf/blocker/*"])?;
        ensure!(pins.is_empty(), "left: {pins}");
        Ok(())
    }

    fn purge(&mut self) -> Result<()> {
        self.ok(&["dpkg", "--purge", "blocker"])?;
        let find = ["find", "/", "-xdev", "-path", "/var/log", "-prune", "-o"];
        let left = self.ok(&[&find[..], &["-iname", "*blocker*", "-print"]].concat())?;
        ensure!(left.is_empty(), "left: {left}");
        for database in ["passwd", "group"] {
            let ran = self.machine.run(&["getent", database, "blocker"])?;
            ensure!(ran.code != 0, "{database} has {}", ran.stdout);
        }
        let failed = self.ok(&["systemctl", "--failed", "--plain", "--no-legend"])?;
        ensure!(!failed.contains("blocker"), "{failed}");
        Ok(())
    }
}
