//! An experiment from a file: `blockctl run` in A, its report, and the rules that it leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use xtask::hosts::{Output, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE};

/// The hosts, and the files of an experiment.
pub(crate) struct Experiment {
    pub(crate) hosts: BlockingPair,
    files: TempDir,
}

impl Experiment {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            hosts: BlockingPair::new("")?,
            files: tempfile::tempdir()?,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// `blockctl run` of these steps, in A.
    pub(crate) fn command(&self, text: &str) -> Result<Command> {
        fs::write(self.path("run.yaml"), text)?;
        let mut command = self.hosts.daemon.blockctl_command();
        command
            .arg("run")
            .arg(self.path("run.yaml"))
            .stdin(Stdio::null());
        Ok(command)
    }

    pub(crate) fn run(&self, text: &str, words: &[&str]) -> Result<Output> {
        let mut command = self.command(text)?;
        command.args(words);
        let output = self.hosts.pair.a.enter(|| command.output())??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts one that blocks and then waits for long, and waits until it does.
    pub(crate) fn start(&self) -> Result<Child> {
        let begun = self.path("begun");
        let child = self.spawn(&format!(
            "
steps:
- block: {{id: dev01, targets: [10.171.170.104], mode: reset}}
- check: {{command: {{run: [touch, '{}']}}}}
- wait: 10m
",
            begun.display()
        ))?;
        poll("the block", PATIENCE, || begun.exists().then_some(()))?;
        fs::remove_file(begun)?;
        Ok(child)
    }

    pub(crate) fn spawn(&self, text: &str) -> Result<Child> {
        let mut command = self.command(text)?;
        command.arg("--report").arg(self.path("report.json"));
        self.hosts.pair.a.spawn(&mut command)
    }

    pub(crate) fn rules(&self) -> Result<usize> {
        let list = self.hosts.daemon.json(&["list"])?;
        Ok(list["rules"].as_array().context("rules")?.len())
    }

    pub(crate) fn wait_rules(&self, count: usize) -> Result<()> {
        poll(&format!("{count} rules"), PATIENCE, || {
            (self.rules().ok()? == count).then_some(())
        })
    }

    pub(crate) fn report(&self) -> Result<Value> {
        report(&self.path("report.json"))
    }
}

/// What `--report` wrote.
pub(crate) fn report(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}
