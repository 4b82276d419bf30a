//! Tests of the packages: install, upgrade, reboot, remove, purge.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::TASK;
use super::{CONFIG, DEB, NEXT_DEB, NEXT_RPM, RPM, Story};
use crate::command::say;

impl Story {
    pub(super) fn install(&mut self) -> Result<()> {
        self.wire.wait_passing()?;
        self.ok(&["dpkg", "--install", DEB])?;
        ensure!(self.active()?, "the service does not run");
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
        ensure!(user.trim() == "blocker", "the service runs as {user}");
        let status = self.ok(&["blockctl", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let hooks = &status["interfaces"][0]["hooks"];
        ensure!(
            hooks.as_array().is_some_and(|hooks| hooks.len() == 3),
            "{status}"
        );
        for path in ["man1/blocker.1.gz", "man1/blockctl-add.1.gz"] {
            let path = format!("/usr/share/man/{path}");
            ensure!(self.machine.file(&path).exists(), "{path} is missing");
        }
        self.block()
    }

    pub(super) fn upgrade(&mut self) -> Result<()> {
        let before = self.property("MainPID")?;
        let counted = self.counted()?;
        self.wire.tight(|| {
            self.ok(&["dpkg", "--install", NEXT_DEB])?;
            Ok(())
        })?;
        ensure!(
            self.property("MainPID")? != before,
            "the old daemon still runs"
        );
        ensure!(
            self.active()? && self.rules()?.len() == 2,
            "the rules changed"
        );
        ensure!(self.counted()? > counted, "the counters were reset");
        Ok(())
    }

    /// The map ABI may differ.
    pub(super) fn upgrade_other(&mut self) -> Result<()> {
        self.wire.wait_passing()?;
        self.ok(&["dpkg", "--install", DEB])?;
        self.block()?;
        let (old, left, counted) = (self.abi()?, self.left()?, self.counted()?);
        let before = self.property("MainPID")?;
        let sent = self.wire.tight(|| {
            self.ok(&["dpkg", "--install", NEXT_DEB])?;
            Ok(())
        })?;
        ensure!(self.property("MainPID")? != before, "it is the old daemon");
        let (new, left_now, counted_now) = (self.abi()?, self.left()?, self.counted()?);
        say(
            TASK,
            &format!(
                "map ABI {old}, then {new}; {left} s left, then {left_now} s; {counted} packets \
                 counted, then {counted_now}"
            ),
        );
        same_deadline(left, left_now)?;
        if old == new {
            ensure!(counted_now > counted, "the counters began anew");
        } else {
            ensure!(counted_now <= sent, "the old counters were misread");
        }
        self.wire.tight(|| Ok(()))?;
        ensure!(self.counted()? > counted_now, "nothing is counted");
        Ok(())
    }

    fn abi(&self) -> Result<u64> {
        let status = self.ok(&["blockctl", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let abi = status["abi"].as_u64();
        abi.with_context(|| format!("no ABI: {status}"))
    }

    pub(super) fn boot(&mut self) -> Result<()> {
        let before = self.left()?;
        self.machine.reboot()?;
        ensure!(self.active()?, "the service is not started at boot");
        same_deadline(before, self.left()?)?;
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
        self.wire.tight(|| Ok(()))?;
        Ok(())
    }

    pub(super) fn remove(&mut self) -> Result<()> {
        self.configure("\non_stop: lift\n", "\non_stop: keep\n")?;
        self.ok(&["systemctl", "reload", "blocker"])?;
        self.ok(&["dpkg", "--remove", "blocker"])?;
        self.wire.wait_passing()?;
        ensure!(!self.active()?, "the service still runs");
        ensure!(
            self.machine.file(CONFIG).exists(),
            "the configuration is gone"
        );
        let pins = self.pins()?;
        ensure!(pins.is_empty(), "left: {pins}");
        Ok(())
    }

    pub(super) fn purge(&mut self) -> Result<()> {
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

    /// As Red Hat's packages do, the RPM leaves starting the service to the administrator.
    pub(super) fn install_rpm(&mut self) -> Result<()> {
        self.rpm(&["--install", RPM], "")?;
        ensure!(!self.active()?, "the service was started");
        self.ok(&["getent", "group", "blocker"])?;
        self.ok(&["systemctl", "enable", "--now", "blocker"])?;
        self.block()?;
        self.configure("\non_stop: lift\n", "\non_stop: keep\n")
    }

    pub(super) fn upgrade_rpm(&mut self) -> Result<()> {
        let before = self.property("MainPID")?;
        let counted = self.counted()?;
        self.wire.tight(|| self.rpm(&["--upgrade", NEXT_RPM], ""))?;
        ensure!(self.property("MainPID")? != before, "it is the old daemon");
        ensure!(self.active()?, "it does not run");
        ensure!(self.counted()? > counted, "the counters began anew");
        let config = fs::read_to_string(self.machine.file(CONFIG))?;
        ensure!(
            config.contains("\non_stop: keep\n"),
            "the configuration was overwritten"
        );
        Ok(())
    }

    pub(super) fn erase_rpm(&mut self) -> Result<()> {
        let unloaded = "removed 3 attached programs from /sys/fs/bpf/blocker\n";
        self.rpm(&["--erase", "blocker"], unloaded)?;
        self.wire.wait_passing()?;
        ensure!(!self.active()?, "it runs");
        let pins = self.pins()?;
        ensure!(pins.is_empty(), "left: {pins}");
        let find = ["find", "/usr", "/etc/systemd", "-iname", "*blocker*"];
        let left = self.ok(&find)?;
        ensure!(left.is_empty(), "left: {left}");
        Ok(())
    }

    /// rpm on Debian, whose RPM database is empty, so that no dependency is found.
    fn rpm(&self, words: &[&str], expected: &str) -> Result<()> {
        let said = self.ok(&[&["rpm", "--nodeps", "--force-debian"], words].concat())?;
        ensure!(said == expected, "rpm says: {said}");
        Ok(())
    }
}

fn same_deadline(before: u64, after: u64) -> Result<()> {
    ensure!(
        after <= before && after > before.saturating_sub(600),
        "{before} s, then {after} s"
    );
    Ok(())
}
