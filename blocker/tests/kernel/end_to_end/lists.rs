//! Target lists: from a file to packets that are dropped, by configuration and by command.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::{Connection, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error};

/// A list's file beside the daemon's configuration.
fn write(hosts: &BlockingPair, name: &str, text: &str) -> Result<PathBuf> {
    let path = hosts.daemon.config_path().with_file_name(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Reloads and waits until the daemon says what became of it; gives the error.
fn reload(hosts: &BlockingPair) -> Result<Option<String>> {
    let last = || -> Result<Value> { Ok(hosts.daemon.json(&["status"])?["last_reload"].clone()) };
    let before = last()?["at"].clone();
    hosts.daemon.reload()?;
    let reload = poll("the reload", PATIENCE, || {
        last().ok().filter(|reload| reload["at"] != before)
    })?;
    Ok(reload["error"].as_str().map(str::to_owned))
}

/// Whether the peer is blocked, in mode `reset`.
fn refused(hosts: &BlockingPair) -> Result<bool> {
    let error = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    let listed = hosts.counters("listed")?["packets"].as_u64();
    Ok(error == Some(Errno::ECONNREFUSED) && listed > Some(0))
}

fn targets(hosts: &BlockingPair, id: &str) -> Result<Vec<String>> {
    let rule = hosts.daemon.json(&["show", id])?;
    let targets = rule["targets"].as_array().context("targets")?;
    Ok(targets
        .iter()
        .filter_map(|target| target.as_str().map(str::to_owned))
        .collect())
}

#[test]
fn a_list_of_the_configuration_is_read_at_every_reload() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    write(&hosts, "l.netset", "# mine\n198.51.100.0/24\n")?;
    let config =
        "rules:\n  - {id: listed, targets_file: l.netset, targets: [203.0.113.9], mode: reset}\n";
    hosts.daemon.write_config(config)?;
    assert_eq!(reload(&hosts)?, None);
    assert_eq!(
        targets(&hosts, "listed")?,
        ["198.51.100.0/24", "203.0.113.9"]
    );
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()?;

    let peer = format!("198.51.100.0/24\n{}/32 # the peer\n", Pair::B);
    let list = write(&hosts, "l.netset", &peer)?;
    assert_eq!(reload(&hosts)?, None);
    assert!(refused(&hosts)?);
    let in_force = targets(&hosts, "listed")?;

    fs::write(&list, "198.51.100.0/24\n198.51.100.7/24\n")?;
    let error = reload(&hosts)?.context("a bad list was accepted")?;
    let place = format!("targets_file: {}:2: ", list.display());
    assert!(error.contains(&place), "{error}");
    // The laboratory's own lines are the first three.
    let rule = format!("{}:5:5", hosts.daemon.config_path().display());
    assert!(error.contains(&rule), "{error}");
    assert_eq!(targets(&hosts, "listed")?, in_force, "the old one holds");

    let check = hosts.daemon.blocker(&hosts.pair.a, "check")?;
    assert_eq!(check.code, 2, "{check:?}");
    assert!(check.stderr.contains(&place), "{check:?}");

    fs::remove_file(&list)?;
    let error = reload(&hosts)?.context("a missing list was accepted")?;
    assert!(error.contains("cannot read the target list"), "{error}");
    assert_eq!(targets(&hosts, "listed")?, in_force);
    Ok(())
}

#[test]
fn add_takes_a_list_in_json_and_skips_what_it_may() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let text = format!(
        "{{\"cidr\":\"{}/32\",\"sblid\":\"SBL1\"}}\n{{\"cidr\":\"198.51.100.300\"}}\n{{\"cidr\":\"198.51.100.0/24\"}}\n{{\"type\":\"metadata\",\"records\":3}}\n",
        Pair::B
    );
    let list = write(&hosts, "drop_v4.json", &text)?;
    let name = list.display().to_string();

    let bad = hosts.daemon.blockctl(&["add", "--from-file", &name])?;
    assert_eq!(bad.code, 2, "{bad:?}");
    let place = format!("{name}:2: ");
    assert!(bad.stderr.contains(&place), "{bad:?}");
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()?;

    let add = [
        "add",
        "--from-file",
        &name,
        "--skip-invalid",
        "--id",
        "listed",
        "--mode",
        "reset",
    ];
    let added = hosts.daemon.blockctl(&add)?.success()?;
    let counts = format!("{name}: 4 lines, 2 targets, 1 skipped (first: line 2: ");
    assert!(added.stderr.contains(&counts), "{added:?}");
    assert!(refused(&hosts)?);
    let own = Pair::B.to_string();
    let mut expected = ["198.51.100.0/24", own.as_str()];
    expected.sort_unstable_by_key(|text| text.parse::<blocker::rule::Target>().ok());
    assert_eq!(targets(&hosts, "listed")?, expected);
    Ok(())
}

#[test]
fn of_many_targets_the_answer_names_as_few_as_are_asked_for() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let text: String = (0..100)
        .map(|n| format!("198.51.100.{}\n", 2 * n))
        .collect();
    let list = write(&hosts, "more.txt", &text)?.display().to_string();
    let words = ["add", "--from-file", &list, "--id", "more"];
    let table = hosts.daemon.blockctl(&words)?.success()?;
    let whole = targets(&hosts, "more")?;
    assert_eq!(whole.len(), 100);
    let head = format!("blocked {} and 99 more (rule more", whole[0]);
    assert!(table.stdout.contains(&head), "{table:?}");

    // All of them where the rule is shown as it is.
    let exact = hosts.daemon.json(&words)?;
    let shown = exact["rule"]["targets"].as_array().context("targets")?;
    assert_eq!(shown.len(), whole.len());
    assert_eq!(exact["targets_total"], Value::Null);
    Ok(())
}
