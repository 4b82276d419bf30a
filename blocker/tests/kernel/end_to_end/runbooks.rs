//! The shipped runbooks: each is valid, and the main ones are run. The main experiment runs with blocker
//! and with the netfilter rules that it replaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::hosts::{Output, Pair};

use super::load_balancer::{Balancer, Servers};
use crate::blocking_pair::BlockingPair;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/runbooks")
}

/// Runs a runbook in A.
fn run(hosts: &BlockingPair, file: &Path, words: &[&str]) -> Result<Output> {
    let mut command = hosts.daemon.blockctl_command();
    command.arg("run").arg(file).args(words);
    let output = hosts.pair.a.enter(|| command.output())??;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn rules(hosts: &BlockingPair) -> Result<Value> {
    Ok(hosts.daemon.json(&["list"])?["rules"].clone())
}

#[test]
fn each_is_right_as_it_is() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut count = 0;
    for entry in fs::read_dir(shipped())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let output = run(&hosts, &path, &["--dry-run"])?;
        assert_eq!(output.code, 0, "{}: {output:?}", path.display());
        assert!(
            output.stdout.contains("nothing is changed now"),
            "{output:?}"
        );
        assert!(output.stdout.contains("would block"), "{output:?}");
        count += 1;
    }
    assert_eq!(count, 6);
    assert_eq!(rules(&hosts)?, json!([]));
    Ok(())
}

/// The service of the runbooks, on A: it answers whatever becomes of its dependency.
fn passes(file: &str, ports: &[u16]) -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let servers = Servers::new()?;
    servers.start(&hosts.pair.a, (Pair::A, 8080).into(), "service")?;
    for port in ports {
        servers.start(&hosts.pair.b, (Pair::B, *port).into(), "client")?;
    }
    let output = run(&hosts, &shipped().join(file), &[])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(rules(&hosts)?, json!([]));
    Ok(())
}

#[test]
fn a_dependency_that_refuses() -> Result<()> {
    passes("dependency-refusing.yaml", &[6379])
}

#[test]
fn a_path_that_loses_packets() -> Result<()> {
    passes("partial-loss.yaml", &[8080])
}

#[test]
fn one_port_of_two() -> Result<()> {
    passes("one-port-only.yaml", &[8080, 8081])
}

#[test]
fn two_groups_that_part() -> Result<()> {
    passes("partition.yaml", &[8080])
}

#[test]
fn a_dependency_that_is_unreachable() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _service = Balancer::start_dependent(&hosts.pair, 5432)?;
    let output = run(&hosts, &shipped().join("dependency-unreachable.yaml"), &[])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(rules(&hosts)?, json!([]));
    Ok(())
}

/// The runbook detects a service that does not notice the loss of its database, and lifts its block.
#[test]
fn a_dependency_that_nobody_misses() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let servers = Servers::new()?;
    servers.start(&hosts.pair.a, (Pair::A, 8080).into(), "service")?;
    servers.start(&hosts.pair.b, (Pair::B, 5432).into(), "database")?;
    let file = changed("dependency-unreachable.yaml", |steps| {
        steps[3]["check"]["within"] = json!("1s");
    })?;
    let output = run(&hosts, file.path(), &[])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.stdout.contains("step 4 of 6, the service says that it cannot serve, and says it in time: expected status 500 or 503; found status 200"),
        "{output:?}"
    );
    assert_eq!(rules(&hosts)?, json!([]));
    hosts.pair.a.run(&[
        "curl",
        "--silent",
        "--fail",
        "--max-time",
        "5",
        "http://10.171.170.104:5432/",
    ])?;
    Ok(())
}

/// A shipped runbook with steps of another kind.
fn changed(name: &str, change: impl FnOnce(&mut Vec<Value>)) -> Result<tempfile::NamedTempFile> {
    let text = fs::read_to_string(shipped().join(name))?;
    let mut runbook: Value = serde_yaml::from_str(&text)?;
    change(runbook["steps"].as_array_mut().context("steps")?);
    let file = tempfile::NamedTempFile::new()?;
    // JSON is YAML.
    fs::write(file.path(), serde_json::to_string(&runbook)?)?;
    Ok(file)
}

#[test]
fn a_dead_client_is_taken_out_and_nothing_stale_is_delivered() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _balancer = Balancer::start(&hosts.pair, 2)?;
    let evidence = tempfile::NamedTempFile::new()?;
    let report = evidence.path().display().to_string();
    let output = run(
        &hosts,
        &shipped().join("dead-client.yaml"),
        &["--report", &report],
    )?;
    assert_eq!(output.code, 0, "{output:?}");
    let report: Value = serde_json::from_str(&fs::read_to_string(evidence.path())?)?;
    assert_eq!(report["result"], "passed", "{report}");
    // The request that was under way died with the block, and not by chance.
    ensure!(
        report["blocks"][0]["teardown"]["killed"].as_u64() > Some(0),
        "{report}"
    );
    Ok(())
}

/// The same runbook, the block made by these rules instead.
fn stale(reject: &str) -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let _balancer = Balancer::start(&hosts.pair, 2)?;
    let rules = |verb: &str| {
        let b = Pair::B;
        let line = format!(
            "iptables -w {verb} INPUT -s {b} {reject} && iptables -w {verb} OUTPUT -d {b} {reject}"
        );
        json!({"check": {"command": {"run": line}}})
    };
    let file = changed("dead-client.yaml", |steps| {
        for step in steps {
            if step["block"].is_object() {
                *step = rules("-A");
            } else if step["lift"].is_string() {
                *step = rules("-D");
            }
        }
    })?;
    let output = run(&hosts, file.path(), &["-o", "json"])?;
    assert_eq!(output.code, 1, "{output:?}");
    let report = output.json()?;
    let steps = report["steps"].as_array().context("steps")?;
    let (last, before) = steps.split_last().context("steps")?;
    // It looks well: out of rotation, back again.
    for step in before {
        assert_eq!(step["outcome"], "passed", "{report}");
    }
    assert_eq!(last["outcome"], "failed", "{report}");
    let found = last["found"].as_str().context("found")?;
    ensure!(
        found.contains("stale answer of client") && found.contains("status 200"),
        "{found}"
    );
    Ok(())
}

#[test]
fn with_reject_in_both_chains_the_stale_answer_is_delivered() -> Result<()> {
    stale("-j REJECT")
}

#[test]
fn with_tcp_reset_in_both_chains_the_stale_answer_is_delivered() -> Result<()> {
    stale("-p tcp -j REJECT --reject-with tcp-reset")
}
