//! Tests of the service under systemd: access, restarts, reloads, crashes and stops.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{PATIENCE, Story, UNREACHABLE};
use crate::hosts::poll;

impl Story {
    pub(super) fn who_may(&mut self) -> Result<()> {
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

    pub(super) fn restart(&mut self) -> Result<()> {
        let before = self.property("MainPID")?;
        let counted = self.counted()?;
        let sent = self.wire.tight(|| {
            for _ in 0..3 {
                self.ok(&["systemctl", "restart", "blocker"])?;
            }
            Ok(())
        })?;
        // A queue on the path may have been full.
        let more = self.counted()?.checked_sub(counted);
        ensure!(
            more.is_some_and(|more| more > 0 && more <= sent),
            "of {sent} datagrams {more:?} were counted"
        );
        ensure!(
            self.property("MainPID")? != before,
            "the old daemon still runs"
        );
        ensure!(self.rules()?[0]["id"] == "dev01", "the rule is missing");
        Ok(())
    }

    /// systemd runs no `ExecStop=` for a service that is still starting. Stops it at increasing times
    /// after its start.
    pub(super) fn amid_start(&mut self) -> Result<()> {
        let moments = || (0..20).map(|step| Duration::from_millis(10 * step));
        self.wire.tight(|| {
            for moment in moments() {
                self.ok(&["systemctl", "restart", "--no-block", "blocker"])?;
                std::thread::sleep(moment);
            }
            poll("the last daemon", PATIENCE, || {
                (self.active().ok()? && self.rules().ok()?.len() == 1).then_some(())
            })
        })?;
        for moment in moments() {
            self.ok(&["systemctl", "start", "--no-block", "blocker"])?;
            std::thread::sleep(moment);
            self.ok(&["systemctl", "stop", "blocker"])?;
            self.wire.wait_passing()?;
            let pins = self.pins()?;
            ensure!(pins.is_empty(), "left after {moment:?}: {pins}");
            let failed = self.property("ActiveState")?;
            ensure!(failed == "inactive", "{failed} after {moment:?}");
        }
        self.ok(&["systemctl", "start", "blocker"])?;
        self.wire.tight(|| Ok(()))?;
        Ok(())
    }

    pub(super) fn reload(&mut self) -> Result<()> {
        let rule = "\nrules:\n  - {id: fixed, targets: [192.0.2.7]}\n";
        self.configure("\nrules: []\n", rule)?;
        self.ok(&["systemctl", "reload", "blocker"])?;
        poll("the rule of the configuration", PATIENCE, || {
            (self.rules().ok()?.len() == 2).then_some(())
        })?;
        self.configure("192.0.2.7", "192.0.2.777")?;
        let ran = self.machine.run(&["systemctl", "reload", "blocker"])?;
        ensure!(ran.code != 0, "a bad configuration was accepted");
        let log = self.log(&["--output=cat"])?;
        ensure!(log.contains("192.0.2.777"), "the log does not say why");
        ensure!(
            self.active()? && self.rules()?.len() == 2,
            "the rules changed"
        );
        self.configure("192.0.2.777", "192.0.2.7")
    }

    pub(super) fn watchdog(&mut self) -> Result<()> {
        let directory = self.machine.file("/etc/systemd/system/blocker.service.d");
        fs::create_dir_all(&directory)?;
        let quick = directory.join("quick.conf");
        fs::write(&quick, "[Service]\nWatchdogSec=2s\n")?;
        self.ok(&["systemctl", "daemon-reload"])?;
        self.ok(&["systemctl", "restart", "blocker"])?;
        let pid = self.property("MainPID")?;
        // Longer than the watchdog's timeout.
        let stamp = || self.property("WatchdogTimestampMonotonic");
        let first: u64 = stamp()?.parse()?;
        poll("the watchdog to be told", PATIENCE, || {
            let now: u64 = stamp().ok()?.parse().ok()?;
            (now > first + 2_500_000).then_some(())
        })?;
        ensure!(
            self.property("MainPID")? == pid,
            "a healthy daemon was killed"
        );
        self.wire.tight(|| {
            self.ok(&["kill", "-STOP", &pid])?;
            self.wait_other(&pid)
        })?;
        let log = self.log(&["--output=cat"])?;
        ensure!(log.contains("'watchdog'"), "it was not the watchdog");
        fs::remove_dir_all(directory)?;
        self.ok(&["systemctl", "daemon-reload"])?;
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        let pid = self.property("MainPID")?;
        self.wire.tight(|| {
            self.ok(&["kill", "-KILL", &pid])?;
            self.wait_other(&pid)
        })?;
        Ok(())
    }

    pub(super) fn stop_with_lift(&mut self) -> Result<()> {
        self.ok(&["systemctl", "stop", "blocker"])?;
        self.wire.wait_passing()?;
        poll("the socket to be gone", PATIENCE, || {
            let ran = self
                .machine
                .run(&["systemctl", "is-active", "blocker.socket"]);
            (ran.ok()?.code != 0).then_some(())
        })?;
        let ran = self.machine.run(&["blockctl", "list"])?;
        ensure!(ran.code == UNREACHABLE, "a daemon responds: {}", ran.stdout);
        ensure!(!self.active()?, "a client started the service");
        self.ok(&["systemctl", "start", "blocker"])?;
        ensure!(self.rules()?.len() == 2, "the rules are not back");
        self.wire.tight(|| Ok(()))?;
        Ok(())
    }

    pub(super) fn stop_with_keep(&mut self) -> Result<()> {
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

    pub(super) fn activated(&mut self) -> Result<()> {
        self.ok(&["systemctl", "stop", "blocker"])?;
        self.ok(&["systemctl", "start", "blocker.socket"])?;
        ensure!(!self.active()?, "the service started without a request");
        ensure!(self.rules()?.len() == 2, "the rules are not back");
        ensure!(self.active()?, "the service does not run");
        self.wire.tight(|| Ok(()))?;
        Ok(())
    }

    pub(super) fn without_socket(&mut self) -> Result<()> {
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
}
