//! The experiments for the Chaos Toolkit, carried out by the real one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::hosts::{Daemon, Pair};

use super::load_balancer::{Balancer, Servers};
use crate::blocking_pair::BlockingPair;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What `cargo xtask setup` installs.
fn chaos() -> Result<PathBuf> {
    let chaos = Path::new(ROOT).join("target/python/bin/chaos");
    ensure!(
        chaos.is_file(),
        "{} is missing: run `cargo xtask setup`",
        chaos.display()
    );
    Ok(chaos)
}

/// Carries an experiment out in A, and gives its journal.
fn experiment(daemon: &Daemon, pair: &Pair, file: &str, more: &[(&str, &str)]) -> Result<Value> {
    let directory = tempfile::tempdir()?;
    let journal = directory.path().join("journal.json");
    let mut path = OsString::from(
        Path::new(env!("CARGO_BIN_EXE_blockctl"))
            .parent()
            .context("a directory")?,
    );
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(chaos()?);
    command
        .args(["--no-version-check", "--no-log-file", "run"])
        .args(["--hypothesis-strategy", "after-method-only"])
        .args(["--rollback-strategy", "always", "--journal-path"])
        .arg(&journal)
        .arg(
            Path::new(ROOT)
                .join("config/runbooks/chaostoolkit")
                .join(file),
        )
        .current_dir(&directory)
        .env("PATH", path)
        .env("BLOCKER_SOCKET", daemon.socket())
        .env_remove("SSH_CONNECTION")
        .envs(more.iter().copied())
        .stdin(Stdio::null());
    let output = pair.a.enter(|| command.output())?;
    let output = output.context("chaos cannot be started")?;
    let journal = fs::read_to_string(&journal);
    let journal = journal.with_context(|| format!("no journal: {output:?}"))?;
    Ok(serde_json::from_str(&journal)?)
}

/// What became of the activities of a part, by name.
fn activities(journal: &Value, part: &str) -> Vec<(String, String)> {
    let runs = journal[part]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    runs.iter()
        .map(|run| (text(&run["activity"]["name"]), text(&run["status"])))
        .collect()
}

fn passed(journal: &Value) {
    assert_eq!(journal["status"], "completed", "{journal:#}");
    assert_eq!(journal["deviated"], false, "{journal:#}");
    let after = &journal["steady_states"]["after"];
    assert_eq!(after["steady_state_met"], true, "{journal:#}");
    for part in ["run", "rollbacks"] {
        for (name, status) in activities(journal, part) {
            assert_eq!(status, "succeeded", "{name}: {journal:#}");
        }
    }
}

fn rules(hosts: &BlockingPair) -> Result<Value> {
    Ok(hosts.daemon.json(&["list"])?["rules"].clone())
}

#[test]
fn a_dead_client_is_taken_out_of_rotation() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _balancer = Balancer::start(&hosts.pair, 2)?;
    let journal = experiment(&hosts.daemon, &hosts.pair, "dead-client.yaml", &[])?;
    passed(&journal);
    assert_eq!(activities(&journal, "rollbacks").len(), 1, "{journal:#}");
    assert_eq!(rules(&hosts)?, json!([]));
    Ok(())
}

/// A balancer that keeps a dead server in rotation fails the experiment, and the block is rolled back.
#[test]
fn a_balancer_that_is_too_patient_is_found_out_and_rolled_back() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _balancer = Balancer::start(&hosts.pair, 1_000)?;
    let journal = experiment(&hosts.daemon, &hosts.pair, "dead-client.yaml", &[])?;
    assert_eq!(journal["deviated"], true, "{journal:#}");
    let probes = &journal["steady_states"]["after"]["probes"];
    let met: Vec<_> = (0..3)
        .map(|probe| probes[probe]["tolerance_met"].clone())
        .collect();
    assert_eq!(met, [true, true, false], "in rotation still: {journal:#}");
    let rollbacks = activities(&journal, "rollbacks");
    let expected = ("the-client-is-back".to_owned(), "succeeded".to_owned());
    assert_eq!(rollbacks, [expected]);
    assert_eq!(rules(&hosts)?, json!([]));
    Ok(())
}

#[test]
fn a_runbook_is_a_step_of_an_experiment() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _balancer = Balancer::start(&hosts.pair, 2)?;
    let runbook = format!("{ROOT}/config/runbooks/dead-client.yaml");
    let report = tempfile::NamedTempFile::new()?;
    let report_path = report.path().display().to_string();
    let given = [
        ("RUNBOOK", runbook.as_str()),
        ("REPORT", report_path.as_str()),
    ];
    passed(&experiment(
        &hosts.daemon,
        &hosts.pair,
        "runbook.yaml",
        &given,
    )?);
    let evidence: Value = serde_json::from_str(&fs::read_to_string(report.path())?)?;
    assert_eq!(evidence["result"], "passed", "{evidence}");

    // One that fails is no success, though the process did what it was started for.
    let failing = tempfile::NamedTempFile::new()?;
    fs::write(
        failing.path(),
        "steps: [{check: {command: {run: 'false'}}}]",
    )?;
    let failing = failing.path().display().to_string();
    let given = [
        ("RUNBOOK", failing.as_str()),
        ("REPORT", report_path.as_str()),
    ];
    let journal = experiment(&hosts.daemon, &hosts.pair, "runbook.yaml", &given)?;
    assert_eq!(journal["deviated"], true, "{journal:#}");
    Ok(())
}

#[test]
fn a_block_by_the_api_is_met_counted_and_lifted() -> Result<()> {
    let pair = Pair::new()?;
    let config = "metrics: {listen: '127.0.0.1:9921'}";
    let daemon = Daemon::start(&pair.a, &crate::programs(), config)?;
    let servers = Servers::new()?;
    servers.start(&pair.b, (Pair::B, 8080).into(), "client")?;
    passed(&experiment(&daemon, &pair, "api.yaml", &[])?);
    assert_eq!(daemon.json(&["list"])?["rules"], json!([]));
    Ok(())
}
