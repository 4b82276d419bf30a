//! Blocks with the lifetime of a command, a client or a daemon.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use xtask::hosts::{Connection, Listener, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error, soon};

/// How long a block may outlive a daemon that died: the lease's term, and time to notice.
const TERM: Duration = Duration::from_secs(32);

fn during(hosts: &BlockingPair, words: &[&str]) -> Command {
    let mut command = hosts.daemon.blockctl_command();
    command.arg("during").args(words).stdin(Stdio::null());
    command
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

fn rules(hosts: &BlockingPair) -> Result<Vec<Value>> {
    let list = hosts.daemon.json(&["list"])?;
    Ok(list["rules"].as_array().context("rules")?.clone())
}

fn wait_rules(hosts: &BlockingPair, count: usize) -> Result<Vec<Value>> {
    poll(&format!("{count} rules"), PATIENCE, || {
        rules(hosts).ok().filter(|rules| rules.len() == count)
    })
}

fn report(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

#[test]
fn a_command_runs_under_the_block_and_the_report_is_its_evidence() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let files = tempfile::tempdir()?;
    let (evidence, seen) = (files.path().join("report.json"), files.path().join("seen"));
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    let script = format!(
        "'{}' --socket '{}' show \"$BLOCKER_RULE\" -o json > '{}'; exit 7",
        env!("CARGO_BIN_EXE_blockctl"),
        hosts.daemon.socket().display(),
        seen.display()
    );
    let output = during(&hosts, &[&b, "--mode", "reset", "--report"])
        .arg(&evidence)
        .args(["--", "sh", "-c", &script])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(output.stdout.is_empty(), "standard output is the command's");
    assert!(
        said.contains("blocked") && said.contains("lifted after"),
        "{said}"
    );
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    assert_eq!(rules(&hosts)?, Vec::<Value>::new());

    let seen: Value = serde_json::from_str(&fs::read_to_string(&seen)?)?;
    let owner = seen["owner"].as_str().context("an owner")?;
    let report = report(&evidence)?;
    assert_eq!(
        owner,
        format!("lease:{}", report["lease"].as_str().context("a lease")?)
    );
    assert_eq!(report["rule"]["id"], seen["id"]);
    assert_eq!(report["rule"]["targets"], json!([b]));
    assert_eq!(
        report["before"]["flows"].as_array().map(Vec::len),
        Some(1),
        "{report}"
    );
    assert_eq!(report["teardown"]["killed"], 1, "{report}");
    assert_eq!(report["command"]["exit_code"], 7);
    assert_eq!(report["held_throughout"], true);
    assert_eq!(
        report["at_end"]["counters"]["packets"],
        seen["counters"]["packets"]
    );
    let time = |name: &str| -> Result<jiff::Timestamp> {
        Ok(report["times"][name].as_str().context("a time")?.parse()?)
    };
    let order = [
        "asked",
        "held",
        "command_started",
        "command_ended",
        "lifted",
    ];
    for pair in order.windows(2) {
        ensure!(time(pair[0])? <= time(pair[1])?, "{pair:?}: {report}");
    }
    // And all is well again.
    Listener::new(&hosts.pair.a, Pair::A, 0)?
        .connect(&hosts.pair.b)?
        .check_alive()
}

#[test]
fn signals_end_the_command_and_the_block() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    for (sent, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
    ] {
        let mut child = during(&hosts, &[&b, "--", "sleep", "60"]).spawn()?;
        wait_rules(&hosts, 1)?;
        signal(&child, sent)?;
        assert_eq!(child.wait()?.code(), Some(code), "{sent}");
        assert_eq!(rules(&hosts)?, Vec::<Value>::new(), "{sent}");
    }
    // Without a command it is what ends the block.
    let mut child = during(&hosts, &[&b]).spawn()?;
    wait_rules(&hosts, 1)?;
    signal(&child, Signal::SIGINT)?;
    assert_eq!(child.wait()?.code(), Some(0));
    assert_eq!(rules(&hosts)?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn a_client_that_is_killed_leaves_no_block() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let mut child = during(&hosts, &[&b, "--on-lift", "reset"]).spawn()?;
    wait_rules(&hosts, 1)?;
    signal(&child, Signal::SIGKILL)?;
    child.wait()?;
    wait_rules(&hosts, 0)?;
    Listener::new(&hosts.pair.a, Pair::A, 0)?
        .connect(&hosts.pair.b)?
        .check_alive()
}

#[test]
fn a_client_and_a_daemon_that_are_killed_leave_no_block_behind_the_lease() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let listener = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    let mut child = during(&hosts, &[&Pair::B.to_string(), "--mode", "reset"]).spawn()?;
    wait_rules(&hosts, 1)?;
    hosts.daemon.kill()?;
    signal(&child, Signal::SIGKILL)?;
    child.wait()?;
    let address = listener.address;
    assert!(
        connect_error(&hosts.pair.b, address)?.is_some(),
        "it holds without either"
    );
    poll("the kernel to end the block", TERM, || {
        connect_error(&hosts.pair.b, address)
            .ok()?
            .is_none()
            .then_some(())
    })
}

#[test]
fn a_daemon_that_is_killed_leaves_no_block_behind_the_lease() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let files = tempfile::tempdir()?;
    let (evidence, begun) = (files.path().join("report.json"), files.path().join("begun"));
    let b = Pair::B.to_string();
    let listener = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    let mut child = during(&hosts, &[&b, "--mode", "reset", "--report"])
        .arg(&evidence)
        .args([
            "--",
            "sh",
            "-c",
            &format!("touch '{}'; sleep 2", begun.display()),
        ])
        .spawn()?;
    poll("the command to run", PATIENCE, || {
        begun.exists().then_some(())
    })?;
    hosts.daemon.kill()?;
    let start = Instant::now();
    // The command succeeds, but not under the block.
    assert_eq!(child.wait()?.code(), Some(6));
    let report = report(&evidence)?;
    assert_eq!(report["held_throughout"], false);
    assert!(report["lost"].is_string(), "{report}");
    let address = listener.address;
    assert!(
        connect_error(&hosts.pair.b, address)?.is_some(),
        "it holds without a daemon"
    );
    poll("the kernel to end the block", TERM, || {
        connect_error(&hosts.pair.b, address)
            .ok()?
            .is_none()
            .then_some(())
    })?;
    ensure!(start.elapsed() < TERM);
    // A daemon that comes back knows nothing of the lease.
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(rules(&hosts)?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn a_lease_is_renewed_and_ends_at_the_deadline_that_was_asked_for() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let mut child = during(&hosts, &[&b]).spawn()?;
    let rule = wait_rules(&hosts, 1)?.remove(0);
    let expires = |rule: &Value| -> Result<jiff::Timestamp> {
        Ok(rule["expires"].as_str().context("a deadline")?.parse()?)
    };
    let first = expires(&rule)?;
    poll("the deadline to be moved", Duration::from_secs(20), || {
        let rules = rules(&hosts).ok()?;
        (expires(rules.first()?).ok()? > first).then_some(())
    })?;
    signal(&child, Signal::SIGINT)?;
    child.wait()?;

    let mut child = during(&hosts, &[&b, "--for", "2s", "--", "sleep", "3"]).spawn()?;
    wait_rules(&hosts, 1)?;
    wait_rules(&hosts, 0)?;
    assert_eq!(
        child.wait()?.code(),
        Some(6),
        "the command outlived the block"
    );
    Ok(())
}

#[test]
fn what_cannot_be_held_or_started_leaves_nothing() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let run = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let output = during(&hosts, words).output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let (code, said) = run(&[&b, "--", "/no/such/program"])?;
    assert_eq!(code, Some(127), "{said}");
    assert!(
        said.contains("/no/such/program cannot be started"),
        "{said}"
    );
    let (code, said) = run(&[&b, "--report", "/no/such/directory/x", "--", "true"])?;
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(&["127.0.0.1", "--", "true"])?;
    assert_eq!(code, Some(5), "{said}");
    hosts.add(&["192.0.2.1", "--id", "dev01"])?;
    let (code, said) = run(&[&b, "--id", "dev01", "--", "true"])?;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("dev01 is taken"), "{said}");
    let (code, said) = run(&[&b, "--dry-run", "--", "false"])?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rules(&hosts)?.len(), 1);
    // What was there already stays, under a lease on the same target and after it.
    let (code, said) = run(&["192.0.2.1", "--", "true"])?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rules(&hosts)?.len(), 1);
    Ok(())
}
