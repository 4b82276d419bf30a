//! Rules with `--confirm-within`: unless confirmed they end by themselves, even if the daemon dies.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use xtask::hosts::{Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error};

/// No listener has this port: without a block a connection is refused at once.
const PORT: u16 = 9;

fn is_blocked(hosts: &BlockingPair) -> Result<bool> {
    let error = connect_error(&hosts.pair.b, (Pair::A, PORT).into())?;
    Ok(error != Some(nix::errno::Errno::ECONNREFUSED))
}

fn wait_lifted(hosts: &BlockingPair) -> Result<()> {
    poll("the rule to end", PATIENCE, || {
        (!is_blocked(hosts).ok()?).then_some(())
    })
}

#[test]
fn what_is_not_confirmed_ends_by_itself() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let words = [
        "--mode",
        "reject",
        "--id",
        "dev01",
        "--confirm-within",
        "2s",
    ];
    let added = hosts.add(&[&[b.as_str()], &words[..]].concat())?;
    assert!(added["rule"]["unconfirmed"].is_object(), "{added}");
    assert!(is_blocked(&hosts)?);
    wait_lifted(&hosts)?;
    let late = hosts.daemon.blockctl(&["confirm", "dev01"])?;
    assert_eq!(late.code, 4, "{}", late.stderr);
    // The kernel keeps it, whatever becomes of the daemon.
    hosts.add(&[&[b.as_str()], &words[..]].concat())?;
    hosts.daemon.kill()?;
    assert!(is_blocked(&hosts)?);
    wait_lifted(&hosts)
}

#[test]
fn what_is_confirmed_stays_until_it_was_to_end() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let words = [b.as_str(), "--mode", "reject", "--id", "dev01"];
    let trial = [&words[..], &["--for", "1h", "--confirm-within", "3s"]].concat();
    let said = hosts
        .daemon
        .blockctl(&[&["add"], &trial[..]].concat())?
        .success()?;
    assert!(
        said.stdout.contains("blockctl confirm dev01"),
        "{}",
        said.stdout
    );
    let confirmed = hosts.daemon.json(&["confirm", "dev01"])?;
    assert_eq!(confirmed["confirmed"], true);
    let again = hosts.daemon.json(&["confirm", "dev01"])?;
    assert_eq!(again["confirmed"], false);
    let rule = hosts.daemon.json(&["show", "dev01"])?;
    assert_eq!(rule["unconfirmed"], Value::Null);
    let left = rule["remaining_seconds"].as_u64().unwrap_or(0);
    assert!((3_500..=3_600).contains(&left), "{rule}");
    poll(
        "the time of the trial to pass",
        Duration::from_secs(10),
        || {
            let rule = hosts.daemon.json(&["show", "dev01"]).ok()?;
            (rule["remaining_seconds"].as_u64()? < 3_596).then_some(())
        },
    )?;
    assert!(is_blocked(&hosts)?);
    // It is in force: there is nothing that a trial could go back to.
    let refused = hosts.daemon.blockctl(&[&["add"], &trial[..]].concat())?;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("nothing to go back to"),
        "{}",
        refused.stderr
    );
    // That it was confirmed is kept.
    hosts.daemon.kill()?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(
        hosts.daemon.json(&["show", "dev01"])?["unconfirmed"],
        Value::Null
    );
    Ok(())
}

#[test]
fn a_trial_that_outlives_its_rule_is_none() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let words = ["add", "192.0.2.1", "--for", "5s", "--confirm-within", "1m"];
    let refused = hosts.daemon.blockctl(&words)?;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("ends before it is to be confirmed"),
        "{}",
        refused.stderr
    );
    Ok(())
}
