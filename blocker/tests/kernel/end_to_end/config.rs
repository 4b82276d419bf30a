//! The configuration file: checked, loaded, and reloaded as one change or not at all.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::{Connection, Daemon, Output, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error, soon};

/// Reloads a configuration and waits until the daemon says what became of it; gives the error.
fn reload(hosts: &BlockingPair, config: &str) -> Result<Option<String>> {
    let last = || -> Result<Value> { Ok(hosts.daemon.json(&["status"])?["last_reload"].clone()) };
    let before = last()?["at"].clone();
    hosts.daemon.write_config(config)?;
    hosts.daemon.reload()?;
    let reload = poll("the reload", PATIENCE, || {
        last().ok().filter(|reload| reload["at"] != before)
    })?;
    Ok(reload["error"].as_str().map(str::to_owned))
}

/// The ids of the rules in force, with their owners.
fn rules(hosts: &BlockingPair) -> Result<Vec<(String, String)>> {
    let list = hosts.daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("a list of rules")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rules
        .iter()
        .map(|rule| (text(&rule["id"]), text(&rule["owner"])))
        .collect())
}

fn pairs(rules: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = rules
        .iter()
        .map(|(id, owner)| ((*id).into(), (*owner).into()));
    owned.collect()
}

#[test]
fn a_reload_is_one_change_and_kills_what_it_should() -> Result<()> {
    let hosts = BlockingPair::new("rules:\n  - {id: old, targets: [198.51.100.1]}\n")?;
    assert_eq!(rules(&hosts)?, pairs(&[("old", "config")]));
    hosts.add(&["198.51.100.2", "--id", "mine"])?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;

    let config = format!(
        "rules:\n  - {{id: new, targets: [{}], mode: reset}}\n",
        Pair::B
    );
    assert_eq!(reload(&hosts, &config)?, None);
    let now = pairs(&[("mine", "api"), ("new", "config")]);
    assert_eq!(rules(&hosts)?, now);
    assert!(flow.wait_dead(soon())?, "the idle flow dies: {flow:?}");
    let refused = || connect_error(&hosts.pair.b, (Pair::A, 9).into());
    assert_eq!(refused()?, Some(Errno::ECONNREFUSED));
    let blocked = hosts.wait_packets("new", 1)?;

    // The same again changes nothing, and loses no count.
    assert_eq!(reload(&hosts, &format!("{config}# a comment\n"))?, None);
    assert_eq!(rules(&hosts)?, now);
    assert!(hosts.counters("new")?["packets"].as_u64() >= blocked["packets"].as_u64());

    assert_eq!(reload(&hosts, "")?, None);
    assert_eq!(rules(&hosts)?, pairs(&[("mine", "api")]));
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()
}

#[test]
fn a_target_more_or_less_leaves_the_flows_of_the_others_alone() -> Result<()> {
    let rule = |targets| format!("rules: [{{id: a, targets: [{targets}], on_lift: reset}}]\n");
    let (one, two) = (
        rule(format!("{}", Pair::B)),
        rule(format!("{}, 192.0.2.9", Pair::B)),
    );
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    for config in [&one, &two, &one] {
        assert_eq!(reload(&hosts, config)?, None);
        for end in [&flow.client, &flow.server] {
            assert_eq!(end.state()?, "ESTABLISHED", "{config}");
        }
    }
    assert_eq!(reload(&hosts, "")?, None);
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    Ok(())
}

#[test]
fn a_bad_reload_changes_nothing_and_says_where() -> Result<()> {
    let good = format!(
        "rules:\n  - {{id: block, targets: [{}], mode: reset}}\n",
        Pair::B
    );
    let hosts = BlockingPair::new(&good)?;
    hosts.add(&["198.51.100.2", "--id", "taken"])?;
    let now = rules(&hosts)?;
    let file = hosts.daemon.config_path().display().to_string();
    // The laboratory's own lines are the first three.
    for (bad, expected) in [
        ("rulez: []\n", format!("{file}:4:1")),
        (
            "rules:\n  - {targets: [10.0.0.1/8]}\n",
            format!("{file}:5:16"),
        ),
        (
            "rules:\n  - {targets: [198.51.100.1], mode: explode}\n",
            format!("{file}:5:"),
        ),
        ("rules: [\n", file.clone()),
        ("state_dir: /elsewhere\n", file.clone()), // a second one
        (
            "limits: {rules: 17}\n",
            "limits changed: that needs a restart".into(),
        ),
        (
            "rules: [{id: taken, targets: [198.51.100.1]}]\n",
            "taken".into(),
        ),
    ] {
        let error = reload(&hosts, bad)?.with_context(|| format!("{bad:?} was accepted"))?;
        assert!(error.contains(&expected), "{bad:?}: {error}");
        assert!(hosts.daemon.log().contains("was not reloaded"), "{bad:?}");
        assert_eq!(rules(&hosts)?, now, "{bad:?}");
        let refused = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
        assert_eq!(refused, Some(Errno::ECONNREFUSED), "{bad:?}");
    }
    let status = hosts.daemon.blockctl(&["status"])?.success()?.stdout;
    assert!(
        status.contains("taken"),
        "the last error is shown: {status}"
    );
    assert_eq!(
        reload(&hosts, &good)?,
        None,
        "and a good one is taken again"
    );
    Ok(())
}

#[test]
fn a_reload_may_change_which_devices_are_attached() -> Result<()> {
    let hosts = BlockingPair::new("interfaces: [eth0]\n")?;
    let interfaces = || -> Result<usize> {
        let status = hosts.daemon.json(&["status"])?;
        Ok(status["interfaces"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(interfaces()?, 1);
    hosts.add(&[&Pair::B.to_string(), "--mode", "reset"])?;
    assert_eq!(reload(&hosts, "interfaces: [\"wan*\"]\n")?, None);
    assert_eq!(interfaces()?, 0);
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()?;
    assert_eq!(reload(&hosts, "interfaces: [\"eth*\"]\n")?, None);
    assert_eq!(interfaces()?, 1);
    let refused = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    assert_eq!(refused, Some(Errno::ECONNREFUSED));
    Ok(())
}

/// Runs `blocker check` on a file.
fn check(text: &str) -> Result<(Output, String)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("blocker.yaml");
    fs::write(&path, text)?;
    let output = Command::new(env!("CARGO_BIN_EXE_blocker"))
        .arg("check")
        .arg("--config")
        .arg(&path)
        .output()?;
    let output = Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    };
    Ok((output, path.display().to_string()))
}

#[test]
fn check_prints_the_effective_configuration() -> Result<()> {
    let (checked, _) = check("on_stop: keep\nrules:\n  - {id: dev01, targets: [198.51.100.1]}\n")?;
    let checked = checked.success()?;
    for line in ["on_stop: keep", "interfaces: auto", "dev01", "mode: drop"] {
        assert!(checked.stdout.contains(line), "{line}: {}", checked.stdout);
    }
    // What it prints is a configuration of the same meaning.
    let (again, _) = check(&checked.stdout)?;
    assert_eq!(again.success()?.stdout, checked.stdout);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/blocker.yaml");
    check(&fs::read_to_string(shipped)?)?.0.success()?;
    Ok(())
}

#[test]
fn check_says_where_a_file_is_wrong() -> Result<()> {
    for (text, place, what) in [
        ("rulez: []\n", ":1:1", "rulez"),
        ("on_stop: keep\nhook: xpd\n", ":2:7", "xpd"),
        (
            "rules:\n  - {targets: [192.0.2.256]}\n",
            ":2:",
            "192.0.2.256",
        ),
        (
            "rules:\n  - {targets: [192.0.2.1], for: never}\n",
            ":2:",
            "never",
        ),
        ("limits: {rules: 0}\n", ":1:", "rules"),
        ("a: [\n", ":", ""),
    ] {
        let (checked, path) = check(text)?;
        assert_eq!(checked.code, 2, "{text:?}: {}", checked.stdout);
        assert_eq!(checked.stdout, "", "{text:?}");
        let place = format!("{path}{place}");
        assert!(
            checked.stderr.contains(&place),
            "{text:?}: {}",
            checked.stderr
        );
        assert!(
            checked.stderr.contains(what),
            "{text:?}: {}",
            checked.stderr
        );
    }
    Ok(())
}

#[test]
fn a_daemon_does_not_start_on_a_bad_file() -> Result<()> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), "hook: xpd\n")?;
    let error = format!("{:#}", daemon.run(&pair.a).expect_err("it is wrong"));
    assert!(error.contains(":4:7") && error.contains("xpd"), "{error}");
    assert!(!daemon.socket().exists());
    let left = pair.a.run(&["bpftool", "--json", "net", "show"])?;
    assert!(!left.contains("eth0"), "{left}");
    Ok(())
}
