//! `blockctl run` leaves no rule in force, however it ends.

use std::fs;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use xtask::hosts::poll;

use super::experiment::Experiment;
use crate::blocking_pair::PATIENCE;

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

#[test]
fn signals_end_the_run_and_the_block() -> Result<()> {
    let experiment = Experiment::new()?;
    for (sent, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
    ] {
        let mut child = experiment.start()?;
        signal(&child, sent)?;
        assert_eq!(child.wait()?.code(), Some(code), "{sent}");
        assert_eq!(experiment.rules()?, 0, "{sent}");
        let report = experiment.report()?;
        assert_eq!(
            (&report["result"], &report["exit_code"]),
            (&json!("interrupted"), &json!(code))
        );
        assert_eq!(report["blocks"][0]["held_throughout"], true, "{report}");
    }
    // A command that runs meanwhile goes with it, and so does what it started.
    let pids = experiment.path("pids");
    let text = format!(
        "
steps:
- block: {{id: dev01, targets: [10.171.170.104], mode: reset}}
- check: {{command: {{run: 'sleep 600 & echo $$ $! > {}; wait'}}, timeout: 10m}}
",
        pids.display()
    );
    let mut child = experiment.spawn(&text)?;
    let pids = poll("the command to run", PATIENCE, || {
        let text = fs::read_to_string(&pids).ok()?;
        let pids: Vec<i32> = text
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        (pids.len() == 2).then_some(pids)
    })?;
    signal(&child, Signal::SIGTERM)?;
    assert_eq!(child.wait()?.code(), Some(143));
    for pid in pids {
        poll("the command to be gone", PATIENCE, || {
            gone(pid).then_some(())
        })?;
    }
    Ok(())
}

/// Whether a process is gone or a zombie.
fn gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn a_client_that_is_killed_leaves_no_block() -> Result<()> {
    let experiment = Experiment::new()?;
    let mut child = experiment.start()?;
    signal(&child, Signal::SIGKILL)?;
    child.wait()?;
    experiment.wait_rules(0)
}

#[test]
fn a_block_that_is_lost_ends_the_run() -> Result<()> {
    let mut experiment = Experiment::new()?;
    let mut child = experiment.start()?;
    experiment.hosts.del(&["dev01"])?;
    assert_eq!(child.wait()?.code(), Some(6));
    let report = experiment.report()?;
    assert_eq!(report["result"], "lost", "{report}");
    assert_eq!(report["steps"][2]["outcome"], "interrupted", "{report}");

    // Its kernel's deadline is that of a lease, as with `during`.
    let mut child = experiment.start()?;
    experiment.hosts.daemon.kill()?;
    assert_eq!(child.wait()?.code(), Some(6));
    let report = experiment.report()?;
    assert_eq!(report["result"], "lost", "{report}");
    let lost = report["blocks"][0]["lost"].as_str().context("why")?;
    ensure!(
        lost.contains("the kernel ends the block within half a minute"),
        "{lost}"
    );
    Ok(())
}

#[test]
fn the_deadline_ends_a_run_and_is_that_of_its_blocks() -> Result<()> {
    let experiment = Experiment::new()?;
    let output = experiment.run(
        "
deadline: 2s
steps:
- block: {id: dev01, targets: [10.171.170.104], mode: drop}
- check: {tcp: {to: '10.171.170.104:80'}, timeout: 1m}
",
        &["-o", "json"],
    )?;
    assert_eq!(experiment.rules()?, 0);
    let report = output.json()?;
    assert_eq!((output.code, &report["result"]), (1, &json!("failed")));
    assert_eq!(report["blocks"][0]["held_throughout"], true, "{report}");
    let time = |name: &str| -> Result<jiff::Timestamp> {
        Ok(report[name].as_str().context("a time")?.parse()?)
    };
    let took = time("ended")?.duration_since(time("started")?);
    let took = Duration::try_from(took)?;
    ensure!(
        took >= Duration::from_millis(1_500) && took < PATIENCE,
        "{took:?}"
    );
    Ok(())
}
