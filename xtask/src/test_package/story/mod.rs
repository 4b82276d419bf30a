//! The tests of the packages: install, use, restart, crash, stop, upgrade, reboot, remove.

mod package;
mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::TASK;
use super::machine::Machine;
use super::wire::Wire;
use crate::command::say;
use crate::hosts::{Pair, poll};
use crate::package::Built;

const PATIENCE: Duration = Duration::from_secs(30);
const DEB: &str = "/package.deb";
const NEXT_DEB: &str = "/next.deb";
const RPM: &str = "/package.rpm";
const NEXT_RPM: &str = "/next.rpm";
const CONFIG: &str = "/etc/blocker/blocker.yaml";
/// The exit code of `blockctl` if the daemon is not reachable.
const UNREACHABLE: i32 = 3;

struct Story {
    machine: Machine,
    wire: Wire,
}

/// A test.
type Step = fn(&mut Story) -> Result<()>;

/// The tests to run, and the packages.
pub(super) enum Plot {
    /// All tests, with the packages of a release and of the next release of the same build.
    Life { first: Built, next: Built },
    /// The upgrade from the Debian package of another build to this one's.
    Upgrade { old: PathBuf, new: PathBuf },
}

impl Plot {
    /// The path of each package in the machine.
    fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Self::Life { first, next } => vec![
                (DEB, &first.deb),
                (NEXT_DEB, &next.deb),
                (RPM, &first.rpm),
                (NEXT_RPM, &next.rpm),
            ],
            Self::Upgrade { old, new } => vec![(DEB, old), (NEXT_DEB, new)],
        }
    }

    fn steps(&self) -> &'static [(&'static str, Step)] {
        match self {
            Self::Life { .. } => &[
                ("install", Story::install),
                ("who may", Story::who_may),
                ("restart", Story::restart),
                ("restart and stop amid a start", Story::amid_start),
                ("reload", Story::reload),
                ("watchdog", Story::watchdog),
                ("kill", Story::kill),
                ("stop with lift", Story::stop_with_lift),
                ("stop with keep", Story::stop_with_keep),
                ("started by a client", Story::activated),
                ("without the socket unit", Story::without_socket),
                ("upgrade", Story::upgrade),
                ("boot", Story::boot),
                ("remove", Story::remove),
                ("purge", Story::purge),
                ("install the RPM", Story::install_rpm),
                ("upgrade the RPM", Story::upgrade_rpm),
                ("erase the RPM", Story::erase_rpm),
            ],
            Self::Upgrade { .. } => &[("upgrade of another build", Story::upgrade_other)],
        }
    }
}

/// Runs the tests.
///
/// # Errors
/// A test failed.
pub(super) fn tell(plot: &Plot) -> Result<()> {
    let pair = Pair::new()?;
    let wire = Wire::new(&pair)?;
    let machine = Machine::boot(&pair.a)?;
    for (name, package) in plot.files() {
        let place = machine.file(name);
        fs::copy(package, place).with_context(|| format!("copying {}", package.display()))?;
    }
    let mut story = Story { machine, wire };
    for (name, step) in plot.steps() {
        let result = step(&mut story);
        if result.is_err() {
            let words = ["--lines=100", "--output=short-precise"];
            if let Ok(log) = story.log(&words) {
                say(TASK, &log);
            }
        }
        result.with_context(|| (*name).to_owned())?;
        println!("ok: {name}");
    }
    Ok(())
}

impl Story {
    fn ok(&self, words: &[&str]) -> Result<String> {
        self.machine.ok(words)
    }

    /// The rules in force, by `blockctl list`.
    fn rules(&self) -> Result<Vec<Value>> {
        let said = self.ok(&["blockctl", "list", "-o", "json"])?;
        let said: Value = serde_json::from_str(&said)?;
        Ok(said["rules"]
            .as_array()
            .context("the list has no rules")?
            .clone())
    }

    /// The number of packets that `dev01` has decided.
    fn counted(&self) -> Result<u64> {
        let packets = self.dev01()?["counters"]["packets"].as_u64();
        packets.context("dev01 has no counters")
    }

    /// The remaining time of `dev01`, in seconds.
    fn left(&self) -> Result<u64> {
        let left = self.dev01()?["remaining_seconds"].as_u64();
        left.context("dev01 has no deadline")
    }

    fn dev01(&self) -> Result<Value> {
        let mut rules = self.rules()?.into_iter();
        let rule = rules.find(|rule| rule["id"] == "dev01");
        rule.context("the rule dev01 is missing")
    }

    /// The journal of the service so far.
    fn log(&self, words: &[&str]) -> Result<String> {
        // The journal may not have been written yet.
        self.ok(&["journalctl", "--sync"])?;
        let all = ["journalctl", "--unit=blocker*", "--no-pager"];
        self.ok(&[&all[..], words].concat())
    }

    /// The pins.
    fn pins(&self) -> Result<String> {
        self.ok(&["find", "/sys/fs/bpf", "-path", "/sys/fs/bpf/blocker/*"])
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
        self.wire.tight(|| Ok(()))?;
        Ok(())
    }

    fn configure(&self, old: &str, new: &str) -> Result<()> {
        let path = self.machine.file(CONFIG);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(old), "{CONFIG} has no {old:?}");
        Ok(fs::write(path, text.replacen(old, new, 1))?)
    }

    /// Waits until a new daemon responds.
    fn wait_other(&self, pid: &str) -> Result<()> {
        poll("another daemon", PATIENCE, || {
            let other = self.property("MainPID").ok()?;
            let replaced = other != pid && other != "0" && self.active().ok()?;
            (replaced && self.rules().ok()?.len() == 2).then_some(())
        })
    }
}
