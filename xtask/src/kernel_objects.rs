//! Counts the kernel objects of one datapath (programs, maps, links), its pins, and the daemon's file
//! descriptors. After a fault, tests expect the same counts as before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::hosts::{Daemon, poll};

/// The time within which the kernel must free objects without references.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of each kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelObjects {
    /// Programs that are loaded.
    pub programs: usize,
    /// Maps that these programs use.
    pub maps: usize,
    /// Links of these programs.
    pub links: usize,
    /// Files under the pin directory.
    pub pins: usize,
    /// The daemon's open files.
    pub descriptors: usize,
}

impl KernelObjects {
    /// Counts the objects of a running daemon, and those that its predecessors left.
    ///
    /// All programs of one pin directory, old and new, use its map of counters. So that map tells
    /// them from the programs of other daemons.
    pub fn of(daemon: &Daemon) -> Result<Self> {
        let mut pins = Vec::new();
        files(daemon.pins(), &mut pins)?;
        let counters = pins.iter().find(|pin| pin.ends_with("COUNTERS"));
        let counters = counters.context("no COUNTERS among the pins")?;
        let counters = ask(&["map", "show", "pinned", &counters.display().to_string()])?;
        let counters = counters["id"].as_u64().context("a map has an id")?;
        let programs = ask(&["prog", "show"])?;
        let programs: Vec<&Value> = list(&programs)
            .filter(|program| numbers(&program["map_ids"]).any(|map| map == counters))
            .collect();
        let maps: BTreeSet<u64> = programs
            .iter()
            .flat_map(|program| numbers(&program["map_ids"]))
            .collect();
        let ids: BTreeSet<u64> = programs
            .iter()
            .filter_map(|program| program["id"].as_u64())
            .collect();
        let links = ask(&["link", "show"])?;
        let links = list(&links).filter(|link| {
            let program = link["prog_id"].as_u64();
            program.is_some_and(|program| ids.contains(&program))
        });
        let pid = daemon.pid().context("the daemon runs")?;
        Ok(Self {
            programs: programs.len(),
            maps: maps.len(),
            links: links.count(),
            pins: pins.len(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }

    /// Waits until the counts equal these again. Some more descriptors are allowed, because requests
    /// open them for a moment.
    pub fn check(&self, daemon: &Daemon, what: &str) -> Result<()> {
        const SOME: usize = 4;
        let mut last = None;
        let same = poll("the footprint of before", PATIENCE, || {
            let now = Self::of(daemon).ok()?;
            last = Some(now);
            let descriptors = now.descriptors;
            let bare = |footprint: Self| Self {
                descriptors: 0,
                ..footprint
            };
            (bare(now) == bare(*self) && descriptors <= self.descriptors + SOME).then_some(())
        });
        ensure!(same.is_ok(), "{what}: {self:?} became {last:?}");
        Ok(())
    }
}

fn ask(words: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("--json").args(words).output();
    let output = output.context("bpftool cannot be started")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("bpftool {}: no JSON", words.join(" ")))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn numbers(value: &Value) -> impl Iterator<Item = u64> {
    list(value).filter_map(Value::as_u64)
}

fn files(directory: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}
